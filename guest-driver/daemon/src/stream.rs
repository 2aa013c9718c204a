//! Control messages on stream sockets, of vsock or of this machine.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringfort_protocol::control::envelope::{Envelope, EnvelopeError};
use ringfort_protocol::control::message::{GIVEN_RINGS_MAX, Message, MessageError};
use ringfort_protocol::version::Version;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::FromBytes;

/// A connection that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("the other side has hung up")]
    HungUp,
    #[error(transparent)]
    System(#[from] io::Error),
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// Whether something has come within `patience`, be it the other side's end.
pub fn has_come(stream: &UnixStream, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The next message. Descriptors that come with it are closed by the kernel.
pub fn hear(mut stream: &UnixStream) -> Result<Message, StreamError> {
    let mut bytes = [0; size_of::<Envelope>()];
    fill(&mut stream, &mut bytes)?;
    let Ok(envelope) = Envelope::read_from_bytes(&bytes) else { return Err(StreamError::HungUp) };
    envelope.check()?;
    // Not longer than the check allows.
    let mut body = vec![0; envelope.body_bytes.get() as usize];
    fill(&mut stream, &mut body)?;
    Ok(Message::decode(envelope.kind.get(), &body)?)
}

fn fill(stream: &mut &UnixStream, into: &mut [u8]) -> Result<(), StreamError> {
    stream.read_exact(into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => StreamError::HungUp,
        _ => StreamError::System(error),
    })
}

/// Sends a message, with descriptors where the socket is one of this machine.
pub fn say(stream: &UnixStream, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = message.encode(Version::CHANNEL);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1 + GIVEN_RINGS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        let rest = [IoSlice::new(rest)];
        sent += match sent {
            0 => sendmsg(stream.as_fd(), &rest, &mut ancillary, SendFlags::NOSIGNAL),
            _ => sendmsg(stream.as_fd(), &rest, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL),
        }?;
    }
    Ok(())
}
