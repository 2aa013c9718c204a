//! Messages, and the effects that they leave behind.

use std::collections::{BTreeMap, VecDeque};

use crate::address::{BlockChecksum, LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock, SegmentId};
use crate::format::map::RUN_BLOCKS_MAX;
use crate::volume::{Key, TreeId};

/// A blind change: whoever sends it has not looked at what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Sets an entry of a tree that is not one of the maps.
    Put { tree: TreeId, key: Key, value: Vec<u8> },
    /// Removes an entry, if there is one.
    Delete { tree: TreeId, key: Key },
    /// Removes the entries `from <= key < to`.
    DeleteRange { tree: TreeId, from: Key, to: Key },
    /// Adds to a counter: a value that is an `i64`, absent where it is zero.
    Add { tree: TreeId, key: Key, delta: i64 },
    /// Maps blocks of an object. The middle addresses that it displaces die.
    MapRun { object: ObjectId, start: LogicalBlock, len_blocks: u64, middle: MiddleAddress },
    /// Turns blocks of an object into a hole. The middle addresses that it displaces die.
    UnmapRun { object: ObjectId, start: LogicalBlock, len_blocks: u64 },
    /// What is mapped in a range of an object is mapped at `to` from now on, and the rest of the range is a hole. The middle
    /// addresses that it displaces die.
    ShiftRun { object: ObjectId, from: LogicalBlock, to: LogicalBlock, len_blocks: u64 },
    /// Middle addresses get their place, one checksum a block. Where a block has died already, or was born already,
    /// nothing changes.
    Birth { middle: MiddleAddress, physical: PhysicalBlock, checksums: Vec<BlockChecksum> },
    /// Blocks that are still where `from` says are at `to` now.
    Move { middle: MiddleAddress, len_blocks: u64, from: PhysicalBlock, to: PhysicalBlock },
    /// Nothing names these middle addresses any more. Wins over a birth or move that comes later.
    Death { middle: MiddleAddress, len_blocks: u64 },
    /// These middle addresses will never be born: what was remembered of their death can go.
    Forget { middle: MiddleAddress, len_blocks: u64 },
}

/// Effects that wait for their turn. They are not logged: the messages that caused them are, and cause them again.
#[derive(Default)]
pub(super) struct Pending {
    deaths: VecDeque<(MiddleAddress, u64)>,
    death_blocks: u64,
    /// Changes of live block counts, summed up for each segment.
    usage: BTreeMap<SegmentId, i64>,
}

impl Pending {
    pub fn push_death(&mut self, middle: MiddleAddress, len_blocks: u64) {
        self.death_blocks += len_blocks;
        // Overwriting in sequence displaces in sequence.
        if let Some((last, last_len)) = self.deaths.back_mut()
            && last.0 + *last_len == middle.0
            && *last_len + len_blocks <= RUN_BLOCKS_MAX
        {
            *last_len += len_blocks;
            return;
        }
        let mut start = middle.0;
        let end = middle.0.saturating_add(len_blocks);
        while start < end {
            let len = (end - start).min(RUN_BLOCKS_MAX);
            self.deaths.push_back((MiddleAddress(start), len));
            start += len;
        }
    }

    pub fn pop_death(&mut self) -> Option<(MiddleAddress, u64)> {
        let death = self.deaths.pop_front();
        if let Some((_, len_blocks)) = death {
            self.death_blocks -= len_blocks;
        }
        death
    }

    /// Blocks stored in a row became live (positive `sign`) or died.
    pub fn push_usage(&mut self, physical: PhysicalBlock, len_blocks: u64, sign: i64, segment_blocks: u64) {
        let mut start = physical.0;
        let end = physical.0.saturating_add(len_blocks);
        while start < end {
            let segment = start / segment_blocks;
            let until = ((segment + 1).saturating_mul(segment_blocks)).min(end);
            *self.usage.entry(SegmentId(segment as u32)).or_default() += sign * (until - start) as i64;
            start = until;
        }
    }

    pub fn pop_usage(&mut self) -> Option<(SegmentId, i64)> {
        self.usage.pop_first()
    }

    /// What the waiting changes of live block counts add up to.
    pub fn usage_blocks(&self) -> i64 {
        self.usage.values().sum()
    }

    /// Blocks of middle addresses whose death has not merged yet.
    pub fn death_blocks(&self) -> u64 {
        self.death_blocks
    }

    /// Effects in the queue. Each death may leave one more.
    pub fn len(&self) -> usize {
        self.deaths.len() + self.usage.len()
    }
}
