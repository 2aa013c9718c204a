//! What a slot carries: seven words of a message, and a word whose upper half says which message it is.

pub use super::words::SLOT_WORDS;
use super::words::WORD_BYTES;

/// Bytes of a slot: a cache line.
pub const SLOT_BYTES: u64 = SLOT_WORDS * WORD_BYTES;

/// The content of a slot, copied out of shared memory or about to be copied in.
///
/// Little-endian words, in memory as on the wire. The upper half of the last word is the sequence number, which is the ring's business; what
/// a message puts there is overwritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot(pub(super) [u64; SLOT_WORDS as usize]);

impl Slot {
    /// A slot of the bytes of a message. Its last four bytes do not travel.
    pub fn from_bytes(bytes: &[u8; SLOT_BYTES as usize]) -> Self {
        let mut words = [0; SLOT_WORDS as usize];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Self(words)
    }

    /// The bytes of the message; the last four are zero.
    pub fn to_bytes(self) -> [u8; SLOT_BYTES as usize] {
        let mut bytes = [0; SLOT_BYTES as usize];
        for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *bytes = word.to_le_bytes();
        }
        bytes[SLOT_BYTES as usize - 4..].fill(0);
        bytes
    }
}

/// The number of a message in its direction, and with it the slot that carries it. Wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position(pub(super) u32);

impl Position {
    pub(super) fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// What the slot holds when it carries this message. Memory of zeros carries none; nor does a slot that carries the message one lap
    /// before, whose number differs.
    pub(super) fn sequence(self) -> u32 {
        self.0.wrapping_add(1)
    }
}

/// The last word of a slot: the message's own half, and the sequence number.
pub(super) fn last_word(message: u64, position: Position) -> u64 {
    (message & u64::from(u32::MAX)) | (u64::from(position.sequence()) << 32)
}

/// The sequence number in the last word of a slot.
pub(super) fn sequence_of(last_word: u64) -> u32 {
    (last_word >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_the_bytes_of_its_message() {
        let bytes: [u8; 64] = std::array::from_fn(|index| index as u8);
        let slot = Slot::from_bytes(&bytes);
        assert_eq!(slot.0[0], 0x0706_0504_0302_0100);
        assert_eq!(slot.to_bytes()[..60], bytes[..60]);
        assert_eq!(slot.to_bytes()[60..], [0; 4]);
    }

    #[test]
    fn a_sequence_number_differs_from_those_of_other_laps_and_of_fresh_memory() {
        for slots in [2u32, 4096] {
            for position in [0, 1, slots - 1, slots, u32::MAX - slots, u32::MAX - 1, u32::MAX] {
                let here = Position(position).sequence();
                let before = Position(position.wrapping_sub(slots)).sequence();
                assert_ne!(here, before);
                assert_eq!(sequence_of(last_word(u64::MAX, Position(position))), here);
            }
        }
        assert_ne!(Position(0).sequence(), 0);
    }
}
