//! The device over the real filesystem on a model volume.

use std::rc::Rc;

use ringfort_engine::sim::SimWorld;
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_store::model::{ModelSettings, ModelVolume};
use zerocopy::{FromBytes, IntoBytes};

use super::driver::name;
use super::guest::{Guest, QUEUE_SIZE, REQUESTS};
use crate::virtiofs::abi::{self, linux};
use crate::virtiofs::device::{Event, Options};

fn with_filesystem<F: Future<Output = ()> + 'static>(
    test: impl FnOnce(Guest, Filesystem<ModelVolume>) -> F + 'static,
) {
    let world = SimWorld::new(3);
    let engine = world.engine();
    world
        .run(async move {
            let settings = ModelSettings { suspend_seed: Some(5), ..Default::default() };
            let volume = Rc::new(ModelVolume::new(settings));
            Filesystem::format(&*volume, &*engine).await.unwrap();
            let filesystem =
                Filesystem::open(volume, Rc::clone(&engine), FilesystemOptions::default()).await.unwrap();
            let guest = Guest::new(engine, Rc::new(filesystem.clone()), Options::default());
            test(guest, filesystem).await;
        })
        .done();
}

async fn create(guest: &mut Guest, parent: u64, file: &str) -> (abi::EntryOut, abi::OpenOut) {
    let create = abi::CreateIn { flags: 2.into(), mode: 0o100640.into(), ..Default::default() };
    let body = [create.as_bytes(), &name(file)].concat();
    let created = guest.call(abi::FUSE_CREATE, parent, &body).await.ok();
    let (entry, open) = abi::EntryOut::read_from_prefix(&created).unwrap();
    (entry, abi::OpenOut::read_from_bytes(open).unwrap())
}

async fn make_directory(guest: &mut Guest, parent: u64, directory: &str) -> abi::EntryOut {
    let make = abi::MkdirIn { mode: 0o755.into(), umask: 0.into() };
    guest.call(abi::FUSE_MKDIR, parent, &[make.as_bytes(), &name(directory)].concat()).await.parse()
}

#[test]
fn a_tree_of_files_is_written_listed_read_renamed_and_removed() {
    with_filesystem(|mut guest, filesystem| async move {
        guest.init().await;
        let directory = make_directory(&mut guest, 1, "dir").await;
        let parent = directory.nodeid.get();
        let (file, open) = create(&mut guest, parent, "file").await;
        assert_eq!((file.attr.mode.get(), file.attr.uid.get(), file.attr.gid.get()), (0o100640, 1000, 1000));

        let data: Vec<u8> = (0..200_000_u32).map(|at| (at * 7 + (at >> 8)) as u8).collect();
        for (at, piece) in data.chunks(70_001).enumerate() {
            let write = abi::WriteIn {
                fh: open.fh,
                offset: (at as u64 * 70_001).into(),
                size: (piece.len() as u32).into(),
                ..Default::default()
            };
            let body = [write.as_bytes(), piece].concat();
            let written: abi::WriteOut = guest.call(abi::FUSE_WRITE, file.nodeid.get(), &body).await.parse();
            assert_eq!(written.size.get() as usize, piece.len());
        }
        let sync = abi::FsyncIn { fh: open.fh, ..Default::default() };
        guest.call(abi::FUSE_FSYNC, file.nodeid.get(), sync.as_bytes()).await.ok();
        let read =
            abi::ReadIn { fh: open.fh, offset: 1.into(), size: (1 << 20).into(), ..Default::default() };
        let found = guest.call(abi::FUSE_READ, file.nodeid.get(), read.as_bytes()).await.ok();
        assert!(found == data[1..]);

        let rename = abi::Rename2In { newdir: 1.into(), ..Default::default() };
        let body = [rename.as_bytes(), &name("file"), &name("moved")].concat();
        guest.call(abi::FUSE_RENAME2, parent, &body).await.ok();
        assert_eq!(guest.call(abi::FUSE_LOOKUP, parent, &name("file")).await.error, -2);
        let moved: abi::EntryOut = guest.call(abi::FUSE_LOOKUP, 1, &name("moved")).await.parse();
        assert_eq!(moved.nodeid, file.nodeid);
        assert_eq!(moved.attr.size.get(), data.len() as u64);
        guest.call(abi::FUSE_RMDIR, 1, &name("dir")).await.ok();

        // Unlinked while open: its bytes stay until the session ends.
        guest.call(abi::FUSE_UNLINK, 1, &name("moved")).await.ok();
        let found = guest.call(abi::FUSE_READ, file.nodeid.get(), read.as_bytes()).await.ok();
        assert!(found == data[1..]);
        assert_eq!(filesystem.counts().unlinked_inodes, 2);
        guest.event(Event::Detach).await;
        let counts = filesystem.counts();
        assert_eq!((counts.unlinked_inodes, counts.held_inodes), (0, 0));
    });
}

#[test]
fn listing_with_attributes_and_forgetting_all_of_it_holds_nothing() {
    with_filesystem(|mut guest, filesystem| async move {
        guest.init().await;
        for at in 0..60 {
            let (entry, open) = create(&mut guest, 1, &format!("{at:02}-{}", "x".repeat(3 * at))).await;
            let release = abi::ReleaseIn { fh: open.fh, ..Default::default() };
            guest.call(abi::FUSE_RELEASE, entry.nodeid.get(), release.as_bytes()).await.ok();
            guest.forget(entry.nodeid.get(), 1).await;
        }
        assert_eq!(filesystem.counts().held_inodes, 0);
        let open: abi::OpenOut = guest.call(abi::FUSE_OPENDIR, 1, &[0; 8]).await.parse();
        let mut cookie = 0;
        let mut nodes = Vec::new();
        loop {
            let body =
                abi::ReadIn { fh: open.fh, offset: cookie.into(), size: 4096.into(), ..Default::default() };
            let list = guest.call(abi::FUSE_READDIRPLUS, 1, body.as_bytes()).await.ok();
            let mut rest = list.as_slice();
            while !rest.is_empty() {
                let (entry, after) = abi::EntryOut::read_from_prefix(rest).unwrap();
                let (dirent, _) = abi::Dirent::read_from_prefix(after).unwrap();
                if entry.nodeid.get() != 0 {
                    nodes.push(entry.nodeid.get());
                }
                cookie = dirent.off.get();
                rest = &rest[(152 + dirent.namelen.get() as usize).next_multiple_of(8)..];
            }
            if list.is_empty() {
                break;
            }
        }
        assert_eq!(nodes.len(), 60);
        let release = abi::ReleaseIn { fh: open.fh, ..Default::default() };
        guest.call(abi::FUSE_RELEASEDIR, 1, release.as_bytes()).await.ok();
        assert_eq!(filesystem.counts().held_inodes, 60);
        for node in nodes {
            guest.forget(node, 1).await;
        }
        assert_eq!(filesystem.counts().held_inodes, 0);
    });
}

#[test]
fn attributes_links_and_extended_attributes_reach_the_filesystem() {
    with_filesystem(|mut guest, _| async move {
        guest.init().await;
        let (file, _) = create(&mut guest, 1, "file").await;
        let node = file.nodeid.get();
        let link: abi::EntryOut =
            guest.call(abi::FUSE_SYMLINK, 1, &[name("link"), name("../target")].concat()).await.parse();
        assert_eq!(guest.call(abi::FUSE_READLINK, link.nodeid.get(), &[]).await.ok(), b"../target");
        let body = [abi::LinkIn { oldnodeid: file.nodeid }.as_bytes(), &name("second")].concat();
        let second: abi::EntryOut = guest.call(abi::FUSE_LINK, 1, &body).await.parse();
        assert_eq!((second.nodeid, second.attr.nlink.get()), (file.nodeid, 2));

        let set =
            [abi::SetxattrIn { size: 3.into(), ..Default::default() }.as_bytes(), b"user.a\0xyz"].concat();
        guest.call(abi::FUSE_SETXATTR, node, &set).await.ok();
        let get = |size: u32| [&size.to_le_bytes()[..], &[0; 4], b"user.a\0"].concat();
        assert_eq!(guest.call(abi::FUSE_GETXATTR, node, &get(64)).await.ok(), b"xyz");
        assert_eq!(guest.call(abi::FUSE_GETXATTR, node, &get(0)).await.ok(), [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(guest.call(abi::FUSE_GETXATTR, node, &get(2)).await.error, -34);
        let list = [&64_u32.to_le_bytes()[..], &[0; 4]].concat();
        assert_eq!(guest.call(abi::FUSE_LISTXATTR, node, &list).await.ok(), b"user.a\0");

        let set = abi::SetattrIn {
            valid: (abi::FATTR_SIZE | abi::FATTR_MODE | abi::FATTR_MTIME).into(),
            size: 5000.into(),
            mode: 0o100600.into(),
            mtime: 99.into(),
            ..Default::default()
        };
        let out: abi::AttrOut = guest.call(abi::FUSE_SETATTR, node, set.as_bytes()).await.parse();
        assert_eq!((out.attr.size.get(), out.attr.mode.get(), out.attr.mtime.get()), (5000, 0o100600, 99));
        let statistics: abi::KernelStatfs = guest.call(abi::FUSE_STATFS, 1, &[]).await.parse();
        assert_eq!((statistics.bsize.get(), statistics.namelen.get()), (4096, 255));

        for forged in [0, 4, 12345, u64::MAX] {
            let gone = guest.call(abi::FUSE_GETATTR, forged, &[0; 16]).await.error;
            assert!(gone == -116 || gone == -2, "node {forged}: {gone}");
            let read = abi::ReadIn { fh: forged.into(), size: 1.into(), ..Default::default() };
            assert_eq!(guest.call(abi::FUSE_READ, node, read.as_bytes()).await.error, -9, "handle {forged}");
        }
    });
}

/// A request to take, or give up, a lock of the whole file that `open` opened.
fn flock(open: &abi::OpenOut, kind: u32) -> abi::LkIn {
    abi::LkIn {
        fh: open.fh,
        owner: open.fh,
        lk: abi::FileLock { end: (i64::MAX as u64).into(), r#type: kind.into(), ..Default::default() },
        lk_flags: abi::FUSE_LK_FLOCK.into(),
        ..Default::default()
    }
}

#[test]
fn a_quarter_of_a_queue_waits_for_locks_and_one_more_is_refused() {
    with_filesystem(|mut guest, filesystem| async move {
        guest.init().await;
        let (file, holder) = create(&mut guest, 1, "file").await;
        let node = file.nodeid.get();
        guest.call(abi::FUSE_SETLK, node, flock(&holder, linux::F_WRLCK).as_bytes()).await.ok();
        let open = abi::OpenIn { flags: 2.into(), ..Default::default() };
        let other: abi::OpenOut = guest.call(abi::FUSE_OPEN, node, open.as_bytes()).await.parse();
        let shared = flock(&other, linux::F_RDLCK);
        let share = usize::from(QUEUE_SIZE) / 4;
        guest.queues[REQUESTS].begin_descriptors_anew();
        let park = |guest: &mut Guest| guest.send_with_room(abi::FUSE_SETLKW, node, shared.as_bytes(), &[16]);
        let parked: Vec<_> = (0..share).map(|_| park(&mut guest)).collect();
        guest.queues[REQUESTS].keep_descriptors();
        guest.settle().await;
        assert_eq!(filesystem.counts().lock_waiters, share);
        for _ in 0..2 {
            let refused = park(&mut guest);
            assert_eq!(guest.wait(&refused).await.error, -37);
            assert_eq!(filesystem.counts().lock_waiters, share, "who is refused does not wait");
        }
        assert_eq!(guest.metrics.refused_waits.get(), 2);
        // The rest of the queue is for everything else, and the first place that is free is for the next.
        let unlock = flock(&holder, linux::F_UNLCK);
        let unlock = guest.send_with_room(abi::FUSE_SETLK, node, unlock.as_bytes(), &[16]);
        guest.wait(&unlock).await.ok();
        for ticket in &parked {
            guest.wait(ticket).await.ok();
        }
        guest.queues[REQUESTS].begin_descriptors_anew();
        guest.call(abi::FUSE_SETLK, node, flock(&other, linux::F_UNLCK).as_bytes()).await.ok();
        guest.call(abi::FUSE_SETLK, node, flock(&holder, linux::F_WRLCK).as_bytes()).await.ok();
        let parked = guest.send(abi::FUSE_SETLKW, node, shared.as_bytes());
        guest.settle().await;
        assert_eq!(filesystem.counts().lock_waiters, 1);
        guest.call(abi::FUSE_SETLK, node, flock(&holder, linux::F_UNLCK).as_bytes()).await.ok();
        guest.wait(&parked).await.ok();
    });
}

#[test]
fn a_parked_lock_is_had_in_its_turn_or_ends_with_its_ring() {
    with_filesystem(|mut guest, filesystem| async move {
        guest.init().await;
        let (file, first) = create(&mut guest, 1, "file").await;
        let node = file.nodeid.get();
        let open = abi::OpenIn { flags: 2.into(), ..Default::default() };
        let second: abi::OpenOut = guest.call(abi::FUSE_OPEN, node, open.as_bytes()).await.parse();
        let exclusive = flock(&second, linux::F_WRLCK);
        guest.call(abi::FUSE_SETLK, node, flock(&first, linux::F_RDLCK).as_bytes()).await.ok();
        assert_eq!(guest.call(abi::FUSE_SETLK, node, exclusive.as_bytes()).await.error, -11);
        let parked = guest.send(abi::FUSE_SETLKW, node, exclusive.as_bytes());
        guest.settle().await;
        assert_eq!(filesystem.counts().lock_waiters, 1);
        guest.call(abi::FUSE_SETLK, node, flock(&first, linux::F_UNLCK).as_bytes()).await.ok();
        guest.wait(&parked).await.ok();

        let range = abi::LkIn { lk_flags: 0.into(), ..exclusive };
        guest.call(abi::FUSE_SETLK, node, range.as_bytes()).await.ok();
        let asked = abi::LkIn { owner: 99.into(), ..range };
        let held: abi::LkOut = guest.call(abi::FUSE_GETLK, node, asked.as_bytes()).await.parse();
        assert_eq!((held.lk.r#type.get(), held.lk.end.get()), (linux::F_WRLCK, i64::MAX as u64));
        let flush = abi::FlushIn { fh: first.fh, lock_owner: range.owner, ..Default::default() };
        guest.call(abi::FUSE_FLUSH, node, flush.as_bytes()).await.ok();
        let held: abi::LkOut = guest.call(abi::FUSE_GETLK, node, asked.as_bytes()).await.parse();
        assert_eq!(held.lk.r#type.get(), linux::F_UNLCK);

        guest.send(abi::FUSE_SETLKW, node, flock(&first, linux::F_RDLCK).as_bytes());
        guest.settle().await;
        assert_eq!(filesystem.counts().lock_waiters, 1);
        guest.event(|done| Event::Stop(1, done)).await;
        let counts = filesystem.counts();
        assert_eq!((counts.lock_waiters, counts.advisory_locks), (0, 1));
        guest.event(Event::Detach).await;
        assert_eq!(filesystem.counts().advisory_locks, 0);
        assert_eq!(guest.metrics.malformed_requests.get(), 0);
    });
}
