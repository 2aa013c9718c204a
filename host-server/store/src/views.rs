//! Views: branches and snapshots, and which items of the maps each of them sees.
//!
//! Every item that is written carries the *epoch*, which ends when a view is made. Keys of a branch have its id in their upper bits. A snapshot is a branch and an epoch:
//! it sees the branch's items up to that. A clone is a branch that sees, below its own items, what the snapshot sees that it began as. So making
//! either changes no item and no count.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use crate::address::ViewId;
use crate::error::{ErrorKind, StoreError};
use crate::volume::{ViewChange, ViewEntry, ViewKind, ViewState};

/// Branches that a view may stand on: what is read is looked for in so many.
pub const DEPTH_MAX: usize = 32;

/// Epochs end here: cells of the map of the dead have so many bits for them.
pub const EPOCH_MAX: u32 = (1 << 24) - 1;

/// A part of what a view sees: items of a branch, written in some epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub branch: ViewId,
    pub from: u32,
    pub to: u32,
}

/// What a view sees, what hides the rest first.
pub type Chain = Rc<[Link]>;

/// The volume itself, before anything was said of it.
const VOLUME_ENTRY: ViewEntry =
    ViewEntry { kind: ViewKind::Branch { origin: None }, state: ViewState::Live, epoch: 0, info: Vec::new() };

#[derive(Clone, Debug)]
pub struct Views {
    state: RefCell<State>,
}

impl Default for Views {
    /// The volume alone, in the first epoch.
    fn default() -> Self {
        let mut state = State::default();
        state.derive();
        Self { state: RefCell::new(state) }
    }
}

#[derive(Clone, Debug, Default)]
struct State {
    entries: BTreeMap<ViewId, ViewEntry>,
    /// What is written now belongs to it.
    epoch: u32,
    /// Chains of live views.
    chains: BTreeMap<ViewId, Chain>,
    /// Of each branch with snapshots: the epochs that these end with, ascending.
    kept: BTreeMap<ViewId, Vec<u32>>,
    /// Snapshots that merges take no notice of any more.
    purged: BTreeSet<ViewId>,
    /// Changed since the last checkpoint.
    dirty: BTreeSet<ViewId>,
    /// The id that was given last.
    last_id: u16,
}

impl Views {
    /// The views that a root names. Snapshots that it knows as being removed hold nothing.
    pub fn restore(entries: BTreeMap<ViewId, ViewEntry>, epoch: u32) -> Result<Self, String> {
        for (view, entry) in &entries {
            require_sound(&entries, *view, entry)?;
        }
        let is_purged = |entry: &ViewEntry| {
            entry.state == ViewState::Deleting && matches!(entry.kind, ViewKind::Snapshot { .. })
        };
        let purged = entries.iter().filter(|(_, entry)| is_purged(entry)).map(|(view, _)| *view).collect();
        let last_id = entries.keys().next_back().map_or(0, |view| view.0);
        let mut state = State { entries, epoch, purged, last_id, ..State::default() };
        state.derive();
        Ok(Self { state: RefCell::new(state) })
    }

    /// The epoch of what is written now.
    pub fn epoch(&self) -> u32 {
        self.state.borrow().epoch
    }

    pub fn get(&self, view: ViewId) -> Option<ViewEntry> {
        self.state.borrow().entries.get(&view).cloned()
    }

    /// All that have an entry, in the order of their ids.
    pub fn all(&self) -> Vec<(ViewId, ViewEntry)> {
        self.state.borrow().entries.iter().map(|(view, entry)| (*view, entry.clone())).collect()
    }

    /// An id that no view has, given to nobody else before all others have been.
    pub fn new_id(&self) -> Result<ViewId, StoreError> {
        let mut state = self.state.borrow_mut();
        let begin = state.last_id;
        loop {
            state.last_id = match state.last_id {
                65_534 => 1,
                last => last + 1,
            };
            let view = ViewId(state.last_id);
            if !state.entries.contains_key(&view) {
                return Ok(view);
            }
            if state.last_id == begin {
                let found = format!("there are {} already", state.entries.len());
                return Err(StoreError::new(ErrorKind::NoSpace, "make", "a view", found)
                    .advice("remove snapshots or clones"));
            }
        }
    }

    /// Whether the view is one that is about to be made: what is written from then on belongs to a later epoch.
    pub fn is_new(&self, view: ViewId) -> bool {
        view != ViewId::VOLUME && !self.state.borrow().entries.contains_key(&view)
    }

    /// What some changes make of their views, one after the other, if all of them can be.
    pub fn entries_after<'a>(
        &self,
        changes: impl Iterator<Item = (ViewId, &'a ViewChange)>,
    ) -> Result<VecDeque<ViewEntry>, StoreError> {
        let mut changes = changes.peekable();
        if changes.peek().is_none() {
            return Ok(VecDeque::new());
        }
        let after = self.clone();
        changes
            .map(|(view, change)| {
                let entry = after.entry_after(view, change)?;
                after.put(view, Some(entry.clone()));
                Ok(entry)
            })
            .collect()
    }

    /// Takes in an entry; `None` removes the view.
    pub fn put(&self, view: ViewId, entry: Option<ViewEntry>) {
        let mut state = self.state.borrow_mut();
        if let Some(entry) = &entry {
            let next = match entry.kind {
                ViewKind::Snapshot { .. } => entry.epoch + 1,
                ViewKind::Branch { .. } => entry.epoch,
            };
            state.epoch = state.epoch.max(next);
        }
        match entry {
            Some(entry) => state.entries.insert(view, entry),
            None => {
                state.purged.remove(&view);
                state.entries.remove(&view)
            }
        };
        state.dirty.insert(view);
        state.derive();
    }

    /// What is wrong with an entry that is to be put, if anything.
    pub fn require_sound(&self, view: ViewId, entry: &ViewEntry) -> Result<(), String> {
        let state = self.state.borrow();
        require_sound(&state.entries, view, entry)?;
        let is_known = view == ViewId::VOLUME || state.entries.contains_key(&view);
        let current = match entry.kind {
            ViewKind::Snapshot { .. } => state.epoch,
            ViewKind::Branch { .. } => state.epoch + 1,
        };
        if !is_known && entry.epoch != current {
            return Err(format!("view {view} of epoch {} in epoch {}", entry.epoch, state.epoch));
        }
        Ok(())
    }

    /// What a change makes of a view, if it can be.
    fn entry_after(&self, view: ViewId, change: &ViewChange) -> Result<ViewEntry, StoreError> {
        let state = self.state.borrow();
        let refused = |kind, found: String| StoreError::new(kind, "change", format!("view {view}"), found);
        let live = |view: ViewId| {
            let volume = (view == ViewId::VOLUME).then_some(VOLUME_ENTRY);
            let entry = state.entries.get(&view).cloned().or(volume);
            entry
                .filter(|entry| entry.state == ViewState::Live)
                .ok_or_else(|| refused(ErrorKind::NotFound, format!("there is no view {view}")))
        };
        let made = |kind, epoch, info: &[u8]| {
            if state.entries.contains_key(&view) {
                return Err(refused(ErrorKind::Exists, "it is there already".to_owned()));
            }
            if epoch >= EPOCH_MAX {
                let found = format!("{epoch} views have been made, and there are no numbers for more");
                return Err(refused(ErrorKind::NoSpace, found).advice("copy the data to a new volume"));
            }
            Ok(ViewEntry { kind, state: ViewState::Live, epoch, info: info.to_vec() })
        };
        match change {
            ViewChange::Snapshot { branch, info } => {
                let ViewKind::Branch { .. } = live(*branch)?.kind else {
                    return Err(refused(ErrorKind::Invalid, format!("view {branch} is a snapshot itself")));
                };
                made(ViewKind::Snapshot { branch: *branch }, state.epoch, info)
            }
            ViewChange::Branch { origin, info } => {
                if let Some(origin) = origin {
                    let ViewKind::Snapshot { .. } = live(*origin)?.kind else {
                        return Err(refused(ErrorKind::Invalid, format!("view {origin} is no snapshot")));
                    };
                    let depth = state.chains.get(origin).map_or(0, |chain| chain.len());
                    if depth >= DEPTH_MAX {
                        let found = format!("view {origin} is a clone of a clone already, {depth} times");
                        return Err(refused(ErrorKind::Invalid, found).advice("copy the data instead"));
                    }
                }
                made(ViewKind::Branch { origin: *origin }, state.epoch + 1, info)
            }
            ViewChange::Describe { info } => Ok(ViewEntry { info: info.clone(), ..live(view)? }),
            ViewChange::Remove => {
                let clones = state.clones_of(view).filter(|clone| state.is_needed(*clone)).count();
                if clones > 0 {
                    return Err(refused(ErrorKind::Busy, format!("{clones} clones stand on it")));
                }
                Ok(ViewEntry { state: ViewState::Deleting, ..live(view)? })
            }
        }
    }

    /// Views that were put or removed since this was asked last, with their entries.
    pub fn take_dirty(&self) -> Vec<(ViewId, Option<ViewEntry>)> {
        let mut state = self.state.borrow_mut();
        let dirty = std::mem::take(&mut state.dirty);
        dirty.into_iter().map(|view| (view, state.entries.get(&view).cloned())).collect()
    }

    /// Snapshots that a durable root says are being removed hold nothing from now on.
    pub fn purge(&self, snapshots: &[ViewId]) {
        let mut state = self.state.borrow_mut();
        state.purged.extend(snapshots);
        state.derive();
    }

    /// What a live view sees. `NotFound` where there is none, or no more.
    pub fn chain(&self, view: ViewId) -> Result<Chain, StoreError> {
        self.state.borrow().chains.get(&view).cloned().ok_or_else(|| {
            StoreError::new(
                ErrorKind::NotFound,
                "read",
                format!("view {view}"),
                "it is not there, or was removed",
            )
        })
    }

    /// Whether a snapshot of the branch sees what was written in epoch `birth` and displaced in epoch `death`.
    pub fn is_seen(&self, branch: ViewId, birth: u32, death: u32) -> bool {
        let state = self.state.borrow();
        let Some(kept) = state.kept.get(&branch) else { return false };
        let next = kept.partition_point(|epoch| *epoch < birth);
        kept.get(next).is_some_and(|epoch| *epoch < death)
    }

    /// Whether something lies below a branch's own items, which an erasure hides.
    pub fn stands_on_another(&self, branch: ViewId) -> bool {
        let state = self.state.borrow();
        let Some(entry) = state.entries.get(&branch) else { return false };
        let is_read = entry.state == ViewState::Live || state.kept.contains_key(&branch);
        is_read && matches!(entry.kind, ViewKind::Branch { origin: Some(_) })
    }

    /// Whether a branch has snapshots, of whatever state.
    pub fn has_snapshots(&self, branch: ViewId) -> bool {
        let state = self.state.borrow();
        state.entries.values().any(|entry| entry.kind == ViewKind::Snapshot { branch })
    }

    /// Whether branches began as this snapshot, of whatever state.
    pub fn has_clones(&self, snapshot: ViewId) -> bool {
        self.state.borrow().clones_of(snapshot).next().is_some()
    }

    /// Whether any snapshot holds what is overwritten in a branch from now on.
    pub fn keeps_what_is_overwritten(&self) -> bool {
        !self.state.borrow().kept.is_empty()
    }

    /// When that must have died which a snapshot alone sees.
    pub fn alone(&self, snapshot: ViewId) -> Option<Alone> {
        let state = self.state.borrow();
        let entry = state.entries.get(&snapshot)?;
        let ViewKind::Snapshot { branch } = entry.kind else { return None };
        let kept = state.kept.get(&branch).map(Vec::as_slice).unwrap_or_default();
        let next = kept.iter().find(|epoch| **epoch > entry.epoch);
        Some(Alone { branch, epoch: entry.epoch, next: next.copied().unwrap_or(EPOCH_MAX) })
    }
}

/// Of a snapshot: what it alone sees died after its epoch, and not after that of the next snapshot of its branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alone {
    pub branch: ViewId,
    pub epoch: u32,
    pub next: u32,
}

fn require_sound(
    entries: &BTreeMap<ViewId, ViewEntry>,
    view: ViewId,
    entry: &ViewEntry,
) -> Result<(), String> {
    let is_branch = |branch: ViewId| {
        let found = entries.get(&branch);
        branch == ViewId::VOLUME || found.is_some_and(|entry| matches!(entry.kind, ViewKind::Branch { .. }))
    };
    let is_snapshot = |snapshot: ViewId| {
        entries.get(&snapshot).is_some_and(|entry| matches!(entry.kind, ViewKind::Snapshot { .. }))
    };
    let is_sound = match entry.kind {
        ViewKind::Snapshot { branch } => view != ViewId::VOLUME && is_branch(branch),
        ViewKind::Branch { origin } => origin.is_none_or(|origin| {
            let began = entries.get(&origin).map_or(0, |origin| origin.epoch);
            view != ViewId::VOLUME && is_snapshot(origin) && began < entry.epoch
        }),
    };
    if !is_sound || entry.epoch > EPOCH_MAX || view.0 == u16::MAX {
        return Err(format!("view {view} that makes no sense: {:?} of epoch {}", entry.kind, entry.epoch));
    }
    Ok(())
}

impl State {
    fn clones_of(&self, snapshot: ViewId) -> impl Iterator<Item = ViewId> {
        let is_clone = move |entry: &ViewEntry| entry.kind == ViewKind::Branch { origin: Some(snapshot) };
        self.entries.iter().filter(move |(_, entry)| is_clone(entry)).map(|(view, _)| *view)
    }

    /// Whether somebody sees a branch, or a snapshot of it.
    fn is_needed(&self, branch: ViewId) -> bool {
        let is_seen = |(view, entry): (&ViewId, &ViewEntry)| {
            let is_of = *view == branch || entry.kind == ViewKind::Snapshot { branch };
            is_of && entry.state == ViewState::Live
        };
        self.entries.iter().any(is_seen)
    }

    /// Works out what follows from the entries.
    fn derive(&mut self) {
        self.kept.clear();
        for (view, entry) in &self.entries {
            if let ViewKind::Snapshot { branch } = entry.kind
                && !self.purged.contains(view)
            {
                self.kept.entry(branch).or_default().push(entry.epoch);
            }
        }
        self.kept.values_mut().for_each(|epochs| epochs.sort_unstable());
        let views = self.entries.keys().copied().chain([ViewId::VOLUME, ViewId::OUTSIDE]);
        self.chains = views.filter_map(|view| Some((view, self.chain_of(view)?))).collect();
    }

    fn chain_of(&self, view: ViewId) -> Option<Chain> {
        let mut links = Vec::new();
        let (mut branch, mut to) = match self.entries.get(&view) {
            None if view == ViewId::VOLUME || view == ViewId::OUTSIDE => (view, u32::MAX),
            Some(entry) if entry.state == ViewState::Live => match entry.kind {
                ViewKind::Branch { .. } => (view, u32::MAX),
                ViewKind::Snapshot { branch } => (branch, entry.epoch),
            },
            _ => return None,
        };
        while links.len() <= DEPTH_MAX {
            let entry = self.entries.get(&branch);
            links.push(Link { branch, from: entry.map_or(0, |entry| entry.epoch), to });
            let Some(ViewKind::Branch { origin: Some(origin) }) = entry.map(|entry| entry.kind) else {
                break;
            };
            let origin = self.entries.get(&origin)?;
            let ViewKind::Snapshot { branch: below } = origin.kind else { return None };
            (branch, to) = (below, origin.epoch);
        }
        Some(links.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(branch: u16, epoch: u32) -> Option<ViewEntry> {
        let kind = ViewKind::Snapshot { branch: ViewId(branch) };
        Some(ViewEntry { kind, state: ViewState::Live, epoch, info: Vec::new() })
    }

    fn branch(origin: Option<u16>, epoch: u32) -> Option<ViewEntry> {
        let kind = ViewKind::Branch { origin: origin.map(ViewId) };
        Some(ViewEntry { kind, state: ViewState::Live, epoch, info: Vec::new() })
    }

    fn links(views: &Views, view: u16) -> Vec<(u16, u32, u32)> {
        let chain = views.chain(ViewId(view)).unwrap();
        chain.iter().map(|link| (link.branch.0, link.from, link.to)).collect()
    }

    #[test]
    fn a_clone_sees_what_its_snapshot_sees_below_its_own() {
        let views = Views::default();
        assert_eq!(links(&views, 0), [(0, 0, u32::MAX)]);
        views.put(ViewId(1), snapshot(0, 0));
        assert_eq!(views.epoch(), 1);
        views.put(ViewId(2), branch(Some(1), 2));
        assert_eq!(views.epoch(), 2);
        views.put(ViewId(3), snapshot(2, 2));
        assert_eq!(links(&views, 1), [(0, 0, 0)]);
        assert_eq!(links(&views, 2), [(2, 2, u32::MAX), (0, 0, 0)]);
        assert_eq!(links(&views, 3), [(2, 2, 2), (0, 0, 0)]);
        assert!(views.stands_on_another(ViewId(2)) && !views.stands_on_another(ViewId(0)));
        assert!(views.has_clones(ViewId(1)) && !views.has_clones(ViewId(3)));
        assert!(views.chain(ViewId(9)).is_err());
    }

    #[test]
    fn what_dies_between_two_snapshots_is_seen_by_none() {
        let views = Views::default();
        for (view, epoch) in [(1, 0), (2, 5), (3, 9)] {
            views.put(ViewId(view), snapshot(0, epoch));
        }
        let is_seen = |birth, death| views.is_seen(ViewId(0), birth, death);
        assert!(is_seen(0, 1) && is_seen(3, 6) && is_seen(5, 6) && is_seen(0, 100));
        assert!(!is_seen(1, 5) && !is_seen(6, 9) && !is_seen(10, 100) && !is_seen(5, 5));
        assert!(!views.is_seen(ViewId(4), 0, 100));
        assert_eq!(views.alone(ViewId(2)), Some(Alone { branch: ViewId(0), epoch: 5, next: 9 }));
        views.purge(&[ViewId(2)]);
        assert!(!views.is_seen(ViewId(0), 3, 6) && views.is_seen(ViewId(0), 3, 10));
    }

    #[test]
    fn ids_are_given_in_turn() {
        let views = Views::default();
        assert_eq!(views.new_id().unwrap(), ViewId(1));
        views.put(ViewId(2), snapshot(0, 0));
        assert_eq!(views.new_id().unwrap(), ViewId(3));
        views.put(ViewId(2), None);
        assert_eq!(views.new_id().unwrap(), ViewId(4));
    }

    #[test]
    fn entries_that_stand_on_nothing_are_refused() {
        let views = Views::default();
        views.put(ViewId(1), snapshot(0, 0));
        let refused =
            |view, entry: Option<ViewEntry>| views.require_sound(ViewId(view), &entry.unwrap()).is_err();
        assert!(refused(2, snapshot(1, 1)), "a snapshot of a snapshot");
        assert!(refused(2, branch(Some(0), 2)), "a clone of a branch");
        assert!(refused(0, branch(Some(1), 2)), "the volume is no clone");
        assert!(refused(2, snapshot(0, 7)), "an epoch to come");
        assert!(
            !refused(2, snapshot(0, 1)) && !refused(2, branch(Some(1), 2)) && !refused(2, branch(None, 2))
        );
    }

    #[test]
    fn what_is_restored_is_what_was_put() {
        let views = Views::default();
        views.put(ViewId(1), snapshot(0, 0));
        views.put(ViewId(2), branch(Some(1), 2));
        let deleting = ViewEntry { state: ViewState::Deleting, ..snapshot(0, 3).unwrap() };
        views.put(ViewId(3), Some(deleting));
        let entries = views.take_dirty().into_iter().map(|(view, entry)| (view, entry.unwrap())).collect();
        let restored = Views::restore(entries, views.epoch()).unwrap();
        assert_eq!(links(&restored, 2), links(&views, 2));
        assert!(views.is_seen(ViewId(0), 3, 4) && !restored.is_seen(ViewId(0), 3, 4));
        assert!(restored.chain(ViewId(3)).is_err());
    }
}
