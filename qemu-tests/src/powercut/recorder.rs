//! Component files exported with a log under each. Every file is covered by a mount of itself: `ringfort` finds its components
//! where they always are, and each of its writes and flushes passes through the logger, whichever way it is issued.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::minor;
use nix::unistd::{Pid, Uid};

use crate::provision::{self, StorageDaemon};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Why this machine cannot export files over FUSE; `None` where it can.
pub fn unavailable() -> Result<Option<String>> {
    const FUSE: &str = "/dev/fuse";
    if let Err(error) = File::options().read(true).write(true).open(FUSE) {
        return Ok(Some(format!(
            "{FUSE} cannot be opened ({error}); load the module fuse, or give the container the device"
        )));
    }
    if Uid::effective().is_root() {
        const SYS_ADMIN: u32 = 21;
        let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
        let held = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .context("/proc/self/status names no capabilities")?;
        if held & (1 << SYS_ADMIN) == 0 {
            return Ok(Some(
                "root may not mount here (no CAP_SYS_ADMIN); run outside of this container".to_owned(),
            ));
        }
    } else if Command::new("fusermount3").arg("--version").output().is_err() {
        return Ok(Some("only root may mount without fusermount3; install the package fuse3".to_owned()));
    }
    Ok(None)
}

/// A component under its export.
#[derive(Debug)]
struct Export {
    component: PathBuf,
    daemon: Child,
    /// What the component's file is on without the export.
    device_below: u64,
    log: PathBuf,
    growing: File,
}

/// Every write and flush on some component files, from start to stop. Dropping it takes the exports down.
#[derive(Debug)]
pub struct Recorder {
    exports: Vec<Export>,
}

impl Recorder {
    /// Exports `components` in place; their logs lie in `folder`.
    pub fn start(components: &[PathBuf], folder: &Path) -> Result<Recorder> {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let daemon = provision::storage_daemon()?;
        let mut recorder = Recorder { exports: Vec::new() };
        for (number, component) in components.iter().enumerate() {
            let log = folder.join(format!("writes-{number}"));
            let export = Export::start(&daemon, component, &log)
                .with_context(|| format!("exporting {}", component.display()))?;
            recorder.exports.push(export);
        }
        let mut connections = Vec::new();
        for export in &mut recorder.exports {
            let mounted = export.wait_mounted();
            connections.push(mounted.with_context(|| format!("exporting {}", export.component.display()))?);
        }
        one_write_at_a_time(&connections, folder)?;
        Ok(recorder)
    }

    /// The logs, in the order of the components.
    pub fn logs(&self) -> Vec<PathBuf> {
        self.exports.iter().map(|export| export.log.clone()).collect()
    }

    /// The length of every log at one and the same moment; `None` where they grew too fast for that to be seen.
    ///
    /// The logs have no common clock, but they only grow: lengths that two looks at all of them agree on were the lengths
    /// of all at the moment between the looks.
    pub fn moment(&self) -> Result<Option<Vec<u64>>> {
        const LOOKS: usize = 200;
        let look = || -> std::io::Result<Vec<u64>> {
            self.exports.iter().map(|export| Ok(export.growing.metadata()?.len())).collect()
        };
        let mut before = look().context("looking at the logs")?;
        for _ in 0..LOOKS {
            let now = look().context("looking at the logs")?;
            if now == before {
                return Ok(Some(now));
            }
            before = now;
        }
        Ok(None)
    }

    /// The lengths of the logs when they have not grown for `quiet`.
    pub fn at_rest(&self, quiet: Duration, at_most: Duration) -> Result<Vec<u64>> {
        let deadline = Instant::now() + at_most;
        let mut last = self.moment()?;
        loop {
            thread::sleep(quiet);
            let now = self.moment()?;
            match (last, now) {
                (Some(before), Some(now)) if before == now => return Ok(now),
                (_, now) => last = now,
            }
            if Instant::now() > deadline {
                bail!("the logs of writes still grow after {at_most:?}");
            }
        }
    }

    /// Kills the export of one component: from now on every request on it fails.
    pub fn fail(&mut self, index: usize) -> Result<()> {
        let export = self.exports.get_mut(index).context("no such export")?;
        export.daemon.kill().context("killing an export")?;
        export.daemon.wait().context("waiting for a killed export")?;
        Ok(())
    }

    /// Takes the exports down; the files are there as before, with what was written.
    pub fn stop(mut self) -> Result<()> {
        for export in &mut self.exports {
            export.stop().with_context(|| format!("ending the export of {}", export.component.display()))?;
        }
        Ok(())
    }
}

impl Export {
    fn start(daemon: &StorageDaemon, component: &Path, log: &Path) -> Result<Export> {
        let device_below = fs::metadata(component)?.dev();
        let growing = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let said = File::create(log.with_extension("said")).context("creating a log file")?;
        // Only the logs tell what would be durable: that the machine under the test syncs nothing makes it faster, no less strict.
        let node = |name: &str, path: &Path| {
            format!("driver=file,node-name={name},filename={},cache.no-flush=on,locking=off", quoted(path))
        };
        let mut command = daemon.command();
        command
            .args(["--blockdev", &node("medium", component)])
            .args(["--blockdev", &node("log", log)])
            .args(["--blockdev", "driver=blklogwrites,node-name=logged,file=medium,log=log"])
            .arg("--export")
            .arg(format!("fuse,id=export,node-name=logged,mountpoint={},writable=on", quoted(component)));
        let errors = said.try_clone().context("cloning a log file")?;
        let daemon = command
            .stdin(Stdio::null())
            .stdout(said)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        Ok(Export { component: component.to_owned(), daemon, device_below, log: log.to_owned(), growing })
    }

    /// A mount whose daemon is gone answers nothing, not even what it is on; it is still a mount.
    fn is_mounted(&self) -> bool {
        fs::metadata(&self.component).map_or(true, |metadata| metadata.dev() != self.device_below)
    }

    /// Waits until the export is there; returns the number of its connection with the kernel.
    fn wait_mounted(&mut self) -> Result<u64> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.is_mounted() {
            let ended = self.daemon.try_wait().context("waiting for qemu-storage-daemon")?;
            if ended.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(self.log.with_extension("said")).unwrap_or_default();
                bail!("qemu-storage-daemon did not mount it ({ended:?}); it said:\n{said}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(minor(fs::metadata(&self.component)?.dev()))
    }

    fn stop(&mut self) -> Result<()> {
        if self.daemon.try_wait().context("waiting for qemu-storage-daemon")?.is_none() {
            let id = i32::try_from(self.daemon.id()).context("a process id beyond i32")?;
            kill(Pid::from_raw(id), Signal::SIGTERM).context("ending qemu-storage-daemon")?;
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.daemon.try_wait().context("waiting for qemu-storage-daemon")?.is_none() {
            if Instant::now() > deadline {
                self.daemon.kill().context("killing qemu-storage-daemon")?;
                self.daemon.wait().context("waiting for qemu-storage-daemon")?;
            }
            thread::sleep(Duration::from_millis(5));
        }
        // A killed one leaves its mount behind.
        if self.is_mounted() {
            self.unmount()?;
        }
        Ok(())
    }

    fn unmount(&self) -> Result<()> {
        let mut command = if Uid::effective().is_root() {
            let mut command = Command::new("umount");
            command.arg("--lazy");
            command
        } else {
            let mut command = Command::new("fusermount3");
            command.args(["-u", "-z"]);
            command
        };
        provision::output_of(command.arg(&self.component)).map(drop)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("ending the export of {}: {error:#}", self.component.display());
        }
    }
}

/// Lets the kernel hand each export one read or write at a time. Up to version 10 the storage daemon takes the next request into
/// the buffer of the one under way, and a write under way then writes the data of the next.
fn one_write_at_a_time(connections: &[u64], folder: &Path) -> Result<()> {
    let control = Control::open(folder)?;
    for connection in connections {
        let limit = control.folder.join(connection.to_string()).join("max_background");
        fs::write(&limit, "1").with_context(|| format!("writing {}", limit.display()))?;
    }
    Ok(())
}

/// The control files of FUSE connections.
struct Control {
    folder: PathBuf,
    /// Mounted by us alone, and only for the moment.
    own: bool,
}

impl Control {
    fn open(scratch: &Path) -> Result<Control> {
        let usual = Path::new("/sys/fs/fuse/connections");
        if fs::read_dir(usual).is_ok_and(|mut entries| entries.next().is_some()) {
            return Ok(Control { folder: usual.to_owned(), own: false });
        }
        let folder = scratch.join("connections");
        fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        provision::output_of(Command::new("mount").args(["-t", "fusectl", "fusectl"]).arg(&folder))
            .context("mounting the control files of FUSE, which are not at /sys/fs/fuse/connections")?;
        Ok(Control { folder, own: true })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if self.own
            && let Err(error) = provision::output_of(Command::new("umount").arg(&self.folder))
        {
            eprintln!("{error:#}");
        }
    }
}

/// A path as the value of one of QEMU's options, which commas separate.
fn quoted(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_a_path_are_doubled() {
        assert_eq!(quoted(Path::new("/a,b/c")), "/a,,b/c");
    }
}
