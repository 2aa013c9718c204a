//! The daemon: keeps the connection to the server, and serves clients.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SigSet, Signal};
use ringfort_protocol::control::message::{Invitation, Kind, Message, NO_RING, Reason};
use rustix::fs::{FlockOperation, flock};

use crate::arguments::Arguments;
use crate::client;
use crate::holdings::{Bounds, Holdings};
use crate::invitation::Search;
use crate::link::{Dialler, Link, Notice, Vsock};
use crate::pages::Store;
use crate::peer;
use crate::region;
use crate::status;
use crate::stream;

/// From one try to reach the server to the next: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(3);

/// How often to look whether to stop.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Clients that are served at a time, and those of one user, root aside.
const CLIENT_COUNT_MAX: usize = 256;
const USER_CLIENT_COUNT_MAX: usize = 64;

/// What threads of the daemon share.
pub(crate) struct Daemon {
    pub(crate) holdings: Holdings,
    /// The users of the clients that are served.
    clients: Mutex<Vec<u32>>,
}

/// Serves until a signal ends it.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "ringfort-guestd reads physical addresses and the server's secret: run it as root"
    );
    let stop = stop_signal()?;
    let _lock = lock_socket(&arguments.socket)?;
    let store = Store::open(&arguments.pages, arguments.small_pages, arguments.memory_max_mib)?;
    let bounds = Bounds {
        memory_bytes_max: arguments.memory_max_mib << 20,
        user_memory_bytes_max: arguments.user_memory_max_mib << 20,
    };
    let daemon = Arc::new(Daemon::new(store, bounds));
    // What is wrong with the mount or the invitation is said at once; what the server lacks may come.
    let search = Arc::new(Search::new(arguments.mount.clone()));
    search.find()?;
    let socket = listen(&arguments.socket)?;
    let accepting = Arc::clone(&daemon);
    std::thread::Builder::new().name("clients".to_owned()).spawn(move || accepting.accept(&socket))?;
    let asked = status::listen(&arguments.socket)?;
    let answering = Arc::clone(&daemon);
    let answer = move || status::serve(&asked, &answering.holdings);
    std::thread::Builder::new().name("status".to_owned()).spawn(answer)?;
    let find = move || search.find();
    daemon.keep_linked(find, &(Arc::new(Vsock) as Arc<dyn Dialler>), &stop);
    daemon.holdings.end();
    let _ = fs::remove_file(&arguments.socket);
    let _ = fs::remove_file(status::socket(&arguments.socket));
    Ok(())
}

/// Set when a signal asks to stop.
fn stop_signal() -> Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM].into_iter().for_each(|signal| signals.add(signal));
    // Before any thread begins: all of them inherit it.
    let mut of_leases = SigSet::empty();
    of_leases.add(Signal::SIGIO);
    of_leases.thread_block().context("hold back a signal")?;
    signals.thread_block().context("hold back signals")?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.wait().is_ok() {
            asked.store(true, Ordering::SeqCst);
        }
    })?;
    Ok(stop)
}

/// Nobody else serves this socket while the file lives.
fn lock_socket(socket: &Path) -> Result<File> {
    let folder = socket.parent().context("a socket has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let path: PathBuf = socket.with_extension("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another ringfort-guestd serves {}: stop it first", socket.display());
    }
    Ok(file)
}

fn listen(path: &Path) -> Result<UnixListener> {
    // Whoever served it is gone: the lock says so.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o666))
        .with_context(|| format!("open {} to everybody", path.display()))?;
    tracing::info!(socket = %path.display(), "clients may connect");
    Ok(listener)
}

/// What `work` returns; none where `stop` is set before.
fn unless_stopped<T: Send + 'static>(
    stop: &AtomicBool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, done) = channel();
    let begun = std::thread::Builder::new().name("search".to_owned()).spawn(move || sender.send(work()));
    if let Err(error) = begun {
        tracing::error!(%error, "no thread could be started");
    }
    while !stop.load(Ordering::SeqCst) {
        match done.recv_timeout(LOOK_AGAIN) {
            Ok(value) => return Some(value),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK_AGAIN),
        }
    }
    None
}

impl Daemon {
    pub(crate) fn new(store: Store, bounds: Bounds) -> Self {
        Self { holdings: Holdings::new(store, bounds), clients: Mutex::default() }
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            if let Err(error) = stream.and_then(|stream| self.begin(stream)) {
                tracing::warn!(%error, "a client could not be served");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Serves a client on a thread of its own, where there is room for one more.
    fn begin(self: &Arc<Self>, stream: UnixStream) -> std::io::Result<()> {
        let peer = peer::of(&stream)?;
        let uid = peer.uid;
        if let Err(text) = self.enter(uid) {
            tracing::debug!(uid, text, "a client was refused");
            let refusal = Message::refuse(Kind::Hello.number(), Reason::Limit, 0, NO_RING, &text);
            // Whoever does not hear it hears the end.
            let _ = stream::say(&stream, &refusal, &[]);
            return Ok(());
        }
        let daemon = Arc::clone(self);
        let serve = move || {
            client::serve(&daemon.holdings, &stream, &peer);
            daemon.leave(uid);
        };
        let begun = std::thread::Builder::new().name("client".to_owned()).spawn(serve);
        begun.inspect_err(|_| self.leave(uid)).map(drop)
    }

    fn clients(&self) -> MutexGuard<'_, Vec<u32>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more client of this user, where it may be served; else why not.
    fn enter(&self, uid: u32) -> Result<(), String> {
        let mut clients = self.clients();
        let own = clients.iter().filter(|other| **other == uid).count();
        if clients.len() >= CLIENT_COUNT_MAX || (uid != 0 && own >= USER_CLIENT_COUNT_MAX) {
            return Err(format!("{} clients are served already, {own} of them of user {uid}", clients.len()));
        }
        clients.push(uid);
        Ok(())
    }

    fn leave(&self, uid: u32) {
        let mut clients = self.clients();
        if let Some(place) = clients.iter().position(|other| *other == uid) {
            clients.swap_remove(place);
        }
    }

    /// Connects to the server, again whenever the connection ends, until `stop` is set.
    pub(crate) fn keep_linked<F>(&self, find: F, dialler: &Arc<dyn Dialler>, stop: &AtomicBool)
    where
        F: Fn() -> Result<Invitation> + Clone + Send + 'static,
    {
        let mut pause = RETRY_FIRST;
        while !stop.load(Ordering::SeqCst) {
            let (sender, notices) = channel();
            // A mount whose server is gone is waited for, for a while.
            let Some(found) = unless_stopped(stop, find.clone()) else { return };
            let linked =
                found.and_then(|invitation| Ok(Link::open(Arc::clone(dialler), &invitation, sender)?));
            match linked {
                Ok(link) => {
                    pause = RETRY_FIRST;
                    tracing::info!("connected to the server");
                    self.holdings.begin(&link);
                    self.heed(&link, &notices, stop);
                }
                Err(error) => {
                    tracing::warn!("{error:#}; trying again");
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(RETRY_MOST);
                }
            }
        }
    }

    /// Does what the server says, until the connection ends or `stop` is set.
    fn heed(&self, link: &Arc<Link>, notices: &Receiver<Notice>, stop: &AtomicBool) {
        loop {
            self.holdings.look_over();
            match notices.recv_timeout(LOOK_AGAIN) {
                Ok(Notice::Suspended { region }) => self.prove_again(link, region),
                Ok(Notice::Detached { region, text }) => {
                    tracing::warn!(region, text, "the server has ended a region");
                    self.holdings.hang_up_on(region);
                }
                Ok(Notice::Ended) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if stop.load(Ordering::SeqCst) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        tracing::warn!("the server has hung up; clients have to begin anew");
        self.holdings.unlink();
    }

    fn prove_again(&self, link: &Link, region: u32) {
        let Some(pages) = self.holdings.pages(region) else { return };
        match region::prove(link, region, &pages, self.holdings.store().page_shift()) {
            Ok(()) => {
                tracing::info!(region, "the machine was stopped and goes on: the region was proved again")
            }
            Err(error) if error.says_unknown() => tracing::debug!(region, "its client has left meanwhile"),
            Err(error) => {
                tracing::warn!(region, %error, "a region could not be proved again: its client has to begin anew");
                self.holdings.hang_up_on(region);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_one_user_leave_room_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let bounds = Bounds { memory_bytes_max: 0, user_memory_bytes_max: 0 };
        let daemon = Daemon::new(Store::pretend(folder.path(), 21), bounds);
        for _ in 0..USER_CLIENT_COUNT_MAX {
            daemon.enter(1000).unwrap();
        }
        assert!(daemon.enter(1000).unwrap_err().contains("1000"));
        daemon.enter(1001).unwrap();
        while daemon.enter(0).is_ok() {}
        assert_eq!(daemon.clients().len(), CLIENT_COUNT_MAX);
        daemon.leave(1000);
        daemon.enter(1000).unwrap();
        assert!(daemon.enter(1001).is_err());
    }

    #[test]
    fn a_search_that_does_not_end_does_not_outlast_a_stop() {
        let stop = Arc::new(AtomicBool::new(false));
        assert_eq!(unless_stopped(&stop, || 7), Some(7));
        let asked = Arc::clone(&stop);
        let (_keep, never) = channel::<()>();
        std::thread::spawn(move || asked.store(true, Ordering::SeqCst));
        assert_eq!(unless_stopped(&stop, move || never.recv()), None);
    }
}
