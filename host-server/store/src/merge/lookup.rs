//! Reading the merge store: what memory, frozen memories and tables say of the same keys, folded.

use std::collections::VecDeque;

use super::cache::PageCache;
use super::fold::{Fired, Layer, Meaning, Rule, fold};
use super::item::OwnedItem;
use super::levels::meeting;
use super::memory::{Memory, SharedMemory};
use super::read::after;
use super::read::{Bounds, Cursor, Reader, RunCursor};
use super::store::MergeStore;
use super::sweep::{Step, Sweep};
use super::table::Table;
use crate::error::StoreError;
use crate::format::run::ItemKind;
use crate::kv::PageStore;
use crate::volume::TreeId;

/// Stretches of keys after which others may run.
const SLICE_STEPS: usize = 512;

impl<M: Meaning> MergeStore<M> {
    /// What is said of keys that a snapshot of `epoch` sees, folded, in order: at most one item for each key, no erasures, and no more than `limit` items.
    pub async fn scan<P: PageStore>(
        &self,
        pages: &P,
        tree: TreeId,
        bounds: Bounds,
        epoch: u32,
        limit: usize,
    ) -> Result<Vec<OwnedItem>, StoreError> {
        let mut found = Vec::new();
        let mut effects = Fired::new();
        let none = Memory::default();
        let visit = |left: &mut Vec<OwnedItem>| {
            // Of versions the newest is what the snapshot sees.
            found.extend(left.drain(..).next().filter(|item| item.kind != ItemKind::Erase));
            found.len() < limit
        };
        if limit > 0 {
            self.sweep(pages, tree, bounds, epoch, &none, visit, &mut |fired| {
                effects.append(fired);
                effects.clear();
            })
            .await?;
        }
        Ok(found)
    }

    /// Goes through what all memories and tables say of a tree, as if everything had merged with `newest` as well. `visit` gets what is left of each stretch of keys,
    /// newest first, and says whether to go on; `fire` what the meetings cause.
    #[allow(clippy::too_many_arguments)]
    pub async fn sweep<P: PageStore>(
        &self,
        pages: &P,
        tree: TreeId,
        bounds: Bounds,
        epoch: u32,
        newest: &Memory,
        mut visit: impl FnMut(&mut Vec<OwnedItem>) -> bool,
        fire: &mut impl FnMut(&mut Fired),
    ) -> Result<(), StoreError> {
        let reader = self.reader(pages);
        // All at once: what becomes a table meanwhile is in one of them.
        let mut sources = vec![Source::items(newest, tree, &bounds)];
        sources.extend(self.memories().into_iter().map(|memory| Source::memory(memory, &bounds)));
        let levels = self.levels(tree);
        let met = levels.runs().map(|run| meeting(run, &bounds)).filter(|met| !met.is_empty());
        sources.extend(met.map(|met| Source::Run(RunCursor::new(met, bounds))));
        let mut sweep = Sweep::new(tree, sources.len(), true);
        let (mut left, mut fired, mut steps) = (Vec::new(), Fired::new(), 0);
        loop {
            match sweep.step(&self.meaning, &mut left, &mut fired) {
                Step::Done => return Ok(()),
                Step::Merged => {
                    let goes_on = visit(&mut left);
                    left.clear();
                    fire(&mut fired);
                    fired.clear();
                    if !goes_on {
                        return Ok(());
                    }
                    steps += 1;
                    if steps % SLICE_STEPS == 0 {
                        pages.give_way().await;
                    }
                }
                Step::Needs(source) => {
                    let next = match &mut sources[source] {
                        Source::Run(run) => run.next(&reader).await?,
                        Source::Memory(memory) => memory.next(tree, &bounds),
                    };
                    match next {
                        Some(item) if item.epoch <= epoch => sweep.feed(source, item),
                        Some(_) => {}
                        None => sweep.end(source),
                    }
                }
            }
        }
    }

    /// What is said of one key, as a snapshot of `epoch` sees it.
    pub async fn get<P: PageStore>(
        &self,
        pages: &P,
        tree: TreeId,
        hi: u64,
        lo: u64,
        epoch: u32,
    ) -> Result<Option<OwnedItem>, StoreError> {
        let rule = self.meaning.rule(tree);
        let mut layers = Vec::new();
        // Both at once: what becomes a table meanwhile is in one of them.
        let levels = self.levels(tree);
        let ended = self.layers_in_memory(rule, tree, (hi, lo), epoch, &mut layers);
        if !ended {
            self.layers_in_tables(pages, &levels, rule, tree, (hi, lo), epoch, &mut layers).await?;
        }
        let (mut left, mut fired) = (Vec::new(), Fired::new());
        fold(&self.meaning, tree, &layers, true, &mut left, &mut fired);
        Ok(left.into_iter().next().filter(|item| item.kind != ItemKind::Erase))
    }

    /// True where what lies below cannot matter.
    fn layers_in_memory(
        &self,
        rule: Rule,
        tree: TreeId,
        key: (u64, u64),
        epoch: u32,
        layers: &mut Vec<Layer<'static>>,
    ) -> bool {
        let bounds = Bounds { from: key, to: key };
        let mut add = |memory: &Memory| {
            let covering = memory.covering(tree, key.0, key.1, key.1);
            let clipped = covering.filter(|item| item.epoch <= epoch).filter_map(|item| bounds.clip(&item));
            for item in clipped {
                let is_last = hides_older(rule, item.kind);
                layers.push(Layer { item, is_top: true });
                if is_last {
                    return true;
                }
            }
            false
        };
        add(&self.memory.borrow().borrow())
            || self.frozen.borrow().iter().rev().any(|memory| add(&memory.borrow()))
    }

    #[allow(clippy::too_many_arguments)]
    async fn layers_in_tables<P: PageStore>(
        &self,
        pages: &P,
        levels: &super::levels::Levels,
        rule: Rule,
        tree: TreeId,
        key: (u64, u64),
        epoch: u32,
        layers: &mut Vec<Layer<'static>>,
    ) -> Result<(), StoreError> {
        let reader: Reader<'_, P> = self.reader(pages);
        let bounds = Bounds { from: key, to: key };
        for run in levels.runs() {
            for view in meeting(run, &bounds) {
                if !reader.may_hold(&view.table, key.0, key.1, self.by_chunks(tree)).await? {
                    continue;
                }
                let mut cursor = Cursor::new(view.clone());
                cursor.seek(&reader, key.0, key.1).await?;
                while let Some(item) = cursor.next(&reader).await? {
                    let Some(item) = bounds.clip(&item.as_run_item()) else { break };
                    if item.epoch > epoch {
                        continue;
                    }
                    let is_last = hides_older(rule, item.kind);
                    layers.push(Layer { item, is_top: true });
                    if is_last {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

impl<M: Meaning> MergeStore<M> {
    /// Reads every page of a table from the devices, and what it says of its keys.
    pub async fn verify_table<P: PageStore>(&self, pages: &P, table: &Table) -> Result<(), StoreError> {
        let cache = PageCache::new(0);
        let reader = Reader { volume: self.volume, cache: &cache, pages };
        reader.verify(table).await
    }
}

/// Whether nothing older than an item of this kind matters for what is said of a key.
fn hides_older(rule: Rule, kind: ItemKind) -> bool {
    match rule {
        Rule::Values | Rule::Runs => true,
        Rule::Sums => false,
        Rule::Addresses => matches!(kind, ItemKind::Birth | ItemKind::SharedBirth),
    }
}

/// One of the sorted lists that a sweep merges.
enum Source {
    Memory(MemoryCursor),
    Run(RunCursor),
}

impl Source {
    fn memory(memory: SharedMemory, bounds: &Bounds) -> Self {
        Self::Memory(MemoryCursor {
            memory: Some(memory),
            taken: VecDeque::new(),
            next: bounds.from,
            batch: BATCH_ITEMS_MIN,
        })
    }

    /// All that a memory says of some keys now.
    fn items(memory: &Memory, tree: TreeId, bounds: &Bounds) -> Self {
        let items = memory.from(tree, bounds.from.0, bounds.from.1);
        let items = items.take_while(|item| (item.hi, item.lo) <= bounds.to);
        let taken = items.filter_map(|item| bounds.clip(&item)).collect();
        Self::Memory(MemoryCursor { memory: None, taken, next: bounds.to, batch: 0 })
    }
}

/// Items that are taken out of a memory at first, and at most, at a time. Most readers want one.
const BATCH_ITEMS_MIN: usize = 4;
const BATCH_ITEMS_MAX: usize = 1024;

/// Goes through a memory in batches. What is applied meanwhile to keys that are still to come may be seen or not.
struct MemoryCursor {
    /// `None` where everything has been taken.
    memory: Option<SharedMemory>,
    taken: VecDeque<OwnedItem>,
    next: (u64, u64),
    batch: usize,
}

impl MemoryCursor {
    fn next(&mut self, tree: TreeId, bounds: &Bounds) -> Option<OwnedItem> {
        if self.taken.is_empty()
            && let Some(memory) = self.memory.take()
        {
            let rest = Bounds { from: self.next, to: bounds.to };
            let borrowed = memory.borrow();
            let items = borrowed.from(tree, rest.from.0, rest.from.1);
            let items = items.take_while(|item| (item.hi, item.lo) <= rest.to).take(self.batch);
            let (mut count, mut end) = (0, None);
            for item in items {
                (count, end) = (count + 1, Some((item.hi, item.last)));
                self.taken.extend(rest.clip(&item));
            }
            drop(borrowed);
            if let Some(end) = end
                && count == self.batch
                && end < bounds.to
            {
                self.next = after(end);
                self.batch = (2 * self.batch).min(BATCH_ITEMS_MAX);
                self.memory = Some(memory);
            }
        }
        self.taken.pop_front()
    }
}
