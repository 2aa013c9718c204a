//! Log-structured, erasure-coded store.
//!
//! Modules, lowest first.
#![deny(unsafe_code)]

pub mod address;
pub mod error;
pub mod format;
pub mod geometry;
pub mod limits;
pub mod volume;
pub mod model;
pub mod object;
pub mod kv;
pub mod map;
pub(crate) mod segment;
pub(crate) mod log;
pub(crate) mod state;
pub(crate) mod core;
pub(crate) mod commit;
pub(crate) mod checkpoint;
pub mod recover;
pub mod create;
pub mod status;
pub mod store;
