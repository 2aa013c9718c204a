use super::*;
use crate::operation::LockOwner;

fn holder(owner: u64) -> Holder {
    Holder { session: SessionId(owner / 10), owner: LockOwner(owner) }
}

fn claim(owner: u64, family: LockFamily, start: u64, end: u64, mode: LockMode) -> Claim {
    let range = LockRange::new(start, end).unwrap();
    Claim {
        number: 7,
        family,
        holder: holder(owner),
        handle: HandleId(owner),
        range,
        mode,
        pid: owner as u32,
    }
}

fn exclusive(owner: u64, start: u64, end: u64) -> Claim {
    claim(owner, LockFamily::Range, start, end, LockMode::Exclusive)
}

fn flock(owner: u64, mode: LockMode) -> Claim {
    let range = LockRange::WHOLE;
    claim(owner, LockFamily::WholeFile, range.start, range.end, mode)
}

fn poll(acquire: &mut Pin<Box<Acquire>>) -> Option<Result<(), Errno>> {
    match acquire.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

fn take(locks: &AdvisoryLocks, claim: Claim) -> Result<(), Errno> {
    poll(&mut Box::pin(locks.acquire(claim, false))).unwrap()
}

/// A waiter that has been polled once, and was not let in.
fn parked(locks: &AdvisoryLocks, claim: Claim) -> Pin<Box<Acquire>> {
    let mut acquire = Box::pin(locks.acquire(claim, true));
    assert_eq!(poll(&mut acquire), None);
    acquire
}

fn unlock(locks: &AdvisoryLocks, claim: Claim) {
    locks.unlock(claim.number, claim.family, claim.holder, claim.range).unwrap();
}

#[test]
fn a_dropped_waiter_leaves_nothing_and_keeps_nobody_out() {
    let locks = AdvisoryLocks::new(100);
    take(&locks, exclusive(1, 0, 9)).unwrap();
    let first = parked(&locks, exclusive(2, 0, 9));
    let mut second = parked(&locks, exclusive(3, 5, 9));
    assert_eq!(locks.counts(), (1, 2));
    unlock(&locks, exclusive(1, 0, 9));
    // Both were woken; the first never has its turn.
    drop(first);
    assert_eq!(poll(&mut second), Some(Ok(())));
    drop(second);
    assert_eq!(locks.counts(), (1, 0));
    locks.close_session(holder(3).session);
    assert_eq!(locks.counts(), (0, 0));
    assert!(locks.table.borrow().files.is_empty());
}

#[test]
fn a_circle_of_waiting_owners_is_refused_and_a_chain_is_not() {
    let locks = AdvisoryLocks::new(100);
    for owner in 0..5 {
        take(&locks, exclusive(owner, owner, owner)).unwrap();
    }
    let waiting: Vec<_> =
        (0..4).map(|owner| parked(&locks, exclusive(owner, owner + 1, owner + 1))).collect();
    let mut closing = Box::pin(locks.acquire(exclusive(4, 0, 0), true));
    assert_eq!(poll(&mut closing), Some(Err(Errno::EDEADLK)));
    drop(waiting);
    let _chain = parked(&locks, exclusive(4, 0, 0));
}

#[test]
fn a_circle_that_comes_about_while_waiting_is_found_at_the_next_turn() {
    let locks = AdvisoryLocks::new(100);
    take(&locks, exclusive(1, 0, 0)).unwrap();
    take(&locks, exclusive(2, 5, 5)).unwrap();
    let mut waiting = parked(&locks, exclusive(2, 0, 0));
    let _third = parked(&locks, exclusive(3, 5, 5));
    // Another thread of owner 3 is quicker than the waiter that was woken.
    unlock(&locks, exclusive(1, 0, 0));
    take(&locks, exclusive(3, 0, 0)).unwrap();
    assert_eq!(poll(&mut waiting), Some(Err(Errno::EDEADLK)));
}

#[test]
fn flock_conversions_give_up_the_old_lock_first() {
    let locks = AdvisoryLocks::new(100);
    take(&locks, flock(1, LockMode::Shared)).unwrap();
    take(&locks, flock(2, LockMode::Shared)).unwrap();
    let mut first = parked(&locks, flock(1, LockMode::Exclusive));
    assert_eq!(take(&locks, flock(2, LockMode::Exclusive)), Ok(()));
    unlock(&locks, flock(2, LockMode::Exclusive));
    assert_eq!(poll(&mut first), Some(Ok(())));
    assert_eq!(take(&locks, flock(2, LockMode::Shared)), Err(Errno::EAGAIN));
    // The two families know nothing of each other.
    take(&locks, exclusive(2, 0, 9)).unwrap();
}

#[test]
fn closing_a_handle_or_session_ends_its_waiters_and_frees_others() {
    let locks = AdvisoryLocks::new(100);
    take(&locks, exclusive(1, 0, 9)).unwrap();
    let mut by_handle = parked(&locks, exclusive(2, 0, 9));
    let mut by_session = parked(&locks, exclusive(33, 0, 9));
    locks.close_handle(7, holder(2).session, HandleId(2));
    assert_eq!(poll(&mut by_handle), Some(Err(Errno::EBADF)));
    locks.close_session(holder(33).session);
    assert_eq!(poll(&mut by_session), Some(Err(Errno::ESTALE)));
    let mut last = parked(&locks, exclusive(44, 0, 9));
    locks.close_handle(7, holder(1).session, HandleId(1));
    assert_eq!(poll(&mut last), Some(Ok(())));
}

#[test]
fn a_session_has_so_many_locks_and_no_more() {
    let locks = AdvisoryLocks::new(3);
    for at in [0, 2] {
        take(&locks, exclusive(1, at, at)).unwrap();
    }
    take(&locks, exclusive(1, 10, 20)).unwrap();
    assert_eq!(take(&locks, exclusive(1, 4, 4)), Err(Errno::ENOLCK));
    // A hole in the middle makes two of one.
    assert_eq!(
        locks.unlock(7, LockFamily::Range, holder(1), LockRange::new(12, 13).unwrap()),
        Err(Errno::ENOLCK)
    );
    take(&locks, exclusive(11, 4, 4)).unwrap();
    unlock(&locks, exclusive(1, 10, 20));
    take(&locks, exclusive(1, 1, 1)).unwrap();
    assert_eq!(locks.table.borrow().count(SessionId(0)), 1, "neighbours merge");
}
