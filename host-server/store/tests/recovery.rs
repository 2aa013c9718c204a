//! States that recovery must tell from what they look like, and what it must make equal before it goes on.

#![allow(clippy::unwrap_used)]

mod scene;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::buffer::BLOCK_BYTES;
use ringfort_engine::sim::{CrashMode, Fault, SimWorld};
use ringfort_store::address::{ComponentPosition, VolumeId};
use ringfort_store::error::ErrorKind;
use ringfort_store::format::log::{RECORD_HEADER_BYTES, RECORD_MAGIC, RecordHeader, record_checksum};
use ringfort_store::format::root::{LOG_START, ROOT_SLOT_BYTES, Root};
use ringfort_store::geometry::LABEL_REGION_BYTES;
use ringfort_store::store::{OpenOptions, Store};
use ringfort_store::volume::{Cost, Key, TreeId, Volume};
use scene::*;
use zerocopy::{FromBytes, IntoBytes};

/// Puts into so many trees that a root is longer than a sector, and can be torn.
async fn put_everywhere(store: &Store, content: u64) {
    let cost = Cost { data_blocks: 0, entries: 20, frees_space: false };
    let mut transaction = store.begin(cost).await.unwrap();
    for tree in 16..36 {
        transaction.put(TreeId(tree), Key::new(1, 0), content.to_le_bytes().to_vec());
    }
    store.apply(transaction).unwrap();
}

/// The newest value of all trees; they agree.
async fn get_everywhere(store: &Store) -> u64 {
    let mut found = Vec::new();
    for tree in 16..36 {
        let value = store.get(TreeId(tree), Key::new(1, 0)).await.unwrap();
        found.push(value.map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap())));
    }
    assert!(found.iter().all(|value| *value == found[0]), "{found:?}");
    found[0]
}

/// Runs until the crash; the volume, and the last value that was synced.
fn checkpoint_until_crash(world: &SimWorld, point: u64) -> (VolumeId, u64) {
    world.crash_at_point(point);
    let engine = world.engine();
    let noted = Rc::new(Cell::new((VolumeId(0), 0)));
    let outcome = world.run({
        let noted = Rc::clone(&noted);
        async move {
            let store = open(engine).await;
            for step in 1.. {
                put_everywhere(&store, step).await;
                store.sync().await.unwrap();
                noted.set((store.volume_id(), step));
                store.checkpoint().await.unwrap();
            }
        }
    });
    assert!(outcome.is_crashed());
    noted.get()
}

/// Where a root slot lies on a mirror's component.
fn slot_offset(slot: u64) -> u64 {
    let plan = ringfort_store::create::plan(&create_options()).unwrap();
    plan.geometry.metadata_base() + slot * ROOT_SLOT_BYTES as u64
}

fn slot_bytes(world: &SimWorld, mirror: usize, slot: u64) -> Vec<u8> {
    world.peek(&components()[mirror], slot_offset(slot), 4096)
}

/// The newest root of a mirror: its sequence.
fn newest_root(world: &SimWorld, mirror: usize, volume: VolumeId) -> u64 {
    let roots = (0..2).filter_map(|slot| Root::decode(&slot_bytes(world, mirror, slot), volume));
    roots.map(|root| root.sequence).max().unwrap_or(0)
}

/// The same bytes in a world of their own.
fn copy_of(world: &SimWorld, seed: u64) -> SimWorld {
    let geometry = ringfort_store::create::plan(&create_options()).unwrap().geometry;
    let copy = SimWorld::new(seed);
    for (position, path) in (0..).map(ComponentPosition).zip(components()) {
        let len_bytes = geometry.component_bytes(position);
        copy.add_block_device(&path, len_bytes);
        copy.poke(&path, 0, &world.peek(&path, 0, len_bytes as usize));
    }
    copy
}

/// A crash leaves the newest root on one mirror alone; the recovery that finds it crashes while it writes the next one over the
/// older root of the others, which tears; then that one mirror is lost.
#[test]
fn a_root_that_one_mirror_alone_has_is_on_all_before_the_next_one_is_written() {
    let (mut alone, mut torn) = (0, 0);
    for seed in 0..1000_u64 {
        let world = world_with(seed, &create_options());
        let (volume, synced) = checkpoint_until_crash(&world, 150 + 2 * seed);
        world.restart(CrashMode::PowerLoss, seed);
        let newest: Vec<u64> = (0..3).map(|mirror| newest_root(&world, mirror, volume)).collect();
        let highest = newest.iter().copied().max().unwrap();
        let Some(odd) = newest.iter().position(|sequence| *sequence == highest) else { continue };
        let others: Vec<usize> = (0..3).filter(|mirror| *mirror != odd).collect();
        if others.iter().any(|mirror| newest[*mirror] == highest) {
            continue;
        }
        alone += 1;
        let slot = (highest + 1) % 2;
        for point in 30..180 {
            let copy = copy_of(&world, seed + point);
            copy.crash_at_point(point);
            let engine = copy.engine();
            let _ = copy
                .run(async move { drop(Store::open(engine, &components(), &OpenOptions::default()).await) });
            // The next root has reached the others, and no flush has: each may have any of its sectors.
            let in_doubt = others.iter().all(|mirror| {
                copy.has_unflushed(&components()[*mirror])
                    && slot_bytes(&copy, *mirror, slot) != slot_bytes(&world, *mirror, slot)
            });
            copy.restart(CrashMode::PowerLoss, seed + point);
            if in_doubt {
                torn += 1;
                for mirror in &others {
                    copy.poke(&components()[*mirror], slot_offset(slot) + 512, &[0; 512]);
                }
            }
            copy.inject(&components()[odd], Fault::Vanish);
            let engine = copy.engine();
            let found = copy.run(async move {
                let store = open(engine).await;
                let found = get_everywhere(&store).await;
                store.close().await.unwrap();
                found
            });
            assert!(found.done() >= synced, "seed {seed}, mirror {odd}, point {point}: {synced} was synced");
        }
        if alone >= 3 && torn > 0 {
            return;
        }
    }
    panic!("{alone} crashes left a root on one mirror alone, {torn} recoveries tore the next");
}

/// One record holds the last blocks of one bank and the first of the next. The first one's segment is emptied and freed while the
/// second one still needs the record: at recovery, the blocks that it has for the free segment are nobody's.
#[test]
fn what_the_log_holds_of_a_freed_segment_is_nobodys() {
    let mut freed = 0;
    for spare in 0..32 {
        let world = world_with(spare, &create_options());
        let synced = with_store(&world, async move |store| {
            let mut model = Model::default();
            // The bank's segment, four banks of 32 blocks, but for what the last transaction brings.
            for at in 0..126 {
                write(&store, 0, at, &[at + 1]).await.unwrap();
                if at % 32 >= 24 {
                    store.sync().await.unwrap();
                }
            }
            write(&store, 1, 0, &[1001, 1002, 1003, 1004, 1005]).await.unwrap();
            store.sync().await.unwrap();
            store.engine().sleep(Duration::from_millis(50)).await;
            // Everything of the first segment dies.
            unmap(&store, 0, 0, 126).await.unwrap();
            unmap(&store, 1, 0, 2).await.unwrap();
            model.write(1, 0, &[1001, 1002, 1003, 1004, 1005]);
            model.unmap(1, 0, 2);
            // Space runs short, and a checkpoint follows that leaves the new bank alone.
            let mut at = 0;
            let before = store.status().counters.freed_segments;
            while store.status().counters.freed_segments == before {
                let contents: Vec<u64> = (1..=48).map(|index| 10_000 + at * 48 + index).collect();
                if write(&store, 2, at * 48, &contents).await.is_err() {
                    break;
                }
                model.write(2, at * 48, &contents);
                at += 1;
            }
            store.sync().await.unwrap();
            (model, store.status().counters.freed_segments - before)
        });
        let (model, freed_now) = synced;
        freed += freed_now;
        world.restart(CrashMode::PowerLoss, spare);
        let engine = world.engine();
        world.run(async move { drop(open(engine).await) }).done();
        world.restart(CrashMode::PowerLoss, spare + 1);
        expect_clean(&world);
        expect_after_restart(&world, CrashMode::PowerLoss, &model, 3, 4096);
    }
    assert!(freed > 0, "no segment was freed");
}

/// Who stages large contents and goes away in the middle leaves writes on their way: their segment is not used again before they
/// have arrived.
#[test]
fn contents_that_are_abandoned_in_the_middle_harm_nobody() {
    for seed in 0..6 {
        let world = world_with(seed, &create_options());
        let controls = world.controls();
        let model = with_store(&world, async move |store| {
            let slow = &components()[seed as usize];
            controls.inject(slow, Fault::Slow(Duration::from_secs(10)));
            let cost = Cost { data_blocks: 256, entries: 1, frees_space: false };
            let mut transaction = store.begin(cost).await.unwrap();
            let data = (1..=256).map(|content| block(7_000_000 + content)).collect();
            {
                let mut stage = std::pin::pin!(store.stage(&mut transaction, data));
                // Far enough that the requests are with the devices.
                for _ in 0..5 {
                    std::future::poll_fn(|context| {
                        let _ = stage.as_mut().poll(context);
                        std::task::Poll::Ready(())
                    })
                    .await;
                    store.engine().yield_now().await;
                }
            }
            drop(transaction);
            controls.heal(slow);
            let mut model = Model::default();
            let mut content = 1;
            // Through every segment, while the abandoned writes arrive.
            for round in 0..6 {
                for at in 0..14 {
                    let contents: Vec<u64> = (content..content + 64).collect();
                    content += 64;
                    write(&store, round % 2, at * 64, &contents).await.unwrap();
                    model.write(round % 2, at * 64, &contents);
                }
                unmap(&store, (round + 1) % 2, 0, 896).await.unwrap();
                model.unmap((round + 1) % 2, 0, 896);
                store.checkpoint().await.unwrap();
            }
            // Every segment is in use when they do.
            for at in 0.. {
                let contents: Vec<u64> = (content..content + 32).collect();
                content += 32;
                if write(&store, 2, at * 32, &contents).await.is_err() {
                    break;
                }
                model.write(2, at * 32, &contents);
            }
            store.checkpoint().await.unwrap();
            assert!(store.engine().monotonic() < Duration::from_secs(9), "too late to show anything");
            store.engine().sleep(Duration::from_secs(60)).await;
            assert!(read_all(&store, 3, 2048).await == model);
            assert_eq!(store.status().tree.counters.damaged_blocks, 0, "seed {seed}");
            store.close().await.unwrap();
            model
        });
        world.restart(CrashMode::PowerLoss, seed);
        expect_clean(&world);
        expect_after_restart(&world, CrashMode::PowerLoss, &model, 3, 2048);
    }
}

/// The newest record in a log of `log_bytes` of a component, and its offset there.
fn newest_record(world: &SimWorld, mirror: usize, log_bytes: usize) -> (u64, RecordHeader) {
    let start = LABEL_REGION_BYTES + LOG_START.0;
    let log = world.peek(&components()[mirror], start, log_bytes);
    let headers = log.chunks_exact(BLOCK_BYTES).enumerate().filter_map(|(block, bytes)| {
        let (header, _) = RecordHeader::read_from_prefix(bytes).ok()?;
        (header.magic.get() == RECORD_MAGIC).then_some((start + (block * BLOCK_BYTES) as u64, header))
    });
    headers.max_by_key(|(_, header)| header.sequence.get()).unwrap()
}

#[test]
fn a_record_of_a_later_release_is_an_error_and_not_the_end_of_the_log() {
    let world = world_with(3, &create_options());
    with_store(&world, async move |store| {
        put_everywhere(&store, 1).await;
        store.sync().await.unwrap();
    });
    world.restart(CrashMode::PowerLoss, 3);
    let (offset, mut header) = newest_record(&world, 0, 1 << 20);
    let record_bytes = RECORD_HEADER_BYTES + header.body_bytes.get() as usize;
    let mut record = world.peek(&components()[0], offset, record_bytes);
    record[RECORD_HEADER_BYTES] = 99;
    header.checksum = record_checksum(&header, &record[RECORD_HEADER_BYTES..]).into();
    record[..RECORD_HEADER_BYTES].copy_from_slice(header.as_bytes());
    for component in components().iter().take(3) {
        world.poke(component, offset, &record);
    }
    let engine = world.engine();
    let outcome =
        world.run(async move { Store::open(engine, &components(), &OpenOptions::default()).await.err() });
    let error = outcome.done().expect("the volume opens without what was synced");
    assert_eq!(error.kind, ErrorKind::Incompatible, "{error}");
}
