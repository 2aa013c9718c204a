//! `rf put`, `rf get`, `rf cp` and `rf cat`

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ringfort_guest::{Attributes, File, FileKind, Volume};

use crate::arguments::Copying;
use crate::progress::Progress;
use crate::side::{Draft, Host, Look, Side, Source, StandardInput, StandardOutput, Stretch};

/// Bytes that are copied at a time: one call.
const STEP_BYTES: usize = 1 << 20;

/// A copy under way from one side to another.
struct Copy<'a> {
    from: &'a dyn Side,
    to: &'a dyn Side,
    copying: Copying,
    umask: u32,
    progress: Progress,
    /// Where both sides are one: the directory that is made, which is not to be copied into itself.
    made: Option<u64>,
}

impl<'a> Copy<'a> {
    fn new(from: &'a dyn Side, to: &'a dyn Side, copying: Copying) -> Self {
        let progress = Progress::new(copying.quiet);
        Self { from, to, copying, umask: umask(), progress, made: None }
    }

    fn look(&self, found: &Attributes) -> Look {
        match self.copying.preserve {
            true => Look {
                permissions: found.permissions,
                times: Some((found.accessed, found.modified)),
                owner: Some((found.uid, found.gid)),
            },
            false => Look { permissions: found.permissions & 0o777 & !self.umask, times: None, owner: None },
        }
    }

    /// Whatever is at `from`.
    fn copy(&mut self, from: &Path, to: &Path, follow: bool) -> Result<()> {
        let Some(found) = self.from.attributes(from, follow)? else {
            bail!("copy {}: no such file", from.display())
        };
        match found.kind {
            FileKind::Directory if self.copying.recursive => self.directory(from, to, &found),
            FileKind::Directory => bail!("{} is a directory: -r copies it", from.display()),
            FileKind::Symlink => self.to.make_symlink(&self.from.read_link(from)?, to),
            FileKind::Regular => self.file(from, to, &found),
            // What a user names is read; what is only found is not.
            _ if follow => self.file(from, to, &found),
            kind => {
                eprintln!("rf: {} is left out: a {kind:?}", from.display());
                Ok(())
            }
        }
    }

    fn directory(&mut self, from: &Path, to: &Path, found: &Attributes) -> Result<()> {
        if self.made == Some(found.node) {
            bail!("{} would be copied into itself", from.display());
        }
        let there = self.to.attributes(to, true)?;
        self.to.make_directory(to)?;
        if self.made == Some(0) {
            self.made = self.to.attributes(to, true)?.map(|made| made.node);
        }
        for name in self.from.names(from)? {
            self.copy(&from.join(&name), &to.join(&name), false)?;
        }
        match there {
            Some(_) if !self.copying.preserve => Ok(()),
            _ => self.to.finish_directory(to, &self.look(found)),
        }
    }

    fn file(&mut self, from: &Path, to: &Path, found: &Attributes) -> Result<()> {
        let replaced = self.to.attributes(to, true)?.filter(|there| there.kind == FileKind::Regular);
        let mut look = self.look(found);
        if let (Some(replaced), false) = (replaced, self.copying.preserve) {
            look.permissions = replaced.permissions;
        }
        self.progress.begin(from, found.size_bytes);
        let source = self.from.open(from)?;
        let draft = self.to.begin(to)?;
        pour(source, draft, &look, has_holes(found), &mut self.progress)
    }
}

/// Whether there is less of a file than it is long. Others are not asked where their holes are.
fn has_holes(found: &Attributes) -> bool {
    const SECTOR_BYTES: u64 = 512;
    found.kind == FileKind::Regular && found.sectors.saturating_mul(SECTOR_BYTES) < found.size_bytes
}

/// All bytes, then the name.
fn pour(
    mut source: Box<dyn Source>,
    mut draft: Box<dyn Draft + '_>,
    look: &Look,
    has_holes: bool,
    progress: &mut Progress,
) -> Result<()> {
    let size_bytes = match (source.in_volume(), draft.in_volume()) {
        (Some(from), Some(to)) => pour_within(from, to, progress)?,
        _ if has_holes && draft.has_holes() => pour_around_holes(&mut *source, &mut *draft, progress)?,
        _ => pour_stretch(&mut *source, &mut *draft, 0..u64::MAX, progress)?,
    };
    draft.finish(size_bytes, look)
}

/// The server copies: nothing passes through this process.
fn pour_within(from: &File, to: &File, progress: &mut Progress) -> Result<u64> {
    let mut done_bytes = 0;
    loop {
        let copied = from.copy_range(done_bytes..done_bytes + STEP_BYTES as u64, to, done_bytes)?;
        if copied == 0 {
            return Ok(done_bytes);
        }
        done_bytes += copied;
        progress.advance(copied);
    }
}

/// Data alone: what lies between stays a hole. Returns how long the file is.
fn pour_around_holes(source: &mut dyn Source, draft: &mut dyn Draft, progress: &mut Progress) -> Result<u64> {
    let mut at_bytes = 0;
    loop {
        match source.stretch(at_bytes)? {
            Stretch::Data(data) => {
                progress.advance(data.start.saturating_sub(at_bytes));
                at_bytes = pour_stretch(source, draft, data.clone(), progress)?;
                if at_bytes < data.end {
                    return Ok(at_bytes);
                }
            }
            Stretch::End { size_bytes } => return Ok(size_bytes.max(at_bytes)),
        }
    }
}

/// A part of a file, less of it only where the file ends. Returns where that was.
fn pour_stretch(
    source: &mut dyn Source,
    draft: &mut dyn Draft,
    stretch: Range<u64>,
    progress: &mut Progress,
) -> Result<u64> {
    let mut buffer = vec![0; STEP_BYTES];
    let mut at_bytes = stretch.start;
    while at_bytes < stretch.end {
        let wanted = (stretch.end - at_bytes).min(STEP_BYTES as u64) as usize;
        let count = source.read_at(&mut buffer[..wanted], at_bytes)?;
        draft.write_at(&buffer[..count], at_bytes)?;
        at_bytes += count as u64;
        progress.advance(count as u64);
        if count < wanted {
            break;
        }
    }
    Ok(at_bytes)
}

/// The permissions that files of this process are made without.
pub fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}

/// What copies without a source are made with.
fn plain() -> Look {
    Look { permissions: 0o666 & !umask(), times: None, owner: None }
}

/// Where a copy of `from` goes: into `to` where that is a directory, or says so with a slash at its end.
pub fn destination(side: &dyn Side, from: &Path, to: &Path, several: bool) -> Result<PathBuf> {
    let slash = to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let directory = side.attributes(to, true)?.is_some_and(|found| found.kind == FileKind::Directory);
    if !directory && (several || slash) {
        bail!("{} is no directory: `mkdir` makes one", to.display());
    }
    // The root, and `..`, have no name that a copy could have: what is in them goes into the directory.
    Ok(match from.file_name() {
        Some(name) if directory => to.join(name),
        _ => to.to_owned(),
    })
}

/// The last path, and those before it.
pub fn split(paths: &[PathBuf]) -> Result<(&[PathBuf], &Path)> {
    let (to, from) = paths.split_last().context("nothing is named")?;
    Ok((from, to))
}

fn copy_all(mut copy: Copy<'_>, from: &[PathBuf], to: &Path, same: bool) -> Result<()> {
    for path in from {
        let destination = destination(copy.to, path, to, from.len() > 1)?;
        // No inode has this number: it is learned when the directory is made.
        copy.made = same.then_some(0);
        let follow = !copy.copying.recursive;
        copy.copy(path, &destination, follow)?;
    }
    Ok(())
}

pub fn put(volume: &Volume, paths: &[PathBuf], copying: Copying) -> Result<()> {
    let (from, to) = split(paths)?;
    match from {
        [stream] if stream.as_os_str() == "-" => {
            let directory =
                volume.attributes(to, true)?.is_some_and(|found| found.kind == FileKind::Directory);
            if directory || to.as_os_str().as_encoded_bytes().ends_with(b"/") {
                bail!("{} is a directory: say what the file is to be called there", to.display());
            }
            let mut progress = Progress::new(copying.quiet);
            progress.begin("standard input".as_ref(), 0);
            pour(Box::new(StandardInput), volume.begin(to)?, &plain(), false, &mut progress)?;
        }
        from => copy_all(Copy::new(&Host, volume, copying), from, to, false)?,
    }
    // One flush for all: what a name leads to is never behind the name.
    Ok(volume.sync()?)
}

pub fn get(volume: &Volume, paths: &[PathBuf], copying: Copying) -> Result<()> {
    let (from, to) = match paths {
        [_] => (paths, Path::new(".")),
        _ => split(paths)?,
    };
    match to.as_os_str() == "-" {
        true => cat(volume, from),
        false => copy_all(Copy::new(volume, &Host, copying), from, to, false),
    }
}

pub fn cp(volume: &Volume, paths: &[PathBuf], copying: Copying) -> Result<()> {
    let (from, to) = split(paths)?;
    copy_all(Copy::new(volume, volume, copying), from, to, true)?;
    Ok(volume.sync()?)
}

pub fn cat(volume: &Volume, paths: &[PathBuf]) -> Result<()> {
    let mut progress = Progress::new(true);
    for path in paths {
        pour(Side::open(volume, path)?, Box::new(StandardOutput), &plain(), false, &mut progress)?;
    }
    Ok(())
}
