//! Records of the log that reached the mirrors in part: any blocks of one record, on one mirror, two or all. Recovery takes the
//! record where some mirror has all of it, and ends the log before it elsewhere; either way all mirrors tell the same story from then on.

#![allow(clippy::unwrap_used)]

mod scene;

use ringfort_engine::sim::{CrashMode, Fault, Random, SimWorld};
use ringfort_store::store::Store;
use ringfort_store::volume::Volume;
use scene::*;

const BLOCK: usize = 4096;
const MIRRORS: usize = 3;
const LAST: std::ops::Range<u64> = 100..105;

/// A volume whose last commit can be taken apart.
struct Scenario {
    world: SimWorld,
    /// With the last commit, and without.
    after: Model,
    before: Model,
    /// Blocks of the last record, in order: where each lies, and what was there before on each mirror, and after.
    blocks: Vec<Torn>,
}

struct Torn {
    offset_bytes: u64,
    before: Vec<Vec<u8>>,
    after: Vec<u8>,
}

fn saved(component: usize) -> String {
    format!("saved-{component}")
}

fn log_blocks(peek: impl Fn(u64) -> Vec<u8>) -> Vec<Vec<u8>> {
    log_region().step_by(BLOCK).map(peek).collect()
}

/// Commits after which the record that matters lies `lead` blocks further on than the log's beginning.
async fn lead_up(store: &Store, lead: u64, model: &mut Model) {
    for step in 0..lead {
        put(store, step % 7, step).await.unwrap();
        model.entries.insert(step % 7, step);
        store.sync().await.unwrap();
    }
    store.checkpoint().await.unwrap();
    // Records that are whole, before the last.
    for at in 0..3 {
        write(store, 0, at * 2, &[at + 1, at + 2]).await.unwrap();
        model.write(0, at * 2, &[at + 1, at + 2]);
        store.sync().await.unwrap();
    }
}

impl Scenario {
    /// The record lies in one piece, or across the end of the log.
    fn new(lead: u64) -> Self {
        let world = world_with(lead, &create_options());
        let (engine, controls) = (world.engine(), world.controls());
        let (before, after, old) = world
            .run(async move {
                let store = open(engine).await;
                let mut model = Model::default();
                lead_up(&store, lead, &mut model).await;
                let peek = |mirror: usize| log_blocks(|at| controls.peek(&components()[mirror], at, BLOCK));
                let (before, old) = (model.clone(), [0, 1, 2].map(peek));
                let contents: Vec<u64> = LAST.collect();
                write(&store, 1, 7, &contents).await.unwrap();
                model.write(1, 7, &contents);
                // So much that the body is longer than a sector.
                for key in 50..60 {
                    put(&store, key, key).await.unwrap();
                    model.entries.insert(key, key);
                }
                store.sync().await.unwrap();
                (before, model, old)
            })
            .done();
        world.restart(CrashMode::PowerLoss, lead);
        let new: Vec<Vec<Vec<u8>>> = (0..MIRRORS)
            .map(|mirror| log_blocks(|at| world.peek(&components()[mirror], at, BLOCK)))
            .collect();
        assert!(new[0] == new[1] && new[0] == new[2]);
        let changed: Vec<usize> =
            (0..new[0].len()).filter(|index| old[0][*index] != new[0][*index]).collect();
        // In order from the header on, which is the only one that begins so; across the end it is not the lowest.
        let header = changed.iter().position(|index| new[0][*index].starts_with(b"RFLR")).unwrap();
        let in_order = changed[header..].iter().chain(&changed[..header]);
        let blocks = in_order.map(|index| Torn {
            offset_bytes: log_region().start + (*index * BLOCK) as u64,
            before: old.iter().map(|old| old[*index].clone()).collect(),
            after: new[0][*index].clone(),
        });
        let blocks: Vec<Torn> = blocks.collect();
        for (index, path) in components().iter().enumerate() {
            world.copy(path, saved(index));
        }
        Self { world, after, before, blocks }
    }

    fn wraps(&self) -> bool {
        self.blocks.windows(2).any(|pair| pair[1].offset_bytes < pair[0].offset_bytes)
    }

    fn whole(&self) -> u32 {
        (1 << self.blocks.len()) - 1
    }

    /// Leaves these blocks of the record on each mirror; of those in `split`, one to a mirror, some sectors only.
    fn tear(&self, left: [u32; MIRRORS], split: Option<&mut Random>) {
        self.world.restart(CrashMode::ProcessDeath, 1);
        let mut split = split;
        for (index, path) in components().iter().enumerate() {
            self.world.heal(path);
            self.world.copy(saved(index), path);
        }
        for (mirror, left) in left.into_iter().enumerate() {
            for (index, block) in self.blocks.iter().enumerate() {
                if left & 1 << index != 0 {
                    continue;
                }
                let mut bytes = block.before[mirror].clone();
                if let Some(random) = split.as_deref_mut() {
                    // Any sectors but all of them that differ.
                    let kept = random.below(255);
                    for sector in (0..8).filter(|sector| kept & 1 << sector != 0) {
                        let range = sector * 512..(sector + 1) * 512;
                        bytes[range.clone()].copy_from_slice(&block.after[range]);
                    }
                }
                self.world.poke(&components()[mirror], block.offset_bytes, &bytes);
            }
        }
    }

    /// What the record's place holds on a mirror.
    fn record_on(&self, mirror: usize) -> Vec<Vec<u8>> {
        let place = |block: &Torn| self.world.peek(&components()[mirror], block.offset_bytes, BLOCK);
        self.blocks.iter().map(place).collect()
    }

    /// Opens and compares; then goes on with commits of its own.
    fn open_and_go_on(&self, expected: &Model, what: &str) {
        let mut expected = expected.clone();
        // Without one mirror each time, and without a power loss in between that could put anything right.
        for round in 0..MIRRORS as u64 {
            let engine = self.world.engine();
            let is_first = round == 0;
            let found = self.world.run(async move {
                let store = open(engine).await;
                let found = read_all(&store, 2, 64).await;
                if !is_first {
                    put(&store, 70 + round, round).await.unwrap();
                    store.sync().await.unwrap();
                }
                found
            });
            assert!(found.done() == expected, "{what}: opened for the {round}th time");
            if !is_first {
                expected.entries.insert(70 + round, round);
            }
            self.world.restart(CrashMode::PowerLoss, round);
            expect_clean(&self.world);
            self.world.restart(CrashMode::ProcessDeath, round);
        }
    }

    /// The record is there, and on every mirror, where one had it all; it is gone for good elsewhere.
    fn expect(&self, left: [u32; MIRRORS], split: Option<&mut Random>) {
        let is_there = left.contains(&self.whole());
        let unit = if split.is_some() { "sectors" } else { "blocks" };
        let what = format!("{left:x?} of {:x}, the rest torn by {unit}", self.whole());
        self.tear(left, split);
        let expected = if is_there { &self.after } else { &self.before };
        let engine = self.world.engine();
        let found = self.world.run(async move { read_all(&open(engine).await, 2, 64).await }).done();
        assert!(found == *expected, "{what}: the record is {}", if is_there { "lost" } else { "believed" });
        if is_there {
            let records: Vec<_> = (0..MIRRORS).map(|mirror| self.record_on(mirror)).collect();
            assert!(records[0] == records[1] && records[0] == records[2], "{what}: mirrors differ");
        }
        self.world.restart(CrashMode::PowerLoss, 3);
        self.open_and_go_on(expected, &what);
    }

    /// As `expect`, where the mirror that may have the record whole cannot be read at the first opening.
    fn expect_blind(&self, left: [u32; MIRRORS], blind: usize) {
        let what = format!("{left:x?}, mirror {blind} cannot be read");
        self.tear(left, None);
        self.world.inject(&components()[blind], Fault::ReadError(log_region()));
        let others_have_it = (0..MIRRORS).any(|mirror| mirror != blind && left[mirror] == self.whole());
        let expected = if others_have_it { &self.after } else { &self.before };
        let engine = self.world.engine();
        let found = self.world.run(async move { read_all(&open(engine).await, 2, 64).await }).done();
        assert!(found == *expected, "{what}");
        self.world.restart(CrashMode::PowerLoss, 4);
        self.world.heal(&components()[blind]);
        self.open_and_go_on(expected, &what);
    }
}

/// One whose record lies in one piece, and those whose record the end of the log cuts at every block.
fn scenarios() -> Vec<Scenario> {
    let blocks = (log_region().end - log_region().start) / BLOCK as u64;
    let plain = Scenario::new(10);
    assert!(!plain.wraps());
    assert!(plain.blocks.len() > LAST.count(), "{} blocks", plain.blocks.len());
    let mut scenarios = vec![plain];
    for lead in blocks - 30..blocks {
        let scenario = Scenario::new(lead);
        if scenario.wraps() {
            scenarios.push(scenario);
        }
    }
    assert!(scenarios.len() > LAST.count(), "{} scenarios", scenarios.len());
    scenarios
}

/// The first blocks of a record, none to all.
fn prefixes(scenario: &Scenario) -> Vec<u32> {
    (0..=scenario.blocks.len()).map(|count| (1 << count) - 1).collect()
}

#[test]
fn a_record_cut_at_any_block_on_one_two_or_all_mirrors() {
    for scenario in scenarios() {
        let whole = scenario.whole();
        for prefix in prefixes(&scenario) {
            for others in [0, whole] {
                scenario.expect([prefix, others, others], None);
                scenario.expect([others, prefix, prefix], None);
            }
            scenario.expect([prefix; MIRRORS], None);
        }
    }
}

#[test]
fn any_blocks_of_a_record_on_any_mirror() {
    let scenario = Scenario::new(10);
    let whole = scenario.whole();
    for left in 0..=whole {
        let mirror = left as usize % MIRRORS;
        for others in [0, whole] {
            let mut all = [others; MIRRORS];
            all[mirror] = left;
            scenario.expect(all, None);
        }
        // What one lacks the other has: together they hold it all, and nobody does.
        scenario.expect([left, whole & !left, left], None);
    }
    let mut random = Random::new(7);
    for scenario in scenarios() {
        for _ in 0..30 {
            let left = [0; MIRRORS].map(|_| random.below(u64::from(scenario.whole()) + 1) as u32);
            scenario.expect(left, None);
        }
    }
}

#[test]
fn any_sectors_of_a_records_blocks() {
    let mut random = Random::new(8);
    let scenario = Scenario::new(10);
    let whole = scenario.whole();
    for round in 0..100 {
        let left = [0; MIRRORS].map(|_| random.below(u64::from(whole)) as u32);
        scenario.expect(left, Some(&mut random));
        let mut one_whole = left;
        one_whole[round % MIRRORS] = whole;
        scenario.expect(one_whole, Some(&mut random));
    }
}

#[test]
fn a_whole_record_that_recovery_could_not_read_stays_out() {
    for scenario in scenarios().iter().take(3) {
        let whole = scenario.whole();
        for prefix in prefixes(scenario) {
            for blind in 0..MIRRORS {
                let mut left = [prefix; MIRRORS];
                left[blind] = whole;
                scenario.expect_blind(left, blind);
            }
        }
    }
}
