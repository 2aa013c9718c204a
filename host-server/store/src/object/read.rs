//! Reading data blocks: verified, reconstructed where a component does not give them, repaired in place.
//!
//! In two halves: most reads end with the first, which changes nothing.
//!
//! A logically contiguous range touches one contiguous range of rows in each column, so that every component is asked once,
//! however many stripes the range covers.

use std::ops::Range;

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};

use super::Object;
use super::component::Part;
use super::reconstruct::{ChecksumSource, Image, Missing, Reading, block_range, find, hull};
use crate::address::{BlockChecksum, ColumnIndex, PhysicalBlock, SegmentId};
use crate::error::{ErrorKind, StoreError};
use crate::format::checksum::block_checksum;
use crate::geometry::{ColumnBlock, Geometry};

fn row_of(geometry: &Geometry, place: ColumnBlock) -> u32 {
    place.stripe.0 * geometry.blocks_per_unit() + place.block_in_unit
}

/// The rows of `column` between `first` and `last`, both included.
fn rows_between(
    geometry: &Geometry,
    first: ColumnBlock,
    last: ColumnBlock,
    column: ColumnIndex,
) -> Range<u32> {
    let blocks = geometry.blocks_per_unit();
    let start = match column.cmp(&first.column) {
        std::cmp::Ordering::Less => (first.stripe.0 + 1) * blocks,
        std::cmp::Ordering::Equal => row_of(geometry, first),
        std::cmp::Ordering::Greater => first.stripe.0 * blocks,
    };
    let end = match column.cmp(&last.column) {
        std::cmp::Ordering::Less => (last.stripe.0 + 1) * blocks,
        std::cmp::Ordering::Equal => row_of(geometry, last) + 1,
        std::cmp::Ordering::Greater => last.stripe.0 * blocks,
    };
    start..end.max(start)
}

/// What [`Object::fetch_blocks`] got.
pub enum Fetched {
    /// Slices that cover the blocks in order, verified.
    Whole(Vec<Slice>),
    /// Some blocks were not given or are wrong.
    Partial(PartialRead),
}

/// A read that [`Object::make_good`] goes on with.
pub struct PartialRead {
    segment: SegmentId,
    first: PhysicalBlock,
    images: Vec<Image>,
    missing: Vec<Missing>,
}

impl Object {
    /// Reads `expected.len()` blocks from `first` on, all of one segment; `expected` are their checksums. Changes nothing, so it
    /// may be dropped at any time.
    ///
    /// Nobody may be writing these stripes meanwhile, and their segment may not be reused until the read is done.
    pub async fn fetch_blocks(
        &self,
        first: PhysicalBlock,
        expected: &[BlockChecksum],
    ) -> Result<Fetched, StoreError> {
        let (start, last) = self.check_blocks(first, expected.len() as u64)?;
        let mut reading =
            Reading { object: self, segment: start.segment, first, expected, images: Vec::new() };
        reading.fetch(reading.plan(start, last)).await;
        let missing = reading.missing();
        if missing.is_empty() {
            return Ok(Fetched::Whole(reading.gather(&[], &[])));
        }
        let Reading { segment, images, .. } = reading;
        Ok(Fetched::Partial(PartialRead { segment, first, images, missing }))
    }

    /// Completes a read: reconstructs the blocks that components did not give, or gave wrong, from K others, and writes them back
    /// where that component is in use. [`ErrorKind::Damaged`] names the first block that cannot be had.
    ///
    /// `expected` is what it was for [`fetch_blocks`](Self::fetch_blocks), whose conditions hold until this is done.
    pub async fn make_good(
        &self,
        partial: PartialRead,
        expected: &[BlockChecksum],
        summary: &dyn ChecksumSource,
    ) -> Result<Vec<Slice>, StoreError> {
        let PartialRead { segment, first, images, mut missing } = partial;
        let mut reading = Reading { object: self, segment, first, expected, images };
        summary.load(segment).await;
        let rebuilt = match reading.reconstruct(&missing, summary) {
            Ok(rebuilt) => rebuilt,
            Err(_) => {
                reading.widen(&missing).await;
                missing = reading.missing();
                reading.reconstruct(&missing, summary)?
            }
        };
        reading.repair(&missing, &rebuilt).await;
        Ok(reading.gather(&missing, &rebuilt))
    }

    /// The first and the last of `count` blocks, which must be within one segment.
    fn check_blocks(
        &self,
        first: PhysicalBlock,
        count: u64,
    ) -> Result<(ColumnBlock, ColumnBlock), StoreError> {
        let geometry = &self.geometry;
        let last = first.0.checked_add(count.max(1) - 1).filter(|last| {
            count > 0
                && *last < geometry.data_blocks()
                && first.0 / geometry.blocks_per_segment() == last / geometry.blocks_per_segment()
        });
        match last {
            Some(last) => Ok((geometry.locate(first), geometry.locate(PhysicalBlock(last)))),
            None => Err(StoreError::new(
                ErrorKind::Invalid,
                "read",
                format!("physical block {first}"),
                format!("{count} blocks"),
            )
            .expected(format!(
                "at least one, within one segment of {} blocks and {} segments",
                geometry.blocks_per_segment(),
                geometry.segment_count
            ))),
        }
    }
}

impl Reading<'_> {
    /// What to read: the requested rows, and where components are missing as much of K others as replaces them, so that a
    /// degraded read takes one round like any other.
    fn plan(&self, first: ColumnBlock, last: ColumnBlock) -> Vec<(ColumnIndex, Range<u32>)> {
        let geometry = self.geometry();
        let mut wanted: Vec<(ColumnIndex, Range<u32>)> = Vec::new();
        let mut replaced = 0..0;
        for column in (0..geometry.column_count()).map(ColumnIndex) {
            let is_data = column.0 < geometry.data_columns;
            let rows = if is_data { rows_between(geometry, first, last, column) } else { 0..0 };
            if self.component(column).is_live() {
                wanted.push((column, rows));
            } else {
                replaced = hull(replaced, rows);
            }
        }
        if !replaced.is_empty() {
            // Columns that are read anyway come first, then data before parity.
            wanted.sort_by_key(|(_, rows)| rows.is_empty());
            for (_, rows) in wanted.iter_mut().take(usize::from(geometry.data_columns)) {
                *rows = hull(rows.clone(), replaced.clone());
            }
        }
        wanted.retain(|(_, rows)| !rows.is_empty());
        wanted
    }

    /// The requested blocks that were not read or are wrong.
    fn missing(&self) -> Vec<Missing> {
        let geometry = self.geometry();
        let mut missing = Vec::new();
        for (index, expected) in self.expected.iter().enumerate() {
            let place = geometry.locate(PhysicalBlock(self.first.0 + index as u64));
            let (column, row) = (place.column, row_of(geometry, place));
            match self.read_block(column, row) {
                Some(block) if block_checksum(block) == *expected => {}
                _ => missing.push(Missing { column, row, expected: *expected }),
            }
        }
        missing.sort_by_key(|missing| (missing.row, missing.column));
        missing
    }

    /// Writes reconstructed blocks back to components that are in use. What goes wrong here expels components and fails
    /// nobody's read.
    async fn repair(&self, missing: &[Missing], rebuilt: &[Image]) {
        if self.object.check_writable().is_err() {
            return;
        }
        let mut writes = Vec::new();
        for image in rebuilt {
            let component = self.component(image.column);
            if !component.is_live() {
                continue;
            }
            let rows: Vec<u32> = missing
                .iter()
                .filter(|missing| missing.column == image.column)
                .map(|missing| missing.row)
                .collect();
            for run in rows.chunk_by(|a, b| a + 1 == *b) {
                let (first, last) = (run[0], run[run.len() - 1]);
                let place = self.place(image.column, first);
                let offset_bytes =
                    self.geometry().unit_offset(component.position, self.segment, place.stripe)
                        + u64::from(place.block_in_unit) * BLOCK_BYTES as u64;
                let bytes = image
                    .bytes
                    .slice(block_range(&image.rows, first).start..block_range(&image.rows, last).end);
                if let Some(events) = component.log_turn() {
                    let blocks = run.len();
                    tracing::warn!(
                        volume = %self.object.volume,
                        position = component.position.0,
                        path = %component.path.display(),
                        %place,
                        blocks,
                        events,
                        "blocks of data failed their checksum or could not be read, and are written back from the other \
                         components. Where this goes on, the device is failing: replace it"
                    );
                }
                component.count(|counters| counters.repaired_blocks += run.len() as u64);
                if let Some(write) = component.write(offset_bytes, vec![bytes]) {
                    writes.push((component, write));
                }
            }
        }
        if writes.is_empty() {
            return;
        }
        if let Err(error) = self.object.finish_writes(writes, Part::Data).await {
            tracing::error!(
                volume = %self.object.volume,
                %error,
                "blocks that failed their checksum could not be written back; readers still get the right bytes"
            );
        }
    }

    /// The requested blocks in order, neighbours in memory as one slice.
    fn gather(&self, missing: &[Missing], rebuilt: &[Image]) -> Vec<Slice> {
        let geometry = self.geometry();
        let mut is_missing = vec![false; self.expected.len()];
        for index in missing.iter().filter_map(|missing| self.requested(missing.column, missing.row)) {
            is_missing[index] = true;
        }
        let mut slices = Vec::new();
        let mut index = 0;
        while index < self.expected.len() {
            let place = geometry.locate(PhysicalBlock(self.first.0 + index as u64));
            let row = row_of(geometry, place);
            let left_in_unit = (geometry.blocks_per_unit() - place.block_in_unit) as usize;
            let run = is_missing[index..]
                .iter()
                .take(left_in_unit)
                .take_while(|missing| **missing == is_missing[index])
                .count();
            let images = if is_missing[index] { rebuilt } else { &self.images };
            let Some(image) = find(images, place.column, row) else {
                unreachable!("block {place} was read or reconstructed")
            };
            let run = run.min((image.rows.end - row) as usize);
            let start = block_range(&image.rows, row).start;
            slices.push(image.bytes.slice(start..start + run * BLOCK_BYTES));
            index += run;
        }
        slices
    }
}
