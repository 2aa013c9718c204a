//! Heap memory of buffers. Long ones are parts of slabs: huge pages, which are kept for the thread's next buffers. To have the
//! kernel hand out, clear and take back a megabyte costs more than to checksum it.
//!
//! # Safety
//! A unit of a slab belongs to one [`Part`] at a time (`used`), and a [`Piece`] is the only handle on one allocation: their bytes
//! have no other user. A slab is unmapped when neither its thread nor a part holds it any more. Every byte is initialised from the
//! start.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use super::BLOCK_BYTES;
use super::arena::first_run;
use super::pages::{HUGE_PAGE_BYTES, Pages};

/// Units of a slab: the bits of a word.
const SLAB_UNITS: usize = u64::BITS as usize;

/// What a slab is divided into.
const UNIT_BYTES: usize = HUGE_PAGE_BYTES / SLAB_UNITS;

/// Shorter ones are left to the allocator, which keeps them by itself.
const LONG_BYTES: usize = 128 << 10;

/// Free slabs that a thread keeps at most: a few streams' worth of requests in flight.
const KEPT_SLABS_MAX: usize = (16 << 20) / HUGE_PAGE_BYTES;

thread_local! {
    static SLABS: RefCell<Vec<Rc<Slab>>> = const { RefCell::new(Vec::new()) };
}

/// One huge page.
struct Slab {
    pages: Pages,
    /// A set bit is a unit that a buffer has.
    used: Cell<u64>,
    /// A set bit is a unit that a buffer has had: it need not be zero.
    touched: Cell<u64>,
}

/// Neighbouring units of a slab.
struct Part {
    slab: Rc<Slab>,
    mask: u64,
}

impl Slab {
    fn new() -> io::Result<Rc<Self>> {
        let pages = Pages::new(HUGE_PAGE_BYTES)?;
        Ok(Rc::new(Self { pages, used: Cell::new(0), touched: Cell::new(0) }))
    }

    /// The first free units that lie side by side, and whether they are zero.
    fn take(self: &Rc<Self>, unit_count: usize) -> Option<(NonNull<u8>, bool, Part)> {
        let first = first_run(!self.used.get(), unit_count)?;
        let mask = (u64::MAX >> (SLAB_UNITS - unit_count)) << first;
        assert!(self.used.get() & mask == 0, "a unit has one holder");
        let is_zero = self.touched.get() & mask == 0;
        self.used.update(|used| used | mask);
        self.touched.update(|touched| touched | mask);
        // SAFETY: a run ends with the word, whose bits are the units of the mapping.
        let start = unsafe { self.pages.start().add(first * UNIT_BYTES) };
        Some((start, is_zero, Part { slab: Rc::clone(self), mask }))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.slab.used.update(|used| used & !self.mask);
        if self.slab.used.get() == 0 {
            // None also while the thread ends, which gives back everything.
            let _ = SLABS.try_with(|slabs| trim(&mut slabs.borrow_mut()));
        }
    }
}

/// Gives a free slab back to the system where there are too many: the last, since the first are the first to be used.
fn trim(slabs: &mut Vec<Rc<Slab>>) {
    let is_free = |slab: &Rc<Slab>| slab.used.get() == 0;
    if slabs.iter().filter(|slab| is_free(slab)).count() > KEPT_SLABS_MAX
        && let Some(last) = slabs.iter().rposition(is_free)
    {
        slabs.remove(last);
    }
}

/// Units of the first slab that has so many, a new one if need be. None where the system gives no memory.
fn take_part(slabs: &mut Vec<Rc<Slab>>, unit_count: usize) -> Option<(NonNull<u8>, bool, Part)> {
    if let Some(taken) = slabs.iter().find_map(|slab| slab.take(unit_count)) {
        return Some(taken);
    }
    let slab = Slab::new().ok()?;
    let taken = slab.take(unit_count);
    slabs.push(slab);
    taken
}

/// An allocation of its own.
struct Piece {
    start: NonNull<u8>,
    layout: Layout,
}

impl Piece {
    fn zeroed(layout: Layout) -> Self {
        // SAFETY: the layout has a non-zero size: `Heap::take` asserts it.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this layout, and this is its only handle.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Block-aligned, initialised memory, given back when it is dropped.
pub(super) struct Heap(#[allow(dead_code)] Owner); // held for its drop

#[allow(dead_code)] // held for their drops
enum Owner {
    Part(Part),
    Piece(Piece),
}

impl Heap {
    /// At least `len_bytes`, a positive multiple of the block size, and whether all of it is zero.
    pub(super) fn take(len_bytes: usize) -> (NonNull<u8>, bool, Self) {
        assert!(len_bytes > 0);
        if (LONG_BYTES..=HUGE_PAGE_BYTES).contains(&len_bytes) {
            let unit_count = len_bytes.div_ceil(UNIT_BYTES);
            let taken = SLABS.try_with(|slabs| take_part(&mut slabs.borrow_mut(), unit_count)).ok().flatten();
            if let Some((start, is_zero, part)) = taken {
                return (start, is_zero, Self(Owner::Part(part)));
            }
        }
        let layout = match Layout::from_size_align(len_bytes, BLOCK_BYTES) {
            Ok(layout) => layout,
            Err(_) => unreachable!("BLOCK_BYTES is a power of two"),
        };
        let piece = Piece::zeroed(layout);
        (piece.start, true, Self(Owner::Piece(piece)))
    }
}

#[cfg(test)]
mod tests {
    use super::{HUGE_PAGE_BYTES, KEPT_SLABS_MAX, SLABS, UNIT_BYTES};
    use crate::buffer::{BLOCK_BYTES, Buffer};

    fn slab_count() -> usize {
        SLABS.with_borrow(|slabs| slabs.len())
    }

    #[test]
    fn a_long_buffer_is_used_again_and_zeroed_where_that_was_asked_for() {
        let mut first = Buffer::for_overwrite(12 * UNIT_BYTES);
        first.fill(7);
        let address = first.as_ptr();
        drop(first);
        // A little shorter: the same units serve.
        let again = Buffer::for_overwrite(12 * UNIT_BYTES - BLOCK_BYTES);
        assert_eq!(again.as_ptr(), address);
        assert_eq!(again.len(), 12 * UNIT_BYTES - BLOCK_BYTES);
        drop(again);
        let zeroed = Buffer::zeroed(13 * UNIT_BYTES);
        assert_eq!(zeroed.as_ptr(), address);
        assert!(zeroed.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn long_buffers_share_a_huge_page_and_no_bytes() {
        let lengths = [16, 5, 32, 4, 7].map(|units| units * UNIT_BYTES);
        let mut buffers: Vec<Buffer> = lengths.iter().map(|len_bytes| Buffer::zeroed(*len_bytes)).collect();
        for (number, buffer) in buffers.iter_mut().enumerate() {
            buffer.fill(number as u8 + 1);
        }
        assert_eq!(slab_count(), 1);
        // Full: the next one is in a huge page of its own.
        let mut next = Buffer::zeroed(4 * UNIT_BYTES);
        next.fill(9);
        assert_eq!(slab_count(), 2);
        for (number, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|byte| *byte == number as u8 + 1));
        }
        buffers.remove(2);
        let again = Buffer::zeroed(32 * UNIT_BYTES);
        assert_eq!(slab_count(), 2);
        assert!(again.iter().all(|byte| *byte == 0));
        assert!(next.iter().all(|byte| *byte == 9));
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let many: Vec<Buffer> = (0..40).map(|_| Buffer::zeroed(1 << 20)).collect();
        let longer = Buffer::zeroed(HUGE_PAGE_BYTES + BLOCK_BYTES);
        drop(longer);
        assert_eq!(slab_count(), 20);
        drop(many);
        assert_eq!(slab_count(), KEPT_SLABS_MAX);
    }

    #[test]
    fn a_buffer_that_outlives_its_threads_slabs_keeps_its_own() {
        thread_local! {
            static LAST: std::cell::RefCell<Option<Buffer>> = const { std::cell::RefCell::new(None) };
        }
        let thread = std::thread::spawn(|| {
            LAST.set(Some(Buffer::zeroed(1 << 20)));
            let mut other = Buffer::zeroed(1 << 20);
            LAST.with_borrow_mut(|last| last.as_mut().unwrap().fill(3));
            other.fill(4);
            assert!(LAST.with_borrow(|last| last.as_ref().unwrap().iter().all(|byte| *byte == 3)));
        });
        thread.join().unwrap();
    }
}
