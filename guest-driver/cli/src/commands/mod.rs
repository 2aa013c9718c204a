//! The commands.
//!
//! Modules, lowest first: `show` · `transfer` · `bench`

mod bench;
mod show;
mod transfer;

use anyhow::{Context, Result};
use ringfort_guest::Volume;

use crate::arguments::{Arguments, Command};

pub fn run(arguments: &Arguments) -> Result<()> {
    let address = arguments.connect.as_ref().context(
        "no server is named: give --connect unix:PATH or set RINGFORT_CONNECT; \
         `ringfort serve DIRECTORY --channel unix:PATH` opens a channel",
    )?;
    let volume = ringfort_guest::connect(&address.0)?;
    match &arguments.command {
        Command::Ls { path, long, json } => show::list(&volume, path, *long, *json),
        Command::Stat { path, json } => show::stat(&volume, path, *json),
        Command::Cat { path } => transfer::get(&volume, path, Some("-".as_ref())),
        Command::Put { from, to } => transfer::put(&volume, from, to),
        Command::Get { from, to } => transfer::get(&volume, from, to.as_deref()),
        Command::Mkdir { path } => Ok(volume.create_directory(path, 0o755)?),
        Command::Rm { paths, directory } => remove(&volume, paths, *directory),
        Command::Mv { from, to } => Ok(volume.rename(from, to)?),
        Command::Ln { target, path } => Ok(volume.symlink(target, path)?),
        Command::Sync => Ok(volume.sync()?),
        Command::Bench { calls, json } => bench::run(&volume, *calls, *json),
    }
}

fn remove(volume: &Volume, paths: &[String], directories: bool) -> Result<()> {
    const EISDIR: i32 = 21;
    for path in paths {
        match volume.remove_file(path) {
            Err(error) if directories && error.errno() == EISDIR => volume.remove_directory(path)?,
            removed => removed?,
        }
    }
    Ok(())
}
