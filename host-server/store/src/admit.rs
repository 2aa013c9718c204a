//! When a transaction may begin: it waits for commits, checkpoints and promises of others, and is refused only when none of
//! these can make room.

use std::time::Duration;

use ringfort_engine::buffer::BLOCK_BYTES;

use crate::core::Core;
use crate::error::{ErrorKind, StoreError};
use crate::format::log::MOVE_ENTRY_BYTES;
use crate::format::page::PAGE_CAPACITY_BYTES;
use crate::limits::{
    ASK_LOG_PART, BANKS_WAITING_MAX, ENTRY_BYTES_SHORT, ENTRY_BYTES_TYPICAL, HOPEFUL_CHECKPOINTS_MAX,
    LOG_EIGHTHS_MAX, PAGE_RESERVE_PART, PROMISES_WAIT, RELIEVE_AT_EIGHTHS,
};
use crate::log::ring::body_blocks;
use crate::map::Changes;
use crate::state::{Reservation, State, bank_stripes, summary_limit_bytes};
use crate::volume::{Cost, FREEING_ENTRIES_MAX, SpaceReport, VALUE_BYTES_MAX};

/// Entries of a transaction that makes or renames a file: where these do not fit, nothing does.
const SMALL_ENTRIES: u64 = 8;

/// What keeps a transaction from beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Stripes are short.
    Data,
    /// Pages are short.
    Metadata,
    /// Items in memory must become tables first.
    Memory,
    /// Tables must merge first.
    Merges,
    /// The log is filling up: a checkpoint must come first.
    Log,
    /// Too much waits for a commit.
    Commit,
    /// Too many banks wait to be written.
    Banks,
    /// Room is promised to transactions that have begun.
    Promises,
}

/// What one or several transactions may take.
#[derive(Clone, Copy, Debug, Default)]
struct Demand {
    data_blocks: u64,
    long_entries: u64,
    short_entries: u64,
    /// Runs of blocks that cleaning moves, and stripes that it names.
    moves: u64,
    stripes: u64,
    transactions: u64,
}

impl From<&Cost> for Demand {
    fn from(cost: &Cost) -> Self {
        Self {
            data_blocks: cost.data_blocks,
            long_entries: cost.long_entries(),
            short_entries: cost.short_entries(),
            transactions: 1,
            ..Self::default()
        }
    }
}

impl Demand {
    /// Of all transactions that have begun.
    fn promised(state: &State) -> Self {
        let reserved = &state.reserved;
        Self {
            data_blocks: reserved.data_blocks.get(),
            long_entries: reserved.long_entries.get(),
            short_entries: reserved.short_entries.get(),
            transactions: reserved.count.get(),
            ..Self::default()
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            data_blocks: self.data_blocks.saturating_add(other.data_blocks),
            long_entries: self.long_entries.saturating_add(other.long_entries),
            short_entries: self.short_entries.saturating_add(other.short_entries),
            moves: self.moves + other.moves,
            stripes: self.stripes + other.stripes,
            transactions: self.transactions + other.transactions,
        }
    }
}

impl State {
    /// Data blocks that ordinary transactions leave: for what commits and recovery may waste on padding, and so that a full volume
    /// can be emptied.
    pub fn data_margin_blocks(&self, frees_space: bool) -> u64 {
        let bank_blocks = u64::from(bank_stripes(&self.geometry)) * self.geometry.blocks_per_stripe();
        if frees_space { 2 * bank_blocks } else { 3 * bank_blocks + self.geometry.blocks_per_segment() / 2 }
    }

    /// Blocks of the log that this may take, if all its data went through it.
    fn log_blocks_of(&self, demand: Demand) -> u64 {
        let stripes = demand.data_blocks.div_ceil(self.geometry.blocks_per_stripe()) + demand.stripes;
        let bytes = demand.long_entries.saturating_mul(VALUE_BYTES_MAX as u64 + 32)
            + demand.short_entries.saturating_mul(ENTRY_BYTES_SHORT)
            + demand.data_blocks.saturating_mul(8)
            + demand.moves * MOVE_ENTRY_BYTES as u64
            + stripes.saturating_mul(summary_limit_bytes(&self.geometry) + 128);
        let blocks = body_blocks(usize::try_from(bytes).unwrap_or(usize::MAX / 2));
        blocks.saturating_add(demand.data_blocks)
    }

    /// Free pages that the next checkpoint needs after this, beyond those that it needs already.
    fn pages_of(&self, demand: Demand) -> usize {
        let stripes = self.unnamed_stripes()
            + demand.data_blocks.div_ceil(self.geometry.blocks_per_stripe())
            + demand.stripes;
        self.maps.page_bound_of(&Changes {
            long_entries: demand.long_entries,
            // A move takes a run apart in the middle.
            short_entries: demand.short_entries + 3 * demand.moves,
            data_blocks: demand.data_blocks,
            stripes,
            summary_bytes_max: summary_limit_bytes(&self.geometry),
        })
    }

    /// Pages that ordinary transactions leave, so that the largest one which gives space back still fits.
    fn page_reserve(&self) -> usize {
        let freeing = Cost { data_blocks: 1, entries: FREEING_ENTRIES_MAX, frees_space: true };
        let removals = self.maps.allocator().page_count() / PAGE_RESERVE_PART;
        self.pages_of(Demand::from(&freeing)) + removals + self.maps.merge_page_bound()
    }

    /// Pages that transactions which have begun may still need.
    pub fn promised_pages(&self) -> usize {
        self.pages_of(Demand::promised(self))
    }

    /// Pages that an ordinary transaction would find after a checkpoint; `None` where they would not do even for a small one.
    fn pages_for_more(&self) -> Option<usize> {
        let small = Cost { data_blocks: 1, entries: SMALL_ENTRIES, frees_space: false };
        let taken = self.maps.page_count()
            + self.maps.checkpoint_page_bound()
            + self.pages_of(Demand::from(&small))
            + self.page_reserve();
        self.maps.allocator().page_count().checked_sub(taken)
    }

    /// What can still be written: the lesser of what the volume's size leaves and of what the segments hold beyond live data and what
    /// others need. Cleaning gives the dead blocks back.
    pub fn space(&self) -> SpaceReport {
        let total_blocks = self.root.total_blocks;
        let live_blocks = self.maps.live_blocks_in_all();
        let unused_blocks = total_blocks.saturating_sub(live_blocks);
        // Cleaning keeps its reserve, and a segment that it is filling.
        let own_blocks = 2 * u64::from(self.segments.reserve()) * self.geometry.blocks_per_segment();
        let kept_blocks = self.reserved.data_blocks.get() + self.data_margin_blocks(false) + own_blocks;
        let dead_or_free_blocks = self.geometry.data_blocks().saturating_sub(live_blocks);
        let room_blocks = dead_or_free_blocks.saturating_sub(kept_blocks);
        let pages = self.pages_for_more();
        let available_blocks = if pages.is_some() { unused_blocks.min(room_blocks) } else { 0 };
        let available_entry_bytes = (pages.unwrap_or(0) * PAGE_CAPACITY_BYTES / 2) as u64;
        SpaceReport { total_blocks, free_blocks: unused_blocks, available_blocks, available_entry_bytes }
    }
}

/// How long a transaction goes on hoping although space is short.
#[derive(Default)]
struct Patience {
    /// The count of merges of everything at which no more pages can be hoped for.
    last_reclaim: Option<u64>,
    /// The same of rounds of cleaning that gave nothing, and of blocks.
    last_fruitless: Option<u64>,
    /// So often has that been put off because space was being given back.
    put_off: u32,
    /// Since when only promises to others are in the way, and how many transactions had been applied then.
    crowded_since: Option<(Duration, u64)>,
}

impl Core {
    /// Why a transaction of this cost must wait, or `None` where it may begin. `alone`: what others have been promised does
    /// not count.
    fn obstacle(&self, cost: &Cost, alone: bool) -> Option<Obstacle> {
        let state = self.state();
        let own = Demand::from(cost);
        let others = Demand::promised(&state);
        let demand = if alone { own } else { own.and(others) };
        if cost.data_blocks > 0
            && state.free_blocks()
                < demand.data_blocks.saturating_add(state.data_margin_blocks(cost.frees_space))
        {
            return Some(Obstacle::Data);
        }
        if let Some(obstacle) = self.page_obstacle(&state, demand, cost.frees_space) {
            return Some(obstacle);
        }
        if let Some(obstacle) = self.maps_obstacle(&state) {
            return Some(obstacle);
        }
        if state.waiting_banks() >= BANKS_WAITING_MAX {
            return Some(Obstacle::Banks);
        }
        if state.pending_is_large() {
            return Some(Obstacle::Commit);
        }
        self.log_obstacle(&state, own, others)
    }

    fn page_obstacle(&self, state: &State, demand: Demand, frees_space: bool) -> Option<Obstacle> {
        let reserve = if frees_space { 0 } else { state.page_reserve() };
        let needed = state.maps.checkpoint_page_bound() + state.pages_of(demand) + reserve;
        (needed > state.maps.allocator().free_count()).then_some(Obstacle::Metadata)
    }

    /// Changes are held back where the maps cannot keep up with them.
    fn maps_obstacle(&self, state: &State) -> Option<Obstacle> {
        if state.maps.memory_is_crowded() {
            return Some(Obstacle::Memory);
        }
        (state.maps.lags_behind() && !self.merges_failed.get()).then_some(Obstacle::Merges)
    }

    /// Why a transaction of the cleaner must wait: its stripes are its own, log and pages are everybody's.
    fn obstacle_to_moves(&self, own: Demand) -> Option<Obstacle> {
        let state = self.state();
        let others = Demand::promised(&state);
        if let Some(obstacle) = self.page_obstacle(&state, own.and(others), false) {
            return Some(obstacle);
        }
        if let Some(obstacle) = self.maps_obstacle(&state) {
            return Some(obstacle);
        }
        if state.pending_is_large() {
            return Some(Obstacle::Commit);
        }
        self.log_obstacle(&state, own, others)
    }

    /// Waits until so many runs of blocks may move to so many stripes. What is applied at once when this returns needs no promise.
    pub async fn wait_for_room_to_move(&self, moves: u64, stripes: u64) -> Result<(), StoreError> {
        let own = Demand { moves, stripes, transactions: 1, ..Demand::default() };
        let last_checkpoint = self.state().counters.checkpoints + 2;
        loop {
            self.state().check_alive()?;
            let progress = self.progress.notified();
            match self.obstacle_to_moves(own) {
                None => return Ok(()),
                Some(Obstacle::Metadata) => {
                    if self.state().counters.checkpoints >= last_checkpoint {
                        return Err(self.no_space(Obstacle::Metadata));
                    }
                    self.ask_for_checkpoint_of_maps();
                }
                Some(obstacle @ (Obstacle::Memory | Obstacle::Merges)) => self.ask_maps(obstacle),
                Some(Obstacle::Log) => self.checkpoint_wanted.notify_one(),
                Some(Obstacle::Promises) => {}
                Some(Obstacle::Commit | Obstacle::Banks | Obstacle::Data) => self.commit_wanted.notify_one(),
            }
            progress.await;
        }
    }

    fn log_obstacle(&self, state: &State, own: Demand, others: Demand) -> Option<Obstacle> {
        let (log_blocks, used_blocks) = (state.ring.block_count(), state.ring.used_blocks());
        let pending = body_blocks(state.frames_body_bytes) + state.frames_data_blocks;
        let ask = state.log_blocks_of(own).min(log_blocks / ASK_LOG_PART);
        let promised = state.log_blocks_of(others) + others.transactions;
        let wanted = used_blocks + pending + promised + ask + state.naming_blocks();
        if wanted * 8 <= log_blocks * LOG_EIGHTHS_MAX {
            return None;
        }
        if !state.frames.is_empty() {
            Some(Obstacle::Commit)
        } else if used_blocks * 8 > log_blocks * RELIEVE_AT_EIGHTHS {
            Some(Obstacle::Log)
        } else if others.transactions > 0 {
            Some(Obstacle::Promises)
        } else {
            // Nobody is left to wait for; a commit that finds too little room writes stripes instead.
            None
        }
    }

    pub async fn begin_when_free(&self, cost: Cost) -> Result<Reservation, StoreError> {
        self.check_size(&cost)?;
        let mut patience = Patience::default();
        loop {
            self.state().check_alive()?;
            let progress = self.progress.notified();
            let obstacle = self.obstacle(&cost, false);
            let is_short = matches!(obstacle, Some(Obstacle::Data | Obstacle::Metadata));
            if !is_short {
                patience = Patience::default();
            }
            match obstacle {
                None => return Ok(Reservation::new(&self.state().reserved, cost)),
                Some(obstacle @ (Obstacle::Memory | Obstacle::Merges)) => self.ask_maps(obstacle),
                Some(Obstacle::Commit | Obstacle::Banks) => self.commit_wanted.notify_one(),
                Some(Obstacle::Log) => self.checkpoint_wanted.notify_one(),
                Some(Obstacle::Promises) => {}
                Some(obstacle @ (Obstacle::Data | Obstacle::Metadata)) => {
                    if !self.may_hope(&cost, &mut patience) {
                        return Err(self.no_space(obstacle));
                    }
                }
            }
            progress.await;
        }
    }

    /// Whether waiting can help a transaction that lacks stripes or pages; sees to it that what would help takes place.
    fn may_hope(&self, cost: &Cost, patience: &mut Patience) -> bool {
        let alone = self.obstacle(cost, true);
        if !matches!(alone, Some(Obstacle::Data | Obstacle::Metadata)) {
            // Promises alone are in the way. They are kept or given back soon, unless whoever holds one waits for this transaction.
            let (now, applied) = (self.engine.monotonic(), self.state().last_transaction());
            (patience.last_reclaim, patience.last_fruitless) = (None, None);
            return match patience.crowded_since {
                Some((since, then)) if then == applied => now - since < PROMISES_WAIT,
                _ => {
                    patience.crowded_since = Some((now, applied));
                    true
                }
            };
        }
        let is_data = alone == Some(Obstacle::Data);
        // Cleaning finds which blocks have died, merges find which pages have: twice, since what is under way may have looked too early, and
        // pages of the first come back when the second begins.
        let (done, last) = if is_data {
            (self.pace.fruitless_rounds(), &mut patience.last_fruitless)
        } else {
            (self.reclaims.get(), &mut patience.last_reclaim)
        };
        let under_way = u64::from(!is_data && self.reclaim_from.get().is_some());
        if done >= *last.get_or_insert(done + 2 + under_way) {
            let frees_wait = {
                let state = self.state();
                state.reserved.freeing_count.get() > 0
            };
            if !frees_wait || patience.put_off == HOPEFUL_CHECKPOINTS_MAX {
                return false;
            }
            patience.put_off += 1;
            *last = Some(done + 1);
        }
        if is_data {
            self.pace.ask();
        } else {
            self.ask_for_pages();
        }
        true
    }

    /// Has the maps do what changes wait for.
    fn ask_maps(&self, obstacle: Obstacle) {
        if obstacle == Obstacle::Memory {
            self.ask_for_checkpoint_of_maps();
        } else {
            self.merges_wanted.notify_one();
        }
    }

    /// Refuses what no log of this length could take.
    fn check_size(&self, cost: &Cost) -> Result<(), StoreError> {
        let log_blocks = self.state().ring.block_count();
        let limit_bytes = log_blocks * BLOCK_BYTES as u64 / ASK_LOG_PART;
        let long_bytes = cost.long_entries().saturating_mul(ENTRY_BYTES_TYPICAL);
        let short_bytes = cost.short_entries().saturating_mul(ENTRY_BYTES_SHORT);
        if long_bytes.saturating_add(short_bytes) <= limit_bytes {
            return Ok(());
        }
        let found = format!("{} entries", cost.entries);
        let place = format!("volume {}", self.volume);
        let limit = limit_bytes / ENTRY_BYTES_TYPICAL;
        Err(StoreError::new(ErrorKind::Invalid, "begin a transaction on", place, found)
            .expected(format!("at most {limit} for a log of {log_blocks} blocks"))
            .advice("change less at a time"))
    }

    pub fn no_space(&self, obstacle: Obstacle) -> StoreError {
        let (found, advice) = match obstacle {
            Obstacle::Metadata => ("the metadata region is full", "delete files"),
            _ => ("no segment is free, and none can be made so", "delete files"),
        };
        StoreError::new(ErrorKind::NoSpace, "write to", format!("volume {}", self.volume), found)
            .advice(advice)
    }
}
