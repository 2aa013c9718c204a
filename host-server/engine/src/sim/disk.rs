//! The bytes of one simulated device: what is on stable media, and what the device only remembers.

use std::collections::BTreeMap;

use super::fault::Faults;
use super::random::Random;
use crate::buffer::BLOCK_BYTES;

/// The unit that a power loss never splits.
pub(super) const SECTOR_BYTES: usize = 512;

type Blocks = BTreeMap<u64, Box<[u8; BLOCK_BYTES]>>;

/// A completed write that no flush has covered.
struct CachedWrite {
    sequence: u64,
    offset_bytes: u64,
    bytes: Vec<u8>,
    /// Dropped by a failed flush, which no later flush makes good.
    doomed: bool,
}

/// What becomes of a write that a power loss meets.
enum Fate {
    Whole,
    Lost,
    /// A prefix of its sectors.
    Cut,
    /// Any of its sectors.
    Scattered,
}

/// How a device as a whole takes a power loss.
#[derive(Clone, Copy)]
enum Temper {
    LosesAll,
    KeepsAll,
    Mixed,
}

pub(super) struct Disk {
    pub(super) len_bytes: u64,
    /// Taken over by `create`, where a file would be in the way.
    pub(super) is_block_device: bool,
    pub(super) faults: Faults,
    /// Absent blocks are zero.
    durable: Blocks,
    /// What reads see where it differs from `durable`.
    cached: Blocks,
    /// In order of completion.
    unflushed: Vec<CachedWrite>,
    next_sequence: u64,
}

fn overlay(blocks: &mut Blocks, below: Option<&Blocks>, mut offset_bytes: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let index = offset_bytes / BLOCK_BYTES as u64;
        let start = (offset_bytes % BLOCK_BYTES as u64) as usize;
        let len = bytes.len().min(BLOCK_BYTES - start);
        let (part, rest) = bytes.split_at(len);
        let block = blocks.entry(index).or_insert_with(|| match below.and_then(|below| below.get(&index)) {
            Some(block) => block.clone(),
            None => Box::new([0; BLOCK_BYTES]),
        });
        block[start..start + len].copy_from_slice(part);
        offset_bytes += len as u64;
        bytes = rest;
    }
}

impl Disk {
    pub(super) fn new(len_bytes: u64, is_block_device: bool) -> Self {
        Self {
            len_bytes,
            is_block_device,
            faults: Faults::default(),
            durable: Blocks::new(),
            cached: Blocks::new(),
            unflushed: Vec::new(),
            next_sequence: 0,
        }
    }

    /// The same bytes, both kinds, as a healthy device.
    pub(super) fn copy(&self) -> Self {
        let mut copy = Self::new(self.len_bytes, self.is_block_device);
        copy.durable = self.durable.clone();
        copy.cached = self.cached.clone();
        copy.unflushed =
            self.unflushed.iter().map(|write| CachedWrite { bytes: write.bytes.clone(), ..*write }).collect();
        copy.next_sequence = self.next_sequence;
        copy
    }

    /// What a read finds now.
    pub(super) fn read(&self, mut offset_bytes: u64, mut target: &mut [u8]) {
        while !target.is_empty() {
            let index = offset_bytes / BLOCK_BYTES as u64;
            let start = (offset_bytes % BLOCK_BYTES as u64) as usize;
            let len = target.len().min(BLOCK_BYTES - start);
            let (part, rest) = target.split_at_mut(len);
            match self.cached.get(&index).or_else(|| self.durable.get(&index)) {
                Some(block) => part.copy_from_slice(&block[start..start + len]),
                None => part.fill(0),
            }
            offset_bytes += len as u64;
            target = rest;
        }
    }

    /// Makes a write visible, and one more that the next flush has to cover.
    pub(super) fn remember(&mut self, offset_bytes: u64, bytes: Vec<u8>) {
        overlay(&mut self.cached, Some(&self.durable), offset_bytes, &bytes);
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.unflushed.push(CachedWrite { sequence, offset_bytes, bytes, doomed: false });
    }

    /// As [`remember`](Self::remember), for some of the sectors: what a failed or interrupted write leaves.
    pub(super) fn remember_torn(&mut self, random: &mut Random, offset_bytes: u64, bytes: &[u8]) {
        for (offset_bytes, part) in surviving(random, Temper::Mixed, offset_bytes, bytes) {
            self.remember(offset_bytes, part.to_vec());
        }
    }

    /// Names the writes that a flush submitted now covers: those completed so far.
    pub(super) fn flush_mark(&self) -> u64 {
        self.next_sequence
    }

    /// Moves what `mark` covers to stable media.
    pub(super) fn flush(&mut self, mark: u64) {
        let covered = self.unflushed.partition_point(|write| write.sequence < mark);
        let rest = self.unflushed.split_off(covered);
        let mut doomed = Vec::new();
        for write in std::mem::replace(&mut self.unflushed, rest) {
            if write.doomed {
                doomed.push(write);
            } else {
                overlay(&mut self.durable, None, write.offset_bytes, &write.bytes);
            }
        }
        self.unflushed.splice(0..0, doomed);
        if self.unflushed.is_empty() {
            self.cached.clear();
        }
    }

    /// Moves the newest write to stable media, alone. What was written there before is never seen again.
    pub(super) fn flush_newest(&mut self) {
        let Some(newest) = self.unflushed.pop() else { return };
        let (start, end) = (newest.offset_bytes, newest.offset_bytes + newest.bytes.len() as u64);
        let (beneath, rest) =
            std::mem::take(&mut self.unflushed).into_iter().partition(|write: &CachedWrite| {
                let reaches_in =
                    write.offset_bytes < end && start < write.offset_bytes + write.bytes.len() as u64;
                reaches_in && !write.doomed
            });
        self.unflushed = rest;
        let beneath: Vec<CachedWrite> = beneath;
        for write in beneath.iter().chain([&newest]) {
            overlay(&mut self.durable, None, write.offset_bytes, &write.bytes);
        }
        if self.unflushed.is_empty() {
            self.cached.clear();
        }
    }

    /// What a failed durable write does: it may reach the media, or never will, although reads go on showing it.
    pub(super) fn fail_newest(&mut self, random: &mut Random) {
        if random.one_in(2)
            && let Some(newest) = self.unflushed.last_mut()
        {
            newest.doomed = true;
        }
    }

    /// What a failed flush does: of the covered writes some reach the media, the others never will, although reads go on
    /// showing them and later flushes succeed.
    pub(super) fn fail_flush(&mut self, mark: u64, random: &mut Random) {
        for write in self.unflushed.iter_mut().filter(|write| write.sequence < mark) {
            if random.one_in(2) {
                write.doomed = true;
            } else {
                overlay(&mut self.durable, None, write.offset_bytes, &write.bytes);
            }
        }
    }

    /// Power goes: `in_flight` are the writes that were submitted and had not completed.
    pub(super) fn lose_power(&mut self, random: &mut Random, mut in_flight: Vec<(u64, Vec<u8>)>) {
        random.shuffle(&mut in_flight);
        self.cached.clear();
        let temper = match random.below(4) {
            0 => Temper::LosesAll,
            1 => Temper::KeepsAll,
            _ => Temper::Mixed,
        };
        let cached = std::mem::take(&mut self.unflushed);
        let cached = cached.into_iter().filter(|write| !write.doomed);
        let writes = cached.map(|write| (write.offset_bytes, write.bytes)).chain(in_flight);
        for (offset_bytes, bytes) in writes {
            for (offset_bytes, part) in surviving(random, temper, offset_bytes, &bytes) {
                overlay(&mut self.durable, None, offset_bytes, part);
            }
        }
    }

    /// The process goes and the machine stays: what had completed is there, what was in flight may be.
    pub(super) fn lose_process(&mut self, random: &mut Random, mut in_flight: Vec<(u64, Vec<u8>)>) {
        random.shuffle(&mut in_flight);
        for (offset_bytes, bytes) in in_flight {
            self.remember_torn(random, offset_bytes, &bytes);
        }
    }

    /// Changes bytes behind everybody's back, on stable media and in what reads see.
    pub(super) fn overwrite(&mut self, offset_bytes: u64, bytes: &[u8]) {
        overlay(&mut self.durable, None, offset_bytes, bytes);
        let first = offset_bytes / BLOCK_BYTES as u64;
        let end = (offset_bytes + bytes.len() as u64).div_ceil(BLOCK_BYTES as u64);
        if self.cached.range(first..end).next().is_some() {
            overlay(&mut self.cached, Some(&self.durable), offset_bytes, bytes);
        }
    }

    pub(super) fn has_unflushed(&self) -> bool {
        !self.unflushed.is_empty()
    }
}

/// The parts of a write that outlive the crash, by the seed.
fn surviving<'a>(
    random: &mut Random,
    temper: Temper,
    offset_bytes: u64,
    bytes: &'a [u8],
) -> Vec<(u64, &'a [u8])> {
    let fate = match temper {
        Temper::LosesAll => Fate::Lost,
        Temper::KeepsAll => Fate::Whole,
        Temper::Mixed => match random.below(6) {
            0 | 1 => Fate::Whole,
            2 | 3 => Fate::Lost,
            4 => Fate::Cut,
            _ => Fate::Scattered,
        },
    };
    let sector_count = bytes.len().div_ceil(SECTOR_BYTES);
    match fate {
        Fate::Whole => vec![(offset_bytes, bytes)],
        Fate::Lost => Vec::new(),
        Fate::Cut => {
            let kept = random.below(sector_count as u64 + 1) as usize * SECTOR_BYTES;
            vec![(offset_bytes, &bytes[..kept.min(bytes.len())])]
        }
        Fate::Scattered => (0u64..)
            .zip(bytes.chunks(SECTOR_BYTES))
            .filter(|_| random.one_in(2))
            .map(|(index, sector)| (offset_bytes + index * SECTOR_BYTES as u64, sector))
            .collect(),
    }
}
