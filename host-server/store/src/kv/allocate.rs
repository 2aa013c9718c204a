//! Page slots of the metadata region.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::node::Durable;
use crate::address::MetadataAddress;
use crate::error::{ErrorKind, StoreError};
use crate::format::page::PAGE_BYTES;

const WORD_BITS: usize = 64;

/// Which pages of the page area are in use.
///
/// Kept in memory only: what the durable roots reach is in use, and loading the trees finds that out. A page that
/// left the trees stays in use until the roots of a checkpoint without it are durable ([`PageAllocator::release`]),
/// so no state from which recovery may start ever names a page that was written again.
pub struct PageAllocator {
    base: MetadataAddress,
    page_count: usize,
    state: RefCell<State>,
}

struct State {
    /// One bit a page, set where in use. Bits past the last page are set.
    used: Vec<u64>,
    free_count: usize,
    /// Where the next search begins, so that one checkpoint's pages lie together.
    cursor: usize,
    /// Pages that the checkpoint of this generation no longer reaches.
    retired: VecDeque<(u64, Vec<Durable>)>,
}

impl PageAllocator {
    /// An area of `page_count` pages from `base` on, all free.
    pub fn new(base: MetadataAddress, page_count: usize) -> Self {
        let mut used = vec![0; page_count.div_ceil(WORD_BITS)];
        if let Some(last) = used.last_mut()
            && !page_count.is_multiple_of(WORD_BITS)
        {
            *last = u64::MAX << (page_count % WORD_BITS);
        }
        let state = State { used, free_count: page_count, cursor: 0, retired: VecDeque::new() };
        Self { base, page_count, state: RefCell::new(state) }
    }

    pub fn page_count(&self) -> usize {
        self.page_count
    }

    /// Pages that a checkpoint could take now.
    pub fn free_count(&self) -> usize {
        self.state.borrow().free_count
    }

    fn index_of(&self, address: MetadataAddress) -> Option<usize> {
        let offset_bytes = address.0.checked_sub(self.base.0)?;
        let index = usize::try_from(offset_bytes / PAGE_BYTES as u64).ok()?;
        (offset_bytes.is_multiple_of(PAGE_BYTES as u64) && index < self.page_count).then_some(index)
    }

    fn address_of(&self, index: usize) -> MetadataAddress {
        MetadataAddress(self.base.0 + (index * PAGE_BYTES) as u64)
    }

    /// Takes `count` free pages, in ascending runs as long as the free space has them.
    pub(crate) fn allocate(&self, count: usize) -> Result<Vec<MetadataAddress>, StoreError> {
        let mut state = self.state.borrow_mut();
        if state.free_count < count {
            return Err(StoreError::new(
                ErrorKind::NoSpace,
                "allocate pages for a checkpoint in",
                "metadata region",
                format!("{} free pages of {}", state.free_count, self.page_count),
            )
            .expected(format!("{count} free pages"))
            .advice("delete files or create the volume with a larger metadata region"));
        }
        let mut addresses = Vec::with_capacity(count);
        let mut index = state.cursor;
        while addresses.len() < count {
            if index >= self.page_count {
                index = 0;
            }
            let word = state.used[index / WORD_BITS];
            let bit = index % WORD_BITS;
            if word >> bit & 1 == 0 {
                state.used[index / WORD_BITS] |= 1 << bit;
                addresses.push(self.address_of(index));
                index += 1;
            } else {
                // On to the next free bit of the word, or to the next word.
                index += ((!word >> bit).trailing_zeros() as usize).min(WORD_BITS - bit);
            }
        }
        state.cursor = index;
        state.free_count -= count;
        Ok(addresses)
    }

    /// Gives pages back that nothing durable names and no write is about to reach.
    pub(crate) fn free(&self, addresses: impl IntoIterator<Item = MetadataAddress>) {
        let mut state = self.state.borrow_mut();
        for address in addresses {
            let index = match self.index_of(address) {
                Some(index) => index,
                None => unreachable!("page {address} was allocated here"),
            };
            let bit = 1 << (index % WORD_BITS);
            assert!(state.used[index / WORD_BITS] & bit != 0, "page {address} freed twice");
            state.used[index / WORD_BITS] &= !bit;
            state.free_count += 1;
        }
    }

    /// Marks a page that durable roots reach. `false` where it lies outside the area or is in use already.
    pub(crate) fn mark_used(&self, address: MetadataAddress) -> bool {
        let Some(index) = self.index_of(address) else { return false };
        let mut state = self.state.borrow_mut();
        let bit = 1 << (index % WORD_BITS);
        if state.used[index / WORD_BITS] & bit != 0 {
            return false;
        }
        state.used[index / WORD_BITS] |= bit;
        state.free_count -= 1;
        true
    }

    /// Notes pages that the checkpoint `generation` does not reach, though an earlier one may.
    pub(super) fn retire(&self, generation: u64, pages: Vec<Durable>) {
        self.state.borrow_mut().retired.push_back((generation, pages));
    }

    /// Frees what the checkpoint `generation` no longer reaches. To be called once its roots are durable on every
    /// live mirror, and not before.
    pub fn release(&self, generation: u64) {
        loop {
            let pages = {
                let mut state = self.state.borrow_mut();
                match state.retired.front() {
                    Some((retired, _)) if *retired <= generation => state.retired.pop_front(),
                    _ => None,
                }
            };
            let Some((_, pages)) = pages else { return };
            // A page that was never written (its checkpoint failed) has nothing to free.
            self.free(pages.iter().filter_map(|page| page.get()).map(|pointer| pointer.address));
        }
    }
}
