//! Doorbells made of words: who rings counts up, who sleeps waits for another count.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ringfort_protocol::ring::words::Words;

/// A wake-up that takes longer was lost. Far beyond what a busy machine takes.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// Looks before a look at the clock, and a chance for others to run.
const LOOKS: u32 = 20_000;

/// A word that this side counts up.
pub struct Bell {
    word: u64,
    count: u64,
}

impl Bell {
    pub fn new(word: u64) -> Self {
        Self { word, count: 0 }
    }

    pub fn ring(&mut self, words: &impl Words) {
        self.count += 1;
        words.store_release(self.word, self.count);
    }
}

/// A word that the other side counts up.
pub struct Sleeper {
    word: u64,
    seen: u64,
}

impl Sleeper {
    pub fn new(word: u64) -> Self {
        Self { word, seen: 0 }
    }

    /// Returns when the bell was rung since the last return.
    pub fn sleep(&mut self, words: &impl Words) -> Result<()> {
        let began = Instant::now();
        loop {
            for _ in 0..LOOKS {
                let count = words.load_acquire(self.word);
                if count != self.seen {
                    self.seen = count;
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            if began.elapsed() > LOST_AFTER {
                bail!("asleep for {} s: a wake-up was lost", LOST_AFTER.as_secs());
            }
            std::thread::yield_now();
        }
    }
}

/// Pauses of different lengths, so that the two sides meet in every order.
pub struct Pauses {
    state: u64,
    loops_max: u64,
}

impl Pauses {
    /// Of less than `loops_max` loops each.
    pub fn new(seed: u64, loops_max: u64) -> Self {
        Self { state: seed.wrapping_mul(2).wrapping_add(1), loops_max }
    }

    /// At random, below `bound`. Marsaglia's xorshift64.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 32) % bound.max(1)
    }

    pub fn pause(&mut self) {
        for _ in 0..self.below(self.loops_max) {
            std::hint::spin_loop();
        }
    }
}
