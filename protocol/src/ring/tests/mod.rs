//! The rings against a model, against hostile memory, and in all interleavings of two threads.

mod hostile;
mod interleave;
mod model;

use std::cell::Cell;
use std::rc::Rc;

use super::layout::RingLayout;
use super::requester::Requester;
use super::responder::Responder;
use super::slot::{Position, SLOT_WORDS, Slot, last_word};
use super::words::{WORD_BYTES, Words};

/// Memory for one thread.
struct Plain(Box<[Cell<u64>]>);

impl Words for Plain {
    fn count(&self) -> u64 {
        self.0.len() as u64
    }
    fn load(&self, index: u64) -> u64 {
        self.0[index as usize].get()
    }
    fn load_acquire(&self, index: u64) -> u64 {
        self.load(index)
    }
    fn store(&self, index: u64, value: u64) {
        self.0[index as usize].set(value);
    }
    fn store_release(&self, index: u64, value: u64) {
        self.store(index, value);
    }
    fn fence(&self) {}
}

/// Both ends of a ring in memory of zeros, and the memory.
fn ring(slot_count: u32) -> (Requester<Rc<Plain>>, Responder<Rc<Plain>>, Rc<Plain>) {
    let len_bytes = RingLayout::len_bytes(slot_count).unwrap();
    let layout = RingLayout::new(0, slot_count, len_bytes).unwrap();
    let words = Rc::new(Plain((0..len_bytes / WORD_BYTES).map(|_| Cell::new(0)).collect()));
    (Requester::new(Rc::clone(&words), layout), Responder::new(Rc::clone(&words), layout), words)
}

/// A ring that has been in use: `start` messages have passed in each direction.
fn used_ring(slot_count: u32, start: u32) -> (Requester<Rc<Plain>>, Responder<Rc<Plain>>) {
    let (requester, responder, words) = ring(slot_count);
    let layout = RingLayout::new(0, slot_count, words.count() * WORD_BYTES).unwrap();
    for passed in (1..=slot_count.min(start)).map(|back| start - back) {
        for first in [layout.commands(), layout.completions()] {
            let slot = first + u64::from(passed % slot_count) * SLOT_WORDS;
            words.store(slot + SLOT_WORDS - 1, last_word(0, Position(passed)));
        }
    }
    (requester.at(start), responder.at(start))
}

/// A message all of whose words name `number`.
fn message(number: u64) -> Slot {
    let mut slot = Slot([number; 8]);
    slot.0[7] &= u64::from(u32::MAX);
    slot
}

/// The number of a message that has not been torn.
fn number_of(slot: Slot) -> u64 {
    let number = slot.0[0];
    assert_eq!(Slot::from_bytes(&slot.to_bytes()), message(number), "torn");
    number
}
