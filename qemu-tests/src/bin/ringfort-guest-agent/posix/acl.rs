//! POSIX access control lists, as the kernel carries them in extended attributes.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;

use super::Check;
use super::expect::{expect, expect_error, mode, open_both, set_mode};
use super::person::{MEMBER, OWNER, Person, STRANGER};

pub const CHECKS: &[(&str, Check)] =
    &[("acl-access", acl_access), ("acl-inherited", acl_inherited), ("acl-and-mode", acl_and_mode)];

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// One entry: whom it is about, and the bits it grants.
#[derive(Clone, Copy)]
enum Entry {
    UserOwner(u16),
    User(Person, u16),
    GroupOwner(u16),
    Group(u32, u16),
    Mask(u16),
    Other(u16),
}

/// The attribute's bytes, which Linux defines: a version, then tag, bits and id of each entry.
fn list(entries: &[Entry]) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for entry in entries {
        let (tag, bits, id): (u16, u16, u32) = match entry {
            Entry::UserOwner(bits) => (0x01, *bits, NOBODY),
            Entry::User(person, bits) => (0x02, *bits, person.user),
            Entry::GroupOwner(bits) => (0x04, *bits, NOBODY),
            Entry::Group(group, bits) => (0x08, *bits, *group),
            Entry::Mask(bits) => (0x10, *bits, NOBODY),
            Entry::Other(bits) => (0x20, *bits, NOBODY),
        };
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&bits.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn set(path: &Path, kind: &str, entries: &[Entry]) -> rustix::io::Result<()> {
    setxattr(path, kind, &list(entries), XattrFlags::empty())
}

fn get(path: &Path, kind: &str) -> rustix::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 1024];
    let length = getxattr(path, kind, bytes.as_mut_slice())?;
    bytes.truncate(length);
    Ok(bytes)
}

fn acl_access(folder: &Path) -> Result<()> {
    set_mode(folder, 0o755)?;
    let file = folder.join("file");
    fs::write(&file, "x")?;
    chown(&file, Some(OWNER.user), Some(77))?;
    set_mode(&file, 0o600)?;
    let reads = |person: Person| person.does(|| Ok(File::open(&file).is_ok()));
    let writes = |person: Person| person.does(|| Ok(File::options().write(true).open(&file).is_ok()));
    ensure!(!reads(STRANGER)? && !reads(MEMBER)?);
    let entries = [
        Entry::UserOwner(6),
        Entry::User(STRANGER, 6),
        Entry::GroupOwner(0),
        Entry::Group(OWNER.group, 4),
        Entry::Mask(6),
        Entry::Other(0),
    ];
    set(&file, ACCESS, &entries).context("setting a list")?;
    ensure!(get(&file, ACCESS)? == list(&entries), "the list reads back otherwise");
    // The mask shows as the group's bits.
    ensure!(mode(&file)? == 0o660, "{:o}", mode(&file)?);
    ensure!(reads(STRANGER)? && writes(STRANGER)?, "a user named in the list was refused");
    ensure!(reads(MEMBER)? && !writes(MEMBER)?, "a group named in the list has other rights");
    // Changing the group's bits changes the mask, and with it what those named may do.
    set_mode(&file, 0o640)?;
    ensure!(reads(STRANGER)? && !writes(STRANGER)?, "the mask does not hold");
    set_mode(&file, 0o600)?;
    ensure!(!reads(STRANGER)? && !reads(MEMBER)?, "an empty mask lets somebody in");
    set_mode(&file, 0o660)?;
    STRANGER.does(|| expect(set(&file, ACCESS, &entries), Errno::PERM, "another's list"))?;
    let broken = [Entry::UserOwner(6), Entry::User(STRANGER, 6), Entry::GroupOwner(0), Entry::Other(0)];
    expect(set(&file, ACCESS, &broken), Errno::INVAL, "a list with names and no mask")?;
    removexattr(&file, ACCESS).context("removing the list")?;
    ensure!(!reads(STRANGER)?);
    expect(get(&file, ACCESS), Errno::NODATA, "a list that was removed")
}

fn acl_inherited(folder: &Path) -> Result<()> {
    set_mode(folder, 0o755)?;
    let shared = folder.join("shared");
    fs::create_dir(&shared)?;
    let entries = [
        Entry::UserOwner(7),
        Entry::User(STRANGER, 7),
        Entry::GroupOwner(5),
        Entry::Mask(7),
        Entry::Other(0),
    ];
    set(&shared, DEFAULT, &entries).context("setting a default list")?;
    let file = shared.join("file");
    fs::write(&file, "x")?;
    // The maker's mode limits what is handed down; the mask of the process does not.
    ensure!(mode(&file)? == 0o660, "a file was made with {:o}", mode(&file)?);
    let inherited = [
        Entry::UserOwner(6),
        Entry::User(STRANGER, 7),
        Entry::GroupOwner(5),
        Entry::Mask(6),
        Entry::Other(0),
    ];
    ensure!(get(&file, ACCESS)? == list(&inherited), "a file was made with another list");
    fs::create_dir(shared.join("below"))?;
    ensure!(get(&shared.join("below"), DEFAULT)? == list(&entries), "a folder does not hand the list down");
    ensure!(get(&shared.join("below"), ACCESS)? == list(&entries), "a folder was made with another list");
    set_mode(&shared, 0o755)?;
    STRANGER.does(|| open_both(&file).map(drop).context("a user named in an inherited list"))?;
    MEMBER.does(|| expect_error(File::open(&file), Errno::ACCESS, "one not named in it"))?;
    expect(set(&file, DEFAULT, &entries), Errno::ACCESS, "a default list of a file")?;
    removexattr(&shared, DEFAULT).context("removing the default list")?;
    fs::write(shared.join("plain"), "x")?;
    ensure!(mode(&shared.join("plain"))? == 0o644);
    Ok(())
}

/// A list that says no more than a mode is one.
fn acl_and_mode(folder: &Path) -> Result<()> {
    let file = folder.join("file");
    fs::write(&file, "x")?;
    set(&file, ACCESS, &[Entry::UserOwner(6), Entry::GroupOwner(4), Entry::Other(1)])?;
    ensure!(mode(&file)? == 0o641, "{:o}", mode(&file)?);
    expect(get(&file, ACCESS), Errno::NODATA, "a list that is a mode")?;
    // Setting a list by one outside the file's group clears the group's set-id bit, as changing the mode does.
    chown(&file, Some(OWNER.user), Some(STRANGER.group))?;
    set_mode(&file, 0o2755)?;
    OWNER.does(|| Ok(set(&file, ACCESS, &[Entry::UserOwner(7), Entry::GroupOwner(5), Entry::Other(5)])?))?;
    ensure!(mode(&file)? == 0o755, "{:o}", mode(&file)?);
    Ok(())
}
