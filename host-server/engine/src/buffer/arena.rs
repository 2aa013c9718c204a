//! The arena: one piece of memory from which small buffers are served, so that an I/O ring can know it beforehand.
//!
//! # Safety
//! A block is on loan at most once at a time (`used`), so the bytes of a loan have no other user in this process. The mapping
//! lives as long as a loan or a ring that has registered it, and its pages are never exchanged (no fork sees them): what a ring
//! knows under an address of the arena is what this process finds there.

use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

use super::BLOCK_BYTES;
use super::pages::Pages;

/// Blocks that one word of the map of used blocks stands for, and the most of one loan: a loan lies within a word.
const WORD_BLOCKS: usize = u64::BITS as usize;

thread_local! {
    static SERVING: RefCell<Weak<Arena>> = const { RefCell::new(Weak::new()) };
}

pub(crate) struct Arena {
    pages: Pages,
    /// A set bit is a block on loan.
    used: RefCell<Vec<u64>>,
    free_blocks: Cell<usize>,
}

/// Blocks of an arena with one holder. They go back when it is dropped.
pub(super) struct Loan {
    arena: Rc<Arena>,
    word: usize,
    mask: u64,
}

impl Arena {
    /// Zeroed memory of at least one and at most `len_bytes`, a whole number of words of blocks.
    pub(crate) fn new(len_bytes: usize) -> io::Result<Rc<Self>> {
        let word_count = len_bytes / (WORD_BLOCKS * BLOCK_BYTES);
        let block_count = word_count * WORD_BLOCKS;
        let pages = Pages::new(block_count * BLOCK_BYTES)?;
        // After a fork the ring would go on with the original of a page, and we with a copy.
        pages.hide_from_forks()?;
        Ok(Rc::new(Self {
            pages,
            used: RefCell::new(vec![0; word_count]),
            free_blocks: Cell::new(block_count),
        }))
    }

    /// The arena that serves this thread, if it is alive.
    pub(crate) fn of_this_thread() -> Option<Rc<Self>> {
        // None also while the thread ends.
        SERVING.try_with(|serving| serving.borrow().upgrade()).ok().flatten()
    }

    /// Serves small buffers of this thread from now on, until nobody holds the arena any more.
    pub(crate) fn serve_this_thread(self: &Rc<Self>) {
        let _ = SERVING.try_with(|serving| serving.replace(Rc::downgrade(self)));
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.pages.start().as_ptr()
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.pages.len_bytes()
    }

    /// Whether all of `len_bytes` from `start` on is in the arena.
    pub(crate) fn contains(&self, start: *const u8, len_bytes: usize) -> bool {
        let offset = start.addr().wrapping_sub(self.start().addr());
        offset < self.len_bytes() && len_bytes <= self.len_bytes() - offset
    }

    /// Blocks, if there are so many side by side, with whatever they hold. `len_bytes` is a positive multiple of [`BLOCK_BYTES`].
    pub(super) fn take(self: &Rc<Self>, len_bytes: usize) -> Option<(NonNull<u8>, Loan)> {
        let block_count = len_bytes / BLOCK_BYTES;
        if block_count > WORD_BLOCKS || block_count > self.free_blocks.get() {
            return None;
        }
        let mut used = self.used.borrow_mut();
        let (word, bit) =
            used.iter().enumerate().find_map(|(word, used)| Some((word, first_run(!*used, block_count)?)))?;
        let mask = (u64::MAX >> (WORD_BLOCKS - block_count)) << bit;
        assert!(used[word] & mask == 0, "a block is on loan once");
        used[word] |= mask;
        self.free_blocks.update(|free| free - block_count);
        let loan = Loan { arena: Rc::clone(self), word, mask };
        // SAFETY: there are `block_count` blocks from this one on in the mapping, since the map of used blocks has a bit for
        // each block; they were free, so nobody else touches them, and the mapping was zero when it was made: they are
        // initialised.
        let start = unsafe { self.pages.start().add((word * WORD_BLOCKS + bit) * BLOCK_BYTES) };
        Some((start, loan))
    }
}

/// The lowest bit at which `count` set bits begin. `count` is 1 to 64.
pub(super) fn first_run(mut bits: u64, count: usize) -> Option<usize> {
    // After each step a set bit stands for a run of `length` from there on.
    let mut length = 1;
    while length < count && bits != 0 {
        let step = length.min(count - length);
        bits &= bits >> step;
        length += step;
    }
    (bits != 0).then(|| bits.trailing_zeros() as usize)
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.arena.used.borrow_mut()[self.word] &= !self.mask;
        self.arena.free_blocks.update(|free| free + self.mask.count_ones() as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::{Arena, BLOCK_BYTES, WORD_BLOCKS, first_run};
    use crate::buffer::{Buffer, Slice};

    #[test]
    fn the_first_run_of_free_blocks_is_found() {
        assert_eq!(first_run(0, 1), None);
        assert_eq!(first_run(u64::MAX, 64), Some(0));
        assert_eq!(first_run(u64::MAX << 1, 64), None);
        assert_eq!(first_run(0b1110_1101, 2), Some(2));
        assert_eq!(first_run(0b1110_1101, 3), Some(5));
        assert_eq!(first_run(0b1110_1101, 4), None);
        assert_eq!(first_run(1 << 63, 1), Some(63));
        for count in 1..=64 {
            assert_eq!(first_run(u64::MAX << (64 - count), count), Some(64 - count));
        }
    }

    #[test]
    fn blocks_are_lent_once_and_come_back_zeroed() {
        let arena = Arena::new(WORD_BLOCKS * BLOCK_BYTES).unwrap();
        arena.serve_this_thread();
        let inside = |bytes: &[u8]| arena.contains(bytes.as_ptr(), bytes.len());
        let mut first = Buffer::zeroed(3 * BLOCK_BYTES);
        first.fill(7);
        let mut rest: Vec<Buffer> = (3..64).map(|_| Buffer::zeroed(BLOCK_BYTES)).collect();
        rest.iter_mut().for_each(|buffer| buffer.fill(9));
        assert!(inside(&first) && rest.iter().all(|buffer| inside(buffer)));
        assert!(first.iter().all(|byte| *byte == 7));
        // Full: the heap serves.
        assert!(!inside(&Buffer::zeroed(BLOCK_BYTES)));
        // The last slice gives the blocks back.
        let slice = first.freeze();
        let part: Slice = slice.slice(BLOCK_BYTES..2 * BLOCK_BYTES);
        drop(slice);
        assert!(!inside(&Buffer::zeroed(BLOCK_BYTES)));
        assert!(part.iter().all(|byte| *byte == 7));
        drop(part);
        let again = Buffer::zeroed(3 * BLOCK_BYTES);
        assert!(inside(&again) && again.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn long_buffers_and_other_threads_are_served_from_the_heap() {
        let arena = Arena::new(4 * WORD_BLOCKS * BLOCK_BYTES).unwrap();
        arena.serve_this_thread();
        let long = Buffer::zeroed((WORD_BLOCKS + 1) * BLOCK_BYTES);
        assert!(!arena.contains(long.as_ptr(), 1));
        let (start, len_bytes) = (arena.start().addr(), arena.len_bytes());
        std::thread::spawn(move || {
            let address = Buffer::zeroed(BLOCK_BYTES).as_ptr().addr();
            assert!(address < start || address >= start + len_bytes);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_arena_lives_as_long_as_its_loans_and_serves_no_longer() {
        let arena = Arena::new(WORD_BLOCKS * BLOCK_BYTES).unwrap();
        arena.serve_this_thread();
        let mut buffer = Buffer::zeroed(BLOCK_BYTES);
        drop(arena);
        buffer.fill(1);
        assert!(buffer.iter().all(|byte| *byte == 1));
        drop(buffer);
        assert!(Arena::of_this_thread().is_none());
        Buffer::zeroed(BLOCK_BYTES).fill(2);
    }

    #[test]
    fn what_reaches_out_of_the_arena_is_not_inside() {
        let arena = Arena::new(WORD_BLOCKS * BLOCK_BYTES).unwrap();
        let (start, len_bytes) = (arena.start().cast_const(), arena.len_bytes());
        assert!(arena.contains(start, len_bytes));
        assert!(!arena.contains(start, len_bytes + 1));
        assert!(!arena.contains(start.wrapping_sub(1), 2));
        assert!(!arena.contains(start.wrapping_add(len_bytes), 0));
        assert!(!arena.contains(start.wrapping_add(1), usize::MAX));
        assert!(Arena::new(WORD_BLOCKS * BLOCK_BYTES - 1).is_err());
    }
}
