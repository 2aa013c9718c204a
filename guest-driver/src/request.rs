//! A command with all that it needs, and with what its completion means.
//!
//! Each operation of the vocabulary is described once, by a function that returns a [`Request`]; how it is carried out is for others to say.

use ringfort_protocol::command::{Command, Flags, Opcode};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::layout::Record;

use crate::connect::Connection;
use crate::error::Error;
use crate::place::Place;

/// Parts of an input: a record, a name, a value, a path.
const PARTS: usize = 4;

/// Records in inputs and outputs that need no allocation.
const SMALL_BYTES: usize = 128;

/// A record that is part of an input.
#[derive(Clone, Copy)]
struct RecordBytes {
    bytes: [u8; 64],
    len_bytes: usize,
}

/// One command. `A` is what it gives back.
#[must_use = "a request is nothing but a wish until it is carried out"]
pub struct Request<'a, A> {
    operation: &'static str,
    place: Place<'a>,
    /// But for its areas, tag and credential.
    pub command: Command,
    record: RecordBytes,
    /// What follows the record.
    input: [&'a [u8]; PARTS - 1],
    /// The most bytes that come back.
    pub output_bytes: usize,
    answer: fn(&Completion, &[u8]) -> Result<A, Error>,
}

impl<'a> Request<'a, ()> {
    /// A command about a path, which is its whole input. What it says about symbolic links counts for nothing.
    pub fn new(operation: &'static str, opcode: Opcode, place: Place<'a>) -> Self {
        // Tag and credential are the connection's.
        let command = Command { target: place.handle, ..Command::new(opcode, 0, 0) };
        let record = RecordBytes { bytes: [0; 64], len_bytes: 0 };
        let input = [place.path, &[], &[]];
        Self { operation, place, command, record, input, output_bytes: 0, answer: |_, _| Ok(()) }
    }

    /// As [`new`](Self::new); what the place says about symbolic links counts.
    pub fn following(operation: &'static str, opcode: Opcode, place: Place<'a>) -> Self {
        let flags = if place.follow { Flags::default() } else { Flags::NO_FOLLOW };
        Self::new(operation, opcode, place).flags(flags)
    }

    /// A command about an open file, without input.
    pub fn of_handle(operation: &'static str, opcode: Opcode, file: Place<'a>) -> Self {
        Self::new(operation, opcode, file).input([])
    }

    /// A command that gives something back: at most so many bytes, besides what the completion says.
    pub fn gives<A>(
        self,
        output_bytes: usize,
        answer: fn(&Completion, &[u8]) -> Result<A, Error>,
    ) -> Request<'a, A> {
        self.regiven(output_bytes, answer)
    }

    /// A command that gives a number back.
    pub fn gives_value(self) -> Request<'a, u64> {
        self.gives(0, |completion, _| Ok(completion.value))
    }
}

impl<'a, A> Request<'a, A> {
    /// The same command, of which something else is wanted: at most so many bytes, and what `answer` makes of them.
    pub fn regiven<B>(
        self,
        output_bytes: usize,
        answer: fn(&Completion, &[u8]) -> Result<B, Error>,
    ) -> Request<'a, B> {
        let Self { operation, place, command, record, input, .. } = self;
        Request { operation, place, command, record, input, output_bytes, answer }
    }

    pub fn value(mut self, value: u64) -> Self {
        self.command.value = value;
        self
    }

    pub fn operand(mut self, operand: u64) -> Self {
        self.command.operand = operand;
        self
    }

    pub fn flags(mut self, flags: Flags) -> Self {
        self.command.flags = self.command.flags.union(flags);
        self
    }

    /// Input in place of the path alone.
    pub fn input<const N: usize>(mut self, parts: [&'a [u8]; N]) -> Self {
        const { assert!(N < PARTS) };
        self.input = [&[]; PARTS - 1];
        self.input[..N].copy_from_slice(&parts);
        self
    }

    /// A record that precedes the other input.
    pub fn record<R: Record>(mut self, record: &R) -> Self {
        const { assert!(size_of::<R>() <= 64) };
        let bytes = record.as_bytes();
        self.record.bytes[..bytes.len()].copy_from_slice(bytes);
        self.record.len_bytes = bytes.len();
        self
    }

    /// What lies one behind the other in the input area.
    pub fn parts(&self) -> [&[u8]; PARTS] {
        let [first, second, third] = self.input;
        [&self.record.bytes[..self.record.len_bytes], first, second, third]
    }

    /// What a completion of this command means.
    pub fn answer(&self, completion: &Completion, output: &[u8]) -> Result<A, Error> {
        if completion.status != 0 {
            return Err(Error::Refused {
                operation: self.operation,
                path: self.place.shown(),
                errno: i32::try_from(completion.status).unwrap_or(libc::EIO),
            });
        }
        (self.answer)(completion, output.get(..completion.output_bytes as usize).unwrap_or(output))
    }

    /// Carries it out and waits.
    pub fn run(&self, connection: &Connection) -> Result<A, Error> {
        let (mut small, mut large) = ([0; SMALL_BYTES], Vec::new());
        let output = match self.output_bytes {
            0..=SMALL_BYTES => &mut small[..self.output_bytes],
            len_bytes => {
                large.resize(len_bytes, 0);
                &mut large[..]
            }
        };
        self.run_into(connection, output)
    }

    /// As [`run`](Self::run), with the output in a buffer of the caller's, all of which may be filled.
    pub fn run_into(&self, connection: &Connection, output: &mut [u8]) -> Result<A, Error> {
        let completion = connection.call(self.command, &self.parts(), output)?;
        self.answer(&completion, output)
    }
}

/// Of bytes that the server sent.
pub fn broken(what: &'static str) -> Error {
    Error::Protocol { found: format!("{what} that do not add up") }
}
