//! Every byte that a guest and a host share: layouts and their checks, no I/O.
//!
//! Modules, lowest first:
//! `version` · `control` · `ring`

#![deny(unsafe_code)]

pub mod version;

pub mod control;

pub mod ring;
