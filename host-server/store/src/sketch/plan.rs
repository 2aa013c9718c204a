//! Which snapshots to delete so that so many bytes are free again, with the least loss of history.
//!
//! *Loss.* Who wants the state of a moment takes the newest snapshot before it and misses by the time between. A miss counts
//! in proportion to how long ago the moment is, and moments of every doubling of age are wanted equally often. So a snapshot
//! that was taken at `t`, the next one on its branch at `n`, and the newest one before it that is kept at `b`, is missed by
//!
//! ```text
//!   ∫ (t − b) / (now − x)² dx  from t to n   =   (t − b) · (1 / age(n) − 1 / age(t))
//! ```
//! Hence old history may be sparse and new history may not, and what one of many snapshots in a row shows the next one shows
//! as well. Where nothing is kept before it, `t − b` is its age. The newest is followed by the present. [`AGE_FLOOR_S`] is added to ages.
//!
//! *Choice.* What is kept divides the line of viewers ([`super::history`]) into gaps, and what is freed is what is seen inside
//! one gap only. So loss and bytes both add up over gaps, and the shortest path over all pairs of kept neighbours, at a price
//! for each byte, is the best of all choices that free as much; the price is searched for. Then every snapshot that is not
//! needed after all is given back, those that would be missed most first. Two things make a choice less than the best: a number of bytes that no
//! price leads to, and branches: loss is counted there as if a clone that lies between two snapshots were kept.

use std::collections::{BTreeMap, BTreeSet};

use super::census::{Census, UnknownViewer};
use super::estimate::Estimate;
use super::history::{History, SnapshotId, Viewer};

/// Ages below an hour are about equal.
pub const AGE_FLOOR_S: f64 = 3600.0;

/// Binary logarithms of prices, in loss per byte, between which the right one lies: at the low end not even the least loss is
/// worth all bytes of the largest volume, at the high end a byte is worth any loss.
const PRICE_LOG_RANGE: (f64, f64) = (-160.0, 40.0);
/// Halvings of that range.
const PRICE_STEPS: u32 = 48;

/// A snapshot, as the planner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub id: SnapshotId,
    /// Seconds since 1970.
    pub taken_at_s: u64,
    /// It must stay: it is mounted, held, or of no concern to this plan.
    pub held: bool,
}

/// What to delete.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In order of the line of viewers: oldest first on each branch.
    pub delete: Vec<SnapshotId>,
    /// What their deletion gives back. Below the sample's floor an exact census should make the plan.
    pub freed: Estimate,
    /// 0 for none; comparable between plans for one volume.
    pub loss: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    #[error("{wanted_bytes} bytes were asked for, and all snapshots that may be deleted hold about {} together", .possible.bytes)]
    OutOfReach { wanted_bytes: u64, possible: Estimate },
    #[error(transparent)]
    Unknown(#[from] UnknownViewer),
}

/// Proposes deletions that free about `wanted_bytes`: by the estimate, not by the ends of its bar. Snapshots that clones began off stay,
/// and those that are no candidates.
pub fn plan(
    census: &Census<'_>,
    candidates: &[Candidate],
    wanted_bytes: u64,
    now_s: u64,
) -> Result<Plan, PlanError> {
    let line = Line::new(census, candidates, now_s)?;
    let all: BTreeSet<_> = line.deletable().collect();
    let possible = line.freed(&all)?;
    if possible.bytes < wanted_bytes {
        return Err(PlanError::OutOfReach { wanted_bytes, possible });
    }
    let mut deleted = line.cheapest(wanted_bytes).unwrap_or(all);
    line.give_back(&mut deleted, wanted_bytes)?;
    let freed = line.freed(&deleted)?;
    Ok(Plan { delete: line.names(&deleted), freed, loss: line.loss(&deleted) })
}

/// A snapshot that may be deleted.
#[derive(Clone, Copy, Debug)]
struct Deletable {
    id: SnapshotId,
    taken_at_s: f64,
    /// Of each second by which moments that it showed are missed.
    weight: f64,
    /// When the one before it on its branch was taken.
    before_s: Option<f64>,
}

/// The viewers of a history in their order, with what is known of them.
struct Line<'c, 'h> {
    census: &'c Census<'h>,
    now_s: f64,
    viewers: Vec<Option<Deletable>>,
    taken_at_s: Vec<Option<f64>>,
    /// For each position the cells that begin there: where the last viewer of each lies behind, and its bytes.
    cells: Vec<Vec<(usize, f64)>>,
}

impl<'c, 'h> Line<'c, 'h> {
    fn new(census: &'c Census<'h>, candidates: &[Candidate], now_s: u64) -> Result<Self, UnknownViewer> {
        let history = census.history();
        let count = history.viewers().len();
        let mut line = Self {
            census,
            now_s: now_s as f64,
            viewers: vec![None; count],
            taken_at_s: vec![None; count],
            cells: cells_by_start(census, count),
        };
        let taken: BTreeMap<_, _> =
            candidates.iter().map(|candidate| (candidate.id, candidate.taken_at_s as f64)).collect();
        for candidate in candidates {
            let viewer = Viewer::Snapshot(candidate.id);
            let position = history.position(viewer).ok_or(UnknownViewer(viewer))? as usize;
            line.taken_at_s[position] = Some(candidate.taken_at_s as f64);
            if !candidate.held && !history.is_cloned(candidate.id) {
                line.viewers[position] = Some(line.deletable_snapshot(history, candidate.id, &taken));
            }
        }
        Ok(line)
    }

    fn deletable_snapshot(
        &self,
        history: &History,
        id: SnapshotId,
        taken: &BTreeMap<SnapshotId, f64>,
    ) -> Deletable {
        let taken_at = |id: Option<SnapshotId>| taken.get(&id?).copied();
        let taken_at_s = taken_at(Some(id)).unwrap_or(self.now_s);
        let after_s = taken_at(history.successor(id)).unwrap_or(self.now_s);
        let weight = 1.0 / self.age_s(after_s) - 1.0 / self.age_s(taken_at_s);
        Deletable { id, taken_at_s, weight: weight.max(0.0), before_s: taken_at(history.predecessor(id)) }
    }

    fn age_s(&self, moment_s: f64) -> f64 {
        (self.now_s - moment_s).max(0.0) + AGE_FLOOR_S
    }

    fn deletable(&self) -> impl Iterator<Item = usize> {
        (0..self.viewers.len()).filter(|position| self.viewers[*position].is_some())
    }

    /// What is lost with one snapshot, where `kept` is the position of the nearest viewer before it that stays.
    fn loss_of(&self, snapshot: &Deletable, kept: Option<usize>) -> f64 {
        let before_s = match kept {
            None => None,
            Some(kept) => self.taken_at_s[kept].or(snapshot.before_s),
        };
        let missed_s = match before_s {
            Some(before_s) => (snapshot.taken_at_s - before_s).max(0.0),
            None => self.age_s(snapshot.taken_at_s),
        };
        missed_s * snapshot.weight
    }

    fn loss(&self, deleted: &BTreeSet<usize>) -> f64 {
        let kept = |position: usize| (0..position).rev().find(|before| !deleted.contains(before));
        let lost = deleted.iter().filter_map(|position| {
            let snapshot = self.viewers[*position].as_ref()?;
            Some(self.loss_of(snapshot, kept(*position)))
        });
        lost.sum()
    }

    fn names(&self, deleted: &BTreeSet<usize>) -> Vec<SnapshotId> {
        deleted.iter().filter_map(|position| Some(self.viewers[*position]?.id)).collect()
    }

    fn set(&self, deleted: &BTreeSet<usize>) -> Vec<Viewer> {
        self.names(deleted).into_iter().map(Viewer::Snapshot).collect()
    }

    fn freed(&self, deleted: &BTreeSet<usize>) -> Result<Estimate, UnknownViewer> {
        self.census.freed(&self.set(deleted))
    }

    fn freed_bytes(&self, deleted: &BTreeSet<usize>) -> Result<u64, UnknownViewer> {
        Ok(self.census.bytes(&self.census.freed_tally(&self.set(deleted))?))
    }

    /// The least loss at the lowest price that frees enough. `None` where the cells, as this line sees them, never do.
    fn cheapest(&self, wanted_bytes: u64) -> Option<BTreeSet<usize>> {
        let enough = |price_log: f64| {
            let (deleted, freed) = self.best_at(price_log.exp2());
            (freed >= wanted_bytes as f64).then_some(deleted)
        };
        let (mut low, mut high) = PRICE_LOG_RANGE;
        let mut found = enough(high)?;
        for _ in 0..PRICE_STEPS {
            let middle = low.midpoint(high);
            match enough(middle) {
                Some(deleted) => (high, found) = (middle, deleted),
                None => low = middle,
            }
        }
        Some(found)
    }

    /// The shortest path from what is kept to what is kept next, from the end backwards, and the bytes that it frees. Node 0 stands before
    /// the line, node `i + 1` at position `i`, the last one behind the line.
    fn best_at(&self, price: f64) -> (BTreeSet<usize>, f64) {
        let count = self.viewers.len();
        let mut best = vec![Step::default(); count + 2];
        let mut bytes_by_end = vec![0.0; count + 1];
        for node in (0..=count).rev() {
            for (end, bytes) in self.cells.get(node).into_iter().flatten() {
                bytes_by_end[*end] += bytes;
            }
            best[node] = self.best_step(node, price, &best, &bytes_by_end);
        }
        let mut deleted = BTreeSet::new();
        let mut node = 0;
        while node <= count {
            let next = best[node].next;
            deleted.extend(node..next - 1);
            node = next;
        }
        (deleted, best[0].freed)
    }

    /// From one kept node to the next, whichever that had best be. `bytes_by_end` has the cells that begin behind the node.
    fn best_step(&self, node: usize, price: f64, best: &[Step], bytes_by_end: &[f64]) -> Step {
        let kept = node.checked_sub(1);
        let (mut lost, mut freed) = (0.0, 0.0);
        let mut found = Step { next: node + 1, ..best[node + 1] };
        let gap = self.viewers[node..].iter().map_while(Option::as_ref);
        for (position, snapshot) in (node..).zip(gap) {
            lost += self.loss_of(snapshot, kept);
            freed += bytes_by_end[position + 1];
            let next = position + 2;
            let cost = lost - price * freed + best[next].cost;
            if cost < found.cost {
                found = Step { cost, freed: freed + best[next].freed, next };
            }
        }
        found
    }

    /// Takes snapshots out of the set while the rest frees enough, those that would be missed most first.
    fn give_back(&self, deleted: &mut BTreeSet<usize>, wanted_bytes: u64) -> Result<(), UnknownViewer> {
        let mut missed: Vec<(f64, usize)> = deleted
            .iter()
            .filter_map(|position| {
                let snapshot = self.viewers[*position].as_ref()?;
                Some((self.loss_of(snapshot, position.checked_sub(1)), *position))
            })
            .collect();
        missed.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        for (_, position) in missed {
            deleted.remove(&position);
            if self.freed_bytes(deleted)? < wanted_bytes {
                deleted.insert(position);
            }
        }
        Ok(())
    }
}

/// The rest of a path, from one kept node on.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    /// Loss, less the price of what is freed.
    cost: f64,
    freed: f64,
    next: usize,
}

/// A cell with gaps is given back, as far as the line is concerned, with everything from its first to its last viewer.
fn cells_by_start(census: &Census<'_>, count: usize) -> Vec<Vec<(usize, f64)>> {
    let mut cells = vec![Vec::new(); count];
    for (viewers, tally) in census.cells() {
        if let (Some(first), Some(last)) = (viewers.first(), viewers.last()) {
            cells[first.start as usize].push((last.end as usize, census.bytes(tally) as f64));
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{LogicalBlock, MiddleAddress, ObjectId};
    use crate::interval::{BranchId, Epoch, Place, Presence, Reference};
    use crate::sketch::history::{Branch, Snapshot};

    const BRANCH: BranchId = BranchId(1);
    const DAY_S: u64 = 86_400;
    const NOW_S: u64 = 1000 * DAY_S;
    const BLOCK_BYTES: u64 = 4096;

    /// One branch with a snapshot a day, the last of them a day ago.
    fn daily(count: u32) -> (History, Vec<Candidate>) {
        let snapshot = |at: u32| Snapshot { id: SnapshotId(at), branch: BRANCH, epoch: Epoch(at) };
        let snapshots: Vec<_> = (0..count).map(snapshot).collect();
        let taken_at_s = |at: u32| NOW_S - u64::from(count - at) * DAY_S;
        let candidate = |at| Candidate { id: SnapshotId(at), taken_at_s: taken_at_s(at), held: false };
        let root = Branch { id: BRANCH, origin: None, has_head: true };
        (History::new(&[root], &snapshots).unwrap(), (0..count).map(candidate).collect())
    }

    /// Blocks that the snapshots from one up to another see.
    fn census<'a>(history: &'a History, blocks: &[(u32, u32, u64)]) -> Census<'a> {
        let one = |birth: u32, death: u32, at: u64| Reference {
            place: Place { branch: BRANCH, object: ObjectId(1), block: LogicalBlock(at) },
            middle: MiddleAddress(u64::from(birth) << 40 | u64::from(death) << 20 | at),
            birth: Epoch(birth),
            death: Epoch(death),
            presence: Presence::Present,
            stored_bytes: BLOCK_BYTES as u16,
        };
        let all = |(birth, death, count): &(u32, u32, u64)| {
            let (birth, death) = (*birth, *death);
            (0..*count).map(move |at| one(birth, death, at))
        };
        Census::exact(history, blocks.iter().flat_map(all))
    }

    fn numbers(plan: &Plan) -> Vec<u32> {
        plan.delete.iter().map(|id| id.0).collect()
    }

    #[test]
    fn what_a_run_of_snapshots_shares_is_found() {
        let (history, candidates) = daily(20);
        // Each has a little of its own; 7, 8 and 9 share much.
        let mut blocks: Vec<_> = (0..20).map(|at| (at, at + 1, 10)).collect();
        blocks.push((7, 10, 1000));
        let census = census(&history, &blocks);
        let found = plan(&census, &candidates, 1000 * BLOCK_BYTES, NOW_S).unwrap();
        assert_eq!(numbers(&found), [7, 8, 9]);
        assert_eq!(found.freed.bytes, 1030 * BLOCK_BYTES);
    }

    #[test]
    fn equal_snapshots_thin_out_where_history_is_old() {
        let (history, candidates) = daily(40);
        let blocks: Vec<_> = (0..40).map(|at| (at, at + 1, 10)).collect();
        let census = census(&history, &blocks);
        let found = plan(&census, &candidates, 100 * BLOCK_BYTES, NOW_S).unwrap();
        let deleted = numbers(&found);
        assert_eq!(deleted.len(), 10);
        assert!(!deleted.contains(&0), "history is as long as before: {deleted:?}");
        assert!(deleted.iter().all(|at| *at < 30), "{deleted:?}");
        // Two neighbours go at most, and only of the oldest.
        assert!(deleted.windows(3).all(|three| three[2] > three[0] + 2), "{deleted:?}");
        assert!(deleted.windows(2).all(|pair| pair[1] > pair[0] + 1 || pair[0] < 5), "{deleted:?}");
    }

    #[test]
    fn what_is_held_cloned_or_no_candidate_stays() {
        let (_, mut candidates) = daily(6);
        let snapshots: Vec<_> =
            (0..6).map(|at| Snapshot { id: SnapshotId(at), branch: BRANCH, epoch: Epoch(at) }).collect();
        let branches = [
            Branch { id: BRANCH, origin: None, has_head: true },
            Branch { id: BranchId(2), origin: Some((BRANCH, Epoch(3))), has_head: true },
        ];
        let history = History::new(&branches, &snapshots).unwrap();
        let blocks: Vec<_> = (0..6).map(|at| (at, at + 1, 10)).collect();
        let census = census(&history, &blocks);
        candidates[2].held = true;
        candidates.remove(1);
        let found = plan(&census, &candidates, 30 * BLOCK_BYTES, NOW_S).unwrap();
        assert_eq!(numbers(&found), [0, 4, 5]);
        let error = plan(&census, &candidates, 30 * BLOCK_BYTES + 1, NOW_S).unwrap_err();
        assert!(
            matches!(error, PlanError::OutOfReach { possible, .. } if possible.bytes == 30 * BLOCK_BYTES)
        );
    }

    #[test]
    fn nothing_is_deleted_for_nothing() {
        let (history, candidates) = daily(3);
        let census = census(&history, &[(0, 1, 5)]);
        let found = plan(&census, &candidates, 0, NOW_S).unwrap();
        assert_eq!((found.delete, found.freed.bytes, found.loss), (vec![], 0, 0.0));
        let stranger = Candidate { id: SnapshotId(9), taken_at_s: 0, held: false };
        assert!(matches!(plan(&census, &[stranger], 1, NOW_S), Err(PlanError::Unknown(_))));
    }

    /// Every set of snapshots that frees enough, and the least loss among them.
    fn least_loss(line: &Line, count: u32, wanted_bytes: u64) -> f64 {
        let sets = (0..1_u32 << count)
            .map(|bits| (0..count as usize).filter(move |at| bits >> at & 1 == 1).collect());
        let enough = sets.filter(|set| line.freed_bytes(set).unwrap() >= wanted_bytes);
        enough.map(|set| line.loss(&set)).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn plans_are_the_best_or_near_it() {
        let mut random = ringfort_engine::sim::Random::new(11);
        let mut worst: f64 = 1.0;
        let mut best_found = 0;
        for _ in 0..200 {
            let (history, candidates) = daily(8);
            let blocks: Vec<_> = (0..12)
                .map(|_| {
                    let birth = random.below(8) as u32;
                    (birth, birth + 1 + random.below(u64::from(8 - birth).min(3)) as u32, random.below(30))
                })
                .collect();
            let census = census(&history, &blocks);
            let total = census.total().bytes;
            let wanted_bytes = total / 4 + random.below(total / 2 + 1);
            let found = plan(&census, &candidates, wanted_bytes, NOW_S).unwrap();
            assert!(found.freed.bytes >= wanted_bytes);
            let line = Line::new(&census, &candidates, NOW_S).unwrap();
            let best = least_loss(&line, 8, wanted_bytes);
            assert!(found.loss >= best - 1e-9, "{found:?}");
            best_found += u32::from(found.loss <= best + 1e-9);
            worst = worst.max(found.loss / best);
        }
        assert!(
            best_found > 100 && worst < 4.0,
            "best in {best_found} of 200, at worst {worst} times the least loss"
        );
    }
}
