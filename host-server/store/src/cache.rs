//! Blocks that were read lately, for those who read them again.
//!
//! They are found by middle address. Such an address names one content for ever, so nothing kept here can be out of date, whatever is written,
//! moved or freed meanwhile; a reader looks at the maps when it comes, as always. What is kept was verified when it was read.
//!
//! The clock algorithm (Corbató 1968): a hand goes round, takes the first block that nobody has read since it came by, and gives the
//! others another round.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};

use crate::address::MiddleAddress;

struct Kept {
    middle: MiddleAddress,
    data: Slice,
    /// Since the hand came by.
    was_read: bool,
}

#[derive(Default)]
struct Clock {
    blocks: Vec<Kept>,
    places: HashMap<MiddleAddress, usize>,
    hand: usize,
}

/// Reads that found their block, and blocks that were not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounters {
    pub hits: u64,
    pub misses: u64,
}

/// At most so many blocks, in memory of its own.
#[derive(Default)]
pub(crate) struct BlockCache {
    capacity_blocks: Cell<usize>,
    clock: RefCell<Clock>,
    counters: Cell<CacheCounters>,
}

impl BlockCache {
    /// To be called before anything is kept.
    pub fn set_capacity(&self, len_bytes: u64) {
        let blocks = usize::try_from(len_bytes / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        self.capacity_blocks.set(blocks);
    }

    pub fn is_on(&self) -> bool {
        self.capacity_blocks.get() > 0
    }

    pub fn counters(&self) -> CacheCounters {
        self.counters.get()
    }

    pub fn find(&self, middle: MiddleAddress) -> Option<Slice> {
        if !self.is_on() {
            return None;
        }
        let mut counters = self.counters.get();
        let mut clock = self.clock.borrow_mut();
        let place = clock.places.get(&middle).copied();
        let found = place.and_then(|place| clock.blocks.get_mut(place)).map(|kept| {
            kept.was_read = true;
            kept.data.clone()
        });
        match found {
            Some(_) => counters.hits += 1,
            None => counters.misses += 1,
        }
        self.counters.set(counters);
        found
    }

    /// Keeps copies of blocks with consecutive middle addresses. A copy, since a part of a long buffer would keep the whole of it.
    pub fn keep(&self, first: MiddleAddress, data: &Slice) {
        for (middle, block) in (first.0..).zip(data.chunks_exact(BLOCK_BYTES)) {
            self.keep_block(MiddleAddress(middle), block);
        }
    }

    fn keep_block(&self, middle: MiddleAddress, block: &[u8]) {
        let capacity = self.capacity_blocks.get();
        let mut clock = self.clock.borrow_mut();
        if capacity == 0 || clock.places.contains_key(&middle) {
            return;
        }
        let mut copy = Buffer::to_keep(BLOCK_BYTES);
        copy.copy_from_slice(block);
        let kept = Kept { middle, data: copy.freeze(), was_read: false };
        let place = clock.make_room(capacity);
        match clock.blocks.get_mut(place) {
            Some(old) => *old = kept,
            None => clock.blocks.push(kept),
        }
        clock.places.insert(middle, place);
    }
}

impl Clock {
    /// Where the next block goes: a new place, or that of a block that is forgotten.
    fn make_room(&mut self, capacity: usize) -> usize {
        if self.blocks.len() < capacity {
            return self.blocks.len();
        }
        loop {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.blocks.len();
            let Some(kept) = self.blocks.get_mut(place) else { return place };
            if !std::mem::take(&mut kept.was_read) {
                let forgotten = kept.middle;
                self.places.remove(&forgotten);
                return place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(value: u8) -> Slice {
        let mut buffer = Buffer::zeroed(BLOCK_BYTES);
        buffer.fill(value);
        buffer.freeze()
    }

    fn cache(blocks: u64) -> BlockCache {
        let cache = BlockCache::default();
        cache.set_capacity(blocks * BLOCK_BYTES as u64);
        cache
    }

    #[test]
    fn what_is_read_again_stays_and_the_bound_holds() {
        let cache = cache(4);
        for middle in 0..4 {
            cache.keep(MiddleAddress(middle), &block(middle as u8));
        }
        for middle in 4..100 {
            assert_eq!(cache.find(MiddleAddress(2)).map(|data| data[0]), Some(2));
            cache.keep(MiddleAddress(middle), &block(middle as u8));
            let clock = cache.clock.borrow();
            assert_eq!((clock.blocks.len(), clock.places.len()), (4, 4));
        }
        assert_eq!(cache.find(MiddleAddress(99)).map(|data| data[0]), Some(99));
        assert!(cache.find(MiddleAddress(0)).is_none());
        assert_eq!(cache.counters(), CacheCounters { hits: 97, misses: 1 });
    }

    #[test]
    fn a_run_is_kept_block_by_block_and_a_reader_keeps_what_it_was_given() {
        let cache = cache(2);
        let mut run = Buffer::zeroed(2 * BLOCK_BYTES);
        run[BLOCK_BYTES] = 7;
        cache.keep(MiddleAddress(10), &run.freeze());
        let held = cache.find(MiddleAddress(11)).unwrap();
        (20..30).for_each(|middle| cache.keep(MiddleAddress(middle), &block(1)));
        assert!(cache.find(MiddleAddress(11)).is_none());
        assert_eq!((held[0], held.len()), (7, BLOCK_BYTES));
    }

    #[test]
    fn a_cache_without_room_keeps_nothing() {
        let cache = BlockCache::default();
        cache.keep(MiddleAddress(1), &block(1));
        assert!(cache.find(MiddleAddress(1)).is_none());
        assert_eq!(cache.counters(), CacheCounters::default());
    }
}
