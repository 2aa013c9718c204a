//! Which tables a tree has, and in what order they are read.

use std::rc::Rc;

use super::read::{Bounds, View};
use crate::volume::TreeId;

/// The tables of one tree. Immutable: whoever reads holds the one with which it began.
#[derive(Clone, Debug, Default)]
pub struct Levels {
    /// Runs of level 0, newest first, each of tables with ascending, disjoint keys.
    pub newest: Vec<Vec<View>>,
    /// Levels from 1 on: each one run.
    pub deeper: Vec<Vec<View>>,
}

impl Levels {
    /// All runs, newest first.
    pub fn runs(&self) -> impl Iterator<Item = &[View]> {
        self.newest.iter().chain(&self.deeper).map(Vec::as_slice).filter(|run| !run.is_empty())
    }

    pub fn run_count(&self) -> usize {
        self.runs().count()
    }

    /// Pages of the tables of a level from 1 on.
    pub fn page_count(&self, level: usize) -> u64 {
        let run = level.checked_sub(1).and_then(|index| self.deeper.get(index));
        run.into_iter().flatten().map(|view| u64::from(view.table.page_count())).sum()
    }

    /// Whether nothing lies below a level from 0 on.
    pub fn is_lowest(&self, level: usize) -> bool {
        self.deeper.iter().skip(level).all(Vec::is_empty)
    }

    pub fn views(&self) -> impl Iterator<Item = &View> {
        self.runs().flatten()
    }
}

/// The views of a run that meet some keys.
pub fn meeting<'a>(run: &'a [View], bounds: &Bounds) -> &'a [View] {
    let start = run.partition_point(|view| view.bounds.to < bounds.from);
    let end = start + run[start..].partition_point(|view| view.bounds.from <= bounds.to);
    &run[start..end]
}

/// A change of the tables of a tree, which becomes durable as one.
#[derive(Clone, Debug)]
pub struct Change {
    pub tree: TreeId,
    /// What the tree has from now on.
    pub levels: Rc<Levels>,
}
