//! Instructions that a server executes for its commands: counted by callgrind, and so the same on every machine.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use ringfort_qemu_tests::provision;
use ringfort_qemu_tests::server::{Server, Volume};

/// The server's function in which commands of rings are taken, carried out and completed. What the server does besides, polling
/// above all, is not counted.
const COUNTED: &str = "*RingServer*serve_batch*";

/// A server whose instructions are counted.
pub struct CountedServer {
    server: Server,
    counts: PathBuf,
}

impl CountedServer {
    /// Serves `volume` at the socket `address`. Valgrind is the machine's own, or fetched once.
    pub fn start(volume: &Volume, address: &str, folder: &Path) -> Result<Self> {
        let counts = folder.join("callgrind.out");
        let mut launcher = valgrind()?;
        // Threads that poll would keep the others from running.
        let options = ["--tool=callgrind", "--quiet", "--fair-sched=yes"];
        launcher.extend(options.map(OsString::from));
        launcher.push(format!("--toggle-collect={COUNTED}").into());
        launcher.push(assignment("--callgrind-out-file", &counts));
        let log = folder.join("counted.log");
        let server = Server::start_by(&launcher, volume, &[], &["--channel", address], &log)?;
        Ok(Self { server, counts })
    }

    pub fn log(&self) -> String {
        self.server.log()
    }

    /// Stops it. Instructions that were executed for commands.
    pub fn stop(self) -> Result<u64> {
        self.server.stop()?;
        let counts = &self.counts;
        let said =
            fs::read_to_string(counts).with_context(|| format!("reading counts of {}", counts.display()))?;
        let total = said.lines().find_map(|line| line.strip_prefix("totals: "));
        let total = total.with_context(|| format!("no totals in {}", counts.display()))?;
        total.trim().parse().with_context(|| format!("totals of {} in {}", total, counts.display()))
    }
}

fn assignment(name: &str, value: &Path) -> OsString {
    let mut assigned = OsString::from(name);
    assigned.push("=");
    assigned.push(value);
    assigned
}

/// A command that runs valgrind in its own process.
fn valgrind() -> Result<Vec<OsString>> {
    let own = Command::new("valgrind").arg("--version").output();
    if own.is_ok_and(|said| said.status.success()) {
        return Ok(vec!["valgrind".into()]);
    }
    let root = provision::unpacked("valgrind", &["valgrind"])?;
    let library = assignment("VALGRIND_LIB", &root.join("usr/libexec/valgrind"));
    Ok(vec!["env".into(), library, root.join("usr/bin/valgrind").into()])
}
