//! Inodes in memory.
//!
//! There is at most one [`Inode`] for a number, so its [`Metadata`] is the truth that transactions are built from: code that
//! reads it, puts a changed copy into a transaction and applies that, without suspending between, needs no lock.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use ringfort_store::address::ViewId;
use ringfort_store::format::filesystem as format;
use ringfort_store::format::filesystem::{Shift, ValueError};

use crate::acl::{Acl, AclKind};
use crate::operation::{Attributes, FileKind, NodeId, Timestamp};

/// As Linux's ext4; the count that `st_nlink` of old programs holds.
pub(crate) const LINKS_MAX: u32 = 65_000;

/// The number of `.ringfort`: no inode at rest has it.
pub(crate) const CONTROL: u64 = 2;
/// Of `.ringfort/snapshots`.
pub(crate) const SNAPSHOTS: u64 = 3;

/// Whether this is the number of a directory that is made when it is asked for.
pub(crate) fn is_hidden(number: u64) -> bool {
    matches!(ViewId::local(number), CONTROL | SNAPSHOTS)
}

/// The unit that space is mapped in.
pub(crate) const BLOCK_BYTES: u64 = ringfort_engine::buffer::BLOCK_BYTES as u64;

/// As Linux's ext4 with blocks of 4 KiB: 16 TiB.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 44;

/// Everything that is stored of an inode.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    pub kind: FileKind,
    pub permissions: u16,
    pub link_count: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u32,
    pub xattr_count: u32,
    /// Length of a file or target; number of entries of a directory.
    pub size_bytes: u64,
    pub generation: u64,
    /// The directory that a directory lies in; 0 for other kinds.
    pub parent: u64,
    /// Mapped blocks.
    pub allocated_blocks: u64,
    pub accessed: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
    /// What a symbolic link points to.
    pub target: Rc<[u8]>,
    /// Stored as extended attributes; here so that permissions are known without reading.
    pub access_acl: Option<Rc<Acl>>,
    pub default_acl: Option<Rc<Acl>>,
}

impl Metadata {
    pub fn empty(kind: FileKind) -> Self {
        Self {
            kind,
            permissions: 0,
            link_count: 0,
            uid: 0,
            gid: 0,
            device: 0,
            xattr_count: 0,
            size_bytes: 0,
            generation: 0,
            parent: 0,
            allocated_blocks: 0,
            accessed: Timestamp::default(),
            modified: Timestamp::default(),
            changed: Timestamp::default(),
            target: Rc::from([]),
            access_acl: None,
            default_acl: None,
        }
    }

    /// What is stored with the inode itself, which has this number: access control lists are not.
    pub fn decode(number: u64, value: &[u8]) -> Result<Self, ValueError> {
        let inode = format::Inode::decode(value)?;
        Ok(Self {
            kind: kind_from_number(inode.kind)
                .ok_or(ValueError::OutOfRange { field: "inode kind", found: u64::from(inode.kind) })?,
            permissions: inode.permissions,
            link_count: inode.link_count,
            uid: inode.uid,
            gid: inode.gid,
            device: inode.device,
            xattr_count: inode.xattr_count,
            size_bytes: inode.size_bytes,
            generation: inode.generation,
            // Numbers at rest are those of the view that holds them.
            parent: ViewId::of(number).place(inode.parent),
            allocated_blocks: inode.allocated_blocks,
            accessed: from_time(inode.accessed),
            modified: from_time(inode.modified),
            changed: from_time(inode.changed),
            target: Rc::from(inode.target),
            access_acl: None,
            default_acl: None,
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let inode = format::Inode {
            kind: kind_number(self.kind),
            permissions: self.permissions,
            link_count: self.link_count,
            uid: self.uid,
            gid: self.gid,
            device: self.device,
            xattr_count: self.xattr_count,
            size_bytes: self.size_bytes,
            generation: self.generation,
            parent: ViewId::local(self.parent),
            allocated_blocks: self.allocated_blocks,
            accessed: to_time(self.accessed),
            modified: to_time(self.modified),
            changed: to_time(self.changed),
            target: self.target.to_vec(),
        };
        inode.encode()
    }

    pub fn attributes(&self, number: u64) -> Attributes {
        Attributes {
            node: NodeId(number),
            generation: self.generation,
            kind: self.kind,
            permissions: self.permissions,
            link_count: self.link_count,
            uid: self.uid,
            gid: self.gid,
            device: self.device,
            size_bytes: self.size_bytes,
            sectors: self.allocated_blocks * (BLOCK_BYTES / 512),
            accessed: self.accessed,
            modified: self.modified,
            changed: self.changed,
        }
    }

    pub fn acl(&self, kind: AclKind) -> Option<&Rc<Acl>> {
        match kind {
            AclKind::Access => self.access_acl.as_ref(),
            AclKind::Default => self.default_acl.as_ref(),
        }
    }

    pub fn set_acl(&mut self, kind: AclKind, acl: Option<Rc<Acl>>) {
        match kind {
            AclKind::Access => self.access_acl = acl,
            AclKind::Default => self.default_acl = acl,
        }
    }

    /// Sets the permission bits and, where there is one, the access control list that they stand for.
    pub fn set_permissions(&mut self, permissions: u16) {
        self.permissions = permissions;
        self.access_acl = self.access_acl.take().map(|acl| Rc::new(acl.with_permissions(permissions)));
    }

    /// The first block wholly beyond the end.
    pub fn end_block(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES)
    }
}

fn from_time(time: format::Time) -> Timestamp {
    Timestamp { seconds: time.seconds, nanoseconds: time.nanoseconds }
}

fn to_time(time: Timestamp) -> format::Time {
    format::Time { seconds: time.seconds, nanoseconds: time.nanoseconds }
}

pub(crate) fn kind_number(kind: FileKind) -> u8 {
    match kind {
        FileKind::Regular => format::kind::REGULAR,
        FileKind::Directory => format::kind::DIRECTORY,
        FileKind::Symlink => format::kind::SYMLINK,
        FileKind::CharacterDevice => format::kind::CHARACTER_DEVICE,
        FileKind::BlockDevice => format::kind::BLOCK_DEVICE,
        FileKind::Fifo => format::kind::FIFO,
        FileKind::Socket => format::kind::SOCKET,
    }
}

pub(crate) fn kind_from_number(number: u8) -> Option<FileKind> {
    Some(match number {
        format::kind::REGULAR => FileKind::Regular,
        format::kind::DIRECTORY => FileKind::Directory,
        format::kind::SYMLINK => FileKind::Symlink,
        format::kind::CHARACTER_DEVICE => FileKind::CharacterDevice,
        format::kind::BLOCK_DEVICE => FileKind::BlockDevice,
        format::kind::FIFO => FileKind::Fifo,
        format::kind::SOCKET => FileKind::Socket,
        _ => return None,
    })
}

/// An inode that somebody uses, or used lately.
#[derive(Debug)]
pub(crate) struct Inode {
    pub number: u64,
    metadata: RefCell<Metadata>,
    /// Reclaimed: no longer on the volume, and nothing may be written for it any more.
    gone: Cell<bool>,
    /// Blocks beyond the size may still be mapped, because freeing them failed half-way.
    pub trim_pending: Cell<bool>,
    /// Has no name, never had one, and may get one.
    pub linkable: Cell<bool>,
    /// Set while blocks are on their way to another place in the file: see [`crate::blocks`].
    pub shift: Cell<Option<Shift>>,
    /// Found to have no capabilities, and was given none since.
    pub no_capability: Cell<bool>,
    /// Counts changes of which blocks are mapped.
    pub mapping_version: Cell<u64>,
    /// Used since the cache last looked.
    touched: Cell<bool>,
}

impl Inode {
    pub fn new(number: u64, metadata: Metadata) -> Self {
        Self {
            number,
            metadata: RefCell::new(metadata),
            gone: Cell::new(false),
            trim_pending: Cell::new(false),
            shift: Cell::new(None),
            linkable: Cell::new(false),
            no_capability: Cell::new(false),
            mapping_version: Cell::new(0),
            touched: Cell::new(true),
        }
    }

    /// Not to be held across a suspension.
    pub fn metadata(&self) -> Ref<'_, Metadata> {
        self.metadata.borrow()
    }

    pub fn kind(&self) -> FileKind {
        self.metadata.borrow().kind
    }

    pub fn attributes(&self) -> Attributes {
        self.metadata.borrow().attributes(self.number)
    }

    /// Whether it is worth to look for the attribute that holds a program's capabilities.
    pub fn may_have_capability(&self) -> bool {
        self.metadata.borrow().xattr_count > 0 && !self.no_capability.get()
    }

    /// Whether an earlier operation left something undone.
    pub fn is_unsettled(&self) -> bool {
        self.trim_pending.get() || self.shift.get().is_some()
    }

    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    pub(super) fn set_gone(&self) {
        self.gone.set(true);
        self.shift.set(None);
    }

    /// After the transaction that stores `metadata` was applied.
    pub(super) fn set_metadata(&self, metadata: Metadata) {
        *self.metadata.borrow_mut() = metadata;
    }
}

/// The inodes in memory: all that are in use, and of the rest as many as the limit allows.
#[derive(Debug)]
pub(crate) struct InodeCache {
    inodes_max: usize,
    state: RefCell<CacheState>,
}

#[derive(Debug, Default)]
struct CacheState {
    inodes: BTreeMap<u64, Rc<Inode>>,
    /// In the order in which they are considered for eviction.
    queue: VecDeque<u64>,
}

impl InodeCache {
    /// How many inodes an insertion looks at for one to evict.
    const EVICTION_LOOKS: usize = 8;

    pub fn new(inodes_max: usize) -> Self {
        Self { inodes_max, state: RefCell::default() }
    }

    pub fn get(&self, number: u64) -> Option<Rc<Inode>> {
        let inode = self.state.borrow().inodes.get(&number).cloned()?;
        inode.touched.set(true);
        Some(inode)
    }

    pub fn insert(&self, inode: Rc<Inode>) {
        let mut state = self.state.borrow_mut();
        state.queue.push_back(inode.number);
        let number = inode.number;
        let displaced = state.inodes.insert(number, inode);
        assert!(displaced.is_none(), "inode {number} in memory twice");
        for _ in 0..Self::EVICTION_LOOKS {
            if state.inodes.len() <= self.inodes_max {
                return;
            }
            let Some(number) = state.queue.pop_front() else { return };
            let Some(inode) = state.inodes.get(&number) else { continue };
            if Rc::strong_count(inode) > 1 || inode.touched.take() || inode.is_unsettled() {
                state.queue.push_back(number);
            } else {
                state.inodes.remove(&number);
            }
        }
    }

    pub fn remove(&self, number: u64) {
        let mut state = self.state.borrow_mut();
        state.inodes.remove(&number);
        // Numbers of removed inodes leave the queue when they come to its front, or here when they are most of it.
        if state.queue.len() > 2 * state.inodes.len() + 1024 {
            let CacheState { inodes, queue } = &mut *state;
            queue.retain(|number| inodes.contains_key(number));
        }
    }

    /// Forgets the inodes of a view that is no more. Whoever has one finds that it is gone.
    pub fn remove_view(&self, view: ViewId) {
        let (least, most) = view.numbers();
        let mut state = self.state.borrow_mut();
        let gone: Vec<u64> = state.inodes.range(least..=most).map(|(number, _)| *number).collect();
        for number in gone {
            if let Some(inode) = state.inodes.remove(&number) {
                inode.set_gone();
            }
        }
    }

    pub fn len(&self) -> usize {
        self.state.borrow().inodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(number: u64) -> Rc<Inode> {
        Rc::new(Inode::new(number, Metadata::empty(FileKind::Regular)))
    }

    #[test]
    fn the_cache_keeps_to_its_limit_and_never_drops_what_is_used() {
        let cache = InodeCache::new(10);
        let used = inode(1);
        cache.insert(Rc::clone(&used));
        for number in 2..1000 {
            cache.insert(inode(number));
        }
        assert!(cache.len() <= 10 + 2, "{} inodes", cache.len());
        assert!(Rc::ptr_eq(&cache.get(1).unwrap(), &used));
    }

    #[test]
    fn the_queue_forgets_removed_inodes() {
        let cache = InodeCache::new(10);
        for number in 1..10_000 {
            cache.insert(inode(number));
            cache.remove(number);
        }
        assert!(cache.state.borrow().queue.len() < 2000);
    }

    #[test]
    fn every_kind_survives_storage() {
        use FileKind::{BlockDevice, CharacterDevice, Directory, Fifo, Regular, Socket, Symlink};
        for kind in [Regular, Directory, Symlink, CharacterDevice, BlockDevice, Fifo, Socket] {
            assert_eq!(kind_from_number(kind_number(kind)), Some(kind));
        }
        assert_eq!(kind_from_number(0), None);
    }
}
