//! Banks: stripes in memory that small writes fill block by block.
//!
//! A bank covers a contiguous range of stripes of one segment. A block gets its slot, and with it its physical
//! address, when its transaction is applied; it is served from memory until its stripe has been written in full.
//! A stripe is written once: when all its slots are taken, or padded, when the bank must go early. Nothing is ever appended to a written
//! stripe.

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};

use crate::address::{BlockChecksum, MiddleAddress, PhysicalBlock, StripeIndex};
use crate::format::checksum::block_checksum;
use crate::keep::AreaId;
use crate::segment::table::{SegmentPin, StripeRange};

/// A block in its slot.
#[derive(Clone, Debug)]
pub struct Slot {
    pub data: Slice,
    pub checksum: BlockChecksum,
    pub middle: MiddleAddress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripeState {
    /// In memory.
    Gathering,
    /// Being written.
    Writing,
    /// On the devices in full.
    Written,
}

#[derive(Debug)]
pub struct Bank {
    pub range: StripeRange,
    /// Physical block of the first slot.
    pub start: PhysicalBlock,
    slots: Vec<Option<Slot>>,
    filled: usize,
    stripes: Vec<StripeState>,
    stripe_blocks: usize,
    /// Per stripe: whether some of its blocks are in the log.
    logged: Vec<bool>,
    /// The oldest log position that holds data of this bank.
    pub first_logged_position: Option<u64>,
    /// Takes no more blocks.
    pub sealed: bool,
    /// The transaction that named the last written stripe, once all are written.
    pub written_by: Option<u64>,
    /// Memory that outlives the process, if the bank has some.
    pub area: Option<AreaId>,
    _pin: SegmentPin,
}

/// A stripe ready to be written, in full.
#[derive(Debug)]
pub struct FullStripe {
    pub stripe: StripeIndex,
    pub data: Vec<Slice>,
    pub checksums: Vec<BlockChecksum>,
    pub middles: Vec<Option<MiddleAddress>>,
    /// Blocks that hold nothing.
    pub padding_blocks: usize,
}

impl Bank {
    pub fn new(
        range: StripeRange,
        start: PhysicalBlock,
        stripe_blocks: usize,
        pin: SegmentPin,
        area: Option<AreaId>,
    ) -> Self {
        let stripe_count = range.count as usize;
        Self {
            range,
            start,
            slots: vec![None; stripe_count * stripe_blocks],
            filled: 0,
            stripes: vec![StripeState::Gathering; stripe_count],
            stripe_blocks,
            logged: vec![false; stripe_count],
            first_logged_position: None,
            sealed: false,
            written_by: None,
            area,
            _pin: pin,
        }
    }

    pub fn free_slots(&self) -> usize {
        if self.sealed { 0 } else { self.slots.len() - self.filled }
    }

    /// Physical address of the next free slot.
    pub fn next_physical(&self) -> PhysicalBlock {
        PhysicalBlock(self.start.0 + self.filled as u64)
    }

    /// Index of the next free slot.
    pub fn next_slot(&self) -> usize {
        self.filled
    }

    /// Takes a block into the next slot.
    pub fn push(&mut self, slot: Slot) {
        assert!(!self.sealed && self.filled < self.slots.len(), "bank overfilled");
        self.slots[self.filled] = Some(slot);
        self.filled += 1;
        if self.filled == self.slots.len() {
            self.sealed = true;
        }
    }

    fn slot_index(&self, physical: PhysicalBlock) -> Option<usize> {
        let index = physical.0.checked_sub(self.start.0)?;
        (index < self.slots.len() as u64).then_some(index as usize)
    }

    pub fn contains(&self, physical: PhysicalBlock) -> bool {
        self.slot_index(physical).is_some()
    }

    /// Whether some of these blocks are of this bank.
    pub fn covers_some_of(&self, start: PhysicalBlock, len_blocks: u64) -> bool {
        start.0 < self.start.0 + self.slots.len() as u64 && self.start.0 < start.0 + len_blocks
    }

    /// The block, while it is in memory.
    pub fn resident(&self, physical: PhysicalBlock) -> Option<&Slot> {
        self.slots.get(self.slot_index(physical)?)?.as_ref()
    }

    pub fn stripe_state(&self, physical: PhysicalBlock) -> Option<StripeState> {
        Some(self.stripes[self.slot_index(physical)? / self.stripe_blocks])
    }

    /// Notes that a block's data went to the log at `position`.
    pub fn note_logged(&mut self, physical: PhysicalBlock, position: u64) {
        if let Some(index) = self.slot_index(physical) {
            self.logged[index / self.stripe_blocks] = true;
            self.first_logged_position.get_or_insert(position);
        }
    }

    /// Whether `stripe` is full, in memory, and none of its blocks is in the log yet: it is cheaper to write it than
    /// to log it.
    fn is_unlogged_full(&self, stripe: usize) -> bool {
        self.stripes[stripe] == StripeState::Gathering
            && !self.logged[stripe]
            && self.filled >= (stripe + 1) * self.stripe_blocks
    }

    /// Takes the full stripes of which nothing is logged, for writing.
    pub fn take_unlogged_full(&mut self) -> Vec<FullStripe> {
        let stripes: Vec<usize> =
            (0..self.stripes.len()).filter(|&stripe| self.is_unlogged_full(stripe)).collect();
        stripes.into_iter().map(|stripe| self.take_stripe(stripe)).collect()
    }

    /// Seals the bank and takes every stripe that holds something and is not written, padded with zeros, for writing.
    pub fn take_rest(&mut self) -> Vec<FullStripe> {
        self.sealed = true;
        let stripes: Vec<usize> = (0..self.stripes.len())
            .filter(|&stripe| {
                self.stripes[stripe] == StripeState::Gathering && self.filled > stripe * self.stripe_blocks
            })
            .collect();
        stripes.into_iter().map(|stripe| self.take_stripe(stripe)).collect()
    }

    fn take_stripe(&mut self, stripe: usize) -> FullStripe {
        self.stripes[stripe] = StripeState::Writing;
        let zeros = Buffer::zeroed(BLOCK_BYTES).freeze();
        let zeros_checksum = block_checksum(&zeros);
        let mut full = FullStripe {
            stripe: StripeIndex(self.range.first.0 + stripe as u32),
            data: Vec::with_capacity(self.stripe_blocks),
            checksums: Vec::with_capacity(self.stripe_blocks),
            middles: Vec::with_capacity(self.stripe_blocks),
            padding_blocks: 0,
        };
        for slot in &self.slots[stripe * self.stripe_blocks..(stripe + 1) * self.stripe_blocks] {
            match slot {
                Some(slot) => {
                    full.data.push(slot.data.clone());
                    full.checksums.push(slot.checksum);
                    full.middles.push(Some(slot.middle));
                }
                None => {
                    full.data.push(zeros.clone());
                    full.checksums.push(zeros_checksum);
                    full.middles.push(None);
                    full.padding_blocks += 1;
                }
            }
        }
        full
    }

    /// The stripe is on the devices and named by a transaction: its memory is given back.
    pub fn note_written(&mut self, stripe: StripeIndex) {
        let index = (stripe.0 - self.range.first.0) as usize;
        assert_eq!(self.stripes[index], StripeState::Writing);
        self.stripes[index] = StripeState::Written;
        self.slots[index * self.stripe_blocks..(index + 1) * self.stripe_blocks].fill(None);
    }

    /// Whether nothing is left to write: sealed, and every stripe that holds something is written.
    pub fn is_done(&self) -> bool {
        self.sealed
            && self.stripes.iter().enumerate().all(|(stripe, state)| {
                *state == StripeState::Written
                    || (*state == StripeState::Gathering && self.filled <= stripe * self.stripe_blocks)
            })
    }

    /// Stripes that are not written, those that hold nothing yet included unless they never will.
    pub fn unwritten_stripes(&self) -> usize {
        let waits = |(stripe, state): &(usize, &StripeState)| {
            **state != StripeState::Written && !(self.sealed && self.filled <= stripe * self.stripe_blocks)
        };
        self.stripes.iter().enumerate().filter(waits).count()
    }

    /// Whether some stripe holds blocks and nobody writes it yet.
    pub fn is_gathering(&self) -> bool {
        self.stripes.iter().enumerate().any(|(stripe, state)| {
            *state == StripeState::Gathering && self.filled > stripe * self.stripe_blocks
        })
    }

    /// Blocks that wait in memory.
    pub fn resident_blocks(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_some()).count()
    }
}
