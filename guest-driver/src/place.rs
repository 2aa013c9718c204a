//! Where in the volume a call is about.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path, from the root of the volume or from an open directory ([`File::at`](crate::File::at)). Made of whatever is a path.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// 0 for the root.
    pub(crate) handle: u64,
    pub(crate) path: &'a [u8],
}

impl<'a> Place<'a> {
    /// Any bytes but zero may be in a path.
    pub fn bytes(path: &'a [u8]) -> Self {
        Self { handle: 0, path }
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
