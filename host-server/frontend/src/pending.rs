//! Counts what is under way, and tells when nothing is.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

#[derive(Default)]
struct State {
    count: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

/// A count of guards alive.
#[derive(Clone, Default)]
pub struct Pending(Rc<State>);

/// One thing under way, until it is dropped.
pub struct PendingGuard(Rc<State>);

impl Pending {
    pub fn enter(&self) -> PendingGuard {
        self.0.count.set(self.0.count.get() + 1);
        PendingGuard(Rc::clone(&self.0))
    }

    pub fn count(&self) -> usize {
        self.0.count.get()
    }

    /// Resolves when nothing is under way.
    pub async fn idle(&self) {
        poll_fn(|context| {
            if self.0.count.get() == 0 {
                return Poll::Ready(());
            }
            self.0.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            let waiting = self.0.waiting.take();
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}
