//! `ringfort completions` and `ringfort manual`: the command line, described for other programs.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::cli::Cli;

pub fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ringfort", &mut script);
    std::io::stdout().write_all(&script).context("write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

pub fn manual(directory: &Path) -> Result<ExitCode> {
    let what = || format!("write manual pages to {}", directory.display());
    std::fs::create_dir_all(directory).with_context(what)?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(what)?;
    Ok(ExitCode::SUCCESS)
}
