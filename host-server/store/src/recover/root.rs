//! Where recovery starts.

use ringfort_engine::buffer::BLOCK_BYTES;

use crate::address::{MetadataAddress, VolumeId};
use crate::error::{ErrorKind, StoreError};
use crate::format::page::PAGE_BYTES;
use crate::format::root::{LOG_START, ROOT_SLOT_BYTES, Root};
use crate::geometry::Geometry;
use crate::kv::PageAllocator;
use crate::object::Object;

/// The newest root that any live mirror holds.
pub(crate) async fn find_root(object: &Object, volume: VolumeId) -> Result<Root, StoreError> {
    let mut newest: Option<Root> = None;
    for mirror in object.live_mirrors() {
        for slot in 0..2 {
            let address = MetadataAddress(slot * ROOT_SLOT_BYTES as u64);
            let Ok(bytes) = object.read_metadata_mirror(mirror, address, BLOCK_BYTES).await else { continue };
            if let Some(version) = Root::newer_version(&bytes, volume) {
                let place = format!("volume {volume}");
                let found = format!("a root of version {version}");
                return Err(StoreError::new(ErrorKind::Incompatible, "open", place, found)
                    .advice("use the release that wrote it, or a later one"));
            }
            if let Some(root) = Root::decode(&bytes, volume)
                && newest.as_ref().is_none_or(|newest| root.sequence > newest.sequence)
            {
                newest = Some(root);
            }
        }
    }
    newest.ok_or_else(|| {
        StoreError::new(
            ErrorKind::Damaged,
            "find root of",
            format!("volume {volume}"),
            "no valid root on any mirror",
        )
        .expected("a root slot with a valid checksum on at least one metadata mirror")
        .advice("bring back a missing metadata component; if none is missing the volume cannot be opened")
    })
}

/// The area of tree pages that a root describes.
pub(crate) fn page_allocator(root: &Root) -> PageAllocator {
    PageAllocator::new(root.page_area_start(), (root.page_area_bytes / PAGE_BYTES as u64) as usize)
}

/// A root whose regions lie in the metadata region and whose counters can rise for as long as any device lasts.
pub(super) fn check_root(root: &Root, geometry: &Geometry, volume: VolumeId) -> Result<(), StoreError> {
    let regions_blocks =
        [root.log_blocks, root.metadata_log_blocks, root.page_area_bytes / BLOCK_BYTES as u64];
    let room_blocks = (geometry.metadata_bytes - LOG_START.0) / BLOCK_BYTES as u64;
    let fits = regions_blocks.iter().try_fold(0u64, |sum, blocks| sum.checked_add(*blocks));
    if root.log_blocks == 0 || root.metadata_log_blocks == 0 || fits.is_none_or(|blocks| blocks > room_blocks)
    {
        return Err(StoreError::new(
            ErrorKind::Damaged,
            "use root of",
            format!("volume {volume}"),
            "regions that leave the metadata region",
        ));
    }
    check_counters(root, volume)
}

/// Counters that only rise stay far from overflow for as long as any device lasts.
fn check_counters(root: &Root, volume: VolumeId) -> Result<(), StoreError> {
    let counters = [
        root.sequence,
        root.epoch,
        root.epoch_first_record,
        root.applied_transaction,
        root.replay_position,
        root.replay_sequence,
        root.moved_position,
        root.moved_sequence,
        root.middle_limit,
    ];
    match counters.into_iter().max() {
        Some(largest) if largest > u64::MAX / 4 => Err(StoreError::new(
            ErrorKind::Damaged,
            "use root of",
            format!("volume {volume}"),
            format!("a counter of {largest}"),
        )),
        _ => Ok(()),
    }
}
