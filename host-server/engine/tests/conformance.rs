//! One suite for every engine: whoever keeps the contract of `Engine` and `Device` passes it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::device::Device;
use ringfort_engine::engine::{Engine, MemoryOpen};
use ringfort_engine::error::ErrorKind;
use ringfort_engine::local::{LocalOptions, Transport, start};
use ringfort_engine::runtime::spawn_joinable;
use ringfort_engine::sim::SimWorld;
use ringfort_engine::sync::join_all;

const BLOCK: u64 = BLOCK_BYTES as u64;
const LEN_BYTES: u64 = 2048 * BLOCK;

/// Little enough for some cases to use it up, so that registered and other memory mix.
const REGISTERED_BYTES: usize = 512 << 10;

/// Where a case runs: an engine and a folder for its components.
struct Setting {
    engine: Rc<dyn Engine>,
    folder: PathBuf,
}

impl Setting {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn create(&self, name: &str) -> Rc<dyn Device> {
        self.engine.create(&self.path(name), LEN_BYTES).unwrap()
    }
}

type Case = Pin<Box<dyn Future<Output = ()>>>;

/// What is locked in memory is counted by user: cases side by side could use up what the user may lock.
static REGISTERING: Mutex<()> = Mutex::new(());

fn on_local(transport: Transport, registered_bytes: usize, case: fn(Setting) -> Case) {
    let _alone = (registered_bytes > 0).then(|| REGISTERING.lock().unwrap_or_else(PoisonError::into_inner));
    let folder = tempfile::tempdir().unwrap();
    let options = LocalOptions {
        transport,
        registered_bytes,
        memory_directory: Some(folder.path().join("memory")),
        ..LocalOptions::default()
    };
    let runtime = start(options).unwrap();
    let setting = Setting { engine: runtime.engine(), folder: folder.path().to_owned() };
    runtime.block_on(case(setting));
}

fn on_sim(case: fn(Setting) -> Case) {
    for seed in 0..10 {
        let world = SimWorld::new(seed);
        let setting = Setting { engine: world.engine(), folder: PathBuf::from("/sim") };
        world.run(case(setting)).done();
    }
}

macro_rules! cases {
    ($($case:ident)*) => {
        mod uring {
            $(#[test] fn $case() {
                super::on_local(super::Transport::Uring, super::REGISTERED_BYTES, |setting| {
                    Box::pin(super::$case(setting))
                });
            })*
        }
        mod uring_without_registered_memory {
            $(#[test] fn $case() {
                super::on_local(super::Transport::Uring, 0, |setting| Box::pin(super::$case(setting)));
            })*
        }
        mod plain_uring {
            $(#[test] fn $case() {
                super::on_local(super::Transport::PlainUring, super::REGISTERED_BYTES, |setting| {
                    Box::pin(super::$case(setting))
                });
            })*
        }
        mod threads {
            $(#[test] fn $case() {
                super::on_local(super::Transport::Threads, 0, |setting| Box::pin(super::$case(setting)));
            })*
        }
        mod sim {
            $(#[test] fn $case() {
                super::on_sim(|setting| Box::pin(super::$case(setting)));
            })*
        }
    };
}

cases! {
    a_new_component_reads_as_zeros
    a_read_sees_every_completed_write
    a_durable_write_is_seen_and_counted_as_a_write_and_a_flush
    a_gather_write_lands_slice_after_slice
    a_gather_write_may_have_more_slices_than_the_kernel_takes_at_once
    requests_outside_the_device_are_refused
    unaligned_requests_are_refused
    creating_an_existing_component_is_refused
    opening_a_missing_component_is_refused
    a_component_is_opened_for_writing_once
    readers_share_and_cannot_write
    contents_and_length_survive_reopening
    counters_count_what_completed
    many_requests_in_flight_all_complete
    dropped_completions_do_not_cancel
    memory_files_are_created_attached_and_exclusive
    memory_file_blocks_can_be_written_to_a_device
    sleepers_wake_in_order_of_their_deadlines
    yielding_lets_others_run_in_turn
    random_numbers_differ
}

fn pattern(seed: u64, len_bytes: usize) -> Vec<u8> {
    (0..len_bytes as u64).map(|index| ((index / 7) ^ (seed * 131) ^ (index >> 12)) as u8).collect()
}

async fn read(device: &Rc<dyn Device>, offset_bytes: u64, len_bytes: usize) -> Vec<u8> {
    device.read(offset_bytes, Buffer::zeroed(len_bytes)).await.unwrap().to_vec()
}

async fn a_new_component_reads_as_zeros(setting: Setting) {
    let device = setting.create("a");
    assert_eq!(device.len_bytes(), LEN_BYTES);
    assert_eq!(Path::new(device.name()), setting.path("a"));
    let mut buffer = Buffer::zeroed(BLOCK_BYTES);
    buffer.fill(1);
    let buffer = device.read(LEN_BYTES - BLOCK, buffer).await.unwrap();
    assert!(buffer.iter().all(|byte| *byte == 0));
}

async fn a_read_sees_every_completed_write(setting: Setting) {
    let device = setting.create("a");
    for round in 1..4 {
        let bytes = pattern(round, 8 * BLOCK_BYTES);
        device.write(round * BLOCK, vec![Slice::copy_of(&bytes)]).await.unwrap();
        assert_eq!(read(&device, round * BLOCK, bytes.len()).await, bytes);
    }
    device.flush().await.unwrap();
    assert_eq!(read(&device, BLOCK, BLOCK_BYTES).await, pattern(1, BLOCK_BYTES));
}

async fn a_durable_write_is_seen_and_counted_as_a_write_and_a_flush(setting: Setting) {
    let device = setting.create("component");
    for (at, parts) in [(0, 1), (4 * BLOCK, 3)] {
        // Apart in memory, so that the parts are no single transfer.
        let bytes: Vec<Vec<u8>> = (0..parts).map(|part| pattern(at + part, BLOCK_BYTES)).collect();
        let slices = bytes.iter().map(|bytes| Slice::copy_of(bytes)).collect();
        device.write_durably(at, slices).await.unwrap();
        assert_eq!(read(&device, at, parts as usize * BLOCK_BYTES).await, bytes.concat());
    }
    let counters = device.counters();
    assert_eq!((counters.writes, counters.flushes, counters.write_bytes), (2, 2, 4 * BLOCK));
    let beyond = device.write_durably(device.len_bytes(), vec![Slice::copy_of(&[0; BLOCK_BYTES])]).await;
    assert_eq!(beyond.unwrap_err().kind, ErrorKind::OutOfRange);
}

async fn a_gather_write_lands_slice_after_slice(setting: Setting) {
    let device = setting.create("a");
    let bytes = pattern(3, 6 * BLOCK_BYTES);
    let whole = Slice::copy_of(&bytes);
    // Out of order and with a repetition, so that no two neighbours join.
    let order = [4, 1, 1, 5, 0];
    let slices = order.map(|index| whole.slice(index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES));
    device.write(BLOCK, slices.to_vec()).await.unwrap();
    let found = read(&device, BLOCK, order.len() * BLOCK_BYTES).await;
    for (block, index) in found.chunks(BLOCK_BYTES).zip(order) {
        assert!(block == &bytes[index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES]);
    }
}

async fn a_gather_write_may_have_more_slices_than_the_kernel_takes_at_once(setting: Setting) {
    let device = setting.create("a");
    let slices: Vec<Slice> = (0..1500).map(|index| Slice::copy_of(&pattern(index, BLOCK_BYTES))).collect();
    let expected: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
    device.write(16 * BLOCK, slices).await.unwrap();
    assert!(read(&device, 16 * BLOCK, expected.len()).await == expected);
    assert_eq!(device.counters().writes, 1);
}

async fn requests_outside_the_device_are_refused(setting: Setting) {
    let device = setting.create("a");
    for offset_bytes in [LEN_BYTES, LEN_BYTES - BLOCK, u64::MAX - BLOCK + 1] {
        let error = device.read(offset_bytes, Buffer::zeroed(2 * BLOCK_BYTES)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::OutOfRange, "{error}");
        let data = vec![Slice::copy_of(&[1; 2 * BLOCK_BYTES])];
        let error = device.write(offset_bytes, data).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::OutOfRange, "{error}");
        assert!(error.to_string().contains(device.name()), "{error}");
    }
    assert_eq!(device.counters(), Default::default());
}

async fn unaligned_requests_are_refused(setting: Setting) {
    let device = setting.create("a");
    let error = device.read(512, Buffer::zeroed(BLOCK_BYTES)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::OutOfRange);
    let whole = Slice::copy_of(&[1; 2 * BLOCK_BYTES]);
    for data in [vec![whole.slice(512..512 + BLOCK_BYTES)], vec![whole.slice(0..512)], vec![]] {
        assert_eq!(device.write(0, data).await.unwrap_err().kind, ErrorKind::OutOfRange);
    }
    let halves = vec![whole.slice(0..2048), whole.slice(2048..BLOCK_BYTES)];
    assert_eq!(device.write(0, halves).await.unwrap_err().kind, ErrorKind::OutOfRange);
    let error = setting.engine.create(&setting.path("b"), 1000).err().unwrap();
    assert_eq!(error.kind, ErrorKind::OutOfRange);
}

async fn creating_an_existing_component_is_refused(setting: Setting) {
    let device = setting.create("a");
    drop(device);
    let error = setting.engine.create(&setting.path("a"), LEN_BYTES).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Exists, "{error}");
}

async fn opening_a_missing_component_is_refused(setting: Setting) {
    let error = setting.engine.open(&setting.path("absent"), true).err().unwrap();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("absent"), "{error}");
}

async fn a_component_is_opened_for_writing_once(setting: Setting) {
    let device = setting.create("a");
    for write in [true, false] {
        let error = setting.engine.open(&setting.path("a"), write).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Busy, "{error}");
        assert!(error.found.starts_with("locked by "), "{error}");
    }
    drop(device);
    setting.engine.open(&setting.path("a"), true).unwrap();
}

async fn readers_share_and_cannot_write(setting: Setting) {
    drop(setting.create("a"));
    let first = setting.engine.open(&setting.path("a"), false).unwrap();
    let second = setting.engine.open(&setting.path("a"), false).unwrap();
    let error = first.write(0, vec![Slice::copy_of(&[1])]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert_eq!(read(&second, 0, BLOCK_BYTES).await, [0; BLOCK_BYTES]);
    let error = setting.engine.open(&setting.path("a"), true).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Busy, "{error}");
}

async fn contents_and_length_survive_reopening(setting: Setting) {
    let device = setting.create("a");
    device.write(BLOCK, vec![Slice::copy_of(b"here")]).await.unwrap();
    device.flush().await.unwrap();
    drop(device);
    let device = setting.engine.open(&setting.path("a"), true).unwrap();
    assert_eq!(device.len_bytes(), LEN_BYTES);
    assert_eq!(&read(&device, BLOCK, BLOCK_BYTES).await[..4], b"here");
}

async fn counters_count_what_completed(setting: Setting) {
    let device = setting.create("a");
    device.write(0, vec![Slice::copy_of(&[1; BLOCK_BYTES]); 3]).await.unwrap();
    device.write(0, vec![Slice::copy_of(&[1; BLOCK_BYTES])]).await.unwrap();
    device.read(0, Buffer::zeroed(2 * BLOCK_BYTES)).await.unwrap();
    device.flush().await.unwrap();
    let counters = device.counters();
    assert_eq!((counters.writes, counters.write_bytes), (2, 4 * BLOCK));
    assert_eq!((counters.reads, counters.read_bytes), (1, 2 * BLOCK));
    assert_eq!((counters.flushes, counters.errors()), (1, 0));
}

async fn many_requests_in_flight_all_complete(setting: Setting) {
    let device = setting.create("a");
    // More than the submission queue of a ring holds.
    let count = 1000;
    let writes = (0..count)
        .map(|index| device.write(index * BLOCK, vec![Slice::copy_of(&pattern(index, BLOCK_BYTES))]));
    let flush = device.flush();
    for result in join_all(writes).await {
        result.unwrap();
    }
    flush.await.unwrap();
    let reads = (0..count).map(|index| device.read(index * BLOCK, Buffer::zeroed(BLOCK_BYTES)));
    for (index, result) in join_all(reads).await.into_iter().enumerate() {
        assert!(result.unwrap()[..] == pattern(index as u64, BLOCK_BYTES));
    }
}

async fn dropped_completions_do_not_cancel(setting: Setting) {
    let device = setting.create("a");
    drop(device.write(0, vec![Slice::copy_of(&[5; BLOCK_BYTES])]));
    drop(device.read(0, Buffer::zeroed(BLOCK_BYTES)));
    while device.counters().writes + device.counters().reads < 2 {
        setting.engine.sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(read(&device, 0, BLOCK_BYTES).await, [5; BLOCK_BYTES]);
}

async fn memory_files_are_created_attached_and_exclusive(setting: Setting) {
    let open = |mode| setting.engine.memory_file("log", 8 * BLOCK_BYTES, mode);
    assert_eq!(open(MemoryOpen::Attach).err().unwrap().kind, ErrorKind::NotFound);
    let file = open(MemoryOpen::Create).unwrap();
    assert_eq!(file.block_count(), 8);
    let mut buffer = file.lend(2, 3);
    assert!(buffer.iter().all(|byte| *byte == 0));
    buffer.fill(7);
    let slice = buffer.freeze();
    let rest = file.lend(5, 3);
    for mode in [MemoryOpen::Attach, MemoryOpen::Create] {
        assert_eq!(open(mode).err().unwrap().kind, ErrorKind::Busy);
    }
    drop(file);
    drop(rest);
    // Memory that is still lent keeps the file open.
    assert_eq!(open(MemoryOpen::Attach).err().unwrap().kind, ErrorKind::Busy);
    drop(slice);
    let file = open(MemoryOpen::Attach).unwrap();
    assert!(file.lend(2, 3).iter().all(|byte| *byte == 7));
    assert_eq!(file.lend(0, 1)[..], [0; BLOCK_BYTES]);
    drop(file);
    let error = setting.engine.memory_file("log", BLOCK_BYTES, MemoryOpen::Attach).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Failed, "{error}");
    let file = open(MemoryOpen::Create).unwrap();
    assert!(file.lend(0, 8).iter().all(|byte| *byte == 0));
    // Removed while it is open, and once more when it is gone.
    setting.engine.remove_memory_file("log").unwrap();
    drop(file);
    assert_eq!(open(MemoryOpen::Attach).err().unwrap().kind, ErrorKind::NotFound);
    setting.engine.remove_memory_file("log").unwrap();
    for name in ["", "a/b", "..", ".hidden"] {
        let error = setting.engine.memory_file(name, BLOCK_BYTES, MemoryOpen::Create).err().unwrap();
        assert_eq!(error.kind, ErrorKind::OutOfRange, "{error}");
    }
}

async fn memory_file_blocks_can_be_written_to_a_device(setting: Setting) {
    let file = setting.engine.memory_file("bank", 4 * BLOCK_BYTES, MemoryOpen::Create).unwrap();
    let device = setting.create("a");
    let mut buffer = file.lend(1, 2);
    buffer.copy_from_slice(&pattern(1, 2 * BLOCK_BYTES));
    device.write(0, vec![buffer.freeze()]).await.unwrap();
    // The request is over, and with it the loan.
    let buffer = device.read(0, file.lend(1, 2)).await.unwrap();
    assert!(buffer[..] == pattern(1, 2 * BLOCK_BYTES));
}

async fn sleepers_wake_in_order_of_their_deadlines(setting: Setting) {
    let engine = &setting.engine;
    // In order of waking, the moments between which each deadline lies: the machine may pause between any two readings of its clock.
    let woken: Rc<RefCell<Vec<(Duration, Duration)>>> = Rc::default();
    join_all([30, 10, 20, 0].map(|ms| {
        let lasting = Duration::from_millis(ms);
        let earliest = engine.monotonic() + lasting;
        let mut sleep = engine.sleep(lasting);
        let latest = engine.monotonic() + lasting;
        let (clock, woken) = (Rc::clone(engine), Rc::clone(&woken));
        spawn_joinable(&**engine, async move {
            let mut waited = false;
            poll_fn(|context| {
                let polled = sleep.as_mut().poll(context);
                waited |= polled.is_pending();
                polled
            })
            .await;
            assert!(clock.monotonic() >= earliest);
            // One whose time was over when its task first ran has not been woken.
            if waited {
                woken.borrow_mut().push((earliest, latest));
            }
        })
    }))
    .await;
    let woken = woken.borrow();
    for (index, (earliest, _)) in woken.iter().enumerate() {
        assert!(woken[index..].iter().all(|(_, latest)| earliest <= latest), "{woken:?}");
    }
    assert!(engine.wall_clock() > Duration::from_secs(1_700_000_000));
}

async fn yielding_lets_others_run_in_turn(setting: Setting) {
    let engine = &setting.engine;
    let order: Rc<RefCell<Vec<u64>>> = Rc::default();
    join_all([0, 1, 2].map(|index| {
        let (order, task_engine) = (Rc::clone(&order), Rc::clone(engine));
        spawn_joinable(&**engine, async move {
            for round in 0..2 {
                order.borrow_mut().push(round * 10 + index);
                task_engine.yield_now().await;
            }
        })
    }))
    .await;
    assert_eq!(*order.borrow(), [0, 1, 2, 10, 11, 12]);
}

async fn random_numbers_differ(setting: Setting) {
    let numbers: std::collections::BTreeSet<u64> = (0..100).map(|_| setting.engine.random_u64()).collect();
    assert_eq!(numbers.len(), 100);
}
