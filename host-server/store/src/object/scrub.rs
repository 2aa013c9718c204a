//! Comparing what stripes hold with what their summaries say.

use ringfort_engine::buffer::BLOCK_BYTES;
use ringfort_engine::sync::join_all;

use super::Object;
use super::reconstruct::ChecksumSource;
use crate::address::{BlockChecksum, ColumnIndex, SegmentId, StripeIndex};
use crate::format::checksum::block_checksum;
use crate::geometry::ColumnBlock;

/// A block that is not what its summary says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeFault {
    pub place: ColumnBlock,
    /// Path of the component.
    pub component: String,
    pub expected: BlockChecksum,
    /// The checksum found, or why there is none.
    pub found: Result<BlockChecksum, String>,
}

impl std::fmt::Display for StripeFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { place, component, expected, found } = self;
        write!(f, "{component}: {place}: expected checksum {:08x}, ", expected.0)?;
        match found {
            Ok(found) => write!(f, "found {:08x}", found.0),
            Err(error) => f.write_str(error),
        }
    }
}

impl Object {
    /// Reads every column of `count` stripes, parity included, from the components in use, and returns the blocks that differ from
    /// `summary`. Repairs nothing. Blocks of unknown checksum are passed over.
    pub async fn verify_stripes(
        &self,
        segment: SegmentId,
        first: StripeIndex,
        count: u32,
        summary: &dyn ChecksumSource,
    ) -> Vec<StripeFault> {
        summary.load(segment).await;
        let columns = (0..self.geometry.column_count()).map(ColumnIndex);
        let faults = columns.map(|column| self.verify_column(segment, first, count, column, summary));
        join_all(faults).await.into_iter().flatten().collect()
    }

    async fn verify_column(
        &self,
        segment: SegmentId,
        first: StripeIndex,
        count: u32,
        column: ColumnIndex,
        summary: &dyn ChecksumSource,
    ) -> Vec<StripeFault> {
        let geometry = &self.geometry;
        let position = geometry.position_of(segment, column);
        let component = &self.components[usize::from(position.0)];
        let unit_bytes = geometry.unit_bytes as usize;
        let offset_bytes = geometry.unit_offset(position, segment, first);
        let Some(read) = component.read(offset_bytes, unit_bytes * count as usize) else { return Vec::new() };
        let bytes = read.await.map_err(|error| error.to_string());
        let mut faults = Vec::new();
        for stripe in 0..count {
            for block_in_unit in 0..geometry.blocks_per_unit() {
                let place =
                    ColumnBlock { segment, stripe: StripeIndex(first.0 + stripe), column, block_in_unit };
                let Some(expected) = summary.checksum(place) else { continue };
                let start = stripe as usize * unit_bytes + block_in_unit as usize * BLOCK_BYTES;
                let found = match &bytes {
                    Ok(bytes) => Ok(block_checksum(&bytes[start..start + BLOCK_BYTES])),
                    Err(error) => Err(error.clone()),
                };
                if found != Ok(expected) {
                    faults.push(StripeFault { place, component: component.to_string(), expected, found });
                }
            }
        }
        faults
    }
}
