//! A component that fails, fails a flush or never answers again, at any moment of any phase: while a record, a bank, a checkpoint, a
//! root or the labels are written. The work goes on, and whatever was synced is there without the lost component.

#![allow(clippy::unwrap_used)]

mod scene;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::sim::{Controls, CrashMode, Fault, Random};
use ringfort_store::format::component::MemberState;
use ringfort_store::store::Store;
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

fn fails_at(point: u64, component: usize, fault: &Fault) {
    let what = format!("{fault:?} of component {component} at point {point}");
    let world = world_with(point, &create_options());
    let mut random = Random::new(point);
    if random.one_in(2) {
        world.crash_at_point(point + 1 + random.below(60));
    }
    let (engine, controls) = (world.engine(), world.controls());
    let synced = Rc::new(RefCell::new(Model::default()));
    let outcome = world.run({
        let (synced, fault) = (Rc::clone(&synced), fault.clone());
        async move {
            controls.set_request_timeout(Some(Duration::from_secs(5)));
            let store = open(engine).await;
            let failing = fail_at(store.clone(), controls, point, component, fault);
            store.engine().spawn(Box::pin(failing));
            work(&store, &synced).await;
            assert!(store.status().failed.is_none());
            let state = store.status().tree.components[component].state;
            (state != MemberState::Live, read_all(&store, 1, BLOCKS).await)
        }
    });
    let left = match outcome.ok() {
        Some((left, found)) => {
            assert!(found == *synced.borrow(), "{what}: while it is away");
            left
        }
        None => false,
    };
    world.restart(CrashMode::PowerLoss, point);
    // It is back, with what it had when it left: either it never left, or it is not believed.
    world.heal(&components()[component]);
    let expected = synced.borrow().clone();
    let compare = |found: &Model, how: &str| {
        for (at, content) in &expected.blocks {
            assert_eq!(found.blocks.get(at), Some(content), "{what}, {how}: block {at:?}");
        }
        for (key, content) in &expected.entries {
            assert_eq!(found.entries.get(key), Some(content), "{what}, {how}: entry {key}");
        }
    };
    let engine = world.engine();
    let (state, found) = world
        .run(async move {
            let store = open(engine).await;
            (store.status().tree.components[component].state, read_all(&store, 1, BLOCKS).await)
        })
        .done();
    assert!(!left || state != MemberState::Live, "{what}: it left and is believed again");
    compare(&found, "with the component back");
    world.restart(CrashMode::PowerLoss, point + 1);
    world.inject(&components()[component], Fault::Vanish);
    let engine = world.engine();
    let found = world
        .run(async move {
            let store = open(engine).await;
            let found = read_all(&store, 1, BLOCKS).await;
            store.close().await.unwrap();
            found
        })
        .done();
    compare(&found, "without the component");
    world.restart(CrashMode::PowerLoss, point + 2);
    expect_clean(&world);
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
            fails_at(point, component, fault);
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
