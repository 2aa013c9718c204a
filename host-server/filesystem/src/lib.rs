//! POSIX meaning on top of a volume.
//!
//! Modules, lowest first.
#![forbid(unsafe_code)]

pub mod errno;
pub mod operation;
