//! Cleaning of segments: volumes that are overwritten at random go on, give the space of deletions back, and lose nothing.

#![allow(clippy::unwrap_used)]

mod scene;

use ringfort_engine::sim::{CrashMode, Random};
use ringfort_store::store::Store;
use ringfort_store::volume::Volume;
use scene::*;

const OBJECTS: u64 = 2;
const BLOCKS: u64 = 4096;

/// Live blocks that fill so many per cent of all segments.
fn blocks_at(percent: u64) -> u64 {
    let geometry = ringfort_store::create::plan(&create_options()).unwrap().geometry;
    geometry.data_blocks() * percent / 100
}

/// Fills the front of an object in sequence, in large writes.
async fn fill(store: &Store, blocks: u64, model: &mut Model) {
    for at in (0..blocks).step_by(64) {
        let contents: Vec<u64> = (at..(at + 64).min(blocks)).map(|block| 1 + block).collect();
        write(store, 0, at, &contents).await.unwrap();
        model.write(0, at, &contents);
    }
}

#[test]
fn a_volume_at_four_fifths_is_overwritten_at_random_five_times_over() {
    let world = world_with(1, &create_options());
    let model = with_store(&world, async move |store| {
        let mut model = Model::default();
        let blocks = blocks_at(80).min(store.space().total_blocks * 80 / 100);
        fill(&store, blocks, &mut model).await;
        let mut random = Random::new(1);
        for count in 0..5 * store.space().total_blocks {
            let (at, content) = (random.below(blocks), 1_000_000 + count);
            write(&store, 0, at, &[content]).await.unwrap();
            model.write(0, at, &[content]);
            if random.one_in(64) {
                store.sync().await.unwrap();
            }
        }
        let status = store.status();
        let cleaning = status.counters.cleaning;
        println!("{cleaning:?} {:?} {:?}", status.counters, status.cleaning);
        assert!(cleaning.cleaned_segments > 16, "{cleaning:?}");
        assert!(read_all(&store, OBJECTS, BLOCKS).await == model);
        store.sync().await.unwrap();
        model
    });
    expect_after_restart(&world, CrashMode::PowerLoss, &model, OBJECTS, BLOCKS);
}
