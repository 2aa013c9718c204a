//! What may be said on the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  mount -t virtiofs data /mnt/data && ringfort-guestd &
  ringfort-guestd --mount /mnt/data --socket /run/ringfort/data.sock
  ringfort-guestd status --json

The host runs `ringfort serve ./data --virtiofs /run/vm1.sock --channel vm1:cid=3` (or vm1:vsock-unix=PATH).

Exit codes: 0 stopped by a signal, or told the status; 2 could not, as the message says.";

/// Lets programs of this guest use a Ringfort volume through memory that is shared with its server. Runs as root, in the foreground, until it is
/// stopped.
#[derive(Clone, Debug, Parser)]
#[command(version, after_help = EXAMPLES, disable_help_subcommand = true, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// A virtio-fs mount of the volume. The first that has a channel where it is left out.
    #[arg(long, value_name = "DIRECTORY")]
    pub mount: Option<PathBuf>,
    /// Where clients connect: anybody may, and acts as who they are.
    #[arg(long, value_name = "PATH", default_value = "/run/ringfort/guestd.sock")]
    pub socket: PathBuf,
    /// Files of the memory that is shared: a hugetlbfs, which is mounted there where it is missing.
    #[arg(long, value_name = "DIRECTORY", default_value = "/run/ringfort/pages")]
    pub pages: PathBuf,
    /// The most memory that clients have together, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(2..=1024))]
    pub memory_max_mib: u64,
    /// The most memory that the clients of one user, root aside, have together, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(2..=1024))]
    pub user_memory_max_mib: u64,
    /// Share small pages, in a tmpfs, where the guest has no huge ones to spare. Clients then begin anew whenever the machine was stopped
    /// and went on.
    #[arg(long)]
    pub small_pages: bool,
    /// Writes what a mount says of its channel, and ends: what the daemon runs aside, because a mount whose server is gone answers nobody.
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    pub ask: Option<PathBuf>,
    /// How much to say.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Says what the daemon that runs is doing: whether it reaches the server, and which clients have how much memory. For root.
    Status {
        /// As JSON, in one line.
        #[arg(long)]
        json: bool,
        /// Where its clients connect.
        #[arg(long, value_name = "PATH", default_value = "/run/ringfort/guestd.sock")]
        socket: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        let asked = Arguments::parse_from(["ringfort-guestd", "status", "--json"]);
        assert!(matches!(asked.command, Some(Command::Status { json: true, .. })));
        assert!(Arguments::try_parse_from(["ringfort-guestd", "--small-pages", "status"]).is_err());
    }
}
