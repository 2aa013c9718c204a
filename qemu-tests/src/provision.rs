//! What a guest needs, fetched or built once and kept under the target folder: QEMU, a kernel with its modules, busybox,
//! test programs with their libraries, the guest agent. Settings of the environment that replace a part:
//! `RINGFORT_QEMU` (a `qemu-system-x86_64`), `RINGFORT_GUEST_ROOT` (a folder with `boot/vmlinuz-*`, `lib/modules/*` and
//! `bin/busybox`, in the place of Debian's kernel and busybox).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, unpack};
use crate::place::{Build, Lock, cache};

/// Before 8.1 QEMU elided fences in guests with one possible vCPU, which breaks memory shared with the host.
const QEMU_LEAST: (u32, u32) = (8, 1);

/// A QEMU that runs guests.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    /// The root that it was unpacked to; `None` for the machine's own.
    root: Option<PathBuf>,
    /// As it names itself.
    pub version: String,
}

impl Qemu {
    /// Arguments for [`Command`]: the program with its libraries and firmware found. It dies with the thread that starts
    /// it, so that no guest outlives a killed test.
    pub fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
        if let Some(root) = &self.root {
            command.env("LD_LIBRARY_PATH", library_path(root));
            for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
                command.arg("-L").arg(root.join(data));
            }
        }
        command
    }
}

/// The parts that every guest is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    pub qemu: Qemu,
    /// The compressed kernel.
    pub kernel: PathBuf,
    /// `lib/modules/VERSION` of that kernel.
    pub modules: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
    /// The static guest agent.
    pub agent: PathBuf,
}

/// The parts, made ready once a process; processes take turns.
pub fn parts() -> Result<&'static Parts> {
    static PARTS: OnceLock<std::result::Result<Parts, String>> = OnceLock::new();
    let made = PARTS.get_or_init(|| {
        let _lock = Lock::acquire("provision").map_err(|error| format!("{error:#}"))?;
        make_parts().map_err(|error| format!("{error:#}"))
    });
    made.as_ref().map_err(|error| anyhow::anyhow!("preparing the parts of a guest: {error}"))
}

/// A program from a Debian package for use in the guest, and the libraries that it loads, as absolute paths on this machine.
#[derive(Clone, Debug)]
pub struct Program {
    pub file: PathBuf,
    pub libraries: Vec<PathBuf>,
}

/// The dynamically linked test programs of the guest: `fio` and `sqlite3`.
pub fn test_programs() -> Result<Vec<Program>> {
    let _lock = Lock::acquire("provision")?;
    let root = packages("test-programs", &["fio", "sqlite3"], Suite::Release)?;
    ["usr/bin/fio", "usr/bin/sqlite3"].iter().map(|name| program(&root, &root.join(name))).collect()
}

/// Programs of a Debian package for use on this machine, unpacked and not installed.
#[derive(Clone, Debug)]
pub struct HostPrograms {
    root: PathBuf,
}

/// The programs of `package`, fetched once.
pub fn host_programs(package: &str) -> Result<HostPrograms> {
    let _lock = Lock::acquire("provision")?;
    Ok(HostPrograms { root: packages(package, &[package], Suite::Release)? })
}

impl HostPrograms {
    /// Runs `program` with its libraries found.
    pub fn command(&self, program: &str) -> Command {
        let folders =
            ["usr/sbin", "usr/bin", "sbin", "bin"].map(|folder| self.root.join(folder).join(program));
        let found = folders.into_iter().find(|path| path.is_file());
        let mut command = Command::new(found.unwrap_or_else(|| PathBuf::from(program)));
        command.env("LD_LIBRARY_PATH", library_path(&self.root));
        command
    }
}

fn make_parts() -> Result<Parts> {
    let guest_root = match std::env::var_os("RINGFORT_GUEST_ROOT") {
        Some(root) => PathBuf::from(root),
        None => guest_root()?,
    };
    let modules = only_entry(&guest_root.join("lib/modules"), "")?;
    Ok(Parts {
        qemu: qemu()?,
        kernel: only_entry(&guest_root.join("boot"), "vmlinuz-")?,
        modules,
        busybox: guest_root.join("bin/busybox"),
        agent: agent()?,
    })
}

fn qemu() -> Result<Qemu> {
    if let Some(program) = std::env::var_os("RINGFORT_QEMU") {
        return fit_qemu(Path::new(&program), None).context("checking RINGFORT_QEMU");
    }
    if let Ok(qemu) = fit_qemu(Path::new("qemu-system-x86_64"), None) {
        return Ok(qemu);
    }
    let root = packages("qemu", &["qemu-system-x86"], Suite::ReleaseOrBackports)?;
    fit_qemu(&root.join("usr/bin/qemu-system-x86_64"), Some(root.clone()))
}

fn fit_qemu(program: &Path, root: Option<PathBuf>) -> Result<Qemu> {
    let mut qemu = Qemu { program: program.to_owned(), root, version: String::new() };
    let said = output_of(qemu.command().arg("--version"))?;
    let version =
        said.split("version ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < QEMU_LEAST {
        bail!(
            "{} is version {version:?}; {}.{} or newer is needed",
            program.display(),
            QEMU_LEAST.0,
            QEMU_LEAST.1
        );
    }
    qemu.version = version.to_owned();
    Ok(qemu)
}

enum Suite {
    Release,
    ReleaseOrBackports,
}

/// Unpacks packages and what they depend on into a folder of their own, once.
fn packages(name: &str, wanted: &[&str], suite: Suite) -> Result<PathBuf> {
    let root = cache()?.join(name);
    once(&root, |partial| {
        let apt = apt()?;
        let archives = match suite {
            Suite::Release => apt.download(wanted, None)?,
            // A release with no backports (yet) has QEMU new enough in its main archive.
            Suite::ReleaseOrBackports => {
                apt.download(wanted, Some(&apt.backports())).or_else(|_| apt.download(wanted, None))?
            }
        };
        unpack(&archives, partial)
    })?;
    Ok(root)
}

/// The release's cloud kernel, newest build, and busybox.
fn guest_root() -> Result<PathBuf> {
    let root = cache()?.join("guest-root");
    once(&root, |partial| {
        let apt = apt()?;
        let kernel = apt
            .depends("linux-image-cloud-amd64")?
            .into_iter()
            .find(|name| name.starts_with("linux-image-"))
            .context("linux-image-cloud-amd64 depends on no kernel")?;
        unpack(&[apt.download_alone(&kernel)?], partial)?;
        unpack(&[apt.download_alone("busybox-static")?], partial)?;
        // Where /bin is a link to /usr/bin the package may hold the program there.
        let moved = partial.join("usr/bin/busybox");
        if moved.is_file() {
            fs::create_dir_all(partial.join("bin"))?;
            fs::rename(moved, partial.join("bin/busybox"))?;
        }
        let modules = partial.join("usr/lib/modules");
        if modules.is_dir() {
            fs::create_dir_all(partial.join("lib"))?;
            fs::rename(modules, partial.join("lib/modules"))?;
        }
        Ok(())
    })?;
    Ok(root)
}

fn apt() -> Result<Apt> {
    Apt::prepare(&cache()?.join("apt"))
}

/// Makes `folder` by filling a partial one and renaming it: an interrupted attempt leaves nothing that looks finished.
fn once(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    eprintln!("fetching {} (kept for later runs)", folder.display());
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    fill(&partial)?;
    fs::rename(&partial, folder).with_context(|| format!("renaming {} into place", partial.display()))
}

/// Builds the agent as one static file. Only the flags differ from an ordinary build, hence a target folder of its own.
fn agent() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let target_folder = cache()?.join("agent-target");
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--release", "--package", "ringfort-qemu-tests"])
        .args(["--bin", "ringfort-guest-agent", "--target", TARGET, "--target-dir"])
        .arg(&target_folder)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    output_of(&mut command)?;
    Ok(target_folder.join(TARGET).join("release/ringfort-guest-agent"))
}

/// Cargo, the same that runs us, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")));
    command
}

/// Builds a program of the workspace as the running one was built, and returns its path.
pub fn workspace_program(package: &str) -> Result<PathBuf> {
    let build = Build::current()?;
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--package", package, "--bin", package, "--target-dir"])
        .arg(&build.target);
    match build.profile.as_str() {
        "debug" => {}
        profile => {
            command.args(["--profile", profile]);
        }
    }
    output_of(&mut command)?;
    let program = build.target.join(&build.profile).join(package);
    if !program.is_file() {
        bail!("cargo build of {package} left no {}", program.display());
    }
    Ok(program)
}

fn program(root: &Path, file: &Path) -> Result<Program> {
    let said = output_of(Command::new("ldd").arg(file).env("LD_LIBRARY_PATH", library_path(root)))?;
    let mut libraries = Vec::new();
    for line in said.lines() {
        if line.contains("not found") {
            bail!("{} needs a library that is missing: {}", file.display(), line.trim());
        }
        // "name => /path (0x…)", or "/path (0x…)" for the loader.
        let path = line.split("=>").last().unwrap_or_default().trim();
        if let Some(path) = path.split_whitespace().next().filter(|path| path.starts_with('/')) {
            libraries.push(PathBuf::from(path));
        }
    }
    Ok(Program { file: file.to_owned(), libraries })
}

/// The folders of shared libraries below `root`, private ones of single packages included.
fn library_path(root: &Path) -> String {
    let mut folders = Vec::new();
    for below in ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"] {
        let folder = root.join(below);
        let within = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let within = within.filter(|path| path.is_dir());
        folders.push(folder.display().to_string());
        folders.extend(within.map(|path| path.display().to_string()));
    }
    folders.join(":")
}

fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    found.sort();
    found.pop().with_context(|| format!("nothing named {prefix}* in {}", folder.display()))
}

/// Runs a command and returns its standard output; a failure shows both outputs.
pub fn output_of(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
