//! Requests in flight: what they own, how far they are, and when they are given up.
//!
//! An operation owns the memory that the kernel reads or writes. It leaves the [`Table`] only through
//! [`Table::advance`], that is when the kernel has answered; giving up takes its completer alone.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Instant;

use super::component::Component;
use crate::buffer::{BLOCK_BYTES, Buffer, Slice};
use crate::completion::Completer;
use crate::device::DeviceCounters;
use crate::error::{EngineError, ErrorKind};

/// The kernel's limit on the elements of one gather (IOV_MAX).
const PARTS_MAX: usize = 1024;

/// One system call moves less than 2 GiB; a round number below it keeps what follows aligned.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

pub(super) enum Request {
    Read { offset_bytes: u64, buffer: Buffer, done: Option<Completer<Buffer>> },
    Write { offset_bytes: u64, data: Vec<Slice>, durably: bool, done: Option<Completer<()>> },
    Flush { done: Option<Completer<()>> },
}

impl Request {
    fn note_error(&self, counters: &mut DeviceCounters) {
        match self {
            Request::Read { .. } => counters.read_errors += 1,
            Request::Write { .. } => counters.write_errors += 1,
            Request::Flush { .. } => counters.flush_errors += 1,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// On stable media when it is answered.
    DurableWrite,
    Flush,
}

/// One system call's worth of an operation. The memory stays valid until [`Table::advance`] is told of its result.
pub(super) struct Transfer<'a> {
    pub(super) kind: Kind,
    pub(super) fd: RawFd,
    pub(super) offset_bytes: u64,
    pub(super) parts: &'a [libc::iovec],
}

pub(super) struct Operation {
    component: Rc<Component>,
    counters: Rc<Cell<DeviceCounters>>,
    request: Request,
    len_bytes: usize,
    moved_bytes: usize,
    parts: Vec<libc::iovec>,
    /// A durable write is on its device, and the flush that makes it durable there is under way.
    flushing: bool,
    given_up: bool,
}

impl Operation {
    /// `len_bytes`: of all the memory of the request.
    pub(super) fn new(
        component: Rc<Component>,
        counters: Rc<Cell<DeviceCounters>>,
        request: Request,
        len_bytes: usize,
    ) -> Self {
        Self {
            component,
            counters,
            request,
            len_bytes,
            moved_bytes: 0,
            parts: Vec::new(),
            flushing: false,
            given_up: false,
        }
    }

    /// What is to be moved next.
    pub(super) fn transfer(&mut self) -> Transfer<'_> {
        self.parts.clear();
        let (kind, offset_bytes) = match &mut self.request {
            Request::Flush { .. } => (Kind::Flush, 0),
            Request::Read { offset_bytes, buffer, .. } => {
                let len = (buffer.len() - self.moved_bytes).min(TRANSFER_BYTES_MAX);
                let start = buffer.as_mut_ptr().wrapping_add(self.moved_bytes);
                self.parts.push(libc::iovec { iov_base: start.cast(), iov_len: len });
                (Kind::Read, *offset_bytes)
            }
            Request::Write { .. } if self.flushing => (Kind::Flush, 0),
            Request::Write { offset_bytes, data, durably, .. } => {
                gather(&mut self.parts, data, self.moved_bytes);
                let durably = *durably && self.component.keeps_durable_writes;
                (if durably { Kind::DurableWrite } else { Kind::Write }, *offset_bytes)
            }
        };
        Transfer {
            kind,
            fd: self.component.file.as_raw_fd(),
            offset_bytes: offset_bytes + self.moved_bytes as u64,
            parts: &self.parts,
        }
    }

    /// Takes in what the kernel answered. None: there is more to move.
    fn progress(&mut self, answer: io::Result<usize>) -> Option<io::Result<()>> {
        match answer {
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                None
            }
            Err(error) => Some(Err(error)),
            Ok(_) if matches!(self.request, Request::Flush { .. }) || self.flushing => Some(Ok(())),
            Ok(moved) => {
                self.moved_bytes += moved;
                if self.moved_bytes >= self.len_bytes {
                    self.flushing = self.needs_flush();
                    return if self.flushing { None } else { Some(Ok(())) };
                }
                // Begin again at a whole block, as O_DIRECT demands.
                let partial_bytes = self.moved_bytes % BLOCK_BYTES;
                self.moved_bytes -= partial_bytes;
                if moved <= partial_bytes {
                    let found = format!("the device ends after {} bytes of the request", self.moved_bytes);
                    return Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, found)));
                }
                None
            }
        }
    }

    /// Whether what was written is durable only after a flush.
    fn needs_flush(&self) -> bool {
        matches!(self.request, Request::Write { durably: true, .. }) && !self.component.keeps_durable_writes
    }

    fn describe(&self) -> String {
        match &self.request {
            Request::Read { offset_bytes, .. } => {
                format!("read {} bytes at offset {offset_bytes} of", self.len_bytes)
            }
            Request::Write { offset_bytes, .. } => {
                format!("write {} bytes at offset {offset_bytes} of", self.len_bytes)
            }
            Request::Flush { .. } => "flush".into(),
        }
    }

    fn count(&self, change: impl FnOnce(&mut DeviceCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    fn finish(self, result: io::Result<()>) {
        if self.given_up {
            return;
        }
        let len_bytes = self.len_bytes as u64;
        let result =
            result.map_err(|error| EngineError::from_io(self.describe(), &self.component.name, &error));
        self.count(|counters| match (&result, &self.request) {
            (Err(_), request) => request.note_error(counters),
            (Ok(()), Request::Read { .. }) => {
                counters.reads += 1;
                counters.read_bytes += len_bytes;
            }
            (Ok(()), Request::Write { durably, .. }) => {
                counters.writes += 1;
                counters.write_bytes += len_bytes;
                counters.flushes += u64::from(*durably);
            }
            (Ok(()), Request::Flush { .. }) => counters.flushes += 1,
        });
        match self.request {
            Request::Read { buffer, done: Some(done), .. } => done.complete(result.map(|()| buffer)),
            Request::Write { data, done: Some(done), .. } => {
                // Memory lent to the request is back before its completion is seen.
                drop(data);
                done.complete(result);
            }
            Request::Flush { done: Some(done) } => done.complete(result),
            _ => {}
        }
    }

    /// Fails the request towards its caller. The memory stays: the kernel may yet use it.
    fn give_up(&mut self) {
        self.given_up = true;
        self.count(|counters| {
            counters.timeouts += 1;
            self.request.note_error(counters);
        });
        let error = EngineError::new(ErrorKind::Failed, self.describe(), &self.component.name, "timed out");
        match &mut self.request {
            Request::Read { done, .. } => fail(done.take(), error),
            Request::Write { done, .. } | Request::Flush { done } => fail(done.take(), error),
        }
    }
}

fn fail<T>(done: Option<Completer<T>>, error: EngineError) {
    if let Some(done) = done {
        done.complete(Err(error));
    }
}

/// Lists the memory of `data` after its first `skip_bytes`, neighbours joined, within the limits of one call.
fn gather(parts: &mut Vec<libc::iovec>, data: &[Slice], mut skip_bytes: usize) {
    let mut room_bytes = TRANSFER_BYTES_MAX;
    for slice in data {
        if skip_bytes >= slice.len() {
            skip_bytes -= slice.len();
            continue;
        }
        let rest = &slice[skip_bytes..];
        skip_bytes = 0;
        let len = rest.len().min(room_bytes);
        // Only read, whatever the type of the list says.
        let start = rest.as_ptr();
        let is_full = parts.len() == PARTS_MAX;
        match parts.last_mut() {
            Some(last) if last.iov_base.addr() + last.iov_len == start.addr() => last.iov_len += len,
            _ if is_full => return,
            _ => parts.push(libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len }),
        }
        room_bytes -= len;
        if room_bytes == 0 {
            return;
        }
    }
}

struct Slot {
    serial: u64,
    operation: Operation,
}

/// Every operation that the kernel may still answer, by a number that is reused only after the answer.
#[derive(Default)]
pub(super) struct Table {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    next_serial: u64,
    /// In order: every request has the same time.
    deadlines: VecDeque<(Instant, usize, u64)>,
}

impl Table {
    pub(super) fn insert(&mut self, operation: Operation, deadline: Option<Instant>) -> usize {
        let serial = self.next_serial;
        self.next_serial += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some(Slot { serial, operation });
        if let Some(deadline) = deadline {
            self.deadlines.push_back((deadline, index, serial));
        }
        index
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Operation> {
        self.slots.get_mut(index)?.as_mut().map(|slot| &mut slot.operation)
    }

    /// Takes in the kernel's answer to the transfer of `index`. True where another transfer has to follow.
    pub(super) fn advance(&mut self, index: usize, answer: io::Result<usize>) -> bool {
        let Some(operation) = self.get_mut(index) else { return false };
        let result = match operation.progress(answer) {
            None if !operation.given_up => return true,
            None => Ok(()),
            Some(result) => result,
        };
        if let Some(slot) = self.slots[index].take() {
            self.free.push(index);
            slot.operation.finish(result);
        }
        false
    }

    /// Gives up what has taken too long.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((deadline, index, serial)) = self.deadlines.front().copied() {
            match &mut self.slots[index] {
                Some(slot) if slot.serial == serial => {
                    if deadline > now {
                        return;
                    }
                    slot.operation.give_up();
                }
                _ => {}
            }
            self.deadlines.pop_front();
        }
    }

    /// When [`expire`](Self::expire) has something to do, at the earliest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, ..)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::rc::Rc;
    use std::time::Instant;

    use super::{BLOCK_BYTES, Component, ErrorKind, Kind, Operation, PARTS_MAX, Request, Slice, Table};
    use crate::completion::completion;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    type Written = crate::completion::Completion<()>;

    fn write(data: Vec<Slice>) -> (Operation, Written) {
        write_to(data, false, false)
    }

    fn write_to(data: Vec<Slice>, durably: bool, keeps_durable_writes: bool) -> (Operation, Written) {
        let file = std::fs::File::open("/dev/null").unwrap();
        let name = "null".into();
        let component = Rc::new(Component { file, name, len_bytes: 1 << 30, keeps_durable_writes });
        let len_bytes = data.iter().map(|slice| slice.len()).sum();
        let (done, completion) = completion();
        let request = Request::Write { offset_bytes: 8 * BLOCK, data, durably, done: Some(done) };
        (Operation::new(component, Rc::default(), request, len_bytes), completion)
    }

    fn shape(operation: &mut Operation) -> (u64, Vec<usize>) {
        let transfer = operation.transfer();
        (transfer.offset_bytes, transfer.parts.iter().map(|part| part.iov_len).collect())
    }

    fn apart(count: usize) -> Vec<Slice> {
        // Two blocks each, of which the second is left out, so that none touches the next.
        (0..count).map(|_| Slice::copy_of(&[1; 2 * BLOCK_BYTES]).slice(0..BLOCK_BYTES)).collect()
    }

    #[test]
    fn a_short_write_goes_on_at_the_last_whole_block() {
        let mut table = Table::default();
        let (operation, _completion) = write(apart(3));
        let index = table.insert(operation, None);
        assert_eq!(shape(table.get_mut(index).unwrap()), (8 * BLOCK, vec![BLOCK_BYTES; 3]));
        assert!(table.advance(index, Ok(BLOCK_BYTES + 904)));
        assert_eq!(shape(table.get_mut(index).unwrap()), (9 * BLOCK, vec![BLOCK_BYTES; 2]));
        assert!(table.advance(index, Err(io::ErrorKind::Interrupted.into())));
        assert_eq!(shape(table.get_mut(index).unwrap()), (9 * BLOCK, vec![BLOCK_BYTES; 2]));
        assert!(!table.advance(index, Ok(2 * BLOCK_BYTES)));
        assert!(table.is_empty());
    }

    #[test]
    fn a_durable_write_asks_for_it_where_that_is_kept_and_is_flushed_elsewhere() {
        let kind = |table: &mut Table| table.get_mut(0).unwrap().transfer().kind;
        for (keeps, first) in [(true, Kind::DurableWrite), (false, Kind::Write)] {
            let mut table = Table::default();
            let (operation, completion) = write_to(apart(2), true, keeps);
            assert_eq!(table.insert(operation, None), 0);
            assert!(kind(&mut table) == first);
            assert!(table.advance(0, Ok(BLOCK_BYTES)));
            assert!(kind(&mut table) == first, "the rest as what went before");
            let mut completion = std::pin::pin!(completion);
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            if !keeps {
                assert!(table.advance(0, Ok(BLOCK_BYTES)));
                assert!(completion.as_mut().poll(&mut context).is_pending(), "not durable yet");
                assert!(kind(&mut table) == Kind::Flush);
            }
            assert!(!table.advance(0, Ok(if keeps { BLOCK_BYTES } else { 0 })));
            assert!(completion.poll(&mut context).is_ready());
        }
    }

    #[test]
    fn a_durable_write_whose_flush_fails_has_failed() {
        let mut table = Table::default();
        let (operation, completion) = write_to(apart(1), true, false);
        let index = table.insert(operation, None);
        assert!(table.advance(index, Ok(BLOCK_BYTES)));
        assert!(!table.advance(index, Err(io::Error::from_raw_os_error(libc::EIO))));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(matches!(std::pin::pin!(completion).poll(&mut context), std::task::Poll::Ready(Err(_))));
    }

    #[test]
    fn a_write_that_makes_no_progress_fails() {
        for moved_bytes in [0, 512] {
            let mut table = Table::default();
            let (operation, completion) = write(apart(1));
            let index = table.insert(operation, None);
            assert!(!table.advance(index, Ok(moved_bytes)));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            match std::pin::pin!(completion).poll(&mut context) {
                std::task::Poll::Ready(Err(error)) => assert_eq!(error.kind, ErrorKind::Failed),
                _ => panic!("not failed"),
            }
        }
    }

    #[test]
    fn neighbours_in_memory_become_one_part_and_long_lists_are_cut() {
        let whole = Slice::copy_of(&[1; 4 * BLOCK_BYTES]);
        let slices = [0..2, 2..3, 3..4]
            .map(|blocks| whole.slice(blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES));
        let (mut operation, _completion) = write(slices.to_vec());
        assert_eq!(shape(&mut operation).1, [4 * BLOCK_BYTES]);
        let (mut operation, _completion) = write(apart(PARTS_MAX + 1));
        assert_eq!(shape(&mut operation).1.len(), PARTS_MAX);
        assert!(operation.progress(Ok(PARTS_MAX * BLOCK_BYTES)).is_none());
        assert_eq!(shape(&mut operation), ((8 + PARTS_MAX as u64) * BLOCK, vec![BLOCK_BYTES]));
    }

    #[test]
    fn a_given_up_operation_keeps_its_place_until_the_answer() {
        let mut table = Table::default();
        let now = Instant::now();
        let (operation, _completion) = write(apart(2));
        let index = table.insert(operation, Some(now));
        table.expire(now);
        assert!(!table.is_empty() && table.next_deadline().is_none());
        // A short answer is not followed by another transfer: nobody wants it any more.
        assert!(!table.advance(index, Ok(BLOCK_BYTES)));
        assert!(table.is_empty());
    }
}
