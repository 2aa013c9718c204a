//! Where every byte of an object lies.
//!
//! A component begins with a label region. On a component that mirrors metadata the metadata region follows; then,
//! on a component that holds columns, the data part. The data region is cut into segments, a segment into stripes,
//! a stripe into K data columns and M parity columns of one unit each. Columns rotate by one position from segment
//! to segment, so parity is spread while each component's part of a segment stays contiguous.

use ringfort_engine::buffer::BLOCK_BYTES;

use crate::address::{ColumnIndex, ComponentPosition, PhysicalBlock, SegmentId, StripeIndex};
use crate::error::{ErrorKind, StoreError};

/// Room for labels (and for whatever else must one day be found without knowing the geometry).
pub const LABEL_REGION_BYTES: u64 = 1 << 20;
pub const DATA_COLUMNS_MAX: u8 = 16;
pub const PARITY_COLUMNS_MAX: u8 = 3;
pub const MIRRORS_MAX: u8 = 4;
/// Keeps a column's part of a stripe within one device request.
pub const UNIT_BYTES_MAX: u32 = 1 << 20;
pub const UNIT_BYTES_DEFAULT: u32 = 32 << 10;

/// The shape of an object. Fixed when the object is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// K, at least 1.
    pub data_columns: u8,
    /// M: how many components may be lost.
    pub parity_columns: u8,
    /// Copies of the metadata region; M + 1 unless chosen otherwise.
    pub mirror_count: u8,
    /// The mirrors have components of their own, behind those of the columns. Otherwise the first
    /// `mirror_count` columns' components carry them.
    pub dedicated_metadata: bool,
    /// One column's part of one stripe.
    pub unit_bytes: u32,
    pub stripes_per_segment: u32,
    pub segment_count: u32,
    /// Length of the metadata region, which each mirror holds in full.
    pub metadata_bytes: u64,
}

/// A 4 KiB block of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ColumnBlock {
    pub segment: SegmentId,
    pub stripe: StripeIndex,
    pub column: ColumnIndex,
    /// Index inside the unit.
    pub block_in_unit: u32,
}

impl std::fmt::Display for ColumnBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { segment, stripe, column, block_in_unit } = self;
        write!(f, "segment {segment}, stripe {stripe}, column {column}, block {block_in_unit}")
    }
}

impl Geometry {
    /// Data columns and parity columns with the default unit, 64 stripes a segment and M + 1 embedded mirrors.
    pub fn new(data_columns: u8, parity_columns: u8, segment_count: u32, metadata_bytes: u64) -> Self {
        Self {
            data_columns,
            parity_columns,
            mirror_count: parity_columns.saturating_add(1).min(data_columns.saturating_add(parity_columns)),
            dedicated_metadata: false,
            unit_bytes: UNIT_BYTES_DEFAULT,
            stripes_per_segment: 64,
            segment_count,
            metadata_bytes,
        }
    }

    /// Refuses shapes outside the bounds. Every other method may assume a checked geometry.
    pub fn check(&self) -> Result<(), StoreError> {
        let bad = |found: String, expected: &str| {
            Err(StoreError::new(ErrorKind::Invalid, "use", "geometry", found).expected(expected))
        };
        if self.data_columns == 0 || self.data_columns > DATA_COLUMNS_MAX {
            return bad(format!("{} data columns", self.data_columns), "1 to 16");
        }
        if self.parity_columns > PARITY_COLUMNS_MAX {
            return bad(format!("{} parity columns", self.parity_columns), "0 to 3");
        }
        if self.mirror_count == 0 || self.mirror_count > MIRRORS_MAX {
            return bad(format!("{} metadata mirrors", self.mirror_count), "1 to 4");
        }
        if !self.dedicated_metadata && self.mirror_count > self.column_count() {
            return bad(
                format!("{} metadata mirrors on {} components", self.mirror_count, self.column_count()),
                "no more mirrors than components, or dedicated metadata components",
            );
        }
        if self.unit_bytes == 0
            || self.unit_bytes > UNIT_BYTES_MAX
            || !(self.unit_bytes as usize).is_multiple_of(BLOCK_BYTES)
        {
            return bad(format!("a unit of {} bytes", self.unit_bytes), "a multiple of 4096 up to 1 MiB");
        }
        if self.stripes_per_segment == 0 || self.segment_count == 0 {
            return bad(
                format!("{} segments of {} stripes", self.segment_count, self.stripes_per_segment),
                "at least one of each",
            );
        }
        if self.metadata_bytes == 0 || !self.metadata_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return bad(
                format!("a metadata region of {} bytes", self.metadata_bytes),
                "a positive multiple of 4096",
            );
        }
        // Bounding the sum here keeps every later computation inside 64 bits.
        let column_bytes = u128::from(self.segment_count)
            * u128::from(self.stripes_per_segment)
            * u128::from(self.unit_bytes);
        let object_bytes = column_bytes * u128::from(self.column_count()) + u128::from(self.metadata_bytes);
        if object_bytes > 1 << 62 {
            return bad(format!("{object_bytes} bytes"), "at most 2^62");
        }
        Ok(())
    }

    /// K + M.
    pub fn column_count(&self) -> u8 {
        self.data_columns + self.parity_columns
    }

    /// Columns' components and dedicated metadata components.
    pub fn component_count(&self) -> u8 {
        self.column_count() + if self.dedicated_metadata { self.mirror_count } else { 0 }
    }

    /// Whether two sets of components without a common member could each serve (K ≤ M).
    pub fn allows_disjoint_sets(&self) -> bool {
        self.data_columns <= self.parity_columns
    }

    pub fn blocks_per_unit(&self) -> u32 {
        self.unit_bytes / BLOCK_BYTES as u32
    }

    /// Data blocks of one stripe.
    pub fn blocks_per_stripe(&self) -> u64 {
        u64::from(self.blocks_per_unit()) * u64::from(self.data_columns)
    }

    /// Data blocks of one segment.
    pub fn blocks_per_segment(&self) -> u64 {
        self.blocks_per_stripe() * u64::from(self.stripes_per_segment)
    }

    /// Data blocks of the object.
    pub fn data_blocks(&self) -> u64 {
        self.blocks_per_segment() * u64::from(self.segment_count)
    }

    /// Data bytes of one stripe, parity not counted.
    pub fn stripe_data_bytes(&self) -> u64 {
        u64::from(self.unit_bytes) * u64::from(self.data_columns)
    }

    /// Components that hold a column.
    pub fn holds_columns(&self, position: ComponentPosition) -> bool {
        position.0 < self.column_count()
    }

    /// The component's number among the metadata mirrors, if it is one.
    pub fn mirror_of(&self, position: ComponentPosition) -> Option<u8> {
        let first = if self.dedicated_metadata { self.column_count() } else { 0 };
        position.0.checked_sub(first).filter(|mirror| *mirror < self.mirror_count)
    }

    /// The component that holds a metadata mirror.
    pub fn mirror_position(&self, mirror: u8) -> ComponentPosition {
        assert!(mirror < self.mirror_count);
        ComponentPosition(if self.dedicated_metadata { self.column_count() + mirror } else { mirror })
    }

    /// The component that holds a column of a segment.
    pub fn position_of(&self, segment: SegmentId, column: ColumnIndex) -> ComponentPosition {
        let count = u32::from(self.column_count());
        ComponentPosition(((u32::from(column.0) + segment.0 % count) % count) as u8)
    }

    /// The column of a segment that a component holds.
    pub fn column_of(&self, segment: SegmentId, position: ComponentPosition) -> ColumnIndex {
        let count = u32::from(self.column_count());
        ColumnIndex(((u32::from(position.0) + count - segment.0 % count) % count) as u8)
    }

    /// Offset of the metadata region on a component that mirrors it.
    pub fn metadata_base(&self) -> u64 {
        LABEL_REGION_BYTES
    }

    /// Offset of the data part on a component that holds columns.
    pub fn data_base(&self, position: ComponentPosition) -> u64 {
        LABEL_REGION_BYTES + if self.mirror_of(position).is_some() { self.metadata_bytes } else { 0 }
    }

    /// Offset of a stripe's unit on a component.
    pub fn unit_offset(&self, position: ComponentPosition, segment: SegmentId, stripe: StripeIndex) -> u64 {
        let unit = u64::from(segment.0) * u64::from(self.stripes_per_segment) + u64::from(stripe.0);
        self.data_base(position) + unit * u64::from(self.unit_bytes)
    }

    /// The length that a component must have.
    pub fn component_bytes(&self, position: ComponentPosition) -> u64 {
        if self.holds_columns(position) {
            self.unit_offset(position, SegmentId(self.segment_count), StripeIndex(0))
        } else {
            LABEL_REGION_BYTES + self.metadata_bytes
        }
    }

    /// The first data block of a stripe.
    pub fn stripe_start(&self, segment: SegmentId, stripe: StripeIndex) -> PhysicalBlock {
        let stripes = u64::from(segment.0) * u64::from(self.stripes_per_segment) + u64::from(stripe.0);
        PhysicalBlock(stripes * self.blocks_per_stripe())
    }

    /// The number of a data block. `place.column` is a data column.
    pub fn physical(&self, place: ColumnBlock) -> PhysicalBlock {
        debug_assert!(place.column.0 < self.data_columns && place.block_in_unit < self.blocks_per_unit());
        let in_stripe =
            u64::from(place.column.0) * u64::from(self.blocks_per_unit()) + u64::from(place.block_in_unit);
        PhysicalBlock(self.stripe_start(place.segment, place.stripe).0 + in_stripe)
    }

    /// Where a data block lies. `block` is inside the data region.
    pub fn locate(&self, block: PhysicalBlock) -> ColumnBlock {
        debug_assert!(block.0 < self.data_blocks(), "physical block {block} of {}", self.data_blocks());
        let in_segment = block.0 % self.blocks_per_segment();
        let in_stripe = in_segment % self.blocks_per_stripe();
        ColumnBlock {
            segment: SegmentId((block.0 / self.blocks_per_segment()) as u32),
            stripe: StripeIndex((in_segment / self.blocks_per_stripe()) as u32),
            column: ColumnIndex((in_stripe / u64::from(self.blocks_per_unit())) as u8),
            block_in_unit: (in_stripe % u64::from(self.blocks_per_unit())) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(data_columns: u8, parity_columns: u8) -> Geometry {
        Geometry {
            stripes_per_segment: 3,
            unit_bytes: 8192,
            ..Geometry::new(data_columns, parity_columns, 5, 1 << 16)
        }
    }

    #[test]
    fn every_data_block_has_one_place_and_comes_back_from_it() {
        for geometry in [small(1, 0), small(4, 2), small(16, 3)] {
            geometry.check().unwrap();
            let mut offsets = std::collections::HashSet::new();
            for number in 0..geometry.data_blocks() {
                let place = geometry.locate(PhysicalBlock(number));
                assert_eq!(geometry.physical(place), PhysicalBlock(number));
                let position = geometry.position_of(place.segment, place.column);
                assert_eq!(geometry.column_of(place.segment, position), place.column);
                let offset = geometry.unit_offset(position, place.segment, place.stripe)
                    + u64::from(place.block_in_unit) * BLOCK_BYTES as u64;
                assert!(offset + BLOCK_BYTES as u64 <= geometry.component_bytes(position));
                assert!(offsets.insert((position, offset)));
            }
        }
    }

    #[test]
    fn parity_visits_every_component() {
        let geometry = small(4, 2);
        let holders: std::collections::HashSet<_> =
            (0..6).map(|segment| geometry.position_of(SegmentId(segment), ColumnIndex(5))).collect();
        assert_eq!(holders.len(), 6);
    }

    #[test]
    fn mirrors_are_the_first_components_or_come_last() {
        let mut geometry = small(4, 2);
        assert_eq!(geometry.mirror_of(ComponentPosition(2)), Some(2));
        assert_eq!(geometry.mirror_of(ComponentPosition(3)), None);
        assert_eq!(geometry.data_base(ComponentPosition(2)), LABEL_REGION_BYTES + (1 << 16));
        assert_eq!(geometry.data_base(ComponentPosition(3)), LABEL_REGION_BYTES);
        geometry.dedicated_metadata = true;
        assert_eq!(geometry.component_count(), 9);
        assert_eq!(geometry.mirror_of(ComponentPosition(2)), None);
        assert_eq!(geometry.mirror_position(2), ComponentPosition(8));
        assert_eq!(geometry.component_bytes(ComponentPosition(8)), LABEL_REGION_BYTES + (1 << 16));
    }

    #[test]
    fn shapes_outside_the_bounds_are_refused_with_their_numbers() {
        for (change, found) in [
            (Geometry { data_columns: 0, ..small(4, 2) }, "0 data columns"),
            (Geometry { data_columns: 17, ..small(4, 2) }, "17 data columns"),
            (Geometry { parity_columns: 4, ..small(4, 2) }, "4 parity columns"),
            (Geometry { mirror_count: 0, ..small(4, 2) }, "0 metadata mirrors"),
            (Geometry { mirror_count: 3, ..small(1, 1) }, "3 metadata mirrors on 2 components"),
            (Geometry { unit_bytes: 5000, ..small(4, 2) }, "a unit of 5000 bytes"),
            (Geometry { segment_count: u32::MAX, stripes_per_segment: u32::MAX, ..small(4, 2) }, "bytes"),
            (Geometry { metadata_bytes: 1, ..small(4, 2) }, "a metadata region of 1 bytes"),
        ] {
            let error = change.check().unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.found.contains(found), "{error}");
        }
    }
}
