use std::future::Future;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::device::Device;
use crate::error::EngineError;
use crate::memory::MemoryFile;
use crate::source::{Source, Watch};

pub use crate::executor::Task;

/// How a memory file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryOpen {
    /// Start afresh: what an earlier process left under this name is discarded. All bytes are zero.
    Create,
    /// Attach to what an earlier process left; an error of kind `NotFound` where nothing was left.
    Attach,
}

/// Devices, memory that outlives the process, time and chance.
///
/// The store and the filesystem reach the outside world through this trait alone.
pub trait Engine {
    /// Opens an existing component for reading and writing and takes its exclusive lock; fails with
    /// `ErrorKind::Busy` naming the holder where another process has it. `write: false` opens for reading only
    /// with a shared lock (offline check).
    fn open(&self, path: &Path, write: bool) -> Result<Rc<dyn Device>, EngineError>;

    /// Creates a component file of `len_bytes`, space preallocated and reading as zeros, or takes over an existing
    /// block device of at least that length. Fails with `ErrorKind::Exists` on an existing file.
    fn create(&self, path: &Path, len_bytes: u64) -> Result<Rc<dyn Device>, EngineError>;

    /// Makes a component that nobody has open at least `len_bytes` long. A file gets its space, reading as zeros, durably; a block device
    /// is as long as it is: `ErrorKind::OutOfRange` where that is too short.
    fn extend(&self, path: &Path, len_bytes: u64) -> Result<(), EngineError>;

    /// Opens a memory file: shared memory that survives the death of this process, not of the machine.
    fn memory_file(&self, name: &str, len_bytes: usize, open: MemoryOpen) -> Result<MemoryFile, EngineError>;

    /// Removes a memory file: nobody can attach to it any more. One that is open goes with its last loan; one that does not
    /// exist is no error.
    fn remove_memory_file(&self, name: &str) -> Result<(), EngineError>;

    /// Monotonic time since an arbitrary start.
    fn monotonic(&self) -> Duration;

    /// [`monotonic`](Self::monotonic) as it was when the thread last turned to its work: costs nothing, and is a turn late at most.
    fn turn_began(&self) -> Duration {
        self.monotonic()
    }

    /// Wall-clock time since the Unix epoch. May jump.
    fn wall_clock(&self) -> Duration;

    /// Unpredictable in `local`, a function of the seed in `sim`.
    fn random_u64(&self) -> u64;

    /// Resolves once `duration` has passed on the engine's monotonic clock.
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>>;

    /// Lets other ready tasks run first, then resumes.
    fn yield_now(&self) -> Pin<Box<dyn Future<Output = ()>>>;

    /// Runs a task on this thread, concurrently with the caller.
    fn spawn(&self, task: Task);

    /// Looks at `source` between tasks and before it sleeps, for as long as the source lives. False where the engine only
    /// runs tasks (a simulation): then somebody has to wake one.
    fn attend(&self, _source: Weak<dyn Source>) -> bool {
        false
    }

    /// Ends the thread's sleep whenever `descriptor` becomes readable anew (an event counter that is written to, read or
    /// not). None where the engine cannot: then whoever waits for the descriptor has to wake a task.
    fn watch(&self, _descriptor: Box<dyn AsRawFd>) -> Option<Watch> {
        None
    }
}
