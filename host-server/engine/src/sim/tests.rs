use std::rc::Rc;
use std::time::Duration;

use super::{CrashMode, Fault, RunOutcome, SimWorld};
use crate::buffer::{BLOCK_BYTES, Buffer, Slice};
use crate::device::Device;
use crate::engine::{Engine, MemoryOpen};
use crate::error::ErrorKind;
use crate::sync::join_all;

const BLOCK: u64 = BLOCK_BYTES as u64;
const LEN_BYTES: u64 = 64 * BLOCK;

fn block_of(byte: u8) -> Vec<Slice> {
    vec![Slice::copy_of(&[byte; BLOCK_BYTES])]
}

async fn first_block(device: &Rc<dyn Device>) -> Vec<u8> {
    device.read(0, Buffer::zeroed(BLOCK_BYTES)).await.unwrap().to_vec()
}

fn create(engine: &Rc<dyn Engine>) -> Rc<dyn Device> {
    engine.create("disk".as_ref(), LEN_BYTES).unwrap()
}

/// The first block after a crash that follows `work`.
fn after_crash<F: Future<Output = ()>>(
    mode: CrashMode,
    seed: u64,
    work: impl FnOnce(Rc<dyn Device>) -> F,
) -> Vec<u8> {
    let world = SimWorld::new(seed);
    let engine = world.engine();
    world.run(async { work(create(&engine)).await }).done();
    drop(engine);
    let engine = world.restart(mode, seed ^ 0x5555);
    world.run(async { first_block(&engine.open("disk".as_ref(), true).unwrap()).await }).done()
}

#[test]
fn an_unflushed_write_may_stay_vanish_or_tear_at_a_power_loss() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let block = after_crash(CrashMode::PowerLoss, seed, |device| async move {
            device.write(0, block_of(7)).await.unwrap();
        });
        for sector in block.chunks(super::disk::SECTOR_BYTES) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector was split");
        }
        match block.iter().filter(|byte| **byte == 7).count() {
            0 => lost += 1,
            BLOCK_BYTES => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(kept > 20 && lost > 20 && torn > 10, "kept {kept}, lost {lost}, torn {torn}");
}

#[test]
fn a_flushed_write_always_survives() {
    for seed in 0..200 {
        let block = after_crash(CrashMode::PowerLoss, seed, |device| async move {
            device.write(0, block_of(7)).await.unwrap();
            device.flush().await.unwrap();
            // Elsewhere, so that something is there to lose.
            device.write(BLOCK, block_of(8)).await.unwrap();
        });
        assert_eq!(block, [7; BLOCK_BYTES]);
    }
}

#[test]
fn a_flush_does_not_cover_a_write_that_was_in_flight_at_its_submission() {
    let lost = (0..200).filter(|seed| {
        let block = after_crash(CrashMode::PowerLoss, *seed, |device| async move {
            let write = device.write(0, block_of(7));
            let flush = device.flush();
            write.await.unwrap();
            flush.await.unwrap();
        });
        block != [7; BLOCK_BYTES]
    });
    assert!(lost.count() > 20);
}

#[test]
fn the_death_of_the_process_loses_no_completed_write() {
    for seed in 0..50 {
        let block = after_crash(CrashMode::ProcessDeath, seed, |device| async move {
            device.write(0, block_of(7)).await.unwrap();
        });
        assert_eq!(block, [7; BLOCK_BYTES]);
    }
}

#[test]
fn a_write_in_flight_at_the_death_of_the_process_may_or_may_not_happen() {
    let kept = (0..100).filter(|seed| {
        let block = after_crash(CrashMode::ProcessDeath, *seed, |device| async move {
            drop(device.write(0, block_of(7)));
        });
        block == [7; BLOCK_BYTES]
    });
    let kept = kept.count();
    assert!(kept > 10 && kept < 90, "{kept}");
}

#[test]
fn a_failed_flush_dooms_writes_that_reads_still_show() {
    let mut doomed = 0;
    for seed in 0..100 {
        let block = after_crash(CrashMode::PowerLoss, seed, |device| async move {
            device.write(0, block_of(7)).await.unwrap();
            device.flush().await.unwrap();
        });
        assert_eq!(block, [7; BLOCK_BYTES]);

        let world = SimWorld::new(seed);
        let engine = world.engine();
        let controls = world.controls();
        world
            .run(async {
                let device = create(&engine);
                device.write(0, block_of(7)).await.unwrap();
                controls.inject("disk", Fault::NextFlushError);
                assert_eq!(device.flush().await.unwrap_err().kind, ErrorKind::Failed);
                device.flush().await.unwrap();
                assert_eq!(first_block(&device).await, [7; BLOCK_BYTES]);
            })
            .done();
        world.restart(CrashMode::PowerLoss, seed);
        doomed += usize::from(world.peek("disk", 0, BLOCK_BYTES) == [0; BLOCK_BYTES]);
    }
    assert!(doomed > 20 && doomed < 80, "{doomed}");
}

#[test]
fn a_durable_write_outlives_the_power_and_answers_for_nothing_else() {
    let mut lost = 0;
    for seed in 0..100 {
        let world = SimWorld::new(seed);
        let engine = world.engine();
        world
            .run(async {
                let device = create(&engine);
                device.write(0, block_of(5)).await.unwrap();
                device.write(BLOCK, block_of(6)).await.unwrap();
                device.write_durably(0, block_of(7)).await.unwrap();
            })
            .done();
        world.restart(CrashMode::PowerLoss, seed);
        // Nor does what was written there before come back.
        assert_eq!(world.peek("disk", 0, BLOCK_BYTES), [7; BLOCK_BYTES]);
        lost += usize::from(world.peek("disk", BLOCK, BLOCK_BYTES) != [6; BLOCK_BYTES]);
    }
    assert!(lost > 20 && lost < 80, "{lost}");
}

#[test]
fn a_durable_write_that_fails_may_never_be_on_the_media() {
    let mut doomed = 0;
    for seed in 0..100 {
        let world = SimWorld::new(seed);
        let engine = world.engine();
        let controls = world.controls();
        world
            .run(async {
                let device = create(&engine);
                controls.inject("disk", Fault::NextFlushError);
                assert_eq!(device.write_durably(0, block_of(7)).await.unwrap_err().kind, ErrorKind::Failed);
                device.flush().await.unwrap();
                assert_eq!(first_block(&device).await, [7; BLOCK_BYTES]);
            })
            .done();
        world.restart(CrashMode::PowerLoss, seed);
        doomed += usize::from(world.peek("disk", 0, BLOCK_BYTES) == [0; BLOCK_BYTES]);
    }
    assert!(doomed > 20 && doomed < 80, "{doomed}");
}

async fn workload(engine: Rc<dyn Engine>) {
    let device = create(&engine);
    for round in 0..4 {
        let writes = (0..5).map(|index| device.write(index * BLOCK, block_of(round * 8 + index as u8 + 1)));
        for result in join_all(writes).await {
            result.unwrap();
        }
        device.flush().await.unwrap();
    }
}

#[test]
fn every_persistence_point_can_be_crashed_at_and_a_seed_replays() {
    let world = SimWorld::new(3);
    world.run(workload(world.engine())).done();
    let point_count = world.count_points();
    // Submission and completion of each write, completion of each flush.
    assert_eq!(point_count, 4 * (5 * 2 + 1));
    for point in 1..=point_count {
        let images = [0, 1].map(|_| {
            let world = SimWorld::new(3);
            world.crash_at_point(point);
            assert_eq!(world.run(workload(world.engine())), RunOutcome::Crashed);
            assert_eq!(world.count_points(), point);
            world.restart(CrashMode::PowerLoss, point);
            (world.now(), world.peek("disk", 0, LEN_BYTES as usize))
        });
        assert_eq!(images[0], images[1]);
        let finished_rounds = (point / 11) as u8;
        for (index, block) in images[0].1.chunks(BLOCK_BYTES).take(5).enumerate() {
            // Round 0 wrote 1 + index, 0 is older than any.
            let round_of = |byte: u8| (byte - 1 - index as u8) / 8;
            let oldest =
                block.iter().map(|byte| if *byte == 0 { 0 } else { round_of(*byte) + 1 }).min().unwrap();
            assert!(oldest >= finished_rounds, "block {index} at point {point}");
        }
    }
}

#[test]
fn different_seeds_order_completions_differently() {
    let order = |seed| {
        let world = SimWorld::new(seed);
        let engine = world.engine();
        let order: Rc<std::cell::RefCell<Vec<u64>>> = Rc::default();
        world
            .run(async {
                let device = create(&engine);
                join_all((0..8).map(|index| {
                    let (device, order) = (Rc::clone(&device), Rc::clone(&order));
                    async move {
                        device.write(index * BLOCK, block_of(1)).await.unwrap();
                        order.borrow_mut().push(index);
                    }
                }))
                .await;
            })
            .done();
        order.take()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}

#[test]
fn programmed_faults_do_what_they_say() {
    let world = SimWorld::new(5);
    let (engine, controls) = (world.engine(), world.controls());
    let test = async {
        let device = create(&engine);
        let failed = |error: crate::error::EngineError| error.kind == ErrorKind::Failed;

        controls.inject("disk", Fault::ReadError(BLOCK..2 * BLOCK));
        assert!(failed(device.read(0, Buffer::zeroed(2 * BLOCK_BYTES)).await.unwrap_err()));
        device.read(0, Buffer::zeroed(BLOCK_BYTES)).await.unwrap();
        controls.inject("disk", Fault::NextWriteError(0..BLOCK));
        assert!(failed(device.write(0, block_of(1)).await.unwrap_err()));
        device.write(0, block_of(1)).await.unwrap();
        let counters = device.counters();
        assert_eq!((counters.read_errors, counters.write_errors, counters.errors()), (1, 1, 2));

        controls.inject("disk", Fault::LoseNextWrite(0..BLOCK));
        device.write(0, block_of(2)).await.unwrap();
        assert_eq!(first_block(&device).await, [1; BLOCK_BYTES]);
        controls.inject("disk", Fault::MisdirectNextWrite { from: 0..BLOCK, to_bytes: 4 * BLOCK });
        device.write(0, block_of(3)).await.unwrap();
        assert_eq!(first_block(&device).await, [1; BLOCK_BYTES]);
        assert_eq!(controls.peek("disk", 4 * BLOCK, BLOCK_BYTES), [3; BLOCK_BYTES]);
        controls.flip_bit("disk", 17, 2);
        assert_eq!(first_block(&device).await[17], 1 ^ 4);

        controls.inject("disk", Fault::Hang);
        let before = engine.monotonic();
        let error = device.write(0, block_of(4)).await.unwrap_err();
        assert!(error.found.contains("timed out"), "{error}");
        assert_eq!(engine.monotonic() - before, Duration::from_secs(30));
        controls.heal("disk");

        controls.inject("disk", Fault::Vanish);
        assert!(failed(device.read(0, Buffer::zeroed(BLOCK_BYTES)).await.unwrap_err()));
        assert!(failed(device.flush().await.unwrap_err()));
        drop(device);
        assert!(failed(engine.open("disk".as_ref(), true).err().unwrap()));
        controls.heal("disk");
        // What hung and was given up may yet be carried out.
        assert_eq!(engine.open("disk".as_ref(), true).err().unwrap().kind, ErrorKind::Busy);
    };
    world.run(test).done();
    let engine = world.restart(CrashMode::ProcessDeath, 6);
    assert!(engine.open("disk".as_ref(), true).is_ok());
}

#[test]
fn requests_on_their_way_keep_the_device_locked() {
    let world = SimWorld::new(6);
    let engine = world.engine();
    let test = async {
        let device = create(&engine);
        let write = device.write(0, block_of(1));
        drop(device);
        assert_eq!(engine.open("disk".as_ref(), false).err().unwrap().kind, ErrorKind::Busy);
        write.await.unwrap();
        let device = engine.open("disk".as_ref(), true).unwrap();
        assert_eq!(first_block(&device).await, [1; BLOCK_BYTES]);
    };
    world.run(test).done();
}

#[test]
fn memory_files_outlive_the_process_and_not_the_machine() {
    let world = SimWorld::new(1);
    let name = "log";
    let len_bytes = 4 * BLOCK_BYTES;
    let engine = world.engine();
    let file = engine.memory_file(name, len_bytes, MemoryOpen::Create).unwrap();
    file.lend(1, 1).fill(9);
    let busy = engine.memory_file(name, len_bytes, MemoryOpen::Attach).err().unwrap();
    assert_eq!(busy.kind, ErrorKind::Busy);
    // A task that keeps memory does not outlive its process.
    engine.spawn(Box::pin(async move {
        let _buffer = file.lend(2, 1);
        std::future::pending::<()>().await;
    }));
    world.run(engine.yield_now()).done();
    let engine = world.restart(CrashMode::ProcessDeath, 2);
    let file = engine.memory_file(name, len_bytes, MemoryOpen::Attach).unwrap();
    assert_eq!(file.lend(1, 1)[..], [9; BLOCK_BYTES]);
    drop(file);
    let engine = world.restart(CrashMode::PowerLoss, 3);
    let gone = engine.memory_file(name, len_bytes, MemoryOpen::Attach).err().unwrap();
    assert_eq!(gone.kind, ErrorKind::NotFound);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_future_that_nothing_can_finish_is_reported() {
    SimWorld::new(1).run(std::future::pending::<()>()).done();
}

#[test]
fn background_tasks_go_on_in_the_next_run_and_die_with_the_process() {
    let world = SimWorld::new(1);
    let engine = world.engine();
    let witness = Rc::new(std::cell::Cell::new(0));
    let (engine2, witness2) = (Rc::clone(&engine), Rc::clone(&witness));
    engine.spawn(Box::pin(async move {
        loop {
            engine2.sleep(Duration::from_secs(1)).await;
            witness2.set(witness2.get() + 1);
        }
    }));
    world.run(engine.sleep(Duration::from_millis(1500))).done();
    world.run(engine.sleep(Duration::from_millis(1000))).done();
    assert_eq!(witness.get(), 2);
    world.restart(CrashMode::ProcessDeath, 1);
    assert_eq!(Rc::strong_count(&witness), 1);
}

#[test]
#[should_panic(expected = "memory of log is still lent")]
fn memory_that_outlives_its_process_is_reported() {
    let world = SimWorld::new(1);
    let file = world.engine().memory_file("log", BLOCK_BYTES, MemoryOpen::Create).unwrap();
    let _kept = file.lend(0, 1);
    world.restart(CrashMode::ProcessDeath, 1);
}

#[test]
fn a_crash_may_meet_the_recovery_of_an_earlier_one() {
    let world = SimWorld::new(9);
    world.crash_at_point(30);
    assert!(world.run(workload(world.engine())).is_crashed());
    let engine = world.restart(CrashMode::PowerLoss, 10);
    world.crash_at_point(2);
    let second = async {
        let device = engine.open("disk".as_ref(), true).unwrap();
        device.write(0, block_of(200)).await.unwrap();
    };
    assert!(world.run(second).is_crashed());
    let engine = world.restart(CrashMode::ProcessDeath, 11);
    let block = world.run(async { first_block(&engine.open("disk".as_ref(), true).unwrap()).await }).done();
    // The second point is the completion: the write was done, and only its caller never heard.
    assert_eq!(block, [200; BLOCK_BYTES]);
}
