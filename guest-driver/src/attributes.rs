//! What the server knows about a file, and what of it can be changed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringfort_protocol::argument::{AttributesRecord, Change, ChangeRecord, StatisticsRecord};
use ringfort_protocol::command::Opcode;
use ringfort_protocol::layout::Record;

use crate::error::Error;
use crate::place::Place;
use crate::request::{Request, broken};

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
    /// From the type's bits of `st_mode`, shifted right by 12.
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

    /// The type's bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        let number = match self {
            Self::Fifo => 1,
            Self::CharacterDevice => 2,
            Self::Directory => 4,
            Self::BlockDevice => 6,
            Self::Regular => 8,
            Self::Symlink => 10,
            Self::Socket => 12,
        };
        number << 12
    }
}

/// A moment: seconds since 1970, and nanoseconds, below 1,000,000,000, that are added to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self { seconds: since.as_secs().cast_signed(), nanoseconds: since.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                let whole = before.as_secs() + u64::from(before.subsec_nanos() > 0);
                let rest = Duration::from_secs(whole) - before;
                Self { seconds: -whole.cast_signed(), nanoseconds: rest.subsec_nanos() }
            }
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(Timestamp { seconds, nanoseconds }: Timestamp) -> Self {
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let start = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
        let fine = Duration::from_nanos(nanoseconds.into());
        start.and_then(|start| start.checked_add(fine)).unwrap_or(UNIX_EPOCH)
    }
}

/// The attributes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The inode's number, never used for another.
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
    /// Of a device node, as Linux encodes it.
    pub device: u32,
    pub accessed: Timestamp,
    /// Last change of the content.
    pub modified: Timestamp,
    /// Last change of the content, or of these attributes.
    pub changed: Timestamp,
}

impl Attributes {
    /// Of the record that they come as.
    pub(crate) const BYTES: usize = size_of::<AttributesRecord>();

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (record, _) = AttributesRecord::split(bytes).ok_or_else(|| broken("attributes"))?;
        let mode = record.mode.get();
        let time = |seconds: zerocopy::little_endian::I64, nanoseconds: zerocopy::little_endian::U32| {
            Timestamp { seconds: seconds.get(), nanoseconds: nanoseconds.get() }
        };
        Ok(Self {
            node: record.node.get(),
            kind: FileKind::from_number(mode >> 12).ok_or_else(|| broken("attributes"))?,
            permissions: mode & 0o7777,
            link_count: record.link_count.get(),
            uid: record.uid.get(),
            gid: record.gid.get(),
            size_bytes: record.size_bytes.get(),
            sectors: record.sectors.get(),
            device: record.device.get(),
            accessed: time(record.accessed_s, record.accessed_ns),
            modified: time(record.modified_s, record.modified_ns),
            changed: time(record.changed_s, record.changed_ns),
        })
    }

    /// Type and permissions, as `st_mode` of Linux has them.
    pub fn mode(&self) -> u32 {
        self.kind.mode_bits() | self.permissions
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The server's clock.
    Now,
    At(Timestamp),
}

/// Which attributes are to become what; the others stay.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttributes(ChangeRecord);

impl SetAttributes {
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, change: Change) -> Self {
        self.0.change = Change(self.0.change.get()).union(change).0.into();
        self
    }

    /// Permission, set-id and sticky bits.
    #[must_use]
    pub fn permissions(mut self, permissions: u32) -> Self {
        self.0.permissions = permissions.into();
        self.with(Change::PERMISSIONS)
    }

    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.0.uid = uid.into();
        self.with(Change::UID)
    }

    #[must_use]
    pub fn gid(mut self, gid: u32) -> Self {
        self.0.gid = gid.into();
        self.with(Change::GID)
    }

    /// Cuts the file, or adds zeros.
    #[must_use]
    pub fn size_bytes(mut self, size_bytes: u64) -> Self {
        self.0.size_bytes = size_bytes.into();
        self.with(Change::SIZE)
    }

    #[must_use]
    pub fn accessed(mut self, time: SetTime) -> Self {
        let SetTime::At(time) = time else { return self.with(Change::ACCESSED_NOW) };
        (self.0.accessed_s, self.0.accessed_ns) = (time.seconds.into(), time.nanoseconds.into());
        self.with(Change::ACCESSED)
    }

    #[must_use]
    pub fn modified(mut self, time: SetTime) -> Self {
        let SetTime::At(time) = time else { return self.with(Change::MODIFIED_NOW) };
        (self.0.modified_s, self.0.modified_ns) = (time.seconds.into(), time.nanoseconds.into());
        self.with(Change::MODIFIED)
    }
}

/// What may be done to a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    /// Nothing but that it is there.
    pub const EXISTS: Access = Access(0);
    pub const READ: Access = Access(4);
    pub const WRITE: Access = Access(2);
    /// Of a directory: to reach what is in it.
    pub const EXECUTE: Access = Access(1);

    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How full a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// What the counts of blocks are in.
    pub block_bytes: u32,
    pub total_blocks: u64,
    pub free_blocks: u64,
    /// Free for a user who is not root.
    pub available_blocks: u64,
    pub total_inodes: u64,
    pub free_inodes: u64,
    /// The longest name in a directory.
    pub name_bytes_max: u32,
}

impl Statistics {
    fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (record, _) = StatisticsRecord::split(bytes).ok_or_else(|| broken("statistics"))?;
        Ok(Self {
            block_bytes: record.block_bytes.get(),
            total_blocks: record.total_blocks.get(),
            free_blocks: record.free_blocks.get(),
            available_blocks: record.available_blocks.get(),
            total_inodes: record.total_inodes.get(),
            free_inodes: record.free_inodes.get(),
            name_bytes_max: record.name_bytes_max.get(),
        })
    }
}

pub fn stat(place: Place<'_>) -> Request<'_, Attributes> {
    Request::following("stat", Opcode::Stat, place)
        .gives(Attributes::BYTES, |_, bytes| Attributes::decode(bytes))
}

/// Gives the attributes afterwards.
pub fn set<'a>(place: Place<'a>, change: &SetAttributes) -> Request<'a, Attributes> {
    Request::following("set attributes", Opcode::SetAttributes, place)
        .record(&change.0)
        .gives(Attributes::BYTES, |_, bytes| Attributes::decode(bytes))
}

pub fn access(place: Place<'_>, access: Access) -> Request<'_, ()> {
    Request::following("access", Opcode::Access, place).value(access.0.into())
}

pub fn statistics() -> Request<'static, Statistics> {
    Request::of_handle("get statistics", Opcode::Statistics, "".into())
        .gives(size_of::<StatisticsRecord>(), |_, bytes| Statistics::decode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_moments_of_the_system() {
        for (nanoseconds, expected) in [
            (1_500_000_000, Timestamp { seconds: 1, nanoseconds: 500_000_000 }),
            (-1_500_000_000, Timestamp { seconds: -2, nanoseconds: 500_000_000 }),
            (-2_000_000_000, Timestamp { seconds: -2, nanoseconds: 0 }),
        ] {
            let distance = Duration::from_nanos(i64::unsigned_abs(nanoseconds));
            let time = if nanoseconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
            assert_eq!(Timestamp::from(time), expected);
            assert_eq!(SystemTime::from(expected), time);
        }
    }

    #[test]
    fn attributes_of_another_length_or_kind_are_refused() {
        let record = AttributesRecord { mode: 0o100_644.into(), ..AttributesRecord::default() };
        let bytes = zerocopy::IntoBytes::as_bytes(&record);
        assert_eq!(Attributes::decode(bytes).unwrap().mode(), 0o100_644);
        assert!(Attributes::decode(&bytes[..100]).is_err());
        let record = AttributesRecord { mode: 0o070_644.into(), ..AttributesRecord::default() };
        assert!(Attributes::decode(zerocopy::IntoBytes::as_bytes(&record)).is_err());
    }
}
