//! Positions in the ring, and the framing of records.

use std::collections::VecDeque;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{U16, U32, U64};

use crate::address::{MetadataAddress, VolumeId};
use crate::format::log::{RECORD_HEADER_BYTES, RECORD_MAGIC, RECORD_VERSION, RecordHeader, record_checksum};

/// A record between tail and head.
#[derive(Clone, Copy, Debug)]
pub struct LiveRecord {
    /// Log block where it begins, counted since the volume was made.
    pub position: u64,
    pub sequence: u64,
    pub previous_checksum: u32,
    pub last_transaction: u64,
}

/// Where replay would begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayPoint {
    pub position: u64,
    pub sequence: u64,
    pub previous_checksum: u32,
}

/// The part of the metadata region that a ring occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingRegion {
    pub start: MetadataAddress,
    pub block_count: u64,
}

impl RingRegion {
    /// The place in the metadata region of a log block.
    pub fn address(&self, position: u64) -> MetadataAddress {
        MetadataAddress(self.start.0 + position % self.block_count * BLOCK_BYTES as u64)
    }
}

/// The ring's cursors. Positions count log blocks since the volume was made and never wrap; the place in the region is
/// the position modulo its length.
#[derive(Debug)]
pub struct Ring {
    region: RingRegion,
    tail: u64,
    head: u64,
    next_sequence: u64,
    previous_checksum: u32,
    epoch: u64,
    epoch_first_record: u64,
    live: VecDeque<LiveRecord>,
}

/// A record ready to be written.
#[derive(Debug)]
pub struct FramedRecord {
    /// Writes that together make up the record: two where it wraps around the end of the region.
    pub writes: Vec<(MetadataAddress, Vec<Slice>)>,
    pub block_count: u64,
}

/// What goes into a record.
#[derive(Debug)]
pub struct RecordContent {
    pub kind: u16,
    pub body: Vec<u8>,
    pub data: Vec<Slice>,
    pub first_transaction: u64,
    pub transaction_count: u32,
    pub root_sequence: u64,
}

/// Blocks of header and body.
pub fn body_blocks(body_bytes: usize) -> u64 {
    (RECORD_HEADER_BYTES + body_bytes).div_ceil(BLOCK_BYTES) as u64
}

impl Ring {
    /// A ring that goes on behind `records`, the live records found at `start` and after.
    pub fn new(region: RingRegion, start: ReplayPoint, epoch: u64) -> Self {
        Self {
            region,
            tail: start.position,
            head: start.position,
            next_sequence: start.sequence,
            previous_checksum: start.previous_checksum,
            epoch,
            epoch_first_record: start.sequence,
            live: VecDeque::new(),
        }
    }

    /// Takes over a record found at recovery.
    pub fn restore(&mut self, record: LiveRecord, block_count: u64, checksum: u32) {
        assert_eq!((record.position, record.sequence), (self.head, self.next_sequence));
        self.live.push_back(record);
        self.head += block_count;
        self.next_sequence += 1;
        self.previous_checksum = checksum;
    }

    /// Records from here on belong to a new epoch.
    pub fn begin_epoch(&mut self, epoch: u64) {
        assert!(epoch > self.epoch);
        self.epoch = epoch;
        self.epoch_first_record = self.next_sequence;
    }

    /// The first sequence number of the current epoch.
    pub fn epoch_first_record(&self) -> u64 {
        self.epoch_first_record
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn block_count(&self) -> u64 {
        self.region.block_count
    }

    pub fn tail(&self) -> u64 {
        self.tail
    }

    pub fn used_blocks(&self) -> u64 {
        self.head - self.tail
    }

    pub fn free_blocks(&self) -> u64 {
        self.region.block_count - self.used_blocks()
    }

    pub fn head(&self) -> ReplayPoint {
        ReplayPoint {
            position: self.head,
            sequence: self.next_sequence,
            previous_checksum: self.previous_checksum,
        }
    }

    /// Frames the next record and moves the head over it. The caller has made sure that it fits; `None`, and nothing
    /// has changed, where it does not.
    pub fn append(&mut self, volume: VolumeId, content: RecordContent) -> Option<FramedRecord> {
        let block_count = body_blocks(content.body.len()) + content.data.len() as u64;
        if block_count > self.free_blocks() {
            return None;
        }
        let mut header = RecordHeader {
            magic: U32::new(RECORD_MAGIC),
            kind: U16::new(content.kind),
            version: U16::new(RECORD_VERSION),
            body_bytes: U32::new(content.body.len() as u32),
            data_blocks: U32::new(content.data.len() as u32),
            volume: volume.0.to_le_bytes(),
            epoch: U64::new(self.epoch),
            sequence: U64::new(self.next_sequence),
            first_transaction: U64::new(content.first_transaction),
            root_sequence: U64::new(content.root_sequence),
            position: U64::new(self.head),
            transaction_count: U32::new(content.transaction_count),
            previous_checksum: U32::new(self.previous_checksum),
            checksum: U32::ZERO,
            reserved: [0; 12],
        };
        let checksum = record_checksum(&header, &content.body);
        header.checksum = U32::new(checksum);
        let mut front = Buffer::for_overwrite(body_blocks(content.body.len()) as usize * BLOCK_BYTES);
        let body_end = RECORD_HEADER_BYTES + content.body.len();
        front[..RECORD_HEADER_BYTES].copy_from_slice(header.as_bytes());
        front[RECORD_HEADER_BYTES..body_end].copy_from_slice(&content.body);
        front[body_end..].fill(0);

        let position = self.head;
        self.live.push_back(LiveRecord {
            position,
            sequence: self.next_sequence,
            previous_checksum: self.previous_checksum,
            last_transaction: content.first_transaction + u64::from(content.transaction_count) - 1,
        });
        self.head += block_count;
        self.next_sequence += 1;
        self.previous_checksum = checksum;
        let slices = std::iter::once(front.freeze()).chain(content.data).collect();
        Some(FramedRecord { writes: self.split(position, slices), block_count })
    }

    /// Cuts a write where the ring wraps.
    pub fn split(&self, position: u64, slices: Vec<Slice>) -> Vec<(MetadataAddress, Vec<Slice>)> {
        let until_end =
            ((self.region.block_count - position % self.region.block_count) as usize) * BLOCK_BYTES;
        let mut first = Vec::new();
        let mut second = Vec::new();
        let mut taken = 0;
        for slice in slices {
            let room = until_end.saturating_sub(taken).min(slice.len());
            taken += slice.len();
            if room == slice.len() {
                first.push(slice);
            } else {
                if room > 0 {
                    first.push(slice.slice(0..room));
                }
                second.push(slice.slice(room..slice.len()));
            }
        }
        let mut writes = vec![(self.region.address(position), first)];
        if !second.is_empty() {
            writes.push((self.region.start, second));
        }
        writes
    }

    /// The replay point that leaves out every record that only holds transactions up to `transaction`, but none at or
    /// behind `pinned`.
    pub fn replay_point(&self, transaction: u64, pinned: Option<u64>) -> ReplayPoint {
        let keep = |record: &&LiveRecord| {
            record.last_transaction > transaction || pinned.is_some_and(|pinned| record.position >= pinned)
        };
        self.live.iter().find(keep).map_or(self.head(), |record| ReplayPoint {
            position: record.position,
            sequence: record.sequence,
            previous_checksum: record.previous_checksum,
        })
    }

    /// Live records from `position` on.
    pub fn records_from(&self, position: u64) -> u32 {
        self.live.iter().filter(|record| record.position >= position).count() as u32
    }

    /// A root that starts replay at `position` is durable.
    pub fn truncate(&mut self, position: u64) {
        assert!(position >= self.tail && position <= self.head);
        self.tail = position;
        while self.live.front().is_some_and(|record| record.position < position) {
            self.live.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: MetadataAddress = MetadataAddress(1 << 20);

    fn ring() -> Ring {
        let region = RingRegion { start: START, block_count: 8 };
        Ring::new(region, ReplayPoint { position: 5, sequence: 1, previous_checksum: 0 }, 1)
    }

    fn content(data_blocks: usize, first_transaction: u64) -> RecordContent {
        let data = (0..data_blocks).map(|block| Slice::copy_of(&[block as u8; BLOCK_BYTES])).collect();
        RecordContent {
            kind: 1,
            body: vec![0],
            data,
            first_transaction,
            transaction_count: 1,
            root_sequence: 1,
        }
    }

    #[test]
    fn a_record_that_reaches_the_end_goes_on_at_the_front() {
        let mut ring = ring();
        let record = ring.append(VolumeId(1), content(4, 1)).unwrap();
        assert_eq!(record.block_count, 5);
        assert_eq!(record.writes.len(), 2);
        assert_eq!(record.writes[0].0, MetadataAddress(START.0 + 5 * BLOCK_BYTES as u64));
        assert_eq!(record.writes[0].1.iter().map(|slice| slice.len()).sum::<usize>(), 3 * BLOCK_BYTES);
        assert_eq!(record.writes[1].0, START);
        assert_eq!(record.writes[1].1.iter().map(|slice| slice.len()).sum::<usize>(), 2 * BLOCK_BYTES);
        assert_eq!(ring.free_blocks(), 3);
        assert!(ring.append(VolumeId(1), content(3, 2)).is_none());
        assert_eq!(ring.free_blocks(), 3);
    }

    #[test]
    fn replay_starts_at_the_first_record_still_needed() {
        let mut ring = ring();
        ring.append(VolumeId(1), content(0, 1)).unwrap();
        let second = ring.head();
        ring.append(VolumeId(1), content(1, 2)).unwrap();
        assert_eq!(ring.replay_point(0, None).position, 5);
        assert_eq!(ring.replay_point(1, None), second);
        assert_eq!(ring.replay_point(2, None), ring.head());
        assert_eq!(ring.replay_point(2, Some(second.position)).position, second.position);
        ring.truncate(second.position);
        assert_eq!(ring.used_blocks(), 2);
    }
}
