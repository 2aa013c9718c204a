//! Block-aligned memory for device I/O.
//!
//! A [`Buffer`] is the only handle on its bytes and may be written; [`Buffer::freeze`] turns it into a
//! [`Slice`], which is immutable, cheaply cloned and cut, and may be given to several devices at once without a
//! copy. Both belong to the thread that made them.
//!
//! On the thread of an engine that has registered memory with its I/O ring, small buffers lie in that memory (`arena`).
//!
//! This file is one of the few that may use `unsafe`.

pub(crate) mod arena;
mod heap;
mod pages;

use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::rc::Rc;

use self::arena::{Arena, Loan};
use self::heap::Heap;

/// The unit of every transfer, offset and alignment, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// What holds the bytes: dropped when the last handle goes.
enum Owner {
    Heap {
        _heap: Heap,
    },
    /// Blocks of the thread's arena, given back by the loan's `Drop`.
    Arena {
        _loan: Loan,
    },
    /// Memory of somebody else (a memory file), returned through the guard's `Drop`.
    Lent {
        _guard: Box<dyn std::any::Any>,
    },
}

struct Memory {
    start: NonNull<u8>,
    len_bytes: usize,
    _owner: Owner,
}

/// Exclusively owned, block-aligned, initialised memory.
pub struct Buffer(Memory);

impl Buffer {
    /// Zero-filled memory. `len_bytes` is a positive multiple of [`BLOCK_BYTES`].
    pub fn zeroed(len_bytes: usize) -> Self {
        let (mut buffer, is_zero) = Self::take(len_bytes);
        if !is_zero {
            buffer.fill(0);
        }
        buffer
    }

    /// Memory for a caller who overwrites all of it before anybody else sees it: it holds whatever this thread's buffers held
    /// before. `len_bytes` is a positive multiple of [`BLOCK_BYTES`].
    pub fn for_overwrite(len_bytes: usize) -> Self {
        Self::take(len_bytes).0
    }

    /// As [`for_overwrite`](Self::for_overwrite), for what is kept: it takes nothing of the memory that an I/O ring knows, of which there is
    /// only so much.
    pub fn to_keep(len_bytes: usize) -> Self {
        assert!(len_bytes > 0 && len_bytes.is_multiple_of(BLOCK_BYTES), "buffer of {len_bytes} bytes");
        let (start, _, heap) = Heap::take(len_bytes);
        Self(Memory { start, len_bytes, _owner: Owner::Heap { _heap: heap } })
    }

    /// Initialised memory, and whether it is all zeros.
    fn take(len_bytes: usize) -> (Self, bool) {
        assert!(len_bytes > 0 && len_bytes.is_multiple_of(BLOCK_BYTES), "buffer of {len_bytes} bytes");
        if let Some((start, loan)) = Arena::of_this_thread().and_then(|arena| arena.take(len_bytes)) {
            return (Self(Memory { start, len_bytes, _owner: Owner::Arena { _loan: loan } }), false);
        }
        let (start, is_zero, heap) = Heap::take(len_bytes);
        (Self(Memory { start, len_bytes, _owner: Owner::Heap { _heap: heap } }), is_zero)
    }

    /// Wraps memory that somebody else owns and gets back when `guard` is dropped.
    ///
    /// # Safety
    /// `start` is block-aligned and valid for reads and writes of `len_bytes` initialised bytes until `guard` is
    /// dropped, and nobody else in this process reads or writes them meanwhile.
    pub(crate) unsafe fn lent(start: NonNull<u8>, len_bytes: usize, guard: Box<dyn std::any::Any>) -> Self {
        debug_assert!(start.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
        Self(Memory { start, len_bytes, _owner: Owner::Lent { _guard: guard } })
    }

    /// Gives up writing.
    pub fn freeze(self) -> Slice {
        let range = 0..self.0.len_bytes;
        Slice { memory: Rc::new(self.0), range }
    }

    /// Where the device puts its bytes. The pointer is valid while the buffer lives; moving the buffer does not
    /// move the bytes.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.start.as_ptr()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len_bytes` initialised bytes, exclusively ours (constructors' contracts).
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.len_bytes) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr(), self.0.len_bytes) }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.0.len_bytes)
    }
}

impl std::borrow::Borrow<[u8]> for Slice {
    fn borrow(&self) -> &[u8] {
        self
    }
}

/// Immutable shared view of a part of a frozen [`Buffer`].
#[derive(Clone)]
pub struct Slice {
    memory: Rc<Memory>,
    range: Range<usize>,
}

impl Slice {
    /// A part of this view; `range` is relative to it and must lie inside.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "slice {range:?} of {} bytes",
            self.len()
        );
        let start = self.range.start + range.start;
        Self { memory: Rc::clone(&self.memory), range: start..self.range.start + range.end }
    }

    /// Whether both start and length are whole blocks, as device I/O needs.
    pub fn is_block_aligned(&self) -> bool {
        self.range.start.is_multiple_of(BLOCK_BYTES) && self.len().is_multiple_of(BLOCK_BYTES)
    }

    /// An aligned copy of `bytes`, padded with zeros to whole blocks. At least one block.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Buffer::for_overwrite(bytes.len().next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES));
        let (front, padding) = buffer.split_at_mut(bytes.len());
        front.copy_from_slice(bytes);
        padding.fill(0);
        buffer.freeze()
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is valid for `len_bytes`, nobody writes it after `freeze`, and every `Slice` keeps its
        // range inside it (`freeze`, `slice`).
        unsafe {
            std::slice::from_raw_parts(self.memory.start.as_ptr().add(self.range.start), self.range.len())
        }
    }
}

impl std::fmt::Debug for Slice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slice({} bytes)", self.len())
    }
}
