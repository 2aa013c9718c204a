use crate::buffer::{Buffer, Slice};
use crate::completion::Completion;

/// A block device or preallocated file that holds one component of a volume.
///
/// Offsets, lengths and memory are multiples of [`BLOCK_BYTES`](crate::buffer::BLOCK_BYTES).
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

    /// Makes completed writes durable; see the contract above.
    fn flush(&self) -> Completion<()>;

    /// Counters since the device was opened.
    fn counters(&self) -> DeviceCounters;
}

/// What a device has been asked to do since it was opened; completed requests only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub flushes: u64,
    pub errors: u64,
}
