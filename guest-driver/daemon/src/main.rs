//! `ringfort-guestd`: the daemon of a guest. It owns the memory that clients share with the server, and the connection over which that is agreed on;
//! commands never pass it.
//!
//! Clients connect to its Unix socket and need no privilege: who they are is what the kernel says of them. Each gets memory of its own, in pages
//! that nobody else has a part of.
//!
//! Modules, lowest first: `arguments` · `peer` · `stream` · `invitation` · `pages` · `layout` · `link` · `region` · `holdings` ·
//! `client` · `daemon`

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
mod stream;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let format = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false);
    let format = format.with_ansi(std::io::stderr().is_terminal());
    format.with_max_level(arguments.log_level).init();
    let ended = match &arguments.ask {
        Some(place) => invitation::tell(place),
        None => daemon::run(&arguments),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringfort-guestd: {error:#}");
            ExitCode::from(2)
        }
    }
}
