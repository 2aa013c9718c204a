//! The filesystem as front ends see it: sessions, and one way in for every operation.

use std::rc::Rc;

use ringfort_engine::engine::Engine;
use ringfort_store::address::ViewId;
use ringfort_store::error::{ErrorKind, StoreError};
use ringfort_store::format::filesystem as format;
use ringfort_store::volume::{Cost, Key, TreeId, Volume};

use crate::advisory::{Claim, Holder};
use crate::copy::At;
use crate::errno::Errno;
use crate::failure::{Failure, Result};
use crate::handle::Handle;
use crate::hidden;
use crate::inode::{Inode, Metadata};
use crate::mount::{FilesystemOptions, INODE_LIMIT_KEY, Mount, Numbers, PROPERTIES_KEY};
use crate::namespace::Nature;
use crate::operation::{
    Credentials, FileKind, HandleId, LockFamily, Name, NewNode, NodeId, OpenFlags, Operation, Reply,
    SessionId, SetAttributes, Statistics, Timestamp,
};
use crate::permission::{self, Clears, READ, WRITE};

/// What an inode and its name take in trees, keys included; names of usual length.
const FILE_ENTRY_BYTES: u64 = 200;

/// The first inode number that files get; those below are the root's and for later use.
const FIRST_NUMBER: u64 = 16;

/// A filesystem on a volume. Cheap to clone; clones are the same filesystem. Everything runs on the volume's thread.
pub struct Filesystem<V: Volume>(Rc<Mount<V>>);

impl<V: Volume> Clone for Filesystem<V> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<V: Volume> Filesystem<V> {
    /// As [`format_for`](Self::format_for), with a root directory that belongs to root.
    pub async fn format(volume: &V, engine: &dyn Engine) -> std::result::Result<(), StoreError> {
        Self::format_for(volume, engine, [0, 0]).await
    }

    /// Makes an empty filesystem on a volume that has none: a root directory of this user and group, mode 0755. Durable when
    /// it returns. `Exists` where there is one already.
    pub async fn format_for(
        volume: &V,
        engine: &dyn Engine,
        [uid, gid]: [u32; 2],
    ) -> std::result::Result<(), StoreError> {
        let operation = "make a filesystem on";
        if volume.get(format::PROPERTIES, PROPERTIES_KEY).await?.is_some() {
            return Err(StoreError::new(
                ErrorKind::Exists,
                operation,
                "the volume",
                "a filesystem that is there already",
            ));
        }
        let now = engine.wall_clock();
        let now = Timestamp { seconds: now.as_secs() as i64, nanoseconds: now.subsec_nanos() };
        let root = Metadata {
            permissions: 0o755,
            uid,
            gid,
            link_count: 2,
            generation: 1,
            parent: NodeId::ROOT.0,
            accessed: now,
            modified: now,
            changed: now,
            ..Metadata::empty(FileKind::Directory)
        };
        let properties =
            format::Properties { hash_key: [engine.random_u64(), engine.random_u64()], root: NodeId::ROOT.0 };
        let mut transaction = volume.begin(Cost { data_blocks: 0, entries: 3, frees_space: false }).await?;
        transaction.put(format::INODES, Key::new(NodeId::ROOT.0, 0), root.encode());
        transaction.put(format::PROPERTIES, PROPERTIES_KEY, properties.encode());
        transaction.put(format::PROPERTIES, INODE_LIMIT_KEY, format::encode_inode_limit(FIRST_NUMBER));
        volume.apply(transaction)?;
        volume.sync().await
    }

    /// Opens the filesystem of a volume and finishes what a crash left unfinished: files that were unlinked while open, and
    /// truncations cut short.
    pub async fn open(
        volume: Rc<V>,
        engine: Rc<dyn Engine>,
        options: FilesystemOptions,
    ) -> std::result::Result<Self, StoreError> {
        let properties = property(&*volume, PROPERTIES_KEY).await?;
        let properties = format::Properties::decode(&properties)
            .map_err(|error| damaged("the filesystem's properties", error.to_string()))?;
        if properties.root != NodeId::ROOT.0 {
            let found = format!("root directory {}", properties.root);
            return Err(damaged("the filesystem's properties", found));
        }
        let limit = property(&*volume, INODE_LIMIT_KEY).await?;
        let limit = format::decode_inode_limit(&limit)
            .map_err(|error| damaged("the inode limit", error.to_string()))?;
        let numbers = Numbers::starting_at(limit.max(FIRST_NUMBER));
        let mount = Mount::new(volume, engine, options, properties.hash_key, numbers);
        mount.recover().await.map_err(|failure| match failure {
            Failure::Store(error) => *error,
            Failure::Refused(errno) => damaged("the orphan list", errno.to_string()),
        })?;
        Ok(Self(Rc::new(mount)))
    }

    pub(crate) fn mount(&self) -> &Mount<V> {
        &self.0
    }

    /// A session whose root is that of the volume itself.
    pub fn open_session(&self) -> SessionId {
        self.open_session_in(ViewId::VOLUME)
    }

    /// A session whose root is that of a clone, or of a snapshot.
    pub fn open_session_in(&self, view: ViewId) -> SessionId {
        self.0.sessions.borrow_mut().open(hidden::root_of(view))
    }

    /// Ends a session: its handles are closed and its lookups taken back; unlinked files that only it held are reclaimed. An
    /// unknown session is ignored. Operations of the session that still run answer `ESTALE` or complete.
    pub async fn close_session(&self, session: SessionId) {
        let dropped = self.0.sessions.borrow_mut().close(session);
        self.0.advisory.close_session(session);
        for number in dropped {
            self.0.reclaim_unless_held(number).await;
        }
    }

    /// Ends every session and makes everything durable.
    pub async fn shut_down(&self) -> std::result::Result<(), StoreError> {
        let sessions = self.0.sessions.borrow().all();
        for session in sessions {
            self.close_session(session).await;
        }
        self.0.volume.sync().await
    }

    /// Gives back what unlinked files take where that failed or was cut short before. To be called now and then.
    pub async fn retry_reclaims(&self) {
        self.0.retry_reclaims().await;
    }

    pub fn volume(&self) -> &Rc<V> {
        &self.0.volume
    }

    /// What is in memory, for status reports and tests.
    pub fn counts(&self) -> Counts {
        let (advisory_locks, lock_waiters) = self.0.advisory.counts();
        Counts {
            advisory_locks,
            lock_waiters,
            cached_inodes: self.0.inodes.len(),
            held_inodes: self.0.sessions.borrow().held_inodes(),
            unlinked_inodes: self.0.orphans.borrow().len(),
            unreclaimed_inodes: self.0.unreclaimed().len(),
            reclaim_failures: self.0.reclaim_failures.get(),
        }
    }

    /// Carries out one operation. Operations may run at the same time; each is atomic unless its documentation says otherwise.
    /// Failures of the store are logged here, with their full text, and become error numbers.
    pub async fn execute(
        &self,
        session: SessionId,
        credentials: &Credentials,
        operation: Operation,
    ) -> std::result::Result<Reply, Errno> {
        let doing = operation.name();
        self.0
            .execute(session, credentials, operation)
            .await
            .map_err(|failure| self.0.log.errno(failure, doing, self.0.engine.monotonic()))
    }
}

/// How much a filesystem holds in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub cached_inodes: usize,
    /// Inodes with lookups or handles.
    pub held_inodes: usize,
    /// Inodes without links that wait for their last holder.
    pub unlinked_inodes: usize,
    /// Of these, the ones that nobody holds: what they take is being given back, or waits for [`Filesystem::retry_reclaims`].
    pub unreclaimed_inodes: usize,
    /// Attempts to give it back that failed.
    pub reclaim_failures: u64,
    pub advisory_locks: usize,
    /// Operations that wait for an advisory lock.
    pub lock_waiters: usize,
}

async fn property<V: Volume>(volume: &V, key: Key) -> std::result::Result<Vec<u8>, StoreError> {
    volume.get(format::PROPERTIES, key).await?.ok_or_else(|| {
        let TreeId(tree) = format::PROPERTIES;
        StoreError::new(ErrorKind::NotFound, "open the filesystem of", "the volume", "none")
            .expected(format!("entry {} of tree {tree}", key.hi))
            .advice("create the volume anew if its creation was interrupted")
    })
}

fn damaged(place: &str, found: String) -> StoreError {
    StoreError::new(ErrorKind::Damaged, "open", place, found).advice("check the volume offline")
}

impl<V: Volume> Mount<V> {
    async fn execute(
        &self,
        session: SessionId,
        credentials: &Credentials,
        mut operation: Operation,
    ) -> Result<Reply> {
        let root = self.sessions.borrow().root(session)?;
        for node in operation.nodes_mut().into_iter().flatten().filter(|node| **node == NodeId::ROOT) {
            *node = NodeId(root);
        }
        Ok(match operation {
            Operation::Lookup { parent, name } => {
                Reply::Node(self.lookup(session, credentials, parent, &name).await?)
            }
            Operation::LookupParent { node } => {
                Reply::Node(self.lookup_parent(session, credentials, node).await?)
            }
            Operation::Forget { node, count } => {
                let last = self.sessions.borrow_mut().forget(session, node.0, count);
                if last {
                    self.reclaim_unless_held(node.0).await;
                }
                Reply::Done
            }
            Operation::GetAttributes { node, handle } => {
                Reply::Attributes(self.target(session, node, handle).await?.0.attributes())
            }
            Operation::SetAttributes { node, handle, change } => {
                self.require_writable(node)?;
                let (inode, writable) = self.target(session, node, handle).await?;
                Reply::Attributes(self.set_attributes(credentials, &inode, &change, writable).await?)
            }
            Operation::Access { node, mask } => {
                let inode = self.node(node).await?;
                let is_stored =
                    matches!(inode.kind(), FileKind::Regular | FileKind::Directory | FileKind::Symlink);
                if mask & WRITE != 0 && is_stored {
                    self.require_writable(node)?;
                }
                permission::access(credentials, &inode.metadata(), mask & 7)?;
                Reply::Done
            }
            Operation::ReadLink { node } => {
                let inode = self.node(node).await?;
                let metadata = inode.metadata();
                if metadata.kind != FileKind::Symlink {
                    return Err(Errno::EINVAL.into());
                }
                Reply::Target(metadata.target.to_vec())
            }
            Operation::MakeSymlink { parent, name, target } => {
                let new = NewNode { parent, name, permissions: 0o777, umask: 0 };
                let nature = Nature { target, ..Nature::of(FileKind::Symlink) };
                Reply::Node(self.make(session, credentials, &new, nature).await?.attributes())
            }
            Operation::MakeNode { new, kind, device } => {
                if matches!(kind, FileKind::Directory | FileKind::Symlink) {
                    return Err(Errno::EINVAL.into());
                }
                let has_device = matches!(kind, FileKind::CharacterDevice | FileKind::BlockDevice);
                let nature = Nature { device: if has_device { device } else { 0 }, ..Nature::of(kind) };
                Reply::Node(self.make(session, credentials, &new, nature).await?.attributes())
            }
            Operation::MakeDirectory { new } => {
                let nature = Nature::of(FileKind::Directory);
                Reply::Node(self.make(session, credentials, &new, nature).await?.attributes())
            }
            Operation::Unlink { parent, name } => {
                self.require_writable(parent)?;
                self.unlink(credentials, parent, &name).await?;
                Reply::Done
            }
            Operation::RemoveDirectory { parent, name } => {
                self.require_writable(parent)?;
                self.remove_directory(credentials, parent, &name).await?;
                Reply::Done
            }
            Operation::Rename { parent, name, new_parent, new_name, mode } => {
                self.rename(credentials, (parent, &name), (new_parent, &new_name), mode).await?;
                Reply::Done
            }
            Operation::Link { node, parent, name } => {
                self.require_writable(parent)?;
                Reply::Node(self.link(session, credentials, node, parent, &name).await?)
            }
            Operation::Open { node, flags } => {
                let inode = self.node(node).await?;
                self.check_open(credentials, &inode, flags)?;
                Reply::Opened(self.open_file(session, credentials, inode, flags).await?)
            }
            Operation::Create { new, flags } => self.create(session, credentials, &new, flags).await?,
            Operation::CreateTemporary { new, flags, linkable } => {
                self.require_writable(new.parent)?;
                let inode = self.make_temporary(session, credentials, &new, linkable).await?;
                self.created(session, credentials, inode, OpenFlags { truncate: false, ..flags }).await?
            }
            Operation::CopyRange { from, from_bytes, to, to_bytes, len_bytes } => {
                let from = self.file(session, from)?;
                let to = self.file(session, to)?;
                if !from.flags.read || !to.flags.write || to.flags.append {
                    return Err(Errno::EBADF.into());
                }
                let source = At { inode: &from.inode, offset_bytes: from_bytes };
                let target = At { inode: &to.inode, offset_bytes: to_bytes };
                let copied = self.copy_range(source, target, len_bytes, !credentials.is_exempt()).await?;
                if to.flags.sync || to.flags.data_sync {
                    self.volume.sync().await?;
                }
                // A request gets over less than 4 GiB.
                Reply::Written { len_bytes: copied as u32 }
            }
            Operation::Read { handle, offset_bytes, len_bytes } => {
                let handle = self.file(session, handle)?;
                if !handle.flags.read {
                    return Err(Errno::EBADF.into());
                }
                Reply::Data(self.read(&handle.inode, offset_bytes, len_bytes).await?)
            }
            Operation::Write { handle, offset_bytes, data, append, clear_set_id, write_back } => {
                let handle = self.writable_file(session, handle)?;
                let append = append || handle.flags.append;
                let clears = match clear_set_id || !credentials.is_exempt() {
                    true => Clears::SetIdAndCapability,
                    false if write_back => Clears::Nothing,
                    false => Clears::Capability,
                };
                let len_bytes = self.write(&handle.inode, offset_bytes, &data, append, clears).await?;
                if handle.flags.sync || handle.flags.data_sync {
                    self.volume.sync().await?;
                }
                Reply::Written { len_bytes }
            }
            Operation::Flush { handle, owner } => {
                let number = self.handle(session, handle)?.inode.number;
                if let Some(owner) = owner {
                    self.advisory.close_owner(number, Holder { session, owner });
                }
                Reply::Done
            }
            Operation::GetLock { handle, owner, range, mode } => {
                let number = self.handle(session, handle)?.inode.number;
                let (family, holder) = (LockFamily::Range, Holder { session, owner });
                let claim = Claim { number, family, holder, handle, range, mode, pid: 0 };
                Reply::Lock(self.advisory.conflict(&claim))
            }
            Operation::SetLock { handle, owner, family, range, mode, pid, wait } => {
                let opened = self.handle(session, handle)?;
                let (number, holder) = (opened.inode.number, Holder { session, owner });
                match mode {
                    None => self.advisory.unlock(number, family, holder, range)?,
                    Some(mode) => {
                        opened.require_lockable(family, mode)?;
                        let claim = Claim { number, family, holder, handle, range, mode, pid };
                        self.advisory.acquire(claim, wait).await?;
                    }
                }
                Reply::Done
            }
            Operation::Sync { handle, data_only: _ } => {
                self.file(session, handle)?;
                self.volume.sync().await?;
                Reply::Done
            }
            Operation::SyncAll => {
                self.volume.sync().await?;
                Reply::Done
            }
            Operation::Release { handle } => self.release(session, handle, false).await?,
            Operation::Seek { handle, offset_bytes, whence } => {
                let handle = self.file(session, handle)?;
                Reply::Offset(self.seek(&handle.inode, offset_bytes, whence).await?)
            }
            Operation::Allocate { handle, offset_bytes, len_bytes, mode } => {
                let handle = self.writable_file(session, handle)?;
                let clear_set_id = !credentials.is_exempt();
                self.allocate(&handle.inode, offset_bytes, len_bytes, mode, clear_set_id).await?;
                if handle.flags.sync || handle.flags.data_sync {
                    self.volume.sync().await?;
                }
                Reply::Done
            }
            Operation::OpenDirectory { node } => {
                let inode = self.node(node).await?;
                crate::directory::require_directory(&inode)?;
                permission::require(credentials, &inode.metadata(), READ)?;
                let flags = OpenFlags { read: true, ..OpenFlags::default() };
                Reply::Opened(self.open_handle(session, Handle { inode, flags, directory: true })?)
            }
            Operation::ReadDirectory { handle, cookie, limit, attributes } => {
                let inode = self.directory(session, handle)?.inode;
                Reply::Entries(self.list(session, &inode, cookie, limit, attributes).await?)
            }
            Operation::ReleaseDirectory { handle } => self.release(session, handle, true).await?,
            Operation::SyncDirectory { handle } => {
                self.directory(session, handle)?;
                self.volume.sync().await?;
                Reply::Done
            }
            Operation::StatFs => Reply::Statistics(self.statistics()),
            Operation::SetXattr { node, name, value, mode, clear_set_gid } => {
                self.require_writable(node)?;
                let inode = self.node(node).await?;
                self.set_xattr(credentials, &inode, &name, value, mode, clear_set_gid).await?;
                Reply::Done
            }
            Operation::GetXattr { node, name } => {
                let inode = self.node(node).await?;
                Reply::Value(self.get_xattr(credentials, &inode, &name).await?)
            }
            Operation::ListXattr { node } => {
                let inode = self.node(node).await?;
                Reply::Value(self.list_xattr(credentials, &inode).await?)
            }
            Operation::RemoveXattr { node, name } => {
                self.require_writable(node)?;
                let inode = self.node(node).await?;
                self.remove_xattr(credentials, &inode, &name).await?;
                Reply::Done
            }
        })
    }

    /// The inode of an operation that may name a handle as well, and whether that handle may write.
    async fn target(
        &self,
        session: SessionId,
        node: NodeId,
        handle: Option<HandleId>,
    ) -> Result<(Rc<Inode>, bool)> {
        let Some(handle) = handle else { return Ok((self.node(node).await?, false)) };
        let handle = self.handle(session, handle)?;
        if handle.inode.number != node.0 {
            return Err(Errno::EBADF.into());
        }
        Ok((handle.inode, handle.flags.write))
    }

    fn file(&self, session: SessionId, handle: HandleId) -> Result<Handle> {
        let handle = self.handle(session, handle)?;
        if handle.directory { Err(Errno::EISDIR.into()) } else { Ok(handle) }
    }

    fn writable_file(&self, session: SessionId, handle: HandleId) -> Result<Handle> {
        let handle = self.handle(session, handle)?;
        // No directory is open to be written.
        if handle.flags.write { Ok(handle) } else { Err(Errno::EBADF.into()) }
    }

    fn directory(&self, session: SessionId, handle: HandleId) -> Result<Handle> {
        let handle = self.handle(session, handle)?;
        if handle.directory { Ok(handle) } else { Err(Errno::ENOTDIR.into()) }
    }

    fn check_open(&self, credentials: &Credentials, inode: &Inode, flags: OpenFlags) -> Result<()> {
        let metadata = inode.metadata();
        match metadata.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Errno::EISDIR.into()),
            FileKind::Symlink => return Err(Errno::ELOOP.into()),
            // Opened by the guest's kernel itself: nothing lies behind them here.
            _ => return Err(Errno::ENXIO.into()),
        }
        if flags.write || flags.truncate {
            self.require_writable(NodeId(inode.number))?;
        }
        let mask = if flags.read { READ } else { 0 } | if flags.write || flags.truncate { WRITE } else { 0 };
        permission::require(credentials, &metadata, mask)
    }

    async fn open_file(
        &self,
        session: SessionId,
        credentials: &Credentials,
        inode: Rc<Inode>,
        flags: OpenFlags,
    ) -> Result<HandleId> {
        if flags.truncate {
            let change = SetAttributes { size_bytes: Some(0), ..SetAttributes::default() };
            self.set_attributes(credentials, &inode, &change, true).await?;
        }
        self.open_handle(session, Handle { inode, flags, directory: false })
    }

    fn open_handle(&self, session: SessionId, handle: Handle) -> Result<HandleId> {
        // It may have been reclaimed since it was found; what is open stays.
        crate::blocks::require_present(&handle.inode)?;
        let handles_max = self.options.handles_per_session_max;
        Ok(self.sessions.borrow_mut().open_handle(session, handle, handles_max)?)
    }

    async fn create(
        &self,
        session: SessionId,
        credentials: &Credentials,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<Reply> {
        let (inode, flags) = loop {
            match self.make(session, credentials, new, Nature::of(FileKind::Regular)).await {
                // Whoever makes a file may write it, whatever its mode; there is nothing to cut off.
                Ok(inode) => break (inode, OpenFlags { truncate: false, ..flags }),
                Err(Failure::Refused(Errno::EEXIST)) if !flags.exclusive => {}
                Err(failure) => return Err(failure),
            }
            let found = match self.lookup(session, credentials, new.parent, &new.name).await {
                Ok(found) => found,
                // Gone between the two: made anew.
                Err(Failure::Refused(Errno::ENOENT)) => continue,
                Err(failure) => return Err(failure),
            };
            let inode = self.node(found.node).await?;
            if let Err(failure) = self.check_open(credentials, &inode, flags) {
                self.forget_one(session, &inode).await;
                return Err(failure);
            }
            break (inode, flags);
        };
        self.created(session, credentials, inode, flags).await
    }

    /// Opens what was looked up for the caller.
    async fn created(
        &self,
        session: SessionId,
        credentials: &Credentials,
        inode: Rc<Inode>,
        flags: OpenFlags,
    ) -> Result<Reply> {
        match self.open_file(session, credentials, Rc::clone(&inode), flags).await {
            Ok(handle) => Ok(Reply::Created { attributes: inode.attributes(), handle }),
            Err(failure) => {
                self.forget_one(session, &inode).await;
                Err(failure)
            }
        }
    }

    /// Takes back a lookup that the caller will not hear of.
    async fn forget_one(&self, session: SessionId, inode: &Inode) {
        let last = self.sessions.borrow_mut().forget(session, inode.number, 1);
        if last {
            self.reclaim_unless_held(inode.number).await;
        }
    }

    async fn release(&self, session: SessionId, handle: HandleId, directory: bool) -> Result<Reply> {
        let (inode, last) = self.sessions.borrow_mut().close_handle(session, handle, directory)?;
        self.advisory.close_handle(inode.number, session, handle);
        if last {
            self.reclaim_unless_held(inode.number).await;
        }
        Ok(Reply::Done)
    }

    fn statistics(&self) -> Statistics {
        let space = self.volume.space();
        // Made as they are needed: so many more files there is room for, empty ones with names of usual length.
        let used_inodes = self.volume.entry_count(format::INODES);
        let free_inodes = space.available_entry_bytes / FILE_ENTRY_BYTES;
        Statistics {
            block_bytes: crate::inode::BLOCK_BYTES as u32,
            total_blocks: space.total_blocks,
            free_blocks: space.free_blocks,
            available_blocks: space.available_blocks,
            total_inodes: used_inodes + free_inodes,
            free_inodes,
            name_bytes_max: Name::LEN_BYTES_MAX as u32,
        }
    }
}
