//! How checks say what must happen, and the deeds that many of them begin with.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;

/// The deed must fail with `wanted`.
pub fn expect<T>(result: rustix::io::Result<T>, wanted: Errno, what: &str) -> Result<()> {
    match result {
        Err(errno) if errno == wanted => Ok(()),
        Err(errno) => bail!("{what} failed with {errno}, not with {wanted}"),
        Ok(_) => bail!("{what} succeeded"),
    }
}

/// As [`expect`], for what the standard library did.
pub fn expect_error<T>(result: std::io::Result<T>, wanted: Errno, what: &str) -> Result<()> {
    let found = result.map_err(|error| Errno::from_raw_os_error(error.raw_os_error().unwrap_or(0)));
    expect(found, wanted, what)
}

pub fn open_new(path: &Path) -> Result<File> {
    File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("creating {}", path.display()))
}

pub fn open_both(path: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).open(path)
}

pub fn read_all(mut file: &File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("changing the mode of {} to {mode:o}", path.display()))
}

/// The permission bits, set-id and sticky ones included.
pub fn mode(path: &Path) -> Result<u32> {
    let found = fs::symlink_metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    Ok(found.permissions().mode() & 0o7777)
}
