//! A volume, and its files.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ringfort_protocol::argument::{AttributesRecord, EntryRecord};
use ringfort_protocol::command::{Area, Command, Flags, Opcode, OpenBits};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::control::message::{Attach, Credential};
use ringfort_protocol::layout::Record;
use ringfort_protocol::ring::layout::{RING_ALIGN_BYTES, RingLayout};
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::ring::requester::Requester;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::control::Control;
use crate::error::Error;
use crate::memory;
use crate::ring::{Exchange, Ring};

/// The region that all rings lie in, and the credential of its user.
const REGION: u32 = 1;
const CREDENTIAL: u32 = 1;

/// How a volume is connected to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Calls that run at the same time; more take turns.
    pub rings: u32,
    /// The longest read or write, in bytes; longer ones are cut.
    pub call_bytes_max: u32,
    /// How long a call looks for its answer before it sleeps.
    pub busy_poll: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { rings: 4, call_bytes_max: 1 << 20, busy_poll: Duration::from_micros(50) }
    }
}

struct Shared {
    rings: Vec<Ring>,
    /// The ring that was taken last.
    last: AtomicUsize,
    call_bytes_max: usize,
    /// Its end ends the channel.
    control: UnixStream,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The thread that answers the server's questions hears of it and ends.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
    }
}

/// A connected volume. Clones are the same connection.
#[derive(Clone)]
pub struct Volume(Arc<Shared>);

/// Connects to the socket of a server on this host, as the user of this process.
pub fn connect(path: &Path) -> Result<Volume, Error> {
    connect_with(path, &Options::default())
}

/// As [`connect`], with settings.
pub fn connect_with(path: &Path, options: &Options) -> Result<Volume, Error> {
    const SLOTS: u32 = 16;
    let mut control = Control::connect(path)?;
    let welcome = control.welcome;
    let call_bytes = options.call_bytes_max.clamp(1 << 16, welcome.command_bytes_max.get().max(1 << 16));
    // Data as long as a call may be, and its names before it.
    let data_bytes = call_bytes + (64 << 10);
    let rings = options.rings.clamp(1, welcome.ring_count_max.get().max(1));
    let Some(ring_bytes) = RingLayout::len_bytes(SLOTS) else { unreachable!("a ring of so many slots") };
    let stride = ring_bytes + u64::from(data_bytes).next_multiple_of(RING_ALIGN_BYTES);
    let system = Error::system("share memory with the server");
    let (memory, descriptor) = memory::shareable(stride * u64::from(rings)).map_err(system)?;
    control.register(REGION, &memory, descriptor.as_fd())?;
    let (credential, groups) = own_credential()?;
    control.credential(credential, groups)?;
    let gone = Arc::new(AtomicBool::new(false));
    let attached = (0..rings)
        .map(|number| {
            let start = stride * u64::from(number);
            let Some(layout) = RingLayout::new(start, SLOTS, memory.len_bytes()) else {
                unreachable!("a ring lies where it was put")
            };
            // Below 4 GiB: 64 rings at most, of little more than a megabyte.
            let data = Area { start: (start + ring_bytes) as u32, len_bytes: data_bytes };
            let (doorbell, ours, theirs) = doorbells()?;
            let attach = Attach {
                region: REGION.into(),
                ring: number.into(),
                start: (start as u32).into(),
                slot_count: SLOTS.into(),
                data_start: data.start.into(),
                data_bytes: data.len_bytes.into(),
                ..Attach::default()
            };
            control.attach(attach, &[doorbell.as_fd(), theirs.as_fd()])?;
            let requester = Requester::new(memory.clone(), layout);
            let bells = (doorbell, ours);
            Ok(Ring::new(requester, memory.clone(), data, options.busy_poll, bells, Arc::clone(&gone)))
        })
        .collect::<Result<Vec<Ring>, Error>>()?;
    let stream = control.stream()?;
    std::thread::Builder::new()
        .name("ringfort".to_owned())
        .spawn(move || {
            control.keep_alive();
            gone.store(true, Ordering::Release);
        })
        .map_err(Error::system("start a thread"))?;
    Ok(Volume(Arc::new(Shared {
        rings: attached,
        last: AtomicUsize::new(0),
        call_bytes_max: call_bytes as usize,
        control: stream,
    })))
}

/// An event by which the server is rung, and both ends of a socket by which it rings.
fn doorbells() -> Result<(OwnedFd, OwnedFd, OwnedFd), Error> {
    let system = |errno: rustix::io::Errno| Error::system("make a doorbell")(errno.into());
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system)?;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(system)?;
    Ok((event, ours, theirs))
}

fn own_credential() -> Result<(Credential, Vec<u32>), Error> {
    let system = |errno: nix::Error| Error::system("ask for this process's groups")(errno.into());
    let groups: Vec<u32> =
        nix::unistd::getgroups().map_err(system)?.into_iter().map(nix::unistd::Gid::as_raw).collect();
    let credential = Credential {
        region: REGION.into(),
        credential: CREDENTIAL.into(),
        uid: nix::unistd::geteuid().as_raw().into(),
        gid: nix::unistd::getegid().as_raw().into(),
        // Linux gives a process no more than 65,536.
        group_count: (groups.len() as u32).into(),
        ..Credential::default()
    };
    Ok((credential, groups))
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Fifo,
    CharacterDevice,
    Directory,
    BlockDevice,
    Regular,
    Symlink,
    Socket,
}

impl FileKind {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Fifo,
            2 => Self::CharacterDevice,
            4 => Self::Directory,
            6 => Self::BlockDevice,
            8 => Self::Regular,
            10 => Self::Symlink,
            12 => Self::Socket,
            _ => return None,
        })
    }
}

/// The attributes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub node: u64,
    pub kind: FileKind,
    /// Permission, set-id and sticky bits.
    pub permissions: u32,
    pub link_count: u32,
    pub uid: u32,
    pub gid: u32,
    pub size_bytes: u64,
    /// Allocated, in units of 512 bytes.
    pub sectors: u64,
    /// Last change of the content: seconds since 1970, and nanoseconds.
    pub modified: (i64, u32),
}

impl Attributes {
    fn of(record: &AttributesRecord) -> Result<Self, Error> {
        let mode = record.mode.get();
        let kind = FileKind::from_number(mode >> 12)
            .ok_or_else(|| Error::Protocol { found: format!("a file of mode {mode:o}") })?;
        Ok(Self {
            node: record.node.get(),
            kind,
            permissions: mode & 0o7777,
            link_count: record.link_count.get(),
            uid: record.uid.get(),
            gid: record.gid.get(),
            size_bytes: record.size_bytes.get(),
            sectors: record.sectors.get(),
            modified: (record.modified_s.get(), record.modified_ns.get()),
        })
    }
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    pub name: Vec<u8>,
    pub node: u64,
    pub kind: FileKind,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Open {
    bits: OpenBits,
    permissions: u32,
}

impl Open {
    pub fn to_read() -> Self {
        Self { bits: OpenBits::READ, permissions: 0 }
    }

    pub fn to_write() -> Self {
        Self { bits: OpenBits::READ.union(OpenBits::WRITE), permissions: 0 }
    }

    /// Makes the file where it does not exist.
    #[must_use]
    pub fn create(self, permissions: u32) -> Self {
        Self { bits: self.bits.union(OpenBits::CREATE), permissions }
    }

    /// Fails where the file exists.
    #[must_use]
    pub fn exclusive(self) -> Self {
        Self { bits: self.bits.union(OpenBits::EXCLUSIVE), ..self }
    }

    #[must_use]
    pub fn truncate(self) -> Self {
        Self { bits: self.bits.union(OpenBits::TRUNCATE), ..self }
    }

    /// Every write goes to the end of the file.
    #[must_use]
    pub fn append(self) -> Self {
        Self { bits: self.bits.union(OpenBits::APPEND), ..self }
    }

    /// Every write is durable before it returns.
    #[must_use]
    pub fn sync(self) -> Self {
        Self { bits: self.bits.union(OpenBits::SYNC), ..self }
    }

    fn directory() -> Self {
        Self { bits: OpenBits::READ.union(OpenBits::DIRECTORY), permissions: 0 }
    }
}

/// One call about one path, or one open file.
struct Call<'a> {
    operation: &'static str,
    /// For errors.
    path: &'a str,
    command: Command,
}

impl<'a> Call<'a> {
    fn new(operation: &'static str, path: &'a str, opcode: Opcode) -> Self {
        Self { operation, path, command: Command::new(opcode, 0, CREDENTIAL) }
    }
}

impl Volume {
    /// A ring that nobody uses, or one of those that are used.
    fn ring(&self) -> &Ring {
        let rings = &self.0.rings;
        let first = self.0.last.load(Ordering::Relaxed);
        let free =
            (0..rings.len()).map(|step| (first + step) % rings.len()).find(|ring| rings[*ring].try_turn());
        let ring = free.unwrap_or((first + 1) % rings.len());
        self.0.last.store(ring, Ordering::Relaxed);
        &rings[ring]
    }

    fn call<T>(
        &self,
        call: &Call<'_>,
        exchange: &Exchange<'_>,
        take: impl FnOnce(&Completion, &SharedMemory, u64) -> T,
    ) -> Result<T, Error> {
        let taken =
            self.ring().call(call.command, exchange, |completion, memory, at| match completion.status {
                0 => Ok(take(completion, memory, at)),
                errno => Err(errno),
            })?;
        taken.map_err(|errno| Error::Refused {
            operation: call.operation,
            path: call.path.to_owned(),
            errno: i32::try_from(errno).unwrap_or(libc::EIO),
        })
    }

    /// A call that gives nothing back but its value.
    fn value(&self, call: &Call<'_>, input: &[&[u8]]) -> Result<u64, Error> {
        self.call(call, &Exchange { input, output_bytes: 0 }, |completion, _, _| completion.value)
    }

    /// A call that gives bytes back, at most so many: the completion, and the bytes.
    fn bytes(
        &self,
        call: &Call<'_>,
        input: &[&[u8]],
        output_bytes: usize,
    ) -> Result<(Completion, Vec<u8>), Error> {
        self.call(call, &Exchange { input, output_bytes }, |completion, memory, at| {
            let mut bytes = vec![0; completion.output_bytes as usize];
            // The ring has checked that it lies in the output.
            let inside = memory.read(at, &mut bytes).is_some();
            debug_assert!(inside);
            (*completion, bytes)
        })
    }

    fn attributes(&self, call: &Call<'_>, input: &[&[u8]]) -> Result<Attributes, Error> {
        let (_, bytes) = self.bytes(call, input, size_of::<AttributesRecord>())?;
        let (record, _) = AttributesRecord::split(&bytes)
            .ok_or_else(|| Error::Protocol { found: format!("attributes of {} bytes", bytes.len()) })?;
        Attributes::of(&record)
    }

    pub fn open(&self, path: &str, open: Open) -> Result<File, Error> {
        let mut call = Call::new("open", path, Opcode::Open);
        call.command.value = u64::from(open.bits.0) | u64::from(open.permissions) << 32;
        let handle = self.value(&call, &[path.as_bytes()])?;
        Ok(File { volume: self.clone(), handle, path: path.to_owned() })
    }

    /// Makes a file, or empties it, to read and write.
    pub fn create(&self, path: &str, permissions: u32) -> Result<File, Error> {
        self.open(path, Open::to_write().create(permissions).truncate())
    }

    /// The attributes of what a path leads to; of a symbolic link itself where it ends at one and `follow` is false.
    pub fn stat(&self, path: &str, follow: bool) -> Result<Attributes, Error> {
        let mut call = Call::new("stat", path, Opcode::Stat);
        call.command.flags = if follow { Flags::default() } else { Flags::NO_FOLLOW };
        self.attributes(&call, &[path.as_bytes()])
    }

    pub fn create_directory(&self, path: &str, permissions: u32) -> Result<(), Error> {
        let mut call = Call::new("make directory", path, Opcode::MakeDirectory);
        call.command.value = permissions.into();
        self.value(&call, &[path.as_bytes()]).map(drop)
    }

    pub fn remove_file(&self, path: &str) -> Result<(), Error> {
        self.value(&Call::new("remove", path, Opcode::Unlink), &[path.as_bytes()]).map(drop)
    }

    pub fn remove_directory(&self, path: &str) -> Result<(), Error> {
        let mut call = Call::new("remove directory", path, Opcode::Unlink);
        call.command.flags = Flags::DIRECTORY;
        self.value(&call, &[path.as_bytes()]).map(drop)
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let mut call = Call::new("rename", from, Opcode::Rename);
        call.command.value = from.len() as u64;
        self.value(&call, &[from.as_bytes(), to.as_bytes()]).map(drop)
    }

    pub fn symlink(&self, target: &str, path: &str) -> Result<(), Error> {
        let mut call = Call::new("make symbolic link", path, Opcode::MakeSymlink);
        call.command.value = target.len() as u64;
        self.value(&call, &[target.as_bytes(), path.as_bytes()]).map(drop)
    }

    pub fn read_link(&self, path: &str) -> Result<Vec<u8>, Error> {
        let call = Call::new("read link", path, Opcode::ReadLink);
        Ok(self.bytes(&call, &[path.as_bytes()], 4096)?.1)
    }

    /// All entries of a directory but `.` and `..`.
    pub fn list(&self, path: &str) -> Result<Vec<DirectoryEntry>, Error> {
        const OUTPUT_BYTES: usize = 64 << 10;
        let directory = self.open(path, Open::directory())?;
        let (mut all, mut cookie) = (Vec::new(), 0);
        loop {
            let mut call = Call::new("list", path, Opcode::ReadDirectory);
            (call.command.target, call.command.operand) = (directory.handle, cookie);
            let (completion, bytes) = self.bytes(&call, &[], OUTPUT_BYTES)?;
            if completion.value == 0 {
                return Ok(all);
            }
            cookie = completion.extra;
            entries(&bytes, &mut all)?;
        }
    }

    /// Everything done to the volume is on stable media.
    pub fn sync(&self) -> Result<(), Error> {
        self.value(&Call::new("sync", "/", Opcode::SyncAll), &[]).map(drop)
    }

    /// Asks the server for nothing, and returns what it echoes. For measurements.
    pub fn nop(&self, value: u64) -> Result<u64, Error> {
        let mut call = Call::new("nop", "", Opcode::Nop);
        call.command.value = value;
        self.value(&call, &[])
    }
}

fn entries(mut bytes: &[u8], all: &mut Vec<DirectoryEntry>) -> Result<(), Error> {
    let broken = || Error::Protocol { found: "a list of directory entries that does not add up".to_owned() };
    while !bytes.is_empty() {
        let (record, rest) = EntryRecord::split(bytes).ok_or_else(broken)?;
        let name = rest.get(..usize::from(record.name_bytes.get())).ok_or_else(broken)?;
        if name != b"." && name != b".." {
            let kind = FileKind::from_number(record.kind.into()).ok_or_else(broken)?;
            all.push(DirectoryEntry { name: name.to_vec(), node: record.node.get(), kind });
        }
        let entry_bytes = usize::from(record.entry_bytes.get()).max(1);
        bytes = bytes.get(entry_bytes..).ok_or_else(broken)?;
    }
    Ok(())
}

/// An open file. Closed when it is dropped; what was written is durable only after [`File::sync`].
pub struct File {
    volume: Volume,
    handle: u64,
    path: String,
}

impl File {
    fn call(&self, operation: &'static str, opcode: Opcode) -> Call<'_> {
        let mut call = Call::new(operation, &self.path, opcode);
        call.command.target = self.handle;
        call
    }

    /// Reads into `buffer`, less than it holds only at the end of the file. Returns how much.
    pub fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<usize, Error> {
        let mut done = 0;
        while done < buffer.len() {
            let output_bytes = (buffer.len() - done).min(self.volume.0.call_bytes_max);
            let mut call = self.call("read", Opcode::Read);
            call.command.operand = offset_bytes + done as u64;
            let rest = &mut buffer[done..];
            let exchange = Exchange { input: &[], output_bytes };
            let read = self.volume.call(&call, &exchange, |completion, memory, at| {
                let read = completion.output_bytes as usize;
                // The ring has checked that it lies in the output.
                let inside = memory.read(at, &mut rest[..read]).is_some();
                debug_assert!(inside);
                read
            })?;
            done += read;
            if read < output_bytes {
                break;
            }
        }
        Ok(done)
    }

    /// Writes all of `bytes`.
    pub fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), Error> {
        let mut done = 0;
        while done < bytes.len() {
            let part = &bytes[done..bytes.len().min(done + self.volume.0.call_bytes_max)];
            let mut call = self.call("write", Opcode::Write);
            call.command.operand = offset_bytes + done as u64;
            let written = self.volume.value(&call, &[part])?;
            if written == 0 || written > part.len() as u64 {
                let found = format!("{written} of {} bytes written", part.len());
                return Err(Error::Protocol { found });
            }
            done += written as usize;
        }
        Ok(())
    }

    /// Everything done to the file is on stable media.
    pub fn sync(&self) -> Result<(), Error> {
        self.volume.value(&self.call("sync", Opcode::Sync), &[]).map(drop)
    }

    pub fn stat(&self) -> Result<Attributes, Error> {
        self.volume.attributes(&self.call("stat", Opcode::Stat), &[])
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // The server closes what is left when the connection ends.
        let _ = self.volume.value(&self.call("close", Opcode::Close), &[]);
    }
}
