//! Virtqueues as the device sees them, and the descriptor chains that come out of them.
//!
//! A chain is untrusted. It is walked once, into bounded lists of extents that were checked against the guest's memory
//! table; the readable bytes are then copied out once, through a cursor that never goes back, and the writable ones
//! filled by another. No reference into guest memory exists: the guest may change its bytes at any time.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::machine::Memory;

/// Descriptors of one chain. A request of [`CHAIN_BYTES_MAX`] in pages of 4 KiB needs a quarter of it.
pub const CHAIN_DESCRIPTORS_MAX: usize = 1024;

/// Bytes of one chain, both directions together: the largest read or write, and as much again for drivers that offer
/// a roomy reply buffer.
pub const CHAIN_BYTES_MAX: usize = 2 * 1024 * 1024 + 128 * 1024;

/// How a chain breaks the rules of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("a chain has no descriptors that can be read")]
    Empty,
    #[error(
        "a chain does not end: a loop, an index beyond the table, or a descriptor outside the guest's memory"
    )]
    Endless,
    #[error("a chain has more than {CHAIN_DESCRIPTORS_MAX} descriptors")]
    TooManyDescriptors,
    #[error("a chain has more than {CHAIN_BYTES_MAX} bytes")]
    TooManyBytes,
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    #[error("{len_bytes} bytes at {address:#x} are not in the guest's memory")]
    OutsideMemory { address: u64, len_bytes: u32 },
    #[error("the chain has {available} more bytes where {wanted} were wanted")]
    TooShort { wanted: usize, available: usize },
}

/// How a whole ring is unusable.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("virtqueue: {0}")]
    Queue(virtio_queue::Error),
    #[error("a ring's indexes promise a chain that cannot be read")]
    Stuck,
    #[error("ring a doorbell of the guest: {0}")]
    Doorbell(std::io::Error),
}

/// A chain that was taken from a ring.
#[derive(Debug)]
pub struct Taken {
    /// Its first descriptor: names the chain when it is given back.
    pub head: u16,
    pub chain: Result<Chain, ChainError>,
}

/// One virtqueue, whoever drives the device. Lives on the device's thread.
pub trait Ring {
    /// The next available chain; none where nothing is available or the ring is stopped.
    fn take(&self) -> Result<Option<Taken>, RingError>;

    /// Returns the chain that begins with `head`, `written_bytes` of its writable part filled.
    fn give_back(&self, head: u16, written_bytes: u32) -> Result<(), RingError>;

    /// Rings the guest's doorbell for what was given back since the last time, if it wants that. True where it was rung.
    fn ring(&self) -> Result<bool, RingError>;

    /// Asks the guest not to ring while the ring is being emptied. A hint.
    fn mute(&self) -> Result<(), RingError>;

    /// Asks the guest to ring again. True where chains have arrived meanwhile: they must be taken, no ring may come.
    fn unmute(&self) -> Result<bool, RingError>;

    /// Chains that the guest may have outstanding.
    fn size(&self) -> usize;

    /// Chains that were taken since the guest's driver began, modulo 2¹⁶.
    fn position(&self) -> u16;
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    address: GuestAddress,
    len_bytes: usize,
}

/// A checked descriptor chain: where a request lies, and where its reply goes.
#[derive(Debug)]
pub struct Chain {
    memory: Arc<Memory>,
    readable: Vec<Extent>,
    writable: Vec<Extent>,
    readable_bytes: usize,
    writable_bytes: usize,
}

impl Chain {
    /// Walks `descriptors`. The iterator must end by itself on loops (as `DescriptorChain` does).
    pub fn walk(
        memory: Arc<Memory>,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> Result<Self, ChainError> {
        let mut chain =
            Self { memory, readable: Vec::new(), writable: Vec::new(), readable_bytes: 0, writable_bytes: 0 };
        let mut count = 0;
        let mut unfinished = None;
        for descriptor in descriptors {
            count += 1;
            if count > CHAIN_DESCRIPTORS_MAX {
                return Err(ChainError::TooManyDescriptors);
            }
            unfinished = Some(descriptor.has_next());
            chain.add(&descriptor)?;
        }
        match unfinished {
            None => Err(ChainError::Empty),
            Some(true) => Err(ChainError::Endless),
            Some(false) => Ok(chain),
        }
    }

    fn add(&mut self, descriptor: &Descriptor) -> Result<(), ChainError> {
        let extent = Extent { address: descriptor.addr(), len_bytes: descriptor.len() as usize };
        if self.readable_bytes + self.writable_bytes + extent.len_bytes > CHAIN_BYTES_MAX {
            return Err(ChainError::TooManyBytes);
        }
        let access = if descriptor.is_write_only() { Permissions::Write } else { Permissions::Read };
        if !descriptor.is_write_only() && !self.writable.is_empty() {
            return Err(ChainError::ReadableAfterWritable);
        }
        if extent.len_bytes == 0 {
            return Ok(());
        }
        if !GuestMemory::check_range(&*self.memory, extent.address, extent.len_bytes, access) {
            return Err(ChainError::OutsideMemory { address: extent.address.0, len_bytes: descriptor.len() });
        }
        if descriptor.is_write_only() {
            self.writable_bytes += extent.len_bytes;
            self.writable.push(extent);
        } else {
            self.readable_bytes += extent.len_bytes;
            self.readable.push(extent);
        }
        Ok(())
    }

    pub fn readable_bytes(&self) -> usize {
        self.readable_bytes
    }

    pub fn writable_bytes(&self) -> usize {
        self.writable_bytes
    }

    /// The readable bytes, from the first on.
    pub fn input(&self) -> Input<'_> {
        Input {
            memory: &self.memory,
            cursor: Cursor::new(&self.readable),
            remaining_bytes: self.readable_bytes,
        }
    }

    /// The writable bytes, from the first on.
    pub fn output(&self) -> Output<'_> {
        Output { memory: &self.memory, cursor: Cursor::new(&self.writable), room_bytes: self.writable_bytes }
    }
}

struct Cursor<'a> {
    extents: std::slice::Iter<'a, Extent>,
    current: Extent,
}

impl<'a> Cursor<'a> {
    fn new(extents: &'a [Extent]) -> Self {
        Self { extents: extents.iter(), current: Extent { address: GuestAddress(0), len_bytes: 0 } }
    }

    /// The next contiguous piece of at most `limit_bytes`; empty at the end.
    fn advance(&mut self, limit_bytes: usize) -> Extent {
        if self.current.len_bytes == 0
            && let Some(next) = self.extents.next()
        {
            self.current = *next;
        }
        let len_bytes = self.current.len_bytes.min(limit_bytes);
        let piece = Extent { address: self.current.address, len_bytes };
        // No overflow: the extent was checked to lie inside the guest's memory.
        self.current.address = GuestAddress(self.current.address.0.wrapping_add(len_bytes as u64));
        self.current.len_bytes -= len_bytes;
        piece
    }
}

/// Copies a request out of guest memory, each byte once.
pub struct Input<'a> {
    memory: &'a Memory,
    cursor: Cursor<'a>,
    remaining_bytes: usize,
}

impl Input<'_> {
    pub fn remaining_bytes(&self) -> usize {
        self.remaining_bytes
    }

    /// Fills `buffer`.
    pub fn read(&mut self, mut buffer: &mut [u8]) -> Result<(), ChainError> {
        if buffer.len() > self.remaining_bytes {
            return Err(ChainError::TooShort { wanted: buffer.len(), available: self.remaining_bytes });
        }
        self.remaining_bytes -= buffer.len();
        while !buffer.is_empty() {
            let piece = self.cursor.advance(buffer.len());
            let (head, tail) = std::mem::take(&mut buffer).split_at_mut(piece.len_bytes);
            self.memory.read_slice(head, piece.address).map_err(|_| outside(piece))?;
            buffer = tail;
        }
        Ok(())
    }
}

/// Copies a reply into guest memory, each byte once.
pub struct Output<'a> {
    memory: &'a Memory,
    cursor: Cursor<'a>,
    room_bytes: usize,
}

impl Output<'_> {
    pub fn room_bytes(&self) -> usize {
        self.room_bytes
    }

    /// Appends `bytes`.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), ChainError> {
        if bytes.len() > self.room_bytes {
            return Err(ChainError::TooShort { wanted: bytes.len(), available: self.room_bytes });
        }
        self.room_bytes -= bytes.len();
        while !bytes.is_empty() {
            let piece = self.cursor.advance(bytes.len());
            let (head, tail) = bytes.split_at(piece.len_bytes);
            self.memory.write_slice(head, piece.address).map_err(|_| outside(piece))?;
            bytes = tail;
        }
        Ok(())
    }

    /// Appends `len_bytes` zeros.
    pub fn write_zeros(&mut self, mut len_bytes: usize) -> Result<(), ChainError> {
        static ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];
        while len_bytes > 0 {
            let count = len_bytes.min(ZEROS.len());
            self.write(&ZEROS[..count])?;
            len_bytes -= count;
        }
        Ok(())
    }
}

fn outside(piece: Extent) -> ChainError {
    // A piece is part of a descriptor, whose length is 32 bits wide.
    ChainError::OutsideMemory { address: piece.address.0, len_bytes: piece.len_bytes as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;

    fn memory() -> Arc<Memory> {
        // A hole between the two regions.
        let ranges = [(GuestAddress(0), 0x10000), (GuestAddress(0x20000), 0x10000)];
        Arc::new(Memory::from_ranges(&ranges).unwrap())
    }

    fn walk(descriptors: &[(u64, u32, u16)]) -> Result<Chain, ChainError> {
        let descriptors =
            descriptors.iter().map(|&(address, len, flags)| Descriptor::new(address, len, flags, 0));
        Chain::walk(memory(), descriptors)
    }

    #[test]
    fn bytes_cross_descriptors_in_order() {
        let chain = walk(&[
            (0x100, 3, NEXT),
            (0x200, 0, NEXT),
            (0x300, 5, NEXT),
            (0x400, 4, WRITE | NEXT),
            (0x500, 8, WRITE),
        ])
        .unwrap();
        chain.memory.write_slice(b"abc", GuestAddress(0x100)).unwrap();
        chain.memory.write_slice(b"defgh", GuestAddress(0x300)).unwrap();
        let mut input = chain.input();
        let mut first = [0; 4];
        input.read(&mut first).unwrap();
        assert_eq!((&first, input.remaining_bytes()), (b"abcd", 4));
        let mut too_much = [0; 5];
        assert_eq!(input.read(&mut too_much), Err(ChainError::TooShort { wanted: 5, available: 4 }));
        let mut rest = [0; 4];
        input.read(&mut rest).unwrap();
        assert_eq!(&rest, b"efgh");

        let mut output = chain.output();
        output.write(b"0123456").unwrap();
        output.write_zeros(2).unwrap();
        assert_eq!(output.room_bytes(), 3);
        assert!(output.write(b"too long").is_err());
        let mut found = [0xff; 8];
        chain.memory.read_slice(&mut found, GuestAddress(0x500)).unwrap();
        assert_eq!(&found[..5], b"456\0\0");
    }

    #[test]
    fn rule_breakers_are_named() {
        assert_eq!(walk(&[]).unwrap_err(), ChainError::Empty);
        assert_eq!(walk(&[(0, 8, NEXT)]).unwrap_err(), ChainError::Endless);
        assert_eq!(walk(&[(0, 8, WRITE | NEXT), (0, 8, 0)]).unwrap_err(), ChainError::ReadableAfterWritable);
        assert_eq!(
            walk(&[(0x10000, 1, 0)]).unwrap_err(),
            ChainError::OutsideMemory { address: 0x10000, len_bytes: 1 }
        );
        // Begins inside, ends in the hole; wraps around the end of the address space.
        assert!(matches!(walk(&[(0xffff, 2, 0)]).unwrap_err(), ChainError::OutsideMemory { .. }));
        assert!(matches!(walk(&[(u64::MAX, 2, WRITE)]).unwrap_err(), ChainError::OutsideMemory { .. }));
        assert_eq!(walk(&[(0, u32::MAX, 0)]).unwrap_err(), ChainError::TooManyBytes);
        let long = vec![(0, 1, NEXT); CHAIN_DESCRIPTORS_MAX + 1];
        assert_eq!(walk(&long).unwrap_err(), ChainError::TooManyDescriptors);
    }
}
