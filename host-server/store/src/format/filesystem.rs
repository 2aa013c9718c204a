//! Values of the filesystem's trees. What the fields mean is told by the filesystem; here is how they lie.
//!
//! Values have no envelope: the pages and log records that hold them have checksums. Each begins with the version of its layout.
//!
//! | tree | key | value |
//! |---|---|---|
//! | 16 inodes | inode number, 0 | inode: 104 bytes, then the target of a symbolic link |
//! | 17 directory entries | directory's inode number, hash × 256 + index | entry: 16 bytes, then the name |
//! | 18 extended attributes | inode number, hash × 256 + index | attribute: 8 bytes, then name and value |
//! | 19 orphans | inode number, 0 | marker: 8 bytes |
//! | 19 orphans | inode number, 1 | shift: 32 bytes |
//! | 20 properties | 0, 0 | properties: 40 bytes |
//! | 20 properties | 1, 0 | inode limit: 16 bytes |

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::layout::{Layout, layout};
use crate::volume::{TreeId, VALUE_BYTES_MAX};

pub const INODES: TreeId = TreeId(16);
pub const ENTRIES: TreeId = TreeId(17);
pub const XATTRS: TreeId = TreeId(18);
pub const ORPHANS: TreeId = TreeId(19);
pub const PROPERTIES: TreeId = TreeId::SHARED;

/// Version of every layout in this file.
const VERSION: u8 = 1;

/// Why a value is not what its tree should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("{found} bytes where {needed} are needed")]
    WrongLength { needed: usize, found: usize },
    #[error("layout version {found}; this release knows version {VERSION}")]
    UnknownVersion { found: u8 },
    #[error("reserved bytes that are not zero")]
    ReservedNotZero,
    #[error("{field} {found}, which is none")]
    OutOfRange { field: &'static str, found: u64 },
}

/// Numbers of the kinds of inode at rest, never reused.
pub mod kind {
    pub const REGULAR: u8 = 1;
    pub const DIRECTORY: u8 = 2;
    pub const SYMLINK: u8 = 3;
    pub const CHARACTER_DEVICE: u8 = 4;
    pub const BLOCK_DEVICE: u8 = 5;
    pub const FIFO: u8 = 6;
    pub const SOCKET: u8 = 7;
}

/// Seconds since the Unix epoch and nanoseconds below a billion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// An inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inode {
    /// One of [`kind`].
    pub kind: u8,
    /// The low 12 bits of a mode.
    pub permissions: u16,
    pub link_count: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u32,
    /// Number of extended attributes.
    pub xattr_count: u32,
    /// Length of a file or target; number of entries of a directory.
    pub size_bytes: u64,
    pub generation: u64,
    /// The directory that a directory lies in; 0 for other kinds.
    pub parent: u64,
    /// Mapped 4 KiB blocks.
    pub allocated_blocks: u64,
    pub accessed: Time,
    pub modified: Time,
    pub changed: Time,
    /// What a symbolic link points to; empty for other kinds.
    pub target: Vec<u8>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct InodeBytes {
    version: u8,
    kind: u8,
    permissions: U16,
    link_count: U32,
    uid: U32,
    gid: U32,
    device: U32,
    xattr_count: U32,
    size_bytes: U64,
    generation: U64,
    parent: U64,
    allocated_blocks: U64,
    accessed_seconds: I64,
    modified_seconds: I64,
    changed_seconds: I64,
    accessed_nanoseconds: U32,
    modified_nanoseconds: U32,
    changed_nanoseconds: U32,
    target_bytes: U16,
    reserved: U16,
    reserved_end: U64,
}

const _: () = assert!(size_of::<InodeBytes>() == 104);

/// What the filesystem adds to a view: its name, and when and why it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewInfo {
    pub created: Time,
    /// The schedule that made it; 0 where somebody asked for it.
    pub schedule: u8,
    pub name: Vec<u8>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ViewInfoBytes {
    version: u8,
    schedule: u8,
    name_bytes: U16,
    created_nanoseconds: U32,
    created_seconds: I64,
}

const _: () = assert!(size_of::<ViewInfoBytes>() == 16);

impl ViewInfo {
    pub fn encode(&self) -> Vec<u8> {
        let head = ViewInfoBytes {
            version: VERSION,
            schedule: self.schedule,
            name_bytes: U16::new(self.name.len() as u16),
            created_nanoseconds: U32::new(self.created.nanoseconds),
            created_seconds: I64::new(self.created.seconds),
        };
        [head.as_bytes(), &self.name].concat()
    }

    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        let needed = size_of::<ViewInfoBytes>();
        let wrong_length = |needed| ValueError::WrongLength { needed, found: value.len() };
        let Ok((head, name)) = ViewInfoBytes::read_from_prefix(value) else {
            return Err(wrong_length(needed));
        };
        if head.version != VERSION {
            return Err(ValueError::UnknownVersion { found: head.version });
        }
        if name.len() != usize::from(head.name_bytes.get()) {
            return Err(wrong_length(needed + usize::from(head.name_bytes.get())));
        }
        let created =
            Time { seconds: head.created_seconds.get(), nanoseconds: head.created_nanoseconds.get() };
        Ok(Self { created, schedule: head.schedule, name: name.to_vec() })
    }
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub child: u64,
    /// One of [`kind`]: the child's.
    pub kind: u8,
    pub name: Vec<u8>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct EntryBytes {
    version: u8,
    kind: u8,
    name_bytes: U16,
    reserved: U32,
    child: U64,
}

const _: () = assert!(size_of::<EntryBytes>() == 16);

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct XattrBytes {
    version: u8,
    reserved: u8,
    name_bytes: U16,
    value_bytes: U16,
    reserved_end: U16,
}

const _: () = assert!(size_of::<XattrBytes>() == 8);

/// Name and value of an attribute together fit into so many bytes.
pub const XATTR_BYTES_MAX: usize = VALUE_BYTES_MAX - size_of::<XattrBytes>();

/// An inode that has blocks beyond its size, or no links, which opening the filesystem finishes with.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OrphanBytes {
    version: u8,
    reserved: [u8; 7],
}

const _: () = assert!(size_of::<OrphanBytes>() == 8);

/// Blocks of a file that are on their way to another place in it, in several transactions: what opening the filesystem finishes.
/// A release that does not know it refuses the filesystem, since the file is in pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    pub direction: ShiftDirection,
    /// Where the range lies that goes or comes in.
    pub at_block: u64,
    /// Its length: how far blocks move.
    pub len_blocks: u64,
    /// How far the work has come. Down: blocks from here on have not moved. Up: blocks before this one, back to `at_block`, have
    /// not moved.
    pub next_block: u64,
}

/// Where the blocks behind [`Shift::at_block`] go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShiftDirection {
    /// To lower places: the range goes.
    Down,
    /// To higher places: a range of holes comes in.
    Up,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ShiftBytes {
    version: u8,
    direction: u8,
    reserved: [u8; 6],
    at_block: U64,
    len_blocks: U64,
    next_block: U64,
}

const _: () = assert!(size_of::<ShiftBytes>() == 32);

/// What is fixed when a filesystem is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Key of the hash of names, so that nobody outside can craft names that collide.
    pub hash_key: [u64; 2],
    pub root: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PropertiesBytes {
    version: u8,
    reserved: [u8; 7],
    hash_key: [U64; 2],
    root: U64,
    reserved_end: U64,
}

const _: () = assert!(size_of::<PropertiesBytes>() == 40);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct InodeLimitBytes {
    version: u8,
    reserved: [u8; 7],
    limit: U64,
}

const _: () = assert!(size_of::<InodeLimitBytes>() == 16);

/// The fixed part of a value, of a version that this release knows, and what follows it.
fn head<T: FromBytes + KnownLayout + Immutable + Unaligned>(value: &[u8]) -> Result<(&T, &[u8]), ValueError> {
    let needed = size_of::<T>();
    let version = *value.first().ok_or(ValueError::WrongLength { needed, found: 0 })?;
    if version != VERSION {
        return Err(ValueError::UnknownVersion { found: version });
    }
    T::ref_from_prefix(value).map_err(|_| ValueError::WrongLength { needed, found: value.len() })
}

fn exact(needed: usize, found: usize) -> Result<(), ValueError> {
    if needed == found { Ok(()) } else { Err(ValueError::WrongLength { needed, found }) }
}

fn in_range(field: &'static str, found: u64, in_range: bool) -> Result<(), ValueError> {
    if in_range { Ok(()) } else { Err(ValueError::OutOfRange { field, found }) }
}

fn zero(reserved: bool) -> Result<(), ValueError> {
    if reserved { Ok(()) } else { Err(ValueError::ReservedNotZero) }
}

fn time(field: &'static str, seconds: I64, nanoseconds: U32) -> Result<Time, ValueError> {
    let nanoseconds = nanoseconds.get();
    in_range(field, u64::from(nanoseconds), nanoseconds < 1_000_000_000)?;
    Ok(Time { seconds: seconds.get(), nanoseconds })
}

impl Inode {
    pub fn encode(&self) -> Vec<u8> {
        let bytes = InodeBytes {
            version: VERSION,
            kind: self.kind,
            permissions: self.permissions.into(),
            link_count: self.link_count.into(),
            uid: self.uid.into(),
            gid: self.gid.into(),
            device: self.device.into(),
            xattr_count: self.xattr_count.into(),
            size_bytes: self.size_bytes.into(),
            generation: self.generation.into(),
            parent: self.parent.into(),
            allocated_blocks: self.allocated_blocks.into(),
            accessed_seconds: self.accessed.seconds.into(),
            modified_seconds: self.modified.seconds.into(),
            changed_seconds: self.changed.seconds.into(),
            accessed_nanoseconds: self.accessed.nanoseconds.into(),
            modified_nanoseconds: self.modified.nanoseconds.into(),
            changed_nanoseconds: self.changed.nanoseconds.into(),
            target_bytes: (self.target.len() as u16).into(),
            reserved: 0.into(),
            reserved_end: 0.into(),
        };
        [bytes.as_bytes(), &self.target].concat()
    }

    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        let (bytes, target) = head::<InodeBytes>(value)?;
        exact(usize::from(bytes.target_bytes.get()), target.len())?;
        let kind_known = (kind::REGULAR..=kind::SOCKET).contains(&bytes.kind);
        in_range("inode kind", u64::from(bytes.kind), kind_known)?;
        let permissions = bytes.permissions.get();
        in_range("permissions", u64::from(permissions), permissions <= 0o7777)?;
        zero(bytes.reserved.get() == 0 && bytes.reserved_end.get() == 0)?;
        Ok(Self {
            kind: bytes.kind,
            permissions,
            link_count: bytes.link_count.get(),
            uid: bytes.uid.get(),
            gid: bytes.gid.get(),
            device: bytes.device.get(),
            xattr_count: bytes.xattr_count.get(),
            size_bytes: bytes.size_bytes.get(),
            generation: bytes.generation.get(),
            parent: bytes.parent.get(),
            allocated_blocks: bytes.allocated_blocks.get(),
            accessed: time("access time", bytes.accessed_seconds, bytes.accessed_nanoseconds)?,
            modified: time("modification time", bytes.modified_seconds, bytes.modified_nanoseconds)?,
            changed: time("change time", bytes.changed_seconds, bytes.changed_nanoseconds)?,
            target: target.to_vec(),
        })
    }
}

impl Entry {
    pub fn encode(&self) -> Vec<u8> {
        let bytes = EntryBytes {
            version: VERSION,
            kind: self.kind,
            name_bytes: (self.name.len() as u16).into(),
            reserved: 0.into(),
            child: self.child.into(),
        };
        [bytes.as_bytes(), &self.name].concat()
    }

    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        let (bytes, name) = head::<EntryBytes>(value)?;
        exact(usize::from(bytes.name_bytes.get()), name.len())?;
        let kind_known = (kind::REGULAR..=kind::SOCKET).contains(&bytes.kind);
        in_range("entry kind", u64::from(bytes.kind), kind_known)?;
        in_range("name length", name.len() as u64, (1..=255).contains(&name.len()))?;
        zero(bytes.reserved.get() == 0)?;
        Ok(Self { child: bytes.child.get(), kind: bytes.kind, name: name.to_vec() })
    }
}

impl Xattr {
    /// `name` and `value` together are at most [`XATTR_BYTES_MAX`] long.
    pub fn encode(&self) -> Vec<u8> {
        let bytes = XattrBytes {
            version: VERSION,
            reserved: 0,
            name_bytes: (self.name.len() as u16).into(),
            value_bytes: (self.value.len() as u16).into(),
            reserved_end: 0.into(),
        };
        [bytes.as_bytes(), &self.name, &self.value].concat()
    }

    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        let (bytes, rest) = head::<XattrBytes>(value)?;
        let name_bytes = usize::from(bytes.name_bytes.get());
        exact(name_bytes + usize::from(bytes.value_bytes.get()), rest.len())?;
        zero(bytes.reserved == 0 && bytes.reserved_end.get() == 0)?;
        let (name, value) = rest.split_at(name_bytes);
        Ok(Self { name: name.to_vec(), value: value.to_vec() })
    }
}

/// The value of every orphan.
pub fn encode_orphan() -> Vec<u8> {
    OrphanBytes { version: VERSION, reserved: [0; 7] }.as_bytes().to_vec()
}

/// Checks the value of an orphan.
pub fn decode_orphan(value: &[u8]) -> Result<(), ValueError> {
    let (bytes, rest) = head::<OrphanBytes>(value)?;
    exact(0, rest.len())?;
    zero(bytes.reserved == [0; 7])
}

impl Shift {
    pub fn encode(&self) -> Vec<u8> {
        let bytes = ShiftBytes {
            version: VERSION,
            direction: match self.direction {
                ShiftDirection::Down => 1,
                ShiftDirection::Up => 2,
            },
            reserved: [0; 6],
            at_block: self.at_block.into(),
            len_blocks: self.len_blocks.into(),
            next_block: self.next_block.into(),
        };
        bytes.as_bytes().to_vec()
    }

    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        let (bytes, rest) = head::<ShiftBytes>(value)?;
        exact(0, rest.len())?;
        zero(bytes.reserved == [0; 6])?;
        let (at_block, len_blocks) = (bytes.at_block.get(), bytes.len_blocks.get());
        let next_block = bytes.next_block.get();
        let end = at_block.checked_add(len_blocks).filter(|_| len_blocks > 0);
        let end = end.ok_or(ValueError::OutOfRange { field: "shift length", found: len_blocks })?;
        let (direction, first) = match bytes.direction {
            1 => (ShiftDirection::Down, end),
            2 => (ShiftDirection::Up, at_block),
            other => {
                return Err(ValueError::OutOfRange { field: "shift direction", found: u64::from(other) });
            }
        };
        let fits = next_block >= first && next_block.checked_add(len_blocks).is_some();
        in_range("shift progress", next_block, fits)?;
        Ok(Self { direction, at_block, len_blocks, next_block })
    }
}

impl Properties {
    pub fn encode(&self) -> Vec<u8> {
        let bytes = PropertiesBytes {
            version: VERSION,
            reserved: [0; 7],
            hash_key: self.hash_key.map(Into::into),
            root: self.root.into(),
            reserved_end: 0.into(),
        };
        bytes.as_bytes().to_vec()
    }

    pub fn decode(value: &[u8]) -> Result<Self, ValueError> {
        let (bytes, rest) = head::<PropertiesBytes>(value)?;
        exact(0, rest.len())?;
        zero(bytes.reserved == [0; 7] && bytes.reserved_end.get() == 0)?;
        Ok(Self { hash_key: bytes.hash_key.map(U64::get), root: bytes.root.get() })
    }
}

/// `limit`: inode numbers from here on were never handed out.
pub fn encode_inode_limit(limit: u64) -> Vec<u8> {
    InodeLimitBytes { version: VERSION, reserved: [0; 7], limit: limit.into() }.as_bytes().to_vec()
}

pub fn decode_inode_limit(value: &[u8]) -> Result<u64, ValueError> {
    let (bytes, rest) = head::<InodeLimitBytes>(value)?;
    exact(0, rest.len())?;
    zero(bytes.reserved == [0; 7])?;
    Ok(bytes.limit.get())
}

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[
    layout!(
        "inode",
        InodeBytes {
            version,
            kind,
            permissions,
            link_count,
            uid,
            gid,
            device,
            xattr_count,
            size_bytes,
            generation,
            parent,
            allocated_blocks,
            accessed_seconds,
            modified_seconds,
            changed_seconds,
            accessed_nanoseconds,
            modified_nanoseconds,
            changed_nanoseconds,
            target_bytes,
            reserved,
            reserved_end
        }
    ),
    layout!("directory entry", EntryBytes { version, kind, name_bytes, reserved, child }),
    layout!("extended attribute", XattrBytes { version, reserved, name_bytes, value_bytes, reserved_end }),
    layout!("orphan", OrphanBytes { version, reserved }),
    layout!("shift", ShiftBytes { version, direction, reserved, at_block, len_blocks, next_block }),
    layout!("filesystem properties", PropertiesBytes { version, reserved, hash_key, root, reserved_end }),
    layout!("inode limit", InodeLimitBytes { version, reserved, limit }),
    layout!(
        "view info",
        ViewInfoBytes { version, schedule, name_bytes, created_nanoseconds, created_seconds }
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_a_shift_are_frozen_and_checked() {
        let shift = Shift { direction: ShiftDirection::Up, at_block: 3, len_blocks: 2, next_block: 0x0102 };
        let bytes = shift.encode();
        assert_eq!(hex(&bytes), "0102000000000000030000000000000002000000000000000201000000000000");
        assert_eq!(Shift::decode(&bytes), Ok(shift));
        // An orphan is none, nor the other way round.
        assert!(Shift::decode(&encode_orphan()).is_err() && decode_orphan(&bytes).is_err());
        let broken = [
            Shift { len_blocks: 0, ..shift },
            Shift { len_blocks: u64::MAX, ..shift },
            Shift { next_block: 2, ..shift },
            Shift { direction: ShiftDirection::Down, next_block: 4, ..shift },
        ];
        for shift in broken {
            assert!(Shift::decode(&shift.encode()).is_err(), "{shift:?}");
        }
        for (at, byte) in [(0, 2), (1, 0), (1, 3), (7, 1)] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            assert!(Shift::decode(&bytes).is_err(), "byte {at}");
        }
    }

    fn inode() -> Inode {
        Inode {
            kind: kind::SYMLINK,
            permissions: 0o777,
            link_count: 2,
            uid: 3,
            gid: 4,
            device: 5,
            xattr_count: 6,
            size_bytes: 3,
            generation: 8,
            parent: 9,
            allocated_blocks: 10,
            accessed: Time { seconds: -1, nanoseconds: 11 },
            modified: Time { seconds: 12, nanoseconds: 13 },
            changed: Time { seconds: 14, nanoseconds: 999_999_999 },
            target: b"abc".to_vec(),
        }
    }

    #[test]
    fn layouts_stay_as_they_were_released() {
        assert_eq!(
            hex(&inode().encode()),
            "0103ff01020000000300000004000000050000000600000003000000000000000800000000000000\
             09000000000000000a00000000000000ffffffffffffffff0c000000000000000e00000000000000\
             0b0000000d000000ffc99a3b030000000000000000000000616263"
        );
        let entry = Entry { child: 0x0102, kind: kind::DIRECTORY, name: b"name".to_vec() };
        assert_eq!(hex(&entry.encode()), "010204000000000002010000000000006e616d65");
        let xattr = Xattr { name: b"user.a".to_vec(), value: b"xyz".to_vec() };
        assert_eq!(hex(&xattr.encode()), "0100060003000000757365722e6178797a");
        assert_eq!(hex(&encode_orphan()), "0100000000000000");
        let properties = Properties { hash_key: [1, 2], root: 1 };
        assert_eq!(
            hex(&properties.encode()),
            "01000000000000000100000000000000020000000000000001000000000000000000000000000000"
        );
        assert_eq!(hex(&encode_inode_limit(4096)), "01000000000000000010000000000000");
    }

    #[test]
    fn values_decode_to_what_was_encoded() {
        assert_eq!(Inode::decode(&inode().encode()), Ok(inode()));
        let entry = Entry { child: 7, kind: kind::SOCKET, name: vec![0xff; 255] };
        assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
        let xattr = Xattr { name: b"user.b".to_vec(), value: vec![7; XATTR_BYTES_MAX - 6] };
        assert_eq!(xattr.encode().len(), VALUE_BYTES_MAX);
        assert_eq!(Xattr::decode(&xattr.encode()), Ok(xattr));
        assert_eq!(decode_orphan(&encode_orphan()), Ok(()));
        assert_eq!(decode_inode_limit(&encode_inode_limit(9)), Ok(9));
    }

    #[test]
    fn a_value_of_any_wrong_length_or_version_is_refused() {
        let values: [Vec<u8>; 4] = [
            inode().encode(),
            Entry { child: 7, kind: 1, name: b"n".to_vec() }.encode(),
            Xattr { name: b"n".to_vec(), value: b"v".to_vec() }.encode(),
            Properties { hash_key: [1, 2], root: 1 }.encode(),
        ];
        let decoders: [fn(&[u8]) -> bool; 4] = [
            |value| Inode::decode(value).is_ok(),
            |value| Entry::decode(value).is_ok(),
            |value| Xattr::decode(value).is_ok(),
            |value| Properties::decode(value).is_ok(),
        ];
        for (mut value, accepts) in values.into_iter().zip(decoders) {
            assert!(accepts(&value));
            for len in 0..value.len() {
                assert!(!accepts(&value[..len]), "cut to {len} of {}", value.len());
            }
            value[0] = 2;
            assert!(!accepts(&value));
            value[0] = 1;
            value.push(0);
            assert!(!accepts(&value));
        }
    }

    #[test]
    fn fields_out_of_range_are_refused() {
        for (offset, byte) in [(1, 0), (1, 8), (3, 0x10), (83, 0xff), (94, 1), (96, 1)] {
            let mut value = inode().encode();
            value[offset] = byte;
            assert!(Inode::decode(&value).is_err(), "byte {byte} at offset {offset}");
        }
    }
}
