//! What only a real machine can show: other threads, other processes, and a runtime that goes while I/O is in flight.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::Cell;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::device::Device;
use ringfort_engine::engine::MemoryOpen;
use ringfort_engine::error::ErrorKind;
use ringfort_engine::local::{LocalOptions, Transport, start};
use ringfort_engine::mailbox::mailbox;
use ringfort_engine::runtime::{Runtime, spawn_joinable};

const TRANSPORTS: [Transport; 3] = [Transport::Uring, Transport::PlainUring, Transport::Threads];

fn runtime(transport: Transport) -> Runtime {
    start(LocalOptions { transport, memory_directory: None, ..LocalOptions::default() }).unwrap()
}

#[test]
fn a_mailbox_wakes_the_parked_owner_and_keeps_the_order() {
    for transport in TRANSPORTS {
        let runtime = runtime(transport);
        let (sender, mut receiver) = mailbox::<u32>();
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for index in 0..200 {
                        sender.send(thread * 1000 + index).unwrap();
                        if index % 50 == 0 {
                            // Long enough for the owner to park.
                            std::thread::sleep(Duration::from_millis(2));
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let received = runtime.block_on(async move {
            let mut received = Vec::new();
            while let Some(value) = receiver.recv().await {
                received.push(value);
            }
            received
        });
        assert_eq!(received.len(), 800);
        for thread in 0..4 {
            let of_thread: Vec<u32> =
                received.iter().filter(|value| **value / 1000 == thread).map(|value| value % 1000).collect();
            assert_eq!(of_thread, (0..200).collect::<Vec<_>>());
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn sending_to_a_dropped_receiver_gives_the_value_back() {
    let (sender, receiver) = mailbox::<u32>();
    drop(receiver);
    assert_eq!(sender.send(3), Err(3));
}

#[test]
fn posted_work_runs_on_the_owner_and_may_spawn() {
    for transport in TRANSPORTS {
        let runtime = runtime(transport);
        let remote = runtime.remote();
        let (answer, answers) = mpsc::channel();
        let (stop, mut stopped) = mailbox::<()>();
        let poster = std::thread::spawn(move || {
            assert!(remote.post(move |engine| {
                let engine2 = Rc::clone(engine);
                engine.spawn(Box::pin(async move {
                    let local = Rc::new(Cell::new(1));
                    engine2.sleep(Duration::from_millis(1)).await;
                    local.set(local.get() + 1);
                    answer.send((std::thread::current().id(), local.get())).unwrap();
                }));
            }));
            let answer = answers.recv().unwrap();
            stop.send(()).unwrap();
            (remote, answer)
        });
        runtime.block_on(async move { stopped.recv().await });
        let (remote, answer) = poster.join().unwrap();
        assert_eq!(answer, (std::thread::current().id(), 2));
        drop(runtime);
        assert!(!remote.post(|_| {}));
    }
}

#[test]
fn a_runtime_may_go_while_requests_are_in_flight() {
    for transport in TRANSPORTS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("component");
        let first = runtime(transport);
        let engine = first.engine();
        let device = engine.create(&path, 256 * BLOCK_BYTES as u64).unwrap();
        let block = |index: u64| Slice::copy_of(&[index as u8; BLOCK_BYTES]);
        first.block_on(async {
            for index in 0..256 {
                drop(device.write(index * BLOCK_BYTES as u64, vec![block(index)]));
                drop(device.read(0, Buffer::zeroed(64 * BLOCK_BYTES)));
            }
        });
        drop((first, engine, device));
        // Every request was carried out before the last handle was gone.
        let second = runtime(transport);
        let device = second.engine().open(&path, true).unwrap();
        let bytes = second.block_on(device.read(0, Buffer::zeroed(256 * BLOCK_BYTES))).unwrap();
        for (index, found) in bytes.chunks(BLOCK_BYTES).enumerate() {
            assert!(found.iter().all(|byte| *byte == index as u8), "block {index}");
        }
    }
}

#[test]
fn a_panic_in_a_task_reaches_the_caller_and_nothing_hangs() {
    for transport in TRANSPORTS {
        let runtime = runtime(transport);
        runtime.spawn(Box::pin(async { panic!("on purpose") }));
        let engine = runtime.engine();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(engine.sleep(Duration::from_secs(5)));
        }));
        assert!(outcome.is_err());
    }
}

#[test]
fn the_holder_of_a_component_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("component");
    let runtime = runtime(Transport::Automatic);
    let _device = runtime.engine().create(&path, BLOCK_BYTES as u64).unwrap();
    let error = runtime.engine().open(&path, true).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Busy);
    let pid = std::process::id().to_string();
    assert!(error.found.contains(&pid) || error.found.contains("not visible"), "{error}");
}

#[test]
fn a_file_cut_short_under_the_server_fails_reads_clearly() {
    for transport in TRANSPORTS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("component");
        let runtime = runtime(transport);
        let device = runtime.engine().create(&path, 16 * BLOCK_BYTES as u64).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(6000).unwrap();
        let error = runtime.block_on(device.read(0, Buffer::zeroed(4 * BLOCK_BYTES))).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Failed);
        assert!(error.found.contains("the device ends after 4096 bytes"), "{error}");
        let counters = device.counters();
        assert_eq!((counters.read_errors, counters.errors(), counters.timeouts), (1, 1, 0));
    }
}

#[test]
fn an_extended_component_keeps_its_contents_and_has_its_space() {
    const OLD_BYTES: u64 = 16 * BLOCK_BYTES as u64;
    const NEW_BYTES: u64 = 80 * BLOCK_BYTES as u64;
    for transport in TRANSPORTS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("component");
        let runtime = runtime(transport);
        let engine = runtime.engine();
        let device = engine.create(&path, OLD_BYTES).unwrap();
        runtime.block_on(device.write(0, vec![Slice::copy_of(&[7; OLD_BYTES as usize])])).unwrap();
        runtime.block_on(device.flush()).unwrap();
        let busy = engine.extend(&path, NEW_BYTES).unwrap_err();
        assert_eq!(busy.kind, ErrorKind::Busy, "{busy}");
        drop(device);
        engine.extend(&path, NEW_BYTES).unwrap();
        // A length that it has is nothing to do.
        engine.extend(&path, OLD_BYTES).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), NEW_BYTES);
        assert!(metadata.blocks() * 512 >= NEW_BYTES, "{} sectors", metadata.blocks());
        let device = engine.open(&path, true).unwrap();
        assert_eq!(device.len_bytes(), NEW_BYTES);
        let bytes = runtime.block_on(device.read(0, Buffer::zeroed(NEW_BYTES as usize))).unwrap();
        let (old, new) = bytes.split_at(OLD_BYTES as usize);
        assert!(old.iter().all(|byte| *byte == 7) && new.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_cannot_be_extended_is_refused_and_stays_as_it_was() {
    const LEN_BYTES: u64 = 16 * BLOCK_BYTES as u64;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("component");
    let runtime = runtime(Transport::Automatic);
    let engine = runtime.engine();
    drop(engine.create(&path, LEN_BYTES).unwrap());
    for (len_bytes, kind) in [
        (LEN_BYTES + 1, ErrorKind::OutOfRange),
        (1 << 63, ErrorKind::OutOfRange),
        (1 << 60, ErrorKind::NoSpace),
    ] {
        let refused = engine.extend(&path, len_bytes).unwrap_err();
        assert_eq!(refused.kind, kind, "{refused}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), LEN_BYTES);
    }
    let missing = engine.extend(&folder.path().join("none"), LEN_BYTES).unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotFound, "{missing}");
}

#[test]
fn a_component_larger_than_its_file_system_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("component");
    let runtime = runtime(Transport::Automatic);
    let error = runtime.engine().create(&path, 1 << 45).err().unwrap();
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    assert!(!path.exists());
}

#[test]
fn what_is_no_component_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime(Transport::Automatic);
    let error = runtime.engine().open(folder.path(), false).err().unwrap();
    assert!(error.to_string().contains("neither a regular file nor a block device"), "{error}");
    let absent = folder.path().join("no/such/folder/component");
    assert_eq!(runtime.engine().create(&absent, 4096).err().unwrap().kind, ErrorKind::NotFound);
}

#[test]
fn memory_files_are_private_to_the_user_and_outlive_the_runtime() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let memory = folder.path().join("memory");
    let options = || LocalOptions { memory_directory: Some(memory.clone()), ..LocalOptions::default() };
    {
        let runtime = start(options()).unwrap();
        let file = runtime.engine().memory_file("bank", 4 * BLOCK_BYTES, MemoryOpen::Create).unwrap();
        file.lend(3, 1).fill(8);
    }
    assert_eq!(memory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(memory.join("bank").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    {
        let runtime = start(options()).unwrap();
        let file = runtime.engine().memory_file("bank", 4 * BLOCK_BYTES, MemoryOpen::Attach).unwrap();
        assert_eq!(file.lend(3, 1)[..], [8; BLOCK_BYTES]);
    }
    // A directory that others may write to is not trusted: the file is anonymous.
    std::fs::set_permissions(&memory, std::fs::Permissions::from_mode(0o777)).unwrap();
    let runtime = start(options()).unwrap();
    let error = runtime.engine().memory_file("bank", 4 * BLOCK_BYTES, MemoryOpen::Attach).err().unwrap();
    assert_eq!(error.kind, ErrorKind::NotFound);
    runtime.engine().memory_file("bank", 4 * BLOCK_BYTES, MemoryOpen::Create).unwrap();
}

#[test]
fn an_idle_runtime_sleeps_and_wakes_on_time() {
    for transport in TRANSPORTS {
        let runtime = runtime(transport);
        let engine = runtime.engine();
        let started = Instant::now();
        let joined = runtime.block_on(async {
            let engine2 = Rc::clone(&engine);
            let task = spawn_joinable(&*engine, async move {
                engine2.sleep(Duration::from_millis(50)).await;
                5
            });
            task.await
        });
        assert_eq!(joined, Some(5));
        let elapsed = started.elapsed();
        assert!(elapsed >= Duration::from_millis(50) && elapsed < Duration::from_secs(2), "{elapsed:?}");
    }
}

#[test]
fn polling_before_sleeping_serves_requests_and_mail_alike() {
    for transport in TRANSPORTS {
        let folder = tempfile::tempdir().unwrap();
        let options = LocalOptions {
            transport,
            memory_directory: None,
            busy_poll: Duration::from_micros(200),
            ..LocalOptions::default()
        };
        let runtime = start(options).unwrap();
        let device = runtime.engine().create(&folder.path().join("component"), 1 << 20).unwrap();
        let (sender, mut receiver) = mailbox::<u32>();
        let thread = std::thread::spawn(move || {
            for index in 0..20 {
                std::thread::sleep(Duration::from_micros(u64::from(index) * 37));
                sender.send(index).unwrap();
            }
        });
        runtime.block_on(async {
            for index in 0..20 {
                assert_eq!(receiver.recv().await, Some(index));
                device.write(0, vec![Slice::copy_of(&[1])]).await.unwrap();
            }
        });
        thread.join().unwrap();
    }
}

#[test]
fn dropping_the_runtime_drops_its_tasks() {
    for transport in TRANSPORTS {
        let runtime = runtime(transport);
        let engine = runtime.engine();
        let witness = Rc::new(());
        let (engine2, witness2) = (Rc::clone(&engine), Rc::clone(&witness));
        runtime.spawn(Box::pin(async move {
            loop {
                engine2.sleep(Duration::from_millis(1)).await;
                assert_eq!(Rc::strong_count(&witness2), 2);
            }
        }));
        runtime.block_on(engine.sleep(Duration::from_millis(3)));
        drop(runtime);
        assert_eq!(Rc::strong_count(&witness), 1);
        assert_eq!(Rc::strong_count(&engine), 1);
    }
}

/// Writes and reads a component of at least 64 blocks that is open for writing.
fn exercise(runtime: &Runtime, device: &Rc<dyn Device>) {
    runtime.block_on(async {
        for index in 0..64 {
            let bytes = Slice::copy_of(&[index as u8 + 1; BLOCK_BYTES]);
            device.write(index * BLOCK_BYTES as u64, vec![bytes]).await.unwrap();
        }
        device.flush().await.unwrap();
        let bytes = device.read(0, Buffer::zeroed(64 * BLOCK_BYTES)).await.unwrap();
        for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
            assert!(block.iter().all(|byte| usize::from(*byte) == index + 1), "block {index}");
        }
    });
}

#[test]
fn components_in_shared_memory_serve() {
    // Linux before 6.6 has no O_DIRECT here.
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("skipped: no /dev/shm");
        return;
    };
    for (index, transport) in TRANSPORTS.into_iter().enumerate() {
        let runtime = runtime(transport);
        let path = folder.path().join(format!("component{index}"));
        exercise(&runtime, &runtime.engine().create(&path, 64 * BLOCK_BYTES as u64).unwrap());
        exercise(&runtime, &runtime.engine().open(&path, true).unwrap());
    }
}

/// Where the test below has mounted a file system without O_DIRECT.
const PAGE_CACHE_FOLDER: &str = "RINGFORT_TEST_PAGE_CACHE_FOLDER";

#[test]
fn components_on_a_file_system_without_direct_io_serve() {
    use std::os::unix::fs::OpenOptionsExt;
    let Some(folder) = std::env::var_os(PAGE_CACHE_FOLDER) else {
        return mount_and_run_again("components_on_a_file_system_without_direct_io_serve");
    };
    for (index, transport) in TRANSPORTS.into_iter().enumerate() {
        let path = std::path::Path::new(&folder).join(format!("component{index}"));
        // Such a file system does not say what it has free, so `create` would refuse.
        std::fs::write(&path, vec![0; 64 * BLOCK_BYTES]).unwrap();
        let direct = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
        assert_eq!(direct.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let runtime = runtime(transport);
        exercise(&runtime, &runtime.engine().open(&path, true).unwrap());
    }
}

/// Runs one test of this program where only it sees a fresh memory file system of the simplest kind.
fn mount_and_run_again(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let unshare = |script: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        command.arg(folder.path()).arg(std::env::current_exe().unwrap()).args(["--exact", test]);
        command.env(PAGE_CACHE_FOLDER, folder.path()).output()
    };
    if !unshare("mount -t ramfs none \"$0\"").is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no mounts to be had in a namespace of our own");
        return;
    }
    let output = unshare("mount -t ramfs none \"$0\" && exec \"$@\"").unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{output:?}");
}

/// A loop device over a file, where this machine lends one to us.
struct LoopDevice(String);

impl LoopDevice {
    fn attach(file: &std::path::Path) -> Option<Self> {
        let output =
            std::process::Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !path.is_empty()).then_some(Self(path))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_taken_over_and_claimed() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let Some(device_path) = LoopDevice::attach(&image) else {
        eprintln!("skipped: no loop device to be had");
        return;
    };
    for transport in TRANSPORTS {
        let runtime = runtime(transport);
        let (engine, path) = (runtime.engine(), std::path::Path::new(&device_path.0));
        let error = engine.create(path, 2 << 20).err().unwrap();
        assert_eq!(error.kind, ErrorKind::OutOfRange, "{error}");
        let device = engine.create(path, 1 << 20).unwrap();
        assert_eq!(device.len_bytes(), 1 << 20);
        runtime.block_on(async {
            device.write(8192, vec![Slice::copy_of(b"block")]).await.unwrap();
            device.flush().await.unwrap();
            let bytes = device.read(8192, Buffer::zeroed(BLOCK_BYTES)).await.unwrap();
            assert_eq!(&bytes[..5], b"block");
        });
        let error = engine.open(path, true).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Busy, "{error}");
        assert!(error.found.starts_with("locked by "), "{error}");
        drop(device);
        engine.open(path, true).unwrap();
    }
}

/// Takes on what another thread counts up, as a device takes chains from a ring.
#[derive(Default)]
struct Counted {
    offered: std::sync::Arc<std::sync::atomic::AtomicU32>,
    wanted: std::sync::Arc<std::sync::atomic::AtomicBool>,
    taken: std::cell::Cell<u32>,
    news: ringfort_engine::sync::Notify,
}

impl ringfort_engine::source::Source for Counted {
    fn poll(&self) -> bool {
        self.wanted.store(false, std::sync::atomic::Ordering::SeqCst);
        let offered = self.offered.load(std::sync::atomic::Ordering::SeqCst);
        let any = self.taken.replace(offered) != offered;
        if any {
            self.news.notify_one();
        }
        any
    }

    fn arm(&self) -> bool {
        self.wanted.store(true, std::sync::atomic::Ordering::SeqCst);
        self.offered.load(std::sync::atomic::Ordering::SeqCst) != self.taken.get()
    }
}

#[test]
fn work_in_memory_is_taken_on_whether_the_thread_looks_or_sleeps() {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering::SeqCst;

    use nix::sys::eventfd::{EfdFlags, EventFd};

    for busy_poll in [Duration::ZERO, Duration::from_micros(200)] {
        let options = LocalOptions {
            transport: Transport::Uring,
            memory_directory: None,
            busy_poll,
            ..LocalOptions::default()
        };
        let runtime = start(options).unwrap();
        let engine = runtime.engine();
        // As a virtual machine monitor makes it: nobody ever reads it.
        let doorbell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let source = Rc::new(Counted::default());
        let weak: std::rc::Weak<dyn ringfort_engine::source::Source> = Rc::downgrade(&source) as _;
        assert!(engine.attend(weak));
        let watch = engine.watch(Box::new(doorbell.as_fd().try_clone_to_owned().unwrap()));
        assert!(watch.is_some());
        let (offered, wanted) = (source.offered.clone(), source.wanted.clone());
        let bringer = std::thread::spawn(move || {
            let mut rung = 0;
            for index in 0..300 {
                std::thread::sleep(Duration::from_micros(index % 7 * 40));
                offered.fetch_add(1, SeqCst);
                if wanted.load(SeqCst) {
                    doorbell.write(1).unwrap();
                    rung += 1;
                }
            }
            rung
        });
        runtime.block_on(async {
            while source.taken.get() < 300 {
                source.news.notified().await;
            }
        });
        let rung = bringer.join().unwrap();
        assert!(
            rung > 0 || !busy_poll.is_zero(),
            "a thread that sleeps at once is woken by the doorbell alone"
        );
        drop(watch);
        // Let go: the descriptor is closed once the kernel has said so.
        runtime.block_on(engine.sleep(Duration::from_millis(5)));
    }
}

#[test]
fn a_descriptor_can_be_watched_anew_and_one_that_hangs_up_does_no_harm() {
    let options =
        LocalOptions { transport: Transport::Uring, memory_directory: None, ..LocalOptions::default() };
    let runtime = start(options).unwrap();
    let engine = runtime.engine();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let hung_up = engine.watch(Box::new(reader)).unwrap();
    drop(writer);
    let event = || Box::new(nix::sys::eventfd::EventFd::new().unwrap());
    for _ in 0..600 {
        drop(engine.watch(event()).unwrap());
    }
    let kept: Vec<_> = (0..300).map(|_| engine.watch(event()).unwrap()).collect();
    let started = Instant::now();
    runtime.block_on(engine.sleep(Duration::from_millis(20)));
    assert!(started.elapsed() >= Duration::from_millis(20));
    drop((hung_up, kept));
    runtime.block_on(engine.sleep(Duration::from_millis(1)));
}
