//! Advisory locks: fcntl's on byte ranges and flock's on whole files, shared by all sessions.
//!
//! They live in memory and end with whoever took them: with an unlock, with the handle, with the session. Unlike the
//! filesystem's own [`crate::lock`]s they order nothing in here.
//!
//! # Waiting
//! Nothing is ever given to a waiter. When what it waits for has gone it is woken, and takes its lock when it is polled; one that
//! is dropped leaves no trace. A wake-up goes to every waiter that nothing held keeps out, so none is lost with a waiter that
//! is dropped between its wake-up and its turn.
//!
//! # Deadlocks
//! A range lock that would close a circle of waiting owners is refused, as in Linux; so is one for an open file description's
//! owner, of which a front end does not tell. flock never looks: its conversions give up the old lock first.

mod held;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::errno::Errno;
use crate::operation::{HandleId, HeldLock, LockFamily, LockMode, LockRange, SessionId};

pub(crate) use held::Holder;
use held::{Held, HeldLocks};

/// Owners that a search for a deadlock looks at. A longer chain is taken for none.
const DEADLOCK_OWNERS_MAX: usize = 1024;

/// A lock as it is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// The inode's.
    pub number: u64,
    pub family: LockFamily,
    pub holder: Holder,
    pub handle: HandleId,
    pub range: LockRange,
    pub mode: LockMode,
    pub pid: u32,
}

struct Waiter {
    claim: Claim,
    /// Of the latest poll; taken by the wake-up.
    waker: RefCell<Option<Waker>>,
    /// Why it waits in vain.
    ended: Cell<Option<Errno>>,
}

impl Waiter {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

#[derive(Default)]
struct Table {
    files: BTreeMap<(u64, LockFamily), HeldLocks>,
    /// In the order in which they came.
    waiting: Vec<Rc<Waiter>>,
    /// Locks of each session that has any.
    counts: BTreeMap<SessionId, usize>,
}

/// The advisory locks of a filesystem.
#[derive(Clone)]
pub(crate) struct AdvisoryLocks {
    table: Rc<RefCell<Table>>,
    per_session_max: usize,
}

impl AdvisoryLocks {
    /// A session may hold `per_session_max` locks.
    pub fn new(per_session_max: usize) -> Self {
        Self { table: Rc::default(), per_session_max }
    }

    /// Resolves when the lock is held: `EAGAIN` where it is not to be had at once and the caller does not `wait`, `EDEADLK` where
    /// waiting would never end, `ENOLCK` where the session has too many.
    pub fn acquire(&self, claim: Claim, wait: bool) -> Acquire {
        Acquire { locks: self.clone(), claim, wait, waiter: None }
    }

    /// Gives up what the holder has in a range.
    pub fn unlock(
        &self,
        number: u64,
        family: LockFamily,
        holder: Holder,
        range: LockRange,
    ) -> Result<(), Errno> {
        let mut table = self.table.borrow_mut();
        let Some(held) = table.files.get(&(number, family)) else { return Ok(()) };
        let growth = held.growth_max(holder, range, true);
        if growth > 0 && table.count(holder.session) + growth > self.per_session_max {
            return Err(Errno::ENOLCK);
        }
        table.change((number, family), holder.session, |held| held.clear(holder, range));
        table.wake((number, family));
        Ok(())
    }

    /// The first lock of another holder that keeps this one out.
    pub fn conflict(&self, claim: &Claim) -> Option<HeldLock> {
        let table = self.table.borrow();
        let held = table.files.get(&(claim.number, claim.family))?;
        let conflicts = held.conflicts(claim.holder, claim.range, claim.mode);
        conflicts.min_by_key(|held| held.range.start).map(|held| HeldLock {
            range: held.range,
            mode: held.mode,
            // Another guest's processes have numbers of their own.
            pid: if held.holder.session == claim.holder.session { held.pid } else { 0 },
        })
    }

    /// A handle was closed: what was locked through it goes, and whoever waits through it gives up.
    pub fn close_handle(&self, number: u64, session: SessionId, handle: HandleId) {
        let mut table = self.table.borrow_mut();
        for family in [LockFamily::Range, LockFamily::WholeFile] {
            table.release((number, family), session, |held| {
                held.holder.session == session && held.handle == handle
            });
        }
        table.end_waiting(Errno::EBADF, |claim| claim.holder.session == session && claim.handle == handle);
    }

    /// A descriptor was closed: the range locks of its owner go.
    pub fn close_owner(&self, number: u64, holder: Holder) {
        let mut table = self.table.borrow_mut();
        table.release((number, LockFamily::Range), holder.session, |held| held.holder == holder);
    }

    /// A session has ended.
    pub fn close_session(&self, session: SessionId) {
        let mut table = self.table.borrow_mut();
        if table.count(session) > 0 {
            let files: Vec<_> = table.files.keys().copied().collect();
            for file in files {
                table.release(file, session, |held| held.holder.session == session);
            }
        }
        table.end_waiting(Errno::ESTALE, |claim| claim.holder.session == session);
    }

    /// Locks held and waiters, for status reports and tests.
    pub fn counts(&self) -> (usize, usize) {
        let table = self.table.borrow();
        (table.counts.values().sum(), table.waiting.len())
    }
}

type File = (u64, LockFamily);

impl Table {
    fn count(&self, session: SessionId) -> usize {
        self.counts.get(&session).copied().unwrap_or(0)
    }

    /// Changes the locks that `session` holds on a file.
    fn change<T>(&mut self, file: File, session: SessionId, change: impl FnOnce(&mut HeldLocks) -> T) -> T {
        let held = self.files.entry(file).or_default();
        let before = held.count(session);
        let result = change(held);
        let after = held.count(session);
        if held.is_empty() {
            self.files.remove(&file);
        }
        let count = self.counts.entry(session).or_default();
        *count = *count + after - before;
        if *count == 0 {
            self.counts.remove(&session);
        }
        result
    }

    fn release(&mut self, file: File, session: SessionId, goes: impl Fn(&Held) -> bool) {
        if self.files.contains_key(&file) && self.change(file, session, |held| held.remove(goes)) {
            self.wake(file);
        }
    }

    /// Wakes those that nothing on the file keeps out any more.
    fn wake(&self, file: File) {
        for waiter in &self.waiting {
            let claim = &waiter.claim;
            if (claim.number, claim.family) == file && self.blockers(claim).next().is_none() {
                waiter.wake();
            }
        }
    }

    fn end_waiting(&self, errno: Errno, ends: impl Fn(&Claim) -> bool) {
        for waiter in self.waiting.iter().filter(|waiter| ends(&waiter.claim)) {
            waiter.ended.set(Some(errno));
            waiter.wake();
        }
    }

    fn blockers(&self, claim: &Claim) -> impl Iterator<Item = Holder> + use<'_> {
        let held = self.files.get(&(claim.number, claim.family));
        let (holder, range, mode) = (claim.holder, claim.range, claim.mode);
        held.into_iter().flat_map(move |held| held.conflicts(holder, range, mode)).map(|held| held.holder)
    }

    /// Takes the lock if nothing keeps it out. `None`: something does.
    fn take(&mut self, claim: &Claim, per_session_max: usize) -> Option<Result<(), Errno>> {
        let file = (claim.number, claim.family);
        let (holder, range) = (claim.holder, claim.range);
        if claim.family == LockFamily::WholeFile {
            // As in Linux: a conversion begins by giving up what it converts.
            self.release(file, holder.session, |held| held.holder == holder && held.mode != claim.mode);
        }
        if self.blockers(claim).next().is_some() {
            return None;
        }
        let growth = self.files.get(&file).map_or(1, |held| held.growth_max(holder, range, false));
        if self.count(holder.session) + growth > per_session_max {
            return Some(Err(Errno::ENOLCK));
        }
        let new = Held { holder, handle: claim.handle, range, mode: claim.mode, pid: claim.pid };
        let had = self.files.get(&file).is_some_and(|held| held.of(holder).next().is_some());
        self.change(file, holder.session, |held| held.put(new));
        if had {
            // It may have become a shared one.
            self.wake(file);
        }
        Some(Ok(()))
    }

    /// Whether those that keep `claim` out wait, in the end, for its holder.
    fn deadlocks(&self, claim: &Claim) -> bool {
        let mut seen = BTreeSet::new();
        let mut next: Vec<Holder> = self.blockers(claim).collect();
        while let Some(holder) = next.pop() {
            if holder == claim.holder {
                return true;
            }
            if !seen.insert(holder) {
                continue;
            }
            if seen.len() > DEADLOCK_OWNERS_MAX {
                return false;
            }
            let waits = self
                .waiting
                .iter()
                .filter(|waiter| waiter.claim.holder == holder && waiter.claim.family == LockFamily::Range);
            next.extend(waits.flat_map(|waiter| self.blockers(&waiter.claim)));
        }
        false
    }
}

/// Resolves to a lock taken.
#[must_use]
pub(crate) struct Acquire {
    locks: AdvisoryLocks,
    claim: Claim,
    wait: bool,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Acquire {
    type Output = Result<(), Errno>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        let this = &mut *self;
        if let Some(errno) = this.waiter.as_ref().and_then(|waiter| waiter.ended.get()) {
            return Poll::Ready(Err(errno));
        }
        let mut table = this.locks.table.borrow_mut();
        if let Some(result) = table.take(&this.claim, this.locks.per_session_max) {
            return Poll::Ready(result);
        }
        if !this.wait {
            return Poll::Ready(Err(Errno::EAGAIN));
        }
        if this.claim.family == LockFamily::Range && table.deadlocks(&this.claim) {
            return Poll::Ready(Err(Errno::EDEADLK));
        }
        let waiter = this.waiter.get_or_insert_with(|| {
            let waiter =
                Rc::new(Waiter { claim: this.claim, waker: RefCell::default(), ended: Cell::new(None) });
            table.waiting.push(Rc::clone(&waiter));
            waiter
        });
        *waiter.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            self.locks.table.borrow_mut().waiting.retain(|other| !Rc::ptr_eq(other, &waiter));
        }
    }
}

#[cfg(test)]
mod tests;
