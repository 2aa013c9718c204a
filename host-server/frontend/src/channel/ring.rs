//! A ring of a client, served on the thread that owns the volume.
//!
//! The thread looks at the ring between its tasks, and in a window before it sleeps ([`Source`]). What is done at once completes at once; what has
//! to wait goes on as a task, and completions come in any order. Invariants:
//! * At most as many commands are under way as the ring has slots, those of a chain that is not whole yet included, and at most one in four of
//!   them waits for what other clients do.
//! * After [`RingServer::halt`], and between [`RingServer::suspend`] and [`RingServer::resume`], nothing of the ring's memory is read or written.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ringfort_engine::engine::Engine;
use ringfort_engine::source::{Source, Watch};
use ringfort_engine::sync::Notify;
use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::Credentials;
use ringfort_protocol::command::{Command, CommandError, Flags, Opcode};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::ring::responder::Responder;
use ringfort_protocol::ring::slot::Slot;

use super::data::DataArea;
use super::metrics::{BadInput, ChannelMetrics};
use super::session::Session;
use super::share::{Share, TURN_COMMANDS};
use super::worker::Worker;
use crate::pending::{Pending, PendingGuard};
use crate::service::Service;
use crate::task;

/// Workers that a ring keeps while they have nothing to do. Commands that do not wait need one.
const IDLE_WORKERS_MAX: usize = 4;

/// Of a ring's commands, those that may wait for what other clients do: one in so many.
const WAITING_SHARE: u32 = 4;

/// The identities of a client, by the numbers that its commands name.
pub type CredentialTable = Rc<RefCell<HashMap<u32, Rc<Credentials>>>>;

/// By which both sides wake each other.
pub trait Doorbell {
    /// Wakes the client.
    fn ring(&self);

    /// Takes what the client has rung.
    fn clear(&self) {}
}

/// What a ring is served with.
pub struct RingParts<S: Service> {
    pub session: Rc<Session<S>>,
    pub credentials: CredentialTable,
    pub slot_count: u32,
    pub data: DataArea,
    /// None where it comes later ([`RingServer::set_doorbell`]).
    pub doorbell: Option<Box<dyn Doorbell>>,
    pub metrics: Arc<ChannelMetrics>,
}

/// A ring under service.
pub struct RingServer<S: Service> {
    this: Weak<Self>,
    engine: Rc<dyn Engine>,
    session: Rc<Session<S>>,
    credentials: CredentialTable,
    slot_count: u32,
    data: RefCell<Rc<DataArea>>,
    /// Of the turn at hand: a client that never pauses holds up nobody.
    share: Rc<Share>,
    doorbell: RefCell<Option<Box<dyn Doorbell>>>,
    responder: RefCell<Responder<SharedMemory>>,
    /// The client's doorbell for us.
    watch: RefCell<Option<Watch>>,
    running: Cell<bool>,
    /// The client was asked to ring.
    armed: Cell<bool>,
    /// There are completions that the client may have to be woken for.
    unsaid: Cell<bool>,
    /// Nobody is rung meanwhile: what carries the doorbell may stand still as the client does.
    suspended: Cell<bool>,
    /// Commands of a chain whose end was not seen yet.
    chain: RefCell<Vec<Linked>>,
    pending: Pending,
    waiting: Cell<u32>,
    /// How to end the waiting of commands, by their tags.
    cancels: RefCell<HashMap<u64, Rc<Notify>>>,
    stopping: Notify,
    /// What commands that wait are answered with when the ring stops.
    stopped_by: Cell<Errno>,
    metrics: Arc<ChannelMetrics>,
    idle_workers: RefCell<Vec<CommandWorker>>,
    /// Of the batch at hand, what was completed at once and is not counted yet.
    completed: RefCell<Vec<(Opcode, Completion)>>,
}

/// Carries out commands that are not linked; says what to count.
type CommandWorker = Worker<(Command, PendingGuard), (Opcode, Completion)>;

type Taken = Result<Command, CommandError>;

/// A command of a chain, and when it was taken.
type Linked = (Taken, Duration);

impl<S: Service> RingServer<S> {
    /// Begins to serve.
    pub fn start(
        engine: Rc<dyn Engine>,
        parts: RingParts<S>,
        responder: Responder<SharedMemory>,
        watch: Option<Watch>,
    ) -> Rc<Self> {
        let server = Rc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            engine: Rc::clone(&engine),
            session: parts.session,
            credentials: parts.credentials,
            slot_count: parts.slot_count,
            share: Rc::clone(parts.data.share()),
            data: RefCell::new(Rc::new(parts.data)),
            doorbell: RefCell::new(parts.doorbell),
            responder: RefCell::new(responder),
            watch: RefCell::new(watch),
            running: Cell::new(true),
            armed: Cell::new(false),
            unsaid: Cell::new(false),
            suspended: Cell::new(false),
            chain: RefCell::default(),
            pending: Pending::default(),
            waiting: Cell::new(0),
            cancels: RefCell::default(),
            stopping: Notify::new(),
            stopped_by: Cell::new(Errno::ECANCELED),
            metrics: parts.metrics,
            idle_workers: RefCell::default(),
            completed: RefCell::default(),
        });
        let source: Weak<dyn Source> = Rc::downgrade(&server) as _;
        engine.attend(source);
        server
    }

    /// Takes no more, ends what waits for other clients, and resolves when nothing is under way.
    pub async fn halt(&self) {
        self.watch.take();
        self.stop(Errno::ECANCELED).await;
    }

    /// As [`halt`](Self::halt), until [`resume`](Self::resume). What waits for other clients is interrupted.
    pub async fn suspend(&self) {
        self.suspended.set(true);
        self.stop(Errno::EINTR).await;
    }

    async fn stop(&self, by: Errno) {
        self.stopped_by.set(by);
        self.running.set(false);
        self.stopping.notify_all();
        self.pending.idle().await;
        self.ring_doorbell();
    }

    /// Goes on where the ring stood, in `memory`. False where the ring or its data leave that.
    pub fn resume(&self, memory: &SharedMemory) -> bool {
        let Some(data) = self.data.borrow().moved_to(memory.clone()) else { return false };
        self.responder.borrow_mut().move_to(memory.clone());
        self.data.replace(Rc::new(data));
        self.suspended.set(false);
        self.running.set(true);
        self.ring_doorbell();
        true
    }

    /// Rings, and is rung, by this from now on.
    pub fn set_doorbell(&self, doorbell: Box<dyn Doorbell>, watch: Watch) {
        self.doorbell.replace(Some(doorbell));
        self.watch.replace(Some(watch));
        // What completed before could not be rung for.
        self.unsaid.set(true);
    }

    /// Whether the ring's memory may be looked at: until it has stopped, and from when it goes on.
    fn uses_memory(&self) -> bool {
        self.running.get() || self.pending.count() > 0
    }

    /// Takes a batch. True where there was any command.
    fn look(self: &Rc<Self>) -> bool {
        if !self.running.get() {
            return false;
        }
        let kicked = self.armed.take();
        if kicked {
            self.responder.borrow().finish_sleep();
            if let Some(doorbell) = &*self.doorbell.borrow() {
                doorbell.clear();
            }
        }
        if !self.share.allows_more() {
            return false;
        }
        let first = self.responder.borrow_mut().take();
        let Some(first) = first else { return false };
        if kicked {
            self.metrics.kicks.add(1);
        }
        self.serve_batch(first);
        true
    }

    /// Carries out a batch as far as that goes at once. It has a symbol of its own, by which `cargo measure ring` finds what commands take.
    #[inline(never)]
    fn serve_batch(self: &Rc<Self>, first: Slot) {
        let now = self.engine.turn_began();
        let (mut next, mut taken) = (Some(first), 0);
        while let Some(slot) = next {
            self.accept(Command::decode(slot), now);
            taken += 1;
            next = if taken < TURN_COMMANDS && self.share.allows_more() {
                self.responder.borrow_mut().take()
            } else {
                None
            };
        }
        self.count_batch(now);
    }

    /// Counts what was completed at once, when clients can see it already. One look at the clock is for all of a batch: they took that long at
    /// most.
    fn count_batch(&self, taken_at: Duration) {
        let mut completed = self.completed.borrow_mut();
        if completed.is_empty() {
            return;
        }
        let latency = self.latency(taken_at);
        for (opcode, completion) in completed.drain(..) {
            self.metrics.observe(opcode, &completion, latency);
        }
    }

    /// Nanoseconds since a command was taken.
    fn latency(&self, taken_at: Duration) -> u64 {
        let latency = self.engine.monotonic().saturating_sub(taken_at);
        u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)
    }

    fn accept(self: &Rc<Self>, taken: Taken, now: Duration) {
        let goes_on = taken.as_ref().is_ok_and(|command| links(command.flags));
        match taken {
            // What most commands are: alone, and not kept anywhere.
            Ok(command) if !goes_on && self.chain.borrow().is_empty() => self.begin_one(command, now),
            taken => {
                self.chain.borrow_mut().push((taken, now));
                if !goes_on {
                    let chain = self.chain.take();
                    let server = Rc::clone(self);
                    let under_way = self.pending.enter();
                    let task = Box::pin(async move {
                        server.carry_out_chain(chain).await;
                        drop(under_way);
                    });
                    task::begin(&*self.engine, task);
                }
            }
        }
    }

    fn begin_one(self: &Rc<Self>, command: Command, taken_at: Duration) {
        let idle = self.idle_workers.borrow_mut().pop();
        let mut worker = idle.unwrap_or_else(|| self.worker());
        match worker.begin((command, self.pending.enter())) {
            Poll::Ready(completed) => {
                self.completed.borrow_mut().push(completed);
                self.keep(worker);
            }
            Poll::Pending => {
                let server = Rc::clone(self);
                self.engine.spawn(Box::pin(async move {
                    let (opcode, completion) = poll_fn(|context| worker.go_on(context)).await;
                    server.metrics.observe(opcode, &completion, server.latency(taken_at));
                    server.keep(worker);
                }));
            }
        }
    }

    /// One that does not keep its ring alive while it has nothing to do.
    fn worker(&self) -> CommandWorker {
        let this = Weak::clone(&self.this);
        Worker::new(move |(command, under_way): (Command, PendingGuard)| {
            let server = this.upgrade();
            async move {
                let Some(server) = server else { return (command.opcode, Completion::default()) };
                let completion = server.carry_out(&command).await;
                server.complete(&completion);
                drop(under_way);
                (command.opcode, completion)
            }
        })
    }

    fn keep(&self, worker: CommandWorker) {
        let mut idle = self.idle_workers.borrow_mut();
        if idle.len() < IDLE_WORKERS_MAX {
            idle.push(worker);
        }
    }

    async fn carry_out_chain(&self, chain: Vec<Linked>) {
        let (mut goes_on, mut opened) = (true, None);
        for (taken, taken_at) in chain {
            let (completion, flags, opcode) = match taken {
                Ok(command) if !goes_on => {
                    (failed(command.tag, Errno::ECANCELED), command.flags, Some(command.opcode))
                }
                Ok(mut command) => {
                    let completion = match (command.flags.has(Flags::OPENED), opened) {
                        (true, None) => failed(command.tag, Errno::ECANCELED),
                        (wants_opened, handle) => {
                            if let (true, Some(handle)) = (wants_opened, handle) {
                                command.target = handle;
                            }
                            self.carry_out(&command).await
                        }
                    };
                    if command.opcode == Opcode::Open && completion.status == 0 {
                        opened = Some(completion.value);
                    }
                    (completion, command.flags, Some(command.opcode))
                }
                Err(error) => {
                    self.metrics.errors.add(1);
                    self.metrics.count_bad_input(BadInput::of_slot(&error));
                    (refused(&error), Flags::default(), None)
                }
            };
            goes_on = completion.status == 0 || flags.has(Flags::LINK_ALWAYS);
            self.complete(&completion);
            if let Some(opcode) = opcode {
                self.metrics.observe(opcode, &completion, self.latency(taken_at));
            }
        }
    }

    async fn carry_out(&self, command: &Command) -> Completion {
        self.share.take_command().await;
        let credentials = self.credentials.borrow().get(&command.credential).cloned();
        let Some(credentials) = credentials else {
            self.metrics.count_bad_input(BadInput::Credential);
            return failed(command.tag, Errno::EPERM);
        };
        let data = Rc::clone(&self.data.borrow());
        match command.opcode {
            Opcode::Cancel => {
                let cancel = self.cancels.borrow_mut().remove(&command.operand);
                let found = cancel.inspect(|cancel| cancel.notify_all()).is_some();
                Completion { tag: command.tag, value: found.into(), ..Completion::default() }
            }
            Opcode::SetLock => {
                let answer = self.session.carry_out(command, &credentials, &data);
                self.wait(command.tag, answer).await
            }
            _ => self.session.carry_out(command, &credentials, &data).await,
        }
    }

    /// Lets `answer` wait for what other clients do, unless too many do so already, until the command is cancelled or the ring stops.
    async fn wait(&self, tag: u64, answer: impl Future<Output = Completion>) -> Completion {
        let mut answer = pin!(answer);
        let first = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await;
        if let Poll::Ready(completion) = first {
            return completion;
        }
        // A chain goes on while the ring stops, and nobody would end a wait that begins now.
        if !self.running.get() {
            return failed(tag, self.stopped_by.get());
        }
        if self.waiting.get() >= self.slot_count / WAITING_SHARE {
            self.metrics.refused_waits.add(1);
            return failed(tag, Errno::ENOLCK);
        }
        self.waiting.set(self.waiting.get() + 1);
        let cancel = Rc::new(Notify::new());
        self.cancels.borrow_mut().insert(tag, Rc::clone(&cancel));
        let completion = {
            let mut cancelled = pin!(cancel.notified());
            let mut stopping = pin!(self.stopping.notified());
            poll_fn(|context| {
                if let Poll::Ready(completion) = answer.as_mut().poll(context) {
                    return Poll::Ready(completion);
                }
                let cancelled_now = cancelled.as_mut().poll(context).is_ready();
                match cancelled_now | stopping.as_mut().poll(context).is_ready() {
                    true => Poll::Ready(failed(
                        tag,
                        if cancelled_now { Errno::ECANCELED } else { self.stopped_by.get() },
                    )),
                    false => Poll::Pending,
                }
            })
            .await
        };
        let mut cancels = self.cancels.borrow_mut();
        // A client may have given the tag to another command since.
        if cancels.get(&tag).is_some_and(|held| Rc::ptr_eq(held, &cancel)) {
            cancels.remove(&tag);
        }
        self.waiting.set(self.waiting.get() - 1);
        completion
    }

    fn complete(&self, completion: &Completion) {
        self.responder.borrow_mut().complete(&completion.encode());
        self.unsaid.set(true);
    }

    /// Wakes the client for what was completed, where it sleeps.
    fn ring_doorbell(&self) {
        if !self.suspended.get()
            && self.unsaid.take()
            && self.responder.borrow().wants_doorbell()
            && let Some(doorbell) = &*self.doorbell.borrow()
        {
            doorbell.ring();
            self.metrics.doorbells.add(1);
        }
    }
}

impl<S: Service> Source for RingServer<S> {
    fn poll(&self) -> bool {
        let Some(this) = self.this.upgrade() else { return false };
        this.share.begin_turn();
        let any = this.look();
        // Also for what tasks have completed since the last time.
        if self.uses_memory() {
            self.ring_doorbell();
        }
        any
    }

    fn arm(&self) -> bool {
        if !self.running.get() {
            return false;
        }
        let idle = self.responder.borrow().prepare_sleep();
        self.armed.set(idle);
        self.metrics.parks.add(idle.into());
        !idle
    }
}

fn links(flags: Flags) -> bool {
    flags.has(Flags::LINK) || flags.has(Flags::LINK_ALWAYS)
}

fn failed(tag: u64, errno: Errno) -> Completion {
    Completion { tag, status: errno.raw().unsigned_abs(), ..Completion::default() }
}

/// What a slot that is no command is answered with.
fn refused(error: &CommandError) -> Completion {
    let errno = match error {
        CommandError::Opcode { .. } => Errno::ENOSYS,
        CommandError::Flags { .. } | CommandError::Unused { .. } => Errno::EINVAL,
    };
    failed(error.tag(), errno)
}
