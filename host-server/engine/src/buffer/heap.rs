//! Heap memory of buffers. Long pieces are kept for the thread's next buffers: to have the kernel hand out, clear and take
//! back a megabyte costs more than to checksum it.
//!
//! # Safety
//! A [`Piece`] is the only handle on one allocation and frees it when dropped; every byte of it is initialised from the start.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;

use super::BLOCK_BYTES;

/// Lengths are rounded up to a multiple of this, so that pieces fit many buffers. Shorter ones are left to the allocator,
/// which keeps them by itself.
const GRANULE_BYTES: usize = 128 << 10;

/// Longer pieces are rare: they go back to the system.
const KEPT_PIECE_BYTES_MAX: usize = 4 << 20;

/// What a thread keeps at most: a few streams' worth of requests in flight.
const KEPT_BYTES_MAX: usize = 16 << 20;

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept { pieces: Vec::new(), len_bytes: 0 }) };
}

/// Pieces that wait for their next use.
struct Kept {
    pieces: Vec<Piece>,
    len_bytes: usize,
}

impl Kept {
    fn take(&mut self, layout: Layout) -> Option<Piece> {
        // The one that was used last is the likeliest to be in a processor's cache.
        let index = self.pieces.iter().rposition(|piece| piece.layout == layout)?;
        self.len_bytes -= layout.size();
        Some(self.pieces.remove(index))
    }

    /// Keeps a piece; where there are too many already, those that have waited longest go.
    fn give(&mut self, piece: Piece) {
        self.len_bytes += piece.layout.size();
        self.pieces.push(piece);
        while self.len_bytes > KEPT_BYTES_MAX {
            self.len_bytes -= self.pieces.remove(0).layout.size();
        }
    }
}

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

/// Block-aligned, initialised memory. Goes back to the thread that drops it.
pub(super) struct Heap(Option<Piece>);

impl Heap {
    /// At least `len_bytes`, a positive multiple of the block size, and whether all of it is zero.
    pub(super) fn take(len_bytes: usize) -> (NonNull<u8>, bool, Self) {
        assert!(len_bytes > 0);
        let is_kept = (GRANULE_BYTES..=KEPT_PIECE_BYTES_MAX).contains(&len_bytes);
        let size = if is_kept { len_bytes.next_multiple_of(GRANULE_BYTES) } else { len_bytes };
        let layout = match Layout::from_size_align(size, BLOCK_BYTES) {
            Ok(layout) => layout,
            Err(_) => unreachable!("BLOCK_BYTES is a power of two"),
        };
        // None also while the thread ends.
        let kept =
            is_kept.then(|| KEPT.try_with(|kept| kept.borrow_mut().take(layout)).ok().flatten()).flatten();
        let is_zero = kept.is_none();
        let piece = kept.unwrap_or_else(|| Piece::zeroed(layout));
        (piece.start, is_zero, Self(Some(piece)))
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        if let Some(piece) = self.0.take()
            && (GRANULE_BYTES..=KEPT_PIECE_BYTES_MAX).contains(&piece.layout.size())
        {
            let _ = KEPT.try_with(|kept| kept.borrow_mut().give(piece));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{GRANULE_BYTES, KEPT, KEPT_BYTES_MAX, KEPT_PIECE_BYTES_MAX};
    use crate::buffer::{BLOCK_BYTES, Buffer};

    #[test]
    fn a_long_buffer_is_used_again_and_zeroed_where_that_was_asked_for() {
        let mut first = Buffer::for_overwrite(3 * GRANULE_BYTES);
        first.fill(7);
        let address = first.as_ptr();
        drop(first);
        // A little shorter: the same piece serves.
        let again = Buffer::for_overwrite(3 * GRANULE_BYTES - BLOCK_BYTES);
        assert_eq!(again.as_ptr(), address);
        assert_eq!(again.len(), 3 * GRANULE_BYTES - BLOCK_BYTES);
        drop(again);
        let zeroed = Buffer::zeroed(3 * GRANULE_BYTES);
        assert_eq!(zeroed.as_ptr(), address);
        assert!(zeroed.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let many: Vec<Buffer> = (0..40).map(|_| Buffer::zeroed(1 << 20)).collect();
        let longest = Buffer::zeroed(KEPT_PIECE_BYTES_MAX + BLOCK_BYTES);
        drop(longest);
        drop(many);
        KEPT.with_borrow(|kept| {
            assert_eq!(kept.len_bytes, kept.pieces.iter().map(|piece| piece.layout.size()).sum::<usize>());
            assert_eq!(kept.len_bytes, KEPT_BYTES_MAX);
        });
    }
}
