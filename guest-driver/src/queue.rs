//! A ring of one owner: commands are submitted and their completions used with no lock and, while both sides are awake, no system call.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringfort_protocol::command::{Area, Command, Opcode};
use ringfort_protocol::completion::Completion;

use crate::bell::{Bell, LONGEST_SLEEP, Woken};
use crate::connect::Connection;
use crate::error::Error;
use crate::file::File;
use crate::lane::{Flight, Lane, Load, Refused};
use crate::patience::Patience;
use crate::place::Place;

mod scatter;

/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 64;

/// Submits commands, which the server carries out at the same time, and uses their completions as they come. For one thread at a time; made by
/// [`Volume::queue`](crate::Volume::queue).
///
/// ```no_run
/// # fn main() -> Result<(), ringfort_guest::Error> {
/// use ringfort_guest::{Open, Options, connect_with};
/// let volume = connect_with("/run/ringfort/data.ctl".as_ref(), &Options { queues: 1, ..Options::default() })?;
/// let file = volume.open("/disk.img", Open::to_read())?;
/// let mut queue = volume.queue()?;
/// let mut block = [0; 4096];
/// for number in 0..1000 {
///     while !queue.read(&file, 4096, number * 4096, number)? {
///         let done = queue.next(&mut block)?;
///         println!("block {}: {} bytes", done.tag, done.result?);
///     }
/// }
/// while queue.under_way() > 0 {
///     queue.next(&mut block)?.result?;
/// }
/// # Ok(())
/// # }
/// ```
pub struct Queue {
    connection: Arc<Connection>,
    /// Always there but while it is given back.
    end: Option<(Lane, Bell)>,
    patience: Patience,
    /// No other queue of this process has it.
    number: u64,
    /// Commands whose completions were not used, by the indices of their flights.
    submitted: Vec<Option<Submitted>>,
    /// In the order in which they were completed.
    completed: VecDeque<Flight>,
    /// By the indices of [`SharedBuffer`]s.
    buffers: Vec<Option<Kept>>,
}

#[derive(Clone)]
struct Submitted {
    flight: Flight,
    tag: u64,
    buffers: Buffers,
}

/// The indices of the buffers that a command reads or writes.
#[derive(Clone)]
enum Buffers {
    None,
    One(usize),
    Several(Box<[usize]>),
}

impl Buffers {
    fn indices(&self) -> &[usize] {
        match self {
            Self::None => &[],
            Self::One(index) => std::slice::from_ref(index),
            Self::Several(indices) => indices,
        }
    }
}

/// Room that a buffer has.
struct Kept {
    area: Area,
    /// Commands under way that use it.
    users: u32,
    /// One of them reads into it.
    is_filled: bool,
    is_released: bool,
}

/// A command that has been completed.
#[derive(Debug)]
pub struct Completed {
    /// As it was submitted with.
    pub tag: u64,
    /// Bytes that were read or written; what an empty command was given.
    pub result: Result<u64, Error>,
}

/// Memory that the server reads and writes itself: what is written from it, or read into it, is not copied on the way. It belongs to the [`Queue`] that
/// made it, and is given back with [`Queue::release`], or with the queue.
#[derive(Debug)]
pub struct SharedBuffer {
    queue: u64,
    index: usize,
    len_bytes: u32,
}

impl SharedBuffer {
    pub fn len_bytes(&self) -> u32 {
        self.len_bytes
    }
}

/// What a buffer is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Others may look at it at the same time.
    Look,
    Change,
}

impl Queue {
    pub(crate) fn new(connection: &Arc<Connection>) -> Result<Self, Error> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let (lane, bell) = connection.take_spare()?;
        let submitted = vec![None; lane.most()];
        let mut queue = Self {
            connection: Arc::clone(connection),
            end: Some((lane, bell)),
            patience: connection.patience(),
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            submitted,
            completed: VecDeque::new(),
            buffers: Vec::new(),
        };
        // What the last owner left under way may use any of the room.
        while queue.lane().under_way() > 0 {
            queue.wait()?;
        }
        queue.lane().take_all_room_back();
        Ok(queue)
    }

    fn lane(&mut self) -> &mut Lane {
        match &mut self.end {
            Some((lane, _)) => lane,
            None => unreachable!("a queue has its ring until it is dropped"),
        }
    }

    /// Commands submitted whose completions were not used.
    pub fn under_way(&self) -> usize {
        self.end.as_ref().map_or(0, |(lane, _)| lane.under_way())
    }

    fn submit(
        &mut self,
        command: Command,
        input: &[&[u8]],
        output_bytes: usize,
        tag: u64,
    ) -> Result<bool, Error> {
        self.connection.check()?;
        let command = self.connection.own(command);
        let begun = self.lane().begin(&Load { command, input, output_bytes }, None);
        self.note(begun, tag, Buffers::None)
    }

    fn note(&mut self, begun: Result<Flight, Refused>, tag: u64, buffers: Buffers) -> Result<bool, Error> {
        match begun {
            Ok(flight) => {
                self.submitted[flight.index()] = Some(Submitted { flight, tag, buffers });
                Ok(true)
            }
            Err(Refused::Full) => Ok(false),
            Err(Refused::Error(error)) => Err(error),
        }
    }

    /// Submits an empty command. Like all that submit, it says false where there is no room, and nothing was submitted: use a completion first.
    pub fn nop(&mut self, value: u64, tag: u64) -> Result<bool, Error> {
        self.submit(Command { value, ..Command::new(Opcode::Nop, 0, 0) }, &[], 0, tag)
    }

    /// Submits a read; the bytes come with its completion.
    pub fn read(
        &mut self,
        file: &File,
        len_bytes: usize,
        offset_bytes: u64,
        tag: u64,
    ) -> Result<bool, Error> {
        self.submit(of_file(Opcode::Read, file, offset_bytes), &[], len_bytes, tag)
    }

    /// Submits a write. The bytes may be changed as soon as this returns.
    pub fn write(&mut self, file: &File, bytes: &[u8], offset_bytes: u64, tag: u64) -> Result<bool, Error> {
        self.submit(of_file(Opcode::Write, file, offset_bytes), &[bytes], 0, tag)
    }

    /// Submits a sync: everything completed before is on stable media when it completes.
    pub fn sync(&mut self, file: &File, tag: u64) -> Result<bool, Error> {
        self.submit(of_file(Opcode::Sync, file, 0), &[], 0, tag)
    }

    /// Memory that is shared with the server. None where so much is not left; a ring has about a megabyte.
    pub fn buffer(&mut self, len_bytes: u32) -> Option<SharedBuffer> {
        let area = self.lane().take_room(len_bytes)?;
        let kept = Kept { area, users: 0, is_filled: false, is_released: false };
        let index = self.buffers.iter().position(Option::is_none).unwrap_or(self.buffers.len());
        match self.buffers.get_mut(index) {
            Some(free) => *free = Some(kept),
            None => self.buffers.push(Some(kept)),
        }
        Some(SharedBuffer { queue: self.number, index, len_bytes })
    }

    /// The first bytes of a buffer, for a use that does not disturb commands under way.
    fn area(&self, buffer: &SharedBuffer, len_bytes: usize, wanted: Use) -> Result<Area, Error> {
        self.connection.check()?;
        let own = self.buffers.get(buffer.index).filter(|_| buffer.queue == self.number);
        let Some(kept) = own.and_then(Option::as_ref) else {
            return Err(Error::Buffer { found: "another queue has made" });
        };
        if kept.is_filled || wanted == Use::Change && kept.users > 0 {
            return Err(Error::Buffer { found: "a command uses" });
        }
        if len_bytes > buffer.len_bytes as usize {
            let most = buffer.len_bytes as usize;
            return Err(Error::TooLong { operation: "use a shared buffer", found: len_bytes, most });
        }
        // No longer than the buffer.
        Ok(Area { len_bytes: len_bytes as u32, ..kept.area })
    }

    /// Copies into a buffer. Refused while a command uses it.
    pub fn fill(&mut self, buffer: &SharedBuffer, bytes: &[u8]) -> Result<(), Error> {
        let area = self.area(buffer, bytes.len(), Use::Change)?;
        let inside = self.lane().memory().write(area.start.into(), bytes).is_some();
        debug_assert!(inside);
        Ok(())
    }

    /// Copies out of a buffer. Refused while a command reads into it.
    pub fn copy_out(&mut self, buffer: &SharedBuffer, into: &mut [u8]) -> Result<(), Error> {
        let area = self.area(buffer, into.len(), Use::Look)?;
        let inside = self.lane().memory().read(area.start.into(), into).is_some();
        debug_assert!(inside);
        Ok(())
    }

    /// Submits a read of as much as the buffer holds. Refused while another command uses it.
    pub fn read_shared(
        &mut self,
        file: &File,
        buffer: &SharedBuffer,
        offset_bytes: u64,
        tag: u64,
    ) -> Result<bool, Error> {
        let output = self.area(buffer, buffer.len_bytes as usize, Use::Change)?;
        let command = Command { output, ..of_file(Opcode::Read, file, offset_bytes) };
        self.submit_in_place(command, buffer.index, Use::Change, tag)
    }

    /// Submits a write of the first bytes of a buffer. Refused while a command reads into it.
    pub fn write_shared(
        &mut self,
        file: &File,
        buffer: &SharedBuffer,
        len_bytes: u32,
        offset_bytes: u64,
        tag: u64,
    ) -> Result<bool, Error> {
        let input = self.area(buffer, len_bytes as usize, Use::Look)?;
        let command = Command { input, ..of_file(Opcode::Write, file, offset_bytes) };
        self.submit_in_place(command, buffer.index, Use::Look, tag)
    }

    fn submit_in_place(
        &mut self,
        command: Command,
        buffer: usize,
        wanted: Use,
        tag: u64,
    ) -> Result<bool, Error> {
        let command = self.connection.own(command);
        let begun = self.lane().begin_in_place(command);
        let submitted = self.note(begun, tag, Buffers::One(buffer))?;
        if submitted {
            self.hold(&[buffer], wanted);
        }
        Ok(submitted)
    }

    /// A command under way uses these buffers.
    fn hold(&mut self, buffers: &[usize], wanted: Use) {
        for buffer in buffers {
            if let Some(Some(kept)) = self.buffers.get_mut(*buffer) {
                kept.users += 1;
                kept.is_filled = wanted == Use::Change;
            }
        }
    }

    /// A command that used these buffers is completed.
    fn let_go(&mut self, buffers: &[usize]) {
        for buffer in buffers {
            if let Some(Some(kept)) = self.buffers.get_mut(*buffer) {
                kept.users -= 1;
                kept.is_filled = false;
            }
            self.reclaim(*buffer);
        }
    }

    /// Gives a buffer back, once the commands under way that use it are completed.
    pub fn release(&mut self, buffer: SharedBuffer) {
        if buffer.queue == self.number
            && let Some(Some(kept)) = self.buffers.get_mut(buffer.index)
        {
            kept.is_released = true;
            self.reclaim(buffer.index);
        }
    }

    fn reclaim(&mut self, buffer: usize) {
        if let Some(kept) = self.buffers.get_mut(buffer).and_then(|kept| kept.take_if(|kept| kept.is_over()))
        {
            self.lane().give_room_back(kept.area);
        }
    }

    /// Wakes the server, where it sleeps, for what was submitted. Waiting does so as well.
    pub fn flush(&mut self) {
        if self.lane().wants_doorbell()
            && let Some((_, bell)) = &self.end
        {
            bell.ring();
        }
    }

    /// The next completion, with what was read in `into`, or as much of it as that holds: waits for it. What [`read_shared`](Self::read_shared) and
    /// [`read_scattered`](Self::read_scattered) have read is in their buffers.
    ///
    /// # Panics
    /// Where none is under way.
    pub fn next(&mut self, into: &mut [u8]) -> Result<Completed, Error> {
        assert!(self.under_way() > 0, "no command is under way");
        self.connection.check()?;
        loop {
            if let Some(flight) = self.completed.pop_front() {
                return Ok(self.finish(flight, into));
            }
            self.wait()?;
        }
    }

    /// As [`next`](Self::next), but does not wait.
    pub fn try_next(&mut self, into: &mut [u8]) -> Result<Option<Completed>, Error> {
        self.connection.check()?;
        if self.completed.is_empty() {
            self.flush();
            self.reap()?;
        }
        Ok(self.completed.pop_front().map(|flight| self.finish(flight, into)))
    }

    fn finish(&mut self, flight: Flight, into: &mut [u8]) -> Completed {
        let Some(Submitted { tag, buffers, .. }) = self.submitted[flight.index()].take() else {
            unreachable!("a flight of this queue")
        };
        let completion = self.lane().finish(flight, |completion, memory, at| {
            if matches!(buffers, Buffers::None) {
                let read = (completion.output_bytes as usize).min(into.len());
                let inside = memory.read(at, &mut into[..read]).is_some();
                debug_assert!(inside);
            }
            *completion
        });
        self.let_go(buffers.indices());
        Completed { tag, result: result_of(&completion, tag) }
    }

    /// Takes what has been completed: how many there were.
    fn reap(&mut self) -> Result<usize, Error> {
        let Some((lane, _)) = &mut self.end else { unreachable!("a queue has its ring until it is dropped") };
        let completed = &mut self.completed;
        lane.reap(|flight, _| completed.push_back(flight))
    }

    /// Waits until anything has been completed.
    fn wait(&mut self) -> Result<(), Error> {
        self.flush();
        let (mut began, mut looks_since, mut deadline) = (None, None, None);
        let mut has_slept = false;
        loop {
            for _ in 0..LOOKS {
                if self.lane().has_news() && self.reap()? > 0 {
                    if let Some(began) = began.filter(|_| has_slept) {
                        self.patience.slept(Instant::elapsed(&began));
                    }
                    return Ok(());
                }
                // At first with no pause between looks: one takes a tenth of a round trip, and leaves a virtual processor that is emulated.
                if began.is_some() {
                    std::hint::spin_loop();
                }
            }
            let deadline: Option<Instant> = *deadline.get_or_insert_with(|| self.connection.deadline());
            began.get_or_insert_with(Instant::now);
            if self.patience.looks_on(*looks_since.get_or_insert_with(Instant::now)) {
                continue;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match left {
                Some(Duration::ZERO) => return Err(Error::TimedOut),
                left => self.sleep(left.map_or(LONGEST_SLEEP, |left| left.min(LONGEST_SLEEP)))?,
            }
            (looks_since, has_slept) = (None, true);
        }
    }

    fn sleep(&mut self, at_most: Duration) -> Result<(), Error> {
        if self.connection.is_gone() {
            return Err(Error::gone());
        }
        if let Some((lane, bell)) = &self.end
            && lane.prepare_sleep()
        {
            let slept = bell.sleep(at_most);
            lane.finish_sleep();
            if slept? == Woken::Gone {
                return Err(Error::gone());
            }
        }
        Ok(())
    }
}

impl Kept {
    fn is_over(&self) -> bool {
        self.is_released && self.users == 0
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // A child only loses sight of what is its parent's.
        if self.connection.check().is_ok()
            && let Some((mut lane, bell)) = self.end.take()
        {
            for submitted in self.submitted.iter().flatten() {
                lane.abandon(submitted.flight);
            }
            if lane.wants_doorbell() {
                bell.ring();
            }
            self.connection.give_spare_back(lane, bell);
        }
    }
}

fn result_of(completion: &Completion, tag: u64) -> Result<u64, Error> {
    match completion.status {
        0 => Ok(completion.value),
        errno => Err(Error::Refused {
            operation: "carry out a command of a queue",
            path: format!("(tag {tag})"),
            errno: i32::try_from(errno).unwrap_or(libc::EIO),
        }),
    }
}

fn of_file(opcode: Opcode, file: &File, offset_bytes: u64) -> Command {
    let place: Place<'_> = file.into();
    Command { target: place.handle, operand: offset_bytes, ..Command::new(opcode, 0, 0) }
}
