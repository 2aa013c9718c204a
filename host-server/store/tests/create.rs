//! Volumes made on devices that held something else.

#![allow(clippy::unwrap_used)]

mod scene;

use ringfort_engine::sim::SimWorld;
use ringfort_store::create::{CreateOptions, Preallocation, plan};
use ringfort_store::store::Store;
use scene::*;

/// The last blocks of each component, whatever they held before the volume was made.
fn ends_after_create(preallocation: Preallocation) -> Vec<Vec<u8>> {
    const END_BYTES: u64 = 64 << 10;
    let options = CreateOptions { preallocation, ..create_options() };
    let geometry = plan(&options).unwrap().geometry;
    let world = SimWorld::new(5);
    let controls = world.controls();
    let ends: Vec<_> = (0..)
        .map(ringfort_store::address::ComponentPosition)
        .zip(components())
        .map(|(position, path)| {
            let len_bytes = geometry.component_bytes(position);
            controls.add_block_device(&path, len_bytes);
            controls.poke(&path, len_bytes - END_BYTES, &[0xee; END_BYTES as usize]);
            (path, len_bytes - END_BYTES)
        })
        .collect();
    let engine = world.engine();
    world
        .run(async move {
            Store::create(engine, &options).await.unwrap();
        })
        .done();
    ends.iter().map(|(path, at)| controls.peek(path, *at, END_BYTES as usize)).collect()
}

#[test]
fn every_place_is_written_when_that_is_asked_for() {
    let all = |ends: Vec<Vec<u8>>, byte| ends.iter().flatten().all(|found| *found == byte);
    assert!(all(ends_after_create(Preallocation::Full), 0));
    assert!(all(ends_after_create(Preallocation::Reserved), 0xee));
}
