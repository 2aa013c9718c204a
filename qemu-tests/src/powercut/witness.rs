//! Writers in a guest that say what was promised to them, and the verdict on a volume: whether it keeps those promises.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::agent::{AGENT, Task};
use crate::machine::Guest;
use crate::provision;
use crate::scene::MOUNTED;
use crate::server::{self, Volume};

/// A writer.
#[derive(Clone, Debug)]
pub struct Witness {
    /// The agent's name for what it does: `ledger`, `overwrite` or `order`.
    kind: &'static str,
    seed: u64,
}

impl Witness {
    /// Several that write at the same time, each in its own way.
    pub fn company(seed: u64) -> Vec<Witness> {
        let kinds = ["ledger", "overwrite", "overwrite", "order", "ledger"];
        kinds.into_iter().zip(seed..).map(|(kind, seed)| Witness { kind, seed }).collect()
    }

    /// Its folder in the volume.
    fn folder(&self) -> String {
        format!("{}-{}", self.kind, self.seed)
    }

    /// Starts writing in `guest`, at most `steps` steps.
    pub fn start<'guest>(&self, guest: &'guest Guest, steps: u64) -> Result<Task<'guest>> {
        let (folder, seed) = (format!("{MOUNTED}/{}", self.folder()), self.seed.to_string());
        guest.start(&[AGENT, &format!("{}-write", self.kind), &folder, &seed, &steps.to_string()])
    }

    /// How many promises its output so far tells of.
    pub fn promises(said: &[u8]) -> u64 {
        // Whole lines only: the last one may be cut.
        said.iter().filter(|byte| **byte == b'\n').count() as u64
    }

    /// Holds the files of a volume, which lie below `root` on this machine, to the first `promises`; what is missing or wrong
    /// where one is broken.
    fn verify(&self, root: &Path, promises: u64) -> Result<std::result::Result<(), String>> {
        let folder = root.join(self.folder());
        if promises == 0 && !is_begun(&folder)? {
            return Ok(Ok(()));
        }
        let output = Command::new(&provision::parts()?.agent)
            .arg(format!("{}-verify", self.kind))
            .arg(folder)
            .args([self.seed.to_string(), promises.to_string()])
            .output()
            .context("running the agent on this machine")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => Ok(Ok(())),
            Some(1) => Ok(Err(said)),
            _ => bail!("the agent ended with {}: {said}", output.status),
        }
    }
}

/// Whether the writer got as far as its second file or its first step.
fn is_begun(folder: &Path) -> Result<bool> {
    let listed = fs::read_dir(folder).into_iter().flatten();
    let mut filled = 0;
    for entry in listed {
        filled += usize::from(entry?.metadata()?.len() > 0);
    }
    Ok(filled > 0)
}

/// What a volume is found to be after a power cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Sound, and every promise kept.
    Kept,
    /// A promise was broken.
    Lost(String),
    /// It does not open, or a check finds damage.
    Faulty(String),
}

/// Opens a volume as after a power cut, and holds it to what was promised: `promises` for each of `witnesses`. An error says
/// that no judgement could be made.
///
/// `scratch` is a folder for the volume's files.
pub fn judge(volume: &Volume, witnesses: &[Witness], promises: &[u64], scratch: &Path) -> Result<Verdict> {
    let mut faults = Vec::new();
    faults.extend(fault(volume)?.map(|fault| format!("before recovery, {fault}")));
    if scratch.exists() {
        fs::remove_dir_all(scratch).with_context(|| format!("removing {}", scratch.display()))?;
    }
    fs::create_dir(scratch).with_context(|| format!("creating {}", scratch.display()))?;
    faults.extend(export(volume, scratch)?);
    for (witness, promises) in witnesses.iter().zip(promises) {
        if let Err(loss) = witness.verify(scratch, *promises)? {
            faults.push(loss);
            return Ok(Verdict::Lost(faults.join("\n")));
        }
    }
    faults.extend(fault(volume)?.map(|fault| format!("after recovery, {fault}")));
    Ok(if faults.is_empty() { Verdict::Kept } else { Verdict::Faulty(faults.join("\n")) })
}

/// What `volume check` finds wrong.
fn fault(volume: &Volume) -> Result<Option<String>> {
    let said = volume.check()?;
    Ok((said.status != Some(0))
        .then(|| format!("volume check ended with {:?}:\n{}{}", said.status, said.stdout, said.stderr)))
}

/// `ringfort volume export` of a volume that is not served, as an archive on standard output. It recovers the volume first.
pub fn exporting(volume: &Volume) -> Result<Command> {
    let mut command = Command::new(server::program()?);
    command.args(["volume", "export"]).arg(volume.folder()).stdin(Stdio::null());
    Ok(command)
}

/// Unpacks all files of a volume into `folder`; what the export says where it cannot read all.
fn export(volume: &Volume, folder: &Path) -> Result<Option<String>> {
    let mut exporting = exporting(volume)?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ringfort volume export")?;
    let archive = exporting.stdout.take().context("the export has no standard output")?;
    let unpacked = Command::new("tar").args(["-x", "-C"]).arg(folder).stdin(archive).output();
    let exported = exporting.wait_with_output().context("waiting for the export")?;
    let unpacked = unpacked.context("running tar")?;
    if exported.status.success() {
        ensure!(unpacked.status.success(), "tar: {}", String::from_utf8_lossy(&unpacked.stderr));
        return Ok(None);
    }
    // What there is of an archive is unpacked; the witnesses say whether it is enough.
    let said = String::from_utf8_lossy(&exported.stderr);
    Ok(Some(format!("volume export ended with {}:\n{said}", exported.status)))
}

/// The file in which a serving process keeps what it has not yet written. It does not survive the loss of power.
pub fn memory_file(volume: &Volume) -> Result<PathBuf> {
    let status = volume.status()?;
    let id = status["volume"].as_str().context("volume status names no volume")?.replace('-', "");
    Ok(Path::new("/dev/shm/ringfort").join(format!("volume-{id}")))
}
