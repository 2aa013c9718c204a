//! What POSIX and Linux promise of a filesystem, asked of the one below a folder. Runs as root; where the promise is about
//! others, a shell does the deed as another user.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{
    CWD, FallocateFlags, RenameFlags, XattrFlags, fallocate, getxattr, listxattr, removexattr, renameat_with,
    setxattr,
};
use rustix::io::Errno;

const STRANGER: u32 = 1000;
const MIB: u64 = 1 << 20;

type Check = fn(&Path) -> Result<()>;

const CHECKS: [(&str, Check); 11] = [
    ("extended-attributes", extended_attributes),
    ("links", links),
    ("rename", rename),
    ("rename-with-flags", rename_with_flags),
    ("sticky", sticky),
    ("set-id", set_id),
    ("names", names),
    ("sparse", sparse),
    ("punched", punched),
    ("append", append),
    ("unlinked", unlinked),
];

/// Runs every check in a folder of its own below `folder`, which is made and removed; the error tells all that failed.
pub fn check(folder: &Path, without: &[&str]) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut failures = Vec::new();
    for (name, check) in CHECKS.iter().filter(|(name, _)| !without.contains(name)) {
        let own = folder.join(name);
        fs::create_dir(&own).with_context(|| format!("creating {}", own.display()))?;
        match check(&own) {
            Ok(()) => println!("ok {name}"),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    }
    fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

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

fn sticky(folder: &Path) -> Result<()> {
    open_to_all(folder)?;
    let shared = folder.join("shared");
    fs::create_dir(&shared)?;
    fs::set_permissions(&shared, Permissions::from_mode(0o1777))?;
    fs::write(shared.join("theirs"), "x")?;
    let stranger = |script: &str| as_stranger(&shared, script);
    ensure!(!stranger("rm -f theirs")?, "a stranger removed another's file");
    ensure!(!stranger("mv theirs mine")?, "a stranger renamed another's file");
    ensure!(stranger("echo > mine && mv mine own && rm own")?, "an owner could not remove the file");
    fs::set_permissions(&shared, Permissions::from_mode(0o777))?;
    ensure!(stranger("rm -f theirs")?, "without the sticky bit anybody may remove");
    Ok(())
}

fn set_id(folder: &Path) -> Result<()> {
    open_to_all(folder)?;
    let file = folder.join("file");
    fs::write(&file, "x")?;
    let arm = || fs::set_permissions(&file, Permissions::from_mode(0o6777));
    let mode = || fs::metadata(&file).map(|found| found.mode() & 0o7777);
    arm()?;
    File::options().append(true).open(&file)?.write_all(b"by root")?;
    ensure!(mode()? == 0o6777, "a write by root left {:o}", mode()?);
    for deed in ["echo y >> file", "echo y > file", "truncate -s 3 file"] {
        arm()?;
        ensure!(as_stranger(folder, deed)?, "a stranger could not {deed}");
        ensure!(mode()? == 0o777, "{deed} by a stranger left {:o}", mode()?);
    }
    arm()?;
    std::os::unix::fs::chown(&file, Some(STRANGER), Some(STRANGER))?;
    ensure!(mode()? == 0o777, "a new owner left {:o}", mode()?);
    Ok(())
}

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

fn sparse(folder: &Path) -> Result<()> {
    let mut file = open_new(&folder.join("file"))?;
    file.write_all_at(b"head", 0)?;
    file.write_all_at(b"tail", 256 * MIB - 4)?;
    file.sync_all()?;
    let found = file.metadata()?;
    ensure!(found.len() == 256 * MIB, "{} bytes long", found.len());
    ensure!(found.blocks() * 512 <= MIB, "8 bytes take {}", found.blocks() * 512);
    let mut piece = vec![1; 64 * 1024];
    file.read_exact_at(&mut piece, 100 * MIB)?;
    ensure!(piece.iter().all(|byte| *byte == 0), "a hole holds something");
    file.read_exact_at(&mut piece, 0)?;
    ensure!(
        &piece[..4] == b"head" && piece[4..].iter().all(|byte| *byte == 0),
        "beside data a hole holds something"
    );
    let data_at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(MIB)).context("looking for data")?;
    ensure!(data_at > MIB && data_at <= 256 * MIB - 4, "data found at {data_at}");
    let hole_at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).context("looking for a hole")?;
    ensure!((4..=MIB).contains(&hole_at), "a hole found at {hole_at}");

    // What is cut off does not come back.
    file.set_len(0)?;
    file.write_all_at(&vec![7; 10_000], 0)?;
    file.set_len(5000)?;
    file.set_len(20_000)?;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    ensure!(bytes.len() == 20_000 && bytes[..5000].iter().all(|byte| *byte == 7), "{} bytes", bytes.len());
    ensure!(bytes[5000..].iter().all(|byte| *byte == 0), "what was cut off came back");
    Ok(())
}

fn punched(folder: &Path) -> Result<()> {
    let file = open_new(&folder.join("file"))?;
    file.write_all_at(&vec![9; MIB as usize], 0)?;
    file.sync_all()?;
    let before = file.metadata()?.blocks();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 100_000, 800_000).context("punching a hole")?;
    let mut bytes = vec![1; MIB as usize];
    file.read_exact_at(&mut bytes, 0)?;
    ensure!(bytes[..100_000].iter().chain(&bytes[900_000..]).all(|byte| *byte == 9), "too much was punched");
    ensure!(bytes[100_000..900_000].iter().all(|byte| *byte == 0), "too little was punched");
    file.sync_all()?;
    let after = file.metadata()?.blocks();
    ensure!(after < before, "a hole in {before} blocks left {after}");
    Ok(())
}

fn append(folder: &Path) -> Result<()> {
    let path = folder.join("file");
    let open = || File::options().create(true).append(true).open(&path);
    let (mut one, mut two) = (open()?, open()?);
    let mut expected = Vec::new();
    for number in 0..40 {
        let line = format!("line {number}\n").repeat(number + 1);
        let file = if number % 2 == 0 { &mut one } else { &mut two };
        file.write_all(line.as_bytes())?;
        expected.extend_from_slice(line.as_bytes());
    }
    // The place that a write names has no say.
    one.seek(SeekFrom::Start(0))?;
    one.write_all(b"end")?;
    expected.extend_from_slice(b"end");
    ensure!(fs::read(&path)? == expected, "appended pieces are not one after another");
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

fn open_new(path: &Path) -> Result<File> {
    File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("creating {}", path.display()))
}

fn read_all(mut file: &File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn open_to_all(folder: &Path) -> Result<()> {
    Ok(fs::set_permissions(folder, Permissions::from_mode(0o777))?)
}

/// Whether `script` succeeds in `folder` for a user who owns nothing.
fn as_stranger(folder: &Path, script: &str) -> Result<bool> {
    let output = Command::new("/bin/sh")
        .args(["-c", script])
        .current_dir(folder)
        .uid(STRANGER)
        .gid(STRANGER)
        .output()
        .with_context(|| format!("running {script:?}"))?;
    Ok(output.status.success())
}

fn expect<T>(result: rustix::io::Result<T>, wanted: Errno, what: &str) -> Result<()> {
    match result {
        Err(errno) if errno == wanted => Ok(()),
        Err(errno) => bail!("{what} failed with {errno}, not with {wanted}"),
        Ok(_) => bail!("{what} succeeded"),
    }
}

fn expect_error<T>(result: std::io::Result<T>, wanted: Errno, what: &str) -> Result<()> {
    let found = result.map_err(|error| Errno::from_raw_os_error(error.raw_os_error().unwrap_or(0)));
    expect(found, wanted, what)
}
