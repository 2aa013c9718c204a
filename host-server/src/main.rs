//! The Ringfort server and its command line: assembly of the layers below.
//!
//! Modules, lowest first:
//! `size` · `volume_file` · `lock` · `config` · `logging` · `cli` · `archive` · `report` · `admin` · `assemble` · `observe` ·
//! `metrics` · `service_manager` · `commands`

#![forbid(unsafe_code)]

mod admin;
mod archive;
mod assemble;
mod cli;
mod commands;
mod config;
mod lock;
mod logging;
mod metrics;
mod observe;
mod report;
mod service_manager;
mod size;
mod volume_file;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command, LogFlags, Volume};
use crate::commands::COULD_NOT_RUN;
use crate::config::{LogFilter, LogFormat};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Serve(_)) {
        start_log(&cli.log);
    }
    let result = match &cli.command {
        Command::Serve(arguments) => commands::serve::run(arguments, &cli.log),
        Command::Volume(Volume::Create(arguments)) => commands::create::run(arguments),
        Command::Volume(Volume::Status(arguments)) => commands::status::run(arguments),
        Command::Volume(Volume::Check(arguments)) => commands::check::run(arguments),
        Command::Volume(Volume::Checkpoint(arguments)) => commands::checkpoint::run(arguments),
        Command::Volume(Volume::Export(arguments)) => commands::export::run(arguments),
        Command::Volume(Volume::List(arguments)) => commands::list::run(arguments),
        Command::Volume(Volume::Grow(arguments)) => commands::grow::run(arguments),
        Command::Volume(Volume::Replace(arguments)) => commands::replace::run(arguments),
        Command::Snapshot(command) => commands::snapshot::snapshot(command),
        Command::Clone(command) => commands::snapshot::clone(command),
        Command::Completions { shell } => commands::describe::completions(*shell),
        Command::Manual { directory } => commands::describe::manual(directory),
    };
    result.unwrap_or_else(|error| {
        // One line: each cause in its own words, the way it came about.
        eprintln!("ringfort: {}", tell(&error));
        ExitCode::from(COULD_NOT_RUN)
    })
}

/// Commands other than `serve` say what they have to say on standard output; their log is for what goes wrong below.
fn start_log(flags: &LogFlags) {
    let filter = flags.log_level.clone().or(logging::environment().log_level.map(|setting| setting.value));
    logging::start(&filter.unwrap_or_else(LogFilter::error), flags.log_format.unwrap_or(LogFormat::Text));
}

/// The chain of causes, without those that the one before tells already.
fn tell(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}
