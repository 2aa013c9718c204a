//! `ringfort-guestd`: the daemon of a guest. It owns the memory that clients share with the server, and the connection over which that is agreed on;
//! commands never pass it.
//!
//! Clients connect to its Unix socket and need no privilege: who they are is what the kernel says of them. Each gets memory of its own, in pages
//! that nobody else has a part of.
//!
//! Modules, lowest first: `arguments` · `peer` · `stream` · `invitation` · `pages` · `layout` · `link` · `region` · `holdings` ·
//! `status` · `client` · `daemon`

#![deny(unsafe_code)]

mod arguments;
mod client;
mod daemon;
mod holdings;
mod invitation;
mod layout;
mod link;
#[allow(unsafe_code)]
mod pages;
#[allow(unsafe_code)]
mod peer;
mod region;
mod status;
mod stream;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::arguments::{Arguments, Command};
use crate::status::Status;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Status { json, socket }) = &arguments.command {
        return ended(tell_status(socket, *json));
    }
    let format = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false);
    let format = format.with_ansi(std::io::stderr().is_terminal());
    format.with_max_level(arguments.log_level).init();
    ended(match &arguments.ask {
        Some(place) => invitation::tell(place),
        None => daemon::run(&arguments),
    })
}

fn tell_status(socket: &Path, json: bool) -> Result<()> {
    let status = Status::ask(socket)?;
    match json {
        true => println!("{}", serde_json::to_string(&status)?),
        false => println!("{status}"),
    }
    Ok(())
}

fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringfort-guestd: {error:#}");
            ExitCode::from(2)
        }
    }
}
