//! The sample of snapshots' costs against volumes that keep a whole map for every snapshot.
//!
//! At rate 1 every answer must be the model's; at lower rates it must be the model's answer for the addresses that the
//! sample holds, whatever was written, shared, moved, snapshotted, cloned and deleted before.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ringfort_store::address::{LogicalBlock, MiddleAddress, ObjectId, VolumeId};
use ringfort_store::interval::{BranchId, Epoch};
use ringfort_store::sketch::census::Census;
use ringfort_store::sketch::estimate::Estimate;
use ringfort_store::sketch::history::{Branch, Head, History, Snapshot, SnapshotId, Viewer};
use ringfort_store::sketch::keeping::Checkpoint;
use ringfort_store::sketch::sample::Sample;
use ringfort_store::sketch::sampler::{Run, Sampler};

const VOLUME: VolumeId = VolumeId(7);
const OBJECTS: u64 = 2;
const BLOCKS: u64 = 12;
const FULL: usize = 1 << 20;

type Map = BTreeMap<(u64, u64), MiddleAddress>;

fn stored_bytes(middle: MiddleAddress) -> u16 {
    1 + (middle.0 * 1117 % 4096) as u16
}

struct Line {
    branch: Branch,
    epoch: Epoch,
    head: Map,
}

struct Version {
    snapshot: Snapshot,
    map: Map,
}

/// A volume by whole maps, and two samples of it: one at rate 1, one with a small budget.
struct World {
    lines: Vec<Line>,
    versions: Vec<Version>,
    snapshots_taken: u32,
    next_middle: u64,
    full: Sample,
    small: Sample,
    pages: Vec<Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Step {
    Write { line: usize, object: u64, start: u64, len: u64 },
    Share { from: usize, line: usize, object: u64, block: u64, to: u64 },
    Unmap { line: usize, object: u64, start: u64, len: u64 },
    Shift { line: usize, object: u64, from: u64, to: u64, len: u64 },
    Snapshot { line: usize },
    Delete { version: usize },
    Clone { version: usize },
    DropHead { line: usize },
    Prune,
    Reopen,
}

impl World {
    fn new(budget_references: usize) -> Self {
        let branch = Branch { id: BranchId(1), origin: None, has_head: true };
        Self {
            lines: vec![Line { branch, epoch: Epoch(0), head: Map::new() }],
            versions: Vec::new(),
            snapshots_taken: 0,
            next_middle: 100,
            full: Sample::new(Sampler::new(1, 0), FULL),
            small: Sample::new(Sampler::new(2, 0), budget_references),
            pages: Vec::new(),
        }
    }

    fn history(&self) -> History {
        let branches: Vec<_> = self.lines.iter().map(|line| line.branch).collect();
        let snapshots: Vec<_> = self.versions.iter().map(|version| version.snapshot).collect();
        History::new(&branches, &snapshots).unwrap()
    }

    fn head(&self, line: usize) -> Head {
        let line = &self.lines[line];
        self.history().head(line.branch.id, line.epoch).unwrap()
    }

    /// A line with a head.
    fn living(&self, line: usize) -> Option<usize> {
        let living: Vec<_> = (0..self.lines.len()).filter(|at| self.lines[*at].branch.has_head).collect();
        living.get(line % living.len().max(1)).copied()
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Write { line, object, start, len } => self.write(line, object, start, len),
            Step::Share { from, line, object, block, to } => self.share(from, line, object, block, to),
            Step::Unmap { line, object, start, len } => self.unmap(line, object, start, len),
            Step::Shift { line, object, from, to, len } => self.shift(line, object, from, to, len),
            Step::Snapshot { line } => self.snapshot(line),
            Step::Delete { version } if !self.versions.is_empty() => {
                self.versions.swap_remove(version % self.versions.len());
            }
            Step::Clone { version } if !self.versions.is_empty() => self.begin(version % self.versions.len()),
            Step::DropHead { line } => self.drop_head(line),
            Step::Prune => self.prune(),
            Step::Reopen => self.reopen(),
            _ => {}
        }
    }

    fn write(&mut self, line: usize, object: u64, start: u64, len: u64) {
        let Some(line) = self.living(line) else { return };
        let head = self.head(line);
        let run = Run::new(MiddleAddress(self.next_middle), len);
        for sample in [&mut self.full, &mut self.small] {
            sample.map(&head, ObjectId(object), LogicalBlock(start), run, stored_bytes);
        }
        let mapped = (0..len).map(|at| ((object, start + at), MiddleAddress(self.next_middle + at)));
        self.lines[line].head.extend(mapped);
        self.next_middle += len;
    }

    fn share(&mut self, from: usize, line: usize, object: u64, block: u64, to: u64) {
        let (Some(from), Some(line)) = (self.living(from), self.living(line)) else { return };
        let Some(middle) = self.lines[from].head.get(&(object, block)).copied() else { return };
        let head = self.head(line);
        for sample in [&mut self.full, &mut self.small] {
            let run = Run::single(middle);
            sample.map(&head, ObjectId(1 - object), LogicalBlock(to), run, stored_bytes);
        }
        self.lines[line].head.insert((1 - object, to), middle);
    }

    fn unmap(&mut self, line: usize, object: u64, start: u64, len: u64) {
        let Some(line) = self.living(line) else { return };
        let head = self.head(line);
        let blocks = if len > BLOCKS { 0..u64::MAX } else { start..start + len };
        for sample in [&mut self.full, &mut self.small] {
            sample.unmap(&head, ObjectId(object), blocks.clone());
        }
        self.lines[line].head.retain(|(at, block), _| *at != object || !blocks.contains(block));
    }

    fn shift(&mut self, line: usize, object: u64, from: u64, to: u64, len: u64) {
        let Some(line) = self.living(line) else { return };
        let head = self.head(line);
        for sample in [&mut self.full, &mut self.small] {
            sample.shift(&head, ObjectId(object), LogicalBlock(from), LogicalBlock(to), len);
        }
        let map = &mut self.lines[line].head;
        let moved: Vec<_> =
            (0..len).filter_map(|at| Some((to + at, map.remove(&(object, from + at))?))).collect();
        map.retain(|(at, block), _| *at != object || !(to..to + len).contains(block));
        map.extend(moved.into_iter().map(|(block, middle)| ((object, block), middle)));
    }

    fn snapshot(&mut self, line: usize) {
        let Some(line) = self.living(line) else { return };
        let Line { branch, epoch, head } = &mut self.lines[line];
        self.snapshots_taken += 1;
        let id = SnapshotId(self.snapshots_taken);
        let snapshot = Snapshot { id, branch: branch.id, epoch: *epoch };
        self.versions.push(Version { snapshot, map: head.clone() });
        *epoch = Epoch(epoch.0 + 1);
    }

    fn begin(&mut self, version: usize) {
        let Version { snapshot, map } = &self.versions[version];
        let id = BranchId(self.lines.iter().map(|line| line.branch.id.0).max().unwrap() + 1);
        let branch = Branch { id, origin: Some((snapshot.branch, snapshot.epoch)), has_head: true };
        self.lines.push(Line { branch, epoch: Epoch(0), head: map.clone() });
    }

    fn drop_head(&mut self, line: usize) {
        if let Some(line) = self.living(line).filter(|line| *line > 0) {
            self.lines[line].branch.has_head = false;
            self.lines[line].head.clear();
        }
    }

    /// Branches that nothing leads to are gone, as in a store that has deleted them.
    fn prune(&mut self) {
        while let Some(gone) = self.lines.iter().skip(1).position(|line| !self.is_named(line)) {
            self.lines.remove(gone + 1);
        }
        let history = self.history();
        self.full.prune(&history);
        self.small.prune(&history);
        assert!(self.full.references().all(|reference| self.seen().contains(&reference.middle)));
    }

    fn is_named(&self, line: &Line) -> bool {
        line.branch.has_head
            || self.versions.iter().any(|version| version.snapshot.branch == line.branch.id)
            || self.lines.iter().any(|other| other.branch.origin.is_some_and(|(id, _)| id == line.branch.id))
    }

    fn reopen(&mut self) {
        match self.small.checkpoint(VOLUME) {
            Checkpoint::Image(pages) => self.pages = pages,
            Checkpoint::Added(pages) => self.pages.extend(pages),
        }
        self.small = Sample::load(VOLUME, 60, &self.pages).unwrap();
    }

    fn seen(&self) -> BTreeSet<MiddleAddress> {
        self.views().into_values().flatten().collect()
    }

    fn views(&self) -> BTreeMap<Viewer, BTreeSet<MiddleAddress>> {
        let addresses = |map: &Map| map.values().copied().collect();
        let heads = self.lines.iter().filter(|line| line.branch.has_head);
        let heads = heads.map(|line| (Viewer::Head(line.branch.id), addresses(&line.head)));
        let versions = self.versions.iter();
        let versions =
            versions.map(|version| (Viewer::Snapshot(version.snapshot.id), addresses(&version.map)));
        heads.chain(versions).collect()
    }
}

/// The model's answers, for the addresses that a sample holds.
struct Answers {
    views: BTreeMap<Viewer, BTreeSet<MiddleAddress>>,
    halvings: u8,
}

impl Answers {
    fn bytes(&self, wanted: impl Fn(&BTreeSet<Viewer>) -> bool) -> u64 {
        let mut viewers: BTreeMap<MiddleAddress, BTreeSet<Viewer>> = BTreeMap::new();
        for (viewer, addresses) in &self.views {
            for middle in addresses {
                viewers.entry(*middle).or_default().insert(*viewer);
            }
        }
        let found = viewers.iter().filter(|(_, viewers)| wanted(viewers));
        found.map(|(middle, _)| u64::from(stored_bytes(*middle)) << self.halvings).sum()
    }

    #[track_caller]
    fn check(&self, what: &str, found: Estimate, wanted: impl Fn(&BTreeSet<Viewer>) -> bool) {
        assert_eq!(found.bytes, self.bytes(wanted), "{what}");
        assert!(found.covers(found.bytes), "{what}: {found:?}");
    }

    fn check_sets(&self, census: &Census, viewers: &[Viewer]) {
        self.check("total", census.total(), |_| true);
        for (from, to) in viewers.iter().zip(viewers.iter().cycle().skip(1)) {
            let grown = census.growth(*from, *to).unwrap();
            self.check("growth", grown, |seen| seen.contains(to) && !seen.contains(from));
        }
        for len in 1..=viewers.len() {
            let set: BTreeSet<_> = viewers[..len].iter().copied().collect();
            let members = &viewers[..len];
            self.check("referenced", census.referenced(members).unwrap(), |seen| !seen.is_disjoint(&set));
            self.check("freed", census.freed(members).unwrap(), |seen| seen.is_subset(&set));
            self.check("shared by these", census.shared_exactly(members).unwrap(), |seen| *seen == set);
            self.check("shared", census.shared_at_least(members).unwrap(), |seen| set.is_subset(seen));
        }
    }

    fn check_report(&self, census: &Census) {
        for cost in census.report() {
            let own = Viewer::Snapshot(cost.id);
            let before = census.history().predecessor(cost.id).map(Viewer::Snapshot);
            self.check("referenced", cost.referenced, |seen| seen.contains(&own));
            self.check("unique", cost.unique, |seen| seen.len() == 1 && seen.contains(&own));
            self.check("growth", cost.growth, |seen| {
                seen.contains(&own) && before.is_none_or(|before| !seen.contains(&before))
            });
        }
    }
}

fn check_world(world: &World, order: u64) {
    let history = world.history();
    let mut viewers: Vec<_> = world.views().into_keys().collect();
    viewers.sort_by_key(|viewer| match viewer {
        Viewer::Snapshot(id) => u64::from(id.0).wrapping_mul(order | 1) % 97,
        Viewer::Head(id) => u64::from(id.0).wrapping_mul(order | 1) % 89,
    });
    let mut references: Vec<_> = world.full.references().collect();
    references.sort_by_key(|reference| reference.middle);
    let exact = Census::exact(&history, references);
    for (sample, census) in [
        (&world.full, exact),
        (&world.full, world.full.census(&history)),
        (&world.small, world.small.census(&history)),
    ] {
        let mut views = world.views();
        views.values_mut().for_each(|addresses| addresses.retain(|middle| sample.follows(*middle)));
        let answers = Answers { views, halvings: sample.sampler().halvings() };
        answers.check_sets(&census, &viewers);
        answers.check_report(&census);
    }
}

fn step() -> impl Strategy<Value = Step> {
    let line = || 0..4_usize;
    let block = || 0..BLOCKS;
    let object = || 0..OBJECTS;
    prop_oneof![
        6 => (line(), object(), block(), 1..9_u64)
            .prop_map(|(line, object, start, len)| Step::Write { line, object, start, len }),
        3 => (line(), line(), object(), block(), block())
            .prop_map(|(from, line, object, block, to)| Step::Share { from, line, object, block, to }),
        2 => (line(), object(), block(), 1..BLOCKS + 4)
            .prop_map(|(line, object, start, len)| Step::Unmap { line, object, start, len }),
        2 => (line(), object(), block(), block(), 1..9_u64)
            .prop_map(|(line, object, from, to, len)| Step::Shift { line, object, from, to, len }),
        4 => line().prop_map(|line| Step::Snapshot { line }),
        1 => (0..20_usize).prop_map(|version| Step::Delete { version }),
        2 => (0..20_usize).prop_map(|version| Step::Clone { version }),
        1 => line().prop_map(|line| Step::DropHead { line }),
        1 => Just(Step::Prune),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn samples_answer_as_whole_maps_do(steps in prop::collection::vec(step(), 1..60), order in any::<u64>()) {
        let mut world = World::new(60);
        for step in &steps {
            world.apply(step);
        }
        check_world(&world, order);
        world.prune();
        check_world(&world, order);
    }
}

#[test]
fn a_clone_of_a_clone_inherits_what_its_parent_displaced_later() {
    let mut world = World::new(60);
    world.write(0, 0, 0, 4);
    world.snapshot(0);
    world.begin(0);
    world.snapshot(1);
    world.begin(1);
    world.write(1, 0, 1, 1);
    check_world(&world, 1);
    world.write(2, 0, 1, 1);
    check_world(&world, 1);
    // What the parent had displaced before the clone is not displaced again.
    world.snapshot(1);
    world.begin(2);
    world.unmap(3, 0, 0, BLOCKS);
    check_world(&world, 1);
}

#[test]
fn an_address_with_very_many_references_does_not_use_up_the_sample() {
    let mut world = World::new(60);
    world.write(0, 0, 0, BLOCKS);
    for at in 0..60 {
        world.share(0, 0, 0, 5, at);
    }
    let middle = world.lines[0].head[&(0, 5)];
    check_world(&world, 1);
    // A second one, while references to the first go on.
    for at in 0..60 {
        world.share(0, 0, 0, 6, at);
        world.share(0, 0, 0, 5, at + 1);
    }
    assert!(world.small.len() <= 60 && world.small.sampler().halvings() == 0);
    assert!(!world.small.follows(middle) && world.full.follows(middle));
    check_world(&world, 1);
    // It may belong to any set: every bar reaches over it.
    world.snapshot(0);
    let history = world.history();
    let grown =
        world.small.census(&history).growth(Viewer::Snapshot(SnapshotId(1)), Viewer::Head(BranchId(1)));
    let grown = grown.unwrap();
    let crowds = [middle, world.lines[0].head[&(0, 6)]];
    assert_eq!(
        (grown.bytes, grown.high_bytes, grown.exact),
        (0, crowds.map(|middle| u64::from(stored_bytes(middle))).iter().sum(), false)
    );
}
