//! What may be said on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  export RINGFORT_CONNECT=unix:/run/ringfort/data.ctl     # of `ringfort serve ./data --channel unix:/run/ringfort/data.ctl`
  rf mkdir /images
  rf put big.iso /images/
  rf ls -l /images
  rf get /images/big.iso copy.iso
  rf cat /notes.txt
  rf bench --json

Exit codes: 0 done; 2 refused or failed, as the message says.";

/// Files of a Ringfort volume, through memory that is shared with its server: no mount, and no kernel between.
#[derive(Debug, Parser)]
#[command(name = "rf", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Arguments {
    /// The server's channel.
    #[arg(long, value_name = "unix:PATH", env = "RINGFORT_CONNECT", global = true)]
    pub connect: Option<Address>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List a directory, or show a file.
    Ls {
        #[arg(default_value = "/")]
        path: String,
        /// With mode, links, owner, size and time.
        #[arg(short)]
        long: bool,
        #[arg(long)]
        json: bool,
    },
    /// Show the attributes of a file.
    Stat {
        path: String,
        #[arg(long)]
        json: bool,
    },
    /// Write a file to standard output.
    Cat { path: String },
    /// Copy a file of this machine into the volume, synced. `-` is standard input.
    Put {
        from: PathBuf,
        /// A file, or a directory with a slash at its end.
        to: String,
    },
    /// Copy a file of the volume to this machine. `-` is standard output.
    Get {
        from: String,
        /// A file or directory; the working directory where it is left out.
        to: Option<PathBuf>,
    },
    /// Make a directory.
    Mkdir { path: String },
    /// Remove files; with -d also empty directories.
    Rm {
        #[arg(required = true)]
        paths: Vec<String>,
        #[arg(short)]
        directory: bool,
    },
    /// Rename or move within the volume.
    Mv { from: String, to: String },
    /// Make a symbolic link.
    Ln { target: String, path: String },
    /// Make everything durable that was done to the volume.
    Sync,
    /// Measure calls of this machine: in a file of its own, which is removed afterwards.
    Bench {
        /// Calls of each kind.
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..))]
        calls: u32,
        #[arg(long)]
        json: bool,
    },
}

/// Where a server's channel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(pub PathBuf);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self(path.into())),
            _ => Err(format!("{text:?} is not unix:PATH")),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        assert_eq!("unix:/a".parse(), Ok(Address("/a".into())));
        assert!("/a".parse::<Address>().unwrap_err().contains("unix:PATH"));
    }
}
