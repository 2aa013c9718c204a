//! Log-structured, erasure-coded store.
//!
//! Modules, lowest first.
#![deny(unsafe_code)]

pub mod address;
pub mod error;
pub mod format;
pub mod geometry;
pub mod kv;
pub mod map;
pub mod model;
pub mod object;
pub mod volume;
