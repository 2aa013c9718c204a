//! Pages to share: files of a hugetlbfs or a tmpfs, held in place and found in physical memory.
//!
//! A client has the file of its pages and may do to it what it likes. So this process never reaches into its mapping of them but through
//! [`Pages::write`] and [`Pages::read`], which fail where a page is gone; and the pages are pinned, so that one taken out of the file is
//! given to nobody else while the server may still write to it.

use std::ffi::{CString, c_void};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use io_uring::IoUring;
use rustix::fs::{FallocateFlags, fallocate, ftruncate, statfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::mount::{MountFlags, mount};

const HUGETLBFS_MAGIC: u64 = 0x958458f6;
const TMPFS_MAGIC: u64 = 0x01021994;
const SMALL_PAGE_SHIFT: u32 = 12;
const HUGE_PAGE_SHIFT: u32 = 21;
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// Registered buffers are no longer than this each.
const PINNED_BYTES_MAX: usize = 1 << 30;

/// Where pages come from.
pub struct Store {
    folder: PathBuf,
    page_shift: u32,
    /// Huge pages that were reserved here, to be given back in the end. Whoever makes a file holds it, so that pages that were free are
    /// there still when they are taken.
    reserved: Mutex<u64>,
    /// Pages that are neither pinned nor found in physical memory: for tests without privilege.
    #[cfg(test)]
    pretends: bool,
}

impl Store {
    /// Takes a folder, and mounts there what it has to be where that is missing: of at most `most_mib`, so that clients which make their
    /// files longer take no more than that.
    pub fn open(folder: &Path, small_pages: bool, most_mib: u64) -> Result<Self> {
        let (kind, magic, options, page_shift) = match small_pages {
            true => ("tmpfs", TMPFS_MAGIC, format!("mode=0700,size={most_mib}M"), SMALL_PAGE_SHIFT),
            false => (
                "hugetlbfs",
                HUGETLBFS_MAGIC,
                format!("mode=0700,pagesize=2M,size={most_mib}M"),
                HUGE_PAGE_SHIFT,
            ),
        };
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let found = |what: &Path| statfs(what).map(|found| found.f_type as u64);
        let is_mounted = found(folder).with_context(|| format!("look at {}", folder.display()))? == magic;
        if !is_mounted {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            let options = CString::new(options)?;
            mount(kind, folder, kind, flags, options.as_c_str())
                .with_context(|| format!("mount a {kind} at {}; run as root", folder.display()))?;
        }
        // The folder of a mount that somebody else made.
        let own = folder.join("ringfort-guestd");
        fs::create_dir_all(&own).with_context(|| format!("create {}", own.display()))?;
        fs::set_permissions(&own, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("close {} to others", own.display()))?;
        Ok(Self {
            folder: own,
            page_shift,
            reserved: Mutex::default(),
            #[cfg(test)]
            pretends: false,
        })
    }

    /// Pages of an ordinary folder, whose addresses are their places in region `n`'s file plus `n` times 4 GiB.
    #[cfg(test)]
    pub fn pretend(folder: &Path, page_shift: u32) -> Self {
        Self { folder: folder.to_owned(), page_shift, reserved: Mutex::default(), pretends: true }
    }

    pub fn page_shift(&self) -> u32 {
        self.page_shift
    }

    pub fn page_bytes(&self) -> u64 {
        1 << self.page_shift
    }

    /// Whether pages are large enough to keep their heads free.
    pub fn has_heads(&self) -> bool {
        self.page_shift == HUGE_PAGE_SHIFT
    }

    /// Deletes what an earlier daemon has left. Only when the server uses none of it any more.
    pub fn delete_leftovers(&self, kept: &[&Path]) -> Result<()> {
        let what = || format!("clear {}", self.folder.display());
        for entry in fs::read_dir(&self.folder).with_context(what)? {
            let path = entry.with_context(what)?.path();
            if !kept.contains(&path.as_path()) {
                fs::remove_file(&path).with_context(|| format!("delete {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Pages of zeros in a file of their own, for region `number`.
    pub fn create(&self, number: u32, len_bytes: u64) -> Result<Pages> {
        ensure!(len_bytes.is_multiple_of(self.page_bytes()), "{len_bytes} bytes are no whole pages");
        let (file, named) = self.create_file(number, len_bytes)?;
        let what = || format!("make {} of {len_bytes} bytes", named.path.display());
        let mapping = Mapping::new(&file, len_bytes).with_context(what)?;
        let (pin, addresses) = self.hold(&mapping, number)?;
        let memory =
            File::options().read(true).write(true).open("/proc/self/mem").context("open /proc/self/mem")?;
        Ok(Pages { _pin: pin, mapping, file, addresses, memory, named, proof: Mutex::default() })
    }

    /// Holds pages in place, and finds them.
    fn hold(&self, mapping: &Mapping, number: u32) -> Result<(Option<IoUring>, Vec<u64>)> {
        #[cfg(test)]
        if self.pretends {
            let starts = (0..mapping.len_bytes as u64).step_by(1 << self.page_shift);
            return Ok((None, starts.map(|start| (u64::from(number) << 32) + start).collect()));
        }
        let pin = mapping.pin().with_context(|| {
            format!(
                "hold the pages of region {number} in place with io_uring; is it allowed in this guest (kernel.io_uring_disabled)?"
            )
        })?;
        Ok((Some(pin), mapping.physical(self.page_bytes())?))
    }

    fn create_file(&self, number: u32, len_bytes: u64) -> Result<(File, Named)> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(test)]
        let is_huge = self.has_heads() && !self.pretends;
        #[cfg(not(test))]
        let is_huge = self.has_heads();
        if is_huge {
            *reserved += make_free(len_bytes >> HUGE_PAGE_SHIFT)?;
        }
        let path = self.folder.join(format!("region-{number}"));
        let what = || format!("make {} of {len_bytes} bytes", path.display());
        let mut options = File::options();
        let file =
            options.read(true).write(true).create_new(true).mode(0o600).open(&path).with_context(what)?;
        let named = Named { path };
        let what = || format!("make {} of {len_bytes} bytes", named.path.display());
        ftruncate(&file, len_bytes).with_context(what)?;
        fallocate(&file, FallocateFlags::empty(), 0, len_bytes).with_context(|| {
            format!("{}; programs that have hung up may still hold pages that they were given", what())
        })?;
        Ok((file, named))
    }

    /// Gives back the huge pages that were reserved here and are free.
    pub fn give_back(&self) -> Result<()> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        if *reserved > 0 {
            let wanted = huge_pages("nr_hugepages")?.saturating_sub(free_huge_pages()?.min(*reserved));
            set_huge_pages(wanted)?;
            *reserved = 0;
        }
        Ok(())
    }
}

fn huge_pages(name: &str) -> Result<u64> {
    let path = format!("{HUGE_PAGES}/{name}");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("read {path}; has this guest huge pages of 2 MiB?"))?;
    text.trim().parse().with_context(|| format!("{path} says {text:?}"))
}

fn free_huge_pages() -> Result<u64> {
    Ok(huge_pages("free_hugepages")?.saturating_sub(huge_pages("resv_hugepages")?))
}

fn set_huge_pages(count: u64) -> Result<()> {
    let path = format!("{HUGE_PAGES}/nr_hugepages");
    fs::write(&path, count.to_string()).with_context(|| format!("write {count} into {path}"))
}

/// Reserves huge pages where fewer than `count` are free; returns how many.
fn make_free(count: u64) -> Result<u64> {
    let missing = count.saturating_sub(free_huge_pages()?);
    if missing == 0 {
        return Ok(0);
    }
    let before = huge_pages("nr_hugepages")?;
    let wanted = before + missing;
    set_huge_pages(wanted)?;
    let free = free_huge_pages()?;
    if free < count {
        // What was got in part helps nobody here.
        set_huge_pages(before)?;
        bail!(
            "{count} huge pages are needed and {free} are free: the guest's memory is full or in pieces; reserve them at boot \
             (hugepages={wanted} on the kernel's command line), or run with --small-pages"
        );
    }
    Ok(missing)
}

/// A file that is deleted when nobody needs its pages.
struct Named {
    path: PathBuf,
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a file of shared pages could not be deleted");
        }
    }
}

/// Pages that stay where they are. Dropping them gives them back to the guest: only when the server uses none of them any more.
pub struct Pages {
    // Dropped first, to last: unpinned, unmapped, closed, deleted.
    _pin: Option<IoUring>,
    mapping: Mapping,
    file: File,
    addresses: Vec<u64>,
    /// This process, as a file: reads and writes of pages that are gone fail there, and kill nobody.
    memory: File,
    named: Named,
    proof: Mutex<()>,
}

impl Pages {
    /// To be held by whoever proves them: a proof at a time, from its nonces to the last look at them.
    pub fn one_proof_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.proof.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Guest physical addresses, by page.
    pub fn addresses(&self) -> &[u64] {
        &self.addresses
    }

    pub fn len_bytes(&self) -> u64 {
        self.mapping.len_bytes as u64
    }

    /// Where they lie as a file.
    pub fn path(&self) -> &Path {
        &self.named.path
    }

    /// The file, opened for a client: what others hold is told from what this process holds by that.
    pub fn open_for_client(&self) -> io::Result<File> {
        File::options().read(true).write(true).open(self.path())
    }

    /// What of them a client has that is gone and yet holds on to them; none where it does not.
    pub fn left_behind(&self) -> Option<Left> {
        let file = self.file.try_clone().ok()?;
        Some(Left { file, len_bytes: self.len_bytes() }).filter(Left::is_held)
    }

    /// Cuts off what a client has put behind them. False where there was nothing.
    pub fn cut_off_more(&self) -> bool {
        cut_off_more(&self.file, self.len_bytes())
    }

    pub fn write(&self, start: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_all_at(bytes, self.address(start, bytes.len())?)
    }

    pub fn read(&self, start: u64, into: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(into, self.address(start, into.len())?)
    }

    fn address(&self, start: u64, len_bytes: usize) -> io::Result<u64> {
        let inside = start.checked_add(len_bytes as u64).is_some_and(|end| end <= self.len_bytes());
        if inside {
            Ok(self.mapping.start.as_ptr() as u64 + start)
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

/// Pages whose client is gone, and which some program holds on to.
pub struct Left {
    file: File,
    len_bytes: u64,
}

impl Left {
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether a program still holds them.
    pub fn is_held(&self) -> bool {
        // A lease for writing is given only where nobody else has the file open or mapped; all descriptors here belong to one open file.
        let lease = |kind: libc::c_int| {
            // SAFETY: the descriptor is open, and the command takes a number.
            unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, kind) }
        };
        if lease(libc::F_WRLCK) == 0 {
            lease(libc::F_UNLCK);
            return false;
        }
        io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
    }

    /// As for pages.
    pub fn cut_off_more(&self) -> bool {
        cut_off_more(&self.file, self.len_bytes)
    }
}

fn cut_off_more(file: &File, len_bytes: u64) -> bool {
    let is_longer = file.metadata().is_ok_and(|found| found.len() > len_bytes);
    is_longer && ftruncate(file, len_bytes).is_ok()
}

struct Mapping {
    start: NonNull<c_void>,
    len_bytes: usize,
}

// SAFETY: a mapping is an address range; nobody reaches into it by pointer.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, len_bytes: u64) -> io::Result<Self> {
        let len_bytes = usize::try_from(len_bytes).map_err(io::Error::other)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
        let start = unsafe { mmap(std::ptr::null_mut(), len_bytes, protection, flags, file, 0) }?;
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len_bytes })
    }

    /// Keeps the pages where they are while what is returned lives, whatever happens to file and mapping: a registered buffer.
    fn pin(&self) -> io::Result<IoUring> {
        let ring = IoUring::new(1)?;
        let parts = (0..self.len_bytes).step_by(PINNED_BYTES_MAX).map(|start| libc::iovec {
            // SAFETY: inside of the mapping.
            iov_base: unsafe { self.start.as_ptr().byte_add(start) },
            iov_len: PINNED_BYTES_MAX.min(self.len_bytes - start),
        });
        let parts: Vec<_> = parts.collect();
        // SAFETY: the kernel takes the pages of the range, which is mapped; nothing is ever submitted that reads or writes them.
        unsafe { ring.submitter().register_buffers(&parts) }?;
        Ok(ring)
    }

    /// Where each page is in physical memory, as the kernel tells root.
    fn physical(&self, page_bytes: u64) -> Result<Vec<u64>> {
        const PATH: &str = "/proc/self/pagemap";
        const ENTRY_BYTES: u64 = 8;
        const PRESENT: u64 = 1 << 63;
        let mut map = File::open(PATH).with_context(|| format!("open {PATH}"))?;
        let starts = (0..self.len_bytes as u64).step_by(page_bytes as usize);
        let of_page = |start: u64| {
            let address = self.start.as_ptr() as u64 + start;
            let mut entry = [0; ENTRY_BYTES as usize];
            map.seek(SeekFrom::Start((address >> SMALL_PAGE_SHIFT) * ENTRY_BYTES))?;
            map.read_exact(&mut entry).with_context(|| format!("read {PATH}"))?;
            let entry = u64::from_le_bytes(entry);
            let frame = entry & ((1 << 55) - 1);
            ensure!(entry & PRESENT != 0 && frame != 0, "{PATH} shows no physical addresses: run as root");
            Ok(frame << SMALL_PAGE_SHIFT)
        };
        starts.map(of_page).collect()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the one that was mapped, and nobody has pointers into it.
        let _ = unsafe { munmap(self.start.as_ptr(), self.len_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_held_as_long_as_somebody_else_has_them_open_or_mapped() {
        const LEN_BYTES: u64 = 1 << HUGE_PAGE_SHIFT;
        let folder = tempfile::tempdir().unwrap();
        let pages = Store::pretend(folder.path(), HUGE_PAGE_SHIFT).create(1, LEN_BYTES).unwrap();
        assert!(pages.left_behind().is_none());
        let file = pages.open_for_client().unwrap();
        let mapping = Mapping::new(&file, LEN_BYTES).unwrap();
        drop(file);
        let left = pages.left_behind().unwrap();
        drop(pages);
        assert!(left.is_held(), "by the mapping");
        drop(mapping);
        assert!(!left.is_held());
    }
}
