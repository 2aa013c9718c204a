//! A server that says what a test wants it to, and writes down what it was told.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use ringfort_protocol::control::message::{
    Kind, Message, NO_RING, Pages, Proof, Reason, Role, SECRET_BYTES, Subject, Welcome, nonce,
};

use crate::link::Dialler;
use crate::stream;

/// What is to be done with a message in the place of the usual answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    Refuse(Reason),
    SayNothing,
    HangUp,
    /// Only for proofs.
    WrongNonce,
}

#[derive(Default)]
struct State {
    told: Vec<Kind>,
    instead: HashMap<Kind, Instead>,
    addresses: HashMap<u32, Vec<u64>>,
    doorbells: Vec<UnixStream>,
    control: Option<UnixStream>,
}

/// The server, which finds the memory of regions in `folder`.
pub struct FakeServer {
    folder: PathBuf,
    page_bytes: u64,
    silence_ms_max: u32,
    state: Mutex<State>,
}

impl FakeServer {
    pub fn new(folder: &Path, page_bytes: u64, silence_ms_max: u32) -> Arc<Self> {
        Arc::new(Self { folder: folder.to_owned(), page_bytes, silence_ms_max, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// From now on messages of this kind are treated so.
    pub fn instead(&self, kind: Kind, what: Option<Instead>) {
        let mut state = self.state();
        match what {
            Some(what) => state.instead.insert(kind, what),
            None => state.instead.remove(&kind),
        };
    }

    /// What it was told since the last time, pings aside.
    pub fn told(&self) -> Vec<Kind> {
        std::mem::take(&mut self.state().told)
    }

    /// Says something on the control connection.
    pub fn say(&self, message: &Message) {
        let control = self.state().control.as_ref().unwrap().try_clone().unwrap();
        stream::say(&control, message, &[]).unwrap();
    }

    pub fn suspend(&self, region: u32) {
        self.say(&Message::Suspended(Subject {
            region: region.into(),
            ring: NO_RING.into(),
            ..Subject::default()
        }));
    }

    /// Ends the control connection.
    pub fn hang_up(&self) {
        let _ = self.state().control.take().unwrap().shutdown(std::net::Shutdown::Both);
    }

    /// The server's ends of the doorbells that were hung, oldest first.
    pub fn doorbells(&self) -> Vec<UnixStream> {
        std::mem::take(&mut self.state().doorbells)
    }

    fn converse(&self, stream: &UnixStream) {
        while let Ok(message) = stream::hear(stream) {
            let kind = message.kind();
            let doorbell = Role::Doorbell.number();
            let is_doorbell = matches!(&message, Message::Hello(hello) if hello.role.get() == doorbell);
            let instead = {
                let mut state = self.state();
                if !matches!(kind, Kind::Ping | Kind::Pong) {
                    state.told.push(kind);
                }
                state.instead.get(&kind).copied()
            };
            let answer = match instead {
                Some(Instead::HangUp) => break,
                Some(Instead::SayNothing) => continue,
                Some(Instead::Refuse(reason)) => {
                    Message::refuse(kind.number(), reason, 0, NO_RING, "as the test says")
                }
                Some(Instead::WrongNonce) | None => match self.answer(message, stream, instead.is_some()) {
                    Some(answer) => answer,
                    None => continue,
                },
            };
            if stream::say(stream, &answer, &[]).is_err() {
                break;
            }
            if is_doorbell {
                // What follows are rings.
                return;
            }
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }

    fn answer(&self, message: Message, stream: &UnixStream, wrong: bool) -> Option<Message> {
        let done =
            |kind: Kind| Some(Message::Done(Subject { kind: kind.number().into(), ..Subject::default() }));
        match message {
            Message::Hello(hello) => {
                let kept = stream.try_clone().unwrap();
                match Role::from_number(hello.role.get()) {
                    Some(Role::GuestDaemon) => self.state().control = Some(kept),
                    _ => self.state().doorbells.push(kept),
                }
                Some(Message::Welcome(Welcome {
                    version: 1.into(),
                    ring_count_max: 64.into(),
                    silence_ms_max: self.silence_ms_max.into(),
                    ..Welcome::default()
                }))
            }
            Message::Pages(pages, addresses) => {
                self.note_pages(&pages, &addresses);
                done(Kind::Pages)
            }
            Message::Prove(proof) => Some(self.prove(&proof, wrong)),
            Message::Credential(..) => done(Kind::Credential),
            Message::Attach(_) => done(Kind::Attach),
            Message::Detach(subject) => {
                self.state().addresses.remove(&subject.region.get());
                done(Kind::Detach)
            }
            Message::Ping(echo) => Some(Message::Pong(echo)),
            _ => None,
        }
    }

    fn note_pages(&self, pages: &Pages, addresses: &[u64]) {
        let mut state = self.state();
        let known = state.addresses.entry(pages.region.get()).or_default();
        assert_eq!(known.len(), pages.first.get() as usize);
        known.extend(addresses);
    }

    fn prove(&self, proof: &Proof, wrong: bool) -> Message {
        let region = proof.region.get();
        let addresses = self.state().addresses.get(&region).cloned().unwrap();
        let answer = [7; SECRET_BYTES];
        for (page, address) in (0..).zip(addresses) {
            let file = self.file((address >> 32) as u32).unwrap();
            let start = address & u64::from(u32::MAX);
            assert!(start.is_multiple_of(self.page_bytes));
            let mut found = [0; SECRET_BYTES];
            file.read_exact_at(&mut found, start).unwrap();
            if found != nonce(proof.nonce, page) {
                return Message::refuse(Kind::Prove.number(), Reason::Nonce, region, NO_RING, "another page");
            }
            let written = if wrong { [8; SECRET_BYTES] } else { nonce(answer, page) };
            file.write_all_at(&written, start + SECRET_BYTES as u64).unwrap();
        }
        Message::Proved(Proof { region: region.into(), nonce: answer, ..Proof::default() })
    }

    /// The file of a region's memory.
    pub fn file(&self, region: u32) -> io::Result<File> {
        File::options().read(true).write(true).open(self.folder.join(format!("region-{region}")))
    }
}

/// Connects to a fake server.
pub struct ToFake(pub Arc<FakeServer>);

impl Dialler for ToFake {
    fn dial(&self, _port: u32) -> io::Result<UnixStream> {
        let (own, other) = UnixStream::pair()?;
        let server = Arc::clone(&self.0);
        thread::spawn(move || server.converse(&other));
        Ok(own)
    }
}

/// A byte each way.
pub fn rings_through(mut one: &UnixStream, mut other: &UnixStream) {
    one.write_all(&[1]).unwrap();
    other.read_exact(&mut [0]).unwrap();
}
