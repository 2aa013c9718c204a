//! Shows that no wake-up is lost between processors that share memory as a guest and its host do: the two ends of a ring, each of which parks
//! as often as it can. `ask` runs in the guest, in memory of its own; `answer` runs on the host, in the file that is the guest's
//! memory. Doorbells are words in that memory, so that millions of wake-ups take seconds.
//!
//! Modules, lowest first: `pages` · `bell` · `ends`

#![deny(unsafe_code)]

mod bell;
mod ends;
#[allow(unsafe_code)]
mod pages;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use crate::bell::Pauses;

const EXAMPLES: &str = "\
Example:
  guest$ ringfort-ring-trial ask --parks 10000000
  pages 1fa3000 2bb7000
  host$  ringfort-ring-trial answer --memory /proc/4711/fd/9 --pages 1fa3000,2bb7000";

/// Either end of a ring between a guest and its host.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, disable_help_subcommand = true)]
enum Arguments {
    /// Submits commands until both ends together have parked so often. Says first where its pages are.
    Ask {
        #[arg(long)]
        parks: u64,
        #[command(flatten)]
        pauses: PauseFlags,
    },
    /// Answers until the other end is done.
    Answer {
        /// The file that is the guest's memory.
        #[arg(long)]
        memory: PathBuf,
        /// Guest physical addresses of the pages, hexadecimal.
        #[arg(long, value_delimiter = ',', value_parser = address)]
        pages: Vec<u64>,
        #[command(flatten)]
        pauses: PauseFlags,
    },
}

/// Pauses at random, so that the two ends meet in every order.
#[derive(Debug, clap::Args)]
struct PauseFlags {
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The longest pause: for the faster side, some that the slower one needs to fall asleep.
    #[arg(long, default_value_t = 64)]
    pause_loops: u64,
}

impl PauseFlags {
    fn pauses(&self) -> Pauses {
        Pauses::new(self.seed, self.pause_loops)
    }
}

fn address(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|error| error.to_string())
}

fn main() -> Result<()> {
    let tally = match Arguments::parse() {
        Arguments::Ask { parks, pauses } => {
            let (memory, addresses) = pages::own()?;
            let addresses: Vec<String> = addresses.iter().map(|address| format!("{address:x}")).collect();
            println!("pages {}", addresses.join(" "));
            ends::ask(&memory, parks, pauses.pauses())?
        }
        Arguments::Answer { memory, pages, pauses } => {
            ends::answer(&pages::of_file(&memory, &pages)?, pauses.pauses())?
        }
    };
    println!("commands {} parks {} in {} ms", tally.commands, tally.parks, tally.elapsed.as_millis());
    Ok(())
}
