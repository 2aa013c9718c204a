//! What an operator may want to know of an open volume.

use std::path::PathBuf;
use std::rc::Rc;

use ringfort_engine::buffer::BLOCK_BYTES;
use ringfort_engine::engine::Engine;

use crate::address::{SegmentId, VolumeId};
pub use crate::cache::CacheCounters;
use crate::core::Core;
use crate::error::StoreError;
use crate::limits::MEMORY_BYTES_DEFAULT;
use crate::object::{Object, OpenOptions, OpenReport, TreeReport};
pub use crate::pace::Activity;
use crate::recover::{RecoveryReport, replay};
use crate::segment::table::SegmentState;
use crate::state::State;
pub use crate::state::{CleaningCounters, PathCounters};

/// A volume at one moment.
#[derive(Clone, Debug)]
pub struct StatusReport {
    pub volume: VolumeId,
    /// Components and their states.
    pub tree: TreeReport,
    /// Why the volume takes no more changes, if so.
    pub failed: Option<String>,
    pub space: SpaceStatus,
    pub log: LogStatus,
    pub memory: MemoryStatus,
    pub recovery: RecoveryReport,
    pub cleaning: CleaningStatus,
    /// Since the volume was opened.
    pub counters: PathCounters,
    /// Reads of blocks that are not being written, since the volume was opened.
    pub cache: CacheCounters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceStatus {
    pub total_bytes: u64,
    /// Of all segments together: what lives is to be seen beside it where the cost of cleaning matters.
    pub capacity_bytes: u64,
    /// Of the total, handed out to nobody. The spare segments, which the volume has beyond its size, come into it when all else is in use.
    pub free_bytes: u64,
    /// Named by the maps.
    pub live_bytes: u64,
    /// The rest: overwritten, deleted or padding; returns when what else lives in its segment has been moved or has died.
    pub dead_bytes: u64,
    pub segments: u32,
    pub free_segments: u32,
    pub open_segments: u32,
    pub closed_segments: u32,
}

/// What the cleaner is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CleaningStatus {
    pub activity: Activity,
    /// It begins when fewer segments are free,
    pub start_below_segments: u32,
    /// and rests no more when so few are.
    pub urgent_at_segments: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStatus {
    pub size_bytes: u64,
    pub used_bytes: u64,
    /// Of the metadata log, which takes commits without their data until a checkpoint of the maps.
    pub metadata_log_size_bytes: u64,
    pub metadata_log_used_bytes: u64,
    pub epoch: u64,
    pub root_sequence: u64,
    pub applied_transaction: u64,
    pub durable_transaction: u64,
    /// Banks in memory and the blocks they hold.
    pub banks: u32,
    pub bank_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStatus {
    pub maps_bytes: u64,
    pub maps_limit_bytes: u64,
    pub pages: u64,
    pub free_pages: u64,
}

impl StatusReport {
    pub(crate) fn of(core: &Core, recovery: RecoveryReport) -> Self {
        let report = Self::of_state(&core.object, &core.state(), core.memory_bytes, recovery);
        let levels = core.pace.levels();
        let cleaning = CleaningStatus {
            activity: core.pace.activity(),
            start_below_segments: levels.start,
            urgent_at_segments: levels.urgent,
        };
        Self { cache: core.cache.counters(), cleaning, ..report }
    }

    fn of_state(object: &Object, state: &State, memory_bytes: u64, recovery: RecoveryReport) -> Self {
        let block = BLOCK_BYTES as u64;
        let total_blocks = state.root.total_blocks;
        let spare_blocks = state.geometry.data_blocks().saturating_sub(total_blocks);
        let live_blocks = state.maps.live_blocks_in_all();
        let unused_blocks = total_blocks.saturating_sub(live_blocks);
        let free_blocks = state.unused_blocks().saturating_sub(spare_blocks).min(unused_blocks);
        let mut space = SpaceStatus {
            total_bytes: total_blocks * block,
            capacity_bytes: state.geometry.data_blocks() * block,
            free_bytes: free_blocks * block,
            live_bytes: live_blocks * block,
            dead_bytes: (unused_blocks - free_blocks) * block,
            segments: state.segments.segment_count(),
            ..SpaceStatus::default()
        };
        for segment in (0..space.segments).map(SegmentId) {
            match state.segments.get(segment).state {
                SegmentState::Free => space.free_segments += 1,
                SegmentState::Open(_) => space.open_segments += 1,
                SegmentState::Closed | SegmentState::Freeing => space.closed_segments += 1,
            }
        }
        let resident_blocks: usize = state.banks.values().map(|bank| bank.resident_blocks()).sum();
        Self {
            volume: object.volume(),
            tree: object.tree(),
            failed: state.failed.as_ref().map(ToString::to_string),
            space,
            log: LogStatus {
                size_bytes: state.ring.block_count() * block,
                used_bytes: state.ring.used_blocks() * block,
                metadata_log_size_bytes: state.moved_ring.block_count() * block,
                metadata_log_used_bytes: state.moved_ring.used_blocks() * block,
                epoch: state.ring.epoch(),
                root_sequence: state.root.sequence,
                applied_transaction: state.last_transaction(),
                durable_transaction: state.durable_transaction,
                banks: state.banks.len() as u32,
                bank_bytes: (resident_blocks * BLOCK_BYTES) as u64,
            },
            memory: MemoryStatus {
                maps_bytes: state.maps.memory_bytes() as u64,
                maps_limit_bytes: memory_bytes,
                pages: state.maps.page_count() as u64,
                free_pages: state.maps.allocator().free_count() as u64,
            },
            recovery,
            cleaning: CleaningStatus::default(),
            counters: state.counters,
            cache: CacheCounters::default(),
        }
    }
}

/// The status of a volume that nobody has open. Its log is replayed in memory; nothing is changed.
pub async fn inspect(
    engine: Rc<dyn Engine>,
    components: &[PathBuf],
) -> Result<(StatusReport, OpenReport), StoreError> {
    let (object, opened) = Object::open(engine, components, OpenOptions::default()).await?;
    let replayed = replay(&object, object.volume(), MEMORY_BYTES_DEFAULT).await?;
    Ok((StatusReport::of_state(&object, &replayed.state, MEMORY_BYTES_DEFAULT, replayed.report), opened))
}
