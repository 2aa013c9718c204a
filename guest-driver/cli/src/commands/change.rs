//! `rf mkdir`, `rf rm`, `rf mv`, `rf ln`, `rf touch`, `rf chmod` and `rf chown`

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use ringfort_guest::{Attributes, Error, FileKind, Open, Place, RenameMode, SetAttributes, SetTime, Volume};

use super::copy::{destination, split, umask};
use crate::mode::{Mode, Owner};

fn is(error: &Error, errno: i32) -> bool {
    matches!(error, Error::Refused { errno: found, .. } if *found == errno)
}

pub fn make_directories(volume: &Volume, paths: &[PathBuf], parents: bool) -> Result<()> {
    let permissions = 0o777 & !umask();
    for path in paths {
        if !parents {
            volume.create_directory(path, permissions)?;
            continue;
        }
        let mut above: Vec<_> = path.ancestors().filter(|above| above.file_name().is_some()).collect();
        above.reverse();
        for path in above {
            match volume.create_directory(path, permissions) {
                Err(error)
                    if is(&error, libc::EEXIST)
                        && volume.stat(path).is_ok_and(|found| found.kind == FileKind::Directory) => {}
                made => made?,
            }
        }
    }
    Ok(())
}

/// What is removed besides files.
#[derive(Clone, Copy, Debug)]
pub struct Removing {
    pub empty_directories: bool,
    pub recursive: bool,
    pub force: bool,
}

pub fn remove(volume: &Volume, paths: &[PathBuf], removing: Removing) -> Result<()> {
    for path in paths {
        // As `rm` does: what would be removed is not what a user means.
        if removing.recursive && path.file_name().is_none() {
            bail!("{} is not removed: name what is in it", path.display());
        }
        match remove_one(volume, path.into(), removing) {
            Err(error) if removing.force && is(&error, libc::ENOENT) => {}
            removed => removed?,
        }
    }
    Ok(())
}

fn remove_one(volume: &Volume, place: Place<'_>, removing: Removing) -> Result<(), Error> {
    match volume.remove_file(place) {
        Err(error) if is(&error, libc::EISDIR) && removing.recursive => remove_tree(volume, place),
        Err(error) if is(&error, libc::EISDIR) && removing.empty_directories => {
            volume.remove_directory(place)
        }
        removed => removed,
    }
}

/// From an open directory, so that nobody who moves directories meanwhile leads this elsewhere.
fn remove_tree(volume: &Volume, place: Place<'_>) -> Result<(), Error> {
    let directory = volume.open(place.no_follow(), Open::directory())?;
    for entry in volume.list(directory.at("."))? {
        let entry_place = directory.at(&entry.name[..]);
        match entry.kind {
            FileKind::Directory => remove_tree(volume, entry_place)?,
            _ => volume.remove_file(entry_place)?,
        }
    }
    directory.close()?;
    volume.remove_directory(place)
}

pub fn rename(volume: &Volume, paths: &[PathBuf], no_replace: bool) -> Result<()> {
    let (from, to) = split(paths)?;
    let mode = if no_replace { RenameMode::NoReplace } else { RenameMode::Replace };
    for path in from {
        let to = destination(volume, path, to, from.len() > 1)?;
        volume.rename_with(path, &*to, mode)?;
    }
    Ok(())
}

pub fn link(volume: &Volume, target: &Path, path: &Path, symbolic: bool) -> Result<()> {
    let path = destination(volume, target, path, false)?;
    match symbolic {
        true => volume.symlink(target, &path)?,
        false => volume.link(Place::from(target).no_follow(), &path)?,
    }
    Ok(())
}

pub fn touch(volume: &Volume, paths: &[PathBuf]) -> Result<()> {
    let now = SetAttributes::new().accessed(SetTime::Now).modified(SetTime::Now);
    for path in paths {
        match volume.set_attributes(path, &now) {
            Err(error) if is(&error, libc::ENOENT) => {
                volume.open(path, Open::to_write().create(0o666 & !umask()))?.close()?;
            }
            touched => drop(touched?),
        }
    }
    Ok(())
}

pub fn set_mode(volume: &Volume, mode: &Mode, paths: &[PathBuf], recursive: bool) -> Result<()> {
    let change = |found: &Attributes| {
        let permissions = mode.apply(found.permissions, found.kind == FileKind::Directory);
        SetAttributes::new().permissions(permissions)
    };
    // A symbolic link has no permissions of its own.
    let wanted = |found: &Attributes| found.kind != FileKind::Symlink;
    paths.iter().try_for_each(|path| set(volume, path.into(), recursive, &wanted, &change))
}

pub fn set_owner(volume: &Volume, owner: Owner, paths: &[PathBuf], recursive: bool) -> Result<()> {
    let change = |_: &Attributes| {
        let change = SetAttributes::new();
        let change = owner.uid.map_or(change, |uid| change.uid(uid));
        owner.gid.map_or(change, |gid| change.gid(gid))
    };
    paths.iter().try_for_each(|path| set(volume, path.into(), recursive, &|_| true, &change))
}

/// Changes what is at a place: what a symbolic link leads to where a user named it, the link itself where it was found in a directory.
fn set(
    volume: &Volume,
    place: Place<'_>,
    recursive: bool,
    wanted: &dyn Fn(&Attributes) -> bool,
    change: &dyn Fn(&Attributes) -> SetAttributes,
) -> Result<()> {
    let found = volume.stat(place)?;
    if recursive && found.kind == FileKind::Directory {
        let directory = volume.open(place, Open::directory())?;
        for entry in volume.list(directory.at("."))? {
            let entry_place = directory.at(OsStr::from_bytes(&entry.name)).no_follow();
            set(volume, entry_place, recursive, wanted, change)?;
        }
    }
    if wanted(&found) {
        volume.set_attributes(place, &change(&found))?;
    }
    Ok(())
}
