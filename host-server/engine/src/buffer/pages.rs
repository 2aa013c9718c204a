//! Anonymous memory, in huge pages as far as the kernel has them.
//!
//! A transfer is handed to a device as a list of physically contiguous pieces. In small pages 256 KiB are 64 of them, in a huge
//! page one, and where devices are virtual the length of that list decides how fast they are.
//!
//! # Safety
//! A [`Pages`] is the only handle on its mapping, which stays where it is until it is dropped.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::libc::c_void;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// What processors call huge at least: 2 MiB on x86-64, and on 64-bit Arm with small pages of 4 KiB.
pub(super) const HUGE_PAGE_BYTES: usize = 2 << 20;

pub(super) struct Pages {
    start: NonNull<u8>,
    len_bytes: usize,
}

impl Pages {
    /// Zeroed memory that begins with a huge page. `len_bytes` is a positive multiple of the block size.
    pub(super) fn new(len_bytes: usize) -> io::Result<Self> {
        // Somewhere in so much there is a huge page's boundary with `len_bytes` behind it; the rest goes back.
        let mapped_bytes = len_bytes.checked_add(HUGE_PAGE_BYTES).and_then(NonZeroUsize::new);
        let Some(mapped_bytes) = mapped_bytes.filter(|_| len_bytes > 0) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new private mapping where the kernel likes it replaces nothing.
        let mapped = unsafe { mmap_anonymous(None, mapped_bytes, protection, flags)? };
        let before_bytes = mapped.addr().get().next_multiple_of(HUGE_PAGE_BYTES) - mapped.addr().get();
        // SAFETY: less than a huge page is skipped, and the mapping is longer than `len_bytes` by one.
        let (start, end) =
            unsafe { (mapped.byte_add(before_bytes), mapped.byte_add(before_bytes + len_bytes)) };
        let pages = Self { start: start.cast(), len_bytes };
        unmap(mapped, before_bytes);
        unmap(end, HUGE_PAGE_BYTES - before_bytes);
        // A kernel that has none gives small ones.
        let _ = pages.advise(MmapAdvise::MADV_HUGEPAGE);
        Ok(pages)
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Leaves these pages out of what a child process gets. Otherwise a fork would make each page of ours a copy at the next write.
    pub(super) fn hide_from_forks(&self) -> io::Result<()> {
        self.advise(MmapAdvise::MADV_DONTFORK)
    }

    fn advise(&self, advice: MmapAdvise) -> io::Result<()> {
        // SAFETY: the mapping is ours, and no advice that is given here changes what its bytes are to this process.
        unsafe { madvise(self.start.cast(), self.len_bytes, advice).map_err(io::Error::from) }
    }
}

/// Gives back a part of a mapping that nobody has been told of, or the whole that nobody uses any more.
fn unmap(start: NonNull<c_void>, len_bytes: usize) {
    if len_bytes > 0 {
        // SAFETY: by its callers this is a part of a mapping of theirs to which no pointer is left.
        let unmapped = unsafe { munmap(start, len_bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        unmap(self.start.cast(), self.len_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::{HUGE_PAGE_BYTES, Pages};
    use crate::buffer::BLOCK_BYTES;

    #[test]
    fn memory_begins_at_a_huge_page_and_is_zeroed_to_its_end() {
        for len_bytes in [BLOCK_BYTES, HUGE_PAGE_BYTES, 2 * HUGE_PAGE_BYTES + BLOCK_BYTES] {
            let pages = Pages::new(len_bytes).unwrap();
            assert!(pages.start().addr().get().is_multiple_of(HUGE_PAGE_BYTES));
            assert_eq!(pages.len_bytes(), len_bytes);
            // SAFETY: the mapping has this length and no other user.
            let bytes = unsafe { std::slice::from_raw_parts_mut(pages.start().as_ptr(), len_bytes) };
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(1);
        }
        assert!(Pages::new(0).is_err());
        assert!(Pages::new(usize::MAX).is_err());
    }
}
