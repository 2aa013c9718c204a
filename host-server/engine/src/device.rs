use std::ops::{AddAssign, Sub};

use crate::buffer::{BLOCK_BYTES, Buffer, Slice};
use crate::completion::Completion;
use crate::error::{EngineError, ErrorKind};

/// A block device or preallocated file that holds one component of a volume.
///
/// Offsets, lengths and memory are multiples of [`BLOCK_BYTES`].
/// A call submits at once (it need not be awaited to make progress); the completion resolves when the
/// device has answered. Dropping a completion does not cancel the request.
///
/// # Durability contract
/// * Requests in flight together are unordered: any subset may be on stable media after a power loss, and a
///   write may be torn at 512-byte sectors.
/// * A completed write is visible to every read submitted after its completion. It is **not** durable.
/// * A completed [`flush`](Device::flush) makes durable every write whose completion was seen *before the flush
///   was submitted*; it says nothing of writes still in flight.
/// * A failed flush leaves the durability of every unflushed write unknown, for ever: the kernel may have
///   dropped the dirty pages and marked them clean, so a later successful flush proves nothing about them.
///   Callers expel the component; they never retry.
/// * A read may return stale, torn or foreign bytes without an error. Callers verify checksums.
pub trait Device {
    /// The path or name an operator knows this device by.
    fn name(&self) -> &str;

    /// Usable length, a multiple of the block size.
    fn len_bytes(&self) -> u64;

    /// Fills `buffer` from `offset_bytes` on.
    fn read(&self, offset_bytes: u64, buffer: Buffer) -> Completion<Buffer>;

    /// Writes `data`, one slice after the other, from `offset_bytes` on. Each slice is block-aligned in memory
    /// and a whole number of blocks long. Any number of slices: the device splits long lists itself.
    fn write(&self, offset_bytes: u64, data: Vec<Slice>) -> Completion<()>;

    /// As [`write`](Device::write), and on stable media when it completes: cheaper than a flush that follows. Says nothing of
    /// any other write; one that fails is as a failed flush for what it wrote.
    fn write_durably(&self, offset_bytes: u64, data: Vec<Slice>) -> Completion<()>;

    /// Makes completed writes durable; see the contract above.
    fn flush(&self) -> Completion<()>;

    /// Counters since the device was opened.
    fn counters(&self) -> DeviceCounters;
}

/// What a device has been asked to do since it was opened; answered requests only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    /// Durable writes count as a write and a flush.
    pub flushes: u64,
    /// Requests for reading that failed; they are not among `reads`, and likewise below.
    pub read_errors: u64,
    pub write_errors: u64,
    pub flush_errors: u64,
    /// Of all that failed, those that were given up as the device did not answer in time.
    pub timeouts: u64,
}

impl DeviceCounters {
    /// Requests of any kind that failed.
    pub fn errors(&self) -> u64 {
        self.read_errors + self.write_errors + self.flush_errors
    }

    fn combine(self, other: Self, combine: fn(u64, u64) -> u64) -> Self {
        Self {
            reads: combine(self.reads, other.reads),
            read_bytes: combine(self.read_bytes, other.read_bytes),
            writes: combine(self.writes, other.writes),
            write_bytes: combine(self.write_bytes, other.write_bytes),
            flushes: combine(self.flushes, other.flushes),
            read_errors: combine(self.read_errors, other.read_errors),
            write_errors: combine(self.write_errors, other.write_errors),
            flush_errors: combine(self.flush_errors, other.flush_errors),
            timeouts: combine(self.timeouts, other.timeouts),
        }
    }
}

/// Of several devices.
impl AddAssign for DeviceCounters {
    fn add_assign(&mut self, other: Self) {
        *self = self.combine(other, u64::wrapping_add);
    }
}

/// Since an earlier moment.
impl Sub for DeviceCounters {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        self.combine(earlier, u64::wrapping_sub)
    }
}

/// Checks that a transfer is whole blocks and inside the device.
pub(crate) fn check_range(
    operation: &str,
    device: &dyn Device,
    offset_bytes: u64,
    len_bytes: usize,
) -> Result<(), EngineError> {
    let fault = |found: String| {
        let operation = format!("{operation} {len_bytes} bytes at offset {offset_bytes} of");
        Err(EngineError::new(ErrorKind::OutOfRange, operation, device.name(), found))
    };
    if len_bytes == 0 {
        return fault("a request needs at least one block".into());
    }
    if !offset_bytes.is_multiple_of(BLOCK_BYTES as u64) || !len_bytes.is_multiple_of(BLOCK_BYTES) {
        return fault(format!("offset and length must be multiples of {BLOCK_BYTES}"));
    }
    match offset_bytes.checked_add(len_bytes as u64) {
        Some(end) if end <= device.len_bytes() => Ok(()),
        _ => fault(format!("the device has {} bytes", device.len_bytes())),
    }
}

/// Checks a gather write; the sum of the slices in bytes.
pub(crate) fn check_write(
    device: &dyn Device,
    offset_bytes: u64,
    data: &[Slice],
) -> Result<usize, EngineError> {
    let len_bytes = data.iter().map(|slice| slice.len()).sum();
    check_range("write", device, offset_bytes, len_bytes)?;
    match data.iter().position(|slice| !slice.is_block_aligned()) {
        None => Ok(len_bytes),
        Some(index) => Err(EngineError::new(
            ErrorKind::OutOfRange,
            format!("write {len_bytes} bytes at offset {offset_bytes} of"),
            device.name(),
            format!("slice {index} is not aligned to {BLOCK_BYTES} bytes"),
        )),
    }
}
