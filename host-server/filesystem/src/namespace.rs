//! Names come and go: lookup, making, linking, unlinking.

use std::rc::Rc;

use ringfort_store::address::ViewId;
use ringfort_store::volume::Volume;

use crate::directory::require_directory;
use crate::errno::Errno;
use crate::failure::Result;
use crate::inode::{Inode, LINKS_MAX, Metadata};
use crate::mount::{Batch, Mount};
use crate::operation::{Attributes, Credentials, FileKind, Name, NewNode, NodeId, SessionId};
use crate::permission::{self, EXECUTE, WRITE};

/// As Linux: one byte less than a page, with the NUL that C would add.
const TARGET_BYTES_MAX: usize = 4095;

/// What a new inode is, beside its place.
pub(crate) struct Nature {
    pub kind: FileKind,
    pub device: u32,
    pub target: Vec<u8>,
}

impl Nature {
    pub fn of(kind: FileKind) -> Self {
        Self { kind, device: 0, target: Vec::new() }
    }
}

/// Entries of the transaction that makes an inode: directory, inode, name, two access control lists.
const MAKE_ENTRIES: u64 = 5;

impl<V: Volume> Mount<V> {
    pub async fn lookup(
        &self,
        session: SessionId,
        credentials: &Credentials,
        parent: NodeId,
        name: &Name,
    ) -> Result<Attributes> {
        let parent = self.node(parent).await?;
        let _lock = self.locks.shared(parent.number).await;
        require_searchable(credentials, &parent)?;
        if let Some(number) = self.find_hidden(parent.number, name) {
            let child = self.child(parent.number, number?).await?;
            self.sessions.borrow_mut().count_lookup(session, child.number)?;
            return Ok(child.attributes());
        }
        let found = self.find(parent.number, name).await?.require()?;
        // Under the parent's lock: the name keeps the child alive until the lookup is counted.
        let child = self.child(parent.number, found.child).await?;
        self.sessions.borrow_mut().count_lookup(session, child.number)?;
        Ok(child.attributes())
    }

    pub async fn lookup_parent(
        &self,
        session: SessionId,
        credentials: &Credentials,
        node: NodeId,
    ) -> Result<Attributes> {
        let directory = self.node(node).await?;
        let _lock = self.locks.shared(directory.number).await;
        require_searchable(credentials, &directory)?;
        let parent = NodeId(directory.metadata().parent);
        let parent = self.node(parent).await?;
        self.sessions.borrow_mut().count_lookup(session, parent.number)?;
        Ok(parent.attributes())
    }

    /// Makes an inode; `EEXIST` where the name is taken. Returns the inode with a lookup counted.
    pub async fn make(
        &self,
        session: SessionId,
        credentials: &Credentials,
        new: &NewNode,
        nature: Nature,
    ) -> Result<Rc<Inode>> {
        if nature.target.len() > TARGET_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG.into());
        }
        if nature.kind == FileKind::Symlink && nature.target.is_empty() {
            return Err(Errno::ENOENT.into());
        }
        let parent = self.node(new.parent).await?;
        let _lock = self.locks.exclusive(parent.number).await;
        require_searchable(credentials, &parent)?;
        let place = self.find(parent.number, &new.name).await?;
        if place.found.is_some() || matches!(self.find_hidden(parent.number, &new.name), Some(Ok(_))) {
            return Err(Errno::EEXIST.into());
        }
        self.require_writable(new.parent)?;
        let is_device = matches!(nature.kind, FileKind::CharacterDevice | FileKind::BlockDevice);
        permission::require(credentials, &parent.metadata(), WRITE | EXECUTE)?;
        if is_device && !credentials.is_exempt() {
            return Err(Errno::EPERM.into());
        }
        let inode = self.make_at(credentials, &parent, place.free()?, new, nature).await?;
        self.sessions.borrow_mut().count_lookup(session, inode.number)?;
        Ok(inode)
    }

    /// Makes an inode at a free place. The caller holds the parent's lock exclusively and has checked everything but the link count.
    pub async fn make_at(
        &self,
        credentials: &Credentials,
        parent: &Rc<Inode>,
        slot: u64,
        new: &NewNode,
        nature: Nature,
    ) -> Result<Rc<Inode>> {
        let is_directory = nature.kind == FileKind::Directory;
        if is_directory && parent.metadata().link_count >= LINKS_MAX {
            return Err(Errno::EMLINK.into());
        }
        let kind = nature.kind;
        let number = self.new_number(ViewId::of(parent.number)).await?;
        let mut batch = self.begin(0, MAKE_ENTRIES).await?;
        let metadata = self.newborn(credentials, parent, new, nature);
        batch.put_new_acls(self.hash_key, number, &metadata);
        let now = metadata.changed;
        let inode = batch.create(number, metadata);
        batch.put_entry(parent.number, slot, &new.name, number, kind);
        batch.update(parent, |metadata| {
            metadata.size_bytes += 1;
            metadata.link_count += u32::from(is_directory);
            metadata.modified = now;
            metadata.changed = now;
        })?;
        self.commit(batch)?;
        Ok(inode)
    }

    /// What a new inode begins with; a transaction puts its access control lists as well.
    fn newborn(&self, credentials: &Credentials, parent: &Inode, new: &NewNode, nature: Nature) -> Metadata {
        let now = self.now();
        let is_directory = nature.kind == FileKind::Directory;
        let inherited = permission::inherit(credentials, &parent.metadata(), nature.kind, new);
        let acls = [&inherited.access_acl, &inherited.default_acl];
        Metadata {
            permissions: inherited.permissions,
            xattr_count: acls.into_iter().flatten().count() as u32,
            link_count: if is_directory { 2 } else { 1 },
            uid: credentials.uid,
            gid: inherited.gid,
            device: nature.device,
            size_bytes: nature.target.len() as u64,
            generation: self.new_generation(),
            parent: if is_directory { parent.number } else { 0 },
            accessed: now,
            modified: now,
            changed: now,
            target: Rc::from(nature.target),
            access_acl: inherited.access_acl,
            default_acl: inherited.default_acl,
            ..Metadata::empty(nature.kind)
        }
    }

    /// Makes a file without a name below `new.parent`, with a lookup counted.
    pub async fn make_temporary(
        &self,
        session: SessionId,
        credentials: &Credentials,
        new: &NewNode,
        linkable: bool,
    ) -> Result<Rc<Inode>> {
        let parent = self.node(new.parent).await?;
        let _lock = self.locks.shared(parent.number).await;
        require_searchable(credentials, &parent)?;
        permission::require(credentials, &parent.metadata(), WRITE | EXECUTE)?;
        let number = self.new_number(ViewId::of(parent.number)).await?;
        let mut batch = self.begin(0, MAKE_ENTRIES).await?;
        let nature = Nature::of(FileKind::Regular);
        let metadata = Metadata { link_count: 0, ..self.newborn(credentials, &parent, new, nature) };
        batch.put_new_acls(self.hash_key, number, &metadata);
        let inode = batch.create(number, metadata);
        batch.orphan(number);
        self.commit(batch)?;
        inode.linkable.set(linkable);
        self.sessions.borrow_mut().count_lookup(session, number)?;
        Ok(inode)
    }

    /// Numbers are never reused, so this tells apart only what no honest volume has: the same number twice. Never 0.
    fn new_generation(&self) -> u64 {
        (self.engine.random_u64() >> 32).max(1)
    }

    pub async fn link(
        &self,
        session: SessionId,
        credentials: &Credentials,
        node: NodeId,
        parent: NodeId,
        name: &Name,
    ) -> Result<Attributes> {
        let inode = self.node(node).await?;
        let parent = self.node(parent).await?;
        require_same_view(&inode, &parent)?;
        let _lock = self.locks.exclusive(parent.number).await;
        require_searchable(credentials, &parent)?;
        let place = self.find(parent.number, name).await?;
        if place.found.is_some() {
            return Err(Errno::EEXIST.into());
        }
        permission::require(credentials, &parent.metadata(), WRITE | EXECUTE)?;
        let slot = place.free()?;
        if inode.kind() == FileKind::Directory {
            return Err(Errno::EPERM.into());
        }
        // A file that never had a name might be reclaimed at this moment.
        let _inode_lock =
            if inode.linkable.get() { Some(self.locks.exclusive(inode.number).await) } else { None };
        let mut batch = self.begin(0, 4).await?;
        // Only now: the inode is not locked, and until here the last of its other names could go.
        match inode.metadata().link_count {
            0 if inode.linkable.get() => batch.adopt(&inode),
            0 => return Err(Errno::ENOENT.into()),
            LINKS_MAX.. => return Err(Errno::EMLINK.into()),
            _ => {}
        }
        let now = self.now();
        batch.put_entry(parent.number, slot, name, inode.number, inode.kind());
        batch.update(&inode, |metadata| {
            metadata.link_count += 1;
            metadata.changed = now;
        })?;
        batch.update(&parent, |metadata| {
            metadata.size_bytes += 1;
            metadata.modified = now;
            metadata.changed = now;
        })?;
        self.commit(batch)?;
        inode.linkable.set(false);
        self.sessions.borrow_mut().count_lookup(session, inode.number)?;
        Ok(inode.attributes())
    }

    pub async fn unlink(&self, credentials: &Credentials, parent: NodeId, name: &Name) -> Result<()> {
        let parent = self.node(parent).await?;
        let number = {
            let _lock = self.locks.exclusive(parent.number).await;
            require_searchable(credentials, &parent)?;
            let found = self.find(parent.number, name).await?.require()?;
            let child = self.child(parent.number, found.child).await?;
            require_removable(credentials, &parent, &child)?;
            if child.kind() == FileKind::Directory {
                return Err(Errno::EISDIR.into());
            }
            self.remove_name(&parent, found.slot, &child).await?;
            child.number
        };
        self.reclaim_unless_held(number).await;
        Ok(())
    }

    /// Takes a name out of its directory, and a link from what it names. The caller holds the directory's lock exclusively, and that of
    /// a child that is a directory.
    async fn remove_name(&self, parent: &Rc<Inode>, slot: u64, child: &Rc<Inode>) -> Result<()> {
        let mut batch = self.begin_freeing(0, 4).await?;
        let now = self.now();
        batch.delete_entry(parent.number, slot);
        batch.update(parent, |metadata| {
            metadata.size_bytes = metadata.size_bytes.saturating_sub(1);
            metadata.link_count -= u32::from(child.kind() == FileKind::Directory);
            metadata.modified = now;
            metadata.changed = now;
        })?;
        batch.drop_link(child, now)?;
        self.commit(batch)
    }

    pub async fn remove_directory(
        &self,
        credentials: &Credentials,
        parent: NodeId,
        name: &Name,
    ) -> Result<()> {
        let parent = self.node(parent).await?;
        let number = {
            let _lock = self.locks.exclusive(parent.number).await;
            require_searchable(credentials, &parent)?;
            let found = self.find(parent.number, name).await?.require()?;
            let child = self.child(parent.number, found.child).await?;
            require_removable(credentials, &parent, &child)?;
            if child.kind() != FileKind::Directory {
                return Err(Errno::ENOTDIR.into());
            }
            let _child_lock = self.locks.exclusive(child.number).await;
            if child.metadata().size_bytes > 0 {
                return Err(Errno::ENOTEMPTY.into());
            }
            self.remove_name(&parent, found.slot, &child).await?;
            child.number
        };
        self.reclaim_unless_held(number).await;
        Ok(())
    }
}

impl<V: Volume> Batch<V> {
    /// Takes a link from an inode, all from a directory, and lists it as an orphan if that was the last; two tree entries.
    pub fn drop_link(&mut self, inode: &Rc<Inode>, now: crate::operation::Timestamp) -> Result<()> {
        let mut orphaned = false;
        self.update(inode, |metadata| {
            metadata.link_count =
                if metadata.kind == FileKind::Directory { 0 } else { metadata.link_count.saturating_sub(1) };
            metadata.changed = now;
            orphaned = metadata.link_count == 0;
        })?;
        if orphaned {
            self.orphan(inode.number);
        }
        Ok(())
    }
}

/// `EXDEV` between a snapshot, a clone and what they are of: each is a filesystem of its own.
pub(crate) fn require_same_view(first: &Inode, second: &Inode) -> Result<()> {
    let is_same = ViewId::of(first.number) == ViewId::of(second.number);
    if is_same { Ok(()) } else { Err(Errno::EXDEV.into()) }
}

/// A directory that still has its name, in which the caller may look for others. The caller holds its lock.
pub(crate) fn require_searchable(credentials: &Credentials, directory: &Inode) -> Result<()> {
    require_directory(directory)?;
    let metadata = directory.metadata();
    permission::require(credentials, &metadata, EXECUTE)?;
    if metadata.link_count == 0 { Err(Errno::ENOENT.into()) } else { Ok(()) }
}

/// Whether the caller may take `child`'s name out of `directory`.
pub(crate) fn require_removable(credentials: &Credentials, directory: &Inode, child: &Inode) -> Result<()> {
    permission::require(credentials, &directory.metadata(), WRITE | EXECUTE)?;
    permission::require_removable(credentials, &directory.metadata(), &child.metadata())
}
