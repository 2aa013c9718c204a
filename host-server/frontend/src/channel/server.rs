//! The socket at which processes of this host begin a channel.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use nix::poll::PollTimeout;
use ringfort_engine::engine::Engine;
use ringfort_engine::mailbox::{Sender, mailbox};
use ringfort_filesystem::operation::Credentials;
use ringfort_protocol::control::message::Reason;

use super::clients::{self, Answer, ClientId, Event};
use super::connection::converse;
use super::control::{Conversation, Identity, Limits, Refusal, RingAttachment, Rings};
use super::peer;
use crate::listen::{ListenError, ListeningSocket, StopSignal, Who};
use crate::service::Service;

/// Connections that are served at a time; more wait.
const CONNECTION_COUNT_MAX: usize = 64;

/// Where as many are served, from one look for those that have ended to the next.
const NO_ROOM_PAUSE_MS: u16 = 100;

/// A channel that could not be started: what was tried, on which path, what was found.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("{tried} {path}: {source}")]
    System { tried: &'static str, path: PathBuf, source: io::Error },
}

/// A running channel for processes of this host. Dropping it stops it.
pub struct ChannelServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    stop: StopSignal,
    connections: Mutex<HashMap<u64, UnixStream>>,
    connection_count: AtomicU64,
}

impl ChannelServer {
    /// Listens on `path` and serves clients with `service`. To be called on the volume's thread. Only this user, and root, may
    /// connect.
    pub fn start<S: Service>(
        engine: &Rc<dyn Engine>,
        service: Rc<S>,
        path: &Path,
        limits: Limits,
        volume: [u8; 16],
    ) -> Result<Self, StartError> {
        let socket = ListeningSocket::bind(path, Who::Owner, CONNECTION_COUNT_MAX as i32)?;
        let system = |tried| move |source| StartError::System { tried, path: path.to_owned(), source };
        let stop = StopSignal::new().map_err(system("create an event for"))?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            stop,
            connections: Mutex::default(),
            connection_count: AtomicU64::new(0),
        });
        let mut server = [0; 16];
        for half in server.as_chunks_mut::<8>().0 {
            *half = engine.random_u64().to_le_bytes();
        }
        let (events, receiver) = mailbox();
        let listening =
            Listening { shared: Arc::clone(&shared), limits, identity: Identity { server, volume }, events };
        let thread = thread::Builder::new()
            .name("channel".to_owned())
            .spawn(move || listening.run(&socket))
            .map_err(system("start a thread for"))?;
        engine.spawn(Box::pin(clients::run(Rc::clone(engine), service, receiver)));
        Ok(Self { shared, thread: Some(thread) })
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Ends every connection, lets commands under way finish, and removes the socket. Blocks: not to be called on the volume's
    /// thread, which has to finish the commands.
    pub fn stop(mut self) {
        self.request_stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(socket = %self.shared.path.display(), "the channel's thread panicked: a fault of ringfort, please report it");
        }
    }

    /// Begins what [`stop`](Self::stop) does and does not wait.
    pub fn request_stop(&self) {
        self.shared.stop.request(&self.shared.path);
        self.shared.hang_up();
    }
}

impl Drop for ChannelServer {
    fn drop(&mut self) {
        // No wait: the drop may happen on the volume's thread.
        self.request_stop();
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, HashMap<u64, UnixStream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stop.is_requested()
    }

    fn hang_up(&self) {
        for stream in self.connections().values() {
            // One that has ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

struct Listening {
    shared: Arc<Shared>,
    limits: Limits,
    identity: Identity,
    events: Sender<Event>,
}

impl Listening {
    fn run(self, socket: &ListeningSocket) {
        let mut serving: Vec<JoinHandle<()>> = Vec::new();
        while !self.shared.stopping() {
            serving.retain(|thread| !thread.is_finished());
            let room = serving.len() < CONNECTION_COUNT_MAX;
            let timeout = if room { PollTimeout::NONE } else { NO_ROOM_PAUSE_MS.into() };
            if let Err(error) = self.shared.stop.wait(room.then_some(socket.listener()), timeout) {
                tracing::error!(
                    socket = %self.shared.path.display(),
                    %error,
                    "waiting for clients failed: none is served here until the server is started again"
                );
                break;
            }
            if self.shared.stopping() {
                break;
            }
            if !room {
                continue;
            }
            match socket.listener().accept() {
                Ok((stream, _)) => serving.extend(self.begin(stream)),
                Err(error) => {
                    tracing::warn!(socket = %self.shared.path.display(), %error, "a client could not be accepted");
                }
            }
        }
        self.shared.hang_up();
        for thread in serving {
            // What it panicked with was logged when it did.
            let _ = thread.join();
        }
    }

    /// Serves a connection on a thread of its own.
    fn begin(&self, stream: UnixStream) -> Option<JoinHandle<()>> {
        let number = self.shared.connection_count.fetch_add(1, Ordering::Relaxed);
        let begin = || -> io::Result<JoinHandle<()>> {
            let peer = peer::of(&stream)?;
            let held = stream.try_clone()?;
            let (shared, limits) = (Arc::clone(&self.shared), self.limits);
            let rings = VolumeRings { connection: number, events: self.events.clone() };
            let mut conversation = Conversation::new(peer.clone(), limits, self.identity, rings);
            shared.connections().insert(number, held);
            let silence_ms_max = limits.silence_ms_max;
            thread::Builder::new().name("channel client".to_owned()).spawn(move || {
                tracing::info!(socket = %shared.path.display(), uid = peer.uid, "a client connected");
                let ended = converse(stream, &mut conversation, silence_ms_max);
                shared.connections().remove(&number);
                tracing::info!(socket = %shared.path.display(), uid = peer.uid, why = %ended, "a client's connection ended");
            })
        };
        match begin() {
            Ok(thread) => Some(thread),
            Err(error) => {
                self.shared.connections().remove(&number);
                tracing::warn!(socket = %self.shared.path.display(), %error, "a client could not be served");
                None
            }
        }
    }
}

/// Rings of one connection, on the volume's thread.
struct VolumeRings {
    connection: u64,
    events: Sender<Event>,
}

impl VolumeRings {
    fn ask(&self, event: impl FnOnce(Answer) -> Event) -> Result<(), Refusal> {
        let gone = || Refusal::new(Reason::Stopping, "the volume is being closed");
        let (answer, answered) = mpsc::channel();
        self.events.send(event(answer)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }

    fn client(&self, region: u32) -> ClientId {
        ClientId { connection: self.connection, region }
    }
}

impl Rings for VolumeRings {
    fn credential(&mut self, region: u32, number: u32, credentials: Credentials) -> Result<(), Refusal> {
        let client = self.client(region);
        self.ask(|answer| Event::Credential { client, number, credentials, answer })
    }

    fn attach(&mut self, region: u32, ring: u32, attachment: RingAttachment) -> Result<(), Refusal> {
        let client = self.client(region);
        self.ask(|answer| Event::Attach { client, ring, attachment: Box::new(attachment), answer })
    }

    fn detach(&mut self, region: u32, ring: Option<u32>) -> Result<(), Refusal> {
        let client = self.client(region);
        self.ask(|answer| Event::Detach { client, ring, answer })
    }
}
