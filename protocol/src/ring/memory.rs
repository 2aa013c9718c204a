//! Words and bytes in mapped memory that another process, or another machine, may write at any moment.
//!
//! No reference into this memory ever exists: words go through atomic loads and stores, bytes through copies by raw pointer. What is read may be
//! anything; what is copied out does not change afterwards.

use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::words::{MESSAGE_WORDS, SLOT_WORDS, WORD_BYTES, Words};

/// Pages of equal size, anywhere in this address space, which together are one range of shared memory.
///
/// A word never lies across two pages. Clones share the pages and what keeps them mapped.
#[derive(Clone)]
pub struct SharedMemory {
    pages: Arc<[NonNull<u8>]>,
    page_shift: u32,
    len_bytes: u64,
    /// Keeps the pages mapped.
    _mapping: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the pages are only reached through atomic words and raw copies that expect other writers; the mapping is `Send + Sync`.
unsafe impl Send for SharedMemory {}
// SAFETY: as above; there is no state that is not shared memory or constant.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// # Safety
    /// Each of `pages` begins a range of `1 << page_shift` bytes that is mapped readable and writable as long as `mapping` lives, and
    /// that nobody holds a Rust reference to.
    ///
    /// # Panics
    /// Where a page is smaller than a word's alignment allows, or not aligned to words.
    pub unsafe fn new(pages: Vec<NonNull<u8>>, page_shift: u32, mapping: Arc<dyn Any + Send + Sync>) -> Self {
        assert!((3..48).contains(&page_shift), "pages of 2^{page_shift} bytes");
        assert!(pages.iter().all(|page| page.cast::<AtomicU64>().is_aligned()), "pages are aligned to words");
        let len_bytes = (pages.len() as u64) << page_shift;
        Self { pages: pages.into(), page_shift, len_bytes, _mapping: mapping }
    }

    /// Memory that is mapped in one piece.
    ///
    /// # Safety
    /// `start` begins a range of `len_bytes` that is mapped readable and writable as long as `mapping` lives, and that nobody holds a
    /// Rust reference to.
    ///
    /// # Panics
    /// Where the range does not begin, or end, at a multiple of a word's size.
    pub unsafe fn from_mapping(
        start: NonNull<u8>,
        len_bytes: u64,
        mapping: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        assert!(len_bytes.is_multiple_of(WORD_BYTES), "memory of {len_bytes} bytes");
        // One page, as large as need be.
        let page_shift = len_bytes.next_power_of_two().trailing_zeros().max(3);
        // SAFETY: the caller's promise; what of the page lies behind the range is cut off below, before anybody can reach it.
        let memory = unsafe { Self::new(vec![start], page_shift, mapping) };
        Self { len_bytes, ..memory }
    }

    /// Zeros in memory of this process, for both ends of a ring in one process. `len_bytes` is a multiple of 4096.
    pub fn in_process(len_bytes: u64) -> Self {
        const PAGE_SHIFT: u32 = 12;
        const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
        assert!(len_bytes > 0 && len_bytes.is_multiple_of(PAGE_BYTES), "memory of {len_bytes} bytes");
        let words: Box<[AtomicU64]> = (0..len_bytes / WORD_BYTES).map(|_| AtomicU64::new(0)).collect();
        let words = Arc::new(words);
        let base = NonNull::from(&words[..]).cast::<u8>();
        // SAFETY: each page is part of `words`, which the memory keeps, which nobody else reaches, and which may be written through
        // shared references.
        unsafe {
            let pages = (0..len_bytes).step_by(PAGE_BYTES as usize).map(|start| base.add(start as usize));
            Self::new(pages.collect(), PAGE_SHIFT, words)
        }
    }

    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn page_bytes(&self) -> u64 {
        1 << self.page_shift
    }

    /// Copies bytes out, once. None where the range leaves the memory.
    #[must_use]
    pub fn read(&self, start: u64, into: &mut [u8]) -> Option<()> {
        let mut done = 0;
        self.each_run(start, into.len(), |run, len_bytes| {
            // SAFETY: `each_run` gives mapped runs; `into` has as many bytes left, and is not shared memory, to which nobody holds
            // references.
            unsafe { run.copy_to_nonoverlapping(NonNull::from(&mut into[done..]).cast(), len_bytes) };
            done += len_bytes;
        })
    }

    /// Copies bytes in. None, and nothing copied, where the range leaves the memory.
    #[must_use]
    pub fn write(&self, start: u64, from: &[u8]) -> Option<()> {
        let mut done = 0;
        self.each_run(start, from.len(), |run, len_bytes| {
            // SAFETY: `each_run` gives mapped runs; `from` has as many bytes left, and is not shared memory.
            unsafe { run.copy_from_nonoverlapping(NonNull::from(&from[done..]).cast(), len_bytes) };
            done += len_bytes;
        })
    }

    /// Fills with zeros. None, and nothing written, where the range leaves the memory.
    #[must_use]
    pub fn clear(&self, start: u64, len_bytes: usize) -> Option<()> {
        // SAFETY: `each_run` gives mapped runs.
        self.each_run(start, len_bytes, |run, len_bytes| unsafe { run.write_bytes(0, len_bytes) })
    }

    /// Calls `act` with each run of neighbouring bytes, in order.
    fn each_run(&self, start: u64, len_bytes: usize, mut act: impl FnMut(NonNull<u8>, usize)) -> Option<()> {
        let Range { mut start, end } = start..start.checked_add(len_bytes as u64)?;
        if end > self.len_bytes {
            return None;
        }
        while start < end {
            let into = start & (self.page_bytes() - 1);
            let run_bytes = (self.page_bytes() - into).min(end - start);
            let page = self.pages[(start >> self.page_shift) as usize];
            // SAFETY: `into` is below the page's size, and the page is mapped whole.
            act(unsafe { page.add(into as usize) }, run_bytes as usize);
            start += run_bytes;
        }
        Some(())
    }

    /// The words from this one to the end of its page, or of the memory.
    #[inline]
    fn words(&self, index: u64) -> &[AtomicU64] {
        let at = index.saturating_mul(WORD_BYTES);
        assert!(at < self.len_bytes, "word {index} of {} bytes: out of bounds", self.len_bytes);
        let page = self.pages[(at >> self.page_shift) as usize];
        let into = at & (self.page_bytes() - 1);
        let run_bytes = (self.page_bytes() - into).min(self.len_bytes - at);
        // SAFETY: the page is mapped for as long as `self` lives, and the run does not leave it: `into` is below its size and a multiple of the word's, so
        // that the words are aligned and inside; an atomic may be written by others at any time.
        unsafe {
            let first = page.add(into as usize).cast::<AtomicU64>();
            NonNull::slice_from_raw_parts(first, (run_bytes / WORD_BYTES) as usize).as_ref()
        }
    }

    #[inline]
    fn word(&self, index: u64) -> &AtomicU64 {
        &self.words(index)[0]
    }

    /// The words of the slot that begins with this one.
    #[inline]
    fn slot(&self, first: u64) -> &[AtomicU64; SLOT_WORDS as usize] {
        match self.words(first).first_chunk() {
            Some(words) => words,
            None => panic!("the slot of word {first} is out of bounds"),
        }
    }
}

impl Words for SharedMemory {
    #[inline]
    fn count(&self) -> u64 {
        self.len_bytes() / WORD_BYTES
    }

    #[inline]
    fn load(&self, index: u64) -> u64 {
        self.word(index).load(Ordering::Relaxed)
    }

    #[inline]
    fn load_acquire(&self, index: u64) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, index: u64, value: u64) {
        self.word(index).store(value, Ordering::Relaxed);
    }

    #[inline]
    fn store_release(&self, index: u64, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }

    #[inline]
    fn load_message(&self, first: u64) -> [u64; MESSAGE_WORDS] {
        let [message @ .., _] = self.slot(first);
        std::array::from_fn(|index| message[index].load(Ordering::Relaxed))
    }

    #[inline]
    fn store_message(&self, first: u64, message: &[u64; MESSAGE_WORDS]) {
        for (word, value) in self.slot(first).iter().zip(message) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cross_pages_and_stay_inside() {
        let memory = SharedMemory::in_process(3 * 4096);
        let bytes: Vec<u8> = (0..9000).map(|index| (index % 251) as u8).collect();
        assert_eq!(memory.write(31, &bytes), Some(()));
        let mut back = vec![0; 9000];
        assert_eq!(memory.read(31, &mut back), Some(()));
        assert_eq!(back, bytes);
        assert_eq!(memory.clear(4092, 8), Some(()));
        assert_eq!(memory.read(31, &mut back), Some(()));
        assert_eq!(back[4061..4069], [0; 8]);
        assert_eq!((&back[..4061], &back[4069..]), (&bytes[..4061], &bytes[4069..]));
        assert_eq!(memory.read(0, &mut []), Some(()));
        assert_eq!(memory.read(3289, &mut back), None);
        assert_eq!(memory.write(3 * 4096, &[1]), None);
        assert_eq!(memory.write(u64::MAX, &[1]), None);
        assert_eq!(memory.clear(u64::MAX - 3, 8), None);
    }

    #[test]
    fn words_and_bytes_are_the_same_memory() {
        let memory = SharedMemory::in_process(8192);
        memory.store(513, 0x0102_0304_0506_0708);
        let mut bytes = [0; 8];
        assert_eq!(memory.read(513 * 8, &mut bytes), Some(()));
        assert_eq!(u64::from_ne_bytes(bytes), memory.load_acquire(513));
        assert_eq!(memory.count(), 1024);
    }

    #[test]
    fn messages_are_the_words_before_the_last_of_a_slot() {
        let memory = SharedMemory::in_process(8192);
        memory.store(519, 9);
        memory.store_message(512, &[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(memory.load_message(512), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!([512, 518, 519, 520].map(|word| memory.load(word)), [1, 7, 9, 0]);
    }

    #[test]
    #[should_panic(expected = "out of bounds")]
    fn a_slot_that_leaves_its_page_is_a_fault_of_the_caller() {
        SharedMemory::in_process(8192).load_message(508);
    }

    #[test]
    #[should_panic(expected = "out of bounds")]
    fn a_word_beyond_the_memory_is_a_fault_of_the_caller() {
        SharedMemory::in_process(4096).load(512);
    }
}
