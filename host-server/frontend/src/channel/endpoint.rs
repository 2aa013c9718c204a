//! Where clients begin a channel: sockets of this host, and what carries those of guests.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, getpeername, listen, socket,
};
use rustix::net::{SocketFlags, accept_with};

use super::peer;
use crate::listen::{ListenError, ListeningSocket, Who};

/// What carries the connections of one machine's guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The host's kernel has vsock, and the guest is this CID.
    Vsock { cid: u32 },
    /// A device in user space (vhost-device-vsock, say) connects to this path with `_PORT` behind it.
    VsockUnix { path: PathBuf },
}

/// An endpoint that cannot be listened at: what was tried, on what, what was found.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(
        "listen for CID {cid} on vsock port {port}: this kernel has no vsock for hosts; load the module vhost_vsock, or use \
         NAME:vsock-unix=PATH with vhost-device-vsock"
    )]
    NoVsock { cid: u32, port: u32 },
    #[error("{tried} vsock port {port} for CID {cid}: {source}")]
    Vsock { tried: &'static str, cid: u32, port: u32, source: io::Error },
}

/// A socket that listens.
pub enum Listener {
    Unix(ListeningSocket),
    Vsock { socket: OwnedFd, cid: u32 },
}

/// The socket that stands for a port of a machine's vsock.
pub fn port_path(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

impl Listener {
    pub fn unix(path: &Path, backlog: i32) -> Result<Self, ListenError> {
        ListeningSocket::bind(path, Who::Owner, backlog).map(Self::Unix)
    }

    /// Listens on `port`. The host's own ports are shared by all guests: each machine needs one of its own.
    pub fn guest(carrier: &Carrier, port: u32, backlog: i32) -> Result<Self, EndpointError> {
        let cid = match carrier {
            Carrier::VsockUnix { path } => return Ok(Self::unix(&port_path(path, port), backlog)?),
            Carrier::Vsock { cid } => *cid,
        };
        let failed = |tried| {
            move |errno: Errno| match errno {
                Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL => EndpointError::NoVsock { cid, port },
                errno => EndpointError::Vsock { tried, cid, port, source: errno.into() },
            }
        };
        let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .map_err(failed("create a socket for"))?;
        bind(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port)).map_err(failed("bind to"))?;
        let backlog = Backlog::new(backlog).unwrap_or(Backlog::MAXCONN);
        listen(&socket, backlog).map_err(failed("listen on"))?;
        Ok(Self::Vsock { socket, cid })
    }

    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.listener().as_fd(),
            Self::Vsock { socket, .. } => socket.as_fd(),
        }
    }

    /// The connection that waits. A stream is one whatever its family: nothing of it but bytes, descriptors and timeouts is used.
    pub fn accept(&self) -> io::Result<UnixStream> {
        match self {
            Self::Unix(socket) => Ok(socket.listener().accept()?.0),
            Self::Vsock { socket, cid } => {
                let stream = accept_with(socket, SocketFlags::CLOEXEC)?;
                let peer: VsockAddr = getpeername(stream.as_raw_fd())?;
                if peer.cid() != *cid {
                    let text = format!("CID {} connected to the port of CID {cid}", peer.cid());
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
                }
                Ok(stream.into())
            }
        }
    }

    /// What carries a guest's connection must be run by this user or by root: the socket's mode says so, and the kernel is asked.
    pub fn check_carrier(&self, stream: &UnixStream) -> io::Result<()> {
        let Self::Unix(_) = self else { return Ok(()) };
        let uid = peer::of(stream)?.uid;
        if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
            return Ok(());
        }
        let text = format!("user {uid} connected to the socket that stands for a guest's vsock");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }
}
