//! The command line: flags, help and examples.
//!
//! Modules, lowest first: `help` · `columns` · `serve` · `volume` · `views`

mod columns;
mod help;
mod serve;
mod views;
mod volume;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{LogFilter, LogFormat};

pub use serve::Serve;
pub use views::{Clone, Snapshot, ViewsList};
pub use volume::{Check, Checkpoint, Create, Export, Grow, List, Preallocation, Replace, Status, Volume};

/// Fast, durable, shared filesystems for virtual machines.
#[derive(Debug, Parser)]
#[command(name = "ringfort", version, after_help = help::TOP, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub log: LogFlags,
}

/// What holds for every command.
#[derive(Clone, Debug, Args)]
pub struct LogFlags {
    /// How much the log says: error, warn, info, debug, trace, off, or a filter. `serve` says info where nothing else is
    /// said, other commands error.
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<LogFilter>,
    /// How log lines look.
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a volume to guests.
    #[command(after_help = help::SERVE)]
    Serve(Serve),
    /// Create and look after volumes.
    #[command(subcommand, arg_required_else_help = true)]
    Volume(Volume),
    /// Keep what a volume holds, and see it later.
    #[command(subcommand, arg_required_else_help = true)]
    Snapshot(Snapshot),
    /// Filesystems of their own that begin as snapshots.
    #[command(subcommand, arg_required_else_help = true)]
    Clone(Clone),
    /// Write a shell's completion script to standard output.
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write manual pages, one a command.
    #[command(after_help = help::MANUAL)]
    Manual {
        /// Where to; made where it does not exist.
        directory: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }
}
