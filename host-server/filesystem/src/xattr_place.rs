//! Where an extended attribute of an inode lies: in the slots of its name's hash, the first that is free when it was set.

use ringfort_store::format::filesystem as format;
use ringfort_store::volume::{Key, Volume};

use crate::failure::{Failure, Result};
use crate::hash::{SLOTS_PER_HASH, first_slot};

pub(crate) struct Found {
    /// Its slot and value.
    pub slot: Option<(u64, Vec<u8>)>,
    /// Where it could go, if it is not there and there is room.
    pub free: Option<u64>,
}

pub(crate) async fn find<V: Volume>(
    volume: &V,
    hash_key: [u64; 2],
    number: u64,
    name: &[u8],
) -> Result<Found> {
    let first = first_slot(hash_key, name);
    let last = first + SLOTS_PER_HASH - 1;
    let (from, to) = (Key::new(number, first), Key::new(number, last));
    let mut free = first;
    for (key, value) in volume.scan(format::XATTRS, from, to, SLOTS_PER_HASH as usize).await? {
        let xattr = decode(number, &value)?;
        if xattr.name == name {
            return Ok(Found { slot: Some((key.lo, xattr.value)), free: None });
        }
        if key.lo == free {
            free += 1;
        }
    }
    Ok(Found { slot: None, free: (free <= last).then_some(free) })
}

pub(crate) fn decode(number: u64, value: &[u8]) -> Result<format::Xattr> {
    format::Xattr::decode(value)
        .map_err(|error| Failure::damaged("read an extended attribute of", format!("inode {number}"), &error))
}
