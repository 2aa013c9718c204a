//! Who sleeps: one word a side.

use super::words::Words;

const SLEEPS: u64 = 1;

/// The flags of both sides, as this side knows them.
pub(super) struct Sleep {
    own: u64,
    peer: u64,
}

impl Sleep {
    /// The words in which this side and the other say whether they sleep.
    pub(super) fn new(own: u64, peer: u64) -> Self {
        Self { own, peer }
    }

    /// Says that this side is about to sleep. Afterwards it must look for messages once more before it does.
    pub(super) fn announce(&self, words: &impl Words) {
        words.store(self.own, SLEEPS);
        // Before the look that follows. Pairs with the fence in `peer_sleeps`.
        words.fence();
    }

    pub(super) fn retract(&self, words: &impl Words) {
        words.store(self.own, 0);
    }

    /// Whether the other side has to be woken for what was published before this call.
    pub(super) fn peer_sleeps(&self, words: &impl Words) -> bool {
        // After what was published. Pairs with the fence in `announce`.
        words.fence();
        words.load(self.peer) != 0
    }
}
