//! The log of one component, in the format of the kernel's dm-log-writes: a superblock in the first sector, then entries, each
//! a sector that describes it followed by the data that was written. Integers are little-endian.
//!
//! The log is read as bytes of unknown origin: whatever it holds, reading it ends with entries or an error.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// "jsfwshr" and a NUL, as the kernel spells it.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
/// Magic, version, number of entries (each u64), sector size (u32).
const SUPERBLOCK_BYTES: usize = 28;
/// Sector, number of sectors, flags, length of a mark's text (each u64).
const ENTRY_BYTES: usize = 32;
const SECTOR_BYTES: std::ops::RangeInclusive<u64> = 512..=65536;

const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// The data is metadata of a file system: of no importance here.
const METADATA: u64 = 16;

/// What an entry did to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: a flush or a mark.
    None,
    /// Data from the log.
    Write { offset_bytes: u64, len_bytes: u64, data_at_bytes: u64 },
    /// Given back; read as zeros afterwards, or as before.
    Discard { offset_bytes: u64, len_bytes: u64 },
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Everything that the device had completed before is on the medium before this entry completes.
    pub flush: bool,
    /// The entry's own data is on the medium when it completes.
    pub forced: bool,
    pub change: Change,
    /// Where the entry ends in the log.
    pub end_bytes: u64,
}

/// A log and its entries.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    path: PathBuf,
    entries: Vec<Entry>,
}

impl WriteLog {
    /// Reads the log at `path` of a device of `device_bytes`. A last entry that is not there in full is left out: the logger
    /// may have been killed while it wrote.
    pub fn open(path: &Path, device_bytes: u64) -> Result<WriteLog> {
        let file = File::open(path).with_context(|| format!("opening the log {}", path.display()))?;
        let entries = entries(&file, device_bytes)
            .with_context(|| format!("reading the log {} of writes", path.display()))?;
        Ok(WriteLog { file, path: path.to_owned(), entries })
    }

    /// The entries, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many entries are complete within the first `len_bytes` of the log.
    pub fn entries_within(&self, len_bytes: u64) -> usize {
        self.entries.partition_point(|entry| entry.end_bytes <= len_bytes)
    }

    /// `len_bytes` of data that begin at `at_bytes` of the log.
    pub fn data(&self, at_bytes: u64, len_bytes: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; len_bytes];
        self.file
            .read_exact_at(&mut data, at_bytes)
            .with_context(|| format!("reading {len_bytes} bytes at {at_bytes} of {}", self.path.display()))?;
        Ok(data)
    }
}

fn entries(file: &File, device_bytes: u64) -> Result<Vec<Entry>> {
    let log_bytes = file.metadata()?.len();
    if log_bytes == 0 {
        return Ok(Vec::new());
    }
    let mut head = [0; SUPERBLOCK_BYTES];
    file.read_exact_at(&mut head, 0).context("it has no superblock")?;
    let (magic, version, claimed) = (integer(&head, 0), integer(&head, 8), integer(&head, 16));
    ensure!(magic == MAGIC && version == VERSION, "magic {magic:#x}, version {version}: no log of writes");
    let sector_bytes = integer(&head, 24);
    ensure!(
        SECTOR_BYTES.contains(&sector_bytes) && sector_bytes.is_power_of_two(),
        "{sector_bytes} is no size of a sector"
    );
    let mut entries = Vec::new();
    let mut at_bytes = sector_bytes;
    while let Some(data_at_bytes) = at_bytes.checked_add(sector_bytes).filter(|end| *end <= log_bytes) {
        let mut head = [0; ENTRY_BYTES];
        file.read_exact_at(&mut head, at_bytes).with_context(|| format!("the entry at {at_bytes}"))?;
        let entry = decode(&head, data_at_bytes, sector_bytes, device_bytes)
            .with_context(|| format!("entry {} at {at_bytes}", entries.len()))?;
        if entry.end_bytes > log_bytes {
            break;
        }
        at_bytes = entry.end_bytes;
        entries.push(entry);
    }
    ensure!(
        entries.len() as u64 >= claimed,
        "it is cut short: {} entries, and the superblock counts {claimed}",
        entries.len()
    );
    Ok(entries)
}

fn decode(
    head: &[u8; ENTRY_BYTES],
    data_at_bytes: u64,
    sector_bytes: u64,
    device_bytes: u64,
) -> Result<Entry> {
    let (sector, sectors, flags) = (integer(head, 0), integer(head, 8), integer(head, 16));
    let unknown = flags & !(FLUSH | FUA | DISCARD | MARK | METADATA);
    ensure!(unknown == 0, "unknown flags {unknown:#x}");
    let range = sector.checked_mul(sector_bytes).zip(sectors.checked_mul(sector_bytes));
    let within = |(offset, len): &(u64, u64)| offset.checked_add(*len).is_some_and(|end| end <= device_bytes);
    let Some((offset_bytes, len_bytes)) = range.filter(within) else {
        bail!("{sectors} sectors at sector {sector} lie outside the device of {device_bytes} bytes");
    };
    let (change, logged_bytes) = match (flags & DISCARD != 0, len_bytes) {
        (_, 0) => (Change::None, 0),
        (true, _) => (Change::Discard { offset_bytes, len_bytes }, 0),
        (false, _) => (Change::Write { offset_bytes, len_bytes, data_at_bytes }, len_bytes),
    };
    let end_bytes = data_at_bytes.checked_add(logged_bytes).context("an entry of impossible length")?;
    Ok(Entry { flush: flags & FLUSH != 0, forced: flags & FUA != 0, change, end_bytes })
}

/// The little-endian integer at `at`; the caller's buffer is known to reach that far, or ends within it.
fn integer(bytes: &[u8], at: usize) -> u64 {
    bytes.iter().skip(at).take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const SECTOR: u64 = 512;

    /// A log of `entries`: flags, first sector, data.
    pub fn written(entries: &[(u64, u64, &[u8])]) -> Vec<u8> {
        let mut log = Vec::new();
        for word in [MAGIC, VERSION, entries.len() as u64, SECTOR] {
            log.extend_from_slice(&word.to_le_bytes());
        }
        log.resize(SECTOR as usize, 0);
        for (flags, sector, data) in entries {
            let start = log.len();
            for word in [*sector, data.len() as u64 / SECTOR, *flags, 0] {
                log.extend_from_slice(&word.to_le_bytes());
            }
            log.resize(start + SECTOR as usize, 0);
            if flags & DISCARD == 0 {
                log.extend_from_slice(data);
            }
        }
        log
    }

    pub fn open(bytes: &[u8], device_bytes: u64) -> Result<WriteLog> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("log");
        std::fs::write(&path, bytes)?;
        WriteLog::open(&path, device_bytes)
    }

    #[test]
    fn writes_flushes_and_discards_are_told_apart() {
        let log =
            written(&[(0, 3, &[7; 1024]), (FLUSH, 0, &[]), (DISCARD, 8, &[0; 512]), (FUA, 1, &[9; 512])]);
        let log = open(&log, 1 << 20).unwrap();
        let changes: Vec<Change> = log.entries().iter().map(|entry| entry.change).collect();
        let data_at_bytes = 1024;
        assert_eq!(changes[0], Change::Write { offset_bytes: 1536, len_bytes: 1024, data_at_bytes });
        assert_eq!(changes[1..3], [Change::None, Change::Discard { offset_bytes: 4096, len_bytes: 512 }]);
        assert_eq!(
            log.entries().iter().map(|entry| entry.flush).collect::<Vec<_>>(),
            [false, true, false, false]
        );
        assert!(log.entries()[3].forced);
        assert_eq!(log.data(data_at_bytes, 1024).unwrap(), [7; 1024]);
        assert_eq!(log.entries_within(log.entries()[1].end_bytes), 2);
        assert_eq!(log.entries_within(log.entries()[1].end_bytes - 1), 1);
    }

    #[test]
    fn an_entry_cut_off_is_left_out_but_not_one_that_the_superblock_counts() {
        let whole = written(&[(0, 0, &[1; 512]), (0, 1, &[2; 1024])]);
        assert!(open(&whole[..whole.len() - 1], 1 << 20).is_err());
        let mut uncounted = whole.clone();
        uncounted[16] = 1;
        assert_eq!(open(&uncounted[..whole.len() - 1], 1 << 20).unwrap().entries().len(), 1);
        assert_eq!(open(&uncounted[..1024 + 512 + 100], 1 << 20).unwrap().entries().len(), 1);
        assert_eq!(open(&[], 1 << 20).unwrap().entries().len(), 0);
    }

    #[test]
    fn what_is_no_log_or_reaches_beyond_the_device_is_an_error() {
        let sound = written(&[(0, 2, &[1; 512])]);
        open(&sound, 1536).unwrap();
        assert!(open(&sound, 1535).is_err());
        for (at, value) in
            [(0, 1), (8, 2), (24, 100), (24, 1), (512 + 16, 0x20), (512 + 7, 0xff), (512 + 15, 0xff)]
        {
            let mut spoilt = sound.clone();
            spoilt[at] = value;
            if at == 24 {
                spoilt[25] = 0;
            }
            assert!(open(&spoilt, 1536).is_err(), "byte {at} set to {value}");
        }
        assert!(open(&sound[..10], 1536).is_err());
    }

    #[test]
    fn no_single_byte_makes_the_reader_do_more_than_refuse() {
        let sound = written(&[(0, 2, &[1; 512]), (FLUSH, 0, &[]), (DISCARD, 1, &[0; 512])]);
        for at in (0..32).chain(512..544).chain(1536..1568) {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut spoilt = sound.clone();
                spoilt[at] = value;
                if let Ok(log) = open(&spoilt, 4096) {
                    let within = |entry: &Entry| entry.end_bytes <= spoilt.len() as u64;
                    assert!(log.entries().iter().all(within));
                }
            }
        }
    }
}
