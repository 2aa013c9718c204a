//! Reading the merge store: what memory, frozen memories and tables say of the same keys, folded.

use std::collections::VecDeque;

use super::cache::PageCache;
use super::fold::{Fired, Layer, Meaning, Rule, fold};
use super::item::OwnedItem;
use super::levels::meeting;
use super::memory::Memory;
use super::read::{Bounds, Cursor, Reader, RunCursor};
use super::store::MergeStore;
use super::sweep::{Step, Sweep, owned};
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
        // Taken at once: what is applied while pages are read is not seen.
        let mut in_memory =
            vec![in_memory(newest, tree, &bounds), in_memory(&self.memory.borrow(), tree, &bounds)];
        in_memory
            .extend(self.frozen.borrow().iter().rev().map(|memory| self::in_memory(memory, tree, &bounds)));
        in_memory.retain(|items| !items.is_empty());
        let levels = self.levels(tree);
        let met = levels.runs().map(|run| meeting(run, &bounds)).filter(|met| !met.is_empty());
        let mut runs: Vec<RunCursor> = met.map(|met| RunCursor::new(met, bounds)).collect();
        let memory_count = in_memory.len();
        let mut sweep = Sweep::new(tree, memory_count + runs.len(), true);
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
        add(&self.memory.borrow()) || self.frozen.borrow().iter().rev().any(|memory| add(memory))
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

fn in_memory(memory: &Memory, tree: TreeId, bounds: &Bounds) -> VecDeque<OwnedItem> {
    let items = memory.from(tree, bounds.from.0, bounds.from.1);
    let items = items.take_while(|item| (item.hi, item.lo) <= bounds.to);
    owned(items).into_iter().filter_map(|item| bounds.clip(&item.as_run_item())).collect()
}
