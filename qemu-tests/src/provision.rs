//! What a guest needs, fetched or built once and kept under the target folder: QEMU, kernels with their modules, busybox,
//! the guest agent. Settings of the environment that replace a part:
//! `RINGFORT_QEMU` (a `qemu-system-x86_64`), `RINGFORT_QEMU_STORAGE_DAEMON`, `RINGFORT_GUEST_ROOT` (a folder with
//! `boot/vmlinuz-*`, `lib/modules/*` and `bin/busybox`, in the place of Debian's kernel and busybox),
//! `RINGFORT_GUEST_ROOT_RECENT` (a folder with `boot/vmlinuz-*` and `lib/modules/*`, in the place of the newer kernel).

use std::ffi::OsStr;
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

/// A guest kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The release's own. Debian 12's 6.1 uses one request queue, whatever a device offers.
    Release,
    /// Linux 6.11 or newer, from the release's backports where the release itself is older: several request queues.
    Recent,
}

/// From this version guests use several request queues of a virtio-fs device.
const RECENT_LEAST: (u32, u32) = (6, 11);

/// A kernel to boot.
#[derive(Clone, Debug)]
pub struct KernelFiles {
    /// Compressed.
    pub image: PathBuf,
    /// `lib/modules/VERSION`.
    pub modules: PathBuf,
}

/// The parts that every guest is made of, beside a kernel.
#[derive(Clone, Debug)]
pub struct Parts {
    pub qemu: Qemu,
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

/// A kernel, made ready; processes take turns.
pub fn kernel(kernel: Kernel) -> Result<KernelFiles> {
    let _lock = Lock::acquire("provision")?;
    kernel_files(kernel).with_context(|| format!("preparing the guest kernel {kernel:?}"))
}

fn kernel_files(kernel: Kernel) -> Result<KernelFiles> {
    let root = match kernel {
        Kernel::Release => release_root()?,
        Kernel::Recent => recent_root()?,
    };
    let modules = only_entry(&root.join("lib/modules"), "")?;
    if kernel == Kernel::Recent {
        let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if version_of(&version) < RECENT_LEAST {
            bail!(
                "the newest kernel that was found is {version}; {}.{} or newer is needed: put one into a folder and name it \
                 in RINGFORT_GUEST_ROOT_RECENT",
                RECENT_LEAST.0,
                RECENT_LEAST.1
            );
        }
    }
    Ok(KernelFiles { image: only_entry(&root.join("boot"), "vmlinuz-")?, modules })
}

/// The folder that Debian packages of this release are unpacked to, with what they need and the machine lacks; fetched once
/// under `name`.
pub fn unpacked(name: &str, wanted: &[&str]) -> Result<PathBuf> {
    let _lock = Lock::acquire("provision")?;
    packages(name, wanted, Suite::Release)
}

/// A program from crates.io, built once with further settings of the environment.
pub fn installed(package: &str, version: &str, environment: &[(&str, &OsStr)]) -> Result<PathBuf> {
    let _lock = Lock::acquire("provision")?;
    let root = cache()?.join(format!("{package}-{version}"));
    once(&root, |partial| {
        let mut command = cargo();
        command
            .args(["install", "--quiet", "--locked", package, "--version", version, "--root"])
            .arg(partial)
            // Not where this workspace is built: a build of other flags must not displace its files.
            .arg("--target-dir")
            .arg(partial.join("target"))
            .envs(environment.iter().copied());
        output_of(&mut command)?;
        let built = partial.join("target");
        fs::remove_dir_all(&built).with_context(|| format!("removing {}", built.display()))
    })?;
    Ok(root.join("bin").join(package))
}

/// Programs of a Debian package for use on this machine, unpacked and not installed.
#[derive(Clone, Debug)]
pub struct HostPrograms {
    root: PathBuf,
}

/// The programs of `package`, fetched once.
pub fn host_programs(package: &str) -> Result<HostPrograms> {
    Ok(HostPrograms { root: unpacked(package, &[package])? })
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
    Ok(Parts {
        qemu: qemu()?,
        busybox: release_root()?.join("bin/busybox"),
        agent: static_program("ringfort-qemu-tests", "ringfort-guest-agent")?,
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
    if version_of(version) < QEMU_LEAST {
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

/// The first two numbers of a version; what is no number counts as 0.
fn version_of(text: &str) -> (u32, u32) {
    let mut numbers = text.split(['.', '-', '+']).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Where to look for a package.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Suite {
    Release,
    ReleaseOrBackports,
}

/// A `qemu-storage-daemon` that exports files over FUSE.
#[derive(Clone, Debug)]
pub struct StorageDaemon {
    program: PathBuf,
    root: Option<PathBuf>,
}

impl StorageDaemon {
    /// The program with its libraries found. On the end of the thread that starts it, it takes its mounts down and ends.
    pub fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(&self.program);
        if let Some(root) = &self.root {
            command.env("LD_LIBRARY_PATH", library_path(root));
        }
        command
    }
}

/// The machine's own storage daemon, or one fetched.
pub fn storage_daemon() -> Result<StorageDaemon> {
    let _lock = Lock::acquire("provision")?;
    if let Some(program) = std::env::var_os("RINGFORT_QEMU_STORAGE_DAEMON") {
        return fit_storage_daemon(Path::new(&program), None)
            .context("checking RINGFORT_QEMU_STORAGE_DAEMON");
    }
    if let Ok(daemon) = fit_storage_daemon(Path::new("qemu-storage-daemon"), None) {
        return Ok(daemon);
    }
    let root = packages("storage-daemon", &["qemu-utils"], Suite::ReleaseOrBackports)?;
    fit_storage_daemon(&root.join("usr/bin/qemu-storage-daemon"), Some(root.clone()))
}

fn fit_storage_daemon(program: &Path, root: Option<PathBuf>) -> Result<StorageDaemon> {
    let daemon = StorageDaemon { program: program.to_owned(), root };
    if !output_of(daemon.command().arg("--help"))?.contains("type=]fuse") {
        bail!("{} exports nothing over FUSE", program.display());
    }
    Ok(daemon)
}

/// Unpacks packages and what they depend on into a folder of their own, once. The caller holds the provisioning lock.
pub(crate) fn packages(name: &str, wanted: &[&str], suite: Suite) -> Result<PathBuf> {
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
fn release_root() -> Result<PathBuf> {
    if let Some(root) = std::env::var_os("RINGFORT_GUEST_ROOT") {
        return Ok(PathBuf::from(root));
    }
    let root = cache()?.join("guest-root");
    once(&root, |partial| {
        let apt = apt()?;
        unpack(&[apt.download_alone(&cloud_kernel(&apt, None)?)?], partial)?;
        unpack(&[apt.download_alone("busybox-static")?], partial)?;
        // Where /bin is a link to /usr/bin the package may hold the program there.
        let moved = partial.join("usr/bin/busybox");
        if moved.is_file() {
            fs::create_dir_all(partial.join("bin"))?;
            fs::rename(moved, partial.join("bin/busybox"))?;
        }
        modules_in_lib(partial)
    })?;
    Ok(root)
}

/// The newest cloud kernel of the release and its backports.
fn recent_root() -> Result<PathBuf> {
    if let Some(root) = std::env::var_os("RINGFORT_GUEST_ROOT_RECENT") {
        return Ok(PathBuf::from(root));
    }
    let root = cache()?.join("guest-root-recent");
    once(&root, |partial| {
        let apt = apt()?;
        // A release with no backports (yet) has a kernel new enough in its main archive.
        let package = cloud_kernel(&apt, Some(&apt.backports())).or_else(|_| cloud_kernel(&apt, None))?;
        unpack(&[apt.download_alone(&package)?], partial)?;
        modules_in_lib(partial)
    })?;
    Ok(root)
}

/// The name of the package that the meta-package for cloud kernels stands for.
fn cloud_kernel(apt: &Apt, suite: Option<&str>) -> Result<String> {
    apt.depends("linux-image-cloud-amd64", suite)?
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .context("linux-image-cloud-amd64 depends on no kernel")
}

/// Moves modules to where every release before the merged `/usr` had them.
fn modules_in_lib(root: &Path) -> Result<()> {
    let modules = root.join("usr/lib/modules");
    if modules.is_dir() {
        fs::create_dir_all(root.join("lib"))?;
        fs::rename(modules, root.join("lib/modules"))?;
    }
    Ok(())
}

fn apt() -> Result<Apt> {
    Apt::prepare(&cache()?.join("apt"))
}

/// Makes `folder` by filling a partial one and renaming it: an interrupted attempt leaves nothing that looks finished.
pub(crate) fn once(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
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

/// Flags of the compiler for programs that run in guests: one file, no libraries.
pub(crate) const STATIC_FLAGS: &str = "-C target-feature=+crt-static";
/// Named, so that the flags are for the program and not for its build scripts.
pub(crate) const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds a program of the workspace as one static file. Only the flags differ from an ordinary build, hence a target folder of its
/// own.
pub(crate) fn static_program(package: &str, name: &str) -> Result<PathBuf> {
    let target_folder = cache()?.join("static-target");
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--release", "--package", package])
        .args(["--bin", name, "--target", STATIC_TARGET, "--target-dir"])
        .arg(&target_folder)
        .env("RUSTFLAGS", STATIC_FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    output_of(&mut command)?;
    Ok(target_folder.join(STATIC_TARGET).join("release").join(name))
}

/// Cargo, the same that runs us, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")));
    command
}

/// Builds a package's program as the running one was built, and returns its path.
pub fn workspace_program(package: &str, name: &str) -> Result<PathBuf> {
    let build = Build::current()?;
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--package", package, "--bin", name, "--target-dir"])
        .arg(&build.target);
    match build.profile.as_str() {
        "debug" => {}
        profile => {
            command.args(["--profile", profile]);
        }
    }
    output_of(&mut command)?;
    let program = build.target.join(&build.profile).join(name);
    if !program.is_file() {
        bail!("cargo build of {package} left no {}", program.display());
    }
    Ok(program)
}

/// The folders of shared libraries below `root`, private ones of single packages included.
pub(crate) fn library_path(root: &Path) -> String {
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
