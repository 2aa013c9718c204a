//! Where a ring's words and slots lie.

use super::slot::{SLOT_BYTES, SLOT_WORDS};
use super::words::WORD_BYTES;

/// The fewest slots of a ring, in each direction.
pub const SLOT_COUNT_MIN: u32 = 2;

/// The most slots of a ring, in each direction: what one client may have outstanding, and so what the server keeps for it.
pub const SLOT_COUNT_MAX: u32 = 4096;

/// What a ring begins at a multiple of: a small page.
pub const RING_ALIGN_BYTES: u64 = 4096;

/// Each side's flags have two cache lines for themselves: processors fetch lines in pairs.
const FLAGS_BYTES: u64 = 128;

/// The word in which the requester says whether it sleeps.
pub(super) const REQUESTER_FLAGS: u64 = 0;

/// The word in which the responder says whether it sleeps.
pub(super) const RESPONDER_FLAGS: u64 = FLAGS_BYTES / WORD_BYTES;

const COMMANDS: u64 = 2 * FLAGS_BYTES / WORD_BYTES;

/// A ring of so many slots a direction, in a range of shared memory.
///
/// | offset | bytes | what | written by |
/// |---|---|---|---|
/// | 0 | 8 | flags of the requester | requester |
/// | 128 | 8 | flags of the responder | responder |
/// | 256 | 64 × slots | commands | requester |
/// | 256 + 64 × slots | 64 × slots | completions | responder |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    first_word: u64,
    slot_count: u32,
}

impl RingLayout {
    /// A ring that begins `start_bytes` into memory of `memory_bytes`. None where the count of slots is not a power of two within the
    /// bounds, the start is not aligned, or the ring leaves the memory.
    pub fn new(start_bytes: u64, slot_count: u32, memory_bytes: u64) -> Option<Self> {
        let end = start_bytes.checked_add(Self::len_bytes(slot_count)?)?;
        (start_bytes.is_multiple_of(RING_ALIGN_BYTES) && end <= memory_bytes)
            .then_some(Self { first_word: start_bytes / WORD_BYTES, slot_count })
    }

    /// Bytes from the begin of a ring to what may follow it. None for a count of slots that no ring has.
    pub fn len_bytes(slot_count: u32) -> Option<u64> {
        let possible =
            slot_count.is_power_of_two() && (SLOT_COUNT_MIN..=SLOT_COUNT_MAX).contains(&slot_count);
        let used = COMMANDS * WORD_BYTES + 2 * SLOT_BYTES * u64::from(slot_count);
        possible.then(|| used.next_multiple_of(RING_ALIGN_BYTES))
    }

    pub fn slot_count(&self) -> u32 {
        self.slot_count
    }

    pub(super) fn flags(&self, of: u64) -> u64 {
        self.first_word + of
    }

    /// The first word of the slots for commands.
    pub(super) fn commands(&self) -> u64 {
        self.first_word + COMMANDS
    }

    /// The first word of the slots for completions.
    pub(super) fn completions(&self) -> u64 {
        self.commands() + SLOT_WORDS * u64::from(self.slot_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_refused_that_is_none_or_leaves_its_memory() {
        assert_eq!(RingLayout::len_bytes(16), Some(4096));
        assert_eq!(RingLayout::len_bytes(4096), Some(4096 + 2 * 64 * 4096));
        assert!(RingLayout::new(4096, 16, 8192).is_some());
        for (start_bytes, slot_count, memory_bytes) in [
            (4096, 16, 8191),
            (4032, 16, 1 << 20),
            (0, 0, 1 << 20),
            (0, 1, 1 << 20),
            (0, 3, 1 << 20),
            (0, 8192, 1 << 30),
            (0, u32::MAX, u64::MAX),
            (u64::MAX - 4095, 16, u64::MAX),
        ] {
            assert_eq!(
                RingLayout::new(start_bytes, slot_count, memory_bytes),
                None,
                "{start_bytes} {slot_count}"
            );
        }
    }

    #[test]
    fn no_word_of_a_ring_has_two_uses() {
        let layout = RingLayout::new(4096, 16, 1 << 20).unwrap();
        let words = [
            layout.flags(REQUESTER_FLAGS),
            layout.flags(RESPONDER_FLAGS),
            layout.commands(),
            layout.completions(),
            layout.completions() + 16 * SLOT_WORDS,
        ];
        assert_eq!(words.map(|word| word * WORD_BYTES - 4096), [0, 128, 256, 256 + 1024, 256 + 2048]);
        // A slot is a line, and no line belongs to two slots.
        assert!(words[2..].iter().all(|word| (word * WORD_BYTES).is_multiple_of(SLOT_BYTES)));
    }
}
