//! Cleaning of segments: volumes that are overwritten at random go on, give the space of deletions back, and lose nothing.

#![allow(clippy::unwrap_used)]

mod scene;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::local::{LocalOptions, start};
use ringfort_engine::sim::{CrashMode, Fault, Random, SimWorld};
use ringfort_engine::sync::join_all;
use ringfort_store::address::{SegmentId, StripeIndex};
use ringfort_store::check::check;
use ringfort_store::create::{CreateOptions, plan};
use ringfort_store::error::ErrorKind;
use ringfort_store::geometry::Geometry;
use ringfort_store::status::{Activity, CleaningCounters};
use ringfort_store::store::{OpenOptions, Store};
use ringfort_store::volume::Volume;
use scene::*;

const OBJECTS: u64 = 2;
const BLOCKS: u64 = 4096;

fn geometry() -> Geometry {
    plan(&create_options()).unwrap().geometry
}

fn cleaning(store: &Store) -> CleaningCounters {
    store.status().counters.cleaning
}

/// Fills the front of an object in sequence, in large writes.
async fn fill(store: &Store, blocks: u64, model: &mut Model) {
    for at in (0..blocks).step_by(64) {
        let contents: Vec<u64> = (at..(at + 64).min(blocks)).map(|block| 1 + block).collect();
        write(store, 0, at, &contents).await.unwrap();
        model.write(0, at, &contents);
    }
}

/// Overwrites single blocks among the first `blocks` at random, syncing now and then.
async fn overwrite(store: &Store, blocks: u64, writes: u64, seed: u64, model: &mut Model) {
    let mut random = Random::new(seed);
    for count in 0..writes {
        let (at, content) = (random.below(blocks), seed * 1_000_000 + count);
        let result = write(store, 0, at, &[content]).await;
        result
            .unwrap_or_else(|error| panic!("write {count} of {writes}: {error}; {:?}", store.status().space));
        model.write(0, at, &[content]);
        if random.one_in(64) {
            store.sync().await.unwrap();
        }
    }
}

#[test]
fn a_volume_at_four_fifths_is_overwritten_at_random_five_times_over() {
    let world = world_with(1, &create_options());
    let model = with_store(&world, async move |store| {
        let mut model = Model::default();
        let total = store.space().total_blocks;
        fill(&store, total * 4 / 5, &mut model).await;
        overwrite(&store, total * 4 / 5, 5 * total, 1, &mut model).await;
        let counters = cleaning(&store);
        assert!(counters.cleaned_segments > 16, "{counters:?}");
        // These segments are few and short: much of the volume is open, free or kept.
        assert!(counters.relocated_blocks < 4 * 5 * total, "{counters:?}");
        assert!(read_all(&store, OBJECTS, BLOCKS).await == model);
        store.sync().await.unwrap();
        model
    });
    expect_after_restart(&world, CrashMode::PowerLoss, &model, OBJECTS, BLOCKS);
}

/// With segments enough, cleaning costs what theory says.
#[test]
fn many_segments_are_cleaned_at_little_more_than_the_limit() {
    let options = CreateOptions {
        size_bytes: 64 << 20,
        unit_bytes: Some(4096),
        log_bytes: Some(8 << 20),
        ..create_options()
    };
    let geometry = plan(&options).unwrap().geometry;
    assert!(geometry.segment_count > 128, "{geometry:?}");
    let world = world_with(2, &options);
    with_store(&world, async move |store| {
        let mut model = Model::default();
        let blocks = geometry.data_blocks() / 2;
        fill(&store, blocks, &mut model).await;
        overwrite(&store, blocks, 2 * blocks, 2, &mut model).await;
        let before = cleaning(&store).relocated_blocks;
        overwrite(&store, blocks, 2 * blocks, 3, &mut model).await;
        let moved = (cleaning(&store).relocated_blocks - before) as f64 / (2 * blocks) as f64;
        assert!((0.15..0.26 * 1.4).contains(&moved), "{moved} blocks moved for each written");
        assert!(read_all(&store, 1, blocks).await == model);
    });
}

#[test]
fn scattered_deletions_give_their_space_back() {
    let world = world_with(3, &create_options());
    let model = with_store(&world, async move |store| {
        let mut model = Model::default();
        let total = store.space().total_blocks;
        for round in 0..3 {
            let full = total - 64;
            fill(&store, full, &mut model).await;
            // Of every eight blocks five: no segment becomes empty.
            for at in (0..full).step_by(8) {
                unmap(&store, 0, at, 5).await.unwrap();
                model.unmap(0, at, 5);
            }
            let offered = store.space().available_blocks;
            assert!(offered >= full * 5 / 8, "round {round}: {offered} of {total}");
            // What is offered is had.
            let contents: Vec<u64> = (1..=offered).collect();
            for (index, contents) in contents.chunks(16).enumerate() {
                write(&store, 1, index as u64 * 16, contents).await.unwrap();
                model.write(1, index as u64 * 16, contents);
            }
            assert!(read_all(&store, OBJECTS, BLOCKS).await == model);
            unmap(&store, 1, 0, BLOCKS).await.unwrap();
            model.unmap(1, 0, BLOCKS);
        }
        assert!(cleaning(&store).relocated_blocks > 0);
        store.close().await.unwrap();
        model
    });
    expect_after_restart(&world, CrashMode::ProcessDeath, &model, OBJECTS, BLOCKS);
}

#[test]
fn a_volume_that_is_really_full_says_so_and_is_not_cleaned_for_ever() {
    let world = world_with(4, &create_options());
    with_store(&world, async move |store| {
        let mut at = 0;
        let error = loop {
            match write(&store, 0, at, &[at + 1; 7]).await {
                Ok(()) => at += 7,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
        store.engine().sleep(Duration::from_secs(10)).await;
        let before = (store.status().counters, store.status().cleaning.activity);
        store.engine().sleep(Duration::from_secs(100)).await;
        assert_eq!((store.status().counters, store.status().cleaning.activity), before);
        assert_ne!(before.1, Activity::Urgent);
    });
}

#[test]
fn a_quiet_volume_is_tidied_and_then_left_alone() {
    let world = world_with(5, &create_options());
    let model = with_store(&world, async move |store| {
        let mut model = Model::default();
        fill(&store, 1024, &mut model).await;
        for at in (0..1024).step_by(16) {
            unmap(&store, 0, at, 12).await.unwrap();
            model.unmap(0, at, 12);
        }
        store.sync().await.unwrap();
        assert_eq!(cleaning(&store), CleaningCounters::default());
        // Between two looks of the cleaner, which come with each commit interval.
        store.engine().sleep(Duration::from_millis(10_500)).await;
        let counters = cleaning(&store);
        assert!(counters.cleaned_segments >= 6, "{counters:?}");
        assert_eq!(store.status().cleaning.activity, Activity::Resting);
        assert!(read_all(&store, OBJECTS, BLOCKS).await == model);
        store.engine().sleep(Duration::from_secs(100)).await;
        assert_eq!(cleaning(&store), counters);
        model
    });
    expect_after_restart(&world, CrashMode::PowerLoss, &model, OBJECTS, BLOCKS);
}

#[test]
fn cleaning_goes_on_without_two_components() {
    let world = world_with(6, &create_options());
    let (engine, controls) = (world.engine(), world.controls());
    let model = world
        .run(async move {
            let store = open(engine).await;
            let mut model = Model::default();
            fill(&store, 1500, &mut model).await;
            for lost in [1, 4] {
                controls.inject(&components()[lost], Fault::Vanish);
                let before = cleaning(&store).cleaned_segments;
                overwrite(&store, 1500, 2500, 10 + lost as u64, &mut model).await;
                assert!(cleaning(&store).cleaned_segments > before + 5);
            }
            assert!(read_all(&store, OBJECTS, BLOCKS).await == model);
            store.sync().await.unwrap();
            model
        })
        .done();
    world.restart(CrashMode::PowerLoss, 6);
    let found = with_store(&world, async |store| read_all(&store, OBJECTS, BLOCKS).await);
    assert!(found == model);
}

/// Ruins one stripe beyond repair.
fn ruin(world: &SimWorld, segment: u32, stripe: u32) {
    let geometry = geometry();
    for column in 0..geometry.column_count() - geometry.data_columns + 1 {
        let position = geometry.position_of(SegmentId(segment), ringfort_store::address::ColumnIndex(column));
        let offset_bytes = geometry.unit_offset(position, SegmentId(segment), StripeIndex(stripe));
        let noise = vec![0xa5; geometry.unit_bytes as usize];
        world.poke(&components()[usize::from(position.0)], offset_bytes, &noise);
    }
}

#[test]
fn a_segment_that_cannot_be_read_is_left_and_told_of_and_the_others_are_cleaned() {
    let world = world_with(7, &create_options());
    with_store(&world, async |store| {
        fill(&store, 1280, &mut Model::default()).await;
        store.close().await.unwrap();
    });
    world.restart(CrashMode::ProcessDeath, 7);
    ruin(&world, 3, 4);
    let engine = world.engine();
    let ruined: Vec<u64> = world
        .run(async move {
            let store = open(engine).await;
            let mut ruined = Vec::new();
            for at in 0..1280 {
                match read(&store, 0, at, 1).await {
                    Ok(found) => assert_eq!(found[&at], at + 1),
                    Err(error) => {
                        assert_eq!(error.kind, ErrorKind::Damaged, "{error}");
                        ruined.push(at);
                    }
                }
            }
            // Every segment becomes sparse, and a ruined block lives in one.
            for at in (0..1280).filter(|at| at % 4 != 0 && !ruined.contains(at)) {
                unmap(&store, 0, at, 1).await.unwrap();
            }
            store.engine().sleep(Duration::from_secs(20)).await;
            let counters = cleaning(&store);
            assert!(counters.unreadable_segments == 1 && counters.cleaned_segments > 6, "{counters:?}");
            // Writes go on, and so does cleaning.
            let mut model = Model::default();
            let free = (0..1280).filter(|at| !ruined.contains(at)).collect::<Vec<u64>>();
            let mut random = Random::new(7);
            for count in 0..6000 {
                let at = free[random.below(free.len() as u64) as usize];
                write(&store, 0, at, &[50_000 + count]).await.unwrap();
                model.write(0, at, &[50_000 + count]);
            }
            for (&(_, at), content) in &model.blocks {
                assert_eq!(read(&store, 0, at, 1).await.unwrap()[&at], *content);
            }
            for at in &ruined {
                assert_eq!(read(&store, 0, *at, 1).await.unwrap_err().kind, ErrorKind::Damaged);
                // Who overwrites or deletes it gets the segment back.
                unmap(&store, 0, *at, 1).await.unwrap();
            }
            let before = cleaning(&store).cleaned_segments;
            store.engine().sleep(Duration::from_secs(20)).await;
            assert!(store.status().failed.is_none());
            assert!(cleaning(&store).cleaned_segments >= before);
            store.close().await.unwrap();
            ruined
        })
        .done();
    assert!(!ruined.is_empty());
    world.restart(CrashMode::ProcessDeath, 8);
    expect_clean(&world);
}

/// Readers see, for every block, something between what it held before and after, while blocks move under them.
#[test]
fn readers_and_writers_meet_blocks_that_move() {
    // With the last one, all that is worth cleaning is being read in two rounds in a row.
    for seed in [0, 1, 2, 23] {
        let world = world_with(seed, &create_options());
        let (engine, controls) = (world.engine(), world.controls());
        controls.inject(&components()[2], Fault::Slow(Duration::from_millis(3)));
        let model = world
            .run(async move {
                let store = Rc::new(open(engine).await);
                let blocks = 1500;
                let mut filled = Model::default();
                fill(&store, blocks, &mut filled).await;
                let model = RefCell::new(filled);
                let (next, running) = (Cell::new(1_000_000), Cell::new(3));
                let write_some = async |task: u64| {
                    let mut random = Random::new(seed * 10 + task);
                    for _ in 0..1200 {
                        // A range of its own each: their order is known.
                        let at = task * (blocks / 3) + random.below(blocks / 3);
                        next.set(next.get() + 1);
                        let content = next.get();
                        write(&store, 0, at, &[content]).await.unwrap();
                        model.borrow_mut().write(0, at, &[content]);
                    }
                    running.set(running.get() - 1);
                };
                let read_some = async |task: u64| {
                    let mut random = Random::new(seed * 10 + task);
                    let mut reads = 0;
                    while running.get() > 0 {
                        let (at, len) = (random.below(blocks - 16), 1 + random.below(16));
                        let of = |at| model.borrow().blocks[&(0, at)];
                        let before: Vec<u64> = (at..at + len).map(of).collect();
                        for (block, content) in read(&store, 0, at, len).await.unwrap() {
                            // Its writer may have applied it and not noted it yet.
                            let after = of(block).max(next.get());
                            assert!((before[(block - at) as usize]..=after).contains(&content));
                        }
                        reads += 1;
                    }
                    assert!(reads > 100);
                };
                let work = (0..6_u64).map(|task| async move {
                    if task < 3 { write_some(task).await } else { read_some(task).await }
                });
                join_all(work.collect::<Vec<_>>()).await;
                assert!(cleaning(&store).cleaned_segments > 10, "{:?}", cleaning(&store));
                store.sync().await.unwrap();
                model.into_inner()
            })
            .done();
        expect_after_restart(&world, CrashMode::PowerLoss, &model, OBJECTS, BLOCKS);
    }
}

#[test]
fn real_files_are_overwritten_twice_over() {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..6).map(|index| folder.path().join(format!("component-{index}"))).collect();
    let memory_directory = Some(folder.path().join("memory"));
    let runtime =
        start(LocalOptions { memory_directory, registered_bytes: 0, ..LocalOptions::default() }).unwrap();
    let options = CreateOptions { components: paths.clone(), ..create_options() };
    runtime.block_on(async {
        let store = Store::create(runtime.engine(), &options).await.unwrap();
        let mut model = Model::default();
        let total = store.space().total_blocks;
        fill(&store, total * 4 / 5, &mut model).await;
        overwrite(&store, total * 4 / 5, 2 * total, 1, &mut model).await;
        assert!(cleaning(&store).cleaned_segments > 8);
        assert!(read_all(&store, OBJECTS, BLOCKS).await == model);
        store.close().await.unwrap();
        drop(store);
        let (report, _) = check(runtime.engine(), &paths, &mut |_| {}).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.damage);
        let (store, _) = Store::open(runtime.engine(), &paths, &OpenOptions::default()).await.unwrap();
        assert!(read_all(&store, OBJECTS, BLOCKS).await == model);
        store.close().await.unwrap();
    });
}
