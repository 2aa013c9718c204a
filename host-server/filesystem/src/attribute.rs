//! Changes of attributes: chmod, chown, utimes, truncate.

use std::rc::Rc;

use ringfort_store::volume::Volume;

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
        let kind = inode.kind();
        let changes_owner = (change.uid.is_some() || change.gid.is_some()) && kind != FileKind::Directory;
        let resized_by_stranger = change.size_bytes.is_some() && !credentials.is_exempt();
        let takes_set_id = change.clear_set_id || changes_owner || resized_by_stranger;
        let now = self.now();
        let apply = |metadata: &mut Metadata| set(credentials, metadata, change, takes_set_id, now);

        let takes_capability = takes_set_id && inode.metadata().xattr_count > 0;
        if change.size_bytes.is_some() || takes_capability {
            let _lock = self.locks.exclusive(inode.number).await;
            let capability = if takes_capability { self.find_capability(inode).await? } else { None };
            // Without a new size it stays what it is, and nothing is freed.
            let size_bytes = change.size_bytes.unwrap_or(inode.metadata().size_bytes);
            if kind == FileKind::Regular {
                self.resize(inode, size_bytes, capability, apply).await?;
                return Ok(inode.attributes());
            }
            let mut batch = self.begin(0, 2).await?;
            batch.update(inode, apply)?;
            if let Some(slot) = capability {
                batch.delete_xattr(inode, slot)?;
            }
            self.commit(batch)?;
        } else {
            let mut batch = self.begin(0, 1).await?;
            batch.update(inode, apply)?;
            self.commit(batch)?;
        }
        Ok(inode.attributes())
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
        inode.permissions = permissions & 0o7777;
        if !credentials.is_exempt() && !credentials.in_group(inode.gid) {
            inode.permissions &= !SET_GID;
        }
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
