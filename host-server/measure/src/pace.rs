//! Round trips between two processors of this machine: what a channel can be held against.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::EventFd;
use nix::unistd::Pid;

/// From one round trip of sleepers to the next: long enough for both to have fallen asleep.
pub const PAUSE: Duration = Duration::from_micros(500);

/// Nanoseconds of each of many events, to be asked for a quantile.
#[derive(Debug, Default)]
pub struct Samples(Vec<u64>);

impl Samples {
    pub fn of(samples: impl IntoIterator<Item = Duration>) -> Self {
        Self(samples.into_iter().map(|sample| sample.as_nanos() as u64).collect())
    }

    /// Times `act` so often.
    pub fn take(count: usize, mut act: impl FnMut() -> Result<()>) -> Result<Self> {
        let mut samples = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            act()?;
            samples.push(began.elapsed().as_nanos() as u64);
        }
        Ok(Self(samples))
    }

    /// Times `act` so often, with a pause before each.
    pub fn take_slowly(count: usize, mut act: impl FnMut() -> Result<()>) -> Result<Self> {
        let mut samples = Vec::with_capacity(count);
        for _ in 0..count {
            thread::sleep(PAUSE);
            let began = Instant::now();
            act()?;
            samples.push(began.elapsed().as_nanos() as u64);
        }
        Ok(Self(samples))
    }

    /// The value that this share of the samples does not exceed, in nanoseconds.
    pub fn quantile(mut self, share: f64) -> f64 {
        self.0.sort_unstable();
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * share) as usize).copied().unwrap_or(0) as f64
    }

    pub fn median_ns(self) -> f64 {
        self.quantile(0.5)
    }
}

/// Who asks, and who answers: processors that do not share a first-level cache.
const ASKER: usize = 0;
const ANSWERER: usize = 1;

fn pin(thread: Pid, processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor).context("choose a processor")?;
    sched_setaffinity(thread, &set).context("pin a thread")
}

/// Keeps this thread on the processor of those who ask.
pub fn pin_asker() -> Result<()> {
    pin(Pid::from_raw(0), ASKER)
}

fn pin_answerer() -> Result<()> {
    pin(Pid::from_raw(0), ANSWERER)
}

/// Keeps all threads of a process on the processor of those who answer.
pub fn pin_server(process: u32) -> Result<()> {
    let threads = format!("/proc/{process}/task");
    for thread in fs::read_dir(&threads).with_context(|| format!("list {threads}"))? {
        let number = thread?.file_name().to_string_lossy().parse().context("a thread's number")?;
        pin(Pid::from_raw(number), ANSWERER)?;
    }
    Ok(())
}

/// A line to itself.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

/// A word that goes to another processor and comes back, both of them looking at it all the time; nanoseconds, each trip timed by itself as
/// calls are.
pub fn cache_line_ns() -> Result<f64> {
    const ROUND_TRIPS: u64 = 20_000;
    let there = Arc::new(Line::default());
    let back = Arc::new(Line::default());
    let (heard, said) = (Arc::clone(&there), Arc::clone(&back));
    let echo = thread::spawn(move || -> Result<()> {
        pin_answerer()?;
        for number in 1..=ROUND_TRIPS {
            while heard.0.load(Ordering::Acquire) != number {
                std::hint::spin_loop();
            }
            said.0.store(number, Ordering::Release);
        }
        Ok(())
    });
    let ask = thread::spawn(move || -> Result<Vec<u64>> {
        pin_asker()?;
        let mut samples = Vec::new();
        for number in 1..=ROUND_TRIPS {
            let began = Instant::now();
            there.0.store(number, Ordering::Release);
            while back.0.load(Ordering::Acquire) != number {
                std::hint::spin_loop();
            }
            samples.push(began.elapsed().as_nanos() as u64);
        }
        Ok(samples)
    });
    let samples = ask.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    echo.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    Ok(Samples(samples).median_ns())
}

/// A byte that goes to another, sleeping thread through a Unix socket, and back; nanoseconds.
pub fn unix_socket_ns(count: usize) -> Result<f64> {
    let (mut ours, mut theirs) = UnixStream::pair().context("make a pair of sockets")?;
    let echo = thread::spawn(move || -> Result<()> {
        pin_answerer()?;
        let mut byte = [0];
        while theirs.read_exact(&mut byte).is_ok() && theirs.write_all(&byte).is_ok() {}
        Ok(())
    });
    let samples = Samples::take_slowly(count, || {
        ours.write_all(&[1])?;
        Ok(ours.read_exact(&mut [0])?)
    });
    drop(ours);
    echo.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    Ok(samples?.median_ns())
}

/// An event to another, sleeping thread, and one back; nanoseconds.
pub fn eventfd_ns(count: usize) -> Result<f64> {
    let (there, back) = (Arc::new(EventFd::new()?), Arc::new(EventFd::new()?));
    let (heard, said) = (Arc::clone(&there), Arc::clone(&back));
    let echo = thread::spawn(move || -> Result<()> {
        pin_answerer()?;
        for _ in 0..count {
            heard.read().context("wait for an event")?;
            said.write(1).context("send an event")?;
        }
        Ok(())
    });
    let samples = Samples::take_slowly(count, || {
        there.write(1)?;
        back.read()?;
        Ok(())
    })?;
    echo.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    Ok(samples.median_ns())
}
