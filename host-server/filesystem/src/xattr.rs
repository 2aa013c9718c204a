//! Extended attributes.
//!
//! Namespaces `user`, `trusted` and `security` are stored as they come. Access control lists (`system.posix_acl_*`) are checked, and
//! change the mode: see [`crate::acl`].

use std::rc::Rc;

use ringfort_store::format::filesystem as format;
use ringfort_store::volume::{Key, Volume};

use crate::acl::{Acl, AclKind};
use crate::errno::Errno;
use crate::failure::Result;
use crate::hash::first_slot;
use crate::inode::{Inode, Metadata};
use crate::mount::{Batch, Mount};
use crate::operation::{Credentials, FileKind, SetXattrMode};
use crate::permission;
use crate::xattr_place::{self, Found};

const NAME_BYTES_MAX: usize = 255;
/// Linux's limit for the list of names, in bytes.
const LIST_BYTES_MAX: usize = 65_536;
/// Linux's limit for a value, in bytes.
const VALUE_BYTES_MAX: usize = 65_536;
/// Attributes of one inode: with names of full length they still fit into a list.
const COUNT_MAX: u32 = (LIST_BYTES_MAX / (NAME_BYTES_MAX + 1)) as u32;

/// What Linux keeps the capabilities of an executable in. Goes where set-id bits go.
const CAPABILITY: &[u8] = b"security.capability";

impl<V: Volume> Mount<V> {
    async fn find_xattr(&self, number: u64, name: &[u8]) -> Result<Found> {
        xattr_place::find(&*self.volume, self.hash_key, number, name).await
    }

    pub async fn get_xattr(
        &self,
        credentials: &Credentials,
        inode: &Rc<Inode>,
        name: &[u8],
    ) -> Result<Vec<u8>> {
        if let Some(kind) = AclKind::named(name) {
            return acl_value(inode, kind);
        }
        check_name(name)?;
        may_read(credentials, inode, name)?;
        let _lock = self.locks.shared(inode.number).await;
        // Guests ask for `security.capability` before every write; most files have no attributes at all.
        if inode.metadata().xattr_count == 0 {
            return Err(Errno::ENODATA.into());
        }
        let found = self.find_xattr(inode.number, name).await?;
        found.slot.map(|(_, value)| value).ok_or_else(|| Errno::ENODATA.into())
    }

    pub async fn list_xattr(&self, credentials: &Credentials, inode: &Rc<Inode>) -> Result<Vec<u8>> {
        let _lock = self.locks.shared(inode.number).await;
        let mut names = Vec::new();
        if inode.metadata().xattr_count == 0 {
            return Ok(names);
        }
        let (from, to) = (Key::new(inode.number, 0), Key::new(inode.number, u64::MAX));
        for (_, value) in self.volume.scan(format::XATTRS, from, to, COUNT_MAX as usize).await? {
            let xattr = xattr_place::decode(inode.number, &value)?;
            if xattr.name.starts_with(b"trusted.") && !credentials.is_exempt() {
                continue;
            }
            names.extend_from_slice(&xattr.name);
            names.push(0);
        }
        Ok(names)
    }

    pub async fn set_xattr(
        &self,
        credentials: &Credentials,
        inode: &Rc<Inode>,
        name: &[u8],
        value: Vec<u8>,
        mode: SetXattrMode,
        clear_set_gid: bool,
    ) -> Result<()> {
        if let Some(kind) = AclKind::named(name) {
            let acl = Acl::decode(&value)?;
            return self.set_acl(credentials, inode, kind, acl, clear_set_gid).await;
        }
        check_name(name)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(Errno::E2BIG.into());
        }
        may_write(credentials, inode, name)?;
        let _lock = self.locks.exclusive(inode.number).await;
        let found = self.find_xattr(inode.number, name).await?;
        match (mode, &found.slot) {
            (SetXattrMode::Create, Some(_)) => return Err(Errno::EEXIST.into()),
            (SetXattrMode::Replace, None) => return Err(Errno::ENODATA.into()),
            _ => {}
        }
        let is_new = found.slot.is_none();
        let full = is_new && inode.metadata().xattr_count >= COUNT_MAX;
        if full || name.len() + value.len() > format::XATTR_BYTES_MAX {
            return Err(Errno::ENOSPC.into());
        }
        let slot = found.slot.map(|(slot, _)| slot).or(found.free).ok_or(Errno::ENOSPC)?;
        let mut batch = self.begin(0, 2).await?;
        let now = self.now();
        batch.update(inode, |metadata| {
            metadata.changed = now;
            metadata.xattr_count += u32::from(is_new);
        })?;
        batch.put_xattr(inode.number, slot, name, value);
        self.commit(batch)?;
        if name == CAPABILITY {
            inode.no_capability.set(false);
        }
        Ok(())
    }

    /// Sets a list, and with the access list the mode that stands for it; None takes the list away and leaves the mode.
    async fn set_acl(
        &self,
        credentials: &Credentials,
        inode: &Rc<Inode>,
        kind: AclKind,
        acl: Option<Acl>,
        clear_set_gid: bool,
    ) -> Result<()> {
        match (inode.kind(), kind) {
            (FileKind::Symlink, _) => return Err(Errno::EOPNOTSUPP.into()),
            (FileKind::Directory, _) | (_, AclKind::Access) => {}
            (_, AclKind::Default) if acl.is_none() => return Ok(()),
            (_, AclKind::Default) => return Err(Errno::EACCES.into()),
        }
        permission::require_owner(credentials, &inode.metadata())?;
        let name = kind.xattr_name();
        let value = acl.as_ref().filter(|acl| kind == AclKind::Default || !acl.is_minimal()).map(Acl::encode);
        if value.as_ref().is_some_and(|value| name.len() + value.len() > format::XATTR_BYTES_MAX) {
            return Err(Errno::ENOSPC.into());
        }
        let _lock = self.locks.exclusive(inode.number).await;
        let found = self.find_xattr(inode.number, name).await?;
        let is_new = found.slot.is_none();
        let slot = found.slot.map(|(slot, _)| slot).or(found.free).ok_or(Errno::ENOSPC)?;
        if value.is_some() && is_new && inode.metadata().xattr_count >= COUNT_MAX {
            return Err(Errno::ENOSPC.into());
        }
        let clear_set_gid =
            clear_set_gid || !(credentials.is_exempt() || credentials.in_group(inode.metadata().gid));
        let mut batch = self.begin(0, 2).await?;
        let now = self.now();
        let is_stored = value.is_some();
        batch.update(inode, |metadata| {
            metadata.changed = now;
            if let (AclKind::Access, Some(acl)) = (kind, &acl) {
                metadata.permissions = metadata.permissions & !permission::ANYBODY | acl.permissions();
                if clear_set_gid {
                    metadata.permissions &= !permission::SET_GID;
                }
            }
            metadata.set_acl(kind, acl.filter(|_| is_stored).map(Rc::new));
            metadata.xattr_count += u32::from(is_stored && is_new);
        })?;
        match value {
            Some(value) => batch.put_xattr(inode.number, slot, name, value),
            None if is_new => {}
            None => batch.delete_xattr(inode, slot)?,
        }
        self.commit(batch)
    }

    /// Where the access list of an inode lies that has one. The caller holds the inode's lock exclusively.
    pub async fn find_access_acl(&self, inode: &Rc<Inode>) -> Result<Option<u64>> {
        if inode.metadata().access_acl.is_none() {
            return Ok(None);
        }
        let found = self.find_xattr(inode.number, AclKind::Access.xattr_name()).await?;
        Ok(found.slot.map(|(slot, _)| slot))
    }

    pub async fn remove_xattr(
        &self,
        credentials: &Credentials,
        inode: &Rc<Inode>,
        name: &[u8],
    ) -> Result<()> {
        if let Some(kind) = AclKind::named(name) {
            return self.set_acl(credentials, inode, kind, None, false).await;
        }
        check_name(name)?;
        may_write(credentials, inode, name)?;
        let _lock = self.locks.exclusive(inode.number).await;
        let found = self.find_xattr(inode.number, name).await?;
        let Some((slot, _)) = found.slot else { return Err(Errno::ENODATA.into()) };
        let mut batch = self.begin_freeing(0, 2).await?;
        let now = self.now();
        batch.update(inode, |metadata| metadata.changed = now)?;
        batch.delete_xattr(inode, slot)?;
        self.commit(batch)
    }

    /// Where the capabilities of an executable lie, if it has any. The caller holds the inode's lock, exclusively if it means to
    /// take them away.
    pub async fn find_capability(&self, inode: &Rc<Inode>) -> Result<Option<u64>> {
        if !inode.may_have_capability() {
            return Ok(None);
        }
        let found = self.find_xattr(inode.number, CAPABILITY).await?;
        inode.no_capability.set(found.slot.is_none());
        Ok(found.slot.map(|(slot, _)| slot))
    }

    /// Deletes all attributes of an inode that is being reclaimed.
    pub async fn clear_xattrs(&self, inode: &Rc<Inode>) -> Result<()> {
        const PER_TRANSACTION: usize = 256;
        let (from, to) = (Key::new(inode.number, 0), Key::new(inode.number, u64::MAX));
        loop {
            let entries = self.volume.scan(format::XATTRS, from, to, PER_TRANSACTION).await?;
            if entries.is_empty() {
                return Ok(());
            }
            let mut batch = self.begin_freeing(0, entries.len() as u64).await?;
            for (key, _) in &entries {
                batch.transaction.delete(format::XATTRS, *key);
            }
            self.commit(batch)?;
        }
    }
}

impl<V: Volume> Batch<V> {
    /// Stores an attribute; one tree entry. That it is counted is the caller's affair.
    pub fn put_xattr(&mut self, number: u64, slot: u64, name: &[u8], value: Vec<u8>) {
        let xattr = format::Xattr { name: name.to_vec(), value };
        self.transaction.put(format::XATTRS, Key::new(number, slot), xattr.encode());
    }

    /// Stores the lists that a new inode was handed down; a tree entry for each.
    pub fn put_new_acls(&mut self, hash_key: [u64; 2], number: u64, metadata: &Metadata) {
        let mut taken = None;
        for kind in [AclKind::Access, AclKind::Default] {
            let Some(acl) = metadata.acl(kind) else { continue };
            let name = kind.xattr_name();
            // Where both names have the same hash, the second goes behind the first.
            let first = first_slot(hash_key, name);
            let slot = if taken == Some(first) { first + 1 } else { first };
            taken = Some(slot);
            self.put_xattr(number, slot, name, acl.encode());
        }
    }

    /// Takes the attribute at `slot` away; one tree entry and an update of the inode.
    pub fn delete_xattr(&mut self, inode: &Rc<Inode>, slot: u64) -> Result<()> {
        self.transaction.delete(format::XATTRS, Key::new(inode.number, slot));
        self.update(inode, |metadata| metadata.xattr_count = metadata.xattr_count.saturating_sub(1))
    }
}

fn acl_value(inode: &Inode, kind: AclKind) -> Result<Vec<u8>> {
    let metadata = inode.metadata();
    if metadata.kind == FileKind::Symlink {
        return Err(Errno::EOPNOTSUPP.into());
    }
    metadata.acl(kind).map(|acl| acl.encode()).ok_or_else(|| Errno::ENODATA.into())
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Errno::ERANGE.into());
    }
    if name.contains(&0) {
        return Err(Errno::EINVAL.into());
    }
    let prefixes: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match prefixes.iter().find(|prefix| name.starts_with(prefix)) {
        None => Err(Errno::EOPNOTSUPP.into()),
        Some(prefix) if prefix.len() == name.len() => Err(Errno::EINVAL.into()),
        Some(_) => Ok(()),
    }
}

fn may_read(credentials: &Credentials, inode: &Inode, name: &[u8]) -> Result<()> {
    let metadata = inode.metadata();
    if name.starts_with(b"trusted.") && !credentials.is_exempt() {
        return Err(Errno::ENODATA.into());
    }
    if name.starts_with(b"user.") {
        if !matches!(metadata.kind, FileKind::Regular | FileKind::Directory) {
            return Err(Errno::ENODATA.into());
        }
        permission::require(credentials, &metadata, permission::READ)?;
    }
    Ok(())
}

fn may_write(credentials: &Credentials, inode: &Inode, name: &[u8]) -> Result<()> {
    let metadata = inode.metadata();
    if name.starts_with(b"user.") {
        if !matches!(metadata.kind, FileKind::Regular | FileKind::Directory) {
            return Err(Errno::EPERM.into());
        }
        if metadata.kind == FileKind::Directory && metadata.permissions & permission::STICKY != 0 {
            permission::require_owner(credentials, &metadata)?;
        }
        return permission::require(credentials, &metadata, permission::WRITE);
    }
    if credentials.is_exempt() { Ok(()) } else { Err(Errno::EPERM.into()) }
}
