//! What operations on a mounted filesystem cost a program, in turn on several mounts: each kind of operation runs in short
//! slices that go from mount to mount, so that whatever else slows the machine slows all of them.
//!
//! Every line of the output is `MOUNT NAME VALUE`: `p50_ns` of a kind of operation, or `bytes` and `ns` of a stream; then
//! `claimed` lines, with which the servers' own counters must agree.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, Mode, OFlags, fdatasync, fsync, openat, stat, unlinkat};

use crate::content::Stream;

const FOLDER: &str = "bench";
const DATA: &str = "data";
/// Files that are looked up and opened in turn.
const SMALL_FILES: u64 = 64;
const BLOCK_BYTES: usize = 4096;
const TRANSFER_BYTES: usize = 1 << 20;
/// Slices of one kind of operation on one mount.
const SLICES: usize = 8;
/// Bytes of one slice of a stream.
const SLICE_TRANSFERS: u64 = 16;

/// A kind of operation, timed one by one.
struct Kind {
    name: &'static str,
    /// In a slice.
    count: usize,
    run: fn(&mut Mount) -> Result<Duration>,
}

const KINDS: [Kind; 7] = [
    Kind { name: "stat", count: 64, run: Mount::stat },
    Kind { name: "open_close", count: 48, run: Mount::open_close },
    Kind { name: "create_unlink", count: 24, run: Mount::create_unlink },
    Kind { name: "read_4k", count: 96, run: Mount::read },
    Kind { name: "write_4k", count: 96, run: Mount::write },
    Kind { name: "write_4k_fdatasync", count: 24, run: Mount::write_and_sync_data },
    Kind { name: "write_4k_fsync", count: 24, run: Mount::write_and_sync },
];

/// Makes the files: a large one of `data_mib`, written to its end and synced, and small ones.
pub fn prepare(mount: &Path, data_mib: u64) -> Result<()> {
    let folder = mount.join(FOLDER);
    fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for number in 0..SMALL_FILES {
        fs::write(small_file(&folder, number), b"small")?;
    }
    let mut bytes = Aligned::new(TRANSFER_BYTES);
    let file = File::options()
        .write(true)
        .create_new(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(folder.join(DATA))
        .context("creating the large file")?;
    for transfer in 0..data_mib {
        stamp(bytes.as_mut(), transfer * (TRANSFER_BYTES / BLOCK_BYTES) as u64);
        file.write_all_at(bytes.as_mut(), transfer * TRANSFER_BYTES as u64)?;
    }
    file.sync_all()?;
    // Small files and names too are on stable media before anything is timed.
    rustix::fs::sync();
    Ok(())
}

/// Runs everything once on each of `mounts`, which [`prepare`] has made ready.
pub fn run(mounts: &[&str], seed: u64) -> Result<()> {
    let mut mounts = mounts
        .iter()
        .map(|path| Mount::open(path, seed).with_context(|| format!("opening the files of {path}")))
        .collect::<Result<Vec<_>>>()?;
    for kind in &KINDS {
        time_kind(&mut mounts, kind, seed).with_context(|| kind.name.to_owned())?;
    }
    time_stream(&mut mounts, "seq_write", Mount::write_transfer)?;
    time_stream(&mut mounts, "seq_read", Mount::read_transfer)?;
    for mount in &mounts {
        for (name, count) in &mount.claimed {
            println!("{} claimed {name} {count}", mount.path);
        }
    }
    Ok(())
}

/// Times reads of a file's first block, past the guest's cache; says the median in nanoseconds.
pub fn read_one(path: &Path, count: u64) -> Result<()> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    let mut buffer = Aligned::new(BLOCK_BYTES);
    let mut samples = Vec::new();
    for _ in 0..count.max(1) {
        let began = Instant::now();
        file.read_exact_at(buffer.as_mut(), 0)?;
        samples.push(began.elapsed());
    }
    samples.sort();
    println!("{}", samples[samples.len() / 2].as_nanos());
    Ok(())
}

fn time_kind(mounts: &mut [Mount], kind: &Kind, seed: u64) -> Result<()> {
    let mut samples: Vec<Vec<Duration>> = mounts.iter().map(|_| Vec::new()).collect();
    // The first slice warms up what can be warm, and is not counted.
    for slice in 0..=SLICES {
        for turn in 0..mounts.len() {
            // Who follows whom changes from slice to slice and from round to round.
            let index = (turn + slice + seed as usize) % mounts.len();
            for _ in 0..kind.count {
                let took = (kind.run)(&mut mounts[index])?;
                if slice > 0 {
                    samples[index].push(took);
                }
            }
        }
    }
    for (mount, mut samples) in mounts.iter().zip(samples) {
        samples.sort();
        println!("{} {}_p50_ns {}", mount.path, kind.name, samples[samples.len() / 2].as_nanos());
    }
    Ok(())
}

fn time_stream(mounts: &mut [Mount], name: &str, transfer: fn(&mut Mount, u64) -> Result<()>) -> Result<()> {
    let transfers = mounts.iter().map(|mount| mount.blocks).min().unwrap_or(0) * BLOCK_BYTES as u64
        / TRANSFER_BYTES as u64;
    let mut took = vec![Duration::ZERO; mounts.len()];
    for first in (0..transfers).step_by(SLICE_TRANSFERS as usize) {
        for turn in 0..mounts.len() {
            let index = (turn + (first / SLICE_TRANSFERS) as usize) % mounts.len();
            let began = Instant::now();
            for number in first..transfers.min(first + SLICE_TRANSFERS) {
                transfer(&mut mounts[index], number)?;
            }
            took[index] += began.elapsed();
        }
    }
    for (mount, took) in mounts.iter_mut().zip(took) {
        let began = Instant::now();
        mount.sync()?;
        // What was written is on stable media before the clock stops; after reads there is nothing to sync.
        let took = if name == "seq_write" { took + began.elapsed() } else { took };
        println!("{} {name}_bytes {}", mount.path, transfers * TRANSFER_BYTES as u64);
        println!("{} {name}_ns {}", mount.path, took.as_nanos());
    }
    Ok(())
}

/// A mounted filesystem with the files that [`prepare`] made.
struct Mount {
    path: String,
    folder: PathBuf,
    data: File,
    /// Of the large file.
    blocks: u64,
    random: Stream,
    buffer: Aligned,
    claimed: BTreeMap<&'static str, u64>,
}

impl Mount {
    fn open(path: &str, seed: u64) -> Result<Mount> {
        let folder = Path::new(path).join(FOLDER);
        let data = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(folder.join(DATA))?;
        let blocks = data.metadata()?.len() / BLOCK_BYTES as u64;
        ensure!(blocks > 0, "the large file is empty");
        let mut mount = Mount {
            path: path.to_owned(),
            folder,
            data,
            blocks,
            random: Stream::new(seed),
            buffer: Aligned::new(TRANSFER_BYTES),
            claimed: BTreeMap::new(),
        };
        mount.claim("open", 1);
        Ok(mount)
    }

    fn claim(&mut self, name: &'static str, count: u64) {
        *self.claimed.entry(name).or_default() += count;
    }

    fn some_small_file(&mut self) -> PathBuf {
        small_file(&self.folder, self.random.below(SMALL_FILES))
    }

    fn stat(&mut self) -> Result<Duration> {
        let path = self.some_small_file();
        let began = Instant::now();
        let found = stat(&path)?;
        let took = began.elapsed();
        ensure!(found.st_size == 5, "a small file has {} bytes", found.st_size);
        Ok(took)
    }

    fn open_close(&mut self) -> Result<Duration> {
        let path = self.some_small_file();
        self.claim("open", 1);
        let began = Instant::now();
        drop(openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
        Ok(began.elapsed())
    }

    fn create_unlink(&mut self) -> Result<Duration> {
        let path = self.folder.join("created");
        self.claim("create", 1);
        self.claim("unlink", 1);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let began = Instant::now();
        drop(openat(CWD, &path, flags, Mode::from_raw_mode(0o644))?);
        unlinkat(CWD, &path, rustix::fs::AtFlags::empty())?;
        Ok(began.elapsed())
    }

    fn read(&mut self) -> Result<Duration> {
        let block = self.random.below(self.blocks);
        self.claim("read", 1);
        self.claim("read_bytes", BLOCK_BYTES as u64);
        let bytes = &mut self.buffer.as_mut()[..BLOCK_BYTES];
        let began = Instant::now();
        let count = self.data.read_at(bytes, block * BLOCK_BYTES as u64)?;
        let took = began.elapsed();
        ensure!(count == BLOCK_BYTES, "read {count} bytes");
        require_stamp(bytes, block)?;
        Ok(took)
    }

    fn write(&mut self) -> Result<Duration> {
        self.write_then(|_| Ok(()))
    }

    fn write_and_sync_data(&mut self) -> Result<Duration> {
        self.claim("fsync", 1);
        self.write_then(|file| Ok(fdatasync(file)?))
    }

    fn write_and_sync(&mut self) -> Result<Duration> {
        self.claim("fsync", 1);
        self.write_then(|file| Ok(fsync(file)?))
    }

    fn write_then(&mut self, then: fn(&File) -> Result<()>) -> Result<Duration> {
        let block = self.random.below(self.blocks);
        self.claim("write", 1);
        self.claim("written_bytes", BLOCK_BYTES as u64);
        let bytes = &mut self.buffer.as_mut()[..BLOCK_BYTES];
        stamp(bytes, block);
        let began = Instant::now();
        let count = self.data.write_at(bytes, block * BLOCK_BYTES as u64)?;
        then(&self.data)?;
        let took = began.elapsed();
        ensure!(count == BLOCK_BYTES, "wrote {count} bytes");
        Ok(took)
    }

    fn write_transfer(&mut self, number: u64) -> Result<()> {
        self.claim("write", 1);
        self.claim("written_bytes", TRANSFER_BYTES as u64);
        let bytes = self.buffer.as_mut();
        stamp(bytes, number * (TRANSFER_BYTES / BLOCK_BYTES) as u64);
        Ok(self.data.write_all_at(bytes, number * TRANSFER_BYTES as u64)?)
    }

    fn read_transfer(&mut self, number: u64) -> Result<()> {
        self.claim("read", 1);
        self.claim("read_bytes", TRANSFER_BYTES as u64);
        let bytes = self.buffer.as_mut();
        self.data.read_exact_at(bytes, number * TRANSFER_BYTES as u64)?;
        // One block of each transfer: comparing all would take the emulated processor longer than the transfer.
        let block = number % (TRANSFER_BYTES / BLOCK_BYTES) as u64;
        let first = number * (TRANSFER_BYTES / BLOCK_BYTES) as u64;
        require_stamp(&bytes[block as usize * BLOCK_BYTES..], first + block)
    }

    fn sync(&mut self) -> Result<()> {
        self.claim("fsync", 1);
        Ok(self.data.sync_all()?)
    }
}

fn small_file(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("small-{number:02}"))
}

/// Marks each block with its place in the file.
fn stamp(bytes: &mut [u8], first_block: u64) {
    for (block, bytes) in (first_block..).zip(bytes.chunks_mut(BLOCK_BYTES)) {
        bytes[..8].copy_from_slice(&(!block).to_le_bytes());
    }
}

fn require_stamp(bytes: &[u8], block: u64) -> Result<()> {
    ensure!(bytes[..8] == (!block).to_le_bytes(), "block {block} holds other bytes than were written");
    Ok(())
}

/// Memory that O_DIRECT accepts.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Aligned {
        let bytes = vec![0x5a; length + BLOCK_BYTES];
        let start = bytes.as_ptr().addr().next_multiple_of(BLOCK_BYTES) - bytes.as_ptr().addr();
        Aligned { bytes, start, length }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}
