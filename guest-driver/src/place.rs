//! Where in the volume a call is about.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A path, from the root of the volume or from an open directory ([`File::at`](crate::File::at)); or an open file itself. Made of whatever is a path, and of
/// `&File`.
///
/// A symbolic link at the end of the path is followed, unless [`no_follow`](Self::no_follow) says otherwise, or the call is about names, as removing is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// 0 for the root.
    pub(crate) handle: u64,
    /// What the handle was opened as. For errors.
    pub(crate) base: &'a [u8],
    pub(crate) path: &'a [u8],
    pub(crate) follow: bool,
}

impl Place<'static> {
    /// What a chain of commands has opened.
    pub(crate) const OPENED: Self =
        Self { handle: 0, base: b"(opened by this chain)", path: &[], follow: true };
}

impl<'a> Place<'a> {
    /// Any bytes but zero may be in a path.
    pub fn bytes(path: &'a [u8]) -> Self {
        Self { handle: 0, base: &[], path, follow: true }
    }

    /// The same, but where a symbolic link is at the end of the path, it is itself what is meant.
    #[must_use]
    pub fn no_follow(self) -> Self {
        Self { follow: false, ..self }
    }

    /// For errors.
    pub(crate) fn shown(&self) -> String {
        let [base, path] = [self.base, self.path].map(String::from_utf8_lossy);
        match (&*base, &*path) {
            ("", path) => path.to_owned(),
            (base, "") => base.to_owned(),
            (_, path) if path.starts_with('/') => path.to_owned(),
            (base, path) => format!("{}/{path}", base.trim_end_matches('/')),
        }
    }
}

impl<'a> From<&'a str> for Place<'a> {
    fn from(path: &'a str) -> Self {
        Self::bytes(path.as_bytes())
    }
}

impl<'a> From<&'a String> for Place<'a> {
    fn from(path: &'a String) -> Self {
        Self::bytes(path.as_bytes())
    }
}

impl<'a> From<&'a [u8]> for Place<'a> {
    fn from(path: &'a [u8]) -> Self {
        Self::bytes(path)
    }
}

impl<'a> From<&'a CStr> for Place<'a> {
    fn from(path: &'a CStr) -> Self {
        Self::bytes(path.to_bytes())
    }
}

impl<'a> From<&'a OsStr> for Place<'a> {
    fn from(path: &'a OsStr) -> Self {
        Self::bytes(path.as_bytes())
    }
}

impl<'a> From<&'a Path> for Place<'a> {
    fn from(path: &'a Path) -> Self {
        path.as_os_str().into()
    }
}

impl<'a> From<&'a PathBuf> for Place<'a> {
    fn from(path: &'a PathBuf) -> Self {
        path.as_os_str().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_show_where_a_path_began() {
        let shown = |base: &str, path: &str| {
            Place { handle: 1, base: base.as_bytes(), path: path.as_bytes(), follow: true }.shown()
        };
        assert_eq!(shown("", "/a/b"), "/a/b");
        assert_eq!(shown("/a", ""), "/a");
        assert_eq!(shown("/a/", "b"), "/a/b");
        assert_eq!(shown("/a", "/b"), "/b");
    }
}
