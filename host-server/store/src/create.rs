//! Making a volume: its geometry, its components, an empty log and the first root.

use std::path::PathBuf;
use std::rc::Rc;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer};
use ringfort_engine::engine::Engine;

use crate::address::{MetadataAddress, VolumeId};
use crate::error::{ErrorKind, StoreError};
use crate::format::page::{PAGE_BYTES, PAGE_CAPACITY_BYTES, Roots};
use crate::format::root::{LOG_START, ROOT_SLOT_BYTES, Root};
use crate::format::segment::summary_bytes_max;
use crate::geometry::{Geometry, UNIT_BYTES_DEFAULT};
use crate::limits::{
    BANK_STRIPES, LOG_BYTES_DEFAULT_MAX, LOG_BYTES_MIN, MEMORY_BYTES_DEFAULT, MIDDLE_RESERVE,
    PAGE_AREA_SPARE_BYTES, SEGMENT_DATA_BYTES_MAX, SEGMENTS_AIM, SEGMENTS_MIN, SPARE_SEGMENTS,
};
use crate::map::worst_case_pages;
use crate::object::{ComponentSpec, Object};
use crate::volume::VALUE_BYTES_MAX;

/// How far new components are written before they are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Their space is reserved. The first write to each place then has the file system note that there is something, which makes
    /// it, and the flush that follows, dearer than later ones.
    #[default]
    Reserved,
    /// Zeros are written to all of it, which takes as long as that takes.
    Full,
}

/// How a volume is made.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// One path a column: K + M of them, in order.
    pub components: Vec<PathBuf>,
    /// Components that hold the metadata mirrors; empty: the first M + 1 of `components` hold them too.
    pub metadata_components: Vec<PathBuf>,
    pub data_columns: u8,
    pub parity_columns: u8,
    /// Usable data, in bytes.
    pub size_bytes: u64,
    /// Bound of the memory that the maps may need.
    pub memory_bytes: u64,
    /// Length of the log; `None` for the default.
    pub log_bytes: Option<u64>,
    /// One column's part of a stripe; `None` for the default.
    pub unit_bytes: Option<u32>,
    pub preallocation: Preallocation,
}

impl CreateOptions {
    /// A volume of 4+2 over the given components, with defaults for the rest.
    pub fn new(components: Vec<PathBuf>, size_bytes: u64) -> Self {
        Self {
            components,
            metadata_components: Vec::new(),
            data_columns: 4,
            parity_columns: 2,
            size_bytes,
            memory_bytes: MEMORY_BYTES_DEFAULT,
            log_bytes: None,
            unit_bytes: None,
            preallocation: Preallocation::default(),
        }
    }
}

/// The shape of a volume to be, and what it will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub geometry: Geometry,
    pub log_bytes: u64,
    pub page_area_bytes: u64,
    /// Data blocks that the volume offers.
    pub total_blocks: u64,
}

fn invalid(found: String) -> StoreError {
    StoreError::new(ErrorKind::Invalid, "create", "volume", found)
}

/// Works out the geometry, and refuses what cannot be.
pub fn plan(options: &CreateOptions) -> Result<Plan, StoreError> {
    let columns = usize::from(options.data_columns) + usize::from(options.parity_columns);
    if options.components.len() != columns {
        return Err(invalid(format!("{} components", options.components.len()))
            .expected(format!("{columns} for {}+{}", options.data_columns, options.parity_columns)));
    }
    let mirror_count = options.parity_columns.saturating_add(1);
    if !options.metadata_components.is_empty()
        && options.metadata_components.len() != usize::from(mirror_count)
    {
        return Err(invalid(format!("{} metadata components", options.metadata_components.len()))
            .expected(format!("none, or {mirror_count}: as many losses survived as by the data")));
    }
    let mut geometry = Geometry {
        mirror_count,
        dedicated_metadata: !options.metadata_components.is_empty(),
        unit_bytes: options.unit_bytes.unwrap_or(UNIT_BYTES_DEFAULT),
        ..Geometry::new(options.data_columns, options.parity_columns, 1, BLOCK_BYTES as u64)
    };
    geometry.check()?;
    let parity_blocks = usize::from(options.parity_columns) * geometry.blocks_per_unit() as usize;
    if summary_bytes_max(geometry.blocks_per_stripe() as usize, parity_blocks) > VALUE_BYTES_MAX {
        return Err(invalid(format!("a stripe of {} blocks", geometry.blocks_per_stripe()))
            .advice("choose a smaller unit for so many columns"));
    }

    let stripe_bytes = geometry.stripe_data_bytes();
    let size_stripes = options.size_bytes.div_ceil(stripe_bytes).max(1);
    let segment_stripes = (SEGMENT_DATA_BYTES_MAX / stripe_bytes)
        .max(1)
        .min(size_stripes.div_ceil(SEGMENTS_AIM).max(u64::from(BANK_STRIPES)))
        .min(size_stripes.div_ceil(SEGMENTS_MIN));
    // Banks fill segments without a remainder where the segment is large enough.
    let segment_stripes = match u64::from(BANK_STRIPES) {
        bank if segment_stripes >= bank => segment_stripes / bank * bank,
        _ => segment_stripes,
    };
    let segments = size_stripes.div_ceil(segment_stripes) + SPARE_SEGMENTS;
    geometry.stripes_per_segment =
        u32::try_from(segment_stripes).map_err(|_| invalid("a segment too large".into()))?;
    geometry.segment_count = u32::try_from(segments).map_err(|_| {
        invalid(format!("a size of {} bytes", options.size_bytes)).expected("fewer than 2^32 segments")
    })?;

    let default_log =
        (options.size_bytes / 64).next_multiple_of(1 << 20).clamp(32 << 20, LOG_BYTES_DEFAULT_MAX);
    let log_bytes = options.log_bytes.unwrap_or(default_log).next_multiple_of(BLOCK_BYTES as u64);
    if log_bytes < LOG_BYTES_MIN {
        return Err(
            invalid(format!("a log of {log_bytes} bytes")).expected(format!("at least {LOG_BYTES_MIN}"))
        );
    }
    let page_area_bytes = page_area_bytes(&geometry);
    let metadata_log_bytes = metadata_log_bytes(log_bytes);
    geometry.metadata_bytes = LOG_START.0 + log_bytes + metadata_log_bytes + page_area_bytes;
    geometry.check()?;
    let total_blocks = options.size_bytes / BLOCK_BYTES as u64;
    Ok(Plan { geometry, log_bytes, page_area_bytes, total_blocks })
}

/// Pages of the maps when every block is a run of its own.
fn worst_case_page_bytes(geometry: &Geometry) -> u64 {
    (worst_case_pages(geometry.data_blocks()) + summary_pages(geometry)) * PAGE_BYTES as u64
}

/// What pages need: a checkpoint writes a second copy of every page; the rest is for what the filesystem keeps.
pub(crate) fn page_area_bytes(geometry: &Geometry) -> u64 {
    let four_percent = geometry.data_blocks() * BLOCK_BYTES as u64 / 25;
    let copies = 2 * worst_case_page_bytes(geometry) + PAGE_AREA_SPARE_BYTES;
    copies.max(four_percent).next_multiple_of(PAGE_BYTES as u64)
}

/// The bodies of commits without their data are small: a quarter of the log holds those of many rounds of it.
fn metadata_log_bytes(log_bytes: u64) -> u64 {
    (log_bytes / 4).next_multiple_of(BLOCK_BYTES as u64)
}

/// Pages that the summaries of all stripes take, half full.
fn summary_pages(geometry: &Geometry) -> u64 {
    let blocks = geometry.blocks_per_stripe();
    let parity_blocks = u64::from(geometry.parity_columns) * u64::from(geometry.blocks_per_unit());
    // A run each, as cleaning may leave them, plus slot and header.
    let bytes = 40 + (blocks + parity_blocks) * 4 + blocks * 10;
    let stripes = u64::from(geometry.segment_count) * u64::from(geometry.stripes_per_segment);
    (stripes * bytes).div_ceil(PAGE_CAPACITY_BYTES as u64 / 2)
}

/// Creates the components, clears the log and writes the first root.
pub(crate) async fn create(
    engine: &Rc<dyn Engine>,
    options: &CreateOptions,
) -> Result<(Object, VolumeId), StoreError> {
    let Plan { geometry, log_bytes, page_area_bytes, total_blocks, .. } = plan(options)?;
    let volume = VolumeId(u128::from(engine.random_u64()) << 64 | u128::from(engine.random_u64()));
    let specs = options.components.iter().chain(&options.metadata_components);
    let specs: Vec<_> = specs.map(|path| ComponentSpec { path: path.clone() }).collect();
    let object = Object::create(Rc::clone(engine), &specs, geometry, volume).await?;
    if options.preallocation == Preallocation::Full {
        object.fill_with_zeros().await?;
    }

    // Log and root slots are overwritten for ever after: writing them now gives them real blocks, so that a later flush
    // has no allocation to make durable. It also removes what an earlier volume left on a device.
    let piece = Buffer::zeroed(1 << 20).freeze();
    let end = LOG_START.0 + log_bytes + metadata_log_bytes(log_bytes);
    let mut at = 0;
    while at < end {
        let len = (end - at).min(piece.len() as u64);
        object.write_metadata(MetadataAddress(at), vec![piece.slice(0..len as usize)]).await?;
        at += len;
    }
    object.flush_metadata().await?;
    let root = Root {
        sequence: 1,
        epoch: 1,
        epoch_first_record: 1,
        applied_transaction: 0,
        replay_position: 0,
        replay_sequence: 1,
        replay_previous_checksum: 0,
        middle_limit: MIDDLE_RESERVE,
        metadata_log_blocks: metadata_log_bytes(log_bytes) / BLOCK_BYTES as u64,
        moved_position: 0,
        moved_sequence: 1,
        moved_previous_checksum: 0,
        moved_records: 0,
        log_blocks: log_bytes / BLOCK_BYTES as u64,
        page_area_bytes,
        total_blocks,
        kept_epoch: 0,
        trees: Roots::default(),
    };
    let bytes = root.encode(volume);
    debug_assert!(bytes.len() <= ROOT_SLOT_BYTES);
    object.write_metadata(Root::slot(1), vec![ringfort_engine::buffer::Slice::copy_of(&bytes)]).await?;
    object.flush_metadata().await?;
    Ok((object, volume))
}
