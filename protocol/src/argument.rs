//! Records in the areas of commands: what does not fit a slot.

use zerocopy::little_endian::{I64, U16, U32, U64};

use crate::layout::record;

record! {
    /// The attributes of a file: output of `Stat`, `Open` and `SetAttributes`, and part of a directory's entries.
    pub struct AttributesRecord: 128 {
        /// The inode's number, never used for another.
        pub node: U64,
        pub generation: U64,
        pub size_bytes: U64,
        /// Allocated, in units of 512 bytes.
        pub sectors: U64,
        pub accessed_s: I64,
        pub modified_s: I64,
        pub changed_s: I64,
        pub accessed_ns: U32,
        pub modified_ns: U32,
        pub changed_ns: U32,
        /// Type and permissions as `st_mode` of Linux has them.
        pub mode: U32,
        pub link_count: U32,
        pub uid: U32,
        pub gid: U32,
        /// Of a device node, as Linux encodes it.
        pub device: U32,
        pub reserved: [u8; 40],
    }
}

record! {
    /// What `SetAttributes` is to change; precedes the path in its input.
    pub struct ChangeRecord: 64 {
        /// See [`Change`]: which of the fields below count.
        pub change: U32,
        pub permissions: U32,
        pub uid: U32,
        pub gid: U32,
        pub size_bytes: U64,
        pub accessed_s: I64,
        pub modified_s: I64,
        pub accessed_ns: U32,
        pub modified_ns: U32,
        pub reserved: [u8; 16],
    }
}

/// Bits of [`ChangeRecord::change`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change(pub u32);

impl Change {
    pub const PERMISSIONS: Change = Change(1 << 0);
    pub const UID: Change = Change(1 << 1);
    pub const GID: Change = Change(1 << 2);
    pub const SIZE: Change = Change(1 << 3);
    pub const ACCESSED: Change = Change(1 << 4);
    pub const MODIFIED: Change = Change(1 << 5);
    /// The server's clock rather than the record's time.
    pub const ACCESSED_NOW: Change = Change(1 << 6);
    /// The server's clock rather than the record's time.
    pub const MODIFIED_NOW: Change = Change(1 << 7);
    pub const ALL: Change = Change((1 << 8) - 1);

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

record! {
    /// An entry of a directory in the output of `ReadDirectory`. The entry's [`AttributesRecord`] follows where they were asked for, then its
    /// name, then zeros up to a multiple of 8 bytes.
    pub struct EntryRecord: 24 {
        pub node: U64,
        /// Continue after this entry.
        pub cookie: U64,
        /// Of the whole entry, this record and the zeros included.
        pub entry_bytes: U16,
        pub name_bytes: U16,
        /// The type's bits of `st_mode`, shifted right by 12, as in `d_type`.
        pub kind: u8,
        /// 1 where the attributes follow.
        pub has_attributes: u8,
        pub reserved: U16,
    }
}

record! {
    /// Output of `Statistics`: `statfs`.
    pub struct StatisticsRecord: 64 {
        pub total_blocks: U64,
        pub free_blocks: U64,
        pub available_blocks: U64,
        pub total_inodes: U64,
        pub free_inodes: U64,
        pub block_bytes: U32,
        pub name_bytes_max: U32,
        pub reserved: [u8; 16],
    }
}

record! {
    /// An advisory lock: input of `SetLock` and `GetLock`, output of `GetLock`. The operand of these commands is the owner: any number of the
    /// client's own.
    pub struct LockRecord: 32 {
        pub start: U64,
        /// The last byte, included; at most 2⁶³ − 1.
        pub end: U64,
        /// 0 none (gives up), 1 shared, 2 exclusive.
        pub mode: u8,
        /// 0 range (fcntl), 1 whole file (flock).
        pub family: u8,
        /// 1: waits until the lock is free, or until the command is cancelled.
        pub wait: u8,
        pub reserved: [u8; 5],
        /// Shown to those of the same client whom the lock keeps out; others are shown 0.
        pub pid: U32,
        pub reserved_end: U32,
    }
}

record! {
    /// Where `CopyRange` copies to: its whole input. Command: target and operand are the source, the value is the length.
    pub struct CopyToRecord: 16 {
        pub handle: U64,
        pub offset_bytes: U64,
    }
}

record! {
    /// One of the areas in the input of `ReadScatter` and `WriteGather`.
    pub struct AreaRecord: 8 {
        /// Offset in the client's memory.
        pub start: U32,
        pub len_bytes: U32,
    }
}

/// The most areas that one command lists.
pub const AREA_COUNT_MAX: usize = 256;

/// The longest path in a command, in bytes, as Linux has it, the terminating zero not counted.
pub const PATH_BYTES_MAX: usize = 4095;
