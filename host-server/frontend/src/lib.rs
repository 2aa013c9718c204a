//! Front ends: untrusted bytes of guests ↔ operations of the filesystem.
//!
//! Untrusted input ends here. What a guest sends is copied out of its memory once, validated, and only then used; a bad
//! request costs its sender an error and leaves a count in the metrics.
//!
//! Modules, lowest first: `listen` · `rate_limit` · `metrics` · `pending` · `service` · `task` · `machine` ·
//! `virtiofs` · `channel`

#![deny(unsafe_code)]

pub mod channel;
pub mod listen;
pub mod machine;
pub mod metrics;
mod pending;
mod rate_limit;
pub mod service;
mod task;
pub mod virtiofs;
