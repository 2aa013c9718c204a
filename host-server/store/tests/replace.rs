//! Lost components of whole volumes, replaced: redundancy is back, nothing is lost on the way, whenever it is cut short.

#![allow(clippy::unwrap_used)]

mod scene;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ringfort_engine::engine::Engine;
use ringfort_engine::sim::{CrashMode, Fault, SimWorld};
use ringfort_store::address::ComponentPosition;
use ringfort_store::error::{ErrorKind, StoreError};
use ringfort_store::object::Health;
use ringfort_store::replace::{ReplaceReport, replace};
use ringfort_store::store::{OpenOptions, Store};
use ringfort_store::volume::Volume;
use scene::*;

const BLOCKS: u64 = 2048;

/// Components with another path at one position.
fn components_with(position: u8, path: &str) -> Vec<PathBuf> {
    let mut paths = components();
    paths[usize::from(position)] = path.into();
    paths
}

async fn replace_at(engine: Rc<dyn Engine>, position: u8, path: &str) -> Result<ReplaceReport, StoreError> {
    let mut last = 0;
    let mut progress = |progress: ringfort_store::replace::ReplaceProgress| {
        assert!(progress.done_bytes >= last && progress.done_bytes <= progress.total_bytes);
        last = progress.done_bytes;
    };
    let options = OpenOptions::default();
    let position = ComponentPosition(position);
    replace(engine, &components(), position, Path::new(path), &options, &mut progress).await
}

/// A volume that lost a component in the middle of its work, and then power.
fn world_without(lost: u8, seed: u64) -> (SimWorld, Model) {
    let world = world_with(seed, &create_options());
    let controls = world.controls();
    let model = with_store(&world, async move |store| {
        let mut model = Model::default();
        for at in 0..16 {
            if at == 9 {
                controls.inject(&components()[usize::from(lost)], Fault::Vanish);
            }
            grow_contents(&store, at, &mut model).await;
        }
        store.sync().await.unwrap();
        model
    });
    world.restart(CrashMode::PowerLoss, seed);
    (world, model)
}

async fn read_with(engine: Rc<dyn Engine>, paths: Vec<PathBuf>) -> (Model, Health) {
    let (store, _) = Store::open(engine, &paths, &OpenOptions::default()).await.unwrap();
    let found = read_all(&store, 3, BLOCKS).await;
    let health = store.status().tree.health;
    store.close().await.unwrap();
    (found, health)
}

/// The replacement carries its part when two others go.
fn expect_redundant(world: &SimWorld, position: u8, model: &Model, what: &str) {
    for gone in [[1, 2], [3, 5]] {
        let paths = components_with(position, "spare");
        let engine = world.restart(CrashMode::PowerLoss, 5);
        for index in gone.into_iter().filter(|index| *index != position) {
            world.inject(&paths[usize::from(index)], Fault::Vanish);
        }
        // For reading: who is away now is not to be marked as failed.
        let checked = world
            .run(async move { ringfort_store::check::check(engine, &paths, &mut |_| {}).await.unwrap().0 })
            .done();
        assert!(checked.is_clean(), "{what}: {:?}", checked.damage.first());
        components().iter().for_each(|path| world.heal(path));
        world.inject(&components()[usize::from(position)], Fault::Vanish);
    }
    let engine = world.restart(CrashMode::PowerLoss, 6);
    let (found, health) = world.run(read_with(engine, components_with(position, "spare"))).done();
    assert!(found == *model, "{what}");
    assert_eq!(health, Health::Healthy, "{what}");
    // And with two others lost for good.
    let engine = world.restart(CrashMode::PowerLoss, 7);
    let mut paths = components_with(position, "spare");
    for index in [1_u8, 5].into_iter().filter(|index| *index != position) {
        paths[usize::from(index)] = "gone".into();
    }
    let (found, _) = world.run(read_with(engine, paths)).done();
    assert!(found == *model, "{what}: served by the replacement");
}

#[test]
fn a_replacement_restores_redundancy() {
    for position in [0, 4] {
        let (world, model) = world_without(position, u64::from(position));
        let engine = world.engine();
        let report = world.run(replace_at(engine, position, "spare")).done().unwrap();
        assert!(report.written_bytes > 0);
        expect_redundant(&world, position, &model, "replaced");
    }
}

#[test]
fn a_replacement_that_is_cut_short_changes_nothing_and_the_next_one_takes_over() {
    for (position, stride) in [(1, 7), (5, 3)] {
        for point in (1..).step_by(stride) {
            let (world, model) = world_without(position, point);
            world.crash_at_point(point);
            let engine = world.engine();
            let done =
                !world.run(async move { replace_at(engine, position, "spare").await.unwrap() }).is_crashed();
            let what = format!("component {position}, point {point}");
            let mode = if point % 2 == 0 { CrashMode::PowerLoss } else { CrashMode::ProcessDeath };
            let engine = world.restart(mode, point);
            if done {
                expect_redundant(&world, position, &model, &what);
                break;
            }
            // Served meanwhile, then tried again; what the first attempt left is no obstacle.
            let (found, _) = world.run(read_with(engine, components_with(position, "spare"))).done();
            assert!(found == model, "{what}");
            let engine = world.restart(CrashMode::PowerLoss, point);
            match world.run(replace_at(engine, position, "spare")).done() {
                Ok(_) => expect_redundant(&world, position, &model, &what),
                // It had been completed, or the file had no label yet.
                Err(error) if error.kind == ErrorKind::Invalid => {
                    assert!(error.to_string().contains("in use"), "{what}: {error}");
                }
                Err(error) => {
                    assert_eq!(error.kind, ErrorKind::Exists, "{what}: {error}");
                    world.remove("spare");
                    let engine = world.restart(CrashMode::PowerLoss, point);
                    world.run(replace_at(engine, position, "spare")).done().unwrap();
                    expect_redundant(&world, position, &model, &what);
                }
            }
        }
    }
}

#[test]
fn what_is_in_use_or_belongs_to_somebody_is_not_overwritten() {
    let (world, model) = world_without(2, 9);
    let engine = world.engine();
    let refused = world.run(replace_at(Rc::clone(&engine), 3, "spare")).done().unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Invalid, "{refused}");
    assert!(!world.exists("spare"));
    let refused = world.run(replace_at(Rc::clone(&engine), 9, "spare")).done().unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Invalid, "{refused}");
    // A file of somebody else.
    world.run({
        let engine = Rc::clone(&engine);
        async move { drop(engine.create(Path::new("spare"), 64 << 20).unwrap()) }
    });
    world.poke("spare", 5000, b"precious");
    let refused = world.run(replace_at(Rc::clone(&engine), 2, "spare")).done().unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Exists, "{refused}");
    assert_eq!(world.peek("spare", 5000, 8), b"precious");
    // Another component of the volume.
    assert!(world.run(replace_at(Rc::clone(&engine), 2, "component-4")).done().is_err());
    drop(engine);
    let engine = world.restart(CrashMode::PowerLoss, 1);
    let (found, health) = world.run(read_with(engine, components())).done();
    assert!(found == model);
    assert_eq!(health, Health::Degraded);
}
