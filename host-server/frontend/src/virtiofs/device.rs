//! The device on the thread that owns the volume: takes chains from rings, runs each request as a task, gives the
//! chains back.
//!
//! This is the whole interface between the device and whoever speaks for the virtual machine: an [`Attachment`] of
//! rings, then [`Event`]s. Invariants:
//! * A chain is taken only while its ring runs, and at most as many are under way as the ring is long, and as
//!   [`Options::in_flight_bytes_max`] allows. A guest that offers more waits.
//! * [`Event::Stop`] is answered when every chain taken from the ring was given back: nothing touches the ring later.
//! * A guest that breaks the rules of its queues is not served until it has stopped all of them (a reset); its requests
//!   under way complete, and nobody else notices.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use ringfort_engine::engine::Engine;
use ringfort_engine::mailbox::Receiver;
use ringfort_filesystem::errno::Errno;

use super::decode;
use super::encode::{self, Answer};
use super::queue::{Chain, ChainError, Ring, RingError, Taken};
use super::request::{Header, Request};
use super::session::{CachePolicy, Conversation};
use crate::metrics::Metrics;
use crate::pending::{Pending, PendingGuard};
use crate::rate_limit::GuestLog;
use crate::service::Service;

/// Settings of a device.
#[derive(Clone, Debug)]
pub struct Options {
    pub cache: CachePolicy,
    /// Memory that the requests under way of one queue may hold, in bytes of their descriptors. One request always runs.
    pub in_flight_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache: CachePolicy::default(), in_flight_bytes_max: 64 * 1024 * 1024 }
    }
}

/// Rings of a virtual machine that has connected.
pub struct Attachment {
    /// By queue index; the first is the high priority queue.
    pub rings: Vec<Box<dyn Ring + Send>>,
    /// By queue index: set by whoever sends a kick, cleared by the device before it looks. A queue has at most one kick
    /// in the mailbox, however fast the guest rings.
    pub kicked: Arc<[AtomicBool]>,
}

/// Sent back when what an event asks for is done. Dropping it says the same of a device that is gone.
pub type Done = mpsc::Sender<()>;

/// What happens to a device, in order.
pub enum Event {
    /// A virtual machine has connected. Any earlier one was detached.
    Attach(Attachment),
    /// The guest rang for this queue, or the queue was started.
    Kick(usize),
    /// The queue was stopped: its ring gives no more chains.
    Stop(usize, Done),
    /// The virtual machine resets the device: the guest's session ends.
    Reset(Done),
    /// The virtual machine is gone: the guest's session ends.
    Detach(Done),
}

/// Serves events until every sender is gone.
pub async fn run<S: Service>(
    name: String,
    engine: Rc<dyn Engine>,
    service: Rc<S>,
    options: Options,
    metrics: Arc<Metrics>,
    mut events: Receiver<Event>,
) {
    let mut attached: Option<Rc<Device<S>>> = None;
    while let Some(event) = events.recv().await {
        match event {
            Event::Attach(attachment) => {
                let device = Device::new(&name, &engine, &service, &options, &metrics, attachment);
                attached = Some(Rc::new(device));
            }
            Event::Kick(index) => {
                if let Some(device) = &attached {
                    device.kick(index);
                }
            }
            Event::Stop(index, done) => {
                if let Some(device) = &attached {
                    engine.spawn(Box::pin(Rc::clone(device).stop(index, done)));
                }
            }
            Event::Reset(done) => {
                if let Some(device) = &attached {
                    engine.spawn(Box::pin(Rc::clone(device).halt(done)));
                }
            }
            Event::Detach(done) => {
                if let Some(device) = attached.take() {
                    engine.spawn(Box::pin(device.halt(done)));
                }
            }
        }
    }
    if let Some(device) = attached {
        let (done, _) = mpsc::channel();
        device.halt(done).await;
    }
}

struct Queue {
    ring: Box<dyn Ring + Send>,
    /// Chains taken and not given back.
    pending: Pending,
    in_flight_bytes: Cell<usize>,
    /// Between a kick and a stop.
    running: Cell<bool>,
    /// Chains may be available, but the bounds are reached: look again when one is given back.
    full: Cell<bool>,
}

struct Device<S> {
    engine: Rc<dyn Engine>,
    conversation: Conversation<S>,
    metrics: Arc<Metrics>,
    in_flight_bytes_max: usize,
    queues: Vec<Queue>,
    kicked: Arc<[AtomicBool]>,
    broken: Cell<bool>,
    log: Rc<GuestLog>,
}

/// A request under way: where its reply goes and what it holds of the queue's bounds.
struct Flight {
    queue: usize,
    head: u16,
    chain: Chain,
    guard: PendingGuard,
}

impl<S: Service> Device<S> {
    fn new(
        name: &str,
        engine: &Rc<dyn Engine>,
        service: &Rc<S>,
        options: &Options,
        metrics: &Arc<Metrics>,
        attachment: Attachment,
    ) -> Self {
        let log = Rc::new(GuestLog::new(name, Rc::clone(engine)));
        let queue = |ring| Queue {
            ring,
            pending: Pending::default(),
            in_flight_bytes: Cell::new(0),
            running: Cell::new(false),
            full: Cell::new(false),
        };
        Self {
            engine: Rc::clone(engine),
            conversation: Conversation::new(
                Rc::clone(service),
                options.cache,
                Arc::clone(metrics),
                Rc::clone(&log),
            ),
            metrics: Arc::clone(metrics),
            in_flight_bytes_max: options.in_flight_bytes_max,
            queues: attachment.rings.into_iter().map(queue).collect(),
            kicked: attachment.kicked,
            broken: Cell::new(false),
            log,
        }
    }

    fn kick(self: &Rc<Self>, index: usize) {
        let (Some(queue), Some(kicked)) = (self.queues.get(index), self.kicked.get(index)) else { return };
        // Before the ring is looked at. Either this swap reads what the sender's wrote, and with it sees every chain that was
        // rung for; or the sender's comes later, reads false, and sends another kick.
        kicked.swap(false, Ordering::AcqRel);
        queue.running.set(true);
        self.serve(index, queue);
    }

    /// Answers when nothing taken from the queue is under way.
    async fn stop(self: Rc<Self>, index: usize, done: Done) {
        if let Some(queue) = self.queues.get(index) {
            queue.running.set(false);
            queue.full.set(false);
            queue.pending.idle().await;
        }
        if self.queues.iter().all(|queue| !queue.running.get()) {
            // The driver lets go of all its queues when it resets the device: it may do better this time.
            self.broken.set(false);
        }
        // The receiver may have given up waiting.
        let _ = done.send(());
    }

    /// Stops every queue and ends the session.
    async fn halt(self: Rc<Self>, done: Done) {
        for queue in &self.queues {
            queue.running.set(false);
            queue.full.set(false);
        }
        for queue in &self.queues {
            queue.pending.idle().await;
        }
        self.conversation.end().await;
        self.broken.set(false);
        let _ = done.send(());
    }

    /// Takes what is available, within the bounds.
    fn serve(self: &Rc<Self>, index: usize, queue: &Queue) {
        if let Err(error) = self.take_available(index, queue) {
            self.break_down(index, &error.to_string());
        }
    }

    fn take_available(self: &Rc<Self>, index: usize, queue: &Queue) -> Result<(), RingError> {
        let mut promised = false;
        loop {
            queue.ring.mute()?;
            let mut taken = 0;
            while queue.running.get() && !self.broken.get() {
                if queue.is_full(self.in_flight_bytes_max) {
                    queue.full.set(true);
                    return Ok(());
                }
                let Some(Taken { head, chain }) = queue.ring.take()? else { break };
                taken += 1;
                self.accept(index, queue, head, chain);
            }
            if !queue.running.get() || self.broken.get() {
                return Ok(());
            }
            if taken == 0 && promised {
                return Err(RingError::Stuck);
            }
            promised = queue.ring.unmute()?;
            if !promised {
                return Ok(());
            }
        }
    }

    /// Reads a request and starts it.
    fn accept(self: &Rc<Self>, index: usize, queue: &Queue, head: u16, chain: Result<Chain, ChainError>) {
        let chain = match chain {
            Ok(chain) => chain,
            Err(error) => return self.break_down(index, &error.to_string()),
        };
        let (header, request) = {
            let mut input = chain.input();
            let header = match decode::header(&mut input) {
                Ok(header) => header,
                Err(error) => return self.break_down(index, &error.to_string()),
            };
            (header, decode::request(&header, &mut input))
        };
        self.metrics.count_request(header.opcode);
        let flight = Flight { queue: index, head, chain, guard: queue.pending.enter() };
        queue.in_flight_bytes.set(queue.in_flight_bytes.get() + flight.bytes());
        match request.and_then(|request| flight.check_room(&header, request)) {
            Ok(request) => {
                let device = Rc::clone(self);
                self.engine.spawn(Box::pin(async move {
                    let answer = device.conversation.answer(&header, request).await;
                    device.finish(&header, flight, answer);
                }));
            }
            Err(errno) => {
                if !may_be_a_programs(errno) {
                    self.metrics.malformed_requests.add(1);
                    let opcode = header.opcode;
                    self.log.warn(format_args!("malformed request with opcode {opcode}: answered {errno}"));
                }
                let answer = if header.is_silent() { None } else { Some(Err(errno)) };
                self.finish(&header, flight, answer);
            }
        }
    }

    /// Writes the reply, gives the chain back, and goes on where the bounds had stopped the queue.
    fn finish(self: &Rc<Self>, header: &Header, flight: Flight, answer: Option<Result<Answer, Errno>>) {
        let Some(queue) = self.queues.get(flight.queue) else { return };
        let written = match &answer {
            None => Ok(0),
            Some(answer) => self.reply(header, &flight.chain, answer),
        };
        match written.map_err(|error| error.to_string()).and_then(|written_bytes| {
            queue.ring.give_back(flight.head, written_bytes).map_err(|error| error.to_string())
        }) {
            Ok(true) => self.metrics.doorbells.add(1),
            Ok(false) => {}
            Err(error) => self.break_down(flight.queue, &error),
        }
        queue.in_flight_bytes.set(queue.in_flight_bytes.get() - flight.bytes());
        let index = flight.queue;
        // Only now: a stop that waits for the queue must see the chain given back.
        drop(flight.guard);
        if queue.full.take() {
            self.serve(index, queue);
        }
    }

    fn reply(
        &self,
        header: &Header,
        chain: &Chain,
        answer: &Result<Answer, Errno>,
    ) -> Result<u32, ChainError> {
        let errno = match answer {
            Ok(answer) => match encode::reply(chain, header.unique, Ok(answer)) {
                // A symbolic link longer than the buffer for it, say.
                Err(ChainError::TooShort { .. }) => Errno::EINVAL,
                done => return done,
            },
            Err(errno) => *errno,
        };
        self.metrics.errors.add(1);
        match encode::reply(chain, header.unique, Err(errno)) {
            // No room for any reply: the guest wants none.
            Err(ChainError::TooShort { .. }) => Ok(0),
            done => done,
        }
    }

    fn break_down(&self, index: usize, why: &str) {
        if !self.broken.replace(true) {
            self.metrics.broken_devices.add(1);
        }
        self.log
            .warn(format_args!("queue {index}: {why}; not serving this guest until it resets the device"));
    }
}

impl Queue {
    fn is_full(&self, in_flight_bytes_max: usize) -> bool {
        self.pending.count() >= self.ring.size() || self.in_flight_bytes.get() >= in_flight_bytes_max
    }
}

impl Flight {
    /// What this request may hold in memory: its own bytes and those of its reply.
    fn bytes(&self) -> usize {
        self.chain.readable_bytes() + self.chain.writable_bytes()
    }

    /// Refuses a request whose reply would not fit: it must not have effects that its sender does not hear of.
    fn check_room(&self, header: &Header, request: Request) -> Result<Request, Errno> {
        if header.is_silent() {
            return Ok(request);
        }
        let body_bytes = match &request {
            Request::Operation { shape, .. } => encode::room_bytes(shape),
            Request::Init(_) => size_of::<super::abi::InitOut>(),
            _ => 0,
        };
        if self.chain.writable_bytes() < encode::HEADER_BYTES + body_bytes {
            return Err(Errno::EINVAL);
        }
        Ok(request)
    }
}

/// Whether a sound kernel passes on requests that are refused so: its programs ask for more than there is, and no fault
/// of the guest's is to be counted.
fn may_be_a_programs(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSYS | Errno::ENAMETOOLONG | Errno::ENXIO | Errno::EOPNOTSUPP)
}
