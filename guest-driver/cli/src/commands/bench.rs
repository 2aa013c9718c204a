//! `rf bench`

use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use ringfort_guest::{Error, Open, Place, Volume};
use serde_json::{Map, Value, json};

const BLOCK_BYTES: usize = 4096;

/// Half of the times are not above the first, 99 of 100 not above the second.
fn percentiles(mut times_ns: Vec<u64>) -> [u64; 2] {
    times_ns.sort_unstable();
    [50, 99].map(|percent| times_ns.get((times_ns.len() - 1) * percent / 100).copied().unwrap_or_default())
}

fn time(calls: u32, mut call: impl FnMut(u32) -> Result<(), Error>) -> Result<[u64; 2], Error> {
    let mut times_ns = Vec::with_capacity(calls as usize);
    for number in 0..calls {
        let began = Instant::now();
        call(number)?;
        times_ns.push(began.elapsed().as_nanos() as u64);
    }
    Ok(percentiles(times_ns))
}

pub fn run(volume: &Volume, calls: u32, as_json: bool) -> Result<()> {
    let path = format!("/.rf-bench-{}", std::process::id());
    let measured = measure(volume, &path, calls);
    // Also where something failed midway.
    let removed = volume.remove_file(&path);
    let measured = measured?;
    removed?;
    let mut out = io::stdout().lock();
    let written = if as_json {
        let keys = measured.iter().flat_map(|(what, [p50, p99])| {
            [(format!("{what}_ns_p50"), json!(p50)), (format!("{what}_ns_p99"), json!(p99))]
        });
        writeln!(out, "{}", Value::Object(keys.collect::<Map<_, _>>()))
    } else {
        measured
            .iter()
            .try_for_each(|(what, [p50, p99])| writeln!(out, "{what:<12} p50 {p50:>9} ns   p99 {p99:>9} ns"))
    };
    written.context("write to standard output")
}

fn measure(volume: &Volume, path: &str, calls: u32) -> Result<Vec<(&'static str, [u64; 2])>, Error> {
    let file = volume.open(path, Open::to_write().create(0o600).exclusive())?;
    let mut block = [0x5a; BLOCK_BYTES];
    file.write_at(&block, 0)?;
    let synced = (calls / 100).max(1);
    Ok(vec![
        ("nop", time(calls, |number| volume.nop(number.into()).map(drop))?),
        ("stat", time(calls, |_| volume.stat(Place::from(path).no_follow()).map(drop))?),
        ("open_close", time(calls, |_| volume.open(path, Open::to_read()).map(drop))?),
        ("read_4k", time(calls, |_| file.read_at(&mut block, 0).map(drop))?),
        ("write_4k", time(calls, |number| file.write_at(&[number as u8; BLOCK_BYTES], 0))?),
        (
            "write_sync",
            time(synced, |number| {
                file.write_at(&[number as u8; BLOCK_BYTES], 0)?;
                file.sync()
            })?,
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        assert_eq!(percentiles((1..=101).rev().collect()), [51, 100]);
        assert_eq!(percentiles(vec![7]), [7, 7]);
    }
}
