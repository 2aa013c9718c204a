//! Contents on their way into a transaction: what fills stripes is written at once.

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};

use super::Store;
use crate::admit::Obstacle;
use crate::error::StoreError;
use crate::format::segment::StripeSummary;
use crate::segment::table::{Class, SegmentPin, StripeRange};
use crate::state::{Reservation, checksums_of};
use crate::volume::{StagedBlocks, StagedPiece, WrittenRun};

impl Store {
    pub(super) async fn stage_blocks(
        &self,
        reservation: &mut Reservation,
        data: &[Slice],
    ) -> Result<StagedBlocks, StoreError> {
        let blocks: Vec<Slice> = data
            .iter()
            .flat_map(|slice| {
                assert!(slice.is_block_aligned(), "staged data is whole, aligned blocks");
                (0..slice.len()).step_by(BLOCK_BYTES).map(|at| slice.slice(at..at + BLOCK_BYTES))
            })
            .collect();
        let stripe_blocks = self.core.object.geometry().blocks_per_stripe() as usize;
        let in_stripes = blocks.len() / stripe_blocks * stripe_blocks;
        let (large, small) = blocks.split_at(in_stripes);
        let mut pieces = self.stage_stripes(large, reservation).await?;
        if !small.is_empty() {
            pieces.push(StagedPiece::Memory(small.to_vec()));
        }
        Ok(StagedBlocks { pieces })
    }

    /// Writes full stripes from the front of `blocks`, as many as they fill, and says what became of them.
    async fn stage_stripes(
        &self,
        blocks: &[Slice],
        reservation: &mut Reservation,
    ) -> Result<Vec<StagedPiece>, StoreError> {
        let geometry = self.core.object.geometry();
        let stripe_blocks = geometry.blocks_per_stripe() as usize;
        let mut pieces = Vec::new();
        let mut rest = blocks;
        while rest.len() >= stripe_blocks {
            let wanted = (rest.len() / stripe_blocks) as u32;
            let range = self.core.state().segments.allocate(Class::Large, wanted);
            let Some(range) = range else { return Err(self.core.no_space(Obstacle::Data)) };
            self.core.pace.note_free(self.core.state().segments.free_count());
            let (now, later) = rest.split_at(range.count as usize * stripe_blocks);
            reservation.use_blocks(now.len() as u64);
            pieces.push(StagedPiece::Written(self.write_large(range, now).await?));
            rest = later;
        }
        Ok(pieces)
    }

    /// Writes stripes in a task of their own: a caller that goes away in the middle takes neither the pin along, for the segment must
    /// not be reused while writes are on their way to it, nor the attention that a component needs which fails one.
    async fn write_large(&self, range: StripeRange, blocks: &[Slice]) -> Result<WrittenRun, StoreError> {
        let (store, blocks) = (self.clone(), blocks.to_vec());
        let pin = self.core.state().segments.pin(range.segment);
        self.core.complete("write to", async move { store.write_pinned(range, pin, &blocks).await }).await
    }

    async fn write_pinned(
        &self,
        range: StripeRange,
        pin: SegmentPin,
        blocks: &[Slice],
    ) -> Result<WrittenRun, StoreError> {
        let core = &self.core;
        let geometry = core.object.geometry();
        let middle = core.state_mut().take_middles(blocks.len() as u64);
        let writing = core.object.begin_stripes(range.segment, range.first, blocks.to_vec()).await?;
        // What was submitted last is on its way as well when the checksums are computed.
        core.engine.yield_now().await;
        let checksums = checksums_of(blocks);
        let parity = writing.finish().await?;
        let mut state = core.state_mut();
        core.count_stripes(&mut state, u64::from(range.count));
        state.counters.large_stripes += u64::from(range.count);
        let stripe_blocks = geometry.blocks_per_stripe() as usize;
        let parity_blocks = parity.len() / range.count as usize;
        let summaries = (0..range.count as usize)
            .map(|stripe| {
                let first = middle.0 + (stripe * stripe_blocks) as u64;
                let middles =
                    (first..first + stripe_blocks as u64).map(|at| Some(crate::address::MiddleAddress(at)));
                let summary = StripeSummary {
                    middles: middles.collect(),
                    data_checksums: checksums[stripe * stripe_blocks..(stripe + 1) * stripe_blocks].to_vec(),
                    parity_checksums: parity[stripe * parity_blocks..(stripe + 1) * parity_blocks].to_vec(),
                };
                summary.encode()
            })
            .collect();
        let physical = geometry.stripe_start(range.segment, range.first);
        Ok(WrittenRun { middle, physical, checksums, summaries, pin: Box::new(pin) })
    }
}
