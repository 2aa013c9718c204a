//! Reading what is stored: from the devices, verified, and computed from other components where one does not give it.

use ringfort_engine::buffer::Slice;

use crate::address::{BlockChecksum, PhysicalBlock};
use crate::core::Core;
use crate::error::StoreError;
use crate::object::{Fetched, PartialRead};
use crate::pages::Pages;
use crate::segment::summary::Summaries;

impl Core {
    /// Consecutive blocks of one segment, which the caller keeps from being reused. Runs to its end: it may repair.
    pub async fn fetch_stored(
        &self,
        first: PhysicalBlock,
        checksums: &[BlockChecksum],
    ) -> Result<Vec<Slice>, StoreError> {
        match self.object.fetch_blocks(first, checksums).await? {
            Fetched::Whole(slices) => Ok(slices),
            Fetched::Partial(partial) => self.make_good(partial, checksums).await,
        }
    }

    /// Computes what the devices did not give, and repairs them.
    pub async fn make_good(
        &self,
        partial: PartialRead,
        checksums: &[BlockChecksum],
    ) -> Result<Vec<Slice>, StoreError> {
        let pages = Pages::new(&self.object);
        let summaries = Summaries::new(self.object.geometry(), self.maps(), &pages);
        self.object.make_good(partial, checksums, &summaries).await
    }
}
