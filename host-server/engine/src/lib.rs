//! Devices, time and chance.
//!
//! Everything above this crate sees the outside world only through [`Engine`] and [`Device`], so that the
//! same store runs on real components ([`local`]) and inside a seeded simulation ([`sim`]).
//!
//! # Threads
//! An engine belongs to the thread that made it: one thread owns a volume, runs its tasks, submits its I/O
//! and reaps the completions. Nothing here is `Send` but [`Remote`], the mailbox by which other threads
//! hand work to the owner.
//!
//! # Durability contract
//! See [`Device`].
//!
//! Modules, lowest first:
//! `buffer` · `error` · `completion` · `device` · `memory` · `runtime` · `engine` · `local` · `sim`

pub mod buffer;
pub mod completion;
pub mod device;
pub mod engine;
pub mod error;
pub mod memory;
