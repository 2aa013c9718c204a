//! What an operator is told of an open volume.

#![allow(clippy::unwrap_used)]

mod scene;

use std::time::Duration;

use ringfort_engine::sim::Fault;
use ringfort_store::status::SpaceStatus;
use ringfort_store::store::Store;
use ringfort_store::volume::Volume;
use scene::*;

fn space_that_adds_up(store: &Store) -> SpaceStatus {
    let space = store.status().space;
    assert_eq!(space.free_bytes + space.live_bytes + space.dead_bytes, space.total_bytes, "{space:?}");
    space
}

#[test]
fn space_adds_up_from_empty_to_full_and_back() {
    let world = world_with(1, &create_options());
    with_store(&world, async move |store| {
        let empty = space_that_adds_up(&store);
        assert_eq!((empty.free_bytes, empty.live_bytes), (empty.total_bytes, 0));
        let mut at = 0;
        while store.space().available_blocks >= 24 {
            write(&store, 0, at, &[at + 1; 24]).await.unwrap();
            at += 24;
            space_that_adds_up(&store);
        }
        let full = space_that_adds_up(&store);
        assert_eq!(full.live_bytes, at * 4096);
        assert!(full.free_bytes < full.total_bytes / 8, "{full:?}");
        unmap(&store, 0, 0, at).await.unwrap();
        store.checkpoint().await.unwrap();
        let dead = space_that_adds_up(&store);
        assert_eq!(dead.live_bytes, 0);
        for round in 0..3 {
            put(&store, round, round).await.unwrap();
            store.checkpoint().await.unwrap();
        }
        let emptied = space_that_adds_up(&store);
        assert!(emptied.free_bytes > full.free_bytes.max(empty.free_bytes / 2), "{emptied:?}");
    });
}

#[test]
fn failures_are_counted_by_what_failed() {
    let world = world_with(2, &create_options());
    let (engine, controls) = (world.engine(), world.controls());
    world
        .run(async move {
            controls.set_request_timeout(Some(Duration::from_secs(5)));
            let store = open(engine).await;
            write(&store, 0, 0, &(1..=128).collect::<Vec<u64>>()).await.unwrap();
            store.checkpoint().await.unwrap();
            controls.inject(&components()[3], Fault::ReadError(0..u64::MAX));
            read(&store, 0, 0, 128).await.unwrap();
            controls.heal(&components()[3]);
            controls.inject(&components()[4], Fault::NextFlushError);
            controls.inject(&components()[5], Fault::Hang);
            write(&store, 0, 0, &(1..=128).collect::<Vec<u64>>()).await.unwrap();
            store.sync().await.unwrap();
            let components = store.status().tree.components;
            let of = |index: usize| components[index].device.unwrap();
            assert!(of(3).read_errors > 0 && of(3).errors() == of(3).read_errors);
            assert_eq!((of(4).flush_errors, of(4).errors(), of(4).timeouts), (1, 1, 0));
            assert!(of(5).timeouts > 0 && of(5).errors() == of(5).timeouts);
            assert_eq!([0, 1, 2].map(|index| of(index).errors()), [0; 3]);
        })
        .done();
}

#[test]
fn the_fill_of_both_logs_is_told() {
    let world = world_with(3, &create_options());
    with_store(&world, async move |store| {
        let mut most = (0, 0);
        let mut moves = 0;
        for step in 0..2000 {
            write(&store, 0, step % 1000, &[step + 1]).await.unwrap();
            if step % 4 == 0 {
                store.sync().await.unwrap();
            }
            let status = store.status();
            let log = status.log;
            assert!(log.used_bytes <= log.size_bytes);
            assert!(log.metadata_log_used_bytes <= log.metadata_log_size_bytes);
            most = (most.0.max(log.used_bytes), most.1.max(log.metadata_log_used_bytes));
            moves = status.counters.moves;
        }
        assert!(moves > 0 && most.0 > 0 && most.1 > 0, "{moves} moves, {most:?}");
        store.checkpoint().await.unwrap();
        let log = store.status().log;
        assert_eq!((log.used_bytes, log.metadata_log_used_bytes), (0, 0));
    });
}
