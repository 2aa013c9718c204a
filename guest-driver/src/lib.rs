//! Client library: files of a Ringfort volume through shared memory, without the kernel.
//!
//! Processes on the host connect to the Unix socket of `ringfort serve --channel unix:PATH`, those of a guest to the socket of its `ringfort-guestd`.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use ringfort_guest::{Address, connect};
//! // What $RINGFORT_CONNECT names, or else the daemon of this guest.
//! let volume = connect(Address::from_environment()?.path())?;
//! let file = volume.create("/hello", 0o644)?;
//! file.write_at(b"hello", 0)?;
//! file.sync()?;
//! # Ok(())
//! # }
//! ```
//!
//! There are four ways to carry out the same operations:
//! * *Calls* block, and poll for their answer before they sleep. Any number of threads share a [`Volume`] and its rings; whoever waits first looks
//!   after a ring for all.
//! * A [`Batch`] submits several at once, or linked ones: open, read and close are one submission ([`Volume::read_file`]).
//! * An [`AsyncVolume`] is for tasks of whatever executor.
//! * A [`Queue`] has a ring for itself, and keeps it full: the way to the most operations a second.
//!
//! A call that fails because the server is gone ([`Error::Ended`]) fails for good: connect again. What it asked for may have been done. After `fork` the child's calls fail
//! with [`Error::Forked`], and the parent's go on.
//!
//! Modules, lowest first:
//! `address` · `error` · `memory` · `patience` · `control` · `bell` · `room` · `lane` · `ring` · `connect` · `place` · `request` · `attributes` · `name` · `xattr` · `lock` ·
//! `space` · `file` · `vectored` · `directory` · `queue` · `batch` · `asynchronous` · `volume`

#![deny(unsafe_code)]

mod address;
mod asynchronous;
mod attributes;
mod batch;
mod bell;
mod connect;
mod control;
mod directory;
mod error;
mod file;
mod lane;
mod lock;
#[allow(unsafe_code)]
mod memory;
mod name;
mod patience;
mod place;
mod queue;
mod request;
mod ring;
mod room;
mod space;
mod vectored;
mod volume;
mod xattr;

pub use address::{ADDRESS_DEFAULT, ADDRESS_VARIABLE, Address, AddressError};
pub use asynchronous::{AsyncFile, AsyncVolume};
pub use attributes::{Access, Attributes, FileKind, SetAttributes, SetTime, Statistics, Timestamp};
pub use batch::{Batch, Outcome};
pub use connect::Options;
pub use directory::{DirectoryEntry, ReadDirectory};
pub use error::Error;
pub use file::{File, Open};
pub use lock::{HeldLock, Lock, LockMode};
pub use name::{NodeKind, RenameMode};
pub use place::Place;
pub use queue::{Completed, Queue, SharedBuffer};
pub use space::Allocate;
pub use volume::{Volume, connect, connect_with};
pub use xattr::SetXattrMode;
