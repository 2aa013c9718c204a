//! The other end of a Unix socket, as the kernel knows it: who it is, and whether it has read what was said to it.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::control::Peer;

/// As many groups as Linux gives a process.
const GROUP_COUNT_MAX: usize = 65_536;

/// The identity that the other side had when it connected.
pub fn of(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = getsockopt(stream, PeerCredentials)?;
    Ok(Peer { uid: credentials.uid(), gid: credentials.gid(), groups: groups(stream)? })
}

fn groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let mut len_bytes = size_of_val(&groups[..]) as libc::socklen_t;
        // SAFETY: the kernel writes at most `len_bytes` bytes, which is how long `groups` is, and any bytes are numbers.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len_bytes,
            )
        };
        let count = len_bytes as usize / size_of::<u32>();
        match result {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            _ => match io::Error::last_os_error() {
                // Too little room, and the kernel says how much is needed.
                _ if count > groups.len() && count <= GROUP_COUNT_MAX => {
                    groups.resize(count, 0);
                }
                error => return Err(error),
            },
        }
    }
}

/// Whether the other end has read everything. True as well where a socket cannot tell.
pub fn has_read_all(stream: &impl AsRawFd) -> bool {
    let mut unread: libc::c_int = 0;
    // SAFETY: the kernel writes one integer, for which there is room.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
    result != 0 || unread == 0
}

/// Whether one of both ends has hung up, and nothing is left to be read.
pub fn has_hung_up(stream: &UnixStream) -> bool {
    let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    !matches!(recv(stream, &mut [0; 1], look), Ok((1.., _)) | Err(Errno::AGAIN | Errno::INTR))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn what_the_other_end_has_not_read_is_known() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        assert!(has_read_all(&one));
        one.write_all(b"word").unwrap();
        assert!(!has_read_all(&one));
        other.read_exact(&mut [0; 4]).unwrap();
        assert!(has_read_all(&one) && !has_hung_up(&one));
        other.write_all(b"last").unwrap();
        drop(other);
        assert!(!has_hung_up(&one), "something is to be read");
        one.read_exact(&mut [0; 4]).unwrap();
        assert!(has_hung_up(&one));
    }

    #[test]
    fn the_other_end_is_who_runs_this_test() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = of(&one).unwrap();
        let mut own: Vec<u32> = nix::unistd::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        let mut found = peer.groups.clone();
        own.sort_unstable();
        found.sort_unstable();
        assert_eq!((peer.uid, peer.gid), (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()));
        assert_eq!(found, own);
    }
}
