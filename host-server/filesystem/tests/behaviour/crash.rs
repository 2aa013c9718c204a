//! Power loss, and failures of the store below.

use std::future::Future;
use std::rc::Rc;

use ringfort_filesystem::check;
use ringfort_filesystem::operation::*;
use ringfort_reference::{Errno, Random};
use ringfort_store::error::ErrorKind;
use ringfort_store::format::filesystem as format;
use ringfort_store::model::{ModelSettings, ModelVolume};
use ringfort_store::volume::Volume;

use crate::world::{Guest, make, open, pattern, run};

fn settings(seed: u64) -> ModelSettings {
    ModelSettings { suspend_seed: Some(seed), ..Default::default() }
}

/// The filesystem after a power loss that keeps `kept` transactions: sound before and after it is opened, and nothing is left to finish.
pub async fn reopened(volume: &ModelVolume, kept: usize) -> Guest {
    let volume = Rc::new(volume.after_power_loss(kept));
    let report = check(&*volume).await.unwrap();
    assert!(report.is_clean(), "{kept} kept: {:#?}", report.faults);
    let guest = Guest::new(&open(Rc::clone(&volume)).await);
    let report = check(&*volume).await.unwrap();
    assert!(report.is_clean() && report.unfinished == 0, "{kept} kept: {report:#?}");
    guest
}

#[test]
fn every_cut_of_a_busy_history_is_sound() {
    for seed in 1..=4 {
        run(async {
            let guest = Guest::new(&make(settings(seed)).await);
            let mut random = Random::new(seed);
            let mut held = Vec::new();
            for _ in 0..120 {
                let (path, other) = (random.path(""), random.path(""));
                match random.below(10) {
                    0 | 1 => drop(guest.mkdir(&path).await),
                    2 | 3 => drop(guest.put(&path, &pattern(1, random.below(30_000) as usize)).await),
                    4 => held.extend(guest.open(&path, "rw").await),
                    5 => drop(guest.unlink(&path).await),
                    6 => drop(guest.rmdir(&path).await),
                    7 => drop(guest.rename(&path, &other).await),
                    8 => drop(guest.link(&path, &other).await),
                    _ => drop(guest.truncate(&path, random.below(10_000)).await),
                }
            }
            let volume = guest.fs.volume();
            for kept in 0..=volume.unsynced_transactions() {
                reopened(volume, kept).await;
            }
        });
    }
}

#[test]
fn open_unlinked_files_are_reclaimed_after_a_crash() {
    run(async {
        let guest = Guest::new(&make(settings(2)).await);
        let handle = guest.create("/f").await.unwrap();
        for number in 0..40 {
            guest.write_at(handle, number << 20, &pattern(1, 1 << 20)).await.unwrap();
        }
        let node = guest.resolve("/f").await.unwrap();
        let name = b"user.x".to_vec();
        let set = Operation::SetXattr {
            node,
            name,
            value: b"y".to_vec(),
            mode: SetXattrMode::Any,
            clear_set_gid: false,
        };
        guest.done(set).await.unwrap();
        guest.unlink("/f").await.unwrap();
        guest.done(Operation::Sync { handle, data_only: true }).await.unwrap();
        let after = reopened(guest.fs.volume(), 0).await;
        let volume = after.fs.volume();
        assert_eq!(volume.entries(format::INODES).len(), 1);
        assert!(volume.entries(format::XATTRS).is_empty());
        assert_eq!(check(&**volume).await.unwrap().data_blocks, 0);
    });
}

#[test]
fn a_big_truncation_that_a_crash_cuts_short_is_finished_at_open() {
    run(async {
        let guest = Guest::new(&make(settings(3)).await);
        let handle = guest.create("/f").await.unwrap();
        for number in 0..48 {
            guest.write_at(handle, number << 20, &pattern(1, 1 << 20)).await.unwrap();
        }
        guest.done(Operation::SyncAll).await.unwrap();
        guest.truncate("/f", 4097).await.unwrap();
        let volume = guest.fs.volume();
        let mut unfinished = 0;
        for kept in 0..=volume.unsynced_transactions() {
            unfinished += check(&volume.after_power_loss(kept)).await.unwrap().unfinished;
            let after = reopened(volume, kept).await;
            let size = after.stat("/f").await.unwrap().size_bytes;
            assert_eq!(size, if kept == 0 { 48 << 20 } else { 4097 });
            after.truncate("/f", 48 << 20).await.unwrap();
            let read = after.get("/f").await.unwrap();
            assert!(kept == 0 || read[4097..].iter().all(|&byte| byte == 0));
        }
        assert!(unfinished > 0, "the truncation took one transaction only");
    });
}

#[test]
fn a_truncation_that_fails_half_way_is_finished_before_the_file_grows() {
    run(async {
        let mut seen_partial = false;
        for calls in (0..220).step_by(9) {
            let guest = Guest::new(&make(ModelSettings::default()).await);
            let handle = guest.create("/f").await.unwrap();
            for number in 0..40 {
                guest.write_at(handle, number << 20, &pattern(1, 1 << 20)).await.unwrap();
            }
            let volume = guest.fs.volume();
            let node = guest.resolve("/f").await.unwrap();
            let change = SetAttributes { size_bytes: Some(10), ..Default::default() };
            volume.fail_after(calls, Some(ErrorKind::Device));
            let result = guest.execute(Operation::SetAttributes { node, handle: None, change }).await;
            volume.fail_after(0, None);
            let size = guest.stat("/f").await.unwrap().size_bytes;
            seen_partial |= result.is_err() && size == 10;
            // Through a write of whole blocks beyond the old end, too.
            guest.write_at(handle, 50 << 20, &pattern(2, 4096)).await.unwrap();
            if size == 10 {
                let middle = guest.read_at(handle, 10, 40 << 20).await.unwrap();
                assert!(middle.iter().all(|&byte| byte == 0), "failed after {calls} calls");
            }
            let report = check(&**volume).await.unwrap();
            assert!(report.is_clean(), "{:#?}", report.faults);
        }
        assert!(seen_partial);
    });
}

#[test]
fn synced_data_survives_and_numbers_are_not_reused() {
    run(async {
        let guest = Guest::new(&make(settings(4)).await);
        let handle = guest.create_mode("/synced", "rws", 0o644).await.unwrap();
        guest.write_at(handle, 0, b"kept").await.unwrap();
        guest.put("/lost", b"gone").await.unwrap();
        let lost = guest.resolve("/lost").await.unwrap();
        let after = reopened(guest.fs.volume(), 0).await;
        assert_eq!(after.get("/synced").await.unwrap(), b"kept");
        assert_eq!(after.stat("/lost").await, Err(Errno::ENOENT));
        after.put("/new", b"").await.unwrap();
        let new = after.resolve("/new").await.unwrap();
        assert!(new > lost, "{new:?} after {lost:?}");
    });
}

#[test]
fn a_failing_store_is_an_input_output_error_and_changes_nothing() {
    run(async {
        let guest = Guest::new(&make(settings(5)).await);
        guest.mkdir("/d").await.unwrap();
        guest.put("/f", &pattern(1, 9000)).await.unwrap();
        let volume = guest.fs.volume();
        for calls in 0..40 {
            volume.fail_after(calls, Some(ErrorKind::Device));
            let results = [
                guest.mkdir("/d/e").await.err(),
                guest.rename("/f", "/d/f").await.err(),
                guest.link("/f", "/g").await.err(),
                guest.truncate("/f", 5).await.err(),
                guest.unlink("/f").await.err(),
            ];
            volume.fail_after(0, None);
            for errno in results.into_iter().flatten() {
                assert!([Errno::EIO, Errno::ENOENT].contains(&errno), "{errno}");
            }
            let report = check(&**volume).await.unwrap();
            assert!(report.is_clean(), "after {calls} calls: {:#?}", report.faults);
            for path in ["/d/e", "/d/f", "/g"] {
                let _ = (guest.unlink(path).await, guest.rmdir(path).await);
            }
            guest.put("/f", &pattern(1, 9000)).await.unwrap();
        }
    });
}

#[test]
fn a_full_volume_says_so_and_can_be_emptied() {
    run(async {
        let settings = ModelSettings { total_blocks: 100, reserve_blocks: 4, ..Default::default() };
        let guest = Guest::new(&make(settings).await);
        let handle = guest.create("/f").await.unwrap();
        let block = pattern(1, 4096);
        let mut written = 0;
        let full = loop {
            match guest.write_at(handle, written * 4096, &block).await {
                Ok(_) => written += 1,
                Err(errno) => break errno,
            }
        };
        assert_eq!((full, written), (Errno::ENOSPC, 96));
        assert_eq!(guest.stat("/f").await.unwrap().size_bytes, 96 * 4096);
        let Reply::Statistics(statistics) = guest.execute(Operation::StatFs).await.unwrap() else { panic!() };
        assert_eq!((statistics.available_blocks, statistics.total_blocks), (0, 100));
        let allocate = AllocateMode::Allocate { keep_size: false };
        let allocate = Operation::Allocate { handle, offset_bytes: 1 << 20, len_bytes: 1, mode: allocate };
        assert_eq!(guest.done(allocate).await, Err(Errno::ENOSPC));
        // Through the reserve: a cut inside a block rewrites that block.
        guest.truncate("/f", 50_000).await.unwrap();
        guest.write_at(handle, 1 << 20, &block).await.unwrap();
        guest.close(handle).await.unwrap();
        guest.unlink("/f").await.unwrap();
        assert_eq!(check(&**guest.fs.volume()).await.unwrap().data_blocks, 0);
    });
}

/// Inodes in all, and those that can still be made.
async fn inode_counts<V: Volume>(guest: &Guest<V>) -> (u64, u64) {
    match guest.execute(Operation::StatFs).await.unwrap() {
        Reply::Statistics(statistics) => (statistics.total_inodes, statistics.free_inodes),
        other => panic!("{other:?}"),
    }
}

#[test]
fn free_inodes_are_those_that_can_still_be_made() {
    run(async {
        let settings = ModelSettings { entries_max: 500, reserve_entries: 20, ..Default::default() };
        let guest = Guest::new(&make(settings).await);
        let (total, promised) = inode_counts(&guest).await;
        assert_eq!(total, promised + 1, "the root is one");
        let mut made = 0;
        while guest.put(&format!("/{made}"), b"").await.is_ok() {
            made += 1;
            let (total, free) = inode_counts(&guest).await;
            assert_eq!(total - free, made + 1);
        }
        // Making takes room for a list and a name that is gone before it is used.
        assert!((promised - 3..=promised).contains(&made), "{made} made of {promised}");
        guest.unlink("/7").await.unwrap();
        let (total, free) = inode_counts(&guest).await;
        assert_eq!(total - free, made);
    });
}

#[test]
fn what_a_failure_keeps_from_coming_back_is_seen_and_tried_again() {
    run(async {
        let mut failures = 0;
        for calls in (0..60).step_by(2) {
            let guest = Guest::new(&make(ModelSettings::default()).await);
            let handle = guest.create("/f").await.unwrap();
            for number in 0..12 {
                guest.write_at(handle, number << 20, &pattern(1, 1 << 20)).await.unwrap();
            }
            guest.unlink("/f").await.unwrap();
            assert_eq!((guest.fs.counts().unlinked_inodes, guest.fs.counts().unreclaimed_inodes), (1, 0));
            let volume = guest.fs.volume();
            volume.fail_after(calls, Some(ErrorKind::Device));
            guest.close(handle).await.unwrap();
            let failed = guest.fs.counts();
            // As long as it fails it is tried again without harm.
            volume.fail_after(0, Some(ErrorKind::Device));
            guest.fs.retry_reclaims().await;
            volume.fail_after(0, None);
            failures += failed.reclaim_failures;
            assert_eq!(failed.reclaim_failures, failed.unreclaimed_inodes as u64, "after {calls} calls");
            guest.fs.retry_reclaims().await;
            let counts = guest.fs.counts();
            assert_eq!((counts.unlinked_inodes, counts.unreclaimed_inodes), (0, 0));
            let report = check(&**volume).await.unwrap();
            assert!(report.is_clean() && report.data_blocks == 0 && report.unfinished == 0, "{report:#?}");
        }
        assert!(failures > 5, "only {failures} failures");
    });
}

#[test]
fn a_release_that_is_dropped_half_way_is_finished_later() {
    let guest = run(async { Guest::new(&make(settings(6)).await) });
    let handle = run(guest.create("/f")).unwrap();
    for number in 0..12 {
        run(guest.write_at(handle, number << 20, &pattern(1, 1 << 20))).unwrap();
    }
    run(guest.unlink("/f")).unwrap();
    {
        let mut close = std::pin::pin!(guest.close(handle));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..60 {
            assert!(close.as_mut().poll(&mut context).is_pending(), "it was over too soon");
        }
    }
    let left = run(check(&**guest.fs.volume())).unwrap().data_blocks;
    assert!((1..12 * 256).contains(&left), "{left} blocks were left");
    assert_eq!(guest.fs.counts().unreclaimed_inodes, 1);
    run(guest.fs.retry_reclaims());
    assert_eq!(guest.fs.counts().unreclaimed_inodes, 0);
    assert_eq!(run(check(&**guest.fs.volume())).unwrap().data_blocks, 0);
}

#[test]
fn a_volume_without_room_for_entries_lets_files_be_removed() {
    run(async {
        let settings = ModelSettings { entries_max: 100, reserve_entries: 20, ..Default::default() };
        let guest = Guest::new(&make(settings).await);
        let mut made = 0;
        while guest.put(&format!("/{made}"), b"x").await.is_ok() {
            made += 1;
        }
        assert_eq!(guest.mkdir("/more").await, Err(Errno::ENOSPC));
        for path in guest.list("/").await.unwrap() {
            guest.unlink(&format!("/{path}")).await.unwrap();
        }
        guest.mkdir("/more").await.unwrap();
    });
}
