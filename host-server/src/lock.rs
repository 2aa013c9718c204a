//! The lock of a volume's directory: one process at a time works on a volume, and others can name it.
//!
//! The lock is an advisory `flock` on `DIR/lock`, so it ends with its holder, however that dies. The file's text (pid
//! and command) is for messages only.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// What a process is doing with the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Create,
    Serve,
    Status,
    Check,
    Export,
    Grow,
    Replace,
}

impl Purpose {
    /// What it is called on the command line.
    pub fn command(self) -> &'static str {
        match self {
            Purpose::Create => "ringfort volume create",
            Purpose::Serve => "ringfort serve",
            Purpose::Status => "ringfort volume status",
            Purpose::Check => "ringfort volume check",
            Purpose::Export => "ringfort volume export",
            Purpose::Grow => "ringfort volume grow",
            Purpose::Replace => "ringfort volume replace",
        }
    }

    /// How long to wait for a holder: a status report is over in a moment and should make nobody fail.
    fn patience(holder: &Holder) -> Duration {
        if holder.command == Purpose::Status.command() { Duration::from_secs(2) } else { Duration::ZERO }
    }
}

/// Who has the lock, by their own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    pub pid: Option<u32>,
    pub command: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.pid, self.command.as_str()) {
            (Some(pid), "") => write!(f, "process {pid}"),
            (Some(pid), command) => write!(f, "process {pid} (`{command}`)"),
            (None, _) => f.write_str("a process that left no name"),
        }
    }
}

/// The volume is in use.
#[derive(Debug, thiserror::Error)]
#[error("the volume in {} is in use by {holder}; stop that one first, or name another volume", .directory.display())]
pub struct Held {
    pub directory: PathBuf,
    pub holder: Holder,
}

/// Held until dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: Flock<File>,
}

impl DirectoryLock {
    pub fn path(directory: &Path) -> PathBuf {
        directory.join("lock")
    }

    /// Takes the lock, or fails with [`Held`].
    pub fn take(directory: &Path, purpose: Purpose) -> Result<Self> {
        let path = Self::path(directory);
        let what = || format!("take the lock {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(what)?;
        let started = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut locked) => {
                    write_holder(&mut locked, purpose).with_context(what)?;
                    return Ok(Self { _file: locked });
                }
                Err((returned, Errno::EWOULDBLOCK)) => {
                    file = returned;
                    let holder = read_holder(&mut file);
                    if started.elapsed() >= Purpose::patience(&holder) {
                        return Err(Held { directory: directory.to_owned(), holder }.into());
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err((_, errno)) => return Err(errno).with_context(what),
            }
        }
    }
}

fn write_holder(file: &mut File, purpose: Purpose) -> std::io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{} {}", std::process::id(), purpose.command())
}

/// Empty where the holder has not written its name yet.
fn read_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(512).read_to_string(&mut text));
    if read.is_err() {
        return Holder::default();
    }
    let (pid, command) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    Holder { pid: pid.parse().ok(), command: command.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_learns_who_holds_the_volume() {
        let directory = tempfile::tempdir().unwrap();
        let held = DirectoryLock::take(directory.path(), Purpose::Serve).unwrap();
        let error = DirectoryLock::take(directory.path(), Purpose::Check).unwrap_err();
        let found = error.downcast_ref::<Held>().unwrap();
        assert_eq!(found.holder.pid, Some(std::process::id()));
        assert!(error.to_string().contains("`ringfort serve`"), "{error}");
        drop(held);
        DirectoryLock::take(directory.path(), Purpose::Check).unwrap();
    }

    #[test]
    fn a_status_report_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let held = DirectoryLock::take(directory.path(), Purpose::Status).unwrap();
        let releaser = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        DirectoryLock::take(directory.path(), Purpose::Serve).unwrap();
        releaser.join().unwrap();
    }
}
