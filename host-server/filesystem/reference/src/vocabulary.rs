//! What calls are made of, and how they fail.

use std::fmt;

/// An error number of Linux.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    E2BIG EACCES EAGAIN EBADF EBUSY ECANCELED EDEADLK EEXIST EFBIG EINTR EINVAL EIO EISDIR ELOOP EMLINK ENAMETOOLONG ENFILE ENODATA ENOENT ENOLCK
    ENOSPC ENOTDIR ENOTEMPTY ENXIO EOPNOTSUPP EPERM ERANGE EROFS ESTALE ETIMEDOUT EXDEV
}

impl Errno {
    /// From the positive number.
    pub const fn of(number: i32) -> Self {
        Self(number)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharacterDevice,
    BlockDevice,
}

/// What becomes of the name that something is renamed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
}

/// The modes of `fallocate(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    Allocate { keep_size: bool },
    PunchHole,
    ZeroRange { keep_size: bool },
    CollapseRange,
    InsertRange,
}

/// Whether an extended attribute may, or must, be there before it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetXattrMode {
    Any,
    Create,
    Replace,
}
