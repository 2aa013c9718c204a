//! Names: making, finding, listing, moving and removing.

use ringfort_filesystem::operation::*;
use ringfort_reference::Errno;
use ringfort_store::model::ModelSettings;

use crate::world::{Guest, make, name, run};

async fn guest() -> Guest {
    Guest::new(&make(ModelSettings { suspend_seed: Some(3), ..Default::default() }).await)
}

#[test]
fn what_is_made_is_found_and_listed() {
    run(async {
        let guest = guest().await;
        guest.mkdir("/a").await.unwrap();
        guest.put("/a/file", b"hello").await.unwrap();
        guest.symlink("/a/link", b"../target").await.unwrap();
        guest.mknod("/a/fifo", FileKind::Fifo, 9).await.unwrap();
        guest.mknod("/a/disk", FileKind::BlockDevice, 0x0803).await.unwrap();
        assert_eq!(guest.list("/a").await.unwrap(), ["disk", "fifo", "file", "link"]);
        assert_eq!(guest.get("/a/file").await.unwrap(), b"hello");
        assert_eq!(guest.readlink("/a/link").await.unwrap(), b"../target");
        assert_eq!(guest.stat("/a/link").await.unwrap().size_bytes, 9);
        assert_eq!(guest.stat("/a/fifo").await.unwrap().device, 0);
        assert_eq!(guest.stat("/a/disk").await.unwrap().device, 0x0803);
        assert_eq!(guest.stat("/a/none").await, Err(Errno::ENOENT));
        assert_eq!(guest.stat("/a/file/below").await, Err(Errno::ENOTDIR));
        assert_eq!(guest.fs.counts().held_inodes, 0);
    });
}

#[test]
fn names_that_are_taken_are_refused() {
    run(async {
        let guest = guest().await;
        guest.mkdir("/d").await.unwrap();
        guest.put("/f", b"").await.unwrap();
        assert_eq!(guest.mkdir("/f").await, Err(Errno::EEXIST));
        assert_eq!(guest.mkdir("/d").await, Err(Errno::EEXIST));
        assert_eq!(guest.symlink("/f", b"t").await, Err(Errno::EEXIST));
        assert_eq!(guest.link("/f", "/d").await, Err(Errno::EEXIST));
        assert_eq!(guest.create_mode("/f", "rwx", 0o644).await, Err(Errno::EEXIST));
        assert_eq!(guest.create_mode("/d", "rw", 0o644).await, Err(Errno::EISDIR));
        guest.symlink("/l", b"f").await.unwrap();
        assert_eq!(guest.create_mode("/l", "rw", 0o644).await, Err(Errno::ELOOP));
        guest.create("/f").await.unwrap();
        assert_eq!(guest.fs.counts().held_inodes, 1);
    });
}

#[test]
fn symbolic_links_hold_4095_bytes() {
    run(async {
        let guest = guest().await;
        let target = vec![b'x'; 4095];
        guest.symlink("/l", &target).await.unwrap();
        assert_eq!(guest.readlink("/l").await.unwrap(), target);
        assert_eq!(guest.symlink("/m", &[b'x'; 4096]).await, Err(Errno::ENAMETOOLONG));
        guest.put("/f", b"").await.unwrap();
        assert_eq!(guest.readlink("/f").await, Err(Errno::EINVAL));
    });
}

#[test]
fn removal_has_the_errors_of_linux() {
    run(async {
        let guest = guest().await;
        guest.mkdir("/d").await.unwrap();
        guest.mkdir("/d/e").await.unwrap();
        guest.put("/f", b"").await.unwrap();
        assert_eq!(guest.unlink("/d").await, Err(Errno::EISDIR));
        assert_eq!(guest.rmdir("/f").await, Err(Errno::ENOTDIR));
        assert_eq!(guest.rmdir("/d").await, Err(Errno::ENOTEMPTY));
        assert_eq!(guest.unlink("/none").await, Err(Errno::ENOENT));
        assert_eq!(guest.rmdir("/none").await, Err(Errno::ENOENT));
        assert_eq!(guest.unlink("/f/x").await, Err(Errno::ENOTDIR));
        guest.rmdir("/d/e").await.unwrap();
        guest.rmdir("/d").await.unwrap();
        guest.unlink("/f").await.unwrap();
        assert!(guest.list("/").await.unwrap().is_empty());
    });
}

#[test]
fn a_removed_directory_takes_no_more_names() {
    run(async {
        let guest = guest().await;
        guest.mkdir("/d").await.unwrap();
        let directory = guest.lookup_held(NodeId::ROOT, &name("d")).await.unwrap().node;
        guest.rmdir("/d").await.unwrap();
        let new = NewNode { parent: directory, name: name("x"), permissions: 0o644, umask: 0 };
        let make = Operation::MakeDirectory { new };
        assert_eq!(guest.execute(make).await.unwrap_err(), Errno::ENOENT);
        assert_eq!(guest.stat_node(directory).await.unwrap().link_count, 0);
        guest.forget(directory).await;
        assert_eq!(guest.stat_node(directory).await, Err(Errno::ESTALE));
    });
}

#[test]
fn link_counts_of_directories_follow_their_subdirectories() {
    run(async {
        let guest = guest().await;
        guest.mkdir("/a").await.unwrap();
        guest.mkdir("/b").await.unwrap();
        guest.mkdir("/a/x").await.unwrap();
        guest.put("/a/f", b"").await.unwrap();
        let links = async |path| guest.stat(path).await.unwrap().link_count;
        assert_eq!((links("/").await, links("/a").await, links("/a/x").await), (4, 3, 2));
        guest.rename("/a/x", "/b/x").await.unwrap();
        assert_eq!((links("/a").await, links("/b").await), (2, 3));
        guest.rename_mode("/a/f", "/b/x", RenameMode::Exchange).await.unwrap();
        assert_eq!((links("/a").await, links("/b").await), (3, 2));
        guest.rmdir("/a/f").await.unwrap();
        assert_eq!((links("/a").await, links("/").await), (2, 4));
    });
}

#[test]
fn rename_replaces_what_it_may() {
    run(async {
        let guest = guest().await;
        for directory in ["/d", "/d/full", "/e", "/f"] {
            guest.mkdir(directory).await.unwrap();
        }
        guest.put("/d/full/x", b"").await.unwrap();
        guest.put("/a", b"aa").await.unwrap();
        guest.put("/b", b"bb").await.unwrap();
        assert_eq!(guest.rename("/none", "/b").await, Err(Errno::ENOENT));
        assert_eq!(guest.rename("/a", "/e").await, Err(Errno::EISDIR));
        assert_eq!(guest.rename("/e", "/a").await, Err(Errno::ENOTDIR));
        assert_eq!(guest.rename("/e", "/d").await, Err(Errno::ENOTEMPTY));
        assert_eq!(guest.rename("/d", "/d/full/y").await, Err(Errno::EINVAL));
        assert_eq!(guest.rename("/d", "/d/y").await, Err(Errno::EINVAL));
        assert_eq!(guest.rename("/d/full/x", "/d").await, Err(Errno::ENOTEMPTY));
        assert_eq!(guest.rename_mode("/a", "/b", RenameMode::NoReplace).await, Err(Errno::EEXIST));
        assert_eq!(guest.rename_mode("/a", "/none", RenameMode::Exchange).await, Err(Errno::ENOENT));
        assert_eq!(guest.rename_mode("/d/full", "/d", RenameMode::Exchange).await, Err(Errno::EINVAL));
        guest.rename("/a", "/b").await.unwrap();
        assert_eq!(guest.get("/b").await.unwrap(), b"aa");
        guest.rename("/d", "/e").await.unwrap();
        guest.rename("/e", "/f/moved").await.unwrap();
        assert_eq!(guest.list("/f/moved/full").await.unwrap(), ["x"]);
        assert_eq!(guest.list("/").await.unwrap(), ["b", "f"]);
        guest.rename("/b", "/b").await.unwrap();
        guest.link("/b", "/c").await.unwrap();
        guest.rename("/b", "/c").await.unwrap();
        assert_eq!(guest.list("/").await.unwrap(), ["b", "c", "f"]);
        assert_eq!(guest.fs.counts().unlinked_inodes, 0);
    });
}

#[test]
fn exchange_swaps_two_names() {
    run(async {
        let guest = guest().await;
        guest.mkdir("/d").await.unwrap();
        guest.put("/d/in", b"").await.unwrap();
        guest.put("/f", b"file").await.unwrap();
        guest.rename_mode("/d", "/f", RenameMode::Exchange).await.unwrap();
        assert_eq!(guest.get("/d").await.unwrap(), b"file");
        assert_eq!(guest.list("/f").await.unwrap(), ["in"]);
    });
}

#[test]
fn the_parent_of_a_moved_directory_moves_along() {
    run(async {
        let guest = guest().await;
        guest.mkdir("/a").await.unwrap();
        guest.mkdir("/b").await.unwrap();
        guest.mkdir("/a/x").await.unwrap();
        guest.rename("/a/x", "/b/y").await.unwrap();
        let node = guest.resolve("/b/y").await.unwrap();
        let b = guest.resolve("/b").await.unwrap();
        let Reply::Node(parent) = guest.execute(Operation::LookupParent { node }).await.unwrap() else {
            panic!()
        };
        assert_eq!(parent.node, b);
        let root = Operation::LookupParent { node: NodeId::ROOT };
        let Reply::Node(parent) = guest.execute(root).await.unwrap() else { panic!() };
        assert_eq!(parent.node, NodeId::ROOT);
    });
}

#[test]
fn a_listing_survives_changes_in_its_middle() {
    run(async {
        let guest = guest().await;
        guest.mkdir("/d").await.unwrap();
        for number in 0..100 {
            guest.put(&format!("/d/{number}"), b"").await.unwrap();
        }
        let node = guest.resolve("/d").await.unwrap();
        let Reply::Opened(handle) = guest.execute(Operation::OpenDirectory { node }).await.unwrap() else {
            panic!()
        };
        let (mut seen, mut cookie) = (Vec::new(), 0);
        for round in 0.. {
            let list = Operation::ReadDirectory { handle, cookie, limit: 5, attributes: round % 2 == 0 };
            let Reply::Entries(entries) = guest.execute(list).await.unwrap() else { panic!() };
            let Some(last) = entries.last() else { break };
            cookie = last.cookie;
            for entry in &entries {
                assert!(entry.cookie < i64::MAX as u64);
                if let Some(attributes) = &entry.attributes {
                    assert_eq!(attributes.node, entry.node);
                    guest.forget(entry.node).await;
                }
                seen.push(String::from_utf8(entry.name.clone()).unwrap());
            }
            // The one just listed goes, and others come.
            if last.name.len() < 3 && last.name != b"." && last.name != b".." {
                let gone = String::from_utf8(last.name.clone()).unwrap();
                guest.unlink(&format!("/d/{gone}")).await.unwrap();
            }
            guest.put(&format!("/d/new{round}"), b"").await.unwrap();
        }
        for number in 0..100 {
            let times = seen.iter().filter(|name| **name == number.to_string()).count();
            assert_eq!(times, 1, "{number} listed {times} times");
        }
        assert_eq!(guest.fs.counts().held_inodes, 1);
    });
}

/// Makes so many entries, looks some up, lists them all. The bound on time tells a scan from none, and nothing else.
fn fill_a_directory(entries: u32) {
    run(async {
        let guest = Guest::new(&make(ModelSettings::default()).await);
        guest.mkdir("/d").await.unwrap();
        let parent = guest.resolve("/d").await.unwrap();
        let started = std::time::Instant::now();
        for number in 0..entries {
            let name = name(&format!("entry-{number}"));
            let new = NewNode { parent, name, permissions: 0o644, umask: 0 };
            let make = Operation::MakeNode { new, kind: FileKind::Regular, device: 0 };
            let Reply::Node(made) = guest.execute(make).await.unwrap() else { panic!() };
            guest.forget(made.node).await;
            if number.is_multiple_of(entries / 10) {
                eprintln!("{number} entries after {:?}", started.elapsed());
            }
        }
        for number in (0..entries).step_by(7) {
            let found = guest.lookup_held(parent, &name(&format!("entry-{number}"))).await.unwrap();
            guest.forget(found.node).await;
        }
        let listed = guest.list_by("/d", 1000).await.unwrap();
        assert_eq!(listed.len(), entries as usize);
        assert_eq!(guest.stat("/d").await.unwrap().size_bytes, u64::from(entries));
        let counts = guest.fs.counts();
        assert_eq!(counts.held_inodes, 0);
        assert!(counts.cached_inodes <= (1 << 17) + 2, "{} inodes in memory", counts.cached_inodes);
        let elapsed = started.elapsed();
        eprintln!("{entries} made, a seventh looked up, all listed after {elapsed:?}");
        assert!(elapsed.as_micros() < u128::from(entries) * 600, "took {elapsed:?}: something scans");
    });
}

#[test]
fn a_hundred_thousand_entries_stay_fast() {
    fill_a_directory(100_000);
}

#[test]
#[ignore = "takes a quarter of a minute"]
fn a_million_entries_stay_fast() {
    fill_a_directory(1_000_000);
}

#[test]
fn links_end_at_the_documented_count() {
    run(async {
        let guest = Guest::new(&make(ModelSettings::default()).await);
        guest.put("/f", b"").await.unwrap();
        let node = guest.resolve("/f").await.unwrap();
        let link = async |number: u32| {
            let name = name(&format!("{number}"));
            let linked = guest.execute(Operation::Link { node, parent: NodeId::ROOT, name }).await;
            linked.map(|_| ())
        };
        for number in 1..65_000 {
            link(number).await.unwrap();
        }
        assert_eq!(link(65_000).await, Err(Errno::EMLINK));
        guest.unlink("/1").await.unwrap();
        link(65_000).await.unwrap();
        assert_eq!(guest.stat("/f").await.unwrap().link_count, 65_000);
    });
}

#[test]
fn a_tree_of_thousands_of_levels_is_made_moved_and_removed() {
    const LEVELS: usize = 5000;
    run(async {
        let guest = Guest::new(&make(ModelSettings::default()).await);
        guest.mkdir("/top").await.unwrap();
        guest.mkdir("/other").await.unwrap();
        let mut nodes = vec![guest.resolve("/top").await.unwrap()];
        for _ in 0..LEVELS {
            let parent = *nodes.last().unwrap();
            let new = NewNode { parent, name: name("d"), permissions: 0o755, umask: 0 };
            let Reply::Node(made) = guest.execute(Operation::MakeDirectory { new }).await.unwrap() else {
                panic!()
            };
            nodes.push(made.node);
        }
        let rename = |name: Name, new_parent, new_name| Operation::Rename {
            parent: NodeId::ROOT,
            name,
            new_parent,
            new_name,
            mode: RenameMode::Replace,
        };
        let deepest = nodes[LEVELS];
        let below_itself = rename(name("top"), deepest, name("x"));
        assert_eq!(guest.done(below_itself).await, Err(Errno::EINVAL));
        guest.done(rename(name("other"), deepest, name("x"))).await.unwrap();
        let report = ringfort_filesystem::check(&**guest.fs.volume()).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.faults);
        let remove = |parent, name| Operation::RemoveDirectory { parent, name };
        guest.done(remove(deepest, name("x"))).await.unwrap();
        for &parent in nodes[..LEVELS].iter().rev() {
            guest.done(remove(parent, name("d"))).await.unwrap();
        }
        guest.rmdir("/top").await.unwrap();
        guest.fs.close_session(guest.session).await;
        let report = ringfort_filesystem::check(&**guest.fs.volume()).await.unwrap();
        assert!(report.is_clean() && report.inodes == 1, "{report:#?}");
    });
}
