//! A guest's vsock without vsock in the host's kernel: a device in user space, behind which a port that the guest connects to is
//! a Unix socket. Built from crates.io when it is asked for.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::provision::installed;

const PACKAGE: &str = "vhost-device-vsock";
const VERSION: &str = "0.3.0";
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// What the guest is called; no other guest hears of it, since each has a device of its own.
const GUEST_CID: u32 = 3;

/// A running device. Dropping it kills it, and ends every connection.
#[derive(Debug)]
pub struct VsockDevice {
    child: Child,
}

impl VsockDevice {
    /// Starts a device for QEMU to connect to at `socket`. A guest that connects to `PORT` of the host reaches whoever listens at
    /// `path` with `_PORT` behind it. Returns when QEMU may connect.
    pub fn start(socket: &Path, path: &Path, log: &Path) -> Result<VsockDevice> {
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        // It dies with the thread that starts it, so that none outlives a killed test.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program()?)
            .arg("--vm")
            .arg(format!("guest-cid={GUEST_CID},socket={},uds-path={}", socket.display(), path.display()))
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cloning the log file")?)
            .stderr(file);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut device = VsockDevice { child };
        let deadline = Instant::now() + START_TIMEOUT;
        // It takes one connection at a time, so that trying would be in QEMU's way.
        while !socket.exists() {
            let ended = device.child.try_wait().context("waiting for the vsock device")?;
            if ended.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                bail!("{command:?} does not listen ({ended:?}); it said:\n{said}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(device)
    }
}

impl Drop for VsockDevice {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Result<PathBuf> {
    installed(PACKAGE, VERSION, &[])
}
