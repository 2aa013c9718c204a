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
                check_cid(*cid, peer.cid())?;
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

/// All guests of a host, and the host, can reach each of its ports: a machine's is for its own guest.
fn check_cid(expected: u32, found: u32) -> io::Result<()> {
    if found == expected {
        return Ok(());
    }
    let text = format!("CID {found} connected to the port of CID {expected}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::connect;

    use super::*;

    /// Beside the ports that servers take by default.
    const PORT: u32 = 31_062;

    #[test]
    fn a_port_is_for_the_guest_of_its_machine() {
        check_cid(3, 3).unwrap();
        for other in [0, 1, 2, 4, u32::MAX] {
            let error = check_cid(3, other).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains(&format!("CID {other} connected")), "{error}");
        }
    }

    #[test]
    fn a_port_of_the_kernel_s_vsock_is_taken_once_and_a_kernel_without_says_what_to_do() {
        let carrier = Carrier::Vsock { cid: 3 };
        let first = match Listener::guest(&carrier, PORT, 4) {
            Ok(first) => first,
            Err(error) => {
                assert!(matches!(error, EndpointError::NoVsock { cid: 3, port: PORT }), "{error}");
                let text = error.to_string();
                assert!(text.contains("vhost_vsock") && text.contains("vsock-unix"), "{text}");
                return;
            }
        };
        match Listener::guest(&Carrier::Vsock { cid: 4 }, PORT, 4) {
            Err(EndpointError::Vsock { cid: 4, source, .. }) => {
                assert_eq!(source.kind(), io::ErrorKind::AddrInUse);
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("two machines have one port"),
        }
        drop(first);
        Listener::guest(&carrier, PORT, 4).unwrap();
    }

    #[test]
    fn connections_of_another_cid_are_refused() {
        const LOOPBACK: u32 = libc::VMADDR_CID_LOCAL;
        let dial = |port| -> nix::Result<OwnedFd> {
            let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            connect(socket.as_raw_fd(), &VsockAddr::new(LOOPBACK, port))?;
            Ok(socket)
        };
        if !Path::new("/sys/module/vsock_loopback").exists() {
            eprintln!("skipped: this kernel has no vsock between processes of one host; load vsock_loopback");
            return;
        }
        for (cid, admitted) in [(LOOPBACK, true), (3, false)] {
            let port = PORT + 1 + cid;
            let listener = Listener::guest(&Carrier::Vsock { cid }, port, 4).unwrap();
            let _client = dial(port).unwrap();
            assert_eq!(listener.accept().is_ok(), admitted, "CID {cid} is expected");
        }
    }
}
