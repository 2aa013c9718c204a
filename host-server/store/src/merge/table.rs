//! Tables: the pages that hold a run, or a part of one.
//!
//! A table has its leaves first, then one index page, then its filter. It is written once, and its pages are free when nothing names it any more.

use ringfort_engine::buffer::{Buffer, Slice};

use super::item::OwnedItem;
use crate::address::{MetadataAddress, VolumeId};
use crate::format::filter;
use crate::format::page::{PAGE_BYTES, PAGE_CAPACITY_BYTES, PagePointer};
use crate::format::run::{ITEM_BYTES_MAX, ItemKind, RunIdentity, RunItem, RunPageBuilder};
use crate::volume::{TreeId, VALUE_BYTES_MAX};

/// Leaves of a table: 4 MiB, so that merging one takes a bounded time, and few enough that one page indexes them.
pub const LEAVES_MAX: usize = 256;

/// Keys of ranges are in a filter by chunks of so many, in bits: a lookup asks for one chunk.
pub const CHUNK_BITS: u32 = 4;

/// Contiguous pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageExtent {
    pub start: MetadataAddress,
    pub page_count: u32,
}

/// A table on the devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Never used twice: every page of the table bears it.
    pub number: u64,
    pub tree: TreeId,
    pub extents: Vec<PageExtent>,
    pub leaf_count: u32,
    pub index_checksum: u32,
    pub filter_checksums: Vec<u32>,
    pub item_count: u64,
    /// The least key, hi and lo.
    pub first: (u64, u64),
    /// The greatest, hi and last.
    pub last: (u64, u64),
}

impl Table {
    pub fn page_count(&self) -> u32 {
        self.leaf_count + 1 + self.filter_checksums.len() as u32
    }

    /// Where the page of this number lies.
    pub fn address(&self, page: u32) -> Option<MetadataAddress> {
        let mut left = page;
        for extent in &self.extents {
            if left < extent.page_count {
                return Some(MetadataAddress(extent.start.0 + u64::from(left) * PAGE_BYTES as u64));
            }
            left -= extent.page_count;
        }
        None
    }

    fn pointer(&self, page: u32, checksum: u32) -> Option<PagePointer> {
        Some(PagePointer { address: self.address(page)?, generation: self.number, checksum })
    }

    pub fn index(&self) -> Option<PagePointer> {
        self.pointer(self.leaf_count, self.index_checksum)
    }

    pub fn leaf(&self, leaf: u32, checksum: u32) -> Option<PagePointer> {
        self.pointer(leaf, checksum)
    }

    /// Which page of the filter knows of this hash; `None` where there is no filter.
    pub fn filter_part(&self, hash: u64) -> Option<u32> {
        let count = self.filter_checksums.len();
        (count > 0).then(|| filter::page_of(hash, count) as u32)
    }

    /// A page of the filter.
    pub fn filter(&self, part: u32) -> Option<PagePointer> {
        let checksum = self.filter_checksums.get(part as usize)?;
        self.pointer(self.leaf_count + 1 + part, *checksum)
    }
}

/// The hashes under which a filter knows an item: of the chunks of its keys, or of the key itself.
fn filter_hashes(item: &RunItem<'_>, by_chunks: bool) -> impl Iterator<Item = u64> {
    let bits = if by_chunks { CHUNK_BITS } else { 0 };
    (item.lo >> bits..=item.last >> bits).map({
        let hi = item.hi;
        move |chunk| filter::hash(hi, chunk)
    })
}

/// The hash to ask a filter for.
pub fn filter_hash(hi: u64, lo: u64, by_chunks: bool) -> u64 {
    filter::hash(hi, if by_chunks { lo >> CHUNK_BITS } else { lo })
}

/// An item that covers more chunks than this is not in the filter by them: the table has none then.
const FILTERED_CHUNKS_MAX: u64 = 1024;

/// A filter that takes more than this part of the leaves is not worth its pages: items cover so much that there are few of them.
const FILTER_PART: usize = 4;

/// Pages of tables, at most, that hold items of so many encoded bytes, no more of them than leaves in a table.
pub fn page_bound(encoded_bytes: usize, table_leaves: usize) -> usize {
    // The next item does not fit into a leaf that is complete.
    let leaves = encoded_bytes.div_ceil(PAGE_CAPACITY_BYTES - VALUE_BYTES_MAX - ITEM_BYTES_MAX);
    leaves + leaves.div_ceil(table_leaves) * (table_bound(table_leaves) - table_leaves)
}

/// Pages of one table, at most: leaves, index and filter.
pub fn table_bound(leaves: usize) -> usize {
    leaves + 1 + (leaves / FILTER_PART).max(1)
}

/// Makes the pages of a table of items that come in order.
pub struct TableWriter {
    identity: RunIdentity,
    /// Whether keys are in the filter by chunks.
    by_chunks: bool,
    builder: RunPageBuilder,
    leaf_first: Option<(u64, u64, u32)>,
    pages: Vec<Slice>,
    index: Vec<OwnedItem>,
    /// `None` where an item covers too much to be in a filter.
    hashes: Option<Vec<u64>>,
    item_count: u64,
    first: Option<(u64, u64)>,
    last: (u64, u64),
}

impl TableWriter {
    pub fn new(volume: VolumeId, tree: TreeId, number: u64, by_chunks: bool) -> Self {
        Self {
            identity: RunIdentity { volume, table: number, tree, level: 0 },
            by_chunks,
            builder: RunPageBuilder::default(),
            leaf_first: None,
            pages: Vec::new(),
            index: Vec::new(),
            hashes: Some(Vec::new()),
            item_count: 0,
            first: None,
            last: (0, 0),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.item_count == 0
    }

    /// The table has its size; versions of the same keys may still follow.
    pub fn is_full(&self, leaves: usize) -> bool {
        self.pages.len() + 1 >= leaves
    }

    /// The keys of the last item, hi and last.
    pub fn last(&self) -> (u64, u64) {
        self.last
    }

    pub fn push(&mut self, item: &RunItem<'_>) {
        if !self.builder.push(item) {
            self.seal_leaf();
            assert!(self.builder.push(item), "an empty page takes every item");
        }
        self.leaf_first.get_or_insert((item.hi, item.lo, item.epoch));
        self.first.get_or_insert((item.hi, item.lo));
        self.last = (item.hi, item.last);
        self.item_count += 1;
        let chunks = (item.last >> CHUNK_BITS) - (item.lo >> CHUNK_BITS);
        match &mut self.hashes {
            Some(hashes) if chunks < FILTERED_CHUNKS_MAX => {
                // Neighbours share chunks, versions keys.
                let new = filter_hashes(item, self.by_chunks).filter(|hash| hashes.last() != Some(hash));
                let new: Vec<u64> = new.collect();
                hashes.extend(new);
            }
            hashes => *hashes = None,
        }
    }

    fn seal(&mut self, level: u8) -> (Slice, u32) {
        let mut page = Buffer::zeroed(PAGE_BYTES);
        let checksum = self.builder.seal(&mut page, RunIdentity { level, ..self.identity });
        (page.freeze(), checksum)
    }

    fn seal_leaf(&mut self) {
        let Some((hi, lo, epoch)) = self.leaf_first.take() else { return };
        let (page, checksum) = self.seal(0);
        let child = OwnedItem::plain(ItemKind::Child, hi, lo..=lo, epoch, self.pages.len() as u64);
        self.index.push(OwnedItem { bytes: checksum.to_le_bytes().to_vec().into(), ..child });
        self.pages.push(page);
    }

    /// All pages, in the order of their numbers, and the table that they make, without extents.
    pub fn finish(mut self) -> Option<(Table, Vec<Slice>)> {
        let first = self.first?;
        self.seal_leaf();
        let leaf_count = self.pages.len() as u32;
        for child in std::mem::take(&mut self.index) {
            assert!(self.builder.push(&child.as_run_item()), "one page indexes a table");
        }
        let (index, index_checksum) = self.seal(1);
        self.pages.push(index);
        let RunIdentity { volume, table: number, tree, .. } = self.identity;
        let filter_pages_max = (leaf_count as usize / FILTER_PART).max(1);
        let hashes = self.hashes.filter(|hashes| filter::page_count(hashes.len()) <= filter_pages_max);
        let filter = hashes.map(|hashes| filter::encode(&hashes, volume, number)).unwrap_or_default();
        let filter_checksums = filter.iter().map(|(_, checksum)| *checksum).collect();
        self.pages.extend(filter.iter().map(|(page, _)| Slice::copy_of(page)));
        let table = Table {
            number,
            tree,
            extents: Vec::new(),
            leaf_count,
            index_checksum,
            filter_checksums,
            item_count: self.item_count,
            first,
            last: self.last,
        };
        Some((table, self.pages))
    }
}

/// Addresses as extents.
pub fn extents_of(addresses: &[MetadataAddress]) -> Vec<PageExtent> {
    let mut extents: Vec<PageExtent> = Vec::new();
    for address in addresses {
        match extents.last_mut() {
            Some(extent)
                if extent.start.0 + u64::from(extent.page_count) * PAGE_BYTES as u64 == address.0 =>
            {
                extent.page_count += 1;
            }
            _ => extents.push(PageExtent { start: *address, page_count: 1 }),
        }
    }
    extents
}
