//! A simulated machine: devices, time and chance in memory, replayed exactly by a seed.
//!
//! # Fault model
//! **Requests.** Every request takes a seeded time, sometimes a very long one, so requests in flight together complete in
//! any order. A write takes effect at its completion, a read sees the device as it is at its own. A request that is not
//! answered within the request timeout fails with "timed out", and the device may still carry it out later; until it has, nobody
//! else opens the device, even if the caller has gone.
//!
//! **Durability.** A completed write is visible and not durable. A flush makes durable the writes that had completed when it
//! was *submitted*. A failed flush makes some of them durable and dooms the others: reads show them, later flushes succeed, and
//! they are gone after a power loss.
//!
//! **Power loss.** What was durable stays. Each device, by the seed, loses everything else, keeps everything else, or treats
//! each write by itself; then a write that had completed unflushed, or was in flight, is kept, lost, cut after some 512-byte
//! sector or left with any of its sectors. Sectors are never split. Memory files are gone.
//!
//! **Process death.** Completed writes stay visible (and unflushed); of those in flight, any sectors may be there. Memory
//! files stay as they were. Locks are free.
//!
//! **Where it crashes.** A *persistence point* is passed when a write is submitted, when a write has taken effect and before
//! its completion is delivered, and likewise for a flush. A run that is told to crash at the Nth point ends there:
//! nothing more is delivered or accepted, and the task that was running goes no further than its next `.await`. What it
//! writes to memory files until then is kept, as if the crash had come that much later.
//!
//! **Faults by order of the test**: see [`Fault`], and [`Controls`] for silent changes to stored bytes. What is *not* modelled:
//! sectors that change by themselves, reads that return other bytes than are stored (change the bytes instead), and a clock that
//! drifts.
//!
//! # Determinism
//! The same seed and the same program give the same run, to the last completion. The clock advances only when no task is
//! ready. A main future that can never finish is reported: "deadlock", "livelock" or "no end".
//!
//! ```
//! use ringfort_engine::buffer::{Buffer, Slice};
//! use ringfort_engine::sim::{CrashMode, SimWorld};
//!
//! let world = SimWorld::new(7);
//! let engine = world.engine();
//! let read_back = world.run(async move {
//!     let device = engine.create("disk0".as_ref(), 1 << 20)?;
//!     device.write(4096, vec![Slice::copy_of(b"hello")]).await?;
//!     device.flush().await?;
//!     device.read(4096, Buffer::zeroed(4096)).await
//! });
//! assert_eq!(&read_back.done().unwrap()[..5], b"hello");
//!
//! let engine = world.restart(CrashMode::PowerLoss, 8);
//! let survived = world.run(async move {
//!     let device = engine.open("disk0".as_ref(), true)?;
//!     device.read(4096, Buffer::zeroed(4096)).await
//! });
//! assert_eq!(&survived.done().unwrap()[..5], b"hello");
//! ```
//!
//! This module is always built: it costs a server nothing, and every crate above tests on it.

mod boot;
mod disk;
mod engine;
mod fault;
mod random;
#[cfg(test)]
mod tests;
mod world;

pub use fault::Fault;
pub use random::Random;
pub use world::{Controls, CrashMode, SimWorld};

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum RunOutcome<T> {
    Done(T),
    /// The machine crashed first; see [`SimWorld::restart`].
    Crashed,
}

impl<T> RunOutcome<T> {
    /// The result of a run that was not meant to crash.
    #[track_caller]
    pub fn done(self) -> T {
        match self {
            Self::Done(output) => output,
            Self::Crashed => panic!("the simulated machine crashed"),
        }
    }

    pub fn is_crashed(&self) -> bool {
        matches!(self, Self::Crashed)
    }

    /// The result, none after a crash.
    pub fn ok(self) -> Option<T> {
        match self {
            Self::Done(output) => Some(output),
            Self::Crashed => None,
        }
    }
}
