//! Files of a volume.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use ringfort_guest::{Attributes, Error, File, FileKind, Open, Place, SetAttributes, SetTime, Volume};

use super::{Draft, Look, Side, Source, Stretch, beside};

impl Source for File {
    fn read_at(&mut self, buffer: &mut [u8], offset_bytes: u64) -> Result<usize> {
        Ok(File::read_at(self, buffer, offset_bytes)?)
    }

    fn stretch(&mut self, offset_bytes: u64) -> Result<Stretch> {
        let Some(start) = self.seek_data(offset_bytes)? else {
            return Ok(Stretch::End { size_bytes: self.stat()?.size_bytes });
        };
        Ok(Stretch::Data(start..self.seek_hole(start)?.unwrap_or(u64::MAX)))
    }

    fn in_volume(&self) -> Option<&File> {
        Some(self)
    }
}

/// A file without a name, which is gone when this client is.
struct Writing<'a> {
    volume: &'a Volume,
    file: File,
    path: PathBuf,
}

impl Draft for Writing<'_> {
    fn write_at(&mut self, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        Ok(self.file.write_at(bytes, offset_bytes)?)
    }

    fn has_holes(&self) -> bool {
        true
    }

    fn in_volume(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn finish(self: Box<Self>, size_bytes: u64, look: &Look) -> Result<()> {
        self.file.set_size(size_bytes)?;
        dress(self.volume, (&self.file).into(), look)?;
        match self.volume.link(&self.file, &self.path) {
            Err(Error::Refused { errno: libc::EEXIST, .. }) => {}
            linked => return Ok(linked?),
        }
        let (_, other) = beside(&self.path);
        self.volume.link(&self.file, &other)?;
        Ok(replace(self.volume, &other, &self.path)?)
    }
}

/// Renames; what cannot be renamed is removed.
fn replace(volume: &Volume, from: &Path, to: &Path) -> Result<(), Error> {
    volume.rename(from, to).inspect_err(|_| {
        let _ = volume.remove_file(from);
    })
}

fn dress(volume: &Volume, place: Place<'_>, look: &Look) -> Result<(), Error> {
    if let Some((uid, gid)) = look.owner {
        match volume.set_attributes(place, &SetAttributes::new().uid(uid).gid(gid)) {
            // Only root gives files away: others' copies are their own.
            Err(Error::Refused { errno: libc::EPERM, .. }) => {}
            changed => drop(changed?),
        }
    }
    let change = SetAttributes::new().permissions(look.permissions);
    let change = match look.times {
        Some((accessed, modified)) => change.accessed(SetTime::At(accessed)).modified(SetTime::At(modified)),
        None => change,
    };
    volume.set_attributes(place, &change).map(drop)
}

impl Side for Volume {
    fn attributes(&self, path: &Path, follow: bool) -> Result<Option<Attributes>> {
        let place = Place::from(path);
        match self.stat(if follow { place } else { place.no_follow() }) {
            Ok(found) => Ok(Some(found)),
            Err(Error::Refused { errno: libc::ENOENT, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn names(&self, directory: &Path) -> Result<Vec<OsString>> {
        Ok(self.list(directory)?.into_iter().map(|entry| OsString::from_vec(entry.name)).collect())
    }

    fn read_link(&self, path: &Path) -> Result<PathBuf> {
        Ok(OsStr::from_bytes(&Volume::read_link(self, path)?).into())
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Source>> {
        Ok(Box::new(Volume::open(self, path, Open::to_read())?))
    }

    fn begin(&self, path: &Path) -> Result<Box<dyn Draft + '_>> {
        if let Some(found) = self.attributes(path, false)?
            && !matches!(found.kind, FileKind::Regular | FileKind::Symlink)
        {
            bail!("write {}: it is a {:?}, which no file replaces", path.display(), found.kind);
        }
        let (directory, _) = beside(path);
        let file = Volume::open(self, &directory, Open::temporary(0o600))?;
        Ok(Box::new(Writing { volume: self, file, path: path.to_owned() }))
    }

    fn make_directory(&self, path: &Path) -> Result<()> {
        match self.create_directory(path, 0o700) {
            Err(Error::Refused { errno: libc::EEXIST, .. })
                if self.stat(path).is_ok_and(|found| found.kind == FileKind::Directory) =>
            {
                Ok(())
            }
            made => Ok(made?),
        }
    }

    fn finish_directory(&self, path: &Path, look: &Look) -> Result<()> {
        Ok(dress(self, path.into(), look)?)
    }

    fn make_symlink(&self, target: &Path, path: &Path) -> Result<()> {
        let (_, other) = beside(path);
        self.symlink(target, &*other)?;
        Ok(replace(self, &other, path)?)
    }
}
