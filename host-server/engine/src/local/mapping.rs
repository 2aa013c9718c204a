//! Memory files: shared mappings of files in a memory file system.
//!
//! # Safety
//! A mapping is locked by `flock` and handed out once, so this process has no second view of its bytes. Another process of
//! the same user could ignore the lock and write to the file; the owner of the bytes verifies checksums before it trusts
//! them, and does so on copies or on memory that only it writes. Space is reserved before mapping, so that a full memory
//! file system is an error here and not a signal later.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::posix_fallocate;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::geteuid;

use super::component::holder;
use crate::buffer::BLOCK_BYTES;
use crate::engine::MemoryOpen;
use crate::error::{EngineError, ErrorKind};
use crate::memory::{MemoryFile, check_request};

const OPEN: &str = "open memory file";

/// A mapping and the file whose lock goes with it.
struct Mapping {
    start: NonNull<libc::c_void>,
    len_bytes: usize,
    _file: File,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len_bytes` are what `mmap` returned for this mapping, and every memory lent from it is
        // back, since each lease holds the mapping.
        let unmapped = unsafe { munmap(self.start, self.len_bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The directory of memory files, made if it is missing and the user's own; none, with a warning, where there is none to be
/// had.
pub(super) fn prepare_directory(directory: Option<&Path>) -> Option<PathBuf> {
    let directory = directory?;
    match check_directory(directory) {
        Ok(()) => Some(directory.to_owned()),
        Err(found) => {
            tracing::warn!(
                directory = %directory.display(),
                "memory files will not outlive this process ({found}): should it die, what no program has synced is lost"
            );
            None
        }
    }
}

fn check_directory(directory: &Path) -> Result<(), String> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.to_string()),
        _ => {}
    }
    // Not followed: in a directory that all may write to, a link could be anybody's.
    let metadata = directory.symlink_metadata().map_err(|error| error.to_string())?;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err("it is not a directory that only this user can write to".into());
    }
    Ok(())
}

/// Opens a memory file in `directory`, or an anonymous one where there is none.
pub(super) fn memory_file(
    directory: Option<&Path>,
    name: &str,
    len_bytes: usize,
    open: MemoryOpen,
) -> Result<MemoryFile, EngineError> {
    let place = match directory {
        Some(directory) => directory.join(name).to_string_lossy().into_owned(),
        None => name.to_owned(),
    };
    let fail = |kind, found: String| EngineError::new(kind, OPEN, place.clone(), found);
    let from_io = |error: io::Error| EngineError::from_io(OPEN, place.clone(), &error);

    check_request(name, len_bytes)?;
    let file = match (directory, open) {
        (None, MemoryOpen::Attach) => {
            return Err(fail(ErrorKind::NotFound, "memory files of this process are anonymous".into()));
        }
        (None, MemoryOpen::Create) => {
            File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(|errno| from_io(errno.into()))?)
        }
        (Some(directory), _) => {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(open == MemoryOpen::Create);
            options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
            options.open(directory.join(name)).map_err(from_io)?
        }
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(fail(ErrorKind::Busy, format!("locked by {}", holder(&file))));
        }
        Err(TryLockError::Error(error)) => return Err(from_io(error)),
    }
    if open == MemoryOpen::Create {
        // Through zero, so that what was there is gone.
        file.set_len(0).and_then(|()| file.set_len(len_bytes as u64)).map_err(from_io)?;
    }
    let found_bytes = file.metadata().map_err(from_io)?.len();
    if found_bytes != len_bytes as u64 {
        return Err(fail(ErrorKind::Failed, format!("it has {found_bytes} bytes instead of {len_bytes}")));
    }
    loop {
        match posix_fallocate(&file, 0, len_bytes as i64) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(from_io(errno.into())),
        }
    }
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let Some(mapped_bytes) = NonZeroUsize::new(len_bytes) else { unreachable!("checked by check_request") };
    // SAFETY: a new mapping at an address of the kernel's choice, of a file that is long enough.
    let start = unsafe { mmap(None, mapped_bytes, protection, MapFlags::MAP_SHARED, &file, 0) };
    let start = start.map_err(|errno| from_io(errno.into()))?;
    let mapping = Mapping { start, len_bytes, _file: file };
    // SAFETY: the mapping is page-aligned, of this length, readable, writable and initialised by the kernel, and lives
    // as long as its backing; the lock keeps other mappings of it away (module invariant).
    Ok(unsafe { MemoryFile::new(start.cast(), len_bytes, Box::new(mapping)) })
}

/// Removes a memory file by its name.
pub(super) fn remove(directory: Option<&Path>, name: &str) -> Result<(), EngineError> {
    check_request(name, BLOCK_BYTES)?;
    let Some(path) = directory.map(|directory| directory.join(name)) else { return Ok(()) };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(EngineError::from_io("remove memory file", path.to_string_lossy(), &error))
        }
        _ => Ok(()),
    }
}
