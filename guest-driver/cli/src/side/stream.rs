//! Standard input and output as files.

use std::io::{self, ErrorKind, Read, Write};

use anyhow::{Context, Result};

use super::{Draft, Look, Source};

/// Fills as much of the buffer as there is.
pub fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

pub struct StandardInput;

impl Source for StandardInput {
    fn read_at(&mut self, buffer: &mut [u8], _offset_bytes: u64) -> Result<usize> {
        fill(&mut io::stdin().lock(), buffer).context("read standard input")
    }
}

pub struct StandardOutput;

impl Draft for StandardOutput {
    fn write_at(&mut self, bytes: &[u8], _offset_bytes: u64) -> Result<()> {
        io::stdout().lock().write_all(bytes).context("write to standard output")
    }

    fn finish(self: Box<Self>, _size_bytes: u64, _look: &Look) -> Result<()> {
        io::stdout().lock().flush().context("write to standard output")
    }
}
