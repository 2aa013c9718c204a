//! The side that submits commands and takes completions.

use super::layout::{REQUESTER_FLAGS, RESPONDER_FLAGS, RingLayout};
use super::sleep::Sleep;
use super::slot::Slot;
use super::stream::Stream;
use super::words::Words;

/// As many commands as a ring has slots are outstanding: take a completion first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowFull;

/// The end of a ring at which commands are submitted. One thread at a time uses it.
///
/// Let N be the slots of a direction, *s* the commands submitted, *t* those that the responder took, *p* the completions that it published
/// and *c* those taken here. The responder takes in order and completes only what it took: c ≤ p ≤ t ≤ s. This side keeps s − c ≤ N.
///
/// * Submitting command s fills the slot of command s − N. At that time s < c + N, so s − N < c ≤ t: it was taken.
/// * Publishing completion p fills the slot of completion p − N. The responder has taken more commands than it completed, so
///   p < t ≤ s ≤ c + N, and p − N < c: it was taken.
pub struct Requester<W: Words> {
    words: W,
    commands: Stream,
    completions: Stream,
    sleep: Sleep,
    outstanding: u32,
    slot_count: u32,
}

impl<W: Words> Requester<W> {
    /// The end of a ring in memory of zeros, or of one that [`Responder`](super::responder::Responder) has not begun to serve.
    ///
    /// # Panics
    /// Where the layout is one of larger memory.
    pub fn new(words: W, layout: RingLayout) -> Self {
        let slot_count = layout.slot_count();
        let commands = Stream::new(layout.commands(), slot_count);
        let completions = Stream::new(layout.completions(), slot_count);
        assert!(layout.completions() < words.count(), "a ring inside its memory");
        let sleep = Sleep::new(layout.flags(REQUESTER_FLAGS), layout.flags(RESPONDER_FLAGS));
        Self { words, commands, completions, sleep, outstanding: 0, slot_count }
    }

    #[cfg(test)]
    pub(super) fn at(mut self, position: u32) -> Self {
        self.commands = self.commands.at(position);
        self.completions = self.completions.at(position);
        self
    }

    /// Commands submitted whose completions were not taken.
    pub fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// Commands that may be submitted before a completion is taken.
    pub fn room(&self) -> u32 {
        self.slot_count - self.outstanding
    }

    /// Submits a command. After the last of a batch ask [`wants_doorbell`](Self::wants_doorbell).
    pub fn submit(&mut self, command: &Slot) -> Result<(), WindowFull> {
        if self.outstanding == self.slot_count {
            return Err(WindowFull);
        }
        self.commands.publish(&self.words, command);
        self.outstanding += 1;
        Ok(())
    }

    /// Whether the responder sleeps and must be rung for what was submitted. To be asked after each batch.
    pub fn wants_doorbell(&self) -> bool {
        self.sleep.peer_sleeps(&self.words)
    }

    /// Whether [`take`](Self::take) would find a completion: a cheap look.
    #[inline]
    pub fn has_completion(&self) -> bool {
        self.outstanding > 0 && self.completions.has_next(&self.words)
    }

    /// The next completion, in the order in which commands were completed.
    #[inline]
    pub fn take(&mut self) -> Option<Slot> {
        if self.outstanding == 0 {
            return None;
        }
        let slot = self.completions.take(&self.words)?;
        self.outstanding -= 1;
        Some(slot)
    }

    /// Asks to be rung from now on. True where this side may sleep; false where a completion has arrived, and then nothing was asked.
    #[must_use]
    pub fn prepare_sleep(&self) -> bool {
        self.sleep.announce(&self.words);
        let idle = !self.completions.has_next(&self.words);
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
