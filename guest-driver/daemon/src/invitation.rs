//! How to reach the server: an extended attribute that only root of the guest can read, on a virtio-fs mount of the volume.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ringfort_protocol::control::message::{INVITATION_XATTR, Invitation};
use rustix::fs::getxattr;

const MOUNTS: &str = "/proc/self/mounts";

/// The invitation of this mount, or of the first virtio-fs mount that has one.
pub fn find(mount: Option<&Path>) -> Result<Invitation> {
    let mounts = match mount {
        Some(mount) => vec![mount.to_owned()],
        None => virtiofs_mounts(&fs::read_to_string(MOUNTS).with_context(|| format!("read {MOUNTS}"))?),
    };
    if mounts.is_empty() {
        bail!("no virtio-fs is mounted; mount the volume first: mount -t virtiofs TAG DIRECTORY");
    }
    for mount in &mounts {
        if let Some(invitation) = of(mount)? {
            return Ok(invitation);
        }
    }
    let looked: Vec<_> = mounts.iter().map(|mount| mount.display().to_string()).collect();
    bail!(
        "{} has no channel: start the server with --channel NAME:cid=N or NAME:vsock-unix=PATH for this machine, and run this as root",
        looked.join(", ")
    )
}

fn of(mount: &Path) -> Result<Option<Invitation>> {
    let mut value = [0; 256];
    let what = || format!("read the attribute {INVITATION_XATTR} of {}", mount.display());
    match getxattr(mount, INVITATION_XATTR, &mut value[..]) {
        Ok(len_bytes) => {
            let bytes = value.get(..len_bytes).unwrap_or_default();
            Invitation::decode(bytes).with_context(|| format!("{}: it is no invitation", what())).map(Some)
        }
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)).with_context(what),
    }
}

/// Where virtio-fs is mounted, in the order of the mounts.
fn virtiofs_mounts(table: &str) -> Vec<PathBuf> {
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let virtiofs = fields.filter(|fields| fields.get(2) == Some(&"virtiofs"));
    virtiofs.filter_map(|fields| Some(unescaped(fields.get(1)?).into())).collect()
}

/// The kernel writes some characters of a path as `\ooo`.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) => {
                path.push(code.into());
                path.push_str(rest);
            }
            _ => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_fs_mounts_are_found_in_the_kernel_s_table() {
        let table =
            "proc /proc proc rw 0 0\ndata /mnt/my\\040data virtiofs rw,relatime 0 0\nb /b virtiofs rw 0 0\n";
        assert_eq!(virtiofs_mounts(table), [PathBuf::from("/mnt/my data"), PathBuf::from("/b")]);
        assert_eq!(unescaped("a\\134b\\9"), "a\\b\\9");
    }

    #[test]
    fn a_directory_without_the_attribute_has_no_channel() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("--channel"), "{error}");
        let error = find(Some(&folder.path().join("none"))).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
    }
}
