//! A rival's side of the store's work: plain files in a folder, blocking calls, O_DIRECT. One thread for each request in
//! flight, which on a few cores is as fast as a ring.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use ringfort_engine::buffer::Buffer;

use crate::load::{
    BLOCK_BYTES, LARGE, LARGE_FILE_BYTES, Random, SMALL, SMALL_FILE_BYTES, TRANSFER_BYTES, megabytes, stamp,
};

/// Files of one file system.
pub struct PlainFiles {
    folder: PathBuf,
}

/// What the kernel counts for this process.
#[derive(Clone, Copy)]
struct Moved {
    asked_read: u64,
    asked_write: u64,
    device_read: u64,
    device_write: u64,
}

impl Moved {
    fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/io").context("read /proc/self/io")?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.with_context(|| format!("no {name} in /proc/self/io"))?;
            value.trim().parse::<u64>().with_context(|| format!("read {value:?}"))
        };
        Ok(Self {
            asked_read: field("rchar:")?,
            asked_write: field("wchar:")?,
            device_read: field("read_bytes:")?,
            device_write: field("write_bytes:")?,
        })
    }
}

/// Runs `work`, which says how many bytes it has written and read; the kernel's own counts must say so too, and that they did
/// not come from or stay in a cache. What kernel threads transfer counts for nobody: a degraded btrfs has them read what it
/// reconstructs from.
fn counted<T>(work: impl FnOnce() -> Result<(T, u64, u64)>) -> Result<T> {
    /// Of whatever else this process reads and writes meanwhile.
    const OTHER_BYTES_MAX: u64 = 1 << 20;
    let before = Moved::now()?;
    let (value, written, read) = work()?;
    let after = Moved::now()?;
    for (what, claimed, asked, device) in [
        (
            "written",
            written,
            after.asked_write - before.asked_write,
            after.device_write - before.device_write,
        ),
        ("read", read, after.asked_read - before.asked_read, after.device_read - before.device_read),
    ] {
        if asked < claimed || asked > claimed + OTHER_BYTES_MAX || device < claimed / 2 {
            bail!("{claimed} bytes were {what}; the kernel counts {asked}, {device} of them by devices");
        }
    }
    Ok(value)
}

impl PlainFiles {
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn open(&self, name: &str) -> Result<File> {
        let path = self.folder.join(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(&path)
            .with_context(|| format!("open {}", path.display()))
    }

    /// Makes the file that small writes go to.
    pub fn prepare(&self) -> Result<()> {
        self.write_sequence(SMALL, SMALL_FILE_BYTES).map(drop)
    }

    /// 4 KiB writes, each followed by fsync, `depth` at a time, for about `duration`. Per second.
    pub fn small_writes(&self, depth: u64, duration: Duration, seed: u64) -> Result<f64> {
        counted(|| {
            let (operations, elapsed) =
                self.at_depth(depth, duration, seed, |file, offset_bytes, number, buffer| {
                    stamp(buffer, number);
                    file.write_all_at(buffer, offset_bytes)?;
                    file.sync_all()
                })?;
            Ok((operations as f64 / elapsed.as_secs_f64(), operations * BLOCK_BYTES as u64, 0))
        })
    }

    /// 4 KiB reads, `depth` at a time, for about `duration`. Per second.
    pub fn small_reads(&self, depth: u64, duration: Duration, seed: u64) -> Result<f64> {
        counted(|| {
            let (operations, elapsed) =
                self.at_depth(depth, duration, seed, |file, offset_bytes, _, buffer| {
                    file.read_exact_at(buffer, offset_bytes)
                })?;
            Ok((operations as f64 / elapsed.as_secs_f64(), 0, operations * BLOCK_BYTES as u64))
        })
    }

    /// How many operations were done, and in what time.
    fn at_depth(
        &self,
        depth: u64,
        duration: Duration,
        seed: u64,
        operation: impl Fn(&File, u64, u64, &mut [u8]) -> std::io::Result<()> + Sync,
    ) -> Result<(u64, Duration)> {
        let began = Instant::now();
        let worker = |index: u64| -> Result<u64> {
            let file = self.open(SMALL)?;
            let mut random = Random::new(seed * depth + index);
            let mut buffer = Buffer::zeroed(BLOCK_BYTES);
            let mut done = 0;
            while began.elapsed() < duration {
                let block = random.next() % (SMALL_FILE_BYTES / BLOCK_BYTES as u64);
                operation(&file, block * BLOCK_BYTES as u64, done, &mut buffer)
                    .with_context(|| format!("block {block} of {}", self.folder.join(SMALL).display()))?;
                done += 1;
            }
            Ok(done)
        };
        let operations = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..depth).map(|index| scope.spawn(move || worker(index))).collect();
            let done = workers.into_iter().map(|worker| match worker.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            done.sum::<Result<u64>>()
        })?;
        Ok((operations, began.elapsed()))
    }

    /// Makes the large file anew, in sequence, with one fsync at the end. MB/s.
    pub fn write_large(&self) -> Result<f64> {
        let path = self.folder.join(LARGE);
        if path.exists() {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        self.write_sequence(LARGE, LARGE_FILE_BYTES)
    }

    fn write_sequence(&self, name: &str, len_bytes: u64) -> Result<f64> {
        let file = self.open(name)?;
        let mut buffer = Buffer::zeroed(TRANSFER_BYTES);
        counted(|| {
            let began = Instant::now();
            for index in 0..len_bytes / TRANSFER_BYTES as u64 {
                stamp(&mut buffer, index);
                file.write_all_at(&buffer, index * TRANSFER_BYTES as u64)
                    .with_context(|| format!("write transfer {index} of {name}"))?;
            }
            file.sync_all().with_context(|| format!("fsync {name}"))?;
            Ok((megabytes(len_bytes) / began.elapsed().as_secs_f64(), len_bytes, 0))
        })
    }

    /// Writes the large file over what it held before. MB/s.
    pub fn rewrite_large(&self) -> Result<f64> {
        self.write_sequence(LARGE, LARGE_FILE_BYTES)
    }

    /// Reads the large file in sequence. MB/s.
    pub fn read_large(&self) -> Result<f64> {
        let file = File::options()
            .read(true)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(self.folder.join(LARGE))
            .with_context(|| format!("open {LARGE} in {}", self.folder.display()))?;
        let mut buffer = Buffer::zeroed(TRANSFER_BYTES);
        counted(|| {
            let began = Instant::now();
            for index in 0..LARGE_FILE_BYTES / TRANSFER_BYTES as u64 {
                file.read_exact_at(&mut buffer, index * TRANSFER_BYTES as u64)
                    .with_context(|| format!("read transfer {index} of {LARGE}"))?;
                if buffer[..8] != index.to_le_bytes() {
                    bail!("wrong bytes at transfer {index} of {}", self.folder.join(LARGE).display());
                }
            }
            Ok((megabytes(LARGE_FILE_BYTES) / began.elapsed().as_secs_f64(), 0, LARGE_FILE_BYTES))
        })
    }
}
