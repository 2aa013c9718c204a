//! Ringfort's own side of the store's work: commands through a server's channel, and what the server counted meanwhile.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ringfort_guest::{File, Queue, SharedBuffer};
use serde_json::json;

use crate::figures::{Figures, RINGFORT};
use crate::load::{
    BLOCK_BYTES, DEPTH, LARGE, LARGE_FILE_BYTES, Random, SMALL, SMALL_FILE_BYTES, TRANSFER_BYTES, megabytes,
    stamp,
};
use crate::volume::Served;

/// Live log of a crashed volume, at least.
pub const CRASHED_LIVE_BYTES: u64 = 256 << 20;
/// A log in which so much stays live until it is relieved.
pub const CRASHED_LOG_BYTES: u64 = 560 << 20;
const SMALL_READS: u64 = 65_536;
const TRANSFERS: u64 = LARGE_FILE_BYTES / TRANSFER_BYTES as u64;

pub fn prepare_small(served: &Served<'_>) -> Result<()> {
    write_sequence(served, &served.create_file(SMALL)?, SMALL_FILE_BYTES)
}

pub fn prepare_large(served: &Served<'_>) -> Result<()> {
    write_sequence(served, &served.create_file(LARGE)?, LARGE_FILE_BYTES)
}

/// `count` writes at depth 16, then `alone` of one writer.
pub fn small_writes(
    served: &Served<'_>,
    count: u64,
    alone: u64,
    round: u64,
    figures: &mut Figures,
) -> Result<()> {
    let file = served.open_file(SMALL)?;
    let deep = count_writes(served, &file, count, DEPTH, round)?;
    let mut note = |name, unit, value| figures.note(RINGFORT, name, unit, value);
    note("rand_write_4k_fsync_qd16_per_s", "1/s", deep.writes_per_s);
    note("device_bytes_per_user_byte_small", "log and stripes", deep.log_and_stripes);
    note("device_bytes_per_user_byte_small_metadata_log", "the log's second stage", deep.metadata_log);
    note("device_bytes_per_user_byte_small_with_maps", "everything", deep.everything);
    note("device_reads_per_small_write", "", deep.reads_per_write);
    note("device_flushes_per_fsync", "six components together", deep.flushes_per_fsync);
    let alone = count_writes(served, &file, alone, 1, round + 1000)?;
    note("rand_write_4k_fsync_per_s", "1/s", alone.writes_per_s);
    note("device_bytes_per_user_byte_small_qd1", "log and stripes", alone.log_and_stripes);
    Ok(())
}

/// Makes the large file anew.
pub fn large_writes(served: &Served<'_>, figures: &mut Figures) -> Result<()> {
    let large = served.create_file(LARGE)?;
    served.checkpoint()?;
    let before = served.counts()?;
    let began = Instant::now();
    write_sequence(served, &large, LARGE_FILE_BYTES)?;
    let rate = megabytes(LARGE_FILE_BYTES) / began.elapsed().as_secs_f64();
    served.checkpoint()?;
    let commands = json!({ "write": TRANSFERS, "sync": 1 });
    let moved = served.counts()?.claim(&before, LARGE_FILE_BYTES, 0, &commands).context("large writes")?;
    let per_byte = |bytes: u64| bytes as f64 / LARGE_FILE_BYTES as f64;
    let mut note = |name, unit, value| figures.note(RINGFORT, name, unit, value);
    note("seq_write_mb_s", "MB/s", rate);
    note("device_bytes_per_user_byte_large", "log and stripes", per_byte(moved.log_and_stripe_bytes));
    note("device_bytes_per_user_byte_large_with_maps", "everything", per_byte(moved.device_write_bytes));
    Ok(())
}

/// Reads the large file in sequence. MB/s.
pub fn read_large(served: &Served<'_>) -> Result<f64> {
    let file = served.open_file(LARGE)?;
    let mut transfers = Transfers::new(served)?;
    let before = served.counts()?;
    let began = Instant::now();
    for index in 0..TRANSFERS {
        transfers.read(&file, index)?;
    }
    let rate = megabytes(LARGE_FILE_BYTES) / began.elapsed().as_secs_f64();
    let commands = json!({ "read": TRANSFERS });
    served.counts()?.claim(&before, 0, LARGE_FILE_BYTES, &commands).context("large reads")?;
    Ok(rate)
}

pub fn small_reads(served: &Served<'_>, round: u64, figures: &mut Figures) -> Result<()> {
    let file = served.open_file(SMALL)?;
    let before = served.counts()?;
    let began = Instant::now();
    at_depth(served, &file, &[Step::Read], SMALL_READS, DEPTH, round)?;
    let per_s = SMALL_READS as f64 / began.elapsed().as_secs_f64();
    let commands = json!({ "read": SMALL_READS });
    let read_bytes = SMALL_READS * BLOCK_BYTES as u64;
    served.counts()?.claim(&before, 0, read_bytes, &commands).context("small reads")?;
    figures.note(RINGFORT, "rand_read_4k_qd16_per_s", "1/s", per_s);
    Ok(())
}

/// Synced small writes, all of them after a checkpoint and with more live log than is claimed.
pub fn fill_log(served: &Served<'_>, round: u64) -> Result<()> {
    let file = served.open_file(SMALL)?;
    served.checkpoint()?;
    at_depth(served, &file, SYNCED_WRITE, CRASHED_LIVE_BYTES / BLOCK_BYTES as u64, DEPTH, round + 2000)
}

/// One synced write: what a client does that has waited for the volume.
pub fn write_once(served: &Served<'_>) -> Result<()> {
    at_depth(served, &served.open_file(SMALL)?, SYNCED_WRITE, 1, 1, 0)
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

fn count_writes(served: &Served<'_>, file: &File, count: u64, depth: u64, seed: u64) -> Result<SmallWrites> {
    // What earlier phases left in memory is not this one's.
    served.checkpoint()?;
    let before = served.counts()?;
    let began = Instant::now();
    at_depth(served, file, SYNCED_WRITE, count, depth, seed)?;
    let elapsed = began.elapsed();
    let flushes = served.counts()?.since(&before).device_flushes;
    // Every byte on its way to a stripe arrives there.
    served.checkpoint()?;
    let user_bytes = count * BLOCK_BYTES as u64;
    let commands = json!({ "write": count, "sync": count });
    let moved = served.counts()?.claim(&before, user_bytes, 0, &commands).context("small writes")?;
    let per_byte = |bytes: u64| bytes as f64 / user_bytes as f64;
    Ok(SmallWrites {
        log_and_stripes: per_byte(moved.log_and_stripe_bytes),
        metadata_log: per_byte(moved.metadata_log_bytes),
        everything: per_byte(moved.device_write_bytes),
        reads_per_write: moved.device_reads as f64 / count as f64,
        flushes_per_fsync: flushes as f64 / count as f64,
        writes_per_s: count as f64 / elapsed.as_secs_f64(),
    })
}

/// A command of an operation on a block.
#[derive(Clone, Copy)]
enum Step {
    Read,
    Write,
    Sync,
}

/// Each command is submitted when the one before is completed: a sync is of what was written before it.
const SYNCED_WRITE: &[Step] = &[Step::Write, Step::Sync];

/// One of those that work at the same time; its number is the tag of its commands.
struct Worker {
    random: Random,
    offset_bytes: u64,
    /// Of its operation, among everybody's.
    number: u64,
    /// The place of the command under way among the steps.
    step: usize,
}

/// Carries out an operation of `steps` `count` times, `depth` at a time, each on a random block of the small file: one thread, one queue.
fn at_depth(
    served: &Served<'_>,
    file: &File,
    steps: &[Step],
    count: u64,
    depth: u64,
    seed: u64,
) -> Result<()> {
    let mut queue = served.client.queue()?;
    let mut block = [0; BLOCK_BYTES];
    let mut begun = 0;
    let mut begin = |worker: &mut Worker| {
        (worker.number, worker.step) = (begun, 0);
        worker.offset_bytes =
            worker.random.next() % (SMALL_FILE_BYTES / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
        begun += 1;
        begun <= count
    };
    let worker =
        |index| Worker { random: Random::new(seed * DEPTH + index), offset_bytes: 0, number: 0, step: 0 };
    let mut workers: Vec<_> = (0..depth).map(worker).collect();
    for (tag, worker) in (0..).zip(&mut workers) {
        if begin(worker) {
            submit(&mut queue, file, steps[0], worker, &mut block, tag)?;
        }
    }
    while queue.under_way() > 0 {
        let done = queue.next(&mut block)?;
        let worker = usize::try_from(done.tag).ok().and_then(|tag| workers.get_mut(tag));
        let worker = worker.context("a completion with a tag that no command has")?;
        let bytes = done.result?;
        let is_whole = matches!(steps[worker.step], Step::Sync) || bytes == BLOCK_BYTES as u64;
        ensure!(is_whole, "{bytes} of {BLOCK_BYTES} bytes at {}", worker.offset_bytes);
        worker.step += 1;
        if worker.step < steps.len() || begin(worker) {
            submit(&mut queue, file, steps[worker.step], worker, &mut block, done.tag)?;
        }
    }
    Ok(())
}

fn submit(
    queue: &mut Queue,
    file: &File,
    step: Step,
    worker: &Worker,
    block: &mut [u8],
    tag: u64,
) -> Result<()> {
    let submitted = match step {
        Step::Read => queue.read(file, BLOCK_BYTES, worker.offset_bytes, tag)?,
        Step::Write => {
            stamp(block, worker.number);
            queue.write(file, block, worker.offset_bytes, tag)?
        }
        Step::Sync => queue.sync(file, tag)?,
    };
    ensure!(submitted, "a ring with no room for {DEPTH} commands");
    Ok(())
}

fn write_sequence(served: &Served<'_>, file: &File, len_bytes: u64) -> Result<()> {
    let mut transfers = Transfers::new(served)?;
    for index in 0..len_bytes / TRANSFER_BYTES as u64 {
        transfers.write(file, index)?;
    }
    Ok(file.sync()?)
}

/// Large reads and writes, one at a time, of memory that is shared with the server: as a program's aligned buffers are with O_DIRECT.
struct Transfers {
    queue: Queue,
    shared: SharedBuffer,
    own: Vec<u8>,
}

impl Transfers {
    fn new(served: &Served<'_>) -> Result<Self> {
        let mut queue = served.client.queue()?;
        let shared = queue.buffer(TRANSFER_BYTES as u32).context("a ring with no room for a transfer")?;
        Ok(Self { queue, shared, own: vec![0; TRANSFER_BYTES] })
    }

    fn write(&mut self, file: &File, index: u64) -> Result<()> {
        stamp(&mut self.own, index);
        self.queue.fill(&self.shared, &self.own)?;
        let offset_bytes = index * TRANSFER_BYTES as u64;
        let submitted =
            self.queue.write_shared(file, &self.shared, TRANSFER_BYTES as u32, offset_bytes, index)?;
        self.require_whole(submitted, index)
    }

    fn read(&mut self, file: &File, index: u64) -> Result<()> {
        let offset_bytes = index * TRANSFER_BYTES as u64;
        let submitted = self.queue.read_shared(file, &self.shared, offset_bytes, index)?;
        self.require_whole(submitted, index)?;
        let mut first = [0; 8];
        self.queue.copy_out(&self.shared, &mut first)?;
        ensure!(first == index.to_le_bytes(), "wrong bytes at transfer {index} of the large file");
        Ok(())
    }

    fn require_whole(&mut self, submitted: bool, index: u64) -> Result<()> {
        ensure!(submitted, "a ring with no room for a command");
        let bytes = self.queue.next(&mut [])?.result?;
        ensure!(bytes == TRANSFER_BYTES as u64, "{bytes} bytes of transfer {index}");
        Ok(())
    }
}
