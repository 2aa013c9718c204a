//! Where clients begin a channel: a thread that accepts, and one for each control connection.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use ringfort_engine::engine::Engine;
use ringfort_engine::mailbox::{Sender, mailbox};
use ringfort_filesystem::operation::Credentials;
use ringfort_protocol::control::message::{PORT_DEFAULT, Reason, SECRET_BYTES};
use ringfort_protocol::ring::memory::SharedMemory;

use super::clients::{self, Answer, ClientId, Event};
use super::connection::{Connection, Ended};
use super::connections::{CONNECTION_COUNT_MAX, Connections};
use super::control::{Bells, Conversation, Identity, Limits, Refusal, RingAttachment, Rings};
use super::endpoint::{Carrier, EndpointError, Listener};
use super::metrics::ChannelMetrics;
use super::peer;
use crate::listen::{ListenError, StopSignal};
use crate::machine::{Machine, Tenant};
use crate::service::Service;

/// Threads of connections, those that end included.
const THREAD_COUNT_MAX: usize = 2 * CONNECTION_COUNT_MAX;

/// Where there is no room, from one look for some to the next.
const NO_ROOM_PAUSE_MS: u16 = 20;

/// Ports of the host's vsock that are tried where others have taken those before: every machine needs one of its own.
const PORTS_TRIED: u32 = 256;

/// How long the daemon of a new boot waits for the end of the one before it.
const PREDECESSOR_ENDS_WITHIN: Duration = Duration::from_secs(3);

/// A channel that could not be started: what was tried, on which path, what was found.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("{tried} {name}: {source}")]
    System { tried: &'static str, name: String, source: io::Error },
}

/// Whose channel it is.
#[derive(Clone, Debug)]
pub enum Place {
    /// Of processes of this host, which connect to a Unix socket.
    Host { path: PathBuf },
    /// Of a machine's guest.
    Guest {
        machine: Arc<Machine>,
        carrier: Carrier,
        /// The first that is free, from the default on, where none is named.
        port: Option<u32>,
    },
}

impl Place {
    /// For people.
    pub fn name(&self) -> String {
        match self {
            Self::Host { path } => path.display().to_string(),
            Self::Guest { machine, carrier: Carrier::Vsock { cid }, .. } => {
                format!("{}:cid={cid}", machine.name())
            }
            Self::Guest { machine, carrier: Carrier::VsockUnix { path }, .. } => {
                format!("{}:vsock-unix={}", machine.name(), path.display())
            }
        }
    }

    fn listen(&self) -> Result<Listener, StartError> {
        let backlog = CONNECTION_COUNT_MAX as i32;
        let (machine, carrier, port) = match self {
            Self::Host { path } => return Ok(Listener::unix(path, backlog)?),
            Self::Guest { machine, carrier, port } => (machine, carrier, *port),
        };
        let last = match (port, carrier) {
            (None, Carrier::Vsock { .. }) => PORT_DEFAULT + PORTS_TRIED,
            _ => port.unwrap_or(PORT_DEFAULT),
        };
        let mut port = port.unwrap_or(PORT_DEFAULT);
        loop {
            match Listener::guest(carrier, port, backlog) {
                Ok(listener) => {
                    machine.open_port(port);
                    return Ok(listener);
                }
                Err(EndpointError::Vsock { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse && port < last =>
                {
                    port += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A running channel. Dropping it stops it.
pub struct ChannelServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    place: Place,
    name: String,
    stop: StopSignal,
    connections: Connections<VolumeRings>,
    connection_count: AtomicU64,
    /// Rings whose doorbells have not come yet, by their secrets.
    awaited: Mutex<HashMap<[u8; SECRET_BYTES], Awaiting>>,
    speaker: Mutex<Option<Speaker>>,
    speaker_left: Condvar,
    metrics: Arc<ChannelMetrics>,
}

/// A ring whose doorbell has not been hung yet.
struct Awaiting {
    client: ClientId,
    ring: u32,
    /// The connection that was told that it is to be the doorbell: no other is told so.
    claimed_by: Option<u64>,
}

/// The connection that speaks for a machine's guest.
struct Speaker {
    connection: u64,
    secret: [u8; SECRET_BYTES],
}

impl ChannelServer {
    /// Listens at `place` and serves clients with `service`. To be called on the volume's thread. On this host only this user, and
    /// root, may connect.
    pub fn start<S: Service>(
        engine: &Rc<dyn Engine>,
        service: Rc<S>,
        place: Place,
        limits: Limits,
        volume: [u8; 16],
    ) -> Result<Self, StartError> {
        let listener = place.listen()?;
        let name = place.name();
        let system = |tried| {
            let name = name.clone();
            move |source| StartError::System { tried, name, source }
        };
        let stop = StopSignal::new().map_err(system("create an event for"))?;
        let metrics = Arc::<ChannelMetrics>::default();
        let shared = Arc::new(Shared {
            place,
            name: name.clone(),
            stop,
            connections: Connections::default(),
            connection_count: AtomicU64::new(0),
            awaited: Mutex::default(),
            speaker: Mutex::default(),
            speaker_left: Condvar::new(),
            metrics: Arc::clone(&metrics),
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
            .spawn(move || listening.run(&listener))
            .map_err(system("start a thread for"))?;
        engine.spawn(Box::pin(clients::run(Rc::clone(engine), service, metrics, receiver)));
        Ok(Self { shared, thread: Some(thread) })
    }

    pub fn place(&self) -> &Place {
        &self.shared.place
    }

    pub fn metrics(&self) -> Arc<ChannelMetrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// Ends every connection, lets commands under way finish, and removes the socket. Blocks: not to be called on the volume's
    /// thread, which has to finish the commands.
    pub fn stop(mut self) {
        self.request_stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(channel = %self.shared.name, "the channel's thread panicked: a fault of ringfort, please report it");
        }
    }

    /// Begins what [`stop`](Self::stop) does and does not wait.
    pub fn request_stop(&self) {
        self.shared.stop.request(Path::new(&self.shared.name));
        self.shared.connections.hang_up_all();
    }
}

impl Drop for ChannelServer {
    fn drop(&mut self) {
        // No wait: the drop may happen on the volume's thread.
        self.request_stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stop.is_requested()
    }

    /// Makes this connection the one that speaks for the guest. That of an earlier boot is ended; one of this boot stays.
    fn speak(&self, machine: &Machine, connection: u64, secret: [u8; SECRET_BYTES]) -> Result<(), Refusal> {
        if !machine.knows(&secret) {
            tracing::warn!(channel = %self.name, "a connection does not know the secret of this boot: refused");
            let text = "the secret is not that of this boot; only root of the guest can read it";
            return Err(Refusal::new(Reason::NotAllowed, text));
        }
        let busy = || Refusal::new(Reason::Busy, "another daemon speaks for this machine; stop it first");
        let deadline = Instant::now() + PREDECESSOR_ENDS_WITHIN;
        let mut speaker = lock(&self.speaker);
        while let Some(present) = &*speaker {
            if present.secret == secret {
                return Err(busy());
            }
            self.connections.hang_up(present.connection);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(busy());
            }
            let waited = self.speaker_left.wait_timeout(speaker, left);
            speaker = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *speaker = Some(Speaker { connection, secret });
        Ok(())
    }

    /// The connection has ended, with all that it had begun.
    fn leave(&self, connection: u64) {
        if self.connections.leave(connection) {
            self.metrics.open_connections.leave();
        }
        {
            let mut awaited = lock(&self.awaited);
            awaited.retain(|_, awaiting| awaiting.client.connection != connection);
            let claimed = awaited.values_mut().filter(|awaiting| awaiting.claimed_by == Some(connection));
            claimed.for_each(|awaiting| awaiting.claimed_by = None);
        }
        let mut speaker = lock(&self.speaker);
        if speaker.as_ref().is_some_and(|speaker| speaker.connection == connection) {
            *speaker = None;
            self.speaker_left.notify_all();
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
    fn run(self, listener: &Listener) {
        let mut serving: Vec<JoinHandle<()>> = Vec::new();
        while !self.shared.stopping() {
            if let Err(error) = self.shared.stop.wait(Some(listener.descriptor()), PollTimeout::NONE) {
                tracing::error!(
                    channel = %self.shared.name,
                    %error,
                    "waiting for clients failed: none is served here until the server is started again"
                );
                break;
            }
            if self.shared.stopping() {
                break;
            }
            serving.retain(|thread| !thread.is_finished());
            if serving.len() >= THREAD_COUNT_MAX || !self.shared.connections.make_room() {
                // An error shows above as well.
                let _ = self.shared.stop.wait(None, NO_ROOM_PAUSE_MS.into());
                continue;
            }
            match listener.accept().and_then(|stream| self.begin(listener, stream)) {
                Ok(thread) => serving.push(thread),
                Err(error) => {
                    tracing::warn!(channel = %self.shared.name, %error, "a client could not be served");
                }
            }
        }
        self.shared.connections.hang_up_all();
        for thread in serving {
            // What it panicked with was logged when it did.
            let _ = thread.join();
        }
    }

    /// Serves a connection on a thread of its own.
    fn begin(&self, listener: &Listener, stream: UnixStream) -> io::Result<JoinHandle<()>> {
        let number = self.shared.connection_count.fetch_add(1, Ordering::Relaxed);
        let rings =
            VolumeRings { connection: number, events: self.events.clone(), shared: Arc::clone(&self.shared) };
        let (conversation, machine, uid) = match &self.shared.place {
            Place::Host { .. } => {
                let peer = peer::of(&stream)?;
                tracing::info!(channel = %self.shared.name, uid = peer.uid, number, "a client connected");
                let uid = peer.uid;
                (Conversation::new(peer, self.limits, self.identity, rings), None, uid)
            }
            Place::Guest { machine, .. } => {
                listener.check_carrier(&stream)?;
                tracing::debug!(channel = %self.shared.name, number, "a connection from the guest");
                let machine = Arc::clone(machine);
                let conversation =
                    Conversation::with_guest(Arc::clone(&machine), self.limits, self.identity, rings);
                // Whoever it is there, for this host it is the machine.
                (conversation, Some(machine), 0)
            }
        };
        let metrics = Arc::clone(&self.shared.metrics);
        metrics.connections.add(1);
        metrics.open_connections.enter();
        let connection = Connection::new(stream, conversation, &self.limits, metrics);
        self.shared.connections.enter(number, uid, &connection);
        if let Some(machine) = machine {
            let weak: Weak<dyn Tenant> = Arc::downgrade(&connection) as _;
            machine.add_tenant(weak);
        }
        let (shared, events) = (Arc::clone(&self.shared), self.events.clone());
        let serve = move || {
            let ended = connection.converse();
            match ended {
                Ended::Doorbell(secret) => shared.hang_doorbell(secret, &connection, &events),
                ended => {
                    tracing::info!(channel = %shared.name, number, why = %ended, "a connection ended");
                }
            }
            shared.leave(number);
        };
        let begun = thread::Builder::new().name("channel client".to_owned()).spawn(serve);
        begun.inspect_err(|_| self.shared.leave(number))
    }
}

impl Shared {
    /// Gives a connection to the ring that waits for it.
    fn hang_doorbell(
        &self,
        secret: [u8; SECRET_BYTES],
        connection: &Connection<VolumeRings>,
        events: &Sender<Event>,
    ) {
        let Some(Awaiting { client, ring, .. }) = lock(&self.awaited).remove(&secret) else { return };
        let hung = connection.stream().map_err(|error| error.to_string()).and_then(|stream| {
            stream.set_read_timeout(None).map_err(|error| error.to_string())?;
            let connection = OwnedFd::from(stream);
            ask(events, |answer| Event::Bell { client, ring, connection, answer })
                .map_err(|refusal| refusal.text)
        });
        if let Err(error) = hung {
            tracing::warn!(channel = %self.name, ring, error, "a doorbell could not be hung");
        }
    }
}

/// Rings of one connection, on the volume's thread.
struct VolumeRings {
    connection: u64,
    events: Sender<Event>,
    shared: Arc<Shared>,
}

fn ask(events: &Sender<Event>, event: impl FnOnce(Answer) -> Event) -> Result<(), Refusal> {
    let gone = || Refusal::new(Reason::Stopping, "the volume is being closed");
    let (answer, answered) = mpsc::channel();
    events.send(event(answer)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}

impl VolumeRings {
    fn client(&self, region: u32) -> ClientId {
        ClientId { connection: self.connection, region }
    }
}

impl Rings for VolumeRings {
    fn credential(&mut self, region: u32, number: u32, credentials: Credentials) -> Result<(), Refusal> {
        let client = self.client(region);
        ask(&self.events, |answer| Event::Credential { client, number, credentials, answer })
    }

    fn attach(&mut self, region: u32, ring: u32, attachment: RingAttachment) -> Result<(), Refusal> {
        let client = self.client(region);
        let secret = match &attachment.bells {
            Bells::Connection(secret) => Some(*secret),
            Bells::Descriptors { .. } => None,
        };
        if secret.is_some_and(|secret| lock(&self.shared.awaited).contains_key(&secret)) {
            return Err(Refusal::new(Reason::Exists, "another ring waits for a doorbell of this secret"));
        }
        let attachment = Box::new(attachment);
        ask(&self.events, |answer| Event::Attach { client, ring, attachment, answer })?;
        if let Some(secret) = secret {
            lock(&self.shared.awaited).insert(secret, Awaiting { client, ring, claimed_by: None });
        }
        Ok(())
    }

    fn detach(&mut self, region: u32, ring: Option<u32>) -> Result<(), Refusal> {
        let client = self.client(region);
        let ends = |other: u32| ring.is_none_or(|ring| ring == other);
        lock(&self.shared.awaited).retain(|_, awaiting| awaiting.client != client || !ends(awaiting.ring));
        ask(&self.events, |answer| Event::Detach { client, ring, answer })
    }

    fn suspend(&mut self, region: u32) -> Result<(), Refusal> {
        let client = self.client(region);
        ask(&self.events, |answer| Event::Suspend { client, answer })
    }

    fn resume(&mut self, region: u32, memory: SharedMemory) -> Result<(), Refusal> {
        let client = self.client(region);
        ask(&self.events, |answer| Event::Resume { client, memory, answer })
    }

    fn speak_for_guest(&mut self, secret: [u8; SECRET_BYTES]) -> Result<(), Refusal> {
        match &self.shared.place {
            Place::Guest { machine, .. } => self.shared.speak(machine, self.connection, secret),
            Place::Host { .. } => {
                Err(Refusal::new(Reason::NotAllowed, "this socket is for processes of the host"))
            }
        }
    }

    fn welcome_process(&mut self) -> Result<(), Refusal> {
        self.shared.connections.welcome(self.connection)
    }

    fn claim_doorbell(&mut self, secret: &[u8; SECRET_BYTES]) -> bool {
        let mut awaited = lock(&self.shared.awaited);
        let unclaimed = awaited.get_mut(secret).filter(|awaiting| awaiting.claimed_by.is_none());
        unclaimed.map(|awaiting| awaiting.claimed_by = Some(self.connection)).is_some()
    }
}
