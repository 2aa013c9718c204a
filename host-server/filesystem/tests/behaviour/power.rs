//! Power cuts at every persistence point of the filesystem over the store: what is found afterwards is what the operations, in the
//! order in which they were made, had come to at some moment that holds everything synced, and nothing is left to be finished.
//!
//! `RINGFORT_CRASH_STRIDE` tries every n-th point, 1 all of them (default: chosen per workload so that the suite stays short);
//! `RINGFORT_CRASH_SEED` changes the histories that are random.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use ringfort_engine::engine::Engine;
use ringfort_engine::sim::{CrashMode, SimWorld};
use ringfort_filesystem::operation::*;
use ringfort_filesystem::{Filesystem, check};
use ringfort_reference::{
    Body, Errno, Facts, FileKind as Kind, GROUP, List, MASK, NOBODY, OTHERS, OWNER, Random, Reference, USER,
};
use ringfort_store::create::CreateOptions;
use ringfort_store::store::Store;

use crate::real_store::{close, components, open};
use crate::world::{Guest, allocate_mode_of, flags, name, pattern, rename_mode_of};

/// Points of one workload that are tried unless told otherwise.
const POINTS_AT_MOST: u64 = 50;
const BLOCK: u64 = 4096;

/// One operation that is atomic, as the guest sees it.
#[derive(Clone, Debug)]
enum Act {
    Mkdir(String),
    Create(String),
    Write {
        path: String,
        offset: u64,
        len: usize,
        seed: u8,
        how: &'static str,
    },
    Truncate(String, u64),
    Allocate {
        path: String,
        mode: AllocateMode,
        offset: u64,
        len: u64,
    },
    Rename(String, String, RenameMode),
    Link(String, String),
    Symlink(String),
    Unlink(String),
    Rmdir(String),
    /// A file without a name, written, then linked: seen as a whole or not at all.
    Temporary(String, usize),
    /// Opens a file, and never closes it.
    Hold(String),
    Chmod(String, u16),
    SetList {
        path: String,
        default: bool,
        list: Option<List>,
    },
    SetXattr(String, &'static str, Option<usize>),
    Sync,
    Checkpoint,
}

type Answer<T> = Result<T, Errno>;

impl Act {
    async fn carry_out(&self, guest: &Guest<Store>) -> Answer<()> {
        match self {
            Act::Mkdir(path) => guest.mkdir(path).await.map(|_| ()),
            Act::Create(path) => guest.close(guest.create_mode(path, "rwx", 0o644).await?).await,
            Act::Write { path, offset, len, seed, how } => {
                let handle = guest.open(path, how).await?;
                let written = guest.write_at(handle, *offset, &pattern(*seed, *len)).await;
                guest.close(handle).await?;
                written.map(|_| ())
            }
            Act::Truncate(path, size) => guest.truncate(path, *size).await.map(|_| ()),
            Act::Allocate { path, mode, offset, len } => {
                let handle = guest.open(path, "rw").await?;
                let done = guest.allocate(handle, *mode, *offset, *len).await;
                guest.close(handle).await?;
                done
            }
            Act::Rename(from, to, mode) => guest.rename_mode(from, to, *mode).await,
            Act::Link(from, to) => guest.link(from, to).await.map(|_| ()),
            Act::Symlink(path) => guest.symlink(path, b"target").await.map(|_| ()),
            Act::Unlink(path) => guest.unlink(path).await,
            Act::Rmdir(path) => guest.rmdir(path).await,
            Act::Temporary(path, len) => {
                let (directory, last) = path.rsplit_once('/').unwrap();
                let parent = guest.resolve(directory).await?;
                let new = NewNode { parent, name: name("unused"), permissions: 0o644, umask: 0 };
                let make = Operation::CreateTemporary { new, flags: flags("rw"), linkable: true };
                let Reply::Created { attributes, handle } = guest.execute(make).await? else { panic!() };
                guest.write_at(handle, 0, &pattern(9, *len)).await?;
                let link = Operation::Link { node: attributes.node, parent, name: name(last) };
                let linked = guest.execute(link).await.map(|_| ());
                guest.close(handle).await?;
                linked
            }
            Act::Hold(path) => guest.open(path, "rw").await.map(|_| ()),
            Act::Chmod(path, permissions) => guest.chmod(path, *permissions).await.map(|_| ()),
            Act::SetList { path, default, list } => {
                let name = list_name(*default);
                match list {
                    Some(list) => guest.set_xattr(path, name, &list.value(), SetXattrMode::Any).await,
                    None => guest.remove_xattr(path, name).await,
                }
            }
            Act::SetXattr(path, name, Some(len)) => {
                guest.set_xattr(path, name.as_bytes(), &vec![5; *len], SetXattrMode::Any).await
            }
            Act::SetXattr(path, name, None) => guest.remove_xattr(path, name.as_bytes()).await,
            Act::Sync => guest.done(Operation::SyncAll).await,
            Act::Checkpoint => {
                guest.fs.volume().checkpoint().await.unwrap();
                Ok(())
            }
        }
    }

    fn refer(&self, reference: &mut Reference) -> Answer<()> {
        match self {
            Act::Mkdir(path) => reference.make(path, Body::Directory(BTreeMap::new()), 0o755).map(|_| ()),
            Act::Create(path) => reference.make(path, Body::File(Vec::new()), 0o644).map(|_| ()),
            Act::Write { path, offset, len, seed, .. } => {
                let file = reference.file(path)?;
                reference.write_node(file, *offset as usize, &pattern(*seed, *len));
                Ok(())
            }
            Act::Truncate(path, size) => reference.truncate(path, *size as usize),
            Act::Allocate { path, mode, offset, len } => {
                reference.allocate(path, allocate_mode_of(*mode), *offset as usize, *len as usize)
            }
            Act::Rename(from, to, mode) => reference.rename(from, to, rename_mode_of(*mode)),
            Act::Link(from, to) => reference.link(from, to),
            Act::Symlink(path) => reference.make(path, Body::Symlink(b"target".to_vec()), 0o777).map(|_| ()),
            Act::Unlink(path) => reference.remove(path, false),
            Act::Rmdir(path) => reference.remove(path, true),
            Act::Temporary(path, len) => {
                let file = reference.temporary(path.rsplit_once('/').unwrap().0, 0o644, 0)?;
                reference.write_node(file, 0, &pattern(9, *len));
                reference.link_node(file, path)
            }
            Act::Hold(path) => reference.file(path).map(|_| ()),
            Act::Chmod(path, permissions) => reference.chmod(path, *permissions),
            Act::SetList { path, default, list } => reference.set_list(path, *default, list.clone()),
            Act::SetXattr(path, name, value) => {
                let xattrs = &mut reference.node_mut(path)?.xattrs;
                match value {
                    Some(len) => drop(xattrs.insert(name.as_bytes().to_vec(), vec![5; *len])),
                    None => drop(xattrs.remove(name.as_bytes()).ok_or(Errno::ENODATA)?),
                }
                Ok(())
            }
            Act::Sync | Act::Checkpoint => Ok(()),
        }
    }

    /// Whether everything before it, and it, is durable once it is done.
    fn syncs(&self) -> bool {
        matches!(self, Act::Sync) || matches!(self, Act::Write { how, .. } if how.contains(['s', 'd']))
    }
}

fn list_name(default: bool) -> &'static [u8] {
    if default { b"system.posix_acl_default" } else { b"system.posix_acl_access" }
}

/// Everything that can be told of a path.
type Seen = (Facts, Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

/// All of a tree, by path.
type Tree = BTreeMap<String, Seen>;

fn tree_of(reference: &Reference) -> Tree {
    let see = |path: String| {
        let node = reference.node(&path).unwrap();
        let contents = match &node.body {
            Body::File(bytes) | Body::Symlink(bytes) => bytes.clone(),
            _ => Vec::new(),
        };
        let mut xattrs = node.xattrs.clone();
        let lists = [(false, &node.lists.access), (true, &node.lists.default)];
        for (default, list) in lists {
            xattrs.extend(list.as_ref().map(|list| (list_name(default).to_vec(), list.value())));
        }
        (path.clone(), (reference.facts(&path).unwrap(), contents, xattrs.into_iter().collect()))
    };
    reference.paths().into_iter().map(see).collect()
}

async fn tree_found(guest: &Guest<Store>) -> Tree {
    let mut tree = Tree::new();
    let mut paths = vec![String::new()];
    while let Some(path) = paths.pop() {
        let facts = crate::model::facts(&guest.stat(&path).await.unwrap());
        let contents = match facts.kind {
            Kind::Regular => guest.get(&path).await.unwrap(),
            Kind::Symlink => guest.readlink(&path).await.unwrap(),
            _ => Vec::new(),
        };
        if facts.kind == Kind::Directory {
            let names = guest.list(&path).await.unwrap();
            paths.extend(names.into_iter().map(|name| format!("{path}/{name}")));
        }
        let mut xattrs = BTreeMap::new();
        let names = guest.xattrs(&path).await.unwrap();
        for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            xattrs.insert(name.to_vec(), guest.xattr(&path, name).await.unwrap());
        }
        tree.insert(path, (facts, contents, xattrs.into_iter().collect()));
    }
    tree
}

/// What the operations had come to after each of them, the last of which may not have been answered.
#[derive(Default)]
struct History {
    states: Vec<Reference>,
    /// So many of them were answered, and so many of those synced.
    answered: usize,
    synced: usize,
}

async fn work(guest: &Guest<Store>, acts: &[Act], history: &RefCell<History>) {
    for act in acts {
        let mut next = history.borrow().states.last().unwrap().clone();
        let expected = act.refer(&mut next);
        history.borrow_mut().states.push(next);
        assert_eq!(act.carry_out(guest).await, expected, "{act:?}");
        let mut history = history.borrow_mut();
        history.answered = history.states.len() - 1;
        // One that is refused syncs nothing.
        if act.syncs() && expected.is_ok() {
            history.synced = history.answered;
        }
    }
}

/// A small volume on which `acts` have been carried out.
fn prepare(seed: u64, acts: &[Act]) -> (SimWorld, Reference) {
    let world = SimWorld::new(seed);
    let engine = world.engine();
    let mut reference = Reference::new();
    for act in acts {
        act.refer(&mut reference).unwrap();
    }
    world
        .run(async move {
            let options = CreateOptions {
                log_bytes: Some(1 << 20),
                unit_bytes: Some(8192),
                ..CreateOptions::new(components(), 24 << 20)
            };
            let store = Store::create(Rc::clone(&engine), &options).await.unwrap();
            Filesystem::format(&store, &*engine).await.unwrap();
            store.close().await.unwrap();
        })
        .done();
    let engine = world.restart(CrashMode::ProcessDeath, seed);
    world
        .run(async move {
            let guest = open(&engine).await;
            for act in acts {
                act.carry_out(&guest).await.unwrap();
            }
            close(guest).await;
        })
        .done();
    world.restart(CrashMode::ProcessDeath, seed);
    (world, reference)
}

/// Opens, and looks at everything.
async fn inspect(engine: Rc<dyn Engine>, what: &str) -> Tree {
    let guest = open(&engine).await;
    let report = check(&**guest.fs.volume()).await.unwrap();
    assert!(report.is_clean() && report.unfinished == 0, "{what}: {report:#?}");
    let tree = tree_found(&guest).await;
    // A volume like any other.
    guest.put("/after", &pattern(1, 30_000)).await.unwrap();
    guest.unlink("/after").await.unwrap();
    close(guest).await;
    tree
}

/// Carries out the acts to their end, then crashes them at each point, recovers (crashing once more in some recoveries), and compares.
fn crash_everywhere(what: &str, seed: u64, before: &[Act], acts: &[Act], mode: CrashMode) {
    let run = |crash_at: Option<u64>| {
        let (world, reference) = prepare(seed, before);
        if let Some(point) = crash_at {
            world.crash_at_point(point);
        }
        let history = Rc::new(RefCell::new(History { states: vec![reference], ..History::default() }));
        let engine = world.engine();
        let outcome = world.run({
            let history = Rc::clone(&history);
            async move {
                let guest = open(&engine).await;
                work(&guest, acts, &history).await;
                // What is not synced by now may be cut, or becomes durable by itself.
                guest.fs.volume().engine().sleep(std::time::Duration::from_secs(3)).await;
                guest.fs.shut_down().await.unwrap();
            }
        });
        (world, history, outcome.is_crashed())
    };
    let (world, _, crashed) = run(None);
    assert!(!crashed);
    let points = world.count_points();
    drop(world);
    let stride = std::env::var("RINGFORT_CRASH_STRIDE").ok().and_then(|stride| stride.parse().ok());
    let stride: u64 = stride.unwrap_or(points / POINTS_AT_MOST + 1).max(1);
    let (mut tried, mut cut) = (0, 0);
    for point in (1..=points).step_by(stride as usize) {
        let what = format!("{what}, seed {seed}, {mode:?} at point {point} of {points}");
        let (world, history, crashed) = run(Some(point));
        assert!(crashed, "{what}: did not crash");
        let mut random = ringfort_engine::sim::Random::new(seed ^ point);
        world.restart(mode, random.next_u64());
        if (point / stride).is_multiple_of(3) {
            world.crash_at_point(1 + random.below(60));
            let engine = world.engine();
            let _ = world.run(async move { drop(open(&engine).await) });
            world.restart(mode, random.next_u64());
        }
        let engine = world.engine();
        let found = world.run(async { inspect(engine, &what).await }).done();
        let History { states, answered, synced } = &*history.borrow();
        // The death of the process alone loses nothing that was answered.
        let earliest = if mode == CrashMode::ProcessDeath { *answered } else { *synced };
        let position = (0..states.len()).rev().find(|at| tree_of(&states[*at]) == found);
        let Some(position) = position else {
            let newest = tree_of(&states[states.len() - 1]);
            let differs: Vec<_> = newest
                .keys()
                .chain(found.keys())
                .filter(|path| newest.get(*path) != found.get(*path))
                .map(|path| (path, newest.get(path).map(|seen| &seen.0), found.get(path).map(|seen| &seen.0)))
                .collect();
            panic!("{what}: a state that never was after {answered} acts; newest and found: {differs:#?}");
        };
        assert!(position >= earliest, "{what}: state {position} although {earliest} must be there");
        tried += 1;
        cut += u32::from(position < *answered);
        if (point / stride).is_multiple_of(5) {
            world.restart(CrashMode::ProcessDeath, random.next_u64());
            let engine = world.engine();
            let paths: Vec<PathBuf> = components();
            let checked = world.run(async move {
                ringfort_store::check::check(engine, &paths, &mut |_| {}).await.unwrap().0
            });
            let report = checked.done();
            assert!(report.is_clean(), "{what}: {:?}", report.damage);
        }
    }
    println!("{what}: {tried} of {points} points, {cut} lost something unsynced");
}

fn seed() -> u64 {
    std::env::var("RINGFORT_CRASH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

macro_rules! workload {
    ($name:ident, $mode:ident, $before:expr, $acts:expr) => {
        #[test]
        fn $name() {
            crash_everywhere(stringify!($name), seed(), &$before, &$acts, CrashMode::$mode);
        }
    };
}

fn at(path: &str) -> String {
    path.to_owned()
}

fn mkdir(path: &str) -> Act {
    Act::Mkdir(at(path))
}

fn create(path: &str) -> Act {
    Act::Create(at(path))
}

fn write_as(path: &str, offset: u64, len: usize, seed: u8, how: &'static str) -> Act {
    Act::Write { path: at(path), offset, len, seed, how }
}

fn write(path: &str, offset: u64, len: usize, seed: u8) -> Act {
    write_as(path, offset, len, seed, "rw")
}

fn rename(from: &str, to: &str) -> Act {
    Act::Rename(at(from), at(to), RenameMode::Replace)
}

fn exchange(from: &str, to: &str) -> Act {
    Act::Rename(at(from), at(to), RenameMode::Exchange)
}

fn link(from: &str, to: &str) -> Act {
    Act::Link(at(from), at(to))
}

fn unlink(path: &str) -> Act {
    Act::Unlink(at(path))
}

fn allocate(path: &str, mode: AllocateMode, offset: u64, len: u64) -> Act {
    Act::Allocate { path: at(path), mode, offset, len }
}

/// Two directories with a file each, one of them with a directory too.
fn some_files() -> Vec<Act> {
    vec![
        mkdir("/a"),
        mkdir("/b"),
        mkdir("/a/d"),
        create("/a/f"),
        write("/a/f", 0, 20_000, 1),
        create("/b/g"),
        write("/b/g", 0, 7000, 2),
    ]
}

workload!(names_move_about, PowerLoss, some_files(), {
    vec![
        // Over a file, over an empty directory, across directories, and in place of each other.
        rename("/a/f", "/b/g"),
        mkdir("/b/e"),
        Act::Sync,
        rename("/a/d", "/b/e"),
        exchange("/b/g", "/b/e"),
        create("/a/n"),
        rename("/b", "/a/b"),
        exchange("/a/n", "/a/b/g"),
        Act::Sync,
        rename("/a/n", "/n"),
        rename("/a/b", "/b"),
        Act::Rename(at("/b/g"), at("/n"), RenameMode::NoReplace),
        exchange("/a", "/b"),
        Act::Sync,
        rename("/b", "/a/b"),
    ]
});
workload!(links_come_and_go, PowerLoss, some_files(), {
    vec![
        link("/a/f", "/b/f"),
        link("/a/f", "/f"),
        unlink("/a/f"),
        Act::Sync,
        Act::Symlink(at("/s")),
        unlink("/f"),
        write("/b/f", 5000, 9000, 4),
        unlink("/b/f"),
        Act::Sync,
        unlink("/b/g"),
        Act::Rmdir(at("/b")),
        Act::Rmdir(at("/a/d")),
        unlink("/s"),
    ]
});
workload!(files_without_names_get_one, PowerLoss, some_files(), {
    vec![
        Act::Temporary(at("/a/t"), 50_000),
        Act::Sync,
        Act::Temporary(at("/t"), 10),
        Act::Temporary(at("/a/f"), 10),
        Act::Temporary(at("/b/t"), 900_000),
        rename("/b/t", "/t"),
        Act::Sync,
        Act::Temporary(at("/b/t"), 3),
    ]
});
workload!(files_that_are_open_lose_their_names, PowerLoss, some_files(), {
    vec![
        Act::Hold(at("/a/f")),
        unlink("/a/f"),
        Act::Hold(at("/b/g")),
        Act::Sync,
        create("/big"),
        write("/big", 0, 3 << 20, 1),
        write("/big", 3 << 20, 2 << 20, 2),
        Act::Hold(at("/big")),
        unlink("/big"),
        create("/over"),
        rename("/over", "/b/g"),
        Act::Sync,
        unlink("/b/g"),
        Act::Checkpoint,
        create("/last"),
    ]
});
workload!(
    files_are_cut_and_grow,
    PowerLoss,
    [create("/f"), write("/f", 0, 3 << 20, 1), write("/f", 3 << 20, 3 << 20, 2)],
    {
        vec![
            // More than one transaction frees.
            Act::Truncate(at("/f"), 5001),
            write("/f", 9000, 100, 3),
            Act::Sync,
            Act::Truncate(at("/f"), 2 << 20),
            write("/f", 1 << 20, 5 << 20, 4),
            Act::Truncate(at("/f"), 100),
            Act::Truncate(at("/f"), 4096),
            Act::Checkpoint,
            write("/f", 4000, 4096, 5),
            Act::Truncate(at("/f"), 0),
        ]
    }
);
workload!(writes_that_sync_are_there, PowerLoss, some_files(), {
    let sync = |number: u64| {
        let how = if number.is_multiple_of(2) { "rws" } else { "rwd" };
        [write_as("/a/f", number * 3000, 5000, number as u8, how), write("/b/g", number * 1000, 300, 7)]
    };
    (0..10).flat_map(sync).collect::<Vec<_>>()
});
fn somebody(permissions: u16, mask: u16) -> Option<List> {
    Some(List(vec![
        (OWNER, 6, NOBODY),
        (USER, permissions, 1000),
        (GROUP, 4, NOBODY),
        (MASK, mask, NOBODY),
        (OTHERS, 1, NOBODY),
    ]))
}
workload!(attributes_and_lists_change, PowerLoss, some_files(), {
    let list = |path: &str, default, list| Act::SetList { path: at(path), default, list };
    vec![
        list("/a/f", false, somebody(6, 7)),
        Act::Chmod(at("/a/f"), 0o640),
        list("/a", true, somebody(5, 6)),
        create("/a/n"),
        mkdir("/a/m"),
        Act::Sync,
        Act::SetXattr(at("/a/n"), "user.x", Some(3000)),
        Act::SetXattr(at("/a/n"), "trusted.y", Some(10)),
        Act::SetXattr(at("/a/n"), "user.x", Some(30)),
        list("/a", true, None),
        Act::Temporary(at("/a/m/t"), 100),
        Act::Sync,
        Act::SetXattr(at("/a/n"), "user.x", None),
        list("/a/f", false, None),
        Act::Chmod(at("/a/m"), 0o2700),
        unlink("/a/n"),
    ]
});
/// A file of more extents than one step of a shift moves, made of single blocks written from the last to the first.
fn scattered(blocks: u64) -> Vec<Act> {
    let blocks = (0..blocks).rev().map(|block| write("/f", block * 2 * BLOCK, 4096, block as u8));
    std::iter::once(create("/f")).chain(blocks).collect()
}
workload!(ranges_go_and_come, PowerLoss, scattered(600), {
    let (collapse, insert) = (AllocateMode::CollapseRange, AllocateMode::InsertRange);
    vec![
        allocate("/f", collapse, 4 * BLOCK, 9 * BLOCK),
        Act::Sync,
        allocate("/f", insert, 6 * BLOCK, 100 * BLOCK),
        write("/f", 7 * BLOCK + 5, 30_000, 3),
        allocate("/f", insert, 3 * BLOCK, BLOCK),
        Act::Checkpoint,
        allocate("/f", collapse, 0, 300 * BLOCK),
        write_as("/f", 2 * BLOCK, 100, 4, "rws"),
        allocate("/f", collapse, 100 * BLOCK, BLOCK),
    ]
});
workload!(the_process_dies_among_ranges, ProcessDeath, scattered(300), {
    vec![
        allocate("/f", AllocateMode::CollapseRange, 4 * BLOCK, 9 * BLOCK),
        write("/f", 7 * BLOCK + 5, 30_000, 3),
        allocate("/f", AllocateMode::InsertRange, 6 * BLOCK, 100 * BLOCK),
        Act::Sync,
        allocate("/f", AllocateMode::CollapseRange, 0, 5 * BLOCK),
    ]
});

/// Any act on few names.
fn random_act(random: &mut Random) -> Act {
    let (path, other) = (random.path(""), random.path(""));
    match random.below(20) {
        0 | 1 => Act::Mkdir(path),
        2 | 3 => Act::Create(path),
        4..=6 => {
            let how = if random.below(5) == 0 { "rws" } else { "rw" };
            let (offset, len) = (random.below(60_000), 1 + random.below(60_000) as usize);
            Act::Write { path, offset, len, seed: random.below(250) as u8, how }
        }
        7 => Act::Truncate(path, random.below(60_000)),
        8 => Act::Rename(path, other, RenameMode::Exchange),
        9 | 10 => Act::Rename(path, other, RenameMode::Replace),
        11 => Act::Link(path, other),
        12 => Act::Unlink(path),
        13 => Act::Rmdir(path),
        14 => Act::Temporary(path, random.below(20_000) as usize),
        15 => Act::Chmod(path, random.below(0o1000) as u16),
        16 => Act::SetXattr(path, "trusted.x", Some(random.below(100) as usize)),
        17 => {
            let mode = [AllocateMode::CollapseRange, AllocateMode::InsertRange][random.below(2) as usize];
            Act::Allocate { path, mode, offset: random.below(6) * BLOCK, len: (1 + random.below(4)) * BLOCK }
        }
        18 => Act::Checkpoint,
        _ => Act::Sync,
    }
}
fn random_acts(seed: u64, count: usize) -> Vec<Act> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random_act(&mut random)).collect()
}
workload!(everything_at_once, PowerLoss, some_files(), random_acts(seed(), 120));
workload!(everything_at_once_and_the_process_dies, ProcessDeath, some_files(), random_acts(seed() + 1, 120));
