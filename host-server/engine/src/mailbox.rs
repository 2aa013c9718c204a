//! Values handed to the owning thread: any number of senders on any thread, one asynchronous receiver.
//!
//! Unbounded: whoever sends bounds what is outstanding (a queue of a virtio device has a size, a channel has slots).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

struct State<T> {
    values: VecDeque<T>,
    waker: Option<Waker>,
    sender_count: usize,
    receiver_gone: bool,
}

type Shared<T> = Arc<Mutex<State<T>>>;

fn lock<T>(shared: &Shared<T>) -> MutexGuard<'_, State<T>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The end that any thread may hold and clone.
pub struct Sender<T>(Shared<T>);

/// The end of the owning thread. Dropping it makes every later [`Sender::send`] fail.
pub struct Receiver<T>(Shared<T>);

/// A connected pair. Values arrive in the order in which they were sent.
pub fn mailbox<T: Send>() -> (Sender<T>, Receiver<T>) {
    let state = State { values: VecDeque::new(), waker: None, sender_count: 1, receiver_gone: false };
    let shared = Arc::new(Mutex::new(state));
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    /// Queues `value` and wakes the receiver. Gives it back where the receiver is gone.
    pub fn send(&self, value: T) -> Result<(), T> {
        let waker = {
            let mut state = lock(&self.0);
            if state.receiver_gone {
                return Err(value);
            }
            state.values.push_back(value);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        lock(&self.0).sender_count += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = lock(&self.0);
            state.sender_count -= 1;
            if state.sender_count == 0 { state.waker.take() } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// The next value; none once every sender is gone and everything sent was received.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// What [`recv`](Self::recv) polls.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = lock(&self.0);
        if let Some(value) = state.values.pop_front() {
            return Poll::Ready(Some(value));
        }
        if state.sender_count == 0 {
            return Poll::Ready(None);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// A value that has already arrived.
    pub fn try_recv(&mut self) -> Option<T> {
        lock(&self.0).values.pop_front()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let undelivered = {
            let mut state = lock(&self.0);
            state.receiver_gone = true;
            state.waker = None;
            std::mem::take(&mut state.values)
        };
        // Outside the lock: destructors may send.
        drop(undelivered);
    }
}
