//! The state that all operations share, and the way in which they change it.
//!
//! # How a change is made
//! 1. Take the locks that protect what is going to be read ([`crate::lock`] has the order).
//! 2. Read and decide. This may suspend.
//! 3. [`Mount::begin`] reserves space. It may suspend, and it comes after the locks: whoever waited for a lock while holding a
//!    reservation could wait for one that waits for that space. For the same reason nobody holds two reservations.
//! 4. Collect the changes in the [`Batch`] and [`Mount::commit`] them. From the first [`Batch::update`] on **nothing suspends**: what it
//!    reads of an inode is what the commit overwrites.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use ringfort_engine::engine::Engine;
use ringfort_store::address::{ObjectId, ViewId};
use ringfort_store::format::filesystem as format;
use ringfort_store::volume::{Cost, Key, Transaction, ViewKind, ViewState, Volume};

use crate::acl::{Acl, AclKind};
use crate::advisory::AdvisoryLocks;
use crate::errno::Errno;
use crate::failure::{ErrorLog, Failure, Result};
use crate::handle::{Handle, Sessions};
use crate::inode::{Inode, InodeCache, Metadata, is_hidden};
use crate::lock::LockTable;
use crate::operation::{HandleId, NodeId, SessionId, Timestamp};
use crate::xattr_place;

/// Settings of a filesystem in use.
#[derive(Clone, Copy, Debug)]
pub struct FilesystemOptions {
    /// Inodes kept in memory beyond those in use. About 300 bytes each.
    pub cached_inodes_max: usize,
    /// Open files and directories of one session; beyond it `ENFILE`.
    pub handles_per_session_max: usize,
    /// Advisory locks of one session; beyond it `ENOLCK`. About 64 bytes each, and all on a file are looked through for each.
    pub locks_per_session_max: usize,
}

impl Default for FilesystemOptions {
    fn default() -> Self {
        Self { cached_inodes_max: 1 << 17, handles_per_session_max: 1 << 20, locks_per_session_max: 1 << 14 }
    }
}

/// Key of the [`format::Properties`].
pub(crate) const PROPERTIES_KEY: Key = Key::new(0, 0);
/// Key of the inode limit.
pub(crate) const INODE_LIMIT_KEY: Key = Key::new(1, 0);

/// How many inode numbers are set aside at a time. One sync for so many new files.
pub(crate) const NUMBERS_PER_BATCH: u64 = 1 << 16;

/// The one lock of [`Mount::moments`].
pub(crate) const MOMENT: u64 = 0;

/// The number that stands for the lock of renames between directories. No inode has it.
const RENAME_LOCK: u64 = 0;

/// Where inode numbers come from. A number is handed out once in the life of a volume: the limit that is durable lies
/// always beyond it.
pub(crate) struct Numbers {
    next: Cell<u64>,
    limit: Cell<u64>,
}

impl Numbers {
    /// Nothing below `limit` will be handed out.
    pub fn starting_at(limit: u64) -> Self {
        Self { next: Cell::new(limit), limit: Cell::new(limit) }
    }
}

pub(crate) struct Mount<V: Volume> {
    pub volume: Rc<V>,
    pub engine: Rc<dyn Engine>,
    pub options: FilesystemOptions,
    pub hash_key: [u64; 2],
    pub locks: LockTable,
    /// Taken while an inode is read from the volume, so that an old value never follows a new one into memory.
    loading: LockTable,
    pub inodes: InodeCache,
    pub numbers: Numbers,
    pub sessions: RefCell<Sessions>,
    pub advisory: AdvisoryLocks,
    /// Inodes without links that somebody still holds.
    pub orphans: RefCell<BTreeSet<u64>>,
    /// Attempts to give back what such an inode holds that failed.
    pub reclaim_failures: Cell<u64>,
    pub log: ErrorLog,
    /// Held shared by whoever changes something in several transactions that nobody may see between, exclusively while a snapshot is taken.
    pub moments: LockTable,
    pub opened_at: Timestamp,
}

impl<V: Volume> Mount<V> {
    pub fn new(
        volume: Rc<V>,
        engine: Rc<dyn Engine>,
        options: FilesystemOptions,
        hash_key: [u64; 2],
        numbers: Numbers,
    ) -> Self {
        let opened_at = timestamp(&*engine);
        Self {
            opened_at,
            moments: LockTable::default(),
            volume,
            engine,
            options,
            hash_key,
            locks: LockTable::default(),
            loading: LockTable::default(),
            inodes: InodeCache::new(options.cached_inodes_max),
            numbers,
            sessions: RefCell::default(),
            advisory: AdvisoryLocks::new(options.locks_per_session_max),
            orphans: RefCell::default(),
            reclaim_failures: Cell::new(0),
            log: ErrorLog::default(),
        }
    }

    pub fn now(&self) -> Timestamp {
        timestamp(&*self.engine)
    }

    pub fn rename_lock(&self) -> crate::lock::Acquire {
        self.locks.exclusive(RENAME_LOCK)
    }

    /// The inode a front end names. `ESTALE` where there is none.
    pub async fn node(&self, node: NodeId) -> Result<Rc<Inode>> {
        match self.load(node.0).await? {
            Some(inode) => Ok(inode),
            None => Err(Errno::ESTALE.into()),
        }
    }

    /// The inode that an entry of directory `directory` names.
    pub async fn child(&self, directory: u64, number: u64) -> Result<Rc<Inode>> {
        self.load(number).await?.ok_or_else(|| {
            Failure::inconsistent(
                format!("look up inode {number} of"),
                format!("directory {directory}"),
                "an entry whose inode does not exist",
            )
        })
    }

    pub async fn load(&self, number: u64) -> Result<Option<Rc<Inode>>> {
        if let Some(inode) = self.inodes.get(number) {
            return Ok(Some(inode));
        }
        if is_hidden(number) {
            return Ok(self.hidden_inode(number));
        }
        let _loading = self.loading.exclusive(number).await;
        if let Some(inode) = self.inodes.get(number) {
            return Ok(Some(inode));
        }
        let view = ViewId::of(number);
        if !self.is_there(view) {
            return Ok(None);
        }
        let Some(value) = self.volume.get(format::INODES, Key::new(number, 0)).await? else {
            return Ok(None);
        };
        let mut metadata = Metadata::decode(number, &value)
            .map_err(|error| Failure::damaged("read the attributes of", format!("inode {number}"), &error))?;
        if metadata.xattr_count > 0 {
            self.load_acls(number, &mut metadata).await?;
        }
        let inode = Rc::new(Inode::new(number, metadata));
        self.inodes.insert(Rc::clone(&inode));
        Ok(Some(inode))
    }

    async fn load_acls(&self, number: u64, metadata: &mut Metadata) -> Result<()> {
        for kind in [AclKind::Access, AclKind::Default] {
            let found = xattr_place::find(&*self.volume, self.hash_key, number, kind.xattr_name()).await?;
            let Some((_, value)) = found.slot else { continue };
            let acl = Acl::decode(&value).map_err(|errno| {
                Failure::inconsistent(
                    "read the access control list of",
                    format!("inode {number}"),
                    format!("a list that is not sound ({errno})"),
                )
            })?;
            metadata.set_acl(kind, acl.map(Rc::new));
        }
        Ok(())
    }

    /// Whether a view can be read.
    pub fn is_there(&self, view: ViewId) -> bool {
        match self.volume.view(view) {
            Some(entry) => entry.state == ViewState::Live,
            None => view == ViewId::VOLUME,
        }
    }

    /// `EROFS` where nothing may be changed: in a snapshot. `ESTALE` where the view is no more.
    pub fn require_writable(&self, node: NodeId) -> Result<()> {
        let entry = self.volume.view(ViewId::of(node.0));
        match entry.map(|entry| (entry.state, entry.kind)) {
            None if ViewId::of(node.0) != ViewId::VOLUME => Err(Errno::ESTALE.into()),
            Some((ViewState::Live, ViewKind::Snapshot { .. })) => Err(Errno::EROFS.into()),
            None | Some((ViewState::Live, _)) if !is_hidden(node.0) => Ok(()),
            None | Some((ViewState::Live, _)) => Err(Errno::EROFS.into()),
            Some(_) => Err(Errno::ESTALE.into()),
        }
    }

    /// A number in a view that no inode ever had, in whatever view.
    pub async fn new_number(&self, view: ViewId) -> Result<u64> {
        loop {
            let number = self.numbers.next.get();
            if number < self.numbers.limit.get() {
                self.numbers.next.set(number + 1);
                return Ok(view.place(number));
            }
            let _raising = self.loading.exclusive(RENAME_LOCK).await;
            if self.numbers.next.get() < self.numbers.limit.get() {
                continue;
            }
            let limit = self.numbers.limit.get() + NUMBERS_PER_BATCH;
            let mut batch = self.begin(0, 1).await?;
            batch.transaction.put(format::PROPERTIES, INODE_LIMIT_KEY, format::encode_inode_limit(limit));
            self.commit(batch)?;
            // Before a number is used, the promise not to use it again must be beyond the reach of a power loss.
            self.volume.sync().await?;
            self.numbers.limit.set(limit);
        }
    }

    /// Reserves space for `data_blocks` of data and `entries` tree entries.
    pub async fn begin(&self, data_blocks: u64, entries: u64) -> Result<Batch<V>> {
        self.begin_with(Cost { data_blocks, entries, frees_space: false }).await
    }

    /// As [`Mount::begin`], for what gives space back.
    pub async fn begin_freeing(&self, data_blocks: u64, entries: u64) -> Result<Batch<V>> {
        self.begin_with(Cost { data_blocks, entries, frees_space: true }).await
    }

    async fn begin_with(&self, cost: Cost) -> Result<Batch<V>> {
        let transaction = self.volume.begin(cost).await?;
        Ok(Batch {
            transaction,
            updates: Vec::new(),
            created: Vec::new(),
            orphaned: Vec::new(),
            adopted: Vec::new(),
            removed: Vec::new(),
        })
    }

    /// Applies the changes to the volume, then to memory.
    pub fn commit(&self, mut batch: Batch<V>) -> Result<()> {
        let mapped = |inode: &Inode, metadata: &Metadata| {
            metadata.allocated_blocks as i64 - inode.metadata().allocated_blocks as i64
        };
        let change = batch.updates.iter().map(|(inode, metadata)| mapped(inode, metadata)).sum();
        batch.transaction.note_mapped(change);
        for (inode, metadata) in &batch.updates {
            batch.transaction.put(format::INODES, Key::new(inode.number, 0), metadata.encode());
        }
        self.volume.apply(batch.transaction)?;
        for (inode, metadata) in batch.updates {
            inode.set_metadata(metadata);
        }
        for inode in batch.created {
            self.inodes.insert(inode);
        }
        self.orphans.borrow_mut().extend(batch.orphaned);
        for number in batch.adopted {
            self.orphans.borrow_mut().remove(&number);
        }
        for inode in batch.removed {
            inode.set_gone();
            self.inodes.remove(inode.number);
            self.orphans.borrow_mut().remove(&inode.number);
        }
        Ok(())
    }

    pub fn handle(&self, session: SessionId, handle: HandleId) -> Result<Handle> {
        Ok(self.sessions.borrow().handle(session, handle)?)
    }
}

fn timestamp(engine: &dyn Engine) -> Timestamp {
    let now = engine.wall_clock();
    Timestamp { seconds: now.as_secs() as i64, nanoseconds: now.subsec_nanos() }
}

/// Changes that happen together.
pub(crate) struct Batch<V: Volume> {
    pub transaction: Transaction<V::Reservation>,
    updates: Vec<(Rc<Inode>, Metadata)>,
    created: Vec<Rc<Inode>>,
    orphaned: Vec<u64>,
    adopted: Vec<u64>,
    removed: Vec<Rc<Inode>>,
}

impl<V: Volume> Batch<V> {
    /// Changes an inode; one tree entry, however often. `ESTALE` where it was reclaimed meanwhile.
    pub fn update(&mut self, inode: &Rc<Inode>, change: impl FnOnce(&mut Metadata)) -> Result<()> {
        if inode.is_gone() {
            return Err(Errno::ESTALE.into());
        }
        let known = self.updates.iter_mut().find(|(updated, _)| Rc::ptr_eq(updated, inode));
        match known {
            Some((_, metadata)) => change(metadata),
            None => {
                let mut metadata = inode.metadata().clone();
                change(&mut metadata);
                self.updates.push((Rc::clone(inode), metadata));
            }
        }
        Ok(())
    }

    /// A new inode; one tree entry.
    pub fn create(&mut self, number: u64, metadata: Metadata) -> Rc<Inode> {
        let inode = Rc::new(Inode::new(number, metadata.clone()));
        self.updates.push((Rc::clone(&inode), metadata));
        self.created.push(Rc::clone(&inode));
        inode
    }

    /// Lists an inode that has just lost its last link; one tree entry.
    pub fn orphan(&mut self, number: u64) {
        self.transaction.put(format::ORPHANS, Key::new(number, 0), format::encode_orphan());
        self.orphaned.push(number);
    }

    /// Takes an inode that gets a first link off the list; one tree entry. An unfinished truncation keeps it there.
    pub fn adopt(&mut self, inode: &Inode) {
        if !inode.trim_pending.get() {
            self.transaction.delete(format::ORPHANS, Key::new(inode.number, 0));
        }
        self.adopted.push(inode.number);
    }

    /// Removes an inode that nothing refers to from the volume and the orphan list; three tree entries.
    pub fn remove(&mut self, inode: &Rc<Inode>) {
        self.transaction.delete(format::INODES, Key::new(inode.number, 0));
        self.transaction.delete(format::ORPHANS, Key::new(inode.number, 0));
        if inode.shift.get().is_some() {
            self.transaction.delete(format::ORPHANS, shift_key(inode.number));
        }
        self.removed.push(Rc::clone(inode));
    }
}

/// Where it is noted, beside the orphans, that a file's blocks are on their way.
pub(crate) fn shift_key(number: u64) -> Key {
    Key::new(number, 1)
}

/// A file's data has the number of its inode.
pub(crate) fn object(number: u64) -> ObjectId {
    ObjectId(number)
}
