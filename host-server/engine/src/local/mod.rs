//! The engine of a real machine: files and block devices through io_uring, or through a pool of threads where the kernel
//! refuses io_uring.
//!
//! ```no_run
//! use ringfort_engine::local::{LocalOptions, start};
//!
//! let runtime = start(LocalOptions::default())?;
//! let engine = runtime.engine();
//! let len_bytes = runtime.block_on(async move {
//!     let device = engine.open("/data/component0".as_ref(), true)?;
//!     device.flush().await?;
//!     Ok::<_, ringfort_engine::error::EngineError>(device.len_bytes())
//! })?;
//! # let _ = len_bytes;
//! # Ok::<_, ringfort_engine::error::EngineError>(())
//! ```
//!
//! # Invariants
//! * Memory given to the kernel (or to a pool thread) is owned by the table of operations in flight until the kernel has
//!   answered, whatever became of the request, its completion or the runtime meanwhile.
//! * A request is submitted at the latest when the tasks that are ready have each run once.

mod component;
mod engine;
#[allow(unsafe_code)]
mod mapping;
mod operation;
#[cfg(test)]
mod tests;
#[allow(unsafe_code)]
mod threads;
#[allow(unsafe_code)]
mod uring;
mod window;

use std::path::PathBuf;
use std::time::Duration;

pub use engine::start;

/// How requests reach the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// io_uring where the kernel allows it, else threads, with a warning.
    #[default]
    Automatic,
    /// io_uring or an error.
    Uring,
    /// io_uring as Linux 5.11 has it, whatever the kernel offers, or an error. [`Uring`](Self::Uring) goes back to this
    /// by itself.
    PlainUring,
    /// A pool of threads.
    Threads,
}

/// Settings of [`start`].
#[derive(Clone, Debug)]
pub struct LocalOptions {
    pub transport: Transport,
    /// A request that is not answered in this time fails; the device is taken for dead. None: wait for ever.
    pub request_timeout: Option<Duration>,
    /// The longest time to look for work before sleeping; how long it is below that follows what pays. Costs a core for
    /// that long; saves a wake-up. Zero: sleep at once.
    pub busy_poll: Duration,
    /// Where memory files live, a directory on a memory file system, made (mode 0700) if missing. None, or one that
    /// cannot be used: memory files are anonymous and die with the process, with a warning. Every server of this user
    /// shares it, so names carry the volume's id.
    pub memory_directory: Option<PathBuf>,
    /// Size of the pool of [`Transport::Threads`].
    pub pool_threads: usize,
    /// Memory that is registered with io_uring and serves buffers up to 256 KiB on the engine's thread: a transfer in one
    /// piece then needs no look-up of its pages. It counts as locked memory of the user. Where the kernel refuses so
    /// much, half of RLIMIT_MEMLOCK is tried, then none. A multiple of 256 KiB; 0: none. A second engine on a thread
    /// shares the memory of the first.
    pub registered_bytes: usize,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self {
            transport: Transport::Automatic,
            request_timeout: Some(Duration::from_secs(30)),
            // What a sleeping wake-up between two cores takes. Looking longer than that costs the guest's own threads the
            // processor on which they would hear of the answer.
            busy_poll: Duration::from_micros(50),
            memory_directory: Some(PathBuf::from("/dev/shm/ringfort")),
            // Enough to keep a disk of each of 4+2 components busy.
            pool_threads: 12,
            // What 256 requests in flight of 64 KiB need.
            registered_bytes: 16 << 20,
        }
    }
}
