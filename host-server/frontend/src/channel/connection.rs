//! A control connection: messages with descriptors, over a stream socket of whatever family.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use ringfort_protocol::control::envelope::{Envelope, EnvelopeError};
use ringfort_protocol::control::message::{Message, NO_RING, Reason, SECRET_BYTES};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use zerocopy::{FromBytes, IntoBytes};

use super::control::{Conversation, Limits, Next, Rings, ping};
use super::metrics::ChannelMetrics;
use super::peer;
use crate::machine::{LetGo, Tenant};

/// The most descriptors that a message comes with.
const DESCRIPTOR_COUNT_MAX: usize = 2;

/// How long the other side may take to read what is said to it: nobody waits for it longer, a machine that is to stop least of all.
const SAID_WITHIN: Duration = Duration::from_secs(2);

/// How long after the virtio-fs device what carries the connection may start: a vsock device that gets bytes for its guest before
/// it runs may never carry any again (vhost-device-vsock 0.3).
const CARRIED_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How long a machine that is stopped waits until what carries its connections has taken what was said before.
pub const CARRIED_WITHIN: Duration = Duration::from_millis(50);

/// From one look whether it has to the next.
pub const CARRIED_LOOK: Duration = Duration::from_millis(1);

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("the client has hung up")]
    HungUp,
    #[error("nothing was heard for {silence_ms} ms")]
    Silent { silence_ms: u128 },
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error("{tried} the client: {source}")]
    Broken { tried: &'static str, source: io::Error },
    #[error("the client does not read what is said to it")]
    Deaf,
    #[error("the client was refused: {0}")]
    Refused(String),
    /// It goes on as the doorbell of the ring that was attached with the secret.
    #[error("the connection is a doorbell now")]
    Doorbell([u8; SECRET_BYTES]),
}

/// A conversation, and the stream that carries it. Whoever says something holds the conversation.
pub struct Connection<R: Rings> {
    stream: UnixStream,
    conversation: Mutex<Conversation<R>>,
    /// Whether all of a message has come.
    heard: AtomicBool,
    /// What the other side is to hear when its machine runs again, in this order. Locked after the conversation.
    unsaid: Mutex<Vec<Message>>,
    this: Weak<Self>,
    silence_max: Duration,
    hello_within: Duration,
    metrics: Arc<ChannelMetrics>,
}

/// When whoever is to say something has to have said it.
#[derive(Clone, Copy)]
enum Patience {
    /// Strangers by then, whatever happens to their machine.
    Until(Instant),
    /// For so long from each moment at which the machine at the other end ran again.
    While(Duration),
}

impl<R: Rings> Connection<R> {
    pub fn new(
        stream: UnixStream,
        conversation: Conversation<R>,
        limits: &Limits,
        metrics: Arc<ChannelMetrics>,
    ) -> Arc<Self> {
        let silence_max = Duration::from_millis(limits.silence_ms_max.into());
        let hello_within = Duration::from_millis(limits.hello_ms_max.into());
        Arc::new_cyclic(|this| Self {
            stream,
            conversation: Mutex::new(conversation),
            heard: AtomicBool::new(false),
            unsaid: Mutex::default(),
            this: Weak::clone(this),
            silence_max,
            hello_within,
            metrics,
        })
    }

    fn conversation(&self) -> MutexGuard<'_, Conversation<R>> {
        self.conversation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread that carries the conversation ends it.
    pub fn hang_up(&self) {
        // One that has ended already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Whether whoever is at the other end has said anything.
    pub fn was_heard(&self) -> bool {
        self.heard.load(Ordering::Acquire)
    }

    /// The stream, for a connection whose conversation is over.
    pub fn stream(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }
}

impl<R: Rings + Send + 'static> Connection<R> {
    /// Carries the conversation to its end.
    pub fn converse(&self) -> Ended {
        let ended = loop {
            match self.turn() {
                Ok(()) => {}
                Err(ended) => break ended,
            }
        };
        let mut conversation = self.conversation();
        conversation.end();
        // Its end is carried to the other side, too.
        drop(self.when_it_runs(conversation));
        match &ended {
            Ended::Envelope(_) => self.metrics.broken_connections.add(1),
            Ended::Silent { .. } => self.metrics.silent_connections.add(1),
            _ => {}
        }
        ended
    }

    /// Hears one message, and answers it.
    fn turn(&self) -> Result<(), Ended> {
        let patience = match self.conversation().has_begun() {
            true => Patience::While(self.silence_max),
            false => Patience::Until(Instant::now() + self.hello_within),
        };
        let (envelope, descriptors) = self.hear_envelope(patience)?;
        envelope.check()?;
        // Not longer than the check allows.
        let mut body = vec![0; envelope.body_bytes.get() as usize];
        self.fill(&mut body, patience)?;
        self.heard.store(true, Ordering::Release);
        let mut conversation = self.conversation();
        let next = match Message::decode(envelope.kind.get(), &body) {
            Ok(message) => conversation.hear(message, descriptors),
            Err(error) => {
                Next::Say(Message::refuse(error.kind(), Reason::Message, 0, NO_RING, &error.to_string()))
            }
        };
        match next {
            Next::Listen => Ok(()),
            Next::Say(message) => self.answer(&conversation, message),
            Next::SayAndEnd(message) => {
                conversation = self.when_it_runs(conversation);
                self.say(&conversation, &message)?;
                let Message::Refused(_, text) = message else { return Err(Ended::HungUp) };
                Err(Ended::Refused(text))
            }
            Next::SayAndRing(message, secret) => {
                conversation = self.when_it_runs(conversation);
                self.say(&conversation, &message)?;
                Err(Ended::Doorbell(secret))
            }
        }
    }

    /// Says a message, or keeps it back: what carries the connection may not run while the machine does not.
    fn answer(&self, conversation: &Conversation<R>, message: Message) -> Result<(), Ended> {
        if !conversation.stands_still() && self.unsaid().is_empty() {
            return self.say(conversation, &message);
        }
        self.unsaid().push(message);
        if !conversation.stands_still() {
            // It went on after the first look, when nothing was to be said yet.
            self.go_on();
        }
        Ok(())
    }

    /// The conversation again, when the machine runs and carries what is said, or nobody is there any more.
    fn when_it_runs<'this>(
        &'this self,
        mut conversation: MutexGuard<'this, Conversation<R>>,
    ) -> MutexGuard<'this, Conversation<R>> {
        let mut ran = !conversation.stands_still();
        let mut carries = ran;
        while !carries && !peer::has_hung_up(&self.stream) {
            drop(conversation);
            // What carries the connection may start later than the machine is seen to.
            thread::sleep(CARRIED_AGAIN_AFTER);
            conversation = self.conversation();
            let runs = !conversation.stands_still();
            (carries, ran) = (ran && runs, runs);
        }
        conversation
    }

    fn say(&self, conversation: &Conversation<R>, message: &Message) -> Result<(), Ended> {
        self.say_until(conversation, message, Instant::now() + SAID_WITHIN)
    }

    /// Says all of a message, in however many pieces the other side takes it.
    fn say_until(
        &self,
        conversation: &Conversation<R>,
        message: &Message,
        until: Instant,
    ) -> Result<(), Ended> {
        if let Message::Refused(subject, _) | Message::Detached(subject, _) = message {
            self.metrics.count_refusal(subject.reason.get());
        }
        let bytes = message.encode(conversation.version());
        let mut said = 0;
        while said < bytes.len() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Ended::Deaf);
            }
            self.stream.set_write_timeout(Some(left)).map_err(broken("set a timeout for"))?;
            match (&self.stream).write(bytes.get(said..).unwrap_or_default()) {
                Ok(more) => said += more,
                Err(error) if retries(&error) => {}
                Err(error) => return Err(broken("answer")(error)),
            }
        }
        Ok(())
    }

    /// Reads all of `into`, in however many pieces it comes.
    fn fill(&self, into: &mut [u8], patience: Patience) -> Result<(), Ended> {
        let mut have = 0;
        let deadline = || match patience {
            Patience::Until(until) => until,
            Patience::While(silence_max) => Instant::now() + silence_max,
        };
        let (mut until, mut stops) = (deadline(), self.conversation().stops());
        while have < into.len() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let conversation = self.conversation();
                if matches!(patience, Patience::Until(_)) || !conversation.stood_still_since(stops) {
                    drop(conversation);
                    return Err(self.silent());
                }
                (until, stops) = (deadline(), conversation.stops());
                continue;
            }
            self.stream.set_read_timeout(Some(left)).map_err(broken("set a timeout for"))?;
            match (&self.stream).read(into.get_mut(have..).unwrap_or_default()) {
                Ok(0) => return Err(Ended::HungUp),
                Ok(more) => have += more,
                Err(error) if retries(&error) => {}
                Err(error) => return Err(broken("listen to")(error)),
            }
        }
        Ok(())
    }

    fn silent(&self) -> Ended {
        let begun = self.conversation().has_begun();
        let silence = if begun { self.silence_max } else { self.hello_within };
        Ended::Silent { silence_ms: silence.as_millis() }
    }

    /// The next envelope, with the descriptors that came with its first byte. A client that says nothing is asked whether it is there, once.
    fn hear_envelope(&self, patience: Patience) -> Result<(Envelope, Vec<OwnedFd>), Ended> {
        let mut envelope = Envelope::default();
        let (have, descriptors) = self.hear_first(envelope.as_mut_bytes(), patience)?;
        let rest = envelope.as_mut_bytes().get_mut(have..).unwrap_or_default();
        self.fill(rest, patience)?;
        // Copied out and not read from twice.
        let envelope = Envelope::read_from_bytes(envelope.as_bytes()).unwrap_or_default();
        Ok((envelope, descriptors))
    }

    fn hear_first(&self, into: &mut [u8], patience: Patience) -> Result<(usize, Vec<OwnedFd>), Ended> {
        let mut asked = false;
        loop {
            let wait = match patience {
                Patience::Until(until) => until.saturating_duration_since(Instant::now()),
                Patience::While(silence_max) => (silence_max / 2).max(Duration::from_millis(1)),
            };
            if wait.is_zero() {
                return Err(self.silent());
            }
            let stops = self.conversation().stops();
            self.stream.set_read_timeout(Some(wait)).map_err(broken("set a timeout for"))?;
            match receive(&self.stream, into) {
                Ok((0, _)) => return Err(Ended::HungUp),
                Ok(received) => return Ok(received),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(broken("listen to")(error));
                }
                Err(_) if matches!(patience, Patience::Until(_)) => return Err(self.silent()),
                // Its clock stands still with it.
                Err(_) if self.conversation().stood_still_since(stops) => asked = false,
                Err(_) if !asked => {
                    asked = true;
                    let conversation = self.conversation();
                    self.say(&conversation, &ping(0))?;
                }
                Err(_) => return Err(self.silent()),
            }
        }
    }
}

impl<R: Rings + Send + 'static> Tenant for Connection<R> {
    fn let_go(&self, why: LetGo) {
        let mut conversation = self.conversation();
        let messages = conversation.let_go(why);
        if why == LetGo::Gone {
            let _ = self.say_all(&conversation, messages);
            // The thread that listens hears of it, and ends what is left.
            self.hang_up();
        } else if conversation.stands_still() || !self.unsaid().is_empty() {
            // Nobody there hears it, and what carries it may be stopped as well; or what came before is still to be said.
            self.unsaid().extend(messages);
            self.wait_until_carried();
        } else if self.say_all(&conversation, messages).is_err() {
            // Whether it hears of it or not, it has let go.
            self.hang_up();
        }
    }

    fn go_on(&self) {
        let Some(this) = self.this.upgrade().filter(|this| !this.unsaid().is_empty()) else { return };
        let begun = thread::Builder::new().name("channel client".to_owned()).spawn(move || {
            thread::sleep(CARRIED_AGAIN_AFTER);
            this.say_unsaid();
        });
        if begun.is_err() {
            self.hang_up();
        }
    }
}

impl<R: Rings + Send + 'static> Connection<R> {
    fn unsaid(&self) -> MutexGuard<'_, Vec<Message>> {
        self.unsaid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what was kept back, unless the machine stands still again.
    fn say_unsaid(&self) {
        let conversation = self.conversation();
        if conversation.stands_still() {
            return;
        }
        let messages = std::mem::take(&mut *self.unsaid());
        if self.say_all(&conversation, messages).is_err() {
            self.hang_up();
        }
    }

    /// Returns when the other end has read what was said, or takes too long. A vsock device gets no bytes for its guest then when it is
    /// stopped after the machine's virtio-fs device.
    fn wait_until_carried(&self) {
        let until = Instant::now() + CARRIED_WITHIN;
        while !peer::has_read_all(&self.stream) && Instant::now() < until {
            thread::sleep(CARRIED_LOOK);
        }
    }

    /// Says messages within the time of one: somebody waits.
    fn say_all(&self, conversation: &Conversation<R>, messages: Vec<Message>) -> Result<(), Ended> {
        let until = Instant::now() + SAID_WITHIN;
        messages.iter().try_for_each(|message| self.say_until(conversation, message, until))
    }
}

fn retries(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

fn broken(tried: &'static str) -> impl Fn(io::Error) -> Ended {
    move |source| match source.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            Ended::HungUp
        }
        _ => Ended::Broken { tried, source },
    }
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
