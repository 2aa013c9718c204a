//! Advisory locks among the programs of one system.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{FlockOperation, flock};

use super::Check;
use super::expect::{expect, open_both, open_new};

pub const CHECKS: &[(&str, Check)] = &[("whole-file-locks", whole_file_locks), ("range-locks", range_locks)];

fn whole_file_locks(folder: &Path) -> Result<()> {
    let path = folder.join("file");
    let (one, two) = (open_new(&path)?, open_both(&path)?);
    let try_exclusive = FlockOperation::NonBlockingLockExclusive;
    let refused = rustix::io::Errno::AGAIN;
    flock(&one, try_exclusive).context("the first lock")?;
    expect(flock(&two, try_exclusive), refused, "a second exclusive lock")?;
    expect(
        flock(&two, FlockOperation::NonBlockingLockShared),
        refused,
        "a shared lock beside an exclusive one",
    )?;
    flock(&one, FlockOperation::NonBlockingLockShared).context("an exclusive lock made shared")?;
    flock(&two, FlockOperation::NonBlockingLockShared).context("a second shared lock")?;
    expect(flock(&one, try_exclusive), refused, "a shared lock of two made exclusive")?;
    // The one that could not be changed may be gone; the other's is not.
    flock(&one, FlockOperation::Unlock)?;
    thread::scope(|scope| {
        let waiter = scope.spawn(|| flock(&one, FlockOperation::LockExclusive));
        thread::sleep(Duration::from_millis(100));
        ensure!(!waiter.is_finished(), "an exclusive lock was had beside a shared one");
        drop(two);
        waiter.join().map_err(|_| anyhow::anyhow!("the waiter panicked"))?.context("waiting for a lock")
    })
}

/// Locks of ranges that belong to open files, as the ones that belong to processes conflict.
fn range_locks(folder: &Path) -> Result<()> {
    let path = folder.join("file");
    let (one, two) = (open_new(&path)?, open_both(&path)?);
    set(&one, libc::F_WRLCK, 100, 50).context("a range")?;
    set(&two, libc::F_WRLCK, 150, 50).context("the range behind it")?;
    ensure!(
        set(&two, libc::F_WRLCK, 149, 1) == Err(Errno::EAGAIN),
        "the last byte of a locked range was locked"
    );
    ensure!(
        set(&two, libc::F_RDLCK, 0, 0) == Err(Errno::EAGAIN),
        "a whole file was locked beside a locked range"
    );
    // Unlocking the middle leaves both ends.
    set(&one, libc::F_UNLCK, 110, 10).context("the middle")?;
    set(&two, libc::F_WRLCK, 110, 10).context("the middle, by another")?;
    for at in [109, 120] {
        ensure!(
            set(&two, libc::F_RDLCK, at, 1) == Err(Errno::EAGAIN),
            "byte {at} was unlocked with the middle"
        );
    }
    let held = get(&two, libc::F_WRLCK, 100, 5).context("asking who is in the way")?;
    ensure!(held.l_type == libc::F_WRLCK as libc::c_short && (held.l_start, held.l_len) == (100, 10));
    set(&one, libc::F_RDLCK, 300, 10)?;
    set(&two, libc::F_RDLCK, 305, 10).context("two shared ranges over each other")?;

    // A process that ends gives up its own.
    let locker = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new(locker)
        .args(["lock-hold".as_ref(), path.with_extension("other").as_os_str()])
        .args(["fcntl", "exclusive", "wait"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("starting a process that locks")?;
    let mut said = String::new();
    if let Some(output) = child.stdout.take() {
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut said)?;
    }
    let other = open_both(&path.with_extension("other"))?;
    let refused = set(&other, libc::F_WRLCK, 0, 0);
    child.kill()?;
    child.wait()?;
    ensure!(said == "locked\n" && refused == Err(Errno::EAGAIN), "{said:?}, then {refused:?}");
    set(&other, libc::F_WRLCK, 0, 0).context("after the end of the process that locked")
}

fn range(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn set(file: &File, kind: i32, start: i64, length: i64) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, length))).map(drop)
}

fn get(file: &File, kind: i32, start: i64, length: i64) -> nix::Result<libc::flock> {
    let mut asked = range(kind, start, length);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked))?;
    Ok(asked)
}
