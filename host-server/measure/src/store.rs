//! Topic `store`: what the store does to devices, and how fast, beside btrfs raid6 and the file system underneath.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::statvfs::statvfs;
use ringfort_qemu_tests::place::RunFolder;
use ringfort_qemu_tests::server::Volume;

use crate::btrfs::{self, Btrfs};
use crate::figures::{Figures, Goal, RINGFORT, Subject};
use crate::files::PlainFiles;
use crate::load::{BLOCK_BYTES, DEPTH};
use crate::ringfort;
use crate::volume::{self, COMPONENTS, Servers};

/// Room for both files and for what a round overwrites.
const SIZE_BYTES: u64 = 1280 << 20;
/// Room for the large file.
const DEGRADED_SIZE_BYTES: u64 = 640 << 20;
/// Room for the file of small writes, twice.
const CRASHED_SIZE_BYTES: u64 = 640 << 20;
const BTRFS_DEVICE_BYTES: u64 = 512 << 20;
/// What all files together take at most.
const SCRATCH_BYTES: u64 = 8 << 30;
const LOG_BYTES: u64 = 32 << 20;
/// Four times the log: what it holds is written to stripes and truncated several times over.
const SMALL_WRITES: u64 = 4 * LOG_BYTES / BLOCK_BYTES as u64;
const SMALL_WRITES_ALONE: u64 = 4096;
/// How long each rate of a rival is taken.
const RIVAL_DURATION: Duration = Duration::from_secs(2);
/// Two of six: as many as may be lost. One of them carries a metadata mirror.
const LOST: [usize; 2] = [1, 4];

const BTRFS: Subject = "btrfs_raid6";
const RAW: Subject = "raw";

pub fn measure(rounds: u32) -> Result<Figures> {
    let mut figures = Figures::default();
    describe(&mut figures, rounds);
    // Beside the build's output, which is on a real disk and which everybody knows to be large.
    let folder = RunFolder::new("measure-store")?;
    check_space(folder.path())?;
    let servers = Servers::new(&folder);
    let contenders = Contenders::prepare(folder.path(), &servers, &mut figures)?;
    for round in 0..u64::from(rounds) {
        let volume = fresh_volume(folder.path(), &servers)?;
        contenders.take_turns(&volume, round, &mut figures)?;
    }
    contenders.remove()?;
    for round in 0..u64::from(rounds) {
        recover(folder.path(), &servers, round, &mut figures)?;
    }
    figures.note(RINGFORT, "peak_rss_mib", "MiB", servers.peak_rss_mib());
    set_goals(&mut figures);
    Ok(figures)
}

fn set_goals(figures: &mut Figures) {
    let times = [
        ("rand_write_4k_fsync_per_s", 3.0, BTRFS),
        ("rand_write_4k_fsync_qd16_per_s", 3.0, BTRFS),
        ("seq_write_mb_s", 3.0, BTRFS),
        // Parity and the log's share bound it at two thirds.
        ("seq_write_mb_s", 0.35, RAW),
        ("seq_read_mb_s", 1.5, BTRFS),
        ("seq_read_mb_s", 0.75, RAW),
        ("rand_read_4k_qd16_per_s", 1.0, BTRFS),
    ];
    for (name, least, rival) in times {
        figures.goal(RINGFORT, name, Goal::TimesAtLeast(least, rival));
    }
    figures.goal(RINGFORT, "degraded_seq_read_mb_s", Goal::TimesOwnAtLeast(0.85, "seq_read_mb_s"));
    let most = [
        ("device_bytes_per_user_byte_small", 4.8),
        ("device_bytes_per_user_byte_small_with_maps", 5.5),
        ("device_bytes_per_user_byte_large", 1.55),
        ("device_reads_per_small_write", 0.0),
        ("recovery_s", 2.0),
    ];
    for (name, most) in most {
        figures.goal(RINGFORT, name, Goal::AtMost(most));
    }
}

fn check_space(folder: &Path) -> Result<()> {
    let space = statvfs(folder).with_context(|| format!("look at the space of {}", folder.display()))?;
    let free_bytes = space.blocks_available() * space.fragment_size();
    if free_bytes < SCRATCH_BYTES {
        let [needed, free] = [SCRATCH_BYTES, free_bytes].map(|bytes| bytes >> 30);
        bail!("{} needs {needed} GiB for a while, and has {free} GiB free", folder.display());
    }
    Ok(())
}

fn describe(figures: &mut Figures, rounds: u32) {
    figures.condition(
        "ringfort",
        "data 4+2, metadata mirrored 3 ways, six files beside each other, written before, 1.25 GiB, log 32 MiB, made anew in each round; \
         `ringfort serve` in a process of its own, driven by one thread through its channel on this host",
    );
    figures.condition(
        BTRFS,
        "data raid6, metadata raid1c3, six loop devices with direct I/O over files written before, O_DIRECT",
    );
    figures.condition(
        RAW,
        "plain files written before, with O_DIRECT on the file system that holds all of the above",
    );
    figures.condition("small", "4 KiB at random in a file of 256 MiB, each write followed by its fsync");
    figures.condition("large", "1 MiB in sequence, one at a time, 512 MiB, one fsync at the end");
    figures.condition("depth 16", "ringfort: 16 commands under way of one thread, a sync submitted when its write is completed; rivals: 16 threads with blocking calls");
    figures.condition("degraded", "two of six components (devices) taken away");
    figures.condition(
        "recovery",
        "log 560 MiB, of which at least 256 MiB have to be replayed, as a server left it that was killed; from starting the next process to the \
         first write that is synced, with opening, replay, connecting and opening the file",
    );
    figures.condition(
        "memory",
        "rivals' transfers of 1 MiB are from and to huge pages, as far as the kernel has them; ringfort's from and to memory shared with the server, \
         into which the client copies what it has made; peak_rss_mib is the most of any server process, that memory included",
    );
    figures.condition(
        "caches",
        "the store has banks (20 MiB) and what it reads ahead (16 MiB, each byte once), and is served with --data-cache 0; below O_DIRECT \
         everybody alike",
    );
    figures
        .condition("rounds", format!("{rounds}, everybody in turn in each; recovery in rounds of its own"));
}

/// Everybody's files.
struct Contenders<'a> {
    folder: PathBuf,
    servers: &'a Servers,
    degraded: Volume,
    btrfs: Option<Btrfs>,
    raw: PlainFiles,
}

/// Makes an empty folder, in the place of what was there.
fn make_folder(path: PathBuf) -> Result<PathBuf> {
    remove_folder(&path)?;
    std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
    Ok(path)
}

fn remove_folder(path: &Path) -> Result<()> {
    if path.exists() {
        std::fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// A volume with the file of small writes.
fn fresh_volume(folder: &Path, servers: &Servers) -> Result<Volume> {
    let volume = volume::create(&make_folder(folder.join(RINGFORT))?, SIZE_BYTES, LOG_BYTES)?;
    servers.with(&volume, ringfort::prepare_small)?;
    Ok(volume)
}

impl<'a> Contenders<'a> {
    fn prepare(folder: &Path, servers: &'a Servers, figures: &mut Figures) -> Result<Self> {
        let degraded =
            volume::create(&make_folder(folder.join("degraded"))?, DEGRADED_SIZE_BYTES, LOG_BYTES)?;
        servers.with(&degraded, ringfort::prepare_large)?;
        LOST.iter().try_for_each(|lost| degraded.take_away(*lost))?;
        let raw = PlainFiles::new(make_folder(folder.join(RAW))?);
        raw.prepare()?;
        raw.write_large()?;
        let btrfs = match btrfs::obstacle() {
            None => {
                let btrfs = Btrfs::create(&make_folder(folder.join(BTRFS))?, COMPONENTS, BTRFS_DEVICE_BYTES)?;
                let mounted = btrfs.mount()?;
                PlainFiles::new(btrfs.mount_point()).prepare()?;
                drop(mounted);
                Some(btrfs)
            }
            Some(reason) => {
                figures.leave_out(BTRFS, reason);
                None
            }
        };
        Ok(Self { folder: folder.to_owned(), servers, degraded, btrfs, raw })
    }

    /// One round. What is compared with each other is measured within seconds of each other.
    fn take_turns(&self, volume: &Volume, round: u64, figures: &mut Figures) -> Result<()> {
        self.servers.with(volume, |served| {
            ringfort::small_writes(served, SMALL_WRITES, SMALL_WRITES_ALONE, round, figures)
        })?;
        self.each_rival(|files, subject| {
            let per_s = files.small_writes(DEPTH, RIVAL_DURATION, round)?;
            figures.note(subject, "rand_write_4k_fsync_qd16_per_s", "1/s", per_s);
            let per_s = files.small_writes(1, RIVAL_DURATION, round)?;
            figures.note(subject, "rand_write_4k_fsync_per_s", "1/s", per_s);
            Ok(())
        })?;

        self.servers.with(volume, |served| ringfort::large_writes(served, figures))?;
        self.each_rival(|files, subject| {
            // A file system over others allocates anew; to the one underneath that would be new blocks of the disk, where
            // everybody else's have been written before.
            let rate = if subject == RAW { files.rewrite_large()? } else { files.write_large()? };
            figures.note(subject, "seq_write_mb_s", "MB/s", rate);
            Ok(())
        })?;

        let rate = self.servers.with(volume, ringfort::read_large)?;
        figures.note(RINGFORT, "seq_read_mb_s", "MB/s", rate);
        self.each_rival(|files, subject| {
            figures.note(subject, "seq_read_mb_s", "MB/s", files.read_large()?);
            Ok(())
        })?;
        let rate = self.servers.with(&self.degraded, ringfort::read_large)?;
        figures.note(RINGFORT, "degraded_seq_read_mb_s", "MB/s", rate);
        if let Some(btrfs) = &self.btrfs {
            let _mounted = btrfs.mount_without(&LOST)?;
            let rate = PlainFiles::new(btrfs.mount_point()).read_large()?;
            figures.note(BTRFS, "degraded_seq_read_mb_s", "MB/s", rate);
        }

        self.servers.with(volume, |served| ringfort::small_reads(served, round, figures))?;
        self.each_rival(|files, subject| {
            let per_s = files.small_reads(DEPTH, RIVAL_DURATION, round)?;
            figures.note(subject, "rand_read_4k_qd16_per_s", "1/s", per_s);
            Ok(())
        })
    }

    /// Gives their space back.
    fn remove(self) -> Result<()> {
        [RINGFORT, "degraded", "degraded.away", RAW, BTRFS]
            .iter()
            .try_for_each(|name| remove_folder(&self.folder.join(name)))
    }

    fn each_rival(&self, mut measure: impl FnMut(&PlainFiles, Subject) -> Result<()>) -> Result<()> {
        if let Some(btrfs) = &self.btrfs {
            let _mounted = btrfs.mount()?;
            measure(&PlainFiles::new(btrfs.mount_point()), BTRFS)?;
        }
        measure(&self.raw, RAW)
    }
}

fn recover(folder: &Path, servers: &Servers, round: u64, figures: &mut Figures) -> Result<()> {
    let folder = make_folder(folder.join("crashed"))?;
    let crashed = volume::create(&folder, CRASHED_SIZE_BYTES, ringfort::CRASHED_LOG_BYTES)?;
    servers.with(&crashed, ringfort::prepare_small)?;
    let served = servers.start(&crashed)?;
    ringfort::fill_log(&served, round)?;
    served.kill()?;
    servers.with(&crashed, |served| {
        ringfort::write_once(served)?;
        let recovered_in = served.started.elapsed();
        let replayed_bytes = served.replayed_log_bytes()?;
        if replayed_bytes < ringfort::CRASHED_LIVE_BYTES {
            bail!("{replayed_bytes} bytes of log were live, {} are claimed", ringfort::CRASHED_LIVE_BYTES);
        }
        figures.note(RINGFORT, "recovery_s", "s", recovered_in.as_secs_f64());
        figures.note(RINGFORT, "recovery_log_mib", "MiB replayed", replayed_bytes as f64 / (1 << 20) as f64);
        Ok(())
    })?;
    remove_folder(&folder)
}
