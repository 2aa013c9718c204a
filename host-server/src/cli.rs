//! The command line: flags, help and examples.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::size::ByteSize;

const TOP_EXAMPLES: &str = "\
Examples:
  ringfort volume create ./data --size 8GiB
  ringfort serve ./data --virtiofs /run/ringfort/vm1.sock
  ringfort volume status ./data

Exit codes:
  0  done
  1  `volume check` found damage
  2  the command could not run: wrong flags, or a failure that the message explains

The log goes to standard error; RINGFORT_LOG=debug (or a tracing filter) says more.";

const CREATE_EXAMPLES: &str = "\
Examples:
  ringfort volume create ./data --size 8GiB
      Six component files in ./data: data 4+2, metadata mirrored three ways.
  ringfort volume create ./small --size 1GiB --data 2+1
  ringfort volume create ./fast --data 4+2 --size 100GiB --memory 8GiB \\
      --component /dev/sda --component /dev/sdb --component /dev/sdc \\
      --component /dev/sdd --component /dev/sde --component /dev/sdf \\
      --metadata-component /dev/nvme0n1 --metadata-component /dev/nvme1n1 --metadata-component /dev/nvme2n1

Block devices given with --component are overwritten.

Exit codes: 0 created; 2 refused or failed, nothing is left behind.";

const SERVE_EXAMPLES: &str = "\
Examples:
  ringfort serve ./data --virtiofs /run/ringfort/vm1.sock
  ringfort serve ./data --virtiofs /run/ringfort/vm1.sock --virtiofs /run/ringfort/vm2.sock --cache auto

Give QEMU `-chardev socket,id=fs,path=/run/ringfort/vm1.sock` and `-device vhost-user-fs-pci,chardev=fs,tag=ringfort`
with shared memory (`memory-backend-memfd,share=on`); in the guest: mount -t virtiofs ringfort /mnt

SIGTERM or SIGINT stops cleanly: requests drain, everything is synced. A second one exits at once; what was synced is safe.

Exit codes: 0 stopped cleanly; 2 could not start, or failed.";

const STATUS_EXAMPLES: &str = "\
Examples:
  ringfort volume status ./data
  ringfort volume status ./data --json | jq .space

A volume that is being served answers through its admin socket; another is opened for reading.

Exit codes: 0 reported; 2 could not report.";

const CHECK_EXAMPLES: &str = "\
Examples:
  ringfort volume check ./data
  ringfort volume check ./data --json

Reads every structure and every block of a volume that is not being served, and changes nothing.

Exit codes: 0 clean; 1 damage found; 2 could not run.";

const EXPORT_EXAMPLES: &str = "\
Examples:
  ringfort volume export ./data | tar -x -C ./rescued
  ringfort volume export ./data --output data.tar

The volume is opened as `serve` opens it, recovery included; it must not be being served. Names, owners, modes, links,
device nodes and extended attributes are kept (`tar --xattrs` restores those), times to the second. Holes are written as
zeros; sockets are left out.

Exit codes: 0 exported; 1 what could not be read is named, and reads as zeros or is left out; 2 could not run.";

/// Fast, durable, shared filesystems for virtual machines.
#[derive(Debug, Parser)]
#[command(name = "ringfort", version, after_help = TOP_EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a volume to guests.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Serve),
    /// Create and look after volumes.
    #[command(subcommand, arg_required_else_help = true)]
    Volume(Volume),
}

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Make a volume.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// Components, space, log and counters.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(Status),
    /// Verify every structure of a volume that is not being served.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Check),
    /// Write all files of a volume that is not being served to a tar archive.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(Export),
}

#[derive(Debug, Args)]
pub struct Create {
    /// Directory of the volume; made where it does not exist.
    pub directory: PathBuf,
    /// Usable size, such as 8GiB.
    #[arg(long)]
    pub size: ByteSize,
    /// Data and parity columns, K+M: M components may be lost.
    #[arg(long, value_name = "K+M", default_value = "4+2")]
    pub data: Columns,
    /// A file to be made, or a block device to be taken over, for one column; K+M of them. Without any, files are made
    /// in the directory.
    #[arg(long = "component", value_name = "PATH")]
    pub components: Vec<PathBuf>,
    /// The same for one metadata mirror; M+1 of them. Without any, the first M+1 components carry the metadata.
    #[arg(long = "metadata-component", value_name = "PATH", requires = "components")]
    pub metadata_components: Vec<PathBuf>,
    /// Bound of the memory for the volume's maps; limits the size.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub memory: ByteSize,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// Unix socket for one guest's vhost-user-fs device; repeat for more guests.
    #[arg(long = "virtiofs", value_name = "SOCKET", required = true)]
    pub sockets: Vec<PathBuf>,
    /// What guests may cache: nothing, for a second, or for ever (only where one guest alone changes files).
    #[arg(long, value_enum, default_value_t = Cache::Auto)]
    pub cache: Cache,
    /// What no program has synced is synced within this time.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub commit_interval_ms: u64,
    /// Bound of the memory for the volume's maps; the volume's own setting where not given.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Serve although members of the newest label are missing that could be serving elsewhere. Only when you know that
    /// they are not: two halves of a volume that were written apart cannot be joined again.
    #[arg(long)]
    pub override_membership: bool,
}

#[derive(Debug, Args)]
pub struct Status {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// One JSON object on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Check {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// One JSON object on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Export {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// A file to be made; standard output where not given.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What a guest's kernel may cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cache {
    /// Nothing: every look goes to the server.
    Never,
    /// Names and attributes for a second; contents from open to open.
    Auto,
    /// Everything, until the guest itself changes it.
    Always,
}

/// `K+M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    pub data: u8,
    pub parity: u8,
}

impl FromStr for Columns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('+').and_then(|(data, parity)| {
            Some(Columns { data: data.trim().parse().ok()?, parity: parity.trim().parse().ok()? })
        });
        match parsed {
            Some(columns @ Columns { data: 1..=16, parity: 0..=3 }) => Ok(columns),
            Some(Columns { data, parity }) => Err(format!(
                "{data}+{parity} is outside the bounds: 1 to 16 data columns and 0 to 3 parity columns, such as 4+2"
            )),
            None => Err(format!("{text:?} is not K+M; write data and parity columns, such as 4+2")),
        }
    }
}

impl std::fmt::Display for Columns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn columns_outside_the_bounds_are_refused() {
        assert_eq!("4+2".parse(), Ok(Columns { data: 4, parity: 2 }));
        for text in ["4", "4+", "0+2", "17+2", "4+4", "4+2+1", "-1+2"] {
            assert!(text.parse::<Columns>().is_err(), "{text}");
        }
    }
}
