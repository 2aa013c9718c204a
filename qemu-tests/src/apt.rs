//! Packages fetched and unpacked privately: own source list, own state and cache folders, no root, nothing installed. The
//! mirrors are the machine's own: stanzas of its release are copied from its source lists, and its backports suite is added.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A private apt, rooted in one folder.
#[derive(Debug)]
pub struct Apt {
    folder: PathBuf,
    codename: String,
}

/// One stanza of a deb822 source list: field name (lower case) to value.
type Stanza = BTreeMap<String, String>;

impl Apt {
    /// Writes the private configuration under `folder` and fetches the package lists.
    pub fn prepare(folder: &Path) -> Result<Apt> {
        let codename = release_codename()?;
        for below in ["lists/partial", "cache/archives/partial"] {
            let path = folder.join(below);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        let own = private_sources(&machine_stanzas(Path::new("/etc/apt"))?, &codename);
        if own.is_empty() {
            bail!(
                "no source of release {codename} with component main in /etc/apt: add one, or install \
                 qemu-system-x86 8.1 or newer yourself and set RINGFORT_GUEST_* as the harness's documentation says"
            );
        }
        fs::write(folder.join("private.sources"), own).context("writing the private source list")?;
        let apt = Apt { folder: folder.to_owned(), codename };
        apt.run("apt-get", &["update"])?;
        Ok(apt)
    }

    /// The name of the suite that carries newer packages for this release.
    pub fn backports(&self) -> String {
        format!("{}-backports", self.codename)
    }

    /// Downloads `packages` and those of their dependencies that the machine does not have; returns the archives.
    /// `suite` names a suite to prefer over the release itself.
    pub fn download(&self, packages: &[&str], suite: Option<&str>) -> Result<Vec<PathBuf>> {
        let archives = self.folder.join("cache/archives");
        for old in files_ending(&archives, ".deb")? {
            fs::remove_file(&old).with_context(|| format!("removing {}", old.display()))?;
        }
        let mut arguments =
            vec!["install", "--yes", "--no-install-recommends", "--download-only", "--reinstall"];
        if let Some(suite) = suite {
            arguments.extend(["--target-release", suite]);
        }
        arguments.extend(packages);
        self.run("apt-get", &arguments)?;
        let fetched = files_ending(&archives, ".deb")?;
        if fetched.is_empty() {
            bail!("apt-get {} fetched nothing into {}", arguments.join(" "), archives.display());
        }
        Ok(fetched)
    }

    /// Downloads one package alone, whatever it depends on.
    pub fn download_alone(&self, package: &str) -> Result<PathBuf> {
        let alone = self.folder.join("alone");
        if alone.exists() {
            fs::remove_dir_all(&alone).with_context(|| format!("removing {}", alone.display()))?;
        }
        fs::create_dir_all(&alone).with_context(|| format!("creating {}", alone.display()))?;
        self.run_in(&alone, "apt-get", &["download", package])?;
        files_ending(&alone, ".deb")?
            .pop()
            .with_context(|| format!("apt-get download {package} left no archive"))
    }

    /// The packages that `package` depends on, as the release has it or as `suite` does.
    pub fn depends(&self, package: &str, suite: Option<&str>) -> Result<Vec<String>> {
        let preferred = suite.map(|suite| format!("APT::Default-Release={suite}"));
        let preferred: Vec<&str> = preferred.iter().flat_map(|option| ["-o", option.as_str()]).collect();
        let said = self.run("apt-cache", &[preferred.as_slice(), &["depends", package]].concat())?;
        Ok(said.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned).collect())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.run_in(&self.folder, program, arguments)
    }

    fn run_in(&self, folder: &Path, program: &str, arguments: &[&str]) -> Result<String> {
        let own = &self.folder;
        let output = Command::new(program)
            .current_dir(folder)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-o", &format!("Dir::Etc::sourcelist={}", own.join("private.sources").display())])
            .args(["-o", "Dir::Etc::sourceparts=/dev/null"])
            .args(["-o", &format!("Dir::State::lists={}", own.join("lists").display())])
            .args(["-o", &format!("Dir::Cache={}", own.join("cache").display())])
            .args(["-o", &format!("Dir::Cache::archives={}", own.join("cache/archives").display())])
            // Ours is the only process in these folders (the provisioning lock sees to it), and without root the
            // machine's own lock could not be taken.
            .args([
                "-o",
                "Debug::NoLocking=true",
                "-o",
                "Acquire::Languages=none",
                "-o",
                "Acquire::Retries=3",
            ])
            .args(["-o", "APT::Sandbox::User=", "-q"])
            .args(arguments)
            .output()
            .with_context(|| format!("running {program} (packages are fetched with apt; is this Debian?)"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "{program} {} ended with {}:\n{said}{}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(said)
    }
}

/// Unpacks archives below `root`.
pub fn unpack(archives: &[PathBuf], root: &Path) -> Result<()> {
    fs::create_dir_all(root).with_context(|| format!("creating {}", root.display()))?;
    for archive in archives {
        let output =
            Command::new("dpkg").arg("-x").arg(archive).arg(root).output().context("running dpkg -x")?;
        if !output.status.success() {
            bail!("dpkg -x {}: {}", archive.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

fn files_ending(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        if path.is_file() && path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn release_codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .filter(|name| !name.is_empty())
        .context("/etc/os-release has no VERSION_CODENAME: packages can be fetched on Debian only")
}

/// The stanzas of every source list of the machine, one-line entries turned into stanzas.
fn machine_stanzas(etc_apt: &Path) -> Result<Vec<Stanza>> {
    let mut files = vec![etc_apt.join("sources.list")];
    let parts = etc_apt.join("sources.list.d");
    if parts.is_dir() {
        files.extend(files_ending(&parts, ".list")?);
        files.extend(files_ending(&parts, ".sources")?);
    }
    let mut stanzas = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        if file.extension().is_some_and(|extension| extension == "sources") {
            stanzas.extend(deb822(&text));
        } else {
            stanzas.extend(text.lines().filter_map(one_line));
        }
    }
    Ok(stanzas)
}

fn deb822(text: &str) -> Vec<Stanza> {
    let mut stanzas = vec![Stanza::new()];
    let mut field = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            stanzas.push(Stanza::new());
        } else if let Some(stanza) = stanzas.last_mut() {
            if line.starts_with([' ', '\t']) {
                let value = stanza.entry(field.clone()).or_default();
                value.push('\n');
                value.push_str(line);
            } else if let Some((name, value)) = line.split_once(':') {
                field = name.trim().to_ascii_lowercase();
                stanza.insert(field.clone(), value.trim().to_owned());
            }
        }
    }
    stanzas
        .retain(|stanza| !stanza.is_empty() && stanza.get("enabled").is_none_or(|enabled| enabled != "no"));
    stanzas
}

fn one_line(line: &str) -> Option<Stanza> {
    let mut rest = line.split('#').next()?.trim().strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim();
    let mut stanza = Stanza::from([("types".to_owned(), "deb".to_owned())]);
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        for (name, value) in options.split_whitespace().filter_map(|option| option.split_once('=')) {
            let name = if name == "arch" { "architectures" } else { name };
            stanza.insert(name.to_ascii_lowercase(), value.replace(',', " "));
        }
        rest = after.trim();
    }
    let mut words = rest.split_whitespace();
    stanza.insert("uris".to_owned(), words.next()?.to_owned());
    stanza.insert("suites".to_owned(), words.next()?.to_owned());
    stanza.insert("components".to_owned(), words.collect::<Vec<_>>().join(" "));
    Some(stanza)
}

/// The stanzas of this release, with backports added where the release's main archive is.
fn private_sources(stanzas: &[Stanza], codename: &str) -> String {
    let mut text = String::new();
    let field = |stanza: &Stanza, name: &str| stanza.get(name).cloned().unwrap_or_default();
    for stanza in stanzas {
        let binary = field(stanza, "types").split_whitespace().any(|kind| kind == "deb");
        let main = field(stanza, "components").split_whitespace().any(|component| component == "main");
        let suites = field(stanza, "suites");
        let mut wanted: Vec<&str> =
            suites.split_whitespace().filter(|suite| suite.split('-').next() == Some(codename)).collect();
        if !binary || !main || wanted.is_empty() {
            continue;
        }
        let backports = format!("{codename}-backports");
        if wanted.contains(&codename) && !wanted.contains(&backports.as_str()) {
            wanted.push(&backports);
        }
        text.push_str(&format!("Types: deb\nSuites: {}\nComponents: main\n", wanted.join(" ")));
        for (name, value) in stanza {
            if !["types", "suites", "components", "enabled"].contains(&name.as_str()) {
                text.push_str(&format!("{name}: {value}\n"));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb deb-src
# a remark
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
URIs: http://mirror.example/other
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://mirror.example/off
Suites: bookworm
Components: main
";

    #[test]
    fn a_stanza_of_the_release_is_kept_with_its_key_and_gains_backports() {
        let own = private_sources(&deb822(DEB822), "bookworm");
        assert_eq!(own.matches("Types:").count(), 1);
        assert!(own.contains("Suites: bookworm bookworm-updates bookworm-backports\n"), "{own}");
        assert!(own.contains("uris: http://mirror.example/debian\n"), "{own}");
        assert!(own.contains("signed-by: /usr/share/keyrings/archive.gpg\n"), "{own}");
    }

    #[test]
    fn a_one_line_entry_with_options_becomes_a_stanza() {
        let line = "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main # note";
        let own = private_sources(&[one_line(line).unwrap()], "trixie");
        assert!(own.contains("Suites: trixie trixie-backports\n"), "{own}");
        assert!(own.contains("architectures: amd64\n") && own.contains("signed-by: /k.gpg\n"), "{own}");
        assert!(one_line("deb-src http://mirror.example/debian trixie main").is_none());
        assert!(one_line("# deb http://mirror.example/debian trixie main").is_none());
    }
}
