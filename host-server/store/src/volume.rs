//! What a filesystem may ask of a volume.
//!
//! A volume is a set of small ordered *trees* (key → value) and a set of *objects* (block address spaces),
//! changed together by atomic [`Transaction`]s. Power loss leaves the state cut at some point of the order in which
//! transactions were applied; everything applied before a completed [`Volume::sync`] is inside the cut.
//!
//! All methods belong to the volume's thread. Reads may suspend, and other tasks then run: a caller that reads,
//! decides and applies must hold its own lock over what it read. [`Volume::apply`] never suspends.

use ringfort_engine::buffer::Slice;

use crate::address::{BlockChecksum, LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock};
use crate::error::StoreError;

/// Names one tree of a volume. Trees below [`TreeId::FIRST_FILESYSTEM`] belong to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeId(pub u8);

impl TreeId {
    pub const FIRST_FILESYSTEM: TreeId = TreeId(16);
    pub const LAST_FILESYSTEM: TreeId = TreeId(63);
}

/// Keys order by `hi`, then `lo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub hi: u64,
    pub lo: u64,
}

impl Key {
    pub const MIN: Key = Key { hi: 0, lo: 0 };
    pub const MAX: Key = Key { hi: u64::MAX, lo: u64::MAX };

    pub const fn new(hi: u64, lo: u64) -> Self {
        Self { hi, lo }
    }
}

/// The longest value of a tree entry, in bytes.
pub const VALUE_BYTES_MAX: usize = 6 * 1024;

/// What a transaction is going to need, so that space is promised before anything changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// 4 KiB data blocks that will be written.
    pub data_blocks: u64,
    /// Upper bound of tree entries that will be put, deleted or unmapped.
    pub entries: u64,
    /// The transaction gives back at least as much as it takes (unlink, truncate, shift): it may use the reserve that
    /// is kept so that a full volume can be emptied. Of its entries at most [`FREEING_LONG_ENTRIES`] put a value; the others
    /// are deletions, mapped blocks that unmapping gives back, and what shifts cost. At most [`FREEING_ENTRIES_MAX`] in all are sure to be let through.
    pub frees_space: bool,
}

/// Values that a transaction puts which gives space back: the inode, its place among the orphans, a directory.
pub const FREEING_LONG_ENTRIES: u64 = 4;

/// Entries of one transaction that a full volume is sure to let through: the reserve has room for the pages that they touch.
pub const FREEING_ENTRIES_MAX: u64 = 1100;

impl Cost {
    /// Entries that may put a value of any length.
    pub(crate) fn long_entries(&self) -> u64 {
        if self.frees_space { self.entries.min(FREEING_LONG_ENTRIES) } else { self.entries }
    }

    /// Entries without a value.
    pub(crate) fn short_entries(&self) -> u64 {
        self.entries - self.long_entries()
    }
}

/// One piece of what [`Volume::read`] found, in logical order.
#[derive(Clone, Debug)]
pub enum ReadPiece {
    /// Never written, or unmapped: reads as zeros.
    Hole { len_blocks: u64 },
    /// Verified contents: whole blocks.
    Data(Slice),
}

/// A mapped range of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub start: LogicalBlock,
    pub len_blocks: u64,
}

/// Block contents handed to the volume by [`Volume::stage`], ready to be mapped by a transaction. Large runs are
/// on the devices already (not yet flushed); the rest waits in memory for the commit. Dropping it gives the space
/// back.
#[derive(Debug)]
pub struct StagedBlocks {
    pub(crate) pieces: Vec<StagedPiece>,
}

#[derive(Debug)]
pub(crate) enum StagedPiece {
    /// Written as full stripes.
    Written(WrittenRun),
    /// Whole blocks in memory.
    Memory(Vec<Slice>),
}

/// Blocks that are on the devices already, in stripes of their own.
#[derive(Debug)]
pub(crate) struct WrittenRun {
    pub middle: MiddleAddress,
    pub physical: PhysicalBlock,
    pub checksums: Vec<BlockChecksum>,
    /// Encoded summary of each stripe, in order.
    pub summaries: Vec<Vec<u8>>,
    /// Keeps the segment from being reused until a transaction names the stripes.
    #[allow(dead_code)] // held for its drop
    pub pin: Box<dyn std::fmt::Debug>,
}

/// A change of the volume that happens completely or not at all. Made by [`Volume::begin`], which reserves its
/// space; dropping it unapplied gives the reservation back.
#[derive(Debug)]
pub struct Transaction<R> {
    pub(crate) changes: Vec<Change>,
    /// How many blocks more are mapped afterwards, where the caller knows.
    pub(crate) mapped_blocks: Option<i64>,
    /// Returned to the volume when dropped.
    #[allow(dead_code)]
    pub(crate) reservation: R,
}

#[derive(Debug)]
pub(crate) enum Change {
    Put { tree: TreeId, key: Key, value: Vec<u8> },
    Delete { tree: TreeId, key: Key },
    Write { object: ObjectId, start: LogicalBlock, blocks: StagedBlocks },
    Unmap { object: ObjectId, start: LogicalBlock, len_blocks: u64 },
    Shift { object: ObjectId, from: LogicalBlock, to: LogicalBlock, len_blocks: u64, steps: Vec<ShiftStep> },
}

/// A part of what shifting a range is, as the store's maps do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShiftStep {
    /// What is mapped elsewhere is mapped here as well.
    Share {
        start: LogicalBlock,
        len_blocks: u64,
        middle: MiddleAddress,
    },
    Unmap {
        start: LogicalBlock,
        len_blocks: u64,
    },
}

/// What shifting a range with so many extents costs, in entries of [`Cost`] that put no value: each is taken out and put back, and both
/// ends of range and destination may cut one in two.
pub const fn shift_entries(extents: u64) -> u64 {
    2 * extents + 4
}

impl<R> Transaction<R> {
    pub(crate) fn new(reservation: R) -> Self {
        Self { changes: Vec::new(), mapped_blocks: None, reservation }
    }

    /// Sets an entry. `value` is at most [`VALUE_BYTES_MAX`] long.
    pub fn put(&mut self, tree: TreeId, key: Key, value: Vec<u8>) {
        assert!(value.len() <= VALUE_BYTES_MAX, "value of {} bytes in tree {tree:?}", value.len());
        self.changes.push(Change::Put { tree, key, value });
    }

    /// Removes an entry, if there is one.
    pub fn delete(&mut self, tree: TreeId, key: Key) {
        self.changes.push(Change::Delete { tree, key });
    }

    /// Maps staged contents at `start`.
    pub fn write(&mut self, object: ObjectId, start: LogicalBlock, blocks: StagedBlocks) {
        self.changes.push(Change::Write { object, start, blocks });
    }

    /// Tells by how many the transaction changes the number of blocks that objects have. Without that, blocks that it overwrites or
    /// unmaps count as used until the change has met what it displaces.
    pub fn note_mapped(&mut self, change_blocks: i64) {
        self.mapped_blocks = Some(change_blocks);
    }

    /// Turns a range into a hole.
    pub fn unmap(&mut self, object: ObjectId, start: LogicalBlock, len_blocks: u64) {
        self.changes.push(Change::Unmap { object, start, len_blocks });
    }

    /// See [`Volume::shift`].
    pub(crate) fn push_shift(
        &mut self,
        object: ObjectId,
        from: LogicalBlock,
        to: LogicalBlock,
        len_blocks: u64,
        steps: Vec<ShiftStep>,
    ) {
        let last = from.0.max(to.0);
        assert!(last.checked_add(len_blocks).is_some(), "shift of {len_blocks} blocks beyond block {last}");
        self.changes.push(Change::Shift { object, from, to, len_blocks, steps });
    }
}

/// Room on the volume, for data in 4 KiB blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceReport {
    pub total_blocks: u64,
    /// Not holding live data.
    pub free_blocks: u64,
    /// What ordinary writes may still take.
    pub available_blocks: u64,
    /// What entries of trees may still take, keys included: so much at least, since pages need not be full.
    pub available_entry_bytes: u64,
}

/// A volume, as the filesystem sees it.
#[allow(async_fn_in_trait)] // one thread owns a volume: its futures are never `Send`
pub trait Volume: 'static {
    /// Gives reserved space back when dropped.
    type Reservation: std::fmt::Debug;

    /// The value of an entry. Sees every applied transaction.
    async fn get(&self, tree: TreeId, key: Key) -> Result<Option<Vec<u8>>, StoreError>;

    /// Entries with `from <= key <= to` in key order, at most `limit` of them.
    async fn scan(
        &self,
        tree: TreeId,
        from: Key,
        to: Key,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, StoreError>;

    /// Contents of `len_blocks` blocks from `start` on, as pieces that cover the range exactly.
    async fn read(
        &self,
        object: ObjectId,
        start: LogicalBlock,
        len_blocks: u64,
    ) -> Result<Vec<ReadPiece>, StoreError>;

    /// The first mapped range that ends after `from`, cut to begin at or after `from`. Adjacent runs may come as one or as several.
    async fn next_extent(&self, object: ObjectId, from: LogicalBlock) -> Result<Option<Extent>, StoreError>;

    /// Waits for room and reserves it. `ErrorKind::NoSpace` where commits and checkpoints cannot make any.
    async fn begin(&self, cost: Cost) -> Result<Transaction<Self::Reservation>, StoreError>;

    /// Takes over contents, block-aligned slices of whole blocks. Data that fills stripes is written to the
    /// devices before this returns; the rest stays in memory. Belongs to a transaction already begun, which has reserved the room.
    async fn stage(
        &self,
        transaction: &mut Transaction<Self::Reservation>,
        data: Vec<Slice>,
    ) -> Result<StagedBlocks, StoreError>;

    /// Has a transaction move what is mapped in a range to `to`, in the same object: mappings only, no contents. What was mapped at the
    /// destination and does not move itself is unmapped; the rest of the range becomes a hole. Nobody else may change the two
    /// ranges until the transaction is applied, nor may it change them before. Costs [`shift_entries`] of the
    /// extents that [`Volume::next_extent`] tells in the range, and what unmapping costs where the destination is not empty.
    async fn shift(
        &self,
        transaction: &mut Transaction<Self::Reservation>,
        object: ObjectId,
        from: LogicalBlock,
        to: LogicalBlock,
        len_blocks: u64,
    ) -> Result<(), StoreError>;

    /// Makes the change visible and gives it its place in the order. Durable within the commit interval, or after [`Volume::sync`].
    fn apply(&self, transaction: Transaction<Self::Reservation>) -> Result<(), StoreError>;

    /// Returns once everything applied before the call is on stable media on every live mirror.
    async fn sync(&self) -> Result<(), StoreError>;

    /// Entries of a tree, and what was changed or removed and still takes room. Known without looking at them.
    fn entry_count(&self, tree: TreeId) -> u64;

    fn space(&self) -> SpaceReport;
}
