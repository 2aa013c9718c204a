//! The only place where failures become Linux error numbers.

use ringfort_store::error::{ErrorKind, StoreError};

/// A Linux error number, as a guest sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errno {
    ($($name:ident)*) => {
        #[allow(missing_docs)]
        impl Errno {
            $(pub const $name: Errno = Errno(libc::$name);)*

            /// The symbolic name, or the number where it is none of ours.
            pub fn name(self) -> String {
                match self {
                    $(Errno::$name => stringify!($name).to_owned(),)*
                    Errno(other) => format!("errno {other}"),
                }
            }
        }
    };
}

errno! {
    E2BIG EACCES EAGAIN EBADF EBUSY ECANCELED EDEADLK EEXIST EFAULT EFBIG EINTR EINVAL EIO EISDIR ELOOP EMFILE EMLINK ENAMETOOLONG ENFILE ENODATA
    ENODEV ENOENT ENOLCK ENOMEM ENOSPC ENOSYS ENOTDIR ENOTEMPTY ENXIO EOPNOTSUPP EOVERFLOW EPERM EPROTO ERANGE EROFS ESTALE EXDEV
}

impl Errno {
    /// The positive number.
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl std::error::Error for Errno {}

impl From<&StoreError> for Errno {
    fn from(error: &StoreError) -> Self {
        match error.kind {
            ErrorKind::NoSpace => Errno::ENOSPC,
            ErrorKind::Invalid => Errno::EINVAL,
            ErrorKind::NotFound
            | ErrorKind::Exists
            | ErrorKind::Busy
            | ErrorKind::Damaged
            | ErrorKind::Unavailable
            | ErrorKind::Device
            | ErrorKind::Incompatible => Errno::EIO,
        }
    }
}
