//! A directory of very many entries on the store: made, cut by a power loss, made again to the end, looked up, listed, removed.
//!
//! Times are reported and decide nothing; with `--nocapture` they show whether an operation costs the same at any size.

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringfort_engine::engine::Engine;
use ringfort_engine::sim::{CrashMode, SimWorld};
use ringfort_filesystem::operation::*;
use ringfort_filesystem::{Filesystem, check};
use ringfort_store::create::CreateOptions;
use ringfort_store::store::Store;

use crate::real_store::{close, components, open};
use crate::world::{Guest, name};

/// How long operations took: all of them by tenths, and the longest.
struct Times {
    what: &'static str,
    count: u32,
    done: u32,
    began: Instant,
    tenth_began: Instant,
    longest: Duration,
}

impl Times {
    fn of(what: &'static str, count: u32) -> Self {
        let now = Instant::now();
        Self { what, count, done: 0, began: now, tenth_began: now, longest: Duration::ZERO }
    }

    fn note(&mut self, began: Instant) {
        self.longest = self.longest.max(began.elapsed());
        self.done += 1;
        let tenth = (self.count / 10).max(1);
        if self.done.is_multiple_of(tenth) {
            let each = self.tenth_began.elapsed() / tenth;
            println!("{}: {} done, {each:?} each, longest {:?}", self.what, self.done, self.longest);
            (self.tenth_began, self.longest) = (Instant::now(), Duration::ZERO);
        }
    }
}

impl Drop for Times {
    fn drop(&mut self) {
        println!("{}: {} in {:?}", self.what, self.done, self.began.elapsed());
    }
}

fn entry(number: u32) -> Name {
    name(&format!("entry-{number}"))
}

fn report(guest: &Guest<Store>, when: &str) {
    let status = guest.fs.volume().status();
    println!(
        "{when}: maps {} MiB, {} pages, log {} of {} MiB, {} checkpoints, {} moves, {} inodes cached",
        status.memory.maps_bytes >> 20,
        status.memory.pages,
        status.log.used_bytes >> 20,
        status.log.size_bytes >> 20,
        status.counters.checkpoints,
        status.counters.moves,
        guest.fs.counts().cached_inodes,
    );
}

async fn make(guest: &Guest<Store>, parent: NodeId, numbers: std::ops::Range<u32>) {
    let mut times = Times::of("make", numbers.len() as u32);
    for number in numbers {
        let began = Instant::now();
        let new = NewNode { parent, name: entry(number), permissions: 0o644, umask: 0 };
        let make = Operation::MakeNode { new, kind: FileKind::Regular, device: 0 };
        let Reply::Node(made) = guest.execute(make).await.unwrap() else { panic!() };
        guest.forget(made.node).await;
        times.note(began);
    }
}

/// Names from `cookie` on, and a cookie in the middle with the names behind it.
async fn list(guest: &Guest<Store>, handle: HandleId, mut cookie: u64) -> Vec<(Vec<u8>, u64)> {
    let mut all = Vec::new();
    loop {
        let list = Operation::ReadDirectory { handle, cookie, limit: 1000, attributes: false };
        let Reply::Entries(entries) = guest.execute(list).await.unwrap() else { panic!() };
        let Some(last) = entries.last() else { return all };
        cookie = last.cookie;
        all.extend(entries.into_iter().map(|entry| (entry.name, entry.cookie)));
    }
}

async fn list_and_continue(guest: &Guest<Store>, node: NodeId, entries: u32) {
    let Reply::Opened(handle) = guest.execute(Operation::OpenDirectory { node }).await.unwrap() else {
        panic!()
    };
    let began = Instant::now();
    let all = list(guest, handle, 0).await;
    println!("list: {} in {:?}", all.len(), began.elapsed());
    let names: HashSet<_> = all.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!((all.len(), names.len()), (entries as usize + 2, entries as usize + 2));
    // A cookie goes on where it was taken, whatever comes and goes.
    let (half, (_, cookie)) = (all.len() / 2, &all[all.len() / 2]);
    let (before, behind) = (name_of(&all[half]), name_of(&all[half + 1]));
    guest.done(Operation::Unlink { parent: node, name: before.clone() }).await.unwrap();
    let rest = list(guest, handle, *cookie).await;
    assert!(rest == all[half + 1..], "the rest of a listing changed with an entry before it");
    guest.done(Operation::Unlink { parent: node, name: behind.clone() }).await.unwrap();
    assert!(list(guest, handle, *cookie).await == all[half + 2..]);
    for name in [before, behind] {
        let new = NewNode { parent: node, name, permissions: 0o644, umask: 0 };
        let make = Operation::MakeNode { new, kind: FileKind::Regular, device: 0 };
        let Reply::Node(made) = guest.execute(make).await.unwrap() else { panic!() };
        guest.forget(made.node).await;
    }
    assert!(list(guest, handle, *cookie).await == all[half + 1..], "a name came back to another place");
    guest.done(Operation::ReleaseDirectory { handle }).await.unwrap();
}

fn name_of((bytes, _): &(Vec<u8>, u64)) -> Name {
    Name::new(bytes).unwrap()
}

async fn opened(engine: &Rc<dyn Engine>) -> Guest<Store> {
    let began = Instant::now();
    let guest = open(engine).await;
    println!("open: {:?}, {:?}", began.elapsed(), guest.fs.volume().status().recovery);
    guest
}

fn fill_and_empty(entries: u32, volume_bytes: u64, log_bytes: u64) {
    let world = SimWorld::new(7);
    let engine = world.engine();
    world
        .run(async move {
            let options = CreateOptions {
                log_bytes: Some(log_bytes),
                ..CreateOptions::new(components(), volume_bytes)
            };
            let store = Store::create(Rc::clone(&engine), &options).await.unwrap();
            Filesystem::format(&store, &*engine).await.unwrap();
            store.close().await.unwrap();
        })
        .done();
    let engine = world.restart(CrashMode::ProcessDeath, 1);
    let controls = world.controls();
    let synced = Rc::new(Cell::new(0));
    let noted = Rc::clone(&synced);
    let outcome = world.run(async move {
        let guest = opened(&engine).await;
        guest.mkdir("/d").await.unwrap();
        let node = guest.resolve("/d").await.unwrap();
        make(&guest, node, 0..entries / 2).await;
        guest.done(Operation::SyncAll).await.unwrap();
        noted.set(entries / 2);
        make(&guest, node, entries / 2..entries / 2 + 999).await;
        report(&guest, "before the power loss");
        controls.crash_now();
        engine.yield_now().await;
    });
    assert!(outcome.is_crashed());
    let engine = world.restart(CrashMode::PowerLoss, 2);
    world
        .run(async move {
            let guest = opened(&engine).await;
            let node = guest.resolve("/d").await.unwrap();
            let found = guest.stat("/d").await.unwrap().size_bytes as u32;
            assert!((synced.get()..=synced.get() + 999).contains(&found), "{found} entries");
            report(&guest, "after recovery");
            make(&guest, node, found..entries).await;
            report(&guest, "all made");
            let mut times = Times::of("look up", entries.div_ceil(3));
            for number in (0..entries).step_by(3) {
                let began = Instant::now();
                let found = guest.lookup_held(node, &entry(number)).await.unwrap();
                guest.forget(found.node).await;
                times.note(began);
            }
            drop(times);
            list_and_continue(&guest, node, entries).await;
            let mut times = Times::of("remove", entries);
            for number in 0..entries {
                let began = Instant::now();
                guest.done(Operation::Unlink { parent: node, name: entry(number) }).await.unwrap();
                times.note(began);
            }
            drop(times);
            report(&guest, "all removed");
            assert_eq!(guest.list("/d").await.unwrap(), Vec::<String>::new());
            guest.rmdir("/d").await.unwrap();
            let report = check(&**guest.fs.volume()).await.unwrap();
            assert!(report.is_clean() && report.inodes == 1, "{report:#?}");
            close(guest).await;
        })
        .done();
}

#[test]
fn twenty_thousand_entries_survive_a_power_loss_and_go_again() {
    fill_and_empty(20_000, 64 << 20, 4 << 20);
}

#[test]
#[ignore = "takes minutes and gigabytes"]
fn a_million_entries_survive_a_power_loss_and_go_again() {
    fill_and_empty(1_000_000, 20 << 30, 256 << 20);
}
