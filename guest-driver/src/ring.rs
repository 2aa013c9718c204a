//! A ring that threads and tasks share: whoever waits first looks after it for all.
//!
//! At most one *keeper* at a time polls the ring, and sleeps at its doorbell; it hands completions to everybody. Others that wait are woken
//! when their own completion is there, or to become the keeper when the last one leaves. Tasks cannot keep: where one waits, a thread of the
//! ring's own does, which is started for the first of them.
//!
//! Invariants:
//! * While somebody waits for a completion and none is the keeper, one of those who wait has been woken, or the ring's own thread has.
//! * Nobody is woken under the lock: who is woken may do anything, drop what waits here included.
//! * In a child that was forked nothing here is locked or touched: whoever held the lock is not there.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use ringfort_protocol::command::Command;
use ringfort_protocol::completion::Completion;
use ringfort_protocol::ring::memory::SharedMemory;

use crate::bell::{Bell, LONGEST_SLEEP, Woken};
use crate::error::Error;
use crate::lane::{Flight, Lane, Load, Refused};
use crate::memory::forks;
use crate::patience::Patience;

/// Looks at the ring between two looks at the clock, and two chances for others to submit.
const LOOKS: u32 = 64;

/// How long a call that is given up waits for what becomes of its cancellation. In tests, longer than any machine is busy with others.
const CANCEL_WITHIN: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 1 });

/// How long a thread that waits for room goes without looking for it.
const ROOM_AGAIN: Duration = Duration::from_millis(1);

/// One ring.
pub struct Ring {
    state: Mutex<State>,
    /// A completion was used: there is room for another command.
    room: Condvar,
    /// A task waits.
    wanted: Condvar,
    bell: Bell,
    gone: Arc<AtomicBool>,
    /// How often this process had been forked.
    forks: u64,
}

pub struct State {
    lane: Lane,
    patience: Patience,
    has_keeper: bool,
    /// Tasks that wait for completions, or for room.
    tasks: usize,
    /// Those that wait for room, by the numbers of their tickets.
    queue: VecDeque<(u64, Waker)>,
    next_ticket: u64,
    has_thread: bool,
    /// Threads that wait for room.
    crowd: usize,
    /// Threads that wait behind the keeper.
    parked: usize,
    ended: bool,
    /// Commands of which nobody wants to hear, and for which there was no room.
    posted: VecDeque<Command>,
    /// Who is to be woken when the lock is let go.
    woken: Vec<Waker>,
}

impl State {
    /// Takes what has been completed. Where the server has said what it may not, everybody who waits hears of it.
    fn reap(&mut self) -> Result<usize, Error> {
        let woken = &mut self.woken;
        let reaped = self.lane.reap(|_, waker| woken.extend(waker));
        match reaped {
            Ok(0) => {}
            // Among them may be some that nobody waits for, whose room is free now.
            Ok(_) => self.offer_room(),
            Err(_) => self.wake_all(),
        }
        reaped
    }

    /// Submits what was posted, and tells as many as wait for room that there is some.
    fn offer_room(&mut self) {
        if self.posted.is_empty() && self.queue.is_empty() && !self.lane.has_orphans() {
            return;
        }
        self.posted.extend(self.lane.take_orphans());
        while let Some(command) = self.posted.pop_front() {
            match self.lane.begin(&Load { command, input: &[], output_bytes: 0 }, None) {
                Ok(flight) => {
                    self.lane.abandon(flight);
                }
                Err(Refused::Full) => return self.posted.push_front(command),
                // Nothing is submitted here any more.
                Err(Refused::Error(_)) => self.posted.clear(),
            }
        }
        let count = self.lane.room().min(self.queue.len());
        self.woken.extend(self.queue.drain(..count).map(|(_, waker)| waker));
    }

    fn wake_all(&mut self) {
        self.woken.extend(self.queue.drain(..).map(|(_, waker)| waker));
        self.woken.extend(std::iter::from_fn(|| self.lane.any_waker()));
    }

    fn forget_task(&mut self) {
        self.tasks = self.tasks.saturating_sub(1);
    }
}

/// The state, locked. When it is let go, the server is rung for what was submitted, and whoever is to be is woken.
pub struct Locked<'a> {
    guard: Option<MutexGuard<'a, State>>,
    bell: &'a Bell,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        match &self.guard {
            Some(guard) => guard,
            None => unreachable!("locked until it is dropped"),
        }
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        match &mut self.guard {
            Some(guard) => guard,
            None => unreachable!("locked until it is dropped"),
        }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let woken = std::mem::take(&mut self.woken);
        let rings = self.lane.wants_doorbell();
        self.guard = None;
        if rings {
            self.bell.ring();
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

/// What a call gives to the server besides its command, and what it gets back.
#[derive(Clone, Copy)]
pub struct Exchange<'a> {
    pub input: &'a [&'a [u8]],
    /// The most bytes that the result may have.
    pub output_bytes: usize,
    /// When the call is given up.
    pub deadline: Option<Instant>,
}

impl<'a> Exchange<'a> {
    fn load(&self, command: Command) -> Load<'a> {
        Load { command, input: self.input, output_bytes: self.output_bytes }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    static UNPARK: Waker = Waker::from(Arc::new(Unpark(std::thread::current())));
}

impl Ring {
    pub fn new(lane: Lane, bell: Bell, patience: Patience, gone: Arc<AtomicBool>) -> Self {
        let state = State {
            lane,
            patience,
            has_keeper: false,
            tasks: 0,
            queue: VecDeque::new(),
            next_ticket: 0,
            has_thread: false,
            crowd: 0,
            parked: 0,
            ended: false,
            posted: VecDeque::new(),
            woken: Vec::new(),
        };
        let (room, wanted) = (Condvar::new(), Condvar::new());
        Self { state: Mutex::new(state), room, wanted, bell, gone, forks: forks() }
    }

    fn state(&self) -> Locked<'_> {
        Locked { guard: Some(self.raw_state()), bell: &self.bell }
    }

    fn raw_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commands under way; as many as there can be where somebody is busy with the ring.
    pub fn load(&self) -> usize {
        match self.state.try_lock() {
            Ok(state) => state.lane.under_way(),
            Err(TryLockError::Poisoned(state)) => state.into_inner().lane.under_way(),
            Err(TryLockError::WouldBlock) => usize::MAX,
        }
    }

    /// The server is not there any more: everybody who waits hears of it.
    pub fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.wake_all();
        self.room.notify_all();
        self.wanted.notify_all();
    }

    fn was_forked(&self) -> bool {
        self.forks != forks()
    }

    fn check(&self) -> Result<(), Error> {
        if self.was_forked() {
            return Err(Error::Forked);
        }
        match self.gone.load(Ordering::Acquire) {
            true => Err(Error::gone()),
            false => Ok(()),
        }
    }

    /// Carries out a command of which nobody wants to hear: soon.
    pub fn post(&self, command: Command) {
        if self.check().is_ok() {
            let mut state = self.state();
            state.posted.push_back(command);
            state.offer_room();
        }
    }

    /// Submits, once there is room.
    fn begin(&self, command: Command, exchange: &Exchange<'_>) -> Result<Flight, Error> {
        loop {
            let mut state = self.state();
            match state.lane.begin(&exchange.load(command), None) {
                Ok(flight) => return Ok(flight),
                Err(Refused::Error(error)) => return Err(error),
                Err(Refused::Full) => self.wait_for_room(state, exchange.deadline)?,
            }
        }
    }

    fn wait_for_room(&self, mut state: Locked<'_>, deadline: Option<Instant>) -> Result<(), Error> {
        self.check()?;
        let room = state.lane.room();
        state.reap()?;
        let has_more = state.lane.room() > room;
        drop(state);
        if has_more {
            return Ok(());
        }
        time_left(deadline)?;
        let mut state = self.raw_state();
        state.crowd += 1;
        // Those who have the room may wait for the server, and none of them need know of us: what is completed meanwhile is for us to find.
        let waited = self.room.wait_timeout(state, ROOM_AGAIN);
        waited.unwrap_or_else(PoisonError::into_inner).0.crowd -= 1;
        Ok(())
    }

    /// A flight was freed.
    fn share_room(&self, state: &mut State) {
        if state.crowd > 0 {
            self.room.notify_one();
        }
        state.offer_room();
    }

    /// The state, where nobody uses the ring.
    pub fn lock_idle(&self) -> Result<Option<Locked<'_>>, Error> {
        self.check()?;
        let guard = match self.state.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        let state = Locked { guard: Some(guard), bell: &self.bell };
        Ok(Some(state).filter(|state| !state.has_keeper && state.lane.under_way() == 0))
    }

    /// Carries out one command and waits; under `idle`, where the caller has found the ring so. `take` sees the completion and the memory, in which the
    /// output begins where it is told.
    pub fn call<T>(
        &self,
        idle: Option<Locked<'_>>,
        command: Command,
        exchange: &Exchange<'_>,
        take: impl FnOnce(&Completion, &SharedMemory, u64) -> T,
    ) -> Result<T, Error> {
        let flight = match idle {
            Some(state) => match self.call_alone(state, command, exchange)? {
                (flight, Some(state)) => return Ok(self.use_completion(state, flight, take)),
                (flight, None) => flight,
            },
            None => {
                self.check()?;
                self.begin(command, exchange)?
            }
        };
        match self.wait(flight, exchange.deadline) {
            Err(Error::TimedOut) => self.give_up(flight, command.credential, take),
            waited => self.settle(flight, waited, command.credential, take),
        }
    }

    /// What most calls need: submits, and polls with the ring to itself for as long as a round trip takes. Still locked where the command is done.
    fn call_alone<'a>(
        &'a self,
        mut state: Locked<'a>,
        command: Command,
        exchange: &Exchange<'_>,
    ) -> Result<(Flight, Option<Locked<'a>>), Error> {
        let flight = match state.lane.begin(&exchange.load(command), None) {
            Ok(flight) => flight,
            Err(Refused::Error(error)) => return Err(error),
            Err(Refused::Full) => {
                unreachable!("room for any command that is not too long, where none is under way")
            }
        };
        if state.lane.wants_doorbell() {
            self.bell.ring();
        }
        // With no pause between looks: one takes a tenth of a round trip, and leaves a virtual processor that is emulated.
        for _ in 0..LOOKS {
            if !state.lane.has_news() {
                continue;
            }
            match state.reap() {
                Ok(_) if state.lane.is_done(flight, None) => return Ok((flight, Some(state))),
                // Whoever waits next finds out what is wrong.
                _ => break,
            }
        }
        Ok((flight, None))
    }

    /// Ends a call whose time is over: what waits for other clients is cancelled, unless it was done at that very moment.
    fn give_up<T>(
        &self,
        flight: Flight,
        credential: u32,
        take: impl FnOnce(&Completion, &SharedMemory, u64) -> T,
    ) -> Result<T, Error> {
        let mut state = self.state();
        let cancel = state.lane.cancellation(flight);
        if cancel.is_none() {
            return self.settle_locked(state, flight, Err(Error::TimedOut), credential, take);
        }
        self.cancel(&mut state, cancel, credential);
        drop(state);
        let waited = self.wait(flight, Some(Instant::now() + CANCEL_WITHIN));
        let mut state = self.state();
        let cancelled =
            waited.is_ok() && state.lane.completion(flight).status == libc::ECANCELED.unsigned_abs();
        let waited = if cancelled { Err(Error::TimedOut) } else { waited };
        self.settle_locked(state, flight, waited, credential, take)
    }

    fn use_completion<T>(
        &self,
        mut state: Locked<'_>,
        flight: Flight,
        take: impl FnOnce(&Completion, &SharedMemory, u64) -> T,
    ) -> T {
        let taken = state.lane.finish(flight, take);
        self.share_room(&mut state);
        if !state.has_keeper {
            self.hand_on(&mut state);
        }
        taken
    }

    /// Uses a completion, or gives up waiting for it.
    fn settle<T>(
        &self,
        flight: Flight,
        waited: Result<(), Error>,
        credential: u32,
        take: impl FnOnce(&Completion, &SharedMemory, u64) -> T,
    ) -> Result<T, Error> {
        self.settle_locked(self.state(), flight, waited, credential, take)
    }

    fn settle_locked<T>(
        &self,
        mut state: Locked<'_>,
        flight: Flight,
        waited: Result<(), Error>,
        credential: u32,
        take: impl FnOnce(&Completion, &SharedMemory, u64) -> T,
    ) -> Result<T, Error> {
        match waited {
            Ok(()) => Ok(self.use_completion(state, flight, take)),
            Err(error) => {
                self.abandon(&mut state, flight, credential);
                Err(error)
            }
        }
    }

    /// Nobody waits for a flight any more.
    fn abandon(&self, state: &mut State, flight: Flight, credential: u32) {
        let cancel = state.lane.abandon(flight);
        self.cancel(state, cancel, credential);
        self.share_room(state);
        if !state.has_keeper {
            self.hand_on(state);
        }
    }

    fn cancel(&self, state: &mut State, cancel: Option<Command>, credential: u32) {
        let Some(cancel) = cancel else { return };
        let load = Load { command: Command { credential, ..cancel }, input: &[], output_bytes: 0 };
        // Where there is no room for it the command waits on; its areas stay its own.
        if let Ok(flight) = state.lane.begin(&load, None) {
            state.lane.abandon(flight);
        }
    }

    /// Returns when the flight is done.
    fn wait(&self, flight: Flight, deadline: Option<Instant>) -> Result<(), Error> {
        loop {
            let mut state = self.state();
            state.reap()?;
            if !state.has_keeper {
                if state.lane.is_done(flight, None) {
                    return Ok(());
                }
                state.has_keeper = true;
                drop(state);
                let kept = self.keep(deadline, |state| state.lane.is_done(flight, None));
                self.leave();
                return kept;
            }
            if UNPARK.with(|waker| state.lane.is_done(flight, Some(waker))) {
                return Ok(());
            }
            self.check()?;
            let left = time_left(deadline)?;
            state.parked += 1;
            drop(state);
            std::thread::park_timeout(left);
            self.state().parked -= 1;
        }
    }

    /// Looks after the ring until `enough`.
    fn keep(
        &self,
        deadline: Option<Instant>,
        mut enough: impl FnMut(&mut State) -> bool,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let mut has_slept = false;
        loop {
            let looks_since = Instant::now();
            loop {
                let mut state = self.state();
                for _ in 0..LOOKS {
                    if !state.lane.has_news() {
                        std::hint::spin_loop();
                        continue;
                    }
                    state.reap()?;
                    if state.crowd > 0 {
                        self.room.notify_all();
                    }
                    break;
                }
                if enough(&mut state) {
                    if has_slept {
                        state.patience.slept(began.elapsed());
                    }
                    return Ok(());
                }
                let patience = state.patience;
                drop(state);
                if !patience.looks_on(looks_since) {
                    break;
                }
            }
            self.check()?;
            let left = time_left(deadline)?;
            if self.state().lane.prepare_sleep() {
                let slept = self.bell.sleep(left);
                has_slept = true;
                self.state().lane.finish_sleep();
                if slept? == Woken::Gone {
                    self.gone.store(true, Ordering::Release);
                }
            }
        }
    }

    /// Lets another keep.
    fn leave(&self) {
        let mut state = self.state();
        state.has_keeper = false;
        self.hand_on(&mut state);
    }

    /// The ring has no keeper: wakes somebody who may become it.
    fn hand_on(&self, state: &mut State) {
        if state.tasks > 0 && state.has_thread {
            self.wanted.notify_one();
        } else if state.parked > 0 || state.tasks > 0 {
            let waker = state.lane.any_waker();
            state.woken.extend(waker);
        }
    }

    /// Keeps the ring for tasks, until it has ended. For a thread of its own.
    fn keep_for_tasks(&self) {
        let mut state = self.raw_state();
        while !state.ended {
            if state.tasks == 0 || state.has_keeper {
                state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.has_keeper = true;
            drop(state);
            let mut idle_since: Option<Instant> = None;
            let linger = self.state().patience.least();
            let kept = self.keep(Some(Instant::now() + LONGEST_SLEEP), |state| {
                // Tasks call one after the other: the next may be about to.
                if state.tasks > 0 {
                    idle_since = None;
                }
                state.tasks == 0 && idle_since.get_or_insert_with(Instant::now).elapsed() >= linger
            });
            let mut locked = self.state();
            locked.has_keeper = false;
            match kept {
                Ok(()) | Err(Error::TimedOut) if locked.tasks == 0 => self.hand_on(&mut locked),
                Ok(()) | Err(Error::TimedOut) => {}
                Err(error) => {
                    if !matches!(error, Error::Protocol { .. }) {
                        self.gone.store(true, Ordering::Release);
                    }
                    locked.ended = true;
                    locked.wake_all();
                }
            }
            drop(locked);
            state = self.raw_state();
        }
    }

    /// A task waits: somebody has to keep the ring.
    fn want_keeper(self: &Arc<Self>, state: &mut State) -> Result<(), Error> {
        if !state.has_thread {
            let ring = Arc::clone(self);
            let begun = std::thread::Builder::new().name("ringfort ring".to_owned());
            begun.spawn(move || ring.keep_for_tasks()).map_err(Error::system("start a thread"))?;
            state.has_thread = true;
        }
        if !state.has_keeper {
            self.wanted.notify_one();
        }
        Ok(())
    }

    /// Begins a command for a task, once there is room. Its [`Pending`] is done when the command is; dropping it before gives the command up.
    pub async fn start(
        self: &Arc<Self>,
        command: Command,
        input: &[&[u8]],
        output_bytes: usize,
    ) -> Result<Pending, Error> {
        let load = Load { command, input, output_bytes };
        Begin { ring: self, load, ticket: None }.await
    }

    /// Submits `commands` one right behind the other, and waits for all of them. `take` sees each completion in turn.
    pub fn call_all(
        &self,
        loads: &[Load<'_>],
        deadline: Option<Instant>,
        mut take: impl FnMut(usize, &Completion, &SharedMemory, u64),
    ) -> Result<(), Error> {
        self.check()?;
        let flights = self.begin_all(loads, deadline)?;
        let mut outcome = Ok(());
        for (index, (flight, load)) in flights.into_iter().zip(loads).enumerate() {
            // After the first that fails to come nobody waits for the others.
            let waited = match outcome {
                Ok(()) => self.wait(flight, deadline),
                Err(_) => Err(Error::TimedOut),
            };
            let used = self.settle(flight, waited, load.command.credential, |completion, memory, at| {
                take(index, completion, memory, at);
            });
            outcome = outcome.and(used);
        }
        outcome
    }

    fn begin_all(&self, loads: &[Load<'_>], deadline: Option<Instant>) -> Result<Vec<Flight>, Error> {
        loop {
            let mut state = self.state();
            match state.lane.begin_all(loads) {
                Ok(flights) => return Ok(flights),
                Err(Refused::Error(error)) => return Err(error),
                Err(Refused::Full) if state.lane.can_hold(loads) => self.wait_for_room(state, deadline)?,
                Err(Refused::Full) => {
                    return Err(Error::TogetherTooLong { found: loads.len(), most: state.lane.most() });
                }
            }
        }
    }
}

/// How long there is to sleep until `deadline`, or until the next look at the server.
fn time_left(deadline: Option<Instant>) -> Result<Duration, Error> {
    let Some(deadline) = deadline else { return Ok(LONGEST_SLEEP) };
    let left = deadline.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(Error::TimedOut),
        false => Ok(left.min(LONGEST_SLEEP)),
    }
}

/// A command that waits for room.
struct Begin<'a> {
    ring: &'a Arc<Ring>,
    load: Load<'a>,
    /// Its place in the queue, also after it was told of room.
    ticket: Option<u64>,
}

impl Begin<'_> {
    /// Leaves the queue. False where it had been told of room.
    fn leave_queue(&mut self, state: &mut State) -> bool {
        let Some(ticket) = self.ticket.take() else { return true };
        state.forget_task();
        let place = state.queue.iter().position(|(queued, _)| *queued == ticket);
        place.is_some_and(|place| state.queue.remove(place).is_some())
    }
}

impl Future for Begin<'_> {
    type Output = Result<Pending, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.ring.check()?;
        let mut state = this.ring.state();
        state.reap()?;
        this.leave_queue(&mut state);
        match state.lane.begin(&this.load, None) {
            Ok(flight) => {
                state.tasks += 1;
                let (ring, credential) = (Arc::clone(this.ring), this.load.command.credential);
                Poll::Ready(Ok(Pending { ring, flight: Some(flight), credential }))
            }
            Err(Refused::Error(error)) => Poll::Ready(Err(error)),
            Err(Refused::Full) => {
                let ticket = state.next_ticket;
                state.next_ticket += 1;
                state.queue.push_back((ticket, context.waker().clone()));
                state.tasks += 1;
                this.ticket = Some(ticket);
                this.ring.want_keeper(&mut state)?;
                Poll::Pending
            }
        }
    }
}

impl Drop for Begin<'_> {
    fn drop(&mut self) {
        if self.ticket.is_none() || self.ring.was_forked() {
            return;
        }
        let mut state = self.ring.state();
        if !self.leave_queue(&mut state) {
            // What it was told is for another to use.
            state.offer_room();
        }
    }
}

/// A command of a task.
pub struct Pending {
    ring: Arc<Ring>,
    flight: Option<Flight>,
    credential: u32,
}

impl Pending {
    /// Resolves to what `take` makes of the completion and the memory, in which the output begins where it is told.
    pub async fn finish<T>(
        mut self,
        take: impl FnOnce(&Completion, &SharedMemory, u64) -> T,
    ) -> Result<T, Error> {
        Done(&mut self).await?;
        let Some(flight) = self.flight.take() else { unreachable!("a flight is finished once") };
        let mut state = self.ring.state();
        state.forget_task();
        Ok(self.ring.use_completion(state, flight, take))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(flight) = self.flight.take()
            && !self.ring.was_forked()
        {
            let mut state = self.ring.state();
            state.forget_task();
            self.ring.abandon(&mut state, flight, self.credential);
        }
    }
}

struct Done<'a>(&'a mut Pending);

impl Future for Done<'_> {
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ring = &self.0.ring;
        let Some(flight) = self.0.flight else { return Poll::Ready(Ok(())) };
        if ring.was_forked() {
            return Poll::Ready(Err(Error::Forked));
        }
        let mut state = ring.state();
        state.reap()?;
        if state.lane.is_done(flight, Some(context.waker())) {
            return Poll::Ready(Ok(()));
        }
        ring.check()?;
        ring.want_keeper(&mut state)?;
        Poll::Pending
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
