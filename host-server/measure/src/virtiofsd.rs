//! virtiofsd as a rival: built from crates.io when it is asked for, run as a person would run it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ringfort_qemu_tests::provision::{installed, unpacked};

const VERSION: &str = "1.14.0";

/// The newest that the figures were taken with, for reports.
pub fn version() -> String {
    format!("virtiofsd {VERSION}")
}

/// A running virtiofsd, which ends when its guest disconnects. Dropping it kills it.
pub struct Virtiofsd {
    child: Child,
}

/// The program, built once. Its two C libraries are linked statically from Debian's packages, so that nothing need be installed.
pub fn program() -> Result<PathBuf> {
    let root = unpacked("virtiofsd-libraries", &["libseccomp-dev", "libcap-ng-dev"])?;
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let library_path = libraries.as_os_str();
    installed(
        "virtiofsd",
        VERSION,
        &[
            ("LIBSECCOMP_LIB_PATH", library_path),
            ("LIBSECCOMP_LINK_TYPE", "static".as_ref()),
            ("LIBCAPNG_LIB_PATH", library_path),
            ("LIBCAPNG_LINK_TYPE", "static".as_ref()),
        ],
    )
}

impl Virtiofsd {
    /// Serves `shared` at `socket` and returns when it listens.
    pub fn start(
        program: &Path,
        shared: &Path,
        socket: &Path,
        options: &[&str],
        log: &Path,
    ) -> Result<Virtiofsd> {
        const START_TIMEOUT: Duration = Duration::from_secs(20);
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        // It dies with the thread that starts it, so that none outlives a killed measurement.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .arg("--socket-path")
            .arg(socket)
            .arg("--shared-dir")
            .arg(shared)
            .args(["--sandbox", "none", "--cache", "never"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("cloning the log file")?)
            .stderr(file);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut rival = Virtiofsd { child };
        let deadline = Instant::now() + START_TIMEOUT;
        // It takes one connection only, so that trying would use it up.
        while !socket.exists() {
            let ended = rival.child.try_wait().context("waiting for virtiofsd")?;
            if ended.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                bail!("{command:?} does not listen ({ended:?}); it said:\n{said}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(rival)
    }
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
