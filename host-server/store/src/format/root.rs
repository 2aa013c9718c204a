//! The root: where recovery starts.
//!
//! Two slots at the front of the metadata region, written in turn, so that a torn write leaves the other whole. The
//! newest valid root of any mirror counts. A slot is an envelope, a fixed part and the list of tree roots.
//!
//! The metadata region: two root slots, the log, the metadata log, the page area.

use ringfort_engine::buffer::BLOCK_BYTES;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::address::{MetadataAddress, VolumeId};
use crate::format::envelope::{self, ENVELOPE_BYTES, EnvelopeError, Kind};
use crate::format::layout::{Layout, layout};
use crate::format::page::Roots;

/// Length of a root slot.
pub const ROOT_SLOT_BYTES: usize = 64 * 1024;
/// Where the log begins in the metadata region.
pub const LOG_START: MetadataAddress = MetadataAddress(2 * ROOT_SLOT_BYTES as u64);

const VERSION: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RootBody {
    sequence: U64,
    epoch: U64,
    epoch_first_record: U64,
    applied_transaction: U64,
    replay_position: U64,
    replay_sequence: U64,
    middle_limit: U64,
    log_blocks: U64,
    page_area_bytes: U64,
    total_blocks: U64,
    kept_epoch: U64,
    replay_previous_checksum: U32,
    moved_previous_checksum: U32,
    metadata_log_blocks: U64,
    moved_position: U64,
    moved_sequence: U64,
    moved_records: U32,
    reserved: [u8; 4],
}

const _: () = assert!(size_of::<RootBody>() == 128);

/// A durable starting point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Raised by one with every root written.
    pub sequence: u64,
    /// Raised by every recovery.
    pub epoch: u64,
    /// Records from this sequence number on belong to `epoch`, earlier ones to earlier epochs.
    pub epoch_first_record: u64,
    /// The trees hold the effects of transactions up to this one.
    pub applied_transaction: u64,
    /// Log block where replay begins, with the sequence number expected there and the checksum of the record before it.
    pub replay_position: u64,
    pub replay_sequence: u64,
    pub replay_previous_checksum: u32,
    /// Length of the metadata log, in blocks.
    pub metadata_log_blocks: u64,
    /// Where in the metadata log the records lie that are replayed before those of the log, and how many they are. All of
    /// them were durable before this root was written.
    pub moved_position: u64,
    pub moved_sequence: u64,
    pub moved_previous_checksum: u32,
    pub moved_records: u32,
    /// Middle addresses below this one may be in use.
    pub middle_limit: u64,
    /// Length of the log, in blocks.
    pub log_blocks: u64,
    /// Length of the page area that follows the log.
    pub page_area_bytes: u64,
    /// What the volume offers to users, in data blocks.
    pub total_blocks: u64,
    /// The newest epoch that got as far as taking writes: a memory file of it may hold transactions that the log lacks.
    pub kept_epoch: u64,
    pub trees: Roots,
}

impl Root {
    /// Where the metadata log begins.
    pub fn metadata_log_start(&self) -> MetadataAddress {
        MetadataAddress(LOG_START.0 + self.log_blocks * BLOCK_BYTES as u64)
    }

    /// Where the page area begins.
    pub fn page_area_start(&self) -> MetadataAddress {
        MetadataAddress(self.metadata_log_start().0 + self.metadata_log_blocks * BLOCK_BYTES as u64)
    }

    /// The slot that the root of this sequence number is written to.
    pub fn slot(sequence: u64) -> MetadataAddress {
        MetadataAddress(sequence % 2 * ROOT_SLOT_BYTES as u64)
    }

    /// Bytes of the slot, as long as they need to be.
    pub fn encode(&self, volume: VolumeId) -> Vec<u8> {
        let body = RootBody {
            sequence: U64::new(self.sequence),
            epoch: U64::new(self.epoch),
            epoch_first_record: U64::new(self.epoch_first_record),
            applied_transaction: U64::new(self.applied_transaction),
            replay_position: U64::new(self.replay_position),
            replay_sequence: U64::new(self.replay_sequence),
            middle_limit: U64::new(self.middle_limit),
            log_blocks: U64::new(self.log_blocks),
            page_area_bytes: U64::new(self.page_area_bytes),
            total_blocks: U64::new(self.total_blocks),
            kept_epoch: U64::new(self.kept_epoch),
            replay_previous_checksum: U32::new(self.replay_previous_checksum),
            moved_previous_checksum: U32::new(self.moved_previous_checksum),
            metadata_log_blocks: U64::new(self.metadata_log_blocks),
            moved_position: U64::new(self.moved_position),
            moved_sequence: U64::new(self.moved_sequence),
            moved_records: U32::new(self.moved_records),
            reserved: [0; 4],
        };
        let mut bytes = vec![0; ENVELOPE_BYTES];
        bytes.extend_from_slice(body.as_bytes());
        bytes.extend_from_slice(&self.trees.encode());
        let body_bytes = bytes.len() - ENVELOPE_BYTES;
        assert!(bytes.len() <= ROOT_SLOT_BYTES);
        envelope::seal(&mut bytes, Kind::Superblock, VERSION, volume, body_bytes);
        bytes
    }

    /// The version of an intact root of this volume that is newer than this release knows.
    pub fn newer_version(bytes: &[u8], volume: VolumeId) -> Option<u16> {
        match envelope::open(bytes, Kind::Superblock, VERSION, Some(volume)) {
            Err(EnvelopeError::UnknownVersion { found, .. }) => Some(found),
            _ => None,
        }
    }

    /// `None` where the slot holds no valid root of this volume.
    pub fn decode(bytes: &[u8], volume: VolumeId) -> Option<Self> {
        let opened = envelope::open(bytes, Kind::Superblock, VERSION, Some(volume)).ok()?;
        let (body, trees) = RootBody::read_from_prefix(opened.body).ok()?;
        if body.reserved != [0; 4] {
            return None;
        }
        Some(Self {
            sequence: body.sequence.get(),
            epoch: body.epoch.get(),
            epoch_first_record: body.epoch_first_record.get(),
            applied_transaction: body.applied_transaction.get(),
            replay_position: body.replay_position.get(),
            replay_sequence: body.replay_sequence.get(),
            replay_previous_checksum: body.replay_previous_checksum.get(),
            metadata_log_blocks: body.metadata_log_blocks.get(),
            moved_position: body.moved_position.get(),
            moved_sequence: body.moved_sequence.get(),
            moved_previous_checksum: body.moved_previous_checksum.get(),
            moved_records: body.moved_records.get(),
            middle_limit: body.middle_limit.get(),
            log_blocks: body.log_blocks.get(),
            page_area_bytes: body.page_area_bytes.get(),
            total_blocks: body.total_blocks.get(),
            kept_epoch: body.kept_epoch.get(),
            trees: Roots::decode(trees)?,
        })
    }
}

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[layout!(
    "root",
    RootBody {
        sequence,
        epoch,
        epoch_first_record,
        applied_transaction,
        replay_position,
        replay_sequence,
        middle_limit,
        log_blocks,
        page_area_bytes,
        total_blocks,
        kept_epoch,
        replay_previous_checksum,
        moved_previous_checksum,
        metadata_log_blocks,
        moved_position,
        moved_sequence,
        moved_records,
        reserved
    }
)];
