use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct Waiter {
    wanted: usize,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

struct State {
    free: usize,
    waiting: VecDeque<Rc<Waiter>>,
}

/// A number of permits, granted strictly in order: a large request at the head is not overtaken by small ones.
pub struct Semaphore(RefCell<State>);

/// Permits that go back on drop.
pub struct PermitOf<S: Deref<Target = Semaphore>> {
    semaphore: S,
    count: usize,
}

/// Permits that borrow their semaphore.
pub type Permit<'a> = PermitOf<&'a Semaphore>;

/// Permits that may outlive the caller's frame.
pub type OwnedPermit = PermitOf<Rc<Semaphore>>;

impl Semaphore {
    pub fn new(count: usize) -> Self {
        Self(RefCell::new(State { free: count, waiting: VecDeque::new() }))
    }

    /// Permits that nobody holds.
    pub fn available(&self) -> usize {
        self.0.borrow().free
    }

    pub async fn acquire(&self, count: usize) -> Permit<'_> {
        Acquire::new(self, count).await
    }

    pub async fn acquire_owned(self: Rc<Self>, count: usize) -> OwnedPermit {
        Acquire::new(self, count).await
    }

    /// Without waiting; none where permits are short or somebody waits already.
    pub fn try_acquire(&self, count: usize) -> Option<Permit<'_>> {
        // Made only when taken: a permit that is made gives its count back when it is dropped.
        self.take_now(count).then(|| PermitOf { semaphore: self, count })
    }

    /// Adds permits that did not exist before, or returns forgotten ones.
    pub fn release(&self, count: usize) {
        self.0.borrow_mut().free += count;
        self.grant();
    }

    fn take_now(&self, count: usize) -> bool {
        let mut state = self.0.borrow_mut();
        let can = state.waiting.is_empty() && state.free >= count;
        if can {
            state.free -= count;
        }
        can
    }

    /// Serves the queue from its head, as far as the permits reach.
    fn grant(&self) {
        loop {
            let waiter = {
                let mut state = self.0.borrow_mut();
                match state.waiting.front() {
                    Some(first) if first.wanted <= state.free => {
                        state.free -= first.wanted;
                        state.waiting.pop_front()
                    }
                    _ => None,
                }
            };
            let Some(waiter) = waiter else { return };
            waiter.granted.set(true);
            let waker = waiter.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<S: Deref<Target = Semaphore>> PermitOf<S> {
    pub fn count(&self) -> usize {
        self.count
    }

    /// Takes the permits out of circulation.
    pub fn forget(mut self) {
        self.count = 0;
    }
}

impl<S: Deref<Target = Semaphore>> Drop for PermitOf<S> {
    fn drop(&mut self) {
        if self.count > 0 {
            self.semaphore.release(self.count);
        }
    }
}

struct Acquire<S: Deref<Target = Semaphore> + Clone + Unpin> {
    semaphore: S,
    count: usize,
    waiter: Option<Rc<Waiter>>,
}

impl<S: Deref<Target = Semaphore> + Clone + Unpin> Acquire<S> {
    fn new(semaphore: S, count: usize) -> Self {
        Self { semaphore, count, waiter: None }
    }
}

impl<S: Deref<Target = Semaphore> + Clone + Unpin> Future for Acquire<S> {
    type Output = PermitOf<S>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<PermitOf<S>> {
        let count = self.count;
        if let Some(waiter) = &self.waiter {
            if !waiter.granted.get() {
                *waiter.waker.borrow_mut() = Some(context.waker().clone());
                return Poll::Pending;
            }
            self.waiter = None;
        } else if !self.semaphore.take_now(count) {
            let waker = RefCell::new(Some(context.waker().clone()));
            let waiter = Rc::new(Waiter { wanted: count, granted: Cell::new(false), waker });
            self.semaphore.0.borrow_mut().waiting.push_back(Rc::clone(&waiter));
            self.waiter = Some(waiter);
            return Poll::Pending;
        }
        Poll::Ready(PermitOf { semaphore: self.semaphore.clone(), count })
    }
}

impl<S: Deref<Target = Semaphore> + Clone + Unpin> Drop for Acquire<S> {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        if waiter.granted.get() {
            self.semaphore.release(waiter.wanted);
        } else {
            self.semaphore.0.borrow_mut().waiting.retain(|other| !Rc::ptr_eq(other, &waiter));
            // It may have stood in the way of smaller requests.
            self.semaphore.grant();
        }
    }
}
