//! Reading in sequence: what is read ahead is never what a reader would not have found itself.

#![allow(clippy::unwrap_used)]

mod scene;

use std::time::Duration;

use ringfort_engine::sim::Random;
use ringfort_store::store::Store;
use scene::*;

const OBJECT: u64 = 0;
const BLOCKS: u64 = 1024;

async fn fill(store: &Store, model: &mut Model) {
    for start in (0..BLOCKS).step_by(64) {
        let contents: Vec<u64> = (start..start + 64).map(|at| at + 1).collect();
        write(store, OBJECT, start, &contents).await.unwrap();
        model.write(OBJECT, start, &contents);
    }
    store.checkpoint().await.unwrap();
}

fn device_reads(store: &Store) -> u64 {
    store
        .status()
        .tree
        .components
        .iter()
        .filter_map(|component| component.device)
        .map(|device| device.reads)
        .sum()
}

#[test]
fn a_reader_in_sequence_finds_what_was_changed_after_it_was_read_ahead() {
    for seed in 0..6 {
        let world = world_with(seed, &create_options());
        with_store(&world, async move |store| {
            let mut model = Model::default();
            fill(&store, &mut model).await;
            let mut random = Random::new(seed);
            let mut next_content = 1 << 20;
            let mut at = 0;
            while at < BLOCKS {
                let len = (1 + random.below(24)).min(BLOCKS - at);
                // What lies ahead changes, moves into stripes, is freed, and its space is used again.
                let target = at + random.below(BLOCKS - at);
                match random.below(5) {
                    0 => {
                        let count = 1 + random.below(40).min(BLOCKS - target - 1);
                        let contents: Vec<u64> = (0..count).map(|index| next_content + index).collect();
                        next_content += count;
                        write(&store, OBJECT, target, &contents).await.unwrap();
                        model.write(OBJECT, target, &contents);
                    }
                    1 => {
                        unmap(&store, OBJECT, target, 5).await.unwrap();
                        model.unmap(OBJECT, target, 5);
                    }
                    2 => store.checkpoint().await.unwrap(),
                    3 => {
                        let (from, len) = (target.max(60), 1 + random.below(BLOCKS - target));
                        shift(&store, OBJECT, from, from - 50, len).await.unwrap();
                        model.shift(OBJECT, from, from - 50, len);
                    }
                    _ => {}
                }
                let expected = (at..at + len)
                    .filter_map(|block| Some((block, *model.blocks.get(&(OBJECT, block))?)))
                    .collect();
                assert_eq!(read(&store, OBJECT, at, len).await.unwrap(), expected, "seed {seed}, block {at}");
                at += len;
            }
            store.close().await.unwrap();
        });
    }
}

#[test]
fn short_reads_in_sequence_take_few_requests() {
    let world = world_with(1, &create_options());
    with_store(&world, async move |store| {
        fill(&store, &mut Model::default()).await;
        let before = device_reads(&store);
        for at in 0..BLOCKS {
            assert_eq!(read(&store, OBJECT, at, 1).await.unwrap()[&at], at + 1);
        }
        let requests = device_reads(&store) - before;
        assert!(requests < BLOCKS / 4, "{requests} requests for {BLOCKS} reads");
        // Backwards there is nothing to foresee.
        let before = device_reads(&store);
        for at in (0..BLOCKS / 2).rev().step_by(3) {
            assert_eq!(read(&store, OBJECT, at, 1).await.unwrap()[&at], at + 1);
        }
        assert_eq!(device_reads(&store) - before, (BLOCKS / 2).div_ceil(3));
        store.close().await.unwrap();
    });
}

#[test]
fn nothing_is_read_any_more_once_a_volume_is_closed() {
    let world = world_with(2, &create_options());
    let engine = world.engine();
    world
        .run(async move {
            let store = open(std::rc::Rc::clone(&engine)).await;
            fill(&store, &mut Model::default()).await;
            let before = device_reads(&store);
            read(&store, OBJECT, 0, 32).await.unwrap();
            let first = device_reads(&store) - before;
            read(&store, OBJECT, 32, 32).await.unwrap();
            store.close().await.unwrap();
            let closed = device_reads(&store);
            assert!(closed - before > 2 * first, "nothing was read ahead");
            engine.sleep(Duration::from_secs(5)).await;
            assert_eq!(device_reads(&store), closed);
        })
        .done();
}
