//! Crashes at every persistence point: after recovery the volume is its log order cut at some point, and everything that
//! was synced before the crash is inside the cut.
//!
//! `RINGFORT_CRASH_STRIDE` tests every n-th point, 1 all of them (default: chosen per workload so that the suite stays short);
//! `RINGFORT_CRASH_SEED` changes the history.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::sim::{Controls, CrashMode, Fault, Random, SimWorld};
use ringfort_engine::sync::join_all;
use ringfort_store::address::{LogicalBlock, ObjectId};
use ringfort_store::check::check;
use ringfort_store::create::CreateOptions;
use ringfort_store::error::ErrorKind;
use ringfort_store::store::{OpenOptions, Store};
use ringfort_store::volume::{Cost, Key, ReadPiece, TreeId, Volume, shift_entries};

const TREE: TreeId = TreeId(16);
const KEYS: u64 = 24;
const OBJECTS: u64 = 3;
const BLOCKS: u64 = 96;
/// No workload writes further.
const EXTENT_BLOCKS: u64 = 4096;
/// Points of one workload that are tried unless told otherwise.
const POINTS_AT_MOST: u64 = 150;

/// What a volume should hold: entries, and the content number of each block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    entries: BTreeMap<u64, u64>,
    blocks: BTreeMap<(u64, u64), u64>,
}

/// The states after each transaction, and how many of them were synced.
#[derive(Default)]
struct History {
    states: Vec<Model>,
    synced: usize,
    next_content: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Put {
        key: u64,
    },
    Delete {
        key: u64,
    },
    Write {
        object: u64,
        start: u64,
        len: u64,
    },
    Unmap {
        object: u64,
        start: u64,
        len: u64,
    },
    Shift {
        object: u64,
        from: u64,
        to: u64,
        len: u64,
    },
    Sync,
    Checkpoint,
    Pause {
        ms: u64,
    },
    /// Several writers at once, on overlapping ranges.
    Together {
        object: u64,
        start: u64,
        len: u64,
    },
    Fault {
        component: usize,
        fault: Fault,
    },
}

fn components() -> Vec<PathBuf> {
    (0..6).map(|index| PathBuf::from(format!("component-{index}"))).collect()
}

fn create_options() -> CreateOptions {
    CreateOptions {
        log_bytes: Some(1 << 20),
        unit_bytes: Some(8192),
        ..CreateOptions::new(components(), 8 << 20)
    }
}

fn block(content: u64) -> Slice {
    let mut buffer = Buffer::zeroed(BLOCK_BYTES);
    for (index, bytes) in buffer.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&(content.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64).to_le_bytes());
    }
    buffer[..8].copy_from_slice(&content.to_le_bytes());
    buffer.freeze()
}

fn blocks(contents: &[u64]) -> Vec<Slice> {
    contents.iter().map(|content| block(*content)).collect()
}

/// The newest state, changed.
fn note(history: &RefCell<History>, change: impl FnOnce(&mut Model)) {
    let mut history = history.borrow_mut();
    let mut model = history.states.last().cloned().unwrap_or_default();
    change(&mut model);
    history.states.push(model);
}

/// Contents that were never used before.
fn fresh(history: &RefCell<History>, len: u64) -> Vec<u64> {
    let mut history = history.borrow_mut();
    let first = history.next_content.max(1 + history.states.len() as u64 * 1000);
    history.next_content = first + len;
    (first..first + len).collect()
}

/// Writes blocks and, in the same transaction, an entry that tells which. A full volume is left as it is.
async fn write(store: &Store, object: u64, start: u64, len: u64, history: &RefCell<History>) {
    let cost = Cost { data_blocks: len, entries: 2, frees_space: false };
    let mut transaction = match store.begin(cost).await {
        Ok(transaction) => transaction,
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
            return;
        }
    };
    let contents = fresh(history, len);
    let staged = store.stage(&mut transaction, blocks(&contents)).await.unwrap();
    let last = contents[contents.len() - 1];
    transaction.write(ObjectId(object), LogicalBlock(start), staged);
    transaction.put(TREE, Key::new(KEYS + object, 0), last.to_le_bytes().repeat(8));
    store.apply(transaction).unwrap();
    note(history, |model| {
        model.entries.insert(KEYS + object, last);
        let blocks = contents.iter().enumerate();
        model.blocks.extend(blocks.map(|(index, content)| ((object, start + index as u64), *content)));
    });
}

/// Shifts, and says so in an entry and a write of the same transaction. A full volume is left as it is.
async fn shift(store: &Store, object: u64, from: u64, to: u64, len: u64, history: &RefCell<History>) {
    let cost = Cost { data_blocks: 1, entries: 2 + shift_entries(len) + len, frees_space: true };
    let mut transaction = match store.begin(cost).await {
        Ok(transaction) => transaction,
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
            return;
        }
    };
    let content = fresh(history, 1);
    let staged = store.stage(&mut transaction, blocks(&content)).await.unwrap();
    store.shift(&mut transaction, ObjectId(object), LogicalBlock(from), LogicalBlock(to), len).await.unwrap();
    // What has just moved away, or come, is overwritten by the same transaction.
    transaction.write(ObjectId(object), LogicalBlock(from), staged);
    transaction.put(TREE, Key::new(KEYS + object, 0), content[0].to_le_bytes().repeat(8));
    store.apply(transaction).unwrap();
    note(history, |model| {
        model.entries.insert(KEYS + object, content[0]);
        let moves = |of: u64, at: u64, start: u64| of == object && (start..start + len).contains(&at);
        let moving: Vec<_> = model.blocks.extract_if(.., |(of, at), _| moves(*of, *at, from)).collect();
        model.blocks.retain(|(of, at), _| !moves(*of, *at, to));
        model.blocks.extend(moving.into_iter().map(|((of, at), content)| ((of, at - from + to), content)));
        model.blocks.insert((object, from), content[0]);
    });
}

async fn sync(store: &Store, history: &RefCell<History>) {
    let applied = history.borrow().states.len();
    store.sync().await.unwrap();
    let mut history = history.borrow_mut();
    history.synced = history.synced.max(applied);
}

/// Runs steps, noting each state as it is applied.
async fn work(store: &Store, steps: &[Step], controls: &Controls, history: &RefCell<History>) {
    for step in steps {
        match *step {
            Step::Put { key } => {
                let cost = Cost { data_blocks: 0, entries: 1, frees_space: false };
                let mut transaction = store.begin(cost).await.unwrap();
                let content = fresh(history, 1)[0];
                transaction.put(TREE, Key::new(key, 0), content.to_le_bytes().repeat(8));
                store.apply(transaction).unwrap();
                note(history, |model| {
                    model.entries.insert(key, content);
                });
            }
            Step::Delete { key } => {
                let cost = Cost { data_blocks: 0, entries: 1, frees_space: true };
                let mut transaction = store.begin(cost).await.unwrap();
                transaction.delete(TREE, Key::new(key, 0));
                store.apply(transaction).unwrap();
                note(history, |model| {
                    model.entries.remove(&key);
                });
            }
            Step::Write { object, start, len } => write(store, object, start, len, history).await,
            Step::Together { object, start, len } => {
                // Overlapping, of different lengths, some of them synced: their order is that of their application.
                let writers = (0..4).map(|task| async move {
                    write(store, object, start + task * 2, 1 + len * task / 2, history).await;
                    if task % 2 == 1 {
                        sync(store, history).await;
                    }
                });
                join_all(writers).await;
            }
            Step::Unmap { object, start, len } => {
                let cost = Cost { data_blocks: 0, entries: 1, frees_space: true };
                let mut transaction = store.begin(cost).await.unwrap();
                transaction.unmap(ObjectId(object), LogicalBlock(start), len);
                store.apply(transaction).unwrap();
                note(history, |model| {
                    model.blocks.retain(|(of, at), _| *of != object || !(start..start + len).contains(at));
                });
            }
            Step::Shift { object, from, to, len } => shift(store, object, from, to, len, history).await,
            Step::Sync => sync(store, history).await,
            Step::Checkpoint => store.checkpoint().await.unwrap(),
            Step::Pause { ms } => store.engine().sleep(Duration::from_millis(ms)).await,
            Step::Fault { component, ref fault } => {
                controls.inject(&components()[component], fault.clone());
            }
        }
    }
}

/// Everything a volume holds. Panics where a block is neither zero nor what some write put there.
async fn read_all(store: &Store) -> Model {
    let mut model = Model::default();
    for (key, value) in store.scan(TREE, Key::MIN, Key::MAX, usize::MAX).await.unwrap() {
        let content = u64::from_le_bytes(value[..8].try_into().unwrap());
        assert_eq!(value, content.to_le_bytes().repeat(8));
        model.entries.insert(key.hi, content);
    }
    for object in 0..OBJECTS {
        let mut at = 0;
        for piece in store.read(ObjectId(object), LogicalBlock(0), EXTENT_BLOCKS).await.unwrap() {
            match piece {
                ReadPiece::Hole { len_blocks } => at += len_blocks,
                ReadPiece::Data(slice) => {
                    for bytes in slice.chunks_exact(BLOCK_BYTES) {
                        let content = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                        assert_eq!(bytes, &*block(content), "object {object} block {at} holds foreign bytes");
                        model.blocks.insert((object, at), content);
                        at += 1;
                    }
                }
            }
        }
        assert_eq!(at, EXTENT_BLOCKS);
    }
    model
}

async fn open(engine: Rc<dyn ringfort_engine::engine::Engine>) -> Store {
    let paths = components();
    match Store::open(engine, &paths, &OpenOptions::default()).await {
        Ok((store, _)) => store,
        Err(error) => panic!("the volume does not open: {error}"),
    }
}

/// Compares with the history; returns which state it is.
fn position_in(history: &History, found: &Model, synced: usize, what: &str) -> usize {
    let empty = Model::default();
    let state = |index: usize| if index == 0 { &empty } else { &history.states[index - 1] };
    // Later states first: an overwrite of equal content cannot happen, so at most one matches past a sync.
    let position = (0..=history.states.len()).rev().find(|index| state(*index) == found);
    let Some(position) = position else { panic!("{what}: a state that never was: {found:?}") };
    assert!(position >= synced, "{what}: state {position} although {synced} were synced");
    position
}

fn random_steps(seed: u64, count: usize, weigh: fn(&mut Random) -> Step) -> Vec<Step> {
    let mut random = Random::new(seed);
    (0..count).map(|_| weigh(&mut random)).collect()
}

fn small_write(random: &mut Random) -> Step {
    Step::Write { object: random.below(OBJECTS), start: random.below(BLOCKS), len: 1 + random.below(3) }
}

fn large_write(random: &mut Random) -> Step {
    Step::Write { object: random.below(OBJECTS), start: random.below(BLOCKS), len: 8 + random.below(40) }
}

fn unmap(random: &mut Random) -> Step {
    Step::Unmap { object: random.below(OBJECTS), start: random.below(BLOCKS), len: 1 + random.below(40) }
}

fn random_shift(random: &mut Random) -> Step {
    let (from, to) = (random.below(BLOCKS), random.below(BLOCKS));
    Step::Shift { object: random.below(2), from, to, len: 1 + random.below(60) }
}

/// Runs the workload to its end, then crashes it at each point, recovers (crashing once more in some recoveries), and compares.
fn crash_everywhere(name: &str, steps: &[Step], mode: CrashMode) {
    let seed = std::env::var("RINGFORT_CRASH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let run = |crash_at: Option<u64>| {
        let world = SimWorld::new(seed);
        let engine = world.engine();
        let created = world.run(async move {
            let store = Store::create(engine, &create_options()).await.unwrap();
            store.close().await.unwrap();
        });
        created.done();
        world.restart(CrashMode::ProcessDeath, seed);
        if let Some(point) = crash_at {
            world.crash_at_point(point);
        }
        let history = Rc::new(RefCell::new(History::default()));
        let (engine, controls) = (world.engine(), world.controls());
        let outcome = world.run({
            let history = Rc::clone(&history);
            async move {
                let store = open(engine).await;
                work(&store, steps, &controls, &history).await;
                store.close().await.unwrap();
                if crash_at.is_none() {
                    let counters = store.status().counters;
                    let cleaned = counters.cleaning.cleaned_segments;
                    println!(
                        "{name}: {} moves, {} checkpoints, {cleaned} segments cleaned",
                        counters.moves, counters.checkpoints
                    );
                    assert!(cleaned > 1 || !name.contains("cleaned"), "{cleaned} segments were cleaned");
                }
            }
        });
        (world, history, outcome.is_crashed())
    };
    let (world, history, crashed) = run(None);
    assert!(!crashed);
    let points = world.count_points();
    assert!(!history.borrow().states.is_empty());
    drop(world);
    let stride = std::env::var("RINGFORT_CRASH_STRIDE").ok().and_then(|stride| stride.parse().ok());
    let stride = stride.unwrap_or(points / POINTS_AT_MOST + 1).max(1);
    let mut lost_something = 0;
    for point in (1..=points).step_by(stride as usize) {
        let what = format!("{name}, seed {seed}, {mode:?} at point {point} of {points}");
        let (world, history, crashed) = run(Some(point));
        assert!(crashed, "{what}: did not crash");
        let mut random = Random::new(seed ^ point);
        world.restart(mode, random.next_u64());
        // Some recoveries crash too.
        if point % 3 == 0 {
            world.crash_at_point(1 + random.below(60));
            let engine = world.engine();
            let _ = world.run(async move { drop(open(engine).await) });
            world.restart(mode, random.next_u64());
        }
        let engine = world.engine();
        let history = Rc::try_unwrap(history).ok().map(RefCell::into_inner).unwrap_or_default();
        // The death of the process alone loses nothing that was applied.
        let synced = if mode == CrashMode::ProcessDeath { history.states.len() } else { history.synced };
        let position = {
            let found = world.run(async move {
                let store = open(engine).await;
                let found = read_all(&store).await;
                store.close().await.unwrap();
                found
            });
            position_in(&history, &found.done(), synced, &what)
        };
        lost_something += usize::from(position < history.states.len());
        // Nothing is left lying about.
        if point % 5 == 0 {
            world.restart(CrashMode::ProcessDeath, random.next_u64());
            let engine = world.engine();
            let report =
                world.run(async move { check(engine, &components(), &mut |_| {}).await.unwrap().0 }).done();
            assert!(report.is_clean(), "{what}: {:?}", report.damage);
        }
        // The recovered volume is a volume like any other: it takes writes and opens again.
        world.restart(CrashMode::PowerLoss, random.next_u64());
        let (engine, controls) = (world.engine(), world.controls());
        let after = Rc::new(RefCell::new(History::default()));
        let base = if position == 0 { Model::default() } else { history.states[position - 1].clone() };
        after.borrow_mut().states.push(base);
        let result = world.run({
            let after = Rc::clone(&after);
            async move {
                let store = open(engine).await;
                let steps = [Step::Write { object: 1, start: 3, len: 20 }, Step::Put { key: 1 }, Step::Sync];
                work(&store, &steps, &controls, &after).await;
                let found = read_all(&store).await;
                store.close().await.unwrap();
                found
            }
        });
        assert_eq!(Some(&result.done()), after.borrow().states.last(), "{what}: after recovery");
    }
    println!("{name}: {points} points, {lost_something} crashes lost something unsynced");
}

macro_rules! workload {
    ($name:ident, $mode:ident, $steps:expr) => {
        #[test]
        fn $name() {
            crash_everywhere(stringify!($name), &$steps, CrashMode::$mode);
        }
    };
}

workload!(entries_with_a_sync_each, PowerLoss, {
    (0..12).flat_map(|key| [Step::Put { key: key % 5 }, Step::Sync]).collect::<Vec<_>>()
});
workload!(small_writes_with_a_sync_each, PowerLoss, {
    random_steps(2, 14, small_write).into_iter().flat_map(|step| [step, Step::Sync]).collect::<Vec<_>>()
});
workload!(small_writes_synced_now_and_then, PowerLoss, {
    random_steps(3, 60, |random| if random.one_in(9) { Step::Sync } else { small_write(random) })
});
workload!(large_writes_synced_now_and_then, PowerLoss, {
    random_steps(4, 16, |random| if random.one_in(4) { Step::Sync } else { large_write(random) })
});
workload!(nothing_is_ever_synced, PowerLoss, {
    random_steps(5, 20, |random| match random.below(4) {
        0 => Step::Put { key: random.below(KEYS) },
        1 => Step::Pause { ms: 400 },
        2 => large_write(random),
        _ => small_write(random),
    })
});
workload!(overwrites_and_holes, PowerLoss, {
    random_steps(6, 40, |random| match random.below(5) {
        0 => unmap(random),
        1 => Step::Sync,
        2 => Step::Delete { key: random.below(3) },
        _ => small_write(random),
    })
});
workload!(checkpoints_between_writes, PowerLoss, {
    random_steps(7, 24, |random| match random.below(6) {
        0 => Step::Checkpoint,
        1 => Step::Sync,
        2 => large_write(random),
        3 => unmap(random),
        _ => small_write(random),
    })
});
workload!(segments_are_freed_and_used_again, PowerLoss, {
    let write = |object| Step::Write { object, start: 0, len: 64 };
    (0..8)
        .flat_map(|round| [write(round % 2), write(round % 2), Step::Sync, Step::Checkpoint])
        .collect::<Vec<_>>()
});
workload!(the_log_wraps_around, PowerLoss, {
    random_steps(9, 90, |random| match random.below(8) {
        0 => Step::Sync,
        _ => Step::Write {
            object: random.below(OBJECTS),
            start: random.below(BLOCKS),
            len: 1 + random.below(7),
        },
    })
});
workload!(commits_move_to_the_metadata_log, PowerLoss, {
    let write = |at: u64| Step::Write { object: at % OBJECTS, start: at * 7 % BLOCKS, len: 7 };
    (0..70).flat_map(|at| [write(at), Step::Sync]).collect::<Vec<_>>()
});
workload!(commits_by_the_interval, PowerLoss, {
    random_steps(10, 16, |random| match random.below(2) {
        0 => Step::Pause { ms: 700 },
        _ => small_write(random),
    })
});
workload!(the_process_dies, ProcessDeath, {
    random_steps(11, 40, |random| match random.below(7) {
        0 => Step::Sync,
        1 => Step::Checkpoint,
        2 => large_write(random),
        _ => small_write(random),
    })
});
workload!(everything_at_once, PowerLoss, {
    random_steps(12, 40, |random| match random.below(9) {
        0 => Step::Sync,
        1 => Step::Checkpoint,
        2 => large_write(random),
        3 => unmap(random),
        4 => Step::Put { key: random.below(KEYS) },
        5 => Step::Delete { key: random.below(KEYS) },
        6 => Step::Pause { ms: 300 },
        _ => small_write(random),
    })
});
workload!(writers_overlap_and_some_of_them_sync, PowerLoss, {
    random_steps(13, 12, |random| Step::Together {
        object: random.below(2),
        start: random.below(40),
        len: 1 + random.below(9),
    })
});
workload!(files_are_cut_and_punched_under_writes, PowerLoss, {
    random_steps(14, 36, |random| match random.below(6) {
        0 => Step::Unmap { object: random.below(2), start: random.below(50), len: BLOCKS },
        1 => unmap(random),
        2 => Step::Together { object: random.below(2), start: random.below(40), len: 8 },
        3 => Step::Sync,
        4 => large_write(random),
        _ => small_write(random),
    })
});
workload!(ranges_are_shifted_under_writes, PowerLoss, {
    random_steps(21, 40, |random| match random.below(9) {
        0..=2 => random_shift(random),
        3 => unmap(random),
        4 => Step::Checkpoint,
        5 => Step::Sync,
        6 => Step::Together { object: random.below(2), start: random.below(40), len: 8 },
        7 => large_write(random),
        _ => small_write(random),
    })
});
workload!(the_process_dies_after_shifts, ProcessDeath, {
    random_steps(22, 30, |random| match random.below(5) {
        0 | 1 => random_shift(random),
        2 => Step::Sync,
        _ => small_write(random),
    })
});
workload!(shifts_move_to_the_metadata_log, PowerLoss, {
    let write = |at: u64| Step::Write { object: 1, start: at * 7 % BLOCKS, len: 6 };
    let shift = |at: u64| Step::Shift { object: 1, from: at * 5 % BLOCKS, to: at * 11 % BLOCKS, len: 9 };
    (0..60).flat_map(|at| [write(at), shift(at), Step::Sync]).collect::<Vec<_>>()
});
workload!(a_mirror_is_lost_in_the_middle, PowerLoss, with_faults(15, &[(8, 1, Fault::Vanish)]));
workload!(a_mirror_and_a_column_are_lost_one_after_the_other, PowerLoss, {
    with_faults(16, &[(6, 0, Fault::Vanish), (16, 4, Fault::Vanish)])
});
workload!(a_flush_fails, PowerLoss, {
    with_faults(17, &[(5, 2, Fault::NextFlushError), (15, 5, Fault::NextFlushError)])
});
workload!(a_write_fails_and_the_process_dies, ProcessDeath, {
    with_faults(
        18,
        &[(7, 1, Fault::NextWriteError(0..u64::MAX)), (17, 3, Fault::NextWriteError(0..u64::MAX))],
    )
});
workload!(a_component_is_slow, PowerLoss, {
    with_faults(19, &[(3, 0, Fault::Slow(Duration::from_millis(40)))])
});
workload!(a_component_hangs_until_it_times_out, PowerLoss, with_faults(20, &[(6, 2, Fault::Hang)]));
workload!(the_volume_runs_full_and_is_emptied, PowerLoss, {
    let write = |at: u64| Step::Write { object: at % OBJECTS, start: at * 64, len: 64 };
    let empty = |object| Step::Unmap { object, start: 0, len: 10_000 };
    (0..40).map(write).chain([empty(0), Step::Sync, empty(1)]).chain((0..14).map(write)).collect::<Vec<_>>()
});
workload!(a_full_volume_is_rewritten_in_small_pieces, PowerLoss, {
    let fill = (0..36).map(|at: u64| Step::Write { object: at % OBJECTS, start: at * 64, len: 64 });
    let rewrite = (0..30).flat_map(|at: u64| {
        [
            Step::Unmap { object: at % OBJECTS, start: at * 64, len: 64 },
            Step::Write { object: at % OBJECTS, start: at * 64, len: 3 },
            Step::Sync,
        ]
    });
    fill.chain(rewrite).collect::<Vec<_>>()
});

workload!(segments_are_cleaned_while_nobody_writes, PowerLoss, sparse_segments(23));
workload!(the_process_dies_while_segments_are_cleaned, ProcessDeath, sparse_segments(24));
workload!(segments_are_cleaned_without_two_components, PowerLoss, {
    let lost = [2, 5].map(|component| Step::Fault { component, fault: Fault::Vanish });
    lost.into_iter().chain(sparse_segments(25)).collect::<Vec<_>>()
});
workload!(segments_are_cleaned_under_writes, PowerLoss, {
    let fill = (0..27).map(|at: u64| Step::Write { object: at % 2, start: at / 2 * 64, len: 64 });
    let overwrite = random_steps(26, 700, |random| {
        let (object, start) = (random.below(2), random.below(13 * 64));
        if random.one_in(12) { Step::Sync } else { Step::Write { object, start, len: 1 + random.below(3) } }
    });
    fill.chain(overwrite).collect::<Vec<_>>()
});

/// Segments of which little lives; then nobody writes for a while, and then somebody does.
fn sparse_segments(seed: u64) -> Vec<Step> {
    let fill = (0..10).map(|at: u64| Step::Write { object: at % 2, start: at / 2 * 64, len: 64 });
    let mut random = Random::new(seed);
    let holes: Vec<_> = (0..40)
        .map(|at: u64| Step::Unmap { object: at % 2, start: at / 2 * 16 + random.below(4), len: 12 })
        .collect();
    let end = [Step::Sync, Step::Pause { ms: 3500 }, Step::Write { object: 0, start: 40, len: 5 }];
    let late = [Step::Unmap { object: 1, start: 5, len: 200 }, Step::Pause { ms: 2500 }, Step::Sync];
    fill.chain(holes).chain(end).chain(late).collect()
}

/// Random work, and faults before some of its steps.
fn with_faults(seed: u64, faults: &[(usize, usize, Fault)]) -> Vec<Step> {
    let steps = random_steps(seed, 24, |random| match random.below(6) {
        0 => Step::Sync,
        1 => Step::Checkpoint,
        2 => large_write(random),
        3 => unmap(random),
        _ => small_write(random),
    });
    let mut with_faults = Vec::new();
    for (index, step) in steps.into_iter().enumerate() {
        let due = faults.iter().filter(|(at, ..)| *at == index);
        with_faults.extend(
            due.map(|(_, component, fault)| Step::Fault { component: *component, fault: fault.clone() }),
        );
        with_faults.push(step);
    }
    with_faults
}
