//! Components that vanish, fail or hang in the middle of the work: nothing acknowledged is lost while no more than M are
//! gone, wrong bytes are never returned, and what is bad is repaired or reported.

#![allow(clippy::unwrap_used)]

mod scene;

use std::path::PathBuf;
use std::time::Duration;

use ringfort_engine::sim::{CrashMode, Fault, Random, SimWorld};
use ringfort_store::address::{LogicalBlock, ObjectId};
use ringfort_store::check::check;
use ringfort_store::create::CreateOptions;
use ringfort_store::error::ErrorKind;
use ringfort_store::format::component::MemberState;
use ringfort_store::object::Health;
use ringfort_store::store::{OpenOptions, Store};
use ringfort_store::volume::Volume;
use scene::*;

const OBJECTS: u64 = 3;
const BLOCKS: u64 = 128;

/// Of 4+2, the first three components mirror the metadata.
const PAIRS: [&[usize]; 7] = [&[0], &[4], &[5], &[0, 1], &[0, 5], &[3, 4], &[2, 3]];

fn everything() -> std::ops::Range<u64> {
    0..u64::MAX
}

/// Random work with syncs; what it leaves is in `model`.
async fn work(store: &Store, random: &mut Random, steps: u64, model: &mut Model) {
    for _ in 0..steps {
        let content = 1 + random.next_u64() / 2;
        let (object, start) = (random.below(OBJECTS), random.below(BLOCKS - 50));
        match random.below(9) {
            0 => {
                put(store, content % 20, content).await.unwrap();
                model.entries.insert(content % 20, content);
            }
            1 => {
                let len = 1 + random.below(50);
                unmap(store, object, start, len).await.unwrap();
                model.unmap(object, start, len);
            }
            2 => store.sync().await.unwrap(),
            3 if random.one_in(3) => store.checkpoint().await.unwrap(),
            of => {
                let len = if of < 7 { 1 + random.below(4) } else { 8 + random.below(40) };
                let contents: Vec<u64> = (0..len).map(|index| content.wrapping_add(index)).collect();
                write(store, object, start, &contents).await.unwrap();
                model.write(object, start, &contents);
            }
        }
    }
}

fn fault_of(kind: usize) -> Fault {
    match kind {
        0 => Fault::Vanish,
        1 => Fault::WriteError(everything()),
        2 => Fault::NextFlushError,
        _ => Fault::Hang,
    }
}

fn failed_positions(store: &Store) -> Vec<usize> {
    let failed = |state: MemberState| state != MemberState::Live;
    let components = store.status().tree.components;
    (0..components.len()).filter(|&index| failed(components[index].state)).collect()
}

/// Works, loses components, goes on working, loses power, opens with the lost ones present again.
fn lose(world: &SimWorld, seed: u64, lost: &[usize], kind: usize) {
    let what = format!("seed {seed}, {:?} of {lost:?}", fault_of(kind));
    let (engine, controls) = (world.engine(), world.controls());
    let paths: Vec<PathBuf> = lost.iter().map(|index| components()[*index].clone()).collect();
    let model = world
        .run({
            let (paths, what) = (paths.clone(), what.clone());
            async move {
                let store = open(engine).await;
                let mut random = Random::new(seed);
                let mut model = Model::default();
                work(&store, &mut random, 30, &mut model).await;
                controls.set_request_timeout(Some(Duration::from_secs(5)));
                for path in &paths {
                    controls.inject(path, fault_of(kind));
                    // Something is on its way at that moment.
                    work(&store, &mut random, 6, &mut model).await;
                }
                // Writes to every component, and a flush of each.
                let contents: Vec<u64> = (1..=64).collect();
                write(&store, 0, 0, &contents).await.unwrap();
                model.write(0, 0, &contents);
                store.checkpoint().await.unwrap();
                assert!(read_all(&store, OBJECTS, BLOCKS).await == model, "{what}: degraded");
                work(&store, &mut random, 20, &mut model).await;
                assert_eq!(failed_positions(&store).len(), paths.len(), "{what}");
                assert_eq!(store.status().tree.health, Health::Degraded, "{what}");
                assert!(read_all(&store, OBJECTS, BLOCKS).await == model, "{what}: degraded, later");
                store.sync().await.unwrap();
                model
            }
        })
        .done();
    world.restart(CrashMode::PowerLoss, seed);
    paths.iter().for_each(|path| world.heal(path));
    // They are back with what they had when they left, and must not be believed.
    let (engine, controls) = (world.engine(), world.controls());
    let expected = lost.to_vec();
    world
        .run(async move {
            let store = open(engine).await;
            let mut failed = expected.clone();
            failed.sort_unstable();
            assert_eq!(failed_positions(&store), failed, "{what}: an expelled component is in use");
            assert!(read_all(&store, OBJECTS, BLOCKS).await == model, "{what}: reopened");
            let before: Vec<Vec<u8>> =
                expected.iter().map(|index| controls.peek(&components()[*index], 0, 64 << 10)).collect();
            write(&store, 0, 3, &[7, 8, 9]).await.unwrap();
            store.close().await.unwrap();
            let after: Vec<Vec<u8>> =
                expected.iter().map(|index| controls.peek(&components()[*index], 0, 64 << 10)).collect();
            assert!(before == after, "{what}: an expelled component was written");
        })
        .done();
    world.restart(CrashMode::ProcessDeath, seed);
    expect_clean(world);
}

#[test]
fn one_or_two_components_leave_in_the_middle_of_the_work() {
    let mut seed = 0;
    for lost in PAIRS {
        for kind in 0..4 {
            seed += 1;
            lose(&world_with(seed, &create_options()), seed, lost, kind);
        }
    }
}

/// A power loss at a random moment while components fail, and reopening without them.
#[test]
fn a_crash_while_components_leave_loses_nothing_that_was_synced() {
    for seed in 0..60_u64 {
        let lost = PAIRS[seed as usize % PAIRS.len()];
        let world = world_with(seed, &create_options());
        let mut random = Random::new(seed);
        let (at, kind) = (random.below(120), random.below(2) as usize);
        world.crash_at_point(100 + random.below(900));
        let (engine, controls) = (world.engine(), world.controls());
        let synced = std::rc::Rc::new(std::cell::RefCell::new((Model::default(), Model::default())));
        let noted = std::rc::Rc::clone(&synced);
        let outcome = world.run(async move {
            let store = open(engine).await;
            for step in 0..400_u64 {
                if step == at {
                    lost.iter().for_each(|index| controls.inject(&components()[*index], fault_of(kind)));
                }
                let mut written = noted.borrow().1.clone();
                let contents: Vec<u64> = (0..1 + step % 12).map(|index| 1 + step * 100 + index).collect();
                // Every step has blocks of its own: what is there is what was written, or nothing.
                write(&store, 0, step * 12, &contents).await.unwrap();
                written.write(0, step * 12, &contents);
                noted.borrow_mut().1 = written.clone();
                if step % 3 == 0 {
                    store.sync().await.unwrap();
                    noted.borrow_mut().0 = written;
                }
                if step % 40 == 39 {
                    unmap(&store, 0, 0, step * 12).await.unwrap();
                    noted.borrow_mut().1.unmap(0, 0, step * 12);
                    store.checkpoint().await.unwrap();
                    let written = noted.borrow().1.clone();
                    noted.borrow_mut().0 = written;
                }
            }
        });
        assert!(outcome.is_crashed(), "seed {seed} did not crash");
        world.restart(CrashMode::PowerLoss, seed);
        // Whether or not they had left before: they are not there now.
        for index in lost {
            world.heal(&components()[*index]);
            world.inject(&components()[*index], Fault::Vanish);
        }
        let engine = world.engine();
        let found = world.run(async move {
            let store = open(engine).await;
            let found = read(&store, 0, 0, 5000).await.unwrap();
            store.close().await.unwrap();
            found
        });
        let found = found.done();
        let (synced, written) = &*synced.borrow();
        // Unmapping is no content that could be missed: what is synced and still there must be right.
        for ((_, at), content) in &synced.blocks {
            let after = found.get(at);
            let gone = after.is_none() && !written.blocks.contains_key(&(0, *at));
            assert!(
                after == Some(content) || gone,
                "seed {seed}: block {at} is {after:?}, {content} was synced"
            );
        }
    }
}

#[test]
fn more_losses_than_parity_are_errors_and_coming_back_heals() {
    for (seed, lost) in [[0, 1, 2], [0, 4, 5], [3, 4, 5]].into_iter().enumerate() {
        let world = world_with(seed as u64, &create_options());
        let controls = world.controls();
        let model = with_store(&world, async move |store| {
            let mut random = Random::new(seed as u64);
            let mut model = Model::default();
            work(&store, &mut random, 40, &mut model).await;
            store.sync().await.unwrap();
            lost.iter().for_each(|index| controls.inject(&components()[*index], Fault::Vanish));
            let error = loop {
                let result = async {
                    write(&store, 2, 100, &[1, 2, 3]).await?;
                    store.sync().await
                };
                if let Err(error) = result.await {
                    break error;
                }
            };
            assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
            assert!(store.sync().await.is_err() && put(&store, 1, 1).await.is_err());
            assert!(store.status().failed.is_some());
            // What is read is right, or an error.
            for object in 0..OBJECTS {
                if let Ok(found) = read(&store, object, 0, 100).await {
                    let of = model.blocks.range((object, 0)..(object, 100));
                    assert!(of.map(|((_, at), content)| (*at, *content)).eq(found));
                }
            }
            let closed = Box::pin(store.close());
            assert!(closed.await.is_err());
            model
        });
        let world_engine = world.restart(CrashMode::PowerLoss, 5);
        world
            .run(async move {
                let refused = Store::open(world_engine, &components(), &OpenOptions::default()).await;
                let error = refused.err().expect("opened without too many components");
                assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
            })
            .done();
        world.restart(CrashMode::PowerLoss, 6);
        lost.iter().for_each(|index| world.heal(&components()[*index]));
        with_store(&world, async move |store| {
            let mut found = read_all(&store, OBJECTS, BLOCKS).await;
            // The write in the middle of which it happened may or may not be there.
            let mut model = model;
            (100..103).for_each(|at| {
                found.blocks.remove(&(2, at));
                model.blocks.remove(&(2, at));
            });
            assert!(found == model, "{lost:?}");
            put(&store, 1, 1).await.unwrap();
            store.close().await.unwrap();
        });
        world.restart(CrashMode::PowerLoss, 7);
        expect_clean(&world);
    }
}

/// Flips bits all over two components, data, parity and metadata alike.
#[test]
fn flipped_bits_are_repaired_or_reported_and_never_read() {
    for (seed, damaged) in [[0_usize, 4], [1, 2], [3, 5], [2, 5]].into_iter().enumerate() {
        let world = world_with(seed as u64, &create_options());
        let model = with_store(&world, async move |store| {
            let mut random = Random::new(seed as u64);
            let mut model = Model::default();
            work(&store, &mut random, 80, &mut model).await;
            store.close().await.unwrap();
            model
        });
        world.restart(CrashMode::PowerLoss, 1);
        let len_bytes = ringfort_store::create::plan(&create_options())
            .unwrap()
            .geometry
            .component_bytes(ringfort_store::address::ComponentPosition(0));
        let mut random = Random::new(seed as u64 + 100);
        for index in damaged {
            // Past the labels, which have copies of their own.
            for offset in (1 << 20..len_bytes - 4096).step_by(8192) {
                if world.peek(&components()[index], offset, 4096).iter().any(|byte| *byte != 0) {
                    let at = offset + random.below(4096);
                    world.flip_bit(&components()[index], at, random.below(8) as u32);
                }
            }
        }
        let engine = world.engine();
        let expected = model.clone();
        world
            .run(async move {
                let store = open(engine).await;
                assert!(read_all(&store, OBJECTS, BLOCKS).await == expected, "{damaged:?}");
                let tree = store.status().tree;
                assert!(tree.counters.damaged_blocks > 0 || tree.counters.repaired_blocks > 0, "{tree:?}");
                assert!(read_all(&store, OBJECTS, BLOCKS).await == expected, "{damaged:?}: after repair");
                store.close().await.unwrap();
            })
            .done();
        // What nobody reads is not repaired, and is reported as what it is.
        world.restart(CrashMode::PowerLoss, 2);
        let engine = world.engine();
        let report =
            world.run(async move { check(engine, &components(), &mut |_| {}).await.unwrap().0 }).done();
        for fault in &report.damage {
            assert!(damaged.iter().any(|index| fault.contains(&format!("component-{index}"))), "{fault}");
        }
    }
}

/// More copies are bad than can be made good: an error that says where, never other bytes.
#[test]
fn what_cannot_be_repaired_is_an_error_that_names_the_place() {
    let world = world_with(9, &create_options());
    with_store(&world, async move |store| {
        let contents: Vec<u64> = (1..=64).collect();
        write(&store, 1, 0, &contents).await.unwrap();
        store.close().await.unwrap();
    });
    world.restart(CrashMode::PowerLoss, 1);
    let geometry = ringfort_store::create::plan(&create_options()).unwrap().geometry;
    for index in [3_usize, 4, 5] {
        let position = ringfort_store::address::ComponentPosition(index as u8);
        for offset in (geometry.data_base(position)..geometry.component_bytes(position)).step_by(4096) {
            if world.peek(&components()[index], offset, 4096).iter().any(|byte| *byte != 0) {
                world.flip_bit(&components()[index], offset + 77, 3);
            }
        }
    }
    with_store(&world, async move |store| {
        let error = store.read(ObjectId(1), LogicalBlock(0), 64).await.expect_err("read damaged blocks");
        assert_eq!(error.kind, ErrorKind::Damaged, "{error}");
        let message = error.to_string();
        assert!(message.contains("object 1") && message.contains("component"), "{message}");
        store.close().await.unwrap();
    });
}

/// Two sets of components could both serve: opening wants every member of the newest label, or a person's word.
#[test]
fn with_as_much_parity_as_data_half_of_the_members_is_not_enough() {
    let paths: Vec<PathBuf> = (0..4).map(|index| PathBuf::from(format!("part-{index}"))).collect();
    let options = CreateOptions {
        log_bytes: Some(1 << 20),
        unit_bytes: Some(8192),
        data_columns: 2,
        parity_columns: 2,
        ..CreateOptions::new(paths.clone(), 8 << 20)
    };
    let world = world_with(10, &options);
    for missing in [&[3][..], &[0, 1], &[2, 3]] {
        missing.iter().for_each(|index| world.inject(&paths[*index], Fault::Vanish));
        let (engine, paths_now) = (world.engine(), paths.clone());
        world
            .run(async move {
                let refused = Store::open(engine, &paths_now, &OpenOptions::default()).await;
                let error = refused.err().expect("opened with members missing");
                assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
                assert!(error.advice.contains("allow partial membership"), "{error}");
            })
            .done();
        world.restart(CrashMode::PowerLoss, 1);
        missing.iter().for_each(|index| world.heal(&paths[*index]));
    }
    world.inject(&paths[3], Fault::Vanish);
    let (engine, paths_now) = (world.engine(), paths.clone());
    world
        .run(async move {
            let allowed = OpenOptions { allow_partial_membership: true, ..OpenOptions::default() };
            let (store, _) = Store::open(engine, &paths_now, &allowed).await.unwrap();
            put(&store, 1, 11).await.unwrap();
            store.close().await.unwrap();
        })
        .done();
    world.restart(CrashMode::PowerLoss, 2);
    world.heal(&paths[3]);
    // The newest label lists the missing one as failed, so the rest is complete.
    let (engine, paths_now) = (world.engine(), paths);
    world
        .run(async move {
            let (store, report) = Store::open(engine, &paths_now, &OpenOptions::default()).await.unwrap();
            assert_eq!(report.missing_count, 1);
            assert_eq!(read_all(&store, 1, 1).await.entries.get(&1), Some(&11));
            store.close().await.unwrap();
        })
        .done();
}

/// The root of a crashed recovery may be on one mirror alone; losing that mirror later must not take synced data along.
#[test]
fn any_mirror_may_go_right_after_a_recovery() {
    for seed in 0..40_u64 {
        let world = world_with(seed, &create_options());
        world.crash_at_point(60 + seed * 7);
        let engine = world.engine();
        let synced = std::rc::Rc::new(std::cell::Cell::new(0));
        let noted = std::rc::Rc::clone(&synced);
        let outcome = world.run(async move {
            let store = open(engine).await;
            for step in 1..400 {
                put(&store, 1, step).await.unwrap();
                store.sync().await.unwrap();
                noted.set(step);
                if step % 4 == 0 {
                    store.checkpoint().await.unwrap();
                }
            }
        });
        assert!(outcome.is_crashed());
        world.restart(CrashMode::PowerLoss, seed);
        world.crash_at_point(1 + seed % 20);
        let engine = world.engine();
        let _ =
            world.run(async move { drop(Store::open(engine, &components(), &OpenOptions::default()).await) });
        world.restart(CrashMode::PowerLoss, seed + 1);
        world.inject(&components()[seed as usize % 3], Fault::Vanish);
        let engine = world.engine();
        let found = world.run(async move {
            let store = open(engine).await;
            let found = read_all(&store, 1, 1).await;
            store.close().await.unwrap();
            found
        });
        let found = found.done().entries.get(&1).copied().unwrap_or(0);
        assert!(found >= synced.get(), "seed {seed}: {found}, {} was synced", synced.get());
    }
}

/// Puts with a sync each, until the crash: every record is one sector, so it is on a mirror as a whole or not at all.
fn puts_until_crash(world: &SimWorld, point: u64) {
    world.crash_at_point(point);
    let engine = world.engine();
    let outcome = world.run(async move {
        let store = open(engine).await;
        for step in 1..200 {
            put(&store, 1, step).await.unwrap();
            store.sync().await.unwrap();
        }
    });
    assert!(outcome.is_crashed());
}

async fn last_put(store: &Store) -> Option<u64> {
    read_all(store, 1, 1).await.entries.get(&1).copied()
}

#[test]
fn recovery_makes_the_last_record_equal_on_all_mirrors() {
    let mut unequal = 0;
    for seed in 0..60 {
        let world = world_with(seed, &create_options());
        puts_until_crash(&world, 150 + seed * 3);
        world.restart(CrashMode::PowerLoss, seed);
        let sectors = |mirror: usize| -> Vec<Vec<u8>> {
            log_region().step_by(4096).map(|at| world.peek(&components()[mirror], at, 512)).collect()
        };
        unequal += u32::from(sectors(0) != sectors(1) || sectors(0) != sectors(2));
        let engine = world.engine();
        world.run(async move { open(engine).await.close().await.unwrap() }).done();
        assert!(sectors(0) == sectors(1) && sectors(0) == sectors(2), "seed {seed}");
    }
    assert!(unequal > 0, "no crash left the mirrors unequal");
}

/// A record that one recovery could not read, and therefore left out, is not believed by the next.
#[test]
fn what_one_recovery_left_out_stays_out() {
    let mut left_out = 0;
    for seed in 0..90 {
        let world = world_with(seed, &create_options());
        puts_until_crash(&world, 150 + seed * 2);
        world.restart(CrashMode::PowerLoss, seed);
        let blind = &components()[seed as usize % 3];
        let fresh: Vec<bool> = (0..3)
            .map(|mirror| {
                log_region().step_by(4096).map(|at| world.peek(&components()[mirror], at, 512)).collect()
            })
            .collect::<Vec<Vec<_>>>()
            .windows(2)
            .map(|pair| pair[0] != pair[1])
            .collect();
        world.inject(blind, Fault::ReadError(log_region()));
        let first = with_store(&world, async move |store| {
            let found = last_put(&store).await;
            store.close().await.unwrap();
            found
        });
        world.restart(CrashMode::PowerLoss, seed + 1);
        world.heal(blind);
        let second = with_store(&world, async move |store| {
            assert!(failed_positions(&store).is_empty());
            let found = last_put(&store).await;
            store.close().await.unwrap();
            found
        });
        assert_eq!(second, first, "seed {seed}");
        left_out += u32::from(fresh.contains(&true));
    }
    assert!(left_out > 0, "no crash left the mirrors unequal");
}

/// A log record in the middle of the chain that is bad on every mirror is reported, not taken for the end of the log.
#[test]
fn a_hole_in_the_log_is_damage_and_not_its_end() {
    let world = world_with(1, &create_options());
    puts_until_crash(&world, 400);
    world.restart(CrashMode::PowerLoss, 1);
    let newest = |mirror: usize| {
        let blocks = log_region().step_by(4096);
        let records = blocks.filter(|at| world.peek(&components()[mirror], *at, 4) == b"RFLR");
        records.collect::<Vec<u64>>()
    };
    let found = newest(0);
    assert!(found.len() > 10);
    // On two mirrors it is repaired from the third.
    let middle = found[found.len() - 4];
    world.flip_bit(&components()[0], middle + 120, 1);
    world.flip_bit(&components()[1], middle + 120, 1);
    for readable in [true, false] {
        if !readable {
            world.flip_bit(&components()[2], middle + 120, 1);
        }
        let engine = world.engine();
        let outcome =
            world.run(async move { check(engine, &components(), &mut |_| {}).await.map(|_| ()) }).done();
        match outcome {
            Ok(()) => assert!(readable, "a damaged record passed for the end of the log"),
            Err(error) => {
                assert!(!readable && error.kind == ErrorKind::Damaged, "{error}");
                assert!(error.to_string().contains("follows"), "{error}");
            }
        }
        world.restart(CrashMode::ProcessDeath, 2);
    }
    // And where the log cannot be read at all.
    (0..3).for_each(|mirror| world.inject(&components()[mirror], Fault::ReadError(log_region())));
    let engine = world.engine();
    let refused =
        world.run(async move { check(engine, &components(), &mut |_| {}).await.map(|_| ()) }).done();
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Device);
}

/// A component that gives nothing any more leaves after a bounded number of failed reads; one bad sector is made good.
#[test]
fn a_component_that_cannot_be_read_leaves_and_a_bad_sector_does_not_make_it() {
    for (reads_fail, leaves) in [(everything(), true), ((3 << 20)..(3 << 20) + 4096, false)] {
        let world = world_with(11, &create_options());
        let controls = world.controls();
        with_store(&world, async move |store| {
            let contents: Vec<u64> = (1..=512).collect();
            write(&store, 0, 0, &contents).await.unwrap();
            store.checkpoint().await.unwrap();
            controls.inject(&components()[4], Fault::ReadError(reads_fail));
            for _ in 0..30 {
                for at in 0..64 {
                    assert_eq!(read(&store, 0, at * 8, 8).await.unwrap().len(), 8);
                }
            }
            write(&store, 1, 0, &[1, 2, 3]).await.unwrap();
            store.sync().await.unwrap();
            assert_eq!(failed_positions(&store), if leaves { vec![4] } else { vec![] });
            assert!(store.status().failed.is_none());
        });
        let engine = world.restart(CrashMode::PowerLoss, 3);
        world
            .run(async move {
                let store = open(engine).await;
                assert_eq!(read(&store, 0, 0, 512).await.unwrap().len(), 512);
                assert_eq!(failed_positions(&store), if leaves { vec![4] } else { vec![] });
            })
            .done();
    }
}

/// Of components that the volume cannot do without, none leaves for reads that fail.
#[test]
fn failing_reads_never_take_the_last_source_away() {
    let world = world_with(12, &create_options());
    let controls = world.controls();
    with_store(&world, async move |store| {
        let contents: Vec<u64> = (1..=512).collect();
        write(&store, 0, 0, &contents).await.unwrap();
        store.checkpoint().await.unwrap();
        (2..6).for_each(|index| controls.inject(&components()[index], Fault::ReadError(everything())));
        for at in 0..200 {
            let _ = read(&store, 0, at % 64 * 8, 8).await;
        }
        assert_eq!(failed_positions(&store).len(), 2);
        (2..6).for_each(|index| controls.heal(&components()[index]));
        assert_eq!(read(&store, 0, 0, 512).await.unwrap().len(), 512);
        put(&store, 1, 1).await.unwrap();
        store.sync().await.unwrap();
    });
}
