//! The checksums of a segment's blocks, as reconstruction and checks ask for them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use crate::address::{BlockChecksum, SegmentId, StripeIndex};
use crate::error::StoreError;
use crate::format::segment::StripeSummary;
use crate::geometry::{ColumnBlock, Geometry};
use crate::kv::PageStore;
use crate::map::{Maps, tree};
use crate::object::ChecksumSource;

/// The summary of a stripe, if it has one.
pub async fn summary_of(
    maps: &Maps,
    pages: &impl PageStore,
    segment: SegmentId,
    stripe: StripeIndex,
) -> Result<Option<StripeSummary>, StoreError> {
    let value = maps.get(pages, tree::SUMMARY, tree::summary_key(segment, stripe)).await?;
    Ok(value.as_deref().and_then(StripeSummary::decode))
}

/// The summaries of one segment at a time.
pub struct Summaries<'a, P> {
    maps: Rc<Maps>,
    pages: &'a P,
    blocks_per_unit: usize,
    at_hand: RefCell<(Option<SegmentId>, BTreeMap<u64, StripeSummary>)>,
}

impl<'a, P: PageStore> Summaries<'a, P> {
    pub fn new(geometry: &Geometry, maps: Rc<Maps>, pages: &'a P) -> Self {
        Self {
            maps,
            pages,
            blocks_per_unit: geometry.blocks_per_unit() as usize,
            at_hand: RefCell::default(),
        }
    }

    async fn bring(&self, segment: SegmentId) {
        if self.at_hand.borrow().0 == Some(segment) {
            return;
        }
        let first = tree::summary_key(segment, StripeIndex(0));
        let last = tree::summary_key(segment, StripeIndex(u32::MAX));
        let found = self.maps.scan(self.pages, tree::SUMMARY, first, last, usize::MAX).await;
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(%segment, %error, "the summaries of this segment cannot be read: its blocks are computed unverified");
            Vec::new()
        });
        let summaries =
            found.into_iter().filter_map(|(key, value)| Some((key.lo, StripeSummary::decode(&value)?)));
        *self.at_hand.borrow_mut() = (Some(segment), summaries.collect());
    }
}

impl<P: PageStore> ChecksumSource for Summaries<'_, P> {
    fn load<'a>(&'a self, segment: SegmentId) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(self.bring(segment))
    }

    fn checksum(&self, place: ColumnBlock) -> Option<BlockChecksum> {
        let at_hand = self.at_hand.borrow();
        let (segment, summaries) = &*at_hand;
        if *segment != Some(place.segment) {
            return None;
        }
        let summary = summaries.get(&u64::from(place.stripe.0))?;
        let index = usize::from(place.column.0) * self.blocks_per_unit + place.block_in_unit as usize;
        summary.column_checksum(index)
    }
}
