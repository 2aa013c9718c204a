//! Extended attributes.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{XattrFlags, getxattr, lgetxattr, listxattr, lsetxattr, removexattr, setxattr};
use rustix::io::Errno;

use super::Check;
use super::expect::{expect, set_mode};
use super::person::{OWNER, STRANGER};

pub const CHECKS: &[(&str, Check)] =
    &[("extended-attributes", extended_attributes), ("attribute-rights", attribute_rights)];

fn extended_attributes(folder: &Path) -> Result<()> {
    let file = folder.join("file");
    File::create(&file)?;
    let get = |name: &str, room: usize| {
        let mut value = vec![0; room];
        getxattr(&file, name, value.as_mut_slice()).map(|length| value[..length].to_vec())
    };
    let long = vec![0x5a; 3000];
    setxattr(&file, "user.short", b"value", XattrFlags::empty()).context("setting")?;
    setxattr(&file, "user.long", &long, XattrFlags::CREATE).context("setting a long one")?;
    setxattr(&file, "user.empty", b"", XattrFlags::empty()).context("setting an empty one")?;
    expect(setxattr(&file, "user.short", b"x", XattrFlags::CREATE), Errno::EXIST, "creating again")?;
    expect(setxattr(&file, "user.absent", b"x", XattrFlags::REPLACE), Errno::NODATA, "replacing nothing")?;
    ensure!(get("user.short", 64)? == b"value" && get("user.long", 4000)? == long);
    ensure!(get("user.empty", 64)?.is_empty());
    expect(get("user.long", 2999), Errno::RANGE, "reading into too little room")?;
    setxattr(&file, "user.short", b"other", XattrFlags::REPLACE).context("replacing")?;
    ensure!(get("user.short", 64)? == b"other");
    ensure!(listed(&file)? == ["user.empty", "user.long", "user.short"], "listed: {:?}", listed(&file)?);
    removexattr(&file, "user.long").context("removing")?;
    expect(removexattr(&file, "user.long"), Errno::NODATA, "removing again")?;
    expect(get("user.long", 64), Errno::NODATA, "reading what was removed")?;
    ensure!(listed(&file)? == ["user.empty", "user.short"], "listed: {:?}", listed(&file)?);
    Ok(())
}

fn listed(file: &Path) -> Result<Vec<String>> {
    let mut names = vec![0; 4096];
    let length = listxattr(file, names.as_mut_slice()).context("listing")?;
    let mut names: Vec<String> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn attribute_rights(folder: &Path) -> Result<()> {
    let file = folder.join("file");
    fs::write(&file, "x")?;
    set_mode(folder, 0o755)?;
    std::os::unix::fs::chown(&file, Some(OWNER.user), Some(OWNER.group))?;
    set_mode(&file, 0o644)?;
    let set = |name: &str| setxattr(&file, name, b"value", XattrFlags::empty());
    OWNER.does(|| Ok(set("user.own")?))?;
    STRANGER.does(|| expect(set("user.other"), Errno::ACCESS, "an attribute without the right to write"))?;
    OWNER.does(|| expect(set("trusted.own"), Errno::PERM, "a trusted attribute set by a user"))?;
    let mut room = [0; 16];
    STRANGER.does(|| Ok(getxattr(&file, "user.own", &mut room[..]).map(drop)?))?;
    set("trusted.root").context("a trusted attribute set by root")?;
    set_mode(&file, 0o600)?;
    let mut room = [0; 16];
    STRANGER.does(|| {
        expect(
            getxattr(&file, "user.own", &mut room[..]),
            Errno::ACCESS,
            "an attribute without the right to read",
        )
    })?;
    expect(set("nonsense.name"), Errno::OPNOTSUPP, "an attribute of no known kind")?;
    expect(set(&format!("user.{}", "n".repeat(251))), Errno::RANGE, "an attribute's name of 256 bytes")?;
    set(&format!("user.{}", "n".repeat(250))).context("an attribute's name of 255 bytes")?;
    // Links carry none of the users' own.
    let link = folder.join("link");
    symlink("file", &link)?;
    expect(lsetxattr(&link, "user.own", b"x", XattrFlags::empty()), Errno::PERM, "an attribute of a link")?;
    lsetxattr(&link, "trusted.link", b"x", XattrFlags::empty()).context("a trusted attribute of a link")?;
    let mut room = [0; 16];
    ensure!(lgetxattr(&link, "trusted.link", &mut room[..])? == 1);
    expect(
        getxattr(&link, "trusted.link", &mut room[..]),
        Errno::NODATA,
        "reading the link's through the link",
    )?;
    Ok(())
}
