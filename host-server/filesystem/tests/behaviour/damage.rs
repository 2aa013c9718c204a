//! What the check finds, and what damaged records do to those who meet them.

use std::rc::Rc;

use ringfort_filesystem::operation::*;
use ringfort_filesystem::{Filesystem, FilesystemOptions, check};
use ringfort_reference::Errno;
use ringfort_store::error::ErrorKind;
use ringfort_store::format::filesystem as format;
use ringfort_store::model::{ModelSettings, ModelVolume};
use ringfort_store::volume::{Cost, Key, TreeId, Volume};

use crate::world::{Guest, ModelEngine, make, open, pattern, run};

async fn change(volume: &ModelVolume, tree: TreeId, key: Key, value: Option<Vec<u8>>) {
    let mut transaction =
        volume.begin(Cost { data_blocks: 0, entries: 1, frees_space: false }).await.unwrap();
    match value {
        Some(value) => transaction.put(tree, key, value),
        None => transaction.delete(tree, key),
    }
    volume.apply(transaction).unwrap();
}

/// A small tree, closed: `/d/e/f` with contents and an attribute, `/d/g` a second name of `f`.
async fn tree() -> Rc<ModelVolume> {
    let guest = Guest::new(&make(ModelSettings::default()).await);
    guest.mkdir("/d").await.unwrap();
    guest.mkdir("/d/e").await.unwrap();
    guest.put("/d/e/f", &pattern(1, 10_000)).await.unwrap();
    guest.link("/d/e/f", "/d/g").await.unwrap();
    let node = guest.resolve("/d/g").await.unwrap();
    let name = b"user.x".to_vec();
    let set = Operation::SetXattr {
        node,
        name,
        value: b"y".to_vec(),
        mode: SetXattrMode::Any,
        clear_set_gid: false,
    };
    guest.done(set).await.unwrap();
    guest.fs.shut_down().await.unwrap();
    Rc::clone(guest.fs.volume())
}

async fn faults(volume: &ModelVolume) -> Vec<String> {
    let report = check(volume).await.unwrap();
    assert_eq!(report.fault_count as usize, report.faults.len());
    report.faults
}

#[test]
fn a_sound_tree_is_counted_and_clean() {
    run(async {
        let volume = tree().await;
        let report = check(&*volume).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.faults);
        let counted = (report.inodes, report.directories, report.entries, report.xattrs, report.data_blocks);
        assert_eq!(counted, (4, 3, 4, 1, 3));
    });
}

#[test]
fn every_missing_or_foreign_record_is_found() {
    run(async {
        for tree_id in [format::INODES, format::ENTRIES, format::XATTRS] {
            let count = tree().await.entries(tree_id).len();
            for index in 0..count {
                let volume = tree().await;
                let (key, _) = volume.entries(tree_id)[index].clone();
                change(&volume, tree_id, key, None).await;
                assert!(!faults(&volume).await.is_empty(), "entry {index} of {tree_id:?} removed");
                let volume = tree().await;
                let (key, mut value) = volume.entries(tree_id)[index].clone();
                value[0] = 9;
                change(&volume, tree_id, key, Some(value)).await;
                assert!(!faults(&volume).await.is_empty(), "entry {index} of {tree_id:?} made foreign");
            }
        }
        let volume = tree().await;
        change(&volume, format::ORPHANS, Key::new(999, 0), Some(format::encode_orphan())).await;
        assert!(!faults(&volume).await.is_empty());
    });
}

#[test]
fn wrong_facts_about_an_inode_are_found() {
    run(async {
        type Change = fn(&mut format::Inode);
        let changes: [Change; 6] = [
            |inode| inode.link_count += 1,
            |inode| inode.xattr_count += 1,
            |inode| inode.allocated_blocks += 1,
            |inode| inode.parent += 1,
            |inode| inode.link_count = 0,
            |inode| {
                inode.kind = match inode.kind {
                    format::kind::DIRECTORY => format::kind::REGULAR,
                    _ => format::kind::DIRECTORY,
                }
            },
        ];
        for (number, apply) in changes.into_iter().enumerate() {
            for index in 0..4 {
                let volume = tree().await;
                let (key, value) = volume.entries(format::INODES)[index].clone();
                let mut inode = format::Inode::decode(&value).unwrap();
                apply(&mut inode);
                change(&volume, format::INODES, key, Some(inode.encode())).await;
                let means_nothing = number == 3 && inode.kind != format::kind::DIRECTORY;
                let found = !faults(&volume).await.is_empty();
                assert_eq!(found, !means_nothing, "change {number} of inode {key:?}");
            }
        }
    });
}

#[test]
fn damage_is_an_input_output_error_for_those_who_meet_it() {
    run(async {
        let volume = tree().await;
        let guest = Guest::new(&open(Rc::clone(&volume)).await);
        let node = guest.resolve("/d/g").await.unwrap();
        // Opened afresh, so that nothing is remembered.
        let guest = Guest::new(&open(Rc::clone(&volume)).await);
        change(&volume, format::INODES, Key::new(node.0, 0), None).await;
        assert_eq!(guest.stat("/d/g").await, Err(Errno::EIO));
        assert_eq!(guest.unlink("/d/e/f").await, Err(Errno::EIO));
        assert_eq!(guest.stat_node(node).await, Err(Errno::ESTALE));
        assert_eq!(guest.list("/d").await.unwrap(), ["e", "g"]);
        guest.mkdir("/d/new").await.unwrap();
    });
}

#[test]
fn a_volume_without_a_filesystem_is_refused_by_name() {
    run(async {
        let volume = Rc::new(ModelVolume::new(ModelSettings::default()));
        assert!(!check(&*volume).await.unwrap().is_clean());
        let engine = Rc::new(ModelEngine::new(1));
        let opened = Filesystem::open(Rc::clone(&volume), engine, FilesystemOptions::default()).await;
        let error = opened.err().unwrap();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert!(error.to_string().contains("filesystem"), "{error}");
        Filesystem::format(&*volume, &ModelEngine::new(2)).await.unwrap();
        let error = Filesystem::format(&*volume, &ModelEngine::new(2)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Exists);
        change(&volume, format::PROPERTIES, Key::new(0, 0), Some(vec![7; 40])).await;
        let engine = Rc::new(ModelEngine::new(1));
        let error = Filesystem::open(volume, engine, FilesystemOptions::default()).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Damaged);
    });
}
