//! Wires the layers: one thread that owns the volume, with its engine, store, filesystem and front ends.
//!
//! # Threads
//! The volume's thread runs everything that touches the volume. The control plane (this crate's tokio runtime) speaks with
//! it through a mailbox of [`Request`]s. Each virtio-fs socket has a thread of its own, which only forwards.
//!
//! # Stopping
//! First the sockets, so that nothing new comes in and what is under way is answered; then the filesystem, which ends
//! sessions and syncs; then the store, which checkpoints. A process killed at any point of it loses nothing that was synced.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use ringfort_engine::engine::Engine;
use ringfort_engine::local::{self, LocalOptions};
use ringfort_engine::mailbox::{Receiver, Sender, mailbox};
use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{Credentials, Operation, Reply, SessionId};
use ringfort_filesystem::{Counts, Filesystem, FilesystemOptions};
use ringfort_frontend::channel::{ChannelServer, Limits, Place};
use ringfort_frontend::machine::Machine;
use ringfort_frontend::metrics::Metrics;
use ringfort_frontend::service::Service;
use ringfort_frontend::virtiofs::{CachePolicy, Options, VirtioFsServer};
use ringfort_store::address::ViewId;
use ringfort_store::error::StoreError;
use ringfort_store::store::{OpenOptions, Store};
use tokio::sync::oneshot;

use crate::admin::protocol::ViewRequest;
use crate::config::{Cache, ChannelAddress, machine_name};
use crate::report::{Channel, Guest, Inodes, Served, Status, ViewList};

/// What is to be served, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Every component, columns first.
    pub components: Vec<PathBuf>,
    pub sockets: Vec<SocketSettings>,
    /// Where channels begin.
    pub channels: Vec<ChannelAddress>,
    pub commit_interval: Duration,
    pub memory_bytes: u64,
    /// For blocks that were read lately.
    pub data_cache_bytes: u64,
    /// The longest time that the volume's thread looks for work before it sleeps.
    pub busy_poll: Duration,
    pub override_membership: bool,
}

/// One virtio-fs socket.
#[derive(Clone, Debug)]
pub struct SocketSettings {
    pub path: PathBuf,
    pub cache: Cache,
    pub writeback: bool,
    /// Request queues that the device offers.
    pub queues: u64,
    /// The clone that is the guest's filesystem; the volume itself where none is named.
    pub clone: Option<String>,
}

/// What the control plane asks of the volume's thread.
enum Request {
    Status(oneshot::Sender<Status>),
    /// Answered when it is done, or with why it failed.
    Checkpoint(oneshot::Sender<Result<(), StoreError>>),
    Views(ViewRequest, oneshot::Sender<Result<ViewList, StoreError>>),
    /// Answered at once: a sign that the thread goes round.
    Alive(oneshot::Sender<()>),
    /// Sync, checkpoint, close, end.
    Stop,
}

/// Speaks with the volume's thread. Clones speak with the same.
#[derive(Clone)]
pub struct VolumeRemote(Sender<Request>);

impl VolumeRemote {
    /// None where the volume is being closed.
    pub async fn status(&self) -> Option<Status> {
        let (reply, status) = oneshot::channel();
        self.0.send(Request::Status(reply)).ok()?;
        status.await.ok()
    }

    /// Brings everything that the log holds to its place. None where the volume is being closed, which does so as well.
    pub async fn checkpoint(&self) -> Option<Result<(), StoreError>> {
        let (reply, done) = oneshot::channel();
        self.0.send(Request::Checkpoint(reply)).ok()?;
        done.await.ok()
    }

    /// Does what is asked of snapshots and clones, and tells which there are then. None where the volume is being closed.
    pub async fn views(&self, request: ViewRequest) -> Option<Result<ViewList, StoreError>> {
        let (reply, done) = oneshot::channel();
        self.0.send(Request::Views(request, reply)).ok()?;
        done.await.ok()
    }

    /// Resolves when the volume's thread has got round to it; false where the volume is being closed.
    pub async fn is_alive(&self) -> bool {
        let (reply, alive) = oneshot::channel();
        self.0.send(Request::Alive(reply)).is_ok() && alive.await.is_ok()
    }
}

/// A volume whose sockets listen.
pub struct ServedVolume {
    remote: VolumeRemote,
    servers: Servers,
    thread: JoinHandle<Result<()>>,
}

impl ServedVolume {
    /// Opens the volume and listens. Blocks until that is done.
    pub fn start(settings: Settings) -> Result<Self> {
        let (sender, requests) = mailbox();
        let (started, listening) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("volume".into())
            .spawn(move || {
                let served = serve(&settings, requests, |servers| started.send(servers).is_ok());
                drop(started);
                served
            })
            .context("start the volume's thread")?;
        match listening.recv() {
            Ok(servers) => Ok(Self { remote: VolumeRemote(sender), servers, thread }),
            Err(_) => match join(thread) {
                Ok(()) => Err(anyhow!("the volume's thread ended before its sockets listened")),
                Err(error) => Err(error),
            },
        }
    }

    pub fn remote(&self) -> VolumeRemote {
        self.remote.clone()
    }

    /// Whether the volume's thread has ended without being asked.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops taking requests, answers those under way, makes everything durable and closes the volume. Blocks.
    pub fn stop(self) -> Result<()> {
        self.servers.stop();
        // Where the thread is gone already, joining it tells why.
        let _ = self.remote.0.send(Request::Stop);
        join(self.thread)
    }
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("the volume's thread panicked; what was synced is safe")))
}

/// Runs `work` on an engine of this machine, on this thread.
pub fn with_engine<T>(work: impl AsyncFnOnce(Rc<dyn Engine>) -> Result<T>) -> Result<T> {
    run_on(LocalOptions::default(), work)
}

fn run_on<T>(options: LocalOptions, work: impl AsyncFnOnce(Rc<dyn Engine>) -> Result<T>) -> Result<T> {
    let runtime = local::start(options)?;
    let engine = runtime.engine();
    runtime.block_on(work(engine))
}

/// The life of the volume's thread.
fn serve(
    settings: &Settings,
    mut requests: Receiver<Request>,
    listening: impl FnOnce(Servers) -> bool,
) -> Result<()> {
    let started = Instant::now();
    let options = LocalOptions { busy_poll: settings.busy_poll, ..LocalOptions::default() };
    run_on(options, async |engine| {
        let options = OpenOptions {
            allow_partial_membership: settings.override_membership,
            commit_interval: settings.commit_interval,
            memory_bytes: settings.memory_bytes,
            data_cache_bytes: settings.data_cache_bytes,
        };
        let (store, opened) = Store::open(Rc::clone(&engine), &settings.components, &options).await?;
        log_opening(&store);
        let volume = Rc::new(store.clone());
        let filesystem = Filesystem::open(volume, Rc::clone(&engine), FilesystemOptions::default()).await?;
        let servers = match listen(&engine, &filesystem, settings, store.volume_id().0.to_le_bytes()) {
            Ok(servers) => servers,
            Err(error) => {
                store.close().await?;
                return Err(error);
            }
        };
        let observed: Vec<_> = servers
            .devices
            .iter()
            .zip(&settings.sockets)
            .map(|(server, settings)| Observed { settings: settings.clone(), metrics: server.metrics() })
            .collect();
        let clients: Vec<_> = settings
            .channels
            .iter()
            .zip(&servers.channels)
            .map(|(address, server)| (address.to_string(), server.metrics()))
            .collect();
        let stopping = Rc::new(Cell::new(false));
        engine.spawn(Box::pin(retry_reclaims(Rc::clone(&engine), filesystem.clone(), Rc::clone(&stopping))));
        if listening(servers) {
            while let Some(request) = requests.recv().await {
                match request {
                    Request::Status(reply) => {
                        let served = Served {
                            pid: std::process::id(),
                            uptime_s: started.elapsed().as_secs(),
                            guests: observed.iter().map(Observed::report).collect(),
                            channels: clients
                                .iter()
                                .map(|(address, metrics)| Channel::of_clients(address.clone(), metrics))
                                .collect(),
                        };
                        let mut status = Status::of_open(&store.status(), &opened.findings, Some(served));
                        status.inodes = Some(inodes(&filesystem.counts()));
                        // An operator who has hung up needs no answer.
                        let _ = reply.send(status);
                    }
                    Request::Checkpoint(reply) => {
                        // Beside this loop: operators are answered meanwhile.
                        let store = store.clone();
                        engine.spawn(Box::pin(async move {
                            let _ = reply.send(store.checkpoint().await);
                        }));
                    }
                    Request::Views(request, reply) => {
                        let filesystem = filesystem.clone();
                        engine.spawn(Box::pin(async move {
                            let done = change_views(&filesystem, request).await;
                            let _ = reply.send(done.map(|()| ViewList::of(&filesystem)));
                        }));
                    }
                    Request::Alive(reply) => {
                        let _ = reply.send(());
                    }
                    Request::Stop => break,
                }
            }
        }
        stopping.set(true);
        filesystem.shut_down().await?;
        store.close().await?;
        tracing::info!(volume = %store.volume_id(), "the volume is closed: everything is durable");
        Ok(())
    })
}

async fn change_views(filesystem: &Filesystem<Store>, request: ViewRequest) -> Result<(), StoreError> {
    let volume = ViewId::VOLUME;
    match request {
        ViewRequest::List => Ok(()),
        ViewRequest::TakeSnapshot { name } => {
            filesystem.take_snapshot(volume, name.as_bytes(), 0).await.map(drop)
        }
        ViewRequest::RemoveSnapshot { name } => filesystem.remove_snapshot(volume, name.as_bytes()).await,
        ViewRequest::MakeClone { snapshot, name } => {
            filesystem.make_clone(volume, snapshot.as_bytes(), name.as_bytes()).await.map(drop)
        }
        ViewRequest::RemoveClone { name } => filesystem.remove_clone(name.as_bytes()).await,
    }
}

/// How often files that were deleted and could not be given back are tried again.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(10);

async fn retry_reclaims(engine: Rc<dyn Engine>, filesystem: Filesystem<Store>, stopping: Rc<Cell<bool>>) {
    while !stopping.get() {
        engine.sleep(RECLAIM_INTERVAL).await;
        filesystem.retry_reclaims().await;
    }
}

/// What listens: a device for each virtio-fs socket, and the channels.
struct Servers {
    devices: Vec<VirtioFsServer>,
    channels: Vec<ChannelServer>,
}

impl Servers {
    /// Answers what is under way. Blocks; not for the volume's thread.
    fn stop(self) {
        self.devices.iter().for_each(VirtioFsServer::request_stop);
        self.channels.iter().for_each(ChannelServer::request_stop);
        self.channels.into_iter().for_each(ChannelServer::stop);
        self.devices.into_iter().for_each(VirtioFsServer::stop);
    }
}

/// What a socket's guest has as its filesystem.
fn view_of(filesystem: &Filesystem<Store>, socket: &SocketSettings) -> Result<ViewId> {
    let Some(name) = &socket.clone else { return Ok(ViewId::VOLUME) };
    let clone = filesystem.clones().into_iter().find(|clone| clone.name == name.as_bytes());
    let clone = clone.ok_or_else(|| {
        anyhow!(
            "socket {}: there is no clone {name:?}; `ringfort clone create` makes one",
            socket.path.display()
        )
    })?;
    Ok(clone.view)
}

/// All of what is to listen, or none.
fn listen(
    engine: &Rc<dyn Engine>,
    filesystem: &Filesystem<Store>,
    settings: &Settings,
    volume: [u8; 16],
) -> Result<Servers> {
    let machines: Vec<_> =
        settings.sockets.iter().map(|socket| Arc::new(Machine::new(machine_name(&socket.path)))).collect();
    let start = |(socket, machine): (&SocketSettings, &Arc<Machine>)| {
        let options = Options {
            cache: match socket.cache {
                Cache::Never => CachePolicy::Never,
                Cache::Auto => CachePolicy::Auto,
                Cache::Always => CachePolicy::Always,
            },
            writeback: socket.writeback,
            machine: Arc::clone(machine),
            ..Options::default()
        };
        let queues = usize::try_from(socket.queues).unwrap_or(usize::MAX);
        let view = view_of(filesystem, socket)?;
        let service = Rc::new(Guests { filesystem: filesystem.clone(), view });
        Ok(VirtioFsServer::start(engine, service, &socket.path, queues, options)?)
    };
    let devices = settings.sockets.iter().zip(&machines).map(start).collect::<Result<_>>()?;
    let start = |address: &ChannelAddress| {
        let place = place(address, &machines)?;
        let service = Rc::new(Guests { filesystem: filesystem.clone(), view: ViewId::VOLUME });
        Ok(ChannelServer::start(engine, service, place, Limits::default(), volume)?)
    };
    let channels = settings.channels.iter().map(start).collect::<Result<_>>()?;
    Ok(Servers { devices, channels })
}

fn place(address: &ChannelAddress, machines: &[Arc<Machine>]) -> Result<Place> {
    Ok(match address {
        ChannelAddress::Host(path) => Place::Host { path: path.clone() },
        ChannelAddress::Guest { machine: name, carrier, port } => {
            let machine = machines.iter().find(|machine| machine.name() == name);
            let machine =
                machine.with_context(|| format!("channel {address}: there is no machine {name}"))?;
            Place::Guest { machine: Arc::clone(machine), carrier: carrier.clone(), port: *port }
        }
    })
}

fn log_opening(store: &Store) {
    let recovery = store.recovery();
    tracing::info!(
        volume = %store.volume_id(),
        transactions = recovery.replayed_transactions,
        log_bytes = recovery.replayed_log_bytes,
        rewritten_stripes = recovery.rewritten_stripes,
        elapsed_ms = recovery.elapsed.as_millis() as u64,
        "the volume is open"
    );
}

/// A socket, and the counts of its device.
struct Observed {
    settings: SocketSettings,
    metrics: Arc<Metrics>,
}

impl Observed {
    fn report(&self) -> Guest {
        let Self { settings, metrics } = self;
        Guest {
            socket: settings.path.clone(),
            cache: settings.cache.to_string(),
            writeback: settings.writeback,
            queues: settings.queues,
            ..Guest::of_device(metrics)
        }
    }
}

fn inodes(counts: &Counts) -> Inodes {
    Inodes {
        cached: counts.cached_inodes as u64,
        held: counts.held_inodes as u64,
        unlinked: counts.unlinked_inodes as u64,
        unreclaimed: counts.unreclaimed_inodes as u64,
        reclaim_failures: counts.reclaim_failures,
    }
}

/// The filesystem, as front ends reach it.
struct Guests {
    filesystem: Filesystem<Store>,
    /// What they have as their filesystem.
    view: ViewId,
}

impl Service for Guests {
    async fn execute(
        &self,
        session: SessionId,
        credentials: &Credentials,
        operation: Operation,
    ) -> Result<Reply, Errno> {
        self.filesystem.execute(session, credentials, operation).await
    }

    async fn open_session(&self) -> SessionId {
        self.filesystem.open_session_in(self.view)
    }

    async fn close_session(&self, session: SessionId) {
        self.filesystem.close_session(session).await;
    }
}
