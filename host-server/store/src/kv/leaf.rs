//! A leaf in memory: the very bytes of its page, but for the header.

use std::cmp::Ordering;
use std::ops::Range;

use crate::format::page::{
    LEAF_SLOT_BYTES, LeafSlot, PAGE_BYTES, PAGE_CAPACITY_BYTES, PAGE_HEADER_BYTES, leaf_slots, leaf_slots_mut,
};
use crate::volume::Key;

/// So many insertions in a row, each right after the last, are taken for a sequence: the page is then split where
/// the sequence stands, and the pages that it leaves behind stay full.
const SEQUENCE_MIN: usize = 8;

/// Invariants: slots are in key order; every value lies in `values_start..PAGE_BYTES` and none overlap; what lies
/// between the slots and `values_start` is zero where the values leave no gaps among them.
pub(super) struct Leaf {
    page: Box<[u8]>,
    count: usize,
    values_start: usize,
    /// Sum of the lengths of all values; less than what they span where some were removed or shortened.
    value_bytes: usize,
    /// Where the next insertion of a sequence would go, and how many there were.
    sequence_position: usize,
    sequence_len: usize,
}

impl Clone for Leaf {
    fn clone(&self) -> Self {
        Self { page: self.page.clone(), ..*self }
    }
}

impl Leaf {
    fn empty() -> Self {
        Self {
            page: vec![0; PAGE_BYTES].into_boxed_slice(),
            count: 0,
            values_start: PAGE_BYTES,
            value_bytes: 0,
            sequence_position: 0,
            sequence_len: 0,
        }
    }

    pub fn with_entry(key: Key, value: &[u8]) -> Self {
        let mut leaf = Self::empty();
        assert!(leaf.insert(0, key, value), "one value fits an empty leaf");
        leaf
    }

    /// Takes over a page that passed [`decode`](crate::format::page::decode).
    pub fn from_page(page: &[u8], count: usize, values_start: usize) -> Self {
        let mut leaf = Self {
            page: Box::from(page),
            count,
            values_start,
            value_bytes: PAGE_BYTES - values_start,
            ..Self::empty()
        };
        leaf.page[..PAGE_HEADER_BYTES].fill(0);
        leaf
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// What the entries take of [`PAGE_CAPACITY_BYTES`].
    pub fn used_bytes(&self) -> usize {
        self.count * LEAF_SLOT_BYTES + self.value_bytes
    }

    fn slots(&self) -> &[LeafSlot] {
        leaf_slots(&self.page, self.count)
    }

    pub fn key(&self, position: usize) -> Key {
        self.slots()[position].key()
    }

    pub fn value(&self, position: usize) -> &[u8] {
        &self.page[self.slots()[position].value_range()]
    }

    pub fn entry(&self, position: usize) -> (Key, &[u8]) {
        let slot = &self.slots()[position];
        (slot.key(), &self.page[slot.value_range()])
    }

    /// The position of a key, or the position where it belongs.
    #[inline]
    pub fn find(&self, key: Key) -> Result<usize, usize> {
        let slots = self.slots();
        let position = slots.partition_point(|slot| slot.key() < key);
        match slots.get(position).map(|slot| slot.key().cmp(&key)) {
            Some(Ordering::Equal) => Ok(position),
            _ => Err(position),
        }
    }

    /// Adds an entry at its position. `false`, and nothing changed, where the page has no room.
    pub fn insert(&mut self, position: usize, key: Key, value: &[u8]) -> bool {
        if self.used_bytes() + LEAF_SLOT_BYTES + value.len() > PAGE_CAPACITY_BYTES {
            return false;
        }
        if self.gap_bytes() < LEAF_SLOT_BYTES + value.len() {
            self.compact();
        }
        let start = PAGE_HEADER_BYTES + position * LEAF_SLOT_BYTES;
        let end = PAGE_HEADER_BYTES + self.count * LEAF_SLOT_BYTES;
        self.page.copy_within(start..end, start + LEAF_SLOT_BYTES);
        self.count += 1;
        self.place(position, key, value);
        self.value_bytes += value.len();
        self.sequence_len = if position == self.sequence_position { self.sequence_len + 1 } else { 1 };
        self.sequence_position = position + 1;
        true
    }

    /// Changes a value. `false`, and nothing changed, where the page has no room.
    pub fn replace(&mut self, position: usize, value: &[u8]) -> bool {
        let slot = self.slots()[position];
        let old_len = slot.value_len_bytes();
        if self.used_bytes() - old_len + value.len() > PAGE_CAPACITY_BYTES {
            return false;
        }
        self.value_bytes -= old_len;
        if value.len() <= old_len {
            let offset = slot.value_offset();
            self.page[offset..offset + value.len()].copy_from_slice(value);
            leaf_slots_mut(&mut self.page, self.count)[position] =
                LeafSlot::new(slot.key(), offset, value.len());
        } else {
            leaf_slots_mut(&mut self.page, self.count)[position] = LeafSlot::new(slot.key(), PAGE_BYTES, 0);
            if self.gap_bytes() < value.len() {
                self.compact();
            }
            self.place(position, slot.key(), value);
        }
        self.value_bytes += value.len();
        true
    }

    /// Removes the entries at these positions.
    pub fn remove(&mut self, positions: Range<usize>) {
        let removed_bytes: usize =
            self.slots()[positions.clone()].iter().map(LeafSlot::value_len_bytes).sum();
        let start = PAGE_HEADER_BYTES + positions.start * LEAF_SLOT_BYTES;
        let from = PAGE_HEADER_BYTES + positions.end * LEAF_SLOT_BYTES;
        let end = PAGE_HEADER_BYTES + self.count * LEAF_SLOT_BYTES;
        self.page.copy_within(from..end, start);
        self.page[end - (from - start)..end].fill(0);
        self.count -= positions.len();
        self.value_bytes -= removed_bytes;
        self.sequence_len = 0;
    }

    /// Divides a full leaf and adds an entry: `self` keeps the lower keys, the result has the higher ones.
    pub fn split_insert(&mut self, position: usize, key: Key, value: &[u8]) -> Leaf {
        let sequence_len = if position == self.sequence_position { self.sequence_len } else { 0 };
        let keep = self.split_point(position, LEAF_SLOT_BYTES + value.len(), sequence_len);
        // `keep` counts the new entry; what moves are old entries.
        let moved_from = if position < keep { keep - 1 } else { keep };
        let mut right = Self::empty();
        for moved in moved_from..self.count {
            let (key, value) = self.entry(moved);
            assert!(right.insert(moved - moved_from, key, value), "part of a leaf fits a leaf");
        }
        right.sequence_len = 0;
        if moved_from < self.count {
            self.remove(moved_from..self.count);
        }
        let fits = if position < keep {
            let fits = self.insert(position, key, value);
            // The sequence goes on in the lower leaf.
            self.sequence_len = sequence_len;
            fits
        } else {
            let fits = right.insert(position - keep, key, value);
            self.sequence_len = 0;
            if right.count == 1 {
                right.sequence_len = sequence_len;
            }
            fits
        };
        assert!(fits, "the split makes room");
        right
    }

    /// How many entries, the new one included, the lower leaf keeps.
    fn split_point(&self, position: usize, new_bytes: usize, sequence_len: usize) -> usize {
        let total_count = self.count + 1;
        let bytes_of = |index: usize| match index.cmp(&position) {
            Ordering::Less => LEAF_SLOT_BYTES + self.slots()[index].value_len_bytes(),
            Ordering::Equal => new_bytes,
            Ordering::Greater => LEAF_SLOT_BYTES + self.slots()[index - 1].value_len_bytes(),
        };
        if sequence_len >= SEQUENCE_MIN {
            if position == self.count {
                return position;
            }
            // A lower leaf less than half full would let many short sequences leave pages nearly empty.
            let lower_bytes: usize = (0..=position).map(bytes_of).sum();
            if (PAGE_CAPACITY_BYTES / 2..=PAGE_CAPACITY_BYTES).contains(&lower_bytes) {
                return position + 1;
            }
        }
        let half_bytes = (self.used_bytes() + new_bytes) / 2;
        let mut lower_bytes = 0;
        for index in 0..total_count - 1 {
            let bytes = bytes_of(index);
            // The entry across the middle goes where it unbalances less.
            if lower_bytes + bytes > half_bytes {
                return if index == 0 || lower_bytes + bytes / 2 <= half_bytes { index + 1 } else { index };
            }
            lower_bytes += bytes;
        }
        total_count - 1
    }

    /// Appends all entries of a leaf whose keys are higher; the caller knows that they fit.
    pub fn append(&mut self, higher: &Leaf) {
        for position in 0..higher.count {
            let (key, value) = higher.entry(position);
            assert!(self.insert(self.count, key, value), "merged leaves fit one page");
        }
        self.sequence_len = 0;
    }

    /// Writes the page without its header into zeroed memory. Returns where the values start.
    pub fn copy_packed(&self, page: &mut [u8]) -> usize {
        if PAGE_BYTES - self.values_start == self.value_bytes {
            page.copy_from_slice(&self.page);
            return self.values_start;
        }
        let mut start = PAGE_BYTES;
        for (slot, packed) in self.slots().iter().zip(leaf_slots_mut(page, self.count)) {
            start -= slot.value_len_bytes();
            *packed = LeafSlot::new(slot.key(), start, slot.value_len_bytes());
        }
        for (position, slot) in self.slots().iter().enumerate() {
            let range = leaf_slots(page, self.count)[position].value_range();
            page[range].copy_from_slice(&self.page[slot.value_range()]);
        }
        start
    }

    fn gap_bytes(&self) -> usize {
        self.values_start - PAGE_HEADER_BYTES - self.count * LEAF_SLOT_BYTES
    }

    /// Writes a value into the gap and the slot that leads to it.
    fn place(&mut self, position: usize, key: Key, value: &[u8]) {
        self.values_start -= value.len();
        let range = self.values_start..self.values_start + value.len();
        leaf_slots_mut(&mut self.page, self.count)[position] = LeafSlot::new(key, range.start, value.len());
        self.page[range].copy_from_slice(value);
    }

    /// Closes the gaps that removed values left.
    fn compact(&mut self) {
        let mut page = vec![0; PAGE_BYTES].into_boxed_slice();
        self.values_start = self.copy_packed(&mut page);
        self.page = page;
    }
}
