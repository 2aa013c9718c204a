//! A ring of one owner: commands are submitted and their completions used with no lock and, while both sides are awake, no system call.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringfort_protocol::command::{Area, Command, Opcode};
use ringfort_protocol::completion::Completion;

use crate::bell::{Bell, Woken};
use crate::connect::Connection;
use crate::error::Error;
use crate::file::File;
use crate::lane::{Flight, Lane, Load, Refused};
use crate::place::Place;

/// How long a wait sleeps without a look at whether the server is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 64;

/// Submits commands, which the server carries out at the same time, and uses their completions in the order of submission. For one thread at a time; made by
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
    /// In the order in which they were submitted.
    under_way: VecDeque<(Flight, u64)>,
}

/// A command that has been completed.
#[derive(Debug)]
pub struct Completed {
    /// As it was submitted with.
    pub tag: u64,
    /// Bytes that were read or written; what an empty command was given.
    pub result: Result<u64, Error>,
}

/// Memory that the server reads and writes itself: what is written from it, or read into it, is not copied on the way. Given back when its
/// [`Queue`] is dropped, or with [`Queue::release`].
#[derive(Debug)]
pub struct SharedBuffer(Area);

impl Queue {
    pub(crate) fn new(connection: &Arc<Connection>) -> Result<Self, Error> {
        let end = connection.take_spare()?;
        Ok(Self { connection: Arc::clone(connection), end: Some(end), under_way: VecDeque::new() })
    }

    fn lane(&mut self) -> &mut Lane {
        match &mut self.end {
            Some((lane, _)) => lane,
            None => unreachable!("a queue has its ring until it is dropped"),
        }
    }

    /// Commands submitted whose completions were not used.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    fn submit(
        &mut self,
        command: Command,
        input: &[&[u8]],
        output_bytes: usize,
        tag: u64,
    ) -> Result<bool, Error> {
        let command = self.connection.own(command);
        let begun = self.lane().begin(&Load { command, input, output_bytes }, None);
        self.note(begun, tag)
    }

    fn note(&mut self, begun: Result<Flight, Refused>, tag: u64) -> Result<bool, Error> {
        match begun {
            Ok(flight) => {
                self.under_way.push_back((flight, tag));
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
        self.lane().take_room(len_bytes).map(|area| SharedBuffer(Area { len_bytes, ..area }))
    }

    /// Copies into a buffer. Not while a command uses it.
    pub fn fill(&mut self, buffer: &SharedBuffer, bytes: &[u8]) -> Result<(), Error> {
        let memory = within(buffer, bytes.len()).and_then(|start| self.lane().memory().write(start, bytes));
        memory.ok_or_else(|| too_long(buffer, bytes.len()))
    }

    /// Copies out of a buffer. Not while a command uses it.
    pub fn copy_out(&mut self, buffer: &SharedBuffer, into: &mut [u8]) -> Result<(), Error> {
        let len_bytes = into.len();
        let memory = within(buffer, len_bytes).and_then(|start| self.lane().memory().read(start, into));
        memory.ok_or_else(|| too_long(buffer, len_bytes))
    }

    /// Submits a read of as much as the buffer holds.
    pub fn read_shared(
        &mut self,
        file: &File,
        buffer: &SharedBuffer,
        offset_bytes: u64,
        tag: u64,
    ) -> Result<bool, Error> {
        let command = Command { output: buffer.0, ..of_file(Opcode::Read, file, offset_bytes) };
        let begun = {
            let command = self.connection.own(command);
            self.lane().begin_in_place(command)
        };
        self.note(begun, tag)
    }

    /// Submits a write of the first bytes of a buffer.
    pub fn write_shared(
        &mut self,
        file: &File,
        buffer: &SharedBuffer,
        len_bytes: u32,
        offset_bytes: u64,
        tag: u64,
    ) -> Result<bool, Error> {
        within(buffer, len_bytes as usize).ok_or_else(|| too_long(buffer, len_bytes as usize))?;
        let input = Area { len_bytes, ..buffer.0 };
        let command = Command { input, ..of_file(Opcode::Write, file, offset_bytes) };
        let begun = {
            let command = self.connection.own(command);
            self.lane().begin_in_place(command)
        };
        self.note(begun, tag)
    }

    /// Gives a buffer back. No command may use it any more.
    pub fn release(&mut self, buffer: SharedBuffer) {
        self.lane().give_room_back(Area { len_bytes: buffer.0.len_bytes.next_multiple_of(4096), ..buffer.0 });
    }

    /// Wakes the server, where it sleeps, for what was submitted. Waiting does so as well.
    pub fn flush(&mut self) {
        if self.lane().wants_doorbell()
            && let Some((_, bell)) = &self.end
        {
            bell.ring();
        }
    }

    /// The completion of the command that was submitted first, with what it read in `into`: waits for it.
    ///
    /// # Panics
    /// Where none is under way.
    pub fn next(&mut self, into: &mut [u8]) -> Result<Completed, Error> {
        self.flush();
        let Some(&(flight, tag)) = self.under_way.front() else { panic!("no command is under way") };
        self.wait(flight)?;
        self.under_way.pop_front();
        let used = |completion: &Completion, memory: &ringfort_protocol::ring::memory::SharedMemory, at| {
            let read = (completion.output_bytes as usize).min(into.len());
            let inside = memory.read(at, &mut into[..read]).is_some();
            debug_assert!(inside);
            *completion
        };
        let completion = self.lane().finish(flight, used);
        let result = match completion.status {
            0 => Ok(completion.value),
            errno => Err(Error::Refused {
                operation: "carry out a command of a queue",
                path: format!("(tag {tag})"),
                errno: i32::try_from(errno).unwrap_or(libc::EIO),
            }),
        };
        Ok(Completed { tag, result })
    }

    fn wait(&mut self, flight: Flight) -> Result<(), Error> {
        let busy_poll = self.connection.busy_poll();
        let Some((lane, bell)) = &mut self.end else {
            unreachable!("a queue has its ring until it is dropped")
        };
        if lane.is_done(flight, None) {
            return Ok(());
        }
        let mut began = None;
        loop {
            for _ in 0..LOOKS {
                if lane.reap(|_, _| {})? > 0 && lane.is_done(flight, None) {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            if began.get_or_insert_with(Instant::now).elapsed() < busy_poll {
                continue;
            }
            if self.connection.is_gone() {
                return Err(Error::Ended { reason: None, text: "the server is gone".to_owned() });
            }
            if lane.prepare_sleep() {
                let slept = bell.sleep(LOOK_AGAIN);
                lane.finish_sleep();
                if slept? == Woken::Gone {
                    return Err(Error::Ended { reason: None, text: "the server is gone".to_owned() });
                }
            }
            began = None;
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some((mut lane, bell)) = self.end.take() {
            while let Some((flight, _)) = self.under_way.pop_front() {
                lane.abandon(flight);
            }
            if lane.wants_doorbell() {
                bell.ring();
            }
            self.connection.give_spare_back(lane, bell);
        }
    }
}

fn of_file(opcode: Opcode, file: &File, offset_bytes: u64) -> Command {
    let place: Place<'_> = file.into();
    Command { target: place.handle, operand: offset_bytes, ..Command::new(opcode, 0, 0) }
}

fn within(buffer: &SharedBuffer, len_bytes: usize) -> Option<u64> {
    (len_bytes <= buffer.0.len_bytes as usize).then_some(buffer.0.start.into())
}

fn too_long(buffer: &SharedBuffer, found: usize) -> Error {
    Error::TooLong { operation: "use a shared buffer", found, most: buffer.0.len_bytes as usize }
}
