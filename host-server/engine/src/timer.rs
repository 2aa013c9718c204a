//! Sleepers, ordered by deadline and then by the order in which they were made.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

type Key = (Duration, u64);

/// Deadlines on one monotonic clock, which the caller reads.
#[derive(Default)]
pub(crate) struct Timers {
    next_serial: Cell<u64>,
    /// A sleeper that has not been polled yet has no waker.
    sleepers: RefCell<BTreeMap<Key, Option<Waker>>>,
}

impl Timers {
    /// A future that resolves once [`fire`](Self::fire) was called with a time at or after `deadline`.
    pub(crate) fn sleep_until(self: &Rc<Self>, deadline: Duration) -> Sleep {
        let serial = self.next_serial.get();
        self.next_serial.set(serial + 1);
        self.sleepers.borrow_mut().insert((deadline, serial), None);
        Sleep { timers: Rc::clone(self), key: (deadline, serial) }
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.sleepers.borrow().first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Wakes everyone whose deadline is not after `now`, in order.
    pub(crate) fn fire(&self, now: Duration) {
        loop {
            let waker = {
                let mut sleepers = self.sleepers.borrow_mut();
                match sleepers.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return,
                }
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

pub(crate) struct Sleep {
    timers: Rc<Timers>,
    key: Key,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.timers.sleepers.borrow_mut().get_mut(&self.key) {
            Some(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.timers.sleepers.borrow_mut().remove(&self.key);
    }
}
