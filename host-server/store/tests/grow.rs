//! Volumes made larger: what they held stays, the new room can be used, and a crash on the way leaves the old size or the new one.

#![allow(clippy::unwrap_used)]

mod scene;

use std::path::PathBuf;
use std::rc::Rc;

use ringfort_engine::engine::Engine;
use ringfort_engine::sim::{CrashMode, Fault, SimWorld};
use ringfort_store::create::CreateOptions;
use ringfort_store::error::ErrorKind;
use ringfort_store::grow::{grow, plan};
use ringfort_store::store::OpenOptions;
use ringfort_store::volume::Volume;
use scene::*;

const OLD_BYTES: u64 = 8 << 20;
const NEW_BYTES: u64 = 16 << 20;
const BLOCKS: u64 = 4096;

/// A closed volume that holds something, and what.
fn world_with_contents(seed: u64, options: &CreateOptions) -> (SimWorld, Model) {
    let world = world_with(seed, options);
    let model = with_store(&world, async move |store| {
        let mut model = Model::default();
        for at in 0..12 {
            grow_contents(&store, at, &mut model).await;
        }
        store.sync().await.unwrap();
        model
    });
    // Not closed: growing recovers.
    world.restart(CrashMode::PowerLoss, seed);
    (world, model)
}

async fn total_bytes(engine: Rc<dyn Engine>) -> u64 {
    let store = open(engine).await;
    let total_bytes = store.space().total_blocks * 4096;
    store.close().await.unwrap();
    total_bytes
}

#[test]
fn a_grown_volume_holds_what_it_held_and_as_much_more_as_it_says() {
    let (world, mut model) = world_with_contents(1, &create_options());
    let engine = world.engine();
    let planned = world
        .run(async move {
            let options = OpenOptions::default();
            let planned = plan(Rc::clone(&engine), &components(), Some(NEW_BYTES), &options).await.unwrap();
            let grown = grow(engine, &components(), Some(NEW_BYTES), &options).await.unwrap();
            assert_eq!(grown, planned);
            planned
        })
        .done();
    assert_eq!((planned.before_bytes, planned.after_bytes), (OLD_BYTES, NEW_BYTES));
    assert!(planned.components.iter().all(|component| component.after_bytes > component.before_bytes));
    let engine = world.restart(CrashMode::ProcessDeath, 2);
    let model = world
        .run(async move {
            let store = open(engine).await;
            assert!(read_all(&store, 3, BLOCKS).await == model);
            assert_eq!(store.space().total_blocks * 4096, NEW_BYTES);
            let available = store.space().available_blocks;
            for at in 0..available / 61 {
                let contents: Vec<u64> = (0..61).map(|index| 100_000 + at * 100 + index).collect();
                write(&store, 3, at * 61, &contents).await.unwrap();
                model.write(3, at * 61, &contents);
            }
            store.close().await.unwrap();
            model
        })
        .done();
    expect_after_restart(&world, CrashMode::PowerLoss, &model, 4, BLOCKS);
}

#[test]
fn a_crash_at_any_point_leaves_the_old_size_or_the_new_one_and_growing_again_completes_it() {
    let mut sizes = [0, 0];
    for point in 1.. {
        let (world, model) = world_with_contents(point, &create_options());
        world.crash_at_point(point);
        let engine = world.engine();
        let outcome = world.run(async move {
            grow(engine, &components(), Some(NEW_BYTES), &OpenOptions::default()).await.unwrap();
        });
        let engine = world.restart(CrashMode::PowerLoss, point);
        let size = world.run(total_bytes(engine)).done();
        sizes[usize::from(size == NEW_BYTES)] += 1;
        assert!(size == OLD_BYTES || size == NEW_BYTES, "point {point}: {size}");
        world.restart(CrashMode::PowerLoss, point);
        expect_clean(&world);
        let engine = world.restart(CrashMode::ProcessDeath, point);
        world
            .run(async move {
                let options = OpenOptions::default();
                grow(engine, &components(), Some(NEW_BYTES), &options).await.unwrap();
            })
            .done();
        let engine = world.restart(CrashMode::PowerLoss, point);
        assert_eq!(world.run(total_bytes(engine)).done(), NEW_BYTES);
        expect_after_restart(&world, CrashMode::PowerLoss, &model, 3, BLOCKS);
        if !outcome.is_crashed() {
            break;
        }
    }
    assert!(sizes[0] > 20 && sizes[1] > 0, "{sizes:?}");
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let (world, _) = world_with_contents(3, &create_options());
    let engine = world.engine();
    world
        .run(async move {
            let options = OpenOptions::default();
            let try_to = |bytes: u64| {
                let (engine, options) = (Rc::clone(&engine), options.clone());
                async move { grow(engine, &components(), Some(bytes), &options).await.unwrap_err() }
            };
            let smaller = try_to(OLD_BYTES - 4096).await;
            assert_eq!(smaller.kind, ErrorKind::Invalid);
            assert!(smaller.to_string().contains("smaller"), "{smaller}");
            let limit_bytes =
                plan(Rc::clone(&engine), &components(), None, &options).await.unwrap().limit_bytes;
            let larger = try_to(limit_bytes + 4096).await;
            assert_eq!(larger.kind, ErrorKind::Invalid);
            assert!(larger.to_string().contains(&limit_bytes.to_string()), "{larger}");
            assert!(larger.to_string().contains("metadata region"), "{larger}");
        })
        .done();
    world.inject(&components()[4], Fault::Vanish);
    let engine = world.engine();
    world
        .run(async move {
            let options = OpenOptions::default();
            let degraded = grow(engine, &components(), Some(NEW_BYTES), &options).await.unwrap_err();
            assert_eq!(degraded.kind, ErrorKind::Unavailable);
            assert!(degraded.to_string().contains("component 4"), "{degraded}");
        })
        .done();
}

#[test]
fn a_volume_takes_what_its_block_devices_have_grown_by() {
    let paths: Vec<PathBuf> = components();
    let world = SimWorld::new(4);
    for path in &paths {
        world.add_block_device(path, 16 << 20);
    }
    let engine = world.engine();
    world
        .run(async move {
            let store = ringfort_store::store::Store::create(engine, &create_options()).await.unwrap();
            store.close().await.unwrap();
        })
        .done();
    let engine = world.restart(CrashMode::ProcessDeath, 1);
    // Too short for what is asked: nothing changes.
    let options = OpenOptions::default();
    let refused = world.run(grow(Rc::clone(&engine), &paths, Some(40 << 20), &options)).done().unwrap_err();
    assert!(refused.to_string().contains("are needed"), "{refused}");
    let present = world.run(plan(Rc::clone(&engine), &paths, None, &options)).done().unwrap();
    drop(engine);
    paths.iter().for_each(|path| world.set_len(path, 20 << 20));
    let engine = world.restart(CrashMode::ProcessDeath, 2);
    let grown = world.run(grow(engine, &paths, None, &options)).done().unwrap();
    assert!(grown.after_bytes > present.after_bytes, "{present:?} {grown:?}");
    assert!(grown.components.iter().all(|component| component.after_bytes <= component.present_bytes));
    let engine = world.restart(CrashMode::PowerLoss, 3);
    assert_eq!(world.run(total_bytes(engine)).done(), grown.after_bytes);
}

#[test]
fn mirrors_with_components_of_their_own_get_more_room_for_maps() {
    let metadata: Vec<PathBuf> = (0..3).map(|index| PathBuf::from(format!("metadata-{index}"))).collect();
    let options = CreateOptions { metadata_components: metadata.clone(), ..create_options() };
    let world = world_with(5, &options);
    let all: Vec<PathBuf> = components().into_iter().chain(metadata).collect();
    let engine = world.engine();
    let options = OpenOptions::default();
    let grown = world.run(grow(engine, &all, Some(80 << 20), &options)).done().unwrap();
    assert!(grown.components[6].after_bytes > grown.components[6].before_bytes);
    let engine = world.restart(CrashMode::PowerLoss, 3);
    let pages = world
        .run(async move {
            let (store, _) = ringfort_store::store::Store::open(engine, &all, &options).await.unwrap();
            assert_eq!(store.space().total_blocks * 4096, 80 << 20);
            write(&store, 0, 0, &[1, 2, 3]).await.unwrap();
            store.close().await.unwrap();
            store.status().memory
        })
        .done();
    assert!(pages.free_pages * 16384 > (80 << 20) / 25, "{pages:?}");
}
