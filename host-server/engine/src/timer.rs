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

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll, Wake, Waker};
    use std::time::Duration;

    use super::{Sleep, Timers};

    /// Notes its number when woken.
    struct Noting(usize, Arc<Mutex<Vec<usize>>>);

    impl Wake for Noting {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    fn poll(sleep: &mut Sleep, waker: Waker) -> Poll<()> {
        Future::poll(std::pin::Pin::new(sleep), &mut Context::from_waker(&waker))
    }

    #[test]
    fn sleepers_wake_by_deadline_and_then_in_the_order_in_which_they_were_made() {
        let (timers, woken) = (Rc::<Timers>::default(), Arc::default());
        let deadlines_ms = [30, 10, 20, 10, 40];
        let mut sleepers = deadlines_ms.map(|ms| timers.sleep_until(Duration::from_millis(ms)));
        // Polled in another order than made.
        for index in [4, 3, 1, 0, 2] {
            let waker = Waker::from(Arc::new(Noting(index, Arc::clone(&woken))));
            assert!(poll(&mut sleepers[index], waker).is_pending());
        }
        assert_eq!(timers.next_deadline(), Some(Duration::from_millis(10)));
        timers.fire(Duration::from_millis(9));
        assert!(woken.lock().unwrap().is_empty());
        timers.fire(Duration::from_millis(30));
        assert_eq!(*woken.lock().unwrap(), [1, 3, 2, 0]);
        assert!(poll(&mut sleepers[0], Waker::noop().clone()).is_ready());
        drop(sleepers);
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn a_sleeper_whose_time_is_over_before_its_first_poll_is_ready() {
        let timers = Rc::<Timers>::default();
        let mut sleep = timers.sleep_until(Duration::from_millis(1));
        timers.fire(Duration::from_millis(1));
        assert!(poll(&mut sleep, Waker::noop().clone()).is_ready());
    }
}
