//! Topic `code`: erasure code and checksum on one core, beside what memory gives.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use ringfort_store::address::ColumnIndex;
use ringfort_store::format::checksum::block_checksum;
use ringfort_store::object::{Code, Kernel};

use crate::figures::{Figures, RINGFORT};

const DATA_COLUMNS: u8 = 4;
const PARITY_COLUMNS: u8 = 2;
/// The store's default unit.
const UNIT_BYTES: usize = 32 << 10;
const BLOCK_BYTES: usize = 4096;
/// Long enough that the clock's own cost does not count.
const MEASURED_FOR: Duration = Duration::from_millis(200);

pub fn measure(rounds: u32) -> Result<Figures> {
    let mut figures = Figures::default();
    figures.condition("kernel", format!("{:?}, of {:?}", Kernel::best(), Kernel::available()));
    figures.condition("code", "4+2, units of 32 KiB, in cache; GB/s of data, parity not counted");
    figures.condition("checksum", "CRC-32C of 4 KiB blocks, in cache");
    figures.condition("rounds", rounds.to_string());

    let data: Vec<Vec<u8>> = (0..DATA_COLUMNS).map(patterned).collect();
    let columns: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let mut parity = vec![vec![0u8; UNIT_BYTES]; usize::from(PARITY_COLUMNS)];
    let stripe_bytes = UNIT_BYTES * usize::from(DATA_COLUMNS);
    let code = Code::new(DATA_COLUMNS, PARITY_COLUMNS);
    // The worst case: two data columns gone, both parity columns needed.
    let sources = [2, 3, 4, 5].map(ColumnIndex);
    let decoder = code.decoder(&sources, &[ColumnIndex(0), ColumnIndex(1)]);
    for _ in 0..rounds {
        let encode = rate(stripe_bytes, || {
            let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
            code.encode(black_box(&columns), &mut parity);
        });
        figures.note(RINGFORT, "encode_gb_s", "GB/s", encode);
        let mut rebuilt = vec![vec![0u8; UNIT_BYTES]; 2];
        let remaining: Vec<&[u8]> = data[2..].iter().chain(&parity).map(Vec::as_slice).collect();
        let reconstruct = rate(stripe_bytes, || {
            let mut rebuilt: Vec<&mut [u8]> = rebuilt.iter_mut().map(Vec::as_mut_slice).collect();
            decoder.decode(black_box(&remaining), &mut rebuilt);
        });
        assert!(rebuilt == data[..2], "reconstruction gave other bytes than were encoded");
        figures.note(RINGFORT, "reconstruct_gb_s", "GB/s", reconstruct);
        let checksum = rate(stripe_bytes, || {
            for column in &columns {
                for block in column.chunks_exact(BLOCK_BYTES) {
                    black_box(block_checksum(black_box(block)));
                }
            }
        });
        figures.note(RINGFORT, "checksum_gb_s", "GB/s", checksum);
        let mut copies = vec![vec![0u8; UNIT_BYTES]; usize::from(DATA_COLUMNS)];
        let memcpy = rate(stripe_bytes, || {
            for (copy, column) in copies.iter_mut().zip(&columns) {
                black_box(copy).copy_from_slice(black_box(column));
            }
        });
        figures.note(RINGFORT, "memcpy_gb_s", "GB/s", memcpy);
    }
    Ok(figures)
}

fn patterned(column: u8) -> Vec<u8> {
    (0..UNIT_BYTES)
        .map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ column.wrapping_mul(89))
        .collect()
}

/// GB/s of `work`, which handles `bytes` each time.
fn rate(bytes: usize, mut work: impl FnMut()) -> f64 {
    let began = Instant::now();
    let mut times = 0u64;
    while began.elapsed() < MEASURED_FOR {
        for _ in 0..64 {
            work();
        }
        times += 64;
    }
    (times * bytes as u64) as f64 / began.elapsed().as_secs_f64() / 1e9
}
