//! Where the socket is, and how to name it to the kernel.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What fits into a socket address, its final NUL left out.
const ADDRESS_BYTES_MAX: usize = 107;

pub fn socket_path(directory: &Path) -> PathBuf {
    directory.join("admin.sock")
}

/// A name for a socket in a directory whose own path may be too long for a socket address. Valid while it lives.
pub struct Address {
    path: PathBuf,
    /// Open while the path goes through its descriptor.
    _directory: Option<File>,
}

impl Address {
    pub fn of(directory: &Path) -> std::io::Result<Self> {
        let path = socket_path(directory);
        if path.as_os_str().len() <= ADDRESS_BYTES_MAX {
            return Ok(Self { path, _directory: None });
        }
        let directory = File::open(directory)?;
        let path = socket_path(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())));
        Ok(Self { path, _directory: Some(directory) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}
