//! Cleaning: what lives in sparse segments moves together, so that whole segments become free.
//!
//! * Only the middle map changes, by moves that hold only where a block still lies where it was read. Death wins.
//! * A cleaned segment is freed like any other: by a checkpoint that finds nothing live in its summaries, when its root is durable and
//!   nobody reads it.
//! * One segment is kept free for cleaning, which is enough to go on for ever: whatever lives in a victim fits.
//! * A victim whose blocks cannot all be read stays, and is reported. The rest of the volume goes on.
//!
//! Modules, lowest first: `victims` · `survey` · `relocate`

mod relocate;
#[cfg(test)]
mod simulation;
mod survey;
mod victims;

use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::buffer::BLOCK_BYTES;
use ringfort_engine::sync::join_all;

use crate::address::{MiddleAddress, PhysicalBlock, SegmentId, StripeIndex};
use crate::core::Core;
use crate::error::{ErrorKind, StoreError};
use crate::limits::{BUSY_SEGMENTS_REST, CLEANING_GAP_BLOCKS, CLEANING_READ_BLOCKS, CLEANING_STEP_BLOCKS};
use crate::map::Reclaim;
use crate::pace::{Activity, Levels};
use crate::segment::heat::Heat;
use crate::segment::table::SegmentState;
use relocate::{Batch, Relocation};
use survey::{ReadRun, Surveyed, read_runs};
use victims::{Candidate, Look, dead_blocks_min};

impl Core {
    /// The task that cleans when space is short, or when nobody writes.
    pub async fn run_cleaning(self: Rc<Self>) {
        self.reconsider_levels();
        loop {
            self.pace.wanted.notified().await;
            loop {
                let _turn = self.clean_turn.lock().await;
                if self.pace.is_stopped() || self.state().failed.is_some() {
                    return;
                }
                let was_asked = self.pace.is_asked();
                let activity = self.pace.choose(self.state().segments.free_count());
                if matches!(activity, Activity::Resting | Activity::Exhausted) {
                    break;
                }
                let gave_something = match self.clean_round(activity, was_asked).await {
                    Ok(gave_something) => gave_something,
                    // Pages are short: deletes come first.
                    Err(error) if error.kind == ErrorKind::NoSpace => false,
                    Err(_) => return,
                };
                self.reconsider_levels();
                self.pace.note_round(was_asked, gave_something);
                self.progress.notify_all();
                if !gave_something && !self.pace.is_asked() {
                    break;
                }
            }
        }
    }

    /// Cleans nothing any more, when what is under way is done.
    pub async fn stop_cleaning(&self) {
        self.pace.stop();
        drop(self.clean_turn.lock().await);
    }

    /// What is spare, and with it when to begin, changes slowly.
    fn reconsider_levels(&self) {
        let mut state = self.state_mut();
        let segment_blocks = state.geometry.blocks_per_segment();
        let live_blocks = state.maps.live_blocks_in_all();
        state.recent.set_live_blocks(live_blocks);
        let live_segments = live_blocks.div_ceil(segment_blocks);
        let spare = u64::from(state.geometry.segment_count).saturating_sub(live_segments);
        let kept_blocks = state.data_margin_blocks(false);
        let kept = u64::from(state.segments.reserve()) + kept_blocks.div_ceil(segment_blocks);
        self.pace.set_levels(Levels::of(spare as u32, kept as u32));
    }

    /// Cleans some segments and has a checkpoint free them. Whether that gave any space, or a later round soon may.
    async fn clean_round(&self, activity: Activity, was_asked: bool) -> Result<bool, StoreError> {
        let freed_before = self.state().counters.freed_segments;
        // What has died is not moved, and what has moved is not counted where it was.
        self.reclaim(Reclaim::Blocks).await?;
        let geometry = *self.object.geometry();
        let least =
            dead_blocks_min(activity, was_asked, geometry.blocks_per_segment(), geometry.blocks_per_stripe());
        let look = self.look_for_victims(least).await;
        let (emptied, busy) = (look.emptied, look.busy);
        if activity == Activity::Tidying && look.candidates.is_empty() {
            return Ok(false);
        }
        let cleaned = self.clean_victims(activity, look).await?;
        if emptied + cleaned > 0 || was_asked {
            self.reclaim(Reclaim::Blocks).await?;
            self.checkpoint(false).await?;
        }
        let gave_something = emptied + cleaned > 0 || self.state().counters.freed_segments > freed_before;
        if !was_asked || gave_something {
            self.pace.end_wait_for_busy();
        } else if busy > 0 && self.pace.may_wait_for_busy(self.engine.monotonic()) {
            // Reads end soon, and are no reason to refuse a write.
            self.engine.sleep(BUSY_SEGMENTS_REST).await;
            return Ok(true);
        }
        Ok(gave_something)
    }

    /// Cleans the best victims, as many as one checkpoint is worth together with those that are empty already.
    async fn clean_victims(&self, activity: Activity, look: Look) -> Result<u32, StoreError> {
        let wanted = self.pace.levels().batch.saturating_sub(look.emptied);
        let mut batch = Batch::default();
        let mut cleaned = 0;
        for victim in look.candidates {
            if cleaned == wanted || self.pace.is_stopped() || !self.has_room_for(&batch, &victim) {
                break;
            }
            cleaned += u32::from(self.clean_segment(&mut batch, &victim, activity).await?);
        }
        self.write_rest(&mut batch).await?;
        Ok(cleaned)
    }

    fn has_room_for(&self, batch: &Batch, victim: &Candidate) -> bool {
        let state = self.state();
        let room_blocks = state.segments.relocation_stripes() * state.geometry.blocks_per_stripe();
        batch.waiting.iter().map(|waiting| waiting.len() as u64).sum::<u64>() + victim.live_blocks
            <= room_blocks
    }

    /// Moves everything that lives in a segment, or leaves it where something cannot be read. Whether it is empty now, but for what
    /// waits in the batch.
    async fn clean_segment(
        &self,
        batch: &mut Batch,
        victim: &Candidate,
        activity: Activity,
    ) -> Result<bool, StoreError> {
        let segment = victim.segment;
        {
            let state = self.state();
            if state.segments.get(segment).state != SegmentState::Closed {
                return Ok(false);
            }
            batch.pins.push(state.segments.pin(segment));
        }
        let mut surveyed = Vec::new();
        for stripe in (0..self.object.geometry().stripes_per_segment).map(StripeIndex) {
            match self.survey_stripe(segment, stripe).await {
                Ok(blocks) => surveyed.extend(blocks),
                Err(error) => {
                    self.leave_unreadable(segment, victim.live_blocks, &error);
                    return Ok(false);
                }
            }
            self.engine.yield_now().await;
            let live = surveyed.iter().filter(|block| block.live.is_some()).count();
            let is_last = stripe.0 + 1 == self.object.geometry().stripes_per_segment;
            if live < CLEANING_STEP_BLOCKS && !is_last {
                continue;
            }
            let began = self.engine.monotonic();
            if let Err(error) = self.read_live(batch, std::mem::take(&mut surveyed)).await {
                self.leave_unreadable(segment, victim.live_blocks, &error);
                return Ok(false);
            }
            self.write_relocations(batch).await?;
            self.rest(activity, self.engine.monotonic() - began).await;
        }
        self.state_mut().counters.cleaning.cleaned_segments += 1;
        Ok(true)
    }

    /// Lets others have the devices for a while.
    async fn rest(&self, activity: Activity, took: Duration) {
        let free = self.state().segments.free_count();
        if activity != Activity::Urgent && !self.pace.is_asked() && !self.pace.is_stopped() {
            self.engine.sleep(self.pace.levels().rest(free, took)).await;
        }
    }

    /// Reads what lives among these blocks of one segment, verified, and adds it to the batch.
    async fn read_live(&self, batch: &mut Batch, surveyed: Vec<Surveyed>) -> Result<(), StoreError> {
        let runs = read_runs(&surveyed, CLEANING_GAP_BLOCKS, CLEANING_READ_BLOCKS);
        let mut found = self.read_all(&runs).await;
        if found.is_err() {
            // Dead blocks are nobody's loss: without them it may do.
            found = self.read_all(&read_runs(&surveyed, 0, CLEANING_READ_BLOCKS)).await;
        }
        for block in found? {
            batch.waiting[block.heat as usize].push(block);
        }
        Ok(())
    }

    async fn read_all(&self, runs: &[ReadRun]) -> Result<Vec<Relocation>, StoreError> {
        let mut found = Vec::new();
        for (run, read) in runs.iter().zip(join_all(runs.iter().map(|run| self.read_run(run))).await) {
            self.state_mut().counters.cleaning.read_bytes += (run.checksums.len() * BLOCK_BYTES) as u64;
            found.extend(read?);
        }
        Ok(found)
    }

    async fn read_run(&self, run: &ReadRun) -> Result<Vec<Relocation>, StoreError> {
        let slices = self.fetch_stored(run.first, &run.checksums).await?;
        let blocks: Vec<_> = slices
            .iter()
            .flat_map(|slice| {
                (0..slice.len()).step_by(BLOCK_BYTES).map(|at| slice.slice(at..at + BLOCK_BYTES))
            })
            .collect();
        let (next, old) = {
            let state = self.state();
            (state.next_middle, state.recent.live_blocks())
        };
        let heat = |middle: MiddleAddress| match next.saturating_sub(middle.0) < old {
            true => Heat::Warm,
            false => Heat::Cold,
        };
        let relocation = |(index, middle): &(usize, MiddleAddress)| Relocation {
            heat: heat(*middle),
            middle: *middle,
            from: PhysicalBlock(run.first.0 + *index as u64),
            checksum: run.checksums[*index],
            data: blocks[*index].clone(),
        };
        Ok(run.live.iter().map(relocation).collect())
    }

    fn leave_unreadable(&self, segment: SegmentId, live_blocks: u64, error: &StoreError) {
        tracing::error!(
            volume = %self.volume,
            %segment,
            %error,
            "this segment cannot be cleaned: its space does not return while a block in it that cannot be read is in use. Bring back \
             missing components, or delete the files that `ringfort volume check` names"
        );
        self.pace.note_unreadable(segment, live_blocks);
        self.state_mut().counters.cleaning.unreadable_segments += 1;
    }
}
