//! Making a volume larger that nobody serves.
//!
//! Order: the components get their length; the labels tell of more segments; the root offers them. A crash in between leaves the
//! old size and room that nobody offers yet, and the next attempt goes on from there.

use std::path::PathBuf;
use std::rc::Rc;

use ringfort_engine::buffer::BLOCK_BYTES;
use ringfort_engine::engine::Engine;

use crate::address::{ComponentPosition, VolumeId};
use crate::create::page_area_bytes;
use crate::error::{ErrorKind, StoreError};
use crate::format::root::Root;
use crate::geometry::Geometry;
use crate::keep;
use crate::limits::SPARE_SEGMENTS;
use crate::object::Object;
use crate::recover::{self, find_root};
use crate::store::OpenOptions;

/// Bytes of data for which a byte of page area suffices: 4 %. Beyond, metadata would run out long before data.
const DATA_BYTES_A_PAGE_BYTE: u64 = 25;

/// What becomes of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentGrowth {
    pub position: ComponentPosition,
    pub path: PathBuf,
    /// What the volume uses of it now.
    pub before_bytes: u64,
    /// What the volume will use of it.
    pub after_bytes: u64,
    /// How long the file or device is.
    pub present_bytes: u64,
}

/// What growing means for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrowPlan {
    pub volume: VolumeId,
    /// Usable data.
    pub before_bytes: u64,
    pub after_bytes: u64,
    /// The most that metadata region and memory allow.
    pub limit_bytes: u64,
    pub components: Vec<ComponentGrowth>,
}

/// What [`grow`] would do; reads only. `wanted_bytes` is the usable size; `None`: as much as the present lengths of the components
/// allow.
pub async fn plan(
    engine: Rc<dyn Engine>,
    components: &[PathBuf],
    wanted_bytes: Option<u64>,
    options: &OpenOptions,
) -> Result<GrowPlan, StoreError> {
    Ok(survey(&engine, components, wanted_bytes, options).await?.0)
}

/// Makes the volume larger. Files are extended; block devices must be long enough. After a crash at any point the volume has the old
/// size or the new one, and growing it once more completes what was begun.
pub async fn grow(
    engine: Rc<dyn Engine>,
    components: &[PathBuf],
    wanted_bytes: Option<u64>,
    options: &OpenOptions,
) -> Result<GrowPlan, StoreError> {
    let (plan, shape) = survey(&engine, components, wanted_bytes, options).await?;
    for component in &plan.components {
        engine.extend(&component.path, component.after_bytes)?;
    }
    let (mut object, _) = Object::open(Rc::clone(&engine), components, options.of_object(true)).await?;
    if *object.geometry() != shape.geometry {
        object.grow(shape.geometry).await?;
    }
    let (volume, interval, memory_bytes) = (plan.volume, options.commit_interval, options.memory_bytes);
    let (core, _) = recover::recover(Rc::clone(&engine), object, volume, interval, memory_bytes).await?;
    core.offer(plan.after_bytes / BLOCK_BYTES as u64, shape.page_area_bytes).await?;
    keep::forget(&engine, plan.volume);
    Ok(plan)
}

async fn survey(
    engine: &Rc<dyn Engine>,
    components: &[PathBuf],
    wanted_bytes: Option<u64>,
    options: &OpenOptions,
) -> Result<(GrowPlan, Shape), StoreError> {
    let (object, _) = Object::open(Rc::clone(engine), components, options.of_object(false)).await?;
    let volume = object.volume();
    let root = find_root(&object, volume).await?;
    let present = Shape { geometry: *object.geometry(), page_area_bytes: root.page_area_bytes };
    let lengths = present_lengths(&object)?;
    let before_bytes = root.total_blocks * BLOCK_BYTES as u64;
    let (limit_segments, limit_reason) = present.limit(&root);
    let limit_bytes = present.usable_bytes(limit_segments).max(before_bytes);
    let after_bytes = match wanted_bytes {
        Some(wanted_bytes) => wanted_bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64,
        None => {
            let fits = |shape: &Shape| shape.fits_into(&lengths);
            present.usable_bytes(present.most_segments(&root, fits)).clamp(before_bytes, limit_bytes)
        }
    };
    let refused = || {
        let place = format!("volume {volume} of {before_bytes} bytes");
        StoreError::new(ErrorKind::Invalid, "grow", place, format!("a size of {after_bytes} bytes"))
    };
    if after_bytes < before_bytes {
        return Err(refused().advice("a volume cannot be made smaller"));
    }
    if after_bytes > limit_bytes {
        return Err(refused().expected(format!("at most {limit_bytes} bytes: {limit_reason}")));
    }
    let segments = after_bytes.div_ceil(present.segment_bytes()) + SPARE_SEGMENTS;
    let segments = u32::try_from(segments).unwrap_or(u32::MAX).max(present.geometry.segment_count);
    let shape = present.with_segments(&root, segments);
    let components =
        object.tree().components.into_iter().zip(lengths).map(|(component, present_bytes)| ComponentGrowth {
            position: component.position,
            path: component.path,
            before_bytes: present.geometry.component_bytes(component.position),
            after_bytes: shape.geometry.component_bytes(component.position),
            present_bytes,
        });
    let components = components.collect();
    Ok((GrowPlan { volume, before_bytes, after_bytes, limit_bytes, components }, shape))
}

/// Every component takes part: one that is away would come back too short.
fn present_lengths(object: &Object) -> Result<Vec<u64>, StoreError> {
    let lengths = object.present_lengths();
    match lengths.iter().position(Option::is_none) {
        None => Ok(lengths.into_iter().flatten().collect()),
        Some(position) => {
            let place = format!("volume {}", object.volume());
            let found = format!("component {position} is not in use");
            Err(StoreError::new(ErrorKind::Unavailable, "grow", place, found)
                .advice("bring it back or replace it first"))
        }
    }
}

/// What a size decides.
#[derive(Clone, Copy)]
struct Shape {
    geometry: Geometry,
    page_area_bytes: u64,
}

impl Shape {
    fn segment_bytes(&self) -> u64 {
        self.geometry.blocks_per_segment() * BLOCK_BYTES as u64
    }

    /// Data that so many segments offer.
    fn usable_bytes(&self, segments: u32) -> u64 {
        u64::from(segments).saturating_sub(SPARE_SEGMENTS) * self.segment_bytes()
    }

    /// Mirrors that have components of their own get a longer page area as well; elsewhere data follows the metadata region.
    fn with_segments(&self, root: &Root, segment_count: u32) -> Self {
        let geometry = Geometry { segment_count, ..self.geometry };
        if !geometry.dedicated_metadata {
            return Self { geometry, ..*self };
        }
        let page_area_bytes = page_area_bytes(&geometry).max(root.page_area_bytes);
        let metadata_bytes = geometry.metadata_bytes.max(root.page_area_start().0 + page_area_bytes);
        Self { geometry: Geometry { metadata_bytes, ..geometry }, page_area_bytes }
    }

    fn fits_into(&self, lengths: &[u64]) -> bool {
        let mut lengths = (0..).map(ComponentPosition).zip(lengths);
        lengths.all(|(position, present_bytes)| self.geometry.component_bytes(position) <= *present_bytes)
    }

    /// Segments for which the metadata region suffices, and why there are no more.
    fn limit(&self, root: &Root) -> (u32, String) {
        let by_pages = self.most_segments(root, |shape| {
            let data_bytes = shape.geometry.data_blocks().saturating_mul(BLOCK_BYTES as u64);
            data_bytes <= shape.page_area_bytes.saturating_mul(DATA_BYTES_A_PAGE_BYTE)
        });
        let reason =
            format!("the metadata region, made with the volume, has {} bytes for maps", self.page_area_bytes);
        (by_pages, reason)
    }

    /// The largest count of segments that `fits`, the present one at least.
    fn most_segments(&self, root: &Root, fits: impl Fn(&Self) -> bool) -> u32 {
        let (mut fitting, mut too_many) = (self.geometry.segment_count, u32::MAX);
        while too_many - fitting > 1 {
            let middle = fitting + (too_many - fitting) / 2;
            let bounded = Geometry { segment_count: middle, ..self.geometry }.check().is_ok();
            if bounded && fits(&self.with_segments(root, middle)) {
                fitting = middle;
            } else {
                too_many = middle;
            }
        }
        fitting
    }
}
