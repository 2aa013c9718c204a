//! What a well-behaved guest says, and hears.

use zerocopy::{FromBytes, IntoBytes};

use super::driver::{init_in, name};
use super::guest::{REQUESTS, with_cache, with_guest};
use crate::virtiofs::device::Event;
use crate::virtiofs::{CachePolicy, abi};

fn read_in(handle: u64, offset: u64, size: u32) -> abi::ReadIn {
    abi::ReadIn { fh: handle.into(), offset: offset.into(), size: size.into(), ..Default::default() }
}

fn write_body(handle: u64, offset: u64, data: &[u8], flags: u32, write_flags: u32) -> Vec<u8> {
    let write = abi::WriteIn {
        fh: handle.into(),
        offset: offset.into(),
        size: (data.len() as u32).into(),
        flags: flags.into(),
        write_flags: write_flags.into(),
        ..Default::default()
    };
    [write.as_bytes(), data].concat()
}

fn release(handle: u64) -> abi::ReleaseIn {
    abi::ReleaseIn { fh: handle.into(), ..Default::default() }
}

#[test]
fn negotiation_offers_what_is_implemented_and_no_more() {
    with_guest(|mut guest, _| async move {
        let out = guest.init().await;
        assert_eq!((out.major.get(), out.minor.get()), (7, 38));
        assert_eq!((out.max_write.get(), out.max_pages.get(), out.time_gran.get()), (1 << 20, 256, 1));
        assert_eq!(out.max_readahead.get(), 128 * 1024);
        assert_eq!(out.flags.get() & (abi::FUSE_DO_READDIRPLUS | abi::FUSE_WRITEBACK_CACHE), 0);
        let locks = abi::FUSE_POSIX_LOCKS | abi::FUSE_FLOCK_LOCKS;
        assert_eq!(out.flags.get() & locks, locks);
        const EXPORT_SUPPORT: u32 = 1 << 4;
        assert_eq!(out.flags.get() & EXPORT_SUPPORT, 0);

        let older = guest.call(abi::FUSE_INIT, 0, init_in(31, abi::FUSE_BIG_WRITES).as_bytes()).await;
        let older: abi::InitOut = older.parse();
        assert_eq!((older.minor.get(), older.flags.get()), (31, abi::FUSE_BIG_WRITES));

        let too_old = guest.call(abi::FUSE_INIT, 0, init_in(30, 0).as_bytes()).await;
        assert_eq!(too_old.error, -71);
        let next_major = abi::InitIn { major: 8.into(), ..init_in(0, 0) };
        let reply: abi::InitOut = guest.call(abi::FUSE_INIT, 0, next_major.as_bytes()).await.parse();
        assert_eq!(reply.major.get(), 7);
    });
}

#[test]
fn a_file_is_created_written_and_read_back_across_descriptors() {
    with_guest(|mut guest, fake| async move {
        guest.init().await;
        let create = abi::CreateIn { flags: 2.into(), mode: 0o100644.into(), ..Default::default() };
        let body = [create.as_bytes(), &name("data")].concat();
        let created = guest.call(abi::FUSE_CREATE, 1, &body).await.ok();
        let (entry, rest) = abi::EntryOut::read_from_prefix(&created).unwrap();
        let open = abi::OpenOut::read_from_bytes(rest).unwrap();
        assert_eq!((entry.generation.get(), entry.entry_valid.get(), entry.attr_valid.get()), (7, 0, 1));
        assert_eq!(entry.attr.mode.get(), 0o100644);
        assert_eq!((entry.attr.atime.get() as i64, entry.attr.atimensec.get()), (-1, 5));

        // Begins and ends within blocks: head, whole blocks and tail arrive as pieces of their own.
        let data: Vec<u8> = (0..3 * 4096 + 100).map(|at| at as u8 ^ (at >> 8) as u8 | 1).collect();
        let body = write_body(open.fh.get(), 4000, &data, 0, 0);
        let written: abi::WriteOut = guest.call(abi::FUSE_WRITE, 0, &body).await.parse();
        assert_eq!(written.size.get() as usize, data.len());
        {
            let state = fake.state.borrow();
            let pieces: Vec<_> = state.payloads[0].pieces.iter().map(|piece| piece.len()).collect();
            assert_eq!(pieces, [96, 3 * 4096, 4]);
            assert!(state.payloads[0].pieces[1].is_block_aligned());
        }
        let body = read_in(open.fh.get(), 3990, 1 << 20);
        let read = guest.call(abi::FUSE_READ, 0, body.as_bytes()).await.ok();
        assert_eq!(read.len(), 10 + data.len());
        assert_eq!(read[..10], [0; 10]);
        assert!(read[10..] == data);
        assert_eq!(guest.metrics.written_bytes.get(), data.len() as u64);
        assert_eq!(guest.metrics.read_bytes.get(), data.len() as u64 + 10);
        assert_eq!(guest.metrics.requests(abi::FUSE_WRITE), 1);
        assert!(guest.doorbell_rang());

        guest.call(abi::FUSE_RELEASE, 0, release(open.fh.get()).as_bytes()).await.ok();
        let stale = guest.call(abi::FUSE_READ, 0, body.as_bytes()).await;
        assert_eq!(stale.error, -9);
    });
}

#[test]
fn errors_travel_with_the_request_that_caused_them() {
    with_guest(|mut guest, _| async move {
        guest.init().await;
        let first = guest.send(abi::FUSE_LOOKUP, 1, &name("missing"));
        let second = guest.send(abi::FUSE_GETATTR, 999, &[0; 16]);
        let (first, second) = (guest.wait(&first).await, guest.wait(&second).await);
        assert_eq!((first.error, second.error), (-2, -116));
        assert_eq!(second.unique, first.unique + 2);
        assert_eq!(first.written_bytes, 16);
        assert_eq!(guest.metrics.errors.get(), 2);
    });
}

#[test]
fn directory_entries_that_do_not_fit_are_forgotten_again() {
    with_guest(|mut guest, fake| async move {
        // Names longer than the guess: the filesystem is asked for more than fits.
        let long = "n".repeat(200);
        for at in 0..100 {
            fake.add_file(&format!("{long}{at:03}"), b"");
        }
        guest.init().await;
        let open: abi::OpenOut = guest.call(abi::FUSE_OPENDIR, 1, &[0; 8]).await.parse();
        let mut cookie = 0;
        let mut names = Vec::new();
        loop {
            let body = read_in(open.fh.get(), cookie, 4096);
            let list = guest.call(abi::FUSE_READDIRPLUS, 1, body.as_bytes()).await.ok();
            if list.is_empty() {
                break;
            }
            assert!(list.len() <= 4096);
            let mut rest = list.as_slice();
            while !rest.is_empty() {
                let (_, after) = abi::EntryOut::read_from_prefix(rest).unwrap();
                let (entry, _) = abi::Dirent::read_from_prefix(after).unwrap();
                let len_bytes = entry.namelen.get() as usize;
                names.push(after[24..24 + len_bytes].to_vec());
                cookie = entry.off.get();
                rest = &rest[(128 + 24 + len_bytes).next_multiple_of(8)..];
            }
        }
        assert_eq!(names.len(), 100);
        assert!(names.is_sorted());
        let lookups: Vec<u64> = fake.state.borrow().lookups.values().copied().collect();
        assert_eq!(lookups, [1; 100]);
        assert!(fake.state.borrow().seen.iter().any(|seen| seen == "Forget"));
    });
}

#[test]
fn forgets_are_counted_and_never_answered() {
    with_guest(|mut guest, fake| async move {
        guest.init().await;
        let node = fake.add_file("file", b"");
        for _ in 0..3 {
            guest.call(abi::FUSE_LOOKUP, 1, &name("file")).await.ok();
        }
        guest.forget(node, 2).await;
        assert_eq!(fake.state.borrow().lookups[&node], 1);
        let batch = [
            abi::BatchForgetIn { count: 1.into(), dummy: 0.into() }.as_bytes(),
            abi::ForgetOne { nodeid: node.into(), nlookup: 1.into() }.as_bytes(),
        ]
        .concat();
        let ticket = guest.send(abi::FUSE_BATCH_FORGET, 0, &batch);
        assert_eq!(guest.returned(REQUESTS, &ticket).await, Some(0));
        assert_eq!(fake.state.borrow().lookups[&node], 0);
    });
}

#[test]
fn slow_requests_do_not_hold_up_others() {
    with_guest(|mut guest, fake| async move {
        guest.init().await;
        fake.hold.set(true);
        let slow = guest.send(abi::FUSE_LOOKUP, 1, &name("slow"));
        guest.settle().await;
        fake.hold.set(false);
        let quick = guest.send(abi::FUSE_STATFS, 1, &[]);
        assert_eq!(guest.wait(&quick).await.error, 0);
        assert_eq!(guest.wait(&slow).await.error, -2);
    });
}

#[test]
fn another_init_or_destroy_ends_the_session_with_its_handles() {
    with_guest(|mut guest, fake| async move {
        guest.init().await;
        let node = fake.add_file("file", b"");
        let _: abi::OpenOut = guest.call(abi::FUSE_OPEN, node, &[0; 8]).await.parse();
        assert_eq!(fake.state.borrow().handles.len(), 1);
        guest.init().await;
        assert_eq!(fake.state.borrow().closed_sessions.len(), 1);
        assert_eq!(fake.state.borrow().open_sessions.len(), 1);
        assert!(fake.state.borrow().handles.is_empty());
        guest.call(abi::FUSE_DESTROY, 0, &[]).await.ok();
        assert!(fake.state.borrow().open_sessions.is_empty());
        assert_eq!(guest.call(abi::FUSE_STATFS, 1, &[]).await.error, -5);
        guest.init().await;
        guest.event(Event::Detach).await;
        assert!(fake.state.borrow().open_sessions.is_empty());
    });
}

#[test]
fn a_stopped_queue_is_drained_before_it_is_said_to_be_stopped() {
    with_guest(|mut guest, fake| async move {
        guest.init().await;
        fake.hold.set(true);
        let ticket = guest.send(abi::FUSE_STATFS, 1, &[]);
        guest.settle().await;
        use vhost_user_backend::VringT;
        guest.vrings[REQUESTS].set_queue_ready(false);
        let done = guest.begin(|done| Event::Stop(REQUESTS, done));
        guest.settle().await;
        assert!(done.try_recv().is_err());
        // Not taken any more.
        let late = guest.send(abi::FUSE_STATFS, 1, &[]);
        fake.hold.set(false);
        assert_eq!(guest.wait(&ticket).await.error, 0);
        guest.settle().await;
        assert_eq!(done.try_recv(), Ok(()));
        assert_eq!(guest.queues[REQUESTS].take_used(), None);

        guest.vrings[REQUESTS].set_queue_ready(true);
        guest.kick(REQUESTS);
        assert_eq!(guest.wait(&late).await.error, 0);
        assert_eq!(fake.state.borrow().open_sessions.len(), 1, "a pause is not the end of the session");
    });
}

#[test]
fn cache_policies_say_what_a_guest_may_believe() {
    let cases = [
        (CachePolicy::Never, 0, 0, abi::FOPEN_DIRECT_IO, 0),
        // Close to open: a file's name is asked for when it is opened.
        (CachePolicy::Auto, 0, 1, 0, 0),
        (CachePolicy::Always, 86_400, 86_400, abi::FOPEN_KEEP_CACHE, abi::FOPEN_CACHE_DIR),
    ];
    for (policy, entry_seconds, seconds, file_flag, directory_flag) in cases {
        with_cache(policy, move |mut guest, fake| async move {
            guest.init().await;
            let node = fake.add_file("file", b"");
            let entry: abi::EntryOut = guest.call(abi::FUSE_LOOKUP, 1, &name("file")).await.parse();
            assert_eq!((entry.entry_valid.get(), entry.attr_valid.get()), (entry_seconds, seconds));
            let attributes: abi::AttrOut = guest.call(abi::FUSE_GETATTR, node, &[0; 16]).await.parse();
            assert_eq!(attributes.attr_valid.get(), seconds);
            let cache = abi::FOPEN_DIRECT_IO | abi::FOPEN_KEEP_CACHE;
            let open: abi::OpenOut = guest.call(abi::FUSE_OPEN, node, &[0; 8]).await.parse();
            assert_eq!(open.open_flags.get() & cache, file_flag);
            let open: abi::OpenOut = guest.call(abi::FUSE_OPENDIR, 1, &[0; 8]).await.parse();
            assert_eq!(open.open_flags.get() & abi::FOPEN_CACHE_DIR, directory_flag);
        });
    }
}

#[test]
fn a_write_that_asks_for_durability_is_synced_unless_its_handle_is_synchronous() {
    const O_DSYNC: u32 = 0o10000;
    with_guest(|mut guest, fake| async move {
        guest.init().await;
        let node = fake.add_file("file", b"");
        let open = abi::OpenIn { flags: 1.into(), ..Default::default() };
        let plain: abi::OpenOut = guest.call(abi::FUSE_OPEN, node, open.as_bytes()).await.parse();
        let syncs = || fake.state.borrow().seen.iter().filter(|seen| *seen == "Sync").count();
        let body = write_body(plain.fh.get(), 0, b"x", O_DSYNC, 0);
        guest.call(abi::FUSE_WRITE, node, &body).await.ok();
        assert_eq!(syncs(), 1);
        let from_cache = write_body(plain.fh.get(), 0, b"x", O_DSYNC, abi::FUSE_WRITE_CACHE);
        guest.call(abi::FUSE_WRITE, node, &from_cache).await.ok();
        assert_eq!(syncs(), 1);
        let open = abi::OpenIn { flags: (1 | O_DSYNC).into(), ..Default::default() };
        let synchronous: abi::OpenOut = guest.call(abi::FUSE_OPEN, node, open.as_bytes()).await.parse();
        let body = write_body(synchronous.fh.get(), 0, b"x", O_DSYNC, 0);
        guest.call(abi::FUSE_WRITE, node, &body).await.ok();
        assert_eq!(syncs(), 1);
    });
}

#[test]
fn requests_and_replies_may_be_cut_anywhere() {
    with_guest(|mut guest, fake| async move {
        guest.init().await;
        fake.add_file("file", b"");
        let request = guest.queues[REQUESTS].request(abi::FUSE_LOOKUP, 1, &name("file"));
        let pieces: Vec<&[u8]> = request.chunks(9).collect();
        let ticket = guest.queues[REQUESTS].submit(&pieces, &[1, 15, 100, 29]);
        guest.kick(REQUESTS);
        assert_eq!(guest.wait(&ticket).await.error, 0);
    });
}
