//! `rf bench`

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ringfort_guest::{Error, File, Open, Place, Queue, SharedBuffer, Volume};
use serde_json::{Map, Value, json};

const BLOCK_BYTES: usize = 4096;
const TRANSFER_BYTES: usize = 1 << 20;

/// After so long without a call both sides sleep.
const ASLEEP_AFTER: Duration = Duration::from_micros(500);

/// Of the calls, so many more before them warm up: one in so many.
const WARM_UP_SHARE: u32 = 8;

/// Half of the times are not above the first, 99 of 100 not above the second.
fn percentiles(mut times_ns: Vec<u64>) -> [u64; 2] {
    times_ns.sort_unstable();
    [50, 99].map(|percent| times_ns.get((times_ns.len() - 1) * percent / 100).copied().unwrap_or_default())
}

/// What was measured, and which commands that took.
#[derive(Default)]
struct Findings {
    figures: Vec<Figure>,
    /// By the names that the server counts them under.
    claimed: BTreeMap<&'static str, u64>,
}

impl Findings {
    fn claim(&mut self, commands: &[&'static str], times: u32) {
        for command in commands {
            *self.claimed.entry(command).or_default() += u64::from(times);
        }
    }

    fn note(&mut self, what: &str, [p50, p99]: [u64; 2]) {
        self.figures.push((format!("{what}_ns_p50"), p50 as f64));
        self.figures.push((format!("{what}_ns_p99"), p99 as f64));
    }

    /// Times so many calls, each of which is these commands, after some that warm up.
    fn time(
        &mut self,
        what: &str,
        commands: &[&'static str],
        calls: u32,
        mut call: impl FnMut(u32) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let warm_up = calls / WARM_UP_SHARE;
        (0..warm_up).try_for_each(&mut call)?;
        let mut times_ns = Vec::with_capacity(calls as usize);
        for number in 0..calls {
            let began = Instant::now();
            call(number)?;
            times_ns.push(began.elapsed().as_nanos() as u64);
        }
        self.claim(commands, warm_up + calls);
        self.note(what, percentiles(times_ns));
        Ok(())
    }
}

/// Transfers from and to a buffer that the server reaches itself, one at a time: what `O_DIRECT` is to a kernel's filesystem.
struct InPlace<'a> {
    queue: &'a mut Queue,
    buffer: SharedBuffer,
}

impl<'a> InPlace<'a> {
    fn new(queue: &'a mut Queue, len_bytes: usize) -> Result<Self, Error> {
        let buffer = queue.buffer(len_bytes as u32).ok_or(Error::TooLong {
            operation: "take a buffer of the ring",
            found: len_bytes,
            most: 0,
        })?;
        Ok(Self { queue, buffer })
    }

    /// Marks what is written next.
    fn stamp(&mut self, number: u32) -> Result<(), Error> {
        self.queue.fill(&self.buffer, &number.to_le_bytes())
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.queue.next(&mut [])?.result.map(drop)
    }

    fn read(&mut self, file: &File, offset_bytes: u64) -> Result<(), Error> {
        self.queue.read_shared(file, &self.buffer, offset_bytes, 0)?;
        self.finish()
    }

    fn write(&mut self, file: &File, offset_bytes: u64) -> Result<(), Error> {
        self.queue.write_shared(file, &self.buffer, self.buffer.len_bytes(), offset_bytes, 0)?;
        self.finish()
    }

    fn release(self) {
        self.queue.release(self.buffer);
    }
}

/// What is measured.
pub struct Plan<'a> {
    pub calls: u32,
    /// Read in place of an own file.
    pub file: Option<&'a str>,
    pub stream_mib: u32,
    pub as_json: bool,
}

/// A figure and its name, with the unit in it.
type Figure = (String, f64);

/// Measures on `volume`, and with both sides asleep before each call on `sleepy`, whose calls do not poll.
pub fn run(volume: &Volume, sleepy: &Volume, plan: &Plan<'_>) -> Result<()> {
    let path = format!("/.rf-bench-{}", std::process::id());
    let measured = measure(volume, sleepy, &path, plan);
    // Also where something failed midway.
    let removed = volume.remove_file(&path);
    let mut found = measured?;
    removed?;
    found.claim(&["unlink"], 1);
    let mut out = io::stdout().lock();
    let written = if plan.as_json {
        let mut said: Map<_, _> =
            found.figures.iter().map(|(name, value)| (name.clone(), shown(*value))).collect();
        said.insert("claimed".to_owned(), json!(found.claimed));
        writeln!(out, "{}", Value::Object(said))
    } else {
        found.figures.iter().try_for_each(|(name, value)| writeln!(out, "{name:<28} {:>12}", shown(*value)))
    };
    written.context("write to standard output")
}

/// Whole where that says enough.
fn shown(value: f64) -> Value {
    if value >= 10.0 { json!(value.round() as u64) } else { json!((value * 100.0).round() / 100.0) }
}

fn measure(volume: &Volume, sleepy: &Volume, path: &str, plan: &Plan<'_>) -> Result<Findings, Error> {
    let calls = plan.calls;
    let mut found = Findings::default();
    let file = volume.open(path, Open::to_write().create(0o600).exclusive())?;
    let mut block = [0x5a; BLOCK_BYTES];
    file.write_at(&block, 0)?;
    found.claim(&["open", "write"], 1);
    // What it takes to look at the clock, which is part of all others.
    found.time("clock", &[], calls, |_| Ok(()))?;
    found.time("nop", &["nop"], calls, |number| volume.nop(number.into()).map(drop))?;
    found.time("stat", &["stat"], calls, |_| volume.stat(Place::from(path).no_follow()).map(drop))?;
    found.time("open_close", &["open", "close"], calls, |_| volume.open(path, Open::to_read())?.close())?;
    let created = format!("{path}-created");
    found.time("create_unlink", &["open", "close", "unlink"], calls / 10, |_| {
        volume.open(&created, Open::to_write().create(0o600).exclusive())?.close()?;
        volume.remove_file(&created)
    })?;
    let mut queue = volume.queue()?;
    let mut in_place = InPlace::new(&mut queue, BLOCK_BYTES)?;
    let other = plan.file.map(|path| volume.open(path, Open::to_read())).transpose()?;
    found.claim(&["open", "close"], other.is_some().into());
    let read = other.as_ref().unwrap_or(&file);
    found.time("read_4k", &["read"], calls, |_| in_place.read(read, 0))?;
    found.time("read_4k_copied", &["read"], calls, |_| read.read_at(&mut block, 0).map(drop))?;
    found.time("write_4k", &["write"], calls, |number| {
        in_place.stamp(number)?;
        in_place.write(&file, 0)
    })?;
    found.time("write_4k_copied", &["write"], calls, |_| file.write_at(&block, 0))?;
    let synced = (calls / 100).max(1);
    found.time("write_4k_fdatasync", &["write", "sync"], synced, |number| {
        in_place.stamp(number)?;
        in_place.write(&file, 0)?;
        file.sync_data()
    })?;
    found.time("write_4k_fsync", &["write", "sync"], synced, |number| {
        in_place.stamp(number)?;
        in_place.write(&file, 0)?;
        file.sync()
    })?;
    in_place.release();
    time_asleep(&mut found, sleepy, synced.max(100))?;
    if plan.stream_mib > 0 {
        stream(&mut found, &mut queue, &file, plan.stream_mib)?;
    }
    found.claim(&["close"], 1);
    Ok(found)
}

fn time_asleep(found: &mut Findings, sleepy: &Volume, calls: u32) -> Result<(), Error> {
    let mut times_ns = Vec::new();
    for number in 0..calls {
        std::thread::sleep(ASLEEP_AFTER);
        let began = Instant::now();
        sleepy.nop(number.into())?;
        times_ns.push(began.elapsed().as_nanos() as u64);
    }
    found.claim(&["nop"], calls);
    found.note("nop_parked", percentiles(times_ns));
    Ok(())
}

/// MiB a second, written to stable media and read, a MiB at a time.
fn stream(found: &mut Findings, queue: &mut Queue, file: &File, mib: u32) -> Result<(), Error> {
    let mut in_place = InPlace::new(queue, TRANSFER_BYTES)?;
    let offset_bytes = |number: u32| u64::from(number) * TRANSFER_BYTES as u64;
    let mut note = |name: &str, began: Instant| {
        found.figures.push((name.to_owned(), f64::from(mib) / began.elapsed().as_secs_f64()));
    };
    let began = Instant::now();
    for number in 0..mib {
        in_place.stamp(number)?;
        in_place.write(file, offset_bytes(number))?;
    }
    file.sync()?;
    note("seq_write_mib_s", began);
    let began = Instant::now();
    for number in 0..mib {
        in_place.read(file, offset_bytes(number))?;
    }
    note("seq_read_mib_s", began);
    in_place.release();
    found.claim(&["write", "read"], mib);
    found.claim(&["sync"], 1);
    Ok(())
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
