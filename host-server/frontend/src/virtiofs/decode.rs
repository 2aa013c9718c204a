//! Bytes of a guest → a [`Request`]. Nothing in here trusts a length, a name, a flag or an identifier; node ids and
//! handles are passed on as they are, for the filesystem to judge.

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer};
use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{
    HandleId, LockOwner, Name, NewNode, NodeId, Operation, Payload, Whence,
};
use zerocopy::FromBytes;

use super::abi::{self, linux};
use super::body::{self, Body};
use super::queue::{ChainError, Input};
use super::request::{Dialect, Header, OFFSET_MAX, Request, Shape, TRANSFER_BYTES_MAX};

/// Everything in a request but the data of a write: an attribute value of 64 KiB with its name, or a batch of forgets.
const BODY_BYTES_MAX: usize = 128 * 1024;

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
pub fn request(header: &Header, dialect: Dialect, input: &mut Input<'_>) -> Result<Request, Errno> {
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
    decode(header, dialect, &bytes)
}

/// Decodes the body of any request but a write.
fn decode(header: &Header, dialect: Dialect, bytes: &[u8]) -> Result<Request, Errno> {
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
        abi::FUSE_SETATTR => {
            (body::set_attributes(node, &body.take::<abi::SetattrIn>()?)?, Shape::Attributes)
        }
        abi::FUSE_READLINK => (Operation::ReadLink { node }, Shape::Target),
        abi::FUSE_SYMLINK => {
            let (name, target) = (body.name()?, body.target()?);
            (Operation::MakeSymlink { parent: node, name, target }, Shape::Entry)
        }
        abi::FUSE_MKNOD => {
            let make = body.take::<abi::MknodIn>()?;
            let kind = body::file_kind(make.mode.get())?;
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
            let flags = body::open_flags(open.flags.get())?;
            let shape = Shape::Open {
                clear_set_id: body::kills_set_id(open.open_flags.get(), flags),
                sync: body::sync_writes(open.flags.get()),
            };
            (Operation::Open { node, flags }, shape)
        }
        abi::FUSE_CREATE => {
            let create = body.take::<abi::CreateIn>()?;
            let flags = body::open_flags(create.flags.get())?;
            let new = body.new_node(node, create.mode.get(), create.umask.get())?;
            let shape = Shape::Create {
                clear_set_id: body::kills_set_id(create.open_flags.get(), flags),
                sync: body::sync_writes(create.flags.get()),
            };
            (Operation::Create { new, flags }, shape)
        }
        abi::FUSE_TMPFILE => {
            let create = body.take::<abi::CreateIn>()?;
            let flags = body::open_flags(create.flags.get())?;
            // The kernel calls it `/`, which is no name.
            body.string()?;
            let permissions = (create.mode.get() & 0o7777) as u16;
            let umask = (create.umask.get() & 0o777) as u16;
            let new = NewNode { parent: node, name: Name::new(b"temporary")?, permissions, umask };
            let shape = Shape::Create { clear_set_id: false, sync: body::sync_writes(create.flags.get()) };
            (Operation::CreateTemporary { new, flags, linkable: !flags.exclusive }, shape)
        }
        abi::FUSE_COPY_FILE_RANGE => {
            (body::copy_range(&body.take::<abi::CopyFileRangeIn>()?)?, Shape::Copied)
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
        abi::FUSE_SETXATTR => (body.set_xattr(node, dialect)?, Shape::Empty),
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
            let flush = body.take::<abi::FlushIn>()?;
            let owner = Some(LockOwner(flush.lock_owner.get()));
            (Operation::Flush { handle: HandleId(flush.fh.get()), owner }, Shape::Empty)
        }
        abi::FUSE_GETLK => (body::get_lock(&body.take::<abi::LkIn>()?)?, Shape::Lock),
        abi::FUSE_SETLK | abi::FUSE_SETLKW => {
            let wait = header.opcode == abi::FUSE_SETLKW;
            (body::set_lock(&body.take::<abi::LkIn>()?, wait)?, Shape::Empty)
        }
        abi::FUSE_OPENDIR => {
            body.take::<abi::OpenIn>()?;
            (Operation::OpenDirectory { node }, Shape::OpenDirectory)
        }
        abi::FUSE_READDIR | abi::FUSE_READDIRPLUS => {
            let read = body.take::<abi::ReadIn>()?;
            body::read_directory(&read, header.opcode == abi::FUSE_READDIRPLUS)?
        }
        abi::FUSE_ACCESS => {
            let mask = body.take::<abi::AccessIn>()?.mask.get();
            let mask = u8::try_from(mask).ok().filter(|mask| *mask <= 7).ok_or(Errno::EINVAL)?;
            (Operation::Access { node, mask }, Shape::Empty)
        }
        abi::FUSE_FALLOCATE => (body::allocate(&body.take::<abi::FallocateIn>()?)?, Shape::Empty),
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
            let mut buffer = match piece_bytes.is_multiple_of(BLOCK_BYTES) {
                true => Buffer::for_overwrite(piece_bytes),
                // What is behind the piece in its last block must be nobody's.
                false => Buffer::zeroed(piece_bytes.next_multiple_of(BLOCK_BYTES)),
            };
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
        write_back: !own,
    };
    Ok(Request::Operation { operation, shape: Shape::Write { handle, sync: body::sync_writes(flags) } })
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

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
