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
        let own = self.snapshot(id)?;
        let before = self
            .snapshots
            .values()
            .filter(|other| other.branch == own.branch && (other.epoch, other.id) < (own.epoch, own.id));
        before.max_by_key(|other| (other.epoch, other.id)).map(|other| other.id)
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
