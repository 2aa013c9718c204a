//! Memory files: shared memory that outlives the process that wrote it.
//!
//! A memory file is lent out in whole blocks as [`Buffer`]s; a block is lent at most once at a time, so the
//! bytes of a live `Buffer` or `Slice` have no other writer in this process. What the bytes mean, and how they are
//! told from garbage after a crash, is the owner's affair (the store's `format::memory`).

use std::any::Any;
use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;

use crate::buffer::{BLOCK_BYTES, Buffer};
use crate::error::{EngineError, ErrorKind};

struct Mapping {
    start: NonNull<u8>,
    block_count: usize,
    /// Which blocks are lent out.
    lent: RefCell<Vec<bool>>,
    /// Keeps the mapping alive: unmaps on drop.
    _backing: Box<dyn Any>,
}

/// Shared memory that survives the process. Cloning shares it.
#[derive(Clone)]
pub struct MemoryFile(Rc<Mapping>);

struct Lease {
    mapping: Rc<Mapping>,
    first_block: usize,
    block_count: usize,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.mapping.lent.borrow_mut()[self.first_block..self.first_block + self.block_count].fill(false);
    }
}

impl MemoryFile {
    /// Wraps a mapping that `backing` keeps alive.
    ///
    /// # Safety
    /// `start` is block-aligned and valid for reads and writes of `len_bytes` initialised bytes while `backing`
    /// lives, and nothing else in this process touches them.
    pub(crate) unsafe fn new(start: NonNull<u8>, len_bytes: usize, backing: Box<dyn Any>) -> Self {
        assert!(len_bytes.is_multiple_of(BLOCK_BYTES));
        let block_count = len_bytes / BLOCK_BYTES;
        let lent = RefCell::new(vec![false; block_count]);
        Self(Rc::new(Mapping { start, block_count, lent, _backing: backing }))
    }

    /// Zeroed memory of this process, for simulated processes.
    pub(crate) fn on_heap(len_bytes: usize) -> Self {
        let mut buffer = Buffer::zeroed(len_bytes);
        let start = buffer.as_mut_ptr();
        match NonNull::new(start) {
            // SAFETY: a buffer is block-aligned and initialised, lives as long as the backing that it becomes, and is not
            // touched through it again.
            Some(start) => unsafe { Self::new(start, len_bytes, Box::new(buffer)) },
            None => unreachable!("a buffer is never null"),
        }
    }

    /// Whether another handle, or memory lent from one, is alive.
    pub(crate) fn is_held_elsewhere(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }

    /// Whether any of it is lent out.
    pub(crate) fn has_loans(&self) -> bool {
        self.0.lent.borrow().contains(&true)
    }

    /// The same bytes in memory of their own. Everything lent out must be back.
    pub(crate) fn duplicate(&self) -> Self {
        let copy = Self::on_heap(self.0.block_count * BLOCK_BYTES);
        if self.0.block_count > 0 {
            copy.lend(0, self.0.block_count).copy_from_slice(&self.lend(0, self.0.block_count));
        }
        copy
    }

    pub fn block_count(&self) -> usize {
        self.0.block_count
    }

    /// Whether none of `block_count` blocks from `first_block` on is lent out.
    pub fn is_free(&self, first_block: usize, block_count: usize) -> bool {
        self.0.lent.borrow()[first_block..first_block + block_count].iter().all(|lent| !lent)
    }

    /// Lends `block_count` blocks from `first_block` on, with whatever bytes they hold. The blocks come back when
    /// the buffer and every slice frozen from it are dropped. Lending a block twice is the caller's fault and panics.
    pub fn lend(&self, first_block: usize, block_count: usize) -> Buffer {
        let mut lent = self.0.lent.borrow_mut();
        let range = &mut lent[first_block..first_block + block_count];
        assert!(
            range.iter().all(|lent| !lent),
            "block {first_block}+{block_count} of a memory file lent twice"
        );
        range.fill(true);
        drop(lent);
        let lease = Lease { mapping: Rc::clone(&self.0), first_block, block_count };
        // SAFETY: the range lies inside the mapping (slice indexing above panics otherwise), which the lease keeps
        // alive, and `lent` grants it to one holder at a time.
        unsafe {
            let start = self.0.start.add(first_block * BLOCK_BYTES);
            Buffer::lent(start, block_count * BLOCK_BYTES, Box::new(lease))
        }
    }
}

/// Checks what a caller asks for: a name that is one path component, and whole blocks.
pub(crate) fn check_request(name: &str, len_bytes: usize) -> Result<(), EngineError> {
    let found = if name.is_empty() || name.starts_with('.') || name.len() > 255 || name.contains(['/', '\0'])
    {
        "not a name for a memory file (no '/', no leading '.', 1 to 255 bytes)".to_owned()
    } else if len_bytes == 0 || !len_bytes.is_multiple_of(BLOCK_BYTES) {
        format!("{len_bytes} bytes is not a positive multiple of {BLOCK_BYTES}")
    } else {
        return Ok(());
    };
    Err(EngineError::new(ErrorKind::OutOfRange, "open memory file", name, found))
}
