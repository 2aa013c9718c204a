//! Reading the merge store: what memory, frozen memories and tables say of the same keys, folded.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::rc::Rc;

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

/// A part of what is read.
#[derive(Clone, Debug)]
pub struct Span {
    pub bounds: Bounds,
    /// Items of others are passed over.
    pub epochs: RangeInclusive<u32>,
    /// What is read is told of under `hi` with these bits the other way.
    pub rebase: u64,
}

impl Span {
    /// Everything that is said of some keys.
    pub fn all(bounds: Bounds) -> Self {
        Self { bounds, epochs: 0..=u32::MAX, rebase: 0 }
    }
}

/// One of the sorted lists that a sweep merges.
struct Source<'a> {
    span: &'a Span,
    of: Of,
}

enum Of {
    Memory(MemoryCursor),
    Run(RunCursor),
}

impl<M: Meaning> MergeStore<M> {
    /// What is said of keys that all of some spans are of, folded, in order: at most one item for each key, no erasures, and no more than `limit` items.
    /// Spans that come first hide those behind.
    pub async fn scan<P: PageStore>(
        &self,
        pages: &P,
        tree: TreeId,
        spans: &[Span],
        limit: usize,
    ) -> Result<Vec<OwnedItem>, StoreError> {
        let mut found = Vec::new();
        let mut effects = Fired::new();
        let none = Memory::default();
        let visit = |left: &mut Vec<OwnedItem>| {
            // Of versions the newest is what is seen.
            found.extend(left.drain(..).next().filter(|item| item.kind != ItemKind::Erase));
            found.len() < limit
        };
        if limit > 0 {
            self.sweep(pages, tree, spans, &none, visit, &mut |fired| {
                effects.append(fired);
                effects.clear();
            })
            .await?;
        }
        Ok(found)
    }

    /// Goes through what all memories and tables say of a tree, as if everything had merged with `newest` as well. `visit` gets what is left of each stretch of keys,
    /// newest first, and says whether to go on; `fire` what the meetings cause.
    pub async fn sweep<P: PageStore>(
        &self,
        pages: &P,
        tree: TreeId,
        spans: &[Span],
        newest: &Memory,
        mut visit: impl FnMut(&mut Vec<OwnedItem>) -> bool,
        fire: &mut impl FnMut(&mut Fired),
    ) -> Result<(), StoreError> {
        let reader = self.reader(pages);
        // All at once: what becomes a table meanwhile is in one of them.
        let (memories, levels) = (self.memories(), self.levels(tree));
        let mut sources = Vec::new();
        for span in spans {
            let source = |of| Source { span, of };
            sources.push(source(Of::Memory(MemoryCursor::taken(newest, tree, &span.bounds))));
            sources.extend(
                memories.iter().map(|memory| source(Of::Memory(MemoryCursor::new(memory, &span.bounds)))),
            );
            let met = levels.runs().map(|run| meeting(run, &span.bounds)).filter(|met| !met.is_empty());
            sources.extend(met.map(|met| source(Of::Run(RunCursor::new(met, span.bounds)))));
        }
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
                    let Source { span, of } = &mut sources[source];
                    let next = match of {
                        Of::Run(run) => run.next(&reader).await?,
                        Of::Memory(memory) => memory.next(tree, &span.bounds),
                    };
                    match next {
                        Some(item) if span.epochs.contains(&item.epoch) => {
                            let hi = item.hi ^ span.rebase;
                            sweep.feed(source, OwnedItem { hi, ..item });
                        }
                        Some(_) => {}
                        None => sweep.end(source),
                    }
                }
            }
        }
    }

    /// What is said of one key in some epochs, be it that it is erased.
    pub async fn get<P: PageStore>(
        &self,
        pages: &P,
        tree: TreeId,
        hi: u64,
        lo: u64,
        epochs: &RangeInclusive<u32>,
    ) -> Result<Option<OwnedItem>, StoreError> {
        let rule = self.meaning.rule(tree);
        let mut layers = Vec::new();
        // Both at once: what becomes a table meanwhile is in one of them.
        let levels = self.levels(tree);
        let ended = self.layers_in_memory(rule, tree, (hi, lo), epochs, &mut layers);
        if !ended {
            self.layers_in_tables(pages, &levels, rule, tree, (hi, lo), epochs, &mut layers).await?;
        }
        let (mut left, mut fired) = (Vec::new(), Fired::new());
        fold(&self.meaning, tree, &layers, true, &mut left, &mut fired);
        Ok(left.into_iter().next())
    }

    /// True where what lies below cannot matter.
    fn layers_in_memory(
        &self,
        rule: Rule,
        tree: TreeId,
        key: (u64, u64),
        epochs: &RangeInclusive<u32>,
        layers: &mut Vec<Layer<'static>>,
    ) -> bool {
        let bounds = Bounds { from: key, to: key };
        let mut add = |memory: &Memory| {
            let covering = memory.covering(tree, key.0, key.1, key.1);
            let clipped =
                covering.filter(|item| epochs.contains(&item.epoch)).filter_map(|item| bounds.clip(&item));
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
        epochs: &RangeInclusive<u32>,
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
                    if !epochs.contains(&item.epoch) {
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
        Rule::Sums | Rule::Cells => false,
        Rule::Addresses => matches!(kind, ItemKind::Birth | ItemKind::SharedBirth),
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
    fn new(memory: &SharedMemory, bounds: &Bounds) -> Self {
        let taken = VecDeque::new();
        Self { memory: Some(Rc::clone(memory)), taken, next: bounds.from, batch: BATCH_ITEMS_MIN }
    }

    /// All that a memory says of some keys now.
    fn taken(memory: &Memory, tree: TreeId, bounds: &Bounds) -> Self {
        let items = memory.from(tree, bounds.from.0, bounds.from.1);
        let items = items.take_while(|item| (item.hi, item.lo) <= bounds.to);
        let taken = items.filter_map(|item| bounds.clip(&item)).collect();
        Self { memory: None, taken, next: bounds.to, batch: 0 }
    }

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
