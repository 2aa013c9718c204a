//! A reply → bytes in a guest's memory.

use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{
    Attributes, DataPiece, DirectoryEntry, FileKind, HandleId, HeldLock, LockMode, Statistics,
};
use zerocopy::{FromZeros, IntoBytes};

use super::abi::{self, linux};
use super::queue::{Chain, ChainError};
use super::request::Shape;

/// Bytes before every reply's body.
pub const HEADER_BYTES: usize = size_of::<abi::OutHeader>();

/// What attributes name as the best unit of I/O.
const PREFERRED_IO_BYTES: u32 = 4096;

/// How long a guest may believe an entry or attributes without asking again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    pub entry_seconds: u64,
    pub attribute_seconds: u64,
}

/// The body of a successful reply.
#[derive(Debug)]
pub enum Answer {
    Bytes(Vec<u8>),
    /// Verified file data, copied from where the store keeps it straight into the guest's memory.
    Data(Vec<DataPiece>),
}

impl Answer {
    pub fn empty() -> Self {
        Self::Bytes(Vec::new())
    }

    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Data(pieces) => pieces.iter().map(piece_bytes).sum(),
        }
    }
}

fn piece_bytes(piece: &DataPiece) -> usize {
    match piece {
        DataPiece::Bytes(slice) => slice.len(),
        DataPiece::Zeros { len_bytes } => *len_bytes,
    }
}

/// Room that the body of a successful reply may need. A request with less is refused before it has any effect: what it
/// counted (a lookup, a handle) could not be handed over.
pub fn room_bytes(shape: &Shape) -> usize {
    match shape {
        Shape::Empty | Shape::Release { .. } => 0,
        // Checked against what is found.
        Shape::Target => 0,
        Shape::Entry => size_of::<abi::EntryOut>(),
        Shape::Attributes => size_of::<abi::AttrOut>(),
        Shape::Open { .. } | Shape::OpenDirectory => size_of::<abi::OpenOut>(),
        Shape::Create { .. } => size_of::<abi::EntryOut>() + size_of::<abi::OpenOut>(),
        Shape::Data { len_bytes } => *len_bytes as usize,
        Shape::Write { .. } | Shape::Copied => size_of::<abi::WriteOut>(),
        Shape::Statistics => size_of::<abi::KernelStatfs>(),
        Shape::Xattr { room_bytes: 0 } => size_of::<abi::GetxattrOut>(),
        Shape::Xattr { room_bytes } | Shape::Entries { room_bytes, .. } => *room_bytes as usize,
        Shape::Offset => size_of::<abi::LseekOut>(),
        Shape::Lock => size_of::<abi::LkOut>(),
    }
}

/// Writes the reply to request `unique` and gives its length.
pub fn reply(chain: &Chain, unique: u64, result: Result<&Answer, Errno>) -> Result<u32, ChainError> {
    let (error, body_bytes) = match result {
        Ok(answer) => (0, answer.len_bytes()),
        Err(errno) => (-errno.raw(), 0),
    };
    let mut output = chain.output();
    // Below 4 GiB: chains are bounded, and what does not fit fails before a byte of it is written.
    let len_bytes = (HEADER_BYTES + body_bytes) as u32;
    if len_bytes as usize > output.room_bytes() {
        return Err(ChainError::TooShort { wanted: len_bytes as usize, available: output.room_bytes() });
    }
    let header = abi::OutHeader { len: len_bytes.into(), error: error.into(), unique: unique.into() };
    output.write(header.as_bytes())?;
    match result {
        Ok(Answer::Bytes(bytes)) => output.write(bytes)?,
        Ok(Answer::Data(pieces)) => {
            for piece in pieces {
                match piece {
                    DataPiece::Bytes(slice) => output.write(slice)?,
                    DataPiece::Zeros { len_bytes } => output.write_zeros(*len_bytes)?,
                }
            }
        }
        Err(_) => {}
    }
    Ok(len_bytes)
}

/// The bits of a mode that say what an inode is.
fn kind_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::Regular => linux::S_IFREG,
        FileKind::Directory => linux::S_IFDIR,
        FileKind::Symlink => linux::S_IFLNK,
        FileKind::CharacterDevice => linux::S_IFCHR,
        FileKind::BlockDevice => linux::S_IFBLK,
        FileKind::Fifo => linux::S_IFIFO,
        FileKind::Socket => linux::S_IFSOCK,
    }
}

fn attr(attributes: &Attributes) -> abi::Attr {
    abi::Attr {
        ino: attributes.node.0.into(),
        size: attributes.size_bytes.into(),
        blocks: attributes.sectors.into(),
        atime: attributes.accessed.seconds.cast_unsigned().into(),
        mtime: attributes.modified.seconds.cast_unsigned().into(),
        ctime: attributes.changed.seconds.cast_unsigned().into(),
        atimensec: attributes.accessed.nanoseconds.into(),
        mtimensec: attributes.modified.nanoseconds.into(),
        ctimensec: attributes.changed.nanoseconds.into(),
        mode: (kind_bits(attributes.kind) | u32::from(attributes.permissions)).into(),
        nlink: attributes.link_count.into(),
        uid: attributes.uid.into(),
        gid: attributes.gid.into(),
        rdev: attributes.device.into(),
        blksize: PREFERRED_IO_BYTES.into(),
        flags: 0.into(),
    }
}

fn entry_out(attributes: &Attributes, validity: Validity) -> abi::EntryOut {
    abi::EntryOut {
        nodeid: attributes.node.0.into(),
        generation: attributes.generation.into(),
        entry_valid: validity.entry_seconds.into(),
        attr_valid: validity.attribute_seconds.into(),
        entry_valid_nsec: 0.into(),
        attr_valid_nsec: 0.into(),
        attr: attr(attributes),
    }
}

fn open_out(handle: HandleId, open_flags: u32) -> abi::OpenOut {
    abi::OpenOut { fh: handle.0.into(), open_flags: open_flags.into(), padding: 0.into() }
}

pub fn entry(attributes: &Attributes, validity: Validity) -> Answer {
    Answer::Bytes(entry_out(attributes, validity).as_bytes().to_vec())
}

pub fn attributes(attributes: &Attributes, validity: Validity) -> Answer {
    let out = abi::AttrOut {
        attr_valid: validity.attribute_seconds.into(),
        attr_valid_nsec: 0.into(),
        dummy: 0.into(),
        attr: attr(attributes),
    };
    Answer::Bytes(out.as_bytes().to_vec())
}

pub fn opened(handle: HandleId, open_flags: u32) -> Answer {
    Answer::Bytes(open_out(handle, open_flags).as_bytes().to_vec())
}

pub fn created(attributes: &Attributes, validity: Validity, handle: HandleId, open_flags: u32) -> Answer {
    let mut bytes = entry_out(attributes, validity).as_bytes().to_vec();
    bytes.extend_from_slice(open_out(handle, open_flags).as_bytes());
    Answer::Bytes(bytes)
}

pub fn written(len_bytes: u32) -> Answer {
    Answer::Bytes(abi::WriteOut { size: len_bytes.into(), padding: 0.into() }.as_bytes().to_vec())
}

pub fn offset(offset_bytes: u64) -> Answer {
    Answer::Bytes(abi::LseekOut { offset: offset_bytes.into() }.as_bytes().to_vec())
}

/// The lock that is in the way, or an unlocked range.
pub fn lock(held: Option<&HeldLock>) -> Answer {
    let lk = held.map_or(abi::FileLock { r#type: linux::F_UNLCK.into(), ..Default::default() }, |held| {
        let kind = match held.mode {
            LockMode::Shared => linux::F_RDLCK,
            LockMode::Exclusive => linux::F_WRLCK,
        };
        abi::FileLock {
            start: held.range.start.into(),
            end: held.range.end.into(),
            r#type: kind.into(),
            pid: held.pid.into(),
        }
    });
    Answer::Bytes(abi::LkOut { lk }.as_bytes().to_vec())
}

pub fn statistics(statistics: &Statistics) -> Answer {
    let out = abi::KernelStatfs {
        blocks: statistics.total_blocks.into(),
        bfree: statistics.free_blocks.into(),
        bavail: statistics.available_blocks.into(),
        files: statistics.total_inodes.into(),
        ffree: statistics.free_inodes.into(),
        bsize: statistics.block_bytes.into(),
        namelen: statistics.name_bytes_max.into(),
        frsize: statistics.block_bytes.into(),
        padding: 0.into(),
        spare: Default::default(),
    };
    Answer::Bytes(out.as_bytes().to_vec())
}

/// An attribute's value, or its length where the guest offers no room.
pub fn xattr(value: Vec<u8>, room_bytes: u32) -> Result<Answer, Errno> {
    if room_bytes == 0 {
        let size = u32::try_from(value.len()).map_err(|_| Errno::E2BIG)?;
        return Ok(Answer::Bytes(
            abi::GetxattrOut { size: size.into(), padding: 0.into() }.as_bytes().to_vec(),
        ));
    }
    if value.len() > room_bytes as usize { Err(Errno::ERANGE) } else { Ok(Answer::Bytes(value)) }
}

/// Packs as many `entries` as fit into `room_bytes`; gives the body and how many it holds.
pub fn entries(
    entries: &[DirectoryEntry],
    room_bytes: usize,
    plus: bool,
    validity: impl Fn(&Attributes) -> Validity,
) -> (Vec<u8>, usize) {
    const ALIGN: usize = 8;
    let mut body = Vec::with_capacity(room_bytes);
    for (packed, entry) in entries.iter().enumerate() {
        let fixed = size_of::<abi::Dirent>() + if plus { size_of::<abi::EntryOut>() } else { 0 };
        let len_bytes = (fixed + entry.name.len()).next_multiple_of(ALIGN);
        if body.len() + len_bytes > room_bytes {
            return (body, packed);
        }
        let end = body.len() + len_bytes;
        if plus {
            // A node id of zero hands over no lookup: the kernel takes name and kind only.
            let out = entry.attributes.as_ref().map_or_else(abi::EntryOut::new_zeroed, |attributes| {
                entry_out(attributes, validity(attributes))
            });
            body.extend_from_slice(out.as_bytes());
        }
        let dirent = abi::Dirent {
            ino: entry.node.0.into(),
            off: entry.cookie.into(),
            // At most 255.
            namelen: (entry.name.len() as u32).into(),
            r#type: (kind_bits(entry.kind) >> 12).into(),
        };
        body.extend_from_slice(dirent.as_bytes());
        body.extend_from_slice(&entry.name);
        body.resize(end, 0);
    }
    (body, entries.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfort_filesystem::operation::NodeId;
    use zerocopy::FromBytes;

    fn named(name: &[u8], cookie: u64) -> DirectoryEntry {
        DirectoryEntry {
            name: name.to_vec(),
            node: NodeId(cookie + 100),
            kind: FileKind::Directory,
            cookie,
            attributes: None,
        }
    }

    #[test]
    fn entries_are_aligned_and_stop_before_the_room_ends() {
        let list = [named(b"a", 1), named(b"12345678", 2), named(b"123456789", 3)];
        // 24 + 1 → 32, 24 + 8 → 32, 24 + 9 → 40.
        let (body, packed) = entries(&list, 103, false, |_| Validity::default());
        assert_eq!((body.len(), packed), (64, 2));
        let (body, packed) = entries(&list, 104, false, |_| Validity::default());
        assert_eq!((body.len(), packed), (104, 3));
        let (second, _) = abi::Dirent::read_from_prefix(&body[32..]).unwrap();
        assert_eq!(
            (second.ino.get(), second.off.get(), second.namelen.get(), second.r#type.get()),
            (102, 2, 8, 4)
        );
        assert_eq!(&body[56..64], b"12345678");

        let (body, packed) = entries(&list, 160, true, |_| Validity::default());
        assert_eq!((body.len(), packed), (160, 1));
        assert_eq!(&body[..128], &[0; 128]);
    }

    #[test]
    fn an_attribute_that_does_not_fit_is_erange_and_its_length_is_free() {
        assert!(matches!(xattr(vec![1; 10], 9), Err(Errno::ERANGE)));
        assert_eq!(xattr(vec![1; 10], 10).unwrap().len_bytes(), 10);
        let Answer::Bytes(bytes) = xattr(vec![1; 10], 0).unwrap() else { panic!() };
        assert_eq!(bytes, [10, 0, 0, 0, 0, 0, 0, 0]);
    }
}
