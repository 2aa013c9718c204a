//! `rf`: files of a volume from the command line.
//!
//! Modules, lowest first: `mode` · `arguments` · `progress` · `side` · `commands`

#![forbid(unsafe_code)]

mod arguments;
mod commands;
mod mode;
mod progress;
mod side;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match commands::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rf: {error:#}");
            ExitCode::from(2)
        }
    }
}
