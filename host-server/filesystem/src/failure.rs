//! Why an operation fails, on the way to the one place where it becomes an error number.

use std::cell::Cell;
use std::time::Duration;

use ringfort_store::error::{ErrorKind, StoreError};
use ringfort_store::format::filesystem::ValueError;

use crate::errno::Errno;

/// An answer that the caller deserves, or a store that failed.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused(Errno),
    Store(Box<StoreError>),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl Failure {
    /// A value of the volume that makes no sense.
    pub(crate) fn damaged(
        operation: impl Into<Box<str>>,
        place: impl Into<Box<str>>,
        error: &ValueError,
    ) -> Self {
        Self::inconsistent(operation, place, error.to_string())
    }

    /// Facts of the volume that contradict each other.
    pub(crate) fn inconsistent(
        operation: impl Into<Box<str>>,
        place: impl Into<Box<str>>,
        found: impl Into<Box<str>>,
    ) -> Self {
        StoreError::new(ErrorKind::Damaged, operation, place, found).advice("check the volume offline").into()
    }
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Logs store errors with their full text, at most [`ErrorLog::BURST`] of them in [`ErrorLog::WINDOW`]: a guest that keeps
/// reading a lost block must not fill the log.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog {
    window_start: Cell<Duration>,
    logged: Cell<u32>,
    suppressed: Cell<u64>,
}

impl ErrorLog {
    const BURST: u32 = 10;
    const WINDOW: Duration = Duration::from_secs(10);

    /// The error number for `failure`; `now` is monotonic, `doing` names the operation.
    pub(crate) fn errno(&self, failure: Failure, doing: &str, now: Duration) -> Errno {
        let error = match failure {
            Failure::Refused(errno) => return errno,
            Failure::Store(error) => error,
        };
        let errno = Errno::from(&*error);
        if now >= self.window_start.get() + Self::WINDOW {
            let suppressed = self.suppressed.take();
            if suppressed > 0 {
                tracing::warn!(suppressed, "further failed operations were not logged");
            }
            self.window_start.set(now);
            self.logged.set(0);
        }
        if self.logged.get() < Self::BURST {
            self.logged.set(self.logged.get() + 1);
            match error.kind {
                // A full volume is news, not a fault.
                ErrorKind::NoSpace => tracing::warn!(%errno, operation = doing, "{error}"),
                _ => tracing::error!(%errno, operation = doing, "{error}"),
            }
        } else {
            self.suppressed.set(self.suppressed.get() + 1);
        }
        errno
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_store_errors_is_counted_not_logged() {
        let log = ErrorLog::default();
        for _ in 0..100 {
            let failure = Failure::inconsistent("read", "inode 7", "nothing");
            assert_eq!(log.errno(failure, "read", Duration::from_secs(20)), Errno::EIO);
        }
        assert_eq!(log.suppressed.get(), u64::from(100 - ErrorLog::BURST));
        log.errno(Failure::inconsistent("read", "inode 7", "nothing"), "read", Duration::from_secs(30));
        assert_eq!((log.suppressed.get(), log.logged.get()), (0, 1));
    }

    #[test]
    fn a_refusal_keeps_its_number() {
        let log = ErrorLog::default();
        assert_eq!(log.errno(Errno::ENOTEMPTY.into(), "rmdir", Duration::ZERO), Errno::ENOTEMPTY);
    }
}
