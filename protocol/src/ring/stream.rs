//! One direction of a ring: slots that one side fills and the other empties, in order.

use super::slot::{Position, SLOT_WORDS, Slot, last_word, sequence_of};
use super::words::Words;

/// The slots of one direction, and how far this side is.
pub(super) struct Stream {
    first_word: u64,
    slot_count: u32,
    next: Position,
}

impl Stream {
    pub(super) fn new(first_word: u64, slot_count: u32) -> Self {
        assert!(slot_count.is_power_of_two());
        Self { first_word, slot_count, next: Position::default() }
    }

    #[cfg(test)]
    pub(super) fn at(mut self, position: u32) -> Self {
        self.next = Position(position);
        self
    }

    #[inline]
    fn first_word_of_next(&self) -> u64 {
        self.first_word + u64::from(self.next.0 & (self.slot_count - 1)) * SLOT_WORDS
    }

    /// Fills the next slot. The other side must have taken what it held.
    pub(super) fn publish(&mut self, words: &impl Words, slot: &Slot) {
        let first = self.first_word_of_next();
        let [message @ .., last] = &slot.0;
        words.store_message(first, message);
        // Release: whoever sees the sequence number sees the message. It also keeps what was loaded before, the message that told that
        // this slot is free, before the stores of any who answer this one.
        words.store_release(first + SLOT_WORDS - 1, last_word(*last, self.next));
        self.next = self.next.next();
    }

    /// Whether the next slot is filled.
    #[inline]
    pub(super) fn has_next(&self, words: &impl Words) -> bool {
        self.next_last_word(words).is_some()
    }

    /// The next message, copied once.
    #[inline]
    pub(super) fn take(&mut self, words: &impl Words) -> Option<Slot> {
        let last = self.next_last_word(words)?;
        let first = self.first_word_of_next();
        let [a, b, c, d, e, f, g] = words.load_message(first);
        self.next = self.next.next();
        Some(Slot([a, b, c, d, e, f, g, last]))
    }

    /// The last word of the next slot, if that is filled. Acquire: the message is seen with its sequence number.
    #[inline]
    fn next_last_word(&self, words: &impl Words) -> Option<u64> {
        let last = words.load_acquire(self.first_word_of_next() + SLOT_WORDS - 1);
        (sequence_of(last) == self.next.sequence()).then_some(last)
    }
}
