//! Doorbells: how the client wakes the server and is woken.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::error::Error;

/// The longest sleep: whoever waits longer looks meanwhile whether the server is still there.
pub const LONGEST_SLEEP: Duration = Duration::from_millis(500);

/// Both directions of a ring's doorbell.
pub struct Bell {
    /// On the server's own host: an event that the server watches.
    event: Option<OwnedFd>,
    /// Where the server puts a byte for every ring, and without an event the client, too.
    stream: OwnedFd,
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
    /// On the server's own host: the client rings by `event`, the server through the socket that `stream` is the other end of.
    pub fn of_event(event: OwnedFd, stream: OwnedFd) -> Result<Self, Error> {
        Self::new(Some(event), stream)
    }

    /// A connection on which every byte, either way, is one ring.
    pub fn of_connection(stream: OwnedFd) -> Result<Self, Error> {
        Self::new(None, stream)
    }

    fn new(event: Option<OwnedFd>, stream: OwnedFd) -> Result<Self, Error> {
        // The longest sleep, which is the usual one, is then one system call: to receive.
        rustix::io::ioctl_fionbio(&stream, false)
            .and_then(|()| set_socket_timeout(&stream, Timeout::Recv, Some(LONGEST_SLEEP)))
            .map_err(|errno| Error::system("prepare a doorbell")(errno.into()))?;
        Ok(Self { event, stream })
    }

    /// Wakes the server. One that rings already, or is gone, needs no other ring.
    pub fn ring(&self) {
        let _ = match &self.event {
            Some(event) => rustix::io::write(event, &1u64.to_ne_bytes()),
            None => send(&self.stream, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
        };
    }

    /// Sleeps until the server rings, no longer than `at_most` or the longest sleep, and takes what it rang.
    pub fn sleep(&self, at_most: Duration) -> Result<Woken, Error> {
        let system = |errno: Errno| Error::system("wait for the server")(errno.into());
        let mut flags = RecvFlags::empty();
        if at_most < LONGEST_SLEEP {
            let timeout = Timespec { tv_sec: 0, tv_nsec: at_most.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => flags = RecvFlags::DONTWAIT,
                Err(errno) => return Err(system(errno)),
            }
        }
        match recv(&self.stream, &mut [0; 64], flags) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(Woken::Gone),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(Woken::Maybe),
            Err(errno) => Err(system(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    /// A bell, and the server's end of it. Whoever had the descriptor before may not have waited for it.
    fn bell() -> (Bell, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        (Bell::of_connection(ours).unwrap(), theirs)
    }

    #[test]
    fn a_sleep_ends_with_a_ring_that_came_before_it() {
        let (bell, server) = bell();
        for at_most in [SHORT, LONGEST_SLEEP, Duration::MAX] {
            send(&server, &[1, 1], SendFlags::empty()).unwrap();
            assert_eq!(bell.sleep(at_most).unwrap(), Woken::Maybe);
        }
    }

    #[test]
    fn a_sleep_without_a_ring_ends_with_its_time() {
        let (bell, _server) = bell();
        for (at_most, least) in
            [(Duration::ZERO, Duration::ZERO), (SHORT, SHORT), (Duration::MAX, LONGEST_SLEEP)]
        {
            let began = Instant::now();
            assert_eq!(bell.sleep(at_most).unwrap(), Woken::Maybe);
            // The kernel counts such a time in ticks.
            assert!(
                began.elapsed() + Duration::from_millis(10) > least,
                "{:?} of {least:?}",
                began.elapsed()
            );
        }
    }

    #[test]
    fn a_sleeper_hears_that_the_server_is_gone() {
        let (bell, server) = bell();
        drop(server);
        for at_most in [SHORT, LONGEST_SLEEP] {
            assert_eq!(bell.sleep(at_most).unwrap(), Woken::Gone);
        }
        bell.ring();
    }
}
