//! Pages of runs: sorted items, a column for each of their numbers.
//!
//! A page is [`PAGE_BYTES`] long: envelope, header, columns, ends of the items' bytes where these differ in length, a gap of zeros, and the items'
//! bytes, packed at the end of the page in the order of the items. A column holds, for each item, how much its number exceeds the least of the page, in as
//! few bytes as the largest such difference needs: none where all are equal.
//!
//! The pages of a table are its *leaves* (level 0) and its *index* (level 1 and up), whose items of kind [`ItemKind::Child`] lead to the pages below: the keys and epoch of
//! the first item there, the number of the page in the table, and its checksum.

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::envelope::{self, ENVELOPE_BYTES, EnvelopeError, Kind};
use super::layout::{Layout, layout};
use super::map::RUN_BLOCKS_MAX;
use super::page::{PAGE_BYTES, PageFault, PagePointer};
use crate::address::VolumeId;
use crate::volume::{TreeId, VALUE_BYTES_MAX};

const VERSION: u16 = 1;

/// Columns, in their order: hi, lo, last less lo, epoch, kind, number.
const COLUMNS: usize = 6;
const HI: usize = 0;
const LO: usize = 1;
const SPAN: usize = 2;
const EPOCH: usize = 3;
const KIND: usize = 4;
const NUMBER: usize = 5;

/// What an item takes in a page beside its bytes, at most: full columns, and the end of its bytes.
pub const ITEM_BYTES_MAX: usize = COLUMNS * size_of::<u64>() + 2;

/// `item_bytes` where items have bytes of different lengths, whose ends follow the columns.
const LISTED: u16 = u16::MAX;

/// What follows the envelope.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RunHeader {
    /// The table that the page is of: tables are numbered in sequence.
    table: U64,
    tree: u8,
    level: u8,
    item_count: U16,
    /// Offset in the page of the first item's bytes; the length of a page where there are none.
    bytes_start: U16,
    /// Length of the bytes of every item, or [`LISTED`].
    item_bytes: U16,
    /// The least number of each column.
    bases: [U64; COLUMNS],
    /// Bytes of a number of each column.
    widths: [u8; COLUMNS],
    reserved: [u8; 2],
}

const _: () = assert!(size_of::<RunHeader>() == 72);

/// Envelope and header.
const HEADER_BYTES: usize = ENVELOPE_BYTES + size_of::<RunHeader>();

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[layout!(
    "run page",
    RunHeader { table, tree, level, item_count, bytes_start, item_bytes, bases, widths, reserved }
)];

/// What an item says of its keys. The numbers are the format and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ItemKind {
    /// The bytes are the value.
    Put = 1,
    /// Nothing is here, whatever older items say.
    Erase = 2,
    /// Logical blocks lie at middle addresses from the number on.
    Map = 3,
    /// The number, signed, is added.
    Add = 4,
    /// Middle addresses lie at physical blocks from the number on, with one reference each. The bytes are their checksums.
    Birth = 5,
    /// As [`ItemKind::Birth`]; four bytes before the checksums count the references beyond the first.
    SharedBirth = 6,
    /// The number, signed, is added to the references.
    Refer = 7,
    /// Who still lies at the place in the first eight bytes lies at physical blocks from the number on; the other eight are signed and added to
    /// the references.
    Move = 8,
    /// Of an index: a page of the table.
    Child = 9,
}

impl ItemKind {
    const ALL: [Self; 9] = [
        Self::Put,
        Self::Erase,
        Self::Map,
        Self::Add,
        Self::Birth,
        Self::SharedBirth,
        Self::Refer,
        Self::Move,
        Self::Child,
    ];

    fn from_number(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
    }

    /// Whether the numbers of a range ascend with its keys, instead of being the same for all.
    pub const fn ascends(self) -> bool {
        matches!(self, Self::Map | Self::Birth | Self::SharedBirth | Self::Move)
    }
}

/// Bytes of a move.
pub const MOVE_BYTES: usize = 16;
/// Bytes of a shared birth before its checksums.
pub const SHARED_HEAD_BYTES: usize = 4;

/// What a run says of the keys `lo..=last` under `hi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunItem<'a> {
    pub hi: u64,
    pub lo: u64,
    pub last: u64,
    /// Of the snapshots' intervals, the one that it was written in.
    pub epoch: u32,
    pub kind: ItemKind,
    pub number: u64,
    pub bytes: &'a [u8],
}

impl RunItem<'_> {
    /// What is wrong with it, if anything: decoded items have passed this.
    fn fault(&self) -> Option<PageFault> {
        let Some(span) = self.last.checked_sub(self.lo) else { return Some(PageFault::Order) };
        if self.kind.ascends() && self.number.checked_add(span).is_none() {
            return Some(PageFault::Bounds);
        }
        let blocks = span.saturating_add(1);
        let of_blocks =
            |head: usize| blocks <= RUN_BLOCKS_MAX && self.bytes.len() == head + 4 * blocks as usize;
        let fits = match self.kind {
            ItemKind::Put => span == 0 && self.bytes.len() <= VALUE_BYTES_MAX,
            ItemKind::Map => blocks <= RUN_BLOCKS_MAX && self.bytes.is_empty(),
            ItemKind::Erase | ItemKind::Add | ItemKind::Refer => self.bytes.is_empty(),
            ItemKind::Birth => of_blocks(0),
            ItemKind::SharedBirth => of_blocks(SHARED_HEAD_BYTES),
            ItemKind::Move => self.bytes.len() == MOVE_BYTES,
            ItemKind::Child => span == 0 && self.bytes.len() == 4,
        };
        (!fits).then_some(PageFault::Bounds)
    }

    fn numbers(&self) -> [u64; COLUMNS] {
        [self.hi, self.lo, self.last - self.lo, self.epoch.into(), self.kind as u64, self.number]
    }

    /// Whether `next` may follow in a run: it covers higher keys, or the same with an earlier epoch.
    pub fn precedes(&self, next: &RunItem<'_>) -> bool {
        if (self.hi, self.lo) == (next.hi, next.lo) {
            self.last == next.last && self.epoch > next.epoch
        } else {
            self.hi < next.hi || (self.hi == next.hi && self.last < next.lo)
        }
    }
}

/// What a page says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunIdentity {
    pub volume: VolumeId,
    /// The number of its table: the generation of every pointer to the page.
    pub table: u64,
    pub tree: TreeId,
    /// Height above the leaves.
    pub level: u8,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    least: u64,
    most: u64,
}

impl Range {
    const EMPTY: Self = Self { least: u64::MAX, most: 0 };

    fn with(self, number: u64) -> Self {
        Self { least: self.least.min(number), most: self.most.max(number) }
    }

    /// Bytes that a difference takes.
    fn width(self) -> usize {
        (u64::BITS - self.most.saturating_sub(self.least).leading_zeros()).div_ceil(8) as usize
    }
}

/// Gathers the items of a page.
pub struct RunPageBuilder {
    columns: [Vec<u64>; COLUMNS],
    ranges: [Range; COLUMNS],
    bytes: Vec<u8>,
    /// Of each item's bytes.
    ends: Vec<u16>,
    /// The length of every item's bytes, as long as they are alike.
    alike: Option<usize>,
}

impl Default for RunPageBuilder {
    fn default() -> Self {
        Self {
            columns: Default::default(),
            ranges: [Range::EMPTY; COLUMNS],
            bytes: Vec::new(),
            ends: Vec::new(),
            alike: None,
        }
    }
}

impl RunPageBuilder {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Takes an item that comes after all before it, see [`RunItem::precedes`]; `false` where the page has no room for it. An empty page takes every item.
    pub fn push(&mut self, item: &RunItem<'_>) -> bool {
        debug_assert!(item.fault().is_none(), "{item:?}");
        let numbers = item.numbers();
        let mut ranges = self.ranges;
        for (range, number) in ranges.iter_mut().zip(numbers) {
            *range = range.with(number);
        }
        let count = self.len() + 1;
        let alike = match self.alike {
            _ if self.is_empty() => Some(item.bytes.len()),
            alike => alike.filter(|len| *len == item.bytes.len()),
        };
        let columns_end = HEADER_BYTES + count * ranges.iter().map(|range| range.width()).sum::<usize>();
        let ends = if alike.is_some() { 0 } else { 2 * count };
        let end = columns_end + (ends + self.bytes.len() + item.bytes.len()).max(COLUMN_SLACK_BYTES);
        if end > PAGE_BYTES || count > usize::from(u16::MAX) {
            return false;
        }
        self.ranges = ranges;
        self.alike = alike;
        for (column, number) in self.columns.iter_mut().zip(numbers) {
            column.push(number);
        }
        self.bytes.extend_from_slice(item.bytes);
        self.ends.push(self.bytes.len() as u16);
        true
    }

    /// Fills a zeroed page with what was gathered, and begins anew. Returns the checksum.
    pub fn seal(&mut self, page: &mut [u8], identity: RunIdentity) -> u32 {
        assert!(page.len() == PAGE_BYTES && !self.is_empty());
        let bytes_start = PAGE_BYTES - self.bytes.len();
        let header = RunHeader {
            table: U64::new(identity.table),
            tree: identity.tree.0,
            level: identity.level,
            item_count: U16::new(self.len() as u16),
            bytes_start: U16::new(bytes_start as u16),
            item_bytes: U16::new(self.alike.map_or(LISTED, |len_bytes| len_bytes as u16)),
            bases: self.ranges.map(|range| U64::new(range.least)),
            widths: self.ranges.map(|range| range.width() as u8),
            reserved: [0; 2],
        };
        page[ENVELOPE_BYTES..HEADER_BYTES].copy_from_slice(header.as_bytes());
        let mut at = HEADER_BYTES;
        for (column, range) in self.columns.iter().zip(self.ranges) {
            let width = range.width();
            for number in column {
                page[at..at + width].copy_from_slice(&(number - range.least).to_le_bytes()[..width]);
                at += width;
            }
        }
        if self.alike.is_none() {
            for end in &self.ends {
                page[at..at + 2].copy_from_slice(&end.to_le_bytes());
                at += 2;
            }
        }
        page[bytes_start..].copy_from_slice(&self.bytes);
        envelope::seal(page, Kind::RunPage, VERSION, identity.volume, PAGE_BYTES - ENVELOPE_BYTES);
        self.clear();
        match envelope::checksum_of(page) {
            Some(checksum) => checksum,
            None => unreachable!("a page is longer than its envelope"),
        }
    }

    fn clear(&mut self) {
        self.columns.iter_mut().for_each(Vec::clear);
        self.ranges = [Range::EMPTY; COLUMNS];
        self.bytes.clear();
        self.ends.clear();
        self.alike = None;
    }
}

/// A number is read as eight bytes, of which those behind its own are masked: so many follow every column.
const COLUMN_SLACK_BYTES: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Column {
    base: u64,
    start: usize,
    width: usize,
    mask: u64,
}

impl Column {
    #[inline]
    fn get(&self, page: &[u8], index: usize) -> u64 {
        if self.width == 0 {
            return self.base;
        }
        let at = self.start + index * self.width;
        let bytes: [u8; 8] = match page[at..].first_chunk() {
            Some(bytes) => *bytes,
            None => unreachable!("columns end eight bytes before the page"),
        };
        self.base.wrapping_add(u64::from_le_bytes(bytes) & self.mask)
    }
}

/// Where things lie in a page that was verified: cheap to copy, to be used with that page.
#[derive(Clone, Copy, Debug)]
pub struct RunPage {
    count: usize,
    columns: [Column; COLUMNS],
    /// Length of every item's bytes; `None` where the ends are listed.
    alike: Option<usize>,
    ends_start: usize,
    bytes_start: usize,
}

/// Whether these bytes are the page that the pointer means: checksum, table, volume. [`RunPage::decode`] checks the rest.
pub fn is_run_page(page: &[u8], pointer: PagePointer, volume: VolumeId) -> bool {
    identify(page, pointer, volume).is_ok()
}

fn identify(page: &[u8], pointer: PagePointer, volume: VolumeId) -> Result<&RunHeader, PageFault> {
    if page.len() != PAGE_BYTES {
        return Err(PageFault::Length(page.len()));
    }
    let opened = envelope::open(page, Kind::RunPage, VERSION, Some(volume))?;
    let Ok((header, _)) = RunHeader::ref_from_prefix(opened.body) else { return Err(PageFault::Bounds) };
    if opened.body.len() != PAGE_BYTES - ENVELOPE_BYTES {
        return Err(PageFault::Length(opened.body.len()));
    }
    if header.reserved != [0; 2] {
        return Err(EnvelopeError::ReservedNotZero.into());
    }
    if header.table.get() != pointer.generation {
        return Err(PageFault::Generation { expected: pointer.generation, found: header.table.get() });
    }
    match envelope::checksum_of(page) {
        Some(found) if found == pointer.checksum => Ok(header),
        found => Err(PageFault::Checksum { expected: pointer.checksum, found: found.unwrap_or_default() }),
    }
}

impl RunPage {
    /// Checks a page as it came from a device against the pointer that led to it, and every item in it.
    pub fn decode(
        page: &[u8],
        pointer: PagePointer,
        volume: VolumeId,
        tree: TreeId,
        level: u8,
    ) -> Result<Self, PageFault> {
        let header = identify(page, pointer, volume)?;
        if header.tree != tree.0 || header.level != level {
            return Err(PageFault::Place { tree: header.tree, level: header.level });
        }
        let found = Self::locate(header).ok_or(PageFault::Bounds)?;
        found.check_items(page, level)?;
        Ok(found)
    }

    /// `None` where parts overlap or leave the page.
    fn locate(header: &RunHeader) -> Option<Self> {
        let count = usize::from(header.item_count.get());
        let bytes_start = match usize::from(header.bytes_start.get()) {
            start if start <= PAGE_BYTES => start,
            _ => return None,
        };
        let mut start = HEADER_BYTES;
        let mut columns = [Column { base: 0, start: 0, width: 0, mask: 0 }; COLUMNS];
        for ((column, base), width) in columns.iter_mut().zip(header.bases).zip(header.widths) {
            let width = usize::from(width);
            if width > 8 {
                return None;
            }
            let mask = if width == 0 { 0 } else { u64::MAX >> (64 - 8 * width) };
            *column = Column { base: base.get(), start, width, mask };
            start += count * width;
        }
        let alike = (header.item_bytes.get() != LISTED).then(|| usize::from(header.item_bytes.get()));
        let ends_bytes = if alike.is_some() { 0 } else { 2 * count };
        let bytes_len = PAGE_BYTES - bytes_start;
        let fits = count > 0
            && start + COLUMN_SLACK_BYTES <= PAGE_BYTES
            && start + ends_bytes <= bytes_start
            && alike.is_none_or(|len_bytes| len_bytes * count == bytes_len);
        fits.then_some(Self { count, columns, alike, ends_start: start, bytes_start })
    }

    fn check_items(&self, page: &[u8], level: u8) -> Result<(), PageFault> {
        if self.alike.is_none() {
            let mut previous = 0;
            for index in 0..self.count {
                let end = self.listed_end(page, index);
                if end < previous {
                    return Err(PageFault::Bounds);
                }
                previous = end;
            }
            if self.bytes_start + previous != PAGE_BYTES {
                return Err(PageFault::Bounds);
            }
        }
        let mut previous: Option<RunItem<'_>> = None;
        for index in 0..self.count {
            let item = self.checked_item(page, index)?;
            if (item.kind == ItemKind::Child) != (level > 0) {
                return Err(PageFault::Bounds);
            }
            if previous.is_some_and(|previous| !previous.precedes(&item)) {
                return Err(PageFault::Order);
            }
            previous = Some(item);
        }
        Ok(())
    }

    fn checked_item<'a>(&self, page: &'a [u8], index: usize) -> Result<RunItem<'a>, PageFault> {
        let mut numbers = [0; COLUMNS];
        for (number, column) in numbers.iter_mut().zip(&self.columns) {
            *number = column.get(page, index);
            if *number < column.base {
                return Err(PageFault::Bounds);
            }
        }
        let item = RunItem {
            hi: numbers[HI],
            lo: numbers[LO],
            last: numbers[LO].checked_add(numbers[SPAN]).ok_or(PageFault::Bounds)?,
            epoch: u32::try_from(numbers[EPOCH]).map_err(|_| PageFault::Bounds)?,
            kind: ItemKind::from_number(numbers[KIND]).ok_or(PageFault::Bounds)?,
            number: numbers[NUMBER],
            bytes: self.bytes(page, index),
        };
        item.fault().map_or(Ok(item), Err)
    }

    fn listed_end(&self, page: &[u8], index: usize) -> usize {
        let at = self.ends_start + 2 * index;
        usize::from(u16::from_le_bytes([page[at], page[at + 1]]))
    }

    #[inline]
    fn bytes<'a>(&self, page: &'a [u8], index: usize) -> &'a [u8] {
        let (start, end) = match self.alike {
            Some(len_bytes) => (index * len_bytes, (index + 1) * len_bytes),
            None => {
                let start = if index == 0 { 0 } else { self.listed_end(page, index - 1) };
                (start, self.listed_end(page, index))
            }
        };
        &page[self.bytes_start + start..self.bytes_start + end]
    }

    /// Items of the page; there is one at least.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.count
    }

    #[inline]
    pub fn item<'a>(&self, page: &'a [u8], index: usize) -> RunItem<'a> {
        let lo = self.columns[LO].get(page, index);
        let kind = match ItemKind::from_number(self.columns[KIND].get(page, index)) {
            Some(kind) => kind,
            None => unreachable!("kinds were checked when the page was decoded"),
        };
        RunItem {
            hi: self.columns[HI].get(page, index),
            lo,
            last: lo + self.columns[SPAN].get(page, index),
            epoch: self.columns[EPOCH].get(page, index) as u32,
            kind,
            number: self.columns[NUMBER].get(page, index),
            bytes: self.bytes(page, index),
        }
    }

    /// How many items begin before `(hi, lo)`, or there in an epoch later than `epoch`: the place of the first other.
    #[inline]
    pub fn lower_bound(&self, page: &[u8], hi: u64, lo: u64, epoch: u32) -> usize {
        let is_before = |index: usize| {
            let key = (self.columns[HI].get(page, index), self.columns[LO].get(page, index));
            key < (hi, lo) || (key == (hi, lo) && self.columns[EPOCH].get(page, index) > u64::from(epoch))
        };
        let (mut from, mut to) = (0, self.count);
        while from < to {
            let middle = from + (to - from) / 2;
            if is_before(middle) {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        from
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::MetadataAddress;

    const VOLUME: VolumeId = VolumeId(7);
    const TREE: TreeId = TreeId(1);
    const IDENTITY: RunIdentity = RunIdentity { volume: VOLUME, table: 9, tree: TREE, level: 0 };

    fn sealed(items: &[RunItem<'_>]) -> (Vec<u8>, PagePointer) {
        let mut builder = RunPageBuilder::default();
        for item in items {
            assert!(builder.push(item), "{item:?}");
        }
        let mut page = vec![0; PAGE_BYTES];
        let checksum = builder.seal(&mut page, IDENTITY);
        (page, PagePointer { address: MetadataAddress(0), generation: 9, checksum })
    }

    fn put(hi: u64, lo: u64, bytes: &[u8]) -> RunItem<'_> {
        RunItem { hi, lo, last: lo, epoch: 1, kind: ItemKind::Put, number: 0, bytes }
    }

    fn map(lo: u64, len: u64, epoch: u32, number: u64) -> RunItem<'static> {
        RunItem { hi: 5, lo, last: lo + len - 1, epoch, kind: ItemKind::Map, number, bytes: &[] }
    }

    /// Items as they may follow each other, of every kind but children.
    fn any_items() -> impl Strategy<Value = Vec<(u64, u64, u8, u64, Vec<u8>)>> {
        let step = prop_oneof![3 => 1..4_u64, 1 => any::<u32>().prop_map(u64::from)];
        let item = (step, 1..20_u64, 1..9_u8, any::<u64>(), prop::collection::vec(any::<u8>(), 0..300));
        prop::collection::vec(item, 1..60)
    }

    proptest! {
        #[test]
        fn items_come_back_as_they_were(drawn in any_items(), epoch in any::<u32>()) {
            let mut lo = 0_u64;
            let mut owned = Vec::new();
            for (step, len, kind, number, bytes) in drawn {
                lo += step;
                let kind = ItemKind::from_number(kind.into()).unwrap();
                let len = if kind == ItemKind::Put { 1 } else { len };
                let bytes_len = match kind {
                    ItemKind::Put => bytes.len(),
                    ItemKind::Birth => 4 * len as usize,
                    ItemKind::SharedBirth => SHARED_HEAD_BYTES + 4 * len as usize,
                    ItemKind::Move => MOVE_BYTES,
                    _ => 0,
                };
                let bytes: Vec<u8> = bytes.into_iter().chain(std::iter::repeat(0)).take(bytes_len).collect();
                owned.push((lo, lo + len - 1, kind, number >> 1, bytes));
                lo += len;
            }
            let items: Vec<_> = owned.iter().map(|(lo, last, kind, number, bytes)| {
                RunItem { hi: 1, lo: *lo, last: *last, epoch, kind: *kind, number: *number, bytes }
            }).collect();
            let mut builder = RunPageBuilder::default();
            let taken = items.iter().take_while(|item| builder.push(item)).count();
            prop_assert!(taken > 0);
            let mut page = vec![0; PAGE_BYTES];
            let checksum = builder.seal(&mut page, IDENTITY);
            prop_assert!(builder.is_empty());
            let pointer = PagePointer { address: MetadataAddress(0), generation: 9, checksum };
            let decoded = RunPage::decode(&page, pointer, VOLUME, TREE, 0).unwrap();
            let found: Vec<_> = (0..decoded.len()).map(|index| decoded.item(&page, index)).collect();
            prop_assert_eq!(&found[..], &items[..taken]);
        }

        #[test]
        fn bytes_that_were_changed_are_refused_or_make_sense(at in ENVELOPE_BYTES..HEADER_BYTES + 300, value in any::<u8>()) {
            let values = [b"one".as_slice(), b"", b"three"];
            let items: Vec<_> = (0..90).map(|index| put(index / 40, index % 40, values[index as usize % 3])).collect();
            let (mut page, mut pointer) = sealed(&items);
            page[at] = value;
            // Somebody who can compute checksums.
            envelope::seal(&mut page, Kind::RunPage, VERSION, VOLUME, PAGE_BYTES - ENVELOPE_BYTES);
            pointer.checksum = envelope::checksum_of(&page).unwrap();
            if let Ok(decoded) = RunPage::decode(&page, pointer, VOLUME, TREE, 0) {
                for index in 0..decoded.len() {
                    prop_assert!(decoded.item(&page, index).fault().is_none());
                }
            }
        }
    }

    #[test]
    fn mapped_blocks_take_a_few_bytes_each() {
        let mut builder = RunPageBuilder::default();
        let count = (0..)
            .take_while(|index| builder.push(&map(index * 3, 1, 7, (1 << 40) + (index * 7919) % 65_521)))
            .count();
        // Two bytes of each of key and number.
        assert!(count > 4000, "{count}");
    }

    #[test]
    fn a_page_knows_where_an_item_would_be() {
        let items = [map(10, 5, 9, 1), map(20, 5, 9, 2), map(20, 5, 4, 3), map(30, 1, 1, 4)];
        let (page, pointer) = sealed(&items);
        let page_of = RunPage::decode(&page, pointer, VOLUME, TREE, 0).unwrap();
        let at = |lo, epoch| page_of.lower_bound(&page, 5, lo, epoch);
        assert_eq!(
            [at(0, 9), at(10, 9), at(11, 9), at(20, 9), at(20, 8), at(20, 4), at(20, 3), at(31, 9)],
            [0, 0, 1, 1, 2, 2, 3, 4]
        );
        assert_eq!((page_of.lower_bound(&page, 4, 99, 0), page_of.lower_bound(&page, 6, 0, 0)), (0, 4));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let (page, pointer) = sealed(&[map(1, 1, 1, 1)]);
        let decode = |page: &[u8], pointer, tree, level| {
            RunPage::decode(page, pointer, VOLUME, tree, level).map(|_| ())
        };
        assert_eq!(decode(&page, pointer, TREE, 0), Ok(()));
        assert_eq!(decode(&page, pointer, TREE, 1), Err(PageFault::Place { tree: 1, level: 0 }));
        assert_eq!(decode(&page, pointer, TreeId(2), 0), Err(PageFault::Place { tree: 1, level: 0 }));
        let stale = PagePointer { generation: 8, ..pointer };
        assert_eq!(decode(&page, stale, TREE, 0), Err(PageFault::Generation { expected: 8, found: 9 }));
        let other = PagePointer { checksum: !pointer.checksum, ..pointer };
        assert!(matches!(decode(&page, other, TREE, 0), Err(PageFault::Checksum { .. })));
        assert_eq!(decode(&page[1..], pointer, TREE, 0), Err(PageFault::Length(PAGE_BYTES - 1)));
    }

    #[test]
    fn items_that_may_not_follow_each_other_are_refused() {
        for items in [
            [map(1, 1, 1, 1), map(1, 1, 1, 2)],
            [map(1, 1, 1, 1), map(1, 1, 2, 2)],
            [map(1, 2, 2, 1), map(1, 1, 1, 2)],
            [map(1, 5, 2, 1), map(3, 1, 1, 2)],
            [map(4, 1, 2, 1), map(3, 1, 1, 2)],
        ] {
            let (page, pointer) = sealed(&items);
            let found = RunPage::decode(&page, pointer, VOLUME, TREE, 0).map(|_| ());
            assert_eq!(found, Err(PageFault::Order), "{items:?}");
        }
    }
}
