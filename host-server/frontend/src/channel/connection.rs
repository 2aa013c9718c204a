//! A control connection: messages with descriptors, over a Unix socket.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ringfort_protocol::control::envelope::{Envelope, EnvelopeError};
use ringfort_protocol::control::message::{Message, NO_RING, Reason};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use zerocopy::{FromBytes, IntoBytes};

use super::control::{Conversation, Next, Rings, ping};

/// The most descriptors that a message comes with.
const DESCRIPTOR_COUNT_MAX: usize = 2;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("the client has hung up")]
    HungUp,
    #[error("nothing was heard for {silence_ms_max} ms")]
    Silent { silence_ms_max: u32 },
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error("{tried} the client: {source}")]
    Broken { tried: &'static str, source: io::Error },
    #[error("the client was refused: {0}")]
    Refused(String),
}

/// Carries a conversation to its end.
pub fn converse<R: Rings>(
    mut stream: UnixStream,
    conversation: &mut Conversation<R>,
    silence_ms_max: u32,
) -> Ended {
    let ended = loop {
        match turn(&mut stream, conversation, silence_ms_max) {
            Ok(()) => {}
            Err(ended) => break ended,
        }
    };
    conversation.end();
    ended
}

/// Hears one message, and answers it.
fn turn<R: Rings>(
    stream: &mut UnixStream,
    conversation: &mut Conversation<R>,
    silence_ms_max: u32,
) -> Result<(), Ended> {
    let (envelope, descriptors) = hear_envelope(stream, conversation, silence_ms_max)?;
    envelope.check()?;
    // Not longer than the check allows.
    let mut body = vec![0; envelope.body_bytes.get() as usize];
    stream.read_exact(&mut body).map_err(broken("read a message of"))?;
    let next = match Message::decode(envelope.kind.get(), &body) {
        Ok(message) => conversation.hear(message, descriptors),
        Err(error) => {
            Next::Say(Message::refuse(error.kind(), Reason::Message, 0, NO_RING, &error.to_string()))
        }
    };
    match next {
        Next::Listen => Ok(()),
        Next::Say(message) => say(stream, conversation, &message),
        Next::SayAndEnd(message) => {
            say(stream, conversation, &message)?;
            let Message::Refused(_, text) = message else { return Err(Ended::HungUp) };
            Err(Ended::Refused(text))
        }
    }
}

fn say<R: Rings>(
    stream: &mut UnixStream,
    conversation: &Conversation<R>,
    message: &Message,
) -> Result<(), Ended> {
    stream.write_all(&message.encode(conversation.version())).map_err(broken("answer"))
}

fn broken(tried: &'static str) -> impl Fn(io::Error) -> Ended {
    move |source| match source.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            Ended::HungUp
        }
        _ => Ended::Broken { tried, source },
    }
}

/// The next envelope, with the descriptors that came with its first byte. A client that says nothing is asked whether it is there, once.
fn hear_envelope<R: Rings>(
    stream: &mut UnixStream,
    conversation: &Conversation<R>,
    silence_ms_max: u32,
) -> Result<(Envelope, Vec<OwnedFd>), Ended> {
    let patience = Duration::from_millis(u64::from(silence_ms_max / 2).max(1));
    stream.set_read_timeout(Some(patience)).map_err(broken("set a timeout for"))?;
    let mut envelope = Envelope::default();
    let mut asked = false;
    let (mut have, descriptors) = loop {
        match receive(stream, envelope.as_mut_bytes()) {
            Ok((0, _)) => return Err(Ended::HungUp),
            Ok(received) => break received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !asked => {
                asked = true;
                say(stream, conversation, &ping(0))?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Ended::Silent { silence_ms_max });
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken("listen to")(error)),
        }
    };
    while have < size_of::<Envelope>() {
        let rest = envelope.as_mut_bytes().get_mut(have..).unwrap_or_default();
        match stream.read(rest).map_err(broken("read an envelope of"))? {
            0 => return Err(Ended::HungUp),
            more => have += more,
        }
    }
    // Copied out and not read from twice.
    let envelope = Envelope::read_from_bytes(envelope.as_bytes()).unwrap_or_default();
    Ok((envelope, descriptors))
}

/// Receives what has come, with its descriptors. More descriptors than a message may have are closed by the kernel.
fn receive(stream: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_COUNT_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(into)];
    let received = recvmsg(stream, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((received.bytes, descriptors))
}
