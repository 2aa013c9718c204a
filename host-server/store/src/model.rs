//! A volume in memory that keeps the [`Volume`] contract and nothing more.
//!
//! The oracle: layers above are tested on it, and the store itself is compared with it. It suspends where a real volume
//! might (driven by a seed), runs out of space where it is told to, fails on request, and can be cut back to any state that a
//! power loss may leave. It also holds its callers to the contract: a transaction that outgrows its [`Cost`] panics.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};

use crate::address::{LogicalBlock, ObjectId, ViewId};
use crate::error::{ErrorKind, StoreError};
use crate::views::Views;
use crate::volume::{
    Change, Cost, Extent, Key, ReadPiece, SpaceReport, StagedBlocks, StagedPiece, Transaction, TreeId,
    ViewEntry, ViewKind, ViewState, Volume, shift_entries,
};

/// What a [`ModelVolume`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct ModelSettings {
    /// Suspend at asynchronous calls, as often as this seed says; never without one.
    pub suspend_seed: Option<u64>,
    pub total_blocks: u64,
    /// Kept for transactions with [`Cost::frees_space`].
    pub reserve_blocks: u64,
    /// The most tree entries.
    pub entries_max: u64,
    /// Kept for transactions with [`Cost::frees_space`].
    pub reserve_entries: u64,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            suspend_seed: None,
            total_blocks: 1 << 32,
            reserve_blocks: 16,
            entries_max: 1 << 32,
            reserve_entries: 1 << 16,
        }
    }
}

/// Extents are told in pieces of at most so many blocks, so that callers meet adjacent ones.
const EXTENT_BLOCKS_MAX: usize = 64;

/// What an entry is taken to take.
const ENTRY_BYTES: u64 = 100;

/// What a volume holds.
#[derive(Clone, Debug, Default)]
struct Contents {
    trees: BTreeMap<(TreeId, Key), Vec<u8>>,
    blocks: BTreeMap<(ObjectId, LogicalBlock), Slice>,
    views: Views,
}

/// A change as it was applied, kept until it is synced.
#[derive(Clone, Debug)]
enum Applied {
    Put(TreeId, Key, Vec<u8>),
    Delete(TreeId, Key),
    Write(ObjectId, LogicalBlock, Vec<Slice>),
    Unmap(ObjectId, LogicalBlock, u64),
    Shift(ObjectId, LogicalBlock, LogicalBlock, u64),
    View(ViewId, ViewEntry),
}

impl Contents {
    fn replay(&mut self, change: Applied) {
        match change {
            Applied::Put(tree, key, value) => {
                self.trees.insert((tree, key), value);
            }
            Applied::Delete(tree, key) => {
                self.trees.remove(&(tree, key));
            }
            Applied::Write(object, start, blocks) => {
                for (index, block) in blocks.into_iter().enumerate() {
                    self.blocks.insert((object, LogicalBlock(start.0 + index as u64)), block);
                }
            }
            Applied::Unmap(object, start, len_blocks) => {
                self.unmap(object, start, len_blocks);
            }
            Applied::View(view, entry) => self.put_view(view, entry),
            Applied::Shift(object, from, to, len_blocks) => {
                let moving = self.unmap(object, from, len_blocks);
                self.unmap(object, to, len_blocks);
                for (block, contents) in moving {
                    self.blocks.insert((object, LogicalBlock(block.0 - from.0 + to.0)), contents);
                }
            }
        }
    }

    /// A new view has a copy of what it begins with.
    fn put_view(&mut self, view: ViewId, entry: ViewEntry) {
        let begins_with = match entry.kind {
            ViewKind::Snapshot { branch } => Some(branch),
            ViewKind::Branch { origin } => origin,
        };
        if entry.state != ViewState::Live {
            self.forget(view);
            self.views.put(view, None);
            return;
        }
        if let Some(from) = begins_with.filter(|_| self.views.get(view).is_none()) {
            let (least, most) = from.numbers();
            let keys = |tree| (tree, Key::new(least, 0))..=(tree, Key::new(most, u64::MAX));
            for tree in (TreeId::FIRST_FILESYSTEM.0..=TreeId::LAST_FILESYSTEM.0).map(TreeId) {
                if tree == TreeId::SHARED {
                    continue;
                }
                let copied = self.trees.range(keys(tree)).map(|((tree, key), value)| {
                    ((*tree, Key::new(view.place(key.hi), key.lo)), value.clone())
                });
                let copied: Vec<_> = copied.collect();
                self.trees.extend(copied);
            }
            let blocks = (ObjectId(least), LogicalBlock(0))..=(ObjectId(most), LogicalBlock(u64::MAX));
            let copied = self.blocks.range(blocks);
            let copied =
                copied.map(|((object, at), block)| ((ObjectId(view.place(object.0)), *at), block.clone()));
            let copied: Vec<_> = copied.collect();
            self.blocks.extend(copied);
        }
        self.views.put(view, Some(entry));
    }

    fn require_view(&self, tree: TreeId, number: u64) -> Result<(), StoreError> {
        if tree == TreeId::SHARED { Ok(()) } else { self.views.chain(ViewId::of(number)).map(drop) }
    }

    fn forget(&mut self, view: ViewId) {
        self.trees.retain(|(tree, key), _| *tree == TreeId::SHARED || ViewId::of(key.hi) != view);
        self.blocks.retain(|(object, _), _| ViewId::of(object.0) != view);
    }

    fn unmap(
        &mut self,
        object: ObjectId,
        start: LogicalBlock,
        len_blocks: u64,
    ) -> Vec<(LogicalBlock, Slice)> {
        let blocks = self.mapped(object, start, len_blocks).into_iter();
        blocks.filter_map(|block| Some((block, self.blocks.remove(&(object, block))?))).collect()
    }

    /// The first mapped range from a block on, at most [`EXTENT_BLOCKS_MAX`] long.
    fn next_extent(&self, object: ObjectId, from: LogicalBlock) -> Option<Extent> {
        let mut extent: Option<Extent> = None;
        let range = (object, from)..=(object, LogicalBlock(u64::MAX));
        for &(_, block) in self.blocks.range(range).take(EXTENT_BLOCKS_MAX).map(|(key, _)| key) {
            match &mut extent {
                None => extent = Some(Extent { start: block, len_blocks: 1 }),
                Some(extent) if extent.start.0 + extent.len_blocks == block.0 => extent.len_blocks += 1,
                Some(_) => break,
            }
        }
        extent
    }

    /// How many extents a caller finds in a range.
    fn extents(&self, object: ObjectId, start: LogicalBlock, len_blocks: u64) -> u64 {
        let (mut count, mut from, end) = (0, start, start.0.saturating_add(len_blocks));
        while let Some(extent) = self.next_extent(object, from).filter(|extent| extent.start.0 < end) {
            count += 1;
            from = LogicalBlock(extent.start.0 + extent.len_blocks);
        }
        count
    }

    fn mapped(&self, object: ObjectId, start: LogicalBlock, len_blocks: u64) -> Vec<LogicalBlock> {
        let end = LogicalBlock(start.0.saturating_add(len_blocks));
        if end <= start {
            return Vec::new();
        }
        self.blocks.range((object, start)..(object, end)).map(|(&(_, block), _)| block).collect()
    }
}

#[derive(Debug, Default)]
struct Reserved {
    blocks: Cell<u64>,
    entries: Cell<u64>,
}

/// Room promised to a transaction of a [`ModelVolume`].
#[derive(Debug)]
pub struct ModelReservation {
    cost: Cost,
    reserved: Rc<Reserved>,
}

impl Drop for ModelReservation {
    fn drop(&mut self) {
        self.reserved.blocks.set(self.reserved.blocks.get() - self.cost.data_blocks);
        self.reserved.entries.set(self.reserved.entries.get() - self.cost.entries);
    }
}

/// A volume in memory; see the module.
#[derive(Debug)]
pub struct ModelVolume {
    settings: ModelSettings,
    random: Cell<u64>,
    current: RefCell<Contents>,
    durable: RefCell<Contents>,
    /// Applied, not yet synced; with the sequence number of the first.
    unsynced: RefCell<VecDeque<Vec<Applied>>>,
    first_unsynced: Cell<u64>,
    reserved: Rc<Reserved>,
    failing: Cell<Option<ErrorKind>>,
    calls_until_failure: Cell<u64>,
}

impl ModelVolume {
    pub fn new(settings: ModelSettings) -> Self {
        Self {
            settings,
            random: Cell::new(settings.suspend_seed.unwrap_or(0) | 1),
            current: RefCell::default(),
            durable: RefCell::default(),
            unsynced: RefCell::default(),
            first_unsynced: Cell::new(0),
            reserved: Rc::default(),
            failing: Cell::new(None),
            calls_until_failure: Cell::new(0),
        }
    }

    /// Every call after the next `calls` fails with `kind`, until told otherwise with `None`.
    pub fn fail_after(&self, calls: u64, kind: Option<ErrorKind>) {
        self.calls_until_failure.set(calls);
        self.failing.set(kind);
    }

    /// How many transactions a power loss now might take.
    pub fn unsynced_transactions(&self) -> usize {
        self.unsynced.borrow().len()
    }

    /// The volume that a power loss leaves which keeps the first `kept` of the unsynced transactions.
    pub fn after_power_loss(&self, kept: usize) -> Self {
        let mut contents = self.durable.borrow().clone();
        for change in self.unsynced.borrow().iter().take(kept).flatten() {
            contents.replay(change.clone());
        }
        let after = Self::new(self.settings);
        after.random.set(self.random.get());
        *after.durable.borrow_mut() = contents.clone();
        *after.current.borrow_mut() = contents;
        after
    }

    /// All entries of a tree, for tests that look at what is stored.
    pub fn entries(&self, tree: TreeId) -> Vec<(Key, Vec<u8>)> {
        let contents = self.current.borrow();
        contents
            .trees
            .range((tree, Key::MIN)..=(tree, Key::MAX))
            .map(|(&(_, key), value)| (key, value.clone()))
            .collect()
    }

    /// Number of mapped blocks of an object.
    pub fn mapped_blocks(&self, object: ObjectId) -> u64 {
        self.current.borrow().mapped(object, LogicalBlock(0), u64::MAX).len() as u64
    }

    fn next_random(&self) -> u64 {
        // xorshift64: never zero from a state that is not zero.
        let mut state = self.random.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.random.set(state);
        state
    }

    async fn suspend(&self) {
        if self.settings.suspend_seed.is_none() {
            return;
        }
        let mut times = (self.next_random() >> 32) % 4;
        poll_fn(|context| {
            if times == 0 {
                return Poll::Ready(());
            }
            times -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn fault(&self, operation: &str) -> Result<(), StoreError> {
        let Some(kind) = self.failing.get() else { return Ok(()) };
        let left = self.calls_until_failure.get();
        if left > 0 {
            self.calls_until_failure.set(left - 1);
            return Ok(());
        }
        Err(StoreError::new(kind, operation, "the model volume", "a failure that was asked for"))
    }
}

/// Cuts slices into blocks.
fn blocks_of(slices: &[Slice]) -> Vec<Slice> {
    let mut blocks = Vec::new();
    for slice in slices {
        for start in (0..slice.len()).step_by(BLOCK_BYTES) {
            blocks.push(slice.slice(start..start + BLOCK_BYTES));
        }
    }
    blocks
}

impl Volume for ModelVolume {
    type Reservation = ModelReservation;

    async fn get(&self, tree: TreeId, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        self.suspend().await;
        self.fault("get an entry of")?;
        self.current.borrow().require_view(tree, key.hi)?;
        let value = self.current.borrow().trees.get(&(tree, key)).cloned();
        self.suspend().await;
        Ok(value)
    }

    async fn scan(
        &self,
        tree: TreeId,
        from: Key,
        to: Key,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        self.suspend().await;
        self.fault("scan a tree of")?;
        if from > to {
            return Ok(Vec::new());
        }
        let found = {
            let contents = self.current.borrow();
            contents.require_view(tree, from.hi)?;
            let last = Key::new(ViewId::of(from.hi).numbers().1, u64::MAX);
            let to = if tree == TreeId::SHARED { to } else { to.min(last) };
            let range = contents.trees.range((tree, from)..=(tree, to));
            range.take(limit).map(|(&(_, key), value)| (key, value.clone())).collect()
        };
        self.suspend().await;
        Ok(found)
    }

    async fn read(
        &self,
        object: ObjectId,
        start: LogicalBlock,
        len_blocks: u64,
    ) -> Result<Vec<ReadPiece>, StoreError> {
        let mut pieces = Vec::new();
        let mut hole_blocks = 0;
        for index in 0..len_blocks {
            // A real volume looks up and reads a run at a time: contents may change between two of them.
            if index % 16 == 0 {
                self.suspend().await;
                self.fault("read blocks of")?;
            }
            self.current.borrow().views.chain(ViewId::of(object.0))?;
            let key = (object, LogicalBlock(start.0 + index));
            match self.current.borrow().blocks.get(&key) {
                None => hole_blocks += 1,
                Some(block) => {
                    if hole_blocks > 0 {
                        pieces.push(ReadPiece::Hole { len_blocks: hole_blocks });
                        hole_blocks = 0;
                    }
                    pieces.push(ReadPiece::Data(block.clone()));
                }
            }
        }
        if hole_blocks > 0 {
            pieces.push(ReadPiece::Hole { len_blocks: hole_blocks });
        }
        Ok(pieces)
    }

    async fn next_extent(&self, object: ObjectId, from: LogicalBlock) -> Result<Option<Extent>, StoreError> {
        self.suspend().await;
        self.fault("look up an extent of")?;
        self.current.borrow().views.chain(ViewId::of(object.0))?;
        Ok(self.current.borrow().next_extent(object, from))
    }

    async fn begin(&self, cost: Cost) -> Result<Transaction<ModelReservation>, StoreError> {
        self.suspend().await;
        self.fault("begin a transaction on")?;
        let (used_blocks, used_entries) = {
            let contents = self.current.borrow();
            (contents.blocks.len() as u64, contents.trees.len() as u64)
        };
        let (mut blocks_max, mut entries_max) = (self.settings.total_blocks, self.settings.entries_max);
        if !cost.frees_space {
            blocks_max -= self.settings.reserve_blocks;
            entries_max -= self.settings.reserve_entries;
        }
        let blocks = used_blocks + self.reserved.blocks.get() + cost.data_blocks;
        let entries = used_entries + self.reserved.entries.get() + cost.entries;
        if (cost.data_blocks > 0 && blocks > blocks_max) || (cost.entries > 0 && entries > entries_max) {
            return Err(StoreError::new(
                ErrorKind::NoSpace,
                "begin a transaction on",
                "the model volume",
                format!(
                    "{used_blocks} of {blocks_max} blocks and {used_entries} of {entries_max} entries in use"
                ),
            ));
        }
        self.reserved.blocks.set(self.reserved.blocks.get() + cost.data_blocks);
        self.reserved.entries.set(self.reserved.entries.get() + cost.entries);
        Ok(Transaction::new(ModelReservation { cost, reserved: Rc::clone(&self.reserved) }))
    }

    async fn stage(
        &self,
        _transaction: &mut Transaction<ModelReservation>,
        data: Vec<Slice>,
    ) -> Result<StagedBlocks, StoreError> {
        self.suspend().await;
        self.fault("stage blocks for")?;
        for slice in &data {
            assert!(
                slice.is_block_aligned() && !slice.is_empty(),
                "stage of {} bytes, unaligned",
                slice.len()
            );
        }
        Ok(StagedBlocks { pieces: vec![StagedPiece::Memory(data)] })
    }

    async fn shift(
        &self,
        transaction: &mut Transaction<Self::Reservation>,
        object: ObjectId,
        from: LogicalBlock,
        to: LogicalBlock,
        len_blocks: u64,
    ) -> Result<(), StoreError> {
        transaction.push_shift(object, from, to, len_blocks, Vec::new());
        Ok(())
    }

    fn apply(&self, transaction: Transaction<ModelReservation>) -> Result<(), StoreError> {
        self.fault("apply a transaction to")?;
        let cost = transaction.reservation.cost;
        let mut contents = self.current.borrow_mut();
        let of_views = transaction.changes.iter().filter_map(Change::of_view);
        let mut view_entries = contents.views.entries_after(of_views)?;
        let (mut data_blocks, mut entries) = (0, 0);
        let mut applied = Vec::new();
        for change in transaction.changes {
            let change = match change {
                Change::Put { tree, key, value } => {
                    entries += 1;
                    Applied::Put(tree, key, value)
                }
                Change::Delete { tree, key } => {
                    entries += 1;
                    Applied::Delete(tree, key)
                }
                Change::Write { object, start, blocks } => {
                    let mut slices = Vec::new();
                    for piece in &blocks.pieces {
                        match piece {
                            StagedPiece::Memory(memory) => slices.extend(blocks_of(memory)),
                            other => unreachable!("staged elsewhere: {other:?}"),
                        }
                    }
                    data_blocks += slices.len() as u64;
                    Applied::Write(object, start, slices)
                }
                Change::Unmap { object, start, len_blocks } => {
                    entries += contents.mapped(object, start, len_blocks).len() as u64;
                    Applied::Unmap(object, start, len_blocks)
                }
                Change::View { view, change } => {
                    entries += 1;
                    Applied::View(
                        view,
                        view_entries.pop_front().unwrap_or_else(|| unreachable!("{change:?}")),
                    )
                }
                Change::Shift { object, from, to, len_blocks, .. } => {
                    entries += shift_entries(contents.extents(object, from, len_blocks));
                    // What is displaced counts as unmapped, what moves within the range does not.
                    let moves = |block: &LogicalBlock| (from.0..from.0 + len_blocks).contains(&block.0);
                    let at_destination = contents.mapped(object, to, len_blocks);
                    entries += at_destination.iter().filter(|block| !moves(block)).count() as u64;
                    Applied::Shift(object, from, to, len_blocks)
                }
            };
            contents.replay(change.clone());
            applied.push(change);
        }
        assert!(
            data_blocks <= cost.data_blocks && entries <= cost.entries,
            "a transaction of {data_blocks} blocks and {entries} entries promised {cost:?}"
        );
        self.unsynced.borrow_mut().push_back(applied);
        Ok(())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        let target = self.first_unsynced.get() + self.unsynced.borrow().len() as u64;
        self.suspend().await;
        self.fault("sync")?;
        let mut unsynced = self.unsynced.borrow_mut();
        let mut durable = self.durable.borrow_mut();
        while self.first_unsynced.get() < target {
            let Some(changes) = unsynced.pop_front() else { break };
            changes.into_iter().for_each(|change| durable.replay(change));
            self.first_unsynced.set(self.first_unsynced.get() + 1);
        }
        Ok(())
    }

    fn views(&self) -> Vec<(ViewId, ViewEntry)> {
        self.current.borrow().views.all()
    }

    fn view(&self, view: ViewId) -> Option<ViewEntry> {
        self.current.borrow().views.get(view)
    }

    fn new_view(&self) -> Result<ViewId, StoreError> {
        self.current.borrow().views.new_id()
    }

    fn entry_count(&self, tree: TreeId) -> u64 {
        self.current.borrow().trees.range((tree, Key::MIN)..=(tree, Key::MAX)).count() as u64
    }

    fn space(&self) -> SpaceReport {
        let contents = self.current.borrow();
        let free_blocks = self.settings.total_blocks.saturating_sub(contents.blocks.len() as u64);
        let taken = self.settings.reserve_blocks + self.reserved.blocks.get();
        let taken_entries =
            contents.trees.len() as u64 + self.settings.reserve_entries + self.reserved.entries.get();
        SpaceReport {
            total_blocks: self.settings.total_blocks,
            free_blocks,
            available_blocks: free_blocks.saturating_sub(taken),
            available_entry_bytes: self.settings.entries_max.saturating_sub(taken_entries) * ENTRY_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    const TREE: TreeId = TreeId::FIRST_FILESYSTEM;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
        }
    }

    async fn put(volume: &ModelVolume, number: u64) {
        let mut transaction =
            volume.begin(Cost { data_blocks: 0, entries: 1, frees_space: false }).await.unwrap();
        transaction.put(TREE, Key::new(number, 0), vec![number as u8]);
        volume.apply(transaction).unwrap();
    }

    #[test]
    fn power_loss_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        run(async {
            let volume = ModelVolume::new(ModelSettings { suspend_seed: Some(7), ..Default::default() });
            put(&volume, 1).await;
            volume.sync().await.unwrap();
            put(&volume, 2).await;
            put(&volume, 3).await;
            assert_eq!(volume.unsynced_transactions(), 2);
            for kept in 0..=2 {
                assert_eq!(volume.after_power_loss(kept).entries(TREE).len(), 1 + kept);
            }
        });
    }

    #[test]
    fn written_blocks_read_back_between_holes() {
        run(async {
            let volume = ModelVolume::new(ModelSettings::default());
            let object = ObjectId(5);
            let mut transaction =
                volume.begin(Cost { data_blocks: 2, entries: 0, frees_space: false }).await.unwrap();
            let staged =
                volume.stage(&mut transaction, vec![Slice::copy_of(&[9; 2 * BLOCK_BYTES])]).await.unwrap();
            transaction.write(object, LogicalBlock(3), staged);
            volume.apply(transaction).unwrap();
            let pieces = volume.read(object, LogicalBlock(2), 4).await.unwrap();
            let lengths: Vec<_> = pieces
                .iter()
                .map(|piece| match piece {
                    ReadPiece::Hole { len_blocks } => (false, *len_blocks),
                    ReadPiece::Data(data) => (true, (data.len() / BLOCK_BYTES) as u64),
                })
                .collect();
            assert_eq!(lengths, [(false, 1), (true, 1), (true, 1), (false, 1)]);
            let extent = volume.next_extent(object, LogicalBlock(4)).await.unwrap();
            assert_eq!(extent, Some(Extent { start: LogicalBlock(4), len_blocks: 1 }));
            assert_eq!(volume.next_extent(object, LogicalBlock(5)).await.unwrap(), None);
        });
    }

    #[test]
    fn a_full_volume_refuses_ordinary_transactions_and_lets_deletes_through() {
        run(async {
            let volume =
                ModelVolume::new(ModelSettings { entries_max: 3, reserve_entries: 1, ..Default::default() });
            put(&volume, 1).await;
            put(&volume, 2).await;
            let refused = volume.begin(Cost { data_blocks: 0, entries: 1, frees_space: false }).await;
            assert_eq!(refused.unwrap_err().kind, ErrorKind::NoSpace);
            let mut delete =
                volume.begin(Cost { data_blocks: 0, entries: 1, frees_space: true }).await.unwrap();
            delete.delete(TREE, Key::new(1, 0));
            volume.apply(delete).unwrap();
            put(&volume, 4).await;
        });
    }

    #[test]
    #[should_panic(expected = "promised")]
    fn a_transaction_that_outgrows_its_promise_is_a_fault_of_the_caller() {
        run(async {
            let volume = ModelVolume::new(ModelSettings::default());
            let mut transaction =
                volume.begin(Cost { data_blocks: 0, entries: 0, frees_space: false }).await.unwrap();
            transaction.put(TREE, Key::MIN, Vec::new());
            volume.apply(transaction).unwrap();
        });
    }
}
