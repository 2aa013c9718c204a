//! A writer that overwrites the pages of one file in place, as a database does, and syncs each before it says so. Step `n`
//! overwrites one page, which the seed chooses, fdatasyncs, and prints `synced n`. Half of the seeds write whole aligned
//! blocks, the others pages that share blocks with their neighbours.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::content::{Stream, content};
use crate::tree::sync_folder;

const PAGES: u64 = 192;
/// Whole blocks, and parts of blocks. None crosses a block's boundary, where a guest's kernel may cut a write in two.
const PAGE_BYTES: [usize; 2] = [4096, 1024];
const STEP_BYTES: usize = 8;

/// Writes until killed, or until `steps` are done.
pub fn write(folder: &Path, seed: u64, steps: u64) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join("pages");
    let file = File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
    file.set_len(PAGES * page_bytes(seed) as u64).context("giving the file its length")?;
    file.sync_all().context("syncing the file")?;
    sync_folder(folder)?;
    if let Some(above) = folder.parent() {
        sync_folder(above)?;
    }
    for step in 0..steps {
        let at = page_of(seed, step) * page_bytes(seed) as u64;
        file.write_all_at(&page(seed, step), at).with_context(|| format!("step {step}"))?;
        file.sync_data().with_context(|| format!("syncing step {step}"))?;
        println!("synced {step}");
    }
    Ok(())
}

/// Checks that each page holds what the last step wrote to it, of the first `acknowledged` steps and of those after them
/// that any page shows: each step was synced before the next began.
pub fn verify(folder: &Path, seed: u64, acknowledged: u64) -> Result<()> {
    let path = folder.join("pages");
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let page_bytes = page_bytes(seed);
    ensure!(bytes.len() == PAGES as usize * page_bytes, "the file has {} bytes", bytes.len());
    let mut found = Vec::new();
    for (number, page) in bytes.chunks_exact(page_bytes).enumerate() {
        found.push(step_on(page, seed, number as u64)?);
    }
    let last_shown = found.iter().flatten().max().map_or(0, |step| step + 1);
    let done = acknowledged.max(last_shown);
    let mut expected = vec![None; PAGES as usize];
    for step in 0..done {
        expected[page_of(seed, step) as usize] = Some(step);
    }
    for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
        ensure!(
            found == expected,
            "page {number} holds step {found:?}, but step {expected:?} was synced ({acknowledged} acknowledged, \
             {last_shown} shown)"
        );
    }
    println!("verified {acknowledged} acknowledged steps: {done} done");
    Ok(())
}

/// The step that a page holds; `None` for one never written.
fn step_on(page: &[u8], seed: u64, number: u64) -> Result<Option<u64>> {
    if page.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let Some(head) = page.first_chunk::<STEP_BYTES>() else { bail!("page {number} is too short") };
    let step = u64::from_le_bytes(*head).wrapping_sub(1);
    ensure!(
        page_of(seed, step) == number && page == self::page(seed, step),
        "page {number} was written by no step (it says step {step})"
    );
    Ok(Some(step))
}

fn page_bytes(seed: u64) -> usize {
    PAGE_BYTES[(seed % PAGE_BYTES.len() as u64) as usize]
}

fn page_of(seed: u64, step: u64) -> u64 {
    Stream::new(seed.wrapping_mul(0x0100_0000_01b3) ^ step).below(PAGES)
}

/// The step's number plus one, so that no page is all zeros, then content of its own.
fn page(seed: u64, step: u64) -> Vec<u8> {
    let mut page = content(seed ^ step.wrapping_mul(0x0001_0001_0001), page_bytes(seed));
    page[..STEP_BYTES].copy_from_slice(&step.wrapping_add(1).to_le_bytes());
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_fell_back_is_found_and_an_unsynced_one_is_not_missed() {
        for seed in [4, 5] {
            let above = tempfile::tempdir().unwrap();
            let folder = above.path().join("pages");
            let before = |last: u64| (0..last).rev().find(|step| page_of(seed, *step) == page_of(seed, last));
            let last = (100..).find(|last| before(*last).is_some()).unwrap();
            write(&folder, seed, last + 1).unwrap();
            verify(&folder, seed, last + 1).unwrap();
            // Steps that were done but not acknowledged are no fault; steps that were acknowledged and are not there are.
            verify(&folder, seed, last - 40).unwrap();
            assert!(verify(&folder, seed, last + 2).is_err());

            let file = File::options().write(true).open(folder.join("pages")).unwrap();
            let at = page_of(seed, last) * page_bytes(seed) as u64;
            file.write_all_at(&page(seed, before(last).unwrap()), at).unwrap();
            assert!(verify(&folder, seed, last + 1).is_err());
            verify(&folder, seed, last).unwrap();
        }
    }
}
