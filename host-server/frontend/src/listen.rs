//! Unix sockets to listen on: made with the right mode, found stale or occupied, removed by their owner alone; and how threads that listen are told
//! to stop.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

/// A socket that cannot be listened on: what was tried, on which path, what was found.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("listen on {path}: {found}")]
    Occupied { path: PathBuf, found: &'static str },
    #[error("{tried} {path}: {source}")]
    System { tried: &'static str, path: PathBuf, source: io::Error },
}

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The user of this process.
    Owner,
    /// And its group.
    Group,
}

/// A listening socket that removes its own file when it is dropped.
#[derive(Debug)]
pub struct ListeningSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode number of the file, so that nobody else's is removed.
    identity: (u64, u64),
}

impl ListeningSocket {
    /// Listens on `path`. A socket that nobody listens on any more is replaced; anything else there is refused.
    /// `waiting_max` connections may wait to be accepted.
    pub fn bind(path: &Path, who: Who, waiting_max: i32) -> Result<Self, ListenError> {
        remove_stale(path)?;
        let system = |tried: &'static str| {
            move |source: io::Error| ListenError::System { tried, path: path.to_owned(), source }
        };
        let bind_to = |path: &Path| -> nix::Result<OwnedFd> {
            let descriptor = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            // Linux gives the file the mode of the socket: there is no moment at which others could connect.
            fchmod(&descriptor, Mode::S_IRUSR | Mode::S_IWUSR)?;
            bind(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
            listen(&descriptor, Backlog::new(waiting_max)?)?;
            Ok(descriptor)
        };
        let descriptor = bind_to(path).map_err(|errno| system("listen on")(errno.into()))?;
        if who == Who::Group {
            // Afterwards, and not by the socket's mode: the umask would take the group's part away again.
            let mode = Permissions::from_mode(0o660);
            std::fs::set_permissions(path, mode).map_err(system("open to the group"))?;
        }
        let found = std::fs::metadata(path).map_err(system("look at"))?;
        Ok(Self {
            listener: UnixListener::from(descriptor),
            path: path.to_owned(),
            identity: (found.dev(), found.ino()),
        })
    }

    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        let ours =
            std::fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "the socket could not be removed; remove it by hand");
        }
    }
}

/// Asks a thread that listens to stop, whatever it waits for.
#[derive(Debug)]
pub struct StopSignal {
    requested: AtomicBool,
    wake: EventFd,
}

impl StopSignal {
    pub fn new() -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { requested: AtomicBool::new(false), wake })
    }

    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// From now on nobody waits. `path` is the socket, for the log.
    pub fn request(&self, path: &Path) {
        self.requested.store(true, Ordering::SeqCst);
        if let Err(error) = self.wake.write(1) {
            tracing::error!(socket = %path.display(), %error, "the socket's thread cannot be woken to stop; a second signal exits at once");
        }
    }

    /// Waits for a connection, for a request to stop, or until `timeout`.
    pub fn wait(&self, listener: Option<BorrowedFd<'_>>, timeout: PollTimeout) -> io::Result<()> {
        let mut waiting = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        waiting.extend(listener.map(|listener| PollFd::new(listener, PollFlags::POLLIN)));
        loop {
            match poll(&mut waiting, timeout) {
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Removes a socket that its owner left behind: one that refuses connections.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let occupied = |found| ListenError::Occupied { path: path.to_owned(), found };
    let system = |tried| move |source| ListenError::System { tried, path: path.to_owned(), source };
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("look at")(error)),
    };
    if !found.file_type().is_socket() {
        return Err(occupied("something that is not a socket is there; remove it or choose another path"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(occupied("another process listens there; stop it or choose another path")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(system("remove stale socket"))
        }
        Err(error) => Err(system("probe")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_for_its_owner_or_for_the_group_too() {
        let directory = tempfile::tempdir().unwrap();
        for (who, expected) in [(Who::Owner, 0o600), (Who::Group, 0o660)] {
            let path = directory.path().join("listening.sock");
            let socket = ListeningSocket::bind(&path, who, 1).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, expected);
            drop(socket);
            assert!(!path.exists());
        }
    }

    #[test]
    fn what_its_owner_left_behind_is_replaced_and_what_is_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("listening.sock");
        drop(UnixListener::bind(&path).unwrap());
        let socket = ListeningSocket::bind(&path, Who::Owner, 1).unwrap();
        let error = ListeningSocket::bind(&path, Who::Owner, 1).unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
        // Somebody put another file there: that one stays.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        let error = ListeningSocket::bind(&path, Who::Owner, 1).unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
        drop(socket);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
