//! Who may do what: modes, owners, groups, set-id and sticky bits.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown, lchown, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;

use super::Check;
use super::expect::{expect_error, mode, open_both, set_mode};
use super::person::{MEMBER, OWNER, STRANGER};

pub const CHECKS: &[(&str, Check)] = &[
    ("access", access),
    ("change-of-mode", change_of_mode),
    ("change-of-owner", change_of_owner),
    ("group-of-new", group_of_new),
    ("set-id", set_id),
    ("sticky", sticky),
];

/// Each class of users has its own bits, and only its own.
fn access(folder: &Path) -> Result<()> {
    set_mode(folder, 0o755)?;
    let (file, below) = (folder.join("file"), folder.join("below"));
    fs::write(&file, "x")?;
    fs::create_dir(&below)?;
    fs::write(below.join("inner"), "x")?;
    for path in [&file, &below] {
        chown(path, Some(OWNER.user), Some(OWNER.group))?;
    }
    for (shift, person) in [(6, OWNER), (3, MEMBER), (0, STRANGER)] {
        for bits in 0..8 {
            // What the two other classes may is the opposite, so that taking the wrong one shows.
            let others = ((0o7 ^ bits) * 0o111) & !(0o7 << shift);
            set_mode(&file, others | bits << shift)?;
            set_mode(&below, others | bits << shift)?;
            let (read, write, search) = (bits & 4 != 0, bits & 2 != 0, bits & 1 != 0);
            person
                .does(|| {
                    allowed(File::open(&file), read, "reading a file")?;
                    allowed(File::options().write(true).open(&file), write, "writing a file")?;
                    allowed(open_both(&file), read && write, "reading and writing a file")?;
                    allowed(fs::read_dir(&below), read, "listing a folder")?;
                    allowed(fs::metadata(below.join("inner")), search, "looking into a folder")?;
                    allowed(fs::write(below.join("new"), "x"), write && search, "making a file")?;
                    allowed(fs::create_dir(below.join("made")), write && search, "making a folder")?;
                    allowed(symlink("t", below.join("link")), write && search, "making a link")?;
                    if write && search {
                        fs::rename(below.join("new"), below.join("renamed"))?;
                        fs::remove_file(below.join("renamed"))?;
                        fs::remove_dir(below.join("made"))?;
                        fs::remove_file(below.join("link"))?;
                    } else {
                        allowed(fs::remove_file(below.join("inner")), false, "removing a file")?;
                    }
                    Ok(())
                })
                .with_context(|| format!("with {bits:o} for class {shift}"))?;
        }
    }
    Ok(())
}

fn allowed<T>(result: std::io::Result<T>, may: bool, what: &str) -> Result<()> {
    if may {
        result.map(drop).with_context(|| what.to_owned())
    } else {
        expect_error(result, Errno::ACCESS, what)
    }
}

fn change_of_mode(folder: &Path) -> Result<()> {
    set_mode(folder, 0o755)?;
    let (file, below) = (folder.join("file"), folder.join("below"));
    fs::write(&file, "x")?;
    fs::create_dir(&below)?;
    for path in [&file, &below] {
        chown(path, Some(OWNER.user), Some(OWNER.group))?;
        for bits in [0, 0o7777, 0o1777, 0o2755, 0o4755, 0o644] {
            set_mode(path, bits)?;
            ensure!(mode(path)? == bits, "{:o} in the place of {bits:o}", mode(path)?);
        }
    }
    for person in [MEMBER, STRANGER] {
        let change = || fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o777));
        person.does(|| expect_error(change(), Errno::PERM, "changing another's mode"))?;
    }
    OWNER.does(|| set_mode(&file, 0o4711))?;
    ensure!(mode(&file)? == 0o4711, "{:o}", mode(&file)?);
    // The group's set-id bit is only for who is in the group.
    chown(&file, Some(OWNER.user), Some(STRANGER.group))?;
    OWNER.does(|| set_mode(&file, 0o2711))?;
    ensure!(mode(&file)? == 0o711, "{:o} for one outside the group", mode(&file)?);
    // What a process masks is not in what it makes.
    for (wanted, name) in [(0o640, "made"), (0o4755, "armed")] {
        let path = folder.join(name);
        File::options().write(true).create_new(true).mode(wanted).open(&path)?;
        ensure!(mode(&path)? == wanted & !0o022, "{:o} in the place of {wanted:o}", mode(&path)?);
    }
    fs::DirBuilder::new().mode(0o1777).create(folder.join("folder"))?;
    ensure!(mode(&folder.join("folder"))? == 0o1755, "{:o}", mode(&folder.join("folder"))?);
    Ok(())
}

fn change_of_owner(folder: &Path) -> Result<()> {
    set_mode(folder, 0o777)?;
    let (file, link) = (folder.join("file"), folder.join("link"));
    fs::write(&file, "x")?;
    chown(&file, Some(OWNER.user), Some(OWNER.group))?;
    let owners = |path: &Path| fs::symlink_metadata(path).map(|found| (found.uid(), found.gid()));
    ensure!(owners(&file)? == (OWNER.user, OWNER.group));
    OWNER.does(|| {
        expect_error(chown(&file, Some(STRANGER.user), None), Errno::PERM, "giving a file away")?;
        expect_error(chown(&file, None, Some(STRANGER.group)), Errno::PERM, "a group of others")?;
        Ok(chown(&file, Some(OWNER.user), Some(OWNER.group))?)
    })?;
    STRANGER
        .does(|| expect_error(chown(&file, None, Some(STRANGER.group)), Errno::PERM, "another's group"))?;
    // Its owner may give it to another group of theirs.
    chown(&file, Some(MEMBER.user), Some(MEMBER.group))?;
    MEMBER.does(|| Ok(chown(&file, None, Some(OWNER.group))?))?;
    ensure!(owners(&file)? == (MEMBER.user, OWNER.group));
    symlink("file", &link)?;
    lchown(&link, Some(OWNER.user), Some(OWNER.group))?;
    ensure!(owners(&link)? == (OWNER.user, OWNER.group) && owners(&file)? == (MEMBER.user, OWNER.group));
    chown(&link, Some(7), Some(8))?;
    ensure!(owners(&link)? == (OWNER.user, OWNER.group) && owners(&file)? == (7, 8));
    chown(&file, Some(u32::MAX - 1), Some(u32::MAX - 1))?;
    ensure!(owners(&file)? == (u32::MAX - 1, u32::MAX - 1), "{:?}", owners(&file)?);
    Ok(())
}

/// A folder with the group's set-id bit hands down its group, and the bit itself to folders.
fn group_of_new(folder: &Path) -> Result<()> {
    let shared = folder.join("shared");
    fs::create_dir(&shared)?;
    chown(&shared, Some(OWNER.user), Some(OWNER.group))?;
    set_mode(folder, 0o755)?;
    set_mode(&shared, 0o777)?;
    let group_and_mode = |name: &str| -> Result<(u32, u32)> {
        let path = shared.join(name);
        Ok((fs::symlink_metadata(&path)?.gid(), mode(&path)?))
    };
    STRANGER.does(|| Ok(fs::write(shared.join("plain"), "x")?))?;
    ensure!(group_and_mode("plain")?.0 == STRANGER.group);
    set_mode(&shared, 0o2777)?;
    STRANGER.does(|| {
        fs::write(shared.join("file"), "x")?;
        fs::create_dir(shared.join("folder"))?;
        symlink("t", shared.join("link"))?;
        Ok(())
    })?;
    ensure!(group_and_mode("file")? == (OWNER.group, 0o644), "{:?}", group_and_mode("file")?);
    ensure!(group_and_mode("folder")? == (OWNER.group, 0o2755), "{:?}", group_and_mode("folder")?);
    ensure!(group_and_mode("link")?.0 == OWNER.group);
    // One outside the group makes no program that runs as the group.
    STRANGER.does(|| {
        File::options().write(true).create_new(true).mode(0o2755).open(shared.join("program"))?;
        Ok(())
    })?;
    ensure!(group_and_mode("program")? == (OWNER.group, 0o755), "{:?}", group_and_mode("program")?);
    Ok(())
}

fn set_id(folder: &Path) -> Result<()> {
    set_mode(folder, 0o777)?;
    let file = folder.join("file");
    fs::write(&file, "x")?;
    let arm = || set_mode(&file, 0o6777);
    arm()?;
    File::options().append(true).open(&file)?.write_all(b"by root")?;
    ensure!(mode(&file)? == 0o6777, "a write by root left {:o}", mode(&file)?);
    type Deed = fn(&Path) -> std::io::Result<()>;
    let deeds: [(&str, Deed); 3] = [
        ("appending", |file| File::options().append(true).open(file)?.write_all(b"y")),
        ("opening to truncate", |file| File::create(file)?.write_all(b"y")),
        ("truncating", |file| File::options().write(true).open(file)?.set_len(3)),
    ];
    for (name, deed) in deeds {
        arm()?;
        STRANGER.does(|| Ok(deed(&file)?)).context(name)?;
        ensure!(mode(&file)? == 0o777, "{name} by a stranger left {:o}", mode(&file)?);
    }
    arm()?;
    chown(&file, Some(OWNER.user), Some(OWNER.group))?;
    ensure!(mode(&file)? == 0o777, "a new owner left {:o}", mode(&file)?);
    // Where the group may not execute, one in the group leaves the bit: it marked mandatory locks once.
    set_mode(&file, 0o2666)?;
    OWNER.does(|| Ok(File::options().append(true).open(&file)?.write_all(b"z")?))?;
    ensure!(mode(&file)? == 0o2666, "a write left {:o} of a file that nobody executes", mode(&file)?);
    Ok(())
}

fn sticky(folder: &Path) -> Result<()> {
    set_mode(folder, 0o777)?;
    let shared = folder.join("shared");
    fs::create_dir(&shared)?;
    set_mode(&shared, 0o1777)?;
    let (theirs, mine) = (shared.join("theirs"), shared.join("mine"));
    fs::write(&theirs, "x")?;
    STRANGER.does(|| {
        expect_error(fs::remove_file(&theirs), Errno::PERM, "removing another's file")?;
        expect_error(fs::rename(&theirs, &mine), Errno::PERM, "renaming another's file")?;
        fs::write(&mine, "x")?;
        expect_error(fs::rename(&mine, &theirs), Errno::PERM, "renaming over another's file")?;
        fs::rename(&mine, shared.join("own"))?;
        Ok(fs::remove_file(shared.join("own"))?)
    })?;
    // The folder's owner may.
    chown(&shared, Some(OWNER.user), Some(OWNER.group))?;
    OWNER.does(|| Ok(fs::remove_file(&theirs)?))?;
    set_mode(&shared, 0o777)?;
    fs::write(&theirs, "x")?;
    STRANGER.does(|| fs::remove_file(&theirs).context("without the sticky bit anybody may remove"))
}
