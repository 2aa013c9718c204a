//! Reading the log back: which records form the chain, and what they carry.

use std::collections::HashSet;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use zerocopy::FromBytes;

use crate::address::{PhysicalBlock, SegmentId, VolumeId};
use crate::error::{ErrorKind, StoreError};
use crate::format::checksum::block_checksum;
use crate::format::log::{
    Entry, KIND_COMMIT, KIND_MOVED, RECORD_HEADER_BYTES, RECORD_MAGIC, RECORD_VERSION, RecordHeader,
    decode_body, record_checksum,
};
use crate::format::root::{LOG_START, Root};
use crate::geometry::Geometry;
use crate::log::ring::{LiveRecord, ReplayPoint, RingRegion, body_blocks};
use crate::object::Object;

/// How much of a mirror is read ahead, in blocks.
const WINDOW_BLOCKS: u64 = 1024;

/// A record of the chain.
pub struct FoundRecord {
    pub live: LiveRecord,
    pub block_count: u64,
    pub checksum: u32,
    pub first_transaction: u64,
    pub transactions: Vec<Vec<Entry>>,
    /// Data blocks of bank writes whose stripes had not been written yet.
    pub data: Vec<(PhysicalBlock, Slice)>,
    /// The record as it lies in the log.
    pub bytes: Slice,
}

/// A stretch of one mirror, read in large pieces.
struct Window {
    mirror: u8,
    start: u64,
    bytes: Option<Slice>,
}

impl Window {
    /// The blocks from `position` on, or `None` where the mirror cannot be read.
    async fn read(
        &mut self,
        object: &Object,
        region: RingRegion,
        position: u64,
        count: u64,
    ) -> Option<Slice> {
        let ring_blocks = region.block_count;
        if let Some(bytes) = &self.bytes
            && position >= self.start
            && position + count <= self.start + (bytes.len() / BLOCK_BYTES) as u64
        {
            let offset = (position - self.start) as usize * BLOCK_BYTES;
            return Some(bytes.slice(offset..offset + count as usize * BLOCK_BYTES));
        }
        let until_end = ring_blocks - position % ring_blocks;
        let first_count = count.max(WINDOW_BLOCKS).min(until_end).min(ring_blocks);
        let read = |position: u64, count: u64| {
            let address = region.address(position);
            object.read_metadata_mirror(self.mirror, address, count as usize * BLOCK_BYTES)
        };
        let bytes = if count <= first_count {
            read(position, first_count).await.ok()?
        } else {
            let front = read(position, first_count).await.ok()?;
            let back = read(position + first_count, count - first_count).await.ok()?;
            let mut joined = Buffer::for_overwrite(front.len() + back.len());
            joined[..front.len()].copy_from_slice(&front);
            joined[front.len()..].copy_from_slice(&back);
            joined.freeze()
        };
        self.start = position;
        let found = bytes.slice(0..count as usize * BLOCK_BYTES);
        self.bytes = Some(bytes);
        Some(found)
    }
}

/// A chain of records in one of the two rings.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    pub region: RingRegion,
    pub kind: u16,
    pub start: ReplayPoint,
}

impl Chain {
    /// Commits that the root does not hold: the chain goes on until a record is not valid.
    pub fn commits(root: &Root) -> Self {
        Self {
            region: RingRegion { start: LOG_START, block_count: root.log_blocks },
            kind: KIND_COMMIT,
            start: ReplayPoint {
                position: root.replay_position,
                sequence: root.replay_sequence,
                previous_checksum: root.replay_previous_checksum,
            },
        }
    }

    /// Commits that were moved to the metadata log: the root says how many records there are.
    pub fn moved(root: &Root) -> Self {
        Self {
            region: RingRegion { start: root.metadata_log_start(), block_count: root.metadata_log_blocks },
            kind: KIND_MOVED,
            start: ReplayPoint {
                position: root.moved_position,
                sequence: root.moved_sequence,
                previous_checksum: root.moved_previous_checksum,
            },
        }
    }
}

/// Walks a chain to its end.
pub struct Replay<'a> {
    object: &'a Object,
    volume: VolumeId,
    geometry: Geometry,
    root: &'a Root,
    chain: Chain,
    windows: Vec<Window>,
    position: u64,
    sequence: u64,
    previous_checksum: u32,
    epoch: u64,
    used_blocks: u64,
}

impl<'a> Replay<'a> {
    /// Each record from whichever mirror has it.
    pub fn new(object: &'a Object, volume: VolumeId, root: &'a Root, chain: Chain) -> Self {
        Self::on_mirrors(object, volume, root, chain, object.live_mirrors())
    }

    /// Records as one mirror has them.
    pub fn on_mirror(object: &'a Object, volume: VolumeId, root: &'a Root, chain: Chain, mirror: u8) -> Self {
        Self::on_mirrors(object, volume, root, chain, vec![mirror])
    }

    fn on_mirrors(
        object: &'a Object,
        volume: VolumeId,
        root: &'a Root,
        chain: Chain,
        mirrors: Vec<u8>,
    ) -> Self {
        let windows = mirrors.into_iter().map(|mirror| Window { mirror, start: 0, bytes: None }).collect();
        Self {
            object,
            volume,
            geometry: *object.geometry(),
            root,
            chain,
            windows,
            position: chain.start.position,
            sequence: chain.start.sequence,
            previous_checksum: chain.start.previous_checksum,
            epoch: 0,
            used_blocks: 0,
        }
    }

    /// The next record, from the first mirror that holds it whole. `None` at the end of the chain.
    pub async fn next(&mut self) -> Result<Option<FoundRecord>, StoreError> {
        for index in 0..self.windows.len() {
            if let Some(record) = self.read_from(index).await? {
                let header_root = record.1;
                if header_root > self.root.sequence {
                    return Err(StoreError::new(
                        ErrorKind::Damaged,
                        "replay log record",
                        format!("sequence {}", record.0.live.sequence),
                        format!(
                            "it was written under root {header_root}, the newest readable root is {}",
                            self.root.sequence
                        ),
                    )
                    .advice("bring back a metadata component that holds the newer root"));
                }
                let record = record.0;
                self.position += record.block_count;
                self.used_blocks += record.block_count;
                self.sequence += 1;
                self.previous_checksum = record.checksum;
                return Ok(Some(record));
            }
        }
        self.check_end().await?;
        Ok(None)
    }

    /// No mirror has the next record: then it was never completed, so nothing can follow it. An unreadable or damaged record
    /// in the middle of the chain must not pass for its end.
    async fn check_end(&mut self) -> Result<(), StoreError> {
        let region = self.chain.region;
        if self.chain.kind == KIND_MOVED || self.used_blocks >= region.block_count {
            return Ok(());
        }
        let left = region.block_count - self.used_blocks;
        let place = format!("sequence {} at log block {}", self.sequence, self.position);
        let mut any_readable = false;
        for window in &mut self.windows {
            let Some(front) = window.read(self.object, region, self.position, 1).await else { continue };
            any_readable = true;
            let ahead = match &window.bytes {
                Some(bytes) => {
                    bytes.slice((self.position - window.start) as usize * BLOCK_BYTES..bytes.len())
                }
                None => front,
            };
            for (index, block) in ahead.chunks_exact(BLOCK_BYTES).enumerate().take(left as usize).skip(1) {
                let Ok((header, _)) = RecordHeader::read_from_prefix(block) else { continue };
                let follows = header.magic.get() == RECORD_MAGIC
                    && header.volume == self.volume.0.to_le_bytes()
                    && header.kind.get() == self.chain.kind
                    && header.position.get() == self.position + index as u64
                    && header.epoch.get() == self.root.epoch
                    && header.sequence.get() > self.sequence;
                if follows {
                    let found = format!("it is damaged, and record {} follows it", header.sequence.get());
                    return Err(StoreError::new(ErrorKind::Damaged, "replay log record", place, found)
                        .expected("a valid copy on one of the mirrors")
                        .advice("bring back a missing metadata component"));
                }
            }
        }
        if any_readable {
            return Ok(());
        }
        let found = "no mirror can be read there";
        Err(StoreError::new(ErrorKind::Device, "replay log record", place, found)
            .advice("bring back a missing metadata component"))
    }

    /// The next record and the root that it was written under; `None` where a mirror does not hold it whole. An error where it is whole
    /// but nothing that this release knows: what follows may have been promised, and must not be cut off.
    async fn read_from(&mut self, index: usize) -> Result<Option<(FoundRecord, u64)>, StoreError> {
        let Some((header, bytes)) = self.read_whole(index).await else { return Ok(None) };
        let body_bytes = header.body_bytes.get() as usize;
        let body = bytes.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + body_bytes).unwrap_or_default();
        let Some(transactions) = decode_body(body) else {
            let place = format!("sequence {} at log block {}", self.sequence, self.position);
            let found = "it is whole, and holds an entry that this release does not know";
            return Err(StoreError::new(ErrorKind::Incompatible, "replay log record", place, found)
                .advice("open the volume with the release that used it last"));
        };
        Ok(self.accept(&header, bytes, transactions))
    }

    /// Header and all blocks of the record that comes next in the chain, if this mirror has its header and body as they were written.
    async fn read_whole(&mut self, index: usize) -> Option<(RecordHeader, Slice)> {
        let region = self.chain.region;
        let ring_blocks = region.block_count;
        if self.used_blocks >= ring_blocks {
            return None;
        }
        let window = self.windows.get_mut(index)?;
        let front = window.read(self.object, region, self.position, 1).await?;
        let (header, _) = RecordHeader::read_from_prefix(&front).ok()?;
        let epoch = header.epoch.get();
        let in_epoch = if self.chain.kind == KIND_MOVED {
            epoch <= self.root.epoch && epoch >= self.epoch
        } else if self.sequence >= self.root.epoch_first_record {
            epoch == self.root.epoch
        } else {
            epoch < self.root.epoch && epoch >= self.epoch
        };
        let expected = header.magic.get() == RECORD_MAGIC
            && header.version.get() == RECORD_VERSION
            && header.kind.get() == self.chain.kind
            && header.volume == self.volume.0.to_le_bytes()
            && header.position.get() == self.position
            && header.sequence.get() == self.sequence
            && header.previous_checksum.get() == self.previous_checksum
            && in_epoch;
        if !expected {
            return None;
        }
        let body_bytes = header.body_bytes.get() as usize;
        let data_blocks = u64::from(header.data_blocks.get());
        let block_count = body_blocks(body_bytes) + data_blocks;
        if block_count > ring_blocks - self.used_blocks {
            return None;
        }
        let bytes = window.read(self.object, region, self.position, block_count).await?;
        let body = bytes.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + body_bytes)?;
        (record_checksum(&header, body) == header.checksum.get()).then_some((header, bytes))
    }

    /// `None` where data blocks are torn.
    fn accept(
        &mut self,
        header: &RecordHeader,
        bytes: Slice,
        transactions: Vec<Vec<Entry>>,
    ) -> Option<(FoundRecord, u64)> {
        if transactions.is_empty() || transactions.len() != header.transaction_count.get() as usize {
            return None;
        }
        let data_blocks = u64::from(header.data_blocks.get());
        let body_blocks = body_blocks(header.body_bytes.get() as usize);
        let data = self.data_of(&transactions, &bytes, body_blocks, data_blocks)?;
        self.epoch = header.epoch.get();
        let first_transaction = header.first_transaction.get();
        let live = LiveRecord {
            position: self.position,
            sequence: self.sequence,
            previous_checksum: self.previous_checksum,
            last_transaction: first_transaction.checked_add(transactions.len() as u64 - 1)?,
        };
        let (block_count, checksum) = (body_blocks + data_blocks, header.checksum.get());
        let record =
            FoundRecord { live, block_count, checksum, first_transaction, transactions, data, bytes };
        Some((record, header.root_sequence.get()))
    }

    /// Pairs bank writes with their data blocks; `None` where one is torn.
    fn data_of(
        &self,
        transactions: &[Vec<Entry>],
        bytes: &Slice,
        first_block: u64,
        data_blocks: u64,
    ) -> Option<Vec<(PhysicalBlock, Slice)>> {
        if self.chain.kind == KIND_MOVED {
            return (data_blocks == 0).then(Vec::new);
        }
        let entries = || transactions.iter().flatten();
        let written: HashSet<(SegmentId, u32)> = entries()
            .filter_map(|entry| match entry {
                Entry::Stripe { segment, stripe, .. } => Some((*segment, *stripe)),
                _ => None,
            })
            .collect();
        let mut data = Vec::with_capacity(data_blocks as usize);
        for entry in entries() {
            let Entry::Write(run) = entry else { continue };
            let end = run.physical.0.checked_add(run.checksums.len() as u64)?;
            if end > self.geometry.data_blocks() {
                return None;
            }
            if !run.bank {
                continue;
            }
            for (index, checksum) in run.checksums.iter().enumerate() {
                let physical = PhysicalBlock(run.physical.0 + index as u64);
                let place = self.geometry.locate(physical);
                if written.contains(&(place.segment, place.stripe.0)) {
                    continue;
                }
                if data.len() as u64 == data_blocks {
                    return None;
                }
                let offset = (first_block as usize + data.len()) * BLOCK_BYTES;
                let block = bytes.slice(offset..offset + BLOCK_BYTES);
                if block_checksum(&block) != *checksum {
                    return None;
                }
                data.push((physical, block));
            }
        }
        (data.len() as u64 == data_blocks).then_some(data)
    }
}
