//! What the server tells about a file.

use ringfort_protocol::argument::AttributesRecord;
use ringfort_protocol::layout::Record;

use crate::error::Error;

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
    pub(crate) fn from_number(number: u32) -> Option<Self> {
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
    /// Of the record that they come as.
    pub(crate) const BYTES: usize = size_of::<AttributesRecord>();

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (record, _) = AttributesRecord::split(bytes)
            .ok_or_else(|| Error::Protocol { found: format!("attributes of {} bytes", bytes.len()) })?;
        Self::of(&record)
    }

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
