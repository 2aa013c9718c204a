//! Names of any bytes and lengths, deep trees, folders of many entries.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use super::Check;
use super::expect::expect_error;

pub const CHECKS: &[(&str, Check)] = &[
    ("names", names),
    ("names-of-any-bytes", names_of_any_bytes),
    ("deep-tree", deep_tree),
    ("many-entries", many_entries),
    ("listing-while-removing", listing_while_removing),
];

fn names(folder: &Path) -> Result<()> {
    let longest = "n".repeat(255);
    let too_long = folder.join("n".repeat(256));
    let path = folder.join(&longest);
    fs::write(&path, "x")?;
    let found: Vec<_> = fs::read_dir(folder)?.collect::<std::io::Result<_>>()?;
    ensure!(found.len() == 1 && found[0].file_name() == longest.as_str(), "listed: {found:?}");
    expect_error(fs::write(&too_long, "x"), Errno::NAMETOOLONG, "a name of 256 bytes")?;
    expect_error(fs::create_dir(&too_long), Errno::NAMETOOLONG, "a folder's name of 256 bytes")?;
    expect_error(fs::metadata(&too_long), Errno::NAMETOOLONG, "looking up 256 bytes")?;
    expect_error(fs::rename(&path, &too_long), Errno::NAMETOOLONG, "renaming to 256 bytes")?;
    ensure!(fs::read(&path)? == b"x");
    fs::remove_file(&path)?;
    Ok(())
}

fn names_of_any_bytes(folder: &Path) -> Result<()> {
    let mut made = BTreeSet::new();
    for byte in (1..=255u8).filter(|byte| *byte != b'/') {
        // Alone, and 255 times: names are bytes, in no encoding. Of dots alone only three or more are a name.
        for length in [3, 255] {
            let name = vec![byte; length];
            fs::write(folder.join(OsStr::from_bytes(&name)), [byte])
                .with_context(|| format!("{length} × {byte:#x}"))?;
            made.insert(name);
        }
    }
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().as_bytes().to_vec();
        ensure!(found.insert(name.clone()), "{name:?} is listed twice");
    }
    ensure!(found == made, "{} names are listed, {} were made", found.len(), made.len());
    for name in &made {
        let path = folder.join(OsStr::from_bytes(name));
        ensure!(fs::read(&path)? == name[..1], "{name:?} holds something else");
    }
    // Letters of either case are different names, and so are two spellings of one letter.
    for name in ["case", "CASE", "\u{e9}", "e\u{301}"] {
        fs::create_dir(folder.join(name)).with_context(|| format!("a folder {name:?}"))?;
    }
    Ok(())
}

fn deep_tree(folder: &Path) -> Result<()> {
    // Deeper than any path may be long: each step from the folder before.
    const DEPTH: u32 = 300;
    let name = "d".repeat(50);
    let open = |above: &File| {
        openat(above, &*name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map(File::from)
    };
    let mut above = File::open(folder)?;
    let first = above.metadata()?.ino();
    for depth in 0..DEPTH {
        mkdirat(&above, &*name, Mode::RWXU).with_context(|| format!("at depth {depth}"))?;
        above = open(&above)?;
    }
    let path = folder.join(format!("{name}/").repeat(DEPTH as usize));
    expect_error(fs::metadata(path), Errno::NAMETOOLONG, "a path of 15,000 bytes")?;
    for _ in 0..DEPTH {
        above = openat(&above, "..", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map(File::from)?;
    }
    ensure!(above.metadata()?.ino() == first, "the way up ends elsewhere");
    Ok(())
}

fn many_entries(folder: &Path) -> Result<()> {
    const ENTRIES: usize = 2500;
    for number in 0..ENTRIES {
        let name = format!("{number:0width$}", width = 4 + number % 60);
        File::create(folder.join(&name)).with_context(|| format!("entry {number}"))?;
    }
    let listed: BTreeSet<_> =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
    ensure!(listed.len() == ENTRIES, "{} of {ENTRIES} names are listed", listed.len());
    Ok(())
}

fn listing_while_removing(folder: &Path) -> Result<()> {
    const ENTRIES: usize = 600;
    for number in 0..ENTRIES {
        File::create(folder.join(format!("entry-{number}")))?;
    }
    // What stays through a whole listing is listed once, whatever comes and goes beside it.
    let mut seen = BTreeSet::new();
    for (count, entry) in fs::read_dir(folder)?.enumerate() {
        let name = entry?.file_name();
        let text = name.to_string_lossy().into_owned();
        let Some(number) = text.strip_prefix("entry-").and_then(|number| number.parse::<usize>().ok()) else {
            continue;
        };
        ensure!(seen.insert(number), "entry {number} is listed twice");
        if count % 3 == 0 {
            File::create(folder.join(format!("new-{count}")))?;
        }
        // One that was listed goes, and one that may not have been.
        for gone in [number, (number + 301) % ENTRIES] {
            if gone % 2 == 1 {
                let _ = fs::remove_file(folder.join(format!("entry-{gone}")));
            }
        }
    }
    for number in (0..ENTRIES).step_by(2) {
        ensure!(seen.contains(&number), "entry {number} was never listed");
    }
    Ok(())
}
