//! A guest without a virtual machine: a vhost-user front end and a virtio-fs driver that sends one request at a time.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::scene::PATIENCE;

const REGION_BYTES: usize = 4 << 20;
const QUEUE_SIZE: u16 = 16;

/// Parts of a queue, from its base on.
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const QUEUE_BYTES: u64 = 0x4000;
/// The queue that carries requests; the one of high priority lies idle before it.
const BASE: u64 = QUEUE_BYTES;
const REQUEST: u64 = 0x10_0000;
const REPLY: u64 = 0x20_0000;
const REPLY_BYTES: u32 = 1 << 20;

/// Opcodes of FUSE.
pub const LOOKUP: u32 = 1;
pub const WRITE: u32 = 16;
pub const READ: u32 = 15;
pub const FSYNC: u32 = 20;
const OPEN: u32 = 14;
const INIT: u32 = 26;
const CREATE: u32 = 35;

/// Connected, with a session. Leaves when dropped.
pub struct Guest {
    _frontend: Frontend,
    memory: GuestMemoryMmap,
    kick: EventFd,
    _idle: [EventFd; 3],
    /// Chains offered so far, each answered before the next.
    count: u16,
}

impl Guest {
    pub fn connect(socket: &Path) -> Self {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(REGION_BYTES as u64).unwrap();
        let region = (GuestAddress(0), REGION_BYTES, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([region]).unwrap();
        let mut frontend = Frontend::connect(socket, 2).unwrap();
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_features(features).unwrap();
        let region = memory.find_region(GuestAddress(0)).unwrap();
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()]).unwrap();
        let [kick, call, other_kick, other_call] = [(); 4].map(|()| EventFd::new(0).unwrap());
        let host = |address| memory.get_host_address(GuestAddress(address)).unwrap() as u64;
        for (index, base, kick, call) in [(0, 0, &other_kick, &other_call), (1, BASE, &kick, &call)] {
            let config = VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: QUEUE_SIZE,
                flags: 0,
                desc_table_addr: host(base),
                avail_ring_addr: host(base + AVAILABLE),
                used_ring_addr: host(base + USED),
                log_addr: None,
            };
            frontend.set_vring_num(index, QUEUE_SIZE).unwrap();
            frontend.set_vring_base(index, 0).unwrap();
            frontend.set_vring_addr(index, &config).unwrap();
            frontend.set_vring_call(index, call).unwrap();
            frontend.set_vring_kick(index, kick).unwrap();
            frontend.set_vring_enable(index, true).unwrap();
        }
        let mut guest =
            Self { _frontend: frontend, memory, kick, _idle: [call, other_kick, other_call], count: 0 };
        let init = [7u32, 38, 1 << 17, 0].map(u32::to_le_bytes).concat();
        guest.call(INIT, 0, &[init, vec![0; 48]].concat()).unwrap();
        guest
    }

    /// A new file in the root directory; its handle.
    pub fn create(&mut self, name: &str) -> u64 {
        let body = [2u32, 0o100_644, 0, 0].map(u32::to_le_bytes).concat();
        let created = self.call(CREATE, 1, &[&body, name.as_bytes(), b"\0"].concat()).unwrap();
        // Behind the entry: what opening it gave.
        u64::from_le_bytes(created[128..136].try_into().unwrap())
    }

    /// The handle of a file in the root directory.
    pub fn open(&mut self, name: &str) -> u64 {
        let entry = self.call(LOOKUP, 1, &[name.as_bytes(), b"\0"].concat()).unwrap();
        let node = u64::from_le_bytes(entry[..8].try_into().unwrap());
        let opened = self.call(OPEN, node, &[0; 8]).unwrap();
        u64::from_le_bytes(opened[..8].try_into().unwrap())
    }

    pub fn write(&mut self, handle: u64, offset_bytes: u64, data: &[u8]) {
        let written =
            self.call(WRITE, 0, &[&transfer(handle, offset_bytes, data.len()), data].concat()).unwrap();
        assert_eq!(written[..4], (data.len() as u32).to_le_bytes());
    }

    pub fn read(&mut self, handle: u64, offset_bytes: u64, len_bytes: usize) -> Vec<u8> {
        self.call(READ, 0, &transfer(handle, offset_bytes, len_bytes)).unwrap()
    }

    pub fn sync(&mut self, handle: u64) {
        self.call(FSYNC, 0, &[handle.to_le_bytes(), [0; 8]].concat()).unwrap();
    }

    /// The body of the reply, or its error number.
    pub fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let len_bytes = 40 + body.len() as u32;
        let unique = u64::from(self.count) * 2 + 2;
        let mut request = [len_bytes, opcode].map(u32::to_le_bytes).concat();
        request.extend([unique, node].map(u64::to_le_bytes).concat());
        request.extend([0; 16]);
        request.extend(body);
        self.memory.write_slice(&request, GuestAddress(REQUEST)).unwrap();
        self.describe(0, REQUEST, len_bytes, 1, 1);
        self.describe(1, REPLY, REPLY_BYTES, 2, 0);
        let slot = BASE + AVAILABLE + 4 + u64::from(self.count % QUEUE_SIZE) * 2;
        self.memory.write_obj(0u16, GuestAddress(slot)).unwrap();
        self.count += 1;
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.memory.write_obj(self.count, GuestAddress(BASE + AVAILABLE + 2)).unwrap();
        self.kick.write(1).unwrap();
        let started = Instant::now();
        while self.memory.read_obj::<u16>(GuestAddress(BASE + USED + 2)).unwrap() != self.count {
            assert!(started.elapsed() < PATIENCE, "no answer to opcode {opcode}");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let mut head = [0; 16];
        self.memory.read_slice(&mut head, GuestAddress(REPLY)).unwrap();
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        match word(4) as i32 {
            0 => {
                let mut body = vec![0; word(0) as usize - head.len()];
                self.memory.read_slice(&mut body, GuestAddress(REPLY + head.len() as u64)).unwrap();
                Ok(body)
            }
            error => Err(-error),
        }
    }

    fn describe(&self, index: u64, address: u64, len_bytes: u32, flags: u16, next: u16) {
        let at = GuestAddress(BASE + index * 16);
        let words = [address.to_le_bytes().to_vec(), len_bytes.to_le_bytes().to_vec()].concat();
        let descriptor = [words, flags.to_le_bytes().to_vec(), next.to_le_bytes().to_vec()].concat();
        self.memory.write_slice(&descriptor, at).unwrap();
    }
}

/// The bodies of READ and WRITE.
fn transfer(handle: u64, offset_bytes: u64, len_bytes: usize) -> Vec<u8> {
    let mut body = [handle, offset_bytes].map(u64::to_le_bytes).concat();
    body.extend((len_bytes as u32).to_le_bytes());
    body.resize(40, 0);
    body
}
