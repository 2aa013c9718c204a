//! Every byte that a guest and a host share: layouts and their checks, no I/O.
//!
//! So far the ledger of versions and the envelope of control messages. Rings, commands and completions of the shared-memory
//! channel are not built; guests reach a volume through virtio-fs.
//!
//! Modules, lowest first:
//! `version` · `control`

#![forbid(unsafe_code)]

pub mod version;

pub mod control;
