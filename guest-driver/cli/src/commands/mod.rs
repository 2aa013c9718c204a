//! The commands.
//!
//! Modules, lowest first: `show` · `copy` · `change` · `bench`

mod bench;
mod change;
mod copy;
mod show;

use std::time::Duration;

use anyhow::Result;
use ringfort_guest::{Options, Volume, connect, connect_with};

use crate::arguments::{Arguments, Command};
use bench::Plan;
use change::Removing;

pub fn run(arguments: &Arguments) -> Result<()> {
    if let Command::Bench { calls, file, stream_mib, json } = &arguments.command {
        let with_queue = Options { queues: 1, ..Options::default() };
        let volume = connect_with(arguments.connect.path(), &with_queue)?;
        let without_polling = Options { busy_poll: Duration::ZERO, rings: 1, ..Options::default() };
        let sleepy = connect_with(arguments.connect.path(), &without_polling)?;
        let plan = Plan { calls: *calls, file: file.as_deref(), stream_mib: *stream_mib, as_json: *json };
        return bench::run(&volume, &sleepy, &plan);
    }
    carry_out(&connect(arguments.connect.path())?, &arguments.command)
}

fn carry_out(volume: &Volume, command: &Command) -> Result<()> {
    match command {
        Command::Ls { paths, long, json } => show::list(volume, paths, *long, *json),
        Command::Stat { paths, json } => show::stat(volume, paths, *json),
        Command::Cat { paths } => copy::cat(volume, paths),
        Command::Put { copying, paths } => copy::put(volume, paths, *copying),
        Command::Get { copying, paths } => copy::get(volume, paths, *copying),
        Command::Cp { copying, paths } => copy::cp(volume, paths, *copying),
        Command::Mkdir { paths, parents } => change::make_directories(volume, paths, *parents),
        Command::Rm { paths, directory, recursive, force } => {
            let removing = Removing { empty_directories: *directory, recursive: *recursive, force: *force };
            change::remove(volume, paths, removing)
        }
        Command::Mv { paths, no_replace } => change::rename(volume, paths, *no_replace),
        Command::Ln { target, path, symbolic } => change::link(volume, target, path, *symbolic),
        Command::Touch { paths } => change::touch(volume, paths),
        Command::Chmod { mode, paths, recursive } => change::set_mode(volume, mode, paths, *recursive),
        Command::Chown { owner, paths, recursive } => change::set_owner(volume, *owner, paths, *recursive),
        Command::Df { json } => show::free(volume, *json),
        Command::Sync => Ok(volume.sync()?),
        Command::Bench { .. } => unreachable!("it has a connection of its own"),
    }
}
