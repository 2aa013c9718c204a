//! Hard links, symbolic links, removal, files without a name.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::libc;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;

use super::Check;
use super::expect::{expect, expect_error, open_new, read_all, set_mode};
use super::person::{OWNER, STRANGER};

pub const CHECKS: &[(&str, Check)] = &[
    ("links", links),
    ("removal", removal),
    ("symbolic-links", symbolic_links),
    ("unlinked", unlinked),
    ("nameless", nameless),
];

fn links(folder: &Path) -> Result<()> {
    let (file, other, pointer) = (folder.join("file"), folder.join("other"), folder.join("pointer"));
    fs::write(&file, "content")?;
    fs::hard_link(&file, &other)?;
    let (one, two) = (fs::metadata(&file)?, fs::metadata(&other)?);
    ensure!(one.ino() == two.ino() && one.nlink() == 2 && two.nlink() == 2, "{} links", one.nlink());
    fs::remove_file(&file)?;
    ensure!(fs::metadata(&other)?.nlink() == 1 && fs::read(&other)? == b"content");
    let target = "t".repeat(1000);
    symlink(&target, &pointer)?;
    ensure!(fs::read_link(&pointer)?.as_os_str() == target.as_str());
    ensure!(fs::symlink_metadata(&pointer)?.len() == 1000);
    expect_error(fs::read(&pointer), Errno::NAMETOOLONG, "following a name that is too long")?;
    expect_error(fs::hard_link(folder, folder.join("loop")), Errno::PERM, "a hard link to a folder")?;
    let before = fs::metadata(folder)?.nlink();
    fs::create_dir(folder.join("below"))?;
    let after = fs::metadata(folder)?.nlink();
    ensure!(after == before + 1, "a folder's links went from {before} to {after} with a folder made in it");
    Ok(())
}

fn unlinked(folder: &Path) -> Result<()> {
    let path = folder.join("file");
    let file = open_new(&path)?;
    file.write_all_at(&vec![3; 300_000], 0)?;
    fs::remove_file(&path)?;
    ensure!(file.metadata()?.nlink() == 0 && !path.exists());
    fs::write(&path, "another")?;
    file.write_all_at(b"more", 300_000)?;
    let bytes = read_all(&file)?;
    ensure!(
        bytes.len() == 300_004 && bytes[..300_000].iter().all(|byte| *byte == 3),
        "{} bytes",
        bytes.len()
    );
    ensure!(bytes.ends_with(b"more"));
    ensure!(fs::read(&path)? == b"another");
    Ok(())
}

fn removal(folder: &Path) -> Result<()> {
    let (file, empty, full) = (folder.join("file"), folder.join("empty"), folder.join("full"));
    fs::write(&file, "x")?;
    fs::create_dir(&empty)?;
    fs::create_dir_all(full.join("below"))?;
    expect_error(fs::remove_dir(&file), Errno::NOTDIR, "removing a file as a folder")?;
    // Linux says that it is a folder, where POSIX leaves EPERM open too.
    expect_error(fs::remove_file(&empty), Errno::ISDIR, "removing a folder as a file")?;
    expect_error(fs::remove_dir(&full), Errno::NOTEMPTY, "removing a full folder")?;
    expect_error(fs::remove_dir(full.join("below/.")), Errno::INVAL, "removing a folder by its dot")?;
    expect_error(
        fs::remove_dir(full.join("below/..")),
        Errno::NOTEMPTY,
        "removing a folder by its two dots",
    )?;
    expect_error(fs::remove_file(folder.join("absent")), Errno::NOENT, "removing nothing")?;
    expect_error(fs::remove_file(file.join("below")), Errno::NOTDIR, "removing below a file")?;
    expect_error(fs::create_dir(&file), Errno::EXIST, "a folder where a file is")?;
    expect_error(fs::create_dir(&empty), Errno::EXIST, "a folder where one is")?;
    // A folder that is somebody's own still answers when its name is gone, and takes nothing more.
    let held = File::open(&empty)?;
    fs::remove_dir(&empty)?;
    ensure!(held.metadata()?.nlink() == 0, "a removed folder has {} links", held.metadata()?.nlink());
    let made = openat(&held, "new", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
    expect(made, Errno::NOENT, "a file made in a removed folder")?;
    Ok(())
}

fn symbolic_links(folder: &Path) -> Result<()> {
    let link = folder.join("link");
    let longest = "t".repeat(4095);
    symlink(&longest, &link).context("a target of 4095 bytes")?;
    ensure!(fs::read_link(&link)?.as_os_str().len() == 4095);
    let found = fs::symlink_metadata(&link)?;
    ensure!(
        found.len() == 4095 && found.mode() & 0o7777 == 0o777,
        "{} bytes, {:o}",
        found.len(),
        found.mode()
    );
    expect_error(symlink("t".repeat(4096), folder.join("x")), Errno::NAMETOOLONG, "a target of 4096 bytes")?;
    expect_error(symlink("", folder.join("x")), Errno::NOENT, "an empty target")?;
    expect_error(symlink("t", &link), Errno::EXIST, "a link where one is")?;
    let round = folder.join("round");
    symlink("round", &round)?;
    expect_error(fs::metadata(&round), Errno::LOOP, "following a circle")?;
    expect_error(fs::write(&round, "x"), Errno::LOOP, "writing through a circle")?;
    let mut above = folder.join("chain-0");
    fs::write(&above, "end")?;
    for number in 1..=40 {
        let next = folder.join(format!("chain-{number}"));
        symlink(&above, &next)?;
        above = next;
    }
    ensure!(fs::read(&above)? == b"end", "forty links in a row");
    symlink(&above, folder.join("chain-41"))?;
    expect_error(fs::read(folder.join("chain-41")), Errno::LOOP, "forty-one links in a row")?;
    // A link made in a folder with nobody's rights to it stays its maker's.
    set_mode(folder, 0o777)?;
    OWNER.does(|| Ok(symlink("t", folder.join("own"))?))?;
    let own = fs::symlink_metadata(folder.join("own"))?;
    ensure!(own.uid() == OWNER.user && own.gid() == OWNER.group, "owned by {}:{}", own.uid(), own.gid());
    // Creating through a link that points nowhere makes the target.
    symlink("target", folder.join("pointer"))?;
    fs::write(folder.join("pointer"), "made")?;
    ensure!(fs::read(folder.join("target"))? == b"made");
    let exclusive = File::options().write(true).create_new(true).open(folder.join("pointer"));
    expect_error(exclusive, Errno::EXIST, "creating exclusively through a link")?;
    let refused = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(folder.join("pointer"));
    expect_error(refused, Errno::LOOP, "opening a link that must not be followed")
}

fn nameless(folder: &Path) -> Result<()> {
    let open = |flags: i32| {
        File::options().read(true).write(true).mode(0o640).custom_flags(libc::O_TMPFILE | flags).open(folder)
    };
    let mut file = open(0).context("a file without a name")?;
    file.write_all(b"no name yet")?;
    ensure!(file.metadata()?.nlink() == 0, "{} links", file.metadata()?.nlink());
    ensure!(fs::read_dir(folder)?.count() == 0, "a file without a name is listed");
    let named = folder.join("named");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    linkat(CWD, &path, CWD, &named, AtFlags::SYMLINK_FOLLOW).context("naming it")?;
    ensure!(fs::read(&named)? == b"no name yet");
    let found = fs::metadata(&named)?;
    ensure!(found.nlink() == 1 && found.mode() & 0o777 == 0o640, "{:o}", found.mode());
    file.write_all(b", but now")?;
    ensure!(fs::read(&named)? == b"no name yet, but now");
    expect(linkat(CWD, &path, CWD, &named, AtFlags::SYMLINK_FOLLOW), Errno::EXIST, "naming it as another")?;

    let mut exclusive = open(libc::O_EXCL).context("a file that is never named")?;
    exclusive.write_all(b"x")?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&exclusive));
    let other = folder.join("other");
    expect(
        linkat(CWD, &path, CWD, &other, AtFlags::SYMLINK_FOLLOW),
        Errno::NOENT,
        "naming what is never named",
    )?;
    let mut content = Vec::new();
    File::open(&path)?.read_to_end(&mut content)?;
    ensure!(content == b"x");

    set_mode(folder, 0o755)?;
    STRANGER.does(|| expect_error(open(0), Errno::ACCESS, "a nameless file in another's folder"))
}
