//! Frames between host and guest agent: `length u32`, `kind u8`, `task u32`, payload; integers little-endian.
//! `length_bytes` counts everything after itself. Several tasks share one port, told apart by their number.

use std::io::{self, Read, Write};

/// The longest payload a frame may carry: output is cut into pieces of this size.
pub const PAYLOAD_MAX_BYTES: usize = 32 * 1024;

const HEAD_BYTES: usize = 5;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Host to guest: start a task; the payload is its argument vector, each argument ended by NUL.
    Start,
    /// Host to guest: kill the task's process group.
    Kill,
    /// Guest to host: bytes of the task's standard output.
    Stdout,
    /// Guest to host: bytes of the task's standard error.
    Stderr,
    /// Guest to host: the task ended; the payload is its status as `i32`, then the boot's nonce.
    Exited,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Kind::Start => 1,
            Kind::Kill => 2,
            Kind::Stdout => 3,
            Kind::Stderr => 4,
            Kind::Exited => 5,
        }
    }

    fn from_code(code: u8) -> Option<Kind> {
        [Kind::Start, Kind::Kill, Kind::Stdout, Kind::Stderr, Kind::Exited]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub task: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame for `task`.
    pub fn new(kind: Kind, task: u32, payload: impl Into<Vec<u8>>) -> Frame {
        Frame { kind, task, payload: payload.into() }
    }

    /// Writes the frame in one call, so that writers that take turns under a lock never interleave.
    pub fn write_to(&self, to: &mut impl Write) -> io::Result<()> {
        let length_bytes = u32::try_from(HEAD_BYTES + self.payload.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a frame of 4 GiB or more"))?;
        let mut bytes = Vec::with_capacity(4 + HEAD_BYTES + self.payload.len());
        bytes.extend_from_slice(&length_bytes.to_le_bytes());
        bytes.push(self.kind.code());
        bytes.extend_from_slice(&self.task.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads one frame; an end of stream, a bad length and an unknown kind are errors.
    pub fn read_from(from: &mut impl Read) -> io::Result<Frame> {
        let mut length = [0u8; 4];
        from.read_exact(&mut length)?;
        let length_bytes = u32::from_le_bytes(length) as usize;
        if !(HEAD_BYTES..=HEAD_BYTES + PAYLOAD_MAX_BYTES).contains(&length_bytes) {
            return Err(bad(format!("a frame of {length_bytes} bytes")));
        }
        let mut code = [0u8; 1];
        from.read_exact(&mut code)?;
        let mut task = [0u8; 4];
        from.read_exact(&mut task)?;
        let mut payload = vec![0u8; length_bytes - HEAD_BYTES];
        from.read_exact(&mut payload)?;
        let kind = Kind::from_code(code[0]).ok_or_else(|| bad(format!("a frame of kind {}", code[0])))?;
        Ok(Frame { kind, task: u32::from_le_bytes(task), payload })
    }
}

fn bad(found: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_read_back_is_the_frame_written() {
        let frames = [
            Frame::new(Kind::Start, 7, *b"sh\0-c\0true\0"),
            Frame::new(Kind::Exited, u32::MAX, vec![0; PAYLOAD_MAX_BYTES]),
            Frame::new(Kind::Stdout, 0, vec![]),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write_to(&mut bytes).unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in &frames {
            assert_eq!(&Frame::read_from(&mut from).unwrap(), frame);
        }
        assert!(Frame::read_from(&mut from).is_err());
    }

    #[test]
    fn a_length_outside_the_bounds_is_refused_before_it_is_allocated() {
        for length in [0u32, 4, u32::MAX] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend_from_slice(&[1; 64]);
            assert!(Frame::read_from(&mut bytes.as_slice()).is_err());
        }
    }
}
