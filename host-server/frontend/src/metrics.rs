//! Counters, gauges and latencies of one device, readable from any thread.
//!
//! The volume's thread alone writes most of them, without locks. They are statistics: values read together may be some
//! events apart.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One more than the greatest opcode that has counters of its own.
pub const OPCODE_COUNT: usize = 64;

/// Counts since the device was started, and how things stand.
#[derive(Debug)]
pub struct Metrics {
    /// By FUSE opcode; slot 0 holds opcodes that are beyond the table or have no name.
    requests: [AtomicU64; OPCODE_COUNT],
    latencies: Box<[Histogram]>,
    queues: Box<[QueueState]>,
    /// Replies that carried an error number.
    pub errors: Counter,
    /// Requests that no sound guest kernel makes: they could not be decoded, and were answered with an error.
    pub malformed_requests: Counter,
    /// Times that a guest broke the queue protocol and the device stopped serving it.
    pub broken_devices: Counter,
    /// Bytes of file data copied to guests.
    pub read_bytes: Counter,
    /// Bytes of file data copied from guests.
    pub written_bytes: Counter,
    /// Connections accepted.
    pub connections: Counter,
    /// FUSE sessions opened.
    pub sessions: Counter,
    /// Times that work came to a queue whose guest had been asked to ring, since the volume's thread slept or was about to.
    pub kicks: Counter,
    /// Doorbells rung for the guest.
    pub doorbells: Counter,
    /// Waits for a lock that were refused, as a quarter of their queue was waiting already.
    pub refused_waits: Counter,
    /// A virtual machine is connected.
    pub connected: Flag,
    /// A FUSE session is open: the guest has mounted the device.
    pub in_session: Flag,
}

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A [`Counter`] that one thread alone adds to: without an atomic addition, which costs as much as a small command.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    pub fn add(&self, count: u64) {
        self.0.store(self.get().wrapping_add(count), Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value that goes up and down; one thread sets it.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something that holds or does not.
#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

impl Flag {
    pub fn set(&self, value: bool) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One queue of a device; the first is the high priority queue, the others carry requests.
#[derive(Debug, Default)]
pub struct QueueState {
    /// Chains that the guest may have outstanding; 0 while the queue is stopped.
    pub size: Gauge,
    /// Chains taken and not given back.
    pub in_flight: Gauge,
    /// Bytes of their descriptors.
    pub in_flight_bytes: Gauge,
    /// Of the chains in flight, those that wait for a lock.
    pub waiting_for_locks: Gauge,
    /// Chains may be available that are not taken, since what is in flight has reached its bounds.
    pub at_bounds: Flag,
}

impl Metrics {
    /// For a device of `queue_count` queues, the high priority one included.
    pub fn new(queue_count: usize) -> Self {
        Self {
            requests: [const { AtomicU64::new(0) }; OPCODE_COUNT],
            latencies: (0..OPCODE_COUNT).map(|_| Histogram::default()).collect(),
            queues: (0..queue_count).map(|_| QueueState::default()).collect(),
            errors: Counter::default(),
            malformed_requests: Counter::default(),
            broken_devices: Counter::default(),
            read_bytes: Counter::default(),
            written_bytes: Counter::default(),
            connections: Counter::default(),
            sessions: Counter::default(),
            kicks: Counter::default(),
            doorbells: Counter::default(),
            refused_waits: Counter::default(),
            connected: Flag::default(),
            in_session: Flag::default(),
        }
    }

    pub fn count_request(&self, opcode: u32) {
        self.requests[slot(opcode)].fetch_add(1, Ordering::Relaxed);
    }

    /// Requests with `opcode` so far; those of every opcode beyond the table for 0.
    pub fn requests(&self, opcode: u32) -> u64 {
        let slot = usize::try_from(opcode).ok().and_then(|opcode| self.requests.get(opcode));
        slot.map_or(0, |slot| slot.load(Ordering::Relaxed))
    }

    /// A request with `opcode` was given back `nanoseconds` after it was taken.
    pub fn observe(&self, opcode: u32, nanoseconds: u64) {
        self.latencies[slot(opcode)].observe(nanoseconds);
    }

    /// The latencies of every operation seen so far, from taking the request to giving it back, by the lower-case name of
    /// the operation; "other" for what has no name.
    pub fn operations(&self) -> Vec<(&'static str, HistogramSnapshot)> {
        let named = self.latencies.iter().enumerate().map(|(slot, histogram)| (name(slot), histogram));
        let mut seen: Vec<(&'static str, HistogramSnapshot)> = Vec::new();
        for (name, histogram) in named {
            let snapshot = histogram.snapshot();
            if snapshot.count() == 0 {
                continue;
            }
            match seen.iter_mut().find(|(other, _)| *other == name) {
                Some((_, sum)) => sum.add(&snapshot),
                None => seen.push((name, snapshot)),
            }
        }
        seen
    }

    /// By queue index.
    pub fn queues(&self) -> &[QueueState] {
        &self.queues
    }
}

fn slot(opcode: u32) -> usize {
    usize::try_from(opcode).ok().filter(|slot| *slot < OPCODE_COUNT).unwrap_or(0)
}

fn name(slot: usize) -> &'static str {
    const NAMES: [&str; 53] = [
        "",
        "lookup",
        "forget",
        "getattr",
        "setattr",
        "readlink",
        "symlink",
        "",
        "mknod",
        "mkdir",
        "unlink",
        "rmdir",
        "rename",
        "link",
        "open",
        "read",
        "write",
        "statfs",
        "release",
        "",
        "fsync",
        "setxattr",
        "getxattr",
        "listxattr",
        "removexattr",
        "flush",
        "init",
        "opendir",
        "readdir",
        "releasedir",
        "fsyncdir",
        "getlk",
        "setlk",
        "setlkw",
        "access",
        "create",
        "interrupt",
        "bmap",
        "destroy",
        "ioctl",
        "poll",
        "notify_reply",
        "batch_forget",
        "fallocate",
        "readdirplus",
        "rename2",
        "lseek",
        "copy_file_range",
        "setupmapping",
        "removemapping",
        "syncfs",
        "tmpfile",
        "statx",
    ];
    NAMES.get(slot).copied().filter(|name| !name.is_empty()).unwrap_or("other")
}

/// Bounds lie at powers of two and half way between them, from 2¹⁰ ns (1 µs) to 2³⁴ ns (17 s).
const LEAST_BOUND_BITS: u32 = 10;
const BOUND_COUNT: usize = 49;

const BOUNDS_NS: [u64; BOUND_COUNT] = {
    let mut bounds = [0; BOUND_COUNT];
    let mut index = 0;
    while index < BOUND_COUNT {
        let power = 1 << (LEAST_BOUND_BITS as usize + index / 2);
        bounds[index] = if index % 2 == 0 { power } else { power + power / 2 };
        index += 1;
    }
    bounds
};

/// Durations counted in buckets, log-linear: a bound is at most half as much again as the one before. One thread counts.
#[derive(Debug)]
pub(crate) struct Histogram {
    counts: [Tally; BOUND_COUNT + 1],
    sum_ns: Tally,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [const { Tally(AtomicU64::new(0)) }; BOUND_COUNT + 1], sum_ns: Tally::default() }
    }
}

impl Histogram {
    pub(crate) fn observe(&self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)].add(1);
        self.sum_ns.add(nanoseconds);
    }

    pub(crate) fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            bounds_ns: &BOUNDS_NS,
            counts: self.counts.iter().map(Tally::get).collect(),
            sum_ns: self.sum_ns.get(),
        }
    }
}

/// The first bucket whose bound is not below `nanoseconds`, or the one beyond all bounds.
fn bucket(nanoseconds: u64) -> usize {
    let Some(above) = nanoseconds.checked_sub(1).filter(|above| *above >= BOUNDS_NS[0]) else { return 0 };
    let bits = above.ilog2();
    let upper_half = (above >> (bits - 1)) & 1;
    let index = (bits - LEAST_BOUND_BITS) as usize * 2 + upper_half as usize + 1;
    index.min(BOUND_COUNT)
}

/// Durations as they were counted at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Upper bounds of the buckets, included, ascending.
    pub bounds_ns: &'static [u64],
    /// Of each bucket alone; the last, without a bound, holds what is above all of them.
    pub counts: Vec<u64>,
    pub sum_ns: u64,
}

impl HistogramSnapshot {
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        self.sum_ns += other.sum_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_below_the_first_bound_that_reaches_it() {
        assert_eq!(BOUNDS_NS[..4], [1024, 1536, 2048, 3072]);
        assert_eq!(BOUNDS_NS[BOUND_COUNT - 1], 1 << 34);
        for (index, bound) in BOUNDS_NS.into_iter().enumerate() {
            assert_eq!(bucket(bound), index, "{bound}");
            assert_eq!(bucket(bound + 1), index + 1, "{bound} + 1");
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BOUND_COUNT));
    }

    #[test]
    fn operations_are_named_and_what_has_no_name_is_counted_together() {
        let metrics = Metrics::new(2);
        metrics.observe(15, 2000);
        metrics.observe(15, 3000);
        metrics.observe(16, 5);
        for nameless in [0, 7, 63, 64, u32::MAX] {
            metrics.observe(nameless, 1);
        }
        let operations = metrics.operations();
        let names: Vec<_> = operations.iter().map(|(name, latencies)| (*name, latencies.count())).collect();
        assert_eq!(names, [("other", 5), ("read", 2), ("write", 1)]);
        let (_, read) = &operations[1];
        assert_eq!((read.sum_ns, read.counts[2], read.counts[3]), (5000, 1, 1));
        assert_eq!(read.counts.len(), read.bounds_ns.len() + 1);
        assert_eq!(metrics.queues().len(), 2);
    }
}
