//! When a transaction may begin: it waits for commits, checkpoints and promises of others, and is refused only when none of
//! these can make room.

use std::cell::Cell;

use ringfort_engine::buffer::BLOCK_BYTES;

use super::Store;
use crate::error::{ErrorKind, StoreError};
use crate::limits::{
    ASK_LOG_PART, BANKS_WAITING_MAX, ENTRY_BYTES_TYPICAL, LOG_EIGHTHS_MAX, PROMISES_WAIT, RELIEVE_AT_EIGHTHS,
};
use crate::log::ring::body_blocks;
use crate::state::{Reservation, bank_stripes};
use crate::volume::{Cost, VALUE_BYTES_MAX};

/// What keeps a transaction from beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Stripes are short.
    Data,
    /// Pages, or memory for them, are short.
    Metadata,
    /// The log is filling up: a checkpoint must come first.
    Log,
    /// Too much waits for a commit.
    Commit,
    /// Too many banks wait to be written.
    Banks,
    /// Room is promised to transactions that have begun.
    Promises,
}

impl Store {
    /// Why a transaction of this cost must wait, or `None` where it may begin. `alone`: what others have been promised does
    /// not count.
    fn obstacle(&self, cost: &Cost, alone: bool) -> Option<Obstacle> {
        let state = self.core.state();
        let reserved = &state.reserved;
        let promised = |cell: &Cell<u64>| if alone { 0 } else { cell.get() };
        // Room that commits and recovery may waste on padding, and that lets a full volume be emptied.
        let bank_blocks = u64::from(bank_stripes(&state.geometry)) * state.geometry.blocks_per_stripe();
        let margin = if cost.frees_space {
            bank_blocks
        } else {
            2 * bank_blocks + state.geometry.blocks_per_segment()
        };
        if cost.data_blocks > 0
            && state.free_blocks() < promised(&reserved.data_blocks).saturating_add(cost.data_blocks) + margin
        {
            return Some(Obstacle::Data);
        }
        // Stripes get summaries, and blocks get entries in the maps.
        let data_blocks = promised(&reserved.data_blocks) + cost.data_blocks;
        let stripes = state.unnamed_stripes() + data_blocks.div_ceil(state.geometry.blocks_per_stripe());
        let changes = promised(&reserved.entries) + cost.entries + 2 * stripes;
        let pages = state.maps.allocator().free_count();
        let needed = state.maps.checkpoint_page_bound(changes as usize, VALUE_BYTES_MAX);
        let spare = if cost.frees_space { 0 } else { state.maps.allocator().page_count() / 32 };
        let full = state.maps.memory_bytes() as u64 >= self.core.memory_bytes && !cost.frees_space;
        if needed + spare > pages || full {
            return Some(Obstacle::Metadata);
        }
        if state.waiting_banks() >= BANKS_WAITING_MAX {
            return Some(Obstacle::Banks);
        }
        if state.pending_is_large() {
            return Some(Obstacle::Commit);
        }
        let pending = body_blocks(state.frames_body_bytes) + state.frames_data_blocks;
        let others =
            state.log_blocks_of(reserved.entries.get(), reserved.data_blocks.get()) + reserved.count.get();
        let ask =
            state.log_blocks_of(cost.entries, cost.data_blocks).min(state.ring.block_count() / ASK_LOG_PART);
        let (log_blocks, used_blocks) = (state.ring.block_count(), state.ring.used_blocks());
        let wanted = used_blocks + pending + others + ask + state.naming_blocks();
        if wanted * 8 <= log_blocks * LOG_EIGHTHS_MAX {
            return None;
        }
        if !state.frames.is_empty() {
            Some(Obstacle::Commit)
        } else if used_blocks * 8 > log_blocks * RELIEVE_AT_EIGHTHS {
            Some(Obstacle::Log)
        } else if reserved.count.get() > 0 {
            Some(Obstacle::Promises)
        } else {
            // Nobody is left to wait for; a commit that finds too little room writes stripes instead.
            None
        }
    }

    pub(super) async fn begin_when_free(&self, cost: Cost) -> Result<Reservation, StoreError> {
        let core = &self.core;
        self.check_size(&cost)?;
        // The count of checkpoints at which no more space can be hoped for.
        let mut last_checkpoint = None;
        let mut crowded_since = None;
        loop {
            core.state().check_alive()?;
            let progress = core.progress.notified();
            let obstacle = self.obstacle(&cost, false);
            if !matches!(obstacle, Some(Obstacle::Data | Obstacle::Metadata)) {
                (last_checkpoint, crowded_since) = (None, None);
            }
            match obstacle {
                None => {
                    let state = core.state();
                    return Ok(Reservation::new(&state.reserved, cost.data_blocks, cost.entries));
                }
                Some(Obstacle::Commit | Obstacle::Banks) => core.commit_wanted.notify_one(),
                Some(Obstacle::Log) => core.checkpoint_wanted.notify_one(),
                Some(Obstacle::Promises) => {}
                Some(obstacle @ (Obstacle::Data | Obstacle::Metadata)) => {
                    let now = core.engine.monotonic();
                    if matches!(self.obstacle(&cost, true), Some(Obstacle::Data | Obstacle::Metadata)) {
                        // Freed space comes back with a checkpoint: once for what has died, once more for what the first
                        // one emptied. One that is under way may have looked too early.
                        let done = core.state().counters.checkpoints;
                        let under_way = u64::from(core.checkpoint_turn.try_lock().is_none());
                        if done >= *last_checkpoint.get_or_insert(done + 2 + under_way) {
                            return Err(self.no_space(obstacle));
                        }
                        core.maps_wanted.set(true);
                        core.checkpoint_wanted.notify_one();
                    } else if now - *crowded_since.get_or_insert(now) >= PROMISES_WAIT {
                        return Err(self.no_space(obstacle));
                    } else {
                        last_checkpoint = None;
                    }
                }
            }
            progress.await;
        }
    }

    /// Refuses what no log of this length could take.
    fn check_size(&self, cost: &Cost) -> Result<(), StoreError> {
        let log_blocks = self.core.state().ring.block_count();
        let limit = log_blocks * BLOCK_BYTES as u64 / ASK_LOG_PART / ENTRY_BYTES_TYPICAL;
        if cost.entries <= limit {
            return Ok(());
        }
        let found = format!("{} entries", cost.entries);
        let place = format!("volume {}", self.core.volume);
        Err(StoreError::new(ErrorKind::Invalid, "begin a transaction on", place, found)
            .expected(format!("at most {limit} for a log of {log_blocks} blocks"))
            .advice("change less at a time"))
    }

    pub(super) fn no_space(&self, obstacle: Obstacle) -> StoreError {
        let (found, advice) = match obstacle {
            Obstacle::Metadata => ("the metadata region or the memory for maps is full", "delete files"),
            _ => ("no segment is free", "delete files; space returns when whole segments become empty"),
        };
        StoreError::new(ErrorKind::NoSpace, "write to", format!("volume {}", self.core.volume), found)
            .advice(advice)
    }
}
