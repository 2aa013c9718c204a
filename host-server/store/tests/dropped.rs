//! Callers that go away in the middle: whatever they had asked for, at whichever of its steps, nothing is left half done.

#![allow(clippy::unwrap_used)]

mod scene;

use std::time::Duration;

use ringfort_engine::sim::{Controls, CrashMode, Fault};
use ringfort_store::format::component::{LABEL_SLOTS, Label};
use ringfort_store::store::{OpenOptions, Store};
use ringfort_store::volume::Volume;
use scene::*;

/// Longer than anything of a test takes, and less than a request may take.
const SLOW: Duration = Duration::from_secs(20);

/// Calls with 0, 1, 2 … until it returns true, at most so often; how often that was.
fn at_every_wait(waits_max: u32, mut is_done_after: impl FnMut(u32) -> bool) -> u32 {
    (0..waits_max).find(|waits| is_done_after(*waits)).unwrap_or(waits_max)
}

/// Where a block that was written alone to an empty volume lies.
fn place_of(controls: &Controls, content: u64) -> (usize, u64) {
    let bytes = block(content);
    for (component, path) in components().iter().enumerate() {
        for offset_bytes in (0..16 << 20).step_by(4096) {
            if controls.peek(path, offset_bytes, 16) == bytes[..16] {
                return (component, offset_bytes);
            }
        }
    }
    panic!("content {content} lies nowhere");
}

/// Writes the volume over and over, so that every segment gets other contents.
async fn reuse_every_segment(store: &Store) {
    for round in 0..40 {
        let contents: Vec<u64> = (0..128).map(|index| 10_000 + round * 1000 + index).collect();
        write(store, 1, 0, &contents).await.unwrap();
        store.checkpoint().await.unwrap();
    }
}

/// A volume with one segment full of contents, of which one block is damaged on a component that is slow.
async fn damage(store: &Store, controls: &Controls) -> usize {
    let contents: Vec<u64> = (1..=128).collect();
    write(store, 0, 0, &contents).await.unwrap();
    store.checkpoint().await.unwrap();
    let (component, offset_bytes) = place_of(controls, 10);
    controls.flip_bit(&components()[component], offset_bytes + 100, 3);
    component
}

#[test]
fn a_repair_whose_reader_has_gone_spoils_no_later_contents_of_its_segment() {
    let waits = at_every_wait(100, |waits| {
        let world = world_with(u64::from(waits), &create_options());
        let controls = world.controls();
        let done = with_store(&world, async move |store| {
            let damaged = damage(&store, &controls).await;
            let path = &components()[damaged];
            // What is on its way when the reader goes arrives late.
            controls.inject(path, Fault::Slow(SLOW));
            let done = drop_after(waits, read(&store, 0, 0, 128)).await.is_some();
            controls.heal(path);
            unmap(&store, 0, 0, 128).await.unwrap();
            let before = controls.now();
            reuse_every_segment(&store).await;
            assert!(controls.now() - before < SLOW);
            store.engine().sleep(2 * SLOW).await;
            assert!(store.status().counters.freed_segments > 16, "segments were reused");
            store.close().await.unwrap();
            done
        });
        world.restart(CrashMode::ProcessDeath, 1);
        expect_clean(&world);
        done
    });
    assert!(waits > 1 && waits < 100, "{waits}");
}

/// The newest label of each component that is there.
fn newest_labels(controls: &Controls) -> Vec<Label> {
    let newest = |path: &std::path::PathBuf| {
        let labels =
            LABEL_SLOTS.iter().filter_map(|slot| Label::decode(&controls.peek(path, *slot, 4096)).ok());
        labels.max_by_key(|label| label.sequence).unwrap()
    };
    components().iter().map(newest).collect()
}

#[test]
fn an_expulsion_whose_reader_has_gone_leaves_one_history_of_labels() {
    let waits = at_every_wait(100, |waits| {
        let world = world_with(u64::from(waits), &create_options());
        let (engine, controls) = (world.engine(), world.controls());
        world
            .run(async move {
                let store = open(engine).await;
                let damaged = damage(&store, &controls).await;
                let path = &components()[damaged];
                let slow = &components()[(damaged + 1) % components().len()];
                controls.inject(path, Fault::WriteError(0..u64::MAX));
                controls.inject(slow, Fault::Slow(SLOW));
                let done = drop_after(waits, read(&store, 0, 0, 128)).await.is_some();
                controls.heal(slow);
                for step in 0..3 {
                    write(&store, 1, 0, &(1000..1064).collect::<Vec<u64>>()).await.unwrap();
                    put(&store, step, step).await.unwrap();
                    store.sync().await.unwrap();
                }
                store.engine().sleep(2 * SLOW).await;
                let labels = newest_labels(&controls);
                let of_others = || labels.iter().enumerate().filter(|(index, _)| *index != damaged);
                let sequence = store.status().tree.sequence;
                let nonces: Vec<u64> = of_others().map(|(_, label)| label.nonce).collect();
                assert!(of_others().all(|(_, label)| label.sequence == sequence), "after {waits} waits");
                assert!(nonces.iter().all(|nonce| *nonce == nonces[0]), "after {waits} waits: {nonces:x?}");
                done
            })
            .done()
    });
    assert!(waits > 1 && waits < 100, "{waits}");
}

/// What a caller may ask for and not wait for.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Write,
    Sync,
    Checkpoint,
    Close,
}

async fn ask(store: &Store, asked: Asked) {
    match asked {
        Asked::Write => write(store, 2, 0, &(500..560).collect::<Vec<u64>>()).await.unwrap(),
        Asked::Sync => store.sync().await.unwrap(),
        Asked::Checkpoint => store.checkpoint().await.unwrap(),
        Asked::Close => store.close().await.unwrap(),
    }
}

fn leaves(asked: Asked, waits: u32) -> bool {
    let what = format!("{asked:?} left after {waits} waits");
    let world = world_with(u64::from(waits), &create_options());
    let engine = world.engine();
    let (done, model) = world
        .run({
            let what = what.clone();
            async move {
                let store = open(engine).await;
                let mut model = Model::default();
                for step in 0..6 {
                    let contents: Vec<u64> = (0..1 + step * 5).map(|index| 1 + step * 100 + index).collect();
                    write(&store, 0, step * 30, &contents).await.unwrap();
                    model.write(0, step * 30, &contents);
                    put(&store, step, step).await.unwrap();
                    model.entries.insert(step, step);
                }
                let done = drop_after(waits, ask(&store, asked)).await.is_some();
                if matches!(asked, Asked::Close) {
                    store.close().await.unwrap();
                    return (done, model);
                }
                if matches!(asked, Asked::Write) && done {
                    model.write(2, 0, &(500..560).collect::<Vec<u64>>());
                }
                for step in 6..10 {
                    write(&store, 0, step * 30, &[step, step + 1]).await.unwrap();
                    model.write(0, step * 30, &[step, step + 1]);
                    store.checkpoint().await.unwrap();
                }
                assert!(read_all(&store, 3, 400).await == model, "{what}");
                store.sync().await.unwrap();
                (done, model)
            }
        })
        .done();
    expect_after_restart(&world, CrashMode::PowerLoss, &model, 3, 400);
    done
}

#[test]
fn whoever_asks_may_go_away_at_any_step() {
    for asked in [Asked::Write, Asked::Sync, Asked::Checkpoint, Asked::Close] {
        let waits = at_every_wait(100, |waits| leaves(asked, waits));
        assert!(waits > 0 && waits < 100, "{asked:?}: {waits}");
    }
}

/// An opening that is given up is as good as a crash: its requests keep the components locked until they have landed.
#[test]
fn an_opening_may_be_given_up_at_any_step() {
    let world = world_with(5, &create_options());
    with_store(&world, async move |store| {
        write(&store, 0, 0, &[1, 2, 3]).await.unwrap();
        store.sync().await.unwrap();
    });
    world.restart(CrashMode::PowerLoss, 5);
    let engine = world.engine();
    let waits = world
        .run(async move {
            let mut waits = 0;
            let store = loop {
                if let Some(store) = drop_after(waits, open(engine.clone())).await {
                    break store;
                }
                waits += 1;
                engine.sleep(SLOW).await;
            };
            assert_eq!(read(&store, 0, 0, 3).await.unwrap().into_values().collect::<Vec<_>>(), [1, 2, 3]);
            store.close().await.unwrap();
            waits
        })
        .done();
    assert!(waits > 10, "{waits}");
    world.restart(CrashMode::ProcessDeath, 6);
    expect_clean(&world);
}

#[test]
fn a_closed_volume_can_be_opened_again_at_once() {
    let world = world_with(6, &create_options());
    let engine = world.engine();
    world
        .run(async move {
            let options =
                OpenOptions { commit_interval: Duration::from_secs(3600), ..OpenOptions::default() };
            for round in 0..3 {
                let opened = Store::open(engine.clone(), &components(), &options).await;
                let (store, _) = opened.unwrap_or_else(|error| panic!("round {round}: {error}"));
                let contents: Vec<u64> = (1..=300).collect();
                write(&store, 0, 0, &contents).await.unwrap();
                // Readers in sequence are read ahead for.
                for at in 0..4 {
                    read(&store, 0, at * 32, 32).await.unwrap();
                }
                store.close().await.unwrap();
            }
        })
        .done();
}

#[test]
fn closing_does_not_wait_for_the_commit_interval() {
    let world = world_with(7, &create_options());
    let (engine, controls) = (world.engine(), world.controls());
    world
        .run(async move {
            let options =
                OpenOptions { commit_interval: Duration::from_secs(3600), ..OpenOptions::default() };
            let (store, _) = Store::open(engine, &components(), &options).await.unwrap();
            let before = controls.now();
            store.close().await.unwrap();
            assert!(controls.now() - before < Duration::from_secs(1));
        })
        .done();
}
