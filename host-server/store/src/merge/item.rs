//! Parts of items, and items that are one.

use std::borrow::Cow;

use crate::format::map::RUN_BLOCKS_MAX;
use crate::format::run::{ItemKind, MOVE_BYTES, RunItem, SHARED_HEAD_BYTES};

/// An item whose bytes may be its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    pub hi: u64,
    pub lo: u64,
    pub last: u64,
    pub epoch: u32,
    pub kind: ItemKind,
    pub number: u64,
    pub bytes: Cow<'a, [u8]>,
}

/// An item that borrows nothing.
pub type OwnedItem = Item<'static>;

impl<'a> From<RunItem<'a>> for Item<'a> {
    fn from(item: RunItem<'a>) -> Self {
        let RunItem { hi, lo, last, epoch, kind, number, bytes } = item;
        Self { hi, lo, last, epoch, kind, number, bytes: Cow::Borrowed(bytes) }
    }
}

impl Item<'_> {
    /// An item without bytes.
    pub fn plain(
        kind: ItemKind,
        hi: u64,
        keys: std::ops::RangeInclusive<u64>,
        epoch: u32,
        number: u64,
    ) -> OwnedItem {
        Item { hi, lo: *keys.start(), last: *keys.end(), epoch, kind, number, bytes: Cow::Borrowed(&[]) }
    }

    pub fn as_run_item(&self) -> RunItem<'_> {
        let Self { hi, lo, last, epoch, kind, number, .. } = *self;
        RunItem { hi, lo, last, epoch, kind, number, bytes: &self.bytes }
    }

    pub fn into_owned(self) -> OwnedItem {
        let Self { hi, lo, last, epoch, kind, number, bytes } = self;
        Item { hi, lo, last, epoch, kind, number, bytes: Cow::Owned(bytes.into_owned()) }
    }
}

/// A number that may be negative, as an item keeps it: small ones of both signs are short.
pub fn encode_signed(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

/// Takes apart what [`encode_signed`] made.
pub fn decode_signed(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// The bytes of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveBytes {
    /// Where the first block is expected.
    pub from: u64,
    pub references: i64,
}

impl MoveBytes {
    pub fn encode(self) -> [u8; MOVE_BYTES] {
        let mut bytes = [0; MOVE_BYTES];
        bytes[..8].copy_from_slice(&self.from.to_le_bytes());
        bytes[8..].copy_from_slice(&self.references.to_le_bytes());
        bytes
    }

    /// Items were checked when they were decoded, or made by this file.
    pub fn decode(bytes: &[u8]) -> Self {
        let Ok(bytes) = <[u8; MOVE_BYTES]>::try_from(bytes) else {
            unreachable!("{} bytes of a move", bytes.len())
        };
        let halves = bytes.as_chunks::<8>().0;
        Self { from: u64::from_le_bytes(halves[0]), references: i64::from_le_bytes(halves[1]) }
    }
}

/// References of a shared birth beyond the first, and its checksums.
pub fn shared_parts(bytes: &[u8]) -> (u32, &[u8]) {
    match bytes.split_first_chunk::<SHARED_HEAD_BYTES>() {
        Some((head, checksums)) => (u32::from_le_bytes(*head), checksums),
        None => unreachable!("a shared birth of {} bytes", bytes.len()),
    }
}

/// The bytes of a shared birth.
pub fn shared_bytes(references_beyond_first: u32, checksums: &[u8]) -> Vec<u8> {
    [&references_beyond_first.to_le_bytes()[..], checksums].concat()
}

/// The part of the item that covers `lo..=last`, which lies inside.
pub fn cut<'a>(item: &RunItem<'a>, lo: u64, last: u64) -> Item<'a> {
    debug_assert!(item.lo <= lo && lo <= last && last <= item.last);
    if (lo, last) == (item.lo, item.last) {
        return (*item).into();
    }
    let offset = lo - item.lo;
    let number = if item.kind.ascends() { item.number + offset } else { item.number };
    let checksums = |bytes: &'a [u8]| &bytes[4 * offset as usize..4 * (last - item.lo + 1) as usize];
    let bytes = match item.kind {
        ItemKind::Birth => Cow::Borrowed(checksums(item.bytes)),
        ItemKind::SharedBirth => {
            let (beyond_first, all) = shared_parts(item.bytes);
            Cow::Owned(shared_bytes(beyond_first, checksums(all)))
        }
        ItemKind::Move => {
            let parts = MoveBytes::decode(item.bytes);
            Cow::Owned(MoveBytes { from: parts.from + offset, ..parts }.encode().to_vec())
        }
        _ => Cow::Borrowed(item.bytes),
    };
    Item { hi: item.hi, lo, last, epoch: item.epoch, kind: item.kind, number, bytes }
}

/// Whether `right` says of the keys that follow what `left` says of its own, so that one item can say both.
pub fn continues(left: &RunItem<'_>, right: &RunItem<'_>) -> bool {
    let follows = left.hi == right.hi
        && left.last.checked_add(1) == Some(right.lo)
        && (left.epoch, left.kind) == (right.epoch, right.kind);
    if !follows {
        return false;
    }
    let blocks = right.last.saturating_sub(left.lo).saturating_add(1);
    let number_continues = left.number.checked_add(right.lo - left.lo) == Some(right.number);
    match left.kind {
        ItemKind::Erase => true,
        ItemKind::Add | ItemKind::Refer => left.number == right.number,
        ItemKind::Map | ItemKind::Birth => number_continues && blocks <= RUN_BLOCKS_MAX,
        ItemKind::Put | ItemKind::SharedBirth | ItemKind::Move | ItemKind::Child => false,
    }
}

/// Takes in an item that continues this one.
pub fn extend(left: &mut OwnedItem, right: &RunItem<'_>) {
    debug_assert!(continues(&left.as_run_item(), right));
    left.last = right.last;
    if !right.bytes.is_empty() {
        left.bytes.to_mut().extend_from_slice(right.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_numbers_come_back() {
        for number in [0, 1, -1, 63, -64, i64::MAX, i64::MIN] {
            assert_eq!(decode_signed(encode_signed(number)), number);
        }
        assert_eq!([-1, 1, -2].map(encode_signed), [1, 2, 3]);
    }

    #[test]
    fn parts_of_items_join_to_the_whole() {
        let checksums: Vec<u8> = (0..40).collect();
        for (kind, bytes) in [(ItemKind::Birth, &checksums[..]), (ItemKind::Map, &[]), (ItemKind::Erase, &[])]
        {
            let whole = RunItem { hi: 1, lo: 100, last: 109, epoch: 2, kind, number: 500, bytes };
            let mut left = cut(&whole, 100, 103).into_owned();
            let right = cut(&whole, 104, 109);
            // What does not ascend is the same in every part.
            if kind.ascends() {
                assert_eq!(right.number, 504);
            }
            extend(&mut left, &right.as_run_item());
            assert_eq!(left.as_run_item(), whole);
            let apart = cut(&whole, 105, 109);
            assert!(!continues(&cut(&whole, 100, 103).as_run_item(), &apart.as_run_item()));
        }
    }

    #[test]
    fn a_part_of_a_move_expects_its_own_place() {
        let bytes = MoveBytes { from: 70, references: -1 }.encode();
        let whole =
            RunItem { hi: 0, lo: 10, last: 19, epoch: 0, kind: ItemKind::Move, number: 900, bytes: &bytes };
        let part = cut(&whole, 13, 15);
        assert_eq!(
            (part.number, MoveBytes::decode(&part.bytes)),
            (903, MoveBytes { from: 73, references: -1 })
        );
    }
}
