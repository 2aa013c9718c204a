//! Chance that a seed repeats, for histories of calls.

/// Numbers that follow from a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % bound
    }

    /// One to three names deep, of few names, so that paths meet.
    pub fn path(&mut self, base: &str) -> String {
        let mut path = base.to_owned();
        for _ in 0..=self.below(3) {
            path.push('/');
            path.push(char::from(b'a' + self.below(4) as u8));
        }
        path
    }

    /// How long, or where: small, whole blocks, large.
    pub fn length(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(20),
            1 => self.below(5) * 4096,
            2 => self.below(20_000),
            _ => self.below(100_000),
        }
    }
}
