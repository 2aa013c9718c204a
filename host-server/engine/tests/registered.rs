//! What registered memory is worth, for a person to read. `TMPDIR` says where.
//!
//! `cargo test --release -p ringfort-engine --test registered -- --ignored --nocapture`

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::device::Device;
use ringfort_engine::local::{LocalOptions, Transport, start};
use ringfort_engine::runtime::{Runtime, spawn_joinable};
use ringfort_engine::sync::join_all;

const LEN_BLOCKS: u64 = 64 << 10;
const ROUNDS: usize = 5;
const SLICE: Duration = Duration::from_millis(800);

/// How often something was done, in what time, and what that took of processors.
#[derive(Clone, Copy, Default)]
struct Cost {
    count: u64,
    elapsed: Duration,
    processor: Duration,
}

fn measure(runtime: &Runtime, work: impl AsyncFn(Rc<Cell<u64>>)) -> Cost {
    let processor = || Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap());
    let count = Rc::new(Cell::new(0));
    let (started, before) = (Instant::now(), processor());
    runtime.block_on(work(Rc::clone(&count)));
    Cost { count: count.get(), elapsed: started.elapsed(), processor: processor() - before }
}

/// Reads of `len_blocks` at random places, `depth` at a time.
fn reads(runtime: &Runtime, device: &Rc<dyn Device>, len_blocks: u64, depth: u64) -> Cost {
    let engine = runtime.engine();
    measure(runtime, async |count| {
        let end = Instant::now() + SLICE;
        join_all((0..depth).map(|reader| {
            let (device, count) = (Rc::clone(device), Rc::clone(&count));
            spawn_joinable(&*engine, async move {
                let mut place = reader + 1;
                while Instant::now() < end {
                    place = place.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let block = (place >> 33) % (LEN_BLOCKS / len_blocks) * len_blocks;
                    let buffer = Buffer::zeroed(len_blocks as usize * BLOCK_BYTES);
                    device.read(block * BLOCK_BYTES as u64, buffer).await.unwrap();
                    count.set(count.get() + 1);
                }
            })
        }))
        .await;
    })
}

/// One block written and flushed, again and again.
fn flushed_writes(runtime: &Runtime, device: &Rc<dyn Device>) -> Cost {
    measure(runtime, async |count| {
        let end = Instant::now() + SLICE;
        while Instant::now() < end {
            let block = count.get() % LEN_BLOCKS;
            let bytes = Slice::copy_of(&[count.get() as u8; BLOCK_BYTES]);
            device.write(block * BLOCK_BYTES as u64, vec![bytes]).await.unwrap();
            device.flush().await.unwrap();
            count.set(count.get() + 1);
        }
    })
}

#[test]
#[ignore = "measures, and takes half a minute"]
fn what_registered_memory_saves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("component");
    let options = |registered_bytes| LocalOptions {
        transport: Transport::Uring,
        memory_directory: None,
        registered_bytes,
        ..LocalOptions::default()
    };
    {
        let runtime = start(options(0)).unwrap();
        let device = runtime.engine().create(&path, LEN_BLOCKS * BLOCK_BYTES as u64).unwrap();
        let piece = Slice::copy_of(&vec![1; 1 << 20]);
        runtime.block_on(async {
            for offset in (0..LEN_BLOCKS * BLOCK_BYTES as u64).step_by(1 << 20) {
                device.write(offset, vec![piece.clone()]).await.unwrap();
            }
            device.flush().await.unwrap();
        });
    }
    let names = ["4 KiB read, depth 16", "64 KiB read, depth 16", "4 KiB write + flush"];
    let mut costs = [[Cost::default(); 3]; 2];
    // Taken in turn, so that what else the machine does falls on both.
    for _ in 0..ROUNDS {
        for (costs, registered_bytes) in costs.iter_mut().zip([0, 16 << 20]) {
            let runtime = start(options(registered_bytes)).unwrap();
            let device = runtime.engine().open(&path, true).unwrap();
            let found = [
                reads(&runtime, &device, 1, 16),
                reads(&runtime, &device, 16, 16),
                flushed_writes(&runtime, &device),
            ];
            for (total, cost) in costs.iter_mut().zip(found) {
                total.count += cost.count;
                total.elapsed += cost.elapsed;
                total.processor += cost.processor;
            }
        }
    }
    for (index, name) in names.iter().enumerate() {
        for (costs, with) in costs.iter().zip(["without", "with   "]) {
            let cost = costs[index];
            let per_second = cost.count as f64 / cost.elapsed.as_secs_f64();
            let processor_us = cost.processor.as_secs_f64() * 1e6 / cost.count as f64;
            println!(
                "{name:<22} {with} registered memory: {per_second:>8.0}/s {processor_us:>7.2} us of processor each"
            );
        }
    }
}
