//! The ring: the one place that hands memory to the kernel for later.
//!
//! # Safety
//! A submission entry points into memory that an [`Operation`] owns. The operation is in the [`Table`] from before the
//! entry is pushed until its completion entry has been reaped; if the ring is dropped with answers outstanding, the table is
//! leaked. So the kernel never touches freed memory.
//!
//! The ring holds the arena that it has registered. An address in it is therefore the arena's, at any time, and means the
//! same pages to the kernel as to us; the kernel itself keeps the pages until the last request that uses them is over.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::engine::Transfers;
use super::operation::{Kind, Operation, Table, Transfer};
use crate::buffer::arena::Arena;
use crate::executor::Kick;

/// Entries that can be submitted with one system call.
const SUBMISSION_ENTRIES: u32 = 256;

/// Completions that the kernel can post before it has to keep them elsewhere.
const COMPLETION_ENTRIES: u32 = 4096;

/// Marks the read of the event counter by which other threads end a wait.
const WAKE: u64 = u64::MAX;

/// Marks what is heard of a watched descriptor, whose number is in the other bits. No index of an operation has this bit.
const WATCH: u64 = 1 << 63;

/// Marks the answer to letting go of a watched descriptor, whose number is in the other bits. As above.
const UNWATCH: u64 = 1 << 62;

/// How long a dropped ring waits for the kernel before it leaks what is outstanding.
const DROP_WAIT: Duration = Duration::from_secs(5);

/// The index under which a ring knows its arena.
const ARENA_INDEX: u16 = 0;

/// Which way of working to ask the kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    /// The best that it has.
    Newest,
    /// What Linux 5.11 has.
    Plain,
}

/// A descriptor whose readiness ends a wait.
struct Watched {
    descriptor: Box<dyn AsRawFd>,
    /// The kernel polls it, and will say so when it no longer does.
    armed: bool,
    /// Nobody wants to hear of it any more.
    given_up: bool,
}

#[derive(Default)]
struct Watches {
    slots: Vec<Option<Watched>>,
    /// Numbers of slots of which the kernel has to be told.
    changes: VecDeque<usize>,
}

struct State {
    ring: IoUring,
    watches: Watches,
    /// Known to the ring, if any.
    arena: Option<Rc<Arena>>,
    table: Table,
    /// Operations whose next transfer is not in the submission queue yet.
    waiting: VecDeque<usize>,
    wake_word: Box<u64>,
    wake_armed: bool,
}

pub(super) struct Ring {
    state: RefCell<State>,
    event: Arc<EventFd>,
    drop_wait: Duration,
}

/// Kicks the owner through the event counter.
pub(super) struct EventKick(Arc<EventFd>);

impl Kick for EventKick {
    fn kick(&self) {
        // Fails only where the counter is at its maximum, and then the owner is being woken already.
        let _ = self.0.write(1);
    }
}

fn build(flavour: Flavour) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETION_ENTRIES);
    if flavour == Flavour::Newest {
        // Completions are then delivered when the owner asks for them, not by interrupting it. Linux 6.1.
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    }
    let ring = match builder.build(SUBMISSION_ENTRIES) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && flavour == Flavour::Newest => {
            return build(Flavour::Plain);
        }
        other => other?,
    };
    let params = ring.params();
    if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel's io_uring is older than Linux 5.11",
        ));
    }
    Ok(ring)
}

/// Half of what this process may lock in memory: the other half is for others of the same user, who count together.
fn lockable_bytes() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours to be filled in.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    if asked == 0 { usize::try_from(limit.rlim_cur / 2).unwrap_or(usize::MAX) } else { 0 }
}

/// Makes an arena known to the ring: the thread's, or else a new one, which serves the thread from then on.
fn register(ring: &IoUring, len_bytes: usize) -> io::Result<Rc<Arena>> {
    let serving = Arena::of_this_thread();
    let is_new = serving.is_none();
    let arena = serving.map_or_else(|| Arena::new(len_bytes), Ok)?;
    let whole = libc::iovec { iov_base: arena.start().cast(), iov_len: arena.len_bytes() };
    // SAFETY: the mapping stays where it is while the arena lives, and the state that owns the ring holds it. Only
    // entries for memory that an operation owns have the kernel touch it.
    unsafe { ring.submitter().register_buffers(&[whole])? };
    if is_new {
        arena.serve_this_thread();
    }
    Ok(arena)
}

/// An arena of `len_bytes`, or of what the process may lock in memory, or none.
fn try_register(ring: &IoUring, len_bytes: usize) -> Option<Rc<Arena>> {
    if len_bytes == 0 {
        return None;
    }
    let fitting_bytes = len_bytes.min(lockable_bytes());
    let outcome = register(ring, len_bytes).or_else(|error| {
        tracing::debug!(len_bytes, fitting_bytes, "the kernel refuses registered buffers: {error}");
        register(ring, fitting_bytes)
    });
    outcome.inspect_err(|error| tracing::debug!("going on without registered buffers: {error}")).ok()
}

impl Ring {
    /// `arena_bytes`: memory for small buffers to register with the kernel, as far as it allows; 0 for none.
    pub(super) fn new(flavour: Flavour, arena_bytes: usize) -> io::Result<(Self, EventKick)> {
        let ring = build(flavour)?;
        let arena = try_register(&ring, arena_bytes);
        // Blocking: the ring waits for it, and a non-blocking one would be answered at once.
        let event = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?);
        let kick = EventKick(Arc::clone(&event));
        let state = State {
            ring,
            watches: Watches::default(),
            arena,
            table: Table::default(),
            waiting: VecDeque::new(),
            wake_word: Box::new(0),
            wake_armed: false,
        };
        Ok((Self { state: RefCell::new(state), event, drop_wait: DROP_WAIT }, kick))
    }

    /// Shortens the wait for what hangs.
    #[cfg(test)]
    pub(super) fn set_drop_wait(&mut self, drop_wait: Duration) {
        self.drop_wait = drop_wait;
    }

    #[cfg(test)]
    pub(super) fn has_arena(&self) -> bool {
        self.state.borrow().arena.is_some()
    }
}

fn entry(transfer: &Transfer<'_>, arena: Option<&Arena>) -> squeue::Entry {
    let fd = Fd(transfer.fd);
    let is_registered = |part: &libc::iovec| {
        arena.is_some_and(|arena| arena.contains(part.iov_base.cast_const().cast(), part.iov_len))
    };
    let write_flags = if transfer.kind == Kind::DurableWrite { libc::RWF_DSYNC } else { 0 };
    match (transfer.kind, transfer.parts) {
        (Kind::Flush, _) => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        (Kind::Read, [part]) if is_registered(part) => {
            opcode::ReadFixed::new(fd, part.iov_base.cast(), part.iov_len as u32, ARENA_INDEX)
                .offset(transfer.offset_bytes)
                .build()
        }
        (Kind::Write | Kind::DurableWrite, [part]) if is_registered(part) => {
            opcode::WriteFixed::new(fd, part.iov_base.cast(), part.iov_len as u32, ARENA_INDEX)
                .offset(transfer.offset_bytes)
                .rw_flags(write_flags)
                .build()
        }
        (Kind::Read, [part]) => opcode::Read::new(fd, part.iov_base.cast(), part.iov_len as u32)
            .offset(transfer.offset_bytes)
            .build(),
        (Kind::Write | Kind::DurableWrite, [part]) => {
            opcode::Write::new(fd, part.iov_base.cast(), part.iov_len as u32)
                .offset(transfer.offset_bytes)
                .rw_flags(write_flags)
                .build()
        }
        (Kind::Read, parts) => {
            opcode::Readv::new(fd, parts.as_ptr(), parts.len() as u32).offset(transfer.offset_bytes).build()
        }
        (Kind::Write | Kind::DurableWrite, parts) => {
            opcode::Writev::new(fd, parts.as_ptr(), parts.len() as u32)
                .offset(transfer.offset_bytes)
                .rw_flags(write_flags)
                .build()
        }
    }
}

impl Watches {
    fn add(&mut self, descriptor: Box<dyn AsRawFd>) -> usize {
        let number = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[number] = Some(Watched { descriptor, armed: false, given_up: false });
        self.changes.push_back(number);
        number
    }

    fn give_up(&mut self, number: usize) {
        if let Some(Some(watched)) = self.slots.get_mut(number) {
            watched.given_up = true;
            self.changes.push_back(number);
        }
    }

    /// The next entry by which the kernel is told of a change.
    fn next_entry(&mut self) -> Option<squeue::Entry> {
        while let Some(number) = self.changes.pop_front() {
            let Some(Some(watched)) = self.slots.get_mut(number) else { continue };
            let user_data = WATCH | number as u64;
            match (watched.given_up, watched.armed) {
                (false, true) => {}
                (false, false) => {
                    watched.armed = true;
                    let fd = Fd(watched.descriptor.as_raw_fd());
                    // One entry, an answer each time that the descriptor is written to.
                    let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true);
                    return Some(poll.build().user_data(user_data));
                }
                (true, true) => {
                    return Some(
                        opcode::PollRemove::new(user_data).build().user_data(UNWATCH | number as u64),
                    );
                }
                (true, false) => self.slots[number] = None,
            }
        }
        None
    }

    /// Takes in news of a descriptor. A wait is over by that alone.
    fn hear(&mut self, number: usize, result: i32, more: bool) {
        if more {
            return;
        }
        let Some(Some(watched)) = self.slots.get_mut(number) else { return };
        watched.armed = false;
        if watched.given_up {
            // Closed at once: this may be the last thing before the thread sleeps.
            self.slots[number] = None;
            return;
        }
        let failed = result < 0 || result & i32::from(libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0;
        if failed {
            // A doorbell that is closed at the other end rings no more; to poll it again would be answered at once.
            tracing::debug!(result, "a watched descriptor fails");
            return;
        }
        self.changes.push_back(number);
    }

    /// Takes in whether the kernel let go of a descriptor.
    fn hear_of_end(&mut self, number: usize, result: i32) {
        // It does not while it has news of the descriptor to tell: once told, it is asked again.
        if result == -libc::EALREADY {
            self.changes.push_back(number);
        }
    }
}

impl State {
    /// Moves what waits into the submission queue, as far as there is room.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while !queue.is_full() {
            let Some(index) = self.waiting.pop_front() else { return };
            let Some(operation) = self.table.get_mut(index) else { continue };
            let entry = entry(&operation.transfer(), self.arena.as_deref()).user_data(index as u64);
            // SAFETY: the entry points into memory and a list of parts that the operation owns. It stays in the table until
            // `reap` has seen the entry's completion, and `transfer` is not called again before (module invariant).
            let pushed = unsafe { queue.push(&entry) };
            assert!(pushed.is_ok(), "the submission queue had room");
        }
    }

    /// Tells the kernel of what is to be watched and what no more, as far as there is room.
    fn fill_watches(&mut self) {
        let mut queue = self.ring.submission();
        while !queue.is_full() {
            let Some(entry) = self.watches.next_entry() else { return };
            // SAFETY: the entry points into no memory. The descriptor stays open until the kernel has let go of it.
            let pushed = unsafe { queue.push(&entry) };
            assert!(pushed.is_ok(), "the submission queue had room");
        }
    }

    /// Makes sure that a kick ends the next wait.
    fn arm_wake(&mut self, event: &EventFd) {
        if self.wake_armed || self.ring.submission().is_full() {
            return;
        }
        let target: *mut u64 = &mut *self.wake_word;
        let entry = opcode::Read::new(Fd(event.as_raw_fd()), target.cast(), size_of::<u64>() as u32)
            .build()
            .user_data(WAKE);
        // SAFETY: the word is on the heap, is touched by nobody else while `wake_armed`, and is leaked if the ring is dropped
        // before the answer; the event counter lives as long as the ring.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        self.wake_armed = pushed.is_ok();
    }

    /// Submits, and waits for at least one completion if `wait` says so; at most for that long.
    fn enter(&mut self, wait: Option<Option<Duration>>) {
        let result = match wait {
            None => {
                let mut queue = self.ring.submission();
                queue.sync();
                if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                    return;
                }
                drop(queue);
                self.ring.submit()
            }
            Some(None) => self.ring.submit_and_wait(1),
            Some(Some(limit)) => {
                let timespec = Timespec::from(limit);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        };
        match result {
            Ok(_) => {}
            // A signal, the end of the wait, or completions that have to be reaped first.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN)
                ) => {}
            // Whether the kernel has the memory is then unknown: nothing can go on from here.
            Err(error) => panic!("io_uring_enter: {error}"),
        }
    }

    /// Delivers what has completed. True where there was anything.
    fn reap(&mut self) -> bool {
        let mut any = false;
        // Resubmissions go to `waiting`, so the queue is not touched meanwhile.
        for completion in self.ring.completion() {
            any = true;
            match completion.user_data() {
                WAKE => {
                    self.wake_armed = false;
                    continue;
                }
                watch if watch & WATCH != 0 => {
                    let more = cqueue::more(completion.flags());
                    self.watches.hear((watch & !WATCH) as usize, completion.result(), more);
                    continue;
                }
                unwatch if unwatch & UNWATCH != 0 => {
                    self.watches.hear_of_end((unwatch & !UNWATCH) as usize, completion.result());
                    continue;
                }
                _ => {}
            }
            let answer = match completion.result() {
                error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
                moved => Ok(moved as usize),
            };
            let index = completion.user_data() as usize;
            if self.table.advance(index, answer) {
                self.waiting.push_back(index);
            }
        }
        any
    }

    fn turn(&mut self) {
        loop {
            self.fill();
            self.fill_watches();
            self.enter(None);
            // More to push that had no room, or that came up now: go round while the kernel makes room.
            if !self.reap() || self.waiting.is_empty() {
                return;
            }
        }
    }
}

impl Transfers for Ring {
    fn start(&self, operation: Operation, deadline: Option<Instant>) {
        let mut state = self.state.borrow_mut();
        let index = state.table.insert(operation, deadline);
        state.waiting.push_back(index);
    }

    fn turn(&self) {
        self.state.borrow_mut().turn();
    }

    fn wait(&self, limit: Option<Duration>) {
        let mut state = self.state.borrow_mut();
        state.fill();
        state.fill_watches();
        state.arm_wake(&self.event);
        // Without room to arm, or with more to submit, a wait could sleep through work.
        if state.wake_armed && state.waiting.is_empty() && state.watches.changes.is_empty() {
            state.enter(Some(limit));
        }
    }

    fn expire(&self, now: Instant) {
        self.state.borrow_mut().table.expire(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.state.borrow().table.next_deadline()
    }

    fn watch(&self, descriptor: Box<dyn AsRawFd>) -> Option<usize> {
        let mut state = self.state.borrow_mut();
        // Such rings are of Linux 6.1 or later, which has polls that answer many times.
        if !state.ring.params().is_setup_single_issuer() {
            return None;
        }
        Some(state.watches.add(descriptor))
    }

    fn unwatch(&self, number: usize) {
        self.state.borrow_mut().watches.give_up(number);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let give_up = Instant::now() + self.drop_wait;
        if state.wake_armed {
            let _ = self.event.write(1);
        }
        state.turn();
        while (!state.table.is_empty() || state.wake_armed) && Instant::now() < give_up {
            state.fill();
            state.enter(Some(Some(Duration::from_millis(100))));
            state.reap();
        }
        if !state.table.is_empty() {
            tracing::warn!(
                "devices have not answered all requests: their memory is given up. What was synced is safe; check the devices"
            );
        }
        // Nothing to free in an empty table; a full one belongs to the kernel for ever.
        std::mem::forget(std::mem::take(&mut state.table));
        if state.wake_armed {
            std::mem::forget(std::mem::take(&mut state.wake_word));
            std::mem::forget(Arc::clone(&self.event));
        }
    }
}
