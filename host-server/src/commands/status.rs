//! `ringfort volume status`

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;

use super::watch;
use crate::cli;
use crate::observe;

pub fn run(arguments: &cli::Status) -> Result<ExitCode> {
    let directory = &arguments.directory;
    if let Some(interval) = arguments.watch {
        return watch::run(directory, interval, arguments.json);
    }
    let status = observe::status(directory)?;
    let text = if arguments.json { serde_json::to_string_pretty(&status)? + "\n" } else { status.to_text() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
