//! Shared memory as the rings see it: 64-bit words, loaded and stored one by one.

use std::rc::Rc;
use std::sync::Arc;

/// Bytes of a word.
pub const WORD_BYTES: u64 = 8;

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
            fn fence(&self) {
                (**self).fence();
            }
        }
    };
}

through_pointer!(Rc);
through_pointer!(Arc);
