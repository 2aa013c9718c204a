//! Topic `store`: what the store does to devices, and how fast.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::runtime::spawn_joinable;
use ringfort_filesystem::operation::HandleId;

use crate::figures::Figures;
use crate::volume::{Mounted, VolumeFiles};

const SIZE_BYTES: u64 = 4 << 30;
const LOG_BYTES: u64 = 32 << 20;
/// The file that small writes go to.
const SMALL_FILE_BYTES: u64 = 256 << 20;
/// Four times the log: what it holds is written to stripes and truncated several times over.
const SMALL_WRITES: u64 = 4 * LOG_BYTES / BLOCK_BYTES as u64;
const SMALL_WRITES_ALONE: u64 = 4096;
const SMALL_READS: u64 = 32_768;
const DEPTH: u64 = 16;
const LARGE_FILE_BYTES: u64 = 512 << 20;
const TRANSFER_BYTES: usize = 1 << 20;
/// Synced writes that recovery finds in the log.
const UNCLOSED_WRITES: u64 = 4096;

const SMALL: &str = "small";
const LARGE: &str = "large";

pub fn measure(rounds: u32) -> Result<Figures> {
    let mut figures = Figures::default();
    figures.condition(
        "driver",
        "filesystem operations in this process (a channel on the host is not built yet)",
    );
    figures.condition(
        "volume",
        "data 4+2, metadata mirrored 3 ways, six files beside each other, 4 GiB, log 32 MiB",
    );
    figures.condition(
        "small",
        "4 KiB at random in 256 MiB, each followed by fsync; 128 MiB a round at depth 16",
    );
    figures.condition("large", "1 MiB in sequence, 512 MiB, one fsync at the end");
    figures.condition("rounds", rounds.to_string());
    figures.condition("reads", "cached by whatever lies below O_DIRECT; the store caches no data");

    let files = VolumeFiles::create(SIZE_BYTES, LOG_BYTES)?;
    files.open(async |mounted| {
        let small = mounted.create_file(SMALL).await?;
        write_sequence(&mounted, small, SMALL_FILE_BYTES).await?;
        mounted.shut_down().await
    })?;
    for round in 0..rounds {
        files.open(async |mounted| measure_round(mounted, &mut figures, u64::from(round)).await)?;
        // The volume was left as a killed process leaves it.
        files.open(async |mounted| {
            figures.note("recovery_s", "s", mounted.opened_in.as_secs_f64());
            mounted.shut_down().await
        })?;
    }
    measure_degraded(&files, rounds, &mut figures)?;
    figures.note("peak_rss_mib", "MiB", peak_rss_mib()?);
    Ok(figures)
}

async fn measure_round(mounted: Rc<Mounted>, figures: &mut Figures, round: u64) -> Result<()> {
    let small = mounted.open_file(SMALL).await?;
    let deep = small_writes(&mounted, small, SMALL_WRITES, DEPTH, round).await?;
    figures.note("device_bytes_per_user_byte_small", "log and stripes", deep.log_and_stripes);
    figures.note(
        "device_bytes_per_user_byte_small_metadata_log",
        "the log's second stage",
        deep.metadata_log,
    );
    figures.note("device_bytes_per_user_byte_small_with_maps", "everything", deep.everything);
    figures.note("device_reads_per_small_write", "", deep.reads_per_write);
    figures.note("device_flushes_per_fsync", "six components together", deep.flushes_per_fsync);
    figures.note("rand_write_4k_fsync_qd16_per_s", "1/s", deep.writes_per_s);

    let alone = small_writes(&mounted, small, SMALL_WRITES_ALONE, 1, round + 1000).await?;
    figures.note("device_bytes_per_user_byte_small_qd1", "log and stripes", alone.log_and_stripes);
    figures.note("rand_write_4k_fsync_per_s", "1/s", alone.writes_per_s);

    let large = mounted.create_file(LARGE).await?;
    let before = mounted.counts();
    let began = Instant::now();
    write_sequence(&mounted, large, LARGE_FILE_BYTES).await?;
    figures.note("seq_write_mb_s", "MB/s", megabytes(LARGE_FILE_BYTES) / began.elapsed().as_secs_f64());
    mounted.store.checkpoint().await?;
    let counts = mounted.counts().since(before);
    claim("large writes", counts.user_bytes, LARGE_FILE_BYTES)?;
    let per_byte = |bytes: u64| bytes as f64 / LARGE_FILE_BYTES as f64;
    figures.note(
        "device_bytes_per_user_byte_large",
        "log and stripes",
        per_byte(counts.log_and_stripe_bytes),
    );
    figures.note(
        "device_bytes_per_user_byte_large_with_maps",
        "everything",
        per_byte(counts.device.write_bytes),
    );

    let began = Instant::now();
    read_sequence(&mounted, large).await?;
    figures.note("seq_read_mb_s", "MB/s", megabytes(LARGE_FILE_BYTES) / began.elapsed().as_secs_f64());
    let began = Instant::now();
    at_depth(&mounted, SMALL_READS, DEPTH, round, async move |mounted: &Mounted, block, _| {
        mounted.read(small, block * BLOCK_BYTES as u64, BLOCK_BYTES as u32).await.map(drop)
    })
    .await?;
    figures.note("rand_read_4k_qd16_per_s", "1/s", SMALL_READS as f64 / began.elapsed().as_secs_f64());

    mounted.close_file(large).await?;
    // Synced and not closed: left to recovery.
    write_small(&mounted, small, UNCLOSED_WRITES, DEPTH, round + 2000).await
}

fn measure_degraded(files: &VolumeFiles, rounds: u32, figures: &mut Figures) -> Result<()> {
    let components = files.components();
    for lost in [1, 4] {
        std::fs::remove_file(&components[lost])
            .with_context(|| format!("take away {}", components[lost].display()))?;
    }
    for _ in 0..rounds {
        files.open(async |mounted| {
            let large = mounted.open_file(LARGE).await?;
            let began = Instant::now();
            read_sequence(&mounted, large).await?;
            let rate = megabytes(LARGE_FILE_BYTES) / began.elapsed().as_secs_f64();
            figures.note("degraded_seq_read_mb_s", "MB/s, two components gone", rate);
            mounted.shut_down().await
        })?;
    }
    Ok(())
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

async fn small_writes(
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

async fn read_sequence(mounted: &Mounted, file: HandleId) -> Result<()> {
    for index in 0..LARGE_FILE_BYTES / TRANSFER_BYTES as u64 {
        let first = mounted.read(file, index * TRANSFER_BYTES as u64, TRANSFER_BYTES as u32).await?;
        if first[..8] != index.to_le_bytes() {
            bail!("wrong bytes at transfer {index} of the large file");
        }
    }
    Ok(())
}

/// Bytes that begin with `number`, freshly filled as a front end fills them from a guest.
fn stamped(len_bytes: usize, number: u64) -> Slice {
    let mut buffer = Buffer::zeroed(len_bytes);
    buffer.fill(number as u8 | 1);
    buffer[..8].copy_from_slice(&number.to_le_bytes());
    buffer.freeze()
}

/// SplitMix64: the same places in every run.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn peak_rss_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM in /proc/self/status")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("read {line:?}"))?;
    Ok(kib / 1024.0)
}
