//! What an open volume holds in memory, and how a transaction changes it.
//!
//! A transaction is turned into log entries once ([`State::apply`]); the same entries change the maps now, go
//! to the log at the next commit, and change the maps again at recovery. Middle and physical addresses are
//! given when a transaction is applied, so the maps are complete at every instant and a snapshot of them needs no care.

pub(crate) mod apply;
mod counters;
mod reserve;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};

pub use counters::{CleaningCounters, PathCounters};
pub use reserve::Reservation;
pub(crate) use reserve::Reserved;

use crate::address::{BlockChecksum, MiddleAddress, PhysicalBlock, SegmentId};
use crate::error::StoreError;
use crate::format::checksum::block_checksum;
use crate::format::memory::MemoryShape;
use crate::format::root::Root;
use crate::format::segment::summary_bytes_max;
use crate::geometry::Geometry;
use crate::keep::Keep;
use crate::limits::{BANK_STRIPES, KEEP_AREAS, KEEP_HALF_BYTES, SPARE_SEGMENTS};
use crate::log::ring::{Ring, body_blocks};
use crate::map::Maps;
use crate::segment::bank::{Bank, Slot, StripeState};
use crate::segment::heat::RecentWrites;
use crate::segment::table::SegmentTable;
use crate::volume::Key;

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

pub(crate) struct State {
    pub geometry: Geometry,
    pub maps: Rc<Maps>,
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
    /// The banks that take the next block, warm and cold.
    current_banks: [Option<BankId>; 2],
    pub recent: RecentWrites,
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

impl State {
    pub fn new(
        geometry: Geometry,
        maps: Rc<Maps>,
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
            current_banks: [None; 2],
            recent: RecentWrites::new(geometry.data_blocks()),
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

    /// Free slots of the open banks.
    pub fn bank_room(&self) -> u64 {
        let open = self.current_banks.iter().flatten().filter_map(|bank| self.banks.get(bank));
        open.map(|bank| bank.free_slots() as u64).sum()
    }

    /// Data blocks that can still be handed out to writes.
    pub fn free_blocks(&self) -> u64 {
        self.segments.available_stripes() * self.geometry.blocks_per_stripe() + self.bank_room()
    }

    /// Data blocks that hold nothing, what is kept for cleaning included.
    pub fn unused_blocks(&self) -> u64 {
        self.segments.unused_stripes() * self.geometry.blocks_per_stripe() + self.bank_room()
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

    /// Whether some of these blocks may be in memory.
    pub fn may_be_resident(&self, start: PhysicalBlock, len_blocks: u64) -> bool {
        self.banks.values().any(|bank| bank.covers_some_of(start, len_blocks))
    }

    pub fn bank_of(&mut self, physical: PhysicalBlock) -> Option<&mut Bank> {
        self.banks.values_mut().find(|bank| bank.contains(physical))
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
pub(crate) fn summary_limit_bytes(geometry: &Geometry) -> u64 {
    let parity_blocks = usize::from(geometry.parity_columns) * geometry.blocks_per_unit() as usize;
    summary_bytes_max(geometry.blocks_per_stripe() as usize, parity_blocks) as u64
}

/// Where the state of a segment is kept, among the store's properties.
pub(crate) fn segment_key(segment: SegmentId) -> Key {
    const SEGMENTS: u64 = 1;
    Key::new(SEGMENTS, u64::from(segment.0))
}

/// Where the [clock](SegmentTable::age) at the beginning of a segment is kept. A hint: it may be absent.
pub(crate) fn begun_key(segment: SegmentId) -> Key {
    const BEGUN: u64 = 2;
    Key::new(BEGUN, u64::from(segment.0))
}

/// Free segments that only cleaning takes: one holds whatever lives in any segment that is cleaned.
pub(crate) fn cleaning_reserve(geometry: &Geometry) -> u32 {
    u32::from(u64::from(geometry.segment_count) > SPARE_SEGMENTS)
}

/// Checksums of a list of blocks.
pub(crate) fn checksums_of(blocks: &[Slice]) -> Vec<BlockChecksum> {
    blocks.iter().map(|block| block_checksum(block)).collect()
}

/// The state, shared by the tasks of the volume's thread. Never borrowed across an await.
pub(crate) type SharedState = RefCell<State>;
