//! The session of one client: its handles, and what becomes of its commands.
//!
//! Commands come decoded, their slots copied; areas, handles and credentials are checked here, before the filesystem hears of anything.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{
    AllocateMode, Attributes, Credentials, FileKind, HandleId, LockOwner, Name, NewNode, NodeId, OpenFlags,
    Operation, Reply, SessionId, SetXattrMode, Whence,
};
use ringfort_protocol::argument::{AttributesRecord, ChangeRecord, CopyToRecord, LockRecord};
use ringfort_protocol::command::{Area, Command, Flags, Opcode, OpenBits};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::layout::Record;
use zerocopy::IntoBytes;

use super::data::DataArea;
use super::record;
use super::walk::{Last, Spot, Walk};
use crate::service::Service;

mod names;

/// Entries that are asked of a directory at a time.
const ENTRIES_AT_ONCE: usize = 256;

/// An open file or directory.
#[derive(Clone, Copy, Debug)]
struct Opened {
    spot: Spot,
    handle: HandleId,
}

/// A client's session with the filesystem.
pub struct Session<S: Service> {
    service: Rc<S>,
    id: SessionId,
    opened: RefCell<HashMap<u64, Opened>>,
}

/// What a command gives back besides its status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    output_bytes: u32,
    value: u64,
    extra: u64,
}

impl Outcome {
    fn value(value: u64) -> Self {
        Self { value, ..Self::default() }
    }
}

type Result<T> = std::result::Result<T, Errno>;

/// A reply of another operation: a fault of the filesystem's.
fn unexpected<T>() -> Result<T> {
    Err(Errno::EIO)
}

fn low(value: u64) -> u32 {
    (value & u64::from(u32::MAX)) as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

/// The first `len_bytes` of an input, and the rest.
fn cut(input: &[u8], len_bytes: u64) -> Result<(&[u8], &[u8])> {
    usize::try_from(len_bytes)
        .ok()
        .and_then(|len_bytes| input.split_at_checked(len_bytes))
        .ok_or(Errno::EINVAL)
}

/// An offset that files have.
fn offset(operand: u64) -> Result<u64> {
    if operand > i64::MAX as u64 { Err(Errno::EINVAL) } else { Ok(operand) }
}

impl<S: Service> Session<S> {
    pub async fn begin(service: Rc<S>) -> Self {
        let id = service.open_session().await;
        Self { service, id, opened: RefCell::default() }
    }

    /// Gives up all handles and locks. None of the session's commands may be under way.
    pub async fn end(&self) {
        self.opened.borrow_mut().clear();
        self.service.close_session(self.id).await;
    }

    /// Carries a command out. Dropping it ends what it waits for.
    pub async fn carry_out(
        &self,
        command: &Command,
        credentials: &Credentials,
        data: &DataArea,
    ) -> Completion {
        let mut call = Call {
            session: self,
            command,
            credentials,
            data,
            walk: Walk::new(&*self.service, self.id, credentials),
        };
        let outcome = call.run().await;
        call.walk.end().await;
        match outcome {
            Ok(Outcome { output_bytes, value, extra }) => {
                Completion { tag: command.tag, status: 0, output_bytes, value, extra }
            }
            Err(Refusal { errno, value }) => Completion {
                tag: command.tag,
                status: errno.raw().unsigned_abs(),
                value,
                ..Completion::default()
            },
        }
    }
}

/// An error, and what the completion says besides.
struct Refusal {
    errno: Errno,
    value: u64,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, value: 0 }
    }
}

/// One command under way.
struct Call<'a, S: Service> {
    session: &'a Session<S>,
    command: &'a Command,
    credentials: &'a Credentials,
    data: &'a DataArea,
    walk: Walk<'a, S>,
}

impl<S: Service> Call<'_, S> {
    async fn run(&mut self) -> std::result::Result<Outcome, Refusal> {
        let command = self.command;
        Ok(match command.opcode {
            Opcode::Nop => Outcome::value(command.value),
            Opcode::Open => self.open().await?,
            Opcode::Close => self.close(command.target).await?,
            Opcode::Read => self.read(&[command.output]).await?,
            Opcode::ReadScatter => self.read(&self.data.list(command.input)?).await?,
            Opcode::Write => self.write(&[command.input]).await?,
            Opcode::WriteGather => self.write(&self.data.list(command.input)?).await?,
            Opcode::Sync => self.sync().await?,
            Opcode::SyncAll => self.done(Operation::SyncAll).await?,
            Opcode::Stat => self.stat().await?,
            Opcode::SetAttributes => self.set_attributes().await?,
            Opcode::Access => {
                let mask = u8::try_from(command.value).ok().filter(|mask| *mask <= 7).ok_or(Errno::EINVAL)?;
                let spot = self.place().await?;
                self.done(Operation::Access { node: spot.node, mask }).await?
            }
            Opcode::MakeDirectory | Opcode::MakeNode => self.make().await?,
            Opcode::MakeSymlink => self.make_symlink().await?,
            Opcode::ReadLink => self.read_link().await?,
            Opcode::Link => self.link().await?,
            Opcode::Unlink => self.unlink().await?,
            Opcode::Rename => self.rename().await?,
            Opcode::ReadDirectory => self.read_directory().await?,
            Opcode::Statistics => {
                let Reply::Statistics(statistics) = self.execute(Operation::StatFs).await? else {
                    return Ok(unexpected()?);
                };
                self.put(record::statistics(&statistics).as_bytes())?
            }
            Opcode::GetXattr => {
                let (spot, name) = self.named_attribute().await?;
                self.give(Operation::GetXattr { node: spot.node, name }).await?
            }
            Opcode::ListXattr => {
                let spot = self.place().await?;
                self.give(Operation::ListXattr { node: spot.node }).await?
            }
            Opcode::RemoveXattr => {
                let (spot, name) = self.named_attribute().await?;
                self.done(Operation::RemoveXattr { node: spot.node, name }).await?
            }
            Opcode::SetXattr => self.set_xattr().await?,
            Opcode::Allocate => self.allocate().await?,
            Opcode::Seek => self.seek().await?,
            Opcode::CopyRange => self.copy_range().await?,
            Opcode::SetLock => self.set_lock().await?,
            Opcode::GetLock => self.get_lock().await?,
            // Whoever has the ring's commands under way does this.
            Opcode::Cancel => return Err(Errno::EINVAL.into()),
        })
    }

    async fn execute(&self, operation: Operation) -> Result<Reply> {
        self.session.service.execute(self.session.id, self.credentials, operation).await
    }

    /// An operation that gives nothing back.
    async fn done(&self, operation: Operation) -> Result<Outcome> {
        match self.execute(operation).await? {
            Reply::Done => Ok(Outcome::default()),
            _ => unexpected(),
        }
    }

    /// Copies a result to the output.
    fn put(&self, bytes: &[u8]) -> Result<Outcome> {
        self.data.output(self.command.output, bytes)?;
        // Not longer than the output.
        Ok(Outcome { output_bytes: bytes.len() as u32, ..Outcome::default() })
    }

    /// Copies attributes to the output, where there is one.
    fn put_attributes(&self, attributes: &Attributes) -> Result<Outcome> {
        match self.command.output.len_bytes {
            0 => Ok(Outcome::default()),
            _ => self.put(record::attributes(attributes).as_bytes()),
        }
    }

    /// Gives bytes whose length the client may not have known: it learns it also where they do not fit.
    async fn give(&self, operation: Operation) -> std::result::Result<Outcome, Refusal> {
        let bytes = match self.execute(operation).await? {
            Reply::Value(bytes) | Reply::Target(bytes) => bytes,
            _ => return Ok(unexpected()?),
        };
        let value = bytes.len() as u64;
        match self.data.output(self.command.output, &bytes) {
            Ok(()) => Ok(Outcome { output_bytes: bytes.len() as u32, value, extra: 0 }),
            Err(errno) => Err(Refusal { errno, value }),
        }
    }

    fn opened(&self, number: u64) -> Result<Opened> {
        self.session.opened.borrow().get(&number).copied().ok_or(Errno::EBADF)
    }

    fn target(&self) -> Result<Opened> {
        self.opened(self.command.target)
    }

    /// Where a path begins: a handle, or the root.
    fn start(&self, number: u64) -> Result<Spot> {
        if number == 0 { Ok(Spot::ROOT) } else { self.opened(number).map(|opened| opened.spot) }
    }

    fn follows(&self) -> bool {
        !self.command.flags.has(Flags::NO_FOLLOW)
    }

    /// The node that the input, all of it a path, leads to.
    async fn place(&mut self) -> Result<Spot> {
        let path = self.data.input(self.command.input)?;
        self.place_at(&path).await
    }

    async fn place_at(&mut self, path: &[u8]) -> Result<Spot> {
        let (start, follow) = (self.start(self.command.target)?, self.follows());
        self.walk.reach(start, path, follow).await
    }

    async fn parent_at(&mut self, start: u64, path: &[u8]) -> Result<(Spot, Last)> {
        let start = self.start(start)?;
        self.walk.reach_parent(start, path).await
    }

    async fn open(&mut self) -> Result<Outcome> {
        let bits = OpenBits(low(self.command.value));
        let flags = record::open_flags(bits)?;
        let permissions = record::permissions(high(self.command.value));
        // Before anything is opened or made: the client must be able to hear of it.
        let wants_attributes = match self.command.output.len_bytes {
            0 => false,
            room => {
                self.data.check_all(&[self.command.output])?;
                if (room as usize) < size_of::<AttributesRecord>() {
                    return Err(Errno::ERANGE);
                }
                true
            }
        };
        let path = self.data.input(self.command.input)?;
        let (spot, handle) = if bits.has(OpenBits::TEMPORARY) {
            self.open_temporary(&path, flags, bits, permissions).await?
        } else if bits.has(OpenBits::CREATE) {
            self.open_or_create(&path, flags, permissions).await?
        } else {
            let spot = self.place_at(&path).await?;
            if bits.has(OpenBits::DIRECTORY) && spot.kind != FileKind::Directory {
                return Err(Errno::ENOTDIR);
            }
            self.open_spot(spot, flags).await?
        };
        self.session.opened.borrow_mut().insert(handle.0, Opened { spot, handle });
        let outcome = match wants_attributes {
            false => Outcome::default(),
            true => match self.walk.attributes(spot.node).await {
                Ok(attributes) => self.put_attributes(&attributes)?,
                Err(errno) => {
                    // The client hears of no handle that it could close.
                    let _ = self.close(handle.0).await;
                    return Err(errno);
                }
            },
        };
        Ok(Outcome { value: handle.0, ..outcome })
    }

    async fn open_spot(&self, spot: Spot, flags: OpenFlags) -> Result<(Spot, HandleId)> {
        let operation = match spot.kind {
            FileKind::Directory if flags.write => return Err(Errno::EISDIR),
            FileKind::Directory => Operation::OpenDirectory { node: spot.node },
            _ => Operation::Open { node: spot.node, flags },
        };
        match self.execute(operation).await? {
            Reply::Opened(handle) => Ok((spot, handle)),
            _ => unexpected(),
        }
    }

    /// Opens what is there, else makes it; whoever else makes it meanwhile, it is one file.
    async fn open_or_create(
        &mut self,
        path: &[u8],
        flags: OpenFlags,
        permissions: u16,
    ) -> Result<(Spot, HandleId)> {
        let mut through_link = false;
        loop {
            if !flags.exclusive && !path.ends_with(b"/") {
                match self.place_at(path).await {
                    Ok(spot) if spot.kind == FileKind::Directory => return Err(Errno::EISDIR),
                    Ok(spot) => return self.open_spot(spot, flags).await,
                    Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
            let start = self.start(self.command.target)?;
            let (parent, last) = match through_link {
                false => self.walk.reach_parent(start, path).await?,
                true => self.walk.reach_parent_of_target(start, path).await?,
            };
            let dots = if flags.exclusive { Errno::EEXIST } else { Errno::EISDIR };
            if last.has_slash() {
                self.walk.require_searchable(parent).await?;
                return Err(Errno::EISDIR);
            }
            let (name, _) = last.name_or(dots)?;
            let new = NewNode { parent: parent.node, name, permissions, umask: 0 };
            let exclusive = OpenFlags { exclusive: true, ..flags };
            match self.execute(Operation::Create { new, flags: exclusive }).await {
                Ok(Reply::Created { attributes, handle }) => {
                    return Ok((self.walk.hold(&attributes), handle));
                }
                Ok(_) => return unexpected(),
                // A name that another has made since, or a symbolic link that leads nowhere: what it leads to is made.
                Err(Errno::EEXIST) if !flags.exclusive => through_link = true,
                Err(errno) => return Err(errno),
            }
        }
    }

    async fn open_temporary(
        &mut self,
        path: &[u8],
        flags: OpenFlags,
        bits: OpenBits,
        permissions: u16,
    ) -> Result<(Spot, HandleId)> {
        let directory = self.place_at(path).await?;
        if directory.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        // The name means nothing; one that is possible.
        let name = Name::new(b"temporary")?;
        let new = NewNode { parent: directory.node, name, permissions, umask: 0 };
        let linkable = !bits.has(OpenBits::EXCLUSIVE);
        match self.execute(Operation::CreateTemporary { new, flags, linkable }).await? {
            Reply::Created { attributes, handle } => Ok((self.walk.hold(&attributes), handle)),
            _ => unexpected(),
        }
    }

    async fn close(&self, number: u64) -> Result<Outcome> {
        let opened = self.session.opened.borrow_mut().remove(&number).ok_or(Errno::EBADF)?;
        self.done(match opened.spot.kind {
            FileKind::Directory => Operation::ReleaseDirectory { handle: opened.handle },
            _ => Operation::Release { handle: opened.handle },
        })
        .await
    }

    async fn read(&self, areas: &[Area]) -> Result<Outcome> {
        let handle = self.target()?.handle;
        self.data.check_all(areas)?;
        // Each area is bounded, and together they are where they were listed.
        let len_bytes = areas.iter().map(|area| area.len_bytes).sum();
        let offset_bytes = offset(self.command.operand)?;
        let reply = self.execute(Operation::Read { handle, offset_bytes, len_bytes }).await?;
        let Reply::Data(pieces) = reply else { return unexpected() };
        let read_bytes = self.data.scatter(areas, &pieces)?;
        let output_bytes = if self.command.opcode == Opcode::Read { low(read_bytes) } else { 0 };
        Ok(Outcome { output_bytes, value: read_bytes, extra: 0 })
    }

    async fn write(&self, areas: &[Area]) -> Result<Outcome> {
        let opened = self.target()?;
        let append = self.command.flags.has(Flags::APPEND);
        let offset_bytes = offset(self.command.operand)?;
        let data = self.data.payload(areas, offset_bytes)?;
        let operation = Operation::Write {
            handle: opened.handle,
            offset_bytes,
            data,
            append,
            clear_set_id: false,
            write_back: false,
        };
        match self.execute(operation).await? {
            Reply::Written { len_bytes } => Ok(Outcome::value(len_bytes.into())),
            _ => unexpected(),
        }
    }

    async fn sync(&self) -> Result<Outcome> {
        let opened = self.target()?;
        let data_only = self.command.flags.has(Flags::DATA_ONLY);
        self.done(match opened.spot.kind {
            FileKind::Directory => Operation::SyncDirectory { handle: opened.handle },
            _ => Operation::Sync { handle: opened.handle, data_only },
        })
        .await
    }

    async fn stat(&mut self) -> Result<Outcome> {
        let spot = self.place().await?;
        let attributes = self.walk.attributes(spot.node).await?;
        self.put(record::attributes(&attributes).as_bytes())
    }

    async fn set_attributes(&mut self) -> Result<Outcome> {
        let input = self.data.input(self.command.input)?;
        let (change, path) = ChangeRecord::split(&input).ok_or(Errno::EINVAL)?;
        let change = record::change(&change)?;
        let spot = self.place_at(path).await?;
        // What the handle may do counts where the handle itself is meant: ftruncate needs no permission.
        let handle = if path.is_empty() { self.target().ok().map(|opened| opened.handle) } else { None };
        let operation = Operation::SetAttributes { node: spot.node, handle, change };
        match self.execute(operation).await? {
            Reply::Attributes(attributes) => self.put_attributes(&attributes),
            _ => unexpected(),
        }
    }

    async fn read_directory(&self) -> Result<Outcome> {
        let opened = self.target()?;
        let attributes = self.command.flags.has(Flags::WITH_ATTRIBUTES);
        self.data.check_all(&[self.command.output])?;
        let room_bytes = self.command.output.len_bytes as usize;
        let (mut list, mut count, mut cookie) = (Vec::new(), 0, self.command.operand);
        'full: loop {
            let operation = Operation::ReadDirectory {
                handle: opened.handle,
                cookie,
                limit: ENTRIES_AT_ONCE,
                attributes,
            };
            let Reply::Entries(entries) = self.execute(operation).await? else { return unexpected() };
            if entries.is_empty() {
                break;
            }
            let mut taken = entries.iter();
            let fits = taken.by_ref().take_while(|entry| record::push_entry(&mut list, entry, room_bytes));
            let (passed, last) = fits.fold((0, cookie), |(passed, _), entry| (passed + 1, entry.cookie));
            (count, cookie) = (count + passed, last);
            // Each entry with attributes counts a lookup, handed on or not: a channel's client holds none.
            for node in entries.iter().filter_map(|entry| entry.attributes.map(|found| found.node)) {
                self.forget(node).await;
            }
            if passed < entries.len() {
                break 'full;
            }
        }
        if count == 0 && !self.at_end(&opened, cookie).await? {
            return Err(Errno::ERANGE);
        }
        let outcome = self.put(&list)?;
        Ok(Outcome { value: count as u64, extra: cookie, ..outcome })
    }

    async fn at_end(&self, directory: &Opened, cookie: u64) -> Result<bool> {
        let handle = directory.handle;
        let operation = Operation::ReadDirectory { handle, cookie, limit: 1, attributes: false };
        match self.execute(operation).await? {
            Reply::Entries(entries) => Ok(entries.is_empty()),
            _ => unexpected(),
        }
    }

    async fn forget(&self, node: NodeId) {
        // Never fails in a session that is open.
        let _ = self.execute(Operation::Forget { node, count: 1 }).await;
    }

    async fn named_attribute(&mut self) -> Result<(Spot, Vec<u8>)> {
        let input = self.data.input(self.command.input)?;
        let (name, path) = cut(&input, self.command.value)?;
        check_xattr_name(name)?;
        Ok((self.place_at(path).await?, name.to_vec()))
    }

    async fn set_xattr(&mut self) -> Result<Outcome> {
        let input = self.data.input(self.command.input)?;
        let (name, rest) = cut(&input, low(self.command.value).into())?;
        let (value, path) = cut(rest, high(self.command.value).into())?;
        check_xattr_name(name)?;
        if value.len() > XATTR_BYTES_MAX {
            return Err(Errno::E2BIG);
        }
        let flags = self.command.flags;
        let mode = match (flags.has(Flags::NO_REPLACE), flags.has(Flags::MUST_EXIST)) {
            (false, false) => SetXattrMode::Any,
            (true, false) => SetXattrMode::Create,
            (false, true) => SetXattrMode::Replace,
            (true, true) => return Err(Errno::EINVAL),
        };
        let node = self.place_at(path).await?.node;
        let (name, value) = (name.to_vec(), value.to_vec());
        self.done(Operation::SetXattr { node, name, value, mode, clear_set_gid: false }).await
    }

    async fn allocate(&self) -> Result<Outcome> {
        let opened = self.target()?;
        let keep_size = self.command.flags.has(Flags::KEEP_SIZE);
        let way = self.command.flags.0
            & Flags::PUNCH_HOLE
                .union(Flags::ZERO_RANGE)
                .union(Flags::COLLAPSE_RANGE)
                .union(Flags::INSERT_RANGE)
                .0;
        let mode = match Flags(way) {
            Flags(0) => AllocateMode::Allocate { keep_size },
            Flags::PUNCH_HOLE => AllocateMode::PunchHole,
            Flags::ZERO_RANGE => AllocateMode::ZeroRange { keep_size },
            Flags::COLLAPSE_RANGE if !keep_size => AllocateMode::CollapseRange,
            Flags::INSERT_RANGE if !keep_size => AllocateMode::InsertRange,
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let (offset_bytes, len_bytes) = (offset(self.command.operand)?, offset(self.command.value)?);
        self.done(Operation::Allocate { handle: opened.handle, offset_bytes, len_bytes, mode }).await
    }

    async fn seek(&self) -> Result<Outcome> {
        let opened = self.target()?;
        let whence = if self.command.flags.has(Flags::HOLE) { Whence::Hole } else { Whence::Data };
        let offset_bytes = offset(self.command.operand)?;
        match self.execute(Operation::Seek { handle: opened.handle, offset_bytes, whence }).await? {
            Reply::Offset(offset_bytes) => Ok(Outcome::value(offset_bytes)),
            _ => unexpected(),
        }
    }

    async fn copy_range(&self) -> Result<Outcome> {
        let from = self.target()?.handle;
        let input = self.data.input(self.command.input)?;
        let Some((to, [])) = CopyToRecord::split(&input) else { return Err(Errno::EINVAL) };
        let operation = Operation::CopyRange {
            from,
            from_bytes: offset(self.command.operand)?,
            to: self.opened(to.handle.get())?.handle,
            to_bytes: offset(to.offset_bytes.get())?,
            len_bytes: offset(self.command.value)?,
        };
        match self.execute(operation).await? {
            Reply::Written { len_bytes } => Ok(Outcome::value(len_bytes.into())),
            _ => unexpected(),
        }
    }

    fn lock_record(&self) -> Result<record::LockWish> {
        let input = self.data.input(self.command.input)?;
        let Some((lock, [])) = LockRecord::split(&input) else { return Err(Errno::EINVAL) };
        record::lock_wish(&lock)
    }

    async fn set_lock(&self) -> Result<Outcome> {
        let handle = self.target()?.handle;
        let record::LockWish { range, mode, family, wait, pid } = self.lock_record()?;
        let owner = LockOwner(self.command.operand);
        self.done(Operation::SetLock { handle, owner, family, range, mode, pid, wait }).await
    }

    async fn get_lock(&self) -> Result<Outcome> {
        let handle = self.target()?.handle;
        let wish = self.lock_record()?;
        let mode = wish.mode.ok_or(Errno::EINVAL)?;
        let owner = LockOwner(self.command.operand);
        match self.execute(Operation::GetLock { handle, owner, range: wish.range, mode }).await? {
            Reply::Lock(None) => Ok(Outcome::default()),
            Reply::Lock(Some(held)) => {
                let outcome = self.put(record::held_lock(&held).as_bytes())?;
                Ok(Outcome { value: 1, ..outcome })
            }
            _ => unexpected(),
        }
    }
}

/// Longest value of an extended attribute (`XATTR_SIZE_MAX`).
const XATTR_BYTES_MAX: usize = 64 * 1024;

fn check_xattr_name(name: &[u8]) -> Result<()> {
    match name.len() {
        0 => Err(Errno::EINVAL),
        1..=255 if !name.contains(&0) => Ok(()),
        1..=255 => Err(Errno::EINVAL),
        _ => Err(Errno::ERANGE),
    }
}
