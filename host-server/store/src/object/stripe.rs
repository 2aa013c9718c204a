//! Writing whole stripes: parity, then one gather write a column.

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::completion::Completion;

use super::Object;
use super::component::{Component, Part};
use super::erasure::Code;
use crate::address::{BlockChecksum, ColumnIndex, SegmentId, StripeIndex};
use crate::error::{ErrorKind, StoreError};
use crate::format::checksum::block_checksum;
use crate::geometry::Geometry;

/// The pieces of one column over consecutive stripes, in order.
type ColumnPieces = Vec<Slice>;

/// Full stripes on their way to the components.
#[must_use = "a write that fails must expel its component"]
pub struct StripeWrite<'a> {
    object: &'a Object,
    writes: Vec<(&'a Component, Completion<()>)>,
    parity_checksums: Vec<BlockChecksum>,
}

impl StripeWrite<'_> {
    /// Returns the checksums of the parity blocks: for each stripe, for each parity column, for each block of the unit.
    /// Visible to reads that begin later; durable after [`flush_data`](Object::flush_data).
    ///
    /// Failed components are skipped; one that fails now is expelled. An error only where too few components are left.
    pub async fn finish(self) -> Result<Vec<BlockChecksum>, StoreError> {
        self.object.finish_writes(self.writes, Part::Data).await?;
        Ok(self.parity_checksums)
    }
}

impl Object {
    /// Begins to write full stripes from `first_stripe` on: `data` is whole blocks in logical order (stripe by stripe, column by
    /// column). When this returns, every column is with its device or goes there at the engine's next turn.
    ///
    /// Nobody may be reading these stripes meanwhile.
    pub async fn begin_stripes(
        &self,
        segment: SegmentId,
        first_stripe: StripeIndex,
        data: Vec<Slice>,
    ) -> Result<StripeWrite<'_>, StoreError> {
        self.check_writable()?;
        let stripe_count = check_stripes(&self.geometry, segment, first_stripe, &data)?;
        let columns = split(&self.geometry, stripe_count, &data);
        let mut writes = Vec::with_capacity(usize::from(self.geometry.column_count()));
        self.submit_columns(&mut writes, segment, first_stripe, 0, columns.clone());
        if self.geometry.parity_columns > 0 {
            // The devices get the data now, and have something to do while parity is computed.
            self.engine.yield_now().await;
        }
        let (parity, parity_checksums) = encode(&self.geometry, &self.code, stripe_count, &columns);
        let parity = parity.into_iter().map(|parity| vec![parity]).collect();
        self.submit_columns(&mut writes, segment, first_stripe, self.geometry.data_columns, parity);
        Ok(StripeWrite { object: self, writes, parity_checksums })
    }

    /// [`begin_stripes`](Self::begin_stripes) and [`finish`](StripeWrite::finish).
    pub async fn write_stripes(
        &self,
        segment: SegmentId,
        first_stripe: StripeIndex,
        data: Vec<Slice>,
    ) -> Result<Vec<BlockChecksum>, StoreError> {
        self.begin_stripes(segment, first_stripe, data).await?.finish().await
    }

    /// Submits a write for each of the columns from `first_column` on whose component is in use.
    fn submit_columns<'a>(
        &'a self,
        writes: &mut Vec<(&'a Component, Completion<()>)>,
        segment: SegmentId,
        first_stripe: StripeIndex,
        first_column: u8,
        columns: Vec<ColumnPieces>,
    ) {
        for (column, pieces) in (first_column..).map(ColumnIndex).zip(columns) {
            let position = self.geometry.position_of(segment, column);
            let component = &self.components[usize::from(position.0)];
            let offset_bytes = self.geometry.unit_offset(position, segment, first_stripe);
            writes.extend(component.write(offset_bytes, pieces).map(|write| (component, write)));
        }
    }

    /// Makes every data write that completed before the call durable.
    pub async fn flush_data(&self) -> Result<(), StoreError> {
        self.flush_parts(&[Part::Data]).await
    }

    /// [`flush_data`](Self::flush_data) and [`flush_metadata`](Self::flush_metadata) at once: each component is flushed at most
    /// one time.
    pub async fn flush_all(&self) -> Result<(), StoreError> {
        self.flush_parts(&[Part::Metadata, Part::Data]).await
    }
}

/// How many stripes the data fills.
fn check_stripes(
    geometry: &Geometry,
    segment: SegmentId,
    first_stripe: StripeIndex,
    data: &[Slice],
) -> Result<usize, StoreError> {
    let len_bytes: u64 = data.iter().map(|slice| slice.len() as u64).sum();
    let stripe_count = len_bytes / geometry.stripe_data_bytes();
    let fits = segment.0 < geometry.segment_count
        && u64::from(first_stripe.0) + stripe_count <= u64::from(geometry.stripes_per_segment);
    let whole = stripe_count > 0 && len_bytes.is_multiple_of(geometry.stripe_data_bytes());
    if fits && whole && data.iter().all(Slice::is_block_aligned) {
        return Ok(stripe_count as usize);
    }
    Err(StoreError::new(
        ErrorKind::Invalid,
        "write",
        format!("segment {segment}, stripe {first_stripe}"),
        format!("{len_bytes} bytes"),
    )
    .expected(format!(
        "aligned blocks that fill stripes of {} bytes, at most {} in each of {} segments",
        geometry.stripe_data_bytes(),
        geometry.stripes_per_segment,
        geometry.segment_count
    )))
}

/// Deals the units out to the data columns, without copying.
fn split(geometry: &Geometry, stripe_count: usize, data: &[Slice]) -> Vec<ColumnPieces> {
    let (unit_bytes, column_count) = (geometry.unit_bytes as usize, usize::from(geometry.data_columns));
    let mut columns: Vec<ColumnPieces> =
        vec![Vec::with_capacity(stripe_count + data.len() / column_count); column_count];
    let mut offset = 0;
    for slice in data {
        let mut taken = 0;
        while taken < slice.len() {
            let column = offset / unit_bytes % column_count;
            let len = (unit_bytes - offset % unit_bytes).min(slice.len() - taken);
            columns[column].push(slice.slice(taken..taken + len));
            taken += len;
            offset += len;
        }
    }
    columns
}

/// Computes all parity columns, and their blocks' checksums while the bytes are in the cache.
fn encode(
    geometry: &Geometry,
    code: &Code,
    stripe_count: usize,
    columns: &[ColumnPieces],
) -> (Vec<Slice>, Vec<BlockChecksum>) {
    let blocks_per_unit = geometry.blocks_per_unit() as usize;
    let parity_columns = usize::from(geometry.parity_columns);
    if parity_columns == 0 {
        return (Vec::new(), Vec::new());
    }
    let column_bytes = stripe_count * geometry.unit_bytes as usize;
    let mut parity: Vec<Buffer> = (0..parity_columns).map(|_| Buffer::for_overwrite(column_bytes)).collect();
    let mut checksums = vec![BlockChecksum::default(); stripe_count * parity_columns * blocks_per_unit];
    // Where each column stands: piece, and offset in it.
    let mut cursors = vec![(0, 0); columns.len()];
    let mut sources: Vec<&[u8]> = Vec::with_capacity(columns.len());
    let mut offset = 0;
    while offset < column_bytes {
        // The longest stretch that lies within one piece of every column, cut so that all columns stay in the cache.
        let longest = columns
            .iter()
            .zip(&cursors)
            .map(|(pieces, (piece, within))| pieces[*piece].len() - within)
            .fold(ENCODE_BYTES.min(column_bytes - offset), usize::min);
        sources.clear();
        for (pieces, (piece, within)) in columns.iter().zip(&mut cursors) {
            sources.push(&pieces[*piece][*within..*within + longest]);
            *within += longest;
            if *within == pieces[*piece].len() {
                (*piece, *within) = (*piece + 1, 0);
            }
        }
        let mut outputs: Vec<&mut [u8]> =
            parity.iter_mut().map(|parity| &mut parity[offset..offset + longest]).collect();
        code.encode(&sources, &mut outputs);
        for (column, output) in outputs.iter().enumerate() {
            for (index, block) in output.chunks_exact(BLOCK_BYTES).enumerate() {
                let row = offset / BLOCK_BYTES + index;
                let (stripe, block_in_unit) = (row / blocks_per_unit, row % blocks_per_unit);
                checksums[(stripe * parity_columns + column) * blocks_per_unit + block_in_unit] =
                    block_checksum(block);
            }
        }
        offset += longest;
    }
    (parity.into_iter().map(Buffer::freeze).collect(), checksums)
}

/// With 16 data columns, half a megabyte of sources.
const ENCODE_BYTES: usize = 32 << 10;
