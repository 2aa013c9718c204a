//! Client library: files of a Ringfort volume through shared memory, without the kernel.
//!
//! Processes on the host connect to the Unix socket of `ringfort serve --channel unix:PATH`. Calls block, and poll for their answer before they sleep;
//! any number of threads may share a [`Volume`], each call uses one of its rings.
//!
//! ```no_run
//! # fn main() -> Result<(), ringfort_guest::Error> {
//! let volume = ringfort_guest::connect("/run/ringfort/data.ctl".as_ref())?;
//! let file = volume.create("/hello", 0o644)?;
//! file.write_at(b"hello", 0)?;
//! file.sync()?;
//! # Ok(())
//! # }
//! ```
//!
//! Modules, lowest first:
//! `address` · `error` · `memory` · `control` · `bell` · `room` · `lane` · `ring` · `connect` · `place` · `request` · `attributes` · `name` · `xattr` · `lock` ·
//! `space` · `file` · `directory` · `queue` · `batch` · `asynchronous` · `volume`

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
mod place;
mod queue;
mod request;
mod ring;
mod room;
mod space;
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
