//! What the medium of one component holds after a cut: all that a flush has made durable, and of what came after it any part.
//!
//! A write that is not flushed may be on the medium or not, sector by sector, whatever was written after it: so do disks with
//! volatile caches behave that promise nothing but flushes and sectors of 512 bytes.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::content::Stream;
use crate::powercut::write_log::{Change, Entry, WriteLog};

const SECTOR_BYTES: u64 = 512;

/// Which flushes are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushes {
    Honoured,
    /// The last ones before the cut, so many of them, did nothing: no device may do that, and a server that leaves out flushes is
    /// no better.
    Ignored {
        last: usize,
    },
}

/// What becomes of writes that no flush has made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Lost,
    Kept,
    /// The oldest are kept, one is torn, the rest are lost.
    CutShort,
    /// Each sector is kept with `chance` in eight, and of sectors written twice either may win.
    Scattered {
        chance: u64,
    },
}

impl Fate {
    /// One of them.
    pub fn choose(random: &mut Stream) -> Fate {
        match random.below(6) {
            0 => Fate::Lost,
            1 => Fate::Kept,
            2 | 3 => Fate::CutShort,
            _ => Fate::Scattered { chance: 1 + random.below(7) },
        }
    }
}

/// A component's log, and its medium with every durable write up to some cut. Cuts are visited from the earliest on.
#[derive(Debug)]
pub struct Medium {
    log: WriteLog,
    image: File,
    flushes: Flushes,
    /// How many entries the image holds.
    durable: usize,
    /// The entries between the last believed flush and the cut.
    volatile: Range<usize>,
}

impl Medium {
    /// `image` is the component as it was when the log began; it becomes this medium's own.
    pub fn new(image: &Path, log: &Path, flushes: Flushes) -> Result<Medium> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(image)
            .with_context(|| format!("opening {}", image.display()))?;
        let log = WriteLog::open(log, file.metadata()?.len())?;
        Ok(Medium { log, image: file, flushes, durable: 0, volatile: 0..0 })
    }

    /// Goes on to the moment when the log had `log_bytes`.
    pub fn advance(&mut self, log_bytes: u64) -> Result<()> {
        let volatile = self.volatile_at(log_bytes);
        ensure!(volatile.end >= self.volatile.end, "cuts are visited from the earliest on");
        let durable = volatile.start.max(self.durable);
        for entry in &self.log.entries()[self.durable..durable] {
            write(&self.log, entry, &self.image, |_| true)?;
        }
        self.durable = durable;
        self.volatile = durable..volatile.end;
        Ok(())
    }

    /// The entries that are not durable when the log has `log_bytes`.
    fn volatile_at(&self, log_bytes: u64) -> Range<usize> {
        let end = self.log.entries_within(log_bytes);
        let ignored = match self.flushes {
            Flushes::Honoured => 0,
            Flushes::Ignored { last } => last,
        };
        let mut flushes = self.log.entries()[..end].iter().enumerate().rev().filter(|(_, entry)| entry.flush);
        flushes.nth(ignored).map_or(0, |(index, _)| index)..end
    }

    /// How many writes are not durable when the log has `log_bytes`.
    pub fn volatile_writes(&self, log_bytes: u64) -> usize {
        let entries = &self.log.entries()[self.volatile_at(log_bytes)];
        entries.iter().filter(|entry| entry.change != Change::None).count()
    }

    /// An error unless the log tells of every byte of `component`, which was exported with it and is as the export left it.
    pub fn require_whole(mut self, component: &Path) -> Result<()> {
        const PIECE_BYTES: u64 = 1 << 20;
        for entry in &self.log.entries()[self.durable..] {
            write(&self.log, entry, &self.image, |_| true)?;
        }
        self.durable = self.log.entries().len();
        let found = File::open(component).with_context(|| format!("opening {}", component.display()))?;
        let len_bytes = found.metadata()?.len();
        let (mut told, mut there) = (Vec::new(), Vec::new());
        for at in (0..len_bytes).step_by(PIECE_BYTES as usize) {
            let piece_bytes = (len_bytes - at).min(PIECE_BYTES) as usize;
            told.resize(piece_bytes, 0);
            there.resize(piece_bytes, 0);
            self.image.read_exact_at(&mut told, at).context("reading a medium")?;
            found.read_exact_at(&mut there, at).context("reading a component")?;
            if let Some(first) = told.iter().zip(&there).position(|(told, there)| told != there) {
                bail!("byte {} of {} is not what the log says", at + first as u64, component.display());
            }
        }
        Ok(())
    }

    /// Writes to `path` what a cut at this moment may leave.
    pub fn leave(&self, path: &Path, fate: Fate, random: &mut Stream) -> Result<()> {
        let left = copy_sparse(&self.image, path)?;
        let entries = &self.log.entries()[self.volatile.clone()];
        let mut order: Vec<usize> = (0..entries.len()).collect();
        let mut kept = entries.len();
        match fate {
            Fate::Lost => kept = 0,
            Fate::Kept => {}
            Fate::CutShort => kept = random.below(entries.len() as u64 + 1) as usize,
            Fate::Scattered { .. } => shuffle(&mut order, random),
        }
        for (place, index) in order.into_iter().enumerate() {
            let entry = &entries[index];
            let mut stays = |_: u64| match fate {
                _ if entry.forced => true,
                Fate::Scattered { chance } => random.below(8) < chance,
                Fate::CutShort if place == kept => random.below(2) == 0,
                Fate::Lost | Fate::Kept | Fate::CutShort => place < kept,
            };
            write(&self.log, entry, &left, &mut stays)?;
        }
        Ok(())
    }
}

fn shuffle(order: &mut [usize], random: &mut Stream) {
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
}

/// Puts those sectors of an entry on `image` that `stays` says, runs of them at once.
fn write(log: &WriteLog, entry: &Entry, image: &File, mut stays: impl FnMut(u64) -> bool) -> Result<()> {
    let (offset_bytes, len_bytes, data_at_bytes) = match entry.change {
        Change::None => return Ok(()),
        Change::Write { offset_bytes, len_bytes, data_at_bytes } => {
            (offset_bytes, len_bytes, Some(data_at_bytes))
        }
        Change::Discard { offset_bytes, len_bytes } => (offset_bytes, len_bytes, None),
    };
    let sectors = len_bytes / SECTOR_BYTES;
    let mut sector = 0;
    while sector < sectors {
        let first = sector;
        while sector < sectors && stays(sector) {
            sector += 1;
        }
        if sector > first {
            let (from, run_bytes) = (first * SECTOR_BYTES, ((sector - first) * SECTOR_BYTES) as usize);
            let data = match data_at_bytes {
                Some(at) => log.data(at + from, run_bytes)?,
                None => vec![0; run_bytes],
            };
            image.write_all_at(&data, offset_bytes + from).context("writing a medium")?;
        }
        sector += 1;
    }
    Ok(())
}

/// Copies a file, holes as holes.
pub fn copy_sparse(from: &File, path: &Path) -> Result<File> {
    use rustix::fs::{SeekFrom, seek};
    const PIECE_BYTES: u64 = 1 << 20;
    let what = || format!("copying to {}", path.display());
    let to =
        File::options().read(true).write(true).create(true).truncate(true).open(path).with_context(what)?;
    let len_bytes = from.metadata()?.len();
    to.set_len(len_bytes).with_context(what)?;
    let mut at = 0;
    let mut piece = Vec::new();
    while at < len_bytes {
        at = match seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No data up to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error).with_context(what),
        };
        let hole = seek(from, SeekFrom::Hole(at)).with_context(what)?;
        while at < hole {
            piece.resize((hole - at).min(PIECE_BYTES) as usize, 0);
            from.read_exact_at(&mut piece, at).with_context(what)?;
            to.write_all_at(&piece, at).with_context(what)?;
            at += piece.len() as u64;
        }
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::powercut::write_log::tests::written;

    const FLUSH: u64 = 1;

    struct Bench {
        folder: tempfile::TempDir,
        medium: Medium,
        random: Stream,
    }

    impl Bench {
        fn new(entries: &[(u64, u64, &[u8])], flushes: Flushes) -> Bench {
            let folder = tempfile::tempdir().unwrap();
            let (image, log) = (folder.path().join("image"), folder.path().join("log"));
            std::fs::write(&image, [0; 8192]).unwrap();
            std::fs::write(&log, written(entries)).unwrap();
            let mut medium = Medium::new(&image, &log, flushes).unwrap();
            medium.advance(u64::MAX).unwrap();
            Bench { folder, medium, random: Stream::new(1) }
        }

        /// The first byte of each sector.
        fn left(&mut self, fate: Fate) -> Vec<u8> {
            let path = self.folder.path().join("left");
            self.medium.leave(&path, fate, &mut self.random).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len(), 8192);
            bytes.chunks(512).map(|sector| sector[0]).collect()
        }
    }

    #[test]
    fn what_was_flushed_stays_whatever_becomes_of_the_rest() {
        let entries: [(u64, u64, &[u8]); 4] =
            [(0, 0, &[1; 1024]), (FLUSH, 0, &[]), (0, 1, &[2; 1024]), (0, 3, &[3; 512])];
        let mut bench = Bench::new(&entries, Flushes::Honoured);
        assert_eq!(bench.medium.volatile_writes(u64::MAX), 2);
        assert_eq!(bench.left(Fate::Lost)[..5], [1, 1, 0, 0, 0]);
        assert_eq!(bench.left(Fate::Kept)[..5], [1, 2, 2, 3, 0]);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let left = bench.left(Fate::Scattered { chance: 4 });
            assert!(left[0] == 1 && [1, 2].contains(&left[1]) && left[4..].iter().all(|byte| *byte == 0));
            seen.insert(left);
            let short = bench.left(Fate::CutShort);
            assert!(
                short[3] == 0 || short[1..3] == [2, 2],
                "a later write stayed without an earlier one: {short:?}"
            );
        }
        assert_eq!(seen.len(), 8, "each sector falls by itself");
    }

    #[test]
    fn of_a_sector_written_twice_either_may_win_until_a_flush() {
        let twice: [(u64, u64, &[u8]); 2] = [(0, 0, &[1; 512]), (0, 0, &[2; 512])];
        let mut bench = Bench::new(&twice, Flushes::Honoured);
        let seen: std::collections::BTreeSet<u8> =
            (0..60).map(|_| bench.left(Fate::Scattered { chance: 6 })[0]).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn a_flush_that_is_ignored_leaves_what_came_before_it_to_chance() {
        let entries: [(u64, u64, &[u8]); 4] =
            [(0, 0, &[1; 512]), (FLUSH, 0, &[]), (0, 1, &[2; 512]), (FLUSH, 0, &[])];
        assert_eq!(Bench::new(&entries, Flushes::Honoured).left(Fate::Lost)[..2], [1, 2]);
        assert_eq!(Bench::new(&entries, Flushes::Ignored { last: 1 }).left(Fate::Lost)[..2], [1, 0]);
    }

    #[test]
    fn holes_are_copied_as_holes() {
        let folder = tempfile::tempdir().unwrap();
        let file =
            File::options().read(true).write(true).create_new(true).open(folder.path().join("a")).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"middle", 32 << 20).unwrap();
        let copy = copy_sparse(&file, &folder.path().join("b")).unwrap();
        let mut found = [0; 6];
        copy.read_exact_at(&mut found, 32 << 20).unwrap();
        assert_eq!(&found, b"middle");
        assert_eq!(copy.metadata().unwrap().len(), 64 << 20);
        assert!(std::os::unix::fs::MetadataExt::blocks(&copy.metadata().unwrap()) < 1000);
    }
}
