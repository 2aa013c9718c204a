//! Permissions, owners, times, set-id bits and extended attributes.

use std::rc::Rc;

use ringfort_filesystem::operation::*;
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_reference::Errno;
use ringfort_store::model::{ModelSettings, ModelVolume};

use crate::world::{Guest, ModelEngine, flags, make, name, payload, run};

async fn guest() -> Guest {
    let guest = Guest::new(&make(ModelSettings { suspend_seed: Some(11), ..Default::default() }).await);
    guest.chmod("/", 0o777).await.unwrap();
    guest
}

#[test]
fn the_root_directory_is_its_makers() {
    run(async {
        let volume = Rc::new(ModelVolume::new(ModelSettings::default()));
        Filesystem::format_for(&*volume, &ModelEngine::new(1), [10, 11]).await.unwrap();
        let (engine, options) = (Rc::new(ModelEngine::new(2)), FilesystemOptions::default());
        let guest = Guest::new(&Filesystem::open(volume, engine, options).await.unwrap());
        let found = guest.stat("/").await.unwrap();
        assert_eq!((found.uid, found.gid), (10, 11));
        guest.user(10, 11).mkdir("/own").await.unwrap();
        assert_eq!(guest.user(20, 20).mkdir("/other").await, Err(Errno::EACCES));
    });
}

#[test]
fn permissions_are_checked_for_those_who_ask_for_it() {
    run(async {
        let guest = guest().await;
        let (owner, stranger) = (guest.user(10, 10), guest.user(20, 20));
        owner.mkdir_mode("/private", 0o700).await.unwrap();
        owner.put("/private/f", b"x").await.unwrap();
        assert_eq!(stranger.get("/private/f").await, Err(Errno::EACCES));
        assert_eq!(stranger.mkdir("/private/d").await, Err(Errno::EACCES));
        assert_eq!(stranger.list("/private").await, Err(Errno::EACCES));
        owner.chmod("/private", 0o755).await.unwrap();
        assert_eq!(stranger.get("/private/f").await.unwrap(), b"x");
        assert_eq!(stranger.open("/private/f", "rw").await, Err(Errno::EACCES));
        assert_eq!(stranger.unlink("/private/f").await, Err(Errno::EACCES));
        assert_eq!(stranger.mkdir("/private/d").await, Err(Errno::EACCES));
        assert_eq!(stranger.rename("/private/f", "/f").await, Err(Errno::EACCES));
        assert_eq!(stranger.truncate("/private/f", 0).await, Err(Errno::EACCES));
        assert_eq!(stranger.chmod("/private/f", 0o777).await, Err(Errno::EPERM));
        assert_eq!(stranger.mknod("/disk", FileKind::BlockDevice, 1).await, Err(Errno::EPERM));
        let node = owner.resolve("/private/f").await.unwrap();
        let access = |mask| Operation::Access { node, mask };
        assert_eq!(stranger.done(access(4)).await, Ok(()));
        assert_eq!(stranger.done(access(2)).await, Err(Errno::EACCES));
        // A kernel that has checked already is believed.
        let mut trusted = stranger.clone();
        trusted.credentials.check_permissions = false;
        trusted.unlink("/private/f").await.unwrap();
    });
}

#[test]
fn sticky_directories_keep_names_for_their_owners() {
    run(async {
        let guest = guest().await;
        guest.mkdir_mode("/tmp", 0o1777).await.unwrap();
        let (owner, stranger) = (guest.user(10, 10), guest.user(20, 20));
        owner.put("/tmp/a", b"").await.unwrap();
        owner.mkdir("/tmp/d").await.unwrap();
        stranger.put("/tmp/b", b"").await.unwrap();
        assert_eq!(stranger.unlink("/tmp/a").await, Err(Errno::EPERM));
        assert_eq!(stranger.rmdir("/tmp/d").await, Err(Errno::EPERM));
        assert_eq!(stranger.rename("/tmp/a", "/tmp/c").await, Err(Errno::EPERM));
        assert_eq!(stranger.rename("/tmp/b", "/tmp/a").await, Err(Errno::EPERM));
        let exchange = RenameMode::Exchange;
        assert_eq!(stranger.rename_mode("/tmp/b", "/tmp/a", exchange).await, Err(Errno::EPERM));
        owner.unlink("/tmp/a").await.unwrap();
        stranger.rename("/tmp/b", "/tmp/a").await.unwrap();
    });
}

#[test]
fn owners_change_what_owners_may() {
    run(async {
        let guest = guest().await;
        let mut owner = guest.user(10, 10);
        owner.credentials.groups = vec![30];
        owner.put("/f", b"").await.unwrap();
        assert_eq!(owner.chown("/f", Some(20), None).await, Err(Errno::EPERM));
        assert_eq!(owner.chown("/f", None, Some(40)).await, Err(Errno::EPERM));
        assert_eq!(owner.chown("/f", Some(10), Some(30)).await.unwrap().gid, 30);
        assert_eq!(guest.user(20, 30).chown("/f", None, Some(30)).await, Err(Errno::EPERM));
        assert_eq!(guest.user(0, 0).chown("/f", Some(20), Some(40)).await.unwrap().uid, 20);
    });
}

#[test]
fn set_id_bits_go_with_a_change_of_owner_or_contents() {
    run(async {
        let guest = guest().await;
        let owner = guest.user(10, 10);
        owner.put("/f", b"x").await.unwrap();
        let reset = async || {
            owner.chmod("/f", 0o6755).await.unwrap();
        };
        let bits = async || guest.stat("/f").await.unwrap().permissions;
        reset().await;
        owner.put("/f", b"y").await.unwrap();
        assert_eq!(bits().await, 0o755);
        reset().await;
        owner.truncate("/f", 0).await.unwrap();
        assert_eq!(bits().await, 0o755);
        reset().await;
        guest.chown("/f", Some(10), None).await.unwrap();
        assert_eq!(bits().await, 0o755);
        reset().await;
        // A kernel that clears them itself says so; without a word they stay.
        let handle = guest.open("/f", "w").await.unwrap();
        guest.write_at(handle, 0, b"z").await.unwrap();
        assert_eq!(bits().await, 0o6755);
        let write = |clear_set_id| Operation::Write {
            handle,
            offset_bytes: 0,
            data: payload(0, b"z"),
            append: false,
            clear_set_id,
            write_back: false,
        };
        guest.execute(write(true)).await.unwrap();
        assert_eq!(bits().await, 0o755);
        // Not in the file's group: no set-gid.
        guest.chown("/f", None, Some(99)).await.unwrap();
        assert_eq!(owner.chmod("/f", 0o6755).await.unwrap().permissions, 0o4755);
    });
}

#[test]
fn set_gid_directories_pass_their_group_on() {
    run(async {
        let guest = guest().await;
        guest.mkdir("/d").await.unwrap();
        guest.chown("/d", Some(10), Some(77)).await.unwrap();
        guest.chmod("/d", 0o2777).await.unwrap();
        let user = guest.user(20, 20);
        user.put("/d/f", b"").await.unwrap();
        let below = user.mkdir("/d/e").await.unwrap();
        assert_eq!((below.gid, below.permissions), (77, 0o2755));
        assert_eq!(user.stat("/d/f").await.unwrap().gid, 77);
    });
}

#[test]
fn times_change_as_linux_changes_them() {
    run(async {
        let guest = guest().await;
        guest.mkdir("/d").await.unwrap();
        let at = Timestamp { seconds: -5, nanoseconds: 999_999_999 };
        let set = SetAttributes {
            accessed: Some(SetTime::At(at)),
            modified: Some(SetTime::At(at)),
            ..Default::default()
        };
        guest.put("/d/f", b"contents").await.unwrap();
        let before = guest.stat("/d/f").await.unwrap();
        let stat = guest.change("/d/f", set.clone()).await.unwrap();
        assert_eq!((stat.accessed, stat.modified), (at, at));
        assert!(stat.changed > before.changed);
        guest.get("/d/f").await.unwrap();
        assert_eq!(guest.stat("/d/f").await.unwrap(), stat, "a read changes nothing");
        let stat = guest.chmod("/d/f", 0o600).await.unwrap();
        assert_eq!(stat.modified, at);
        let handle = guest.open("/d/f", "w").await.unwrap();
        guest.write_at(handle, 0, b"C").await.unwrap();
        let written = guest.stat("/d/f").await.unwrap();
        assert!(written.modified > at && written.changed > stat.changed && written.accessed == at);
        let directory = guest.change("/d", set.clone()).await.unwrap();
        assert_eq!(directory.modified, at);
        guest.link("/d/f", "/d/g").await.unwrap();
        assert!(guest.stat("/d").await.unwrap().modified > at);
        assert!(guest.stat("/d/f").await.unwrap().changed > written.changed);
        guest.change("/d", set).await.unwrap();
        guest.unlink("/d/g").await.unwrap();
        assert!(guest.stat("/d").await.unwrap().modified > at);
        let bad = Timestamp { seconds: 0, nanoseconds: 1_000_000_000 };
        let bad = SetAttributes { modified: Some(SetTime::At(bad)), ..Default::default() };
        assert_eq!(guest.change("/d", bad).await, Err(Errno::EINVAL));
    });
}

#[test]
fn sizes_can_be_set_only_on_files() {
    run(async {
        let guest = guest().await;
        guest.mkdir("/d").await.unwrap();
        guest.symlink("/l", b"x").await.unwrap();
        assert_eq!(guest.truncate("/d", 0).await, Err(Errno::EISDIR));
        assert_eq!(guest.truncate("/l", 0).await, Err(Errno::EINVAL));
    });
}

#[test]
fn extended_attributes_come_and_go() {
    run(async {
        use SetXattrMode::{Any, Create, Replace};
        let guest = guest().await;
        guest.put("/f", b"").await.unwrap();
        assert_eq!(guest.xattr("/f", b"user.a").await, Err(Errno::ENODATA));
        assert_eq!(guest.set_xattr("/f", b"user.a", b"1", Replace).await, Err(Errno::ENODATA));
        guest.set_xattr("/f", b"user.a", b"1", Create).await.unwrap();
        assert_eq!(guest.set_xattr("/f", b"user.a", b"2", Create).await, Err(Errno::EEXIST));
        guest.set_xattr("/f", b"user.a", b"22", Replace).await.unwrap();
        guest.set_xattr("/f", b"trusted.b", b"", Any).await.unwrap();
        assert_eq!(guest.xattr("/f", b"user.a").await.unwrap(), b"22");
        let names = guest.xattrs("/f").await.unwrap();
        let mut names: Vec<_> = names.split_inclusive(|&byte| byte == 0).collect();
        names.sort();
        assert_eq!(names, [&b"trusted.b\0"[..], b"user.a\0"]);
        assert_eq!(guest.user(5, 5).xattrs("/f").await.unwrap(), b"user.a\0");
        let node = guest.resolve("/f").await.unwrap();
        let remove = |name: &[u8]| Operation::RemoveXattr { node, name: name.to_vec() };
        guest.done(remove(b"user.a")).await.unwrap();
        assert_eq!(guest.done(remove(b"user.a")).await, Err(Errno::ENODATA));
        assert!(ringfort_filesystem::check(&**guest.fs.volume()).await.unwrap().is_clean());
        guest.unlink("/f").await.unwrap();
        assert!(guest.fs.volume().entries(ringfort_store::format::filesystem::XATTRS).is_empty());
    });
}

#[test]
fn extended_attributes_have_their_limits() {
    run(async {
        use SetXattrMode::Any;
        let guest = guest().await;
        guest.put("/f", b"").await.unwrap();
        guest.symlink("/l", b"f").await.unwrap();
        let long = [&b"user."[..], &[b'x'; 251]].concat();
        assert_eq!(guest.set_xattr("/f", &long, b"", Any).await, Err(Errno::ERANGE));
        guest.set_xattr("/f", &long[..255], b"", Any).await.unwrap();
        assert_eq!(guest.set_xattr("/f", b"user.", b"", Any).await, Err(Errno::EINVAL));
        assert_eq!(guest.set_xattr("/f", b"system.anything", b"", Any).await, Err(Errno::EOPNOTSUPP));
        assert_eq!(guest.set_xattr("/f", b"nothing", b"", Any).await, Err(Errno::EOPNOTSUPP));
        assert_eq!(guest.set_xattr("/l", b"user.a", b"", Any).await, Err(Errno::EPERM));
        assert_eq!(guest.set_xattr("/f", b"user.big", &[1; 70_000], Any).await, Err(Errno::E2BIG));
        assert_eq!(guest.set_xattr("/f", b"user.big", &[1; 6200], Any).await, Err(Errno::ENOSPC));
        guest.set_xattr("/f", b"user.big", &[1; 6000], Any).await.unwrap();
        assert_eq!(guest.xattr("/f", b"user.big").await.unwrap(), [1; 6000]);
        assert_eq!(guest.user(5, 5).set_xattr("/f", b"trusted.x", b"", Any).await, Err(Errno::EPERM));
        assert_eq!(guest.user(5, 5).set_xattr("/f", b"user.x", b"", Any).await, Err(Errno::EACCES));
        for number in 0..300 {
            let name = format!("user.{number}");
            match guest.set_xattr("/f", name.as_bytes(), b"v", Any).await {
                Ok(()) => assert!(number < 256),
                Err(errno) => assert!(errno == Errno::ENOSPC && number > 200),
            }
        }
    });
}

#[test]
fn capabilities_of_a_program_do_not_outlive_its_contents() {
    run(async {
        let guest = guest().await;
        let capability = b"security.capability";
        let change = SetAttributes { clear_set_id: true, size_bytes: Some(1), ..Default::default() };
        guest.put("/f", b"program").await.unwrap();
        for round in 0..6 {
            guest.set_xattr("/f", capability, b"caps", SetXattrMode::Any).await.unwrap();
            match round {
                0 => drop(guest.change("/f", change.clone()).await.unwrap()),
                1 => drop(guest.chown("/f", Some(3), None).await.unwrap()),
                2 => drop(guest.truncate("/f", 2).await.unwrap()),
                // Root's too.
                3 => guest.user(0, 0).put("/f", b"p").await.unwrap(),
                4 => {
                    let handle = guest.open("/f", "w").await.unwrap();
                    let mode = AllocateMode::PunchHole;
                    let punch = Operation::Allocate { handle, offset_bytes: 0, len_bytes: 1, mode };
                    guest.done(punch).await.unwrap();
                }
                _ => drop(guest.chmod("/f", 0o700).await.unwrap()),
            }
            let left = guest.xattr("/f", capability).await;
            assert_eq!(left.is_ok(), round == 5, "round {round}");
        }
        let node = guest.resolve("/f").await.unwrap();
        let Reply::Opened(handle) = guest.execute(Operation::Open { node, flags: flags("w") }).await.unwrap()
        else {
            panic!()
        };
        let data = payload(0, &[0; 4096]);
        let write = |clear_set_id, write_back| {
            let data = data.clone();
            Operation::Write { handle, offset_bytes: 0, data, append: false, clear_set_id, write_back }
        };
        // Written into the guest's cache before the capabilities were given, it may be.
        guest.execute(write(false, true)).await.unwrap();
        assert!(guest.xattr("/f", capability).await.is_ok());
        guest.execute(write(false, false)).await.unwrap();
        assert_eq!(guest.xattr("/f", capability).await, Err(Errno::ENODATA));
    });
}

#[test]
fn a_session_cannot_open_without_end() {
    run(async {
        use ringfort_filesystem::{Filesystem, FilesystemOptions};
        let guest = guest().await;
        let options = FilesystemOptions { handles_per_session_max: 3, ..Default::default() };
        let engine = std::rc::Rc::new(crate::world::ModelEngine::new(5));
        guest.put("/f", b"").await.unwrap();
        let volume = std::rc::Rc::clone(guest.fs.volume());
        let limited = Guest::new(&Filesystem::open(volume, engine, options).await.unwrap());
        for _ in 0..3 {
            limited.open("/f", "r").await.unwrap();
        }
        assert_eq!(limited.open("/f", "r").await, Err(Errno::ENFILE));
        let new = NewNode { parent: NodeId::ROOT, name: name("g"), permissions: 0o644, umask: 0 };
        let create = Operation::Create { new, flags: flags("rw") };
        assert_eq!(limited.execute(create).await.unwrap_err(), Errno::ENFILE);
        assert_eq!(limited.fs.counts().held_inodes, 1);
    });
}
