//! The control connection: what is agreed on before commands flow.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use ringfort_protocol::control::envelope::Envelope;
use ringfort_protocol::control::message::{
    Attach, Credential, Features, GIVEN_RINGS_MAX, Given, Hello, Kind, Memory, Message, Place, Proof, Reason,
    Role, SECRET_BYTES, Want, Welcome, nonce,
};
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::version::Version;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use zerocopy::FromBytes;

use crate::error::Error;

/// Pages of a memfd, for the proof.
const PAGE_BYTES: u64 = 4096;

/// Memory that was given, with rings attached.
pub struct GivenMemory {
    pub given: Given,
    pub memory: OwnedFd,
    /// Each with its doorbell.
    pub rings: Vec<(Place, OwnedFd)>,
}

/// A control connection after the welcome.
pub struct Control {
    stream: UnixStream,
    version: Version,
    pub welcome: Welcome,
}

impl Control {
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let stream =
            UnixStream::connect(path).map_err(|cause| Error::Connect { path: path.to_owned(), cause })?;
        let mut control = Self { stream, version: Version::CHANNEL, welcome: Welcome::default() };
        let hello = Hello {
            oldest: Version::CHANNEL.0.into(),
            newest: Version::LATEST.0.into(),
            role: Role::Process.number().into(),
            features: Features::GIVES_MEMORY.0.into(),
            ..Hello::default()
        };
        match control.ask(&Message::Hello(hello), &[])? {
            Message::Welcome(welcome) => {
                control.version = Version(welcome.version.get());
                control.welcome = welcome;
                Ok(control)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Whether the other side gives memory, and does not take it.
    pub fn gives_memory(&self) -> bool {
        Features(self.welcome.features.get()).has(Features::GIVES_MEMORY)
    }

    /// Asks for memory with rings in it: what it is, its descriptor, and a doorbell for each ring.
    pub fn want(&mut self, want: Want) -> Result<GivenMemory, Error> {
        self.send(&Message::Want(want), &[])?;
        let (message, mut descriptors) = self.hear_with_descriptors()?;
        let (given, places) = match message {
            Message::Given(given, places) => (given, places),
            Message::Refused(subject, text) => {
                return Err(Error::Ended { reason: Reason::from_number(subject.reason.get()), text });
            }
            other => return Err(unexpected(&other)),
        };
        if places.is_empty() || descriptors.len() != 1 + places.len() {
            let found = format!("{} rings with {} descriptors", places.len(), descriptors.len());
            return Err(Error::Protocol { found });
        }
        let doorbells = descriptors.split_off(1);
        let memory = descriptors.remove(0);
        Ok(GivenMemory { given, memory, rings: places.into_iter().zip(doorbells).collect() })
    }

    /// Registers `memory`, which the descriptor is of, and proves that both sides see the same.
    pub fn register(
        &mut self,
        region: u32,
        memory: &SharedMemory,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let body =
            Memory { region: region.into(), len_bytes: memory.len_bytes().into(), ..Memory::default() };
        self.done(&Message::Memory(body), &[descriptor])?;
        let mut seed = [0; SECRET_BYTES];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut chance| chance.read_exact(&mut seed))
            .map_err(Error::system("read /dev/urandom"))?;
        let pages = || (0..).zip((0..memory.len_bytes()).step_by(PAGE_BYTES as usize));
        let outside = || Error::Protocol { found: "a page outside of the memory".to_owned() };
        for (page, start) in pages() {
            memory.write(start, &nonce(seed, page)).ok_or_else(outside)?;
        }
        let proof = Proof { region: region.into(), nonce: seed, ..Proof::default() };
        let answer = match self.ask(&Message::Prove(proof), &[])? {
            Message::Proved(answer) => answer.nonce,
            other => return Err(unexpected(&other)),
        };
        for (page, start) in pages() {
            let mut found = [0; SECRET_BYTES];
            memory.read(start + SECRET_BYTES as u64, &mut found).ok_or_else(outside)?;
            if found != nonce(answer, page) {
                let found = format!("page {page} does not hold the server's answer: it sees other memory");
                return Err(Error::Protocol { found });
            }
            memory.clear(start, 2 * SECRET_BYTES).ok_or_else(outside)?;
        }
        Ok(())
    }

    pub fn credential(&mut self, credential: Credential, groups: Vec<u32>) -> Result<(), Error> {
        self.done(&Message::Credential(credential, groups), &[])
    }

    pub fn attach(&mut self, attach: Attach, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.done(&Message::Attach(attach), descriptors)
    }

    fn done(&mut self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match self.ask(message, descriptors)? {
            Message::Done(subject) if subject.kind.get() == message.kind().number() => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a message, and hears the answer to it.
    fn ask(&mut self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<Message, Error> {
        self.send(message, descriptors)?;
        loop {
            match self.hear()? {
                Message::Ping(echo) => self.send(&Message::Pong(echo), &[])?,
                Message::Refused(subject, text) | Message::Detached(subject, text) => {
                    return Err(Error::Ended { reason: Reason::from_number(subject.reason.get()), text });
                }
                answer => return Ok(answer),
            }
        }
    }

    fn send(&mut self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = message.encode(self.version);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Error::Protocol { found: format!("{} descriptors to send", descriptors.len()) });
        }
        let mut sent = 0;
        while sent < bytes.len() {
            let rest = [IoSlice::new(&bytes[sent..])];
            let stream = self.stream.as_fd();
            let count = match sent {
                0 => sendmsg(stream, &rest, &mut ancillary, SendFlags::NOSIGNAL),
                _ => sendmsg(stream, &rest, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL),
            };
            sent += count.map_err(|errno| Error::system("speak to the server")(errno.into()))?;
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<Message, Error> {
        Ok(self.hear_with_descriptors()?.0)
    }

    /// The next message, with the descriptors that came with its first byte.
    fn hear_with_descriptors(&mut self) -> Result<(Message, Vec<OwnedFd>), Error> {
        let listen = Error::system("listen to the server");
        let mut envelope = [0; size_of::<Envelope>()];
        let (have, descriptors) = self.receive(&mut envelope).map_err(&listen)?;
        self.stream.read_exact(&mut envelope[have..]).map_err(&listen)?;
        let envelope = Envelope::read_from_bytes(&envelope)
            .map_err(|error| Error::Protocol { found: error.to_string() })?;
        envelope.check().map_err(|error| Error::Protocol { found: error.to_string() })?;
        let mut body = vec![0; envelope.body_bytes.get() as usize];
        self.stream.read_exact(&mut body).map_err(listen)?;
        Ok((Message::decode(envelope.kind.get(), &body)?, descriptors))
    }

    fn receive(&self, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1 + GIVEN_RINGS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.stream, &mut [IoSliceMut::new(into)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            {
                Err(rustix::io::Errno::INTR) => {}
                Ok(received) if received.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                outcome => break outcome?,
            }
        };
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        Ok((received.bytes, descriptors))
    }

    /// Answers what the server asks, until it hangs up. For a thread of its own.
    pub fn keep_alive(mut self) {
        while let Ok(message) = self.hear() {
            if message.kind() == Kind::Ping
                && let Message::Ping(echo) = message
                && self.send(&Message::Pong(echo), &[]).is_err()
            {
                return;
            }
        }
    }

    /// Another handle on the connection, to end it.
    pub fn stream(&self) -> Result<UnixStream, Error> {
        self.stream.try_clone().map_err(Error::system("keep the connection"))
    }
}

fn unexpected(message: &Message) -> Error {
    Error::Protocol { found: format!("{:?}, which answers nothing that was asked", message.kind()) }
}
