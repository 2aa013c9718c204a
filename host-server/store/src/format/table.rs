//! Entries of the catalogue that name the tables of the merge store.
//!
//! Key: tree and level (tree × 256 + level), number of the table. Extents of pages follow the fixed part, then the checksums of the filter's pages. Tables of level 0
//! with ascending numbers and ascending keys are one run; among those that share keys the higher number is the newer one.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::layout::{Layout, layout};

const VERSION: u8 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TableBytes {
    version: u8,
    reserved: u8,
    extent_count: U16,
    filter_pages: U16,
    leaf_count: U16,
    index_checksum: U32,
    reserved_too: U32,
    item_count: U64,
    /// Keys as hi and lo.
    first: [U64; 2],
    last: [U64; 2],
    from: [U64; 2],
    to: [U64; 2],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ExtentBytes {
    start: U64,
    page_count: U32,
}

const _: () = assert!(size_of::<TableBytes>() == 88);
const _: () = assert!(size_of::<ExtentBytes>() == 12);

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[
    layout!(
        "table",
        TableBytes {
            version,
            reserved,
            extent_count,
            filter_pages,
            leaf_count,
            index_checksum,
            reserved_too,
            item_count,
            first,
            last,
            from,
            to
        }
    ),
    layout!("extent", ExtentBytes { start, page_count }),
];

/// What the catalogue says of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// Addresses in the metadata region, with numbers of pages.
    pub extents: Vec<(u64, u32)>,
    pub filter_checksums: Vec<u32>,
    pub leaf_count: u16,
    pub index_checksum: u32,
    pub item_count: u64,
    /// The least and the greatest key of the table, hi and lo.
    pub first: (u64, u64),
    pub last: (u64, u64),
    /// The least and the greatest that still count.
    pub from: (u64, u64),
    pub to: (u64, u64),
}

impl TableEntry {
    pub fn encode(&self) -> Vec<u8> {
        let key = |(hi, lo): (u64, u64)| [U64::new(hi), U64::new(lo)];
        let head = TableBytes {
            version: VERSION,
            reserved: 0,
            extent_count: U16::new(self.extents.len() as u16),
            filter_pages: U16::new(self.filter_checksums.len() as u16),
            leaf_count: U16::new(self.leaf_count),
            index_checksum: U32::new(self.index_checksum),
            reserved_too: U32::ZERO,
            item_count: U64::new(self.item_count),
            first: key(self.first),
            last: key(self.last),
            from: key(self.from),
            to: key(self.to),
        };
        let mut bytes = head.as_bytes().to_vec();
        for (start, page_count) in &self.extents {
            let extent = ExtentBytes { start: U64::new(*start), page_count: U32::new(*page_count) };
            bytes.extend_from_slice(extent.as_bytes());
        }
        self.filter_checksums.iter().for_each(|checksum| bytes.extend_from_slice(&checksum.to_le_bytes()));
        bytes
    }

    /// `None` where the bytes make no sense.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = TableBytes::read_from_prefix(bytes).ok()?;
        if head.version != VERSION || head.reserved != 0 || head.reserved_too.get() != 0 {
            return None;
        }
        let extents_bytes = usize::from(head.extent_count.get()) * size_of::<ExtentBytes>();
        let (extents, filter) = rest.split_at_checked(extents_bytes)?;
        let (checksums, odd) = filter.as_chunks::<4>();
        if !odd.is_empty() || checksums.len() != usize::from(head.filter_pages.get()) {
            return None;
        }
        let key = |[hi, lo]: [U64; 2]| (hi.get(), lo.get());
        let extents = extents.chunks_exact(size_of::<ExtentBytes>()).filter_map(|bytes| {
            let extent = ExtentBytes::read_from_bytes(bytes).ok()?;
            Some((extent.start.get(), extent.page_count.get()))
        });
        let entry = Self {
            extents: extents.collect(),
            filter_checksums: checksums.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
            leaf_count: head.leaf_count.get(),
            index_checksum: head.index_checksum.get(),
            item_count: head.item_count.get(),
            first: key(head.first),
            last: key(head.last),
            from: key(head.from),
            to: key(head.to),
        };
        entry.makes_sense().then_some(entry)
    }

    fn makes_sense(&self) -> bool {
        let pages: u64 = self.extents.iter().map(|(_, count)| u64::from(*count)).sum();
        let wanted = u64::from(self.leaf_count) + 1 + self.filter_checksums.len() as u64;
        self.leaf_count > 0
            && pages == wanted
            && self.first <= self.from
            && self.from <= self.to
            && self.to <= self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> TableEntry {
        TableEntry {
            extents: vec![(1 << 20, 3), (3 << 20, 2)],
            filter_checksums: vec![7, 8],
            leaf_count: 2,
            index_checksum: 9,
            item_count: 10,
            first: (1, 2),
            last: (5, 6),
            from: (1, 3),
            to: (5, 5),
        }
    }

    #[test]
    fn entries_come_back() {
        assert_eq!(TableEntry::decode(&entry().encode()), Some(entry()));
    }

    #[test]
    fn entries_that_make_no_sense_are_refused() {
        let bytes = entry().encode();
        assert_eq!(TableEntry::decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(TableEntry::decode(&[bytes.clone(), vec![0]].concat()), None);
        for wrong in [
            TableEntry { leaf_count: 3, ..entry() },
            TableEntry { from: (0, 0), ..entry() },
            TableEntry { to: (6, 0), ..entry() },
            TableEntry { from: (5, 6), ..entry() },
        ] {
            assert_eq!(TableEntry::decode(&wrong.encode()), None, "{wrong:?}");
        }
        for at in [0, 1, 12] {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x80;
            assert_eq!(TableEntry::decode(&wrong), None, "byte {at}");
        }
    }
}
