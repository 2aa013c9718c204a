//! Two pages that guest and host share.

use std::ffi::c_void;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ringfort_protocol::ring::memory::SharedMemory;
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, mmap_anonymous, munmap};

const PAGE_SHIFT: u32 = 12;
const PAGE_BYTES: usize = 1 << PAGE_SHIFT;
pub const PAGE_COUNT: usize = 2;

struct Mapping(NonNull<c_void>);

// SAFETY: a mapping is an address range; whoever reaches into it does so through `SharedMemory`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: a page that was mapped, and the memory made of it is gone, since that holds this.
        let _ = unsafe { munmap(self.0.as_ptr(), PAGE_BYTES) };
    }
}

/// Pages of this process, locked, and their physical addresses. For root.
pub fn own() -> Result<(SharedMemory, Vec<u64>)> {
    let page = |_| {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE_BYTES, protection, flags) }
            .context("map a page")?;
        // SAFETY: the page was just mapped.
        unsafe { mlock(start, PAGE_BYTES) }.context("lock a page")?;
        NonNull::new(start).map(Mapping).context("a page at address zero")
    };
    let mappings = (0..PAGE_COUNT).map(page).collect::<Result<Vec<_>>>()?;
    let addresses =
        mappings.iter().map(|page| physical(page.0.as_ptr() as u64)).collect::<Result<Vec<_>>>()?;
    Ok((shared(mappings), addresses))
}

/// The physical address of a page of this process, as the kernel tells root.
fn physical(address: u64) -> Result<u64> {
    const PATH: &str = "/proc/self/pagemap";
    let mut entry = [0; 8];
    let mut map = File::open(PATH).with_context(|| format!("open {PATH}"))?;
    map.seek(SeekFrom::Start((address >> PAGE_SHIFT) * entry.len() as u64))?;
    map.read_exact(&mut entry).with_context(|| format!("read {PATH}"))?;
    let frame = u64::from_le_bytes(entry) & ((1 << 55) - 1);
    ensure!(frame != 0, "{PATH} shows no physical address: run as root");
    Ok(frame << PAGE_SHIFT)
}

/// The pages at these offsets of a file.
pub fn of_file(path: &Path, offsets: &[u64]) -> Result<SharedMemory> {
    ensure!(offsets.len() == PAGE_COUNT, "{} pages were named, {PAGE_COUNT} are needed", offsets.len());
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    let len_bytes = file.metadata()?.len();
    let page = |offset: &u64| {
        let inside = offset.checked_add(PAGE_BYTES as u64).is_some_and(|end| end <= len_bytes);
        ensure!(inside, "page {offset:x} lies outside of {} ({len_bytes} bytes)", path.display());
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
        let start = unsafe { mmap(std::ptr::null_mut(), PAGE_BYTES, protection, flags, &file, *offset) };
        let start = start.with_context(|| format!("map page {offset:x} of {}", path.display()))?;
        NonNull::new(start).map(Mapping).context("a page at address zero")
    };
    Ok(shared(offsets.iter().map(page).collect::<Result<Vec<_>>>()?))
}

fn shared(mappings: Vec<Mapping>) -> SharedMemory {
    let pages = mappings.iter().map(|page| page.0.cast()).collect();
    // SAFETY: each page is mapped readable and writable while its mapping lives, which the memory holds, and is reached through the
    // memory alone.
    unsafe { SharedMemory::new(pages, PAGE_SHIFT, Arc::new(mappings)) }
}
