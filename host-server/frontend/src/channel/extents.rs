//! Memory of a guest, page by page, as its daemon has named it and the machine's memory table has it.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;

use ringfort_protocol::control::message::Reason;
use ringfort_protocol::ring::memory::SharedMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::machine::Memory;

/// Sizes of pages that a guest may name, as powers of two: small ones, and the huge ones of a processor.
pub const PAGE_SHIFTS: [u32; 2] = [12, 21];

/// A page that the server will not reach into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    #[error("page {index} at {address:#x} does not begin at a multiple of its size, {page_bytes} bytes")]
    Unaligned { index: usize, address: u64, page_bytes: u64 },
    #[error("page {index} at {address:#x} does not lie whole in one range of the machine's memory")]
    Outside { index: usize, address: u64 },
    #[error("page {index} at {address:#x} lies in a page that is shared already")]
    Taken { index: usize, address: u64 },
}

impl PageError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unaligned { .. } => Reason::PageUnaligned,
            Self::Outside { .. } => Reason::PageOutside,
            Self::Taken { .. } => Reason::PageTaken,
        }
    }
}

/// Ranges of a machine's memory that are shared with it, by where they begin: none overlap.
#[derive(Debug, Default)]
pub struct Taken(BTreeMap<u64, u64>);

impl Taken {
    /// Takes a page; false where a part of it is taken.
    pub fn insert(&mut self, address: u64, page_shift: u32) -> bool {
        let Some(end) = address.checked_add(1 << page_shift) else { return false };
        let before = self.0.range(..end).next_back();
        if before.is_some_and(|(_, taken_end)| *taken_end > address) {
            return false;
        }
        self.0.insert(address, end);
        true
    }

    pub fn remove(&mut self, address: u64) {
        self.0.remove(&address);
    }
}

/// Checks one page by itself and against the table.
pub fn check(memory: &Memory, index: usize, address: u64, page_shift: u32) -> Result<(), PageError> {
    locate(memory, index, address, page_shift).map(drop)
}

fn locate(memory: &Memory, index: usize, address: u64, page_shift: u32) -> Result<NonNull<u8>, PageError> {
    let page_bytes = 1 << page_shift;
    if !address.is_multiple_of(page_bytes) {
        return Err(PageError::Unaligned { index, address, page_bytes });
    }
    let outside = PageError::Outside { index, address };
    let (region, within) = memory.to_region_addr(GuestAddress(address)).ok_or(outside.clone())?;
    let end = within.0.checked_add(page_bytes).ok_or(outside.clone())?;
    if end > region.len() {
        return Err(outside);
    }
    let start = region.get_host_address(within).ok().and_then(NonNull::new);
    start.filter(|start| start.cast::<u64>().is_aligned()).ok_or(outside)
}

/// One range made of pages anywhere in a machine's memory. Keeps the mappings of this table.
pub fn resolve(memory: &Arc<Memory>, addresses: &[u64], page_shift: u32) -> Result<SharedMemory, PageError> {
    let page = |(index, address): (usize, &u64)| locate(memory, index, *address, page_shift);
    let pages = addresses.iter().enumerate().map(page).collect::<Result<Vec<_>, _>>()?;
    // SAFETY: each page lies whole in a region of the table, which is mapped readable and writable for as long as the table
    // lives, and the memory keeps the table. The guest and QEMU write there as well; no part of this process holds references into it.
    Ok(unsafe { SharedMemory::new(pages, page_shift, Arc::clone(memory) as _) })
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const HUGE: u64 = 2 << 20;

    /// Two ranges with a hole between, and one that huge pages do not fit into.
    fn memory() -> Arc<Memory> {
        let ranges = [(0, 4 * HUGE as usize), (8 * HUGE, HUGE as usize), (9 * HUGE, 4096)];
        let ranges = ranges.map(|(start, len_bytes)| (GuestAddress(start), len_bytes));
        Arc::new(Memory::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn pages_in_any_order_are_one_range() {
        let memory = memory();
        let shared = resolve(&memory, &[8 * HUGE, HUGE, 3 * HUGE], 21).unwrap();
        assert_eq!(shared.len_bytes(), 3 * HUGE);
        shared.write(HUGE - 2, b"across").unwrap();
        let mut found = [0; 2];
        memory.read_slice(&mut found, GuestAddress(9 * HUGE - 2)).unwrap();
        assert_eq!(&found, b"ac");
        let mut found = [0; 4];
        memory.read_slice(&mut found, GuestAddress(HUGE)).unwrap();
        assert_eq!(&found, b"ross");
    }

    #[test]
    fn what_does_not_lie_whole_in_memory_is_refused() {
        let memory = memory();
        let refused =
            |address, page_shift| resolve(&memory, &[0, address], page_shift).map(drop).unwrap_err();
        assert_eq!(refused(4 * HUGE, 21), PageError::Outside { index: 1, address: 4 * HUGE });
        assert_eq!(refused(9 * HUGE, 21).reason(), Reason::PageOutside, "a range of 4096 bytes");
        assert_eq!(refused(HUGE + 4096, 21).reason(), Reason::PageUnaligned);
        assert_eq!(refused(5, 12).reason(), Reason::PageUnaligned);
        assert_eq!(refused(!4095, 12).reason(), Reason::PageOutside);
        assert!(resolve(&memory, &[9 * HUGE], 12).is_ok());
    }

    #[test]
    fn no_page_is_taken_twice_whatever_its_size() {
        let mut taken = Taken::default();
        assert!(taken.insert(HUGE, 21));
        assert!(!taken.insert(HUGE, 21));
        assert!(!taken.insert(HUGE + 4096, 12));
        assert!(taken.insert(2 * HUGE, 12));
        assert!(!taken.insert(2 * HUGE, 21), "a small page lies in it");
        assert!(taken.insert(HUGE - 4096, 12));
        assert!(!taken.insert(!4095, 12));
        taken.remove(HUGE);
        assert!(taken.insert(HUGE + 4096, 12));
    }
}
