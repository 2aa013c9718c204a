//! Which of a file's three time stamps each deed moves, and which it leaves.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, chown, symlink};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, fallocate,
    removexattr, setxattr, utimensat,
};
use rustix::io::Errno;

use super::Check;
use super::expect::{expect, expect_error, open_both, set_mode};
use super::person::{OWNER, STRANGER};

pub const CHECKS: &[(&str, Check)] = &[
    ("times-of-deeds", times_of_deeds),
    ("times-set", times_set),
    ("times-rights", times_rights),
    ("times-of-reading", times_of_reading),
];

/// Longer than a kernel's tick, so that two deeds have different stamps.
const TICK: Duration = Duration::from_millis(25);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamps {
    modified: (i64, i64),
    changed: (i64, i64),
}

fn stamps(path: &Path) -> Result<Stamps> {
    let found = fs::symlink_metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    Ok(Stamps { modified: (found.mtime(), found.mtime_nsec()), changed: (found.ctime(), found.ctime_nsec()) })
}

/// What a deed does to the stamps of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moves {
    Nothing,
    Changed,
    Both,
}

/// Does `deed`, and holds each path to what must move.
fn after(deed: &str, act: impl FnOnce() -> Result<()>, paths: &[(&Path, Moves)]) -> Result<()> {
    let before = paths.iter().map(|(path, _)| stamps(path)).collect::<Result<Vec<_>>>()?;
    thread::sleep(TICK);
    act().with_context(|| deed.to_owned())?;
    for ((path, wanted), before) in paths.iter().zip(before) {
        let now = stamps(path)?;
        let moved = match (now.modified > before.modified, now.changed > before.changed) {
            (false, false) if now == before => Moves::Nothing,
            (false, true) if now.modified == before.modified => Moves::Changed,
            (true, true) => Moves::Both,
            _ => bail!("{deed}: {} went from {before:?} to {now:?}", path.display()),
        };
        ensure!(moved == *wanted, "{deed} moved {moved:?} of {}, not {wanted:?}", path.display());
    }
    Ok(())
}

fn times_of_deeds(folder: &Path) -> Result<()> {
    use Moves::{Both, Changed, Nothing};
    let (file, other, below) = (folder.join("file"), folder.join("other"), folder.join("below"));
    let (link, moved) = (folder.join("link"), below.join("moved"));
    let here = folder;
    after("creating", || Ok(fs::write(&file, "x")?), &[(here, Both)])?;
    after("making a folder", || Ok(fs::create_dir(&below)?), &[(here, Both), (&file, Nothing)])?;
    after("making a link", || Ok(symlink("file", &link)?), &[(here, Both), (&file, Nothing)])?;
    after("linking", || Ok(fs::hard_link(&file, &other)?), &[(here, Both), (&file, Changed)])?;
    let renamed = stamps(&other)?;
    after("renaming", || Ok(fs::rename(&other, &moved)?), &[(here, Both), (&below, Both), (&file, Changed)])?;
    ensure!(stamps(&moved)?.modified == renamed.modified, "renaming moved the modification time");
    after(
        "removing a name",
        || Ok(fs::remove_file(&moved)?),
        &[(here, Nothing), (&below, Both), (&file, Changed)],
    )?;

    let open = open_both(&file)?;
    after("writing", || Ok(open.write_all_at(b"12345", 3)?), &[(&file, Both), (here, Nothing)])?;
    after("writing nothing", || Ok(open.write_all_at(b"", 3)?), &[(&file, Nothing)])?;
    after("shortening", || Ok(open.set_len(2)?), &[(&file, Both)])?;
    after("lengthening", || Ok(open.set_len(9000)?), &[(&file, Both)])?;
    after("opening to truncate", || Ok(File::create(&file).map(drop)?), &[(&file, Both)])?;
    after("opening to truncate what is empty", || Ok(File::create(&file).map(drop)?), &[(&file, Both)])?;
    let allocate = |mode, at| move || Ok(fallocate(open_both(&folder.join("file"))?, mode, at, 5000)?);
    after("allocating", allocate(FallocateFlags::empty(), 0), &[(&file, Both)])?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    after("punching", allocate(punch, 100), &[(&file, Both)])?;

    after("changing the mode", || set_mode(&file, 0o600), &[(&file, Changed), (here, Nothing)])?;
    after("changing the owner", || Ok(chown(&file, Some(1), Some(1))?), &[(&file, Changed)])?;
    let set = || Ok(setxattr(&file, "user.name", b"value", XattrFlags::empty())?);
    after("setting an attribute", set, &[(&file, Changed)])?;
    after("removing an attribute", || Ok(removexattr(&file, "user.name")?), &[(&file, Changed)])?;
    after("reading", || Ok(fs::read(&file).map(drop)?), &[(&file, Nothing)])?;
    after("listing", || Ok(fs::read_dir(here).map(drop)?), &[(here, Nothing)])?;
    after(
        "a refused rename",
        || expect_error(fs::rename(&file, &below), Errno::ISDIR, "a file over a folder"),
        &[(&file, Nothing), (here, Nothing)],
    )?;
    after(
        "a refused removal",
        || expect_error(fs::remove_dir(here), Errno::NOTEMPTY, "a full folder"),
        &[(here, Nothing)],
    )?;
    after("removing a folder", || Ok(fs::remove_dir(&below)?), &[(here, Both)])
}

fn times_set(folder: &Path) -> Result<()> {
    let (file, link) = (folder.join("file"), folder.join("link"));
    fs::write(&file, "x")?;
    symlink("file", &link)?;
    let set = |path: &Path, accessed: Timespec, modified: Timespec| {
        let times = Timestamps { last_access: accessed, last_modification: modified };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
    };
    let at = |seconds: i64, nanoseconds: i64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    // Before 1970, the ends of 32 bits, and far beyond, to the nanosecond.
    for (seconds, nanoseconds) in [
        (0, 0),
        (1, 999_999_999),
        (-1, 1),
        (-86_400, 5),
        (0x7fff_ffff, 9),
        (0x8000_0000, 7),
        (0x2_0000_0000, 3),
    ] {
        for path in [&file, &link] {
            set(path, at(seconds + 1, nanoseconds), at(seconds, nanoseconds))
                .with_context(|| format!("{seconds} s"))?;
            let found = fs::symlink_metadata(path)?;
            let told = (found.mtime(), found.mtime_nsec(), found.atime(), found.atime_nsec());
            let wanted = (seconds, nanoseconds, seconds + 1, nanoseconds);
            ensure!(told == wanted, "{told:?}, not {wanted:?}");
        }
    }
    let before = fs::metadata(&file)?;
    thread::sleep(TICK);
    set(&file, at(0, UTIME_OMIT), at(0, UTIME_NOW))?;
    let after = fs::metadata(&file)?;
    ensure!(
        after.atime() == before.atime() && after.atime_nsec() == before.atime_nsec(),
        "an omitted time moved"
    );
    ensure!(
        after.ctime() - after.mtime() <= 1,
        "now is {} s before the change",
        after.ctime() - after.mtime()
    );
    expect(set(&file, at(0, 1_000_000_000), at(0, 0)), Errno::INVAL, "a thousand million nanoseconds")
}

fn times_rights(folder: &Path) -> Result<()> {
    set_mode(folder, 0o755)?;
    let file = folder.join("file");
    fs::write(&file, "x")?;
    chown(&file, Some(OWNER.user), Some(OWNER.group))?;
    set_mode(&file, 0o666)?;
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW as _ };
    let then = Timespec { tv_sec: 5, tv_nsec: 5 };
    let set = |time: Timespec| {
        utimensat(CWD, &file, &Timestamps { last_access: time, last_modification: time }, AtFlags::empty())
    };
    OWNER.does(|| Ok(set(then)?))?;
    // Who may write may say that it was now, and nothing else.
    STRANGER.does(|| {
        expect(set(then), Errno::PERM, "another's file dated back")?;
        Ok(set(now)?)
    })?;
    set_mode(&file, 0o644)?;
    STRANGER.does(|| expect(set(now), Errno::ACCESS, "another's file touched"))
}

/// Reading moves the access time as `relatime` has it: when it is not after the modification.
fn times_of_reading(folder: &Path) -> Result<()> {
    let file = folder.join("file");
    fs::write(&file, "x")?;
    let accessed = || fs::metadata(&file).map(|found| (found.atime(), found.atime_nsec()));
    let written = accessed()?;
    thread::sleep(TICK);
    fs::read(&file)?;
    let read = accessed()?;
    ensure!(read >= written, "reading set the access time back");
    thread::sleep(TICK);
    fs::read(&file)?;
    ensure!(accessed()? == read, "a second reading moved the access time again");
    Ok(())
}
