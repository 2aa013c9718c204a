//! Programs that tests run in the guest, beside busybox and the agent: from the release's packages with the libraries that
//! they load, or from crates.io or this workspace, linked statically.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::place::{Lock, cache};
use crate::provision::{
    STATIC_FLAGS, STATIC_TARGET, Suite, cargo, library_path, once, output_of, packages, static_program,
};

/// The packages that hold the programs, fetched together.
const PACKAGES: [&str; 6] = ["acl", "e2fsprogs", "fio", "git", "sqlite3", "tar"];

/// What a test can ask to be in the guest's `/bin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `getfacl` and `setfacl`.
    Acl,
    /// All that the channel's library can do, compared with a reference.
    ChannelTrial,
    Fio,
    /// The file system exerciser, from crates.io.
    Fsx,
    Git,
    /// The channel's daemon.
    Guestd,
    /// Makes ext4 file systems.
    Mke2fs,
    /// A suite of POSIX conformance tests, from crates.io.
    Pjdfstest,
    /// The client of the channel.
    Rf,
    /// Either end of a ring, for a trial between guest and host.
    RingTrial,
    Sqlite3,
    /// GNU tar, in the place of busybox's.
    Tar,
}

impl Program {
    fn source(self) -> Source {
        match self {
            Program::Acl => Source::Package(&["usr/bin/getfacl", "usr/bin/setfacl"]),
            Program::ChannelTrial => {
                Source::Workspace { package: "ringfort-channel-trial", name: "ringfort-channel-trial" }
            }
            Program::Fio => Source::Package(&["usr/bin/fio"]),
            Program::Fsx => Source::Crate { name: "fsx", version: "0.3.2" },
            Program::Guestd => Source::Workspace { package: "ringfort-guestd", name: "ringfort-guestd" },
            Program::Git => Source::Package(&["usr/bin/git"]),
            Program::Mke2fs => Source::Package(&["usr/sbin/mke2fs"]),
            Program::Pjdfstest => Source::Crate { name: "pjdfstest", version: "0.2.2" },
            Program::Rf => Source::Workspace { package: "ringfort-rf", name: "rf" },
            Program::RingTrial => {
                Source::Workspace { package: "ringfort-ring-trial", name: "ringfort-ring-trial" }
            }
            Program::Sqlite3 => Source::Package(&["usr/bin/sqlite3"]),
            Program::Tar => Source::Package(&["usr/bin/tar"]),
        }
    }

    /// Further names of the first file: programs that act by the name they are called by.
    fn links(self) -> &'static [&'static str] {
        match self {
            Program::Git => &["git-upload-pack", "git-receive-pack"],
            _ => &[],
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// Files in the packages, by their paths with `/bin` merged into `/usr/bin`.
    Package(&'static [&'static str]),
    Crate {
        name: &'static str,
        version: &'static str,
    },
    /// A program of this workspace.
    Workspace {
        package: &'static str,
        name: &'static str,
    },
}

/// Files of this machine for the guest's `/bin`, and the libraries that they load.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    pub files: Vec<PathBuf>,
    /// Links in `/bin`: their names, and the names that they point to.
    pub links: Vec<(String, String)>,
    pub libraries: Vec<PathBuf>,
}

/// Makes `programs` ready; processes take turns.
pub fn prepare(programs: &[Program]) -> Result<Payload> {
    let mut payload = Payload::default();
    if programs.is_empty() {
        return Ok(payload);
    }
    let _lock = Lock::acquire("provision")?;
    for program in programs {
        add(*program, &mut payload).with_context(|| format!("preparing the test program {program:?}"))?;
    }
    Ok(payload)
}

fn add(program: Program, payload: &mut Payload) -> Result<()> {
    let first = payload.files.len();
    match program.source() {
        Source::Package(paths) => {
            let root = packages("test-packages", &PACKAGES, Suite::Release)?;
            for path in paths {
                let file = in_merged_root(&root, path)?;
                payload.libraries.extend(libraries(&root, &file)?);
                payload.files.push(file);
            }
        }
        Source::Crate { name, version } => payload.files.push(installed_crate(name, version)?),
        Source::Workspace { package, name } => payload.files.push(static_program(package, name)?),
    }
    let named = payload.files.get(first).and_then(|file| file.file_name()).unwrap_or_default();
    let named = named.to_string_lossy().into_owned();
    payload.links.extend(program.links().iter().map(|link| ((*link).to_owned(), named.clone())));
    Ok(())
}

/// Releases differ in whether a package names `/bin` or `/usr/bin`.
fn in_merged_root(root: &Path, path: &str) -> Result<PathBuf> {
    let candidates = [root.join(path), root.join(path.trim_start_matches("usr/"))];
    let found = candidates.into_iter().find(|file| file.is_file());
    found.with_context(|| format!("no {path} in {}", root.display()))
}

/// The libraries that the loader finds for `file`, the loader included.
fn libraries(root: &Path, file: &Path) -> Result<Vec<PathBuf>> {
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
    Ok(libraries)
}

/// Builds the program of a crate as one static file, once a version.
fn installed_crate(name: &str, version: &str) -> Result<PathBuf> {
    let root = cache()?.join(format!("crate-{name}-{version}"));
    once(&root, |partial| {
        let build = partial.join("build");
        let mut command = cargo();
        command
            .args(["install", name, "--version", version, "--locked", "--quiet", "--no-track"])
            .args(["--target", STATIC_TARGET, "--root"])
            .arg(partial)
            .arg("--target-dir")
            .arg(&build)
            .env("RUSTFLAGS", STATIC_FLAGS)
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        output_of(&mut command).with_context(|| {
            format!("installing the crate {name} {version} from crates.io, kept for later runs")
        })?;
        std::fs::remove_dir_all(&build).with_context(|| format!("removing {}", build.display()))
    })?;
    Ok(root.join("bin").join(name))
}
