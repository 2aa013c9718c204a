//! The store's own side of its work: filesystem operations, and what devices and the store counted meanwhile.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ringfort_engine::buffer::{Buffer, Slice};
use ringfort_engine::runtime::spawn_joinable;
use ringfort_filesystem::operation::HandleId;

use crate::figures::{Figures, RINGFORT};
use crate::load::{
    BLOCK_BYTES, DEPTH, LARGE, LARGE_FILE_BYTES, Random, SMALL, SMALL_FILE_BYTES, TRANSFER_BYTES, megabytes,
    stamp,
};
use crate::volume::Mounted;

/// Live log of a crashed volume, at least.
pub const CRASHED_LIVE_BYTES: u64 = 256 << 20;
/// A log in which so much stays live until it is relieved.
pub const CRASHED_LOG_BYTES: u64 = 560 << 20;
const SMALL_READS: u64 = 65_536;

pub async fn prepare_small(mounted: Rc<Mounted>) -> Result<()> {
    let small = mounted.create_file(SMALL).await?;
    write_sequence(&mounted, small, SMALL_FILE_BYTES).await?;
    mounted.shut_down().await
}

pub async fn prepare_large(mounted: Rc<Mounted>) -> Result<()> {
    let large = mounted.create_file(LARGE).await?;
    write_sequence(&mounted, large, LARGE_FILE_BYTES).await?;
    mounted.shut_down().await
}

/// `count` writes at depth 16, then `alone` of one writer.
pub async fn small_writes(
    mounted: &Rc<Mounted>,
    count: u64,
    alone: u64,
    round: u64,
    figures: &mut Figures,
) -> Result<()> {
    let file = mounted.open_file(SMALL).await?;
    let deep = count_writes(mounted, file, count, DEPTH, round).await?;
    let mut note = |name, unit, value| figures.note(RINGFORT, name, unit, value);
    note("rand_write_4k_fsync_qd16_per_s", "1/s", deep.writes_per_s);
    note("device_bytes_per_user_byte_small", "log and stripes", deep.log_and_stripes);
    note("device_bytes_per_user_byte_small_metadata_log", "the log's second stage", deep.metadata_log);
    note("device_bytes_per_user_byte_small_with_maps", "everything", deep.everything);
    note("device_reads_per_small_write", "", deep.reads_per_write);
    note("device_flushes_per_fsync", "six components together", deep.flushes_per_fsync);
    let alone = count_writes(mounted, file, alone, 1, round + 1000).await?;
    note("rand_write_4k_fsync_per_s", "1/s", alone.writes_per_s);
    note("device_bytes_per_user_byte_small_qd1", "log and stripes", alone.log_and_stripes);
    mounted.close_file(file).await
}

/// Makes the large file anew.
pub async fn large_writes(mounted: &Rc<Mounted>, figures: &mut Figures) -> Result<()> {
    let large = mounted.create_file(LARGE).await?;
    mounted.store.checkpoint().await?;
    let before = mounted.counts();
    let began = Instant::now();
    write_sequence(mounted, large, LARGE_FILE_BYTES).await?;
    let rate = megabytes(LARGE_FILE_BYTES) / began.elapsed().as_secs_f64();
    mounted.store.checkpoint().await?;
    let counts = mounted.counts().since(before);
    claim("large writes", counts.user_bytes, LARGE_FILE_BYTES)?;
    let per_byte = |bytes: u64| bytes as f64 / LARGE_FILE_BYTES as f64;
    let mut note = |name, unit, value| figures.note(RINGFORT, name, unit, value);
    note("seq_write_mb_s", "MB/s", rate);
    note("device_bytes_per_user_byte_large", "log and stripes", per_byte(counts.log_and_stripe_bytes));
    note("device_bytes_per_user_byte_large_with_maps", "everything", per_byte(counts.device.write_bytes));
    mounted.close_file(large).await
}

/// Reads the large file in sequence. MB/s.
pub async fn read_large(mounted: &Mounted) -> Result<f64> {
    let file = mounted.open_file(LARGE).await?;
    let began = Instant::now();
    for index in 0..LARGE_FILE_BYTES / TRANSFER_BYTES as u64 {
        let first = mounted.read(file, index * TRANSFER_BYTES as u64, TRANSFER_BYTES as u32).await?;
        if first[..8] != index.to_le_bytes() {
            bail!("wrong bytes at transfer {index} of the large file");
        }
    }
    let rate = megabytes(LARGE_FILE_BYTES) / began.elapsed().as_secs_f64();
    mounted.close_file(file).await?;
    Ok(rate)
}

pub async fn small_reads(mounted: &Rc<Mounted>, round: u64, figures: &mut Figures) -> Result<()> {
    let file = mounted.open_file(SMALL).await?;
    let began = Instant::now();
    at_depth(mounted, SMALL_READS, DEPTH, round, async move |mounted: &Mounted, block, _| {
        mounted.read(file, block * BLOCK_BYTES as u64, BLOCK_BYTES as u32).await.map(drop)
    })
    .await?;
    let per_s = SMALL_READS as f64 / began.elapsed().as_secs_f64();
    figures.note(RINGFORT, "rand_read_4k_qd16_per_s", "1/s", per_s);
    mounted.close_file(file).await
}

/// Synced small writes, all of them after a checkpoint and with more live log than is claimed.
pub async fn fill_log(mounted: &Rc<Mounted>, round: u64) -> Result<()> {
    let file = mounted.open_file(SMALL).await?;
    mounted.store.checkpoint().await?;
    write_small(mounted, file, CRASHED_LIVE_BYTES / BLOCK_BYTES as u64, DEPTH, round + 2000).await
}

/// What small writes did.
struct SmallWrites {
    log_and_stripes: f64,
    metadata_log: f64,
    everything: f64,
    reads_per_write: f64,
    flushes_per_fsync: f64,
    writes_per_s: f64,
}

async fn count_writes(
    mounted: &Rc<Mounted>,
    file: HandleId,
    count: u64,
    depth: u64,
    seed: u64,
) -> Result<SmallWrites> {
    // What earlier phases left in memory is not this one's.
    mounted.store.checkpoint().await?;
    let before = mounted.counts();
    let began = Instant::now();
    write_small(mounted, file, count, depth, seed).await?;
    let elapsed = began.elapsed();
    let flushes = mounted.counts().since(before).device.flushes;
    // Every byte on its way to a stripe arrives there.
    mounted.store.checkpoint().await?;
    let counts = mounted.counts().since(before);
    let user_bytes = count * BLOCK_BYTES as u64;
    claim("small writes", counts.user_bytes, user_bytes)?;
    let per_byte = |bytes: u64| bytes as f64 / user_bytes as f64;
    Ok(SmallWrites {
        log_and_stripes: per_byte(counts.log_and_stripe_bytes),
        metadata_log: per_byte(counts.metadata_log_bytes),
        everything: per_byte(counts.device.write_bytes),
        reads_per_write: counts.device.reads as f64 / count as f64,
        flushes_per_fsync: flushes as f64 / count as f64,
        writes_per_s: count as f64 / elapsed.as_secs_f64(),
    })
}

/// The store's own count must equal what was asked of it, or no figure means anything.
fn claim(what: &str, counted_bytes: u64, asked_bytes: u64) -> Result<()> {
    if counted_bytes != asked_bytes {
        bail!("{what}: the store counts {counted_bytes} user bytes, {asked_bytes} were written");
    }
    Ok(())
}

async fn write_small(mounted: &Rc<Mounted>, file: HandleId, count: u64, depth: u64, seed: u64) -> Result<()> {
    at_depth(mounted, count, depth, seed, async move |mounted: &Mounted, block, number| {
        let data = stamped(BLOCK_BYTES, number);
        mounted.write(file, block * BLOCK_BYTES as u64, data).await?;
        mounted.fsync(file).await
    })
    .await
}

/// Runs `operation` `count` times, `depth` at a time, each on a random block of the small file.
async fn at_depth<F>(mounted: &Rc<Mounted>, count: u64, depth: u64, seed: u64, operation: F) -> Result<()>
where
    F: AsyncFn(&Mounted, u64, u64) -> Result<()> + 'static,
{
    let operation = Rc::new(operation);
    let next = Rc::new(Cell::new(0));
    let workers: Vec<_> = (0..depth)
        .map(|worker| {
            let (mounted, next, operation) = (Rc::clone(mounted), Rc::clone(&next), Rc::clone(&operation));
            let mut random = Random::new(seed * DEPTH + worker);
            let engine = Rc::clone(&mounted.engine);
            spawn_joinable(&*engine, async move {
                while next.get() < count {
                    let number = next.replace(next.get() + 1);
                    let block = random.next() % (SMALL_FILE_BYTES / BLOCK_BYTES as u64);
                    operation(&mounted, block, number).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for worker in workers {
        worker.await.context("a worker was dropped")??;
    }
    Ok(())
}

async fn write_sequence(mounted: &Mounted, file: HandleId, len_bytes: u64) -> Result<()> {
    for index in 0..len_bytes / TRANSFER_BYTES as u64 {
        mounted.write(file, index * TRANSFER_BYTES as u64, stamped(TRANSFER_BYTES, index)).await?;
    }
    mounted.fsync(file).await
}

fn stamped(len_bytes: usize, number: u64) -> Slice {
    let mut buffer = Buffer::for_overwrite(len_bytes);
    stamp(&mut buffer, number);
    buffer.freeze()
}
