//! Pages in memory, for tests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use ringfort_engine::buffer::Slice;

use super::PageStore;
use crate::address::MetadataAddress;
use crate::error::{ErrorKind, StoreError};

/// A metadata region without mirrors. Requests take a few polls, so that many are in flight.
#[derive(Default)]
pub(crate) struct MemoryPages {
    pub pages: RefCell<BTreeMap<u64, Vec<u8>>>,
    pub writes: Cell<usize>,
    /// Writes from this one on fail.
    pub fail_from: Cell<Option<usize>>,
    pub in_flight: Cell<usize>,
    pub in_flight_max: Cell<usize>,
}

impl MemoryPages {
    async fn latency(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
        self.in_flight_max.set(self.in_flight_max.get().max(self.in_flight.get()));
        let mut polls_left = 1 + self.writes.get() % 5;
        poll_fn(|context| {
            polls_left -= 1;
            if polls_left == 0 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        self.in_flight.set(self.in_flight.get() - 1);
    }
}

impl PageStore for MemoryPages {
    async fn write_page(&self, address: MetadataAddress, page: Slice) -> Result<(), StoreError> {
        let number = self.writes.get();
        self.writes.set(number + 1);
        self.latency().await;
        if self.fail_from.get().is_some_and(|from| number >= from) {
            return Err(StoreError::new(ErrorKind::Device, "write", "test page", "an injected failure"));
        }
        self.pages.borrow_mut().insert(address.0, page.to_vec());
        Ok(())
    }

    async fn read_page(
        &self,
        address: MetadataAddress,
        _verify: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Slice, StoreError> {
        self.latency().await;
        match self.pages.borrow().get(&address.0) {
            Some(page) => Ok(Slice::copy_of(page)),
            None => Err(StoreError::new(ErrorKind::Damaged, "read", "test page", "nothing")),
        }
    }
}

/// Drives a future whose wake-ups all come from itself.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
    }
}
