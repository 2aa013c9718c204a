//! What can go wrong, and what to do then.

use std::io;
use std::path::PathBuf;

use ringfort_protocol::control::message::{MessageError, Reason};

/// A call that failed. What it says of itself is all: a cause is told in it, and is not its source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an error number of Linux.
    #[error("{operation} {path}: {}", io::Error::from_raw_os_error(*errno))]
    Refused { operation: &'static str, path: String, errno: i32 },
    /// The server did not begin, or ended, the channel, and said why.
    #[error("the server refuses: {text}")]
    Ended { reason: Option<Reason>, text: String },
    #[error(
        "connect to {path}: {cause}; is `ringfort serve` (in a guest: `ringfort-guestd`) running with this socket, and may this user connect?"
    )]
    Connect { path: PathBuf, cause: io::Error },
    #[error("{tried}: {cause}")]
    System { tried: &'static str, cause: io::Error },
    /// The server said something that is not in the protocol.
    #[error("the server said what this library does not understand: {found}")]
    Protocol { found: String },
    /// The call was given up. What it asked for may have been done.
    #[error("the server has not answered within the time that was set")]
    TimedOut,
    /// A child of the process that connected.
    #[error("this process was forked from the one that connected; connect anew")]
    Forked,
    /// More than a call takes.
    #[error("{operation}: {found}; at most {most} are taken at a time")]
    TooLong { operation: &'static str, found: usize, most: usize },
    /// A batch with more commands, or more data, than a ring has room for.
    #[error(
        "a batch of {found} commands; at most {most} are submitted together, with at most `Options::call_bytes_max` of data"
    )]
    TogetherTooLong { found: usize, most: usize },
    /// As many queues are in use as were asked for, or the server gives no more rings.
    #[error(
        "no ring is left for a queue; connect with `Options::queues` as large as queues are wanted at a time"
    )]
    NoQueueLeft,
    /// A buffer that a command uses, or that another queue has made.
    #[error("a shared buffer that {found}")]
    Buffer { found: &'static str },
}

impl Error {
    /// The error number of Linux that says it best.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused { errno, .. } => *errno,
            Self::Connect { cause, .. } | Self::System { cause, .. } => {
                cause.raw_os_error().unwrap_or(libc::EIO)
            }
            Self::Ended { .. } => libc::ENOTCONN,
            Self::Protocol { .. } => libc::EPROTO,
            Self::TooLong { .. } | Self::TogetherTooLong { .. } => libc::E2BIG,
            Self::NoQueueLeft => libc::EMFILE,
            Self::Buffer { .. } => libc::EBUSY,
            Self::TimedOut => libc::ETIMEDOUT,
            Self::Forked => libc::ECHILD,
        }
    }

    pub(crate) fn gone() -> Self {
        Self::Ended { reason: None, text: "the server is gone".to_owned() }
    }

    pub(crate) fn system(tried: &'static str) -> impl Fn(io::Error) -> Self {
        move |cause| Self::System { tried, cause }
    }
}

impl From<MessageError> for Error {
    fn from(error: MessageError) -> Self {
        Self::Protocol { found: error.to_string() }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = || io::Error::from_raw_os_error(libc::ENOENT);
        let errors =
            [Error::Connect { path: "/none".into(), cause: cause() }, Error::system("share")(cause())];
        for error in errors {
            assert!(error.to_string().contains("No such file") && error.source().is_none(), "{error}");
            assert_eq!(error.errno(), libc::ENOENT);
        }
    }
}
