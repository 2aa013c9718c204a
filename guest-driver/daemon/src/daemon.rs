//! The daemon: keeps the connection to the server, and serves clients.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::{FlockOperation, flock};

use crate::arguments::Arguments;
use crate::client;
use crate::holdings::{Bounds, Holdings};
use crate::invitation;
use crate::link::{Dialler, Link, Notice, Vsock};
use crate::pages::Store;
use crate::peer;
use crate::region;

/// From one try to reach the server to the next: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(3);

/// How often to look whether to stop.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Clients that are served at a time.
const CLIENT_COUNT_MAX: usize = 256;

/// What threads of the daemon share.
struct Daemon {
    holdings: Holdings,
    clients: AtomicU32,
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
    let bounds = Bounds {
        memory_bytes_max: arguments.memory_max_mib << 20,
        user_memory_bytes_max: arguments.user_memory_max_mib << 20,
    };
    let daemon = Arc::new(Daemon { holdings: Holdings::new(store, bounds), clients: AtomicU32::new(0) });
    // What is wrong with the mount or the invitation is said at once; what the server lacks may come.
    invitation::find(arguments.mount.as_deref())?;
    let socket = listen(&arguments.socket)?;
    let accepting = Arc::clone(&daemon);
    std::thread::Builder::new().name("clients".to_owned()).spawn(move || accepting.accept(&socket))?;
    daemon.keep_linked(arguments.mount.as_deref(), &(Arc::new(Vsock) as Arc<dyn Dialler>), &stop);
    daemon.holdings.end();
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
                    client::serve(&daemon.holdings, &stream, &peer);
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
        match region::prove_again(link, region, &pages, self.holdings.store().page_shift()) {
            Ok(()) => {
                tracing::info!(region, "the machine was stopped and goes on: the region was proved again")
            }
            Err(error) => {
                tracing::warn!(region, %error, "a region could not be proved again: its client has to begin anew");
                self.holdings.hang_up_on(region);
            }
        }
    }
}
