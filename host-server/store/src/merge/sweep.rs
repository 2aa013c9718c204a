//! Several runs read as one: what they say of the same keys is cut to the same bounds and merged.

use std::collections::VecDeque;

use super::fold::{Fired, Layer, Meaning, fold};
use super::item::{Item, OwnedItem, cut};
use crate::format::run::RunItem;
use crate::volume::TreeId;

/// One run on its way through a sweep. Items come in the order of a run.
#[derive(Default)]
struct Source {
    /// Taken in, not merged yet.
    waiting: VecDeque<OwnedItem>,
    has_ended: bool,
}

/// Merges runs of one tree, from the newest to the oldest. What it needs next is asked for, since a run may have to be read.
pub struct Sweep {
    tree: TreeId,
    sources: Vec<Source>,
    is_bottom: bool,
    /// See [`Sweep::passed`].
    passed: Option<(u64, u64)>,
}

/// How a sweep went on.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Merged a stretch of keys.
    Merged,
    /// This source must be fed, or ended, first.
    Needs(usize),
    /// Every source has ended.
    Done,
}

impl Sweep {
    /// `is_bottom`: no other run has older items of these keys.
    pub fn new(tree: TreeId, source_count: usize, is_bottom: bool) -> Self {
        let sources = std::iter::repeat_with(Source::default).take(source_count).collect();
        Self { tree, sources, is_bottom, passed: None }
    }

    /// Gives a source its next item.
    pub fn feed(&mut self, source: usize, item: OwnedItem) {
        self.sources[source].waiting.push_back(item);
    }

    pub fn end(&mut self, source: usize) {
        self.sources[source].has_ended = true;
    }

    /// Merges what all sources say of the next stretch of keys. What is left of it comes newest first, several items only for the same keys.
    pub fn step(&mut self, meaning: &impl Meaning, left: &mut Vec<OwnedItem>, fired: &mut Fired) -> Step {
        // Versions of the same keys are consecutive: one item of later keys, or the end, says that all are here.
        let needy = |source: &Source| {
            let first = source.waiting.front();
            let is_known = source
                .waiting
                .back()
                .zip(first)
                .is_some_and(|(back, first)| (back.hi, back.lo) != (first.hi, first.lo));
            !source.has_ended && !is_known
        };
        if let Some(needy) = self.sources.iter().position(needy) {
            return Step::Needs(needy);
        }
        let firsts = self.sources.iter().filter_map(|source| source.waiting.front());
        let Some((hi, lo)) = firsts.map(|item| (item.hi, item.lo)).min() else { return Step::Done };
        let last = self.stretch_end(hi, lo);
        let mut layers = Vec::new();
        for source in &mut self.sources {
            let mut is_top = true;
            for item in source.waiting.iter().take_while(|item| (item.hi, item.lo) == (hi, lo)) {
                layers.push(Layer { item: cut(&item.as_run_item(), lo, last).into_owned(), is_top });
                is_top = false;
            }
            source.pass(hi, last);
        }
        fold(meaning, self.tree, &layers, self.is_bottom, left, fired);
        self.passed = Some((hi, last));
        Step::Merged
    }

    /// The last key, hi and lo, up to which everything has merged.
    pub fn passed(&self) -> Option<(u64, u64)> {
        self.passed
    }

    /// The last key that all items which begin at `(hi, lo)` cover, and before which no other begins.
    fn stretch_end(&self, hi: u64, lo: u64) -> u64 {
        let mut last = u64::MAX;
        for source in &self.sources {
            let mut items = source.waiting.iter().take_while(|item| item.hi == hi);
            // Versions have the same bounds: the first item that begins elsewhere ends the question.
            if let Some(item) = items.find(|item| item.lo != lo || item.last != u64::MAX) {
                last = last.min(if item.lo == lo { item.last } else { item.lo - 1 });
            }
            if let Some(item) = items.find(|item| item.lo != lo) {
                last = last.min(item.lo - 1);
            }
        }
        last
    }
}

impl Source {
    /// Lets go of keys up to `(hi, last)`.
    fn pass(&mut self, hi: u64, last: u64) {
        let mut rest = Vec::new();
        while let Some(item) = self.waiting.pop_front_if(|item| item.hi == hi && item.lo <= last) {
            if item.last > last {
                rest.push(cut(&item.as_run_item(), last + 1, item.last).into_owned());
            }
        }
        rest.into_iter().rev().for_each(|item| self.waiting.push_front(item));
    }
}

/// What is left of items that were merged, with those joined that continue each other.
#[derive(Default)]
pub struct Joined {
    held: Option<OwnedItem>,
}

impl Joined {
    /// Takes in what is left of a stretch; calls `ready` with what nothing that comes will continue.
    pub fn push(&mut self, stretch: &mut Vec<OwnedItem>, mut ready: impl FnMut(OwnedItem)) {
        let is_alone = stretch.len() == 1;
        for item in stretch.drain(..) {
            match &mut self.held {
                // Versions stay as they are: all of the same keys have the same bounds.
                Some(held)
                    if is_alone && super::item::continues(&held.as_run_item(), &item.as_run_item()) =>
                {
                    super::item::extend(held, &item.as_run_item());
                }
                held => {
                    if let Some(held) = held.take() {
                        ready(held);
                    }
                    if is_alone {
                        *held = Some(item);
                    } else {
                        ready(item);
                    }
                }
            }
        }
    }

    pub fn finish(&mut self) -> Option<OwnedItem> {
        self.held.take()
    }
}

/// Items of a run as they are, for whoever has them in memory.
pub fn owned<'a>(items: impl Iterator<Item = RunItem<'a>>) -> Vec<OwnedItem> {
    items.map(|item| Item::from(item).into_owned()).collect()
}
