//! Objects on simulated devices.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::engine::Engine;
use ringfort_engine::sim::SimWorld;

use super::{ChecksumSource, ComponentSpec, Fetched, Object, OpenOptions, OpenReport};
use crate::address::{
    BlockChecksum, ColumnIndex, ComponentPosition, MetadataAddress, PhysicalBlock, SegmentId, StripeIndex,
    VolumeId,
};
use crate::error::StoreError;
use crate::format::checksum::block_checksum;
use crate::geometry::{ColumnBlock, Geometry};

mod data;
mod membership;
mod metadata;
mod opening;
mod rebuild;

const VOLUME: VolumeId = VolumeId(0xfeed_0000_0000_0000_0000_0000_0000_beef);
const WRITE: OpenOptions = OpenOptions { write: true, allow_partial_membership: false, volume: None };
const READ: OpenOptions = OpenOptions { write: false, ..WRITE };

fn geometry(data_columns: u8, parity_columns: u8) -> Geometry {
    Geometry {
        unit_bytes: 8192,
        stripes_per_segment: 4,
        ..Geometry::new(data_columns, parity_columns, 7, 64 << 10)
    }
}

fn paths(geometry: &Geometry) -> Vec<PathBuf> {
    (0..geometry.component_count()).map(|position| PathBuf::from(format!("disk{position}"))).collect()
}

fn disk(position: ComponentPosition) -> PathBuf {
    PathBuf::from(format!("disk{position}"))
}

async fn create(engine: &Rc<dyn Engine>, geometry: Geometry) -> Object {
    let specs: Vec<ComponentSpec> = paths(&geometry).into_iter().map(|path| ComponentSpec { path }).collect();
    Object::create(Rc::clone(engine), &specs, geometry, VOLUME).await.unwrap()
}

async fn open(
    engine: &Rc<dyn Engine>,
    geometry: &Geometry,
    options: OpenOptions,
) -> Result<(Object, OpenReport), StoreError> {
    Object::open(Rc::clone(engine), &paths(geometry), options).await
}

/// The contents of a block: a function of its number and of which writing it was.
fn block(number: u64, writing: u64) -> Vec<u8> {
    let mut state = (number << 8 | writing).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..BLOCK_BYTES / 8).flat_map(|_| word().to_le_bytes()).collect()
}

/// Blocks in one slice.
fn blocks(numbers: std::ops::Range<u64>, writing: u64) -> Slice {
    let mut buffer = Buffer::zeroed((numbers.end - numbers.start) as usize * BLOCK_BYTES);
    for (to, number) in buffer.chunks_exact_mut(BLOCK_BYTES).zip(numbers) {
        to.copy_from_slice(&block(number, writing));
    }
    buffer.freeze()
}

/// The checksums of every block of every column, as the segments' summaries would have them.
#[derive(Default)]
struct Summary {
    known: RefCell<HashMap<ColumnBlock, BlockChecksum>>,
    loads: RefCell<u32>,
}

impl ChecksumSource for Summary {
    fn load<'a>(&'a self, _: SegmentId) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        *self.loads.borrow_mut() += 1;
        Box::pin(std::future::ready(()))
    }

    fn checksum(&self, place: ColumnBlock) -> Option<BlockChecksum> {
        assert!(*self.loads.borrow() > 0, "asked before loading");
        self.known.borrow().get(&place).copied()
    }
}

impl Summary {
    /// Writes full stripes of [`block`]s and remembers their checksums. `cut_blocks` is how long the slices are.
    async fn write(
        &self,
        object: &Object,
        segment: SegmentId,
        stripes: std::ops::Range<u32>,
        cut_blocks: u64,
        writing: u64,
    ) -> Result<(), StoreError> {
        let geometry = object.geometry();
        let first = geometry.stripe_start(segment, StripeIndex(stripes.start)).0;
        let end = first + (stripes.len() as u64) * geometry.blocks_per_stripe();
        let mut data = Vec::new();
        let mut next = first;
        while next < end {
            let cut = cut_blocks.min(end - next);
            data.push(blocks(next..next + cut, writing));
            next += cut;
        }
        let parity = object.write_stripes(segment, StripeIndex(stripes.start), data).await?;
        let mut known = self.known.borrow_mut();
        for number in first..end {
            known.insert(geometry.locate(PhysicalBlock(number)), block_checksum(&block(number, writing)));
        }
        let mut parity = parity.into_iter();
        for stripe in stripes.map(StripeIndex) {
            for column in (geometry.data_columns..geometry.column_count()).map(ColumnIndex) {
                for block_in_unit in 0..geometry.blocks_per_unit() {
                    let place = ColumnBlock { segment, stripe, column, block_in_unit };
                    known.insert(place, parity.next().unwrap());
                }
            }
        }
        assert_eq!(parity.next(), None);
        Ok(())
    }

    /// Reads `count` blocks and compares them with what was written.
    async fn check(&self, object: &Object, first: u64, count: u64, writing: u64) -> Result<(), StoreError> {
        let expected: Vec<BlockChecksum> =
            (first..first + count).map(|number| block_checksum(&block(number, writing))).collect();
        let slices = read_blocks(object, first, &expected, self).await?;
        let found: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        assert_eq!(found.len() as u64, count * BLOCK_BYTES as u64);
        for (found, number) in found.chunks_exact(BLOCK_BYTES).zip(first..) {
            assert!(found == block(number, writing), "block {number}");
        }
        Ok(())
    }
}

/// Both halves of a read.
async fn read_blocks(
    object: &Object,
    first: u64,
    expected: &[BlockChecksum],
    summary: &Summary,
) -> Result<Vec<Slice>, StoreError> {
    match object.fetch_blocks(PhysicalBlock(first), expected).await? {
        Fetched::Whole(slices) => Ok(slices),
        Fetched::Partial(partial) => object.make_good(partial, expected, summary).await,
    }
}

/// Where a block lies on which device.
fn find_on_disk(geometry: &Geometry, place: ColumnBlock) -> (PathBuf, u64) {
    let position = geometry.position_of(place.segment, place.column);
    let offset_bytes = geometry.unit_offset(position, place.segment, place.stripe)
        + u64::from(place.block_in_unit) * BLOCK_BYTES as u64;
    (disk(position), offset_bytes)
}

/// A world with a new object that is closed again.
fn world_with_object(seed: u64, geometry: Geometry) -> SimWorld {
    let world = SimWorld::new(seed);
    let engine = world.engine();
    world.run(async move { drop(create(&engine, geometry).await) }).done();
    world
}
