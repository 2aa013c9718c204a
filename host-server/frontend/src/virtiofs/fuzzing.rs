//! A way for fuzzers to the decoders: bytes in, nothing out. No part of the interface.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::queue::Chain;
use super::request::Dialect;
use super::{abi, decode};
use crate::machine::Memory;

/// Where the guest's memory begins, and how long it is: not at zero, and not to the end of the addresses.
const MEMORY_START: u64 = 0x1000;
const MEMORY_BYTES: usize = 256 * 1024;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn memory() -> Option<Arc<Memory>> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(MEMORY_START), MEMORY_BYTES)]).ok().map(Arc::new)
}

/// Decodes `bytes` as a request, laid out in descriptors whose lengths the first byte chooses.
pub fn request(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let Some(memory) = memory() else { return };
    let bytes = &bytes[..bytes.len().min(MEMORY_BYTES)];
    if memory.write_slice(bytes, GuestAddress(MEMORY_START)).is_err() {
        return;
    }
    let piece = usize::from(cut).max(bytes.len() / 100) + 1;
    let count = bytes.len().div_ceil(piece);
    let descriptors = bytes.chunks(piece).enumerate().map(|(index, chunk)| {
        let flags = if index + 1 < count { NEXT } else { 0 };
        Descriptor::new(MEMORY_START + (index * piece) as u64, chunk.len() as u32, flags, 0)
    });
    if let Ok(chain) = Chain::walk(memory, descriptors) {
        read(&chain);
    }
}

/// Takes `bytes` as a descriptor table, 16 bytes each, of a chain that goes through it in order; the guest's memory
/// holds the same bytes over and over.
pub fn chain(bytes: &[u8]) {
    let Some(memory) = memory() else { return };
    for (index, copy) in std::iter::repeat_n(bytes, 64).enumerate() {
        let _ = memory.write_slice(copy, GuestAddress(MEMORY_START + (index * bytes.len()) as u64));
    }
    let (table, _) = bytes.as_chunks::<16>();
    let descriptors = table.iter().map(|raw| {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, _, _] = *raw;
        let address = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        Descriptor::new(
            address,
            u32::from_le_bytes([i, j, k, l]),
            u16::from_le_bytes([m, n]) & (NEXT | WRITE),
            0,
        )
    });
    let Ok(chain) = Chain::walk(memory, descriptors) else { return };
    read(&chain);
    let mut output = chain.output();
    let room_bytes = output.room_bytes();
    assert_eq!(room_bytes, chain.writable_bytes());
    // All of a chain that was accepted can be written, and not a byte more.
    assert!(output.write_zeros(room_bytes).is_ok() && output.write(&[0]).is_err());
}

/// Reads header and request.
fn read(chain: &Chain) {
    let mut input = chain.input();
    let Ok(header) = decode::header(&mut input) else {
        assert!(chain.readable_bytes() < size_of::<abi::InHeader>());
        return;
    };
    let _ = format!(
        "{:?} {:?}",
        header.credentials(),
        decode::request(&header, Dialect { setxattr_ext: header.unique % 2 == 0 }, &mut input)
    );
}
