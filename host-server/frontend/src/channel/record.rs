//! Between the protocol's records and the filesystem's types.

use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{
    Attributes, DirectoryEntry, FileKind, HeldLock, LockFamily, LockMode, LockRange, OpenFlags,
    SetAttributes, SetTime, Statistics, Timestamp,
};
use ringfort_protocol::argument::{
    AttributesRecord, Change, ChangeRecord, EntryRecord, LockRecord, StatisticsRecord,
};
use ringfort_protocol::command::OpenBits;
use zerocopy::IntoBytes;

/// The type bits of `st_mode`, shifted right by 12.
pub fn kind_number(kind: FileKind) -> u8 {
    match kind {
        FileKind::Fifo => 1,
        FileKind::CharacterDevice => 2,
        FileKind::Directory => 4,
        FileKind::BlockDevice => 6,
        FileKind::Regular => 8,
        FileKind::Symlink => 10,
        FileKind::Socket => 12,
    }
}

/// What `mknod` may make, from the type bits of `st_mode`.
pub fn node_kind(mode: u32) -> Result<FileKind, Errno> {
    match mode >> 12 {
        0 | 8 => Ok(FileKind::Regular),
        1 => Ok(FileKind::Fifo),
        2 => Ok(FileKind::CharacterDevice),
        6 => Ok(FileKind::BlockDevice),
        12 => Ok(FileKind::Socket),
        _ => Err(Errno::EINVAL),
    }
}

/// Permission bits that the other side asked for.
pub fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub fn attributes(from: &Attributes) -> AttributesRecord {
    AttributesRecord {
        node: from.node.0.into(),
        generation: from.generation.into(),
        size_bytes: from.size_bytes.into(),
        sectors: from.sectors.into(),
        accessed_s: from.accessed.seconds.into(),
        modified_s: from.modified.seconds.into(),
        changed_s: from.changed.seconds.into(),
        accessed_ns: from.accessed.nanoseconds.into(),
        modified_ns: from.modified.nanoseconds.into(),
        changed_ns: from.changed.nanoseconds.into(),
        mode: (u32::from(kind_number(from.kind)) << 12 | u32::from(from.permissions)).into(),
        link_count: from.link_count.into(),
        uid: from.uid.into(),
        gid: from.gid.into(),
        device: from.device.into(),
        ..AttributesRecord::default()
    }
}

pub fn change(from: &ChangeRecord) -> Result<SetAttributes, Errno> {
    let bits = Change(from.change.get());
    if bits.0 & !Change::ALL.0 != 0 || from.reserved != [0; 16] {
        return Err(Errno::EINVAL);
    }
    let time = |bit, now, seconds: i64, nanoseconds: u32| match (bits.has(bit), bits.has(now)) {
        (false, false) => Ok(None),
        (false, true) => Ok(Some(SetTime::Now)),
        (true, false) if nanoseconds < 1_000_000_000 => {
            Ok(Some(SetTime::At(Timestamp { seconds, nanoseconds })))
        }
        _ => Err(Errno::EINVAL),
    };
    let size_bytes = bits.has(Change::SIZE).then_some(from.size_bytes.get());
    if size_bytes.is_some_and(|size_bytes| size_bytes > i64::MAX as u64) {
        return Err(Errno::EINVAL);
    }
    Ok(SetAttributes {
        permissions: bits.has(Change::PERMISSIONS).then(|| permissions(from.permissions.get())),
        uid: bits.has(Change::UID).then_some(from.uid.get()),
        gid: bits.has(Change::GID).then_some(from.gid.get()),
        size_bytes,
        accessed: time(
            Change::ACCESSED,
            Change::ACCESSED_NOW,
            from.accessed_s.get(),
            from.accessed_ns.get(),
        )?,
        modified: time(
            Change::MODIFIED,
            Change::MODIFIED_NOW,
            from.modified_s.get(),
            from.modified_ns.get(),
        )?,
        ..SetAttributes::default()
    })
}

/// How a file is opened, from the lower half of a value.
pub fn open_flags(bits: OpenBits) -> Result<OpenFlags, Errno> {
    let flags = OpenFlags {
        read: bits.has(OpenBits::READ),
        write: bits.has(OpenBits::WRITE),
        append: bits.has(OpenBits::APPEND),
        truncate: bits.has(OpenBits::TRUNCATE),
        exclusive: bits.has(OpenBits::EXCLUSIVE),
        data_sync: bits.has(OpenBits::DATA_SYNC),
        sync: bits.has(OpenBits::SYNC),
    };
    let writes = flags.append || flags.truncate || bits.has(OpenBits::TEMPORARY);
    let contradicts = (writes && !flags.write)
        || (flags.exclusive && !bits.has(OpenBits::CREATE) && !bits.has(OpenBits::TEMPORARY))
        || (bits.has(OpenBits::DIRECTORY) && (flags.write || bits.has(OpenBits::CREATE)));
    if bits.0 & !OpenBits::ALL.0 != 0 || contradicts || !(flags.read || flags.write) {
        return Err(Errno::EINVAL);
    }
    Ok(flags)
}

pub fn statistics(from: &Statistics) -> StatisticsRecord {
    StatisticsRecord {
        total_blocks: from.total_blocks.into(),
        free_blocks: from.free_blocks.into(),
        available_blocks: from.available_blocks.into(),
        total_inodes: from.total_inodes.into(),
        free_inodes: from.free_inodes.into(),
        block_bytes: from.block_bytes.into(),
        name_bytes_max: from.name_bytes_max.into(),
        ..StatisticsRecord::default()
    }
}

/// What a client asks of a lock.
pub struct LockWish {
    pub range: LockRange,
    pub mode: Option<LockMode>,
    pub family: LockFamily,
    pub wait: bool,
    pub pid: u32,
}

pub fn lock_wish(from: &LockRecord) -> Result<LockWish, Errno> {
    let mode = match from.mode {
        0 => None,
        1 => Some(LockMode::Shared),
        2 => Some(LockMode::Exclusive),
        _ => return Err(Errno::EINVAL),
    };
    let family = match from.family {
        0 => LockFamily::Range,
        1 => LockFamily::WholeFile,
        _ => return Err(Errno::EINVAL),
    };
    if from.wait > 1 || from.reserved != [0; 5] || from.reserved_end.get() != 0 {
        return Err(Errno::EINVAL);
    }
    let range = match family {
        LockFamily::Range => LockRange::new(from.start.get(), from.end.get())?,
        LockFamily::WholeFile => LockRange::WHOLE,
    };
    Ok(LockWish { range, mode, family, wait: from.wait == 1, pid: from.pid.get() })
}

pub fn held_lock(from: &HeldLock) -> LockRecord {
    LockRecord {
        start: from.range.start.into(),
        end: from.range.end.into(),
        mode: match from.mode {
            LockMode::Shared => 1,
            LockMode::Exclusive => 2,
        },
        pid: from.pid.into(),
        ..LockRecord::default()
    }
}

/// Appends an entry to a list that may become `room_bytes` long. False, and nothing appended, where it does not fit.
pub fn push_entry(list: &mut Vec<u8>, entry: &DirectoryEntry, room_bytes: usize) -> bool {
    let attributes = entry.attributes.as_ref().map(attributes);
    let attributes = attributes.as_ref().map_or(&[][..], |record| record.as_bytes());
    let used_bytes = size_of::<EntryRecord>() + attributes.len() + entry.name.len();
    let entry_bytes = used_bytes.next_multiple_of(8);
    if list.len() + entry_bytes > room_bytes {
        return false;
    }
    let record = EntryRecord {
        node: entry.node.0.into(),
        cookie: entry.cookie.into(),
        // A name has at most 255 bytes.
        entry_bytes: (entry_bytes as u16).into(),
        name_bytes: (entry.name.len() as u16).into(),
        kind: kind_number(entry.kind),
        has_attributes: u8::from(entry.attributes.is_some()),
        ..EntryRecord::default()
    };
    list.extend_from_slice(record.as_bytes());
    list.extend_from_slice(attributes);
    list.extend_from_slice(&entry.name);
    list.resize(list.len() + entry_bytes - used_bytes, 0);
    true
}
