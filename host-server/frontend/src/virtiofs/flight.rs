//! What is under way in one queue, and the bounds that it is held to.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ringfort_engine::source::Watch;
use ringfort_engine::sync::Notify;
use ringfort_filesystem::errno::Errno;

use super::abi;
use super::encode;
use super::queue::{Chain, Ring};
use super::request::{Header, Request};
use crate::metrics::{Metrics, QueueState};
use crate::pending::{Pending, PendingGuard};

/// Of the chains that a queue may have in flight, those that may wait for what other guests do: one in so many.
const WAITING_SHARE: usize = 4;

/// A queue of the device.
pub struct Queue {
    index: usize,
    pub ring: Box<dyn Ring + Send>,
    metrics: Arc<Metrics>,
    /// Chains taken and not given back.
    pending: Pending,
    in_flight_bytes: Cell<usize>,
    in_flight_bytes_max: usize,
    waiting: Cell<usize>,
    stopping: Notify,
    /// Between a start and a stop.
    pub running: Cell<bool>,
    /// Chains may be available, but the bounds are reached: look again when one is given back.
    pub full: Cell<bool>,
    /// The guest was asked to ring.
    pub armed: Cell<bool>,
    /// The ring's indexes said that there is a chain.
    pub promised: Cell<bool>,
    /// Chains were given back since the guest's doorbell was last rung.
    pub unsaid: Cell<bool>,
    /// Where the ring stood when it was stopped.
    pub stopped_at: Cell<Option<u16>>,
    /// The guest's doorbell for us.
    pub watch: RefCell<Option<Watch>>,
}

impl Queue {
    pub fn new(
        index: usize,
        ring: Box<dyn Ring + Send>,
        metrics: &Arc<Metrics>,
        in_flight_bytes_max: usize,
    ) -> Self {
        Self {
            index,
            ring,
            metrics: Arc::clone(metrics),
            pending: Pending::default(),
            in_flight_bytes: Cell::new(0),
            in_flight_bytes_max,
            waiting: Cell::new(0),
            stopping: Notify::new(),
            running: Cell::new(false),
            full: Cell::new(false),
            armed: Cell::new(false),
            promised: Cell::new(false),
            unsaid: Cell::new(false),
            stopped_at: Cell::new(None),
            watch: RefCell::new(None),
        }
    }

    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether no more may be taken before something is given back. One request is always allowed.
    pub fn is_full(&self) -> bool {
        self.pending.count() >= self.ring.size() || self.in_flight_bytes.get() >= self.in_flight_bytes_max
    }

    /// A chain was taken.
    pub fn launch(&self, head: u16, chain: Chain, taken_at: Duration) -> Flight {
        let flight = Flight { queue: self.index, head, chain, taken_at, _pending: self.pending.enter() };
        self.in_flight_bytes.set(self.in_flight_bytes.get() + flight.bytes());
        self.show();
        flight
    }

    /// A chain was given back. Only now: a stop that waits for the queue must see the chain given back.
    pub fn land(&self, flight: Flight) {
        self.in_flight_bytes.set(self.in_flight_bytes.get() - flight.bytes());
        drop(flight);
        self.show();
    }

    /// Lets `answer` wait for what other guests do, as long as no more than the queue's share waits and the queue is not
    /// stopped.
    pub async fn wait<T>(
        &self,
        answer: impl Future<Output = Option<Result<T, Errno>>>,
    ) -> Option<Result<T, Errno>> {
        let mut answer = pin!(answer);
        let first = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await;
        if let Poll::Ready(answer) = first {
            return answer;
        }
        if self.waiting.get() >= self.ring.size() / WAITING_SHARE {
            self.metrics.refused_waits.add(1);
            return Some(Err(Errno::ENOLCK));
        }
        let _waiting = Waiting::begin(self);
        let mut stopping = pin!(self.stopping.notified());
        poll_fn(|context| match answer.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(answer),
            Poll::Pending => stopping.as_mut().poll(context).map(|()| Some(Err(Errno::EINTR))),
        })
        .await
    }

    /// Takes no more, and ends what waits for other guests.
    pub fn halt(&self) {
        self.running.set(false);
        self.full.set(false);
        self.armed.set(false);
        self.promised.set(false);
        self.stopping.notify_all();
        self.show();
    }

    /// Resolves when nothing is under way.
    pub async fn idle(&self) {
        self.pending.idle().await;
    }

    /// Tells the metrics how things stand.
    pub fn show(&self) {
        let Some(QueueState { size, in_flight, in_flight_bytes, waiting_for_locks, at_bounds }) =
            self.metrics.queues().get(self.index)
        else {
            return;
        };
        size.set(if self.running.get() { self.ring.size() } else { 0 });
        in_flight.set(self.pending.count());
        in_flight_bytes.set(self.in_flight_bytes.get());
        waiting_for_locks.set(self.waiting.get());
        at_bounds.set(self.full.get());
    }
}

struct Waiting<'a>(&'a Queue);

impl<'a> Waiting<'a> {
    fn begin(queue: &'a Queue) -> Self {
        queue.waiting.set(queue.waiting.get() + 1);
        queue.show();
        Self(queue)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

/// A request under way: where its reply goes and what it holds of the queue's bounds.
pub struct Flight {
    pub queue: usize,
    pub head: u16,
    pub chain: Chain,
    /// On the engine's monotonic clock.
    pub taken_at: Duration,
    _pending: PendingGuard,
}

impl Flight {
    /// What this request may hold in memory: its own bytes and those of its reply.
    fn bytes(&self) -> usize {
        self.chain.readable_bytes() + self.chain.writable_bytes()
    }

    /// Refuses a request whose reply would not fit: it must not have effects that its sender does not hear of.
    pub fn check_room(&self, header: &Header, request: Request) -> Result<Request, Errno> {
        if header.is_silent() {
            return Ok(request);
        }
        let body_bytes = match &request {
            Request::Operation { shape, .. } => encode::room_bytes(shape),
            Request::Init(_) => size_of::<abi::InitOut>(),
            _ => 0,
        };
        if self.chain.writable_bytes() < encode::HEADER_BYTES + body_bytes {
            return Err(Errno::EINVAL);
        }
        Ok(request)
    }
}
