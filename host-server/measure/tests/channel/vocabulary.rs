//! Every operation of the library, carried out by a server.

use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::Duration;

use ringfort_guest::{
    Access, Allocate, Error, FileKind, Lock, LockMode, NodeKind, Open, Place, RenameMode, SetAttributes,
    SetTime, SetXattrMode, Timestamp, Volume, connect,
};

use crate::with_server;

const BLOCK_BYTES: u64 = 4096;

/// Runs with a connected volume.
fn with_volume(test: impl FnOnce(&Volume)) {
    with_server(|path| test(&connect(path).unwrap()));
}

fn errno<T>(result: Result<T, Error>) -> i32 {
    result.map(drop).unwrap_err().errno()
}

fn contents(volume: &Volume, place: Place<'_>) -> Vec<u8> {
    let (file, attributes) = volume.open_with_attributes(place, Open::to_read()).unwrap();
    let mut bytes = vec![0; attributes.size_bytes as usize + 1];
    let read_bytes = file.read_at(&mut bytes, 0).unwrap();
    assert_eq!(read_bytes as u64, attributes.size_bytes);
    bytes.truncate(read_bytes);
    bytes
}

fn put(volume: &Volume, place: Place<'_>, bytes: &[u8]) {
    volume.create(place, 0o644).unwrap().write_at(bytes, 0).unwrap();
}

#[test]
fn files_are_opened_as_they_are_asked_for() {
    with_volume(|volume| {
        let file = volume.open("/f", Open::to_write().create(0o640).exclusive()).unwrap();
        assert_eq!(errno(volume.open("/f", Open::to_write().create(0o640).exclusive())), libc::EEXIST);
        file.write_at(b"0123456789", 0).unwrap();
        file.sync_data().unwrap();
        file.append(b"ab").unwrap();
        let appending = volume.open("/f", Open::to_write().append()).unwrap();
        appending.write_at(b"cd", 3).unwrap();
        assert_eq!(contents(volume, "/f".into()), b"0123456789abcd");

        let blind = volume.open("/f", Open::to_write_only().data_sync()).unwrap();
        blind.write_at(b"X", 0).unwrap();
        assert_eq!(errno(blind.read_at(&mut [0; 4], 0)), libc::EBADF);
        let reading = volume.open("/f", Open::to_read()).unwrap();
        assert_eq!(errno(reading.write_at(b"Y", 0)), libc::EBADF);
        reading.close().unwrap();

        let durable = volume.open("/f", Open::to_write().sync().truncate()).unwrap();
        assert_eq!(durable.stat().unwrap().size_bytes, 0);
        assert_eq!(errno(volume.open("/f", Open::directory())), libc::ENOTDIR);
        volume.symlink("f", "/link").unwrap();
        assert_eq!(errno(volume.open(Place::from("/link").no_follow(), Open::to_read())), libc::ELOOP);
        let error = volume.open("/none/f", Open::to_read()).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "open /none/f: No such file or directory (os error 2)");
    });
}

#[test]
fn paths_begin_at_open_directories() {
    with_volume(|volume| {
        volume.create_directory("/d", 0o755).unwrap();
        let directory = volume.open("/d", Open::directory()).unwrap();
        put(volume, directory.at("f"), b"here");
        // A handle goes where its directory goes.
        volume.rename("/d", "/e").unwrap();
        assert_eq!(contents(volume, "/e/f".into()), b"here");
        volume.create_directory(directory.at("sub"), 0o700).unwrap();
        volume.link(directory.at("f"), directory.at("sub/g")).unwrap();
        volume.rename(directory.at("sub/g"), "/top").unwrap();
        assert_eq!(volume.stat("/top").unwrap(), volume.stat(directory.at("f")).unwrap());
        volume.remove_file(directory.at("f")).unwrap();
        volume.remove_directory(directory.at("sub")).unwrap();
        assert!(volume.list("/e").unwrap().is_empty());
        let error = volume.stat(directory.at("f")).unwrap_err();
        assert!(error.to_string().contains("/d/f"), "shown as it was opened: {error}");
    });
}

#[test]
fn a_file_without_a_name_is_given_one() {
    with_volume(|volume| {
        let file = volume.open("/", Open::temporary(0o600)).unwrap();
        file.write_at(b"whole", 0).unwrap();
        assert_eq!(file.stat().unwrap().link_count, 0);
        assert!(volume.list("/").unwrap().is_empty());
        volume.link(&file, "/named").unwrap();
        assert_eq!(contents(volume, "/named".into()), b"whole");
        let hidden = volume.open("/", Open::temporary(0o600).exclusive()).unwrap();
        assert_eq!(errno(volume.link(&hidden, "/never")), libc::ENOENT);
    });
}

#[test]
fn names_are_made_moved_and_taken_away() {
    with_volume(|volume| {
        volume.create_directory("/d", 0o750).unwrap();
        assert_eq!(volume.stat("/d").unwrap().permissions, 0o750);
        assert_eq!(errno(volume.create_directory("/d", 0o750)), libc::EEXIST);
        for (name, kind, expected) in [
            ("/fifo", NodeKind::Fifo, FileKind::Fifo),
            ("/socket", NodeKind::Socket, FileKind::Socket),
            ("/empty", NodeKind::Regular, FileKind::Regular),
        ] {
            volume.make_node(name, kind, 0o604).unwrap();
            let made = volume.stat(name).unwrap();
            assert_eq!((made.kind, made.mode() & 0o7777), (expected, 0o604));
        }
        volume.symlink("/d/../empty", "/s").unwrap();
        assert_eq!(volume.read_link("/s").unwrap(), b"/d/../empty");
        assert_eq!(volume.stat("/s").unwrap().kind, FileKind::Regular);
        assert_eq!(volume.stat(Place::from("/s").no_follow()).unwrap().kind, FileKind::Symlink);
        // A link to the link, and one to what it leads to.
        volume.link(Place::from("/s").no_follow(), "/t").unwrap();
        assert_eq!(volume.read_link("/t").unwrap(), b"/d/../empty");
        volume.link("/s", "/other").unwrap();
        assert_eq!(volume.stat("/empty").unwrap().link_count, 2);

        put(volume, "/a".into(), b"A");
        put(volume, "/b".into(), b"B");
        assert_eq!(errno(volume.rename_with("/a", "/b", RenameMode::NoReplace)), libc::EEXIST);
        volume.rename_with("/a", "/b", RenameMode::Exchange).unwrap();
        assert_eq!(contents(volume, "/a".into()), b"B");
        volume.rename("/a", "/b").unwrap();
        assert_eq!((contents(volume, "/b".into()), errno(volume.stat("/a"))), (b"B".to_vec(), libc::ENOENT));
        assert_eq!(errno(volume.remove_file("/d")), libc::EISDIR);
        assert_eq!(errno(volume.remove_directory("/b")), libc::ENOTDIR);
        volume.remove_directory("/d").unwrap();
        // Any bytes make a name.
        let bytes: &[u8] = b"/\xff\xfe";
        put(volume, bytes.into(), b"");
        assert!(volume.list("/").unwrap().iter().any(|entry| entry.name == b"\xff\xfe"));
        let name = std::ffi::OsStr::from_bytes(bytes);
        volume.remove_file(std::path::Path::new(name)).unwrap();
    });
}

#[test]
fn directories_are_listed_whole_however_long() {
    with_volume(|volume| {
        volume.create_directory("/d", 0o755).unwrap();
        let directory = volume.open("/d", Open::directory()).unwrap();
        let expected: Vec<String> = (0..1500).map(|number| format!("{number:0>100}")).collect();
        for name in &expected {
            volume.make_node(directory.at(name), NodeKind::Regular, 0o600).unwrap();
        }
        for with_attributes in [false, true] {
            let mut names: Vec<_> = volume
                .read_directory("/d", with_attributes)
                .unwrap()
                .map(|entry| {
                    let entry = entry.unwrap();
                    let attributes =
                        entry.attributes.map(|found| (found.node, found.kind, found.permissions));
                    let wanted = with_attributes.then_some((entry.node, FileKind::Regular, 0o600));
                    assert_eq!(attributes, wanted);
                    String::from_utf8(entry.name).unwrap()
                })
                .collect();
            names.sort();
            assert_eq!(names, expected);
        }
        assert_eq!(errno(volume.list("/d/none")), libc::ENOENT);
    });
}

#[test]
fn attributes_change_as_they_are_told() {
    with_volume(|volume| {
        put(volume, "/f".into(), b"0123456789");
        let (accessed, modified) =
            (Timestamp { seconds: 5, nanoseconds: 6 }, Timestamp { seconds: -7, nanoseconds: 8 });
        let before = volume.stat("/f").unwrap();
        let change = SetAttributes::new()
            .permissions(0o4711)
            .uid(before.uid)
            .gid(before.gid)
            .accessed(SetTime::At(accessed))
            .modified(SetTime::At(modified));
        let after = volume.set_attributes("/f", &change).unwrap();
        assert_eq!((after.permissions, after.accessed, after.modified), (0o4711, accessed, modified));
        assert_eq!(after, volume.stat("/f").unwrap());
        let now = SetAttributes::new().accessed(SetTime::Now).modified(SetTime::Now);
        let after = volume.set_attributes("/f", &now).unwrap();
        assert!(after.modified >= before.modified && after.accessed >= before.accessed);
        let file = volume.open("/f", Open::to_write()).unwrap();
        file.set_size(4).unwrap();
        file.set_size(6).unwrap();
        assert_eq!(contents(volume, "/f".into()), b"0123\0\0");
        volume.symlink("f", "/link").unwrap();
        let link = Place::from("/link").no_follow();
        let at = Timestamp { seconds: 77, nanoseconds: 0 };
        volume.set_attributes(link, &SetAttributes::new().modified(SetTime::At(at))).unwrap();
        assert_eq!(volume.stat(link).unwrap().modified, at);
        assert_ne!(volume.stat("/link").unwrap().modified, at);
        volume.access("/f", Access::EXISTS).unwrap();
        volume.access("/f", Access::READ.and(Access::WRITE)).unwrap();
        volume.set_attributes("/f", &SetAttributes::new().permissions(0o600)).unwrap();
        assert_eq!(errno(volume.access("/f", Access::EXECUTE)), libc::EACCES, "not even for root");
        assert_eq!(errno(volume.access("/none", Access::EXISTS)), libc::ENOENT);
    });
}

#[test]
fn extended_attributes_are_kept() {
    with_volume(|volume| {
        put(volume, "/f".into(), b"");
        assert!(volume.list_xattrs("/f").unwrap().is_empty());
        let long = vec![7; 3000];
        volume.set_xattr("/f", "user.a", b"value", SetXattrMode::Create).unwrap();
        volume.set_xattr("/f", "user.long", &long, SetXattrMode::Any).unwrap();
        volume.set_xattr("/f", "user.empty", b"", SetXattrMode::Any).unwrap();
        assert_eq!(errno(volume.set_xattr("/f", "user.a", b"", SetXattrMode::Create)), libc::EEXIST);
        assert_eq!(errno(volume.set_xattr("/f", "user.b", b"", SetXattrMode::Replace)), libc::ENODATA);
        let mut names = volume.list_xattrs("/f").unwrap();
        names.sort();
        assert_eq!(names, [&b"user.a"[..], b"user.empty", b"user.long"]);
        assert_eq!(volume.xattr("/f", "user.a").unwrap(), b"value");
        assert_eq!(volume.xattr("/f", "user.empty").unwrap(), b"");
        assert!(volume.xattr("/f", "user.long").unwrap() == long);
        let file = volume.open("/f", Open::to_write()).unwrap();
        volume.remove_xattr(&file, "user.a").unwrap();
        assert_eq!(errno(volume.xattr(&file, "user.a")), libc::ENODATA);
    });
}

#[test]
fn ranges_are_allocated_found_and_copied() {
    with_volume(|volume| {
        let file = volume.create("/f", 0o644).unwrap();
        let block = |number: u8| vec![number; BLOCK_BYTES as usize];
        let blocks = |numbers: &[u8]| numbers.iter().flat_map(|number| block(*number)).collect::<Vec<u8>>();
        file.write_at(&blocks(&[1, 2, 3, 4]), 0).unwrap();
        file.allocate(Allocate::PunchHole, BLOCK_BYTES..2 * BLOCK_BYTES).unwrap();
        assert!(contents(volume, "/f".into()) == blocks(&[1, 0, 3, 4]));
        assert_eq!(file.seek_hole(0).unwrap(), Some(BLOCK_BYTES));
        assert_eq!(file.seek_data(BLOCK_BYTES).unwrap(), Some(2 * BLOCK_BYTES));
        assert_eq!(file.seek_hole(2 * BLOCK_BYTES).unwrap(), Some(4 * BLOCK_BYTES));
        assert_eq!(file.seek_data(4 * BLOCK_BYTES).unwrap(), None);
        file.allocate(Allocate::Collapse, BLOCK_BYTES..2 * BLOCK_BYTES).unwrap();
        file.allocate(Allocate::Insert, 0..BLOCK_BYTES).unwrap();
        assert!(contents(volume, "/f".into()) == blocks(&[0, 1, 3, 4]));
        file.allocate(Allocate::ZeroKeepSize, 3 * BLOCK_BYTES..5 * BLOCK_BYTES).unwrap();
        file.allocate(Allocate::ReserveKeepSize, 0..9 * BLOCK_BYTES).unwrap();
        assert!(contents(volume, "/f".into()) == blocks(&[0, 1, 3, 0]));
        file.allocate(Allocate::Zero, 4 * BLOCK_BYTES..5 * BLOCK_BYTES).unwrap();
        file.allocate(Allocate::Reserve, 5 * BLOCK_BYTES..6 * BLOCK_BYTES).unwrap();
        assert_eq!(file.stat().unwrap().size_bytes, 6 * BLOCK_BYTES);
        assert_eq!(errno(file.allocate(Allocate::Reserve, 5..5)), libc::EINVAL);

        let copy = volume.create("/copy", 0o644).unwrap();
        let copied = file.copy_range(BLOCK_BYTES..3 * BLOCK_BYTES, &copy, 10).unwrap();
        assert_eq!(copied, 2 * BLOCK_BYTES);
        assert!(contents(volume, "/copy".into()) == [vec![0; 10], blocks(&[1, 3])].concat());
        assert_eq!(file.copy_range(6 * BLOCK_BYTES..7 * BLOCK_BYTES, &copy, 0).unwrap(), 0, "nothing there");
    });
}

#[test]
fn locks_keep_others_out() {
    with_volume(|volume| {
        let first = volume.create("/f", 0o644).unwrap();
        let second = volume.open("/f", Open::to_write()).unwrap();
        first.lock(&Lock::shared()).unwrap();
        assert!(second.try_lock(&Lock::shared()).unwrap());
        assert!(!second.try_lock(&Lock::exclusive()).unwrap());
        first.unlock().unwrap();
        assert!(second.try_lock(&Lock::exclusive()).unwrap());
        // What is closed holds nothing.
        second.close().unwrap();
        first.lock(&Lock::exclusive()).unwrap();

        let second = volume.open("/f", Open::to_write()).unwrap();
        first.lock(&Lock::exclusive().range(10..20)).unwrap();
        assert!(
            second.try_lock(&Lock::exclusive().range(20..)).unwrap(),
            "locks on ranges and files are apart"
        );
        assert!(!second.try_lock(&Lock::shared().range(..=10)).unwrap());
        let held = second.lock_in_the_way(&Lock::shared().range(..)).unwrap().unwrap();
        assert_eq!((held.mode, held.start, held.end), (LockMode::Exclusive, 10, 19));
        assert_eq!(held.pid, std::process::id());
        assert_eq!(second.lock_in_the_way(&Lock::shared().range(..10)).unwrap(), None);
        assert_eq!(errno(second.try_lock(&Lock::shared().range(5..5))), libc::EINVAL);
        // Owners are the caller's where it names them.
        let third = volume.open("/f", Open::to_write()).unwrap();
        assert!(second.try_lock(&Lock::exclusive().range(30..40).owner(1)).is_ok_and(|taken| !taken));
        second.try_lock(&Lock::none().range(20..)).unwrap();
        assert!(second.try_lock(&Lock::exclusive().range(30..40).owner(1)).unwrap());
        assert!(third.try_lock(&Lock::exclusive().range(30..40).owner(1)).unwrap());
        assert!(!third.try_lock(&Lock::exclusive().range(30..40).owner(2)).unwrap());
    });
}

#[test]
fn who_waits_for_a_lock_gets_it() {
    with_volume(|volume| {
        let holder = volume.create("/f", 0o644).unwrap();
        holder.lock(&Lock::exclusive()).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let file = volume.open("/f", Open::to_write()).unwrap();
                file.lock(&Lock::exclusive()).unwrap();
                file.stat().unwrap().size_bytes
            });
            thread::sleep(Duration::from_millis(50));
            assert!(!waiting.is_finished());
            holder.write_at(b"before", 0).unwrap();
            holder.unlock().unwrap();
            assert_eq!(waiting.join().unwrap(), 6);
        });
    });
}

#[test]
fn a_volume_says_how_full_it_is() {
    with_volume(|volume| {
        let before = volume.statistics().unwrap();
        assert!(
            before.block_bytes > 0 && before.total_blocks > 0 && before.name_bytes_max == 255,
            "{before:?}"
        );
        assert!(before.available_blocks <= before.free_blocks && before.free_blocks <= before.total_blocks);
        let file = volume.create("/f", 0o644).unwrap();
        file.write_at(&vec![1; 1 << 20], 0).unwrap();
        volume.sync().unwrap();
        assert!(volume.statistics().unwrap().free_blocks < before.free_blocks);
        assert_eq!(volume.nop(77).unwrap(), 77);
    });
}
