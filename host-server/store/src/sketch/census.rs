//! Questions about space, answered from cells.

use std::collections::BTreeMap;

use super::estimate::{Estimate, Tally};
use super::history::{History, SnapshotId, Span, Viewer};
use super::sweep::{Sweep, Viewers};
use crate::interval::Reference;

/// A viewer that the history does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not exist")]
pub struct UnknownViewer(pub Viewer);

/// A set of viewers of one history.
#[derive(Clone, Debug)]
pub struct ViewerSet {
    /// How many members lie before each position, and at last how many there are.
    before: Vec<u32>,
}

impl ViewerSet {
    fn new(history: &History, viewers: &[Viewer]) -> Result<Self, UnknownViewer> {
        let mut members = vec![false; history.viewers().len()];
        for viewer in viewers {
            let position = history.position(*viewer).ok_or(UnknownViewer(*viewer))?;
            members[position as usize] = true;
        }
        let counts = members.iter().scan(0, |count, member| {
            *count += u32::from(*member);
            Some(*count)
        });
        Ok(Self { before: std::iter::once(0).chain(counts).collect() })
    }

    fn len(&self) -> u32 {
        self.before[self.before.len() - 1]
    }

    fn members_in(&self, span: Span) -> u32 {
        self.before[span.end as usize] - self.before[span.start as usize]
    }

    fn seen(&self, viewers: &[Span]) -> u32 {
        viewers.iter().map(|span| self.members_in(*span)).sum()
    }
}

fn count(viewers: &[Span]) -> u32 {
    viewers.iter().map(|span| span.end - span.start).sum()
}

/// What one snapshot costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotCost {
    pub id: SnapshotId,
    /// Everything that it shows.
    pub referenced: Estimate,
    /// What only it refers to: deleting it alone gives this back.
    pub unique: Estimate,
    /// What it shows and its predecessor on the branch does not: all of it, where there is none.
    pub growth: Estimate,
}

/// Who sees how much: of a sample, or, at rate 1, of everything.
#[derive(Clone, Debug)]
pub struct Census<'a> {
    history: &'a History,
    halvings: u8,
    /// None without viewers.
    cells: Vec<(Viewers, Tally)>,
    /// Addresses with so many references that the sample does not say who sees them.
    crowded: Tally,
}

impl<'a> Census<'a> {
    pub(super) fn new(
        history: &'a History,
        halvings: u8,
        cells: BTreeMap<Viewers, Tally>,
        crowded: Tally,
    ) -> Self {
        Self { history, halvings, cells: cells.into_iter().collect(), crowded }
    }

    /// Of every reference of the volume, those to one address one after another: what `--exact` shows. One pass, in bounded
    /// memory.
    pub fn exact(history: &'a History, references: impl IntoIterator<Item = Reference>) -> Self {
        let mut sweep = Sweep::new(history);
        for reference in references {
            sweep.add(&reference);
        }
        sweep.finish()
    }

    pub fn history(&self) -> &'a History {
        self.history
    }

    /// Everything that somebody refers to.
    pub fn total(&self) -> Estimate {
        self.estimate(&self.tally(|_| true))
    }

    /// What any of a set refers to.
    pub fn referenced(&self, set: &[Viewer]) -> Result<Estimate, UnknownViewer> {
        self.measure_with(set, |set, viewers| set.seen(viewers) > 0)
    }

    /// What one viewer refers to and nobody else does.
    pub fn unique(&self, viewer: Viewer) -> Result<Estimate, UnknownViewer> {
        self.freed(&[viewer])
    }

    /// What only members of a set refer to: deleting them all gives this back.
    pub fn freed(&self, set: &[Viewer]) -> Result<Estimate, UnknownViewer> {
        Ok(self.estimate(&self.freed_tally(set)?))
    }

    pub(super) fn freed_tally(&self, set: &[Viewer]) -> Result<Tally, UnknownViewer> {
        let set = ViewerSet::new(self.history, set)?;
        Ok(self.tally(|viewers| set.seen(viewers) == count(viewers)))
    }

    /// What all members of a set refer to and nobody else does.
    pub fn shared_exactly(&self, set: &[Viewer]) -> Result<Estimate, UnknownViewer> {
        self.measure_with(set, |set, viewers| set.seen(viewers) == set.len() && count(viewers) == set.len())
    }

    /// What all members of a set refer to, whoever else does.
    pub fn shared_at_least(&self, set: &[Viewer]) -> Result<Estimate, UnknownViewer> {
        self.measure_with(set, |set, viewers| set.seen(viewers) == set.len())
    }

    /// What `to` refers to and `from` does not.
    pub fn growth(&self, from: Viewer, to: Viewer) -> Result<Estimate, UnknownViewer> {
        let from = ViewerSet::new(self.history, &[from])?;
        self.measure_with(&[to], |to, viewers| to.seen(viewers) > 0 && from.seen(viewers) == 0)
    }

    /// All snapshots at once, in order of number.
    pub fn report(&self) -> Vec<SnapshotCost> {
        let tallies = self.tallies();
        let costs = self.history.snapshots().filter_map(|snapshot| {
            let position = self.history.position(Viewer::Snapshot(snapshot.id))?;
            let tally = &tallies[position as usize];
            Some(SnapshotCost {
                id: snapshot.id,
                referenced: self.estimate(&tally.referenced),
                unique: self.estimate(&tally.unique),
                growth: self.estimate(&tally.growth),
            })
        });
        costs.collect()
    }

    /// One pass over the cells for all positions together.
    fn tallies(&self) -> Vec<PositionTally> {
        let predecessors: Vec<Option<u32>> =
            self.history.viewers().iter().map(|viewer| self.predecessor_position(*viewer)).collect();
        let mut tallies = vec![PositionTally::default(); predecessors.len()];
        for (viewers, tally) in &self.cells {
            let seen = |position: u32| viewers.iter().any(|span| span.positions().contains(&position));
            for position in viewers.iter().flat_map(|span| span.positions()) {
                let own = &mut tallies[position as usize];
                own.referenced.add(tally);
                if !predecessors[position as usize].is_some_and(seen) {
                    own.growth.add(tally);
                }
                if count(viewers) == 1 {
                    own.unique.add(tally);
                }
            }
        }
        tallies
    }

    fn predecessor_position(&self, viewer: Viewer) -> Option<u32> {
        let Viewer::Snapshot(id) = viewer else { return None };
        self.history.position(Viewer::Snapshot(self.history.predecessor(id)?))
    }

    pub(super) fn cells(&self) -> &[(Viewers, Tally)] {
        &self.cells
    }

    /// Bytes of a set, which the crowded addresses may belong to or not.
    pub(super) fn estimate(&self, tally: &Tally) -> Estimate {
        Estimate::new(tally, &self.crowded, self.halvings)
    }

    /// The estimate alone, without its bar, which takes longer.
    pub(super) fn bytes(&self, tally: &Tally) -> u64 {
        tally.scaled_bytes(self.halvings)
    }

    fn tally(&self, wanted: impl Fn(&[Span]) -> bool) -> Tally {
        let mut sum = Tally::default();
        for (_, tally) in self.cells.iter().filter(|(viewers, _)| wanted(viewers)) {
            sum.add(tally);
        }
        sum
    }

    fn measure_with(
        &self,
        set: &[Viewer],
        wanted: impl Fn(&ViewerSet, &[Span]) -> bool,
    ) -> Result<Estimate, UnknownViewer> {
        let set = ViewerSet::new(self.history, set)?;
        Ok(self.estimate(&self.tally(|viewers| wanted(&set, viewers))))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct PositionTally {
    referenced: Tally,
    unique: Tally,
    growth: Tally,
}
