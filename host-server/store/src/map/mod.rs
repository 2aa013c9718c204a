//! Two-level maps: block of an object → middle address → physical block and checksum; and the trees of the filesystem.
//!
//! [`Maps`] takes blind [`Message`]s. All trees are in the merge store ([`crate::merge`]) but for the *catalogue*, which stays in memory as page trees: it
//! names the tables of the merge store and holds the counts of live blocks of the segments. What messages cause in other trees (`rules`) takes effect when they
//! meet what they displace, in memory or in a merge, and becomes durable with that:
//!
//! * overwriting, unmapping or shifting onto blocks of an object → a reference less to the middle addresses they were mapped to,
//! * birth, move and death of a middle address → live blocks of the segments concerned.
//!
//! So counts of live blocks are too high by what has not merged yet. Reads need the device; changes never do.
//!
//! Modules, lowest first: `rules` · `message` · `usage` · `catalogue` · `upgrade` · `lookup`

mod catalogue;
mod lookup;
mod message;
mod rules;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod upgrade;
mod usage;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

pub use message::Message;

use crate::address::{
    BlockChecksum, LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock, SegmentId, ViewId, VolumeId,
};
use crate::error::{ErrorKind, StoreError};
use crate::format::page::{PAGE_CAPACITY_BYTES, Roots};
use crate::format::run::{ITEM_BYTES_MAX, ItemKind, RunItem};
use crate::kv::{KeyValue, PageAllocator, PageStore, Snapshot};
use crate::limits::{MEMORY_TABLE_BYTES_MAX, MEMORY_TABLE_BYTES_MIN, MERGE_TABLE_LEAVES_MIN};
use crate::merge::fold::Fired;
use crate::merge::item::{Item, decode_signed};
use crate::merge::lookup::Span;
use crate::merge::memory::Memory;
use crate::merge::read::{Bounds, View};
use crate::merge::store::{MergeOptions, MergeStore};
use crate::merge::table::{LEAVES_MAX, page_bound, table_bound};
use crate::views::Views;
use crate::volume::{Key, TreeId, VALUE_BYTES_MAX, ViewEntry};
use rules::Rules;

/// The store's own trees.
pub mod tree {
    use crate::address::{SegmentId, StripeIndex};
    use crate::volume::{Key, TreeId};

    /// Object, block → middle address.
    pub const LOGICAL: TreeId = TreeId(1);
    /// Middle address → physical block, checksums.
    pub const MIDDLE: TreeId = TreeId(2);
    /// Segment → live blocks.
    pub const USAGE: TreeId = TreeId(3);
    /// Segment, stripe → checksum and middle address of every block; the segment's owner lays the value out.
    pub const SUMMARY: TreeId = TreeId(4);
    /// Properties of the store.
    pub const PROPERTIES: TreeId = TreeId(5);
    /// Tables of the merge store.
    pub const TABLES: TreeId = TreeId(6);
    /// Views, branches and snapshots.
    pub const VIEWS: TreeId = TreeId(7);
    /// Branch and epochs, middle address → mappings that were displaced and that snapshots see.
    pub const DEAD: TreeId = TreeId(8);

    /// Whether every view has its own: keys have the view in the upper bits of `hi`.
    pub fn is_of_views(tree: TreeId) -> bool {
        let is_filesystem = (TreeId::FIRST_FILESYSTEM..=TreeId::LAST_FILESYSTEM).contains(&tree);
        tree == LOGICAL || is_filesystem && tree != TreeId::SHARED
    }

    /// The key of a stripe in [`SUMMARY`]. Those of one segment lie together.
    pub fn summary_key(segment: SegmentId, stripe: StripeIndex) -> Key {
        Key::new(u64::from(segment.0), u64::from(stripe.0))
    }
}

/// A piece of an object, as [`Maps::lookup`] finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedPiece {
    pub start: LogicalBlock,
    pub len_blocks: u64,
    pub content: Content,
}

/// What a piece of an object holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Hole,
    /// Stored on consecutive physical blocks.
    Data {
        middle: MiddleAddress,
        physical: PhysicalBlock,
        checksums: Vec<BlockChecksum>,
    },
    /// Mapped to what lies nowhere: it was overwritten while this was looked up, or is damage.
    Lost {
        middle: MiddleAddress,
    },
}

/// What has become of middle addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// On consecutive physical blocks.
    Stored { physical: PhysicalBlock, checksums: Vec<BlockChecksum> },
    /// Nothing refers to them, or they were never born.
    Dead,
}

/// A piece of a range of middle addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MiddlePiece {
    pub middle: MiddleAddress,
    pub len_blocks: u64,
    pub fate: Fate,
}

/// What merging everything is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// Blocks that were overwritten or removed.
    Blocks,
    /// Blocks that were overwritten or removed and that snapshots saw which are removed.
    Dead,
    /// Pages of entries that were, too.
    Pages,
}

/// What the maps are to fit.
#[derive(Clone, Copy, Debug)]
pub struct MapsShape {
    /// Data blocks of a segment.
    pub segment_blocks: u64,
    /// Of the volume: nothing lies beyond.
    pub data_blocks: u64,
    /// Memory for tables and cached pages.
    pub memory_bytes: u64,
}

impl MapsShape {
    /// Memory for items, small enough that a small page area has room for what they become.
    fn table_bytes(&self, page_count: usize) -> usize {
        let of_memory = self.memory_bytes as usize / 8;
        let of_area = page_count * PAGE_CAPACITY_BYTES / 16;
        of_memory.min(of_area).clamp(MEMORY_TABLE_BYTES_MIN, MEMORY_TABLE_BYTES_MAX)
    }

    fn merge_options(&self, page_count: usize) -> MergeOptions {
        let table_leaves = (page_count / 128).clamp(MERGE_TABLE_LEAVES_MIN, LEAVES_MAX);
        let items = 3 * self.table_bytes(page_count);
        MergeOptions {
            cache_bytes: (self.memory_bytes as usize).saturating_sub(items).max(MEMORY_TABLE_BYTES_MIN),
            table_leaves,
            piece_pages: 2 * table_leaves,
            ..MergeOptions::default()
        }
    }
}

/// The maps and all other trees of a volume.
pub struct Maps {
    merge: MergeStore<Rules>,
    pub views: Rc<Views>,
    catalogue: RefCell<KeyValue>,
    shape: MapsShape,
    /// No more blocks than this are mapped, as those know who map and unmap them. Counts of live blocks come down to it as
    /// everything merges.
    mapped_blocks: Cell<u64>,
}

impl Maps {
    /// Empty maps.
    pub fn new(volume: VolumeId, allocator: Rc<PageAllocator>, shape: MapsShape) -> Self {
        Self::over(volume, KeyValue::new(volume, allocator), Rc::default(), shape)
    }

    fn over(volume: VolumeId, kv: KeyValue, views: Rc<Views>, shape: MapsShape) -> Self {
        assert!(shape.segment_blocks > 0);
        let allocator = Rc::clone(kv.allocator());
        let options = shape.merge_options(allocator.page_count());
        let rules = Rules { segment_blocks: shape.segment_blocks, views: Rc::clone(&views) };
        let merge = MergeStore::new(volume, rules, options, allocator);
        Self { merge, views, catalogue: RefCell::new(kv), shape, mapped_blocks: Cell::new(0) }
    }

    /// Reads the catalogue that the checkpoint behind `roots` left. Tables are verified when they are read. Maps of earlier releases are taken into memory
    /// whole; the next checkpoint makes tables of them.
    pub async fn load(
        volume: VolumeId,
        roots: &Roots,
        store: &impl PageStore,
        allocator: Rc<PageAllocator>,
        shape: MapsShape,
    ) -> Result<Self, StoreError> {
        let damaged = |found: String| {
            StoreError::new(ErrorKind::Damaged, "load", "maps", found).advice("run `ringfort volume check`")
        };
        let mut kv = KeyValue::load(volume, roots, store, allocator).await?;
        usage::check(&kv).map_err(damaged)?;
        let views = Rc::new(catalogue::load_views(&kv).map_err(damaged)?);
        let rules = Rules { segment_blocks: shape.segment_blocks, views: Rc::clone(&views) };
        let earlier = upgrade::take_trees(&mut kv, &rules).map_err(damaged)?;
        let tables = catalogue::load_tables(&kv, kv.allocator())?;
        let maps = Self::over(volume, kv, views, shape);
        tables.into_iter().for_each(|(tree, levels)| maps.merge.restore(tree, levels));
        maps.merge.restore_items(earlier);
        maps.mapped_blocks.set(maps.counted_blocks());
        Ok(maps)
    }

    /// Takes in a message. Reads see it from now on.
    pub fn apply(&self, message: Message) {
        for (tree, item) in message.into_items(&self.merge.meaning) {
            self.merge.apply(tree, item);
        }
    }

    // ---- checkpoints and merges ------------------------------------------------------------------------------------------

    /// What was applied so far is what the next checkpoint holds. Gives the count of frozen memories, for [`Maps::flush`].
    pub fn seal(&self) -> usize {
        let mut kv = self.catalogue.borrow_mut();
        catalogue::note_views(&mut kv, &self.views);
        self.merge.freeze()
    }

    /// A view is made or changed, or is gone.
    pub fn put_view(&self, view: ViewId, entry: Option<ViewEntry>) {
        // Memories are of one epoch.
        if entry.is_some() && self.views.is_new(view) {
            self.merge.freeze();
        }
        self.views.put(view, entry);
    }

    /// Makes tables of so many frozen memories, the oldest. One flush or merge at a time.
    pub async fn flush(&self, pages: &impl PageStore, frozen_count: usize) -> Result<(), StoreError> {
        let edit = self.merge.flush(pages, frozen_count).await?;
        self.install(edit);
        Ok(())
    }

    fn install(&self, edit: crate::merge::store::Edit) {
        let mut kv = self.catalogue.borrow_mut();
        catalogue::note_edit(&mut kv, &edit, |tree| self.merge.levels(tree));
        self.merge.install(edit, kv.generation());
        drop(kv);
        self.mapped_blocks.set(self.live_blocks_in_all());
    }

    /// Merges one piece of what is too many tables. False where nothing is, or where there are no pages for it before the next checkpoint, `promised_pages`
    /// left to others.
    pub async fn merge_piece(
        &self,
        pages: &impl PageStore,
        promised_pages: usize,
    ) -> Result<bool, StoreError> {
        match self.merge.wants_merge() {
            Some((tree, level)) => self.merge_one(pages, tree, level, promised_pages).await,
            None => Ok(false),
        }
    }

    /// Whether so many runs wait for a merge that changes should.
    pub fn lags_behind(&self) -> bool {
        let limit = self.merge.options().newest_runs * 4;
        self.merge.trees().into_iter().any(|tree| self.merge.levels(tree).newest.len() > limit)
    }

    /// Whether a merge is due.
    pub fn wants_merge(&self) -> bool {
        self.merge.wants_merge().is_some()
    }

    /// Merges one piece of whatever may still displace blocks or end them. False where all have met, or where there are no pages for it as with
    /// [`Maps::merge_piece`].
    pub async fn reclaim_piece(
        &self,
        pages: &impl PageStore,
        what: Reclaim,
        promised_pages: usize,
    ) -> Result<bool, StoreError> {
        let next = self.trees_of(what).find_map(|tree| Some((tree, self.unsettled_level(tree)?)));
        match next {
            Some((tree, level)) => self.merge_one(pages, tree, level, promised_pages).await,
            None => Ok(false),
        }
    }

    /// Whether there is something to merge for that, what is in memory left aside.
    pub fn may_reclaim(&self, what: Reclaim) -> bool {
        self.trees_of(what).any(|tree| self.unsettled_level(tree).is_some())
    }

    /// In the order in which one tree's merges give work to the next.
    fn trees_of(&self, what: Reclaim) -> impl Iterator<Item = TreeId> {
        let maps = [tree::LOGICAL, tree::DEAD, tree::MIDDLE];
        let maps = if what == Reclaim::Dead { &maps[1..2] } else { &maps[..] };
        let others = match what {
            Reclaim::Blocks | Reclaim::Dead => Vec::new(),
            Reclaim::Pages => self.merge.trees(),
        };
        let others = others.into_iter().filter(|tree| !maps.contains(tree));
        maps.iter().copied().chain(others).collect::<Vec<_>>().into_iter()
    }

    /// The highest level with tables that may meet others below.
    fn unsettled_level(&self, tree: TreeId) -> Option<usize> {
        let levels = self.merge.levels(tree);
        if !levels.newest.is_empty() {
            return Some(0);
        }
        let first = levels.deeper.iter().position(|run| !run.is_empty())?;
        levels.deeper[first + 1..].iter().any(|run| !run.is_empty()).then_some(first + 1)
    }

    async fn merge_one(
        &self,
        pages: &impl PageStore,
        tree: TreeId,
        level: usize,
        promised_pages: usize,
    ) -> Result<bool, StoreError> {
        let needed_pages = self.checkpoint_page_bound() + promised_pages;
        let free_pages = self.merge.allocator().free_count();
        if needed_pages > free_pages {
            return Ok(false);
        }
        // Tables of which a part has merged keep all their pages until the rest has.
        let options = self.merge.options();
        let spare_pages = free_pages - needed_pages;
        let runs_max = options.newest_runs + spare_pages / table_bound(options.table_leaves);
        let edit = self.merge.merge_piece(pages, tree, level, runs_max).await?;
        self.install(edit);
        Ok(true)
    }

    /// Pages that a merge of everything has in use at once beyond those that it begins with, at most, made of pieces for each of which there is room.
    pub fn merge_page_bound(&self) -> usize {
        let options = self.merge.options();
        (options.newest_runs + 2) * table_bound(options.table_leaves)
    }

    /// The catalogue as it is, with the tables of every flush and merge so far.
    pub fn snapshot(&self) -> Snapshot {
        self.catalogue.borrow_mut().snapshot()
    }

    /// The roots of the snapshot of this generation are durable on every live mirror.
    pub fn settle(&self, generation: u64) {
        self.catalogue.borrow_mut().settle(generation);
        self.merge.settle(generation);
    }

    // ---- views ----------------------------------------------------------------------------------------------------------

    /// Trees of which views may have something.
    pub fn trees_of_views(&self) -> Vec<TreeId> {
        let trees = (TreeId::FIRST_FILESYSTEM.0..=TreeId::LAST_FILESYSTEM.0).map(TreeId);
        trees.chain([tree::LOGICAL]).filter(|tree| tree::is_of_views(*tree)).collect()
    }

    /// The first `hi`, from `next` on, under which a branch has something of its own in a tree.
    pub async fn next_number(
        &self,
        pages: &impl PageStore,
        tree: TreeId,
        branch: ViewId,
        next: u64,
    ) -> Result<Option<u64>, StoreError> {
        let bounds = Bounds { from: (next, 0), to: (branch.numbers().1, u64::MAX) };
        let from = self.views.get(branch).map_or(0, |entry| entry.epoch);
        let span = Span { epochs: from..=u32::MAX, ..Span::all(bounds) };
        let found = self.merge.scan(pages, tree, &[span], 1).await?;
        Ok(found.first().map(|item| item.hi))
    }

    /// Removes what a tree has under a `hi`.
    pub fn remove_number(&self, tree: TreeId, hi: u64) {
        self.apply(match tree {
            tree::LOGICAL => {
                Message::UnmapRun { object: ObjectId(hi), start: LogicalBlock(0), len_blocks: u64::MAX }
            }
            tree => Message::DeleteAll { tree, hi },
        });
    }

    /// Tables that may hold cells which only some snapshots that are being removed keep.
    pub fn tables_of_cells(&self, snapshots: &[ViewId]) -> Vec<u64> {
        let alone = snapshots.iter().filter_map(|snapshot| self.views.alone(*snapshot));
        let cells: Vec<Bounds> = alone.map(rules::bounds_of_cells).collect();
        let levels = self.merge.levels(tree::DEAD);
        let meets = |view: &&View| cells.iter().any(|bounds| bounds.meets(&view.bounds));
        levels.views().filter(meets).map(|view| view.table.number).collect()
    }

    /// Ends the cells of a table that nobody keeps. False where there are no pages for more of it before the next checkpoint.
    pub async fn rewrite_cells(
        &self,
        pages: &impl PageStore,
        table: u64,
        promised_pages: usize,
    ) -> Result<bool, StoreError> {
        loop {
            let needed_pages = self.checkpoint_page_bound() + promised_pages;
            if needed_pages > self.merge.allocator().free_count() {
                return Ok(false);
            }
            let edit = self.merge.rewrite_piece(pages, tree::DEAD, table).await?;
            let Some(edit) = edit else { return Ok(true) };
            self.install(edit);
        }
    }

    // ---- the catalogue -----------------------------------------------------------------------------------------------------

    /// Live blocks of a segment, and those that have died without having met what ended them.
    pub fn live_blocks(&self, segment: SegmentId) -> u64 {
        let key = u64::from(segment.0);
        let mut count = usage::counted(&self.catalogue.borrow(), segment);
        self.merge.visit_memory_at(tree::USAGE, key, |item| count += decode_signed(item.number));
        u64::try_from(count).unwrap_or(0)
    }

    /// Live blocks of the volume, those left out of which it is known that they have died.
    pub fn live_blocks_in_all(&self) -> u64 {
        self.counted_blocks().min(self.mapped_blocks.get())
    }

    /// Notes how many blocks more, or fewer, are mapped.
    pub fn note_mapped(&self, change_blocks: i64) {
        // What snapshots see stays.
        let change_blocks = match self.views.keeps_what_is_overwritten() {
            true => change_blocks.max(0),
            false => change_blocks,
        };
        self.mapped_blocks.set(self.mapped_blocks.get().saturating_add_signed(change_blocks));
    }

    /// Blocks that have died without having met what ended them, as far as is known.
    pub fn unmet_blocks(&self) -> u64 {
        self.counted_blocks() - self.live_blocks_in_all()
    }

    /// The sum of all counts of live blocks.
    fn counted_blocks(&self) -> u64 {
        let mut count = 0;
        usage::visit_segments(&self.catalogue.borrow(), |_, live_blocks| count += live_blocks);
        self.merge.visit_memory(tree::USAGE, |item| count += decode_signed(item.number));
        u64::try_from(count).unwrap_or(0)
    }

    /// Sets a property of the store, which becomes durable with the next checkpoint.
    pub fn set_property(&self, key: Key, value: &[u8]) {
        self.catalogue.borrow_mut().put(tree::PROPERTIES, key, value);
    }

    pub fn property(&self, key: Key) -> Option<Vec<u8>> {
        self.catalogue.borrow().get(tree::PROPERTIES, key).map(<[u8]>::to_vec)
    }

    // ---- walking everything --------------------------------------------------------------------------------------------

    /// Calls `visit` with what is left of each stretch of a tree when everything has merged, `newest` as well, and gives back what that causes elsewhere.
    pub async fn walk(
        &self,
        pages: &impl PageStore,
        tree: TreeId,
        newest: &Memory,
        mut visit: impl FnMut(&RunItem<'_>),
    ) -> Result<Memory, StoreError> {
        const ALL: Bounds = Bounds { from: (0, 0), to: (u64::MAX, u64::MAX) };
        let mut effects = Memory::default();
        let each = |left: &mut Vec<crate::merge::item::OwnedItem>| {
            let alive = left.iter().filter(|item| item.kind != ItemKind::Erase);
            alive.for_each(|item| visit(&item.as_run_item()));
            true
        };
        let mut fire = |fired: &mut Fired| {
            fired.drain(..).for_each(|(tree, item)| effects.apply(&self.merge.meaning, tree, item));
        };
        self.merge.sweep(pages, tree, &[Span::all(ALL)], newest, each, &mut fire).await?;
        Ok(effects)
    }

    /// What two walks have caused, as one.
    pub fn joined(&self, mut memory: Memory, more: &Memory) -> Memory {
        for tree in more.trees() {
            let items = more.from(tree, 0, 0);
            items.for_each(|item| memory.apply(&self.merge.meaning, tree, Item::from(item).into_owned()));
        }
        memory
    }

    /// Reads every table whole, and calls `fault` with what is wrong. Pages come from the devices, whatever is cached.
    pub async fn verify_tables(&self, pages: &impl PageStore, mut fault: impl FnMut(StoreError)) {
        for tree in self.merge.trees() {
            for view in self.merge.levels(tree).views() {
                if let Err(error) = self.merge.verify_table(pages, &view.table).await {
                    fault(error);
                }
            }
        }
    }

    // ---- what they take ------------------------------------------------------------------------------------------------

    /// Items of a tree, those included that newer ones hide.
    pub fn entry_count(&self, tree: TreeId) -> u64 {
        self.merge.item_count(tree)
    }

    /// Memory of items, cached pages and the catalogue.
    pub fn memory_bytes(&self) -> usize {
        self.merge.memory_bytes() + self.merge.cache().memory_bytes() + self.catalogue.borrow().memory_bytes()
    }

    /// Whether so much is in memory that it should become tables.
    pub fn memory_is_full(&self) -> bool {
        self.merge.open_memory_bytes() >= self.shape.table_bytes(self.merge.allocator().page_count())
    }

    /// Whether views were made so often that readers have many memories to look into.
    pub fn is_in_many_memories(&self) -> bool {
        self.merge.frozen_count() > FROZEN_WANTED_MAX
    }

    /// Whether so much is in memory that changes should wait.
    pub fn memory_is_crowded(&self) -> bool {
        self.merge.memory_bytes() >= 3 * self.shape.table_bytes(self.merge.allocator().page_count())
    }

    /// Pages of tables and catalogue as they are now.
    pub fn page_count(&self) -> usize {
        self.catalogue.borrow().page_count() + self.merge.page_count() as usize
    }

    /// Free pages that a checkpoint and the merges around it need which begin now, at most. Compare with [`PageAllocator::free_count`].
    pub fn checkpoint_page_bound(&self) -> usize {
        let kv = self.catalogue.borrow();
        let table_leaves = self.merge.options().table_leaves;
        let flushed = page_bound(self.merge.encoded_bytes(), table_leaves) + PAGES_A_TREE * TREES;
        let catalogue =
            kv.dirty_page_bound() + kv.page_bound_of_changes(TREES + flushed / 8, VALUE_BYTES_MAX / 4);
        flushed + catalogue + self.merge.piece_page_bound()
    }

    /// Free pages more that the checkpoint needs after `changes`.
    pub fn page_bound_of(&self, changes: &Changes) -> usize {
        const ITEM_BYTES: u64 = ITEM_BYTES_MAX as u64;
        let long = changes.long_entries.saturating_mul(VALUE_BYTES_MAX as u64 + ITEM_BYTES);
        let short = changes.short_entries.saturating_add(changes.data_blocks.saturating_mul(2));
        let summaries = changes.stripes.saturating_mul(changes.summary_bytes_max + ITEM_BYTES);
        let bytes = long.saturating_add(short.saturating_mul(ITEM_BYTES)).saturating_add(summaries);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(usize::MAX / 4);
        page_bound(bytes, self.merge.options().table_leaves)
    }

    pub fn allocator(&self) -> &Rc<PageAllocator> {
        self.merge.allocator()
    }
}

/// What transactions may do to the trees, at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Entries with values of any length.
    pub long_entries: u64,
    /// Entries removed, and blocks unmapped.
    pub short_entries: u64,
    /// Blocks written: each is born and mapped.
    pub data_blocks: u64,
    /// Stripes that get a summary.
    pub stripes: u64,
    pub summary_bytes_max: u64,
}

/// Memories that views have ended and that no table has taken yet: readers look into each.
const FROZEN_WANTED_MAX: usize = 8;

/// Trees that a flush may make a run of.
const TREES: usize = 11;

/// Pages of a run that need not be full: the last leaf, index and filter.
const PAGES_A_TREE: usize = 3;

/// Pages that the maps of `data_blocks` live blocks take, each a run of its own, with what merges have not met yet and what is being written anew. The metadata region is
/// sized by it; the running store refuses by [`Maps::page_bound_of`].
pub fn worst_case_pages(data_blocks: u64) -> u64 {
    /// Slots and values of the logical and of the middle map in page trees of earlier releases: a volume of theirs needs room for both.
    const BLOCK_BYTES_IN_MAPS: u64 = (20 + 16) + (20 + 16 + 4);
    let leaves = data_blocks.saturating_mul(BLOCK_BYTES_IN_MAPS).div_ceil(PAGE_CAPACITY_BYTES as u64 / 2);
    leaves + leaves.div_ceil(200) + tree::PROPERTIES.0 as u64
}
