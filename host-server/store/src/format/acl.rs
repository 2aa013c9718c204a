//! The value of an access control list: Linux's layout of `system.posix_acl_*`, as programs that read raw attributes know it.
//!
//! It is stored as the value of an extended attribute. A header, then the entries: owner, users, owning group, groups, mask, others.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::filesystem::ValueError;
use super::layout::{Layout, layout};

/// Linux's `POSIX_ACL_XATTR_VERSION`.
const VERSION: u32 = 2;

/// What an entry is about, by Linux's numbers.
pub mod tag {
    pub const OWNER: u16 = 0x01;
    pub const USER: u16 = 0x02;
    pub const OWNING_GROUP: u16 = 0x04;
    pub const GROUP: u16 = 0x08;
    pub const MASK: u16 = 0x10;
    pub const OTHERS: u16 = 0x20;
}

/// The id of entries that name nobody.
pub const NO_ID: u32 = u32::MAX;

/// One entry, as it lies there: nothing is checked but its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclEntry {
    /// One of [`tag`].
    pub tag: u16,
    /// Read 4, write 2, execute 1.
    pub permissions: u16,
    /// User or group; [`NO_ID`] where the tag says it all.
    pub id: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AclHeaderBytes {
    version: U32,
}

const _: () = assert!(size_of::<AclHeaderBytes>() == 4);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AclEntryBytes {
    tag: U16,
    permissions: U16,
    id: U32,
}

const _: () = assert!(size_of::<AclEntryBytes>() == 8);

pub fn encode(entries: &[AclEntry]) -> Vec<u8> {
    let mut value = AclHeaderBytes { version: VERSION.into() }.as_bytes().to_vec();
    for entry in entries {
        let bytes = AclEntryBytes {
            tag: entry.tag.into(),
            permissions: entry.permissions.into(),
            id: entry.id.into(),
        };
        value.extend_from_slice(bytes.as_bytes());
    }
    value
}

pub fn decode(value: &[u8]) -> Result<Vec<AclEntry>, ValueError> {
    let wrong_length = || ValueError::WrongLength { needed: size_of::<AclHeaderBytes>(), found: value.len() };
    let (header, rest) = AclHeaderBytes::ref_from_prefix(value).map_err(|_| wrong_length())?;
    let version = header.version.get();
    if version != VERSION {
        return Err(ValueError::OutOfRange {
            field: "version of an access control list",
            found: version.into(),
        });
    }
    let entries = <[AclEntryBytes]>::ref_from_bytes(rest).map_err(|_| wrong_length())?;
    let entry = |bytes: &AclEntryBytes| AclEntry {
        tag: bytes.tag.get(),
        permissions: bytes.permissions.get(),
        id: bytes.id.get(),
    };
    Ok(entries.iter().map(entry).collect())
}

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[
    layout!("access control list", AclHeaderBytes { version }),
    layout!("access control entry", AclEntryBytes { tag, permissions, id }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_linuxs() {
        let entries = [
            AclEntry { tag: tag::OWNER, permissions: 6, id: NO_ID },
            AclEntry { tag: tag::USER, permissions: 4, id: 1000 },
        ];
        let value = encode(&entries);
        assert_eq!(value, [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert_eq!(decode(&value), Ok(entries.to_vec()));
    }

    #[test]
    fn other_versions_and_lengths_are_refused() {
        assert_eq!(decode(&[2, 0, 0, 0]), Ok(Vec::new()));
        assert!(decode(&[1, 0, 0, 0]).is_err());
        for len in [0, 3, 5, 11, 13] {
            let value: Vec<u8> = [2, 0, 0, 0].into_iter().chain(std::iter::repeat(0)).take(len).collect();
            assert!(decode(&value).is_err(), "{len} bytes");
        }
    }
}
