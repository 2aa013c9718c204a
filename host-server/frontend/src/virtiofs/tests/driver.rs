//! A guest's virtio-fs driver in a few lines: builds descriptor chains in guest memory and reads replies back.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use crate::machine::Memory;
use crate::virtiofs::abi;

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub const INDIRECT: u16 = 4;

/// Where a queue's parts lie, from its base on; then its buffers.
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x5000;
const BUFFERS: u64 = 0x1_0000;

/// A descriptor as it lies in the table.
#[derive(Clone, Copy)]
pub struct Descriptor {
    pub address: u64,
    pub len_bytes: u32,
    pub flags: u16,
    pub next: u16,
}

/// A request that the device has not answered yet.
#[derive(Clone, Debug)]
pub struct Ticket {
    pub head: u16,
    readable: Vec<u64>,
    writable: Vec<(u64, u32)>,
}

#[derive(Debug)]
pub struct Answer {
    pub written_bytes: u32,
    pub error: i32,
    pub unique: u64,
    pub body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub fn ok(self) -> Vec<u8> {
        assert_eq!(self.error, 0);
        self.body
    }

    #[track_caller]
    pub fn parse<T: FromBytes>(self) -> T {
        T::read_from_bytes(&self.ok()).expect("a body of the right size")
    }
}

/// The driver's end of one queue.
pub struct Driver {
    pub memory: Arc<Memory>,
    base: u64,
    size: u16,
    buffers_len_bytes: u64,
    next_buffer: u64,
    next_descriptor: u16,
    kept_descriptors: u16,
    available: u16,
    /// Where `available` was when the device was last rung.
    told: u16,
    used: u16,
    next_unique: u64,
}

impl Driver {
    pub fn new(memory: Arc<Memory>, base: u64, size: u16, buffers_len_bytes: u64) -> Self {
        Self {
            memory,
            base,
            size,
            buffers_len_bytes,
            next_buffer: 0,
            next_descriptor: 0,
            kept_descriptors: 0,
            available: 0,
            told: 0,
            used: 0,
            next_unique: 2,
        }
    }

    /// Descriptor table, available ring, used ring.
    pub fn ring_addresses(&self) -> (u64, u64, u64) {
        (self.base, self.base + AVAILABLE, self.base + USED)
    }

    /// Zeroes the rings, as a driver finds them that begins anew.
    pub fn clear(&self) {
        self.memory.write_slice(&[0; BUFFERS as usize], GuestAddress(self.base)).unwrap();
    }

    /// Guest memory for a buffer; the oldest buffers are overwritten in time.
    pub fn buffer(&mut self, len_bytes: u64) -> u64 {
        if self.next_buffer + len_bytes > self.buffers_len_bytes {
            self.next_buffer = 0;
        }
        let address = self.base + BUFFERS + self.next_buffer;
        self.next_buffer += len_bytes.next_multiple_of(8);
        address
    }

    /// Whether the device wants to hear of what was made available since the last time that this was asked.
    pub fn is_to_ring(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let event: u16 =
            self.memory.read_obj(GuestAddress(self.base + USED + 4 + u64::from(self.size) * 8)).unwrap();
        let since = std::mem::replace(&mut self.told, self.available);
        self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(since)
    }

    /// Asks the device to ring for the next chain that it gives back.
    fn ask_for_a_ring(&self) {
        let place = self.base + AVAILABLE + 4 + u64::from(self.size) * 2;
        self.memory.write_obj(self.used, GuestAddress(place)).unwrap();
    }

    /// Uses the first descriptors next. No chain may be outstanding.
    pub fn begin_descriptors_anew(&mut self) {
        (self.next_descriptor, self.kept_descriptors) = (0, 0);
    }

    /// Leaves the descriptors that were used so far alone: their chains stay outstanding while others come and go.
    pub fn keep_descriptors(&mut self) {
        self.kept_descriptors = self.next_descriptor;
    }

    /// Puts the next buffers where the first were.
    pub fn begin_buffers_anew(&mut self) {
        self.next_buffer = 0;
    }

    /// Where piece `number` of a request lies.
    pub fn readable_address(&self, ticket: &Ticket, number: usize) -> u64 {
        ticket.readable[number]
    }

    pub fn store(&mut self, index: u16, descriptor: Descriptor) {
        let at = self.base + u64::from(index) * 16;
        self.memory.write_obj(descriptor.address, GuestAddress(at)).unwrap();
        self.memory.write_obj(descriptor.len_bytes, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(descriptor.flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(descriptor.next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain that begins with `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = self.base + AVAILABLE + 4 + u64::from(self.available % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    pub fn set_available_index(&mut self, index: u16) {
        self.memory.write_obj(index, GuestAddress(self.base + AVAILABLE + 2)).unwrap();
    }

    /// Offers a chain of these readable pieces and writable lengths.
    pub fn submit(&mut self, readable: &[&[u8]], writable: &[u32]) -> Ticket {
        let count = (readable.len() + writable.len()) as u16;
        assert!(count <= self.size);
        if self.next_descriptor + count > self.size {
            self.next_descriptor = self.kept_descriptors;
        }
        let head = self.next_descriptor;
        self.next_descriptor += count;
        let mut index = head;
        let mut ticket = Ticket { head, readable: Vec::new(), writable: Vec::new() };
        let mut add = |driver: &mut Self, address, len_bytes, flags| {
            let last = index + 1 == head + count;
            let flags = if last { flags } else { flags | NEXT };
            driver.store(index, Descriptor { address, len_bytes, flags, next: index + 1 });
            index += 1;
        };
        for bytes in readable {
            let address = self.buffer(bytes.len() as u64);
            self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
            add(self, address, bytes.len() as u32, 0);
            ticket.readable.push(address);
        }
        for &len_bytes in writable {
            let address = self.buffer(u64::from(len_bytes));
            add(self, address, len_bytes, WRITE);
            ticket.writable.push((address, len_bytes));
        }
        self.offer(head);
        ticket
    }

    /// The header and body of a request.
    pub fn request(&mut self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        self.next_unique += 2;
        let header = abi::InHeader {
            len: ((size_of::<abi::InHeader>() + body.len()) as u32).into(),
            opcode: opcode.into(),
            unique: self.next_unique.into(),
            nodeid: node.into(),
            uid: 1000.into(),
            gid: 1000.into(),
            ..Default::default()
        };
        [header.as_bytes(), body].concat()
    }

    /// The next chain that the device has given back: its head, and bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.base + USED + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let slot = self.base + USED + 4 + u64::from(self.used % self.size) * 8;
        let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let written_bytes: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        self.ask_for_a_ring();
        Some((head as u16, written_bytes))
    }

    /// The reply in the writable part of a chain that was given back.
    pub fn answer(&self, ticket: &Ticket, written_bytes: u32) -> Answer {
        let mut bytes = Vec::new();
        for &(address, len_bytes) in &ticket.writable {
            let mut piece = vec![0; len_bytes as usize];
            self.memory.read_slice(&mut piece, GuestAddress(address)).unwrap();
            bytes.extend(piece);
        }
        let (header, rest) = abi::OutHeader::read_from_prefix(&bytes).expect("room for a header");
        assert_eq!(header.len.get(), written_bytes);
        let body = rest[..written_bytes as usize - size_of::<abi::OutHeader>()].to_vec();
        Answer { written_bytes, error: header.error.get(), unique: header.unique.get(), body }
    }
}

/// The body of INIT as a current kernel sends it.
pub fn init_in(minor: u32, flags: u32) -> abi::InitIn {
    abi::InitIn {
        major: 7.into(),
        minor: minor.into(),
        max_readahead: (128 * 1024).into(),
        flags: flags.into(),
        ..Default::default()
    }
}

pub fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}
