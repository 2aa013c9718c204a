//! `ringfort volume export`

use std::fs::OpenOptions;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_store::store::{self, Store};

use crate::archive::Archive;
use crate::assemble::with_engine;
use crate::cli;
use crate::lock::{DirectoryLock, Purpose};
use crate::volume_file::VolumeFile;

/// Something could not be read; the rest is there.
const INCOMPLETE: u8 = 1;

pub fn run(arguments: &cli::Export) -> Result<ExitCode> {
    let directory = &arguments.directory;
    let file = VolumeFile::load(directory)?;
    let _lock = DirectoryLock::take(directory, Purpose::Export)?;
    let output = output(arguments)?;
    let components = file.all_components(directory);
    let options = store::OpenOptions { memory_bytes: file.memory.0, ..store::OpenOptions::default() };
    let unread = with_engine(async |engine| {
        let (store, _) = Store::open(Rc::clone(&engine), &components, &options).await?;
        let filesystem =
            Filesystem::open(Rc::new(store.clone()), engine, FilesystemOptions::default()).await?;
        let mut archive = Archive::new(BufWriter::new(output));
        let written = archive.add_everything(&filesystem).await.and_then(|()| archive.finish());
        filesystem.shut_down().await?;
        store.close().await?;
        written
    })?;
    for fault in &unread {
        eprintln!("ringfort: {fault}");
    }
    Ok(if unread.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
}

/// A file that is not there yet, or standard output.
fn output(arguments: &cli::Export) -> Result<Box<dyn Write>> {
    let Some(path) = &arguments.output else {
        let output = io::stdout();
        if output.is_terminal() {
            bail!("an archive is nothing for a terminal; give --output FILE, or pipe it to `tar -x`");
        }
        return Ok(Box::new(output));
    };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    Ok(Box::new(file.with_context(|| format!("create {}", path.display()))?))
}
