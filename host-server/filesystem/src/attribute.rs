//! Changes of attributes: chmod, chown, utimes, truncate.

use std::rc::Rc;

use ringfort_store::volume::Volume;

use crate::acl::AclKind;
use crate::errno::Errno;
use crate::failure::Result;
use crate::inode::{Inode, Metadata};
use crate::mount::Mount;
use crate::operation::{Attributes, Credentials, FileKind, SetAttributes, SetTime, Timestamp};
use crate::permission::{self, SET_GID, WRITE, require_owner, without_set_id};

impl<V: Volume> Mount<V> {
    /// `writable` says that the caller changes the size through a handle opened for writing.
    pub async fn set_attributes(
        &self,
        credentials: &Credentials,
        inode: &Rc<Inode>,
        change: &SetAttributes,
        writable: bool,
    ) -> Result<Attributes> {
        check(credentials, &inode.metadata(), change, writable)?;
        let changes_owner =
            (change.uid.is_some() || change.gid.is_some()) && inode.kind() != FileKind::Directory;
        let resized_by_stranger = change.size_bytes.is_some() && !credentials.is_exempt();
        let takes_set_id = change.clear_set_id || changes_owner || resized_by_stranger;
        let now = self.now();
        let takes_capability = (takes_set_id || change.size_bytes.is_some()) && inode.may_have_capability();
        // A list that a mode stands for must not come or go between looking and changing.
        let needs_lock = change.size_bytes.is_some() || takes_capability || change.permissions.is_some();
        let _lock = if needs_lock { Some(self.locks.exclusive(inode.number).await) } else { None };
        let capability = if takes_capability { self.find_capability(inode).await? } else { None };
        if let Some(size_bytes) = change.size_bytes {
            let sized = SetAttributes { permissions: None, ..change.clone() };
            let apply = |metadata: &mut Metadata| set(credentials, metadata, &sized, takes_set_id, now);
            self.resize(inode, size_bytes, capability, apply).await?;
            if change.permissions.is_some() {
                let rest = SetAttributes { permissions: change.permissions, ..SetAttributes::default() };
                self.change_metadata(inode, None, |metadata| set(credentials, metadata, &rest, false, now))
                    .await?;
            }
        } else {
            let apply = |metadata: &mut Metadata| set(credentials, metadata, change, takes_set_id, now);
            self.change_metadata(inode, capability, apply).await?;
        }
        Ok(inode.attributes())
    }

    /// Changes what is known of an inode, its access control list included, and takes the attribute at slot `taken` away. The
    /// caller holds the inode's lock exclusively where there is a list.
    async fn change_metadata(
        &self,
        inode: &Rc<Inode>,
        taken: Option<u64>,
        change: impl FnOnce(&mut Metadata),
    ) -> Result<()> {
        let list = self.find_access_acl(inode).await?;
        let mut batch = self.begin(0, 1 + u64::from(taken.is_some()) + u64::from(list.is_some())).await?;
        let mut changed_list = None;
        batch.update(inode, |metadata| {
            change(metadata);
            changed_list = metadata.access_acl.clone();
        })?;
        if let Some(slot) = taken {
            batch.delete_xattr(inode, slot)?;
        }
        if let (Some(slot), Some(list)) = (list, changed_list) {
            batch.put_xattr(inode.number, slot, AclKind::Access.xattr_name(), list.encode());
        }
        self.commit(batch)
    }
}

fn check(credentials: &Credentials, inode: &Metadata, change: &SetAttributes, writable: bool) -> Result<()> {
    let owns = credentials.is_exempt() || credentials.uid == inode.uid;
    if change.permissions.is_some() {
        require_owner(credentials, inode)?;
    }
    if let Some(uid) = change.uid
        && !(credentials.is_exempt() || owns && uid == inode.uid)
    {
        return Err(Errno::EPERM.into());
    }
    if let Some(gid) = change.gid
        && !(credentials.is_exempt() || owns && (gid == inode.gid || credentials.in_group(gid)))
    {
        return Err(Errno::EPERM.into());
    }
    for time in [change.accessed, change.modified].into_iter().flatten() {
        match time {
            SetTime::At(time) if time.nanoseconds >= 1_000_000_000 => return Err(Errno::EINVAL.into()),
            SetTime::At(_) => require_owner(credentials, inode)?,
            SetTime::Now if owns => {}
            SetTime::Now => permission::require(credentials, inode, WRITE)?,
        }
    }
    if change.changed.is_some_and(|time| time.nanoseconds >= 1_000_000_000) {
        return Err(Errno::EINVAL.into());
    }
    if change.size_bytes.is_some() {
        match inode.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
        if !writable {
            permission::require(credentials, inode, WRITE)?;
        }
    }
    Ok(())
}

fn set(
    credentials: &Credentials,
    inode: &mut Metadata,
    change: &SetAttributes,
    takes_set_id: bool,
    now: Timestamp,
) {
    if takes_set_id {
        inode.permissions = without_set_id(inode.kind, inode.permissions);
    }
    if let Some(uid) = change.uid {
        inode.uid = uid;
    }
    if let Some(gid) = change.gid {
        inode.gid = gid;
    }
    // After the owner: an explicit mode in the same change has the last word.
    if let Some(permissions) = change.permissions {
        let mut permissions = permissions & 0o7777;
        if !credentials.is_exempt() && !credentials.in_group(inode.gid) {
            permissions &= !SET_GID;
        }
        inode.set_permissions(permissions);
    }
    let time = |time| match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    if change.size_bytes.is_some() {
        inode.modified = now;
    }
    if let Some(accessed) = change.accessed {
        inode.accessed = time(accessed);
    }
    if let Some(modified) = change.modified {
        inode.modified = time(modified);
    }
    inode.changed = change.changed.unwrap_or(now);
}
