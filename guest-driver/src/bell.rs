//! Doorbells: how the client wakes the server and is woken.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::error::Error;

/// Both directions of a ring's doorbell.
pub enum Bell {
    /// On the server's own host: an event that the server watches, and a socket into which it puts a byte.
    Descriptors { doorbell: OwnedFd, wake: OwnedFd },
    /// A connection on which every byte, either way, is one ring.
    Connection(OwnedFd),
}

/// What a sleep ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Rung, interrupted, or the time is over.
    Maybe,
    /// Nobody is there to ring any more.
    Gone,
}

impl Bell {
    /// Wakes the server. One that rings already, or is gone, needs no other ring.
    pub fn ring(&self) {
        match self {
            Self::Descriptors { doorbell, .. } => {
                let _ = rustix::io::write(doorbell, &1u64.to_ne_bytes());
            }
            Self::Connection(stream) => {
                let _ = send(stream, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
        }
    }

    /// Sleeps until the server rings, and takes what it rang.
    pub fn sleep(&self, at_most: Duration) -> Result<Woken, Error> {
        let system = |errno: rustix::io::Errno| Error::system("wait for the server")(errno.into());
        let (Self::Descriptors { wake, .. } | Self::Connection(wake)) = self;
        let timeout = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: at_most.subsec_nanos().into() };
        match poll(&mut [PollFd::new(wake, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(system(errno)),
        }
        let mut rings = [0; 64];
        match recv(wake.as_fd(), &mut rings, RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => Ok(Woken::Gone),
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Woken::Maybe),
            Err(errno) => Err(system(errno)),
        }
    }
}
