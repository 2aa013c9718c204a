//! A guest that changes a write's bytes while the device copies them hurts nobody but itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::machine::{Host, Machine, REQUESTS, Setup};
use super::volume;
use crate::virtiofs::abi;

const BLOCK_BYTES: usize = 4096;

/// Writes without pause to the block at `address` until told to end.
fn flip(machine: &Machine, address: u64, end: &Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let (memory, end) = (Arc::clone(&machine.memory), Arc::clone(end));
    thread::spawn(move || {
        let mut times = 0;
        while !end.load(Ordering::Relaxed) {
            times += 1;
            memory.write_slice(&[times as u8; BLOCK_BYTES], GuestAddress(address)).unwrap();
        }
        times
    })
}

#[test]
fn flipping_a_write_s_buffer_without_pause_spoils_no_neighbour_s_block() {
    const ROUNDS: usize = 400;
    // One block by itself goes to the log and the bank; a whole stripe and more goes to the components at once.
    const LONG_BLOCKS: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    volume::create(&path, 64 << 20);
    let setup = Setup { machines: 2, ..Setup::default() };
    let host = Host::serve(setup, async move |engine| volume::open(engine, &path).await, volume::close);
    let mut hostile = Machine::connect(&host.path_of(0));
    let mut neighbour = Machine::connect(&host.path_of(1));
    hostile.init();
    neighbour.init();
    let (spoilt, own, kept) =
        (hostile.create("spoilt"), hostile.create("sound"), neighbour.create("neighbour"));
    let block = |index: usize| [(index % 251) as u8 ^ 0x5a; BLOCK_BYTES];

    let end = Arc::new(AtomicBool::new(false));
    let long = LONG_BLOCKS * BLOCK_BYTES;
    // Where the driver puts the data of its next write, as it lays buffers out one behind the other.
    let mut flippers = Vec::new();
    for index in 0..ROUNDS {
        let len_bytes = if index % 8 == 0 { long } else { BLOCK_BYTES };
        let write = abi::WriteIn {
            fh: spoilt.into(),
            offset: ((index * BLOCK_BYTES) as u64).into(),
            size: (len_bytes as u32).into(),
            ..Default::default()
        };
        let data = vec![1; len_bytes];
        let request =
            hostile.queues[REQUESTS].request(abi::FUSE_WRITE, 0, &[write.as_bytes(), &data].concat());
        let (head, data) = request.split_at(request.len() - len_bytes);
        let ticket = hostile.queues[REQUESTS].submit(&[head, data], &[16, 64]);
        if flippers.is_empty() {
            let address = hostile.queues[REQUESTS].readable_address(&ticket, 1);
            flippers.push(flip(&hostile, address, &end));
        }
        hostile.queues[REQUESTS].begin_buffers_anew();
        hostile.kick(REQUESTS);
        // The neighbour's blocks share log records, banks and stripes with those that change.
        neighbour.write(kept, (index * BLOCK_BYTES) as u64, &block(index));
        assert_eq!(hostile.wait(REQUESTS, &ticket).error, 0);
        if index % 50 == 0 {
            neighbour.sync(kept);
        }
    }
    end.store(true, Ordering::Relaxed);
    let flips: u64 = flippers.into_iter().map(|flipper| flipper.join().unwrap()).sum();
    assert!(flips as usize > ROUNDS, "{flips} flips");
    hostile.write(own, 0, &block(7));

    for index in 0..ROUNDS {
        let offset_bytes = (index * BLOCK_BYTES) as u64;
        assert!(neighbour.read(kept, offset_bytes, BLOCK_BYTES as u32) == block(index), "block {index}");
        // Whatever it holds, it is one content with one checksum: read twice, it is the same.
        let first = hostile.read(spoilt, offset_bytes, BLOCK_BYTES as u32);
        assert!(first == hostile.read(spoilt, offset_bytes, BLOCK_BYTES as u32), "block {index}");
    }
    assert!(hostile.read(own, 0, BLOCK_BYTES as u32) == block(7));
    assert_eq!(host.servers.iter().map(|server| server.metrics().errors.get()).sum::<u64>(), 0);
    drop((hostile, neighbour));
    host.stop();
    volume::assert_sound(folder.path());
}
