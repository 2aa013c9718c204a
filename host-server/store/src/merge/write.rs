//! Writing tables: what was frozen becomes runs of level 0.

use std::rc::Rc;

use ringfort_engine::buffer::Slice;

use super::fold::{Fired, Meaning};
use super::item::{Item, OwnedItem};
use super::levels::Levels;
use super::memory::{Memory, SharedMemory};
use super::read::View;
use super::store::{Edit, MergeStore};
use super::sweep::{Joined, Step, Sweep};
use super::table::{Table, TableWriter, extents_of};
use crate::error::StoreError;
use crate::format::run::RunItem;
use crate::kv::{PageStore, Window};
use crate::volume::TreeId;

/// Items after which others may run.
const SLICE_ITEMS: usize = 512;

/// Tables under construction, of one tree.
pub(super) struct Tables<'a, M> {
    store: &'a MergeStore<M>,
    tree: TreeId,
    writer: Option<TableWriter>,
    finished: Vec<(Table, Vec<Slice>)>,
}

impl<'a, M: Meaning> Tables<'a, M> {
    pub fn new(store: &'a MergeStore<M>, tree: TreeId) -> Self {
        Self { store, tree, writer: None, finished: Vec::new() }
    }

    pub fn push(&mut self, item: &RunItem<'_>) {
        let leaves = self.store.options.table_leaves;
        // Versions of the same keys stay in one table.
        let is_full = |writer: &TableWriter| writer.is_full(leaves) && writer.last() != (item.hi, item.last);
        if self.writer.as_ref().is_some_and(is_full) {
            self.finished.extend(self.writer.take().and_then(TableWriter::finish));
        }
        self.writer.get_or_insert_with(|| self.store.table_writer(self.tree)).push(item);
    }

    /// Pages of the tables that are complete.
    pub fn page_count(&self) -> usize {
        self.finished.iter().map(|(_, pages)| pages.len()).sum()
    }

    pub fn finish(mut self) -> Vec<(Table, Vec<Slice>)> {
        self.finished.extend(self.writer.take().and_then(TableWriter::finish));
        self.finished
    }
}

/// Gathers the output of one sweep into tables.
pub(super) struct Output<'a, M> {
    joined: Joined,
    tables: Tables<'a, M>,
}

impl<'a, M: Meaning> Output<'a, M> {
    pub fn new(store: &'a MergeStore<M>, tree: TreeId) -> Self {
        Self { joined: Joined::default(), tables: Tables::new(store, tree) }
    }

    pub fn push(&mut self, left: &mut Vec<OwnedItem>) {
        let Self { joined, tables } = self;
        joined.push(left, |item| tables.push(&item.as_run_item()));
    }

    pub fn page_count(&self) -> usize {
        self.tables.page_count()
    }

    pub fn finish(mut self) -> Vec<(Table, Vec<Slice>)> {
        if let Some(item) = self.joined.finish() {
            self.tables.push(&item.as_run_item());
        }
        self.tables.finish()
    }
}

impl<M: Meaning> MergeStore<M> {
    fn table_writer(&self, tree: TreeId) -> TableWriter {
        let number = self.next_table.replace(self.next_table.get() + 1);
        TableWriter::new(self.volume, tree, number, self.by_chunks(tree))
    }

    /// Writes tables. `keeps`: their pages stay in the cache, since a merge reads them soon.
    pub(super) async fn write_tables<P: PageStore>(
        &self,
        pages: &P,
        finished: Vec<(Table, Vec<Slice>)>,
        keeps: bool,
        edit: &mut Edit,
    ) -> Result<Vec<View>, StoreError> {
        let mut views = Vec::with_capacity(finished.len());
        for (mut table, contents) in finished {
            let written = contents.clone();
            let addresses = self.allocator.allocate(contents.len())?;
            edit.written.extend(&addresses);
            table.extents = extents_of(&addresses);
            let mut window = Window::new();
            let mut outcome = Ok(());
            for (address, page) in addresses.iter().zip(contents) {
                if window.is_full()
                    && let Some(Err(error)) = window.next().await
                {
                    outcome = Err(error);
                    break;
                }
                window.push(pages.write_page(*address, page));
            }
            // Also after an error: no write may be on its way to a page that is about to be free.
            while let Some(result) = window.next().await {
                outcome = outcome.and(result);
            }
            outcome?;
            if keeps {
                let reader = self.reader(pages);
                (0..).zip(written).for_each(|(page, bytes)| reader.keep_written(&table, page, bytes));
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

    pub(super) fn settle_failure(
        &self,
        result: Result<(), StoreError>,
        edit: Edit,
    ) -> Result<Edit, StoreError> {
        match result {
            Ok(()) => Ok(edit),
            Err(error) => {
                self.abandon(edit);
                Err(error)
            }
        }
    }

    // What is frozen is never borrowed to be changed.
    #[allow(clippy::await_holding_refcell_ref)]
    async fn flush_into<P: PageStore>(&self, pages: &P, edit: &mut Edit) -> Result<(), StoreError> {
        let frozen: Vec<SharedMemory> = self.frozen.borrow().iter().rev().cloned().collect();
        edit.frozen_count = frozen.len();
        let frozen: Vec<_> = frozen.iter().map(|memory| memory.borrow()).collect();
        if let [only] = &frozen[..] {
            return self.write_memory(pages, only, edit).await;
        }
        let mut effects = Memory::default();
        let mut trees: Vec<TreeId> = frozen.iter().flat_map(|memory| memory.trees()).collect();
        trees.sort_unstable();
        trees.dedup();
        for tree in trees {
            let mut output = Output::new(self, tree);
            let mut sums = Vec::new();
            let mut sweep = Sweep::new(tree, frozen.len(), false);
            let mut feeds: Vec<_> = frozen.iter().map(|memory| memory.from(tree, 0, 0)).collect();
            let (mut left, mut fired, mut steps) = (Vec::new(), Fired::new(), 0);
            loop {
                match sweep.step(&self.meaning, &mut left, &mut fired) {
                    Step::Done => break,
                    Step::Merged if self.meaning.is_catalogued(tree) => {
                        sums.extend(left.drain(..).map(|item| (tree, item)));
                    }
                    Step::Merged => output.push(&mut left),
                    Step::Needs(source) => match feeds[source].next() {
                        Some(item) => sweep.feed(source, Item::from(item).into_owned()),
                        None => sweep.end(source),
                    },
                }
                fired.drain(..).for_each(|(tree, item)| effects.apply(&self.meaning, tree, item));
                steps += 1;
                if steps % SLICE_ITEMS == 0 {
                    pages.give_way().await;
                }
            }
            edit.sums.append(&mut sums);
            let views = self.write_tables(pages, output.finish(), true, edit).await?;
            self.add_newest(edit, tree, views);
        }
        self.write_memory(pages, &effects, edit).await
    }

    /// What a memory holds, as the newest runs of its trees.
    pub(super) async fn write_memory<P: PageStore>(
        &self,
        pages: &P,
        memory: &Memory,
        edit: &mut Edit,
    ) -> Result<(), StoreError> {
        for tree in memory.trees() {
            if self.meaning.is_catalogued(tree) {
                edit.sums.extend(memory.from(tree, 0, 0).map(|item| (tree, Item::from(item).into_owned())));
                continue;
            }
            let mut tables = Tables::new(self, tree);
            for (count, item) in memory.from(tree, 0, 0).enumerate() {
                tables.push(&item);
                if count % SLICE_ITEMS == SLICE_ITEMS - 1 {
                    pages.give_way().await;
                }
            }
            let views = self.write_tables(pages, tables.finish(), true, edit).await?;
            self.add_newest(edit, tree, views);
        }
        Ok(())
    }

    pub(super) fn levels_of<'e>(&self, edit: &'e mut Edit, tree: TreeId) -> &'e mut Levels {
        Rc::make_mut(edit.trees.entry(tree).or_insert_with(|| self.levels(tree)))
    }

    fn add_newest(&self, edit: &mut Edit, tree: TreeId, views: Vec<View>) {
        if !views.is_empty() {
            self.levels_of(edit, tree).newest.insert(0, views);
        }
    }
}
