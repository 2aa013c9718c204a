//! The connection to the server: one conversation, in which any thread may ask.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use ringfort_protocol::control::message::{
    Echo, Hello, Invitation, Message, Reason, Role, SECRET_BYTES, Subject, Welcome,
};
use ringfort_protocol::version::Version;

use crate::stream::{self, StreamError};

/// The host, for its guests.
const HOST_CID: u32 = 2;

/// The server answers in far less; it waits itself for nobody longer than this.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// A server that wants to hear something more often is not asked more often.
const SILENCE_LEAST: Duration = Duration::from_millis(100);

/// What the server was asked and did not do.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(
        "connect to the server at port {port} of the host: {cause}; has this machine a vsock device, and does the server run?"
    )]
    Connect { port: u32, cause: io::Error },
    #[error("the server refuses: {text}")]
    Refused { reason: Option<Reason>, text: String },
    #[error("the server has hung up")]
    Gone,
    #[error("speak to the server: {0}")]
    Stream(StreamError),
    #[error("the server said {0}, which answers nothing that was asked")]
    Unexpected(String),
    #[error("the server does not answer")]
    Silent,
}

impl From<StreamError> for LinkError {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

impl LinkError {
    /// The server knows no such region: it uses nothing of it.
    pub fn says_unknown(&self) -> bool {
        matches!(self, Self::Refused { reason: Some(Reason::Unknown), .. })
    }
}

/// What the server says without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Rings of the region stand still until it is proved again.
    Suspended { region: u32 },
    /// The region has ended.
    Detached { region: u32, text: String },
    /// The connection has.
    Ended,
}

/// Where connections to the server are made.
pub trait Dialler: Send + Sync {
    fn dial(&self, port: u32) -> io::Result<UnixStream>;
}

/// The host's vsock.
pub struct Vsock;

impl Dialler for Vsock {
    fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let socket: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, port))?;
        // A stream is one whatever its family: nothing of it but bytes and timeouts is used.
        Ok(socket.into())
    }
}

/// A conversation with the server after the welcome.
pub struct Link {
    dialler: Arc<dyn Dialler>,
    port: u32,
    stream: UnixStream,
    pub welcome: Welcome,
    /// Whoever asks holds them until the answer is there: answers come in the order of the questions.
    answers: Mutex<Receiver<Message>>,
    saying: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn greet(stream: &UnixStream, role: Role, secret: [u8; SECRET_BYTES]) -> Result<Welcome, LinkError> {
    let hello = Hello {
        oldest: Version::CHANNEL.0.into(),
        newest: Version::LATEST.0.into(),
        role: role.number().into(),
        secret,
        ..Hello::default()
    };
    stream.set_read_timeout(Some(ANSWERED_WITHIN)).map_err(StreamError::from)?;
    stream::say(stream, &Message::Hello(hello), &[]).map_err(StreamError::from)?;
    match stream::hear(stream)? {
        Message::Welcome(welcome) => Ok(welcome),
        other => Err(unexpected(other)),
    }
}

fn unexpected(message: Message) -> LinkError {
    match message {
        Message::Refused(subject, text) | Message::Detached(subject, text) => {
            LinkError::Refused { reason: Reason::from_number(subject.reason.get()), text }
        }
        other => LinkError::Unexpected(format!("{:?}", other.kind())),
    }
}

impl Link {
    /// Connects, and begins to hear. Notices come until [`Notice::Ended`].
    pub fn open(
        dialler: Arc<dyn Dialler>,
        invitation: &Invitation,
        notices: Sender<Notice>,
    ) -> Result<Arc<Self>, LinkError> {
        let port = invitation.port.get();
        let stream = dialler.dial(port).map_err(|cause| LinkError::Connect { port, cause })?;
        let welcome = greet(&stream, Role::GuestDaemon, invitation.secret)?;
        let (sender, answers) = channel();
        let link = Arc::new(Self {
            dialler,
            port,
            stream,
            welcome,
            answers: Mutex::new(answers),
            saying: Mutex::new(()),
        });
        let hearing = Arc::clone(&link);
        let begun = std::thread::Builder::new().name("server".to_owned()).spawn(move || {
            let ended = hearing.hear(&sender, &notices);
            tracing::debug!(%ended, "the server is heard no more");
            hearing.hang_up();
            // Whoever waits for an answer hears of it by the sender's end.
            let _ = notices.send(Notice::Ended);
        });
        begun.map_err(StreamError::from)?;
        Ok(link)
    }

    fn hear(&self, answers: &Sender<Message>, notices: &Sender<Notice>) -> LinkError {
        loop {
            let message = match self.hear_next() {
                Ok(message) => message,
                Err(error) => return error,
            };
            let told = match message {
                Message::Ping(echo) => self.say(&Message::Pong(echo)).is_ok(),
                Message::Suspended(subject) => {
                    notices.send(Notice::Suspended { region: subject.region.get() }).is_ok()
                }
                Message::Detached(subject, text) => {
                    notices.send(Notice::Detached { region: subject.region.get(), text }).is_ok()
                }
                // Of ours.
                Message::Pong(_) => true,
                answer => answers.send(answer).is_ok(),
            };
            if !told {
                return LinkError::Gone;
            }
        }
    }

    /// What the server says next. One that says nothing is asked whether it is there, once: not every carrier tells of its end.
    fn hear_next(&self) -> Result<Message, LinkError> {
        let patience = Duration::from_millis(self.welcome.silence_ms_max.get().into()) / 2;
        let patience = patience.max(SILENCE_LEAST);
        if !stream::has_come(&self.stream, patience).map_err(StreamError::from)? {
            self.say(&Message::Ping(Echo::default()))?;
            if !stream::has_come(&self.stream, patience).map_err(StreamError::from)? {
                return Err(LinkError::Silent);
            }
        }
        Ok(stream::hear(&self.stream)?)
    }

    fn say(&self, message: &Message) -> Result<(), LinkError> {
        let _turn = lock(&self.saying);
        Ok(stream::say(&self.stream, message, &[]).map_err(StreamError::from)?)
    }

    /// Says something and returns the answer to it.
    pub fn ask(&self, message: &Message) -> Result<Message, LinkError> {
        let answers = lock(&self.answers);
        self.say(message)?;
        match answers.recv_timeout(ANSWERED_WITHIN) {
            Ok(refused @ Message::Refused(..)) => Err(unexpected(refused)),
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Disconnected) => Err(LinkError::Gone),
            Err(RecvTimeoutError::Timeout) => {
                // Later answers would be taken for those of others.
                self.hang_up();
                Err(LinkError::Silent)
            }
        }
    }

    /// Asks for something that is answered with Done.
    pub fn done(&self, message: &Message) -> Result<(), LinkError> {
        match self.ask(message)? {
            Message::Done(subject) if subject.kind.get() == message.kind().number() => Ok(()),
            other => {
                // Later answers would be taken for those of others.
                self.hang_up();
                Err(unexpected(other))
            }
        }
    }

    /// Ends a region. Nothing of it is used by the server any more when this returns without an error.
    pub fn detach(&self, region: u32) -> Result<(), LinkError> {
        let subject = Subject {
            region: region.into(),
            ring: ringfort_protocol::control::message::NO_RING.into(),
            ..Subject::default()
        };
        self.done(&Message::Detach(subject))
    }

    /// A connection that rings, for the ring that was attached with `secret`.
    pub fn doorbell(&self, secret: [u8; SECRET_BYTES]) -> Result<UnixStream, LinkError> {
        let stream =
            self.dialler.dial(self.port).map_err(|cause| LinkError::Connect { port: self.port, cause })?;
        greet(&stream, Role::Doorbell, secret)?;
        stream.set_read_timeout(None).map_err(StreamError::from)?;
        Ok(stream)
    }

    pub fn hang_up(&self) {
        // One that has ended already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
