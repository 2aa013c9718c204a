//! Whether anything of the sample may stand at a place: a bitmap that answers "no" in a few nanoseconds.
//!
//! Sixty-four neighbouring blocks of an object share a word, at a hash of their place, with a bit for each block. So a run of
//! blocks asks few words, and one block asks one.

use std::ops::Range;

use super::sampler::mix;
use crate::address::ObjectId;
use crate::interval::{BranchId, Place};

/// Longer ranges are not asked about: looking them up in the sample costs less a block than asking.
const WORDS_ASKED_MAX: u64 = 16;
const BLOCKS_A_WORD: u64 = u64::BITS as u64;
/// Bits for each place that is expected: false answers are rarer than one in so many.
const BITS_A_PLACE: usize = 32;

#[derive(Clone, Debug)]
pub(super) struct PlaceFilter {
    words: Box<[u64]>,
    added: usize,
}

impl PlaceFilter {
    /// For so many places.
    pub fn new(places: usize) -> Self {
        let words = (places * BITS_A_PLACE / BLOCKS_A_WORD as usize).next_power_of_two();
        Self { words: vec![0; words].into(), added: 0 }
    }

    /// Places added since the filter was empty; those that have left the sample since are among them.
    pub fn added(&self) -> usize {
        self.added
    }

    pub fn add(&mut self, place: Place) {
        let block = place.block.0;
        let slot = self.slot(place.branch, place.object, block / BLOCKS_A_WORD);
        self.words[slot] |= 1 << (block % BLOCKS_A_WORD);
        self.added += 1;
    }

    /// Forgets all places, and takes these.
    pub fn refill(&mut self, places: impl Iterator<Item = Place>) {
        self.words.fill(0);
        self.added = 0;
        places.for_each(|place| self.add(place));
    }

    /// `false`: nothing stands there.
    pub fn may_hold(&self, branch: BranchId, object: ObjectId, blocks: &Range<u64>) -> bool {
        if blocks.is_empty() || self.added == 0 {
            return false;
        }
        let (first, last) = (blocks.start / BLOCKS_A_WORD, (blocks.end - 1) / BLOCKS_A_WORD);
        if last - first >= WORDS_ASKED_MAX {
            return true;
        }
        (first..=last).any(|group| {
            let bits = self.words[self.slot(branch, object, group)];
            bits & mask(group * BLOCKS_A_WORD, blocks) != 0
        })
    }

    fn slot(&self, branch: BranchId, object: ObjectId, group: u64) -> usize {
        let object = object.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = mix(object ^ u64::from(branch.0).rotate_left(40) ^ group);
        hash as usize & (self.words.len() - 1)
    }
}

/// The bits of those of the 64 blocks from `base` on that are in the range.
fn mask(base: u64, blocks: &Range<u64>) -> u64 {
    let from = blocks.start.saturating_sub(base);
    let until = (blocks.end - base).min(BLOCKS_A_WORD);
    (u64::MAX << from) & (u64::MAX >> (BLOCKS_A_WORD - until))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: ObjectId = ObjectId(7);
    const BRANCH: BranchId = BranchId(1);

    fn filter(blocks: &[u64]) -> PlaceFilter {
        let mut filter = PlaceFilter::new(1000);
        blocks.iter().for_each(|block| filter.add(Place::new(BRANCH, OBJECT, *block)));
        filter
    }

    #[test]
    fn what_was_added_is_found_by_every_range_that_covers_it() {
        let filter = filter(&[0, 63, 64, 1000, u64::MAX - 1]);
        for range in [0..1, 63..64, 0..u64::MAX, 60..66, 64..65, 900..1001, u64::MAX - 1..u64::MAX] {
            assert!(filter.may_hold(BRANCH, OBJECT, &range), "{range:?}");
        }
        for range in [1..63, 65..128, 0..0, 1001..1024] {
            assert!(!filter.may_hold(BRANCH, OBJECT, &range), "{range:?}");
        }
    }

    #[test]
    fn other_places_are_seldom_found() {
        let blocks: Vec<_> = (0..1000).map(|at| at * 997).collect();
        let filter = filter(&blocks);
        let found =
            (0..10_000).filter(|object| filter.may_hold(BRANCH, ObjectId(100 + object), &(5..6))).count();
        assert!(found < 10_000 / BITS_A_PLACE * 2, "{found} of 10,000");
        let found =
            (0..10_000).filter(|branch| filter.may_hold(BranchId(100 + branch), OBJECT, &(5..6))).count();
        assert!(found < 10_000 / BITS_A_PLACE * 2, "{found} of 10,000");
    }

    #[test]
    fn a_refilled_filter_has_forgotten_the_rest() {
        let mut filter = filter(&[5, 6]);
        filter.refill([Place::new(BRANCH, OBJECT, 6)].into_iter());
        assert_eq!(filter.added(), 1);
        assert!(!filter.may_hold(BRANCH, OBJECT, &(5..6)));
        assert!(filter.may_hold(BRANCH, OBJECT, &(6..7)));
    }
}
