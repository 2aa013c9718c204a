//! Bytes of a guest → a request. Nothing in here trusts a length, a name, a flag or an identifier; node ids and
//! handles are passed on as they are, for the filesystem to judge.

use ringfort_engine::buffer::Buffer;
use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{
    AllocateMode, Credentials, FileKind, HandleId, Name, NewNode, NodeId, OpenFlags, Operation, Payload,
    RenameMode, SetAttributes, SetTime, SetXattrMode, Timestamp, Whence,
};
use zerocopy::FromBytes;

use super::abi::{self, linux};
use super::queue::{ChainError, Input};

/// Bytes of file data in one read or write: `max_pages` of 4 KiB.
pub const TRANSFER_BYTES_MAX: u32 = 1024 * 1024;

/// Everything in a request but the data of a write: an attribute value of 64 KiB with its name, or a batch of forgets.
const BODY_BYTES_MAX: usize = 128 * 1024;

/// Longest target of a symbolic link, as `PATH_MAX` less its NUL.
const TARGET_BYTES_MAX: usize = 4095;

/// Longest value of an extended attribute (`XATTR_SIZE_MAX`).
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// Offsets beyond are not representable in the guest's `loff_t`.
const OFFSET_MAX: u64 = i64::MAX as u64;

/// What every request says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub opcode: u32,
    /// Names the request in its reply.
    pub unique: u64,
    pub uid: u32,
    pub gid: u32,
    node: u64,
    /// Bytes after the header.
    body_bytes: usize,
}

impl Header {
    /// The guest's kernel has checked permissions (virtio-fs is mounted with `default_permissions`).
    pub fn credentials(&self) -> Credentials {
        Credentials { uid: self.uid, gid: self.gid, groups: Vec::new(), check_permissions: false }
    }

    /// Whether the protocol forbids a reply.
    pub fn is_silent(&self) -> bool {
        matches!(self.opcode, abi::FUSE_FORGET | abi::FUSE_BATCH_FORGET | abi::FUSE_INTERRUPT)
    }
}

/// How the reply to an operation is laid out, with what is needed of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Empty,
    Entry,
    Attributes,
    Target,
    /// A file; `clear_set_id` asks to clear set-id bits of what was truncated by opening.
    Open {
        clear_set_id: bool,
        sync: Option<SyncWrites>,
    },
    OpenDirectory,
    Create {
        clear_set_id: bool,
        sync: Option<SyncWrites>,
    },
    Data {
        len_bytes: u32,
    },
    /// `sync`: this one write asks for durability, whatever its handle was opened with.
    Write {
        handle: HandleId,
        sync: Option<SyncWrites>,
    },
    Statistics,
    /// An attribute's value or a list of names; `room_bytes` 0 asks for the length only.
    Xattr {
        room_bytes: u32,
    },
    Entries {
        room_bytes: u32,
        plus: bool,
    },
    Offset,
    /// The handle is gone once this is done.
    Release {
        handle: HandleId,
    },
}

/// What `O_DSYNC` and `O_SYNC` ask of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncWrites {
    Data,
    All,
}

/// A decoded request.
#[derive(Debug)]
pub enum Request {
    Init(abi::InitIn),
    Destroy,
    /// Nothing to do.
    Interrupt,
    Forget(Vec<(NodeId, u64)>),
    Operation {
        operation: Operation,
        shape: Shape,
    },
}

/// Reads the header. An error is a chain too short to hold one: there is nobody to answer.
pub fn header(input: &mut Input<'_>) -> Result<Header, ChainError> {
    let mut bytes = [0; size_of::<abi::InHeader>()];
    let available = input.remaining_bytes();
    input.read(&mut bytes)?;
    let header = abi::InHeader::read_from_bytes(&bytes)
        .map_err(|_| ChainError::TooShort { wanted: bytes.len(), available })?;
    Ok(Header {
        opcode: header.opcode.get(),
        unique: header.unique.get(),
        uid: header.uid.get(),
        gid: header.gid.get(),
        node: header.nodeid.get(),
        // A length below the header's own becomes one that no body has.
        body_bytes: (header.len.get() as usize).checked_sub(bytes.len()).unwrap_or(usize::MAX),
    })
}

/// Reads and decodes what follows the header.
pub fn request(header: &Header, input: &mut Input<'_>) -> Result<Request, Errno> {
    // Descriptors may be roomier than the request; they are never shorter.
    if header.body_bytes > input.remaining_bytes() {
        return Err(Errno::EINVAL);
    }
    if header.opcode == abi::FUSE_WRITE {
        return write(header, input);
    }
    if header.body_bytes > BODY_BYTES_MAX {
        return Err(Errno::E2BIG);
    }
    let mut bytes = vec![0; header.body_bytes];
    input.read(&mut bytes).map_err(|_| Errno::EINVAL)?;
    decode(header, &bytes)
}

/// Decodes the body of any request but a write.
fn decode(header: &Header, bytes: &[u8]) -> Result<Request, Errno> {
    let node = NodeId(header.node);
    let mut body = Body(bytes);
    let (operation, shape) = match header.opcode {
        abi::FUSE_INIT => return init(bytes).map(Request::Init),
        abi::FUSE_DESTROY => return Ok(Request::Destroy),
        abi::FUSE_INTERRUPT => return Ok(Request::Interrupt),
        abi::FUSE_FORGET => {
            let count = body.take::<abi::ForgetIn>()?.nlookup.get();
            body.end()?;
            return Ok(Request::Forget(vec![(node, count)]));
        }
        abi::FUSE_BATCH_FORGET => return body.forgets().map(Request::Forget),
        abi::FUSE_LOOKUP => {
            let name = body.string()?;
            let operation = match name {
                b".." => Operation::LookupParent { node },
                name => Operation::Lookup { parent: node, name: Name::new(name)? },
            };
            (operation, Shape::Entry)
        }
        abi::FUSE_GETATTR => {
            let get = body.take::<abi::GetattrIn>()?;
            let named = get.getattr_flags.get() & abi::FUSE_GETATTR_FH != 0;
            let handle = named.then(|| HandleId(get.fh.get()));
            (Operation::GetAttributes { node, handle }, Shape::Attributes)
        }
        abi::FUSE_SETATTR => (set_attributes(node, &body.take::<abi::SetattrIn>()?)?, Shape::Attributes),
        abi::FUSE_READLINK => (Operation::ReadLink { node }, Shape::Target),
        abi::FUSE_SYMLINK => {
            let name = body.name()?;
            let target = match body.string()? {
                [] => return Err(Errno::ENOENT),
                target if target.len() > TARGET_BYTES_MAX => return Err(Errno::ENAMETOOLONG),
                target => target.to_vec(),
            };
            (Operation::MakeSymlink { parent: node, name, target }, Shape::Entry)
        }
        abi::FUSE_MKNOD => {
            let make = body.take::<abi::MknodIn>()?;
            let kind = file_kind(make.mode.get())?;
            let new = body.new_node(node, make.mode.get(), make.umask.get())?;
            (Operation::MakeNode { new, kind, device: make.rdev.get() }, Shape::Entry)
        }
        abi::FUSE_MKDIR => {
            let make = body.take::<abi::MkdirIn>()?;
            let new = body.new_node(node, make.mode.get(), make.umask.get())?;
            (Operation::MakeDirectory { new }, Shape::Entry)
        }
        abi::FUSE_UNLINK => (Operation::Unlink { parent: node, name: body.name()? }, Shape::Empty),
        abi::FUSE_RMDIR => (Operation::RemoveDirectory { parent: node, name: body.name()? }, Shape::Empty),
        abi::FUSE_RENAME => {
            let new_parent = body.take::<abi::RenameIn>()?.newdir.get();
            (body.rename(node, new_parent, 0)?, Shape::Empty)
        }
        abi::FUSE_RENAME2 => {
            let rename = body.take::<abi::Rename2In>()?;
            (body.rename(node, rename.newdir.get(), rename.flags.get())?, Shape::Empty)
        }
        abi::FUSE_LINK => {
            let linked = NodeId(body.take::<abi::LinkIn>()?.oldnodeid.get());
            (Operation::Link { node: linked, parent: node, name: body.name()? }, Shape::Entry)
        }
        abi::FUSE_OPEN => {
            let open = body.take::<abi::OpenIn>()?;
            let flags = open_flags(open.flags.get())?;
            let shape = Shape::Open {
                clear_set_id: kills_set_id(open.open_flags.get(), flags),
                sync: sync_writes(open.flags.get()),
            };
            (Operation::Open { node, flags }, shape)
        }
        abi::FUSE_CREATE => {
            let create = body.take::<abi::CreateIn>()?;
            let flags = open_flags(create.flags.get())?;
            let new = body.new_node(node, create.mode.get(), create.umask.get())?;
            let shape = Shape::Create {
                clear_set_id: kills_set_id(create.open_flags.get(), flags),
                sync: sync_writes(create.flags.get()),
            };
            (Operation::Create { new, flags }, shape)
        }
        abi::FUSE_READ => {
            let read = body.take::<abi::ReadIn>()?;
            let (offset_bytes, len_bytes) = (read.offset.get(), read.size.get());
            if len_bytes > TRANSFER_BYTES_MAX || offset_bytes > OFFSET_MAX - u64::from(len_bytes) {
                return Err(Errno::EINVAL);
            }
            let handle = HandleId(read.fh.get());
            (Operation::Read { handle, offset_bytes, len_bytes }, Shape::Data { len_bytes })
        }
        abi::FUSE_STATFS => (Operation::StatFs, Shape::Statistics),
        abi::FUSE_RELEASE | abi::FUSE_RELEASEDIR => {
            let handle = HandleId(body.take::<abi::ReleaseIn>()?.fh.get());
            let operation = match header.opcode {
                abi::FUSE_RELEASE => Operation::Release { handle },
                _ => Operation::ReleaseDirectory { handle },
            };
            (operation, Shape::Release { handle })
        }
        abi::FUSE_FSYNC => {
            let sync = body.take::<abi::FsyncIn>()?;
            let data_only = sync.fsync_flags.get() & abi::FUSE_FSYNC_FDATASYNC != 0;
            (Operation::Sync { handle: HandleId(sync.fh.get()), data_only }, Shape::Empty)
        }
        abi::FUSE_FSYNCDIR => {
            let handle = HandleId(body.take::<abi::FsyncIn>()?.fh.get());
            (Operation::SyncDirectory { handle }, Shape::Empty)
        }
        abi::FUSE_SYNCFS => {
            // Eight bytes of padding, which nobody promises to keep.
            return Ok(Request::Operation { operation: Operation::SyncAll, shape: Shape::Empty });
        }
        abi::FUSE_SETXATTR => (body.set_xattr(node)?, Shape::Empty),
        abi::FUSE_GETXATTR => {
            let room_bytes = body.take::<abi::GetxattrIn>()?.size.get();
            (Operation::GetXattr { node, name: body.xattr_name()? }, Shape::Xattr { room_bytes })
        }
        abi::FUSE_LISTXATTR => {
            let room_bytes = body.take::<abi::GetxattrIn>()?.size.get();
            (Operation::ListXattr { node }, Shape::Xattr { room_bytes })
        }
        abi::FUSE_REMOVEXATTR => (Operation::RemoveXattr { node, name: body.xattr_name()? }, Shape::Empty),
        abi::FUSE_FLUSH => {
            let handle = HandleId(body.take::<abi::FlushIn>()?.fh.get());
            (Operation::Flush { handle }, Shape::Empty)
        }
        abi::FUSE_OPENDIR => {
            body.take::<abi::OpenIn>()?;
            (Operation::OpenDirectory { node }, Shape::OpenDirectory)
        }
        abi::FUSE_READDIR | abi::FUSE_READDIRPLUS => {
            let read = body.take::<abi::ReadIn>()?;
            read_directory(&read, header.opcode == abi::FUSE_READDIRPLUS)?
        }
        abi::FUSE_ACCESS => {
            let mask = body.take::<abi::AccessIn>()?.mask.get();
            let mask = u8::try_from(mask).ok().filter(|mask| *mask <= 7).ok_or(Errno::EINVAL)?;
            (Operation::Access { node, mask }, Shape::Empty)
        }
        abi::FUSE_FALLOCATE => (allocate(&body.take::<abi::FallocateIn>()?)?, Shape::Empty),
        abi::FUSE_LSEEK => {
            let seek = body.take::<abi::LseekIn>()?;
            let whence = match seek.whence.get() {
                linux::SEEK_DATA => Whence::Data,
                linux::SEEK_HOLE => Whence::Hole,
                _ => return Err(Errno::EINVAL),
            };
            let offset_bytes = seek.offset.get();
            if offset_bytes > OFFSET_MAX {
                return Err(Errno::ENXIO);
            }
            (Operation::Seek { handle: HandleId(seek.fh.get()), offset_bytes, whence }, Shape::Offset)
        }
        _ => return Err(Errno::ENOSYS),
    };
    body.end()?;
    Ok(Request::Operation { operation, shape })
}

/// A write: the data goes from guest memory straight into buffers that the store can keep.
fn write(header: &Header, input: &mut Input<'_>) -> Result<Request, Errno> {
    let mut bytes = [0; size_of::<abi::WriteIn>()];
    let Some(len_bytes) = header.body_bytes.checked_sub(bytes.len()) else { return Err(Errno::EINVAL) };
    input.read(&mut bytes).map_err(|_| Errno::EINVAL)?;
    let write = abi::WriteIn::read_from_bytes(&bytes).map_err(|_| Errno::EINVAL)?;
    let offset_bytes = write.offset.get();
    if write.size.get() > TRANSFER_BYTES_MAX || write.size.get() as usize != len_bytes {
        return Err(Errno::EINVAL);
    }
    if offset_bytes > OFFSET_MAX - u64::from(write.size.get()) {
        return Err(Errno::EFBIG);
    }
    // Pages written back from the guest's cache go where they came from; only a program's own write appends or syncs.
    let own = write.write_flags.get() & abi::FUSE_WRITE_CACHE == 0;
    let flags = if own { write.flags.get() } else { 0 };
    let (head, whole, tail) = Payload::lengths(offset_bytes, len_bytes);
    let mut data = Payload::default();
    for piece_bytes in [head, whole, tail] {
        if piece_bytes > 0 {
            let mut buffer =
                Buffer::zeroed(piece_bytes.next_multiple_of(ringfort_engine::buffer::BLOCK_BYTES));
            input.read(&mut buffer[..piece_bytes]).map_err(|_| Errno::EINVAL)?;
            data.pieces.push(buffer.freeze().slice(0..piece_bytes));
        }
    }
    let handle = HandleId(write.fh.get());
    let operation = Operation::Write {
        handle,
        offset_bytes,
        data,
        append: flags & linux::O_APPEND != 0,
        clear_set_id: write.write_flags.get() & abi::FUSE_WRITE_KILL_SUIDGID != 0,
    };
    Ok(Request::Operation { operation, shape: Shape::Write { handle, sync: sync_writes(flags) } })
}

fn init(bytes: &[u8]) -> Result<abi::InitIn, Errno> {
    if bytes.len() < abi::INIT_IN_BYTES_MIN {
        return Err(Errno::EINVAL);
    }
    // Shorter from older kernels, longer perhaps from newer ones.
    let mut whole = [0; size_of::<abi::InitIn>()];
    let known = bytes.len().min(whole.len());
    whole[..known].copy_from_slice(&bytes[..known]);
    abi::InitIn::read_from_bytes(&whole).map_err(|_| Errno::EINVAL)
}

fn set_attributes(node: NodeId, set: &abi::SetattrIn) -> Result<Operation, Errno> {
    let valid = set.valid.get();
    let has = |bit: u32| valid & bit != 0;
    let time = |seconds: u64, nanoseconds: u32| -> Result<Timestamp, Errno> {
        if nanoseconds >= 1_000_000_000 {
            return Err(Errno::EINVAL);
        }
        // Signed on both sides, unsigned on the wire.
        Ok(Timestamp { seconds: seconds.cast_signed(), nanoseconds })
    };
    let settable =
        |set_bit: u32, now_bit: u32, seconds: u64, nanoseconds: u32| -> Result<Option<SetTime>, Errno> {
            Ok(match (has(set_bit), has(now_bit)) {
                (false, _) => None,
                (true, true) => Some(SetTime::Now),
                (true, false) => Some(SetTime::At(time(seconds, nanoseconds)?)),
            })
        };
    if has(abi::FATTR_SIZE) && set.size.get() > OFFSET_MAX {
        return Err(Errno::EFBIG);
    }
    let change = SetAttributes {
        permissions: has(abi::FATTR_MODE).then(|| permissions(set.mode.get())),
        uid: has(abi::FATTR_UID).then(|| set.uid.get()),
        gid: has(abi::FATTR_GID).then(|| set.gid.get()),
        size_bytes: has(abi::FATTR_SIZE).then(|| set.size.get()),
        accessed: settable(abi::FATTR_ATIME, abi::FATTR_ATIME_NOW, set.atime.get(), set.atimensec.get())?,
        modified: settable(abi::FATTR_MTIME, abi::FATTR_MTIME_NOW, set.mtime.get(), set.mtimensec.get())?,
        changed: match has(abi::FATTR_CTIME) {
            true => Some(time(set.ctime.get(), set.ctimensec.get())?),
            false => None,
        },
        clear_set_id: has(abi::FATTR_KILL_SUIDGID),
    };
    let handle = has(abi::FATTR_FH).then(|| HandleId(set.fh.get()));
    Ok(Operation::SetAttributes { node, handle, change })
}

fn read_directory(read: &abi::ReadIn, plus: bool) -> Result<(Operation, Shape), Errno> {
    /// A guess at a common name, so that one call fills the reply and little is asked for in vain.
    const NAME_BYTES_GUESS: usize = 16;
    let room_bytes = read.size.get();
    if room_bytes > TRANSFER_BYTES_MAX {
        return Err(Errno::EINVAL);
    }
    let entry =
        if plus { size_of::<abi::EntryOut>() } else { 0 } + size_of::<abi::Dirent>() + NAME_BYTES_GUESS;
    let limit = (room_bytes as usize / entry).max(1);
    let operation = Operation::ReadDirectory {
        handle: HandleId(read.fh.get()),
        cookie: read.offset.get(),
        limit,
        attributes: plus,
    };
    Ok((operation, Shape::Entries { room_bytes, plus }))
}

fn allocate(allocate: &abi::FallocateIn) -> Result<Operation, Errno> {
    let (offset_bytes, len_bytes) = (allocate.offset.get(), allocate.length.get());
    if len_bytes == 0 || offset_bytes > OFFSET_MAX {
        return Err(Errno::EINVAL);
    }
    if len_bytes > OFFSET_MAX - offset_bytes {
        return Err(Errno::EFBIG);
    }
    const PUNCH: u32 = linux::FALLOC_FL_PUNCH_HOLE | linux::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: u32 = linux::FALLOC_FL_ZERO_RANGE | linux::FALLOC_FL_KEEP_SIZE;
    let mode = match allocate.mode.get() {
        0 => AllocateMode::Allocate { keep_size: false },
        linux::FALLOC_FL_KEEP_SIZE => AllocateMode::Allocate { keep_size: true },
        PUNCH => AllocateMode::PunchHole,
        linux::FALLOC_FL_ZERO_RANGE => AllocateMode::ZeroRange { keep_size: false },
        ZERO_KEEP => AllocateMode::ZeroRange { keep_size: true },
        _ => return Err(Errno::EOPNOTSUPP),
    };
    Ok(Operation::Allocate { handle: HandleId(allocate.fh.get()), offset_bytes, len_bytes, mode })
}

fn open_flags(flags: u32) -> Result<OpenFlags, Errno> {
    let (read, write) = match flags & linux::O_ACCMODE {
        linux::O_RDONLY => (true, false),
        linux::O_WRONLY => (false, true),
        linux::O_RDWR => (true, true),
        _ => return Err(Errno::EINVAL),
    };
    let sync = sync_writes(flags);
    Ok(OpenFlags {
        read,
        write,
        // Each write says itself whether it appends: the flag of a handle would misplace pages written back from a
        // mapping, and the guest may change it without telling.
        append: false,
        truncate: flags & linux::O_TRUNC != 0,
        exclusive: flags & linux::O_EXCL != 0,
        data_sync: sync.is_some(),
        sync: sync == Some(SyncWrites::All),
    })
}

fn sync_writes(flags: u32) -> Option<SyncWrites> {
    if flags & linux::O_SYNC_ALONE != 0 {
        Some(SyncWrites::All)
    } else if flags & linux::O_DSYNC != 0 {
        Some(SyncWrites::Data)
    } else {
        None
    }
}

fn kills_set_id(open_flags: u32, flags: OpenFlags) -> bool {
    open_flags & abi::FUSE_OPEN_KILL_SUIDGID != 0 && flags.truncate
}

fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

fn file_kind(mode: u32) -> Result<FileKind, Errno> {
    Ok(match mode & linux::S_IFMT {
        0 | linux::S_IFREG => FileKind::Regular,
        linux::S_IFCHR => FileKind::CharacterDevice,
        linux::S_IFBLK => FileKind::BlockDevice,
        linux::S_IFIFO => FileKind::Fifo,
        linux::S_IFSOCK => FileKind::Socket,
        _ => return Err(Errno::EINVAL),
    })
}

/// What is left of a request's body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take<T: FromBytes>(&mut self) -> Result<T, Errno> {
        let (value, rest) = self.0.split_at_checked(size_of::<T>()).ok_or(Errno::EINVAL)?;
        self.0 = rest;
        T::read_from_bytes(value).map_err(|_| Errno::EINVAL)
    }

    /// Bytes up to a NUL, which is taken too.
    fn string(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Errno::EINVAL)?;
        let (string, rest) = self.0.split_at_checked(end).ok_or(Errno::EINVAL)?;
        self.0 = rest.get(1..).ok_or(Errno::EINVAL)?;
        Ok(string)
    }

    fn name(&mut self) -> Result<Name, Errno> {
        Name::new(self.string()?)
    }

    fn xattr_name(&mut self) -> Result<Vec<u8>, Errno> {
        match self.string()? {
            [] => Err(Errno::EINVAL),
            name if name.len() > Name::LEN_BYTES_MAX => Err(Errno::ERANGE),
            name => Ok(name.to_vec()),
        }
    }

    /// Nothing may be left: a longer body than the opcode has is another dialect.
    fn end(&self) -> Result<(), Errno> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn new_node(&mut self, parent: NodeId, mode: u32, umask: u32) -> Result<NewNode, Errno> {
        Ok(NewNode { parent, name: self.name()?, permissions: permissions(mode & !umask) })
    }

    fn rename(&mut self, parent: NodeId, new_parent: u64, flags: u32) -> Result<Operation, Errno> {
        let mode = match flags {
            0 => RenameMode::Replace,
            linux::RENAME_NOREPLACE => RenameMode::NoReplace,
            linux::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Err(Errno::EINVAL),
        };
        let (name, new_name) = (self.name()?, self.name()?);
        Ok(Operation::Rename { parent, name, new_parent: NodeId(new_parent), new_name, mode })
    }

    fn forgets(&mut self) -> Result<Vec<(NodeId, u64)>, Errno> {
        let count = self.take::<abi::BatchForgetIn>()?.count.get() as usize;
        // The bytes are here, so the list is as bounded as they are.
        if count.checked_mul(size_of::<abi::ForgetOne>()) != Some(self.0.len()) {
            return Err(Errno::EINVAL);
        }
        let mut forgets = Vec::with_capacity(count);
        for _ in 0..count {
            let one = self.take::<abi::ForgetOne>()?;
            forgets.push((NodeId(one.nodeid.get()), one.nlookup.get()));
        }
        Ok(forgets)
    }

    fn set_xattr(&mut self, node: NodeId) -> Result<Operation, Errno> {
        let (fixed, rest) =
            self.0.split_at_checked(abi::FUSE_COMPAT_SETXATTR_IN_SIZE).ok_or(Errno::EINVAL)?;
        let mut set = [0; size_of::<abi::SetxattrIn>()];
        set[..fixed.len()].copy_from_slice(fixed);
        let set = abi::SetxattrIn::read_from_bytes(&set).map_err(|_| Errno::EINVAL)?;
        self.0 = rest;
        let name = self.xattr_name()?;
        let value = std::mem::take(&mut self.0);
        if value.len() != set.size.get() as usize {
            return Err(Errno::EINVAL);
        }
        if value.len() > XATTR_BYTES_MAX {
            return Err(Errno::E2BIG);
        }
        let mode = match set.flags.get() {
            0 => SetXattrMode::Any,
            linux::XATTR_CREATE => SetXattrMode::Create,
            linux::XATTR_REPLACE => SetXattrMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        Ok(Operation::SetXattr { node, name, value: value.to_vec(), mode })
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
