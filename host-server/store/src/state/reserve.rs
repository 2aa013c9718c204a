//! Promises of space, given before anything changes.

use std::cell::Cell;
use std::rc::Rc;

use ringfort_engine::sync::Notify;

use crate::volume::Cost;

/// Promised to transactions that have begun, not used yet.
#[derive(Default)]
pub(crate) struct Reserved {
    pub data_blocks: Cell<u64>,
    pub long_entries: Cell<u64>,
    pub short_entries: Cell<u64>,
    /// Transactions.
    pub count: Cell<u64>,
    /// Those of them that give space back.
    pub freeing_count: Cell<u64>,
    /// Something was given back. The same signal as the volume's progress: whoever waits for room waits for both.
    pub released: Rc<Notify>,
}

/// A transaction's promise of space. Dropping it gives back what was not used.
pub struct Reservation {
    reserved: Rc<Reserved>,
    cost: Cost,
}

fn add(cell: &Cell<u64>, count: u64) {
    cell.set(cell.get() + count);
}

fn take(cell: &Cell<u64>, count: u64) {
    cell.set(cell.get() - count);
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservation").field("cost", &self.cost).finish()
    }
}

impl Reservation {
    pub(crate) fn new(reserved: &Rc<Reserved>, cost: Cost) -> Self {
        add(&reserved.data_blocks, cost.data_blocks);
        add(&reserved.long_entries, cost.long_entries());
        add(&reserved.short_entries, cost.short_entries());
        add(&reserved.count, 1);
        add(&reserved.freeing_count, u64::from(cost.frees_space));
        Self { reserved: Rc::clone(reserved), cost }
    }

    /// Blocks of the promise have become real.
    pub(crate) fn use_blocks(&mut self, blocks: u64) {
        let used = blocks.min(self.cost.data_blocks);
        self.cost.data_blocks -= used;
        take(&self.reserved.data_blocks, used);
        self.reserved.released.notify_all();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        take(&self.reserved.data_blocks, self.cost.data_blocks);
        take(&self.reserved.long_entries, self.cost.long_entries());
        take(&self.reserved.short_entries, self.cost.short_entries());
        take(&self.reserved.count, 1);
        take(&self.reserved.freeing_count, u64::from(self.cost.frees_space));
        self.reserved.released.notify_all();
    }
}
