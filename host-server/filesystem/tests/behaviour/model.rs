//! Random operations, compared with the reference one by one: results, errors, and now and then the whole tree.

use std::collections::BTreeSet;

use ringfort_filesystem::check;
use ringfort_filesystem::operation::*;
use ringfort_reference::{Body, Facts, FileKind as Kind, Random, Reference};
use ringfort_store::model::ModelSettings;
use ringfort_store::volume::Volume;

use crate::world::{Guest, flags, kind_of, make as make_filesystem, pattern, rename_mode_of, run, run_all};
use crate::{model_contents, model_marks};

/// Every operation, by its name in logs.
const VOCABULARY: &[&str] = &[
    "lookup",
    "lookup parent",
    "forget",
    "get attributes",
    "set attributes",
    "access",
    "read link",
    "make symlink",
    "make node",
    "make directory",
    "unlink",
    "remove directory",
    "rename",
    "link",
    "open",
    "create",
    "create temporary",
    "copy range",
    "read",
    "write",
    "flush",
    "get lock",
    "set lock",
    "sync",
    "sync all",
    "release",
    "seek",
    "allocate",
    "open directory",
    "read directory",
    "release directory",
    "sync directory",
    "statfs",
    "set xattr",
    "get xattr",
    "list xattr",
    "remove xattr",
];

pub fn facts(attributes: &Attributes) -> Facts {
    Facts {
        kind: kind_of(attributes.kind),
        permissions: attributes.permissions,
        links: attributes.link_count,
        size_bytes: attributes.size_bytes,
    }
}

/// Does one random thing to both.
pub async fn step<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, base: &str) {
    match random.below(20) {
        0..=9 => name_step(random, guest, reference, base).await,
        10..=15 => model_contents::step(random, guest, reference, base).await,
        16..=18 => model_marks::step(random, guest, reference, base).await,
        _ => look_step(random, guest, reference, base).await,
    }
}

/// Something about names.
async fn name_step<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, base: &str) {
    let path = random.path(base);
    match random.below(14) {
        0..=3 => make(random, guest, reference, &path).await,
        4 => {
            assert_eq!(guest.unlink(&path).await, reference.remove(&path, false), "unlink {path}");
        }
        5 => {
            assert_eq!(guest.rmdir(&path).await, reference.remove(&path, true), "rmdir {path}");
        }
        6..=9 => {
            let to = random.path(base);
            let mode = match random.below(5) {
                0 => RenameMode::NoReplace,
                1 => RenameMode::Exchange,
                _ => RenameMode::Replace,
            };
            let expected = reference.rename(&path, &to, rename_mode_of(mode));
            assert_eq!(guest.rename_mode(&path, &to, mode).await, expected, "{mode:?} {path} to {to}");
        }
        10 => {
            let to = random.path(base);
            let result = guest.link(&path, &to).await.map(|_| ());
            assert_eq!(result, reference.link(&path, &to), "link {path} to {to}");
        }
        11 => {
            let target = pattern(1, 1 + random.below(50) as usize);
            let made = reference.make(&path, Body::Symlink(target.clone()), 0o777);
            let result = guest.symlink(&path, &target).await.map(|_| ());
            assert_eq!(result, made.map(|_| ()), "symlink {path}");
        }
        12 => {
            assert_eq!(guest.list(&path).await, reference.list(&path), "list {path}");
        }
        _ => {
            let result = guest.stat(&path).await.map(|attributes| facts(&attributes));
            assert_eq!(result, reference.facts(&path), "stat {path}");
        }
    }
}

/// A new inode of any kind, with a mode and a umask.
async fn make<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, path: &str) {
    let (permissions, umask) = (random.below(0o1000) as u16, random.below(0o1000) as u16);
    let special =
        if random.below(2) == 0 { (FileKind::Fifo, 0) } else { (FileKind::CharacterDevice, 0x0103) };
    let body = match random.below(6) {
        0..=2 => Body::Directory(Default::default()),
        3 => Body::File(Vec::new()),
        _ => Body::Special(kind_of(special.0), special.1),
    };
    let result = async {
        let new = NewNode { umask, ..guest.new_node(path, permissions).await? };
        let reply = match body {
            Body::Directory(_) => guest.execute(Operation::MakeDirectory { new }).await?,
            Body::File(_) => {
                let flags = OpenFlags { exclusive: true, ..flags("rw") };
                guest.execute(Operation::Create { new, flags }).await?
            }
            Body::Special(..) => {
                let (kind, device) = special;
                guest.execute(Operation::MakeNode { new, kind, device }).await?
            }
            Body::Symlink(_) => unreachable!("made elsewhere"),
        };
        let attributes = match reply {
            Reply::Node(attributes) => attributes,
            Reply::Created { attributes, handle } => {
                guest.close(handle).await?;
                attributes
            }
            other => panic!("{other:?}"),
        };
        guest.forget(attributes.node).await;
        Ok(facts(&attributes))
    };
    let result = result.await;
    let made = reference.make_masked(path, body.clone(), permissions, umask);
    assert_eq!(result, made.map(|node| reference.facts_of(node)), "make {body:?} {path}");
}

/// What changes nothing.
async fn look_step<V: Volume>(random: &mut Random, guest: &Guest<V>, reference: &mut Reference, base: &str) {
    let path = random.path(base);
    match random.below(4) {
        0 => {
            let result = match guest.resolve(&path).await {
                Ok(node) => guest.node_reply(Operation::LookupParent { node }).await,
                Err(errno) => Err(errno),
            };
            let result = result.map(|attributes| facts(&attributes));
            assert_eq!(result, reference.parent(&path), "parent of {path}");
        }
        1 => guest.done(Operation::SyncAll).await.unwrap(),
        2 => {
            let Reply::Statistics(_) = guest.execute(Operation::StatFs).await.unwrap() else { panic!() };
        }
        _ => {
            let Ok(node) = guest.resolve(&path).await else { return };
            if let Ok(Reply::Opened(handle)) = guest.execute(Operation::OpenDirectory { node }).await {
                guest.done(Operation::SyncDirectory { handle }).await.unwrap();
                guest.done(Operation::ReleaseDirectory { handle }).await.unwrap();
            } else if let Ok(handle) = guest.open(&path, "r").await {
                guest.done(Operation::Sync { handle, data_only: false }).await.unwrap();
                assert!(guest.get(&path).await.unwrap() == reference.read(&path).unwrap(), "{path}");
                guest.close(handle).await.unwrap();
            }
        }
    }
}

/// Every path, fact and byte.
pub async fn compare<V: Volume>(guest: &Guest<V>, reference: &Reference) {
    for path in reference.paths() {
        let expected = reference.facts(&path).unwrap();
        assert_eq!(facts(&guest.stat(&path).await.unwrap()), expected, "{path}");
        match expected.kind {
            Kind::Directory => {
                assert_eq!(guest.list(&path).await.unwrap(), reference.list(&path).unwrap(), "{path}");
            }
            Kind::Symlink => assert_eq!(guest.readlink(&path).await, reference.readlink(&path)),
            Kind::Regular => {
                assert!(guest.get(&path).await.unwrap() == reference.read(&path).unwrap(), "{path}");
            }
            _ => {}
        }
        model_marks::compare(guest, reference, &path).await;
    }
}

/// Seeds and steps each, as `RINGFORT_MODEL_SEEDS` and `RINGFORT_MODEL_STEPS` say or as keeps the suite short.
fn extent() -> (u64, u64) {
    let setting = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    (setting("RINGFORT_MODEL_SEEDS").unwrap_or(20), setting("RINGFORT_MODEL_STEPS").unwrap_or(600))
}

#[test]
fn random_operations_do_what_the_reference_does() {
    let (seeds, steps) = extent();
    let mut seen = BTreeSet::new();
    for seed in 1..=seeds {
        run(async {
            let settings = ModelSettings { suspend_seed: Some(seed), ..Default::default() };
            let guest = Guest::new(&make_filesystem(settings).await);
            let mut reference = Reference::new();
            let mut random = Random::new(seed);
            for number in 0..steps {
                step(&mut random, &guest, &mut reference, "").await;
                if number % 150 == 149 {
                    compare(&guest, &reference).await;
                    let report = check(&**guest.fs.volume()).await.unwrap();
                    assert!(report.is_clean(), "seed {seed}: {:#?}", report.faults);
                    assert_eq!(report.unfinished, 0);
                }
            }
            assert_eq!(guest.fs.counts().held_inodes, 0, "seed {seed}");
            seen.append(&mut guest.seen.borrow_mut());
        });
    }
    let missing: Vec<_> = VOCABULARY.iter().filter(|name| !seen.contains(*name)).collect();
    assert!(missing.is_empty() && seen.len() == VOCABULARY.len(), "missing {missing:?} of {seen:?}");
}

#[test]
fn tasks_that_keep_to_their_own_directories_do_not_disturb_each_other() {
    for seed in 1..=6 {
        let settings = ModelSettings { suspend_seed: Some(seed), ..Default::default() };
        let fs = run(make_filesystem(settings));
        let bases = ["/w", "/x", "/y", "/z"];
        let guest = Guest::new(&fs);
        run(async {
            for base in bases {
                guest.mkdir(base).await.unwrap();
            }
        });
        run_all(
            seed,
            bases
                .into_iter()
                .enumerate()
                .map(|(index, base)| {
                    let guest = Guest::new(&fs);
                    let task: std::pin::Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
                        let mut reference = Reference::new();
                        reference.make(base, Body::Directory(Default::default()), 0o755).unwrap();
                        let mut random = Random::new(seed * 100 + index as u64);
                        for _ in 0..300 {
                            step(&mut random, &guest, &mut reference, base).await;
                        }
                        // The root has more than one task's directory.
                        for path in reference.paths().into_iter().skip(1) {
                            let result = guest.stat(&path).await.map(|found| facts(&found));
                            assert_eq!(result, reference.facts(&path), "{path}");
                            if let Ok(bytes) = reference.read(&path) {
                                assert!(guest.get(&path).await.unwrap() == bytes, "{path}");
                            }
                        }
                    });
                    task
                })
                .collect(),
        );
        let report = run(check(&**fs.volume())).unwrap();
        assert!(report.is_clean(), "seed {seed}: {:#?}", report.faults);
    }
}
