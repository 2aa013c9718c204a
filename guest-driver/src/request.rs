//! A command with all that it needs, and with what its completion means.
//!
//! Each operation of the vocabulary is described once, as a [`Request`]; how it is carried out is for others to say.

use ringfort_protocol::command::{Command, Flags, Opcode};
use ringfort_protocol::completion::Completion;

use crate::connect::Connection;
use crate::error::Error;
use crate::place::Place;

/// Parts of an input: a record, a name, a value, a path.
const PARTS: usize = 3;

/// Outputs up to this long need no allocation: attributes have so many bytes.
const SMALL_BYTES: usize = 128;

/// One command. `A` is what it gives back.
pub struct Request<'a, A> {
    /// For errors.
    operation: &'static str,
    /// For errors.
    path: &'a [u8],
    pub command: Command,
    input: [&'a [u8]; PARTS],
    pub output_bytes: usize,
    answer: fn(&Completion, &[u8]) -> Result<A, Error>,
}

impl<'a> Request<'a, ()> {
    /// A command about a path, which is its whole input.
    pub fn new(operation: &'static str, opcode: Opcode, place: Place<'a>) -> Self {
        // Tag and credential are the connection's.
        let command = Command { target: place.handle, ..Command::new(opcode, 0, 0) };
        let input = [place.path, &[], &[]];
        Self { operation, path: place.path, command, input, output_bytes: 0, answer: |_, _| Ok(()) }
    }

    /// A command that gives something back: at most so many bytes, besides what the completion says.
    pub fn gives<A>(
        self,
        output_bytes: usize,
        answer: fn(&Completion, &[u8]) -> Result<A, Error>,
    ) -> Request<'a, A> {
        let Self { operation, path, command, input, .. } = self;
        Request { operation, path, command, input, output_bytes, answer }
    }

    /// A command that gives a number back.
    pub fn gives_value(self) -> Request<'a, u64> {
        self.gives(0, |completion, _| Ok(completion.value))
    }
}

impl<'a, A> Request<'a, A> {
    #[must_use]
    pub fn value(mut self, value: u64) -> Self {
        self.command.value = value;
        self
    }

    #[must_use]
    pub fn operand(mut self, operand: u64) -> Self {
        self.command.operand = operand;
        self
    }

    #[must_use]
    pub fn flags(mut self, flags: Flags) -> Self {
        self.command.flags = self.command.flags.union(flags);
        self
    }

    /// Input other than the path.
    #[must_use]
    pub fn input(mut self, input: [&'a [u8]; PARTS]) -> Self {
        self.input = input;
        self
    }

    /// What lies one behind the other in the input area.
    pub fn parts(&self) -> &[&'a [u8]] {
        &self.input
    }

    /// What a completion of this command means.
    pub fn answer(&self, completion: &Completion, output: &[u8]) -> Result<A, Error> {
        if completion.status != 0 {
            return Err(Error::Refused {
                operation: self.operation,
                path: String::from_utf8_lossy(self.path).into_owned(),
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
        let completion = connection.call(self.command, self.parts(), output)?;
        self.answer(&completion, output)
    }
}
