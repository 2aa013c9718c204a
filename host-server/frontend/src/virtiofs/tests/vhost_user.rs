//! The whole server against a virtual machine monitor's end of the socket, in one process.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use ringfort_engine::engine::Engine;
use ringfort_engine::local::{LocalOptions, Transport, start};
use ringfort_engine::mailbox::{Sender, mailbox};
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_store::model::{ModelSettings, ModelVolume};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use super::driver::{Answer, Driver, init_in, name};
use crate::listen::ListenError;
use crate::virtiofs::queue::Memory;
use crate::virtiofs::{Options, StartError, VirtioFsServer, abi};

const QUEUE_SIZE: u16 = 64;
const REGION_BYTES: usize = 4 << 20;
/// Two regions with a hole between them; each holds a queue.
const REGIONS: [u64; 2] = [0, 16 << 20];
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A server on a thread of its own.
struct Host {
    server: Option<VirtioFsServer>,
    end: Sender<()>,
    thread: Option<JoinHandle<()>>,
    directory: tempfile::TempDir,
}

fn socket(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("vm.sock")
}

impl Host {
    fn start() -> Self {
        Self::start_with(Transport::Automatic)
    }

    /// Nothing here touches a device; what differs is how kicks arrive.
    fn start_with(transport: Transport) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = socket(&directory);
        let (end, mut ended) = mailbox::<()>();
        let (started, server) = mpsc::channel();
        let thread = thread::spawn(move || {
            let options = LocalOptions { transport, ..Default::default() };
            let runtime = start(options).unwrap();
            let engine = runtime.engine();
            runtime.block_on(async move {
                let filesystem = filesystem(&engine).await;
                let service = Rc::new(filesystem.clone());
                started.send(VirtioFsServer::start(&engine, service, &path, 1, Options::default())).unwrap();
                ended.recv().await;
                assert_eq!(filesystem.counts().held_inodes, 0, "every session ended");
            });
        });
        let server = server.recv().unwrap().unwrap();
        Self { server: Some(server), end, thread: Some(thread), directory }
    }

    fn path(&self) -> PathBuf {
        socket(&self.directory)
    }

    fn stop(mut self) {
        let started = Instant::now();
        self.server.take().unwrap().stop();
        assert!(started.elapsed() < ANSWER_WITHIN);
        assert!(!self.path().exists(), "the socket is removed");
        self.end.send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn filesystem(engine: &Rc<dyn Engine>) -> Filesystem<ModelVolume> {
    let volume = Rc::new(ModelVolume::new(ModelSettings::default()));
    Filesystem::format(&*volume, &**engine).await.unwrap();
    Filesystem::open(volume, Rc::clone(engine), FilesystemOptions::default()).await.unwrap()
}

/// A virtual machine with its driver.
struct Machine {
    frontend: Frontend,
    memory: Arc<Memory>,
    queues: [Driver; 2],
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
}

impl Machine {
    fn connect(path: &Path) -> Self {
        let regions = REGIONS.map(|address| {
            let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(REGION_BYTES as u64).unwrap();
            (GuestAddress(address), REGION_BYTES, Some(FileOffset::new(file, 0)))
        });
        let memory = Arc::new(Memory::from_ranges_with_files(regions).unwrap());
        let driver =
            |base| Driver::new(Arc::clone(&memory), base, QUEUE_SIZE, REGION_BYTES as u64 - (1 << 17));
        let mut machine = Self {
            frontend: Frontend::connect(path, 2).unwrap(),
            queues: REGIONS.map(driver),
            kicks: [EventFd::new(0).unwrap(), EventFd::new(0).unwrap()],
            calls: [EventFd::new(nonblocking()).unwrap(), EventFd::new(nonblocking()).unwrap()],
            memory,
        };
        machine.negotiate();
        machine.start_queues([0, 0]);
        machine
    }

    fn negotiate(&mut self) {
        let frontend = &mut self.frontend;
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS));
        assert!(!protocol.contains(VhostUserProtocolFeatures::LOG_SHMFD), "migration is refused");
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        // Without EVENT_IDX, so that every reply rings.
        frontend.set_features(features & !(1 << 29)).unwrap();
        assert_eq!(frontend.get_queue_num().unwrap(), 2);
        self.share_memory(&REGIONS);
    }

    /// As QEMU does again and again while a guest boots.
    fn share_memory(&mut self, regions: &[u64]) {
        let table: Vec<_> = regions
            .iter()
            .map(|&address| {
                let region = self.memory.find_region(GuestAddress(address)).unwrap();
                VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()
            })
            .collect();
        self.frontend.set_mem_table(&table).unwrap();
    }

    fn start_queues(&mut self, bases: [u32; 2]) {
        for (index, base) in bases.into_iter().enumerate() {
            let (table, available, used) = self.queues[index].ring_addresses();
            let host = |address| self.memory.get_host_address(GuestAddress(address)).unwrap() as u64;
            let config = VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: QUEUE_SIZE,
                flags: 0,
                desc_table_addr: host(table),
                used_ring_addr: host(used),
                avail_ring_addr: host(available),
                log_addr: None,
            };
            let frontend = &mut self.frontend;
            frontend.set_vring_num(index, QUEUE_SIZE).unwrap();
            frontend.set_vring_base(index, base as u16).unwrap();
            frontend.set_vring_addr(index, &config).unwrap();
            frontend.set_vring_call(index, &self.calls[index]).unwrap();
            frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
            frontend.set_vring_enable(index, true).unwrap();
        }
    }

    fn stop_queues(&mut self) -> [u32; 2] {
        for index in 0..2 {
            self.frontend.set_vring_enable(index, false).unwrap();
        }
        [0, 1].map(|index| self.frontend.get_vring_base(index).unwrap())
    }

    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        let request = self.queues[1].request(opcode, node, body);
        let ticket = self.queues[1].submit(&[&request], &[16, 1 << 20]);
        self.kicks[1].write(1).unwrap();
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            if let Some((head, written_bytes)) = self.queues[1].take_used() {
                assert_eq!(head, ticket.head);
                let rung = self.calls[1].read();
                let late = || {
                    thread::sleep(Duration::from_millis(100));
                    self.calls[1].read()
                };
                assert!(rung.or_else(|_| late()).is_ok(), "the doorbell rang");
                return self.queues[1].answer(&ticket, written_bytes);
            }
            assert!(Instant::now() < deadline, "no answer to opcode {opcode}");
            thread::sleep(Duration::from_micros(200));
        }
    }

    fn init(&mut self) {
        let _: abi::InitOut = self.call(abi::FUSE_INIT, 0, init_in(38, u32::MAX).as_bytes()).parse();
    }

    fn write_file(&mut self, file: &str, data: &[u8]) -> u64 {
        let create = abi::CreateIn { flags: 2.into(), mode: 0o100644.into(), ..Default::default() };
        let created = self.call(abi::FUSE_CREATE, 1, &[create.as_bytes(), &name(file)].concat()).ok();
        let (_, open) = abi::EntryOut::read_from_prefix(&created).unwrap();
        let open = abi::OpenOut::read_from_bytes(open).unwrap();
        let write = abi::WriteIn { fh: open.fh, size: (data.len() as u32).into(), ..Default::default() };
        let body = [write.as_bytes(), data].concat();
        let written: abi::WriteOut = self.call(abi::FUSE_WRITE, 0, &body).parse();
        assert_eq!(written.size.get() as usize, data.len());
        open.fh.get()
    }

    fn read_file(&mut self, file: &str) -> Vec<u8> {
        let entry: abi::EntryOut = self.call(abi::FUSE_LOOKUP, 1, &name(file)).parse();
        let open: abi::OpenOut = self.call(abi::FUSE_OPEN, entry.nodeid.get(), &[0; 8]).parse();
        let read = abi::ReadIn { fh: open.fh, size: (1 << 20).into(), ..Default::default() };
        self.call(abi::FUSE_READ, entry.nodeid.get(), read.as_bytes()).ok()
    }
}

fn nonblocking() -> i32 {
    nix::fcntl::OFlag::O_NONBLOCK.bits()
}

fn pattern(len_bytes: usize) -> Vec<u8> {
    (0..len_bytes).map(|at| (at ^ (at >> 9)) as u8).collect()
}

#[test]
fn a_machine_writes_and_reads_through_the_socket() {
    for transport in [Transport::Uring, Transport::Threads] {
        let host = Host::start_with(transport);
        write_and_read(&host);
        host.stop();
    }
}

fn write_and_read(host: &Host) {
    let mode = std::fs::metadata(host.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut machine = Machine::connect(&host.path());
    machine.init();
    let data = pattern(300_000);
    machine.write_file("file", &data);
    for _ in 0..100 {
        assert!(machine.read_file("file") == data);
        // Longer than the volume's thread looks before it sleeps.
        thread::sleep(Duration::from_micros(300));
    }
    drop(machine);
}

#[test]
fn queues_stop_and_start_again_and_memory_tables_change() {
    let host = Host::start();
    let mut machine = Machine::connect(&host.path());
    machine.init();
    let handle = machine.write_file("file", b"before");
    // A pause: the same session goes on from the same place.
    let bases = machine.stop_queues();
    assert_eq!(bases[1] as usize, 3);
    machine.share_memory(&REGIONS);
    machine.start_queues(bases);
    let read = abi::ReadIn { fh: handle.into(), size: 100.into(), ..Default::default() };
    assert_eq!(machine.call(abi::FUSE_READ, 0, read.as_bytes()).ok(), b"before");
    // A region goes while the queues run.
    machine.share_memory(&REGIONS[1..]);
    assert_eq!(machine.call(abi::FUSE_READ, 0, read.as_bytes()).ok(), b"before");
    machine.share_memory(&REGIONS);
    assert_eq!(machine.call(abi::FUSE_READ, 0, read.as_bytes()).ok(), b"before");
    drop(machine);
    host.stop();
}

#[test]
fn one_machine_after_another_is_served_and_each_session_ends_with_its_machine() {
    let host = Host::start();
    let data = pattern(10_000);
    let mut first = Machine::connect(&host.path());
    first.init();
    let handle = first.write_file("file", &data);
    drop(first);
    for _ in 0..3 {
        let mut next = Machine::connect(&host.path());
        next.init();
        assert!(next.read_file("file") == data);
        let read = abi::ReadIn { fh: (handle + 1000).into(), size: 1.into(), ..Default::default() };
        assert_eq!(next.call(abi::FUSE_READ, 0, read.as_bytes()).error, -9);
    }
    let metrics = host.server.as_ref().unwrap().metrics();
    assert_eq!((metrics.connections.get(), metrics.sessions.get()), (4, 4));
    host.stop();
}

#[test]
fn stopping_disconnects_a_machine_that_is_still_there() {
    let host = Host::start();
    let mut machine = Machine::connect(&host.path());
    machine.init();
    machine.write_file("file", b"data");
    host.stop();
    assert!(machine.frontend.get_features().is_err());
}

#[test]
fn connections_do_not_leak_descriptors() {
    let host = Host::start();
    let open_descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let connect = || {
        let mut machine = Machine::connect(&host.path());
        machine.init();
    };
    connect();
    // Other tests of this process open and close descriptors meanwhile: a leak of one for each connection stands out.
    let before = open_descriptors();
    for _ in 0..60 {
        connect();
    }
    let after = open_descriptors();
    assert!(after < before + 50, "{before} descriptors before, {after} after");
    host.stop();
}

#[test]
fn an_occupied_path_is_refused_and_a_stale_socket_replaced() {
    let host = Host::start();
    let path = host.path();
    let try_start = move |path: PathBuf| {
        thread::spawn(move || {
            let runtime =
                start(LocalOptions { transport: Transport::Threads, ..Default::default() }).unwrap();
            let engine = runtime.engine();
            runtime.block_on(async move {
                let service = Rc::new(filesystem(&engine).await);
                VirtioFsServer::start(&engine, service, &path, 1, Options::default()).map(drop)
            })
        })
        .join()
        .unwrap()
    };
    let error = try_start(path.clone()).unwrap_err();
    assert!(matches!(error, StartError::Listen(ListenError::Occupied { .. })), "{error}");
    assert!(error.to_string().contains("another process listens there"), "{error}");
    let plain = host.directory.path().join("plain");
    std::fs::write(&plain, b"precious").unwrap();
    assert!(matches!(try_start(plain.clone()), Err(StartError::Listen(ListenError::Occupied { .. }))));
    assert_eq!(std::fs::read(plain).unwrap(), b"precious");
    let stale = host.directory.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    try_start(stale).unwrap();
    host.stop();
}
