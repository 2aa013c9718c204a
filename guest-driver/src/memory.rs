//! Memory to share with the server.

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};

use ringfort_protocol::ring::memory::SharedMemory;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

struct Mapping {
    start: NonNull<c_void>,
    len_bytes: usize,
}

// SAFETY: a mapping is an address range; whoever reaches into it does so through `SharedMemory`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the one that was mapped, and the memory made of it is gone, since it holds this.
        let _ = unsafe { munmap(self.start.as_ptr(), self.len_bytes) };
    }
}

/// How often this process, or one that it was forked from, has been forked since it first asked.
pub fn forks() -> u64 {
    static FORKS: AtomicU64 = AtomicU64::new(0);
    static COUNTED: Once = Once::new();
    extern "C" fn count() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the function does nothing but to count in an atomic, which a child may do at any time; it lives as long as the process does
    // unless the library is unloaded, which `dlclose` must not be called for.
    COUNTED.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(count));
    });
    FORKS.load(Ordering::Relaxed)
}

/// Zeros of this process, and a descriptor by which another process maps the same. It cannot shrink.
pub fn shareable(len_bytes: u64) -> io::Result<(SharedMemory, OwnedFd)> {
    let descriptor = memfd_create("ringfort", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&descriptor, len_bytes)?;
    fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok((map(&descriptor, len_bytes)?, descriptor))
}

/// All of the memory that a descriptor is of, as whoever gave it says how long it is.
pub fn map(descriptor: &OwnedFd, len_bytes: u64) -> io::Result<SharedMemory> {
    let mapped_bytes = usize::try_from(len_bytes).map_err(io::Error::other)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
    let start =
        unsafe { mmap(std::ptr::null_mut(), mapped_bytes, protection, MapFlags::SHARED, descriptor, 0) }?;
    let Some(start) = NonNull::new(start) else { return Err(io::ErrorKind::OutOfMemory.into()) };
    let mapping = Arc::new(Mapping { start, len_bytes: mapped_bytes });
    // SAFETY: the range is mapped readable and writable while `mapping` lives, and is reached through the memory alone.
    Ok(unsafe { SharedMemory::from_mapping(start.cast(), len_bytes, mapping) })
}

/// Whether `act` says so in a child that is forked, of which nothing else is left.
#[cfg(test)]
pub fn in_child(act: impl FnOnce() -> bool) -> bool {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    // SAFETY: the child calls what a child of a process with threads may, and at its end nothing but `_exit`: `act` is of tests that are about just that, and
    // neither prints nor lets a panic through.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).unwrap_or(false);
            // SAFETY: it ends the process, and runs nothing else.
            unsafe { libc::_exit(if said { 0 } else { 1 }) }
        }
        Ok(ForkResult::Parent { child }) => matches!(waitpid(child, None), Ok(WaitStatus::Exited(_, 0))),
        Err(errno) => panic!("fork: {errno}"),
    }
}
