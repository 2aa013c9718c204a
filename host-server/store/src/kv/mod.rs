//! The key-value store: ordered trees of pages that live in memory and are checkpointed to the metadata region.
//!
//! * Each tree maps a [`Key`] to a value of up to [`VALUE_BYTES_MAX`] bytes. All trees share one memory of pages;
//!   a leaf in memory is its page on disk.
//! * [`KeyValue::snapshot`] takes all trees at once, in constant time. Whatever changes afterwards goes to copies, so
//!   that a checkpoint writes the snapshot while the trees change.
//! * Pages on the devices are never overwritten while a durable root, or one about to be, reaches them
//!   ([`PageAllocator`]).
//! * A page carries the generation of the checkpoint that first wrote it; the pointer to it carries that too, and
//!   its checksum.
//!
//! What merges into the trees, and which effects that has on other keys, is decided above ([`crate::map`]).

mod allocate;
mod checkpoint;
mod leaf;
mod load;
mod node;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tree;
mod window;

use std::ops::ControlFlow;
use std::rc::Rc;

pub use allocate::PageAllocator;
pub use checkpoint::{PageStore, Snapshot};
pub(crate) use window::Window;

use crate::address::VolumeId;
use crate::error::StoreError;
use crate::format::page::{
    INNER_ENTRIES_MAX, LEAF_SLOT_BYTES, PAGE_BYTES, PAGE_CAPACITY_BYTES, Roots, TREE_COUNT_MAX,
};
use crate::volume::{Key, TreeId, VALUE_BYTES_MAX};
use node::Pages;
use tree::Tree;

/// Pages that removals are taken to divide.
const DIVIDED_BY_REMOVALS: usize = 32;

/// All trees of a volume.
pub struct KeyValue {
    volume: VolumeId,
    trees: Vec<Tree>,
    pages: Pages,
    /// Pages that earlier snapshots have, or have yet, to write. Falls to zero when one of them is known durable.
    unsettled_count: usize,
    allocator: Rc<PageAllocator>,
}

impl KeyValue {
    /// Empty trees, to be checkpointed into the allocator's area.
    pub fn new(volume: VolumeId, allocator: Rc<PageAllocator>) -> Self {
        let trees = vec![Tree::default(); TREE_COUNT_MAX];
        Self { volume, trees, pages: Pages::new(1), unsettled_count: 0, allocator }
    }

    /// Reads the trees that a checkpoint left, verifying every page, and marks their pages in the allocator, which
    /// is fresh. Fails with [`Damaged`](crate::error::ErrorKind::Damaged) naming the first page that no mirror has.
    pub async fn load(
        volume: VolumeId,
        roots: &Roots,
        store: &impl PageStore,
        allocator: Rc<PageAllocator>,
    ) -> Result<Self, StoreError> {
        let mut loaded = Self::new(volume, allocator);
        loaded.pages = Pages::new(roots.generation + 1);
        for root in &roots.trees {
            let tree = load::load_tree(store, volume, root, &loaded.allocator, &mut loaded.pages).await?;
            loaded.trees[usize::from(root.tree.0)] = tree;
        }
        Ok(loaded)
    }

    fn tree(&self, tree: TreeId) -> &Tree {
        &self.trees[usize::from(tree.0)]
    }

    pub fn get(&self, tree: TreeId, key: Key) -> Option<&[u8]> {
        self.tree(tree).get(key)
    }

    /// The entry with the highest key that is not above `key`.
    pub fn floor(&self, tree: TreeId, key: Key) -> Option<(Key, &[u8])> {
        self.tree(tree).floor(key)
    }

    /// Calls `visit` with the entries `from <= key <= to` in key order, until it breaks.
    pub fn visit<'a>(
        &'a self,
        tree: TreeId,
        from: Key,
        to: Key,
        mut visit: impl FnMut(Key, &'a [u8]) -> ControlFlow<()>,
    ) {
        let _ = self.tree(tree).visit(from, to, &mut visit);
    }

    /// The first `limit` entries with `from <= key <= to`, in key order.
    pub fn scan(&self, tree: TreeId, from: Key, to: Key, limit: usize) -> Vec<(Key, Vec<u8>)> {
        let mut found = Vec::new();
        if limit > 0 {
            self.visit(tree, from, to, |key, value| {
                found.push((key, value.to_vec()));
                if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
        }
        found
    }

    /// Sets an entry. `value` is at most [`VALUE_BYTES_MAX`] long.
    pub fn put(&mut self, tree: TreeId, key: Key, value: &[u8]) {
        assert!(value.len() <= VALUE_BYTES_MAX, "value of {} bytes in tree {}", value.len(), tree.0);
        self.trees[usize::from(tree.0)].insert(&mut self.pages, key, value);
    }

    /// Removes an entry; `false` where there was none.
    pub fn delete(&mut self, tree: TreeId, key: Key) -> bool {
        self.trees[usize::from(tree.0)].remove(&mut self.pages, key)
    }

    /// Removes the entries `from <= key < to`. Returns how many there were.
    pub fn delete_range(&mut self, tree: TreeId, from: Key, to: Key) -> u64 {
        self.trees[usize::from(tree.0)].remove_range(&mut self.pages, from, to)
    }

    /// Removes all entries of a tree.
    pub fn clear(&mut self, tree: TreeId) {
        self.delete_range(tree, Key::MIN, Key::MAX);
        self.delete(tree, Key::MAX);
    }

    /// Of the next snapshot.
    pub fn generation(&self) -> u64 {
        self.pages.generation
    }

    pub fn entry_count(&self, tree: TreeId) -> u64 {
        self.tree(tree).entry_count
    }

    /// Takes all trees as they are, in constant time, and begins the next generation.
    pub fn snapshot(&mut self) -> Snapshot {
        let generation = self.pages.generation;
        self.allocator.retire(generation, std::mem::take(&mut self.pages.retired));
        self.unsettled_count += self.pages.fresh_count;
        self.pages.fresh_count = 0;
        self.pages.generation += 1;
        let id = |index: usize| TreeId(index as u8);
        let trees = self.trees.iter().enumerate().filter(|(_, tree)| tree.root.is_some());
        Snapshot {
            volume: self.volume,
            generation,
            trees: trees.map(|(index, tree)| (id(index), tree.clone())).collect(),
            allocator: Rc::clone(&self.allocator),
        }
    }

    /// The roots of the newest snapshot are durable: frees the pages that only earlier ones reach.
    pub fn settle(&mut self, generation: u64) {
        self.allocator.release(generation);
        if generation + 1 == self.pages.generation {
            self.unsettled_count = 0;
        }
    }

    /// Memory of all pages, those included that only snapshots hold.
    pub fn memory_bytes(&self) -> usize {
        self.pages.resident_count() * PAGE_BYTES
    }

    /// Pages of the trees as they are now.
    pub fn page_count(&self) -> usize {
        self.pages.count
    }

    /// At most so many pages would be written by a checkpoint that began now.
    pub fn dirty_page_bound(&self) -> usize {
        (self.pages.fresh_count + self.unsettled_count).min(self.pages.count)
    }

    /// At most so many more pages will be dirty after `changes` puts, deletes and effects, of at most
    /// `value_bytes` each.
    pub fn page_bound_of_changes(&self, changes: usize, value_bytes: usize) -> usize {
        let height = self.height_bound();
        let copied = changes.saturating_mul(height).min(self.pages.count);
        // A page divides when it overflows: each that is there now at most once, a new one only after half a page
        // of entries has gone into it.
        let bytes = changes.saturating_mul(LEAF_SLOT_BYTES + value_bytes);
        let refilled = bytes.div_ceil(PAGE_CAPACITY_BYTES / 2);
        let divided = changes.min(self.pages.count.saturating_add(refilled));
        copied + divided + divided.div_ceil(INNER_ENTRIES_MAX / 2) + height
    }

    /// As [`page_bound_of_changes`](Self::page_bound_of_changes), for changes of which none adds more than `value_bytes` to a
    /// page and most add nothing: deletions and effects. That such a change divides a page which is full to the last byte is left to
    /// the reserve, but for a few.
    pub fn page_bound_of_removals(&self, changes: usize, value_bytes: usize) -> usize {
        if changes == 0 {
            return 0;
        }
        let copied = changes.saturating_mul(self.height_bound()).min(self.pages.count);
        let bytes = changes.saturating_mul(LEAF_SLOT_BYTES + value_bytes);
        copied
            + bytes.div_ceil(PAGE_CAPACITY_BYTES / 2)
            + changes.min(DIVIDED_BY_REMOVALS)
            + self.height_bound()
    }

    /// At most so many more pages will be dirty after `runs` runs of neighbouring entries, of `bytes` in all with their slots.
    pub fn page_bound_of_runs(&self, runs: usize, bytes: usize) -> usize {
        runs * (self.height_bound() + 2) + bytes.div_ceil(PAGE_CAPACITY_BYTES / 2)
    }

    /// Pages from the root of the highest tree down, one more for a root that divides.
    fn height_bound(&self) -> usize {
        let levels = self.trees.iter().filter_map(|tree| tree.root.as_ref()).map(|root| root.level());
        usize::from(levels.max().unwrap_or(0)) + 2
    }

    pub fn allocator(&self) -> &Rc<PageAllocator> {
        &self.allocator
    }
}
