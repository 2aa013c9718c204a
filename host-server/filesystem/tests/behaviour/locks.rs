//! Advisory locks: against a model, between sessions, and with handles that come and go.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use ringfort_filesystem::operation::*;
use ringfort_reference::{Errno, Random};
use ringfort_store::model::ModelSettings;

use crate::world::{Guest, make, run};

const BYTES: usize = 24;
const OWNERS: usize = 5;

/// What each owner holds of each byte.
#[derive(Default)]
struct Bytes([[Option<LockMode>; BYTES]; OWNERS]);

impl Bytes {
    fn keeps_out(&self, owner: usize, at: usize, mode: LockMode) -> bool {
        let others = (0..OWNERS).filter(|&other| other != owner).filter_map(|other| self.0[other][at]);
        others.into_iter().any(|held| held == LockMode::Exclusive || mode == LockMode::Exclusive)
    }
}

fn set(handle: HandleId, owner: u64, range: LockRange, mode: Option<LockMode>) -> Operation {
    let (family, owner) = (LockFamily::Range, LockOwner(owner));
    Operation::SetLock { handle, owner, family, range, mode, pid: owner.0 as u32, wait: false }
}

fn flock(handle: HandleId, mode: Option<LockMode>, wait: bool) -> Operation {
    let (family, range) = (LockFamily::WholeFile, LockRange::WHOLE);
    Operation::SetLock { handle, owner: LockOwner(handle.0), family, range, mode, pid: 1, wait }
}

async fn guests(count: usize) -> Vec<Guest> {
    let fs = make(ModelSettings::default()).await;
    let guests: Vec<_> = (0..count).map(|_| Guest::new(&fs)).collect();
    guests[0].put("/f", b"contents").await.unwrap();
    guests
}

#[test]
fn range_locks_do_what_a_model_of_single_bytes_does() {
    for seed in 1..=30 {
        run(async {
            let guests = guests(OWNERS).await;
            let mut handles = Vec::new();
            for guest in &guests {
                handles.push(guest.open("/f", "rw").await.unwrap());
            }
            let mut random = Random::new(seed);
            let mut model = Bytes::default();
            for _ in 0..400 {
                let owner = random.below(OWNERS as u64) as usize;
                let start = random.below(BYTES as u64) as usize;
                let end = (start + random.below(8) as usize).min(BYTES - 1);
                let mode =
                    [None, Some(LockMode::Shared), Some(LockMode::Exclusive)][random.below(3) as usize];
                let range = LockRange::new(start as u64, end as u64).unwrap();
                let (guest, handle) = (&guests[owner], handles[owner]);
                let kept_out =
                    mode.and_then(|mode| (start..=end).find(|&at| model.keeps_out(owner, at, mode)));
                if let Some(mode) = mode {
                    let get = Operation::GetLock { handle, owner: LockOwner(1), range, mode };
                    let Reply::Lock(found) = guest.execute(get).await.unwrap() else { panic!() };
                    assert_eq!(found.is_some(), kept_out.is_some());
                    if let (Some(found), Some(first)) = (found, kept_out) {
                        let (from, to) = (found.range.start as usize, found.range.end as usize);
                        assert!(from <= first && first <= to, "{found:?} is not the first, at {first}");
                        assert_eq!(found.pid, 0, "a process of another guest");
                        assert!((0..OWNERS).any(|other| {
                            other != owner && (from..=to).all(|at| model.0[other][at] == Some(found.mode))
                        }));
                    }
                }
                let expected = if kept_out.is_some() { Err(Errno::EAGAIN) } else { Ok(()) };
                assert_eq!(guest.done(set(handle, 1, range, mode)).await, expected, "seed {seed}");
                if expected.is_ok() {
                    model.0[owner][start..=end].fill(mode);
                }
                let held = model.0.iter().map(|bytes| {
                    (0..BYTES)
                        .filter(|&at| bytes[at].is_some() && (at == 0 || bytes[at - 1] != bytes[at]))
                        .count()
                });
                assert_eq!(guests[0].fs.counts().advisory_locks, held.sum::<usize>(), "runs of equal bytes");
            }
        });
    }
}

#[test]
fn a_closed_descriptor_drops_its_owners_range_locks_and_no_others() {
    run(async {
        let guests = guests(2).await;
        let first = guests[0].open("/f", "rw").await.unwrap();
        let second = guests[0].open("/f", "rw").await.unwrap();
        let other = guests[1].open("/f", "rw").await.unwrap();
        let range = |start, end| LockRange::new(start, end).unwrap();
        let exclusive = Some(LockMode::Exclusive);
        guests[0].done(set(first, 5, range(0, 9), exclusive)).await.unwrap();
        guests[0].done(set(first, 6, range(10, 19), exclusive)).await.unwrap();
        guests[0].done(flock(second, exclusive, false)).await.unwrap();
        // Any descriptor of the file will do, as POSIX has it.
        guests[0].done(Operation::Flush { handle: second, owner: Some(LockOwner(5)) }).await.unwrap();
        guests[1].done(set(other, 5, range(0, 9), exclusive)).await.unwrap();
        assert_eq!(guests[1].done(set(other, 5, range(10, 10), exclusive)).await, Err(Errno::EAGAIN));
        assert_eq!(guests[1].done(flock(other, Some(LockMode::Shared), false)).await, Err(Errno::EAGAIN));
        // What nobody flushed goes with the handle.
        guests[0].close(first).await.unwrap();
        guests[0].close(second).await.unwrap();
        guests[1].done(set(other, 5, range(10, 10), exclusive)).await.unwrap();
        guests[1].done(flock(other, exclusive, false)).await.unwrap();
        guests[1].fs.close_session(guests[1].session).await;
        let counts = guests[0].fs.counts();
        assert_eq!((counts.advisory_locks, counts.held_inodes), (0, 0));
    });
}

#[test]
fn range_locks_need_a_handle_that_may_do_what_they_guard() {
    run(async {
        let guests = guests(1).await;
        let (read, write) =
            (guests[0].open("/f", "r").await.unwrap(), guests[0].open("/f", "w").await.unwrap());
        let lock = |handle, mode| guests[0].done(set(handle, 1, LockRange::WHOLE, Some(mode)));
        assert_eq!(lock(read, LockMode::Exclusive).await, Err(Errno::EBADF));
        assert_eq!(lock(write, LockMode::Shared).await, Err(Errno::EBADF));
        lock(read, LockMode::Shared).await.unwrap();
        lock(write, LockMode::Exclusive).await.unwrap();
        guests[0].done(flock(read, Some(LockMode::Exclusive), false)).await.unwrap();
        assert_eq!(lock(HandleId(99), LockMode::Shared).await, Err(Errno::EBADF));
        for (start, end) in [(2, 1), (0, 1 << 63), (u64::MAX, u64::MAX)] {
            assert_eq!(LockRange::new(start, end), Err(ringfort_filesystem::errno::Errno::EINVAL));
        }
    });
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_waiter_has_the_lock_when_the_other_guest_is_gone_and_leaves_nothing_when_dropped() {
    run(async {
        let guests = guests(3).await;
        let mut handles = Vec::new();
        for guest in &guests {
            handles.push(guest.open("/f", "rw").await.unwrap());
        }
        let exclusive = Some(LockMode::Exclusive);
        guests[0].done(flock(handles[0], exclusive, true)).await.unwrap();
        let mut waiting = pin!(guests[1].done(flock(handles[1], exclusive, true)));
        assert!(poll(waiting.as_mut()).is_pending());
        {
            let mut dropped = pin!(guests[2].done(flock(handles[2], exclusive, true)));
            assert!(poll(dropped.as_mut()).is_pending());
            assert_eq!(guests[0].fs.counts().lock_waiters, 2);
        }
        assert_eq!(guests[0].fs.counts().lock_waiters, 1);
        guests[0].fs.close_session(guests[0].session).await;
        assert_eq!(poll(waiting.as_mut()), Poll::Ready(Ok(())));
        let counts = guests[1].fs.counts();
        assert_eq!((counts.advisory_locks, counts.lock_waiters), (1, 0));
    });
}
