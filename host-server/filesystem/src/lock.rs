//! Locks on inodes, for tasks of one thread.
//!
//! Shared or exclusive, granted in the order in which they were asked for, so that nobody starves. The table holds an inode only
//! while somebody holds or waits for its lock. A waiter that is dropped leaves the queue.
//!
//! # Order
//! Whoever takes several locks takes them in this order, or deadlocks:
//! 1. the rename lock, for a rename between two directories;
//! 2. directories, an ancestor before its descendants; two that are neither, in any order but under the rename lock;
//! 3. what is no directory: one, or two in the order of their numbers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct Queue {
    readers: usize,
    writer: bool,
    waiting: VecDeque<Rc<Waiter>>,
}

struct Waiter {
    exclusive: bool,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Queue {
    fn admits(&self, exclusive: bool) -> bool {
        !self.writer && (!exclusive || self.readers == 0)
    }

    fn admit(&mut self, exclusive: bool) {
        if exclusive {
            self.writer = true;
        } else {
            self.readers += 1;
        }
    }

    /// Grants the lock to those at the front whom it admits now.
    fn grant(&mut self) {
        while let Some(front) = self.waiting.front() {
            if !self.admits(front.exclusive) {
                return;
            }
            let exclusive = front.exclusive;
            front.granted.set(true);
            if let Some(waker) = front.waker.borrow_mut().take() {
                waker.wake();
            }
            self.waiting.pop_front();
            self.admit(exclusive);
        }
    }

    fn is_unused(&self) -> bool {
        !self.writer && self.readers == 0 && self.waiting.is_empty()
    }
}

type Queues = Rc<RefCell<BTreeMap<u64, Queue>>>;

/// The locks of a filesystem, by inode number.
#[derive(Clone, Default)]
pub(crate) struct LockTable(Queues);

impl LockTable {
    /// Waits until no exclusive lock on `number` is held or was asked for earlier.
    pub(crate) fn shared(&self, number: u64) -> Acquire {
        self.acquire(number, false)
    }

    /// Waits until no lock on `number` is held or was asked for earlier.
    pub(crate) fn exclusive(&self, number: u64) -> Acquire {
        self.acquire(number, true)
    }

    fn acquire(&self, number: u64, exclusive: bool) -> Acquire {
        Acquire { queues: Rc::clone(&self.0), number, exclusive, waiter: None, finished: false }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

/// Resolves to the lock.
#[must_use]
pub(crate) struct Acquire {
    queues: Queues,
    number: u64,
    exclusive: bool,
    waiter: Option<Rc<Waiter>>,
    finished: bool,
}

impl Future for Acquire {
    type Output = LockGuard;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<LockGuard> {
        let this = &mut *self;
        match &this.waiter {
            Some(waiter) if !waiter.granted.get() => {
                *waiter.waker.borrow_mut() = Some(context.waker().clone());
                return Poll::Pending;
            }
            Some(_) => {}
            None => {
                let mut queues = this.queues.borrow_mut();
                let queue = queues.entry(this.number).or_default();
                if !queue.waiting.is_empty() || !queue.admits(this.exclusive) {
                    let waiter = Rc::new(Waiter {
                        exclusive: this.exclusive,
                        granted: Cell::new(false),
                        waker: RefCell::new(Some(context.waker().clone())),
                    });
                    queue.waiting.push_back(Rc::clone(&waiter));
                    this.waiter = Some(waiter);
                    return Poll::Pending;
                }
                queue.admit(this.exclusive);
            }
        }
        this.finished = true;
        Poll::Ready(LockGuard {
            queues: Rc::clone(&this.queues),
            number: this.number,
            exclusive: this.exclusive,
        })
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        if self.finished {
            return;
        }
        if waiter.granted.get() {
            release(&self.queues, self.number, self.exclusive);
            return;
        }
        let mut queues = self.queues.borrow_mut();
        if let Some(queue) = queues.get_mut(&self.number) {
            queue.waiting.retain(|other| !Rc::ptr_eq(other, &waiter));
            // Those behind may have waited for nothing but this one.
            queue.grant();
        }
    }
}

fn release(queues: &Queues, number: u64, exclusive: bool) {
    let mut queues = queues.borrow_mut();
    let Some(queue) = queues.get_mut(&number) else { return };
    if exclusive {
        queue.writer = false;
    } else {
        queue.readers -= 1;
    }
    queue.grant();
    if queue.is_unused() {
        queues.remove(&number);
    }
}

/// Holds a lock until dropped.
#[must_use]
pub(crate) struct LockGuard {
    queues: Queues,
    number: u64,
    exclusive: bool,
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        release(&self.queues, self.number, self.exclusive);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(acquire: &mut Pin<Box<Acquire>>) -> Option<LockGuard> {
        match acquire.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(guard) => Some(guard),
            Poll::Pending => None,
        }
    }

    fn now(acquire: Acquire) -> Option<LockGuard> {
        poll(&mut Box::pin(acquire))
    }

    #[test]
    fn readers_share_and_a_writer_excludes() {
        let table = LockTable::default();
        let first = now(table.shared(1)).unwrap();
        let second = now(table.shared(1)).unwrap();
        assert!(now(table.exclusive(1)).is_none());
        assert!(now(table.exclusive(2)).is_some());
        drop((first, second));
        let writer = now(table.exclusive(1)).unwrap();
        assert!(now(table.shared(1)).is_none());
        drop(writer);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_waiting_writer_goes_before_later_readers() {
        let table = LockTable::default();
        let reader = now(table.shared(1)).unwrap();
        let mut writer = Box::pin(table.exclusive(1));
        let mut late = Box::pin(table.shared(1));
        assert!(poll(&mut writer).is_none());
        assert!(poll(&mut late).is_none());
        drop(reader);
        assert!(poll(&mut late).is_none());
        let guard = poll(&mut writer).unwrap();
        assert!(poll(&mut late).is_none());
        drop(guard);
        assert!(poll(&mut late).is_some());
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_dropped_waiter_blocks_nobody() {
        let table = LockTable::default();
        let reader = now(table.shared(1)).unwrap();
        let mut writer = Box::pin(table.exclusive(1));
        let mut late = Box::pin(table.shared(1));
        assert!(poll(&mut writer).is_none());
        assert!(poll(&mut late).is_none());
        drop(writer);
        let late = poll(&mut late).unwrap();
        let mut granted = Box::pin(table.exclusive(1));
        assert!(poll(&mut granted).is_none());
        drop((reader, late));
        // Granted, never polled again.
        drop(granted);
        assert_eq!(table.len(), 0);
    }
}
