//! The merge store itself: what is in memory, what is in tables, and how the one becomes the other.
//!
//! [`MergeStore::flush`] and [`MergeStore::merge_piece`] write tables and say what would change; [`MergeStore::install`] puts that in force. Whoever calls notes the
//! same in the catalogue, and has a root name it. What a durable root may still name is not touched: pages of dropped tables are free when the root of a later
//! generation is durable ([`MergeStore::settle`]) and nobody reads them. Edits are made one at a time.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::cache::PageCache;
use super::fold::{Meaning, Rule};
use super::item::OwnedItem;
use super::levels::Levels;
use super::memory::{Memory, SharedMemory};
use super::read::Reader;
use super::table::{LEAVES_MAX, Table};
use crate::address::{MetadataAddress, VolumeId};
use crate::format::page::PAGE_BYTES;
use crate::kv::{PageAllocator, PageStore};
use crate::volume::TreeId;

/// How a merge store is set up.
#[derive(Clone, Copy, Debug)]
pub struct MergeOptions {
    /// Memory for pages of tables.
    pub cache_bytes: usize,
    /// Runs of level 0 that a tree has at most for long.
    pub newest_runs: usize,
    /// Pages of level 1; each level below has [`LEVEL_GROWTH`] times as many.
    pub first_level_pages: u64,
    /// Pages that one piece of a merge writes before it ends, with those of what it causes elsewhere.
    pub piece_pages: usize,
    /// Leaves of a table, [`LEAVES_MAX`] at most.
    pub table_leaves: usize,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            newest_runs: 4,
            first_level_pages: 4096,
            piece_pages: 512,
            table_leaves: LEAVES_MAX,
        }
    }
}

/// How much larger each level is than the one above.
pub const LEVEL_GROWTH: u64 = 10;

/// A change of tables that is written, but not in force.
#[derive(Default)]
pub struct Edit {
    /// The tables of trees, as they will be.
    pub(super) trees: BTreeMap<TreeId, Rc<Levels>>,
    /// What sums that the catalogue keeps change by.
    pub(super) sums: Vec<(TreeId, OwnedItem)>,
    /// Addresses of the pages that were written for it.
    pub(super) written: Vec<MetadataAddress>,
    /// Tables that nothing will name any more.
    pub(super) dropped: Vec<Rc<Table>>,
    /// Frozen memories that it holds, from the oldest on.
    pub(super) frozen_count: usize,
}

impl Edit {
    /// The tables of the trees that it changes.
    pub fn trees(&self) -> impl Iterator<Item = (TreeId, &Levels)> {
        self.trees.iter().map(|(tree, levels)| (*tree, &**levels))
    }

    /// What to add to sums that the catalogue keeps.
    pub fn sums(&self) -> &[(TreeId, OwnedItem)] {
        &self.sums
    }

    pub fn written_pages(&self) -> usize {
        self.written.len()
    }
}

/// A table that is not named any more, and the generation of the first root that does not name it.
struct Dropped {
    generation: u64,
    table: Rc<Table>,
}

pub struct MergeStore<M> {
    pub(super) volume: VolumeId,
    pub meaning: M,
    pub(super) options: MergeOptions,
    pub(super) memory: RefCell<SharedMemory>,
    /// Oldest first. No longer changed.
    pub(super) frozen: RefCell<VecDeque<SharedMemory>>,
    trees: RefCell<BTreeMap<TreeId, Rc<Levels>>>,
    pub(super) cache: PageCache,
    pub(super) allocator: Rc<PageAllocator>,
    pub(super) next_table: Cell<u64>,
    dropped: RefCell<Vec<Dropped>>,
    /// Where the next piece of a level begins, so that all its keys have their turn.
    pub(super) turns: RefCell<BTreeMap<(TreeId, usize), (u64, u64)>>,
}

impl<M: Meaning> MergeStore<M> {
    pub fn new(volume: VolumeId, meaning: M, options: MergeOptions, allocator: Rc<PageAllocator>) -> Self {
        assert!((1..=LEAVES_MAX).contains(&options.table_leaves));
        Self {
            volume,
            meaning,
            options,
            memory: RefCell::default(),
            frozen: RefCell::default(),
            trees: RefCell::default(),
            cache: PageCache::new(options.cache_bytes),
            allocator,
            next_table: Cell::new(1),
            dropped: RefCell::default(),
            turns: RefCell::default(),
        }
    }

    /// Takes in the tables of a tree that the catalogue names. Their pages are in use already.
    pub fn restore(&self, tree: TreeId, levels: Levels) {
        let newest = levels.views().map(|view| view.table.number).max().unwrap_or(0);
        self.next_table.set(self.next_table.get().max(newest + 1));
        self.trees.borrow_mut().insert(tree, Rc::new(levels));
    }

    /// Takes in items that are older than all that will be applied, and whose effects have been counted.
    pub fn restore_items(&self, memory: Memory) {
        assert!(self.memories().iter().all(|memory| memory.borrow().is_empty()));
        if !memory.is_empty() {
            self.frozen.borrow_mut().push_back(Rc::new(RefCell::new(memory)));
        }
    }

    /// What is in memory, newest first.
    pub(super) fn memories(&self) -> Vec<SharedMemory> {
        let frozen = self.frozen.borrow();
        [&*self.memory.borrow()].into_iter().chain(frozen.iter().rev()).cloned().collect()
    }

    pub(super) fn by_chunks(&self, tree: TreeId) -> bool {
        self.meaning.rule(tree) != Rule::Values
    }

    pub(super) fn reader<'a, P: PageStore>(&'a self, pages: &'a P) -> Reader<'a, P> {
        Reader { volume: self.volume, cache: &self.cache, pages }
    }

    pub fn levels(&self, tree: TreeId) -> Rc<Levels> {
        self.trees.borrow().get(&tree).cloned().unwrap_or_default()
    }

    /// Trees that have tables.
    pub fn trees(&self) -> Vec<TreeId> {
        self.trees.borrow().keys().copied().collect()
    }

    pub fn cache(&self) -> &PageCache {
        &self.cache
    }

    pub fn options(&self) -> &MergeOptions {
        &self.options
    }

    /// Tests have few items, and many tables and levels.
    #[cfg(test)]
    pub fn set_options(&mut self, options: MergeOptions) {
        self.options = options;
    }

    pub fn allocator(&self) -> &Rc<PageAllocator> {
        &self.allocator
    }

    /// Takes in an item, and what follows from it in memory.
    pub fn apply(&self, tree: TreeId, item: OwnedItem) {
        self.memory.borrow().borrow_mut().apply(&self.meaning, tree, item);
    }

    /// What the items in memory take, frozen ones included.
    pub fn memory_bytes(&self) -> usize {
        self.sum_of_memories(Memory::memory_bytes)
    }

    /// What the items in memory take in pages, at most, frozen ones included.
    pub fn encoded_bytes(&self) -> usize {
        self.sum_of_memories(Memory::encoded_bytes)
    }

    fn sum_of_memories(&self, bytes: impl Fn(&Memory) -> usize) -> usize {
        let frozen: usize = self.frozen.borrow().iter().map(|memory| bytes(&memory.borrow())).sum();
        bytes(&self.memory.borrow().borrow()) + frozen
    }

    /// Memories that no longer change and are no tables yet.
    pub fn frozen_count(&self) -> usize {
        self.frozen.borrow().len()
    }

    /// What the items take that have not been frozen.
    pub fn open_memory_bytes(&self) -> usize {
        self.memory.borrow().borrow().memory_bytes()
    }

    /// Calls `visit` with the items of a tree in every memory.
    pub fn visit_memory(&self, tree: TreeId, mut visit: impl FnMut(&crate::format::run::RunItem<'_>)) {
        for memory in self.memories() {
            memory.borrow().from(tree, 0, 0).for_each(|item| visit(&item));
        }
    }

    /// The same with the items whose keys have this `hi`.
    pub fn visit_memory_at(
        &self,
        tree: TreeId,
        hi: u64,
        mut visit: impl FnMut(&crate::format::run::RunItem<'_>),
    ) {
        for memory in self.memories() {
            memory.borrow().covering(tree, hi, 0, u64::MAX).for_each(|item| visit(&item));
        }
    }

    /// Items of a tree, in memory and in tables, as they are: versions and what has not merged count each.
    pub fn item_count(&self, tree: TreeId) -> u64 {
        let mut count = self.levels(tree).views().map(|view| view.table.item_count).sum();
        self.visit_memory(tree, |_| count += 1);
        count
    }

    /// Pages of tables that are in force.
    pub fn page_count(&self) -> u64 {
        let trees = self.trees.borrow();
        trees.values().flat_map(|levels| levels.views()).map(|view| u64::from(view.table.page_count())).sum()
    }

    /// What was applied so far changes no more: a snapshot's moment, or a checkpoint's. Gives the count of memories that do not.
    pub fn freeze(&self) -> usize {
        let memory = std::mem::take(&mut *self.memory.borrow_mut());
        let mut frozen = self.frozen.borrow_mut();
        if !memory.borrow().is_empty() {
            frozen.push_back(memory);
        }
        frozen.len()
    }

    /// The edit counts from now on. Roots of `generation` and later name it.
    pub fn install(&self, edit: Edit, generation: u64) {
        self.frozen.borrow_mut().drain(..edit.frozen_count);
        self.trees.borrow_mut().extend(edit.trees);
        let mut dropped = self.dropped.borrow_mut();
        for table in edit.dropped {
            self.cache.forget(table.number);
            dropped.push(Dropped { generation, table });
        }
    }

    /// The root of this generation is durable: what only earlier ones named is free, but for what is being read.
    pub fn settle(&self, generation: u64) {
        self.dropped.borrow_mut().retain(|dropped| {
            let is_free = dropped.generation <= generation && Rc::strong_count(&dropped.table) == 1;
            if is_free {
                self.allocator.free(addresses_of(&dropped.table));
            }
            !is_free
        });
    }

    /// Pages of tables that were dropped and are not free yet.
    pub fn dropped_pages(&self) -> u64 {
        self.dropped.borrow().iter().map(|dropped| u64::from(dropped.table.page_count())).sum()
    }

    /// The edit will never be durable: its pages are free again.
    pub fn abandon(&self, edit: Edit) {
        self.allocator.free(edit.written);
    }
}

fn addresses_of(table: &Table) -> Vec<MetadataAddress> {
    let extents = table.extents.iter();
    let pages = extents.flat_map(|extent| {
        (0..u64::from(extent.page_count))
            .map(|page| MetadataAddress(extent.start.0 + page * PAGE_BYTES as u64))
    });
    pages.collect()
}
