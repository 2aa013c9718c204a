//! `cargo measure TOPIC`: figures with the conditions under which they were taken.
//!
//! Modules, lowest first:
//! `figures` · `load` · `volume` · `ringfort` · `files` · `btrfs` · `code` · `store`

#![forbid(unsafe_code)]

mod btrfs;
mod code;
mod figures;
mod files;
mod load;
mod ringfort;
mod store;
mod volume;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::figures::Figures;

const EXAMPLES: &str = "\
Examples:
  cargo measure store            a table
  cargo measure store --json     one JSON object: {\"ringfort\":{FIGURE:MEDIAN,…},\"btrfs_raid6\":…,\"raw\":…,\"spread\":…,…}
  cargo measure store --rounds 1 a quick look
  cargo measure code             parity and checksums against memcpy

Components are files under the build's target folder: what they lie on decides the rates. Counts (bytes, reads, flushes) do
not depend on it. The rival btrfs needs root, and its programs are fetched into the target folder; without root it is left out.";

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
    /// Erasure code and checksum, in GB/s of data on one core, beside memcpy.
    Code(Common),
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
    };
    match result {
        Ok(figures) => {
            print(&figures, common.json);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("measure: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print(figures: &Figures, json: bool) {
    if json {
        println!("{}", figures.to_json());
    } else {
        print!("{}", figures.to_table());
    }
}
