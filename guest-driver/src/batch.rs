//! Commands that are submitted together, and chains of them.

use ringfort_protocol::command::Flags;
use ringfort_protocol::completion::Completion;

use crate::connect::{Connection, was_interrupted};
use crate::error::Error;
use crate::file::{self, File, Open};
use crate::lane::Load;
use crate::place::Place;
use crate::request::Request;

/// Commands for one submission: the server is told of all of them at once, and may carry them out at the same time and in any order. Made by
/// [`Volume::batch`](crate::Volume::batch).
///
/// ```no_run
/// # fn main() -> Result<(), ringfort_guest::Error> {
/// # let volume = ringfort_guest::connect("/run/ringfort/data.ctl".as_ref())?;
/// # let file = volume.create("/hello", 0o644)?;
/// let mut batch = volume.batch();
/// batch.write_at(&file, b"one", 0).write_at(&file, b"two", 4096).sync(&file);
/// for written in batch.run()? {
///     written?;
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "a batch does nothing until it is run"]
pub struct Batch<'a> {
    connection: &'a Connection,
    parts: Vec<Part<'a>>,
}

struct Part<'a> {
    request: Request<'a, Outcome>,
}

/// What one command of a batch has given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes read or written, a handle, or whatever else the command gives as a number.
    pub value: u64,
    /// What was read.
    pub bytes: Vec<u8>,
}

fn outcome(completion: &Completion, bytes: &[u8]) -> Result<Outcome, Error> {
    Ok(Outcome { value: completion.value, bytes: bytes.to_vec() })
}

impl<'a> Batch<'a> {
    pub(crate) fn new(connection: &'a Connection) -> Self {
        Self { connection, parts: Vec::new() }
    }

    fn push<A>(&mut self, request: Request<'a, A>, output_bytes: usize) -> &mut Self {
        self.parts.push(Part { request: request.regiven(output_bytes, outcome) });
        self
    }

    /// Reads at most so many bytes.
    pub fn read_at(&mut self, file: &'a File, len_bytes: usize, offset_bytes: u64) -> &mut Self {
        self.push(file::read(file.into(), offset_bytes), len_bytes)
    }

    /// Writes; the outcome says how many of the bytes.
    pub fn write_at(&mut self, file: &'a File, bytes: &'a [u8], offset_bytes: u64) -> &mut Self {
        self.push(file::write(file.into(), bytes, offset_bytes), 0)
    }

    pub fn append(&mut self, file: &'a File, bytes: &'a [u8]) -> &mut Self {
        self.push(file::append(file.into(), bytes), 0)
    }

    /// Syncs what was written before this batch. For what a batch writes itself, a [chain](Self::then).
    pub fn sync(&mut self, file: &'a File) -> &mut Self {
        self.push(file::sync(file.into()), 0)
    }

    /// Opens a file; commands behind it in a chain may be about it ([`read_opened`](Self::read_opened) and others). The outcome's value is not
    /// to be used: the file is closed with [`close_opened`](Self::close_opened), in the same chain.
    pub fn open(&mut self, place: impl Into<Place<'a>>, open: Open) -> &mut Self {
        self.push(open.request(place.into()), 0)
    }

    /// Reads from the file that this chain has opened.
    pub fn read_opened(&mut self, len_bytes: usize, offset_bytes: u64) -> &mut Self {
        self.push(file::read(Place::OPENED, offset_bytes).flags(Flags::OPENED), len_bytes)
    }

    /// Writes to the file that this chain has opened.
    pub fn write_opened(&mut self, bytes: &'a [u8], offset_bytes: u64) -> &mut Self {
        self.push(file::write(Place::OPENED, bytes, offset_bytes).flags(Flags::OPENED), 0)
    }

    /// Syncs the file that this chain has opened.
    pub fn sync_opened(&mut self) -> &mut Self {
        self.push(file::sync(Place::OPENED).flags(Flags::OPENED), 0)
    }

    /// Closes the file that this chain has opened.
    pub fn close_opened(&mut self) -> &mut Self {
        self.push(file::close(Place::OPENED).flags(Flags::OPENED), 0)
    }

    /// Links what was added last with what is added next: that begins when this one has succeeded, and is answered `ECANCELED` where it has not.
    pub fn then(&mut self) -> &mut Self {
        self.link(Flags::LINK)
    }

    /// Links what was added last with what is added next: that begins when this one has ended, however.
    pub fn then_always(&mut self) -> &mut Self {
        self.link(Flags::LINK_ALWAYS)
    }

    fn link(&mut self, flag: Flags) -> &mut Self {
        if let Some(last) = self.parts.last_mut() {
            last.request.command.flags = last.request.command.flags.union(flag);
        }
        self
    }

    /// Submits all, waits for all, and gives their outcomes in the order in which they were added. At most as many as a ring has slots.
    pub fn run(&mut self) -> Result<Vec<Result<Outcome, Error>>, Error> {
        if let Some(last) = self.parts.last_mut() {
            // A link to nothing would wait for what is submitted next, by whomever.
            let flags = &mut last.request.command.flags;
            *flags = flags.without(Flags::LINK.union(Flags::LINK_ALWAYS));
        }
        let inputs: Vec<_> = self.parts.iter().map(|part| part.request.parts()).collect();
        let loads: Vec<_> = self
            .parts
            .iter()
            .zip(&inputs)
            .map(|(part, input)| Load {
                command: part.request.command,
                input,
                output_bytes: part.request.output_bytes,
            })
            .collect();
        let mut outcomes: Vec<_> = self.parts.iter().map(|_| Ok(Outcome::default())).collect();
        self.connection.call_all(&loads, |index, completion, output| {
            if let (Some(slot), Some(part)) = (outcomes.get_mut(index), self.parts.get(index)) {
                debug_assert!(
                    !was_interrupted(&part.request.command, completion),
                    "locks are not for batches"
                );
                *slot = part.request.answer(completion, &output);
            }
        })?;
        Ok(outcomes)
    }
}
