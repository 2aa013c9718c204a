//! Devices, time and chance.
//!
//! Everything above this crate sees the outside world only through [`engine::Engine`] and [`device::Device`], so that
//! the same store runs on real components ([`local`]) and inside a seeded simulation ([`sim`]).
//!
//! # Threads
//! An engine belongs to the thread that made it: one thread owns a volume, runs its tasks, submits its I/O
//! and reaps the completions. Nothing here is `Send` but [`runtime::Remote`] and [`mailbox::Sender`], by which other
//! threads hand work to the owner.
//!
//! # Durability contract
//! See [`device::Device`].
//!
//! # Unsafe code
//! Only in `buffer`, `buffer/arena`, `buffer/heap` and `buffer/pages`, `memory`, `local/uring`, `local/threads` and `local/mapping`.
//!
//! Modules, lowest first:
//! `buffer` · `error` · `completion` · `device` · `memory` · `executor` · `timer` · `mailbox` · `sync` · `source` · `engine` ·
//! `runtime` · `local` · `sim`

#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod buffer;
pub mod completion;
pub mod device;
pub mod engine;
pub mod error;
mod executor;
pub mod local;
pub mod mailbox;
#[allow(unsafe_code)]
pub mod memory;
pub mod runtime;
pub mod sim;
pub mod source;
pub mod sync;
mod timer;
