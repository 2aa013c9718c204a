//! The side that takes commands and gives completions.

use super::layout::{REQUESTER_FLAGS, RESPONDER_FLAGS, RingLayout};
use super::sleep::Sleep;
use super::slot::Slot;
use super::stream::Stream;
use super::words::Words;

/// The end of a ring at which commands are carried out. One thread at a time uses it.
///
/// It trusts the other side with nothing: what is taken is a copy, and at most as many commands are under way as the ring has slots. A requester
/// that submits more than it may, or takes no completions, loses commands or completions of its own.
pub struct Responder<W: Words> {
    words: W,
    commands: Stream,
    completions: Stream,
    sleep: Sleep,
    in_flight: u32,
    slot_count: u32,
}

impl<W: Words> Responder<W> {
    /// The end of a ring in memory of zeros, or of one at which a [`Requester`](super::requester::Requester) has submitted already.
    ///
    /// # Panics
    /// Where the layout is one of larger memory.
    pub fn new(words: W, layout: RingLayout) -> Self {
        let slot_count = layout.slot_count();
        let commands = Stream::new(layout.commands(), slot_count);
        let completions = Stream::new(layout.completions(), slot_count);
        assert!(layout.completions() < words.count(), "a ring inside its memory");
        let sleep = Sleep::new(layout.flags(RESPONDER_FLAGS), layout.flags(REQUESTER_FLAGS));
        Self { words, commands, completions, sleep, in_flight: 0, slot_count }
    }

    /// The same end, as far as it is, in other words: the ring's memory was mapped anew and holds what it held.
    ///
    /// # Panics
    /// Where the ring leaves `words`.
    pub fn move_to(&mut self, words: W) {
        assert!(words.count() >= self.words.count(), "a ring inside its memory");
        self.words = words;
    }

    #[cfg(test)]
    pub(super) fn at(mut self, position: u32) -> Self {
        self.commands = self.commands.at(position);
        self.completions = self.completions.at(position);
        self
    }

    /// Commands taken and not completed.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The next command. None where there is none, and where as many are in flight as the ring has slots.
    #[inline]
    pub fn take(&mut self) -> Option<Slot> {
        if self.in_flight == self.slot_count {
            return None;
        }
        let slot = self.commands.take(&self.words)?;
        self.in_flight += 1;
        Some(slot)
    }

    /// Completes one of the commands in flight. After the last of a batch ask [`wants_doorbell`](Self::wants_doorbell).
    ///
    /// # Panics
    /// Where none is in flight.
    pub fn complete(&mut self, completion: &Slot) {
        assert!(self.in_flight > 0, "a completion without a command");
        self.completions.publish(&self.words, completion);
        self.in_flight -= 1;
    }

    /// Whether the requester sleeps and must be rung for what was completed. To be asked after each batch.
    pub fn wants_doorbell(&self) -> bool {
        self.sleep.peer_sleeps(&self.words)
    }

    /// Asks to be rung from now on. True where this side may sleep: no command is there that could be taken. Otherwise nothing was
    /// asked.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        self.sleep.announce(&self.words);
        let idle = self.in_flight == self.slot_count || !self.commands.has_next(&self.words);
        if !idle {
            self.sleep.retract(&self.words);
        }
        idle
    }

    /// To be called after a sleep that [`prepare_sleep`](Self::prepare_sleep) allowed.
    pub fn finish_sleep(&self) {
        self.sleep.retract(&self.words);
    }
}
