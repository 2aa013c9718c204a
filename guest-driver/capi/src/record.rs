//! Structures and numbers of `ringfort.h`.

use std::ffi::c_char;
use std::time::Duration;

use ringfort_guest::{
    Attributes, DirectoryEntry, HeldLock, LockMode, Options, SetAttributes, SetTime, Statistics, Timestamp,
};

use crate::boundary::{At, Failure, Memory, Result, Text};

/// Constants of the header, all 32 bits.
macro_rules! constants {
    ($($name:ident = $value:expr;)+) => {
        $(pub const $name: u32 = $value;)+

        /// For the comparison with the header.
        #[cfg(test)]
        pub const CONSTANTS: &[(&str, u32)] = &[$((stringify!($name), $value)),+];
    };
}

constants! {
    RINGFORT_NO_FOLLOW = 1;
    RINGFORT_NO_REPLACE = 2;
    RINGFORT_EXCHANGE = 4;
    RINGFORT_MUST_EXIST = 8;
    RINGFORT_ATTRIBUTES = 16;
    RINGFORT_READ = 1;
    RINGFORT_WRITE = 2;
    RINGFORT_APPEND = 4;
    RINGFORT_CREATE = 8;
    RINGFORT_EXCLUSIVE = 16;
    RINGFORT_TRUNCATE = 32;
    RINGFORT_DIRECTORY = 64;
    RINGFORT_DATA_SYNC = 128;
    RINGFORT_SYNC = 256;
    RINGFORT_TEMPORARY = 512;
    RINGFORT_OPEN_NO_FOLLOW = 1024;
    RINGFORT_MAY_EXECUTE = 1;
    RINGFORT_MAY_WRITE = 2;
    RINGFORT_MAY_READ = 4;
    RINGFORT_SET_PERMISSIONS = 1;
    RINGFORT_SET_UID = 2;
    RINGFORT_SET_GID = 4;
    RINGFORT_SET_SIZE = 8;
    RINGFORT_SET_ACCESSED = 16;
    RINGFORT_SET_MODIFIED = 32;
    RINGFORT_SET_ACCESSED_NOW = 64;
    RINGFORT_SET_MODIFIED_NOW = 128;
    RINGFORT_LOCK_NONE = 0;
    RINGFORT_LOCK_SHARED = 1;
    RINGFORT_LOCK_EXCLUSIVE = 2;
    RINGFORT_LOCK_WHOLE = 1;
    RINGFORT_LOCK_WAIT = 2;
    RINGFORT_LOCK_OWNER = 4;
    RINGFORT_RESERVE = 0;
    RINGFORT_RESERVE_KEEP_SIZE = 1;
    RINGFORT_PUNCH_HOLE = 2;
    RINGFORT_ZERO = 3;
    RINGFORT_ZERO_KEEP_SIZE = 4;
    RINGFORT_COLLAPSE = 5;
    RINGFORT_INSERT = 6;
    RINGFORT_DO_READ = 1;
    RINGFORT_DO_WRITE = 2;
    RINGFORT_DO_APPEND = 3;
    RINGFORT_DO_SYNC = 4;
    RINGFORT_DO_OPEN = 5;
    RINGFORT_DO_READ_OPENED = 6;
    RINGFORT_DO_WRITE_OPENED = 7;
    RINGFORT_DO_SYNC_OPENED = 8;
    RINGFORT_DO_CLOSE_OPENED = 9;
    RINGFORT_THEN = 1;
    RINGFORT_THEN_ALWAYS = 2;
}

/// Refuses bits that a call does not know.
pub fn known(flags: u32, known: u32) -> Result<()> {
    match flags & !known {
        0 => Ok(()),
        more => Err(Failure::new(libc::EINVAL, format!("flags {more:#x}, which this call does not know"))),
    }
}

/// A structure's name in C, its fields with their types and offsets, and its size.
#[cfg(test)]
pub type Structure = (&'static str, &'static [(&'static str, &'static str, usize)], usize);

/// A structure of the header, with a description that a test compares with it.
macro_rules! structure {
    ($(#[$attribute:meta])* pub struct $name:ident as $c_name:literal { $(pub $field:ident: $type:ty,)+ }) => {
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Default)]
        pub struct $name {
            $(pub $field: $type,)+
        }

        #[cfg(test)]
        impl $name {
            pub const STRUCTURE: Structure = (
                $c_name,
                &[$((stringify!($field), stringify!($type), std::mem::offset_of!($name, $field))),+],
                size_of::<$name>(),
            );
        }
    };
}

structure! {
    pub struct ConnectOptions as "ringfort_options" {
        pub rings: u32,
        pub call_bytes_max: u32,
        pub busy_poll_us: u32,
        pub timeout_ms: u32,
    }
}

impl ConnectOptions {
    pub fn decode(&self) -> Options {
        let usual = Options::default();
        let given = |value: u32, usual: u32| if value == 0 { usual } else { value };
        let micros = |us: u32| Duration::from_micros(us.into());
        Options {
            rings: given(self.rings, usual.rings),
            call_bytes_max: given(self.call_bytes_max, usual.call_bytes_max),
            busy_poll: if self.busy_poll_us == 0 { usual.busy_poll } else { micros(self.busy_poll_us) },
            timeout: (self.timeout_ms > 0).then(|| Duration::from_millis(self.timeout_ms.into())),
            ..usual
        }
    }
}

structure! {
    pub struct Time as "ringfort_time" {
        pub seconds: i64,
        pub nanoseconds: u32,
        pub reserved: u32,
    }
}

impl From<Timestamp> for Time {
    fn from(Timestamp { seconds, nanoseconds }: Timestamp) -> Self {
        Self { seconds, nanoseconds, reserved: 0 }
    }
}

impl From<Time> for Timestamp {
    fn from(Time { seconds, nanoseconds, .. }: Time) -> Self {
        Self { seconds, nanoseconds }
    }
}

structure! {
    pub struct FileAttributes as "ringfort_attributes" {
        pub node: u64,
        pub size_bytes: u64,
        pub sectors: u64,
        pub accessed: Time,
        pub modified: Time,
        pub changed: Time,
        pub mode: u32,
        pub link_count: u32,
        pub uid: u32,
        pub gid: u32,
        pub device: u32,
        pub reserved: u32,
    }
}

impl From<Attributes> for FileAttributes {
    fn from(from: Attributes) -> Self {
        Self {
            node: from.node,
            size_bytes: from.size_bytes,
            sectors: from.sectors,
            accessed: from.accessed.into(),
            modified: from.modified.into(),
            changed: from.changed.into(),
            mode: from.mode(),
            link_count: from.link_count,
            uid: from.uid,
            gid: from.gid,
            device: from.device,
            reserved: 0,
        }
    }
}

structure! {
    pub struct Change as "ringfort_change" {
        pub set: u32,
        pub permissions: u32,
        pub uid: u32,
        pub gid: u32,
        pub size_bytes: u64,
        pub accessed: Time,
        pub modified: Time,
    }
}

impl Change {
    pub fn decode(&self) -> Result<SetAttributes> {
        known(self.set, (RINGFORT_SET_MODIFIED_NOW << 1) - 1)?;
        let has = |bit| self.set & bit != 0;
        let time = |at, now, time: Time| match (has(at), has(now)) {
            (false, false) => Ok(None),
            (false, true) => Ok(Some(SetTime::Now)),
            (true, false) => Ok(Some(SetTime::At(time.into()))),
            (true, true) => Err(Failure::new(libc::EINVAL, "a time that is to be both now and another")),
        };
        let mut change = SetAttributes::new();
        if has(RINGFORT_SET_PERMISSIONS) {
            change = change.permissions(self.permissions);
        }
        if has(RINGFORT_SET_UID) {
            change = change.uid(self.uid);
        }
        if has(RINGFORT_SET_GID) {
            change = change.gid(self.gid);
        }
        if has(RINGFORT_SET_SIZE) {
            change = change.size_bytes(self.size_bytes);
        }
        if let Some(time) = time(RINGFORT_SET_ACCESSED, RINGFORT_SET_ACCESSED_NOW, self.accessed)? {
            change = change.accessed(time);
        }
        if let Some(time) = time(RINGFORT_SET_MODIFIED, RINGFORT_SET_MODIFIED_NOW, self.modified)? {
            change = change.modified(time);
        }
        Ok(change)
    }
}

/// The longest name, and the zero behind it.
const NAME_BYTES: usize = 256;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    pub node: u64,
    pub kind: u32,
    pub has_attributes: u32,
    pub attributes: FileAttributes,
    pub name: [c_char; NAME_BYTES],
}

impl Entry {
    #[cfg(test)]
    pub const STRUCTURE: Structure = (
        "ringfort_entry",
        &[
            ("node", "u64", std::mem::offset_of!(Entry, node)),
            ("kind", "u32", std::mem::offset_of!(Entry, kind)),
            ("has_attributes", "u32", std::mem::offset_of!(Entry, has_attributes)),
            ("attributes", "FileAttributes", std::mem::offset_of!(Entry, attributes)),
            ("name", "[c_char; NAME_BYTES]", std::mem::offset_of!(Entry, name)),
        ],
        size_of::<Entry>(),
    );

    pub fn new(from: &DirectoryEntry) -> Result<Self> {
        let mut name = [0; NAME_BYTES];
        if from.name.len() >= NAME_BYTES || from.name.contains(&0) {
            return Err(Failure::new(libc::EPROTO, "the server sent a name that is none"));
        }
        for (to, byte) in name.iter_mut().zip(&from.name) {
            *to = byte.cast_signed();
        }
        Ok(Self {
            node: from.node,
            kind: from.kind.mode_bits(),
            has_attributes: from.attributes.is_some().into(),
            attributes: from.attributes.map(FileAttributes::from).unwrap_or_default(),
            name,
        })
    }
}

structure! {
    pub struct Fill as "ringfort_statistics" {
        pub total_blocks: u64,
        pub free_blocks: u64,
        pub available_blocks: u64,
        pub total_inodes: u64,
        pub free_inodes: u64,
        pub block_bytes: u32,
        pub name_bytes_max: u32,
    }
}

impl From<Statistics> for Fill {
    fn from(from: Statistics) -> Self {
        Self {
            total_blocks: from.total_blocks,
            free_blocks: from.free_blocks,
            available_blocks: from.available_blocks,
            total_inodes: from.total_inodes,
            free_inodes: from.free_inodes,
            block_bytes: from.block_bytes,
            name_bytes_max: from.name_bytes_max,
        }
    }
}

structure! {
    pub struct Lock as "ringfort_lock" {
        pub start: u64,
        pub end: u64,
        pub owner: u64,
        pub mode: u32,
        pub flags: u32,
        pub pid: u32,
        pub reserved: u32,
    }
}

impl Lock {
    pub fn decode(&self) -> Result<ringfort_guest::Lock> {
        known(self.flags, RINGFORT_LOCK_WHOLE | RINGFORT_LOCK_WAIT | RINGFORT_LOCK_OWNER)?;
        let lock = match self.mode {
            RINGFORT_LOCK_NONE => ringfort_guest::Lock::none(),
            RINGFORT_LOCK_SHARED => ringfort_guest::Lock::shared(),
            RINGFORT_LOCK_EXCLUSIVE => ringfort_guest::Lock::exclusive(),
            other => return Err(Failure::new(libc::EINVAL, format!("a lock of mode {other}"))),
        };
        let lock =
            if self.flags & RINGFORT_LOCK_WHOLE != 0 { lock } else { lock.range(self.start..=self.end) };
        Ok(if self.flags & RINGFORT_LOCK_OWNER != 0 { lock.owner(self.owner) } else { lock })
    }

    pub fn waits(&self) -> bool {
        self.flags & RINGFORT_LOCK_WAIT != 0
    }
}

impl From<HeldLock> for Lock {
    fn from(held: HeldLock) -> Self {
        let mode = match held.mode {
            LockMode::Shared => RINGFORT_LOCK_SHARED,
            LockMode::Exclusive => RINGFORT_LOCK_EXCLUSIVE,
        };
        Self { start: held.start, end: held.end, mode, pid: held.pid, ..Self::default() }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Vector<'a> {
    pub bytes: Memory<'a>,
    pub len_bytes: usize,
}

#[cfg(test)]
impl Vector<'_> {
    pub const STRUCTURE: Structure = (
        "ringfort_buffer",
        &[
            ("bytes", "Memory", std::mem::offset_of!(Vector<'_>, bytes)),
            ("len_bytes", "usize", std::mem::offset_of!(Vector<'_>, len_bytes)),
        ],
        size_of::<Vector<'_>>(),
    );
}

#[repr(C)]
pub struct BatchCommand<'a> {
    pub file: At<'a>,
    pub path: Text<'a>,
    pub buffer: Memory<'a>,
    pub len_bytes: usize,
    pub offset_bytes: u64,
    pub what: u32,
    pub link: u32,
    pub bits: u32,
    pub permissions: u32,
    pub result: i64,
}

#[cfg(test)]
impl BatchCommand<'_> {
    pub const STRUCTURE: Structure = (
        "ringfort_command",
        &[
            ("file", "At", std::mem::offset_of!(BatchCommand<'_>, file)),
            ("path", "Text", std::mem::offset_of!(BatchCommand<'_>, path)),
            ("buffer", "Memory", std::mem::offset_of!(BatchCommand<'_>, buffer)),
            ("len_bytes", "usize", std::mem::offset_of!(BatchCommand<'_>, len_bytes)),
            ("offset_bytes", "u64", std::mem::offset_of!(BatchCommand<'_>, offset_bytes)),
            ("what", "u32", std::mem::offset_of!(BatchCommand<'_>, what)),
            ("link", "u32", std::mem::offset_of!(BatchCommand<'_>, link)),
            ("bits", "u32", std::mem::offset_of!(BatchCommand<'_>, bits)),
            ("permissions", "u32", std::mem::offset_of!(BatchCommand<'_>, permissions)),
            ("result", "i64", std::mem::offset_of!(BatchCommand<'_>, result)),
        ],
        size_of::<BatchCommand<'_>>(),
    );
}
