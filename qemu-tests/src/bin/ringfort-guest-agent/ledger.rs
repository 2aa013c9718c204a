//! A writer that says what it has synced, and a reader that holds a volume to it. Step `n` writes a file, fsyncs it, gives
//! it its name, removes an old one at every other step, fsyncs the folder, appends a record to a log, fdatasyncs that, and
//! only then prints `synced n`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::content::{Stream, content};
use crate::tree::sync_folder;

const RECORD_BYTES: usize = 200;
/// How many steps an entry stays that is not kept for ever.
const KEPT: u64 = 10;

/// Writes until killed, or until `steps` are done.
pub fn write(folder: &Path, seed: u64, steps: u64) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
    let log_path = folder.join("log");
    let mut log = File::options()
        .create_new(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("creating {}", log_path.display()))?;
    if let Some(above) = folder.parent() {
        sync_folder(above)?;
    }
    for step in 0..steps {
        one_step(folder, &mut log, seed, step).with_context(|| format!("step {step}"))?;
        println!("synced {step}");
    }
    Ok(())
}

fn one_step(folder: &Path, log: &mut File, seed: u64, step: u64) -> Result<()> {
    let unnamed = folder.join("unnamed");
    let mut file = File::create(&unnamed)?;
    file.write_all(&entry_content(seed, step))?;
    file.sync_all()?;
    fs::rename(&unnamed, entry_path(folder, step))?;
    if let Some(old) = step.checked_sub(KEPT).filter(|old| removal_of(*old) == Some(step)) {
        fs::remove_file(entry_path(folder, old))?;
    }
    sync_folder(folder)?;
    log.write_all(&record(seed, step))?;
    log.sync_data()?;
    Ok(())
}

/// Checks that every step below `acknowledged` is there in full, and that nothing half done has a name.
pub fn verify(folder: &Path, seed: u64, acknowledged: u64) -> Result<()> {
    let mut log = Vec::new();
    File::open(folder.join("log"))
        .and_then(|mut file| file.read_to_end(&mut log))
        .context("reading the log")?;
    let records = (log.len() / RECORD_BYTES) as u64;
    ensure!(records >= acknowledged, "the log has {records} records, but {acknowledged} were acknowledged");
    for step in 0..acknowledged {
        let at = step as usize * RECORD_BYTES;
        ensure!(log[at..at + RECORD_BYTES] == record(seed, step), "record {step} is not what was written");
    }
    // The record of the step under way may be missing, so that step `records` may have begun, but none after it.
    let mut found = 0;
    for step in 0..=records {
        let path = entry_path(folder, step);
        let removal = removal_of(step);
        if path.exists() {
            ensure!(
                removal.is_none_or(|at| at >= acknowledged),
                "entry {step} is back: its removal was synced"
            );
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            ensure!(bytes == entry_content(seed, step), "entry {step} is not what was written");
            found += 1;
        } else {
            let removed = removal.is_some_and(|at| at <= records);
            ensure!(step >= acknowledged || removed, "entry {step} was synced and is gone");
        }
    }
    println!("verified {acknowledged} acknowledged steps: {records} records, {found} entries");
    Ok(())
}

/// The step that removes `entry`: every other one is kept for ever.
fn removal_of(entry: u64) -> Option<u64> {
    entry.is_multiple_of(2).then_some(entry + KEPT)
}

fn entry_path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("entry-{step}"))
}

fn entry_content(seed: u64, step: u64) -> Vec<u8> {
    let seed = seed.wrapping_mul(1_000_003).wrapping_add(step);
    let length_bytes = match step % 4 {
        0 => 100,
        1 => 5000,
        2 => 40_000,
        _ => Stream::new(seed).below(100_000),
    };
    content(seed, length_bytes as usize)
}

fn record(seed: u64, step: u64) -> Vec<u8> {
    content(seed ^ step.wrapping_mul(0x0101_0101_0101), RECORD_BYTES)
}
