//! The Ringfort server and its command line: assembly of the layers below.
//!
//! Modules, lowest first:
//! `size` · `volume_file` · `lock` · `cli` · `archive` · `report` · `admin` · `assemble` · `commands`

#![forbid(unsafe_code)]

mod admin;
mod archive;
mod assemble;
mod cli;
mod commands;
mod lock;
mod report;
mod size;
mod volume_file;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::cli::{Cli, Command, Volume};

/// The command could not run. 1 says that a check found damage.
const COULD_NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(matches!(cli.command, Command::Serve(_)));
    let result = match &cli.command {
        Command::Serve(arguments) => commands::serve::run(arguments),
        Command::Volume(Volume::Create(arguments)) => commands::create::run(arguments),
        Command::Volume(Volume::Status(arguments)) => commands::status::run(arguments),
        Command::Volume(Volume::Check(arguments)) => commands::check::run(arguments),
        Command::Volume(Volume::Export(arguments)) => commands::export::run(arguments),
    };
    result.unwrap_or_else(|error| {
        // One line: each cause in its own words, the way it came about.
        eprintln!("ringfort: {}", tell(&error));
        ExitCode::from(COULD_NOT_RUN)
    })
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

/// The log goes to standard error; a server tells more of itself than other commands do.
fn start_log(serving: bool) {
    let usual = if serving { LevelFilter::INFO } else { LevelFilter::ERROR };
    let filter = EnvFilter::builder().with_default_directive(usual.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter.with_env_var("RINGFORT_LOG").from_env_lossy())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
