//! How good the estimates of snapshots' costs are: a thousand volumes, each with coins of its own.
//!
//! The ordinary test plays a small volume; a volume of a million blocks with a hundred snapshots is played, and the costs of the
//! sample measured, by
//!
//! ```text
//! cargo test --release -p ringfort-store --test sketch_trials -- --ignored --nocapture --test-threads 1
//! ```

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use ringfort_engine::sim::Random;
use ringfort_store::address::{LogicalBlock, MiddleAddress, ObjectId, VolumeId};
use ringfort_store::interval::{BranchId, Epoch};
use ringfort_store::sketch::estimate::Estimate;
use ringfort_store::sketch::history::{Branch, Head, History, Snapshot, SnapshotId, Viewer};
use ringfort_store::sketch::keeping::Checkpoint;
use ringfort_store::sketch::plan::{Candidate, plan};
use ringfort_store::sketch::sample::{BUDGET_REFERENCES, HALVINGS_FIRST, Sample};
use ringfort_store::sketch::sampler::{Run, Sampler};

const TRIALS: u64 = 1000;
const BRANCH: BranchId = BranchId(1);
const OBJECT: ObjectId = ObjectId(1);
const VOLUME: VolumeId = VolumeId(7);
const RUN_BLOCKS: u64 = 512;

/// Which blocks change between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changes {
    /// The same hundredth of the volume every time: each snapshot has as much of its own.
    SameHundredth,
    /// Any hundredth: all snapshots but the first share most of what they have with neighbours.
    AnyHundredth,
}

/// A volume whose first snapshot follows its filling. Knows the truth, and has a sample.
struct World {
    blocks: u64,
    changed: u64,
    changes: Changes,
    stored_bytes: fn(MiddleAddress) -> u16,
    sample: Sample,
    epoch: u32,
    next_middle: u64,
    /// What each block holds, and since which epoch.
    contents: Vec<(MiddleAddress, u32)>,
    /// Bytes that only the snapshot of an epoch sees.
    unique: Vec<u64>,
    hot: Vec<u64>,
    random: Random,
}

impl World {
    fn new(blocks: u64, changes: Changes, stored_bytes: fn(MiddleAddress) -> u16, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut hot: Vec<_> = (0..blocks).collect();
        let changed = blocks / 100;
        // Enough of a shuffle for the first hundredth.
        for at in 0..changed {
            hot.swap(at as usize, (at + random.below(blocks - at)) as usize);
        }
        hot.truncate(changed as usize);
        let sampler = Sampler::new(random.next_u64(), HALVINGS_FIRST);
        Self {
            blocks,
            changed,
            changes,
            stored_bytes,
            sample: Sample::new(sampler, BUDGET_REFERENCES),
            epoch: 0,
            next_middle: 0,
            contents: Vec::new(),
            unique: Vec::new(),
            hot,
            random,
        }
    }

    fn head(&self) -> Head {
        Head { branch: BRANCH, epoch: Epoch(self.epoch), ancestors: Box::default() }
    }

    fn play(&mut self, snapshots: u32) {
        self.fill();
        for _ in 0..snapshots {
            self.epoch += 1;
            self.unique.push(0);
            self.change();
        }
    }

    fn fill(&mut self) {
        let head = self.head();
        for start in (0..self.blocks).step_by(RUN_BLOCKS as usize) {
            let run = Run::new(MiddleAddress(start), RUN_BLOCKS.min(self.blocks - start));
            self.sample.map(&head, OBJECT, LogicalBlock(start), run, self.stored_bytes);
        }
        self.contents = (0..self.blocks).map(|at| (MiddleAddress(at), 0)).collect();
        self.next_middle = self.blocks;
    }

    fn change(&mut self) {
        let head = self.head();
        for at in 0..self.changed {
            let block = match self.changes {
                Changes::SameHundredth => self.hot[at as usize],
                Changes::AnyHundredth => self.random.below(self.blocks),
            };
            let middle = MiddleAddress(self.next_middle);
            self.next_middle += 1;
            self.sample.map(&head, OBJECT, LogicalBlock(block), Run::single(middle), self.stored_bytes);
            let (old, birth) = std::mem::replace(&mut self.contents[block as usize], (middle, self.epoch));
            if birth + 1 == self.epoch {
                self.unique[birth as usize] += u64::from((self.stored_bytes)(old));
            }
        }
    }

    fn history(&self) -> History {
        let snapshot = |epoch| Snapshot { id: SnapshotId(epoch), branch: BRANCH, epoch: Epoch(epoch) };
        let snapshots: Vec<_> = (0..self.epoch).map(snapshot).collect();
        History::new(&[Branch { id: BRANCH, origin: None, has_head: true }], &snapshots).unwrap()
    }
}

/// Errors of many estimates of what snapshots alone refer to.
#[derive(Debug, Default)]
struct Score {
    squares: f64,
    sum: f64,
    expected_squares: f64,
    estimates: f64,
    covered: f64,
    below_floor: f64,
    rate: f64,
}

impl Score {
    /// What an estimate of nothing says is right or wrong by any factor: it is left out.
    fn add(&mut self, truth: u64, found: &Estimate, rate: f64) {
        if truth == 0 {
            return;
        }
        let error = found.bytes as f64 / truth as f64 - 1.0;
        self.squares += error * error;
        self.expected_squares += (1.0 - rate) / rate * 4096.0 / truth as f64;
        self.rate = rate;
        self.sum += error;
        self.estimates += 1.0;
        self.covered += f64::from(u8::from(found.covers(truth)));
        self.below_floor += f64::from(u8::from(found.is_below_floor()));
    }

    fn rms(&self) -> f64 {
        (self.squares / self.estimates).sqrt()
    }

    /// Of independent coins for blocks of one size.
    fn expected_rms(&self) -> f64 {
        (self.expected_squares / self.estimates).sqrt()
    }

    fn coverage(&self) -> f64 {
        self.covered / self.estimates
    }

    fn show(&self, what: &str) {
        println!(
            "{what}: RMS relative error {:.2} % (independent coins: {:.2} %), bias {:+.2} %, bar covers {:.2} %, below the floor {:.1} %, rate {}",
            100.0 * self.rms(),
            100.0 * self.expected_rms(),
            100.0 * self.sum / self.estimates,
            100.0 * self.coverage(),
            100.0 * self.below_floor / self.estimates,
            self.rate,
        );
    }
}

/// Scores of the first snapshot, what is unique of which lies scattered over the whole volume, and of all others.
fn score(
    blocks: u64,
    snapshots: u32,
    changes: Changes,
    stored_bytes: fn(MiddleAddress) -> u16,
    trials: u64,
) -> (Score, Score) {
    let (mut first, mut others) = (Score::default(), Score::default());
    for trial in 0..trials {
        let mut world = World::new(blocks, changes, stored_bytes, trial);
        world.play(snapshots);
        let history = world.history();
        let rate = 0.5f64.powi(i32::from(world.sample.sampler().halvings()));
        for cost in world.sample.census(&history).report() {
            let truth = world.unique[cost.id.0 as usize];
            let score = if cost.id.0 == 0 { &mut first } else { &mut others };
            score.add(truth, &cost.unique, rate);
        }
    }
    (first, others)
}

fn whole(_: MiddleAddress) -> u16 {
    4096
}

/// Nine of ten compress well, which makes the tenth heavy.
fn compressed(middle: MiddleAddress) -> u16 {
    if middle.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60 == 0 { 4096 } else { 256 + (middle.0 % 256) as u16 }
}

#[test]
fn errors_of_a_thousand_small_volumes_are_as_small_as_coins_allow() {
    let (first, others) = score(1 << 15, 3, Changes::SameHundredth, whole, TRIALS);
    first.show("scattered");
    others.show("written together");
    assert!(first.rms() <= 1.05 * first.expected_rms(), "{first:?}");
    assert!(others.rms() <= 0.5 * others.expected_rms(), "runs are counted group by group: {others:?}");
    assert!(first.coverage() >= 0.95 && others.coverage() >= 0.95, "{first:?} {others:?}");
    // No bias beyond three standard errors.
    let bias = first.sum / first.estimates;
    assert!(bias.abs() <= 3.0 * first.rms() / first.estimates.sqrt(), "{first:?}");
}

/// One in fifty outweighs all others together.
fn extreme(middle: MiddleAddress) -> u16 {
    if middle.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & 0xffff < 1311 { 4096 } else { 1 }
}

#[test]
fn bars_cover_sums_of_unequal_blocks_and_samples_of_a_few() {
    let volumes = [
        (1 << 15, Changes::SameHundredth),
        (1 << 12, Changes::SameHundredth),
        (1 << 15, Changes::AnyHundredth),
    ];
    for (blocks, changes) in volumes {
        for (name, stored_bytes) in [("compressed", compressed as fn(_) -> _), ("extreme", extreme)] {
            let (first, others) = score(blocks, 2, changes, stored_bytes, TRIALS);
            first.show(&format!("{changes:?}, {blocks} blocks, first, {name}"));
            others.show(&format!("{changes:?}, {blocks} blocks, second, {name}"));
            assert!(first.coverage() >= 0.95, "{blocks} {changes:?} {name}: {first:?}");
            assert!(others.coverage() >= 0.95, "{blocks} {changes:?} {name}: {others:?}");
        }
    }
}

#[test]
#[ignore = "a thousand volumes of a million blocks: minutes"]
fn errors_of_a_thousand_volumes_of_a_million_blocks() {
    let cases: [(_, _, _, fn(_) -> _); 4] = [
        (Changes::SameHundredth, 100, "4096 bytes each", whole),
        (Changes::SameHundredth, 100, "compressed", compressed),
        (Changes::AnyHundredth, 1, "4096 bytes each", whole),
        (Changes::AnyHundredth, 100, "4096 bytes each", whole),
    ];
    for (changes, snapshots, name, stored_bytes) in cases {
        let (first, others) = score(1_000_000, snapshots, changes, stored_bytes, TRIALS);
        first.show(&format!("{changes:?}, first of {snapshots}, {name}"));
        assert!(first.coverage() >= 0.95, "{first:?}");
        if snapshots > 1 {
            others.show(&format!("{changes:?}, others of {snapshots}, {name}"));
            assert!(others.coverage() >= 0.95, "{others:?}");
        }
        let one_percent = changes == Changes::SameHundredth || snapshots == 1;
        if one_percent && name != "compressed" {
            assert!(first.rms() <= 0.05, "{first:?}");
            assert!(snapshots == 1 || others.rms() <= 0.05, "{others:?}");
        }
    }
}

// ---- costs -----------------------------------------------------------------------------------------------------------

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn best_of(times: u32, mut work: impl FnMut()) -> Duration {
    let timed = |_| {
        let begun = Instant::now();
        work();
        begun.elapsed()
    };
    (0..times).map(timed).min().unwrap()
}

fn nanoseconds_a_block(sample: &Sample, epoch: u32, runs: &[(u64, Run)]) -> f64 {
    let head = Head { branch: BRANCH, epoch: Epoch(epoch), ancestors: Box::default() };
    let blocks: u64 = runs.iter().map(|(_, run)| run.len_blocks).sum();
    let mut sample = sample.clone();
    let took = best_of(1, || {
        runs.iter().for_each(|(start, run)| sample.map(&head, OBJECT, LogicalBlock(*start), *run, whole));
    });
    took.as_nanos() as f64 / blocks as f64
}

fn show_write_costs(world: &mut World) {
    let sampler = world.sample.sampler();
    let blocks = world.blocks;
    let mut next = world.next_middle;
    let mut run = |len_blocks: u64, wanted: Option<bool>| {
        loop {
            let run = Run::new(MiddleAddress(next), len_blocks);
            next += len_blocks;
            if wanted.is_none_or(|wanted| wanted == sampler.holds(run.start)) {
                break run;
            }
        }
    };
    let mut random = Random::new(3);
    let mut runs = |len_blocks: u64, wanted, elsewhere: u64| -> Vec<_> {
        let count = 1_000_000 / len_blocks;
        (0..count).map(|_| (elsewhere + random.below(blocks - len_blocks), run(len_blocks, wanted))).collect()
    };
    for (what, runs) in [
        ("single blocks that are not sampled, where nothing is", runs(1, Some(false), 1 << 40)),
        ("single blocks that are not sampled, over the volume", runs(1, Some(false), 0)),
        ("single blocks that are sampled, over the volume", runs(1, Some(true), 0)),
        ("single blocks over the volume", runs(1, None, 0)),
        ("runs of 8 blocks over the volume", runs(8, None, 0)),
        ("runs of 256 blocks over the volume", runs(256, None, 0)),
    ] {
        println!("write of {what}: {:.1} ns a block", nanoseconds_a_block(&world.sample, world.epoch, &runs));
    }
}

#[test]
#[ignore = "a measurement"]
fn costs_of_a_volume_of_a_million_blocks_with_a_hundred_snapshots() {
    for changes in [Changes::SameHundredth, Changes::AnyHundredth] {
        let mut world = World::new(1_000_000, changes, whole, 1);
        world.play(100);
        let history = world.history();
        let Checkpoint::Image(pages) = world.sample.checkpoint(VOLUME) else { panic!("no image") };
        let before = resident_bytes();
        let copy = world.sample.clone();
        println!("{changes:?}: {} references at rate 2^-{}", copy.len(), copy.sampler().halvings());
        if changes == Changes::SameHundredth {
            // What comes later finds memory that this has left.
            let held_bytes = resident_bytes() - before;
            println!(
                "  memory {held_bytes} bytes, {} a snapshot; image {} pages",
                held_bytes / 100,
                pages.len()
            );
        }
        let load = || Sample::load(VOLUME, BUDGET_REFERENCES, &pages).unwrap();
        println!("  load of the image {:?}", best_of(5, || drop(load())));
        println!("  census {:?}", best_of(5, || drop(copy.census(&history))));
        println!("  report {:?}", best_of(5, || drop(copy.census(&history).report())));
        println!("  load and report {:?}", best_of(5, || drop(load().census(&history).report())));
        let census = copy.census(&history);
        let set: Vec<_> = (20..50).map(|id| Viewer::Snapshot(SnapshotId(id))).collect();
        println!("  one set of thirty {:?}", best_of(5, || assert!(census.freed(&set).is_ok())));
        let candidates: Vec<_> = (0..100_u32)
            .map(|at| Candidate { id: SnapshotId(at), taken_at_s: 86_400 * u64::from(at), held: false })
            .collect();
        let wanted_bytes = census.freed(&set).unwrap().bytes;
        println!("  plan {:?}", best_of(5, || drop(plan(&census, &candidates, wanted_bytes, 86_400 * 100))));

        show_write_costs(&mut world);
    }
}
