//! Packs kernel modules and programs into an initramfs: a `cpio` archive of the `newc` kind, uncompressed, since unpacking
//! runs at the guest's pace.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::programs::Payload;
use crate::provision::{KernelFiles, Parts};

/// Modules that every guest uses; what they depend on is loaded before them.
const MODULES: [&str; 5] = ["virtio_mmio", "virtio_pci", "virtio_console", "virtiofs", "virtio_blk"];

const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
hostname guest
ip link set lo up
for module in $(cat /modules/order); do
    insmod /modules/$module || echo \"ringfort-guest: module $module refused\"
done
exec /bin/ringfort-guest-agent serve
";

/// Users that tests act as, beside root.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
tests:x:1000:1000:tests:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/tmp:/bin/sh
";
const GROUP: &str = "root:x:0:
tests:x:1000:
nobody:x:65534:
";

/// Writes the image for `parts`, a kernel with further `modules` and further programs to `path`; returns its size in bytes.
pub fn write(
    path: &Path,
    parts: &Parts,
    kernel: &KernelFiles,
    modules: &[&str],
    programs: &Payload,
) -> Result<u64> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "tmp", "mnt", "modules", "root", "etc"] {
        archive.folder(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("etc/passwd", 0o644, PASSWD.as_bytes());
    archive.file("etc/group", 0o644, GROUP.as_bytes());
    archive.file("bin/busybox", 0o755, &read(&parts.busybox)?);
    archive.file("bin/ringfort-guest-agent", 0o755, &read(&parts.agent)?);

    let wanted: Vec<&str> = MODULES.iter().chain(modules).copied().collect();
    let modules = in_load_order(&wanted, &kernel.modules, &parts.busybox)?;
    let mut order = String::new();
    for module in &modules {
        archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.bytes);
        order.push_str(&format!("{}.ko\n", module.name));
    }
    archive.file("modules/order", 0o644, order.as_bytes());

    // Libraries lie flat in one folder that the loader searches; the loader itself where programs name it.
    for file in &programs.files {
        archive.file(&format!("bin/{}", file_name(file)?), 0o755, &read(file)?);
    }
    for (link, target) in &programs.links {
        archive.link(&format!("bin/{link}"), target);
    }
    let libraries: BTreeSet<_> = programs.libraries.iter().collect();
    if !libraries.is_empty() {
        archive.folder("lib");
        archive.folder("lib64");
    }
    for library in libraries {
        let name = file_name(library)?;
        let folder = if name.starts_with("ld-linux") { "lib64" } else { "lib" };
        archive.file(&format!("{folder}/{name}"), 0o755, &read(library)?);
    }

    let bytes = archive.finish();
    fs::write(path, &bytes).with_context(|| format!("writing {}", path.display()))?;
    Ok(bytes.len() as u64)
}

struct Module {
    name: String,
    bytes: Vec<u8>,
}

/// The wanted modules and all that they depend on, each after its own dependencies.
fn in_load_order(wanted: &[&str], folder: &Path, busybox: &Path) -> Result<Vec<Module>> {
    let mut files = Vec::new();
    collect_modules(folder, &mut files)?;
    let built_in = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let mut loaded: Vec<Module> = Vec::new();
    // A name is pushed back below its missing dependencies, so it is seen again when they are loaded.
    let mut waiting: Vec<String> = wanted.iter().rev().map(|name| (*name).to_owned()).collect();
    let mut steps = 0;
    while let Some(name) = waiting.pop() {
        steps += 1;
        if steps > 1000 {
            bail!("the modules in {} depend on each other in a circle", folder.display());
        }
        if loaded.iter().any(|module| module.name == name) || lists(&built_in, &name) {
            continue;
        }
        let file = files
            .iter()
            .find(|file| module_name(file).is_some_and(|found| found == name))
            .with_context(|| format!("no kernel module {name} in {}", folder.display()))?;
        let bytes = module_bytes(file, busybox)?;
        let missing: Vec<String> = dependencies(&bytes)
            .into_iter()
            .filter(|needed| !loaded.iter().any(|module| &module.name == needed) && !lists(&built_in, needed))
            .collect();
        if missing.is_empty() {
            loaded.push(Module { name, bytes });
        } else {
            waiting.push(name);
            waiting.extend(missing);
        }
    }
    Ok(loaded)
}

fn collect_modules(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_modules(&entry.path(), files)?;
        } else if module_name(&entry.path()).is_some() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// The name as the kernel has it: underscores for dashes, endings removed. `None` for what is no module.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    Some(name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".ko")?.replace('-', "_"))
}

fn lists(built_in: &str, name: &str) -> bool {
    built_in.lines().any(|line| module_name(Path::new(line)).is_some_and(|found| found == name))
}

fn module_bytes(file: &Path, busybox: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return read(file);
    }
    let compressed = fs::File::open(file).with_context(|| format!("opening {}", file.display()))?;
    let output = Command::new(busybox)
        .args(["xz", "-dc"])
        .stdin(Stdio::from(compressed))
        .output()
        .with_context(|| format!("running {} xz", busybox.display()))?;
    if !output.status.success() || output.stdout.is_empty() {
        bail!("decompressing {}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

/// What the module's information section lists after `depends=`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(at) = module.windows(MARK.len()).position(|window| window == MARK) else { return Vec::new() };
    let rest = &module[at + MARK.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("reading {}", file.display()))
}

fn file_name(file: &Path) -> Result<String> {
    let name = file.file_name().with_context(|| format!("{} names no file", file.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

/// A `newc` archive in memory. Every header is 110 bytes of hexadecimal text; names and contents are padded to 4 bytes.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, (0, 0), &[]);
    }

    fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) {
        self.entry(name, 0o100_000 | permissions, (0, 0), contents);
    }

    fn link(&mut self, name: &str, target: &str) {
        self.entry(name, 0o120_777, (0, 0), target.as_bytes());
    }

    fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, 0o020_600, (major, minor), &[]);
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let links = 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            contents.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            // Writing to a Vec cannot fail.
            let _ = write!(self.bytes, "{field:08x}");
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_reads_back_what_the_archive_holds() {
        let mut archive = Archive::default();
        archive.folder("a");
        archive.file("a/odd", 0o644, b"12345");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("image");
        fs::write(&file, archive.finish()).unwrap();
        let bytes = fs::read(&file).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("a/odd\0") && text.contains("12345") && text.contains("TRAILER!!!\0"));
    }

    #[test]
    fn dependencies_are_read_from_the_information_section() {
        assert_eq!(dependencies(b"license=GPL\0depends=virtio-ring,fuse\0name=x\0"), ["virtio_ring", "fuse"]);
        assert_eq!(dependencies(b"license=GPL\0depends=\0name=x\0"), Vec::<String>::new());
    }
}
