//! A filesystem that runs full, of data or of names, on the store itself: it says so in time, can always be emptied, and then
//! holds as much as before.

use std::rc::Rc;

use ringfort_engine::engine::Engine;
use ringfort_engine::sim::{CrashMode, SimWorld};
use ringfort_filesystem::operation::*;
use ringfort_reference::{Errno, Random};
use ringfort_store::store::Store;

use crate::real_store::{assert_sound, close, create, open};
use crate::world::{Guest, pattern};

const BLOCK: u64 = 4096;

async fn available_blocks(guest: &Guest<Store>) -> u64 {
    match guest.execute(Operation::StatFs).await.unwrap() {
        Reply::Statistics(statistics) => statistics.available_blocks,
        other => panic!("{other:?}"),
    }
}

/// A volume in a world of its own, and what `work` leaves behind is sound.
fn on_a_volume<F: Future<Output = ()>>(seed: u64, work: impl FnOnce(Guest<Store>) -> F) {
    let world = SimWorld::new(seed);
    create(&world);
    let engine: Rc<dyn Engine> = world.restart(CrashMode::ProcessDeath, seed);
    world
        .run(async {
            let guest = open(&engine).await;
            work(guest.clone()).await;
            assert!(guest.fs.volume().status().failed.is_none());
            assert_sound(&guest).await;
            close(guest).await;
        })
        .done();
    let engine = world.restart(CrashMode::PowerLoss, seed);
    world
        .run(async {
            let guest = open(&engine).await;
            assert_sound(&guest).await;
            close(guest).await;
        })
        .done();
}

/// Writes files until there is no room; returns how many blocks went in.
async fn fill(guest: &Guest<Store>, files: u64, len_bytes: usize, random: Option<&mut Random>) -> u64 {
    let bytes = pattern(7, len_bytes);
    let per_write = len_bytes as u64 / BLOCK;
    let mut written = 0;
    let mut handles = Vec::new();
    for file in 0..files {
        handles.push(guest.create(&format!("/{file}")).await.unwrap());
    }
    let mut places: Vec<u64> = (0..1 << 15).collect();
    if let Some(random) = random {
        (1..places.len()).rev().for_each(|at| places.swap(at, random.below(at as u64 + 1) as usize));
    }
    for (turn, place) in places.into_iter().enumerate() {
        let handle = handles[turn % handles.len()];
        match guest.write_at(handle, place * len_bytes as u64, &bytes).await {
            Ok(_) => written += per_write,
            Err(errno) => {
                assert_eq!(errno, Errno::ENOSPC);
                break;
            }
        }
    }
    for handle in handles {
        guest.close(handle).await.unwrap();
    }
    written
}

async fn empty(guest: &Guest<Store>, files: u64) {
    for file in 0..files {
        guest.unlink(&format!("/{file}")).await.unwrap();
    }
}

fn fill_and_empty_five_times(seed: u64, files: u64, len_bytes: usize, scattered: bool) {
    on_a_volume(seed, |guest| async move {
        let mut random = Random::new(seed);
        for round in 0..5 {
            let promised = available_blocks(&guest).await;
            let written = fill(&guest, files, len_bytes, scattered.then_some(&mut random)).await;
            let left = available_blocks(&guest).await;
            let what = format!("round {round}: {promised} blocks promised, {written} written, {left} left");
            assert!(written + left >= promised * 98 / 100 && left <= promised / 50, "{what}");
            empty(&guest, files).await;
        }
        assert!(fill(&guest, 1, 4096, None).await > 0);
    });
}

#[test]
fn a_volume_full_of_large_files_holds_as_much_again_right_after_they_are_deleted() {
    fill_and_empty_five_times(1, 3, 1 << 20, false);
}

#[test]
fn a_volume_full_of_small_writes_holds_as_much_again_right_after_they_are_deleted() {
    fill_and_empty_five_times(2, 4, 4096, false);
}

#[test]
fn a_volume_full_of_scattered_blocks_holds_as_much_again_right_after_they_are_deleted() {
    fill_and_empty_five_times(3, 2, 4096, true);
}

#[test]
fn a_full_volume_lets_files_be_cut_short_and_written_again() {
    on_a_volume(4, |guest| async move {
        for round in 0..5 {
            fill(&guest, 2, 64 << 10, None).await;
            for file in 0..2 {
                // Within a block: its rest has to be written.
                guest.truncate(&format!("/{file}"), 5000 + round).await.unwrap();
            }
            assert!(available_blocks(&guest).await > 0 || round == 0);
        }
        empty(&guest, 2).await;
    });
}

/// Files without contents until the metadata region is full; then all of them go, and as many find room again.
#[test]
fn a_metadata_region_full_of_names_can_be_emptied_and_filled_again() {
    on_a_volume(5, |guest| async move {
        let mut first = None;
        for round in 0..3 {
            let mut count = 0_u64;
            loop {
                match guest.create(&format!("/file-with-a-name-{count}")).await {
                    Ok(handle) => guest.close(handle).await.unwrap(),
                    Err(errno) => {
                        assert_eq!(errno, Errno::ENOSPC);
                        break;
                    }
                }
                count += 1;
            }
            assert!(count >= *first.get_or_insert(count) * 9 / 10, "round {round}: {count} files");
            assert_eq!(available_blocks(&guest).await, 0, "nothing can be made and statfs says otherwise");
            for file in 0..count {
                guest.unlink(&format!("/file-with-a-name-{file}")).await.unwrap();
            }
        }
    });
}
