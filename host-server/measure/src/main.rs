//! `cargo measure TOPIC`: figures with the conditions under which they were taken.
//!
//! Modules, lowest first:
//! `figures` · `load` · `claims` · `volume` · `ringfort` · `files` · `btrfs` · `isal` · `virtiofsd` · `pace` · `mirrors` ·
//! `code` · `instructions` ·
//! `guest` · `ring` · `store`

// ISA-L is called through C: `isal.rs` alone may.
#![deny(unsafe_code)]

mod btrfs;
mod claims;
mod code;
mod figures;
mod files;
mod guest;
mod instructions;
mod isal;
mod load;
mod mirrors;
mod pace;
mod ring;
mod ringfort;
mod store;
mod virtiofsd;
mod volume;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::figures::Figures;

const EXAMPLES: &str = "\
Examples:
  cargo measure store            a table
  cargo measure store --json     one JSON object: {\"ringfort\":{FIGURE:MEDIAN,…},\"btrfs_raid6\":…,\"raw\":…,\"spread\":…,…}
  cargo measure store --rounds 1 a quick look
  cargo measure code             parity, reconstruction and checksums beside ISA-L and memcpy
  cargo measure guest            operations in a guest: virtio-fs beside virtiofsd, both in one machine
  cargo measure guest --rounds 1 what a change to the data plane did, roughly
  cargo measure ring             calls through shared memory on this host

Components are files under the build's target folder: what they lie on decides the rates. Counts (bytes, reads, flushes) do
not depend on it. The rival btrfs needs root, and its programs are fetched into the target folder; without root it is left out.
ISA-L, virtiofsd and valgrind are fetched, the first two built, there as well; none of it needs root, and what cannot be fetched is left out and named.

A goal that is missed is said in the output and is no error. Exit status: 0 measured; 1 not measured, which includes servers that
counted something else than they were asked for and rivals that computed other bytes; 2 a wrong command line.";

/// Measured figures of Ringfort.
#[derive(Debug, Parser)]
#[command(name = "cargo measure", after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    topic: Topic,
}

#[derive(Debug, Subcommand)]
enum Topic {
    /// Bytes, requests and rates of the store under small and large writes, reads, lost components and recovery, beside btrfs
    /// raid6 and the file system underneath.
    Store(Common),
    /// Erasure code, reconstruction and checksum, in GB/s of data on one core, beside ISA-L and memcpy.
    Code(Common),
    /// What operations cost a program in a guest: Ringfort's virtio-fs beside virtiofsd, with no caching in the guest.
    Guest(Common),
    /// What a call costs a process of this host through shared memory, beside a cache line's way to another processor and back, and
    /// beside what the kernel takes to wake two sleepers; what another client's flood does to it; and the server's instructions.
    Ring(Common),
    /// What callgrind counts for `ring`.
    #[command(hide = true)]
    CountedReads { volume: PathBuf, reads: u64 },
}

#[derive(Debug, Args)]
struct Common {
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// How often everything is measured, in turn; the median is reported, and the spread.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::ERROR)
        .with_writer(std::io::stderr)
        .init();
    let (result, common) = match Cli::parse().topic {
        Topic::Store(common) => (store::measure(common.rounds), common),
        Topic::Code(common) => (code::measure(common.rounds), common),
        Topic::Guest(common) => (guest::measure(common.rounds), common),
        Topic::Ring(common) => (ring::measure(common.rounds), common),
        Topic::CountedReads { volume, reads } => return ended(instructions::run_counted(&volume, reads)),
    };
    match result {
        Ok(figures) => {
            print(&figures, common.json);
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    result.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("measure: {error:#}");
    ExitCode::FAILURE
}

fn print(figures: &Figures, json: bool) {
    if json {
        println!("{}", figures.to_json());
    } else {
        print!("{}", figures.to_table());
    }
}
