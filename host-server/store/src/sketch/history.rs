//! The tree of branches and snapshots, laid out on one line.
//!
//! The snapshots of a branch, the branches that begin off it, with all that they contain, and last its live head follow one
//! another in order of epoch. A branch inherits what it began off, so whoever sees a reference of a branch forms one stretch of
//! that line: every reference, whatever the shape of the tree, is seen by a [`Span`].

use std::collections::BTreeMap;
use std::ops::Range;

use crate::interval::{BranchId, Epoch};

/// Names a snapshot for as long as the volume lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u32);

/// A snapshot as far as its space is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub branch: BranchId,
    pub epoch: Epoch,
}

/// A line of versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    pub id: BranchId,
    /// Branch and epoch that it began off.
    pub origin: Option<(BranchId, Epoch)>,
    /// Whether it can still be written: its live head refers to blocks.
    pub has_head: bool,
}

/// Where a branch is written now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub branch: BranchId,
    /// The epoch that goes on: what is written now is seen from here on.
    pub epoch: Epoch,
    /// Branches that it inherits from, nearest first, and the last epoch of each that it sees.
    pub ancestors: Box<[(BranchId, Epoch)]>,
}

/// Who refers to blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Viewer {
    Snapshot(SnapshotId),
    /// What a branch shows now.
    Head(BranchId),
}

/// Neighbours on the line: positions from `start` up to `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    pub fn positions(self) -> Range<u32> {
        self.start..self.end
    }
}

/// Why branches and snapshots form no history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    #[error("two branches have the number {}", .0.0)]
    BranchTwice(BranchId),
    #[error("two snapshots have the number {}", .0.0)]
    SnapshotTwice(SnapshotId),
    #[error("branch {} is named and does not exist", .0.0)]
    UnknownBranch(BranchId),
    #[error("branch {} begins off itself, by way of others", .0.0)]
    Cycle(BranchId),
    #[error("epoch {} of branch {} is none that a snapshot can have", .1.0, .0.0)]
    Epoch(BranchId, Epoch),
}

/// What lies on a branch, in order of epoch.
#[derive(Clone, Debug, Default)]
struct Line {
    /// Epoch and first position of each snapshot, each branch off this one, and the head.
    items: Vec<(Epoch, u32)>,
    end: u32,
}

/// All viewers of a volume, in their order.
#[derive(Clone, Debug)]
pub struct History {
    viewers: Vec<Viewer>,
    positions: BTreeMap<Viewer, u32>,
    lines: BTreeMap<BranchId, Line>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    origins: BTreeMap<BranchId, (BranchId, Epoch)>,
}

impl History {
    pub fn new(branches: &[Branch], snapshots: &[Snapshot]) -> Result<Self, HistoryError> {
        let items = items_by_branch(branches, snapshots)?;
        let mut history = Self {
            viewers: Vec::new(),
            positions: BTreeMap::new(),
            lines: BTreeMap::new(),
            snapshots: snapshots.iter().map(|snapshot| (snapshot.id, *snapshot)).collect(),
            origins: branches.iter().filter_map(|branch| Some((branch.id, branch.origin?))).collect(),
        };
        for root in branches.iter().filter(|branch| branch.origin.is_none()) {
            history.lay_out(root.id, &items);
        }
        // What no root leads to hangs on itself.
        match branches.iter().find(|branch| !history.lines.contains_key(&branch.id)) {
            Some(branch) => Err(HistoryError::Cycle(branch.id)),
            None => Ok(history),
        }
    }

    /// Gives positions to a branch and all that begin off it. No recursion: clones of clones may go deep.
    fn lay_out(&mut self, root: BranchId, items: &BTreeMap<BranchId, Vec<(Epoch, Item)>>) {
        let mut open = vec![(root, 0)];
        while let Some((branch, next)) = open.pop() {
            let position = self.viewers.len() as u32;
            let line = self.lines.entry(branch).or_default();
            let Some((epoch, item)) = items.get(&branch).and_then(|items| items.get(next)) else {
                line.end = position;
                continue;
            };
            line.items.push((*epoch, position));
            open.push((branch, next + 1));
            match item {
                Item::Viewer(viewer) => {
                    self.viewers.push(*viewer);
                    self.positions.insert(*viewer, position);
                }
                Item::Branch(child) => open.push((*child, 0)),
            }
        }
    }

    /// Who sees a reference of this branch. Nobody, if the branch is unknown: it was deleted, and what it held waits for removal.
    pub fn span(&self, branch: BranchId, birth: Epoch, death: Epoch) -> Span {
        let Some(line) = self.lines.get(&branch) else { return Span { start: 0, end: 0 } };
        let first_from = |epoch: Epoch| {
            let index = line.items.partition_point(|(at, _)| *at < epoch);
            line.items.get(index).map_or(line.end, |(_, position)| *position)
        };
        Span { start: first_from(birth), end: first_from(death) }
    }

    /// Every viewer; the index is the position.
    pub fn viewers(&self) -> &[Viewer] {
        &self.viewers
    }

    pub fn position(&self, viewer: Viewer) -> Option<u32> {
        self.positions.get(&viewer).copied()
    }

    pub fn snapshot(&self, id: SnapshotId) -> Option<&Snapshot> {
        self.snapshots.get(&id)
    }

    pub fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.values()
    }

    /// Where a branch is written while `epoch` goes on. `None` for one that does not exist.
    pub fn head(&self, branch: BranchId, epoch: Epoch) -> Option<Head> {
        self.lines.contains_key(&branch).then(|| {
            let ancestors =
                std::iter::successors(self.origins.get(&branch), |(parent, _)| self.origins.get(parent));
            Head { branch, epoch, ancestors: ancestors.copied().collect() }
        })
    }

    /// The newest snapshot of the same branch before this one.
    pub fn predecessor(&self, id: SnapshotId) -> Option<SnapshotId> {
        self.siblings(id).filter(|(place, own, _)| place < own).max().map(|(_, _, id)| id)
    }

    /// The oldest snapshot of the same branch after this one.
    pub fn successor(&self, id: SnapshotId) -> Option<SnapshotId> {
        self.siblings(id).filter(|(place, own, _)| place > own).min().map(|(_, _, id)| id)
    }

    /// Snapshots of the same branch: where they stand on it, where this one does, and their numbers.
    fn siblings(&self, id: SnapshotId) -> impl Iterator<Item = (u32, u32, SnapshotId)> {
        let own = self.snapshot(id).map(|own| own.branch);
        let place = |id| self.position(Viewer::Snapshot(id));
        let here = place(id);
        let same = self.snapshots.values().filter(move |other| Some(other.branch) == own);
        same.filter_map(move |other| Some((place(other.id)?, here?, other.id)))
    }

    /// Whether a branch begins off this snapshot.
    pub fn is_cloned(&self, id: SnapshotId) -> bool {
        self.snapshot(id)
            .is_some_and(|own| self.origins.values().any(|origin| *origin == (own.branch, own.epoch)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Viewer(Viewer),
    Branch(BranchId),
}

fn items_by_branch(
    branches: &[Branch],
    snapshots: &[Snapshot],
) -> Result<BTreeMap<BranchId, Vec<(Epoch, Item)>>, HistoryError> {
    let mut items: BTreeMap<BranchId, Vec<(Epoch, Item)>> = BTreeMap::new();
    for branch in branches {
        if items.insert(branch.id, Vec::new()).is_some() {
            return Err(HistoryError::BranchTwice(branch.id));
        }
    }
    let mut place = |branch: BranchId, epoch: Epoch, item: Item| {
        if epoch >= Epoch::HEAD && item != Item::Viewer(Viewer::Head(branch)) {
            return Err(HistoryError::Epoch(branch, epoch));
        }
        items.get_mut(&branch).ok_or(HistoryError::UnknownBranch(branch))?.push((epoch, item));
        Ok(())
    };
    for branch in branches {
        if let Some((parent, epoch)) = branch.origin {
            place(parent, epoch, Item::Branch(branch.id))?;
        }
        if branch.has_head {
            place(branch.id, Epoch::HEAD, Item::Viewer(Viewer::Head(branch.id)))?;
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for snapshot in snapshots {
        if !seen.insert(snapshot.id) {
            return Err(HistoryError::SnapshotTwice(snapshot.id));
        }
        place(snapshot.branch, snapshot.epoch, Item::Viewer(Viewer::Snapshot(snapshot.id)))?;
    }
    for line in items.values_mut() {
        line.sort();
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(id: u32, origin: Option<(u32, u32)>, has_head: bool) -> Branch {
        let origin = origin.map(|(branch, epoch)| (BranchId(branch), Epoch(epoch)));
        Branch { id: BranchId(id), origin, has_head }
    }

    fn snapshot(id: u32, branch: u32, epoch: u32) -> Snapshot {
        Snapshot { id: SnapshotId(id), branch: BranchId(branch), epoch: Epoch(epoch) }
    }

    /// Snapshots 1, 2, 3 of branch 1; branch 2 off the second one, with snapshot 4; branch 3, without a head, off that, with
    /// snapshot 5.
    fn history() -> History {
        let branches = [branch(1, None, true), branch(2, Some((1, 1)), true), branch(3, Some((2, 7)), false)];
        let snapshots =
            [snapshot(3, 1, 2), snapshot(1, 1, 0), snapshot(2, 1, 1), snapshot(4, 2, 7), snapshot(5, 3, 0)];
        History::new(&branches, &snapshots).unwrap()
    }

    fn seen(branch: u32, birth: u32, death: Epoch) -> Vec<Viewer> {
        let history = history();
        let span = history.span(BranchId(branch), Epoch(birth), death);
        span.positions().map(|position| history.viewers()[position as usize]).collect()
    }

    #[test]
    fn a_branch_stands_behind_the_snapshot_that_it_began_off() {
        let (snapshot, head) = (|id| Viewer::Snapshot(SnapshotId(id)), |id| Viewer::Head(BranchId(id)));
        let expected = [snapshot(1), snapshot(2), snapshot(4), snapshot(5), head(2), snapshot(3), head(1)];
        assert_eq!(history().viewers(), expected);
        assert_eq!(seen(1, 1, Epoch(2)), [snapshot(2), snapshot(4), snapshot(5), head(2)]);
        assert_eq!(seen(1, 2, Epoch::NEVER), [snapshot(3), head(1)]);
        assert_eq!(seen(2, 0, Epoch(8)), [snapshot(4), snapshot(5)]);
        assert_eq!(seen(2, 8, Epoch::NEVER), [head(2)]);
        assert!(seen(3, 1, Epoch::NEVER).is_empty());
        assert!(seen(9, 0, Epoch::NEVER).is_empty());
    }

    #[test]
    fn neighbours_are_those_of_the_branch() {
        let history = history();
        let around = |id| (history.predecessor(SnapshotId(id)), history.successor(SnapshotId(id)));
        assert_eq!(around(1), (None, Some(SnapshotId(2))));
        assert_eq!(around(3), (Some(SnapshotId(2)), None));
        assert_eq!(around(4), (None, None));
        assert!(history.is_cloned(SnapshotId(2)) && history.is_cloned(SnapshotId(4)));
        assert!(!history.is_cloned(SnapshotId(3)) && !history.is_cloned(SnapshotId(9)));
    }

    #[test]
    fn a_head_inherits_from_the_nearest_branch_first() {
        let head = history().head(BranchId(3), Epoch(4)).unwrap();
        assert_eq!(*head.ancestors, [(BranchId(2), Epoch(7)), (BranchId(1), Epoch(1))]);
        assert_eq!(history().head(BranchId(9), Epoch(4)), None);
    }

    #[test]
    fn what_is_no_history_is_named() {
        let error =
            |branches: &[Branch], snapshots: &[Snapshot]| History::new(branches, snapshots).unwrap_err();
        let root = branch(1, None, true);
        assert_eq!(error(&[root, root], &[]), HistoryError::BranchTwice(BranchId(1)));
        assert_eq!(error(&[root], &[snapshot(1, 2, 0)]), HistoryError::UnknownBranch(BranchId(2)));
        let twice = [snapshot(1, 1, 0), snapshot(1, 1, 1)];
        assert_eq!(error(&[root], &twice), HistoryError::SnapshotTwice(SnapshotId(1)));
        let cycle = [root, branch(2, Some((3, 0)), true), branch(3, Some((2, 0)), true)];
        assert_eq!(error(&cycle, &[]), HistoryError::Cycle(BranchId(2)));
        let beyond = [Snapshot { epoch: Epoch::HEAD, ..snapshot(1, 1, 0) }];
        assert_eq!(error(&[root], &beyond), HistoryError::Epoch(BranchId(1), Epoch::HEAD));
    }
}
