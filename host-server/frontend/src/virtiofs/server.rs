//! A virtio-fs device behind a Unix socket: one guest at a time, one after the other.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::poll::PollTimeout;
use nix::sys::eventfd::{EfdFlags, EventFd};
use ringfort_engine::engine::Engine;
use ringfort_engine::mailbox::{Sender, mailbox};
use vhost::vhost_user::Listener;
use vhost_user_backend::{ShutdownHandle, VhostUserDaemon};

use super::device::{self, Event, Options};
use super::session::CachePolicy;
use super::vhost_user::{AtomicMemory, Backend};
use crate::listen::{ListenError, ListeningSocket, StopSignal, Who};
use crate::machine::{Machine, Memory};
use crate::metrics::Metrics;
use crate::service::Service;

/// The most request queues that a device offers: more than a guest of a common size has processors. QEMU asks for as many
/// as its `num-request-queues` says (1 where it says nothing), and kernels from 6.11 on use as many as they have processors.
pub const REQUEST_QUEUES_MAX: usize = 16;

/// What a device offers unless told otherwise: all, since one that is not asked for costs nothing, and one that is asked for
/// and not offered keeps the machine from starting.
pub const REQUEST_QUEUES_DEFAULT: usize = REQUEST_QUEUES_MAX;

/// From a connection that failed to the next that is accepted.
const PAUSE_AFTER_FAILURE_MS: u16 = 1000;

/// A device that could not be started: what was tried, on which path, what was found.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("{tried} {path}: {source}")]
    System { tried: &'static str, path: PathBuf, source: io::Error },
    #[error("serve {path}: {count} request queues asked for, 1 to {REQUEST_QUEUES_MAX} are possible")]
    QueueCount { path: PathBuf, count: usize },
    #[error(
        "serve {path}: writeback is asked for with cache `never`, which keeps nothing to be written back; choose `auto` or \
         `always`, or leave writeback out"
    )]
    WritebackWithoutCache { path: PathBuf },
}

/// A running device. Dropping it stops it.
pub struct VirtioFsServer {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    path: PathBuf,
    stop: StopSignal,
    /// Ends the connection that is being served.
    connection: Mutex<Option<ShutdownHandle>>,
}

impl VirtioFsServer {
    /// Listens on `path` and serves guests with `service`. To be called on the volume's thread, where the device's tasks
    /// run; the server itself may go to any thread. A socket that nobody listens on any more is replaced. Only this user
    /// may connect.
    pub fn start<S: Service>(
        engine: &Rc<dyn Engine>,
        service: Rc<S>,
        path: &Path,
        request_queue_count: usize,
        options: Options,
    ) -> Result<Self, StartError> {
        if request_queue_count == 0 || request_queue_count > REQUEST_QUEUES_MAX {
            return Err(StartError::QueueCount { path: path.to_owned(), count: request_queue_count });
        }
        // QEMU connects once; a second guest waits until the first is gone.
        if options.writeback && options.cache == CachePolicy::Never {
            return Err(StartError::WritebackWithoutCache { path: path.to_owned() });
        }
        let socket = ListeningSocket::bind(path, Who::Owner, 1)?;
        let system = |tried| move |source| StartError::System { tried, path: path.to_owned(), source };
        let stop = StopSignal::new().map_err(system("create an event for"))?;
        let metrics = Arc::new(Metrics::new(1 + request_queue_count));
        let direct_kicks =
            watches_descriptors(engine).map_err(|errno| system("create an event for")(errno.into()))?;
        let shared = Arc::new(Shared { path: path.to_owned(), stop, connection: Mutex::new(None) });
        let (events, receiver) = mailbox();
        let machine = Arc::clone(&options.machine);
        let serving = Serving {
            machine,
            shared: Arc::clone(&shared),
            metrics: Arc::clone(&metrics),
            events,
            request_queue_count,
            direct_kicks,
        };
        let thread = thread::Builder::new()
            .name("virtiofs".to_owned())
            .spawn(move || serving.run(socket))
            .map_err(system("start a thread for"))?;
        let name = path.display().to_string();
        let device = device::run(name, Rc::clone(engine), service, options, Arc::clone(&metrics), receiver);
        engine.spawn(Box::pin(device));
        Ok(Self { shared, metrics, thread: Some(thread) })
    }

    /// Counters since the start.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Disconnects the guest, lets its requests finish, ends its session and removes the socket. Blocks: not to be called
    /// on the volume's thread, which has to finish the requests.
    pub fn stop(mut self) {
        self.request_stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(socket = %self.shared.path.display(), "the socket's thread panicked: a fault of ringfort, please report it");
        }
    }

    /// Begins what [`stop`](Self::stop) does and does not wait.
    pub fn request_stop(&self) {
        self.shared.stop.request(&self.shared.path);
        if let Some(connection) = self.shared.connection().as_ref() {
            connection.shutdown();
        }
    }
}

impl Drop for VirtioFsServer {
    fn drop(&mut self) {
        // No wait: the drop may happen on the volume's thread.
        self.request_stop();
    }
}

impl Shared {
    fn connection(&self) -> MutexGuard<'_, Option<ShutdownHandle>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stop.is_requested()
    }
}

/// Whether the engine of this thread can be woken by descriptors, as one is tried.
fn watches_descriptors(engine: &Rc<dyn Engine>) -> nix::Result<bool> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    Ok(engine.watch(Box::new(event)).is_some())
}

/// What the server's thread works with.
struct Serving {
    shared: Arc<Shared>,
    machine: Arc<Machine>,
    metrics: Arc<Metrics>,
    events: Sender<Event>,
    request_queue_count: usize,
    /// The volume's thread hears the rings' doorbells itself.
    direct_kicks: bool,
}

impl Serving {
    fn run(self, socket: ListeningSocket) {
        let path = &self.shared.path;
        while !self.shared.stopping() {
            if let Err(error) = self.shared.stop.wait(Some(socket.listener().as_fd()), PollTimeout::NONE) {
                tracing::error!(
                    socket = %path.display(),
                    %error,
                    "waiting for guests failed: none is served here until the server is started again"
                );
                break;
            }
            if self.shared.stopping() {
                break;
            }
            if let Err(error) = self.serve_connection(socket.listener()) {
                tracing::warn!(socket = %path.display(), %error, "a guest's connection failed; the next one is accepted");
                // What failed (descriptors used up, say) may fail again at once. An error here shows above as well.
                let _ = self.shared.stop.wait(None, PAUSE_AFTER_FAILURE_MS.into());
            }
        }
    }

    /// Accepts the connection that waits and serves it to its end.
    fn serve_connection(&self, listener: &UnixListener) -> Result<(), String> {
        let memory = AtomicMemory::new(Memory::new());
        let backend = Arc::new(Backend::new(
            self.request_queue_count,
            memory.clone(),
            self.events.clone(),
            Arc::clone(&self.machine),
        ));
        let result = self.serve_backend(listener, &backend, memory);
        // In this order: the daemon's threads are gone, so nothing follows the detachment.
        backend.detach();
        backend.close_exit_descriptor();
        result
    }

    fn serve_backend(
        &self,
        listener: &UnixListener,
        backend: &Arc<Backend>,
        memory: AtomicMemory,
    ) -> Result<(), String> {
        let listener = listener.try_clone().map_err(|error| error.to_string())?;
        let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(backend), memory)
            .map_err(|error| error.to_string())?;
        if self.direct_kicks {
            // One worker serves all queues.
            daemon.get_epoll_handlers().iter().for_each(|worker| backend.hand_over_from(worker));
        }
        daemon.start(&mut Listener::from(listener)).map_err(|error| error.to_string())?;
        self.metrics.connections.add(1);
        self.metrics.connected.set(true);
        tracing::info!(socket = %self.shared.path.display(), "a guest's machine connected");
        *self.shared.connection() = daemon.shutdown_handle();
        if self.shared.stopping() {
            // The request to stop may have come before there was a connection to end.
            daemon.request_shutdown();
        }
        let result = daemon.wait();
        *self.shared.connection() = None;
        drop(daemon);
        self.metrics.connected.set(false);
        tracing::info!(socket = %self.shared.path.display(), "a guest's machine disconnected");
        match result {
            Err(vhost_user_backend::Error::HandleRequest(
                vhost::vhost_user::Error::Disconnected | vhost::vhost_user::Error::PartialMessage,
            ))
            | Ok(()) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}
