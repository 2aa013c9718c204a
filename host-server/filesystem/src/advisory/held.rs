//! The locks held on one file: what excludes what, and how ranges of one holder merge and split.

use crate::operation::{HandleId, LockMode, LockOwner, LockRange, SessionId};

/// Who holds a lock: an owner's number means nothing outside its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    pub session: SessionId,
    pub owner: LockOwner,
}

/// A lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub holder: Holder,
    /// It goes with this handle, at the latest.
    pub handle: HandleId,
    pub range: LockRange,
    pub mode: LockMode,
    pub pid: u32,
}

impl Held {
    fn with(&self, range: LockRange) -> Self {
        Self { range, ..*self }
    }
}

/// All locks of one family on one file, in no order. The ranges of one holder never overlap, and touch only where their
/// modes differ.
#[derive(Debug, Default)]
pub(super) struct HeldLocks(Vec<Held>);

impl HeldLocks {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of others that keep `holder` from locking `range`.
    pub fn conflicts(
        &self,
        holder: Holder,
        range: LockRange,
        mode: LockMode,
    ) -> impl Iterator<Item = &Held> + use<'_> {
        self.0.iter().filter(move |held| {
            held.holder != holder
                && held.range.overlaps(range)
                && (held.mode == LockMode::Exclusive || mode == LockMode::Exclusive)
        })
    }

    pub fn of(&self, holder: Holder) -> impl Iterator<Item = &Held> + use<'_> {
        self.0.iter().filter(move |held| held.holder == holder)
    }

    /// Gives `new` to its holder, in place of what the holder had there.
    pub fn put(&mut self, mut new: Held) {
        self.clear(new.holder, new.range);
        self.0.retain(|held| {
            let merges = held.holder == new.holder && held.mode == new.mode && held.range.touches(new.range);
            if merges {
                new.range = new.range.joined(held.range);
            }
            !merges
        });
        self.0.push(new);
    }

    /// Takes `range` from the holder.
    pub fn clear(&mut self, holder: Holder, range: LockRange) {
        let mut rest = Vec::new();
        self.0.retain(|held| {
            let touched = held.holder == holder && held.range.overlaps(range);
            if touched {
                rest.extend(held.range.without(range).into_iter().flatten().map(|range| held.with(range)));
            }
            !touched
        });
        self.0.append(&mut rest);
    }

    /// How many more locks there will be after `holder` gets or gives up `range`, at most.
    pub fn growth_max(&self, holder: Holder, range: LockRange, unlocks: bool) -> usize {
        let splits = self.of(holder).any(|held| held.range.start < range.start && range.end < held.range.end);
        usize::from(!unlocks) + usize::from(splits)
    }

    /// Takes away all of which `goes` is true. Whether there were any.
    pub fn remove(&mut self, goes: impl Fn(&Held) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|held| !goes(held));
        self.0.len() < before
    }

    pub fn count(&self, session: SessionId) -> usize {
        self.0.iter().filter(|held| held.holder.session == session).count()
    }
}
