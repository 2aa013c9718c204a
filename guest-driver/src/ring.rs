//! A ring that threads and tasks share: whoever waits first looks after it for all.
//!
//! At most one *keeper* at a time polls the ring, and sleeps at its doorbell; it hands completions to everybody. Others that wait are woken
//! when their own completion is there, or to become the keeper when the last one leaves. Tasks cannot keep: where one waits, a thread of the
//! ring's own does, which is started for the first of them.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use ringfort_protocol::command::{Command, Opcode};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::ring::memory::SharedMemory;

use crate::bell::{Bell, Woken};
use crate::error::Error;
use crate::lane::{Flight, Lane, Refused};

/// How long a keeper sleeps without a look at whether the server is still there, and who waits behind a keeper at whether it is.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Looks at the ring between two looks at the clock, and two chances for others to submit.
const LOOKS: u32 = 64;

/// One ring.
pub struct Ring {
    state: Mutex<State>,
    /// A completion was used: there is room for another command.
    room: Condvar,
    /// A task waits.
    wanted: Condvar,
    bell: Bell,
    busy_poll: Duration,
    gone: Arc<AtomicBool>,
}

struct State {
    lane: Lane,
    has_keeper: bool,
    /// Tasks that wait for completions.
    tasks: usize,
    has_thread: bool,
    /// Threads that wait for room.
    crowd: usize,
    /// Threads that wait behind the keeper.
    parked: usize,
    ended: bool,
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
    pub fn new(lane: Lane, bell: Bell, busy_poll: Duration, gone: Arc<AtomicBool>) -> Self {
        let state =
            State { lane, has_keeper: false, tasks: 0, has_thread: false, crowd: 0, parked: 0, ended: false };
        Self { state: Mutex::new(state), room: Condvar::new(), wanted: Condvar::new(), bell, busy_poll, gone }
    }

    fn state(&self) -> MutexGuard<'_, State> {
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
        self.state().ended = true;
        self.room.notify_all();
        self.wanted.notify_all();
        let mut state = self.state();
        while let Some(waker) = state.lane.any_waker() {
            waker.wake();
        }
    }

    fn check(&self) -> Result<(), Error> {
        match self.gone.load(Ordering::Acquire) {
            true => Err(Error::Ended { reason: None, text: "the server is gone".to_owned() }),
            false => Ok(()),
        }
    }

    /// Submits, once there is room, and rings where that is wanted.
    fn begin(&self, command: Command, exchange: &Exchange<'_>) -> Result<Flight, Error> {
        let mut state = self.state();
        loop {
            match state.lane.begin(command, exchange.input, exchange.output_bytes, None) {
                Ok(flight) => {
                    self.ring_bell(&mut state);
                    return Ok(flight);
                }
                Err(Refused::Error(error)) => return Err(error),
                Err(Refused::Full) => state = self.wait_for_room(state, exchange.deadline)?,
            }
        }
    }

    fn ring_bell(&self, state: &mut State) {
        if state.lane.wants_doorbell() {
            self.bell.ring();
        }
    }

    fn wait_for_room<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> Result<MutexGuard<'a, State>, Error> {
        self.check()?;
        state.lane.reap(Waker::wake)?;
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Error::TimedOut);
        }
        state.crowd += 1;
        // Those who have the room hold it for no longer than it takes to use their completions; none of them may know of us.
        let waited = self.room.wait_timeout(state, Duration::from_millis(1));
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.crowd -= 1;
        Ok(state)
    }

    /// Carries out one command and waits. `take` sees the completion and the memory, in which the output begins where it is told.
    pub fn call<T>(
        &self,
        command: Command,
        exchange: &Exchange<'_>,
        take: impl FnOnce(&Completion, &SharedMemory, u64) -> T,
    ) -> Result<T, Error> {
        self.check()?;
        let flight = self.begin(command, exchange)?;
        if let Some(state) = self.wait_briefly(flight)? {
            return Ok(self.use_completion(state, flight, take));
        }
        let waited = self.wait(flight, exchange.deadline);
        self.settle(flight, waited, command.credential, take)
    }

    /// What most calls need: polls with the ring to itself for as long as a round trip takes.
    fn wait_briefly(&self, flight: Flight) -> Result<Option<MutexGuard<'_, State>>, Error> {
        let mut state = self.state();
        if state.has_keeper {
            return Ok(None);
        }
        for _ in 0..LOOKS {
            if state.lane.reap(Waker::wake)? > 0 && state.lane.is_done(flight, None) {
                return Ok(Some(state));
            }
            std::hint::spin_loop();
        }
        Ok(None)
    }

    fn use_completion<T>(
        &self,
        mut state: MutexGuard<'_, State>,
        flight: Flight,
        take: impl FnOnce(&Completion, &SharedMemory, u64) -> T,
    ) -> T {
        let taken = state.lane.finish(flight, take);
        if state.crowd > 0 {
            self.room.notify_one();
        }
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
        let mut state = self.state();
        match waited {
            Ok(()) => Ok(self.use_completion(state, flight, take)),
            Err(error) => {
                let cancel = state.lane.abandon(flight);
                self.cancel(&mut state, cancel, credential);
                Err(error)
            }
        }
    }

    fn cancel(&self, state: &mut State, cancel: Option<Command>, credential: u32) {
        let Some(cancel) = cancel else { return };
        // Where there is no room for it the command waits on; its areas stay its own.
        if let Ok(flight) = state.lane.begin(Command { credential, ..cancel }, &[], 0, None) {
            state.lane.abandon(flight);
            self.ring_bell(state);
        }
    }

    /// Returns when the flight is done.
    fn wait(&self, flight: Flight, deadline: Option<Instant>) -> Result<(), Error> {
        loop {
            let mut state = self.state();
            state.lane.reap(Waker::wake)?;
            if !state.has_keeper {
                if state.lane.is_done(flight, None) {
                    return Ok(());
                }
                state.has_keeper = true;
                drop(state);
                let kept = self.keep(deadline, |lane| lane.is_done(flight, None));
                self.leave();
                return kept;
            }
            if UNPARK.with(|waker| state.lane.is_done(flight, Some(waker))) {
                return Ok(());
            }
            self.check()?;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Error::TimedOut);
            }
            state.parked += 1;
            drop(state);
            std::thread::park_timeout(left.map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN)));
            self.state().parked -= 1;
        }
    }

    /// Looks after the ring until `enough`.
    fn keep(
        &self,
        deadline: Option<Instant>,
        mut enough: impl FnMut(&mut Lane) -> bool,
    ) -> Result<(), Error> {
        loop {
            let began = Instant::now();
            loop {
                let mut state = self.state();
                for _ in 0..LOOKS {
                    if state.lane.reap(Waker::wake)? > 0 {
                        if enough(&mut state.lane) {
                            return Ok(());
                        }
                        if state.crowd > 0 {
                            self.room.notify_all();
                        }
                    }
                    std::hint::spin_loop();
                }
                if enough(&mut state.lane) {
                    return Ok(());
                }
                drop(state);
                if began.elapsed() >= self.busy_poll {
                    break;
                }
            }
            self.check()?;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Error::TimedOut);
            }
            if self.state().lane.prepare_sleep() {
                let slept = self.bell.sleep(left.map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN)));
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
            state.lane.any_waker().into_iter().for_each(Waker::wake);
        }
    }

    /// Keeps the ring for tasks, until it has ended. For a thread of its own.
    fn keep_for_tasks(&self) {
        let mut state = self.state();
        while !state.ended {
            if state.tasks == 0 || state.has_keeper {
                state = self.wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.has_keeper = true;
            drop(state);
            let kept = self.keep(Some(Instant::now() + LOOK_AGAIN), |lane| lane.under_way() == 0);
            state = self.state();
            state.has_keeper = false;
            match kept {
                Ok(()) | Err(Error::TimedOut) => {}
                // Whoever waits finds out for itself.
                Err(_) => {
                    while let Some(waker) = state.lane.any_waker() {
                        waker.wake();
                    }
                    state.tasks = 0;
                }
            }
        }
    }

    fn forget_task(&self) {
        let mut state = self.state();
        state.tasks = state.tasks.saturating_sub(1);
    }

    /// A task waits: somebody has to keep the ring.
    fn want_keeper(self: &Arc<Self>, state: &mut State) -> Result<(), Error> {
        if !state.has_thread {
            let ring = Arc::clone(self);
            let begun = std::thread::Builder::new().name("ringfort ring".to_owned());
            begun.spawn(move || ring.keep_for_tasks()).map_err(Error::system("start a thread"))?;
            state.has_thread = true;
        }
        self.wanted.notify_one();
        Ok(())
    }

    /// Begins a command for a task. Its future is done when the command is; dropping it before gives the command up.
    pub fn start(self: &Arc<Self>, command: Command, exchange: &Exchange<'_>) -> Result<Pending, Error> {
        self.check()?;
        let flight = self.begin(command, exchange)?;
        self.state().tasks += 1;
        Ok(Pending { ring: Arc::clone(self), flight: Some(flight), credential: command.credential })
    }

    /// Submits `commands` one right behind the other, and waits for all of them. `take` sees each completion in turn.
    pub fn call_all(
        &self,
        commands: &[(Command, Vec<&[u8]>, usize)],
        deadline: Option<Instant>,
        mut take: impl FnMut(usize, &Completion, &SharedMemory, u64),
    ) -> Result<(), Error> {
        self.check()?;
        let mut state = self.state();
        while state.lane.room() < commands.len() {
            if state.lane.under_way() == 0 {
                let most = state.lane.room();
                return Err(Error::TooLong { operation: "submit together", found: commands.len(), most });
            }
            state = self.wait_for_room(state, deadline)?;
        }
        let mut flights = Vec::with_capacity(commands.len());
        let mut refused = None;
        for (command, input, output_bytes) in commands {
            match state.lane.begin(*command, input, *output_bytes, None) {
                Ok(flight) => flights.push(flight),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        if refused.is_some()
            && let Some((command, ..)) = commands.first()
        {
            // A chain needs an end. There is a flight left for it: that of the command that was refused.
            let end = Command { credential: command.credential, ..Command::new(Opcode::Nop, 0, 0) };
            if let Ok(flight) = state.lane.begin(end, &[], 0, None) {
                state.lane.abandon(flight);
            }
        }
        self.ring_bell(&mut state);
        drop(state);
        let mut outcome = Ok(());
        for (index, (flight, (command, ..))) in flights.iter().zip(commands).enumerate() {
            // After the first that fails to come nobody waits for the others.
            let waited = match outcome {
                Ok(()) => self.wait(*flight, deadline),
                Err(_) => Err(Error::TimedOut),
            };
            let used = self.settle(*flight, waited, command.credential, |completion, memory, at| {
                take(index, completion, memory, at);
            });
            outcome = outcome.and(used);
        }
        outcome?;
        match refused {
            None => Ok(()),
            Some(Refused::Error(error)) => Err(error),
            Some(Refused::Full) => Err(Error::TooLong {
                operation: "submit together",
                found: commands.len(),
                most: flights.len(),
            }),
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
        let ring = Arc::clone(&self.ring);
        ring.forget_task();
        ring.settle(flight, Ok(()), self.credential, take)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(flight) = self.flight.take() {
            let mut state = self.ring.state();
            state.tasks = state.tasks.saturating_sub(1);
            let cancel = state.lane.abandon(flight);
            self.ring.cancel(&mut state, cancel, self.credential);
        }
    }
}

struct Done<'a>(&'a mut Pending);

impl Future for Done<'_> {
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ring = Arc::clone(&self.0.ring);
        let Some(flight) = self.0.flight else { return Poll::Ready(Ok(())) };
        let mut state = ring.state();
        if let Err(error) = state.lane.reap(Waker::wake) {
            return Poll::Ready(Err(error));
        }
        if state.lane.is_done(flight, Some(context.waker())) {
            return Poll::Ready(Ok(()));
        }
        if let Err(error) = ring.check() {
            return Poll::Ready(Err(error));
        }
        match ring.want_keeper(&mut state) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}
