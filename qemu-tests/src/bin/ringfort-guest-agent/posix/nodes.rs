//! Device nodes, fifos and sockets.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use nix::libc;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;

use super::Check;
use super::expect::{expect, expect_error, mode, set_mode};
use super::person::{OWNER, STRANGER};

pub const CHECKS: &[(&str, Check)] =
    &[("device-nodes", device_nodes), ("fifos", fifos), ("sockets", sockets)];

fn node(path: &Path, kind: FileType, bits: u32, device: (u32, u32)) -> rustix::io::Result<()> {
    mknodat(CWD, path, kind, Mode::from_raw_mode(bits), makedev(device.0, device.1))
}

fn device_nodes(folder: &Path) -> Result<()> {
    set_mode(folder, 0o777)?;
    let character = FileType::CharacterDevice;
    let (zero, null) = (folder.join("zero"), folder.join("null"));
    node(&zero, character, 0o644, (1, 5)).context("a character device")?;
    node(&null, character, 0o666, (1, 3)).context("a character device")?;
    let mut bytes = [1; 100];
    File::open(&zero)?.read_exact(&mut bytes).context("reading a device")?;
    ensure!(bytes == [0; 100]);
    let found = fs::metadata(&zero)?;
    ensure!(found.file_type().is_char_device() && found.rdev() == makedev(1, 5), "device {:x}", found.rdev());
    fs::write(&null, "gone").context("writing a device")?;
    ensure!(fs::metadata(&null)?.len() == 0);
    // Numbers of every size: 12 bits and 20 are what Linux has.
    let block = folder.join("block");
    node(&block, FileType::BlockDevice, 0o640, (4095, 1_048_575)).context("a block device")?;
    let found = fs::metadata(&block)?;
    ensure!(found.file_type().is_block_device() && found.rdev() == makedev(4095, 1_048_575));
    expect_error(File::open(&block), Errno::NXIO, "opening a device that is not there")?;
    expect(node(&zero, character, 0o644, (1, 5)), Errno::EXIST, "a node where one is")?;
    STRANGER.does(|| {
        expect(node(&folder.join("x"), character, 0o644, (1, 3)), Errno::PERM, "a stranger's device")
    })?;
    node(&folder.join("plain"), FileType::RegularFile, 0o600, (0, 0)).context("a plain file as a node")?;
    ensure!(fs::metadata(folder.join("plain"))?.is_file());
    fs::rename(&zero, folder.join("moved"))?;
    fs::hard_link(folder.join("moved"), &zero)?;
    ensure!(fs::metadata(&zero)?.rdev() == makedev(1, 5));
    Ok(())
}

fn fifos(folder: &Path) -> Result<()> {
    set_mode(folder, 0o777)?;
    let fifo = folder.join("fifo");
    OWNER.does(|| Ok(node(&fifo, FileType::Fifo, 0o620, (0, 0))?))?;
    let found = fs::metadata(&fifo)?;
    ensure!(
        found.file_type().is_fifo() && found.uid() == OWNER.user && mode(&fifo)? == 0o600,
        "{:o}",
        mode(&fifo)?
    );
    let writing = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo);
    expect_error(writing, Errno::NXIO, "writing to nobody")?;
    let long = vec![7; 200_000];
    let received = thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(&fifo));
        File::options().write(true).open(&fifo)?.write_all(&long)?;
        reader.join().map_err(|_| anyhow!("the reader panicked"))?.context("reading a fifo")
    })?;
    ensure!(received == long, "{} bytes went through", received.len());
    ensure!(fs::metadata(&fifo)?.len() == 0, "a fifo holds something");
    STRANGER.does(|| {
        let reading = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo);
        expect_error(reading, Errno::ACCESS, "another's fifo")
    })
}

fn sockets(folder: &Path) -> Result<()> {
    // A socket's address is short, and the folder's path may not be.
    std::env::set_current_dir(folder).context("going to the folder")?;
    let path = Path::new("socket");
    let served = thread::scope(|scope| {
        let listener = UnixListener::bind(path).context("binding")?;
        let server = scope.spawn(move || -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            listener.accept()?.0.read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        UnixStream::connect(path).context("connecting")?.write_all(b"through a socket")?;
        server.join().map_err(|_| anyhow!("the server panicked"))?
    });
    std::env::set_current_dir("/")?;
    ensure!(served? == b"through a socket");
    let path = folder.join("socket");
    ensure!(fs::metadata(&path)?.file_type().is_socket());
    expect_error(File::open(&path), Errno::NXIO, "opening a socket")?;
    fs::rename(&path, folder.join("moved"))?;
    ensure!(fs::symlink_metadata(folder.join("moved"))?.file_type().is_socket());
    Ok(())
}
