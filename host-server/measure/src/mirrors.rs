//! What a write costs that is on stable media three times, with nothing above the files: the least that a mirrored log can take.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result};
use ringfort_engine::buffer::Buffer;
use ringfort_engine::device::Device;
use ringfort_engine::local::{LocalOptions, start};
use ringfort_engine::sync::join_all;

use crate::load::BLOCK_BYTES;

const FILES: usize = 3;
const WRITES: u64 = 400;
const FILE_BYTES: u64 = 16 << 20;

fn file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("mirror-{number}"))
}

/// Median of one block written to each of three files and synced, all three at the same time, one write after the other; nanoseconds.
pub fn write_and_sync_ns(folder: &Path) -> Result<f64> {
    let runtime = start(LocalOptions::default())?;
    let engine = runtime.engine();
    let devices = (0..FILES)
        .map(|number| Ok(engine.create(&file(folder, number), FILE_BYTES)?))
        .collect::<Result<Vec<Rc<dyn Device>>>>()?;
    let mut samples = runtime.block_on(async {
        // Written before, as the log's blocks are.
        for device in &devices {
            device.write(0, vec![Buffer::zeroed(FILE_BYTES as usize).freeze()]).await?;
            device.flush().await?;
        }
        let mut samples = Vec::new();
        for number in 0..WRITES {
            let mut block = Buffer::zeroed(BLOCK_BYTES);
            block.fill(number as u8);
            let block = block.freeze();
            let began = Instant::now();
            let written = devices.iter().map(|device| {
                let block = block.clone();
                async move {
                    device.write(number * BLOCK_BYTES as u64, vec![block]).await?;
                    device.flush().await
                }
            });
            for outcome in join_all(written).await {
                outcome?;
            }
            samples.push(began.elapsed().as_nanos());
        }
        anyhow::Ok(samples)
    })?;
    drop(devices);
    for number in 0..FILES {
        std::fs::remove_file(file(folder, number)).context("remove a file that was measured")?;
    }
    samples.sort_unstable();
    Ok(samples[samples.len() / 2] as f64)
}
