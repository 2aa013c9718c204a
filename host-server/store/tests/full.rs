//! Volumes that run full: of data, of metadata, of log. They refuse early, let deletes through, and go on afterwards.

#![allow(clippy::unwrap_used)]

mod scene;

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::sim::{CrashMode, Fault};
use ringfort_engine::sync::{Either, join_all, race};
use ringfort_store::address::{LogicalBlock, ObjectId};
use ringfort_store::error::ErrorKind;
use ringfort_store::store::Store;
use ringfort_store::volume::{Cost, Key, VALUE_BYTES_MAX, Volume};
use scene::*;

const OBJECTS: u64 = 4;
const BLOCKS: u64 = 4096;

/// Writes `len` blocks at a time until the volume is full, overwrites a part, empties it, and does so again.
fn fill_and_empty(len: u64, seed: u64) {
    let world = world_with(seed, &create_options());
    let model = with_store(&world, async move |store| {
        let mut model = Model::default();
        let mut content = 0;
        let total = store.space().total_blocks;
        for round in 0..3 {
            let mut at = 0;
            loop {
                let contents: Vec<u64> = (content + 1..=content + len).collect();
                content += len;
                match write(&store, round, at, &contents).await {
                    Ok(()) => model.write(round, at, &contents),
                    Err(error) => {
                        assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
                        break;
                    }
                }
                at += len;
            }
            assert!(at >= total - len, "round {round}: only {at} of {total} blocks");
            assert!(store.space().available_blocks <= len, "{:?}", store.space());
            assert!(store.status().failed.is_none());
            // A full volume can be read, and emptied.
            assert_eq!(read(&store, round, 0, at).await.unwrap().len() as u64, at);
            unmap(&store, round, 0, at - 100).await.unwrap();
            model.unmap(round, 0, at - 100);
            let contents: Vec<u64> = (content + 1..=content + len).collect();
            content += len;
            write(&store, round, 0, &contents).await.unwrap();
            model.write(round, 0, &contents);
            assert!(read_all(&store, OBJECTS, BLOCKS).await == model);
            unmap(&store, round, 0, u64::MAX).await.unwrap();
            model.unmap(round, 0, u64::MAX);
        }
        write(&store, 0, 7, &[1, 2, 3]).await.unwrap();
        model.write(0, 7, &[1, 2, 3]);
        store.close().await.unwrap();
        model
    });
    expect_after_restart(&world, CrashMode::ProcessDeath, &model, OBJECTS, BLOCKS);
}

#[test]
fn small_writes_fill_the_volume_and_deletes_empty_it() {
    fill_and_empty(1, 1);
    fill_and_empty(3, 2);
}

#[test]
fn large_writes_fill_the_volume_and_deletes_empty_it() {
    fill_and_empty(8, 3);
    fill_and_empty(61, 4);
}

#[test]
fn overwrites_never_run_out_of_space() {
    for len in [3, 40] {
        let world = world_with(len, &create_options());
        let model = with_store(&world, async move |store| {
            let mut model = Model::default();
            let mut content = 0;
            // Half the volume, eight times over.
            for round in 0..8 {
                for at in (0..1024 / len).map(|index| index * len) {
                    let contents: Vec<u64> = (content + 1..=content + len).collect();
                    content += len;
                    let result = write(&store, 0, at, &contents).await;
                    result.unwrap_or_else(|error| panic!("round {round}, block {at}: {error}"));
                    model.write(0, at, &contents);
                }
            }
            assert!(store.status().counters.freed_segments > 20);
            assert!(read_all(&store, OBJECTS, BLOCKS).await == model);
            store.sync().await.unwrap();
            model
        });
        expect_after_restart(&world, CrashMode::PowerLoss, &model, OBJECTS, BLOCKS);
    }
}

/// Many tasks write at once with more than the log holds; every value as long as can be.
#[test]
fn many_writers_wait_for_the_log_and_all_get_through() {
    for seed in 0..4 {
        let world = world_with(seed, &create_options());
        let engine = world.engine();
        let model = world
            .run(async move {
                let store = Rc::new(open(engine).await);
                let model = RefCell::new(Model::default());
                let tasks = (0..48_u64).map(|task| {
                    let (store, model) = (Rc::clone(&store), &model);
                    async move {
                        for round in 0..6 {
                            let cost = Cost { data_blocks: 7, entries: 2, frees_space: false };
                            let mut transaction = store.begin(cost).await.unwrap();
                            let contents: Vec<u64> =
                                (0..7).map(|at| 1 + task * 1000 + round * 10 + at).collect();
                            let data = contents.iter().map(|content| block(*content)).collect();
                            let staged = store.stage(&mut transaction, data).await.unwrap();
                            store.engine().yield_now().await;
                            transaction.write(ObjectId(0), LogicalBlock(task * 7), staged);
                            let value = vec![task as u8; VALUE_BYTES_MAX];
                            transaction.put(TREE, Key::new(1_000_000 + task, 1), value);
                            store.apply(transaction).unwrap();
                            model.borrow_mut().write(0, task * 7, &contents);
                            if task % 5 == 0 {
                                store.sync().await.unwrap();
                            }
                        }
                    }
                });
                join_all(tasks).await;
                for task in 0..48 {
                    delete_value(&store, Key::new(1_000_000 + task, 1)).await;
                }
                store.sync().await.unwrap();
                model.into_inner()
            })
            .done();
        expect_after_restart(&world, CrashMode::PowerLoss, &model, OBJECTS, BLOCKS);
    }
}

async fn delete_value(store: &ringfort_store::store::Store, key: Key) {
    let cost = Cost { data_blocks: 0, entries: 1, frees_space: true };
    let mut transaction = store.begin(cost).await.unwrap();
    transaction.delete(TREE, key);
    store.apply(transaction).unwrap();
}

/// All that may begin at once is applied without a commit between: the record of all of it fits.
#[test]
fn what_has_begun_fits_into_the_log() {
    let world = world_with(5, &create_options());
    with_store(&world, async move |store| {
        for round in 0..6_u64 {
            // Some log in use, as far as it goes by itself.
            for at in 0..20 {
                write(&store, 1, at * 8, &[1, 2, 3, 4, 5]).await.unwrap();
                store.sync().await.unwrap();
            }
            let begun = RefCell::new(Vec::new());
            let refused = Cell::new(0);
            let wanted = (0..64).map(|_| async {
                let cost = Cost { data_blocks: 0, entries: 5, frees_space: false };
                let sleep = store.engine().sleep(Duration::from_secs(3));
                match race(store.begin(cost), sleep).await {
                    Either::First(transaction) => begun.borrow_mut().push(transaction.unwrap()),
                    Either::Second(()) => refused.set(refused.get() + 1),
                }
            });
            join_all(wanted).await;
            let begun = begun.into_inner();
            assert!(!begun.is_empty());
            for (index, mut transaction) in begun.into_iter().enumerate() {
                for key in 0..5 {
                    let value = vec![round as u8; VALUE_BYTES_MAX];
                    transaction.put(TREE, Key::new(index as u64, key), value);
                }
                store.apply(transaction).unwrap();
            }
            store.sync().await.unwrap();
        }
        store.close().await.unwrap();
    });
}

/// What a future gives, unless it takes so long that it hangs.
async fn soon<F: Future>(store: &Store, future: F) -> Option<F::Output> {
    match race(future, store.engine().sleep(Duration::from_secs(600))).await {
        Either::First(output) => Some(output),
        Either::Second(()) => None,
    }
}

/// A transaction that is given up wakes those who wait for its room.
#[test]
fn room_that_is_given_back_wakes_those_who_wait() {
    let world = world_with(6, &create_options());
    with_store(&world, async move |store| {
        let cost = Cost { data_blocks: 200, entries: 1, frees_space: false };
        let first = store.begin(cost).await.unwrap();
        let small = async {
            put(&store, 1, 1).await.unwrap();
            store.sync().await.unwrap();
        };
        let give_up = async {
            store.engine().sleep(Duration::from_secs(10)).await;
            drop(first);
        };
        let small: Pin<Box<dyn Future<Output = ()>>> = Box::pin(small);
        let both = join_all([small, Box::pin(give_up)]);
        assert!(soon(&store, both).await.is_some(), "nobody was woken");
        store.close().await.unwrap();
    });
}

#[test]
fn a_transaction_that_can_never_fit_is_refused_at_once() {
    let world = world_with(7, &create_options());
    with_store(&world, async move |store| {
        let cost = Cost { data_blocks: 0, entries: 1 << 20, frees_space: false };
        let result = soon(&store, store.begin(cost)).await.expect("begin hangs");
        assert_eq!(result.unwrap_err().kind, ErrorKind::Invalid);
        // One that writes more blocks than the log holds is nothing special.
        let contents: Vec<u64> = (1..=400).collect();
        write(&store, 0, 0, &contents).await.unwrap();
        assert_eq!(read(&store, 0, 0, 400).await.unwrap().len(), 400);
        store.close().await.unwrap();
    });
}

#[test]
fn nothing_waits_for_ever_on_a_closed_volume() {
    let world = world_with(8, &create_options());
    with_store(&world, async move |store| {
        let begun = store.begin(Cost { data_blocks: 0, entries: 1, frees_space: false }).await.unwrap();
        let clone = store.clone();
        store.close().await.unwrap();
        let mut begun = begun;
        begun.put(TREE, Key::new(1, 1), vec![1]);
        let late = async {
            let _ = clone.apply(begun);
            let _ = put(&clone, 1, 1).await;
            let _ = clone.sync().await;
        };
        assert!(soon(&clone, late).await.is_some(), "a late comer waits for ever");
    });
    expect_after_restart(&world, CrashMode::ProcessDeath, &Model::default(), OBJECTS, BLOCKS);
}

/// Entries until the metadata region is full, long values and short, while small writes go on.
#[test]
fn a_full_metadata_region_refuses_early_and_deletes_get_through() {
    for (value_bytes, per_transaction, seed) in
        [(VALUE_BYTES_MAX, 1, 1), (VALUE_BYTES_MAX, 16, 2), (64, 200, 3)]
    {
        let world = world_with(seed, &create_options());
        let model = with_store(&world, async move |store| {
            let mut model = Model::default();
            for round in 0..2 {
                let mut next_key = 0;
                let mut content = 1;
                loop {
                    let cost = Cost { data_blocks: 1, entries: per_transaction + 1, frees_space: false };
                    let mut transaction = match store.begin(cost).await {
                        Ok(transaction) => transaction,
                        Err(error) => {
                            assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
                            break;
                        }
                    };
                    for _ in 0..per_transaction {
                        // Scattered, so that every page is touched.
                        let key = (next_key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                        transaction.put(TREE, Key::new(key, 1), vec![round; value_bytes]);
                        next_key += 1;
                    }
                    let at = content % 500;
                    let staged = store.stage(&mut transaction, vec![block(content)]).await.unwrap();
                    transaction.write(ObjectId(0), LogicalBlock(at * 2), staged);
                    store.apply(transaction).unwrap();
                    model.write(0, at * 2, &[content]);
                    content += 1;
                }
                let memory = store.status().memory;
                println!("{value_bytes} bytes: {next_key} entries, {memory:?}");
                store.sync().await.unwrap();
                store.checkpoint().await.unwrap();
                for key in 0..next_key {
                    let key = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    delete_value(&store, Key::new(key, 1)).await;
                }
                assert!(store.status().failed.is_none());
            }
            store.sync().await.unwrap();
            model
        });
        expect_after_restart(&world, CrashMode::PowerLoss, &model, OBJECTS, BLOCKS);
    }
}

/// A full log opens again, however the process ended.
#[test]
fn a_volume_that_stopped_with_a_full_log_opens() {
    for mode in [CrashMode::PowerLoss, CrashMode::ProcessDeath] {
        for points in [200, 333, 500, 700, 1000, 1300] {
            let world = world_with(points, &create_options());
            world.crash_at_point(points);
            let engine = world.engine();
            let outcome = world.run(async move {
                let store = open(engine).await;
                let tasks = (0..24_u64).map(|task| {
                    let store = store.clone();
                    async move {
                        for round in 0..100 {
                            let contents: Vec<u64> =
                                (1..8).map(|at| task * 10_000 + round * 10 + at).collect();
                            write(&store, task % OBJECTS, task * 40 + round % 5, &contents).await.unwrap();
                            if round % 3 == 0 {
                                store.sync().await.unwrap();
                            }
                        }
                    }
                });
                join_all(tasks).await;
            });
            assert!(outcome.is_crashed());
            world.restart(mode, points);
            let engine = world.engine();
            world.run(async move { open(engine).await.close().await.unwrap() }).done();
            world.restart(CrashMode::PowerLoss, points);
            expect_clean(&world);
        }
    }
}

/// The shortest log, a slow mirror, and many who sync every block: all of them get through.
#[test]
fn many_small_syncs_wait_for_a_slow_mirror_and_a_short_log() {
    for slow in [0, 4] {
        let world = world_with(9 + slow as u64, &create_options());
        world.inject(&components()[slow], Fault::Slow(Duration::from_millis(30)));
        let engine = world.engine();
        let model = world
            .run(async move {
                let store = Rc::new(open(engine).await);
                let model = RefCell::new(Model::default());
                let tasks = (0..5_u64).map(|task| {
                    let (store, model) = (Rc::clone(&store), &model);
                    async move {
                        for round in 0..200 {
                            let content = 1 + task * 1000 + round;
                            write(&store, task % OBJECTS, task * 50 + round % 45, &[content]).await.unwrap();
                            model.borrow_mut().write(task % OBJECTS, task * 50 + round % 45, &[content]);
                            store.sync().await.unwrap();
                        }
                    }
                });
                join_all(tasks).await;
                let counters = store.status().counters;
                assert!(counters.moves + counters.checkpoints > 3, "the log never ran full: {counters:?}");
                model.into_inner()
            })
            .done();
        expect_after_restart(&world, CrashMode::PowerLoss, &model, OBJECTS, BLOCKS);
    }
}
