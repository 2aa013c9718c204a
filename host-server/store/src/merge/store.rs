//! The merge store itself: what is in memory, what is in tables, and how the one becomes the other.
//!
//! Nothing here makes an edit durable: [`MergeStore::flush`] and [`MergeStore::merge_piece`] write tables and say what would change; whoever calls writes the catalogue
//! and a root, and then calls [`MergeStore::install`]. Until then nothing that a root names has been touched, and the pages of a failed edit go back
//! with [`MergeStore::abandon`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use ringfort_engine::buffer::Slice;

use super::cache::PageCache;
use super::fold::{Fired, Meaning, Rule};
use super::item::{Item, OwnedItem};
use super::levels::{Levels, meeting};
use super::memory::Memory;
use super::read::{Bounds, Cursor, Reader, View};
use super::sweep::{Joined, Step, Sweep, owned};
use super::table::{Table, TableWriter, extents_of};
use crate::address::{MetadataAddress, VolumeId};
use crate::error::StoreError;
use crate::format::page::PAGE_BYTES;
use crate::format::run::ItemKind;
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
    /// Pages that one piece of a merge writes before it ends.
    pub piece_pages: usize,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self { cache_bytes: 256 << 20, newest_runs: 4, first_level_pages: 4096, piece_pages: 1024 }
    }
}

/// How much larger each level is than the one above.
pub const LEVEL_GROWTH: u64 = 10;

/// A change of tables that is written, but not in force.
#[derive(Default)]
pub struct Edit {
    /// The tables of trees, as they will be.
    trees: BTreeMap<TreeId, Rc<Levels>>,
    /// Addresses of the pages that were written for it.
    written: Vec<MetadataAddress>,
    /// Tables that nothing will name any more.
    dropped: Vec<Rc<Table>>,
    /// Frozen memories that it holds, from the oldest on.
    frozen_count: usize,
}

impl Edit {
    /// The tables of the trees that it changes.
    pub fn trees(&self) -> impl Iterator<Item = (TreeId, &Levels)> {
        self.trees.iter().map(|(tree, levels)| (*tree, &**levels))
    }

    pub fn written_pages(&self) -> usize {
        self.written.len()
    }
}

pub struct MergeStore<M> {
    volume: VolumeId,
    pub meaning: M,
    options: MergeOptions,
    memory: RefCell<Memory>,
    /// Oldest first. No longer changed.
    frozen: RefCell<VecDeque<Rc<Memory>>>,
    trees: RefCell<BTreeMap<TreeId, Rc<Levels>>>,
    cache: PageCache,
    allocator: Rc<PageAllocator>,
    next_table: Cell<u64>,
    /// Where the next piece of a level begins, so that all its keys have their turn.
    turns: RefCell<BTreeMap<(TreeId, usize), (u64, u64)>>,
}

/// Gathers the output of one sweep into tables.
struct Output<'a, M> {
    store: &'a MergeStore<M>,
    tree: TreeId,
    joined: Joined,
    writer: Option<TableWriter>,
    finished: Vec<(Table, Vec<Slice>)>,
}

impl<M: Meaning> Output<'_, M> {
    fn push(&mut self, left: &mut Vec<OwnedItem>) {
        let Self { store, tree, joined, writer, finished } = self;
        joined.push(left, |item| put_into(store, *tree, writer, finished, &item));
    }

    fn page_count(&self) -> usize {
        self.finished.iter().map(|(_, pages)| pages.len()).sum()
    }

    fn finish(mut self) -> Vec<(Table, Vec<Slice>)> {
        if let Some(item) = self.joined.finish() {
            put_into(self.store, self.tree, &mut self.writer, &mut self.finished, &item);
        }
        self.finished.extend(self.writer.take().and_then(TableWriter::finish));
        self.finished
    }
}

fn put_into<M: Meaning>(
    store: &MergeStore<M>,
    tree: TreeId,
    writer: &mut Option<TableWriter>,
    finished: &mut Vec<(Table, Vec<Slice>)>,
    item: &OwnedItem,
) {
    // Versions of the same keys stay in one table.
    if writer.as_ref().is_some_and(|writer| writer.is_full() && writer.last() != (item.hi, item.last)) {
        finished.extend(writer.take().and_then(TableWriter::finish));
    }
    writer.get_or_insert_with(|| store.table_writer(tree)).push(&item.as_run_item());
}

impl<M: Meaning> MergeStore<M> {
    pub fn new(volume: VolumeId, meaning: M, options: MergeOptions, allocator: Rc<PageAllocator>) -> Self {
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
            turns: RefCell::default(),
        }
    }

    fn by_chunks(&self, tree: TreeId) -> bool {
        self.meaning.rule(tree) != Rule::Values
    }

    fn table_writer(&self, tree: TreeId) -> TableWriter {
        let number = self.next_table.replace(self.next_table.get() + 1);
        TableWriter::new(self.volume, tree, number, self.by_chunks(tree))
    }

    fn reader<'a, P: PageStore>(&'a self, pages: &'a P) -> Reader<'a, P> {
        Reader { volume: self.volume, cache: &self.cache, pages }
    }

    pub fn levels(&self, tree: TreeId) -> Rc<Levels> {
        self.trees.borrow().get(&tree).cloned().unwrap_or_default()
    }

    pub fn cache(&self) -> &PageCache {
        &self.cache
    }

    /// Takes in an item, and what follows from it in memory.
    pub fn apply(&self, tree: TreeId, item: OwnedItem) {
        self.memory.borrow_mut().apply(&self.meaning, tree, item);
    }

    /// What the items in memory take, frozen ones included.
    pub fn memory_bytes(&self) -> usize {
        let frozen: usize = self.frozen.borrow().iter().map(|memory| memory.memory_bytes()).sum();
        self.memory.borrow().memory_bytes() + frozen
    }

    /// What was applied so far changes no more: a snapshot's moment, or a checkpoint's.
    pub fn freeze(&self) {
        let memory = std::mem::take(&mut *self.memory.borrow_mut());
        if !memory.is_empty() {
            self.frozen.borrow_mut().push_back(Rc::new(memory));
        }
    }

    // ---- reading -----------------------------------------------------------------------------------------------------

    /// What is said of the keys `lo..=last` under `hi` that a snapshot of `epoch` sees, folded, in order: at most one item for each key, no erasures, and no more than `limit` items.
    pub async fn scan<P: PageStore>(
        &self,
        pages: &P,
        tree: TreeId,
        bounds: Bounds,
        epoch: u32,
        limit: usize,
    ) -> Result<Vec<OwnedItem>, StoreError> {
        let reader = self.reader(pages);
        // Taken at once: what is applied while pages are read is not seen.
        let mut in_memory: Vec<VecDeque<OwnedItem>> =
            vec![self.in_memory(&self.memory.borrow(), tree, &bounds)];
        in_memory
            .extend(self.frozen.borrow().iter().rev().map(|memory| self.in_memory(memory, tree, &bounds)));
        let levels = self.levels(tree);
        let mut runs = Vec::new();
        for run in levels.runs() {
            let met = meeting(run, &bounds);
            if !met.is_empty() {
                runs.push(RunCursor::new(met, bounds));
            }
        }
        let memory_count = in_memory.len();
        let mut sweep = Sweep::new(tree, memory_count + runs.len(), true);
        let (mut left, mut fired, mut found) = (Vec::new(), Fired::new(), Vec::new());
        while found.len() < limit {
            match sweep.step(&self.meaning, &mut left, &mut fired) {
                Step::Done => break,
                Step::Merged => {
                    // Of versions the newest is what the snapshot sees.
                    found.extend(left.drain(..).next().filter(|item| item.kind != ItemKind::Erase));
                    left.clear();
                    fired.clear();
                }
                Step::Needs(source) => {
                    let next = match source.checked_sub(memory_count) {
                        None => in_memory[source].pop_front(),
                        Some(run) => runs[run].next(&reader).await?,
                    };
                    match next {
                        Some(item) if item.epoch <= epoch => sweep.feed(source, item),
                        Some(_) => {}
                        None => sweep.end(source),
                    }
                }
            }
        }
        Ok(found)
    }

    fn in_memory(&self, memory: &Memory, tree: TreeId, bounds: &Bounds) -> VecDeque<OwnedItem> {
        let items = memory.from(tree, bounds.from.0, bounds.from.1);
        let items = items.take_while(|item| (item.hi, item.lo) <= bounds.to);
        owned(items).into_iter().filter_map(|item| bounds.clip(&item.as_run_item())).collect()
    }

    /// The value of a key of a tree of values, as a snapshot of `epoch` sees it.
    pub async fn get<P: PageStore>(
        &self,
        pages: &P,
        tree: TreeId,
        hi: u64,
        lo: u64,
        epoch: u32,
    ) -> Result<Option<OwnedItem>, StoreError> {
        let levels = self.levels(tree);
        if let Some(found) = self.newest_in_memory(tree, hi, lo, epoch) {
            return Ok(Some(found).filter(|item| item.kind != ItemKind::Erase));
        }
        let reader = self.reader(pages);
        let bounds = Bounds { from: (hi, lo), to: (hi, lo) };
        for run in levels.runs() {
            for view in meeting(run, &bounds) {
                if !reader.may_hold(&view.table, hi, lo, self.by_chunks(tree)).await? {
                    continue;
                }
                let mut cursor = Cursor::new(view.clone());
                cursor.seek(&reader, hi, lo).await?;
                while let Some(item) = cursor.next(&reader).await? {
                    if item.hi != hi || item.lo > lo {
                        break;
                    }
                    if item.epoch <= epoch {
                        return Ok(Some(item).filter(|item| item.kind != ItemKind::Erase));
                    }
                }
            }
        }
        Ok(None)
    }

    fn newest_in_memory(&self, tree: TreeId, hi: u64, lo: u64, epoch: u32) -> Option<OwnedItem> {
        let at = |memory: &Memory| {
            let item = memory.covering(tree, hi, lo, lo).find(|item| item.epoch <= epoch)?;
            Bounds { from: (hi, lo), to: (hi, lo) }.clip(&item)
        };
        at(&self.memory.borrow()).or_else(|| self.frozen.borrow().iter().rev().find_map(|memory| at(memory)))
    }

    // ---- writing -----------------------------------------------------------------------------------------------------

    async fn write_tables<P: PageStore>(
        &self,
        pages: &P,
        finished: Vec<(Table, Vec<Slice>)>,
        edit: &mut Edit,
    ) -> Result<Vec<View>, StoreError> {
        let mut views = Vec::with_capacity(finished.len());
        for (mut table, contents) in finished {
            let addresses = self.allocator.allocate(contents.len())?;
            edit.written.extend(&addresses);
            table.extents = extents_of(&addresses);
            for (address, page) in addresses.iter().zip(contents) {
                pages.write_page(*address, page).await?;
            }
            views.push(View::whole(table));
        }
        Ok(views)
    }

    /// Writes what was frozen, as runs of level 0. Versions of several frozen memories merge on the way.
    pub async fn flush<P: PageStore>(&self, pages: &P) -> Result<Edit, StoreError> {
        let mut edit = Edit::default();
        let result = self.flush_into(pages, &mut edit).await;
        self.settle_failure(result, edit)
    }

    fn settle_failure(&self, result: Result<(), StoreError>, edit: Edit) -> Result<Edit, StoreError> {
        match result {
            Ok(()) => Ok(edit),
            Err(error) => {
                self.abandon(edit);
                Err(error)
            }
        }
    }

    async fn flush_into<P: PageStore>(&self, pages: &P, edit: &mut Edit) -> Result<(), StoreError> {
        let frozen: Vec<Rc<Memory>> = self.frozen.borrow().iter().rev().cloned().collect();
        edit.frozen_count = frozen.len();
        let mut effects = Memory::default();
        let mut trees: Vec<TreeId> = frozen.iter().flat_map(|memory| memory.trees()).collect();
        trees.sort_unstable();
        trees.dedup();
        for tree in trees {
            let mut output = self.output(tree);
            let mut sweep = Sweep::new(tree, frozen.len(), false);
            let mut feeds: Vec<_> = frozen.iter().map(|memory| memory.from(tree, 0, 0)).collect();
            let (mut left, mut fired) = (Vec::new(), Fired::new());
            loop {
                match sweep.step(&self.meaning, &mut left, &mut fired) {
                    Step::Done => break,
                    Step::Merged => output.push(&mut left),
                    Step::Needs(source) => match feeds[source].next() {
                        Some(item) => sweep.feed(source, Item::from(item).into_owned()),
                        None => sweep.end(source),
                    },
                }
                fired.drain(..).for_each(|(tree, item)| effects.apply(&self.meaning, tree, item));
            }
            let views = self.write_tables(pages, output.finish(), edit).await?;
            self.add_newest(edit, tree, views);
        }
        self.write_effects(pages, &effects, edit).await
    }

    fn output(&self, tree: TreeId) -> Output<'_, M> {
        Output { store: self, tree, joined: Joined::default(), writer: None, finished: Vec::new() }
    }

    /// What was fired, as the newest runs of its trees.
    async fn write_effects<P: PageStore>(
        &self,
        pages: &P,
        effects: &Memory,
        edit: &mut Edit,
    ) -> Result<(), StoreError> {
        for tree in effects.trees() {
            let (mut writer, mut finished) = (None, Vec::new());
            for item in effects.from(tree, 0, 0) {
                put_into(self, tree, &mut writer, &mut finished, &Item::from(item).into_owned());
            }
            finished.extend(writer.take().and_then(TableWriter::finish));
            let views = self.write_tables(pages, finished, edit).await?;
            self.add_newest(edit, tree, views);
        }
        Ok(())
    }

    fn levels_of<'e>(&self, edit: &'e mut Edit, tree: TreeId) -> &'e mut Levels {
        Rc::make_mut(edit.trees.entry(tree).or_insert_with(|| self.levels(tree)))
    }

    fn add_newest(&self, edit: &mut Edit, tree: TreeId, views: Vec<View>) {
        if !views.is_empty() {
            self.levels_of(edit, tree).newest.insert(0, views);
        }
    }

    /// The edit is durable: it counts from now on.
    pub fn install(&self, edit: Edit) {
        self.frozen.borrow_mut().drain(..edit.frozen_count);
        self.trees.borrow_mut().extend(edit.trees);
        for table in &edit.dropped {
            self.cache.forget(table.number);
            self.allocator.free(addresses_of(table));
        }
    }

    /// The edit will never be durable: its pages are free again.
    pub fn abandon(&self, edit: Edit) {
        self.allocator.free(edit.written);
    }

    // ---- merging -----------------------------------------------------------------------------------------------------

    /// The tree and the level whose tables should merge with those below next, if any are too many.
    pub fn wants_merge(&self) -> Option<(TreeId, usize)> {
        let mut worst: Option<(f64, TreeId, usize)> = None;
        for (tree, levels) in &*self.trees.borrow() {
            let newest = levels.newest.len() as f64 / self.options.newest_runs as f64;
            let scores = std::iter::once(newest).chain((1..=levels.deeper.len()).map(|level| {
                let room = self.options.first_level_pages * LEVEL_GROWTH.pow(level as u32 - 1);
                levels.page_count(level) as f64 / room as f64
            }));
            for (level, score) in scores.enumerate() {
                if score > 1.0 && worst.is_none_or(|(worst, ..)| score > worst) {
                    worst = Some((score, *tree, level));
                }
            }
        }
        worst.map(|(_, tree, level)| (tree, level))
    }

    /// Merges a piece of a level with what it meets in the one below.
    pub async fn merge_piece<P: PageStore>(
        &self,
        pages: &P,
        tree: TreeId,
        level: usize,
    ) -> Result<Edit, StoreError> {
        let mut edit = Edit::default();
        let result = self.merge_into(pages, tree, level, &mut edit).await;
        self.settle_failure(result, edit)
    }

    /// What of a level merges next: all runs of level 0, one table of another.
    fn choose(&self, levels: &Levels, tree: TreeId, level: usize) -> Vec<Vec<View>> {
        if level == 0 {
            return levels.newest.clone();
        }
        let Some(run) = levels.deeper.get(level - 1) else { return Vec::new() };
        let turn = self.turns.borrow().get(&(tree, level)).copied().unwrap_or_default();
        let view = run.iter().find(|view| view.bounds.from >= turn).or_else(|| run.first());
        view.cloned().map(|view| vec![vec![view]]).unwrap_or_default()
    }

    async fn merge_into<P: PageStore>(
        &self,
        pages: &P,
        tree: TreeId,
        level: usize,
        edit: &mut Edit,
    ) -> Result<(), StoreError> {
        let levels = self.levels(tree);
        let upper = self.choose(&levels, tree, level);
        let Some(bounds) = upper.iter().flatten().map(|view| view.bounds).reduce(|a, b| a.with(&b)) else {
            return Ok(());
        };
        let below = levels.deeper.get(level).map(Vec::as_slice).unwrap_or_default();
        let lower = meeting(below, &bounds).to_vec();
        let is_bottom = levels.is_lowest(level + 1);
        let reader = self.reader(pages);
        let mut runs: Vec<RunCursor> = upper.iter().map(|run| RunCursor::new(run, bounds)).collect();
        let whole = lower.iter().map(|view| view.bounds).fold(bounds, |a, b| a.with(&b));
        runs.push(RunCursor::new(&lower, whole));
        let mut sweep = Sweep::new(tree, runs.len(), is_bottom);
        let (mut output, mut effects) = (self.output(tree), Memory::default());
        let (mut left, mut fired) = (Vec::new(), Fired::new());
        // All keys up to this one have merged.
        let mut done: Option<(u64, u64)> = None;
        loop {
            match sweep.step(&self.meaning, &mut left, &mut fired) {
                Step::Done => {
                    done = None;
                    break;
                }
                Step::Merged => {
                    done = sweep.passed();
                    output.push(&mut left);
                }
                Step::Needs(source) => match runs[source].next(&reader).await? {
                    Some(item) => sweep.feed(source, item),
                    None => sweep.end(source),
                },
            }
            fired.drain(..).for_each(|(tree, item)| effects.apply(&self.meaning, tree, item));
            if output.page_count() >= self.options.piece_pages {
                break;
            }
        }
        let merged = self.write_tables(pages, output.finish(), edit).await?;
        self.replace(edit, tree, level, &upper, merged, done);
        self.write_effects(pages, &effects, edit).await?;
        if level > 0 {
            let turn = done.or_else(|| upper.iter().flatten().map(|view| view.bounds.to).max());
            self.turns.borrow_mut().insert((tree, level), turn.map(after).unwrap_or_default());
        }
        Ok(())
    }

    /// Takes what has merged, up to `done` or all of it, out of both levels, and puts in what became of it.
    fn replace(
        &self,
        edit: &mut Edit,
        tree: TreeId,
        level: usize,
        upper: &[Vec<View>],
        merged: Vec<View>,
        done: Option<(u64, u64)>,
    ) {
        let taken: Vec<u64> = upper.iter().flatten().map(|view| view.table.number).collect();
        let bounds = upper.iter().flatten().map(|view| view.bounds).reduce(|a, b| a.with(&b));
        let mut dropped = Vec::new();
        let levels = self.levels_of(edit, tree);
        while levels.deeper.len() <= level {
            levels.deeper.push(Vec::new());
        }
        let below = levels.deeper.get(level).map(Vec::as_slice).unwrap_or_default();
        let met = bounds.map(|bounds| meeting(below, &bounds).to_vec()).unwrap_or_default();
        let met: Vec<u64> = met.iter().map(|view| view.table.number).collect();
        let mut rest = |run: &mut Vec<View>, numbers: &[u64]| {
            let mut kept = Vec::with_capacity(run.len());
            for mut view in run.drain(..) {
                if numbers.contains(&view.table.number) {
                    match done {
                        Some(done) if view.bounds.to > done => {
                            view.bounds.from = view.bounds.from.max(after(done))
                        }
                        _ => {
                            dropped.push(view.table);
                            continue;
                        }
                    }
                }
                kept.push(view);
            }
            *run = kept;
        };
        if level == 0 {
            levels.newest.iter_mut().for_each(|run| rest(run, &taken));
            levels.newest.retain(|run| !run.is_empty());
        } else {
            rest(&mut levels.deeper[level - 1], &taken);
        }
        rest(&mut levels.deeper[level], &met);
        levels.deeper[level].extend(merged);
        levels.deeper[level].sort_by_key(|view| view.bounds.from);
        edit.dropped.extend(dropped);
    }
}

/// The key that follows.
fn after((hi, last): (u64, u64)) -> (u64, u64) {
    match last.checked_add(1) {
        Some(lo) => (hi, lo),
        None => (hi.saturating_add(1), 0),
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

/// Goes through the tables of a run, one after the other.
struct RunCursor {
    bounds: Bounds,
    /// Those that are left, the next one last.
    left: Vec<View>,
    current: Option<Cursor>,
}

impl RunCursor {
    fn new(run: &[View], bounds: Bounds) -> Self {
        Self { bounds, left: run.iter().rev().cloned().collect(), current: None }
    }

    async fn next<P: PageStore>(&mut self, reader: &Reader<'_, P>) -> Result<Option<OwnedItem>, StoreError> {
        loop {
            if self.current.is_none() {
                let Some(view) = self.left.pop() else { return Ok(None) };
                let mut cursor = Cursor::new(view);
                cursor.seek(reader, self.bounds.from.0, self.bounds.from.1).await?;
                self.current = Some(cursor);
            }
            let Some(cursor) = &mut self.current else { continue };
            match cursor.next(reader).await? {
                Some(item) if (item.hi, item.lo) > self.bounds.to => {
                    (self.current, self.left) = (None, Vec::new());
                }
                Some(item) => {
                    if let Some(item) = self.bounds.clip(&item.as_run_item()) {
                        return Ok(Some(item));
                    }
                }
                None => self.current = None,
            }
        }
    }
}
