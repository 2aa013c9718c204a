//! The two sides that files are copied between: this machine and a volume.
//!
//! Modules, lowest first: `stream` · `host` · `volume`

mod host;
mod stream;
mod volume;

use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ringfort_guest::{Attributes, File, Timestamp};

pub use host::Host;
pub use stream::{StandardInput, StandardOutput};

/// What a file has from somewhere on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// The next data, which a hole may precede. They may end earlier where the file does.
    Data(Range<u64>),
    /// Nothing but a hole, up to the end of the file.
    End { size_bytes: u64 },
}

/// A file that is read.
pub trait Source {
    /// Fills the buffer, but for the end of the file. Offsets grow.
    fn read_at(&mut self, buffer: &mut [u8], offset_bytes: u64) -> Result<usize>;

    /// What comes from an offset on, where it is known.
    fn stretch(&mut self, offset_bytes: u64) -> Result<Stretch> {
        Ok(Stretch::Data(offset_bytes..u64::MAX))
    }

    /// Where it is one of the volume.
    fn in_volume(&self) -> Option<&File> {
        None
    }
}

/// A file that is written, and has its name only when it is whole. Dropped before that, it leaves nothing.
pub trait Draft {
    fn write_at(&mut self, bytes: &[u8], offset_bytes: u64) -> Result<()>;

    /// Whether what is not written of it is a hole. Else all of it must be, in order.
    fn has_holes(&self) -> bool {
        false
    }

    fn in_volume(&self) -> Option<&File> {
        None
    }

    /// Makes it so long, and so, and gives it its name.
    fn finish(self: Box<Self>, size_bytes: u64, look: &Look) -> Result<()>;
}

/// What a copy is to look like.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub permissions: u32,
    /// Last access, last change.
    pub times: Option<(Timestamp, Timestamp)>,
    /// Where this user may: user, group.
    pub owner: Option<(u32, u32)>,
}

/// Somewhere with files in it.
pub trait Side {
    /// None where there is nothing.
    fn attributes(&self, path: &Path, follow: bool) -> Result<Option<Attributes>>;

    fn names(&self, directory: &Path) -> Result<Vec<OsString>>;

    fn read_link(&self, path: &Path) -> Result<PathBuf>;

    fn open(&self, path: &Path) -> Result<Box<dyn Source>>;

    fn begin(&self, path: &Path) -> Result<Box<dyn Draft + '_>>;

    /// For this user alone until [`finish_directory`](Self::finish_directory).
    fn make_directory(&self, path: &Path) -> Result<()>;

    fn finish_directory(&self, path: &Path, look: &Look) -> Result<()>;

    /// In place of what has the name, unless it is a directory.
    fn make_symlink(&self, target: &Path, path: &Path) -> Result<()>;
}

/// Where a file is, and a name beside it that nobody uses.
fn beside(path: &Path) -> (PathBuf, PathBuf) {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    // Not made of the name: one of 255 bytes would leave no room for more.
    let chance = RandomState::new().hash_one(path);
    let other = directory.join(format!(".rf-{}-{chance:x}", std::process::id()));
    (directory, other)
}
