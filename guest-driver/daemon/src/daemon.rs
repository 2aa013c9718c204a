//! The daemon: holds the connection to the server, gives memory to clients and takes it back.
//!
//! Pages are given back to the guest only when the server has said that it uses them no more: it has answered Detach, or it has welcomed
//! a later connection, before which it has let go of all of an earlier one.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{FlockOperation, flock};

use crate::arguments::Arguments;
use crate::client;
use crate::invitation;
use crate::link::{Dialler, Link, Notice, Vsock};
use crate::pages::{Pages, Store};
use crate::peer::{self, Peer};
use crate::region;

/// From one try to reach the server to the next: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(3);

/// How often to look whether to stop.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long clients may take to let go when the daemon stops.
const CLIENTS_END_WITHIN: Duration = Duration::from_secs(5);

/// Clients that are served at a time.
const CLIENT_COUNT_MAX: usize = 256;

/// Memory that a client has.
pub struct Grant {
    /// Of the region.
    pub number: u32,
    uid: u32,
    pub pages: Arc<Pages>,
    link: Arc<Link>,
}

/// A region that is in use.
struct Held {
    uid: u32,
    pages: Arc<Pages>,
    client: UnixStream,
}

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    held: HashMap<u32, Held>,
    /// Pages of regions whose end the server has not confirmed.
    retired: Vec<Arc<Pages>>,
}

/// What threads of the daemon share.
pub struct Daemon {
    store: Store,
    memory_bytes_max: u64,
    user_memory_bytes_max: u64,
    numbers: AtomicU32,
    clients: AtomicU32,
    state: Mutex<State>,
}

/// Serves until a signal ends it.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "ringfort-guestd reads physical addresses and the server's secret: run it as root"
    );
    let stop = stop_signal()?;
    let _lock = lock_socket(&arguments.socket)?;
    let store = Store::open(&arguments.pages, arguments.small_pages)?;
    let daemon = Arc::new(Daemon {
        store,
        memory_bytes_max: arguments.memory_max_mib << 20,
        user_memory_bytes_max: arguments.user_memory_max_mib << 20,
        numbers: AtomicU32::new(1),
        clients: AtomicU32::new(0),
        state: Mutex::default(),
    });
    // What is wrong with the mount or the invitation is said at once; what the server lacks may come.
    invitation::find(arguments.mount.as_deref())?;
    let socket = listen(&arguments.socket)?;
    let accepting = Arc::clone(&daemon);
    std::thread::Builder::new().name("clients".to_owned()).spawn(move || accepting.accept(&socket))?;
    daemon.keep_linked(arguments.mount.as_deref(), &(Arc::new(Vsock) as Arc<dyn Dialler>), &stop);
    daemon.end();
    let _ = fs::remove_file(&arguments.socket);
    Ok(())
}

/// Set when a signal asks to stop.
fn stop_signal() -> Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM].into_iter().for_each(|signal| signals.add(signal));
    // Before any thread begins: all of them inherit it.
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

impl Daemon {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The conversation with the server, while there is one.
    pub fn link(&self) -> Option<Arc<Link>> {
        self.state().link.clone()
    }

    /// Pages for a client of this user.
    pub fn grant(&self, peer: &Peer, len_bytes: u64, link: &Arc<Link>, client: &UnixStream) -> Result<Grant> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.check_room(peer.uid, len_bytes)?;
        let pages = Arc::new(self.store.create(&format!("region-{number}"), len_bytes)?);
        let client = client.try_clone().context("keep the connection of a client")?;
        let mut state = self.state();
        // Two clients may have asked at once.
        room(&state, self.memory_bytes_max, self.user_memory_bytes_max, peer.uid, len_bytes)?;
        let is_current = state.link.as_ref().is_some_and(|current| Arc::ptr_eq(current, link));
        ensure!(is_current, "the server is not there; try again when it runs");
        state.held.insert(number, Held { uid: peer.uid, pages: Arc::clone(&pages), client });
        Ok(Grant { number, uid: peer.uid, pages, link: Arc::clone(link) })
    }

    fn check_room(&self, uid: u32, len_bytes: u64) -> Result<()> {
        room(&self.state(), self.memory_bytes_max, self.user_memory_bytes_max, uid, len_bytes)
    }

    /// A client is gone: ends its region, then gives its pages back to the guest.
    pub fn take_back(&self, grant: Grant) {
        let ended = grant.link.detach(grant.number);
        let mut state = self.state();
        state.held.remove(&grant.number);
        if let Err(error) = ended {
            tracing::debug!(region = grant.number, uid = grant.uid, %error, "the end of a region is not confirmed: its pages are kept");
            state.retired.push(grant.pages);
        }
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            let begun = stream.and_then(|stream| {
                let peer = peer::of(&stream)?;
                if self.clients.load(Ordering::Relaxed) as usize >= CLIENT_COUNT_MAX {
                    return Err(std::io::Error::other(format!(
                        "{CLIENT_COUNT_MAX} clients are served already"
                    )));
                }
                let daemon = Arc::clone(self);
                daemon.clients.fetch_add(1, Ordering::Relaxed);
                let serve = move || {
                    client::serve(&daemon, &stream, &peer);
                    daemon.clients.fetch_sub(1, Ordering::Relaxed);
                };
                std::thread::Builder::new().name("client".to_owned()).spawn(serve).inspect_err(|_| {
                    self.clients.fetch_sub(1, Ordering::Relaxed);
                })
            });
            if let Err(error) = begun {
                tracing::warn!(%error, "a client could not be served");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Connects to the server, again whenever the connection ends, until `stop` is set.
    fn keep_linked(&self, mount: Option<&Path>, dialler: &Arc<dyn Dialler>, stop: &AtomicBool) {
        let mut pause = RETRY_FIRST;
        while !stop.load(Ordering::SeqCst) {
            let (sender, notices) = channel();
            let linked = invitation::find(mount)
                .and_then(|invitation| Ok(Link::open(Arc::clone(dialler), &invitation, sender)?));
            match linked {
                Ok(link) => {
                    pause = RETRY_FIRST;
                    tracing::info!("connected to the server");
                    self.begin(&link);
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

    /// The server has let go of everything that earlier connections began.
    fn begin(&self, link: &Arc<Link>) {
        let mut state = self.state();
        state.retired.clear();
        let kept: Vec<_> = state.held.values().map(|held| held.pages.path().to_owned()).collect();
        let kept: Vec<&Path> = kept.iter().map(PathBuf::as_path).collect();
        if let Err(error) = self.store.delete_leftovers(&kept) {
            tracing::warn!("{error:#}: pages of an earlier daemon stay reserved");
        }
        state.link = Some(Arc::clone(link));
    }

    /// Does what the server says, until the connection ends or `stop` is set.
    fn heed(&self, link: &Arc<Link>, notices: &Receiver<Notice>, stop: &AtomicBool) {
        loop {
            match notices.recv_timeout(LOOK_AGAIN) {
                Ok(Notice::Suspended { region }) => self.prove_again(link, region),
                Ok(Notice::Detached { region, text }) => {
                    tracing::warn!(region, text, "the server has ended a region");
                    self.hang_up_on(region);
                }
                Ok(Notice::Ended) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if stop.load(Ordering::SeqCst) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        tracing::warn!("the server has hung up; clients have to begin anew");
        let mut state = self.state();
        state.link = None;
        state.held.values().for_each(|held| {
            let _ = held.client.shutdown(Shutdown::Both);
        });
    }

    fn prove_again(&self, link: &Link, region: u32) {
        let Some(pages) = self.state().held.get(&region).map(|held| Arc::clone(&held.pages)) else { return };
        match region::prove_again(link, region, &pages, self.store.page_shift()) {
            Ok(()) => {
                tracing::info!(region, "the machine was stopped and goes on: the region was proved again")
            }
            Err(error) => {
                tracing::warn!(region, %error, "a region could not be proved again: its client has to begin anew");
                self.hang_up_on(region);
            }
        }
    }

    fn hang_up_on(&self, region: u32) {
        if let Some(held) = self.state().held.get(&region) {
            // Its thread takes back what it had.
            let _ = held.client.shutdown(Shutdown::Both);
        }
    }

    /// Ends every region, so that its pages can be given back.
    fn end(&self) {
        let numbers: Vec<u32> = self.state().held.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.hang_up_on(number));
        let steps = CLIENTS_END_WITHIN.as_millis() / LOOK_AGAIN.as_millis();
        for _ in 0..steps {
            if self.state().held.is_empty() {
                break;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        if let Some(link) = self.link() {
            link.hang_up();
        }
    }
}

fn room(state: &State, most: u64, most_of_user: u64, uid: u32, len_bytes: u64) -> Result<()> {
    let bytes = |of_user: Option<u32>| -> u64 {
        let held = state.held.values().filter(|held| of_user.is_none_or(|uid| held.uid == uid));
        held.map(|held| held.pages.len_bytes()).sum()
    };
    let total = bytes(None);
    ensure!(
        total + len_bytes <= most,
        "{len_bytes} bytes more than the {total} that clients have: at most {most} are shared (--memory-max-mib)"
    );
    let own = bytes(Some(uid));
    ensure!(
        uid == 0 || own + len_bytes <= most_of_user,
        "{len_bytes} bytes more than the {own} that user {uid} has: at most {most_of_user} are (--user-memory-max-mib)"
    );
    Ok(())
}
