//! Shared memory as the rings see it: 64-bit words, loaded and stored one by one.

use std::rc::Rc;
use std::sync::Arc;

/// Bytes of a word.
pub const WORD_BYTES: u64 = 8;

/// Words of a slot.
pub const SLOT_WORDS: u64 = 8;

/// Words of a slot before the last, which alone says whether the others may be read.
pub const MESSAGE_WORDS: usize = SLOT_WORDS as usize - 1;

/// Words that another party reads and writes at the same time.
///
/// Indexes come from layouts that were checked against [`count`](Self::count); an index beyond it is a fault of the caller and panics.
pub trait Words {
    /// How many words there are.
    fn count(&self) -> u64;

    /// What this word holds, in no order with anything else.
    fn load(&self, index: u64) -> u64;

    /// What this word holds. Later loads see what its writer stored before.
    fn load_acquire(&self, index: u64) -> u64;

    /// In no order with anything else.
    fn store(&self, index: u64, value: u64);

    /// Whoever sees this value with [`load_acquire`](Self::load_acquire) sees what was stored before, and what was loaded before is not
    /// affected by what they do.
    fn store_release(&self, index: u64, value: u64);

    /// What the words before the last of a slot hold, in no order with anything else. `first` is a multiple of [`SLOT_WORDS`].
    fn load_message(&self, first: u64) -> [u64; MESSAGE_WORDS] {
        std::array::from_fn(|index| self.load(first + index as u64))
    }

    /// Stores to the words before the last of a slot, in no order with anything else. `first` is a multiple of [`SLOT_WORDS`].
    fn store_message(&self, first: u64, message: &[u64; MESSAGE_WORDS]) {
        for (index, word) in message.iter().enumerate() {
            self.store(first + index as u64, *word);
        }
    }

    /// A sequentially consistent fence: of two parties that each store, fence and load what the other stored, at least one sees the
    /// other's store.
    fn fence(&self);
}

macro_rules! through_pointer {
    ($pointer:ident) => {
        impl<W: Words + ?Sized> Words for $pointer<W> {
            fn count(&self) -> u64 {
                (**self).count()
            }
            fn load(&self, index: u64) -> u64 {
                (**self).load(index)
            }
            fn load_acquire(&self, index: u64) -> u64 {
                (**self).load_acquire(index)
            }
            fn store(&self, index: u64, value: u64) {
                (**self).store(index, value);
            }
            fn store_release(&self, index: u64, value: u64) {
                (**self).store_release(index, value);
            }
            fn load_message(&self, first: u64) -> [u64; MESSAGE_WORDS] {
                (**self).load_message(first)
            }
            fn store_message(&self, first: u64, message: &[u64; MESSAGE_WORDS]) {
                (**self).store_message(first, message);
            }
            fn fence(&self) {
                (**self).fence();
            }
        }
    };
}

through_pointer!(Rc);
through_pointer!(Arc);
