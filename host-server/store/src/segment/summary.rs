//! The checksums of a stripe's blocks, as reconstruction and checks ask for them.

use std::cell::RefCell;

use crate::address::{BlockChecksum, SegmentId, StripeIndex};
use crate::format::segment::StripeSummary;
use crate::geometry::{ColumnBlock, Geometry};
use crate::map::{Maps, tree};
use crate::object::ChecksumSource;

/// The summary of a stripe, if it has one.
pub fn summary_of(maps: &Maps, segment: SegmentId, stripe: StripeIndex) -> Option<StripeSummary> {
    maps.get(tree::SUMMARY, tree::summary_key(segment, stripe)).and_then(StripeSummary::decode)
}

/// Checksums from summaries that are looked up when first asked for, one stripe at hand.
pub struct Summaries<F> {
    summary_of: F,
    blocks_per_unit: usize,
    at_hand: RefCell<Option<(SegmentId, StripeIndex, StripeSummary)>>,
}

impl<F: Fn(SegmentId, StripeIndex) -> Option<StripeSummary>> Summaries<F> {
    /// `summary_of` is usually [`summary_of`] over the maps of the volume.
    pub fn new(geometry: &Geometry, summary_of: F) -> Self {
        Self { summary_of, blocks_per_unit: geometry.blocks_per_unit() as usize, at_hand: RefCell::new(None) }
    }
}

impl<F: Fn(SegmentId, StripeIndex) -> Option<StripeSummary>> ChecksumSource for Summaries<F> {
    fn checksum(&self, place: ColumnBlock) -> Option<BlockChecksum> {
        let mut at_hand = self.at_hand.borrow_mut();
        if at_hand
            .as_ref()
            .is_none_or(|(segment, stripe, _)| (*segment, *stripe) != (place.segment, place.stripe))
        {
            let summary = (self.summary_of)(place.segment, place.stripe)?;
            *at_hand = Some((place.segment, place.stripe, summary));
        }
        let (_, _, summary) = at_hand.as_ref()?;
        let index = usize::from(place.column.0) * self.blocks_per_unit + place.block_in_unit as usize;
        summary.column_checksum(index)
    }
}
