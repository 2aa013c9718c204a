//! Which addresses are in the sample: a fixed function of address, seed and rate.
//!
//! Middle addresses are handed out in sequence, so what one period wrote is a run of them. The sample is *stratified*: at
//! rate `2^-h` each aligned group of `2^h` addresses has exactly one member in it, at a place that coins decide. Every node
//! of the binary tree over the addresses has a coin, a bit of a hash of node and seed, that names one of its two halves; an
//! address is in the sample if the coins of its lowest `h` ancestors all point to it.
//!
//! * Each address is in with probability `2^-h`, and what happens in one group is independent of all others.
//! * Samples nest: the one of `h + 1` asks one coin more.
//! * The count of any set in the sample is a sum of independent trials, one a group, so it scatters no wider than a
//!   binomial count (Hoeffding 1956), and hardly at all for a set that is a run.
//! * The members of a run are found group by group, without a look at the others.

use crate::address::MiddleAddress;
use crate::format::sample::HALVINGS_MAX;

/// A rate, and the coins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    seed: u64,
    halvings: u8,
}

/// Addresses in sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub start: MiddleAddress,
    pub len_blocks: u64,
}

impl Run {
    pub fn new(start: MiddleAddress, len_blocks: u64) -> Self {
        Self { start, len_blocks }
    }

    pub fn single(middle: MiddleAddress) -> Self {
        Self::new(middle, 1)
    }
}

impl Sampler {
    /// Every volume has a seed of its own, so that no guest can arrange its writes around the sample.
    ///
    /// # Panics
    /// At more than [`HALVINGS_MAX`] halvings.
    pub fn new(seed: u64, halvings: u8) -> Self {
        assert!(halvings <= HALVINGS_MAX, "a rate of 2^-{halvings}");
        Self { seed, halvings }
    }

    pub fn seed(self) -> u64 {
        self.seed
    }

    /// The rate is 2 to the power of minus this.
    pub fn halvings(self) -> u8 {
        self.halvings
    }

    /// The next lower rate; none below that of [`HALVINGS_MAX`].
    pub fn halved(self) -> Option<Self> {
        (self.halvings < HALVINGS_MAX).then(|| Self { halvings: self.halvings + 1, ..self })
    }

    /// Whether an address is in the sample: two coins on average.
    pub fn holds(self, middle: MiddleAddress) -> bool {
        (1..=self.halvings).all(|level| self.coin(middle.0 >> level, level) == (middle.0 >> (level - 1)) & 1)
    }

    /// The addresses of a run that are in the sample, ascending: as many coins a group as there are halvings.
    pub fn members(self, run: Run) -> impl Iterator<Item = MiddleAddress> {
        let start = run.start.0;
        let end = start.saturating_add(run.len_blocks);
        let alone = run.len_blocks == 1;
        let groups = if start < end && (!alone || self.holds(run.start)) {
            start >> self.halvings..((end - 1) >> self.halvings) + 1
        } else {
            0..0
        };
        let member = move |group| if alone { start } else { self.member(group) };
        groups.map(member).filter(move |middle| (start..end).contains(middle)).map(MiddleAddress)
    }

    /// The one member of an aligned group of `2^halvings` addresses.
    fn member(self, group: u64) -> u64 {
        (1..=self.halvings).rev().fold(group, |node, level| node << 1 | self.coin(node, level))
    }

    /// The half, 0 or 1, that a node of the tree names. `level` is the height of the node above the addresses.
    fn coin(self, node: u64, level: u8) -> u64 {
        // Level and node share the word without collisions as long as addresses stay below 2^58.
        mix(node.rotate_left(6) ^ u64::from(level) ^ self.seed) >> 63
    }
}

/// Variant 13 of Stafford's finalisers, which is that of SplitMix64: flipping any bit of the input flips each of the output with
/// probability close to one half.
pub(super) fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 0x5eed;

    fn members(halvings: u8, start: u64, len_blocks: u64) -> Vec<u64> {
        let sampler = Sampler::new(SEED, halvings);
        sampler.members(Run::new(MiddleAddress(start), len_blocks)).map(|middle| middle.0).collect()
    }

    #[test]
    fn each_group_has_one_member() {
        for halvings in 0..=12 {
            let found = members(halvings, 0, 1 << 14);
            let groups: Vec<_> = found.iter().map(|middle| middle >> halvings).collect();
            assert_eq!(groups, (0..(1 << 14) >> halvings).collect::<Vec<_>>(), "{halvings} halvings");
        }
    }

    #[test]
    fn members_of_a_run_are_those_that_are_held() {
        for (halvings, start, len_blocks) in
            [(0, 5, 9), (3, 0, 1000), (3, 13, 1), (4, 1001, 37), (20, 5, 1 << 12)]
        {
            let sampler = Sampler::new(SEED, halvings);
            let held = (start..start + len_blocks).filter(|middle| sampler.holds(MiddleAddress(*middle)));
            assert_eq!(members(halvings, start, len_blocks), held.collect::<Vec<_>>(), "{halvings} {start}");
        }
        assert!(members(3, 77, 0).is_empty());
    }

    #[test]
    fn lower_rates_nest_in_higher_ones() {
        for halvings in 0..10 {
            let (more, fewer) = (members(halvings, 0, 1 << 13), members(halvings + 1, 0, 1 << 13));
            assert!(fewer.iter().all(|middle| more.contains(middle)), "{halvings} halvings");
        }
    }

    #[test]
    fn every_address_is_in_as_often_as_the_rate_says() {
        // Over seeds, each of 64 addresses: 4000 coins at 1/8 scatter by 21.
        let mut found = [0_i32; 64];
        for seed in 0..4000 {
            let sampler = Sampler::new(mix(seed), 3);
            let run = Run::new(MiddleAddress(1 << 40), 64);
            sampler.members(run).for_each(|middle| found[(middle.0 & 63) as usize] += 1);
        }
        assert!(found.iter().all(|count| (count - 500).abs() < 100), "{found:?}");
    }

    #[test]
    fn places_in_neighbouring_groups_are_independent() {
        // Pairs of groups: the place in one says nothing of the place in the next.
        let mut pairs = [[0_i32; 4]; 4];
        let found = members(2, 0, 1 << 16);
        for pair in found.windows(2) {
            pairs[(pair[0] & 3) as usize][(pair[1] & 3) as usize] += 1;
        }
        assert!(pairs.iter().flatten().all(|count| (count - 1024).abs() < 160), "{pairs:?}");
    }
}
