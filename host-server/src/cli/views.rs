//! `ringfort snapshot` and `ringfort clone`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::help;

#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Keep what a volume holds now.
    #[command(after_help = help::SNAPSHOT_CREATE)]
    Create(ViewCreate),
    /// Say which snapshots there are.
    #[command(after_help = help::SNAPSHOT_LIST)]
    List(ViewsList),
    /// Give up snapshots; what they alone hold becomes free.
    #[command(after_help = help::SNAPSHOT_DELETE)]
    Delete(ViewsDelete),
}

#[derive(Debug, Subcommand)]
pub enum Clone {
    /// Make a filesystem of its own that begins with what a snapshot holds.
    #[command(after_help = help::CLONE_CREATE)]
    Create(CloneCreate),
    /// Say which clones there are.
    #[command(after_help = help::CLONE_LIST)]
    List(ViewsList),
    /// Give up clones, with all that was written to them.
    #[command(after_help = help::CLONE_DELETE)]
    Delete(ViewsDelete),
}

#[derive(Debug, Args)]
pub struct ViewCreate {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// What it is called: 1 to 255 bytes without `/`.
    pub name: String,
}

#[derive(Debug, Args)]
pub struct CloneCreate {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// The snapshot that it begins as.
    pub snapshot: String,
    /// What it is called: 1 to 255 bytes without `/`.
    pub name: String,
}

#[derive(Debug, Args)]
pub struct ViewsList {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// One JSON object on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ViewsDelete {
    /// Directory of the volume.
    pub directory: PathBuf,
    /// What they are called.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}
