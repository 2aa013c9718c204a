//! Ranges taken out of files and put into them.

use std::rc::Rc;

use ringfort_filesystem::check;
use ringfort_filesystem::operation::*;
use ringfort_reference::{Errno, Random};
use ringfort_store::error::ErrorKind;
use ringfort_store::format::filesystem as format;
use ringfort_store::model::{ModelSettings, ModelVolume};
use ringfort_store::volume::Volume;

use crate::crash::reopened;
use crate::world::{Guest, make, pattern, run, run_all};

const BLOCK: u64 = 4096;
const MODES: [AllocateMode; 2] = [AllocateMode::CollapseRange, AllocateMode::InsertRange];

async fn guest() -> Guest {
    Guest::new(&make(ModelSettings { suspend_seed: Some(17), ..Default::default() }).await)
}

impl<V: Volume> Guest<V> {
    pub async fn allocate(
        &self,
        handle: HandleId,
        mode: AllocateMode,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<(), Errno> {
        self.done(Operation::Allocate { handle, offset_bytes, len_bytes, mode }).await
    }
}

/// The same, of bytes.
fn apply(mode: AllocateMode, bytes: &mut Vec<u8>, offset: u64, len: u64) {
    let (offset, len) = (offset as usize, len as usize);
    match mode {
        AllocateMode::CollapseRange => drop(bytes.drain(offset..offset + len)),
        AllocateMode::InsertRange => drop(bytes.splice(offset..offset, vec![0; len])),
        other => panic!("{other:?}"),
    }
}

/// A file of many extents: every other block of `blocks`.
async fn scatter<V: Volume>(guest: &Guest<V>, handle: HandleId, blocks: u64) -> Vec<u8> {
    let mut bytes = vec![0; (blocks * BLOCK) as usize - 100];
    for block in (0..blocks).step_by(2) {
        let at = (block * BLOCK) as usize;
        let end = (at + BLOCK as usize).min(bytes.len());
        let data = pattern(block as u8, end - at);
        guest.write_at(handle, at as u64, &data).await.unwrap();
        bytes[at..end].copy_from_slice(&data);
    }
    bytes
}

#[test]
fn ranges_go_and_come_as_in_a_vector_of_bytes() {
    for seed in 1..=6 {
        run(async {
            let guest = guest().await;
            let handle = guest.create("/f").await.unwrap();
            let mut random = Random::new(seed);
            let mut bytes = pattern(seed as u8, 150_000);
            guest.write_at(handle, 0, &bytes).await.unwrap();
            for _ in 0..80 {
                let blocks = bytes.len() as u64 / BLOCK;
                let mode = if blocks > 60 { MODES[0] } else { MODES[random.below(2) as usize] };
                let at = random.below(blocks.max(1)) * BLOCK;
                let len = (1 + random.below(12)) * BLOCK;
                let beyond = match mode {
                    AllocateMode::CollapseRange => at + len >= bytes.len() as u64,
                    _ => at >= bytes.len() as u64,
                };
                let expected = if beyond { Err(Errno::EINVAL) } else { Ok(()) };
                assert_eq!(guest.allocate(handle, mode, at, len).await, expected, "{mode:?} {len} at {at}");
                if !beyond {
                    apply(mode, &mut bytes, at, len);
                }
                if random.below(3) == 0 {
                    let at = random.below(bytes.len() as u64 + 5000);
                    let data = pattern(random.below(256) as u8, 1 + random.below(9000) as usize);
                    guest.write_at(handle, at, &data).await.unwrap();
                    bytes.resize(bytes.len().max(at as usize + data.len()), 0);
                    bytes[at as usize..at as usize + data.len()].copy_from_slice(&data);
                }
                assert!(guest.get("/f").await.unwrap() == bytes, "seed {seed}: {mode:?} {len} at {at}");
                let report = check(&**guest.fs.volume()).await.unwrap();
                assert!(report.is_clean() && report.unfinished == 0, "{report:#?}");
            }
        });
    }
}

#[test]
fn what_linux_refuses_is_refused_with_its_error() {
    run(async {
        let guest = guest().await;
        let handle = guest.create("/f").await.unwrap();
        guest.write_at(handle, 0, &pattern(1, 10 * 4096 - 96)).await.unwrap();
        let [collapse, insert] = MODES;
        let cases = [
            (collapse, 1, BLOCK, Errno::EINVAL),
            (collapse, 0, BLOCK + 1, Errno::EINVAL),
            (collapse, 0, 0, Errno::EINVAL),
            // Reaches the end, inside its last block, or passes it.
            (collapse, 8 * BLOCK, 2 * BLOCK, Errno::EINVAL),
            (collapse, 0, 10 * BLOCK, Errno::EINVAL),
            (collapse, 20 * BLOCK, BLOCK, Errno::EINVAL),
            (collapse, 0, 1 << 44, Errno::EINVAL),
            (collapse, BLOCK, 1 << 44, Errno::EFBIG),
            (insert, 1, BLOCK, Errno::EINVAL),
            (insert, 0, 10, Errno::EINVAL),
            (insert, 10 * BLOCK, BLOCK, Errno::EINVAL),
            (insert, 0, 1 << 44, Errno::EFBIG),
            (insert, 0, (1 << 44) - 9 * BLOCK, Errno::EFBIG),
            (insert, 0, u64::MAX, Errno::EINVAL),
        ];
        let before = guest.stat("/f").await.unwrap();
        for (mode, at, len, errno) in cases {
            assert_eq!(guest.allocate(handle, mode, at, len).await, Err(errno), "{mode:?} {len} at {at}");
        }
        assert_eq!(guest.stat("/f").await.unwrap(), before);
        assert!(guest.get("/f").await.unwrap() == pattern(1, 10 * 4096 - 96));
        let reader = guest.open("/f", "r").await.unwrap();
        assert_eq!(guest.allocate(reader, collapse, 0, BLOCK).await, Err(Errno::EBADF));
        guest.mkdir("/d").await.unwrap();
        let node = guest.resolve("/d").await.unwrap();
        let Ok(Reply::Opened(directory)) = guest.execute(Operation::OpenDirectory { node }).await else {
            panic!()
        };
        // No directory is open for writing.
        assert_eq!(guest.allocate(directory, insert, 0, BLOCK).await, Err(Errno::EBADF));
        // The largest that fits.
        guest.allocate(handle, insert, BLOCK, (1 << 44) - 10 * BLOCK).await.unwrap();
        let after = guest.stat("/f").await.unwrap();
        assert_eq!((after.size_bytes, after.sectors), ((1 << 44) - 96, 80));
        assert_eq!(
            guest.read_at(handle, (1 << 44) - 96 - 4000, 9999).await.unwrap(),
            pattern(1, 40_864)[36_864..]
        );
        guest.allocate(handle, collapse, BLOCK, (1 << 44) - 10 * BLOCK).await.unwrap();
        assert!(guest.get("/f").await.unwrap() == pattern(1, 10 * 4096 - 96));
        assert!(check(&**guest.fs.volume()).await.unwrap().is_clean());
    });
}

#[test]
fn times_set_id_bits_and_allocated_blocks_follow() {
    run(async {
        let guest = guest().await;
        for mode in MODES {
            let path = format!("/{mode:?}");
            let handle = guest.create_mode(&path, "rw", 0o666).await.unwrap();
            guest.write_at(handle, 0, &pattern(1, 8 * 4096)).await.unwrap();
            guest.allocate(handle, AllocateMode::PunchHole, 3 * BLOCK, BLOCK).await.unwrap();
            guest.chmod(&path, 0o6777).await.unwrap();
            let before = guest.stat(&path).await.unwrap();
            assert_eq!(before.sectors, 7 * 8);
            let stranger = guest.user(1000, 1000);
            let handle = stranger.open(&path, "rw").await.unwrap();
            stranger.allocate(handle, mode, 2 * BLOCK, 3 * BLOCK).await.unwrap();
            let after = guest.stat(&path).await.unwrap();
            let collapsed = mode == AllocateMode::CollapseRange;
            assert_eq!(after.size_bytes, if collapsed { 5 } else { 11 } * BLOCK);
            assert_eq!(after.sectors, if collapsed { 5 } else { 7 } * 8);
            assert_eq!(after.permissions, 0o777);
            assert!(after.modified > before.modified && after.changed > before.changed);
            assert_eq!(after.accessed, before.accessed);
        }
    });
}

#[test]
fn a_handle_that_syncs_leaves_nothing_to_lose() {
    run(async {
        let guest = guest().await;
        let handle = guest.create_mode("/f", "rws", 0o644).await.unwrap();
        let mut bytes = pattern(1, 9 * 4096);
        guest.write_at(handle, 0, &bytes).await.unwrap();
        for mode in MODES {
            guest.allocate(handle, mode, BLOCK, BLOCK).await.unwrap();
            apply(mode, &mut bytes, BLOCK, BLOCK);
            let after = reopened(guest.fs.volume(), 0).await;
            assert!(after.get("/f").await.unwrap() == bytes, "{mode:?}");
        }
    });
}

/// A file before and after, as bytes.
struct Change {
    before: Vec<u8>,
    after: Vec<u8>,
}

/// Big enough for several steps of each kind.
async fn change_many_extents(guest: &Guest, mode: AllocateMode, fail_after: Option<u64>) -> Change {
    let handle = guest.create("/f").await.unwrap();
    let before = scatter(guest, handle, 2201).await;
    guest.done(Operation::SyncAll).await.unwrap();
    let mut after = before.clone();
    apply(mode, &mut after, 6 * BLOCK, 64 * BLOCK);
    if let Some(calls) = fail_after {
        guest.fs.volume().fail_after(calls, Some(ErrorKind::Device));
    }
    let result = guest.allocate(handle, mode, 6 * BLOCK, 64 * BLOCK).await;
    guest.fs.volume().fail_after(0, None);
    assert!(fail_after.is_some() || result.is_ok());
    Change { before, after }
}

#[test]
fn a_crash_between_the_steps_leaves_the_old_file_or_the_new_one() {
    run(async {
        for mode in MODES {
            let guest = guest().await;
            let Change { before, after } = change_many_extents(&guest, mode, None).await;
            let volume = guest.fs.volume();
            let transactions = volume.unsynced_transactions();
            assert!(transactions > 5, "{mode:?} took {transactions} transactions");
            for kept in 0..=transactions {
                let unfinished = check(&volume.after_power_loss(kept)).await.unwrap().unfinished;
                assert_eq!(unfinished > 0, kept > 0 && kept < transactions, "{mode:?}, {kept} kept");
                let opened = reopened(volume, kept).await;
                let expected = if kept == 0 { &before } else { &after };
                assert!(opened.get("/f").await.unwrap() == *expected, "{mode:?}, {kept} kept");
            }
            // A crash while opening finishes what the first one cut short.
            for kept in 1..transactions {
                let cut = Rc::new(volume.after_power_loss(kept));
                drop(crate::world::open(Rc::clone(&cut)).await);
                for kept_again in (0..=cut.unsynced_transactions()).step_by(2) {
                    let opened = reopened(&cut, kept_again).await;
                    assert!(opened.get("/f").await.unwrap() == after, "{mode:?}, {kept}, {kept_again} kept");
                }
            }
        }
    });
}

#[test]
fn whoever_comes_after_a_failure_half_way_finds_the_file_whole() {
    run(async {
        let mut halves = 0;
        for mode in MODES {
            for calls in (0..1500).step_by(100) {
                let guest = Guest::new(&make(ModelSettings::default()).await);
                let Change { before, after } = change_many_extents(&guest, mode, Some(calls)).await;
                let volume = guest.fs.volume();
                let is_noted = |volume: &ModelVolume| !volume.entries(format::ORPHANS).is_empty();
                let noted = is_noted(volume);
                halves += u64::from(noted);
                let handle = guest.open("/f", "rw").await.unwrap();
                // Each is the first to come, in turn.
                match calls / 100 % 5 {
                    0 => drop(
                        guest
                            .execute(Operation::Seek { handle, offset_bytes: 0, whence: Whence::Hole })
                            .await,
                    ),
                    1 => assert_eq!(guest.write_at(handle, 1 << 30, &pattern(1, 4096)).await, Ok(4096)),
                    2 => drop(guest.truncate("/f", after.len() as u64).await.unwrap()),
                    3 => {
                        let to = guest.create("/g").await.unwrap();
                        let copy = Operation::CopyRange {
                            from: handle,
                            from_bytes: 0,
                            to,
                            to_bytes: 0,
                            len_bytes: 1,
                        };
                        guest.execute(copy).await.unwrap();
                    }
                    _ => drop(guest.get("/f").await.unwrap()),
                }
                assert!(!is_noted(volume), "{mode:?} failed after {calls} calls and nobody finished it");
                let found = guest.read_at(handle, 0, before.len().max(after.len()) as u32).await.unwrap();
                let len = found.len().min(after.len());
                assert!(found[..len] == after[..len] || found[..len] == before[..len], "{mode:?}, {calls}");
                assert!(!noted || found[..len] == after[..len]);
                let report = check(&**volume).await.unwrap();
                assert!(report.is_clean() && report.unfinished == 0, "{report:#?}");
            }
        }
        assert!(halves > 10, "only {halves} failures came half way");
    });
}

#[test]
fn a_file_in_pieces_that_loses_its_last_name_goes_with_its_note() {
    run(async {
        for mode in MODES {
            let guest = Guest::new(&make(ModelSettings::default()).await);
            change_many_extents(&guest, mode, Some(600)).await;
            let volume = guest.fs.volume();
            assert_eq!(volume.entries(format::ORPHANS).len(), 1);
            guest.unlink("/f").await.unwrap();
            for kept in 0..=volume.unsynced_transactions() {
                reopened(volume, kept).await;
            }
            let sessions = guest.session;
            guest.fs.close_session(sessions).await;
            assert!(volume.entries(format::ORPHANS).is_empty());
            let report = check(&**volume).await.unwrap();
            assert!(report.is_clean() && report.data_blocks == 0, "{report:#?}");
        }
    });
}

#[test]
fn nobody_reads_a_file_in_pieces() {
    for (seed, mode) in (1..=6).zip(MODES.into_iter().cycle()) {
        let fs = run(make(ModelSettings { suspend_seed: Some(seed), ..Default::default() }));
        let guest = Guest::new(&fs);
        let handle = run(guest.create("/f"));
        let handle = handle.unwrap();
        let before = run(scatter(&guest, handle, 801));
        let mut after = before.clone();
        apply(mode, &mut after, 2 * BLOCK, 10 * BLOCK);
        let (before, after, guest) = (&before, &after, &guest);
        let mut tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + '_>>> = vec![Box::pin(async move {
            guest.allocate(handle, mode, 2 * BLOCK, 10 * BLOCK).await.unwrap();
        })];
        for _ in 0..4 {
            tasks.push(Box::pin(async move {
                for _ in 0..20 {
                    let found = guest.read_at(handle, 0, u32::MAX).await.unwrap();
                    assert!(found == *before || found == *after, "seed {seed}: {mode:?}");
                }
            }));
        }
        run_all(seed, tasks);
    }
}

#[test]
fn a_full_volume_lets_ranges_go() {
    run(async {
        let settings = ModelSettings {
            total_blocks: 600,
            reserve_blocks: 4,
            entries_max: 2000,
            reserve_entries: 1990,
            ..Default::default()
        };
        let guest = Guest::new(&make(settings).await);
        let handle = guest.create("/f").await.unwrap();
        let mut bytes = Vec::new();
        while guest.write_at(handle, bytes.len() as u64, &pattern(bytes.len() as u8, 8192)).await.is_ok() {
            bytes.extend(pattern(bytes.len() as u8, 8192));
        }
        assert!(!bytes.is_empty());
        while bytes.len() > 3 * 4096 {
            guest.allocate(handle, AllocateMode::CollapseRange, BLOCK, BLOCK).await.unwrap();
            apply(AllocateMode::CollapseRange, &mut bytes, BLOCK, BLOCK);
        }
        assert!(guest.get("/f").await.unwrap() == bytes);
    });
}
