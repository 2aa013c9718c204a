//! Seeded content: what was written can be told byte by byte from a number, with nothing remembered but that.

/// Pieces in which files are written and compared.
pub const PIECE_BYTES: usize = 128 * 1024;

/// A stream of numbers from a seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// Any seed will do: it is spread first, so that neighbouring seeds give unrelated streams.
    pub fn new(seed: u64) -> Stream {
        let mut spread = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        spread = (spread ^ (spread >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        spread = (spread ^ (spread >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Stream { state: (spread ^ (spread >> 31)) | 1 }
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// Fills `bytes`. Equal streams give equal bytes as long as every earlier call's length was a multiple of eight.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let number = self.number().to_le_bytes();
            piece.copy_from_slice(&number[..piece.len()]);
        }
    }
}

/// `length_bytes` bytes of the stream of `seed`.
pub fn content(seed: u64, length_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; length_bytes];
    Stream::new(seed).fill(&mut bytes);
    bytes
}
