//! `ringfort volume`

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::columns::Columns;
use super::help;
use crate::size::ByteSize;

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Make a volume.
    #[command(after_help = help::CREATE)]
    Create(Create),
    /// Components, space, log and counters.
    #[command(after_help = help::STATUS)]
    Status(Status),
    /// Verify every structure of a volume that is not being served.
    #[command(after_help = help::CHECK)]
    Check(Check),
    /// Bring everything that a served volume's log holds to its place.
    #[command(after_help = help::CHECKPOINT)]
    Checkpoint(Checkpoint),
    /// Write all files of a volume that is not being served to a tar archive.
    #[command(after_help = help::EXPORT)]
    Export(Export),
    /// Find volumes and say how they are.
    #[command(after_help = help::LIST)]
    List(List),
    /// Make a volume that is not being served larger.
    #[command(after_help = help::GROW)]
    Grow(Grow),
    /// Put a new component in the place of a lost one.
    #[command(after_help = help::REPLACE)]
    Replace(Replace),
}

#[derive(Debug, Args)]
pub struct Create {
    /// Directory of the volume; made where it does not exist. The root directory inside belongs to whoever makes the volume.
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
    /// Size of the log, which bounds what has to be replayed after a crash: 1/64 of the volume's, 32MiB to 512MiB, where not given.
    #[arg(long, value_name = "SIZE")]
    pub log: Option<ByteSize>,
    /// How far the components are written now: their space reserved, or zeros written to all of it, which takes longer and
    /// makes the first write to each place as quick as later ones.
    #[arg(long, value_enum, default_value_t)]
    pub preallocation: Preallocation,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Preallocation {
    #[default]
    Reserved,
    Full,
}

#[derive(Debug, Args)]
pub struct Status {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// One JSON object on standard output; with --watch one a line for each interval.
    #[arg(long)]
    pub json: bool,
    /// Go on, with rates, every so many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    pub watch: Option<Duration>,
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
pub struct Checkpoint {
    /// Directory of the volume.
    pub directory: PathBuf,
}

#[derive(Debug, Args)]
pub struct Export {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// A file to be made; standard output where not given.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct List {
    /// Where to look, with everything below; the current directory where none is given.
    #[arg(value_name = "DIR")]
    pub directories: Vec<PathBuf>,
    /// One JSON object on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Grow {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// Usable size to grow to, such as 16GiB. Without it and --by: all that the components have room for now.
    #[arg(long, conflicts_with = "by")]
    pub size: Option<ByteSize>,
    /// Usable size to add.
    #[arg(long, value_name = "SIZE")]
    pub by: Option<ByteSize>,
    /// Bound of the memory for the volume's maps, where they need more than the volume's setting; kept as its new setting.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
    /// One JSON object on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Replace {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// Which component, as `volume status` numbers them.
    #[arg(long, value_name = "NUMBER")]
    pub position: u8,
    /// The new one: a file to be made, or a block device to be taken over. Without it, the path that volume.toml names.
    #[arg(long, value_name = "PATH")]
    pub component: Option<PathBuf>,
    /// Overwrite a block device without asking.
    #[arg(long)]
    pub yes: bool,
    /// A JSON object a line: progress, then what was done.
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(interval) if (0.1..=3600.0).contains(&seconds) => Ok(interval),
        _ => Err(format!("{text}: 0.1 to 3600 seconds are possible")),
    }
}
