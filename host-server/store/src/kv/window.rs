//! A bounded number of requests in flight.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Page reads or writes in flight: enough to keep a device busy, few enough to bound the memory they hold.
const REQUESTS_MAX: usize = 32;

/// Futures that run together; results come in the order of completion.
pub(crate) struct Window<'a, T> {
    running: Vec<Pin<Box<dyn Future<Output = T> + 'a>>>,
}

impl<'a, T> Window<'a, T> {
    pub fn new() -> Self {
        Self { running: Vec::with_capacity(REQUESTS_MAX) }
    }

    pub fn is_full(&self) -> bool {
        self.running.len() == REQUESTS_MAX
    }

    pub fn push(&mut self, future: impl Future<Output = T> + 'a) {
        self.running.push(Box::pin(future));
    }

    /// The next result; `None` where nothing runs.
    pub async fn next(&mut self) -> Option<T> {
        if self.running.is_empty() {
            return None;
        }
        poll_fn(|context| {
            for index in 0..self.running.len() {
                if let Poll::Ready(result) = self.running[index].as_mut().poll(context) {
                    drop(self.running.swap_remove(index));
                    return Poll::Ready(Some(result));
                }
            }
            Poll::Pending
        })
        .await
    }
}
