//! A guest without a virtual machine: its memory is a memfd that server and test map each for itself, its daemon a test that speaks the protocol.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use ringfort_engine::local::{LocalOptions, start};
use ringfort_engine::mailbox::mailbox;
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_protocol::command::{Area, Command, Flags, Opcode, OpenBits};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::control::envelope::Envelope;
use ringfort_protocol::control::message::{
    Attach, Credential, Hello, Message, NO_RING, PORT_DEFAULT, Pages, Proof, Reason, Role, SECRET_BYTES,
    Subject, Welcome, nonce,
};
use ringfort_protocol::ring::layout::RingLayout;
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::ring::requester::Requester;
use ringfort_protocol::version::Version;
use ringfort_store::model::{ModelSettings, ModelVolume};
use vm_memory::{FileOffset, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

use crate::channel::{Carrier, ChannelServer, Limits, Place, extents};
use crate::machine::{Machine, Memory};
use crate::virtiofs::{Options, VirtioFsServer};

pub const HUGE: u64 = 2 << 20;
pub const SMALL: u64 = 4096;
pub const HUGE_SHIFT: u32 = 21;
pub const SMALL_SHIFT: u32 = 12;

/// Secrets of two boots, one after the other.
pub const FIRST_BOOT: [u8; SECRET_BYTES] = [1; SECRET_BYTES];
pub const SECOND_BOOT: [u8; SECRET_BYTES] = [2; SECRET_BYTES];

/// Where the memory table has ranges: a hole lies between them, and the last has no room for a huge page.
pub const RANGES: [(u64, u64); 3] = [(0, 4 * HUGE), (8 * HUGE, 2 * HUGE), (12 * HUGE, SMALL)];

/// Nothing of a test takes longer where the server is sound.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

pub const ROOT: u32 = 1;
pub const SLOTS: u32 = 16;
const RING_START: u32 = 4096;
const DATA: Area = Area { start: 1 << 16, len_bytes: 1 << 18 };

/// A server with a machine.
pub struct Scene {
    pub machine: Arc<Machine>,
    file: File,
    socket: PathBuf,
    /// Where a virtual machine monitor connects for the machine.
    pub virtiofs: PathBuf,
}

/// Runs a test with a machine whose guest has booted. Afterwards nothing is held for any client.
pub fn with_guest(limits: Limits, test: impl FnOnce(&Scene)) {
    with_server(limits, |scene| {
        scene.machine.replace_memory(scene.memory(&RANGES));
        scene.machine.start();
        scene.machine.begin_boot(FIRST_BOOT);
        assert_eq!(scene.machine.invitation().unwrap().port.get(), PORT_DEFAULT);
        test(scene);
    });
}

/// Runs a test beside the volume's thread.
pub fn with_server(limits: Limits, test: impl FnOnce(&Scene)) {
    let folder = tempfile::tempdir().unwrap();
    let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(13 * HUGE).unwrap();
    let machine = Arc::new(Machine::new("vm1"));
    let carrier = folder.path().join("vm1.vsock");
    let socket = folder.path().join(format!("vm1.vsock_{PORT_DEFAULT}"));
    let virtiofs = folder.path().join("vm1.sock");
    let scene = Scene { machine: Arc::clone(&machine), file, socket, virtiofs: virtiofs.clone() };
    let (end, mut ended) = mailbox::<()>();
    let (started, servers) = mpsc::channel();
    let volume = thread::spawn(move || {
        let runtime = start(LocalOptions::default()).unwrap();
        let engine = runtime.engine();
        runtime.block_on(async {
            let volume = Rc::new(ModelVolume::new(ModelSettings::default()));
            Filesystem::format(&*volume, &*engine).await.unwrap();
            let options = FilesystemOptions::default();
            let filesystem = Filesystem::open(volume, Rc::clone(&engine), options).await.unwrap();
            let service = Rc::new(filesystem.clone());
            let options = Options { machine: Arc::clone(&machine), ..Options::default() };
            let device = VirtioFsServer::start(&engine, Rc::clone(&service), &virtiofs, 1, options).unwrap();
            let carrier = Carrier::VsockUnix { path: carrier };
            let place = Place::Guest { machine, carrier, port: None };
            let channel = ChannelServer::start(&engine, service, place, limits, [9; 16]).unwrap();
            started.send((device, channel)).unwrap();
            ended.recv().await;
            let counts = filesystem.counts();
            assert_eq!((counts.held_inodes, counts.lock_waiters), (0, 0), "nothing outlives its client");
        });
    });
    let (device, channel): (VirtioFsServer, ChannelServer) = servers.recv().unwrap();
    test(&scene);
    channel.stop();
    device.stop();
    assert!(!scene.socket.exists(), "the socket is removed");
    end.send(()).unwrap();
    volume.join().unwrap();
}

impl Scene {
    /// A table of these ranges over the guest's memory, in mappings of its own.
    pub fn memory(&self, ranges: &[(u64, u64)]) -> Arc<Memory> {
        let ranges = ranges.iter().map(|&(start, len_bytes)| {
            let file = FileOffset::new(self.file.try_clone().unwrap(), start);
            (GuestAddress(start), len_bytes as usize, Some(file))
        });
        Arc::new(Memory::from_ranges_with_files(ranges).unwrap())
    }

    /// Pages as a process of the guest sees them.
    pub fn pages(&self, addresses: &[u64], page_shift: u32) -> SharedMemory {
        extents::resolve(&self.memory(&RANGES), addresses, page_shift).unwrap()
    }

    pub fn connect(&self) -> Wire {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        Wire(stream)
    }

    /// A connection of the role, with the secret. The reason where it is refused.
    pub fn hello(&self, role: u16, secret: [u8; SECRET_BYTES]) -> Result<(Wire, Welcome), Reason> {
        let mut wire = self.connect();
        let answer = wire.ask(&hello(role, secret));
        match answer {
            Message::Welcome(welcome) => Ok((wire, welcome)),
            refused => {
                assert!(wire.next().is_none(), "whoever is refused is hung up on");
                Err(reason(&refused))
            }
        }
    }

    pub fn daemon(&self, secret: [u8; SECRET_BYTES]) -> Wire {
        self.hello(Role::GuestDaemon.number(), secret).unwrap().0
    }

    /// A client with one ring in these pages, all proved.
    pub fn client(&self, daemon: &mut Wire, region: u32, addresses: &[u64], page_shift: u32) -> Client {
        let memory = self.pages(addresses, page_shift);
        memory.clear(0, memory.len_bytes() as usize).unwrap();
        assert_eq!(daemon.outcome(&pages(region, addresses, page_shift)), None);
        assert_eq!(daemon.prove(region, &memory, 1 << page_shift), None);
        assert_eq!(daemon.outcome(&credential(region, ROOT, 0)), None);
        let secret = [region as u8 + 100; SECRET_BYTES];
        assert_eq!(daemon.outcome(&attach(region, 0, secret)), None);
        let (bell, _) = self.hello(Role::Doorbell.number(), secret).unwrap();
        let layout = RingLayout::new(RING_START.into(), SLOTS, memory.len_bytes()).unwrap();
        let requester = Requester::new(memory.clone(), layout);
        Client { memory, requester, bell: bell.0, tag: 0 }
    }
}

pub fn hello(role: u16, secret: [u8; SECRET_BYTES]) -> Message {
    Message::Hello(Hello {
        oldest: Version::CHANNEL.0.into(),
        newest: Version::LATEST.0.into(),
        role: role.into(),
        secret,
        ..Hello::default()
    })
}

/// All pages of a region in one message.
pub fn pages(region: u32, addresses: &[u64], page_shift: u32) -> Message {
    some_pages(region, addresses.len() as u32, 0, addresses, page_shift)
}

pub fn some_pages(region: u32, page_count: u32, first: u32, addresses: &[u64], page_shift: u32) -> Message {
    let body = Pages {
        region: region.into(),
        page_count: page_count.into(),
        first: first.into(),
        count: (addresses.len() as u32).into(),
        page_shift: page_shift.into(),
        ..Pages::default()
    };
    Message::Pages(body, addresses.to_vec())
}

pub fn credential(region: u32, number: u32, uid: u32) -> Message {
    let body = Credential {
        region: region.into(),
        credential: number.into(),
        uid: uid.into(),
        gid: uid.into(),
        ..Credential::default()
    };
    Message::Credential(body, Vec::new())
}

pub fn attach(region: u32, ring: u32, secret: [u8; SECRET_BYTES]) -> Message {
    Message::Attach(Attach {
        region: region.into(),
        ring: ring.into(),
        start: RING_START.into(),
        slot_count: SLOTS.into(),
        data_start: DATA.start.into(),
        data_bytes: DATA.len_bytes.into(),
        secret,
        ..Attach::default()
    })
}

pub fn prove(region: u32, number: u8) -> Message {
    Message::Prove(Proof { region: region.into(), nonce: [number; SECRET_BYTES], ..Proof::default() })
}

pub fn detach(region: u32) -> Message {
    Message::Detach(Subject { region: region.into(), ring: NO_RING.into(), ..Subject::default() })
}

pub fn reason(message: &Message) -> Reason {
    match message {
        Message::Refused(subject, _) | Message::Detached(subject, _) => {
            Reason::from_number(subject.reason.get()).unwrap()
        }
        other => panic!("neither refused nor detached: {other:?}"),
    }
}

/// A connection to the server.
pub struct Wire(pub UnixStream);

impl Wire {
    pub fn say(&mut self, message: &Message) {
        self.0.write_all(&message.encode(Version::CHANNEL)).unwrap();
    }

    /// The next message; none where the server has hung up.
    pub fn hear(&mut self) -> Option<Message> {
        let mut bytes = [0; size_of::<Envelope>()];
        match self.0.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no answer"),
            Err(_) => return None,
        }
        let envelope = Envelope::read_from_bytes(&bytes).unwrap();
        let mut body = vec![0; envelope.body_bytes.get() as usize];
        self.0.read_exact(&mut body).unwrap();
        Some(Message::decode(envelope.kind.get(), &body).unwrap())
    }

    /// The next message that is no ping; those are answered.
    pub fn next(&mut self) -> Option<Message> {
        loop {
            match self.hear()? {
                Message::Ping(echo) => self.say(&Message::Pong(echo)),
                message => return Some(message),
            }
        }
    }

    pub fn ask(&mut self, message: &Message) -> Message {
        self.say(message);
        self.next().unwrap()
    }

    /// Why it was refused; none where it was done.
    pub fn outcome(&mut self, message: &Message) -> Option<Reason> {
        match self.ask(message) {
            Message::Done(_) => None,
            other => Some(reason(&other)),
        }
    }

    /// Proves a region as the daemon does, and checks the server's half of it.
    pub fn prove(&mut self, region: u32, memory: &SharedMemory, page_bytes: u64) -> Option<Reason> {
        let starts = || (0..).zip((0..memory.len_bytes()).step_by(page_bytes as usize));
        for (page, start) in starts() {
            memory.write(start, &nonce([5; SECRET_BYTES], page)).unwrap();
        }
        let answer = match self.ask(&prove(region, 5)) {
            Message::Proved(answer) => answer.nonce,
            other => return Some(reason(&other)),
        };
        for (page, start) in starts() {
            let mut found = [0; SECRET_BYTES];
            memory.read(start + SECRET_BYTES as u64, &mut found).unwrap();
            assert_eq!(found, nonce(answer, page), "page {page}");
            memory.clear(start, 2 * SECRET_BYTES).unwrap();
        }
        None
    }

    /// Hears of each of these many regions that it was suspended.
    pub fn hears_of_suspension(&mut self, region_count: usize) {
        for _ in 0..region_count {
            let suspended = self.next().unwrap();
            assert!(matches!(suspended, Message::Suspended(_)), "{suspended:?}");
        }
    }

    /// Proves a region as soon as the machine runs, having heard that it was suspended.
    pub fn go_on(&mut self, client: &Client, region: u32) {
        let suspended = self.next().unwrap();
        let Message::Suspended(subject) = suspended else { panic!("{suspended:?}") };
        assert_eq!(subject.region.get(), region);
        assert_eq!(self.prove(region, &client.memory, HUGE), None);
    }
}

/// A process of the guest, with a ring.
pub struct Client {
    pub memory: SharedMemory,
    requester: Requester<SharedMemory>,
    bell: UnixStream,
    tag: u64,
}

impl Client {
    pub fn command(&mut self, opcode: Opcode) -> Command {
        self.tag += 1;
        Command::new(opcode, self.tag, ROOT)
    }

    pub fn input(&self, bytes: &[u8]) -> Area {
        self.memory.write(DATA.start.into(), bytes).unwrap();
        Area { start: DATA.start, len_bytes: bytes.len() as u32 }
    }

    pub fn room(&self) -> u32 {
        self.requester.room()
    }

    pub fn submit(&mut self, command: &Command) {
        self.requester.submit(&command.encode()).unwrap();
        if self.requester.wants_doorbell() {
            (&self.bell).write_all(&[1]).unwrap();
        }
    }

    pub fn take(&mut self) -> Option<Completion> {
        self.requester.take().map(Completion::decode)
    }

    /// The next completion, slept for where it is not there.
    pub fn next(&mut self) -> Completion {
        loop {
            if let Some(completion) = self.take() {
                return completion;
            }
            if self.requester.prepare_sleep() {
                let read = (&self.bell).read(&mut [0; 64]).expect("the server rings");
                assert!(read > 0, "the doorbell was hung up");
            }
            self.requester.finish_sleep();
        }
    }

    pub fn call(&mut self, command: Command) -> Completion {
        self.submit(&command);
        let completion = self.next();
        assert_eq!(completion.tag, command.tag);
        completion
    }

    pub fn create(&mut self, path: &str) -> u64 {
        let bits = OpenBits::READ.union(OpenBits::WRITE).union(OpenBits::CREATE);
        let input = self.input(path.as_bytes());
        let value = u64::from(bits.0) | 0o644 << 32;
        let command = Command { input, value, ..self.command(Opcode::Open) };
        let completion = self.call(command);
        assert_eq!(completion.status, 0);
        completion.value
    }

    pub fn write(&mut self, handle: u64, offset: u64, bytes: &[u8]) {
        let input = self.input(bytes);
        let command = Command { target: handle, operand: offset, input, ..self.command(Opcode::Write) };
        assert_eq!(self.call(command).status, 0);
    }

    pub fn read(&mut self, handle: u64, len_bytes: u32) -> Vec<u8> {
        let output = Area { start: DATA.start, len_bytes };
        let command = Command { target: handle, output, ..self.command(Opcode::Read) };
        let completion = self.call(command);
        assert_eq!(completion.status, 0);
        let mut bytes = vec![0; completion.output_bytes as usize];
        self.memory.read(DATA.start.into(), &mut bytes).unwrap();
        bytes
    }

    /// A command that takes all of a file for itself, waiting where it must.
    pub fn lock(&mut self, handle: u64, owner: u64, flags: Flags) -> Command {
        use ringfort_protocol::argument::LockRecord;
        let record = LockRecord { end: 99.into(), mode: 2, wait: 1, ..LockRecord::default() };
        let input = self.input(record.as_bytes());
        Command { target: handle, operand: owner, input, flags, ..self.command(Opcode::SetLock) }
    }

    /// Every byte of its memory.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.memory.len_bytes() as usize];
        self.memory.read(0, &mut bytes).unwrap();
        bytes
    }

    /// Whether the server has let go of the doorbell.
    pub fn is_hung_up_on(&self) -> bool {
        self.bell.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        loop {
            match (&self.bell).read(&mut [0; 64]) {
                Ok(0) => return true,
                Ok(_) => {}
                // Where what was rung was not read to the end.
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}
