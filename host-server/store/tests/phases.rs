//! A component that fails, fails a flush or never answers again, at any moment of any phase: while a record, a bank, a checkpoint, a
//! root or the labels are written. The work goes on, and whatever was synced is there without the lost component.

#![allow(clippy::unwrap_used)]

mod scene;

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::engine::Engine;
use ringfort_engine::sim::{Controls, CrashMode, Fault, Random, SimWorld};
use ringfort_store::address::{LogicalBlock, ObjectId};
use ringfort_store::format::component::{LABEL_SLOTS, MemberState};
use ringfort_store::store::{OpenOptions, Store};
use ringfort_store::volume::Volume;
use scene::*;

const BLOCKS: u64 = 512;

/// Small and large writes, syncs, banks and checkpoints. Every step has blocks of its own; `synced` is told after each sync.
async fn work(store: &Store, synced: &RefCell<Model>) {
    let mut model = Model::default();
    for step in 0..12_u64 {
        let len = if step % 4 == 3 { 24 } else { 1 + step % 6 };
        let contents: Vec<u64> = (0..len).map(|index| 1 + step * 100 + index).collect();
        write(store, 0, step * 30, &contents).await.unwrap();
        model.write(0, step * 30, &contents);
        put(store, step, step + 1).await.unwrap();
        model.entries.insert(step, step + 1);
        if step % 2 == 1 {
            store.sync().await.unwrap();
            *synced.borrow_mut() = model.clone();
        }
        if step % 5 == 4 {
            store.checkpoint().await.unwrap();
            *synced.borrow_mut() = model.clone();
        }
    }
    store.sync().await.unwrap();
    *synced.borrow_mut() = model;
}

/// Gives the component its fault once so many persistence points have passed.
async fn fail_at(store: Store, controls: Controls, point: u64, component: usize, fault: Fault) {
    while controls.count_points() < point {
        store.engine().sleep(Duration::from_micros(20)).await;
    }
    controls.inject(&components()[component], fault);
}

/// What could be wrong with the store, brought about from outside: the comparisons must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// No flush does anything, as if the store forgot them.
    NoFlushes,
    /// Labels are what they were before the component failed, as if it had not been expelled.
    OldLabels,
}

/// The labels of every component.
fn labels(controls: &Controls) -> Vec<Vec<Vec<u8>>> {
    let of = |path: &PathBuf| LABEL_SLOTS.iter().map(|slot| controls.peek(path, *slot, 4096)).collect();
    components().iter().map(of).collect()
}

fn put_labels(world: &SimWorld, labels: &[Vec<Vec<u8>>]) {
    for (path, labels) in components().iter().zip(labels) {
        LABEL_SLOTS.iter().zip(labels).for_each(|(slot, label)| world.poke(path, *slot, label));
    }
}

/// The component's state, and everything that the volume holds; it is left open.
async fn read_back(engine: Rc<dyn Engine>, component: usize) -> Result<(MemberState, Model), String> {
    let opened = Store::open(engine, &components(), &OpenOptions::default()).await;
    let (store, _) = opened.map_err(|error| error.to_string())?;
    // What cannot be read is a loss, and `read_all` would panic.
    store.read(ObjectId(0), LogicalBlock(0), BLOCKS).await.map_err(|error| error.to_string())?;
    Ok((store.status().tree.components[component].state, read_all(&store, 1, BLOCKS).await))
}

/// Whether all that was synced is there.
fn compare(expected: &Model, found: &Model) -> Result<(), String> {
    let lost_block = expected.blocks.iter().find(|(at, content)| found.blocks.get(at) != Some(content));
    let lost_entry = expected.entries.iter().find(|(key, content)| found.entries.get(key) != Some(content));
    match (lost_block, lost_entry) {
        (None, None) => Ok(()),
        (block, entry) => Err(format!("lost: block {block:?}, entry {entry:?}")),
    }
}

/// What is found wrong when a component fails at a point of the work.
fn fails_at(point: u64, component: usize, fault: &Fault, planted: Planted) -> Result<(), String> {
    let world = world_with(point, &create_options());
    let mut random = Random::new(point);
    if random.one_in(2) {
        world.crash_at_point(point + 1 + random.below(60));
    }
    let (engine, controls) = (world.engine(), world.controls());
    let synced = Rc::new(RefCell::new(Model::default()));
    let old_labels = Rc::new(RefCell::new(Vec::new()));
    let outcome = world.run({
        let (synced, fault, old_labels) = (Rc::clone(&synced), fault.clone(), Rc::clone(&old_labels));
        async move {
            controls.set_request_timeout(Some(Duration::from_secs(5)));
            let store = open(engine).await;
            old_labels.replace(labels(&controls));
            if planted == Planted::NoFlushes {
                components().iter().for_each(|path| controls.inject(path, Fault::IgnoreFlushes));
            }
            let failing = fail_at(store.clone(), controls, point, component, fault);
            store.engine().spawn(Box::pin(failing));
            work(&store, &synced).await;
            assert!(store.status().failed.is_none());
            let state = store.status().tree.components[component].state;
            (state != MemberState::Live, read_all(&store, 1, BLOCKS).await)
        }
    });
    let expected = synced.borrow().clone();
    let left = match outcome.ok() {
        Some((left, found)) => {
            assert!(found == expected, "while component {component} is away");
            left
        }
        None => false,
    };
    world.restart(CrashMode::PowerLoss, point);
    // It is back, with what it had when it left: either it never left, or it is not believed.
    components().iter().for_each(|path| world.heal(path));
    if planted == Planted::OldLabels && !old_labels.borrow().is_empty() {
        put_labels(&world, &old_labels.borrow());
    }
    let engine = world.engine();
    let (state, found) = world.run(read_back(engine, component)).done()?;
    if left && state == MemberState::Live {
        return Err("it left and is believed again".into());
    }
    compare(&expected, &found).map_err(|lost| format!("with the component back, {lost}"))?;
    world.restart(CrashMode::PowerLoss, point + 1);
    world.inject(&components()[component], Fault::Vanish);
    let engine = world.engine();
    let (_, found) = world.run(read_back(engine, component)).done()?;
    compare(&expected, &found).map_err(|lost| format!("without the component, {lost}"))?;
    world.restart(CrashMode::PowerLoss, point + 2);
    expect_clean(&world);
    Ok(())
}

/// Points of the work, its opening and its labels included.
fn count_points() -> u64 {
    let world = world_with(1, &create_options());
    let engine = world.engine();
    world
        .run(async move {
            let store = open(engine).await;
            work(&store, &RefCell::default()).await;
        })
        .done();
    world.count_points()
}

fn fails_at_many(fault: &Fault) {
    let stride = std::env::var("RINGFORT_CRASH_STRIDE").ok().and_then(|stride| stride.parse().ok());
    // From 40 on the volume is open.
    for point in (40..count_points()).step_by(stride.unwrap_or(5)) {
        for component in [0, 2, 4] {
            if let Err(found) = fails_at(point, component, fault, Planted::Nothing) {
                panic!("{fault:?} of component {component} at point {point}: {found}");
            }
        }
    }
}

#[test]
fn a_component_may_hang_at_any_moment() {
    fails_at_many(&Fault::Hang);
}

#[test]
fn a_flush_may_fail_at_any_moment() {
    fails_at_many(&Fault::NextFlushError);
}

#[test]
fn a_write_may_fail_at_any_moment() {
    fails_at_many(&Fault::NextWriteError(0..u64::MAX));
}

#[test]
fn a_component_may_vanish_at_any_moment() {
    fails_at_many(&Fault::Vanish);
}

/// Runs with what is planted, and what was found wrong.
fn found_with(planted: Planted) -> (usize, Vec<String>) {
    let points: Vec<u64> = (40..count_points()).step_by(20).collect();
    let found = points.iter().filter_map(|point| fails_at(*point, 0, &Fault::Vanish, planted).err());
    let found: Vec<String> = found.collect();
    println!("{planted:?}: {} of {} runs show it", found.len(), points.len());
    (points.len(), found)
}

#[test]
fn a_store_that_forgot_its_flushes_would_be_found_out() {
    let (runs, found) = found_with(Planted::NoFlushes);
    assert!(found.len() * 2 > runs, "{found:?}");
}

#[test]
fn a_store_that_forgot_its_labels_would_be_found_out() {
    let (runs, found) = found_with(Planted::OldLabels);
    // Half of the runs crash first, and some before the component is missed.
    assert!(found.len() * 8 > runs, "{found:?}");
}
