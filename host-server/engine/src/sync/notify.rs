use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct Waiter {
    notified: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Waiter {
    fn notify(&self) {
        self.notified.set(true);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Wakes waiters one by one or all at once. A [`notify_one`](Self::notify_one) that finds nobody waiting is kept for
/// the next who comes; more than one such is kept as one.
#[derive(Default)]
pub struct Notify {
    kept: Cell<bool>,
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
}

impl Notify {
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes the first in the queue, or keeps the notification.
    pub fn notify_one(&self) {
        let first = self.waiting.borrow_mut().pop_front();
        match first {
            Some(waiter) => waiter.notify(),
            None => self.kept.set(true),
        }
    }

    /// Wakes everyone who waits now; nothing is kept.
    pub fn notify_all(&self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for waiter in waiting {
            waiter.notify();
        }
    }

    /// Waits for a notification. The place in the queue is taken by the call, not by the first poll: what is notified
    /// between the two is not missed.
    pub fn notified(&self) -> Notified<'_> {
        let waiter = Rc::new(Waiter::default());
        if self.kept.take() {
            waiter.notified.set(true);
        } else {
            self.waiting.borrow_mut().push_back(Rc::clone(&waiter));
        }
        Notified { notify: self, waiter, taken: false }
    }
}

/// See [`Notify::notified`].
pub struct Notified<'a> {
    notify: &'a Notify,
    waiter: Rc<Waiter>,
    taken: bool,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.waiter.notified.get() {
            self.taken = true;
            return Poll::Ready(());
        }
        *self.waiter.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        if self.waiter.notified.get() {
            // Passed on, even where it came from `notify_all`: a spurious wake-up is harmless, a lost one is not.
            self.notify.notify_one();
        } else {
            self.notify.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.waiter));
        }
    }
}

/// A condition that is set once and stays set, until [`clear`](Self::clear).
#[derive(Default)]
pub struct Event {
    set: Cell<bool>,
    notify: Notify,
}

impl Event {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn set(&self) {
        self.set.set(true);
        self.notify.notify_all();
    }

    pub fn clear(&self) {
        self.set.set(false);
    }

    pub fn is_set(&self) -> bool {
        self.set.get()
    }

    /// Resolves once the event has been set, even if it was cleared again before the waiter ran.
    pub async fn wait(&self) {
        if !self.set.get() {
            self.notify.notified().await;
        }
    }
}
