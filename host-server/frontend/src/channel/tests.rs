//! A client and the server on one thread, with a ring in memory between them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use ringfort_engine::engine::Engine;
use ringfort_engine::local::{LocalOptions, Transport, start};
use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::Credentials;
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_protocol::argument::{AttributesRecord, EntryRecord, LockRecord};
use ringfort_protocol::command::{Area, Command, Flags, Opcode, OpenBits};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::layout::Record;
use ringfort_protocol::ring::layout::RingLayout;
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::ring::requester::Requester;
use ringfort_protocol::ring::responder::Responder;
use ringfort_protocol::ring::slot::Slot;
use ringfort_store::model::{ModelSettings, ModelVolume};
use zerocopy::IntoBytes;

use super::data::DataArea;
use super::metrics::ChannelMetrics;
use super::ring::{CredentialTable, Doorbell, RingParts, RingServer};
use super::session::Session;

mod hostile;

type Service = Filesystem<ModelVolume>;

const SLOTS: u32 = 16;
const DATA_START: u32 = 1 << 16;
const DATA_BYTES: u32 = 1 << 20;
const COMMAND_BYTES_MAX: u32 = 1 << 18;

/// Where inputs are put, and outputs asked for.
const INPUT: u32 = DATA_START;
const OUTPUT: u32 = DATA_START + (1 << 19);

const ROOT: u32 = 1;
const USER: u32 = 2;

struct Bell(Rc<Cell<u32>>);

impl Doorbell for Bell {
    fn ring(&self) {
        self.0.set(self.0.get() + 1);
    }
}

/// A client, and the server's end of its ring.
struct Client {
    engine: Rc<dyn Engine>,
    memory: SharedMemory,
    requester: Requester<SharedMemory>,
    server: Rc<RingServer<Service>>,
    session: Rc<Session<Service>>,
    rung: Rc<Cell<u32>>,
    metrics: Arc<ChannelMetrics>,
    tag: u64,
    credential: u32,
}

impl Client {
    async fn attach(engine: &Rc<dyn Engine>, service: &Rc<Service>) -> Self {
        let memory = SharedMemory::in_process((DATA_START + DATA_BYTES).into());
        let layout = RingLayout::new(0, SLOTS, memory.len_bytes()).unwrap();
        let session = Rc::new(Session::begin(Rc::clone(service)).await);
        let user = Credentials { uid: 1000, gid: 1000, groups: vec![24], check_permissions: true };
        let root = Credentials { check_permissions: true, ..Credentials::root() };
        let credentials: CredentialTable =
            Rc::new(RefCell::new(HashMap::from([(ROOT, Rc::new(root)), (USER, Rc::new(user))])));
        let area = Area { start: DATA_START, len_bytes: DATA_BYTES };
        let rung = Rc::default();
        let metrics = Arc::<ChannelMetrics>::default();
        let parts = RingParts {
            session: Rc::clone(&session),
            credentials,
            slot_count: SLOTS,
            data: DataArea::new(memory.clone(), area, COMMAND_BYTES_MAX).unwrap(),
            doorbell: Some(Box::new(Bell(Rc::clone(&rung)))),
            metrics: Arc::clone(&metrics),
        };
        let responder = Responder::new(memory.clone(), layout);
        let server = RingServer::start(Rc::clone(engine), parts, responder, None);
        let requester = Requester::new(memory.clone(), layout);
        let engine = Rc::clone(engine);
        Self { engine, memory, requester, server, session, rung, metrics, tag: 0, credential: ROOT }
    }

    fn command(&mut self, opcode: Opcode) -> Command {
        self.tag += 1;
        Command::new(opcode, self.tag, self.credential)
    }

    /// Puts an input where the next command has it.
    fn input(&self, bytes: &[u8]) -> Area {
        self.memory.write(INPUT.into(), bytes).unwrap();
        Area { start: INPUT, len_bytes: bytes.len() as u32 }
    }

    fn output(&self, start: u32, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        self.memory.read(start.into(), &mut bytes).unwrap();
        bytes
    }

    fn submit(&mut self, command: &Command) {
        self.requester.submit(&command.encode()).unwrap();
    }

    async fn next(&mut self) -> Completion {
        loop {
            if let Some(slot) = self.requester.take() {
                return Completion::decode(slot);
            }
            self.engine.yield_now().await;
        }
    }

    async fn call(&mut self, command: Command) -> Completion {
        self.submit(&command);
        let completion = self.next().await;
        assert_eq!(completion.tag, command.tag);
        completion
    }

    /// A command about a path, with an output of 4 KiB where it has one.
    async fn at(&mut self, opcode: Opcode, flags: Flags, value: u64, path: &[u8]) -> Completion {
        let input = self.input(path);
        let has_output = matches!(opcode, Opcode::Stat | Opcode::ReadLink | Opcode::GetXattr);
        let output = if has_output { Area { start: OUTPUT, len_bytes: 4096 } } else { Area::default() };
        let command = Command { flags, value, input, output, ..self.command(opcode) };
        self.call(command).await
    }

    async fn must(&mut self, opcode: Opcode, value: u64, path: &str) -> Completion {
        let completion = self.at(opcode, Flags::default(), value, path.as_bytes()).await;
        assert_eq!(completion.status, 0, "{opcode:?} {path}");
        completion
    }

    async fn open(&mut self, bits: OpenBits, path: &str) -> Completion {
        let value = u64::from(bits.0) | 0o644 << 32;
        self.at(Opcode::Open, Flags::default(), value, path.as_bytes()).await
    }

    async fn create(&mut self, path: &str) -> u64 {
        let bits = OpenBits::READ.union(OpenBits::WRITE).union(OpenBits::CREATE);
        let completion = self.open(bits, path).await;
        assert_eq!(completion.status, 0, "create {path}");
        completion.value
    }

    async fn write(&mut self, handle: u64, offset: u64, bytes: &[u8]) -> Completion {
        let input = self.input(bytes);
        let command = Command { target: handle, operand: offset, input, ..self.command(Opcode::Write) };
        self.call(command).await
    }

    async fn read(&mut self, handle: u64, offset: u64, len_bytes: u32) -> Vec<u8> {
        let output = Area { start: OUTPUT, len_bytes };
        let command = Command { target: handle, operand: offset, output, ..self.command(Opcode::Read) };
        let completion = self.call(command).await;
        assert_eq!((completion.status, u64::from(completion.output_bytes)), (0, completion.value));
        self.output(OUTPUT, completion.value as usize)
    }

    async fn stat(&mut self, path: &str) -> Result<AttributesRecord, u32> {
        let completion = self.at(Opcode::Stat, Flags::NO_FOLLOW, 0, path.as_bytes()).await;
        match completion.status {
            0 => {
                Ok(AttributesRecord::split(&self.output(OUTPUT, completion.output_bytes as usize)).unwrap().0)
            }
            status => Err(status),
        }
    }

    async fn make_symlink(&mut self, target: &str, path: &str) {
        let input = [target.as_bytes(), path.as_bytes()].concat();
        let completion = self.at(Opcode::MakeSymlink, Flags::default(), target.len() as u64, &input).await;
        assert_eq!(completion.status, 0);
    }

    fn lock(&mut self, handle: u64, mode: u8, wait: u8) -> Command {
        let record = LockRecord { end: 99.into(), mode, wait, ..LockRecord::default() };
        let input = self.input(record.as_bytes());
        Command { target: handle, operand: 7, input, ..self.command(Opcode::SetLock) }
    }

    async fn detach(self) {
        self.server.halt().await;
        self.session.end().await;
    }
}

/// Runs a test on an engine that looks at rings.
fn on_a_volume(test: impl AsyncFnOnce(Rc<dyn Engine>, Rc<Service>)) {
    let options = LocalOptions { transport: Transport::Automatic, ..LocalOptions::default() };
    let runtime = start(options).unwrap();
    let engine = runtime.engine();
    runtime.block_on(async {
        let volume = Rc::new(ModelVolume::new(ModelSettings::default()));
        Filesystem::format(&*volume, &*engine).await.unwrap();
        let open = Filesystem::open(volume, Rc::clone(&engine), FilesystemOptions::default());
        let filesystem = open.await.unwrap();
        test(engine, Rc::new(filesystem.clone())).await;
        let counts = filesystem.counts();
        assert_eq!((counts.held_inodes, counts.lock_waiters), (0, 0), "nothing outlives its client");
    });
}

fn with_client(test: impl AsyncFnOnce(&mut Client)) {
    on_a_volume(async |engine, service| {
        let mut client = Client::attach(&engine, &service).await;
        test(&mut client).await;
        client.detach().await;
    });
}

fn status(errno: Errno) -> u32 {
    errno.raw().unsigned_abs()
}

#[test]
fn a_file_is_made_written_read_and_removed() {
    with_client(async |client| {
        client.must(Opcode::MakeDirectory, 0o755, "/dir").await;
        let file = client.create("/dir/file").await;
        let data: Vec<u8> = (0..10_000).map(|index| (index % 241) as u8).collect();
        assert_eq!(client.write(file, 3, &data).await.value, 10_000);
        assert_eq!(client.read(file, 0, 20_000).await, [&[0, 0, 0], &data[..]].concat());
        assert_eq!(client.stat("dir/file").await.unwrap().size_bytes.get(), 10_003);
        let close = Command { target: file, ..client.command(Opcode::Close) };
        assert_eq!(client.call(close).await.status, 0);
        assert_eq!(client.call(close).await.status, status(Errno::EBADF));
        client.must(Opcode::Unlink, 0, "/dir/file").await;
        assert_eq!(client.stat("/dir/file").await, Err(status(Errno::ENOENT)));
    });
}

#[test]
fn open_read_and_close_are_one_submission() {
    with_client(async |client| {
        let file = client.create("/a").await;
        client.write(file, 0, b"linked").await;
        let input = client.input(b"/a");
        let open = Command {
            flags: Flags::LINK,
            input,
            value: OpenBits::READ.0.into(),
            ..client.command(Opcode::Open)
        };
        let output = Area { start: OUTPUT, len_bytes: 64 };
        let read = Command {
            flags: Flags::OPENED.union(Flags::LINK_ALWAYS),
            output,
            ..client.command(Opcode::Read)
        };
        let close = Command { flags: Flags::OPENED, ..client.command(Opcode::Close) };
        [open, read, close].iter().for_each(|command| client.submit(command));
        let statuses = [client.next().await, client.next().await, client.next().await];
        assert_eq!(statuses.map(|completion| completion.status), [0; 3]);
        assert_eq!(statuses[1].value, 6);
        assert_eq!(client.output(OUTPUT, 6), b"linked");
        // A chain that breaks says so for all that follows, and leaves nothing open.
        let input = client.input(b"/none");
        let open = Command { input, ..open };
        [open, read, close].iter().for_each(|command| client.submit(command));
        let statuses = [client.next().await, client.next().await, client.next().await];
        let cancelled = status(Errno::ECANCELED);
        assert_eq!(
            statuses.map(|completion| completion.status),
            [status(Errno::ENOENT), cancelled, cancelled]
        );
    });
}

#[test]
fn paths_are_walked_as_linux_walks_them() {
    with_client(async |client| {
        client.must(Opcode::MakeDirectory, 0o755, "/d").await;
        client.must(Opcode::MakeDirectory, 0o755, "/d/e").await;
        client.create("/d/e/file").await;
        client.make_symlink("e/file", "/d/relative").await;
        client.make_symlink("/d/e", "/absolute").await;
        client.make_symlink("loop", "/loop").await;
        let node = client.stat("/d/e/file").await.unwrap().node;
        let follow = Flags::default();
        for path in
            ["/d/relative", "absolute/file", "//d/./e/../e//file", "/../../d/relative", "/absolute/../e/file"]
        {
            let completion = client.at(Opcode::Stat, follow, 0, path.as_bytes()).await;
            assert_eq!(completion.status, 0, "{path}");
            let record = AttributesRecord::split(&client.output(OUTPUT, 128)).unwrap().0;
            assert_eq!(record.node, node, "{path}");
        }
        for (path, errno) in [
            ("/loop", Errno::ELOOP),
            ("/d/e/file/", Errno::ENOTDIR),
            ("/d/e/file/.", Errno::ENOTDIR),
            ("/d/relative/x", Errno::ENOTDIR),
            ("/none/..", Errno::ENOENT),
            ("/d\0", Errno::EINVAL),
        ] {
            let completion = client.at(Opcode::Stat, follow, 0, path.as_bytes()).await;
            assert_eq!(completion.status, status(errno), "{path}");
        }
        assert_eq!(client.stat("/absolute").await.unwrap().mode.get() >> 12, 10);
        // A slash follows the link whatever the flags say.
        assert_eq!(client.stat("/absolute/").await.unwrap().mode.get() >> 12, 4);
        let long = [b'x'; 4096];
        let completion = client.at(Opcode::Stat, follow, 0, &long).await;
        assert_eq!(completion.status, status(Errno::ENAMETOOLONG));
        for (flags, path, errno) in [
            (Flags::DIRECTORY, "/d/.", Errno::EINVAL),
            (Flags::DIRECTORY, "/d/e/..", Errno::ENOTEMPTY),
            (Flags::default(), "/d", Errno::EISDIR),
            (Flags::default(), "/d/e/file/", Errno::ENOTDIR),
            (Flags::default(), "/", Errno::EISDIR),
        ] {
            let completion = client.at(Opcode::Unlink, flags, 0, path.as_bytes()).await;
            assert_eq!(completion.status, status(errno), "{path}");
        }
    });
}

#[test]
fn permissions_are_those_of_the_credential_and_strangers_have_none() {
    with_client(async |client| {
        client.must(Opcode::MakeDirectory, 0o700, "/private").await;
        client.create("/private/secret").await;
        client.create("/shown").await;
        client.credential = USER;
        assert_eq!(client.stat("/private/secret").await, Err(status(Errno::EACCES)));
        assert_eq!(client.open(OpenBits::READ, "/shown").await.status, 0);
        let write = OpenBits::READ.union(OpenBits::WRITE);
        assert_eq!(client.open(write, "/shown").await.status, status(Errno::EACCES));
        client.credential = 3;
        assert_eq!(client.stat("/shown").await, Err(status(Errno::EPERM)));
    });
}

#[test]
fn handles_of_another_client_are_none() {
    on_a_volume(async |engine, service| {
        let mut first = Client::attach(&engine, &service).await;
        let mut second = Client::attach(&engine, &service).await;
        let file = first.create("/file").await;
        let sync = Command { target: file, ..second.command(Opcode::Sync) };
        assert_eq!(second.call(sync).await.status, status(Errno::EBADF));
        first.detach().await;
        second.detach().await;
    });
}

#[test]
fn what_leaves_the_data_area_is_refused() {
    with_client(async |client| {
        let file = client.create("/file").await;
        let read = Command { target: file, ..client.command(Opcode::Read) };
        for (start, len_bytes, errno) in [
            (0, 64, Errno::EFAULT),
            (DATA_START - 1, 64, Errno::EFAULT),
            (DATA_START + DATA_BYTES - 63, 64, Errno::EFAULT),
            (u32::MAX, COMMAND_BYTES_MAX, Errno::EFAULT),
            (DATA_START, COMMAND_BYTES_MAX + 1, Errno::E2BIG),
            (DATA_START, u32::MAX, Errno::E2BIG),
        ] {
            let output = Area { start, len_bytes };
            assert_eq!(client.call(Command { output, ..read }).await.status, status(errno), "{output:?}");
            let write = Command { target: file, input: output, ..client.command(Opcode::Write) };
            assert_eq!(client.call(write).await.status, status(errno), "{output:?}");
        }
        assert_eq!(client.stat("/file").await.unwrap().size_bytes.get(), 0);
        // Lists of areas: their own bounds, and those of what they name.
        let list = |areas: &[(u32, u32)]| -> Vec<u8> {
            areas.iter().flat_map(|(start, len)| [start.to_le_bytes(), len.to_le_bytes()].concat()).collect()
        };
        for (areas, errno) in [
            (list(&[(OUTPUT, 8), (0, 8)]), Errno::EFAULT),
            (list(&[(OUTPUT, COMMAND_BYTES_MAX), (OUTPUT, 1)]), Errno::E2BIG),
            (list(&[(OUTPUT, 1); 257]), Errno::E2BIG),
            (vec![0; 12], Errno::EINVAL),
        ] {
            let input = client.input(&areas);
            let gather = Command { target: file, input, ..client.command(Opcode::WriteGather) };
            assert_eq!(client.call(gather).await.status, status(errno));
        }
        client.memory.write(OUTPUT.into(), b"onetwo").unwrap();
        let input = client.input(&list(&[(OUTPUT + 3, 3), (OUTPUT, 0), (OUTPUT, 3)]));
        let gather = Command { target: file, input, ..client.command(Opcode::WriteGather) };
        assert_eq!(client.call(gather).await.value, 6);
        assert_eq!(client.read(file, 0, 64).await, b"twoone");
    });
}

#[test]
fn slots_that_are_no_commands_cost_their_client_an_error() {
    with_client(async |client| {
        let mut bytes = client.command(Opcode::Nop).encode().to_bytes();
        bytes[8] = 0xee;
        client.requester.submit(&Slot::from_bytes(&bytes)).unwrap();
        assert_eq!(client.next().await.status, status(Errno::ENOSYS));
        let nonsense = Command { operand: 4, ..client.command(Opcode::Nop) };
        assert_eq!(client.call(nonsense).await.status, status(Errno::EINVAL));
        let nop = Command { value: 99, ..client.command(Opcode::Nop) };
        assert_eq!(client.call(nop).await.value, 99);
    });
}

#[test]
fn a_directory_is_listed_whole_through_a_small_window() {
    with_client(async |client| {
        client.must(Opcode::MakeDirectory, 0o755, "/d").await;
        for index in 0..300 {
            let file = client.create(&format!("/d/file-{index}")).await;
            let close = Command { target: file, ..client.command(Opcode::Close) };
            client.call(close).await;
        }
        let directory = client.open(OpenBits::READ.union(OpenBits::DIRECTORY), "/d").await.value;
        for (flags, room) in [(Flags::default(), 512), (Flags::WITH_ATTRIBUTES, 4096)] {
            let (mut names, mut cookie) = (Vec::new(), 0);
            loop {
                let output = Area { start: OUTPUT, len_bytes: room };
                let command = Command {
                    flags,
                    target: directory,
                    operand: cookie,
                    output,
                    ..client.command(Opcode::ReadDirectory)
                };
                let completion = client.call(command).await;
                assert_eq!(completion.status, 0);
                if completion.value == 0 {
                    break;
                }
                let bytes = client.output(OUTPUT, completion.output_bytes as usize);
                let mut rest = &bytes[..];
                for _ in 0..completion.value {
                    let (entry, _) = EntryRecord::split(rest).unwrap();
                    let name_start = if flags == Flags::default() { 24 } else { 24 + 128 };
                    let name = &rest[name_start..name_start + usize::from(entry.name_bytes.get())];
                    names.push(name.to_vec());
                    rest = &rest[usize::from(entry.entry_bytes.get())..];
                }
                assert!(rest.is_empty());
                cookie = completion.extra;
            }
            names.sort();
            names.dedup();
            assert_eq!(names.len(), 302);
        }
        let output = Area { start: OUTPUT, len_bytes: 16 };
        let command = Command { target: directory, output, ..client.command(Opcode::ReadDirectory) };
        assert_eq!(client.call(command).await.status, status(Errno::ERANGE));
    });
}

#[test]
fn waiting_for_locks_is_bounded_cancelled_and_ends_with_the_ring() {
    on_a_volume(async |engine, service| {
        let mut holder = Client::attach(&engine, &service).await;
        let file = holder.create("/file").await;
        let lock = holder.lock(file, 2, 0);
        assert_eq!(holder.call(lock).await.status, 0);

        let mut client = Client::attach(&engine, &service).await;
        let file = client.create("/file").await;
        let refused = client.lock(file, 2, 0);
        assert_eq!(client.call(refused).await.status, status(Errno::EAGAIN));
        let waiting: Vec<Command> = (0..SLOTS / 4).map(|_| client.lock(file, 2, 1)).collect();
        waiting.iter().for_each(|command| client.submit(command));
        let one_more = client.lock(file, 2, 1);
        assert_eq!(client.call(one_more).await.status, status(Errno::ENOLCK));
        let cancel = Command { operand: waiting[1].tag, ..client.command(Opcode::Cancel) };
        client.submit(&cancel);
        let mut ended = [client.next().await, client.next().await];
        ended.sort_by_key(|completion| completion.tag);
        assert_eq!((ended[0].tag, ended[0].status), (waiting[1].tag, status(Errno::ECANCELED)));
        assert_eq!((ended[1].tag, ended[1].value), (cancel.tag, 1));
        assert_eq!(client.call(cancel).await.value, 0, "nothing waits under this tag any more");
        // The holder goes: one of those that wait gets the lock, the others are its own and get it, too.
        holder.detach().await;
        for _ in 0..waiting.len() - 1 {
            assert_eq!(client.next().await.status, 0);
        }
        let mut late = Client::attach(&engine, &service).await;
        let file = late.create("/file").await;
        let lock = late.lock(file, 1, 1);
        late.submit(&lock);
        engine.yield_now().await;
        late.detach().await;
        client.detach().await;
    });
}

#[test]
fn a_client_that_sleeps_is_rung_and_one_that_polls_is_not() {
    with_client(async |client| {
        let nop = client.command(Opcode::Nop);
        client.call(nop).await;
        assert_eq!(client.rung.get(), 0);
        client.submit(&nop);
        assert!(client.requester.prepare_sleep());
        while client.rung.get() == 0 {
            client.engine.yield_now().await;
        }
        client.requester.finish_sleep();
        assert_eq!(client.next().await.status, 0);
        assert_eq!(client.rung.get(), 1);
    });
}
