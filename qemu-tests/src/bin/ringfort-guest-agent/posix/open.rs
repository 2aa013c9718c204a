//! Opening: flags, and the errors of paths.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::libc;
use rustix::io::Errno;

use super::Check;
use super::expect::{expect_error, open_both, read_all, set_mode};
use super::person::STRANGER;

pub const CHECKS: &[(&str, Check)] = &[
    ("opening", opening),
    ("paths", paths),
    ("programs", programs),
    ("other-file-systems", other_file_systems),
];

fn opening(folder: &Path) -> Result<()> {
    set_mode(folder, 0o755)?;
    let (file, below) = (folder.join("file"), folder.join("below"));
    fs::write(&file, "content")?;
    fs::create_dir(&below)?;
    let with = |flags: i32| File::options().read(true).custom_flags(flags).open(&file);
    expect_error(with(libc::O_DIRECTORY), Errno::NOTDIR, "opening a file as a folder")?;
    expect_error(open_both(&below), Errno::ISDIR, "opening a folder to be written")?;
    expect_error(File::create(&below), Errno::ISDIR, "creating over a folder")?;
    expect_error(File::options().write(true).create_new(true).open(&file), Errno::EXIST, "creating again")?;
    expect_error(File::open(folder.join("absent")), Errno::NOENT, "opening nothing")?;
    expect_error(File::create(folder.join("absent/file")), Errno::NOENT, "creating in no folder")?;
    STRANGER.does(|| {
        expect_error(File::create(folder.join("new")), Errno::ACCESS, "creating in another's folder")?;
        expect_error(File::options().write(true).open(&file), Errno::ACCESS, "writing another's file")
    })?;
    // What may not be read is truncated all the same by who may write it.
    set_mode(&file, 0o222)?;
    STRANGER.does(|| Ok(File::options().write(true).truncate(true).open(&file).map(drop)?))?;
    ensure!(fs::metadata(&file)?.len() == 0);
    // Rights are checked when a file is opened, and not again.
    set_mode(&file, 0o666)?;
    STRANGER.does(|| {
        let open = open_both(&file)?;
        set_mode(&file, 0).err().context("a stranger changed the mode")?;
        (&open).write_all(b"still")?;
        ensure!(read_all(&open)? == b"still");
        Ok(())
    })?;
    // A file made without the right to write it is written by its maker, through what made it.
    let made = folder.join("made");
    let mut maker = File::options().write(true).create_new(true).mode(0o400).open(&made)?;
    maker.write_all(b"once")?;
    ensure!(fs::read(&made)? == b"once");
    Ok(())
}

fn paths(folder: &Path) -> Result<()> {
    let file = folder.join("file");
    fs::write(&file, "x")?;
    let through_file = file.join("below");
    expect_error(File::open(&through_file), Errno::NOTDIR, "opening below a file")?;
    expect_error(File::create(&through_file), Errno::NOTDIR, "creating below a file")?;
    expect_error(fs::create_dir(&through_file), Errno::NOTDIR, "a folder below a file")?;
    expect_error(symlink("t", &through_file), Errno::NOTDIR, "a link below a file")?;
    expect_error(fs::hard_link(&file, &through_file), Errno::NOTDIR, "a second name below a file")?;
    expect_error(
        fs::metadata(format!("{}/", file.display())),
        Errno::NOTDIR,
        "a file with a slash behind it",
    )?;
    let long = folder.join("p/".repeat(2100));
    expect_error(File::open(&long), Errno::NAMETOOLONG, "a path of more than 4096 bytes")?;
    expect_error(fs::create_dir(&long), Errno::NAMETOOLONG, "a folder by such a path")?;
    expect_error(fs::rename(&file, &long), Errno::NAMETOOLONG, "renaming to such a path")?;
    for link in ["one", "two"] {
        symlink(if link == "one" { "two" } else { "one" }, folder.join(link))?;
    }
    expect_error(File::open(folder.join("one/below")), Errno::LOOP, "a path through a circle")?;
    expect_error(fs::rename(&file, folder.join("one/below")), Errno::LOOP, "renaming through a circle")?;
    expect_error(fs::create_dir(folder.join("one/below")), Errno::LOOP, "a folder through a circle")?;
    ensure!(file.exists());
    Ok(())
}

/// A running program's file is not written, and a written file is not run.
fn programs(folder: &Path) -> Result<()> {
    let program = folder.join("program");
    fs::copy(std::env::current_exe()?, &program).context("copying this program")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let mut running = Command::new(&program)
        .args(["lock-hold".as_ref(), folder.join("lock").as_os_str()])
        .args(["flock", "shared", "wait"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("running a program from here")?;
    let mut said = String::new();
    if let Some(output) = running.stdout.take() {
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut said)?;
    }
    let refused = File::options().write(true).open(&program);
    running.kill()?;
    running.wait()?;
    ensure!(said == "locked\n", "{said:?}");
    expect_error(refused, Errno::TXTBSY, "writing a running program")?;
    let written = File::options().write(true).open(&program).context("writing what ran")?;
    expect_error(Command::new(&program).spawn(), Errno::TXTBSY, "running what is written")?;
    drop(written);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644))?;
    expect_error(Command::new(&program).spawn(), Errno::ACCESS, "running what is no program")
}

fn other_file_systems(folder: &Path) -> Result<()> {
    let file = folder.join("file");
    fs::write(&file, "x")?;
    let elsewhere = Path::new("/dev/elsewhere");
    expect_error(fs::rename(&file, elsewhere), Errno::XDEV, "renaming to another file system")?;
    expect_error(fs::hard_link(&file, elsewhere), Errno::XDEV, "a second name on another file system")?;
    expect_error(
        fs::hard_link("/proc/version", folder.join("version")),
        Errno::XDEV,
        "a name of another's file",
    )
}
