//! Where io_uring is refused: a pool of threads that make the plain system calls.
//!
//! # Safety
//! As in `uring`: a job points into memory that an [`Operation`] in the [`Table`] owns until the job's result has
//! been taken in; if the pool is dropped with jobs outstanding, the table is leaked.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::engine::Transfers;
use super::operation::{Kind, Operation, Table};
use crate::executor::Kick;

/// How long a dropped pool waits for its threads before it leaks what is outstanding.
const DROP_WAIT: Duration = Duration::from_secs(5);

struct Job {
    index: usize,
    kind: Kind,
    fd: RawFd,
    offset_bytes: u64,
    parts: Vec<libc::iovec>,
}

// SAFETY: the pointers are to memory that only this job touches until its result is taken in: a read's buffer is in the
// table and reachable by nobody, a write's slices are immutable.
unsafe impl Send for Job {}

#[derive(Default)]
struct Inbox {
    jobs: VecDeque<Job>,
    closed: bool,
}

#[derive(Default)]
struct Outbox {
    results: VecDeque<(usize, io::Result<usize>)>,
    kicked: bool,
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    work: Condvar,
    outbox: Mutex<Outbox>,
    news: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Pool {
    table: RefCell<Table>,
    shared: Arc<Shared>,
    drop_wait: Duration,
}

/// Kicks the owner through the outbox.
pub(super) struct OutboxKick(Arc<Shared>);

impl Kick for OutboxKick {
    fn kick(&self) {
        lock(&self.0.outbox).kicked = true;
        self.0.news.notify_one();
    }
}

fn work(shared: &Shared) {
    loop {
        let job = {
            let mut inbox = lock(&shared.inbox);
            loop {
                if let Some(job) = inbox.jobs.pop_front() {
                    break job;
                }
                if inbox.closed {
                    return;
                }
                inbox = shared.work.wait(inbox).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let result = perform(&job);
        lock(&shared.outbox).results.push_back((job.index, result));
        shared.news.notify_one();
    }
}

fn perform(job: &Job) -> io::Result<usize> {
    let offset = job.offset_bytes as libc::off_t;
    let part_count = job.parts.len() as libc::c_int;
    // SAFETY: the parts are valid for the transfer (module invariant), and so is the descriptor, which the operation
    // holds open.
    let moved = unsafe {
        match job.kind {
            Kind::Read => libc::preadv(job.fd, job.parts.as_ptr(), part_count, offset),
            Kind::Write => libc::pwritev(job.fd, job.parts.as_ptr(), part_count, offset),
            Kind::DurableWrite => {
                libc::pwritev2(job.fd, job.parts.as_ptr(), part_count, offset, libc::RWF_DSYNC)
            }
            Kind::Flush => libc::fdatasync(job.fd) as isize,
        }
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

impl Pool {
    pub(super) fn new(thread_count: usize) -> io::Result<(Self, OutboxKick)> {
        let shared = Arc::new(Shared::default());
        let pool = Self { table: RefCell::default(), shared: Arc::clone(&shared), drop_wait: DROP_WAIT };
        for _ in 0..thread_count {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("ringfort-io".into()).spawn(move || work(&shared))?;
        }
        Ok((pool, OutboxKick(shared)))
    }

    /// Shortens the wait for what hangs.
    #[cfg(test)]
    pub(super) fn set_drop_wait(&mut self, drop_wait: Duration) {
        self.drop_wait = drop_wait;
    }

    fn send(&self, table: &mut Table, index: usize) {
        let Some(operation) = table.get_mut(index) else { return };
        let transfer = operation.transfer();
        let job = Job {
            index,
            kind: transfer.kind,
            fd: transfer.fd,
            offset_bytes: transfer.offset_bytes,
            parts: transfer.parts.to_vec(),
        };
        lock(&self.shared.inbox).jobs.push_back(job);
        self.shared.work.notify_one();
    }
}

impl Transfers for Pool {
    fn start(&self, operation: Operation, deadline: Option<Instant>) {
        let mut table = self.table.borrow_mut();
        let index = table.insert(operation, deadline);
        self.send(&mut table, index);
    }

    fn turn(&self) {
        let results = std::mem::take(&mut lock(&self.shared.outbox).results);
        let mut table = self.table.borrow_mut();
        for (index, result) in results {
            if table.advance(index, result) {
                self.send(&mut table, index);
            }
        }
    }

    fn wait(&self, limit: Option<Duration>) {
        let mut outbox = lock(&self.shared.outbox);
        if outbox.results.is_empty() && !outbox.kicked {
            // A wake-up without news is harmless: the owner looks and waits again.
            outbox = match limit {
                None => self.shared.news.wait(outbox).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    self.shared.news.wait_timeout(outbox, limit).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        outbox.kicked = false;
    }

    fn expire(&self, now: Instant) {
        self.table.borrow_mut().expire(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.table.borrow().next_deadline()
    }

    fn watch(&self, _descriptor: Box<dyn AsRawFd>) -> Option<usize> {
        None
    }

    fn unwatch(&self, _number: usize) {}
}

impl Drop for Pool {
    fn drop(&mut self) {
        let give_up = Instant::now() + self.drop_wait;
        self.turn();
        while !self.table.borrow().is_empty() && Instant::now() < give_up {
            self.wait(Some(Duration::from_millis(100)));
            self.turn();
        }
        lock(&self.shared.inbox).closed = true;
        self.shared.work.notify_all();
        if !self.table.borrow().is_empty() {
            tracing::warn!(
                "devices have not answered all requests: their memory is given up. What was synced is safe; check the devices"
            );
        }
        // Nothing to free in an empty table; the memory of a full one is in use.
        std::mem::forget(self.table.take());
    }
}
