//! Writes from a buffer that another thread changes without pause, beside writes whose bytes are known. What lands of the
//! former is anybody's guess; the latter must read back as written, whatever the store computes over both.
#![allow(unsafe_code)]

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::content::content;

const BLOCK_BYTES: usize = 4096;
/// Beyond what the store takes as full stripes at once.
const LARGE_BYTES: usize = 1 << 20;
/// Blocks of one round: every other one is a neighbour.
const ROUND_BLOCKS: u64 = 16;
/// Rounds to one large write.
const LARGE_EVERY: u64 = 8;

/// Page-aligned memory that threads and the kernel share.
struct Buffer {
    words: &'static [AtomicU64],
}

impl Buffer {
    fn new() -> Result<Buffer> {
        let length = NonZeroUsize::new(LARGE_BYTES).context("an empty buffer")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
        let address = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_SHARED) }
            .context("mapping a buffer")?;
        // SAFETY: the map is as long, aligned to pages, zeroed, and stays until `drop`, which no borrow outlives: `words`
        // is handed out through `&self` alone.
        let words = unsafe { std::slice::from_raw_parts(address.as_ptr().cast(), LARGE_BYTES / 8) };
        Ok(Buffer { words })
    }

    /// Changes it until `stop`.
    fn flip(&self, stop: &AtomicBool) {
        const WORDS_IN_LINE: usize = 8;
        let mut number = 0u64;
        while !stop.load(Ordering::Relaxed) {
            number = number.wrapping_add(0x0101_0101_0101_0101);
            for at in (0..self.words.len()).step_by(WORDS_IN_LINE) {
                self.words[at].store(number, Ordering::Relaxed);
                // Small writes carry the first block alone, which therefore changes most.
                self.words[at % (BLOCK_BYTES / 8)].store(!number, Ordering::Relaxed);
            }
        }
    }

    /// Writes the first `length_bytes` bytes, whatever they are by then, to `file` at `offset_bytes`.
    fn write_to(&self, file: &File, length_bytes: usize, offset_bytes: u64) -> Result<()> {
        assert!(length_bytes <= LARGE_BYTES);
        let start: *const libc::c_void = self.words.as_ptr().cast();
        let offset = i64::try_from(offset_bytes)?;
        // SAFETY: the map is at least as long as the length, and the kernel copes with bytes that change.
        let written = unsafe { libc::pwrite(file.as_fd().as_raw_fd(), start, length_bytes, offset) };
        let written = Errno::result(written).context("writing the changing buffer")?;
        ensure!(written as usize == length_bytes, "{written} of {length_bytes} bytes were written");
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let start = self.words.as_ptr().cast_mut().cast();
        if let Some(start) = std::ptr::NonNull::new(start) {
            // SAFETY: the range is the one that was mapped.
            let _ = unsafe { munmap(start, LARGE_BYTES) };
        }
    }
}

/// Makes `folder` and writes `rounds` rounds into it, synced.
pub fn write(folder: &Path, seed: u64, rounds: u64) -> Result<()> {
    std::fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
    let buffer = Buffer::new()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| buffer.flip(&stop));
        let written = write_rounds(folder, &buffer, seed, rounds);
        stop.store(true, Ordering::Relaxed);
        written
    })
}

fn write_rounds(folder: &Path, buffer: &Buffer, seed: u64, rounds: u64) -> Result<()> {
    let direct = |name: &str| {
        let path = folder.join(name);
        let opened = File::options().write(true).create(true).custom_flags(libc::O_DIRECT).open(&path);
        opened.with_context(|| format!("opening {}", path.display()))
    };
    let (mixed, large) = (direct("mixed")?, direct("large")?);
    // The neighbours' own bytes keep still and need no alignment.
    let neighbour = File::options().write(true).open(folder.join("mixed")).context("opening mixed")?;
    for round in 0..rounds {
        for block in round * ROUND_BLOCKS..(round + 1) * ROUND_BLOCKS {
            let at = block * BLOCK_BYTES as u64;
            if is_neighbour(block) {
                neighbour.write_all_at(&content(seed ^ block, BLOCK_BYTES), at)?;
            } else {
                buffer.write_to(&mixed, BLOCK_BYTES, at)?;
            }
        }
        mixed.sync_data()?;
        if round % LARGE_EVERY == 0 {
            buffer.write_to(&large, LARGE_BYTES, round / LARGE_EVERY * LARGE_BYTES as u64)?;
        }
    }
    neighbour.sync_all()?;
    large.sync_all()?;
    println!("wrote {rounds} rounds from a buffer that changed");
    Ok(())
}

/// Every neighbour reads as it was written; every other block reads, whatever it holds.
pub fn verify(folder: &Path, seed: u64, rounds: u64) -> Result<()> {
    let mixed = File::open(folder.join("mixed")).context("opening mixed")?;
    let mut found = vec![0; BLOCK_BYTES];
    for block in 0..rounds * ROUND_BLOCKS {
        mixed
            .read_exact_at(&mut found, block * BLOCK_BYTES as u64)
            .with_context(|| format!("reading block {block}"))?;
        ensure!(
            !is_neighbour(block) || found == content(seed ^ block, BLOCK_BYTES),
            "block {block}, a neighbour, is not what was written"
        );
    }
    let bytes = std::fs::read(folder.join("large")).context("reading large")?;
    let expected_bytes = rounds.div_ceil(LARGE_EVERY) * LARGE_BYTES as u64;
    ensure!(bytes.len() as u64 == expected_bytes, "{} bytes, not {expected_bytes}", bytes.len());
    println!("verified the neighbours of {rounds} rounds");
    Ok(())
}

fn is_neighbour(block: u64) -> bool {
    !block.is_multiple_of(2)
}
