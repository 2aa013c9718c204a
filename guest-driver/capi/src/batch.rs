//! Commands that are submitted together.

use std::ffi::c_int;

use ringfort_guest::{Batch, Error, Outcome, Volume};

use crate::boundary::{Failure, List, Result, code, connected, count, given, place};
use crate::file::opening;
use crate::record::{
    BatchCommand, RINGFORT_DO_APPEND, RINGFORT_DO_CLOSE_OPENED, RINGFORT_DO_OPEN, RINGFORT_DO_READ,
    RINGFORT_DO_READ_OPENED, RINGFORT_DO_SYNC, RINGFORT_DO_SYNC_OPENED, RINGFORT_DO_WRITE,
    RINGFORT_DO_WRITE_OPENED, RINGFORT_OPEN_NO_FOLLOW, RINGFORT_THEN, RINGFORT_THEN_ALWAYS,
};

#[unsafe(no_mangle)]
pub extern "C" fn ringfort_run(
    volume: Option<&Volume>,
    commands: List<'_, BatchCommand<'_>>,
    command_count: usize,
) -> c_int {
    code(|| {
        let (volume, commands) = (connected(volume)?, commands.of(command_count)?);
        let mut batch = volume.batch();
        for command in &*commands {
            add(&mut batch, command)?;
        }
        for (command, outcome) in commands.iter_mut().zip(batch.run()?) {
            command.result = count(|| finish(command, outcome));
        }
        Ok(0)
    })
}

fn add<'a>(batch: &mut Batch<'a>, command: &BatchCommand<'a>) -> Result<()> {
    let &BatchCommand { file, path, buffer, len_bytes, offset_bytes, bits, permissions, .. } = command;
    let opened = || given(file, "the file of a command");
    match command.what {
        RINGFORT_DO_READ => {
            buffer.to_fill(len_bytes)?;
            batch.read_at(opened()?, len_bytes, offset_bytes)
        }
        RINGFORT_DO_WRITE => batch.write_at(opened()?, buffer.to_read(len_bytes)?, offset_bytes),
        RINGFORT_DO_APPEND => batch.append(opened()?, buffer.to_read(len_bytes)?),
        RINGFORT_DO_SYNC => batch.sync(opened()?),
        RINGFORT_DO_OPEN => {
            let place = place(file, path, bits & RINGFORT_OPEN_NO_FOLLOW == 0)?;
            batch.open(place, opening(bits, permissions)?)
        }
        RINGFORT_DO_READ_OPENED => {
            buffer.to_fill(len_bytes)?;
            batch.read_opened(len_bytes, offset_bytes)
        }
        RINGFORT_DO_WRITE_OPENED => batch.write_opened(buffer.to_read(len_bytes)?, offset_bytes),
        RINGFORT_DO_SYNC_OPENED => batch.sync_opened(),
        RINGFORT_DO_CLOSE_OPENED => batch.close_opened(),
        other => return Err(Failure::new(libc::EINVAL, format!("a command to do {other}"))),
    };
    match command.link {
        0 => {}
        RINGFORT_THEN => drop(batch.then()),
        RINGFORT_THEN_ALWAYS => drop(batch.then_always()),
        other => return Err(Failure::new(libc::EINVAL, format!("a link {other:#x}"))),
    }
    Ok(())
}

/// What a command has given, its bytes in the caller's buffer.
fn finish(command: &BatchCommand<'_>, outcome: std::result::Result<Outcome, Error>) -> Result<u64> {
    let outcome = outcome?;
    if matches!(command.what, RINGFORT_DO_READ | RINGFORT_DO_READ_OPENED) {
        let buffer = command.buffer.to_fill(command.len_bytes)?.of(command.len_bytes)?;
        // Not more than was asked for.
        buffer[..outcome.bytes.len()].copy_from_slice(&outcome.bytes);
    }
    Ok(outcome.value)
}
