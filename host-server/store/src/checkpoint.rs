//! Checkpoints, in two stages.
//!
//! The first ([`Core::relieve_log`]) needs no page: once their blocks are in stripes, commits are copied without their
//! data to the metadata log, a root says so, and the log is given back. It costs a few per cent of what it frees, so
//! that pages, which random writes touch by the thousand, are written rarely.
//!
//! The second, of the maps:
//!
//! 1. Banks that hold the log's tail back are written, padded where they are short.
//! 2. Segments that have become empty are marked, and lose their summaries. Then, in one step, what was applied so far, up to transaction S, is
//!    frozen. It becomes tables, whose names go to the catalogue together with what merges did meanwhile.
//! 3. Everything up to S is committed: no root names what its log may lack.
//! 4. Pages of the catalogue, flush, root, flush. A crash before the root is durable leaves the old root and all that it names.
//! 5. Pages, log and segments that only the old root named are given back.

use std::rc::Rc;

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};
use zerocopy::FromBytes;
use zerocopy::byteorder::little_endian::U32;

use crate::address::{PhysicalBlock, SegmentId, StripeIndex};
use crate::core::Core;
use crate::error::StoreError;
use crate::format::log::KIND_MOVED;
use crate::format::map::encode_counter;
use crate::format::page::{PAGE_BYTES, Roots};
use crate::format::root::{ROOT_SLOT_BYTES, Root};
use crate::format::segment::{SegmentEntry, StripeSummary};
use crate::limits::MIDDLE_RESERVE;
use crate::log::ring::{RecordContent, ReplayPoint, body_blocks};
use crate::map::{Message, tree};
use crate::pages::Pages;
use crate::segment::heat::Heat;
use crate::segment::table::{Class, Segment, SegmentState};
use crate::state::{BankId, RetainedBody, State, begun_key, segment_key};

/// What a checkpoint has taken hold of.
struct Seal {
    /// S: the root will hold transactions up to this one.
    transaction: u64,
    freeing: Vec<SegmentId>,
    middle_limit: u64,
}

/// A segment's state as its entry in the segment tree.
fn encode_segment(segment: &Segment) -> [u8; size_of::<SegmentEntry>()] {
    let state = match segment.state {
        SegmentState::Free | SegmentState::Freeing => 0,
        SegmentState::Open(Class::Bank(_)) => 1,
        // Told apart by recovery, as well as matters.
        SegmentState::Open(Class::Large | Class::Relocated(_)) => 2,
        SegmentState::Closed => 3,
    };
    let next_stripe = if state == 0 { 0 } else { segment.next_stripe };
    let entry = SegmentEntry { version: 1, state, reserved: [0; 2], next_stripe: U32::new(next_stripe) };
    zerocopy::transmute!(entry)
}

/// Reads what [`encode_segment`] wrote; `None` where it is no such thing.
pub(crate) fn decode_segment(bytes: &[u8]) -> Option<(SegmentState, u32)> {
    let entry = SegmentEntry::ref_from_bytes(bytes).ok()?;
    if entry.version != 1 || entry.reserved != [0; 2] {
        return None;
    }
    let state = match entry.state {
        0 => SegmentState::Free,
        1 => SegmentState::Open(Class::Bank(Heat::default())),
        2 => SegmentState::Open(Class::Large),
        3 => SegmentState::Closed,
        _ => return None,
    };
    Some((state, entry.next_stripe.get()))
}

impl State {
    /// The bodies of the commits before `position`, as one record of the metadata log. `None` where there is none.
    fn movable(&self, position: u64) -> Option<RecordContent> {
        let bodies = || self.retained.iter().take_while(|body| body.position < position);
        let first = bodies().next()?;
        Some(RecordContent {
            kind: KIND_MOVED,
            body: bodies().flat_map(|body| body.body.iter().copied()).collect(),
            data: Vec::new(),
            first_transaction: first.first_transaction,
            transaction_count: bodies().map(|body| body.transaction_count).sum(),
            root_sequence: self.root.sequence,
        })
    }

    /// Lets go of bodies from the oldest on.
    fn forget_bodies(&mut self, done: impl Fn(&RetainedBody) -> bool) {
        while self.retained.front().is_some_and(&done) {
            let body = self.retained.pop_front();
            self.retained_bytes -= body.map_or(0, |body| body.body.len() as u64);
        }
    }

    /// Takes hold of what was applied so far.
    fn seal(&mut self, freeing: Vec<SegmentId>) -> Seal {
        for (segment, entry) in self.segments.take_dirty() {
            self.maps.set_property(segment_key(segment), &encode_segment(&entry));
            self.maps.set_property(begun_key(segment), &encode_counter(entry.begun_at as i64));
        }
        self.maps.freeze();
        Seal {
            transaction: self.last_transaction(),
            freeing,
            middle_limit: self.next_middle + MIDDLE_RESERVE,
        }
    }

    /// Where replay must begin for a root that holds transactions up to `transaction`: banks still need
    /// the records that hold their blocks.
    fn replay_point(&self, transaction: u64) -> ReplayPoint {
        let pinned = self.banks.values().filter_map(|bank| bank.first_logged_position).min();
        self.ring.replay_point(transaction, pinned)
    }
}

impl Core {
    /// Writes a root and makes it durable.
    pub async fn write_root(&self, root: &Root) -> Result<(), StoreError> {
        let bytes = root.encode(self.volume);
        debug_assert!(bytes.len() <= ROOT_SLOT_BYTES);
        let slot = Slice::copy_of(&bytes);
        let slot_bytes = slot.len() as u64;
        self.object.write_metadata(Root::slot(root.sequence), vec![slot]).await?;
        self.object.flush_metadata().await?;
        let mirrors = self.object.live_mirrors().len() as u64;
        self.state_mut().counters.root_bytes += slot_bytes * mirrors;
        Ok(())
    }

    /// Offers a larger size from the next root on; the labels tell of it already.
    pub async fn offer(&self, total_blocks: u64, page_area_bytes: u64) -> Result<(), StoreError> {
        {
            let mut state = self.state_mut();
            state.root.total_blocks = total_blocks;
            state.root.page_area_bytes = page_area_bytes;
        }
        self.checkpoint(true).await
    }

    /// Runs one checkpoint. With `everything`, all banks are written first, so that the log ends up empty.
    pub async fn checkpoint(&self, everything: bool) -> Result<(), StoreError> {
        let _turn = self.checkpoint_turn.lock().await;
        self.state().check_alive()?;
        let result = self.checkpoint_in_turn(everything).await;
        if let Err(error) = &result {
            self.fail(error.clone());
        }
        self.progress.notify_all();
        self.merges_wanted.notify_one();
        result
    }

    async fn checkpoint_in_turn(&self, everything: bool) -> Result<(), StoreError> {
        self.flush_pinning_banks(everything).await?;
        let pages = Pages::new(&self.object);
        let freeing = self.free_empty_segments(&pages).await?;
        let seal = self.state_mut().seal(freeing);
        let snapshot = {
            let _edit = self.edit_turn.lock().await;
            let maps = self.maps();
            maps.flush(&pages).await?;
            maps.snapshot()
        };
        self.make_durable(seal.transaction).await?;
        let roots = snapshot.write(&pages).await?;
        self.state_mut().counters.page_bytes += pages.take_written_bytes();
        self.object.flush_metadata().await?;
        let generation = snapshot.generation();
        drop(snapshot);
        self.finish_checkpoint(seal, roots, generation).await
    }

    /// Marks the segments that have become empty and takes their summaries out.
    async fn free_empty_segments(&self, pages: &Pages<'_>) -> Result<Vec<SegmentId>, StoreError> {
        let mut freeing = Vec::new();
        let closed = self.state().segments.closed();
        let maps = self.maps();
        let is_empty = |segment| maps.live_blocks(segment) == 0 && !self.state().segments.is_pinned(segment);
        for segment in closed.into_iter().filter(|segment| is_empty(*segment)).collect::<Vec<_>>() {
            if !self.holds_nothing_live(pages, segment).await? {
                tracing::warn!(
                    %segment,
                    "this segment counts as empty and its summary names live blocks: it is kept. Run `ringfort volume check` \
                     when the volume is not being served, and report what it finds"
                );
                continue;
            }
            if !is_empty(segment) {
                continue;
            }
            self.state().segments.begin_freeing(segment);
            maps.apply(Message::DeleteAll { tree: tree::SUMMARY, hi: u64::from(segment.0) });
            freeing.push(segment);
        }
        Ok(freeing)
    }

    /// Whether no address that the segment's summaries name still lives there. Usage counts are hints only.
    async fn holds_nothing_live(&self, pages: &Pages<'_>, segment: SegmentId) -> Result<bool, StoreError> {
        let maps = self.maps();
        let geometry = *self.object.geometry();
        for stripe in (0..geometry.stripes_per_segment).map(StripeIndex) {
            let key = tree::summary_key(segment, stripe);
            let Some(value) = maps.get(pages, tree::SUMMARY, key).await? else { continue };
            let Some(summary) = StripeSummary::decode(&value) else { return Ok(false) };
            let start = geometry.stripe_start(segment, stripe);
            for (index, middle) in summary.middles.iter().enumerate() {
                let Some(middle) = middle else { continue };
                let place = maps.place_of(pages, *middle).await?;
                if place == Some(PhysicalBlock(start.0 + index as u64)) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    async fn finish_checkpoint(&self, seal: Seal, roots: Roots, generation: u64) -> Result<(), StoreError> {
        let (root, replay, moved) = {
            let state = self.state();
            let replay = state.replay_point(seal.transaction);
            let moved = state.moved_ring.replay_point(seal.transaction, None);
            let root = Root {
                sequence: state.root.sequence + 1,
                epoch: state.ring.epoch(),
                epoch_first_record: state.ring.epoch_first_record(),
                applied_transaction: seal.transaction,
                replay_position: replay.position,
                replay_sequence: replay.sequence,
                replay_previous_checksum: replay.previous_checksum,
                moved_position: moved.position,
                moved_sequence: moved.sequence,
                moved_previous_checksum: moved.previous_checksum,
                moved_records: state.moved_ring.records_from(moved.position),
                middle_limit: seal.middle_limit,
                kept_epoch: state.ring.epoch(),
                trees: roots,
                ..state.root
            };
            (root, replay, moved)
        };
        self.write_root(&root).await?;
        let mut state = self.state_mut();
        state.root = root;
        state.maps.settle(generation);
        state.ring.truncate(replay.position);
        state.moved_ring.truncate(moved.position);
        state.forget_bodies(|body| body.last_transaction() <= seal.transaction);
        for segment in seal.freeing {
            state.segments.finish_freeing(segment);
            state.counters.freed_segments += 1;
        }
        state.counters.checkpoints += 1;
        Ok(())
    }

    /// The first stage: commits whose blocks are all in stripes go, without their data, to the metadata log, and the log
    /// before the rest is given back. Returns false where that would gain nothing: the maps must be checkpointed.
    async fn move_commits(&self) -> Result<bool, StoreError> {
        self.flush_pinning_banks(false).await?;
        let (record, replay) = {
            let mut state = self.state_mut();
            let durable = state.durable_transaction;
            let replay = state.replay_point(durable);
            let Some(content) = state.movable(replay.position) else { return Ok(false) };
            let blocks = body_blocks(content.body.len());
            let gained = replay.position - state.ring.tail();
            if blocks > state.moved_ring.free_blocks() || blocks * 4 > gained {
                return Ok(false);
            }
            let Some(record) = state.moved_ring.append(self.volume, content) else { return Ok(false) };
            let mirrors = self.object.live_mirrors().len() as u64;
            state.counters.metadata_log_bytes += record.block_count * BLOCK_BYTES as u64 * mirrors;
            (record, replay)
        };
        for (address, data) in record.writes {
            self.object.write_metadata(address, data).await?;
        }
        self.object.flush_metadata().await?;
        let root = {
            let state = self.state();
            Root {
                sequence: state.root.sequence + 1,
                replay_position: replay.position,
                replay_sequence: replay.sequence,
                replay_previous_checksum: replay.previous_checksum,
                moved_records: state.root.moved_records + 1,
                middle_limit: state.next_middle + MIDDLE_RESERVE,
                ..state.root.clone()
            }
        };
        self.write_root(&root).await?;
        let mut state = self.state_mut();
        state.root = root;
        state.ring.truncate(replay.position);
        state.forget_bodies(|body| body.position < replay.position);
        state.counters.moves += 1;
        Ok(true)
    }

    /// Writes the banks whose logged blocks lie in the older part of the log: they would pin its tail.
    async fn flush_pinning_banks(&self, everything: bool) -> Result<(), StoreError> {
        let pinning: Vec<BankId> = {
            let state = self.state();
            let recent = state.ring.head().position.saturating_sub(state.ring.block_count() / 4);
            let pins = |logged: Option<u64>| everything || logged.is_some_and(|position| position < recent);
            let banks = state.banks.iter().filter(|(_, bank)| pins(bank.first_logged_position));
            banks.map(|(bank_id, _)| *bank_id).collect()
        };
        self.write_banks(&pinning).await?;
        let last = self.state().last_transaction();
        self.make_durable(last).await
    }

    /// Gives log back: by the first stage as long as that helps, else by a checkpoint of the maps.
    pub async fn relieve_log(&self) -> Result<(), StoreError> {
        let moved = {
            let _turn = self.checkpoint_turn.lock().await;
            self.state().check_alive()?;
            self.move_commits().await
        };
        match moved {
            Ok(true) => {
                self.progress.notify_all();
                Ok(())
            }
            Ok(false) => self.checkpoint(false).await,
            Err(error) => {
                self.fail(error.clone());
                Err(error)
            }
        }
    }

    /// The task that runs checkpoints when asked.
    pub async fn run_checkpoints(self: Rc<Self>) {
        while !self.closing.is_set() {
            self.checkpoint_wanted.notified().await;
            if self.closing.is_set() {
                break;
            }
            let result = match self.maps_wanted.take() {
                true => self.checkpoint(false).await,
                false => self.relieve_log().await,
            };
            if result.is_err() {
                break;
            }
        }
    }
}

const _: () = assert!(PAGE_BYTES.is_multiple_of(BLOCK_BYTES));
