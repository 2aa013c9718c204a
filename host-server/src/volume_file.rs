//! `volume.toml`: where a volume's components are, so that commands need only name the directory.
//!
//! The file is a convenience, never the truth: geometry and membership are on the components' labels.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::size::ByteSize;

pub const FILE_NAME: &str = "volume.toml";

/// Far above what 23 component paths of the longest kind need.
const LEN_BYTES_MAX: u64 = 1 << 20;

const VERSION: u32 = 1;

const HEADING: &str = "# Written by `ringfort volume create`. Paths are relative to this directory.\n";

/// The settings of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeFile {
    version: u32,
    /// Bound of the memory that the volume's maps may take.
    pub memory: ByteSize,
    /// Components that hold columns, by position.
    pub components: Vec<PathBuf>,
    /// Components that hold metadata mirrors only; none where the first columns' components carry them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata_components: Vec<PathBuf>,
}

impl VolumeFile {
    pub fn new(memory: ByteSize, components: Vec<PathBuf>, metadata_components: Vec<PathBuf>) -> Self {
        Self { version: VERSION, memory, components, metadata_components }
    }

    pub fn path(directory: &Path) -> PathBuf {
        directory.join(FILE_NAME)
    }

    /// Reads the settings of the volume in `directory`.
    pub fn load(directory: &Path) -> Result<Self> {
        let path = Self::path(directory);
        let what = || format!("read {}", path.display());
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "no volume in {}: {} does not exist; make one with `ringfort volume create {0} --size SIZE`",
                directory.display(),
                path.display()
            ),
            Err(error) => return Err(error).with_context(what),
        };
        if metadata.len() > LEN_BYTES_MAX {
            bail!("{}: {} bytes, which is no volume file", what(), metadata.len());
        }
        let text = fs::read_to_string(&path).with_context(what)?;
        Self::parse(&text).with_context(what)
    }

    fn parse(text: &str) -> Result<Self> {
        // The version decides what the rest may be, so it is read before anything else is judged.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = toml::from_str(text)?;
        if version != VERSION {
            bail!("version {version} is not known to this ringfort, which knows {VERSION}; use a newer one");
        }
        let file: Self = toml::from_str(text)?;
        if file.components.is_empty() {
            bail!("it lists no components");
        }
        Ok(file)
    }

    /// Every component, columns first, as paths that this process can open.
    pub fn all_components(&self, directory: &Path) -> Vec<PathBuf> {
        self.components.iter().chain(&self.metadata_components).map(|path| directory.join(path)).collect()
    }

    /// Names another component at `position`. Columns come first, as in [`all_components`](Self::all_components).
    pub fn replace_component(&mut self, position: u8, path: PathBuf) -> Result<()> {
        let place =
            self.components.iter_mut().chain(&mut self.metadata_components).nth(usize::from(position));
        *place.with_context(|| format!("{FILE_NAME} lists no component {position}"))? = path;
        Ok(())
    }

    /// Writes the file so that a crash leaves either the whole of it or what was there. The caller holds the directory's
    /// lock.
    pub fn store(&self, directory: &Path) -> Result<()> {
        let path = Self::path(directory);
        let pending = directory.join(".volume.toml.new");
        let text = format!("{HEADING}{}", toml::to_string(self).context("encode volume.toml")?);
        let write = || -> std::io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&pending)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&pending, &path)?;
            File::open(directory)?.sync_all()
        };
        write().with_context(|| format!("write {}", path.display())).inspect_err(|_| {
            let _ = fs::remove_file(&pending);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> VolumeFile {
        VolumeFile::new(
            ByteSize(1 << 30),
            vec!["component-0".into(), "/dev/nvme0n1".into()],
            vec!["/dev/nvme1n1".into()],
        )
    }

    #[test]
    fn what_is_stored_is_loaded_and_relative_paths_follow_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        example().store(directory.path()).unwrap();
        let loaded = VolumeFile::load(directory.path()).unwrap();
        assert_eq!(loaded, example());
        assert_eq!(
            loaded.all_components(Path::new("/volumes/a")),
            [Path::new("/volumes/a/component-0"), Path::new("/dev/nvme0n1"), Path::new("/dev/nvme1n1")]
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "the pending file is gone");
    }

    #[test]
    fn a_directory_without_a_volume_says_how_to_make_one() {
        let directory = tempfile::tempdir().unwrap();
        let error = VolumeFile::load(directory.path()).unwrap_err().to_string();
        assert!(error.contains("ringfort volume create"), "{error}");
    }

    #[test]
    fn later_versions_and_unknown_settings_are_refused() {
        let error = VolumeFile::parse("version = 2\nfuture = true").unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
        let text = "version = 1\nmemory = \"1GiB\"\ncomponents = [\"a\"]\n";
        VolumeFile::parse(text).unwrap();
        assert!(VolumeFile::parse(&format!("{text}compnents = []")).is_err());
        assert!(VolumeFile::parse("version = 1\nmemory = \"1GiB\"\ncomponents = []\n").is_err());
    }
}
