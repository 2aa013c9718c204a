//! `rf put`, `rf get` and `rf cat`

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ringfort_guest::{Open, Volume};

/// Bytes that are copied at a time: one call.
const STEP_BYTES: usize = 1 << 20;

/// Fills as much of the buffer as there is.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

pub fn put(volume: &Volume, from: &Path, to: &str) -> Result<()> {
    let reading = || format!("read {}", from.display());
    let mut source: Box<dyn Read> = match from.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(from).with_context(reading)?),
    };
    let to = match (to.ends_with('/'), from.file_name()) {
        (false, _) => to.to_owned(),
        (true, Some(name)) if from.as_os_str() != "-" => format!("{to}{}", name.to_string_lossy()),
        (true, _) => bail!("{to} is a directory: say what the file is to be called there"),
    };
    let target = volume.create(&to, 0o644)?;
    let mut buffer = vec![0; STEP_BYTES];
    let mut offset_bytes = 0;
    loop {
        let count = fill(&mut source, &mut buffer).with_context(reading)?;
        target.write_at(&buffer[..count], offset_bytes)?;
        offset_bytes += count as u64;
        if count < buffer.len() {
            return Ok(target.sync()?);
        }
    }
}

pub fn get(volume: &Volume, from: &str, to: Option<&Path>) -> Result<()> {
    let source = volume.open(from, Open::to_read())?;
    let name = from.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let path: PathBuf = match to {
        None => name.into(),
        Some(directory) if directory.is_dir() => directory.join(name),
        Some(file) => file.into(),
    };
    let writing = || format!("write {}", path.display());
    let mut target: Box<dyn Write> = match path.as_os_str() == "-" {
        true => Box::new(io::stdout().lock()),
        false => Box::new(File::create(&path).with_context(writing)?),
    };
    let mut buffer = vec![0; STEP_BYTES];
    let mut offset_bytes = 0;
    loop {
        let count = source.read_at(&mut buffer, offset_bytes)?;
        target.write_all(&buffer[..count]).with_context(writing)?;
        offset_bytes += count as u64;
        if count < buffer.len() {
            return target.flush().with_context(writing);
        }
    }
}
