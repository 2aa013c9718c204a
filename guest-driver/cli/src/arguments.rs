//! What may be said on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ringfort_guest::{ADDRESS_DEFAULT, ADDRESS_VARIABLE, Address};

use crate::mode::{Mode, Owner};

const EXAMPLES: &str = "\
Examples:
  rf --connect unix:/run/ringfort/data.ctl ls -l /        # of `ringfort serve ./data --channel unix:/run/ringfort/data.ctl`
  export RINGFORT_CONNECT=unix:/run/ringfort/data.ctl     # the same for all that follow; in a guest nothing need be said
  rf put -r photos big.iso /images/
  rf get /images/big.iso copy.iso
  rf cp -r /images /backup
  tar c src | rf put - /src.tar
  rf cat /notes.txt
  rf bench --json

Copies appear under their names whole or not at all, also where rf is interrupted.
Exit codes: 0 done; 2 refused or failed, as the message says.";

/// Files of a Ringfort volume, through memory that is shared with its server: no mount, and no kernel between.
#[derive(Debug, Parser)]
#[command(name = "rf", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub struct Arguments {
    /// The server's channel, or the guest daemon's.
    #[arg(
        long,
        value_name = "unix:PATH",
        env = ADDRESS_VARIABLE,
        default_value = ADDRESS_DEFAULT,
        global = true
    )]
    pub connect: Address,
    #[command(subcommand)]
    pub command: Command,
}

/// How files are copied.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Copying {
    /// Directories, with everything in them.
    #[arg(short, long)]
    pub recursive: bool,
    /// With times, all permissions, and, where this user may, owners.
    #[arg(short, long)]
    pub preserve: bool,
    /// Show no progress; it is shown on a terminal only.
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List directories, or show files.
    Ls {
        #[arg(default_value = "/")]
        paths: Vec<PathBuf>,
        /// With mode, links, owner, size and time.
        #[arg(short)]
        long: bool,
        #[arg(long)]
        json: bool,
    },
    /// Show the attributes of files; of symbolic links themselves.
    Stat {
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        #[arg(long)]
        json: bool,
    },
    /// Write files to standard output.
    Cat {
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Copy files of this machine into the volume, and make them durable.
    Put {
        #[command(flatten)]
        copying: Copying,
        /// FROM... TO: files of this machine (`-` is standard input), then a name or directory of the volume.
        #[arg(required = true, num_args = 2.., value_names = ["FROM", "TO"])]
        paths: Vec<PathBuf>,
    },
    /// Copy files of the volume to this machine.
    Get {
        #[command(flatten)]
        copying: Copying,
        /// FROM... TO: files of the volume, then a name or directory of this machine (`-` is standard output). One FROM alone goes into the working directory.
        #[arg(required = true, num_args = 1.., value_names = ["FROM", "TO"])]
        paths: Vec<PathBuf>,
    },
    /// Copy files within the volume.
    Cp {
        #[command(flatten)]
        copying: Copying,
        /// FROM... TO
        #[arg(required = true, num_args = 2.., value_names = ["FROM", "TO"])]
        paths: Vec<PathBuf>,
    },
    /// Make directories.
    Mkdir {
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Those above it, too; and no error where it is there.
        #[arg(short, long)]
        parents: bool,
    },
    /// Remove files; with -d empty directories, with -r directories with everything in them.
    Rm {
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        #[arg(short)]
        directory: bool,
        #[arg(short, long)]
        recursive: bool,
        /// No error where there is nothing.
        #[arg(short, long)]
        force: bool,
    },
    /// Rename, or move into a directory.
    Mv {
        /// FROM... TO
        #[arg(required = true, num_args = 2.., value_names = ["FROM", "TO"])]
        paths: Vec<PathBuf>,
        /// Fail where the new name is taken.
        #[arg(short, long)]
        no_replace: bool,
    },
    /// Give a file another name, or with -s make a symbolic link.
    Ln {
        target: PathBuf,
        path: PathBuf,
        #[arg(short, long)]
        symbolic: bool,
    },
    /// Make empty files, or set the times of files to now.
    Touch {
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Change permissions.
    Chmod {
        /// As 644, or as u+x,go-w.
        #[arg(allow_hyphen_values = true)]
        mode: Mode,
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        #[arg(short = 'R', long)]
        recursive: bool,
    },
    /// Change owners.
    Chown {
        /// USER, USER:GROUP or :GROUP: numbers, or names of this machine.
        owner: Owner,
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        #[arg(short = 'R', long)]
        recursive: bool,
    },
    /// Show how full the volume is.
    Df {
        #[arg(long)]
        json: bool,
    },
    /// Make everything durable that was done to the volume.
    Sync,
    /// Measure calls of this machine: in a file of its own, which is removed afterwards.
    Bench {
        /// Calls of each kind.
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..))]
        calls: u32,
        /// Read the first 4 KiB of this file of the volume, in place of its own.
        #[arg(long, value_name = "PATH")]
        file: Option<String>,
        /// Write and read so much in sequence as well.
        #[arg(long, value_name = "MIB", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=65_536))]
        stream_mib: u32,
        #[arg(long)]
        json: bool,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        let chmod = Arguments::try_parse_from(["rf", "chmod", "-w", "/a"]);
        assert!(matches!(chmod.map(|parsed| parsed.command), Ok(Command::Chmod { .. })));
    }
}
