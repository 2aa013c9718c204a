//! The whole server against a virtual machine monitor's end of the socket, in one process.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use ringfort_engine::local::{LocalOptions, Transport, start};
use vhost::VhostBackend;
use zerocopy::IntoBytes;

use super::machine::{Host, Machine, REQUESTS, Setup, filesystem, pattern};
use crate::listen::ListenError;
use crate::virtiofs::{CachePolicy, Options, REQUEST_QUEUES_MAX, StartError, VirtioFsServer, abi};

#[test]
fn a_machine_writes_and_reads_through_the_socket() {
    // With io_uring the volume's thread hears doorbells itself; with threads they take a detour.
    for transport in [Transport::Uring, Transport::Threads] {
        let host = Host::start_with(Setup { transport, ..Setup::default() });
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
    assert_eq!(bases[REQUESTS] as usize, 3);
    machine.share_memory();
    machine.start_queues(&bases);
    assert_eq!(machine.read(handle, 0, 100), b"before");
    // A region goes while the queues run, and with it a ring; when it comes back the ring works.
    machine.share_memory_from(1);
    assert_eq!(machine.read(handle, 0, 100), b"before");
    for _ in 0..3 {
        machine.share_memory();
        assert_eq!(machine.read(handle, 0, 100), b"before");
    }
    let forget = machine.send(0, abi::FUSE_GETATTR, 1, &[0; 16]);
    machine.wait(0, &forget).ok();
    assert_eq!(host.metrics().broken_devices.get(), 0);
    drop(machine);
    host.stop();
}

#[test]
fn a_driver_that_begins_anew_finds_no_session_of_the_one_before() {
    let host = Host::start();
    let mut machine = Machine::connect_with(&host.path(), 1);
    for round in 0..3 {
        machine.init();
        let handle = machine.write_file(&format!("file {round}"), b"data");
        assert!(host.metrics().in_session.get());
        // The guest reboots, or binds its driver again: nobody says so, but the rings begin at their beginning.
        machine.bind_driver_anew();
        let read = abi::ReadIn { fh: handle.into(), size: 1.into(), ..Default::default() };
        assert_eq!(machine.call(abi::FUSE_READ, 0, read.as_bytes()).error, -5, "no INIT, no session");
        assert!(!host.metrics().in_session.get());
    }
    machine.init();
    assert_eq!(machine.read_file("file 2"), b"data");
    drop(machine);
    host.stop();
}

#[test]
fn every_request_queue_serves_and_a_machine_may_use_fewer_than_are_offered() {
    let host = Host::start_with(Setup { request_queues: 6, ..Setup::default() });
    for used in [1, 6, 3] {
        let mut machine = Machine::connect_with(&host.path(), used);
        machine.init();
        let handle = machine.write_file(&format!("file {used}"), &pattern(50_000));
        let read = abi::ReadIn { fh: handle.into(), size: 100_000.into(), ..Default::default() };
        for _ in 0..20 {
            let queues = REQUESTS..=used;
            let tickets: Vec<_> =
                queues.clone().map(|queue| machine.send(queue, abi::FUSE_READ, 0, read.as_bytes())).collect();
            for (queue, ticket) in queues.zip(tickets) {
                assert!(machine.wait(queue, &ticket).ok() == pattern(50_000), "queue {queue} of {used}");
            }
        }
        let sizes: Vec<_> = host.metrics().queues().iter().map(|queue| queue.size.get()).collect();
        assert_eq!(sizes.iter().filter(|size| **size > 0).count(), 1 + used, "{sizes:?}");
    }
    let latencies = host.metrics().operations();
    let reads = latencies.iter().find(|(name, _)| *name == "read").unwrap();
    assert_eq!(reads.1.count(), 20 * (1 + 6 + 3));
    host.stop();
}

#[test]
fn a_count_of_queues_beyond_the_bound_and_writeback_of_nothing_are_refused() {
    let refused = |queues, options| {
        thread::spawn(move || {
            let runtime =
                start(LocalOptions { transport: Transport::Threads, ..Default::default() }).unwrap();
            let engine = runtime.engine();
            runtime.block_on(async move {
                let service = Rc::new(filesystem(&engine).await);
                let path = PathBuf::from("/nowhere/socket");
                VirtioFsServer::start(&engine, service, &path, queues, options).map(drop).unwrap_err()
            })
        })
        .join()
        .unwrap()
    };
    for queues in [0, REQUEST_QUEUES_MAX + 1] {
        assert!(matches!(refused(queues, Options::default()), StartError::QueueCount { .. }));
    }
    let options = Options { cache: CachePolicy::Never, writeback: true, ..Options::default() };
    let error = refused(1, options);
    assert!(error.to_string().contains("choose `auto` or `always`"), "{error}");
}

#[test]
fn a_machine_sees_at_open_what_another_wrote_and_closed() {
    for cache in [CachePolicy::Never, CachePolicy::Auto] {
        let options = Options { cache, ..Options::default() };
        let host = Host::start_with(Setup { machines: 2, options, ..Setup::default() });
        let mut machines = [0, 1].map(|number| Machine::connect(&host.path_of(number)));
        machines.iter_mut().for_each(Machine::init);
        let mut expected = Vec::new();
        for round in 0..6 {
            let (one, other) = machines.split_at_mut(1);
            let (writer, reader) =
                if round % 2 == 0 { (&mut one[0], &mut other[0]) } else { (&mut other[0], &mut one[0]) };
            if round == 0 {
                let handle = writer.create("letter");
                writer.release(handle);
            }
            let node = writer.look_up("letter").nodeid.get();
            let handle = writer.open(node);
            let more = pattern(3000 + round * 100);
            writer.write(handle, expected.len() as u64, &more);
            expected.extend_from_slice(&more);
            writer.release(handle);
            // What a guest believes may not reach from before the close to after an open: the name is to be asked for, and
            // the answer carries the attributes.
            let entry = reader.look_up("letter");
            assert_eq!((entry.entry_valid.get(), entry.entry_valid_nsec.get()), (0, 0));
            assert_eq!(entry.attr.size.get() as usize, expected.len());
            assert!(reader.read_file("letter") == expected);
        }
        drop(machines);
        host.stop();
    }
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
    let metrics = host.metrics();
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
    for _ in 0..300 {
        connect();
    }
    let after = open_descriptors();
    assert!(after < before + 250, "{before} descriptors before, {after} after");
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
