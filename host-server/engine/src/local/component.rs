//! Opening, creating and locking component files and block devices.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, posix_fallocate};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;

use crate::buffer::BLOCK_BYTES;
use crate::error::{EngineError, ErrorKind};

/// An open, locked component. Requests in flight keep it open, and so keep the lock.
pub(super) struct Component {
    pub(super) file: File,
    pub(super) name: String,
    pub(super) len_bytes: u64,
    /// A write can ask by itself to be on stable media when it is answered; elsewhere a flush follows it.
    pub(super) keeps_durable_writes: bool,
}

/// Whether the kernel keeps what `RWF_DSYNC` promises, as it does for block devices and for these file systems. Others may take the flag and do
/// nothing about it: FUSE passes it on to a server, which need not look at it.
fn keeps_durable_writes(file: &File) -> io::Result<bool> {
    if file.metadata()?.file_type().is_block_device() {
        return Ok(true);
    }
    let found = fstatfs(file)?.filesystem_type();
    Ok([EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC].contains(&found))
}

const OPEN: &str = "open component";
const CREATE: &str = "create component";
const EXTEND: &str = "extend component";

/// How long what somebody holds may take to come free; the engine's thread sleeps meanwhile. A child that this process starts
/// holds every open file from its fork to its exec, and the kernel holds those of a killed process while requests on them are
/// in flight.
const HELD_WAIT: Duration = Duration::from_millis(100);

/// Tries again, up to [`HELD_WAIT`], what fails because somebody holds the file.
fn patiently<T, E>(mut attempt: impl FnMut() -> Result<T, E>, is_held: impl Fn(&E) -> bool) -> Result<T, E> {
    let give_up = Instant::now() + HELD_WAIT;
    loop {
        match attempt() {
            Err(error) if is_held(&error) && Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(1));
            }
            outcome => return outcome,
        }
    }
}

fn from_io(operation: &str, path: &Path, error: &io::Error) -> EngineError {
    EngineError::from_io(operation, path.to_string_lossy(), error)
}

fn busy(operation: &str, path: &Path, found: String) -> EngineError {
    EngineError::new(ErrorKind::Busy, operation, path.to_string_lossy(), found)
}

/// Opens an existing component.
pub(super) fn open(path: &Path, write: bool) -> Result<Component, EngineError> {
    let metadata = std::fs::metadata(path).map_err(|error| from_io(OPEN, path, &error))?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let found = "neither a regular file nor a block device";
        return Err(EngineError::new(ErrorKind::Failed, OPEN, path.to_string_lossy(), found));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(write);
    if kind.is_block_device() && write {
        // The kernel refuses what is mounted, and refuses to mount what we hold.
        options.custom_flags(libc::O_EXCL);
    }
    let is_held = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
    let mut file = patiently(|| options.open(path), is_held).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => busy(OPEN, path, claimant(path)),
        _ => from_io(OPEN, path, &error),
    })?;
    lock(&file, path, write, OPEN)?;
    bypass_page_cache(&file, path, OPEN)?;
    // Works on block devices too, whose metadata has no length.
    let len_bytes = file.seek(SeekFrom::End(0)).map_err(|error| from_io(OPEN, path, &error))?;
    let len_bytes = len_bytes - len_bytes % BLOCK_BYTES as u64;
    let keeps_durable_writes = keeps_durable_writes(&file).map_err(|error| from_io(OPEN, path, &error))?;
    Ok(Component { file, name: path.to_string_lossy().into_owned(), len_bytes, keeps_durable_writes })
}

/// Creates a component file, or takes over a block device.
pub(super) fn create(path: &Path, len_bytes: u64) -> Result<Component, EngineError> {
    let place = path.to_string_lossy();
    if len_bytes == 0 || !len_bytes.is_multiple_of(BLOCK_BYTES as u64) || i64::try_from(len_bytes).is_err() {
        let found =
            format!("{len_bytes} bytes is not a possible length (a positive multiple of {BLOCK_BYTES})");
        return Err(EngineError::new(ErrorKind::OutOfRange, CREATE, place, found));
    }
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        let component = open(path, true)?;
        if component.len_bytes < len_bytes {
            let found = format!("the device has {} bytes, {len_bytes} are needed", component.len_bytes);
            return Err(EngineError::new(ErrorKind::OutOfRange, CREATE, place, found));
        }
        return Ok(component);
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(path).map_err(|error| from_io(CREATE, path, &error))?;
    let filled = lock(&file, path, true, CREATE).and_then(|()| fill_new(&file, path, len_bytes));
    if let Err(error) = filled {
        // Ours since `create_new`; without its space it is of no use, and in the way of a second try.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    let keeps_durable_writes = keeps_durable_writes(&file).map_err(|error| from_io(CREATE, path, &error))?;
    Ok(Component { file, name: place.into_owned(), len_bytes, keeps_durable_writes })
}

/// Makes a component file longer; a block device must be long enough already.
pub(super) fn extend(path: &Path, len_bytes: u64) -> Result<(), EngineError> {
    let present_bytes = open(path, true)?.len_bytes;
    if present_bytes >= len_bytes {
        return Ok(());
    }
    let place = path.to_string_lossy();
    if !len_bytes.is_multiple_of(BLOCK_BYTES as u64) || i64::try_from(len_bytes).is_err() {
        let found =
            format!("{len_bytes} bytes is not a possible length (a positive multiple of {BLOCK_BYTES})");
        return Err(EngineError::new(ErrorKind::OutOfRange, EXTEND, place, found));
    }
    let fail = |error: io::Error| from_io(EXTEND, path, &error);
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
    if file.metadata().map_err(fail)?.file_type().is_block_device() {
        let found = format!("the device has {present_bytes} bytes, {len_bytes} are needed");
        return Err(EngineError::new(ErrorKind::OutOfRange, EXTEND, place, found));
    }
    lock(&file, path, true, EXTEND)?;
    preallocate(&file, path, present_bytes..len_bytes, EXTEND)
}

/// Gives a part of a file its space, durably. Before O_DIRECT is set: where the file system cannot preallocate, the C library
/// writes a byte to each block.
fn preallocate(file: &File, path: &Path, part: Range<u64>, operation: &str) -> Result<(), EngineError> {
    let fail = |error: io::Error| from_io(operation, path, &error);
    let len_bytes = part.end - part.start;
    // Asked first: to find out by preallocating would fill the file system for everybody on it.
    let space = fstatvfs(file).map_err(|errno| fail(errno.into()))?;
    let free_bytes = u128::from(space.blocks_available()) * u128::from(space.fragment_size());
    if free_bytes < u128::from(len_bytes) {
        let found = format!("{len_bytes} bytes are needed and the file system has {free_bytes} free");
        return Err(EngineError::new(ErrorKind::NoSpace, operation, path.to_string_lossy(), found));
    }
    loop {
        match posix_fallocate(file, part.start as i64, len_bytes as i64) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(fail(errno.into())),
        }
    }
    file.sync_all().map_err(fail)
}

/// Gives a new file its space, and makes it and its name durable.
fn fill_new(file: &File, path: &Path, len_bytes: u64) -> Result<(), EngineError> {
    let fail = |error: io::Error| from_io(CREATE, path, &error);
    preallocate(file, path, 0..len_bytes, CREATE)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A file whose directory entry is lost with the power was never created.
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(fail)?;
    bypass_page_cache(file, path, CREATE)
}

fn bypass_page_cache(file: &File, path: &Path, operation: &str) -> Result<(), EngineError> {
    match fcntl(file, FcntlArg::F_SETFL(OFlag::O_DIRECT)) {
        Ok(_) => Ok(()),
        Err(Errno::EINVAL) => {
            tracing::warn!(
                path = %path.display(),
                "the file system refuses O_DIRECT: this component's I/O goes through the page cache, which costs memory and \
                 copies. Put it on a file system that has O_DIRECT"
            );
            Ok(())
        }
        Err(errno) => Err(from_io(operation, path, &errno.into())),
    }
}

fn lock(file: &File, path: &Path, write: bool, operation: &str) -> Result<(), EngineError> {
    let try_lock = || if write { file.try_lock() } else { file.try_lock_shared() };
    match patiently(try_lock, |error| matches!(error, TryLockError::WouldBlock)) {
        Ok(()) => Ok(()),
        Err(TryLockError::Error(error)) => Err(from_io(operation, path, &error)),
        Err(TryLockError::WouldBlock) => Err(busy(operation, path, format!("locked by {}", holder(file)))),
    }
}

/// Who claims a block device: a process that locks it too, or the kernel.
fn claimant(path: &Path) -> String {
    match File::open(path).map(|file| (file.try_lock_shared(), file)) {
        Ok((Err(TryLockError::WouldBlock), file)) => format!("locked by {}", holder(&file)),
        _ => "in use by the kernel: mounted, or part of an array or a pool".into(),
    }
}

/// Who holds the lock of this file, for a person to read.
pub(super) fn holder(file: &File) -> String {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let pid = file.metadata().ok().and_then(|metadata| {
        let inode = format!("{:02x}:{:02x}:{}", major(metadata.dev()), minor(metadata.dev()), metadata.ino());
        locks.lines().find_map(|line| lock_holder(line, &inode))
    });
    let Some(pid) = pid else { return "another process (which one is not visible here)".into() };
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(command) => format!("process {pid} ({})", command.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

/// The process id of a line of /proc/locks that tells of a whole-file lock held on `inode`.
fn lock_holder(line: &str, inode: &str) -> Option<u32> {
    let mut words = line.split_ascii_whitespace().skip(1);
    // A line of somebody who waits has an arrow here.
    if words.next() != Some("FLOCK") {
        return None;
    }
    let pid = words.nth(2)?;
    if words.next() != Some(inode) {
        return None;
    }
    pid.parse().ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::{OPEN, lock, lock_holder};

    #[test]
    fn a_lock_that_comes_free_in_a_moment_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("component");
        let holder = File::create(&path).unwrap();
        holder.try_lock().unwrap();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(holder);
        });
        lock(&File::open(&path).unwrap(), &path, true, OPEN).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn the_holder_of_a_lock_is_found_and_waiters_are_not() {
        let inode = "fe:00:131085";
        let held = "1: FLOCK  ADVISORY  WRITE 1234 fe:00:131085 0 EOF";
        assert_eq!(lock_holder(held, inode), Some(1234));
        assert_eq!(lock_holder("1: -> FLOCK  ADVISORY  WRITE 77 fe:00:131085 0 EOF", inode), None);
        assert_eq!(lock_holder("2: POSIX  ADVISORY  WRITE 5 fe:00:131085 0 EOF", inode), None);
        assert_eq!(lock_holder(held, "fe:00:13108"), None);
        assert_eq!(lock_holder("", inode), None);
    }
}
