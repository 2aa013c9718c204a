//! Many tasks on one volume, while commits and checkpoints run behind them: reads see what was written, and a power loss
//! at any moment leaves the order cut at some point, with everything synced inside.
//!
//! `RINGFORT_CUTS` is how many random cuts are tried, `RINGFORT_CUT_SEED` where their seeds begin.

#![allow(clippy::unwrap_used)]

mod scene;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::sim::{CrashMode, Random};
use ringfort_engine::sync::join_all;
use ringfort_store::address::{LogicalBlock, ObjectId};
use ringfort_store::error::ErrorKind;
use ringfort_store::store::Store;
use ringfort_store::volume::{Cost, Key, Volume, shift_entries};
use scene::*;

/// The most blocks that a task shifts: little, so that room for it is nearly always had.
const SHIFTED_MAX: u64 = 12;
const TASKS: u64 = 5;
/// The object that all tasks write; the others belong to one task each.
const SHARED: u64 = TASKS;
const OBJECTS: u64 = TASKS + 1;
const BLOCKS: u64 = 160;

#[derive(Clone, Debug)]
enum Change {
    Put { key: u64, content: u64 },
    Delete { key: u64 },
    Write { object: u64, start: u64, contents: Vec<u64> },
    Unmap { object: u64, start: u64, len: u64 },
    Shift { object: u64, from: u64, to: u64, len: u64 },
}

/// Transactions in the order in which they were applied.
#[derive(Default)]
struct Order {
    transactions: Vec<Vec<Change>>,
    /// So many of them are on stable media.
    synced: usize,
    next_content: u64,
    model: Model,
    /// Every content that a shared block ever had.
    shared: BTreeSet<(u64, u64)>,
}

fn merge(model: &mut Model, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Put { key, content } => {
                model.entries.insert(*key, *content);
            }
            Change::Delete { key } => {
                model.entries.remove(key);
            }
            Change::Write { object, start, contents } => model.write(*object, *start, contents),
            Change::Unmap { object, start, len } => model.unmap(*object, *start, *len),
            Change::Shift { object, from, to, len } => model.shift(*object, *from, *to, *len),
        }
    }
}

fn random_change(task: u64, random: &mut Random, order: &mut Order) -> Change {
    let object = if random.one_in(4) { SHARED } else { task };
    let key = if random.one_in(4) { 1000 } else { task * 100 + random.below(6) };
    let start = random.below(BLOCKS - 60);
    match random.below(10) {
        0 | 1 => {
            order.next_content += 1;
            Change::Put { key, content: order.next_content }
        }
        2 => Change::Delete { key },
        3 => Change::Unmap { object, start, len: 1 + random.below(60) },
        // Of its own: nobody else may change what is being shifted.
        4 => Change::Shift {
            object: task,
            from: start,
            to: random.below(BLOCKS - 60),
            len: 1 + random.below(SHIFTED_MAX),
        },
        of => {
            let len = if of < 8 { 1 + random.below(5) } else { 6 + random.below(50) };
            let contents: Vec<u64> = (1..=len).map(|index| order.next_content + index).collect();
            order.next_content += len;
            Change::Write { object, start, contents }
        }
    }
}

async fn transact(store: &Store, task: u64, random: &mut Random, order: &RefCell<Order>) {
    let count = 1 + random.below(3);
    let mut changes: Vec<Change> =
        (0..count).map(|_| random_change(task, random, &mut order.borrow_mut())).collect();
    // Nor may the transaction itself have changed it.
    if let Some(shift) = changes.iter().find(|change| matches!(change, Change::Shift { .. })) {
        changes = vec![shift.clone()];
    }
    let data_blocks = changes.iter().map(|change| match change {
        Change::Write { contents, .. } => contents.len() as u64,
        _ => 0,
    });
    let entries = changes.iter().map(|change| match change {
        Change::Shift { len, .. } => shift_entries(*len) + len,
        _ => 1,
    });
    let cost = Cost { data_blocks: data_blocks.sum(), entries: entries.sum(), frees_space: false };
    let mut transaction = match store.begin(cost).await {
        Ok(transaction) => transaction,
        Err(error) => {
            // Nobody cleans segments that are partly live. Deletes get through whatever happens.
            assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
            changes = [task, SHARED].map(|object| Change::Unmap { object, start: 0, len: u64::MAX }).to_vec();
            store.begin(Cost { data_blocks: 0, entries: 2, frees_space: true }).await.unwrap()
        }
    };
    for change in &changes {
        match change {
            Change::Put { key, content } => {
                transaction.put(TREE, Key::new(*key, 0), content.to_le_bytes().repeat(8));
            }
            Change::Delete { key } => transaction.delete(TREE, Key::new(*key, 0)),
            Change::Write { object, start, contents } => {
                let data = contents.iter().map(|content| block(*content)).collect();
                let staged = store.stage(&mut transaction, data).await.unwrap();
                transaction.write(ObjectId(*object), LogicalBlock(*start), staged);
            }
            Change::Unmap { object, start, len } => {
                transaction.unmap(ObjectId(*object), LogicalBlock(*start), *len);
            }
            Change::Shift { object, from, to, len } => {
                let (object, from, to) = (ObjectId(*object), LogicalBlock(*from), LogicalBlock(*to));
                store.shift(&mut transaction, object, from, to, *len).await.unwrap();
            }
        }
    }
    if random.one_in(20) {
        // Given up: nothing of it may ever be seen.
        return;
    }
    // The other tasks see all of it from here on, so this is its place in the order.
    let mut order = order.borrow_mut();
    store.apply(transaction).unwrap();
    let Order { model, shared, .. } = &mut *order;
    merge(model, &changes);
    for change in &changes {
        if let Change::Write { object: SHARED, start, contents } = change {
            shared.extend(contents.iter().enumerate().map(|(at, content)| (start + at as u64, *content)));
        }
    }
    order.transactions.push(changes);
}

async fn read_and_compare(store: &Store, task: u64, random: &mut Random, order: &RefCell<Order>) {
    let start = random.below(BLOCKS);
    let len = 1 + random.below(BLOCKS - start);
    let object = if random.one_in(4) { SHARED } else { task };
    let found = read(store, object, start, len).await.unwrap();
    let order = order.borrow();
    if object == SHARED {
        for at in found {
            assert!(order.shared.contains(&at), "block {} never held {}", at.0, at.1);
        }
    } else {
        // Nobody else writes it, so nothing has changed since the read began.
        let expected = order.model.blocks.range((task, start)..(task, start + len));
        assert!(expected.map(|((_, at), content)| (*at, *content)).eq(found), "object {task}");
    }
}

async fn run_task(store: Store, task: u64, seed: u64, steps: usize, order: Rc<RefCell<Order>>) {
    let mut random = Random::new(seed ^ (task + 1) << 32);
    for _ in 0..steps {
        match random.below(12) {
            0 | 1 => {
                let applied = order.borrow().transactions.len();
                store.sync().await.unwrap();
                let mut order = order.borrow_mut();
                order.synced = order.synced.max(applied);
            }
            2 | 3 => read_and_compare(&store, task, &mut random, &order).await,
            4 => store.engine().sleep(Duration::from_millis(random.below(300))).await,
            5 if random.one_in(5) => store.checkpoint().await.unwrap(),
            _ => transact(&store, task, &mut random, &order).await,
        }
    }
}

async fn run_all(store: &Store, seed: u64, steps: usize, order: &Rc<RefCell<Order>>) {
    let run = |task| run_task(store.clone(), task, seed, steps, Rc::clone(order));
    join_all((0..TASKS).map(run)).await;
}

/// The number of transactions after which the model was what was found; `synced` or later.
#[track_caller]
fn find_cut(base: &Model, order: &Order, found: &Model, synced: usize, what: &str) -> usize {
    let mut model = base.clone();
    let mut last = None;
    for count in 0..=order.transactions.len() {
        if count > 0 {
            merge(&mut model, &order.transactions[count - 1]);
        }
        if model == *found {
            last = Some(count);
        }
    }
    let Some(last) = last else {
        panic!("{what}: a state that never was, {synced} of {} synced", order.transactions.len())
    };
    assert!(last >= synced, "{what}: cut after {last}, {synced} were synced");
    last
}

#[test]
fn concurrent_tasks_see_their_writes_and_so_does_whoever_opens_next() {
    for seed in 0..12 {
        let world = world_with(seed, &create_options());
        let engine = world.engine();
        let order: Rc<RefCell<Order>> = Rc::default();
        world
            .run({
                let order = Rc::clone(&order);
                async move {
                    let store = open(engine).await;
                    run_all(&store, seed, 60, &order).await;
                    let found = read_all(&store, OBJECTS, BLOCKS).await;
                    assert!(found == order.borrow().model, "seed {seed}");
                    assert!(store.status().failed.is_none());
                    store.close().await.unwrap();
                }
            })
            .done();
        expect_after_restart(&world, CrashMode::PowerLoss, &order.borrow().model, OBJECTS, BLOCKS);
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Lives of random length, each cut by a power loss or the death of the process, on the same volume.
#[test]
fn cuts_at_random_moments_leave_a_prefix_of_the_order() {
    const LIVES: u64 = 4;
    let first = setting("RINGFORT_CUT_SEED", 1);
    let mut cut = 0;
    let mut lost = 0;
    for seed in first..first + setting("RINGFORT_CUTS", 320) / LIVES {
        let world = world_with(seed, &create_options());
        let mut random = Random::new(seed);
        let mut base = Model::default();
        let mut next_content = 0;
        for life in 0..LIVES {
            // Also within recovery, and long after it.
            let within = [40, 300, 1500, 4000][random.below(4) as usize];
            world.crash_at_point(1 + random.below(within));
            let engine = world.engine();
            let order = Rc::new(RefCell::new(Order {
                next_content,
                model: base.clone(),
                shared: base
                    .blocks
                    .iter()
                    .filter(|((object, _), _)| *object == SHARED)
                    .map(|((_, at), content)| (*at, *content))
                    .collect(),
                ..Order::default()
            }));
            let outcome = world.run({
                let order = Rc::clone(&order);
                async move {
                    let store = open(engine).await;
                    run_all(&store, seed * 100 + life, 50, &order).await;
                    store.close().await.unwrap();
                }
            });
            cut += u64::from(outcome.is_crashed());
            let mode = if random.one_in(3) { CrashMode::ProcessDeath } else { CrashMode::PowerLoss };
            world.restart(mode, random.next_u64());
            let order = order.take();
            let synced = match (mode, outcome.is_crashed()) {
                (CrashMode::PowerLoss, true) => order.synced,
                _ => order.transactions.len(),
            };
            let what = format!("seed {seed}, life {life}, {mode:?}");
            if random.one_in(4) {
                // The walk reads only: it must find the crashed volume sound as well.
                expect_clean(&world);
                world.restart(CrashMode::ProcessDeath, random.next_u64());
            }
            let engine = world.engine();
            let found = world.run(async move {
                let store = open(engine).await;
                let found = read_all(&store, OBJECTS, BLOCKS).await;
                // Recovered, but not closed: the next life begins from here.
                drop(store);
                found
            });
            let found = found.done();
            let at = find_cut(&base, &order, &found, synced, &what);
            lost += order.transactions.len() - at;
            base = found;
            next_content = order.next_content;
            world.restart(CrashMode::PowerLoss, random.next_u64());
        }
        expect_clean(&world);
    }
    println!("{cut} cuts, {lost} unsynced transactions lost");
}
