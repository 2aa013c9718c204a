//! Renaming, with and without flags.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::Check;
use super::expect::{expect, expect_error, read_all, set_mode};
use super::person::{OWNER, STRANGER};

pub const CHECKS: &[(&str, Check)] = &[
    ("rename", rename),
    ("rename-with-flags", rename_with_flags),
    ("rename-refused", rename_refused),
    ("rename-rights", rename_rights),
];

fn rename(folder: &Path) -> Result<()> {
    let (one, two) = (folder.join("one"), folder.join("two"));
    fs::write(&one, "one")?;
    fs::write(&two, "two")?;
    let held = File::open(&two)?;
    fs::rename(&one, &two)?;
    ensure!(!one.exists() && fs::read(&two)? == b"one");
    ensure!(held.metadata()?.nlink() == 0, "what was replaced still has a link");
    ensure!(read_all(&held)? == b"two", "what was replaced reads otherwise");
    let (full, empty) = (folder.join("full"), folder.join("empty"));
    fs::create_dir_all(full.join("below/deeper"))?;
    fs::create_dir(&empty)?;
    expect_error(fs::rename(&empty, &full), Errno::NOTEMPTY, "renaming over a full folder")?;
    expect_error(fs::rename(&full, full.join("below/self")), Errno::INVAL, "renaming a folder into itself")?;
    expect_error(fs::rename(&two, &empty), Errno::ISDIR, "renaming a file over a folder")?;
    fs::rename(&full, &empty)?;
    ensure!(!full.exists() && empty.join("below/deeper").is_dir());
    Ok(())
}

fn rename_with_flags(folder: &Path) -> Result<()> {
    let (file, other, below) = (folder.join("file"), folder.join("other"), folder.join("below"));
    fs::write(&file, "file")?;
    fs::write(&other, "other")?;
    fs::create_dir(&below)?;
    let renamed = |from: &Path, to: &Path, flags| renameat_with(CWD, from, CWD, to, flags);
    expect(renamed(&file, &other, RenameFlags::NOREPLACE), Errno::EXIST, "renaming over a file")?;
    ensure!(fs::read(&file)? == b"file" && fs::read(&other)? == b"other", "a refused rename changed files");
    renamed(&other, &folder.join("new"), RenameFlags::NOREPLACE).context("renaming to a new name")?;
    ensure!(!other.exists() && fs::read(folder.join("new"))? == b"other");
    expect(renamed(&file, &other, RenameFlags::EXCHANGE), Errno::NOENT, "exchanging with nothing")?;
    renamed(&file, &folder.join("new"), RenameFlags::EXCHANGE).context("exchanging files")?;
    ensure!(fs::read(&file)? == b"other" && fs::read(folder.join("new"))? == b"file");
    // Across folders a folder's parent and both link counts change with it.
    fs::create_dir(below.join("inner"))?;
    let links = |path: &Path| fs::metadata(path).map(|found| found.nlink());
    let (above_before, below_before) = (links(folder)?, links(&below)?);
    renamed(&file, &below.join("inner"), RenameFlags::EXCHANGE).context("exchanging a file with a folder")?;
    ensure!(file.is_dir() && fs::read(below.join("inner"))? == b"other");
    let (above, below) = (links(folder)?, links(&below)?);
    ensure!(above == above_before + 1 && below == below_before - 1, "{above} and {below} links");
    ensure!(fs::metadata(file.join(".."))?.ino() == fs::metadata(folder)?.ino(), "the parent is another");
    Ok(())
}

fn rename_refused(folder: &Path) -> Result<()> {
    let (file, other, inner) = (folder.join("file"), folder.join("other"), folder.join("outer/inner"));
    fs::write(&file, "x")?;
    fs::create_dir_all(&inner)?;
    expect_error(fs::rename(folder.join("absent"), &other), Errno::NOENT, "renaming nothing")?;
    expect_error(fs::rename(&file, folder.join("absent/other")), Errno::NOENT, "into no folder")?;
    expect_error(fs::rename(&file, file.join("other")), Errno::NOTDIR, "below a file")?;
    expect_error(fs::rename(&inner, &file), Errno::NOTDIR, "a folder over a file")?;
    expect_error(
        fs::rename(&inner, folder.join("outer")),
        Errno::NOTEMPTY,
        "a folder over the one above it",
    )?;
    expect_error(fs::rename(folder.join("outer"), inner.join("deeper")), Errno::INVAL, "below itself")?;
    let exchanged = renameat_with(CWD, folder.join("outer"), CWD, &inner, RenameFlags::EXCHANGE);
    expect(exchanged, Errno::INVAL, "exchanging a folder with one below it")?;
    // Two names of one file: nothing happens, and both stay.
    fs::hard_link(&file, &other)?;
    fs::rename(&file, &other)?;
    ensure!(file.exists() && other.exists() && fs::metadata(&file)?.nlink() == 2, "a second name went away");
    fs::rename(&file, &file)?;
    ensure!(file.exists());
    Ok(())
}

fn rename_rights(folder: &Path) -> Result<()> {
    let (open, closed) = (folder.join("open"), folder.join("closed"));
    fs::create_dir(&open)?;
    fs::create_dir(&closed)?;
    set_mode(folder, 0o755)?;
    set_mode(&open, 0o777)?;
    set_mode(&closed, 0o755)?;
    fs::write(open.join("file"), "x")?;
    fs::write(closed.join("file"), "x")?;
    let rename = |from: &Path, to: &Path| fs::rename(from, to);
    STRANGER.does(|| {
        expect_error(rename(&open.join("file"), &closed.join("new")), Errno::ACCESS, "into a closed folder")?;
        expect_error(
            rename(&closed.join("file"), &open.join("new")),
            Errno::ACCESS,
            "out of a closed folder",
        )?;
        Ok(rename(&open.join("file"), &open.join("new"))?)
    })?;
    // A folder that is moved elsewhere has its two dots rewritten, which needs the right to write it.
    fs::create_dir(open.join("moved"))?;
    let elsewhere = open.join("elsewhere");
    fs::create_dir(&elsewhere)?;
    set_mode(&elsewhere, 0o777)?;
    STRANGER.does(|| {
        expect_error(
            rename(&open.join("moved"), &elsewhere.join("moved")),
            Errno::ACCESS,
            "another's folder elsewhere",
        )
    })?;
    std::os::unix::fs::chown(open.join("moved"), Some(OWNER.user), Some(OWNER.group))?;
    OWNER.does(|| Ok(rename(&open.join("moved"), &elsewhere.join("moved"))?))?;
    ensure!(fs::metadata(elsewhere.join("moved/.."))?.ino() == fs::metadata(&elsewhere)?.ino());
    Ok(())
}
