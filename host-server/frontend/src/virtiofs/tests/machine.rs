//! A virtual machine monitor's end of the socket and the server at the other, in one process.

use std::fs::File;
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
use ringfort_store::volume::Volume;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use super::driver::{Answer, Driver, Ticket, init_in, name};
use crate::machine::Memory;
use crate::metrics::Metrics;
use crate::virtiofs::{Options, VirtioFsServer, abi};

const QUEUE_SIZE: u16 = 64;
const REGION_BYTES: usize = 4 << 20;
/// Each queue in a region of its own, with holes between them.
const REGION_STRIDE: u64 = 16 << 20;
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The first queue that carries requests.
pub const REQUESTS: usize = 1;

/// How a host is set up.
#[derive(Clone)]
pub struct Setup {
    pub transport: Transport,
    pub machines: usize,
    pub request_queues: usize,
    pub options: Options,
    /// How long the servers' thread looks for work before it sleeps.
    pub busy_poll: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        let options = Options::default();
        let busy_poll = LocalOptions::default().busy_poll;
        Self { transport: Transport::Automatic, machines: 1, request_queues: 1, options, busy_poll }
    }
}

/// Servers for some machines on one filesystem, on a thread of their own.
pub struct Host {
    pub servers: Vec<VirtioFsServer>,
    end: Sender<()>,
    thread: Option<JoinHandle<()>>,
    pub directory: tempfile::TempDir,
}

impl Host {
    pub fn start() -> Self {
        Self::start_with(Setup::default())
    }

    pub fn start_with(setup: Setup) -> Self {
        Self::serve(setup, async |engine| filesystem(&engine).await, async |_| {})
    }

    /// Serves the filesystem that `open` makes; `close` gets it back when every session has ended.
    pub fn serve<V: Volume + 'static>(
        setup: Setup,
        open: impl AsyncFnOnce(Rc<dyn Engine>) -> Filesystem<V> + Send + 'static,
        close: impl AsyncFnOnce(Filesystem<V>) + Send + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().to_owned();
        let (end, mut ended) = mailbox::<()>();
        let (started, servers) = mpsc::channel();
        let thread = thread::spawn(move || {
            let options = LocalOptions {
                transport: setup.transport,
                busy_poll: setup.busy_poll,
                ..LocalOptions::default()
            };
            let runtime = start(options).unwrap();
            let engine = runtime.engine();
            runtime.block_on(async move {
                let filesystem = open(Rc::clone(&engine)).await;
                let serve = |number| {
                    let (service, path) = (Rc::new(filesystem.clone()), socket(&folder, number));
                    let options = setup.options.clone();
                    VirtioFsServer::start(&engine, service, &path, setup.request_queues, options).unwrap()
                };
                started.send((0..setup.machines).map(serve).collect::<Vec<_>>()).unwrap();
                ended.recv().await;
                assert_eq!(filesystem.counts().held_inodes, 0, "every session ended");
                close(filesystem).await;
            });
        });
        Self { servers: servers.recv().unwrap(), end, thread: Some(thread), directory }
    }

    pub fn path(&self) -> PathBuf {
        self.path_of(0)
    }

    pub fn path_of(&self, number: usize) -> PathBuf {
        socket(self.directory.path(), number)
    }

    pub fn metrics(&self) -> Arc<Metrics> {
        self.servers[0].metrics()
    }

    pub fn stop(mut self) {
        let started = Instant::now();
        self.servers.drain(..).for_each(VirtioFsServer::stop);
        assert!(started.elapsed() < ANSWER_WITHIN);
        assert!(!self.path().exists(), "the socket is removed");
        self.end.send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn socket(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("vm{number}.sock"))
}

pub async fn filesystem(engine: &Rc<dyn Engine>) -> Filesystem<ModelVolume> {
    let volume = Rc::new(ModelVolume::new(ModelSettings::default()));
    Filesystem::format(&*volume, &**engine).await.unwrap();
    Filesystem::open(volume, Rc::clone(engine), FilesystemOptions::default()).await.unwrap()
}

/// A virtual machine with its driver.
pub struct Machine {
    pub frontend: Frontend,
    pub memory: Arc<Memory>,
    pub queues: Vec<Driver>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    kicks_sent: u64,
    /// Looks for replies without sleeping, and rings only where the device wants that.
    polls: bool,
}

impl Machine {
    pub fn connect(path: &Path) -> Self {
        Self::connect_with(path, 1)
    }

    pub fn connect_with(path: &Path, request_queues: usize) -> Self {
        Self::connect_as(path, request_queues, false)
    }

    pub fn connect_polling(path: &Path) -> Self {
        Self::connect_as(path, 1, true)
    }

    fn connect_as(path: &Path, request_queues: usize, polls: bool) -> Self {
        let queue_count = 1 + request_queues;
        let regions = regions(queue_count).map(|address| {
            let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(REGION_BYTES as u64).unwrap();
            (address, REGION_BYTES, Some(FileOffset::new(file, 0)))
        });
        let memory = Arc::new(Memory::from_ranges_with_files(regions).unwrap());
        let event = |_| EventFd::new(nonblocking()).unwrap();
        let mut machine = Self {
            frontend: Frontend::connect(path, queue_count as u64).unwrap(),
            queues: drivers(&memory, queue_count),
            kicks: (0..queue_count).map(event).collect(),
            calls: (0..queue_count).map(event).collect(),
            kicks_sent: 0,
            polls,
            memory,
        };
        machine.negotiate();
        machine.start_queues(&vec![0; queue_count]);
        machine
    }

    /// What a driver does that begins anew: it has forgotten everything.
    pub fn bind_driver_anew(&mut self) {
        self.stop_queues();
        self.queues.iter().for_each(Driver::clear);
        self.queues = drivers(&self.memory, self.queues.len());
        self.start_queues(&vec![0; self.queues.len()]);
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
        // Without EVENT_IDX every reply rings.
        let wanted = if self.polls { features } else { features & !(1 << VIRTIO_RING_F_EVENT_IDX) };
        frontend.set_features(wanted).unwrap();
        assert!(frontend.get_queue_num().unwrap() as usize >= self.queues.len());
        self.share_memory();
    }

    /// As QEMU does again and again while a guest boots.
    pub fn share_memory(&mut self) {
        self.share_memory_from(0);
    }

    /// Leaves out the regions of the first queues.
    pub fn share_memory_from(&mut self, first: usize) {
        let table: Vec<_> = regions(self.queues.len())
            .skip(first)
            .map(|address| {
                let region = self.memory.find_region(address).unwrap();
                VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()
            })
            .collect();
        self.frontend.set_mem_table(&table).unwrap();
    }

    pub fn start_queues(&mut self, bases: &[u32]) {
        for (index, &base) in bases.iter().enumerate() {
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

    pub fn stop_queues(&mut self) -> Vec<u32> {
        let all = 0..self.queues.len();
        all.clone().for_each(|index| self.frontend.set_vring_enable(index, false).unwrap());
        all.map(|index| self.frontend.get_vring_base(index).unwrap()).collect()
    }

    pub fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        let ticket = self.send(REQUESTS, opcode, node, body);
        self.wait(REQUESTS, &ticket)
    }

    pub fn send(&mut self, queue: usize, opcode: u32, node: u64, body: &[u8]) -> Ticket {
        let request = self.queues[queue].request(opcode, node, body);
        let ticket = self.queues[queue].submit(&[&request], &[16, 1 << 20]);
        self.kick(queue);
        ticket
    }

    /// Rings if the device wants that.
    pub fn kick(&mut self, queue: usize) {
        if !self.polls || self.queues[queue].is_to_ring() {
            self.kicks_sent += 1;
            self.kicks[queue].write(1).unwrap();
        }
    }

    pub fn kicks_sent(&self) -> u64 {
        self.kicks_sent
    }

    pub fn wait(&mut self, queue: usize, ticket: &Ticket) -> Answer {
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            if let Some((head, written_bytes)) = self.queues[queue].take_used() {
                assert_eq!(head, ticket.head);
                assert!(self.polls || self.is_rung(queue), "the doorbell rang");
                return self.queues[queue].answer(ticket, written_bytes);
            }
            assert!(Instant::now() < deadline, "no answer");
            match self.polls {
                true => std::hint::spin_loop(),
                false => thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    fn is_rung(&self, queue: usize) -> bool {
        let late = |_| {
            thread::sleep(Duration::from_millis(100));
            self.calls[queue].read()
        };
        self.calls[queue].read().or_else(late).is_ok()
    }

    pub fn init(&mut self) {
        let _: abi::InitOut = self.call(abi::FUSE_INIT, 0, init_in(38, u32::MAX).as_bytes()).parse();
    }

    /// Makes a file and writes its beginning; gives the handle.
    pub fn write_file(&mut self, file: &str, data: &[u8]) -> u64 {
        let handle = self.create(file);
        self.write(handle, 0, data);
        handle
    }

    pub fn create(&mut self, file: &str) -> u64 {
        let create = abi::CreateIn { flags: 2.into(), mode: 0o100644.into(), ..Default::default() };
        let created = self.call(abi::FUSE_CREATE, 1, &[create.as_bytes(), &name(file)].concat()).ok();
        let (_, open) = abi::EntryOut::read_from_prefix(&created).unwrap();
        abi::OpenOut::read_from_bytes(open).unwrap().fh.get()
    }

    pub fn open(&mut self, node: u64) -> u64 {
        let open = abi::OpenIn { flags: 2.into(), ..Default::default() };
        let opened: abi::OpenOut = self.call(abi::FUSE_OPEN, node, open.as_bytes()).parse();
        opened.fh.get()
    }

    pub fn release(&mut self, handle: u64) {
        let release = abi::ReleaseIn { fh: handle.into(), ..Default::default() };
        self.call(abi::FUSE_RELEASE, 0, release.as_bytes()).ok();
    }

    pub fn write(&mut self, handle: u64, offset_bytes: u64, data: &[u8]) {
        let write = abi::WriteIn {
            fh: handle.into(),
            offset: offset_bytes.into(),
            size: (data.len() as u32).into(),
            ..Default::default()
        };
        let body = [write.as_bytes(), data].concat();
        let written: abi::WriteOut = self.call(abi::FUSE_WRITE, 0, &body).parse();
        assert_eq!(written.size.get() as usize, data.len());
    }

    pub fn sync(&mut self, handle: u64) {
        let sync = abi::FsyncIn { fh: handle.into(), ..Default::default() };
        self.call(abi::FUSE_FSYNC, 0, sync.as_bytes()).ok();
    }

    pub fn read(&mut self, handle: u64, offset_bytes: u64, len_bytes: u32) -> Vec<u8> {
        let read = abi::ReadIn {
            fh: handle.into(),
            offset: offset_bytes.into(),
            size: len_bytes.into(),
            ..Default::default()
        };
        self.call(abi::FUSE_READ, 0, read.as_bytes()).ok()
    }

    pub fn look_up(&mut self, file: &str) -> abi::EntryOut {
        self.call(abi::FUSE_LOOKUP, 1, &name(file)).parse()
    }

    pub fn read_file(&mut self, file: &str) -> Vec<u8> {
        let entry = self.look_up(file);
        let open: abi::OpenOut = self.call(abi::FUSE_OPEN, entry.nodeid.get(), &[0; 8]).parse();
        self.read(open.fh.get(), 0, 1 << 20)
    }
}

fn regions(queue_count: usize) -> impl Iterator<Item = GuestAddress> {
    (0..queue_count as u64).map(|index| GuestAddress(index * REGION_STRIDE))
}

fn drivers(memory: &Arc<Memory>, queue_count: usize) -> Vec<Driver> {
    let driver = |base: GuestAddress| {
        Driver::new(Arc::clone(memory), base.0, QUEUE_SIZE, REGION_BYTES as u64 - (1 << 17))
    };
    regions(queue_count).map(driver).collect()
}

fn nonblocking() -> i32 {
    nix::fcntl::OFlag::O_NONBLOCK.bits()
}

pub fn pattern(len_bytes: usize) -> Vec<u8> {
    (0..len_bytes).map(|at| (at ^ (at >> 9)) as u8).collect()
}
