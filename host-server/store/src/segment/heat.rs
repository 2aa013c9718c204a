//! Which blocks are likely to die soon: those that were written not long ago.
//!
//! Blocks that die together leave empty segments behind. So what is written often is kept apart from what is not, by what little memory
//! can tell: two Bloom filters, of which one takes what is written while the other knows what was written before; when the first has taken
//! as many writes as the volume has live blocks they change places. Nothing is read for it, nothing of it is kept, and where it is
//! wrong only the cost of cleaning is higher.

use crate::address::{LogicalBlock, ObjectId};
use crate::limits::{HEAT_BITS_MAX, HEAT_BITS_PER_BLOCK};

/// How soon a block is likely to die.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Heat {
    #[default]
    Cold,
    Warm,
}

#[derive(Debug)]
pub struct RecentWrites {
    filters: [Vec<u64>; 2],
    /// Takes what is written.
    current: usize,
    /// Blocks that it has taken, and may take.
    taken: u64,
    span: u64,
}

impl RecentWrites {
    /// For a volume of so many blocks.
    pub fn new(data_blocks: u64) -> Self {
        let bits = (data_blocks * HEAT_BITS_PER_BLOCK).clamp(64, HEAT_BITS_MAX);
        let words = bits.div_ceil(64) as usize;
        Self { filters: [vec![0; words], vec![0; words]], current: 0, taken: 0, span: data_blocks }
    }

    /// From now on so many blocks live.
    pub fn set_live_blocks(&mut self, live_blocks: u64) {
        self.span = live_blocks.max(1);
    }

    /// Who has lived for so many writes is cold.
    pub fn live_blocks(&self) -> u64 {
        self.span
    }

    /// Notes a write and says what is to be expected of it: what its first block has shown.
    pub fn note(&mut self, object: ObjectId, start: LogicalBlock, len_blocks: u64) -> Heat {
        let is_warm = self.places(object, start.0).iter().all(|place| self.holds(*place));
        for block in start.0..start.0 + len_blocks {
            for (word, bit) in self.places(object, block) {
                self.filters[self.current][word] |= bit;
            }
        }
        self.taken += len_blocks;
        let fits = self.filters[0].len() as u64 * 64 / HEAT_BITS_PER_BLOCK;
        if self.taken >= self.span.min(fits) {
            self.current = 1 - self.current;
            self.filters[self.current].fill(0);
            self.taken = 0;
        }
        if is_warm { Heat::Warm } else { Heat::Cold }
    }

    fn holds(&self, (word, bit): (usize, u64)) -> bool {
        (self.filters[0][word] | self.filters[1][word]) & bit != 0
    }

    /// Two bits that stand for a block.
    fn places(&self, object: ObjectId, block: u64) -> [(usize, u64); 2] {
        let words = self.filters[0].len() as u64;
        let mut mixed =
            object.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ block.wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^= mixed >> 32;
        let place = |mixed: u64| (((((mixed >> 6) & 0xffff_ffff) * words) >> 32) as usize, 1 << (mixed & 63));
        let other = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        [place(mixed), place(other ^ (other >> 29))]
    }
}

#[cfg(test)]
mod tests {
    use ringfort_engine::sim::Random;

    use super::*;

    const OBJECT: ObjectId = ObjectId(3);

    #[test]
    fn what_is_written_often_is_warm_and_most_of_the_rest_is_not() {
        let blocks = 10_000;
        let mut recent = RecentWrites::new(blocks);
        let mut random = Random::new(1);
        let (mut warm, mut all) = ([0_u32; 2], [0_u32; 2]);
        for write in 0..8 * blocks {
            let is_hot = random.below(5) > 0;
            let block =
                if is_hot { random.below(blocks / 5) } else { random.below(blocks * 4 / 5) + blocks / 5 };
            let heat = recent.note(OBJECT, LogicalBlock(block), 1);
            if write > 4 * blocks {
                all[usize::from(is_hot)] += 1;
                warm[usize::from(is_hot)] += u32::from(heat == Heat::Warm);
            }
        }
        let share = |of: usize| f64::from(warm[of]) / f64::from(all[of]);
        assert!(share(1) > 0.95, "{} of the hot ones are warm", share(1));
        assert!(share(0) < 0.5, "{} of the cold ones are warm", share(0));
    }

    #[test]
    fn what_was_written_long_ago_is_forgotten() {
        let mut recent = RecentWrites::new(1000);
        recent.set_live_blocks(100);
        assert_eq!(recent.note(OBJECT, LogicalBlock(7), 1), Heat::Cold);
        assert_eq!(recent.note(OBJECT, LogicalBlock(7), 1), Heat::Warm);
        recent.note(OBJECT, LogicalBlock(1000), 200);
        recent.note(OBJECT, LogicalBlock(2000), 200);
        assert_eq!(recent.note(OBJECT, LogicalBlock(7), 1), Heat::Cold);
        assert_eq!(recent.note(ObjectId(4), LogicalBlock(7), 1), Heat::Cold);
    }
}
