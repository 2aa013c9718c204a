//! Who may do what to an inode, and what changes of owner and contents do to set-id bits.

use std::rc::Rc;

use crate::acl::Acl;
use crate::errno::Errno;
use crate::failure::Result;
use crate::inode::Metadata;
use crate::operation::{Credentials, FileKind, NewNode, Timestamp};

pub(crate) const READ: u8 = 4;
pub(crate) const WRITE: u8 = 2;
pub(crate) const EXECUTE: u8 = 1;

pub(crate) const SET_UID: u16 = 0o4000;
pub(crate) const SET_GID: u16 = 0o2000;
pub(crate) const STICKY: u16 = 0o1000;
const GROUP_EXECUTE: u16 = 0o010;
const ANY_EXECUTE: u16 = 0o111;
/// The bits of owner, group and others.
pub(crate) const ANYBODY: u16 = 0o777;

impl Credentials {
    fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub(crate) fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Whether checks are off: root, or a caller that has checked already.
    pub(crate) fn is_exempt(&self) -> bool {
        !self.check_permissions || self.is_root()
    }
}

/// `EACCES` unless the permission bits, or the access control list that they stand for, grant `mask` to the caller, whether or not the caller has checked already.
pub(crate) fn access(credentials: &Credentials, inode: &Metadata, mask: u8) -> Result<()> {
    if credentials.is_root() {
        // Root may do everything but execute what nobody may.
        let executable = inode.kind == FileKind::Directory || inode.permissions & ANY_EXECUTE != 0;
        return if mask & EXECUTE == 0 || executable { Ok(()) } else { Err(Errno::EACCES.into()) };
    }
    if let Some(acl) = &inode.access_acl {
        let granted = acl.grants(credentials, inode.uid, inode.gid, mask);
        return if granted { Ok(()) } else { Err(Errno::EACCES.into()) };
    }
    let shift = if credentials.uid == inode.uid {
        6
    } else if credentials.in_group(inode.gid) {
        3
    } else {
        0
    };
    let granted = (inode.permissions >> shift) as u8 & 7;
    if granted & mask == mask { Ok(()) } else { Err(Errno::EACCES.into()) }
}

/// As [`access`], where the filesystem is to check.
pub(crate) fn require(credentials: &Credentials, inode: &Metadata, mask: u8) -> Result<()> {
    if credentials.check_permissions { access(credentials, inode, mask) } else { Ok(()) }
}

/// `EPERM` unless the caller owns the inode or is root.
pub(crate) fn require_owner(credentials: &Credentials, inode: &Metadata) -> Result<()> {
    if credentials.is_exempt() || credentials.uid == inode.uid { Ok(()) } else { Err(Errno::EPERM.into()) }
}

/// `EPERM` where the sticky bit of a directory keeps others from taking away a name of `child`.
pub(crate) fn require_removable(
    credentials: &Credentials,
    directory: &Metadata,
    child: &Metadata,
) -> Result<()> {
    let sticky = directory.permissions & STICKY != 0;
    if !sticky || credentials.is_exempt() || [directory.uid, child.uid].contains(&credentials.uid) {
        Ok(())
    } else {
        Err(Errno::EPERM.into())
    }
}

/// What a change of contents takes from a program. Its capabilities go whoever changes it; set-id bits stay for who may keep them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clears {
    Nothing,
    Capability,
    SetIdAndCapability,
}

/// Permissions after a change of contents or owner: set-uid goes, set-gid where it means execution.
pub(crate) fn without_set_id(kind: FileKind, permissions: u16) -> u16 {
    if kind == FileKind::Directory {
        permissions
    } else if permissions & GROUP_EXECUTE != 0 {
        permissions & !(SET_UID | SET_GID)
    } else {
        permissions & !SET_UID
    }
}

/// What a change of contents does to times and set-id bits.
pub(crate) fn contents_changed(inode: &mut Metadata, now: Timestamp, clear_set_id: bool) {
    inode.modified = now;
    inode.changed = now;
    if clear_set_id {
        inode.permissions = without_set_id(inode.kind, inode.permissions);
    }
}

/// What a new inode has of its directory.
pub(crate) struct Inherited {
    pub gid: u32,
    pub permissions: u16,
    pub access_acl: Option<Rc<Acl>>,
    pub default_acl: Option<Rc<Acl>>,
}

/// A set-gid directory hands its group down, and to subdirectories the bit as well. A default access control list takes the
/// place of the umask.
pub(crate) fn inherit(
    credentials: &Credentials,
    directory: &Metadata,
    kind: FileKind,
    new: &NewNode,
) -> Inherited {
    let mut permissions = new.permissions & 0o7777;
    let mut gid = credentials.gid;
    if directory.permissions & SET_GID != 0 {
        gid = directory.gid;
        if kind == FileKind::Directory {
            permissions |= SET_GID;
        } else if permissions & GROUP_EXECUTE != 0 && !credentials.is_exempt() && !credentials.in_group(gid) {
            permissions &= !SET_GID;
        }
    }
    let mut inherited = Inherited { gid, permissions, access_acl: None, default_acl: None };
    match &directory.default_acl {
        _ if kind == FileKind::Symlink => {}
        None => inherited.permissions &= !(new.umask & ANYBODY),
        Some(acl) => {
            let access = acl.handed_down(permissions);
            inherited.permissions = permissions & !ANYBODY | access.permissions();
            inherited.access_acl = (!access.is_minimal()).then(|| Rc::new(access));
            inherited.default_acl = (kind == FileKind::Directory).then(|| Rc::clone(acl));
        }
    }
    inherited
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{Name, NodeId};

    fn inode(kind: FileKind, permissions: u16, uid: u32, gid: u32) -> Metadata {
        Metadata { permissions, uid, gid, ..Metadata::empty(kind) }
    }

    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        Credentials { uid, gid, groups: groups.to_vec(), check_permissions: true }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let file = inode(FileKind::Regular, 0o074, 1, 2);
        assert!(access(&caller(1, 2, &[]), &file, READ).is_err());
        assert!(access(&caller(5, 6, &[2]), &file, READ | WRITE | EXECUTE).is_ok());
        assert!(access(&caller(5, 6, &[]), &file, READ).is_ok());
        assert!(access(&caller(5, 6, &[]), &file, WRITE).is_err());
    }

    #[test]
    fn root_executes_only_what_somebody_may() {
        let root = caller(0, 0, &[]);
        assert!(access(&root, &inode(FileKind::Regular, 0o600, 1, 1), READ | WRITE).is_ok());
        assert!(access(&root, &inode(FileKind::Regular, 0o600, 1, 1), EXECUTE).is_err());
        assert!(access(&root, &inode(FileKind::Regular, 0o601, 1, 1), EXECUTE).is_ok());
        assert!(access(&root, &inode(FileKind::Directory, 0, 1, 1), EXECUTE).is_ok());
    }

    #[test]
    fn sticky_directories_protect_names_from_strangers() {
        let directory = inode(FileKind::Directory, 0o1777, 1, 1);
        let file = inode(FileKind::Regular, 0o666, 2, 2);
        assert!(require_removable(&caller(3, 3, &[]), &directory, &file).is_err());
        for uid in [0, 1, 2] {
            assert!(require_removable(&caller(uid, 3, &[]), &directory, &file).is_ok());
        }
    }

    #[test]
    fn set_gid_without_execution_survives_a_write() {
        assert_eq!(without_set_id(FileKind::Regular, 0o6755), 0o755);
        assert_eq!(without_set_id(FileKind::Regular, 0o6745), 0o2745);
        assert_eq!(without_set_id(FileKind::Directory, 0o6755), 0o6755);
    }

    #[test]
    fn set_gid_directories_hand_their_group_down() {
        let directory = inode(FileKind::Directory, 0o2755, 1, 7);
        let inherit = |groups: &[u32], kind, permissions| {
            let name = Name::new(b"new").unwrap();
            let new = NewNode { parent: NodeId::ROOT, name, permissions, umask: 0o022 };
            let inherited = inherit(&caller(3, 3, groups), &directory, kind, &new);
            (inherited.gid, inherited.permissions)
        };
        assert_eq!(inherit(&[], FileKind::Directory, 0o777), (7, 0o2755));
        assert_eq!(inherit(&[], FileKind::Regular, 0o2755), (7, 0o755));
        assert_eq!(inherit(&[7], FileKind::Regular, 0o2755), (7, 0o2755));
    }
}
