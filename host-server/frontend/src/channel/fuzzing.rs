//! A way for fuzzers to the channel: bytes in, nothing out. No part of the interface.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use ringfort_engine::engine::Engine;
use ringfort_engine::local::{LocalOptions, Transport, start};
use ringfort_engine::runtime::Runtime;
use ringfort_filesystem::operation::Credentials;
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_protocol::command::{Area, Command, Flags, Opcode};
use ringfort_protocol::control::message::{Message, SECRET_BYTES};
use ringfort_protocol::ring::layout::RingLayout;
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::ring::responder::Responder;
use ringfort_store::model::{ModelSettings, ModelVolume};

use super::control::{Conversation, Identity, Limits, Next, Peer, Refusal, RingAttachment, Rings};
use super::data::DataArea;
use super::metrics::ChannelMetrics;
use super::ring::{CredentialTable, RingParts, RingServer};
use super::session::Session;

/// Small, so that everything wraps.
const SLOTS: u32 = 8;
const COMMANDS_START: u64 = 256;
const DATA_START: u32 = 8192;
const DATA_BYTES: u32 = 64 << 10;
const COMMAND_BYTES_MAX: u32 = 16 << 10;

/// Names that lead somewhere, more often than chance finds any.
const PATHS: [&[u8]; 12] = [
    b"/",
    b"a",
    b"/a/b",
    b"dir",
    b"dir/a",
    b"dir/../dir/./a",
    b"link",
    b"link/a",
    b"..",
    b"a/",
    b"user.x",
    b"a\0b",
];

/// What is left of an input.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.next()))
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    /// A small number most of the time, and any at others.
    fn often_small(&mut self, below: u64) -> u64 {
        let chosen = self.next();
        if chosen < 240 { u64::from(chosen) % below } else { self.number() }
    }
}

/// A client that keeps to nothing.
struct Hostile {
    memory: SharedMemory,
    submitted: u32,
}

impl Hostile {
    /// Writes a slot, and its sequence number, which `lie` changes.
    fn submit(&mut self, mut slot: [u8; 64], lie: u32) {
        slot[60..].copy_from_slice(&self.submitted.wrapping_add(1).wrapping_add(lie).to_le_bytes());
        let place = COMMANDS_START + u64::from(self.submitted % SLOTS) * 64;
        let _ = self.memory.write(place, &slot);
        if lie == 0 {
            self.submitted = self.submitted.wrapping_add(1);
        }
    }

    fn area(bytes: &mut Bytes<'_>) -> Area {
        match bytes.next() {
            0..200 => {
                Area { start: DATA_START + u32::from(bytes.next()) * 16, len_bytes: u32::from(bytes.next()) }
            }
            200..230 => Area { start: DATA_START, len_bytes: u32::from(bytes.next()) * 256 },
            _ => Area { start: bytes.number() as u32, len_bytes: bytes.number() as u32 },
        }
    }

    fn command(bytes: &mut Bytes<'_>) -> [u8; 64] {
        let opcode = u16::from(bytes.next() % 33);
        let mut command = Command::new(Opcode::Nop, u64::from(bytes.next()), u32::from(bytes.next() % 3));
        let flags = bytes.next();
        command.flags = Flags(match flags {
            0..128 => 0,
            128..224 => u16::from(flags & 0xf),
            _ => bytes.number() as u16,
        });
        command.target = bytes.often_small(6);
        command.operand = bytes.often_small(6);
        command.input = match bytes.next() {
            0..64 => Area::default(),
            _ => Self::area(bytes),
        };
        command.output = match bytes.next() {
            0..128 => Area::default(),
            _ => Self::area(bytes),
        };
        command.value = bytes.often_small(16) | u64::from(bytes.next()) << 32;
        let mut slot = command.encode().to_bytes();
        slot[8..10].copy_from_slice(&opcode.to_le_bytes());
        slot
    }

    /// One step of what the bytes tell. True where the server should have a turn.
    fn step(&mut self, bytes: &mut Bytes<'_>) -> bool {
        match bytes.next() % 16 {
            0..6 => {
                let slot = Self::command(bytes);
                self.submit(slot, 0);
                false
            }
            6..9 => {
                let path = PATHS[usize::from(bytes.next()) % PATHS.len()];
                let place = DATA_START + u32::from(bytes.next()) * 16;
                let _ = self.memory.write(place.into(), path);
                false
            }
            9 => {
                let count = usize::from(bytes.next());
                let place = DATA_START + u32::from(bytes.next()) * 16;
                let data = bytes.take(count);
                let _ = self.memory.write(place.into(), &data);
                false
            }
            10 => {
                let slot = Self::command(bytes);
                self.submit(slot, u32::from(bytes.next()));
                false
            }
            11 => {
                // Any word of the ring, flags and completions included.
                let place = bytes.number() % u64::from(DATA_START - 8);
                let _ = self.memory.write(place, &bytes.number().to_le_bytes());
                false
            }
            _ => true,
        }
    }
}

thread_local! {
    /// One for all inputs: it has threads or a ring of the kernel's.
    static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
}

/// Plays a client whose commands, and whatever else it writes into its memory, are chosen by `bytes`.
pub fn ring(bytes: &[u8]) {
    RUNTIME.with_borrow_mut(|runtime| {
        if runtime.is_none() {
            let options = LocalOptions { transport: Transport::Threads, ..LocalOptions::default() };
            *runtime = start(options).ok();
        }
        let Some(runtime) = runtime else { return };
        let engine = runtime.engine();
        runtime.block_on(serve_hostile(engine, bytes));
    });
}

async fn serve_hostile(engine: Rc<dyn Engine>, bytes: &[u8]) {
    let volume = Rc::new(ModelVolume::new(ModelSettings::default()));
    let Ok(()) = Filesystem::format(&*volume, &*engine).await else { return };
    let options = FilesystemOptions::default();
    let Ok(filesystem) = Filesystem::open(volume, Rc::clone(&engine), options).await else { return };
    let session = Rc::new(Session::begin(Rc::new(filesystem.clone())).await);
    let memory = SharedMemory::in_process((DATA_START + DATA_BYTES).into());
    let Some(layout) = RingLayout::new(0, SLOTS, memory.len_bytes()) else { return };
    let area = Area { start: DATA_START, len_bytes: DATA_BYTES };
    let Some(data) = DataArea::new(memory.clone(), area, COMMAND_BYTES_MAX) else { return };
    let user = Credentials { uid: 1000, gid: 1000, groups: vec![24], check_permissions: true };
    let table = HashMap::from([(0, Rc::new(Credentials::root())), (1, Rc::new(user))]);
    let credentials: CredentialTable = Rc::new(RefCell::new(table));
    let metrics = Arc::<ChannelMetrics>::default();
    let session_of_ring = Rc::clone(&session);
    let parts = RingParts {
        session: session_of_ring,
        credentials,
        slot_count: SLOTS,
        data,
        doorbell: None,
        metrics: Arc::clone(&metrics),
    };
    let server = RingServer::start(Rc::clone(&engine), parts, Responder::new(memory.clone(), layout), None);
    let mut client = Hostile { memory, submitted: 0 };
    let mut bytes = Bytes(bytes);
    while !bytes.0.is_empty() {
        if client.step(&mut bytes) {
            engine.yield_now().await;
        }
    }
    engine.yield_now().await;
    server.halt().await;
    session.end().await;
    let counts = filesystem.counts();
    assert_eq!((counts.held_inodes, counts.lock_waiters), (0, 0), "nothing outlives its client");
}

/// Lets everything happen.
pub(super) struct Yes;

impl Rings for Yes {
    fn credential(&mut self, _: u32, _: u32, _: Credentials) -> Result<(), Refusal> {
        Ok(())
    }

    fn attach(&mut self, _: u32, _: u32, _: RingAttachment) -> Result<(), Refusal> {
        Ok(())
    }

    fn detach(&mut self, _: u32, _: Option<u32>) -> Result<(), Refusal> {
        Ok(())
    }

    fn suspend(&mut self, _: u32) -> Result<(), Refusal> {
        Ok(())
    }

    fn resume(&mut self, _: u32, _: SharedMemory) -> Result<(), Refusal> {
        Ok(())
    }

    fn speak_for_guest(&mut self, _: [u8; SECRET_BYTES]) -> Result<(), Refusal> {
        Ok(())
    }

    fn welcome_process(&mut self) -> Result<(), Refusal> {
        Ok(())
    }
    fn claim_doorbell(&mut self, _: &[u8; SECRET_BYTES]) -> bool {
        false
    }
}

fn sealed(len_bytes: i64) -> Option<OwnedFd> {
    let memfd = memfd_create("fuzz", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).ok()?;
    ftruncate(&memfd, len_bytes).ok()?;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).ok()?;
    Some(memfd)
}

/// Carries on a conversation: for each message a byte of its kind, one of descriptors, one of its length in fours, and its body.
pub fn conversation(bytes: &[u8]) {
    let peer = Peer { uid: 1000, gid: 1000, groups: vec![24] };
    let identity = Identity { server: [7; 16], volume: [9; 16] };
    let limits = Limits { memory_bytes_max: 1 << 20, ..Limits::default() };
    let mut conversation = Conversation::new(peer, limits, identity, Yes);
    let mut bytes = Bytes(bytes);
    while !bytes.0.is_empty() {
        let kind = u16::from(bytes.next() % 20);
        let descriptors = match bytes.next() {
            0..128 => Vec::new(),
            pages => sealed(i64::from(pages % 8) * 4096).into_iter().collect(),
        };
        let len_bytes = usize::from(bytes.next()) * 4;
        let body = bytes.take(len_bytes);
        let Ok(message) = Message::decode(kind, &body) else { continue };
        match conversation.hear(message, descriptors) {
            Next::SayAndEnd(_) | Next::SayAndRing(..) => break,
            Next::Say(answer) => assert!(!answer.encode(conversation.version()).is_empty()),
            Next::Listen => {}
        }
    }
    conversation.end();
}
