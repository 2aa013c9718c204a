//! The Ringfort server and its command line: assembly of the layers below.
//!
//! Modules, lowest first:
//! `size` · `config` · `lock` · `cli`

#![forbid(unsafe_code)]

mod cli;
mod config;
mod lock;
mod size;

fn main() {}
