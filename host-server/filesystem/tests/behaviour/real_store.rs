//! The same operations on the store itself, on simulated devices.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use ringfort_engine::engine::Engine;
use ringfort_engine::sim::{CrashMode, SimWorld};
use ringfort_filesystem::operation::*;
use ringfort_filesystem::{Filesystem, FilesystemOptions, check};
use ringfort_reference::{Random, Reference};
use ringfort_store::create::CreateOptions;
use ringfort_store::store::{OpenOptions, Store};

use crate::model::{compare, step};
use crate::world::{Guest, pattern};

pub fn components() -> Vec<PathBuf> {
    (0..6).map(|index| PathBuf::from(format!("component-{index}"))).collect()
}

/// A small volume of 4+2 with a filesystem on it.
pub fn create(world: &SimWorld) {
    let engine = world.engine();
    world
        .run(async move {
            let options = CreateOptions {
                log_bytes: Some(4 << 20),
                unit_bytes: Some(8192),
                ..CreateOptions::new(components(), 64 << 20)
            };
            let store = Store::create(Rc::clone(&engine), &options).await.unwrap();
            Filesystem::format(&store, &*engine).await.unwrap();
            store.close().await.unwrap();
        })
        .done();
}

pub async fn open(engine: &Rc<dyn Engine>) -> Guest<Store> {
    let (store, _) = Store::open(Rc::clone(engine), &components(), &OpenOptions::default()).await.unwrap();
    let options = FilesystemOptions::default();
    Guest::new(&Filesystem::open(Rc::new(store), Rc::clone(engine), options).await.unwrap())
}

pub async fn close(guest: Guest<Store>) {
    guest.fs.shut_down().await.unwrap();
    guest.fs.volume().close().await.unwrap();
}

pub async fn assert_sound(guest: &Guest<Store>) {
    let report = check(&**guest.fs.volume()).await.unwrap();
    assert!(report.is_clean(), "{:#?}", report.faults);
}

#[test]
fn random_operations_survive_a_clean_restart() {
    for seed in 1..=3 {
        let world = SimWorld::new(seed);
        create(&world);
        let reference = Rc::new(RefCell::new(Reference::new()));
        let engine = world.restart(CrashMode::ProcessDeath, seed);
        let kept = Rc::clone(&reference);
        world
            .run(async move {
                let guest = open(&engine).await;
                let mut reference = Reference::new();
                let mut random = Random::new(seed);
                for _ in 0..250 {
                    step(&mut random, &guest, &mut reference, "").await;
                }
                compare(&guest, &reference).await;
                assert_sound(&guest).await;
                *kept.borrow_mut() = reference;
                close(guest).await;
            })
            .done();
        let engine = world.restart(CrashMode::ProcessDeath, seed);
        world
            .run(async move {
                let guest = open(&engine).await;
                let reference = reference.borrow().clone();
                compare(&guest, &reference).await;
                assert_sound(&guest).await;
                close(guest).await;
            })
            .done();
    }
}

#[test]
fn synced_files_survive_a_power_loss_at_any_moment() {
    for seed in 1..=12 {
        let world = SimWorld::new(seed);
        create(&world);
        let engine = world.restart(CrashMode::ProcessDeath, seed);
        world.crash_at_point(120 + seed * 37);
        let synced = Rc::new(RefCell::new(Vec::new()));
        let record = Rc::clone(&synced);
        let outcome = world.run(async move {
            let guest = open(&engine).await;
            let mut random = Random::new(seed);
            for number in 0..1000_u32 {
                let path = format!("/file-{number}");
                let handle = guest.create(&path).await.unwrap();
                let len_bytes = 1 + random.below(60_000) as usize;
                guest.write_at(handle, 0, &pattern(number as u8, len_bytes)).await.unwrap();
                if number % 3 == 0 {
                    guest.done(Operation::Sync { handle, data_only: false }).await.unwrap();
                    record.borrow_mut().push((path.clone(), number, len_bytes));
                }
                // Open, unlinked, never closed.
                if number % 5 == 1 {
                    guest.unlink(&path).await.unwrap();
                }
            }
        });
        assert!(
            outcome.is_crashed() && !synced.borrow().is_empty(),
            "seed {seed}: no power loss after a sync"
        );
        let engine = world.restart(CrashMode::PowerLoss, seed + 100);
        world
            .run(async move {
                let guest = open(&engine).await;
                for (path, number, len_bytes) in &synced.take() {
                    if number % 5 == 1 {
                        continue;
                    }
                    let read = guest.get(path).await.unwrap();
                    assert!(read == pattern(*number as u8, *len_bytes), "seed {seed}: {path}");
                }
                assert_sound(&guest).await;
                close(guest).await;
            })
            .done();
    }
}

#[test]
fn a_full_store_can_be_emptied_and_filled_again() {
    let world = SimWorld::new(5);
    create(&world);
    let engine = world.restart(CrashMode::ProcessDeath, 5);
    world
        .run(async move {
            let guest = open(&engine).await;
            for round in 0..3 {
                let mut files = 0;
                let full = loop {
                    match guest.put(&format!("/{files}"), &pattern(files as u8, 1 << 20)).await {
                        Ok(()) => files += 1,
                        Err(errno) => break errno,
                    }
                };
                assert_eq!(full, ringfort_reference::Errno::ENOSPC);
                assert!(files >= 40, "round {round}: only {files} MiB fitted");
                assert_eq!(guest.get("/7").await.unwrap(), pattern(7, 1 << 20));
                assert_sound(&guest).await;
                for path in guest.list("/").await.unwrap() {
                    guest.unlink(&format!("/{path}")).await.unwrap();
                }
            }
            close(guest).await;
        })
        .done();
}
