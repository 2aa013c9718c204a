//! Moving blocks: gathered, written as full stripes to segments of their own, and named by one transaction of conditional moves.
//!
//! Order: stripes written → moves and summaries applied, together → a commit, whose flush comes first, makes them durable → a checkpoint
//! frees the segment that they left. Until the commit is durable the old places are good, and the victim's pin keeps them.

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};

use crate::address::{BlockChecksum, MiddleAddress, PhysicalBlock};
use crate::core::Core;
use crate::error::{ErrorKind, StoreError};
use crate::format::checksum::block_checksum;
use crate::format::log::{Entry, WRITE_BLOCKS_MAX};
use crate::format::segment::StripeSummary;
use crate::geometry::Geometry;
use crate::segment::heat::Heat;
use crate::segment::table::{Class, SegmentPin, StripeRange};

/// A block on its way.
#[derive(Clone, Debug)]
pub struct Relocation {
    pub middle: MiddleAddress,
    pub from: PhysicalBlock,
    pub checksum: BlockChecksum,
    pub data: Slice,
    pub heat: Heat,
}

/// What one round moves.
#[derive(Default)]
pub struct Batch {
    /// Read, not yet written: less than a step. Cold blocks, and warm ones.
    pub waiting: [Vec<Relocation>; 2],
    /// Victims must not be freed, and so not reused, before their last block has moved.
    pub pins: Vec<SegmentPin>,
}

/// Moves of consecutive blocks as one entry each.
fn move_entries(blocks: &[Relocation], to: PhysicalBlock) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        match entries.last_mut() {
            Some(Entry::Move { middle, len_blocks, from, .. })
                if middle.0 + *len_blocks == block.middle.0
                    && from.0 + *len_blocks == block.from.0
                    && *len_blocks < WRITE_BLOCKS_MAX as u64 =>
            {
                *len_blocks += 1
            }
            _ => entries.push(Entry::Move {
                middle: block.middle,
                len_blocks: 1,
                from: block.from,
                to: PhysicalBlock(to.0 + index as u64),
            }),
        }
    }
    entries
}

/// Names of the stripes that hold `blocks`, the last of which is padded.
fn stripe_entries(
    geometry: &Geometry,
    range: StripeRange,
    blocks: &[Relocation],
    padding: BlockChecksum,
    parity: &[BlockChecksum],
) -> Vec<Entry> {
    let stripe_blocks = geometry.blocks_per_stripe() as usize;
    let parity_blocks = parity.len() / range.count as usize;
    let entry = |(index, blocks): (usize, &[Relocation])| {
        let mut summary = StripeSummary {
            middles: blocks.iter().map(|block| Some(block.middle)).collect(),
            data_checksums: blocks.iter().map(|block| block.checksum).collect(),
            parity_checksums: parity[index * parity_blocks..(index + 1) * parity_blocks].to_vec(),
        };
        summary.middles.resize(stripe_blocks, None);
        summary.data_checksums.resize(stripe_blocks, padding);
        let stripe = range.first.0 + index as u32;
        Entry::Stripe { segment: range.segment, stripe, summary: summary.encode() }
    };
    blocks.chunks(stripe_blocks).enumerate().map(entry).collect()
}

impl Core {
    /// Writes what waits as long as it fills stripes, cold and warm blocks apart.
    pub async fn write_relocations(&self, batch: &mut Batch) -> Result<(), StoreError> {
        let stripe_blocks = self.object.geometry().blocks_per_stripe() as usize;
        for (heat, waiting) in [Heat::Cold, Heat::Warm].into_iter().zip(&mut batch.waiting) {
            let full = waiting.len() / stripe_blocks * stripe_blocks;
            // Neighbours of old stay neighbours: maps keep long runs, and what was written at one time lies together.
            waiting.sort_by_key(|block| block.middle);
            self.write_blocks(heat, waiting.drain(..full).collect()).await?;
        }
        Ok(())
    }

    /// Writes the rest of a batch together, padded.
    pub async fn write_rest(&self, batch: &mut Batch) -> Result<(), StoreError> {
        let [cold, warm] = &mut batch.waiting;
        let heat = if cold.len() > warm.len() { Heat::Cold } else { Heat::Warm };
        let mut rest = std::mem::take(cold);
        rest.append(warm);
        self.write_blocks(heat, rest).await
    }

    async fn write_blocks(&self, heat: Heat, mut blocks: Vec<Relocation>) -> Result<(), StoreError> {
        let stripe_blocks = self.object.geometry().blocks_per_stripe() as usize;
        while !blocks.is_empty() {
            let (range, pin) = self.take_stripes(heat, blocks.len().div_ceil(stripe_blocks) as u32)?;
            let later = blocks.split_off((range.count as usize * stripe_blocks).min(blocks.len()));
            self.write_relocated(range, &blocks).await?;
            drop(pin);
            blocks = later;
        }
        Ok(())
    }

    fn take_stripes(&self, heat: Heat, count: u32) -> Result<(StripeRange, SegmentPin), StoreError> {
        let state = self.state();
        match state.segments.allocate(Class::Relocated(heat), count) {
            Some(range) => Ok((range, state.segments.pin(range.segment))),
            None => {
                let place = format!("volume {}", self.volume);
                Err(StoreError::new(ErrorKind::NoSpace, "clean segments of", place, "no segment is free"))
            }
        }
    }

    /// Writes blocks to stripes that nobody uses, and moves them there. Must not be dropped half way: the caller's pins go with it.
    async fn write_relocated(&self, range: StripeRange, blocks: &[Relocation]) -> Result<(), StoreError> {
        let geometry = *self.object.geometry();
        let stripe_blocks = geometry.blocks_per_stripe() as usize;
        let padding_blocks = range.count as usize * stripe_blocks - blocks.len();
        let zeros = Buffer::zeroed(BLOCK_BYTES).freeze();
        let mut data: Vec<Slice> = blocks.iter().map(|block| block.data.clone()).collect();
        data.resize(range.count as usize * stripe_blocks, zeros.clone());
        let written = self.object.write_stripes(range.segment, range.first, data).await;
        let parity = written.inspect_err(|error| self.fail(error.clone()))?;
        let mut entries = move_entries(blocks, geometry.stripe_start(range.segment, range.first));
        let moves = entries.len() as u64;
        entries.extend(stripe_entries(&geometry, range, blocks, block_checksum(&zeros), &parity));
        self.wait_for_room_to_move(moves, u64::from(range.count)).await?;
        let mut state = self.state_mut();
        state.apply_internal(&entries);
        let before = state.counters.stripe_bytes;
        self.count_stripes(&mut state, u64::from(range.count));
        let written_bytes = state.counters.stripe_bytes - before;
        let counters = &mut state.counters.cleaning;
        counters.relocated_blocks += blocks.len() as u64;
        counters.written_bytes += written_bytes;
        counters.padding_bytes += (padding_blocks * BLOCK_BYTES) as u64;
        let is_large = state.pending_is_large();
        drop(state);
        if is_large {
            self.commit_wanted.notify_one();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(middle: u64, from: u64) -> Relocation {
        let data = Buffer::zeroed(BLOCK_BYTES).freeze();
        Relocation {
            middle: MiddleAddress(middle),
            from: PhysicalBlock(from),
            checksum: BlockChecksum(0),
            data,
            heat: Heat::Cold,
        }
    }

    #[test]
    fn neighbours_move_together_and_go_where_their_index_says() {
        let blocks = [block(5, 50), block(6, 51), block(7, 90), block(9, 91), block(10, 92)];
        let moves: Vec<_> = move_entries(&blocks, PhysicalBlock(200))
            .into_iter()
            .map(|entry| match entry {
                Entry::Move { middle, len_blocks, from, to } => (middle.0, len_blocks, from.0, to.0),
                _ => panic!("{entry:?}"),
            })
            .collect();
        assert_eq!(moves, [(5, 2, 50, 200), (7, 1, 90, 202), (9, 2, 91, 203)]);
    }
}
