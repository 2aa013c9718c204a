//! The device on the thread that owns the volume: takes chains from rings, carries each request out, gives the chains
//! back.
//!
//! The thread looks at the rings itself between its tasks and in a window before it sleeps ([`Source`]): while it does so the
//! guest need not ring, and while it sleeps the guest's doorbell wakes it with nobody between. What is done at once is given
//! back at once; what has to wait goes on as a task. The guest's own doorbell is rung once for all that a turn gave back.
//! Where an engine does not look at rings (a simulation), [`Event::Kick`] brings it to them.
//!
//! This is the whole interface between the device and whoever speaks for the virtual machine: an [`Attachment`] of
//! rings, then [`Event`]s. Invariants:
//! * A chain is taken only while its ring runs, and at most as many are under way as the ring is long, and as
//!   [`Options::in_flight_bytes_max`] allows. A guest that offers more waits.
//! * [`Event::Stop`] is answered when every chain taken from the ring was given back: nothing touches the ring later.
//! * A guest that breaks the rules of its queues is not served until it has stopped all of them (a reset); its requests
//!   under way complete, and nobody else notices.

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use ringfort_engine::engine::Engine;
use ringfort_engine::mailbox::Receiver;
use ringfort_engine::source::Source;
use ringfort_filesystem::errno::Errno;

use super::decode;
use super::encode::{self, Answer};
use super::flight::{Flight, Queue};
use super::invitation::Invitations;
use super::queue::{Chain, ChainError, Ring, RingError, Taken};
use super::request::Header;
use super::session::{CachePolicy, Caching, Conversation};
use crate::machine::Machine;
use crate::metrics::Metrics;
use crate::rate_limit::GuestLog;
use crate::service::Service;
use crate::task;

/// Chains that are taken from one queue before others have their turn: a guest that never pauses holds up nobody.
const BATCH_CHAINS: usize = 64;

/// Settings of a device.
#[derive(Clone, Debug)]
pub struct Options {
    pub cache: CachePolicy,
    /// The guest's kernel gathers writes ([`CachePolicy::Never`] leaves it nothing to gather). For shares with a single
    /// writer: others see what was written when it is written back, and size and times are as the writer has them.
    pub writeback: bool,
    /// Memory that the requests under way of one queue may hold, in bytes of their descriptors. One request always runs.
    pub in_flight_bytes_max: usize,
    /// The machine that connects.
    pub machine: Arc<Machine>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache: CachePolicy::default(),
            writeback: false,
            in_flight_bytes_max: 64 * 1024 * 1024,
            machine: Arc::new(Machine::new("unnamed")),
        }
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
    /// The queue was started, and this is the doorbell that the guest rings for it from now on.
    Start(usize, Box<dyn AsRawFd + Send>),
    /// The guest rang for this queue, or it was started and its doorbell is heard by the sender.
    Kick(usize),
    /// The memory table has changed: rings that were out of reach may be within it.
    Remapped,
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
                attached = Some(Device::attach(&name, &engine, &service, &options, &metrics, attachment));
            }
            Event::Start(index, doorbell) => {
                if let Some(device) = &attached {
                    device.start(index, doorbell);
                }
            }
            Event::Kick(index) => {
                if let Some(device) = &attached {
                    device.kick(index);
                }
            }
            Event::Remapped => {
                if let Some(device) = &attached {
                    device.look_again();
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

struct Device<S> {
    this: Weak<Self>,
    engine: Rc<dyn Engine>,
    conversation: Conversation<S>,
    metrics: Arc<Metrics>,
    queues: Vec<Queue>,
    kicked: Arc<[AtomicBool]>,
    /// The engine looks at the rings.
    attended: Cell<bool>,
    broken: Cell<bool>,
    log: Rc<GuestLog>,
}

/// What one look at a ring has found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// No chain.
    Nothing,
    /// All that was available was taken, or the bounds were reached.
    Some,
    /// A whole batch: there may be more.
    Batch,
}

impl<S: Service> Device<S> {
    fn attach(
        name: &str,
        engine: &Rc<dyn Engine>,
        service: &Rc<S>,
        options: &Options,
        metrics: &Arc<Metrics>,
        attachment: Attachment,
    ) -> Rc<Self> {
        let log = Rc::new(GuestLog::new(name, Rc::clone(engine)));
        let queue = |(index, ring)| Queue::new(index, ring, metrics, options.in_flight_bytes_max);
        let invitations = Invitations::new(Arc::clone(&options.machine), Rc::clone(engine));
        let caching = Caching { policy: options.cache, writeback: options.writeback };
        let conversation =
            Conversation::new(Rc::clone(service), caching, Arc::clone(metrics), Rc::clone(&log), invitations);
        let device = Rc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            engine: Rc::clone(engine),
            conversation,
            metrics: Arc::clone(metrics),
            queues: attachment.rings.into_iter().enumerate().map(queue).collect(),
            kicked: attachment.kicked,
            attended: Cell::new(false),
            broken: Cell::new(false),
            log,
        });
        let source: Weak<dyn Source> = Rc::downgrade(&device) as _;
        device.attended.set(engine.attend(source));
        device
    }

    fn start(self: &Rc<Self>, index: usize, doorbell: Box<dyn AsRawFd + Send>) {
        let Some(queue) = self.queues.get(index) else { return };
        queue.watch.replace(self.engine.watch(doorbell));
        self.kick(index);
    }

    fn kick(self: &Rc<Self>, index: usize) {
        let (Some(queue), Some(kicked)) = (self.queues.get(index), self.kicked.get(index)) else { return };
        // Before the ring is looked at. Either this swap reads what the sender's wrote, and with it sees every chain that was
        // rung for; or the sender's comes later, reads false, and sends another kick.
        kicked.swap(false, Ordering::AcqRel);
        if !queue.running.replace(true) {
            self.note_driver_reset(queue);
            queue.show();
        }
        self.see_to(index);
    }

    fn look_again(self: &Rc<Self>) {
        (0..self.queues.len()).for_each(|index| self.see_to(index));
    }

    /// Has a queue looked at, where the engine does not do so by itself before it sleeps.
    fn see_to(self: &Rc<Self>, index: usize) {
        if !self.attended.get() {
            self.engine.spawn(Box::pin(Rc::clone(self).serve(index)));
        }
    }

    /// A ring that begins elsewhere than where it was stopped belongs to a driver that begins anew: the guest rebooted, or
    /// bound its driver again. The session that the earlier one had ends.
    fn note_driver_reset(self: &Rc<Self>, queue: &Queue) {
        let begins_elsewhere = queue.stopped_at.take().is_some_and(|place| place != queue.ring.position());
        if !begins_elsewhere {
            return;
        }
        // All queues belong to one driver: those that start after this one say nothing new.
        self.queues.iter().for_each(|queue| queue.stopped_at.set(None));
        let device = Rc::clone(self);
        // No request of the new driver meets the old session: it is taken away before this returns.
        task::begin(&*self.engine, Box::pin(async move { device.conversation.end().await }));
    }

    /// Answers when nothing taken from the queue is under way.
    async fn stop(self: Rc<Self>, index: usize, done: Done) {
        if let Some(queue) = self.queues.get(index) {
            queue.halt();
            queue.watch.take();
            queue.idle().await;
            self.ring_doorbell(queue);
            queue.stopped_at.set(Some(queue.ring.position()));
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
        self.queues.iter().for_each(Queue::halt);
        for queue in &self.queues {
            queue.watch.take();
            queue.idle().await;
            self.ring_doorbell(queue);
        }
        self.conversation.end().await;
        self.broken.set(false);
        let _ = done.send(());
    }

    /// Takes what is available, within the bounds, where nobody looks at the rings by themselves.
    async fn serve(self: Rc<Self>, index: usize) {
        let Some(queue) = self.queues.get(index) else { return };
        loop {
            match self.look(index, queue) {
                Found::Batch => self.engine.yield_now().await,
                Found::Nothing | Found::Some if self.is_to_ring(index, queue) => {}
                Found::Nothing | Found::Some => return,
            }
        }
    }

    /// Whether chains are to be had from the queue now.
    fn takes(&self, queue: &Queue) -> bool {
        queue.running.get() && !self.broken.get() && !queue.full.get()
    }

    /// Takes a batch from a queue.
    fn look(self: &Rc<Self>, index: usize, queue: &Queue) -> Found {
        if !self.takes(queue) {
            return Found::Nothing;
        }
        self.take_batch(index, queue).unwrap_or_else(|error| {
            self.break_down(index, &error.to_string());
            Found::Nothing
        })
    }

    fn take_batch(self: &Rc<Self>, index: usize, queue: &Queue) -> Result<Found, RingError> {
        let promised = queue.promised.take();
        let was_armed = queue.armed.take();
        if was_armed {
            queue.ring.mute()?;
        }
        let found = self.take_some(index, queue, promised);
        if was_armed && !promised && !matches!(found, Ok(Found::Nothing)) {
            self.metrics.kicks.add(1);
        }
        found
    }

    fn take_some(self: &Rc<Self>, index: usize, queue: &Queue, promised: bool) -> Result<Found, RingError> {
        for taken in 0..BATCH_CHAINS {
            if queue.is_full() {
                queue.full.set(true);
                queue.show();
                return Ok(Found::Some);
            }
            match queue.ring.take()? {
                Some(Taken { head, chain }) => self.accept(index, queue, head, chain),
                None if taken > 0 => return Ok(Found::Some),
                // A ring that was stopped meanwhile promises nothing any more.
                None if promised && queue.ring.unmute()? => return Err(RingError::Stuck),
                None => return Ok(Found::Nothing),
            }
            if !self.takes(queue) {
                return Ok(Found::Some);
            }
        }
        Ok(Found::Batch)
    }

    /// Asks the guest to ring for this queue. True where chains have arrived meanwhile.
    fn is_to_ring(&self, index: usize, queue: &Queue) -> bool {
        if !self.takes(queue) {
            return false;
        }
        queue.armed.set(true);
        match queue.ring.unmute() {
            Ok(promised) => {
                queue.promised.set(promised);
                promised
            }
            Err(error) => {
                self.break_down(index, &error.to_string());
                false
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
            (header, decode::request(&header, self.conversation.dialect(), &mut input))
        };
        self.metrics.count_request(header.opcode);
        let flight = queue.launch(head, chain, self.engine.monotonic());
        match request.and_then(|request| flight.check_room(&header, request)) {
            Ok(request) => {
                let device = Rc::clone(self);
                task::begin(
                    &*self.engine,
                    Box::pin(async move {
                        let answer = device.conversation.answer(&header, request);
                        let answer = match device.queues.get(index) {
                            Some(queue) if header.may_wait() => queue.wait(answer).await,
                            _ => answer.await,
                        };
                        device.finish(&header, flight, answer);
                    }),
                );
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
        let index = flight.queue;
        let Some(queue) = self.queues.get(index) else { return };
        let written = match &answer {
            None => Ok(0),
            Some(answer) => self.reply(header, &flight.chain, answer),
        };
        match written.map_err(|error| error.to_string()).and_then(|written_bytes| {
            queue.ring.give_back(flight.head, written_bytes).map_err(|error| error.to_string())
        }) {
            Ok(()) => queue.unsaid.set(true),
            Err(error) => self.break_down(index, &error),
        }
        let elapsed = self.engine.monotonic().saturating_sub(flight.taken_at);
        self.metrics.observe(header.opcode, u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
        let was_full = queue.full.take();
        queue.land(flight);
        if !self.attended.get() {
            self.ring_doorbell(queue);
            if was_full {
                self.see_to(index);
            }
        }
    }

    /// Tells the guest of what was given back, if it wants to be told.
    fn ring_doorbell(&self, queue: &Queue) {
        if !queue.unsaid.take() {
            return;
        }
        match queue.ring.ring() {
            Ok(true) => self.metrics.doorbells.add(1),
            Ok(false) => {}
            Err(error) => self.break_down(queue.index(), &error.to_string()),
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

impl<S: Service> Source for Device<S> {
    fn poll(&self) -> bool {
        let Some(this) = self.this.upgrade() else { return false };
        let mut any = false;
        for (index, queue) in self.queues.iter().enumerate() {
            any |= this.look(index, queue) != Found::Nothing;
        }
        // Also for what tasks have given back since the last time.
        self.queues.iter().for_each(|queue| self.ring_doorbell(queue));
        any
    }

    fn arm(&self) -> bool {
        let mut any = false;
        for (index, queue) in self.queues.iter().enumerate() {
            any |= self.is_to_ring(index, queue);
        }
        any
    }
}

/// Whether a sound kernel passes on requests that are refused so: its programs ask for more than there is, and no fault
/// of the guest's is to be counted.
fn may_be_a_programs(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSYS | Errno::ENAMETOOLONG | Errno::ENXIO | Errno::EOPNOTSUPP)
}
