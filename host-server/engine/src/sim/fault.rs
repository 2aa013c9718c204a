//! What a test can make a device do.

use std::ops::Range;
use std::time::Duration;

/// A fault of one device. Byte ranges match every request that overlaps them. Faults add up until
/// [`heal`](super::Controls::heal); those named `Next` are used up by one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Reads that touch the range fail.
    ReadError(Range<u64>),
    /// Writes that touch the range fail; some of their sectors may have been written.
    WriteError(Range<u64>),
    /// The next write that touches the range fails; some of its sectors may have been written.
    NextWriteError(Range<u64>),
    /// The next flush fails. Of the writes it covers, some are durable and the others never will be, although reads
    /// show them and later flushes succeed.
    NextFlushError,
    /// Flushes and durable writes are acknowledged, and make nothing durable.
    IgnoreFlushes,
    /// The next write that touches the range is acknowledged and dropped.
    LoseNextWrite(Range<u64>),
    /// The next write that touches `from` is acknowledged and lands at `to_bytes` instead (cut at the end of the device).
    MisdirectNextWrite { from: Range<u64>, to_bytes: u64 },
    /// Every request answers this much later.
    Slow(Duration),
    /// The device is gone: every request fails, those in flight too.
    Vanish,
    /// The device never answers again: requests time out.
    Hang,
}

/// What a fault makes of one write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WriteFate {
    Done,
    Failed,
    Lost,
    Misdirected(u64),
}

#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

fn overlaps(range: &Range<u64>, offset_bytes: u64, len_bytes: usize) -> bool {
    range.start < offset_bytes + len_bytes as u64 && offset_bytes < range.end
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn vanished(&self) -> bool {
        self.0.contains(&Fault::Vanish)
    }

    pub(super) fn hangs(&self) -> bool {
        self.0.contains(&Fault::Hang)
    }

    pub(super) fn delay(&self) -> Duration {
        self.0.iter().map(|fault| if let Fault::Slow(delay) = fault { *delay } else { Duration::ZERO }).sum()
    }

    pub(super) fn read_fails(&self, offset_bytes: u64, len_bytes: usize) -> bool {
        let fails = |fault: &Fault| matches!(fault, Fault::ReadError(range) if overlaps(range, offset_bytes, len_bytes));
        self.vanished() || self.0.iter().any(fails)
    }

    pub(super) fn take_write(&mut self, offset_bytes: u64, len_bytes: usize) -> WriteFate {
        if self.vanished() {
            return WriteFate::Failed;
        }
        let matching = self.0.iter().position(|fault| match fault {
            Fault::WriteError(range)
            | Fault::NextWriteError(range)
            | Fault::LoseNextWrite(range)
            | Fault::MisdirectNextWrite { from: range, .. } => overlaps(range, offset_bytes, len_bytes),
            _ => false,
        });
        let Some(index) = matching else { return WriteFate::Done };
        if matches!(self.0[index], Fault::WriteError(_)) {
            return WriteFate::Failed;
        }
        match self.0.remove(index) {
            Fault::LoseNextWrite(_) => WriteFate::Lost,
            Fault::MisdirectNextWrite { to_bytes, .. } => WriteFate::Misdirected(to_bytes),
            _ => WriteFate::Failed,
        }
    }

    pub(super) fn ignores_flushes(&self) -> bool {
        self.0.contains(&Fault::IgnoreFlushes)
    }

    pub(super) fn take_flush_error(&mut self) -> bool {
        if self.vanished() {
            return true;
        }
        match self.0.iter().position(|fault| *fault == Fault::NextFlushError) {
            Some(index) => {
                self.0.remove(index);
                true
            }
            None => false,
        }
    }
}
