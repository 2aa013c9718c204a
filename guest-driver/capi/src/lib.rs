//! `libringfort`: the client library for C, as `include/ringfort.h` describes it; `header.rs` compares the two.
//!
//! Arguments that C may leave out are `Option`s of references and boxes, which are pointers that may be NULL; strings and buffers are types of `boundary`, the one room that
//! follows raw pointers.
//!
//! Modules, lowest first: `boundary` · `record` · `volume` · `file` · `directory` · `batch`

#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod batch;
#[allow(unsafe_code)]
mod boundary;
#[allow(unsafe_code)]
mod directory;
#[allow(unsafe_code)]
mod file;
#[cfg(test)]
mod header;
mod record;
#[allow(unsafe_code)]
mod volume;
