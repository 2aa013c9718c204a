//! Pages of the key-value trees, and the list of tree roots.
//!
//! A page is [`PAGE_BYTES`] long: envelope and header, then entries in key order.
//!
//! * A *leaf* (level 0) has an array of [`LeafSlot`]s after the header; the values are packed at the end of the page,
//!   from `values_start` on. The gap between is zero.
//! * An *inner page* (level ≥ 1) has an array of [`InnerEntry`]s. Entry `i` leads to the keys from its own key up to the
//!   key of entry `i + 1`. The key of the first entry is zero.
//!
//! A pointer to a page carries its checksum and generation: a page whose newest write was lost still has a valid
//! checksum of its own, and is told by the pointer.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::envelope::{self, ENVELOPE_BYTES, EnvelopeError, Kind};
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
