//! What an open volume holds in memory, and how a transaction changes it.
//!
//! A transaction is turned into log entries once ([`State::apply`]); the same entries change the maps now, go
//! to the log at the next commit, and change the maps again at recovery. Middle and physical addresses are
//! given when a transaction is applied, so the maps are complete at every instant and a snapshot of them needs no care.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};
use ringfort_engine::sync::Notify;

use crate::address::{
    BlockChecksum, LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock, SegmentId, StripeIndex,
};
use crate::error::{ErrorKind, StoreError};
use crate::format::checksum::block_checksum;
use crate::format::log::{Entry, WRITE_BLOCKS_MAX, WriteRun, encode_end};
use crate::format::memory::MemoryShape;
use crate::format::root::Root;
use crate::format::segment::summary_bytes_max;
use crate::geometry::Geometry;
use crate::keep::Keep;
use crate::limits::{BANK_STRIPES, KEEP_AREAS, KEEP_HALF_BYTES};
use crate::log::ring::{Ring, body_blocks};
use crate::map::{Maps, Message, tree};
use crate::segment::bank::{Bank, Slot, StripeState};
use crate::segment::table::{Class, SegmentTable};
use crate::volume::{Change, Key, StagedPiece, VALUE_BYTES_MAX, WrittenRun};

/// Names a bank while it lives.
pub(crate) type BankId = u64;

/// An applied transaction that no commit has taken yet.
pub(crate) struct Frame {
    pub body: Vec<u8>,
    /// Blocks that lie in a bank.
    pub bank_runs: Vec<(PhysicalBlock, usize)>,
}

/// The body of a commit, kept until a checkpoint of either stage has taken it.
pub(crate) struct RetainedBody {
    /// Of the record in the log.
    pub position: u64,
    pub first_transaction: u64,
    pub transaction_count: u32,
    pub body: Vec<u8>,
}

impl RetainedBody {
    pub fn last_transaction(&self) -> u64 {
        self.first_transaction + u64::from(self.transaction_count) - 1
    }
}

/// Bytes written to devices by what they are for, all copies and parity counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathCounters {
    /// Log records.
    pub log_bytes: u64,
    /// Stripes of data and parity.
    pub stripe_bytes: u64,
    /// Pages of the trees.
    pub page_bytes: u64,
    /// Roots.
    pub root_bytes: u64,
    /// Data blocks handed in by transactions, counted once.
    pub user_bytes: u64,
    /// Zeros that filled up stripes that had to be written early, parity not counted.
    pub padding_bytes: u64,
    pub commits: u64,
    /// Checkpoints of the maps.
    pub checkpoints: u64,
    /// Checkpoints of the first stage: the log's commits without their data went to the metadata log.
    pub moves: u64,
    /// Records of the metadata log.
    pub metadata_log_bytes: u64,
    pub transactions: u64,
    pub syncs: u64,
    /// Stripes that were written in full instead of going through the log.
    pub large_stripes: u64,
    pub bank_stripes: u64,
    pub freed_segments: u64,
}

pub(crate) struct State {
    pub geometry: Geometry,
    pub maps: Maps,
    /// The log.
    pub ring: Ring,
    /// The metadata log.
    pub moved_ring: Ring,
    /// Bodies of commits since the newest map checkpoint that are not in the metadata log yet, in order.
    pub retained: VecDeque<RetainedBody>,
    pub retained_bytes: u64,
    /// The newest durable root.
    pub root: Root,
    pub segments: SegmentTable,
    pub banks: BTreeMap<BankId, Bank>,
    /// The bank that takes the next block.
    current_bank: Option<BankId>,
    next_bank: BankId,
    /// Applied, not committed; the first is transaction `next_transaction - frames.len()`.
    pub frames: VecDeque<Frame>,
    pub frames_body_bytes: usize,
    pub frames_data_blocks: u64,
    pub next_transaction: u64,
    /// Every transaction up to this one is on stable media.
    pub durable_transaction: u64,
    pub next_middle: u64,
    pub reserved: Rc<Reserved>,
    /// What outlives the process; none where the host gives no memory for it.
    pub keep: Option<Keep>,
    /// Set when the volume can no longer promise anything: every later change is refused with it.
    pub failed: Option<StoreError>,
    pub counters: PathCounters,
}

/// Promised to transactions that have begun, not used yet.
#[derive(Default)]
pub(crate) struct Reserved {
    pub data_blocks: Cell<u64>,
    pub entries: Cell<u64>,
    /// Transactions.
    pub count: Cell<u64>,
    /// Something was given back. The same signal as the volume's progress: whoever waits for room waits for both.
    pub released: Rc<Notify>,
}

/// A transaction's promise of space. Dropping it gives back what was not used.
pub struct Reservation {
    reserved: Rc<Reserved>,
    data_blocks: u64,
    entries: u64,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { data_blocks, entries, .. } = self;
        f.debug_struct("Reservation").field("data_blocks", data_blocks).field("entries", entries).finish()
    }
}

impl Reservation {
    pub(crate) fn new(reserved: &Rc<Reserved>, data_blocks: u64, entries: u64) -> Self {
        reserved.data_blocks.set(reserved.data_blocks.get() + data_blocks);
        reserved.entries.set(reserved.entries.get() + entries);
        reserved.count.set(reserved.count.get() + 1);
        Self { reserved: Rc::clone(reserved), data_blocks, entries }
    }

    /// Blocks of the promise have become real.
    pub(crate) fn use_blocks(&mut self, blocks: u64) {
        let used = blocks.min(self.data_blocks);
        self.data_blocks -= used;
        self.reserved.data_blocks.set(self.reserved.data_blocks.get() - used);
        self.reserved.released.notify_all();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.data_blocks.set(self.reserved.data_blocks.get() - self.data_blocks);
        self.reserved.entries.set(self.reserved.entries.get() - self.entries);
        self.reserved.count.set(self.reserved.count.get() - 1);
        self.reserved.released.notify_all();
    }
}

impl State {
    pub fn new(
        geometry: Geometry,
        maps: Maps,
        ring: Ring,
        moved_ring: Ring,
        segments: SegmentTable,
        root: Root,
    ) -> Self {
        Self {
            geometry,
            maps,
            ring,
            moved_ring,
            retained: VecDeque::new(),
            retained_bytes: 0,
            root,
            segments,
            banks: BTreeMap::new(),
            current_bank: None,
            next_bank: 0,
            frames: VecDeque::new(),
            frames_body_bytes: 0,
            frames_data_blocks: 0,
            next_transaction: 1,
            durable_transaction: 0,
            next_middle: 1,
            reserved: Rc::new(Reserved::default()),
            keep: None,
            failed: None,
            counters: PathCounters::default(),
        }
    }

    /// How the memory file of a process of `epoch` is divided.
    pub fn keep_shape(geometry: &Geometry, log_blocks: u64, epoch: u64) -> MemoryShape {
        MemoryShape {
            epoch,
            half_blocks: log_blocks.div_ceil(2).min((KEEP_HALF_BYTES / BLOCK_BYTES) as u64) as u32,
            area_count: KEEP_AREAS,
            area_blocks: bank_stripes(geometry) * geometry.blocks_per_stripe() as u32,
        }
    }

    pub fn stripe_blocks(&self) -> usize {
        self.geometry.blocks_per_stripe() as usize
    }

    /// The newest transaction applied.
    pub fn last_transaction(&self) -> u64 {
        self.next_transaction - 1
    }

    pub fn check_alive(&self) -> Result<(), StoreError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Hands out `count` consecutive middle addresses.
    pub fn take_middles(&mut self, count: u64) -> MiddleAddress {
        let first = MiddleAddress(self.next_middle);
        self.next_middle += count;
        first
    }

    /// Free slots of the open bank.
    pub fn bank_room(&self) -> u64 {
        self.current_bank.and_then(|bank| self.banks.get(&bank)).map_or(0, |bank| bank.free_slots() as u64)
    }

    /// Data blocks that can still be handed out.
    pub fn free_blocks(&self) -> u64 {
        self.segments.available_stripes() * self.geometry.blocks_per_stripe() + self.bank_room()
    }

    /// Blocks of the log that naming the stripes of the banks in memory may take.
    pub fn naming_blocks(&self) -> u64 {
        let stripes = self.unnamed_stripes();
        let bytes = stripes * (summary_limit_bytes(&self.geometry) + 16);
        body_blocks(bytes as usize) + self.banks.len() as u64
    }

    /// Stripes of the banks in memory that no transaction has named.
    pub fn unnamed_stripes(&self) -> u64 {
        self.banks.values().map(|bank| bank.unwritten_stripes() as u64).sum()
    }

    /// Blocks of the log that transactions of this size may take, if all their data went through it.
    pub fn log_blocks_of(&self, entries: u64, data_blocks: u64) -> u64 {
        let stripe_blocks = self.geometry.blocks_per_stripe();
        let stripes = data_blocks.div_ceil(stripe_blocks);
        let bytes = entries.saturating_mul(VALUE_BYTES_MAX as u64 + 32)
            + data_blocks.saturating_mul(8)
            + stripes.saturating_mul(summary_limit_bytes(&self.geometry) + 128);
        body_blocks(usize::try_from(bytes).unwrap_or(usize::MAX / 2)).saturating_add(data_blocks)
    }

    /// Blocks of a record of all that is applied and not committed.
    pub fn record_blocks(&self) -> u64 {
        let run_blocks = |(start, count): &(PhysicalBlock, usize)| {
            let blocks = (0..*count as u64).map(|index| PhysicalBlock(start.0 + index));
            blocks.filter(|physical| !self.is_written(*physical)).count() as u64
        };
        let data_blocks: u64 =
            self.frames.iter().flat_map(|frame| frame.bank_runs.iter()).map(run_blocks).sum();
        body_blocks(self.frames_body_bytes) + data_blocks
    }

    fn is_written(&self, physical: PhysicalBlock) -> bool {
        self.banks.values().any(|bank| bank.stripe_state(physical) == Some(StripeState::Written))
    }

    /// Banks that take no more blocks and are not written yet.
    pub fn waiting_banks(&self) -> usize {
        self.banks.values().filter(|bank| bank.sealed && !bank.is_done()).count()
    }

    /// The block, if it is still in memory.
    pub fn resident(&self, physical: PhysicalBlock) -> Option<&Slot> {
        self.banks.values().find_map(|bank| bank.resident(physical))
    }

    pub fn bank_of(&mut self, physical: PhysicalBlock) -> Option<&mut Bank> {
        self.banks.values_mut().find(|bank| bank.contains(physical))
    }

    /// Changes the maps as one logged entry says.
    pub fn merge_entry(&mut self, entry: &Entry) {
        let message = match entry {
            Entry::Put { tree, key, value } => Message::Put { tree: *tree, key: *key, value: value.clone() },
            Entry::Delete { tree, key } => Message::Delete { tree: *tree, key: *key },
            Entry::Unmap { object, start, len_blocks } => {
                Message::UnmapRun { object: *object, start: *start, len_blocks: *len_blocks }
            }
            Entry::Write(run) => {
                let WriteRun { object, start, middle, physical, .. } = *run;
                let len_blocks = run.checksums.len() as u64;
                // Birth first: a later death always finds what it ends.
                self.maps.apply(Message::Birth { middle, physical, checksums: run.checksums.clone() });
                Message::MapRun { object, start, len_blocks, middle }
            }
            Entry::Stripe { segment, stripe, summary } => Message::Put {
                tree: tree::SUMMARY,
                key: tree::summary_key(*segment, StripeIndex(*stripe)),
                value: summary.clone(),
            },
            Entry::Bank { .. } => return,
        };
        self.maps.apply(message);
    }

    /// Gives a list of entries its place in the order.
    fn append_frame(&mut self, entries: &[Entry], bank_runs: Vec<(PhysicalBlock, usize)>) -> u64 {
        let mut body = Vec::new();
        for entry in entries {
            entry.encode(&mut body);
            self.merge_entry(entry);
        }
        encode_end(&mut body);
        self.frames_body_bytes += body.len();
        self.frames_data_blocks += bank_runs.iter().map(|(_, count)| *count as u64).sum::<u64>();
        let transaction = self.next_transaction;
        self.next_transaction += 1;
        if let Some(keep) = &mut self.keep {
            keep.append(transaction, &body);
        }
        self.frames.push_back(Frame { body, bank_runs });
        transaction
    }

    /// Applies a transaction of the store's own.
    pub fn apply_internal(&mut self, entries: &[Entry]) -> u64 {
        self.append_frame(entries, Vec::new())
    }

    /// Applies a transaction. Fails only if the volume has failed.
    pub fn apply(&mut self, changes: Vec<Change>, reservation: &mut Reservation) -> Result<u64, StoreError> {
        self.check_alive()?;
        self.check_room(&changes)?;
        let mut entries = Vec::with_capacity(changes.len());
        let mut bank_runs = Vec::new();
        for change in changes {
            match change {
                Change::Put { tree, key, value } => entries.push(Entry::Put { tree, key, value }),
                Change::Delete { tree, key } => entries.push(Entry::Delete { tree, key }),
                Change::Unmap { object, start, len_blocks } => {
                    entries.push(Entry::Unmap { object, start, len_blocks });
                }
                Change::Write { object, start, blocks } => {
                    let mut next = start;
                    for piece in blocks.pieces {
                        let len_blocks = match piece {
                            StagedPiece::Written(run) => self.write_stripes(&mut entries, object, next, run),
                            StagedPiece::Memory(slices) => self.write_bank(
                                &mut entries,
                                &mut bank_runs,
                                object,
                                next,
                                &slices,
                                reservation,
                            )?,
                        };
                        self.counters.user_bytes += len_blocks * BLOCK_BYTES as u64;
                        next = LogicalBlock(next.0 + len_blocks);
                    }
                }
            }
        }
        self.counters.transactions += 1;
        Ok(self.append_frame(&entries, bank_runs))
    }

    /// Reservations keep this from failing; should one be wrong, the transaction is refused before it changes anything.
    fn check_room(&self, changes: &[Change]) -> Result<(), StoreError> {
        let pieces = changes.iter().filter_map(|change| match change {
            Change::Write { blocks, .. } => Some(&blocks.pieces),
            _ => None,
        });
        let bytes = pieces.flatten().map(|piece| match piece {
            StagedPiece::Memory(slices) => slices.iter().map(|slice| slice.len()).sum(),
            StagedPiece::Written(_) => 0,
        });
        let wanted = (bytes.sum::<usize>() / BLOCK_BYTES) as u64;
        if wanted <= self.free_blocks() {
            return Ok(());
        }
        let found = format!("{} free blocks for {wanted}", self.free_blocks());
        Err(StoreError::new(ErrorKind::NoSpace, "apply transaction to", "data region", found))
    }

    /// Entries for blocks that lie in stripes of their own already.
    fn write_stripes(
        &mut self,
        entries: &mut Vec<Entry>,
        object: ObjectId,
        start: LogicalBlock,
        run: WrittenRun,
    ) -> u64 {
        let mut done = 0;
        for checksums in run.checksums.chunks(WRITE_BLOCKS_MAX) {
            entries.push(Entry::Write(WriteRun {
                bank: false,
                object,
                start: LogicalBlock(start.0 + done),
                middle: MiddleAddress(run.middle.0 + done),
                physical: PhysicalBlock(run.physical.0 + done),
                checksums: checksums.to_vec(),
            }));
            done += checksums.len() as u64;
        }
        let first = self.geometry.locate(run.physical);
        for (index, summary) in run.summaries.into_iter().enumerate() {
            entries.push(Entry::Stripe {
                segment: first.segment,
                stripe: first.stripe.0 + index as u32,
                summary,
            });
        }
        done
    }

    /// Puts blocks into the bank and makes their entries.
    fn write_bank(
        &mut self,
        entries: &mut Vec<Entry>,
        bank_runs: &mut Vec<(PhysicalBlock, usize)>,
        object: ObjectId,
        start: LogicalBlock,
        slices: &[Slice],
        reservation: &mut Reservation,
    ) -> Result<u64, StoreError> {
        let blocks: Vec<Slice> = slices
            .iter()
            .flat_map(|slice| {
                (0..slice.len() / BLOCK_BYTES)
                    .map(|block| slice.slice(block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES))
            })
            .collect();
        let mut done = 0;
        while done < blocks.len() {
            let bank_id = self.open_bank(entries)?;
            let bank = &self.banks[&bank_id];
            let count = bank.free_slots().min(blocks.len() - done).min(WRITE_BLOCKS_MAX);
            let physical = bank.next_physical();
            let middle = self.take_middles(count as u64);
            let mut checksums = Vec::with_capacity(count);
            if let Some(bank) = self.banks.get_mut(&bank_id) {
                for (index, block) in blocks[done..done + count].iter().enumerate() {
                    let checksum = block_checksum(block);
                    checksums.push(checksum);
                    // A copy in any case: a block that waits in a bank must not hold a whole request's memory.
                    let data = match (&self.keep, bank.area) {
                        (Some(keep), Some(area)) => {
                            let mut slot = keep.block(area, bank.next_slot());
                            slot.copy_from_slice(block);
                            slot.freeze()
                        }
                        _ => Slice::copy_of(block),
                    };
                    let middle = MiddleAddress(middle.0 + index as u64);
                    bank.push(Slot { data, checksum, middle });
                }
            }
            entries.push(Entry::Write(WriteRun {
                bank: true,
                object,
                start: LogicalBlock(start.0 + done as u64),
                middle,
                physical,
                checksums,
            }));
            bank_runs.push((physical, count));
            done += count;
            reservation.use_blocks(count as u64);
        }
        Ok(done as u64)
    }

    /// The bank that takes the next block; opens one where needed.
    fn open_bank(&mut self, entries: &mut Vec<Entry>) -> Result<BankId, StoreError> {
        if let Some(bank) = self.current_bank
            && self.banks.get(&bank).is_some_and(|bank| bank.free_slots() > 0)
        {
            return Ok(bank);
        }
        let stripes = bank_stripes(&self.geometry);
        let Some(range) = self.segments.allocate(Class::Bank, stripes) else {
            // Reservations keep this from happening; should one be wrong, the volume stays consistent and stops.
            let error = StoreError::new(ErrorKind::NoSpace, "open bank", "data region", "no stripe is left");
            self.failed = Some(error.clone());
            return Err(error);
        };
        let bank_id = self.next_bank;
        self.next_bank += 1;
        let start = self.geometry.stripe_start(range.segment, range.first);
        let pin = self.segments.pin(range.segment);
        let stripe_blocks = self.stripe_blocks();
        let block_count = range.count * stripe_blocks as u32;
        let area = self.keep.as_mut().and_then(|keep| keep.take_area(start, block_count));
        self.banks.insert(bank_id, Bank::new(range, start, stripe_blocks, pin, area));
        self.current_bank = Some(bank_id);
        entries.push(Entry::Bank {
            segment: range.segment,
            first_stripe: range.first.0,
            stripe_count: range.count,
        });
        Ok(bank_id)
    }

    /// Drops banks of which nothing is left to write and whose last naming transaction is durable.
    pub fn retire_banks(&mut self) {
        let Self { banks, keep, durable_transaction: durable, .. } = self;
        banks.retain(|_, bank| {
            let retired = bank.is_done() && bank.written_by.is_none_or(|by| by <= *durable);
            if let (true, Some(keep), Some(area)) = (retired, keep.as_mut(), bank.area) {
                keep.give_back(area);
            }
            !retired
        });
    }
}

/// Stripes of a bank.
pub(crate) fn bank_stripes(geometry: &Geometry) -> u32 {
    BANK_STRIPES.min(geometry.stripes_per_segment.div_ceil(4))
}

/// The longest summary of a stripe.
fn summary_limit_bytes(geometry: &Geometry) -> u64 {
    let parity_blocks = usize::from(geometry.parity_columns) * geometry.blocks_per_unit() as usize;
    summary_bytes_max(geometry.blocks_per_stripe() as usize, parity_blocks) as u64
}

/// Where the state of a segment is kept, among the store's properties.
pub(crate) fn segment_key(segment: SegmentId) -> Key {
    const SEGMENTS: u64 = 1;
    Key::new(SEGMENTS, u64::from(segment.0))
}

/// Checksums of a list of blocks.
pub(crate) fn checksums_of(blocks: &[Slice]) -> Vec<BlockChecksum> {
    blocks.iter().map(|block| block_checksum(block)).collect()
}

/// The state, shared by the tasks of the volume's thread. Never borrowed across an await.
pub(crate) type SharedState = RefCell<State>;
