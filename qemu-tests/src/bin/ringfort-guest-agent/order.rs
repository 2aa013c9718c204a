//! A writer that seldom syncs, and a reader that holds a volume to the order of what was written: a step that completed
//! before another was begun survives whenever that other does, whichever way each took. Most steps append a record to one
//! file (the way of small writes); every eighth overwrites a slot of another with a chunk that fills whole stripes (the
//! way of large ones). Now and then the first file is synced, and `synced n` is printed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::content::content;
use crate::tree::sync_folder;

/// No record crosses a block's boundary, where a guest's kernel may cut a write in two.
const RECORD_BYTES: usize = 256;
/// Every `LARGE_EVERY`th step is a large one.
const LARGE_EVERY: u64 = 8;
const BLOCK_BYTES: usize = 4096;
const CHUNK_BLOCKS: u64 = 160;
/// Chunks before a slot is used again.
const SLOTS: u64 = 12;
/// A number without a common divisor with `LARGE_EVERY`, so that syncs fall behind every kind of step.
const SYNC_EVERY: u64 = 37;

/// Writes until killed, or until `steps` are done.
pub fn write(folder: &Path, seed: u64, steps: u64) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut small = File::options().create_new(true).append(true).open(folder.join("small"))?;
    let large = File::create_new(folder.join("large"))?;
    sync_folder(folder)?;
    if let Some(above) = folder.parent() {
        sync_folder(above)?;
    }
    for step in 0..steps {
        if is_large(step) {
            let number = step / LARGE_EVERY;
            let at = (number % SLOTS) * CHUNK_BLOCKS * BLOCK_BYTES as u64;
            large.write_all_at(&chunk(seed, number), at).with_context(|| format!("step {step}"))?;
        } else {
            small.write_all(&record(seed, step)).with_context(|| format!("step {step}"))?;
        }
        if step % SYNC_EVERY == SYNC_EVERY - 1 {
            small.sync_data().with_context(|| format!("syncing after step {step}"))?;
            println!("synced {step}");
        }
    }
    Ok(())
}

/// Checks that the two files show the steps up to some one of them, at least those before the last of `acknowledged` syncs,
/// and of the step after it any blocks.
pub fn verify(folder: &Path, seed: u64, acknowledged: u64) -> Result<()> {
    let small = fs::read(folder.join("small")).context("reading the small records")?;
    let large = fs::read(folder.join("large")).context("reading the large chunks")?;
    let small_done = small_steps(&small, seed)?;
    let blocks = large_blocks(&large, seed)?;
    let large_begun =
        blocks.iter().flatten().max().map_or(0, |number| number * LARGE_EVERY + LARGE_EVERY - 1);
    // Every step below `floor` is complete: a later one has left something, or it was synced.
    let floor = small_done.max(large_begun).max(acknowledged * SYNC_EVERY);
    let records = (0..floor).filter(|step| !is_large(*step)).count();
    ensure!(
        small.len() / RECORD_BYTES >= records,
        "{} records are there, but step {floor} has left something or was synced, and {records} come before it",
        small.len() / RECORD_BYTES
    );
    for number in (0..floor / LARGE_EVERY).rev().take(SLOTS as usize) {
        for block in 0..CHUNK_BLOCKS {
            let at = ((number % SLOTS) * CHUNK_BLOCKS + block) as usize;
            let found = blocks.get(at).copied().flatten();
            ensure!(
                found.is_some_and(|found| found >= number),
                "block {block} of chunk {number} is of chunk {found:?}, but step {floor} has left something or was synced"
            );
        }
    }
    println!("verified {acknowledged} acknowledged syncs: steps before {floor} are complete");
    Ok(())
}

/// How many steps are done at least, by the records.
fn small_steps(bytes: &[u8], seed: u64) -> Result<u64> {
    ensure!(bytes.len().is_multiple_of(RECORD_BYTES), "the records end within one: {} bytes", bytes.len());
    let mut steps = (0..).filter(|step| !is_large(*step));
    let mut done = 0;
    for found in bytes.chunks_exact(RECORD_BYTES) {
        let step = steps.next().unwrap_or_default();
        ensure!(found == record(seed, step), "the record of step {step} is not what was written");
        done = step + 1;
    }
    Ok(done)
}

/// For each block the chunk that it is of; `None` for a hole.
fn large_blocks(bytes: &[u8], seed: u64) -> Result<Vec<Option<u64>>> {
    ensure!(bytes.len().is_multiple_of(BLOCK_BYTES), "the chunks end within a block: {} bytes", bytes.len());
    let mut blocks = Vec::new();
    for (at, found) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
        let head = found.first_chunk::<8>().copied().unwrap_or_default();
        let number = u64::from_le_bytes(head).checked_sub(1);
        if let Some(number) = number {
            let (slot, block) = (at as u64 / CHUNK_BLOCKS, at as u64 % CHUNK_BLOCKS);
            ensure!(
                number % SLOTS == slot && found == chunk_block(seed, number, block),
                "block {at} was written by no step (it says chunk {number})"
            );
        } else {
            ensure!(found.iter().all(|byte| *byte == 0), "block {at} is no hole, and of no chunk");
        }
        blocks.push(number);
    }
    Ok(blocks)
}

fn is_large(step: u64) -> bool {
    step % LARGE_EVERY == LARGE_EVERY - 1
}

fn record(seed: u64, step: u64) -> Vec<u8> {
    content(seed ^ step.wrapping_mul(0x0010_0010_0001), RECORD_BYTES)
}

fn chunk(seed: u64, number: u64) -> Vec<u8> {
    (0..CHUNK_BLOCKS).flat_map(|block| chunk_block(seed, number, block)).collect()
}

/// The chunk's number plus one, so that no block is all zeros, then content of its own.
fn chunk_block(seed: u64, number: u64, block: u64) -> Vec<u8> {
    let mut bytes =
        content(seed ^ (number * CHUNK_BLOCKS + block).wrapping_mul(0x0003_0001_0001), BLOCK_BYTES);
    bytes[..8].copy_from_slice(&(number + 1).to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_survived_without_one_before_it_is_found() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("order");
        // The last step is a large one.
        write(&folder, 9, 240).unwrap();
        verify(&folder, 9, 6).unwrap();
        verify(&folder, 9, 0).unwrap();
        assert!(verify(&folder, 9, 7).is_err(), "more was synced than is there");

        let (small, large) = (folder.join("small"), folder.join("large"));
        let records = fs::read(&small).unwrap();
        fs::write(&small, &records[..records.len() - RECORD_BYTES]).unwrap();
        assert!(verify(&folder, 9, 0).is_err(), "a record is gone that was there before the last chunk");
        fs::write(&small, &records).unwrap();

        // One block of a chunk falls back to what was in its slot before; the chunk after it is there.
        let number = 240 / LARGE_EVERY - 2;
        let mut chunks = fs::read(&large).unwrap();
        let at = (number % SLOTS * CHUNK_BLOCKS + 17) as usize * BLOCK_BYTES;
        chunks[at..at + BLOCK_BYTES].copy_from_slice(&chunk_block(9, number - SLOTS, 17));
        fs::write(&large, &chunks).unwrap();
        assert!(verify(&folder, 9, 0).is_err());
    }

    #[test]
    fn the_step_under_way_may_have_left_any_of_its_blocks() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("order");
        write(&folder, 9, 247).unwrap();
        let mut chunks = fs::read(folder.join("large")).unwrap();
        let at = (30 % SLOTS * CHUNK_BLOCKS + 3) as usize * BLOCK_BYTES;
        chunks[at..at + BLOCK_BYTES].copy_from_slice(&chunk_block(9, 30, 3));
        fs::write(folder.join("large"), &chunks).unwrap();
        verify(&folder, 9, 6).unwrap();
    }
}
