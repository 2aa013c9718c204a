//! Snapshots and clones, as guests and whoever runs the volume see them.

use std::rc::Rc;

use ringfort_engine::engine::Engine;
use ringfort_engine::sim::{CrashMode, SimWorld};
use ringfort_filesystem::operation::*;
use ringfort_reference::{Errno, Random, Reference};
use ringfort_store::address::ViewId;
use ringfort_store::error::ErrorKind;
use ringfort_store::model::ModelSettings;
use ringfort_store::store::Store;
use ringfort_store::volume::Volume;

use crate::model::{compare, step};
use crate::real_store;
use crate::world::{self, Guest, name, pattern};

const VOLUME: ViewId = ViewId::VOLUME;

async fn model() -> Guest {
    Guest::new(&world::make(ModelSettings { suspend_seed: Some(9), ..ModelSettings::default() }).await)
}

#[test]
fn a_snapshot_is_a_directory_that_stays_as_it_was() {
    world::run(async {
        let guest = model().await;
        guest.mkdir("/d").await.unwrap();
        guest.put("/d/f", b"before").await.unwrap();
        guest.link("/d/f", "/d/g").await.unwrap();
        guest.fs.take_snapshot(VOLUME, b"one", 0).await.unwrap();
        guest.put("/d/f", b"after it").await.unwrap();
        guest.unlink("/d/g").await.unwrap();
        guest.put("/new", b"").await.unwrap();
        let inside = "/.ringfort/snapshots/one";
        assert_eq!(guest.list("/.ringfort/snapshots").await.unwrap(), ["one"]);
        assert_eq!(guest.list(inside).await.unwrap(), ["d"]);
        assert_eq!(guest.get(&format!("{inside}/d/f")).await.unwrap(), b"before");
        assert_eq!(guest.get(&format!("{inside}/d/g")).await.unwrap(), b"before");
        assert_eq!(guest.stat(&format!("{inside}/d/f")).await.unwrap().link_count, 2);
        assert_eq!(guest.get("/d/f").await.unwrap(), b"after it");
        let (then, now) =
            (guest.stat(&format!("{inside}/d/f")).await.unwrap(), guest.stat("/d/f").await.unwrap());
        assert_ne!(then.node, now.node, "two files, two numbers");
        // Who lists the root sees files, as without snapshots.
        assert_eq!(guest.list("/").await.unwrap(), ["d", "new"]);
    });
}

#[test]
fn nothing_in_a_snapshot_can_be_changed() {
    world::run(async {
        let guest = model().await;
        guest.mkdir("/d").await.unwrap();
        guest.put("/d/f", b"contents").await.unwrap();
        guest.set_xattr("/d/f", b"user.a", b"1", SetXattrMode::Any).await.unwrap();
        guest.fs.take_snapshot(VOLUME, b"one", 0).await.unwrap();
        let (d, f) = ("/.ringfort/snapshots/one/d", "/.ringfort/snapshots/one/d/f");
        for place in ["/.ringfort", "/.ringfort/snapshots", "/.ringfort/snapshots/one", d] {
            assert_eq!(guest.mkdir(&format!("{place}/x")).await.err(), Some(Errno::EROFS), "{place}");
            assert_eq!(guest.create(&format!("{place}/x")).await.err(), Some(Errno::EROFS), "{place}");
            assert_eq!(guest.symlink(&format!("{place}/x"), b"y").await.err(), Some(Errno::EROFS), "{place}");
        }
        assert_eq!(guest.unlink(f).await.err(), Some(Errno::EROFS));
        assert_eq!(guest.rmdir(d).await.err(), Some(Errno::EROFS));
        assert_eq!(guest.rmdir("/.ringfort/snapshots/one").await.err(), Some(Errno::EROFS));
        assert_eq!(guest.rename(f, &format!("{d}/g")).await.err(), Some(Errno::EROFS));
        assert_eq!(guest.rename(f, "/f").await.err(), Some(Errno::EXDEV));
        assert_eq!(guest.rename("/d/f", &format!("{d}/g")).await.err(), Some(Errno::EXDEV));
        assert_eq!(guest.link("/d/f", &format!("{d}/g")).await.err(), Some(Errno::EROFS));
        assert_eq!(guest.link(f, "/g").await.err(), Some(Errno::EXDEV));
        assert_eq!(guest.truncate(f, 1).await.err(), Some(Errno::EROFS));
        assert_eq!(guest.chmod(f, 0o600).await.err(), Some(Errno::EROFS));
        assert_eq!(guest.open(f, "w").await.err(), Some(Errno::EROFS));
        assert_eq!(guest.set_xattr(f, b"user.a", b"2", SetXattrMode::Any).await.err(), Some(Errno::EROFS));
        assert_eq!(guest.remove_xattr(f, b"user.a").await.err(), Some(Errno::EROFS));
        assert_eq!(guest.mkdir("/.ringfort").await.err(), Some(Errno::EEXIST));
        assert_eq!(guest.get(f).await.unwrap(), b"contents");
        assert_eq!(guest.xattr(f, b"user.a").await.unwrap(), b"1");
        assert_eq!(guest.stat("/.ringfort/other").await.err(), Some(Errno::ENOENT));
        assert_eq!(guest.stat("/.ringfort/snapshots/two").await.err(), Some(Errno::ENOENT));
        assert_eq!(guest.stat("/.ringfort/snapshots/one/.ringfort").await.err(), Some(Errno::ENOENT));
    });
}

#[test]
fn what_cannot_be_done_to_snapshots_is_said_and_changes_nothing() {
    world::run(async {
        let guest = model().await;
        let fs = &guest.fs;
        guest.put("/f", b"contents").await.unwrap();
        fs.take_snapshot(VOLUME, b"one", 0).await.unwrap();
        let long = [b'x'; 256];
        for bad in [&b""[..], b"a/b", b".", b"..", b"a\0b", &long] {
            let refused = fs.take_snapshot(VOLUME, bad, 0).await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Invalid, "{refused}");
        }
        let refused =
            |result: Result<_, ringfort_store::error::StoreError>| result.map(|_: ()| ()).unwrap_err().kind;
        assert_eq!(fs.take_snapshot(VOLUME, b"one", 0).await.unwrap_err().kind, ErrorKind::Exists);
        fs.take_snapshot(VOLUME, &[b'x'; 255], 0).await.unwrap();
        assert_eq!(refused(fs.remove_snapshot(VOLUME, b"two").await), ErrorKind::NotFound);

        fs.make_clone(VOLUME, b"one", b"copy").await.unwrap();
        assert_eq!(fs.make_clone(VOLUME, b"one", b"copy").await.unwrap_err().kind, ErrorKind::Exists);
        assert_eq!(fs.make_clone(VOLUME, b"two", b"other").await.unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(fs.make_clone(VOLUME, b"one", b"").await.unwrap_err().kind, ErrorKind::Invalid);
        let busy = fs.remove_snapshot(VOLUME, b"one").await.unwrap_err();
        assert!(busy.kind == ErrorKind::Busy && busy.to_string().contains("copy"), "{busy}");
        fs.remove_clone(b"copy").await.unwrap();
        assert_eq!(refused(fs.remove_clone(b"copy").await), ErrorKind::NotFound);

        let open = guest.open("/.ringfort/snapshots/one/f", "r").await.unwrap();
        assert_eq!(refused(fs.remove_snapshot(VOLUME, b"one").await), ErrorKind::Busy);
        assert_eq!(guest.read_at(open, 0, 100).await.unwrap(), b"contents");
        guest.close(open).await.unwrap();
        let node = guest.resolve("/.ringfort/snapshots/one/f").await.unwrap();
        fs.remove_snapshot(VOLUME, b"one").await.unwrap();
        assert_eq!(guest.stat_node(node).await.err(), Some(Errno::ESTALE));
        assert_eq!(guest.list("/.ringfort/snapshots").await.unwrap().len(), 1);
        assert_eq!(guest.get("/f").await.unwrap(), b"contents");
    });
}

#[test]
fn a_clone_is_a_filesystem_of_its_own() {
    world::run(async {
        let guest = model().await;
        guest.mkdir("/d").await.unwrap();
        guest.put("/d/f", b"shared").await.unwrap();
        // Open, and without a name, when the snapshot is taken.
        let open = guest.create("/gone").await.unwrap();
        guest.write_at(open, 0, &pattern(1, 5000)).await.unwrap();
        guest.unlink("/gone").await.unwrap();
        guest.fs.take_snapshot(VOLUME, b"one", 0).await.unwrap();
        let view = guest.fs.make_clone(VOLUME, b"one", b"copy").await.unwrap();
        let copy = Guest::in_view(&guest.fs, view);
        assert_eq!(copy.list("/").await.unwrap(), ["d"]);
        copy.put("/d/f", b"the copy's own").await.unwrap();
        copy.mkdir("/d/e").await.unwrap();
        copy.rename("/d/f", "/d/e/f").await.unwrap();
        guest.put("/d/h", b"the volume's own").await.unwrap();
        assert_eq!(copy.get("/d/e/f").await.unwrap(), b"the copy's own");
        assert_eq!(guest.get("/d/f").await.unwrap(), b"shared");
        assert_eq!(copy.list("/d").await.unwrap(), ["e"]);
        assert_eq!(guest.list("/d").await.unwrap(), ["f", "h"]);
        let parent = copy.node_reply(Operation::LookupParent { node: copy.resolve("/d/e").await.unwrap() });
        assert_eq!(parent.await.unwrap().node, copy.resolve("/d").await.unwrap());
        // Its snapshots are its own.
        guest.fs.take_snapshot(view, b"two", 0).await.unwrap();
        copy.unlink("/d/e/f").await.unwrap();
        assert_eq!(copy.list("/.ringfort/snapshots").await.unwrap(), ["two"]);
        assert_eq!(copy.get("/.ringfort/snapshots/two/d/e/f").await.unwrap(), b"the copy's own");
        assert_eq!(guest.list("/.ringfort/snapshots").await.unwrap(), ["one"]);
        let refused = guest.fs.remove_clone(b"copy").await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Busy, "a guest has it as its filesystem");
        copy.fs.close_session(copy.session).await;
        guest.fs.remove_clone(b"copy").await.unwrap();
        assert_eq!(guest.get("/d/f").await.unwrap(), b"shared");
    });
}

/// Random operations in the volume and in a clone, with a snapshot now and then; all of them hold what they should in the end, and after a restart.
#[test]
fn random_operations_leave_every_snapshot_as_it_was() {
    for seed in 1..=3 {
        let world = SimWorld::new(seed);
        real_store::create(&world);
        let engine = world.restart(CrashMode::ProcessDeath, seed);
        let kept = world
            .run(async move {
                let guest = real_store::open(&engine).await;
                let mut random = Random::new(seed);
                let mut reference = Reference::new();
                let mut kept: Vec<(ViewId, Reference)> = Vec::new();
                let mut copy: Option<(Guest<Store>, Reference)> = None;
                for round in 0..6 {
                    for _ in 0..60 {
                        step(&mut random, &guest, &mut reference, "").await;
                        if let Some((copy, reference)) = &mut copy {
                            step(&mut random, copy, reference, "").await;
                        }
                    }
                    let name = format!("round-{round}");
                    let view = guest.fs.take_snapshot(VOLUME, name.as_bytes(), 0).await.unwrap();
                    kept.push((view, reference.clone()));
                    if round == 2 {
                        let view = guest.fs.make_clone(VOLUME, name.as_bytes(), b"copy").await.unwrap();
                        copy = Some((Guest::in_view(&guest.fs, view), reference.clone()));
                    }
                    if round == 4 {
                        guest.fs.remove_snapshot(VOLUME, b"round-1").await.unwrap();
                        kept.remove(1);
                    }
                }
                let (copy, of_copy) = copy.unwrap();
                compare(&guest, &reference).await;
                compare(&copy, &of_copy).await;
                for (view, reference) in &kept {
                    compare(&Guest::in_view(&guest.fs, *view), reference).await;
                }
                real_store::assert_sound(&guest).await;
                let of_volume = (VOLUME, reference);
                let of_copy = (guest.fs.clones()[0].view, of_copy);
                kept.extend([of_volume, of_copy]);
                real_store::close(guest).await;
                kept
            })
            .done();
        let engine: Rc<dyn Engine> = world.restart(CrashMode::PowerLoss, seed);
        world
            .run(async move {
                let guest = real_store::open(&engine).await;
                for (view, reference) in &kept {
                    compare(&Guest::in_view(&guest.fs, *view), reference).await;
                }
                real_store::assert_sound(&guest).await;
                real_store::close(guest).await;
            })
            .done();
    }
}

#[test]
fn a_name_in_the_root_may_be_anything_but_the_hidden_one() {
    world::run(async {
        let guest = model().await;
        guest.mkdir("/d").await.unwrap();
        guest.put("/d/.ringfort", b"below the root it is a name as any").await.unwrap();
        assert_eq!(guest.stat("/d/.ringfort").await.unwrap().kind, FileKind::Regular);
        let hidden = guest.lookup_held(NodeId::ROOT, &name(".ringfort")).await.unwrap();
        assert_eq!((hidden.kind, hidden.permissions), (FileKind::Directory, 0o555));
        guest.forget(hidden.node).await;
        assert!(guest.fs.volume().views().is_empty());
    });
}
