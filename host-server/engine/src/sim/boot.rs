//! One life of the simulated process: its tasks, its requests in flight, and the moment at which it ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use super::RunOutcome;
use super::disk::Disk;
use super::engine::Lock;
use super::fault::WriteFate;
use super::random::Random;
use crate::buffer::{Buffer, Slice};
use crate::completion::Completer;
use crate::device::DeviceCounters;
use crate::error::{EngineError, ErrorKind};
use crate::executor::{Executor, Kick, Step};
use crate::timer::Timers;

/// Polls without the clock advancing, after which the tasks are taken to be spinning.
const POLLS_WITHOUT_TIME_MAX: u64 = 20_000_000;

/// What was asked of a device. The completer is taken when the request times out.
pub(super) enum Request {
    Read { offset_bytes: u64, buffer: Buffer, done: Option<Completer<Buffer>> },
    Write { offset_bytes: u64, data: Vec<Slice>, durably: bool, done: Option<Completer<()>> },
    Flush { mark: u64, done: Option<Completer<()>> },
}

/// A request on its way, and where its numbers are kept.
pub(super) struct InFlight {
    pub(super) disk: Rc<RefCell<Disk>>,
    pub(super) name: Rc<str>,
    pub(super) counters: Rc<Cell<DeviceCounters>>,
    /// Nobody else opens the device while a request is on its way, whoever made it.
    pub(super) _lock: Rc<Lock>,
    pub(super) request: Request,
}

enum Event {
    Answer(u64),
    TimeOut(u64),
}

#[derive(Default)]
struct Queue {
    next_serial: u64,
    next_event: u64,
    /// Each with its time-out, which goes when the answer comes.
    in_flight: BTreeMap<u64, (InFlight, Option<EventKey>)>,
    /// By time, then by the order of submission.
    events: BTreeMap<EventKey, Event>,
}

type EventKey = (Duration, u64);

impl Queue {
    fn schedule(&mut self, time: Duration, event: Event) -> EventKey {
        let key = (time, self.next_event);
        self.next_event += 1;
        self.events.insert(key, event);
        key
    }
}

struct NobodyParks;

impl Kick for NobodyParks {
    fn kick(&self) {}
}

pub(super) struct Boot {
    pub(super) executor: Executor,
    pub(super) timers: Rc<Timers>,
    pub(super) clock: Rc<Cell<Duration>>,
    /// Latencies and faults.
    random: RefCell<Random>,
    queue: RefCell<Queue>,
    point_count: Cell<u64>,
    pub(super) crash_at_point: Cell<Option<u64>>,
    crashed: Cell<bool>,
    pub(super) request_timeout: Cell<Option<Duration>>,
    pub(super) time_limit: Cell<Duration>,
}

impl Boot {
    pub(super) fn new(clock: Rc<Cell<Duration>>, random: Random) -> Self {
        Self {
            executor: Executor::new(Box::new(NobodyParks)),
            timers: Rc::default(),
            clock,
            random: RefCell::new(random),
            queue: RefCell::default(),
            point_count: Cell::new(0),
            crash_at_point: Cell::new(None),
            crashed: Cell::new(false),
            request_timeout: Cell::new(Some(Duration::from_secs(30))),
            time_limit: Cell::new(Duration::from_secs(6 * 3600)),
        }
    }

    pub(super) fn point_count(&self) -> u64 {
        self.point_count.get()
    }

    pub(super) fn is_crashed(&self) -> bool {
        self.crashed.get()
    }

    pub(super) fn crash(&self) {
        self.crashed.set(true);
    }

    /// Passes a persistence point.
    fn pass_point(&self) {
        self.point_count.set(self.point_count.get() + 1);
        if self.crash_at_point.get() == Some(self.point_count.get()) {
            self.crash();
        }
    }

    /// Puts a request on its way. After the crash it goes nowhere and is never answered.
    pub(super) fn submit(&self, in_flight: InFlight) {
        if self.is_crashed() {
            return;
        }
        let mut random = self.random.borrow_mut();
        let (base_us, spread_us) = match in_flight.request {
            Request::Read { .. } => (20, 200),
            Request::Write { durably: false, .. } => (20, 400),
            Request::Write { durably: true, .. } | Request::Flush { .. } => (100, 2000),
        };
        let mut latency = Duration::from_micros(base_us + random.below(spread_us));
        if random.one_in(50) {
            // A straggler, so that much overtakes it.
            latency *= 20;
        }
        let is_write = matches!(in_flight.request, Request::Write { .. });
        {
            let mut queue = self.queue.borrow_mut();
            let serial = queue.next_serial;
            queue.next_serial += 1;
            let now = self.clock.get();
            let (hangs, delay) = {
                let disk = in_flight.disk.borrow();
                (disk.faults.hangs(), disk.faults.delay())
            };
            if !hangs {
                queue.schedule(now + latency + delay, Event::Answer(serial));
            }
            let time_out = self
                .request_timeout
                .get()
                .map(|timeout| queue.schedule(now + timeout, Event::TimeOut(serial)));
            queue.in_flight.insert(serial, (in_flight, time_out));
        }
        drop(random);
        if is_write {
            self.pass_point();
        }
    }

    /// Runs until `future` is done or the machine crashes. Only when nothing is runnable does time pass, to the next event.
    pub(super) fn run<F: Future>(&self, future: F) -> RunOutcome<F::Output> {
        let started = self.clock.get();
        let future = pin!(future);
        let mut main = self.executor.enter(future);
        let mut poll_count = 0;
        loop {
            if self.is_crashed() {
                return RunOutcome::Crashed;
            }
            match self.executor.step(&mut main) {
                // A crash within the last poll takes its result away.
                Step::Done(_) if self.is_crashed() => return RunOutcome::Crashed,
                Step::Done(output) => return RunOutcome::Done(output),
                Step::Ran => {
                    poll_count += 1;
                    assert!(
                        poll_count < POLLS_WITHOUT_TIME_MAX,
                        "livelock: tasks spin without waiting for anything"
                    );
                }
                Step::Idle => {
                    poll_count = 0;
                    self.advance();
                    let passed = self.clock.get() - started;
                    assert!(passed <= self.time_limit.get(), "no end after {passed:?} of virtual time");
                }
            }
        }
    }

    /// Time passes to the next event, which happens. Answers come before sleepers of the same instant.
    fn advance(&self) {
        let event = self.queue.borrow().events.first_key_value().map(|((time, _), _)| *time);
        let deadline = self.timers.next_deadline();
        let next = match (event, deadline) {
            (None, None) => panic!("deadlock: no task is ready, no request is in flight and nobody sleeps"),
            (Some(time), None) | (None, Some(time)) => time,
            (Some(event), Some(deadline)) => event.min(deadline),
        };
        self.clock.set(self.clock.get().max(next));
        if event != Some(next) {
            self.timers.fire(self.clock.get());
            return;
        }
        let event = self.queue.borrow_mut().events.pop_first();
        match event {
            Some((_, Event::Answer(serial))) => self.answer(serial),
            Some((_, Event::TimeOut(serial))) => self.time_out(serial),
            None => {}
        }
    }

    fn time_out(&self, serial: u64) {
        let mut queue = self.queue.borrow_mut();
        let Some((in_flight, _)) = queue.in_flight.get_mut(&serial) else { return };
        count(&in_flight.counters, |counters| {
            counters.timeouts += 1;
            match in_flight.request {
                Request::Read { .. } => counters.read_errors += 1,
                Request::Write { .. } => counters.write_errors += 1,
                Request::Flush { .. } => counters.flush_errors += 1,
            }
        });
        let error =
            |operation: &str| EngineError::new(ErrorKind::Failed, operation, &*in_flight.name, "timed out");
        // The request stays: the device may yet carry it out.
        match &mut in_flight.request {
            Request::Read { done, .. } => fail(done.take(), error("read")),
            Request::Write { done, .. } => fail(done.take(), error("write")),
            Request::Flush { done, .. } => fail(done.take(), error("flush")),
        }
    }

    fn answer(&self, serial: u64) {
        let in_flight = {
            let mut queue = self.queue.borrow_mut();
            // It may have begun to hang with this request inside.
            let hangs = |(in_flight, _): &(InFlight, _)| in_flight.disk.borrow().faults.hangs();
            if queue.in_flight.get(&serial).is_none_or(hangs) {
                return;
            }
            let Some((in_flight, time_out)) = queue.in_flight.remove(&serial) else { return };
            if let Some(key) = time_out {
                queue.events.remove(&key);
            }
            in_flight
        };
        let InFlight { disk, name, counters, request, _lock } = in_flight;
        let failed = |operation: String, disk: &Disk, note: fn(&mut DeviceCounters)| {
            count(&counters, note);
            let found = if disk.faults.vanished() { "the device is gone" } else { "input/output error" };
            EngineError::new(ErrorKind::Failed, operation, &*name, found)
        };
        match request {
            Request::Read { offset_bytes, mut buffer, done } => {
                let disk = disk.borrow();
                let result = if disk.faults.read_fails(offset_bytes, buffer.len()) {
                    let operation = format!("read {} bytes at offset {offset_bytes} of", buffer.len());
                    Err(failed(operation, &disk, |counters| counters.read_errors += 1))
                } else {
                    disk.read(offset_bytes, &mut buffer);
                    count(&counters, |counters| {
                        counters.reads += 1;
                        counters.read_bytes += buffer.len() as u64;
                    });
                    Ok(buffer)
                };
                drop(disk);
                if let Some(done) = done {
                    done.complete(result);
                }
            }
            Request::Write { offset_bytes, data, durably, done } => {
                let bytes = data.concat();
                // Memory lent to the request is back before its completion is seen.
                drop(data);
                let mut disk = disk.borrow_mut();
                let len_bytes = bytes.len();
                let result = match disk.faults.take_write(offset_bytes, len_bytes) {
                    WriteFate::Failed => {
                        if !disk.faults.vanished() {
                            disk.remember_torn(&mut self.random.borrow_mut(), offset_bytes, &bytes);
                        }
                        let operation = format!("write {len_bytes} bytes at offset {offset_bytes} of");
                        Err(failed(operation, &disk, |counters| counters.write_errors += 1))
                    }
                    fate => {
                        match fate {
                            WriteFate::Misdirected(to_bytes) => {
                                let room = disk.len_bytes.saturating_sub(to_bytes).min(len_bytes as u64);
                                disk.remember(to_bytes, bytes[..room as usize].to_vec());
                            }
                            WriteFate::Lost => {}
                            _ => disk.remember(offset_bytes, bytes),
                        }
                        let flush_fails = durably && disk.faults.take_flush_error();
                        if flush_fails {
                            disk.fail_newest(&mut self.random.borrow_mut());
                            let operation = format!("write {len_bytes} bytes at offset {offset_bytes} of");
                            Err(failed(operation, &disk, |counters| counters.write_errors += 1))
                        } else {
                            // A device that loses or misplaces writes owns up to nothing when asked for durable ones.
                            if durably && !matches!(fate, WriteFate::Lost) && !disk.faults.ignores_flushes() {
                                disk.flush_newest();
                            }
                            count(&counters, |counters| {
                                counters.writes += 1;
                                counters.write_bytes += len_bytes as u64;
                                counters.flushes += u64::from(durably);
                            });
                            Ok(())
                        }
                    }
                };
                drop(disk);
                self.complete_persistent(done, result);
            }
            Request::Flush { mark, done } => {
                let mut disk = disk.borrow_mut();
                let result = if disk.faults.take_flush_error() {
                    disk.fail_flush(mark, &mut self.random.borrow_mut());
                    Err(failed("flush".into(), &disk, |counters| counters.flush_errors += 1))
                } else {
                    if !disk.faults.ignores_flushes() {
                        disk.flush(mark);
                    }
                    count(&counters, |counters| counters.flushes += 1);
                    Ok(())
                };
                drop(disk);
                self.complete_persistent(done, result);
            }
        }
    }

    /// Passes the persistence point between the effect and its completion, which a crash there swallows.
    fn complete_persistent(&self, done: Option<Completer<()>>, result: Result<(), EngineError>) {
        self.pass_point();
        if let (Some(done), false) = (done, self.is_crashed()) {
            done.complete(result);
        }
    }

    /// Ends this life: tasks are dropped, and what was in flight is handed over as the writes that may or may not have
    /// happened.
    pub(super) fn end(&self) -> Vec<(Rc<RefCell<Disk>>, u64, Vec<u8>)> {
        assert!(!self.executor.is_running(), "restarted from within its own run");
        self.crash();
        self.executor.close();
        let queue = std::mem::take(&mut *self.queue.borrow_mut());
        let writes = queue.in_flight.into_values().filter_map(|(in_flight, _)| match in_flight.request {
            Request::Write { offset_bytes, data, .. } => Some((in_flight.disk, offset_bytes, data.concat())),
            _ => None,
        });
        writes.collect()
    }
}

/// Wakes a caller with an error. Wakers only queue tasks, so the simulator may be borrowed meanwhile.
fn fail<T>(done: Option<Completer<T>>, error: EngineError) {
    if let Some(done) = done {
        done.complete(Err(error));
    }
}

fn count(counters: &Cell<DeviceCounters>, change: impl FnOnce(&mut DeviceCounters)) {
    let mut value = counters.get();
    change(&mut value);
    counters.set(value);
}
