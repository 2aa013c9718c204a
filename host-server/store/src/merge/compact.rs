//! Merging levels: piece by piece, each an edit of its own.

use super::fold::{Fired, Meaning};
use super::levels::{Levels, meeting};
use super::memory::Memory;
use super::read::{RunCursor, View, after};
use super::store::{Edit, LEVEL_GROWTH, MergeStore};
use super::sweep::{Step, Sweep};
use super::table::{page_bound, table_bound};
use super::write::Output;
use crate::error::StoreError;
use crate::kv::PageStore;
use crate::volume::TreeId;

/// Steps after which others may run.
const SLICE_STEPS: usize = 512;

/// A piece ends after so many stretches of keys for each page that it may write, where little is left of what it reads.
const STEPS_PER_PAGE: usize = 2048;

/// Trees in which merges of others can cause something.
const CAUSED_TREES: usize = 3;

impl<M: Meaning> MergeStore<M> {
    /// The tree and the level whose tables should merge with those below next, if any are too many.
    pub fn wants_merge(&self) -> Option<(TreeId, usize)> {
        let mut worst: Option<(f64, TreeId, usize)> = None;
        for tree in self.trees() {
            let levels = self.levels(tree);
            let newest = levels.newest.len() as f64 / self.options.newest_runs as f64;
            let scores = std::iter::once(newest).chain((1..=levels.deeper.len()).map(|level| {
                let room = self.options.first_level_pages * LEVEL_GROWTH.pow(level as u32 - 1);
                levels.page_count(level) as f64 / room as f64
            }));
            for (level, score) in scores.enumerate() {
                if score > 1.0 && worst.is_none_or(|(worst, ..)| score > worst) {
                    worst = Some((score, tree, level));
                }
            }
        }
        worst.map(|(_, tree, level)| (tree, level))
    }

    /// Merges a piece of a level with what it meets in the one below. Of level 0, no more than `runs_max` runs take part.
    pub async fn merge_piece<P: PageStore>(
        &self,
        pages: &P,
        tree: TreeId,
        level: usize,
        runs_max: usize,
    ) -> Result<Edit, StoreError> {
        let mut edit = Edit::default();
        let result = self.merge_into(pages, tree, level, runs_max, &mut edit).await;
        self.settle_failure(result, edit)
    }

    /// Pages that a piece writes at most: those after which it ends, a table that is not complete then, and what one more step and the ends of the tables
    /// of what it causes add.
    pub fn piece_page_bound(&self) -> usize {
        self.options.piece_pages + 2 * table_bound(self.options.table_leaves) + CAUSED_TREES * 3
    }

    /// What of a level merges next: the oldest runs of level 0, one table of another.
    fn choose(&self, levels: &Levels, tree: TreeId, level: usize, runs_max: usize) -> Vec<Vec<View>> {
        if level == 0 {
            let newer = levels.newest.len().saturating_sub(runs_max);
            return levels.newest[newer..].to_vec();
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
        runs_max: usize,
        edit: &mut Edit,
    ) -> Result<(), StoreError> {
        let levels = self.levels(tree);
        let upper = self.choose(&levels, tree, level, runs_max);
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
        let (mut output, mut effects) = (Output::new(self, tree), Memory::default());
        let (mut left, mut fired, mut steps) = (Vec::new(), Fired::new(), 0);
        let mut merged_steps = 0;
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
                    merged_steps += 1;
                }
                Step::Needs(source) => match runs[source].next(&reader).await? {
                    Some(item) => sweep.feed(source, item),
                    None => sweep.end(source),
                },
            }
            fired.drain(..).for_each(|(tree, item)| effects.apply(&self.meaning, tree, item));
            steps += 1;
            let caused = page_bound(effects.encoded_bytes(), self.options.table_leaves);
            if output.page_count() + caused >= self.options.piece_pages
                || merged_steps >= self.options.piece_pages * STEPS_PER_PAGE
            {
                break;
            }
            if steps % SLICE_STEPS == 0 {
                pages.give_way().await;
            }
        }
        let merged = self.write_tables(pages, output.finish(), false, edit).await?;
        self.replace(edit, tree, level, &upper, merged, done);
        self.write_memory(pages, &effects, edit).await?;
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
