//! Files of this machine.

use std::ffi::OsString;
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ringfort_guest::{Attributes, FileKind, Timestamp};
use rustix::fs::{AtFlags, CWD, SeekFrom, linkat, seek};
use rustix::io::Errno;

use super::{Draft, Look, Side, Source, Stretch, beside};

/// This machine.
pub struct Host;

struct Reading {
    file: File,
    path: PathBuf,
}

impl Source for Reading {
    fn read_at(&mut self, buffer: &mut [u8], _offset_bytes: u64) -> Result<usize> {
        // In order, so that it may be a pipe.
        super::stream::fill(&mut self.file, buffer).with_context(|| format!("read {}", self.path.display()))
    }

    /// Leaves the file where the data begin.
    fn stretch(&mut self, offset_bytes: u64) -> Result<Stretch> {
        let stretch = stretch(&self.file, offset_bytes);
        stretch.with_context(|| format!("look for data in {}", self.path.display()))
    }
}

fn stretch(file: &File, offset_bytes: u64) -> io::Result<Stretch> {
    let start = match seek(file, SeekFrom::Data(offset_bytes)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(Stretch::End { size_bytes: file.metadata()?.len() }),
        // Neither every file nor every file system says.
        Err(Errno::INVAL | Errno::SPIPE | Errno::OPNOTSUPP) => {
            return Ok(Stretch::Data(offset_bytes..u64::MAX));
        }
        Err(errno) => return Err(errno.into()),
    };
    let end = match seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end,
        // Cut off meanwhile: reading finds out.
        Err(Errno::NXIO) => u64::MAX,
        Err(errno) => return Err(errno.into()),
    };
    seek(file, SeekFrom::Start(start))?;
    Ok(Stretch::Data(start..end))
}

/// How the file is reached until it is whole.
enum Until {
    /// It has no name.
    Nameless,
    Named(PathBuf),
    /// A device or a pipe, which is written as it is.
    Itself,
}

struct Writing {
    file: File,
    until: Until,
    path: PathBuf,
}

impl Writing {
    fn open(path: &Path) -> io::Result<Self> {
        // What a symbolic link leads to is what is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            let file = OpenOptions::new().write(true).open(&path)?;
            return Ok(Self { file, until: Until::Itself, path });
        }
        let (directory, other) = beside(&path);
        let nameless =
            OpenOptions::new().write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(directory);
        match nameless {
            Ok(file) => Ok(Self { file, until: Until::Nameless, path }),
            // Not every file system has files without names.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&other)?;
                Ok(Self { file, until: Until::Named(other), path })
            }
            Err(error) => Err(error),
        }
    }

    fn dress(&self, size_bytes: u64, look: &Look) -> io::Result<()> {
        self.file.set_len(size_bytes)?;
        if let Some((uid, gid)) = look.owner {
            allowed(fchown(&self.file, Some(uid), Some(gid)))?;
        }
        self.file.set_permissions(Permissions::from_mode(look.permissions))?;
        match look.times {
            Some(times) => self.file.set_times(file_times(times)),
            None => Ok(()),
        }
    }

    /// Gives it its name.
    fn publish(&mut self) -> io::Result<()> {
        let temporary = match &self.until {
            Until::Itself => return Ok(()),
            Until::Named(other) => other.clone(),
            Until::Nameless => {
                let itself = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let link = |to: &Path| linkat(CWD, &itself, CWD, to, AtFlags::SYMLINK_FOLLOW);
                match link(&self.path) {
                    Err(Errno::EXIST) => {}
                    linked => return Ok(linked?),
                }
                let (_, other) = beside(&self.path);
                link(&other)?;
                self.until = Until::Named(other.clone());
                other
            }
        };
        fs::rename(temporary, &self.path)?;
        self.until = Until::Itself;
        Ok(())
    }
}

impl Draft for Writing {
    fn write_at(&mut self, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        let written = match self.until {
            Until::Itself => io::Write::write_all(&mut self.file, bytes),
            _ => self.file.write_all_at(bytes, offset_bytes),
        };
        written.with_context(|| format!("write {}", self.path.display()))
    }

    fn has_holes(&self) -> bool {
        !matches!(self.until, Until::Itself)
    }

    fn finish(mut self: Box<Self>, size_bytes: u64, look: &Look) -> Result<()> {
        if matches!(self.until, Until::Itself) {
            return Ok(());
        }
        let finished = self.dress(size_bytes, look).and_then(|()| self.publish());
        finished.with_context(|| format!("finish {}", self.path.display()))
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Until::Named(other) = &self.until {
            // Of a file that did not become whole; what keeps it from being removed was said already.
            let _ = fs::remove_file(other);
        }
    }
}

/// Only root gives files away: others' copies are their own.
fn allowed(changed: io::Result<()>) -> io::Result<()> {
    changed.or_else(|error| if error.kind() == ErrorKind::PermissionDenied { Ok(()) } else { Err(error) })
}

fn file_times((accessed, modified): (Timestamp, Timestamp)) -> FileTimes {
    FileTimes::new().set_accessed(accessed.into()).set_modified(modified.into())
}

fn attributes(found: &fs::Metadata) -> Result<Attributes> {
    let kind = match found.mode() & 0o170_000 {
        0o010_000 => FileKind::Fifo,
        0o020_000 => FileKind::CharacterDevice,
        0o040_000 => FileKind::Directory,
        0o060_000 => FileKind::BlockDevice,
        0o100_000 => FileKind::Regular,
        0o120_000 => FileKind::Symlink,
        0o140_000 => FileKind::Socket,
        other => bail!("a file of kind {other:o}"),
    };
    let time = |seconds, nanoseconds: i64| Timestamp { seconds, nanoseconds: nanoseconds as u32 };
    Ok(Attributes {
        node: found.ino(),
        kind,
        permissions: found.mode() & 0o7777,
        link_count: u32::try_from(found.nlink()).unwrap_or(u32::MAX),
        uid: found.uid(),
        gid: found.gid(),
        size_bytes: found.len(),
        sectors: found.blocks(),
        device: 0,
        accessed: time(found.atime(), found.atime_nsec()),
        modified: time(found.mtime(), found.mtime_nsec()),
        changed: time(found.ctime(), found.ctime_nsec()),
    })
}

impl Side for Host {
    fn attributes(&self, path: &Path, follow: bool) -> Result<Option<Attributes>> {
        let found = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
        match found {
            Ok(found) => attributes(&found).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
        }
    }

    fn names(&self, directory: &Path) -> Result<Vec<OsString>> {
        fs::read_dir(directory)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
            .with_context(|| format!("list {}", directory.display()))
    }

    fn read_link(&self, path: &Path) -> Result<PathBuf> {
        fs::read_link(path).with_context(|| format!("read the link {}", path.display()))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Source>> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Box::new(Reading { file, path: path.to_owned() }))
    }

    fn begin(&self, path: &Path) -> Result<Box<dyn Draft + '_>> {
        Ok(Box::new(Writing::open(path).with_context(|| format!("create {}", path.display()))?))
    }

    fn make_directory(&self, path: &Path) -> Result<()> {
        match fs::create_dir(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            made => made.with_context(|| format!("make the directory {}", path.display())),
        }
    }

    fn finish_directory(&self, path: &Path, look: &Look) -> Result<()> {
        let finish = || {
            if let Some((uid, gid)) = look.owner {
                allowed(chown(path, Some(uid), Some(gid)))?;
            }
            fs::set_permissions(path, Permissions::from_mode(look.permissions))?;
            match look.times {
                Some(times) => File::open(path)?.set_times(file_times(times)),
                None => Ok(()),
            }
        };
        finish().with_context(|| format!("finish the directory {}", path.display()))
    }

    fn make_symlink(&self, target: &Path, path: &Path) -> Result<()> {
        let (_, other) = beside(path);
        let made = symlink(target, &other).and_then(|()| {
            fs::rename(&other, path).inspect_err(|_| {
                let _ = fs::remove_file(&other);
            })
        });
        made.with_context(|| format!("make the link {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Look = Look { permissions: 0o640, times: None, owner: None };

    fn names(directory: &Path) -> Vec<OsString> {
        Host.names(directory).unwrap()
    }

    #[test]
    fn a_file_has_its_name_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (old, new) in [(None, "first"), (Some("first"), "second")] {
            let mut draft = Host.begin(&path).unwrap();
            draft.write_at(new.as_bytes(), 0).unwrap();
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), old);
            draft.finish(new.len() as u64, &LOOK).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), new);
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        let mut given_up = Host.begin(&path).unwrap();
        given_up.write_at(b"third", 0).unwrap();
        drop(given_up);
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn data_and_the_holes_around_them_are_found_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = File::create(&path).unwrap();
        file.write_all_at(b"data", 1 << 20).unwrap();
        file.set_len(4 << 20).unwrap();
        let mut source = Host.open(&path).unwrap();
        let Stretch::Data(data) = source.stretch(0).unwrap() else { panic!("no data") };
        assert!(data.start <= 1 << 20 && data.end > 1 << 20, "{data:?}");
        let mut read = vec![1; (data.end - data.start) as usize];
        assert_eq!(source.read_at(&mut read, data.start).unwrap(), read.len());
        assert_eq!(&read[(1 << 20) - data.start as usize..][..5], b"data\0");
        // Where the file system has holes, nothing follows.
        let rest = source.stretch(data.end).unwrap();
        assert!(rest == Stretch::End { size_bytes: 4 << 20 } || data.end >= 4 << 20, "{rest:?}");
    }

    #[test]
    fn a_file_under_another_name_is_removed_when_it_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let named = || {
            let (_, other) = beside(&path);
            let file = File::create(&other).unwrap();
            Box::new(Writing { file, until: Until::Named(other), path: path.clone() })
        };
        drop(named());
        assert!(names(folder.path()).is_empty());
        named().finish(3, &LOOK).unwrap();
        assert_eq!((names(folder.path()), fs::read(&path).unwrap()), (vec!["file".into()], vec![0; 3]));
    }

    #[test]
    fn what_a_link_leads_to_is_replaced_and_devices_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&path, "old").unwrap();
        symlink(&path, &link).unwrap();
        let mut draft = Host.begin(&link).unwrap();
        draft.write_at(b"new", 0).unwrap();
        draft.finish(3, &LOOK).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let mut device = Host.begin("/dev/null".as_ref()).unwrap();
        device.write_at(b"gone", 0).unwrap();
        device.finish(4, &LOOK).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
