//! btrfs as a rival: raid6 with three copies of its metadata, over six loop devices with direct I/O.
//!
//! The process has a mount namespace of its own, and each loop device goes when its last user does: nothing stays behind,
//! however the process ends.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use ringfort_engine::buffer::Buffer;
use ringfort_qemu_tests::provision::{HostPrograms, host_programs, output_of};

use crate::load::TRANSFER_BYTES;

/// Files of a btrfs volume and where it is mounted.
pub struct Btrfs {
    programs: HostPrograms,
    files: Vec<PathBuf>,
    mount_point: PathBuf,
}

/// Unmounts when dropped.
pub struct Mounted<'a> {
    btrfs: &'a Btrfs,
    devices: Vec<String>,
}

/// Why loop devices and mounts cannot be had here, and the command that would.
pub fn obstacle() -> Option<String> {
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    (!geteuid().is_root()).then(|| {
        format!("loop devices and mounts need root: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo measure {command}")
    })
}

impl Btrfs {
    /// Makes a volume over `count` files of `file_bytes` in `folder`.
    pub fn create(folder: &Path, count: usize, file_bytes: u64) -> Result<Self> {
        let programs = host_programs("btrfs-progs")?;
        unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
        output_of(Command::new("mount").args(["--make-rprivate", "/"]))?;
        let mount_point = folder.join("mounted");
        std::fs::create_dir_all(&mount_point).with_context(|| format!("make {}", mount_point.display()))?;
        let files: Vec<PathBuf> = (0..count).map(|index| folder.join(format!("device-{index}"))).collect();
        for path in &files {
            write_whole(path, file_bytes)?;
        }
        let btrfs = Self { programs, files, mount_point };
        let devices = attach(&btrfs.files)?;
        let made = output_of(
            btrfs
                .programs
                .command("mkfs.btrfs")
                .args(["--quiet", "--force", "--nodiscard", "--data", "raid6", "--metadata", "raid1c3"])
                .args(&devices),
        );
        detach(&devices);
        made?;
        Ok(btrfs)
    }

    /// The folder of its files, once mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Mounts it with every device.
    pub fn mount(&self) -> Result<Mounted<'_>> {
        self.mount_with(&self.files.iter().collect::<Vec<_>>(), "nodiscard")
    }

    /// Mounts it without the devices of these numbers, for reading only: nothing changes, so that it can be mounted whole again.
    pub fn mount_without(&self, lost: &[usize]) -> Result<Mounted<'_>> {
        let left: Vec<_> = (0..self.files.len())
            .filter(|index| !lost.contains(index))
            .map(|index| &self.files[index])
            .collect();
        self.mount_with(&left, "degraded,ro")
    }

    fn mount_with(&self, files: &[&PathBuf], options: &str) -> Result<Mounted<'_>> {
        let devices = attach(files)?;
        let mut options = options.to_owned();
        for device in &devices {
            options.push_str(",device=");
            options.push_str(device);
        }
        let mounted = output_of(
            Command::new("mount")
                .args(["-t", "btrfs", "-o", &options])
                .arg(&devices[0])
                .arg(&self.mount_point),
        );
        // In use now, they go with the mount.
        detach(&devices);
        mounted?;
        Ok(Mounted { btrfs: self, devices })
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = output_of(Command::new("umount").arg(&self.btrfs.mount_point)) {
            eprintln!("measure: {error:#}");
        }
        // The kernel remembers devices that it has seen; without this it would look for lost ones.
        for device in &self.devices {
            let mut forget = self.btrfs.programs.command("btrfs");
            let _ = forget.args(["device", "scan", "--forget", device]).output();
        }
    }
}

/// Makes a file all of which has been written, by `O_DIRECT`: nothing of it is in a cache.
fn write_whole(path: &Path, file_bytes: u64) -> Result<()> {
    let zeros = Buffer::zeroed(TRANSFER_BYTES);
    let mut options = OpenOptions::new();
    let write = |mut file: File| {
        (0..file_bytes / TRANSFER_BYTES as u64).try_for_each(|_| file.write_all(&zeros))?;
        file.sync_all()
    };
    options.write(true).create_new(true).custom_flags(OFlag::O_DIRECT.bits());
    options
        .open(path)
        .and_then(write)
        .with_context(|| format!("write {file_bytes} bytes to {}", path.display()))
}

/// A loop device for each file.
fn attach(files: &[impl AsRef<Path>]) -> Result<Vec<String>> {
    let mut devices = Vec::with_capacity(files.len());
    for file in files {
        let mut losetup = Command::new("losetup");
        losetup.args(["--direct-io=on", "--show", "--find"]).arg(file.as_ref());
        match output_of(&mut losetup) {
            Ok(device) => devices.push(device.trim().to_owned()),
            Err(error) => {
                detach(&devices);
                return Err(error);
            }
        }
    }
    let listed = output_of(Command::new("losetup").args(["--list", "--noheadings", "--output", "NAME,DIO"]))?;
    let is_direct =
        |device: &String| listed.lines().any(|line| line.split_whitespace().eq([device.as_str(), "1"]));
    if let Some(device) = devices.iter().find(|device| !is_direct(device)) {
        let found = format!("{device} has no direct I/O: it would be served by the page cache");
        detach(&devices);
        bail!(found);
    }
    Ok(devices)
}

/// Lets loop devices go as soon as nobody uses them.
fn detach(devices: &[String]) {
    for device in devices {
        if let Err(error) = output_of(Command::new("losetup").args(["--detach", device])) {
            eprintln!("measure: {error:#}");
        }
    }
}
