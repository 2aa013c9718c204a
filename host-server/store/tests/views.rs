//! Snapshots and clones: each holds what it should, whatever happens to others, through crashes, and what nobody sees any more is given back.

#![allow(clippy::unwrap_used)]

mod scene;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::sim::{CrashMode, Random};
use ringfort_store::address::ViewId;
use ringfort_store::error::{ErrorKind, StoreError};
use ringfort_store::store::Store;
use ringfort_store::volume::{Cost, Key, ViewChange, ViewKind, ViewState, Volume};
use scene::*;

const OBJECTS: u64 = 2;
const BLOCKS: u64 = 60;
const KEYS: u64 = 20;

/// Every live view, with what it holds and what it is.
#[derive(Clone, Debug, Default)]
struct Views {
    live: BTreeMap<u16, (Kind, Model)>,
    /// The snapshot that each clone began as, be it removed or not.
    origins: BTreeMap<u16, u16>,
}

impl PartialEq for Views {
    fn eq(&self, other: &Self) -> bool {
        self.live == other.live
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Snapshot { branch: u16 },
    Branch { origin: Option<u16> },
}

impl Views {
    fn new() -> Self {
        let volume = (Kind::Branch { origin: None }, Model::default());
        Self { live: BTreeMap::from([(0, volume)]), origins: BTreeMap::new() }
    }

    fn of_kind(&self, is_branch: bool) -> Vec<u16> {
        let of_kind = |kind: &Kind| matches!(kind, Kind::Branch { .. }) == is_branch;
        self.live.iter().filter(|(_, (kind, _))| of_kind(kind)).map(|(view, _)| *view).collect()
    }

    fn has_clones(&self, snapshot: u16) -> bool {
        let is_seen = |branch: u16| {
            let is_of = |(view, (kind, _)): (&u16, &(Kind, Model))| {
                *view == branch || *kind == Kind::Snapshot { branch }
            };
            self.live.iter().any(is_of)
        };
        self.origins.iter().any(|(clone, origin)| *origin == snapshot && is_seen(*clone))
    }

    fn model(&mut self, view: u16) -> &mut Model {
        &mut self.live.get_mut(&view).unwrap().1
    }
}

fn place(view: u16, number: u64) -> u64 {
    ViewId(view).place(number)
}

async fn change(store: &Store, view: ViewId, change: ViewChange) -> Result<(), StoreError> {
    let cost = Cost { data_blocks: 0, entries: 1, frees_space: change == ViewChange::Remove };
    let mut transaction = store.begin(cost).await?;
    transaction.change_view(view, change);
    store.apply(transaction)
}

async fn snapshot(store: &Store, branch: u16) -> Result<u16, StoreError> {
    let view = store.new_view()?;
    let info = format!("snapshot of {branch}").into_bytes();
    change(store, view, ViewChange::Snapshot { branch: ViewId(branch), info }).await?;
    Ok(view.0)
}

async fn clone_of(store: &Store, origin: Option<u16>) -> Result<u16, StoreError> {
    let view = store.new_view()?;
    change(store, view, ViewChange::Branch { origin: origin.map(ViewId), info: Vec::new() }).await?;
    Ok(view.0)
}

async fn remove(store: &Store, view: u16) -> Result<(), StoreError> {
    change(store, ViewId(view), ViewChange::Remove).await
}

/// What a view holds.
async fn read_view(store: &Store, view: u16) -> Model {
    let mut model = Model::default();
    let (from, to) = (Key::new(place(view, 0), 0), Key::new(place(view, KEYS), u64::MAX));
    for (key, value) in store.scan(TREE, from, to, usize::MAX).await.unwrap() {
        assert_eq!(ViewId::of(key.hi), ViewId(view));
        let content = u64::from_le_bytes(value[..8].try_into().unwrap());
        model.entries.insert(key.hi - place(view, 0), content);
    }
    for key in 0..KEYS {
        let found = store.get(TREE, Key::new(place(view, key), 0)).await.unwrap();
        assert_eq!(
            found.is_some(),
            model.entries.contains_key(&key),
            "view {view}, key {key}: get and scan differ"
        );
    }
    for object in 0..OBJECTS {
        for (at, content) in read(store, place(view, object), 0, BLOCKS).await.unwrap() {
            model.blocks.insert((object, at), content);
        }
    }
    model
}

async fn read_views(store: &Store) -> Views {
    let mut views = Views::default();
    let mut live = BTreeMap::from([(0, Kind::Branch { origin: None })]);
    for (view, entry) in store.views() {
        if let ViewKind::Branch { origin: Some(origin) } = entry.kind {
            views.origins.insert(view.0, origin.0);
        }
        if entry.state == ViewState::Live {
            live.insert(
                view.0,
                match entry.kind {
                    ViewKind::Branch { origin } => Kind::Branch { origin: origin.map(|view| view.0) },
                    ViewKind::Snapshot { branch } => Kind::Snapshot { branch: branch.0 },
                },
            );
        } else {
            live.remove(&view.0);
        }
    }
    for (view, kind) in live {
        views.live.insert(view, (kind, read_view(store, view).await));
    }
    views
}

/// Something or other.
async fn step(
    store: &Store,
    random: &mut Random,
    views: &mut Views,
    content: &mut u64,
) -> Result<(), StoreError> {
    let pick = |random: &mut Random, from: &[u16]| from[random.below(from.len() as u64) as usize];
    let branch = pick(random, &views.of_kind(true));
    let object = random.below(OBJECTS);
    let (at, len) = (random.below(BLOCKS - 20), 1 + random.below(19));
    match random.below(100) {
        0..35 => {
            let contents: Vec<u64> = (*content..*content + len).collect();
            *content += len;
            write(store, place(branch, object), at, &contents).await?;
            views.model(branch).write(object, at, &contents);
        }
        35..50 => {
            let key = random.below(KEYS);
            put(store, place(branch, key), *content).await?;
            views.model(branch).entries.insert(key, *content);
            *content += 1;
        }
        50..57 => {
            let key = random.below(KEYS);
            delete(store, place(branch, key)).await?;
            views.model(branch).entries.remove(&key);
        }
        57..65 => {
            unmap(store, place(branch, object), at, len).await?;
            views.model(branch).unmap(object, at, len);
        }
        65..70 => {
            let to = random.below(BLOCKS - 20);
            shift(store, place(branch, object), at, to, len).await?;
            views.model(branch).shift(object, at, to, len);
        }
        70..78 if views.live.len() < 12 => {
            let view = snapshot(store, branch).await?;
            let held = views.model(branch).clone();
            views.live.insert(view, (Kind::Snapshot { branch }, held));
        }
        78..82 if views.live.len() < 12 => {
            let snapshots = views.of_kind(false);
            if snapshots.is_empty() {
                return Ok(());
            }
            let origin = pick(random, &snapshots);
            let view = clone_of(store, Some(origin)).await?;
            let held = views.model(origin).clone();
            views.live.insert(view, (Kind::Branch { origin: Some(origin) }, held));
            views.origins.insert(view, origin);
        }
        82..88 => {
            let all: Vec<u16> = views.live.keys().copied().filter(|view| *view != 0).collect();
            if all.is_empty() {
                return Ok(());
            }
            let view = pick(random, &all);
            let result = remove(store, view).await;
            if views.has_clones(view) {
                assert_eq!(result.unwrap_err().kind, ErrorKind::Busy);
            } else {
                result?;
                views.live.remove(&view);
            }
        }
        88..93 => store.checkpoint().await?,
        93..95 => store.reclaim().await?,
        _ => store.sync().await?,
    }
    Ok(())
}

#[test]
fn every_view_holds_what_it_should_whatever_happens_to_others() {
    for seed in 0..12 {
        let world = world_with(seed, &create_options());
        let views = with_store(&world, async move |store| {
            let (mut random, mut views, mut content) = (Random::new(seed), Views::new(), 1);
            for at in 0..250 {
                step(&store, &mut random, &mut views, &mut content).await.unwrap();
                if at % 25 == 24 {
                    assert!(read_views(&store).await == views, "seed {seed}: step {at}");
                }
            }
            store.close().await.unwrap();
            views
        });
        world.restart(CrashMode::PowerLoss, seed);
        expect_clean(&world);
        world.restart(CrashMode::ProcessDeath, seed);
        with_store(&world, async move |store| {
            assert!(read_views(&store).await == views, "seed {seed}: after a restart");
            give_everything_back(&store, views).await;
        });
        world.restart(CrashMode::ProcessDeath, seed);
        expect_clean(&world);
    }
}

/// Removes all that there is; then nothing is in use.
async fn give_everything_back(store: &Store, mut views: Views) {
    loop {
        let removable = |view: &u16| *view != 0 && !views.has_clones(*view);
        let Some(view) = views.live.keys().copied().find(|view| removable(view)) else { break };
        remove(store, view).await.unwrap();
        views.live.remove(&view);
    }
    for object in 0..OBJECTS {
        unmap(store, object, 0, BLOCKS).await.unwrap();
    }
    while store.views().iter().any(|(_, entry)| entry.state != ViewState::Live) {
        store.engine().sleep(Duration::from_millis(10)).await;
    }
    store.reclaim().await.unwrap();
    let space = store.space();
    assert_eq!(space.free_blocks, space.total_blocks, "blocks are in use that nobody sees");
    store.close().await.unwrap();
}

/// A crash leaves the state after some step that is not before the last sync; views are part of it.
#[test]
fn a_crash_at_any_point_cuts_views_and_contents_at_the_same_moment() {
    let mut cut_with_views = 0;
    for seed in 0..150_u64 {
        let world = world_with(seed, &create_options());
        world.crash_at_point(100 + seed * 17);
        let engine = world.engine();
        let states = Rc::new(RefCell::new((vec![Views::new()], 0_usize)));
        let outcome = world.run({
            let states = Rc::clone(&states);
            async move {
                let store = open(Rc::clone(&engine)).await;
                // Views are made at every moment of a checkpoint.
                let (checkpointing, clock) = (store.clone(), Rc::clone(&engine));
                engine.spawn(Box::pin(async move {
                    while checkpointing.checkpoint().await.is_ok() {
                        clock.sleep(Duration::from_micros(100 + 37 * seed)).await;
                    }
                }));
                let (mut random, mut views, mut content) = (Random::new(seed), Views::new(), 1);
                loop {
                    store.engine().sleep(Duration::from_micros(random.below(60))).await;
                    step(&store, &mut random, &mut views, &mut content).await.unwrap();
                    states.borrow_mut().0.push(views.clone());
                    if random.below(5) == 0 {
                        let count = states.borrow().0.len();
                        store.sync().await.unwrap();
                        states.borrow_mut().1 = count - 1;
                    }
                }
            }
        });
        assert!(outcome.is_crashed());
        world.restart(CrashMode::PowerLoss, seed);
        expect_clean(&world);
        world.restart(CrashMode::ProcessDeath, seed);
        let (states, synced) = states.take();
        let found = with_store(&world, async move |store| {
            let found = read_views(&store).await;
            give_everything_back(&store, found.clone()).await;
            found
        });
        // What was applied when the crash came may be there and not be among the states.
        let is_one = states[synced..].contains(&found);
        cut_with_views += usize::from(found.live.len() > 2);
        assert!(is_one || is_next(&states, &found), "seed {seed}: no state after the sync of step {synced}");
    }
    assert!(cut_with_views > 20, "{cut_with_views} crashes had views");
}

/// Whether a state may be that of the step during which the crash came: it differs from the last in one view.
fn is_next(states: &[Views], found: &Views) -> bool {
    let last = states.last().unwrap();
    let differs = |(view, held): (&u16, &(Kind, Model))| last.live.get(view) != Some(held);
    let differing = found.live.iter().filter(|(view, held)| differs((view, held))).count();
    let gone = last.live.keys().filter(|view| !found.live.contains_key(view)).count();
    differing + gone <= 1
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let world = world_with(1, &create_options());
    with_store(&world, async |store| {
        put(&store, 1, 1).await.unwrap();
        let first = snapshot(&store, 0).await.unwrap();
        let copy = clone_of(&store, Some(first)).await.unwrap();
        let kind = |result: Result<u16, StoreError>| result.unwrap_err().kind;
        assert_eq!(kind(snapshot(&store, first).await), ErrorKind::Invalid, "a snapshot of a snapshot");
        assert_eq!(kind(clone_of(&store, Some(copy)).await), ErrorKind::Invalid, "a clone of a branch");
        assert_eq!(kind(snapshot(&store, 999).await), ErrorKind::NotFound);
        assert_eq!(remove(&store, first).await.unwrap_err().kind, ErrorKind::Busy);
        assert_eq!(remove(&store, 999).await.unwrap_err().kind, ErrorKind::NotFound);
        remove(&store, copy).await.unwrap();
        assert_eq!(
            remove(&store, copy).await.unwrap_err().kind,
            ErrorKind::NotFound,
            "it is removed already"
        );
        assert_eq!(read_view(&store, first).await, read_view(&store, 0).await);
        let gone = store.get(TREE, Key::new(place(copy, 1), 0)).await.unwrap_err();
        assert_eq!(gone.kind, ErrorKind::NotFound);
        store.close().await.unwrap();
    });
}

/// Snapshots after snapshots without a checkpoint, each of an epoch of its own.
#[test]
fn many_snapshots_in_a_row_hold_what_they_should() {
    let world = world_with(2, &create_options());
    let views = with_store(&world, async |store| {
        let mut views = Views::new();
        for round in 0..60 {
            let contents = [1 + 2 * round, 2 + 2 * round];
            write(&store, 0, round % 30, &contents).await.unwrap();
            views.model(0).write(0, round % 30, &contents);
            let view = snapshot(&store, 0).await.unwrap();
            let held = views.model(0).clone();
            views.live.insert(view, (Kind::Snapshot { branch: 0 }, held));
        }
        assert!(read_views(&store).await == views);
        // Every second one goes, at once.
        for view in views.of_kind(false).into_iter().step_by(2) {
            remove(&store, view).await.unwrap();
            views.live.remove(&view);
        }
        assert!(read_views(&store).await == views);
        store.sync().await.unwrap();
        views
    });
    world.restart(CrashMode::PowerLoss, 2);
    expect_clean(&world);
    world.restart(CrashMode::ProcessDeath, 2);
    with_store(&world, async move |store| {
        assert!(read_views(&store).await == views);
        give_everything_back(&store, views).await;
    });
}
