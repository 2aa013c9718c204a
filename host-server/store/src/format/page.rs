//! Pages of the key-value trees, and the list of tree roots.
//!
//! A page is [`PAGE_BYTES`] long: envelope and header, then entries in key order.
//!
//! * A *leaf* (level 0) has an array of [`LeafSlot`]s after the header; the values are packed at the end of the page,
//!   from `values_start` on. The gap between is zero.
//! * An *inner page* (level ≥ 1) has an array of [`InnerEntry`]s. Entry `i` leads to the keys from its own key up to the
//!   key of entry `i + 1`. The key of the first entry is zero.
//!
//! | offset | bytes | field of every page |
//! |---|---|---|
//! | 0 | 32 | envelope, kind 4, version 1, the rest of the page its body |
//! | 32 | 8 | generation: the checkpoint that wrote it |
//! | 40 | 1 | tree |
//! | 41 | 1 | level |
//! | 42 | 2 | entries |
//! | 44 | 2 | leaf: `values_start`; inner page: zero |
//! | 46 | 10 | reserved, zero |
//! | 56 | | entries |
//!
//! | offset | bytes | field of a leaf's slot |
//! |---|---|---|
//! | 0 | 16 | key: hi, lo |
//! | 16 | 2 | offset of the value in the page |
//! | 18 | 2 | length of the value, bytes |
//!
//! | offset | bytes | field of an inner page's entry |
//! |---|---|---|
//! | 0 | 16 | key: hi, lo |
//! | 16 | 8 | byte offset of the child in the metadata region |
//! | 24 | 8 | generation of the child |
//! | 32 | 4 | checksum in the envelope of the child |
//! | 36 | 4 | reserved, zero |
//!
//! The list of roots is 16 bytes (generation 8, count of trees 4, reserved 4), then for each tree 32 bytes: tree 1,
//! level 1, reserved 2, checksum 4, byte offset 8, generation 8, count of entries 8.
//!
//! A pointer to a page carries its checksum and generation: a page whose newest write was lost still has a valid
//! checksum of its own, and is told by the pointer.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::envelope::{self, ENVELOPE_BYTES, EnvelopeError, Kind};
use super::layout::{Layout, layout};
use crate::address::{MetadataAddress, VolumeId};
use crate::volume::{Key, TreeId, VALUE_BYTES_MAX};

/// Size of every page.
pub const PAGE_BYTES: usize = 16 * 1024;
/// Trees are numbered from 0 to one less than this.
pub const TREE_COUNT_MAX: usize = 64;
/// A tree this high would hold more entries than a 64-bit block count; a higher one is damage.
pub const LEVEL_MAX: u8 = 12;

const VERSION: u16 = 1;

/// What follows the envelope.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PageHeader {
    /// The checkpoint that wrote the page.
    generation: U64,
    tree: u8,
    level: u8,
    entry_count: U16,
    /// Leaf: offset of the first value byte, [`PAGE_BYTES`] where there is none. Inner page: zero.
    values_start: U16,
    reserved: [u8; 10],
}

/// One entry of a leaf.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct LeafSlot {
    hi: U64,
    lo: U64,
    /// Offset in the page.
    value_offset: U16,
    value_len_bytes: U16,
}

/// One entry of an inner page.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InnerEntry {
    hi: U64,
    lo: U64,
    address: U64,
    generation: U64,
    checksum: U32,
    reserved: U32,
}

/// Envelope and page header.
pub const PAGE_HEADER_BYTES: usize = ENVELOPE_BYTES + 24;
pub const LEAF_SLOT_BYTES: usize = 20;
pub const INNER_ENTRY_BYTES: usize = 40;
/// What entries share in a page.
pub const PAGE_CAPACITY_BYTES: usize = PAGE_BYTES - PAGE_HEADER_BYTES;
/// Children of a full inner page.
pub const INNER_ENTRIES_MAX: usize = PAGE_CAPACITY_BYTES / INNER_ENTRY_BYTES;

const _: () = assert!(ENVELOPE_BYTES + size_of::<PageHeader>() == PAGE_HEADER_BYTES);
const _: () = assert!(size_of::<LeafSlot>() == LEAF_SLOT_BYTES);
const _: () = assert!(size_of::<InnerEntry>() == INNER_ENTRY_BYTES);
// Two entries of any length share a leaf, so that a full leaf can always be split.
const _: () = assert!(2 * (LEAF_SLOT_BYTES + VALUE_BYTES_MAX) <= PAGE_CAPACITY_BYTES);

/// Where a page lies and what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePointer {
    pub address: MetadataAddress,
    pub generation: u64,
    pub checksum: u32,
}

/// What a page says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageIdentity {
    pub volume: VolumeId,
    pub generation: u64,
    pub tree: TreeId,
    /// Height above the leaves.
    pub level: u8,
}

/// What is wrong with a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    #[error("{0} bytes instead of a page")]
    Length(usize),
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error("checksum {found:08x} instead of {expected:08x}")]
    Checksum { expected: u32, found: u32 },
    #[error("generation {found} instead of {expected}: a stale page")]
    Generation { expected: u64, found: u64 },
    #[error("page of tree {tree} level {level} in the place of another")]
    Place { tree: u8, level: u8 },
    #[error("entries that overlap or leave the page")]
    Bounds,
    #[error("keys out of order")]
    Order,
}

impl LeafSlot {
    pub fn new(key: Key, value_offset: usize, value_len_bytes: usize) -> Self {
        debug_assert!(value_offset + value_len_bytes <= PAGE_BYTES);
        Self {
            hi: U64::new(key.hi),
            lo: U64::new(key.lo),
            value_offset: U16::new(value_offset as u16),
            value_len_bytes: U16::new(value_len_bytes as u16),
        }
    }

    #[inline]
    pub fn key(&self) -> Key {
        Key { hi: self.hi.get(), lo: self.lo.get() }
    }

    pub fn value_offset(&self) -> usize {
        usize::from(self.value_offset.get())
    }

    pub fn value_len_bytes(&self) -> usize {
        usize::from(self.value_len_bytes.get())
    }

    /// Where in the page the value lies.
    pub fn value_range(&self) -> std::ops::Range<usize> {
        self.value_offset()..self.value_offset() + self.value_len_bytes()
    }
}

impl InnerEntry {
    fn new(key: Key, pointer: PagePointer) -> Self {
        Self {
            hi: U64::new(key.hi),
            lo: U64::new(key.lo),
            address: U64::new(pointer.address.0),
            generation: U64::new(pointer.generation),
            checksum: U32::new(pointer.checksum),
            reserved: U32::ZERO,
        }
    }

    pub fn key(&self) -> Key {
        Key { hi: self.hi.get(), lo: self.lo.get() }
    }

    pub fn pointer(&self) -> PagePointer {
        PagePointer {
            address: MetadataAddress(self.address.get()),
            generation: self.generation.get(),
            checksum: self.checksum.get(),
        }
    }
}

/// The slots of a leaf that has `count` of them. The caller knows that they lie inside the page.
#[inline]
pub fn leaf_slots(page: &[u8], count: usize) -> &[LeafSlot] {
    match <[LeafSlot]>::ref_from_prefix_with_elems(&page[PAGE_HEADER_BYTES..], count) {
        Ok((slots, _)) => slots,
        Err(_) => unreachable!("{count} slots leave the page"),
    }
}

/// As [`leaf_slots`], for writing.
#[inline]
pub fn leaf_slots_mut(page: &mut [u8], count: usize) -> &mut [LeafSlot] {
    match <[LeafSlot]>::mut_from_prefix_with_elems(&mut page[PAGE_HEADER_BYTES..], count) {
        Ok((slots, _)) => slots,
        Err(_) => unreachable!("{count} slots leave the page"),
    }
}

/// Fills in the header of a leaf whose slots and values are in place. Returns the checksum.
pub fn seal_leaf(page: &mut [u8], identity: PageIdentity, count: usize, values_start: usize) -> u32 {
    debug_assert!(identity.level == 0);
    seal(page, identity, count, values_start)
}

/// Fills a zeroed page with an inner page. Returns the checksum.
pub fn encode_inner(
    page: &mut [u8],
    identity: PageIdentity,
    entries: impl Iterator<Item = (Key, PagePointer)>,
) -> u32 {
    debug_assert!(identity.level > 0);
    let mut count = 0;
    let (places, _) = page[PAGE_HEADER_BYTES..].as_chunks_mut::<INNER_ENTRY_BYTES>();
    for (place, (key, pointer)) in places.iter_mut().zip(entries) {
        place.copy_from_slice(InnerEntry::new(key, pointer).as_bytes());
        count += 1;
    }
    seal(page, identity, count, 0)
}

fn seal(page: &mut [u8], identity: PageIdentity, count: usize, values_start: usize) -> u32 {
    assert!(page.len() == PAGE_BYTES && count <= usize::from(u16::MAX));
    let header = PageHeader {
        generation: U64::new(identity.generation),
        tree: identity.tree.0,
        level: identity.level,
        entry_count: U16::new(count as u16),
        values_start: U16::new(values_start as u16),
        reserved: [0; 10],
    };
    page[ENVELOPE_BYTES..PAGE_HEADER_BYTES].copy_from_slice(header.as_bytes());
    envelope::seal(page, Kind::Page, VERSION, identity.volume, PAGE_BYTES - ENVELOPE_BYTES);
    match envelope::checksum_of(page) {
        Some(checksum) => checksum,
        None => unreachable!("a page is longer than its envelope"),
    }
}

/// A page that has passed every check that can be made on it alone.
#[derive(Debug)]
pub enum DecodedPage<'a> {
    Leaf { slots: &'a [LeafSlot], values_start: usize },
    Inner { entries: &'a [InnerEntry] },
}

impl std::fmt::Debug for LeafSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {:?}", self.key(), self.value_range())
    }
}

impl std::fmt::Debug for InnerEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} to {:?}", self.key(), self.pointer())
    }
}

/// Whether these bytes are the page that the pointer means: checksum, generation, volume. [`decode`] checks the rest.
pub fn is_page(page: &[u8], pointer: PagePointer, volume: VolumeId) -> bool {
    identify(page, pointer, volume).is_ok()
}

fn identify(page: &[u8], pointer: PagePointer, volume: VolumeId) -> Result<&PageHeader, PageFault> {
    if page.len() != PAGE_BYTES {
        return Err(PageFault::Length(page.len()));
    }
    let opened = envelope::open(page, Kind::Page, VERSION, Some(volume))?;
    let Ok((header, _)) = PageHeader::ref_from_prefix(opened.body) else {
        return Err(PageFault::Bounds);
    };
    if opened.body.len() != PAGE_BYTES - ENVELOPE_BYTES {
        return Err(PageFault::Length(opened.body.len()));
    }
    if header.reserved != [0; 10] {
        return Err(EnvelopeError::ReservedNotZero.into());
    }
    if header.generation.get() != pointer.generation {
        return Err(PageFault::Generation { expected: pointer.generation, found: header.generation.get() });
    }
    match envelope::checksum_of(page) {
        Some(found) if found == pointer.checksum => Ok(header),
        found => Err(PageFault::Checksum { expected: pointer.checksum, found: found.unwrap_or_default() }),
    }
}

/// Checks a page as it came from a device against the pointer that led to it, and its inner order.
pub fn decode(
    page: &[u8],
    pointer: PagePointer,
    volume: VolumeId,
    tree: TreeId,
    level: u8,
) -> Result<DecodedPage<'_>, PageFault> {
    let header = identify(page, pointer, volume)?;
    if header.tree != tree.0 || header.level != level {
        return Err(PageFault::Place { tree: header.tree, level: header.level });
    }
    let count = usize::from(header.entry_count.get());
    let body = &page[PAGE_HEADER_BYTES..];
    if level > 0 {
        let (entries, _) =
            <[InnerEntry]>::ref_from_prefix_with_elems(body, count).map_err(|_| PageFault::Bounds)?;
        if count == 0 || header.values_start.get() != 0 || entries.iter().any(|e| e.reserved.get() != 0) {
            return Err(PageFault::Bounds);
        }
        if entries[0].key() != Key::MIN || !entries.is_sorted_by(|a, b| a.key() < b.key()) {
            return Err(PageFault::Order);
        }
        return Ok(DecodedPage::Inner { entries });
    }
    let (slots, _) = <[LeafSlot]>::ref_from_prefix_with_elems(body, count).map_err(|_| PageFault::Bounds)?;
    let values_start = usize::from(header.values_start.get());
    let slots_end = PAGE_HEADER_BYTES + count * LEAF_SLOT_BYTES;
    let values = slots_end.max(values_start)..PAGE_BYTES;
    let inside = |slot: &LeafSlot| {
        let range = slot.value_range();
        slot.value_len_bytes() <= VALUE_BYTES_MAX && range.start >= values.start && range.end <= values.end
    };
    let value_bytes: usize = slots.iter().map(LeafSlot::value_len_bytes).sum();
    if count == 0
        || values_start < slots_end
        || !slots.iter().all(inside)
        || values_start.checked_add(value_bytes) != Some(PAGE_BYTES)
    {
        return Err(PageFault::Bounds);
    }
    if !slots.is_sorted_by(|a, b| a.key() < b.key()) {
        return Err(PageFault::Order);
    }
    Ok(DecodedPage::Leaf { slots, values_start })
}

/// The root of one tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeRoot {
    pub tree: TreeId,
    /// Height of the root page above the leaves.
    pub level: u8,
    pub pointer: PagePointer,
    pub entry_count: u64,
}

/// The durable state of all trees: what a checkpoint leaves for the root slot. Trees without entries are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots {
    /// The checkpoint that these roots belong to; 0 before the first.
    pub generation: u64,
    /// In ascending order of tree.
    pub trees: Vec<TreeRoot>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RootsHeaderBytes {
    generation: U64,
    tree_count: U32,
    reserved: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TreeRootBytes {
    tree: u8,
    level: u8,
    reserved: U16,
    checksum: U32,
    address: U64,
    generation: U64,
    entry_count: U64,
}

const _: () = assert!(size_of::<RootsHeaderBytes>() == 16);
const _: () = assert!(size_of::<TreeRootBytes>() == 32);

impl Roots {
    /// The longest encoding.
    pub const BYTES_MAX: usize = 16 + 32 * TREE_COUNT_MAX;

    /// The bytes for the root slot, whose envelope checks them.
    pub fn encode(&self) -> Vec<u8> {
        let header = RootsHeaderBytes {
            generation: U64::new(self.generation),
            tree_count: U32::new(self.trees.len() as u32),
            reserved: U32::ZERO,
        };
        let mut bytes = header.as_bytes().to_vec();
        for root in &self.trees {
            let entry = TreeRootBytes {
                tree: root.tree.0,
                level: root.level,
                reserved: U16::ZERO,
                checksum: U32::new(root.pointer.checksum),
                address: U64::new(root.pointer.address.0),
                generation: U64::new(root.pointer.generation),
                entry_count: U64::new(root.entry_count),
            };
            bytes.extend_from_slice(entry.as_bytes());
        }
        bytes
    }

    /// Reads what [`Roots::encode`] wrote, from the front of `bytes`; what follows is ignored. `None` where it makes no sense.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, rest) = RootsHeaderBytes::ref_from_prefix(bytes).ok()?;
        let count = header.tree_count.get() as usize;
        if count > TREE_COUNT_MAX || header.reserved.get() != 0 {
            return None;
        }
        let (entries, _) = <[TreeRootBytes]>::ref_from_prefix_with_elems(rest, count).ok()?;
        let ordered = entries.is_sorted_by(|a, b| a.tree < b.tree);
        let sensible = |e: &TreeRootBytes| {
            usize::from(e.tree) < TREE_COUNT_MAX
                && e.level <= LEVEL_MAX
                && e.reserved.get() == 0
                && e.generation.get() <= header.generation.get()
        };
        if !ordered || !entries.iter().all(sensible) {
            return None;
        }
        let trees = entries
            .iter()
            .map(|e| TreeRoot {
                tree: TreeId(e.tree),
                level: e.level,
                pointer: PagePointer {
                    address: MetadataAddress(e.address.get()),
                    generation: e.generation.get(),
                    checksum: e.checksum.get(),
                },
                entry_count: e.entry_count.get(),
            })
            .collect();
        Some(Self { generation: header.generation.get(), trees })
    }
}

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[
    layout!("page", PageHeader { generation, tree, level, entry_count, values_start, reserved }),
    layout!("leaf slot", LeafSlot { hi, lo, value_offset, value_len_bytes }),
    layout!("inner entry", InnerEntry { hi, lo, address, generation, checksum, reserved }),
    layout!("roots", RootsHeaderBytes { generation, tree_count, reserved }),
    layout!("tree root", TreeRootBytes { tree, level, reserved, checksum, address, generation, entry_count }),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    const VOLUME: VolumeId = VolumeId(0x0102_0304_0506_0708);

    fn identity(level: u8) -> PageIdentity {
        PageIdentity { volume: VOLUME, generation: 9, tree: TreeId(16), level }
    }

    fn pointer(checksum: u32) -> PagePointer {
        PagePointer { address: MetadataAddress(0x10_0000), generation: 9, checksum }
    }

    fn leaf() -> (Vec<u8>, PagePointer) {
        let mut page = vec![0; PAGE_BYTES];
        let (first, second) = (Key::new(1, 2), Key::new(1, 3));
        leaf_slots_mut(&mut page, 2).copy_from_slice(&[
            LeafSlot::new(first, PAGE_BYTES - 3, 3),
            LeafSlot::new(second, PAGE_BYTES - 7, 4),
        ]);
        page[PAGE_BYTES - 7..].copy_from_slice(b"fouronE");
        let checksum = seal_leaf(&mut page, identity(0), 2, PAGE_BYTES - 7);
        (page, pointer(checksum))
    }

    fn inner() -> (Vec<u8>, PagePointer) {
        let mut page = vec![0; PAGE_BYTES];
        let child = PagePointer { address: MetadataAddress(0x4000), generation: 8, checksum: 0xaabb_ccdd };
        let entries = [(Key::MIN, child), (Key::new(5, 6), child)];
        let checksum = encode_inner(&mut page, identity(1), entries.into_iter());
        (page, pointer(checksum))
    }

    /// Seals a page again after its bytes were changed, as a confused writer would.
    fn resealed(page: &mut [u8]) -> PagePointer {
        envelope::seal(page, Kind::Page, VERSION, VOLUME, PAGE_BYTES - ENVELOPE_BYTES);
        pointer(envelope::checksum_of(page).unwrap())
    }

    #[test]
    fn leaf_bytes_are_frozen() {
        let (page, pointer) = leaf();
        assert_eq!(pointer.checksum, LEAF_CHECKSUM);
        #[rustfmt::skip]
        assert_eq!(page[32..96], [
            9, 0, 0, 0, 0, 0, 0, 0, 16, 0, 2, 0, 0xf9, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0xfd, 0x3f, 3, 0,
            1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0xf9, 0x3f, 4, 0,
        ][..64]);
        assert_eq!(page[PAGE_BYTES - 7..], *b"fouronE");
        let DecodedPage::Leaf { slots, values_start } =
            decode(&page, pointer, VOLUME, TreeId(16), 0).unwrap()
        else {
            panic!("a leaf");
        };
        assert_eq!((slots.len(), values_start), (2, PAGE_BYTES - 7));
    }

    #[test]
    fn inner_bytes_are_frozen() {
        let (page, pointer) = inner();
        assert_eq!(pointer.checksum, INNER_CHECKSUM);
        #[rustfmt::skip]
        assert_eq!(page[40..136], [
            16, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0x40, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0xdd, 0xcc, 0xbb, 0xaa, 0, 0, 0, 0,
            5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
            0, 0x40, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0xdd, 0xcc, 0xbb, 0xaa, 0, 0, 0, 0,
        ]);
    }

    /// Of the whole page: freezes every byte of it.
    const LEAF_CHECKSUM: u32 = 0x5140_cd01;
    const INNER_CHECKSUM: u32 = 0x3ed3_d4b0;

    #[test]
    fn roots_bytes_are_frozen() {
        let root = TreeRoot { tree: TreeId(16), level: 1, pointer: pointer(0xaabb_ccdd), entry_count: 7 };
        let roots = Roots { generation: 9, trees: vec![root] };
        #[rustfmt::skip]
        assert_eq!(roots.encode(), [
            9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
            16, 1, 0, 0, 0xdd, 0xcc, 0xbb, 0xaa, 0, 0, 0x10, 0, 0, 0, 0, 0,
            9, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        ]);
        assert_eq!(Roots::decode(&roots.encode()), Some(roots));
    }

    #[test]
    fn what_is_wrong_with_a_page_is_named() {
        let (mut page, pointer) = leaf();
        let wrong = |page: &[u8], pointer, level| {
            decode(page, pointer, VOLUME, TreeId(16), level).map(|_| ()).unwrap_err()
        };
        let other = PagePointer { checksum: 1, ..pointer };
        assert!(matches!(wrong(&page, other, 0), PageFault::Checksum { expected: 1, .. }));
        let newer = PagePointer { generation: 10, ..pointer };
        assert_eq!(wrong(&page, newer, 0), PageFault::Generation { expected: 10, found: 9 });
        assert_eq!(wrong(&page, pointer, 1), PageFault::Place { tree: 16, level: 0 });
        assert_eq!(wrong(&page[1..], pointer, 0), PageFault::Length(PAGE_BYTES - 1));
        // Keys in the wrong order, then a value that leaves the page.
        page[PAGE_HEADER_BYTES] = 2;
        let pointer = resealed(&mut page);
        assert_eq!(wrong(&page, pointer, 0), PageFault::Order);
        page[PAGE_HEADER_BYTES] = 1;
        page[PAGE_HEADER_BYTES + 18] = 4;
        let pointer = resealed(&mut page);
        assert_eq!(wrong(&page, pointer, 0), PageFault::Bounds);
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(
            changes in proptest::collection::vec((ENVELOPE_BYTES..200_usize, any::<u8>()), 0..12),
            random in proptest::collection::vec(any::<u8>(), 0..200),
            is_leaf in any::<bool>(),
        ) {
            let (mut page, _) = if is_leaf { leaf() } else { inner() };
            for (offset, byte) in changes {
                page[offset] = byte;
            }
            let pointer = resealed(&mut page);
            for level in [0, 1] {
                if let Ok(DecodedPage::Leaf { slots, .. }) = decode(&page, pointer, VOLUME, TreeId(16), level) {
                    for slot in slots {
                        let _ = &page[slot.value_range()];
                    }
                }
                assert!(decode(&random, pointer, VOLUME, TreeId(16), level).is_err());
            }
            if let Some(roots) = Roots::decode(&random) {
                assert_eq!(Roots::decode(&roots.encode()), Some(roots));
            }
        }
    }
}
