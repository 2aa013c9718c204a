//! The program in the guest: as `/init`'s successor it runs what the host asks for; as a command it writes and verifies
//! files byte by byte, so that what a test compares never left the guest.
#![forbid(unsafe_code)]

mod serve;

use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringfort-guest-agent {}: {error:#}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["serve"] => serve::serve(),
        _ => bail!("usage: ringfort-guest-agent serve"),
    }
}
