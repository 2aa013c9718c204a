//! Rename: a name moves, replaces another, or two change places.

use std::collections::BTreeSet;
use std::rc::Rc;

use ringfort_store::address::ViewId;
use ringfort_store::volume::Volume;

use crate::directory::{Found, require_directory};
use crate::errno::Errno;
use crate::failure::{Failure, Result};
use crate::inode::{Inode, LINKS_MAX};
use crate::lock::LockGuard;
use crate::mount::Mount;
use crate::namespace::{require_removable, require_searchable};
use crate::operation::{Credentials, FileKind, Name, NodeId, RenameMode};
use crate::permission::{self, EXECUTE, WRITE};

/// Directories, two names, two children, an orphan.
const RENAME_ENTRIES: u64 = 7;

/// How far up the tree a rename walks before other tasks have their turn: a guest may nest directories as deep as it likes.
const STEPS_PER_TURN: usize = 1024;

/// A name, and what it names.
struct End<'a> {
    directory: &'a Rc<Inode>,
    name: &'a Name,
    found: Found,
    child: Rc<Inode>,
}

impl End<'_> {
    fn is_directory(&self) -> bool {
        self.child.kind() == FileKind::Directory
    }
}

/// The two directories of a rename, locked, and what lies above them.
struct Directories {
    from: Rc<Inode>,
    to: Rc<Inode>,
    /// Numbers of the directories above `from` and `to`, themselves included; empty where they are one.
    above_from: BTreeSet<u64>,
    above_to: BTreeSet<u64>,
    _locks: Vec<LockGuard>,
}

impl<V: Volume> Mount<V> {
    pub async fn rename(
        &self,
        credentials: &Credentials,
        from: (NodeId, &Name),
        to: (NodeId, &Name),
        mode: RenameMode,
    ) -> Result<()> {
        if mode == RenameMode::Whiteout {
            return Err(Errno::EINVAL.into());
        }
        if ViewId::of(from.0.0) != ViewId::of(to.0.0) {
            return Err(Errno::EXDEV.into());
        }
        self.require_writable(from.0)?;
        self.require_writable(to.0)?;
        let displaced = {
            let directories = self.lock_directories(from.0, to.0).await?;
            require_searchable(credentials, &directories.from)?;
            require_searchable(credentials, &directories.to)?;
            let source = self.find(directories.from.number, from.1).await?.require()?;
            let place = self.find(directories.to.number, to.1).await?;
            let source = End {
                directory: &directories.from,
                name: from.1,
                found: source,
                child: self.child(directories.from.number, source.child).await?,
            };
            let target = match place.found {
                None => None,
                Some(found) => Some(End {
                    directory: &directories.to,
                    name: to.1,
                    found,
                    child: self.child(directories.to.number, found.child).await?,
                }),
            };
            match (mode, &target) {
                (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
                (RenameMode::Exchange, None) => return Err(Errno::ENOENT.into()),
                _ => {}
            }
            // A directory below itself would be reachable from nowhere.
            if directories.above_to.contains(&source.child.number) {
                return Err(Errno::EINVAL.into());
            }
            if let Some(target) = &target
                && directories.above_from.contains(&target.child.number)
            {
                let errno = if mode == RenameMode::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY };
                return Err(errno.into());
            }
            match target {
                Some(target) if Rc::ptr_eq(&target.child, &source.child) => return Ok(()),
                Some(target) if mode == RenameMode::Exchange => {
                    return self.exchange(credentials, source, target).await;
                }
                Some(target) => {
                    let slot = target.found.slot;
                    self.replace(credentials, &directories.to, to.1, source, slot, Some(target)).await?
                }
                None => {
                    let slot = place.free()?;
                    self.replace(credentials, &directories.to, to.1, source, slot, None).await?
                }
            }
        };
        if let Some(number) = displaced {
            self.reclaim_unless_held(number).await;
        }
        Ok(())
    }

    /// Moves `source` to `slot` of `to`, where `target` may lie. Returns the inode that lost its name.
    async fn replace(
        &self,
        credentials: &Credentials,
        to: &Rc<Inode>,
        to_name: &Name,
        source: End<'_>,
        slot: u64,
        target: Option<End<'_>>,
    ) -> Result<Option<u64>> {
        let from = source.directory;
        let moves_directory = source.is_directory();
        let crosses = !Rc::ptr_eq(from, to);
        require_removable(credentials, from, &source.child)?;
        match &target {
            None => permission::require(credentials, &to.metadata(), WRITE | EXECUTE)?,
            Some(target) => {
                require_removable(credentials, to, &target.child)?;
                match (moves_directory, target.is_directory()) {
                    (true, false) => return Err(Errno::ENOTDIR.into()),
                    (false, true) => return Err(Errno::EISDIR.into()),
                    _ => {}
                }
            }
        }
        if moves_directory && crosses {
            self.require_movable(credentials, &source, to, target.is_none())?;
        }
        // What is replaced must stay empty until it is gone.
        let _target_lock = match &target {
            Some(target) if target.is_directory() => Some(self.locks.exclusive(target.child.number).await),
            _ => None,
        };
        if let Some(target) = &target
            && target.is_directory()
            && target.child.metadata().size_bytes > 0
        {
            return Err(Errno::ENOTEMPTY.into());
        }

        let mut batch = self.begin(0, RENAME_ENTRIES).await?;
        let now = self.now();
        batch.delete_entry(from.number, source.found.slot);
        batch.put_entry(to.number, slot, to_name, source.child.number, source.child.kind());
        batch.update(&source.child, |metadata| {
            metadata.changed = now;
            if moves_directory {
                metadata.parent = to.number;
            }
        })?;
        let moved_link = u32::from(moves_directory);
        batch.update(from, |metadata| {
            metadata.size_bytes = metadata.size_bytes.saturating_sub(1);
            metadata.link_count -= moved_link;
            metadata.modified = now;
            metadata.changed = now;
        })?;
        let replaced_link = target.as_ref().map_or(0, |target| u32::from(target.is_directory()));
        batch.update(to, |metadata| {
            metadata.size_bytes += u64::from(target.is_none());
            metadata.link_count = metadata.link_count + moved_link - replaced_link;
            metadata.modified = now;
            metadata.changed = now;
        })?;
        if let Some(target) = &target {
            batch.drop_link(&target.child, now)?;
        }
        self.commit(batch)?;
        Ok(target.map(|target| target.child.number))
    }

    async fn exchange(&self, credentials: &Credentials, source: End<'_>, target: End<'_>) -> Result<()> {
        require_removable(credentials, source.directory, &source.child)?;
        require_removable(credentials, target.directory, &target.child)?;
        if !Rc::ptr_eq(source.directory, target.directory) {
            let balanced = source.is_directory() == target.is_directory();
            if source.is_directory() {
                self.require_movable(credentials, &source, target.directory, !balanced)?;
            }
            if target.is_directory() {
                self.require_movable(credentials, &target, source.directory, !balanced)?;
            }
        }
        let mut batch = self.begin(0, RENAME_ENTRIES).await?;
        let now = self.now();
        for (place, moved) in [(&source, &target), (&target, &source)] {
            let (directory, child) = (place.directory, &moved.child);
            batch.put_entry(directory.number, place.found.slot, place.name, child.number, child.kind());
            let (gains, loses) = (u32::from(moved.is_directory()), u32::from(place.is_directory()));
            batch.update(directory, |metadata| {
                metadata.link_count = metadata.link_count + gains - loses;
                metadata.modified = now;
                metadata.changed = now;
            })?;
            batch.update(child, |metadata| {
                metadata.changed = now;
                if metadata.kind == FileKind::Directory {
                    metadata.parent = directory.number;
                }
            })?;
        }
        self.commit(batch)
    }

    /// Whether a directory may move below `to`: its `..` is written, and `to` may gain a link.
    fn require_movable(
        &self,
        credentials: &Credentials,
        moved: &End<'_>,
        to: &Inode,
        gains_link: bool,
    ) -> Result<()> {
        permission::require(credentials, &moved.child.metadata(), WRITE)?;
        if gains_link && to.metadata().link_count >= LINKS_MAX {
            return Err(Errno::EMLINK.into());
        }
        Ok(())
    }

    /// Locks both directories in the order that [`crate::lock`] asks for.
    async fn lock_directories(&self, from: NodeId, to: NodeId) -> Result<Directories> {
        let from = self.node(from).await?;
        if from.number == to.0 {
            let lock = self.locks.exclusive(from.number).await;
            let to = Rc::clone(&from);
            return Ok(Directories {
                from,
                to,
                above_from: BTreeSet::new(),
                above_to: BTreeSet::new(),
                _locks: vec![lock],
            });
        }
        let to = self.node(to).await?;
        // While it is held, no directory changes its parent.
        let rename_lock = self.rename_lock().await;
        let above_from = self.ancestry(&from).await?;
        let above_to = self.ancestry(&to).await?;
        let (first, second) = if above_from.contains(&to.number) { (&to, &from) } else { (&from, &to) };
        let first = self.locks.exclusive(first.number).await;
        let second = self.locks.exclusive(second.number).await;
        Ok(Directories { from, to, above_from, above_to, _locks: vec![second, first, rename_lock] })
    }

    /// Numbers from the directory up to the root, both included.
    async fn ancestry(&self, directory: &Rc<Inode>) -> Result<BTreeSet<u64>> {
        require_directory(directory)?;
        let mut above = BTreeSet::from([directory.number]);
        let mut current = Rc::clone(directory);
        while ViewId::local(current.number) != NodeId::ROOT.0 {
            let parent = current.metadata().parent;
            if !above.insert(parent) {
                return Err(Failure::inconsistent(
                    "find the root from",
                    format!("directory {}", directory.number),
                    format!("directory {parent} above itself"),
                ));
            }
            if above.len().is_multiple_of(STEPS_PER_TURN) {
                self.engine.yield_now().await;
            }
            current = match self.load(parent).await? {
                Some(inode) => inode,
                // Only a directory that was removed itself can have lost its parent.
                None => return Err(Errno::ENOENT.into()),
            };
        }
        Ok(above)
    }
}
