//! The work that the store and its rivals are given alike.

/// Small writes and reads.
pub const BLOCK_BYTES: usize = ringfort_engine::buffer::BLOCK_BYTES;
/// Requests in flight, where there is more than one.
pub const DEPTH: u64 = 16;
/// The file that small writes go to.
pub const SMALL: &str = "small";
pub const SMALL_FILE_BYTES: u64 = 256 << 20;
/// The file that is streamed.
pub const LARGE: &str = "large";
pub const LARGE_FILE_BYTES: u64 = 512 << 20;
pub const TRANSFER_BYTES: usize = 1 << 20;

/// Fills `buffer` as a front end fills it from a guest, with bytes that begin with `number`.
pub fn stamp(buffer: &mut [u8], number: u64) {
    buffer.fill(number as u8 | 1);
    buffer[..8].copy_from_slice(&number.to_le_bytes());
}

pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// SplitMix64: the same places in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
