//! Counters of one device, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

/// One more than the greatest opcode that has a counter of its own.
pub const OPCODE_COUNT: usize = 64;

/// Counts since the device was started. A statistic, not a lock: values read together may be some events apart.
#[derive(Debug)]
pub struct Metrics {
    /// Requests by FUSE opcode; slot 0 holds opcodes that are beyond the table.
    requests: [AtomicU64; OPCODE_COUNT],
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
    /// Doorbells rung for the guest.
    pub doorbells: Counter,
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

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: [const { AtomicU64::new(0) }; OPCODE_COUNT],
            errors: Counter::default(),
            malformed_requests: Counter::default(),
            broken_devices: Counter::default(),
            read_bytes: Counter::default(),
            written_bytes: Counter::default(),
            connections: Counter::default(),
            sessions: Counter::default(),
            doorbells: Counter::default(),
        }
    }
}

impl Metrics {
    pub fn count_request(&self, opcode: u32) {
        let slot = usize::try_from(opcode).ok().and_then(|opcode| self.requests.get(opcode));
        slot.unwrap_or(&self.requests[0]).fetch_add(1, Ordering::Relaxed);
    }

    /// Requests with `opcode` so far; those of every opcode beyond the table for 0.
    pub fn requests(&self, opcode: u32) -> u64 {
        let slot = usize::try_from(opcode).ok().and_then(|opcode| self.requests.get(opcode));
        slot.map_or(0, |slot| slot.load(Ordering::Relaxed))
    }
}
