//! Promises of space, given before anything changes.

use std::cell::Cell;
use std::rc::Rc;

use ringfort_engine::sync::Notify;

/// Promised to transactions that have begun, not used yet.
#[derive(Default)]
pub(crate) struct Reserved {
    pub data_blocks: Cell<u64>,
    pub entries: Cell<u64>,
    /// Transactions.
    pub count: Cell<u64>,
    /// Something was given back. The same signal as the volume's progress: whoever waits for room waits for both.
    pub released: Rc<Notify>,
}

/// A transaction's promise of space. Dropping it gives back what was not used.
pub struct Reservation {
    reserved: Rc<Reserved>,
    data_blocks: u64,
    entries: u64,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { data_blocks, entries, .. } = self;
        f.debug_struct("Reservation").field("data_blocks", data_blocks).field("entries", entries).finish()
    }
}

impl Reservation {
    pub(crate) fn new(reserved: &Rc<Reserved>, data_blocks: u64, entries: u64) -> Self {
        reserved.data_blocks.set(reserved.data_blocks.get() + data_blocks);
        reserved.entries.set(reserved.entries.get() + entries);
        reserved.count.set(reserved.count.get() + 1);
        Self { reserved: Rc::clone(reserved), data_blocks, entries }
    }

    /// Blocks of the promise have become real.
    pub(crate) fn use_blocks(&mut self, blocks: u64) {
        let used = blocks.min(self.data_blocks);
        self.data_blocks -= used;
        self.reserved.data_blocks.set(self.reserved.data_blocks.get() - used);
        self.reserved.released.notify_all();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.data_blocks.set(self.reserved.data_blocks.get() - self.data_blocks);
        self.reserved.entries.set(self.reserved.entries.get() - self.entries);
        self.reserved.count.set(self.reserved.count.get() - 1);
        self.reserved.released.notify_all();
    }
}
