//! Putting a new component in the place of a lost one.

use ringfort_engine::buffer::BLOCK_BYTES;

use super::Object;
use super::component::Component;
use super::open::{ComponentSpec, create_component};
use super::reconstruct::{ChecksumSource, Reading};
use crate::address::{ComponentPosition, MetadataAddress, SegmentId, StripeIndex};
use crate::error::{ErrorKind, StoreError};
use crate::format::component::{Member, MemberState};

/// How much of one column is computed at a time.
const STEP_BYTES: u32 = 1 << 20;

impl Object {
    /// Replaces a component that is not in use: creates another, copies and computes what belongs on it, and makes it a member
    /// once all of that is durable. Until then the tree stays as it was, so an attempt that fails or is cut short costs
    /// only the new file, which is the caller's to remove.
    ///
    /// Metadata is copied from any live mirror, unverified: what is bad there stays to be repaired by its readers. Blocks
    /// that the summary does not know are skipped: nothing may refer to them. [`ErrorKind::Damaged`] where a known
    /// block cannot be had.
    pub async fn replace(
        &mut self,
        position: ComponentPosition,
        spec: &ComponentSpec,
        summary: &dyn ChecksumSource,
    ) -> Result<(), StoreError> {
        self.check_writable()?;
        let is_lost =
            self.components.get(usize::from(position.0)).is_some_and(|component| !component.is_live());
        if !is_lost {
            return Err(StoreError::new(
                ErrorKind::Invalid,
                "replace",
                format!("component {position}"),
                "it is in use, or there is no such component",
            )
            .expected("the position of a component that is not in use"));
        }
        let component = create_component(&*self.engine, &self.geometry, position, spec).await?;
        self.copy_metadata(&component).await?;
        for segment in (0..self.geometry.segment_count).map(SegmentId) {
            self.rebuild_segment(&component, segment, summary).await?;
        }
        if let Some((_, flush)) = component.flush() {
            flush.await?;
        }
        self.membership.borrow_mut().members[usize::from(position.0)] =
            Member { component: component.id, len_bytes: component.len_bytes, state: MemberState::Live };
        self.components[usize::from(position.0)] = component;
        self.begin_session().await?;
        match self.components[usize::from(position.0)].failure() {
            None => Ok(()),
            Some(failure) => {
                Err(StoreError::new(ErrorKind::Device, "replace", format!("component {position}"), failure))
            }
        }
    }

    async fn copy_metadata(&self, component: &Component) -> Result<(), StoreError> {
        if self.geometry.mirror_of(component.position).is_none() {
            return Ok(());
        }
        let mut done = 0;
        while done < self.geometry.metadata_bytes {
            let len_bytes = u64::from(STEP_BYTES).min(self.geometry.metadata_bytes - done);
            let data = self.read_metadata(MetadataAddress(done), len_bytes as usize, |_| true).await?;
            if let Some(write) = component.write(self.geometry.metadata_base() + done, vec![data]) {
                write.await?;
            }
            done += len_bytes;
        }
        Ok(())
    }

    async fn rebuild_segment(
        &self,
        component: &Component,
        segment: SegmentId,
        summary: &dyn ChecksumSource,
    ) -> Result<(), StoreError> {
        if !self.geometry.holds_columns(component.position) {
            return Ok(());
        }
        summary.load(segment).await;
        let column = self.geometry.column_of(segment, component.position);
        let segment_start = self.geometry.unit_offset(component.position, segment, StripeIndex(0));
        let row_count = self.geometry.stripes_per_segment * self.geometry.blocks_per_unit();
        let step = STEP_BYTES / BLOCK_BYTES as u32;
        for first in (0..row_count).step_by(step as usize) {
            let rows = first..row_count.min(first + step);
            for (row, data) in Reading::rebuild_rows(self, segment, column, rows, summary).await? {
                let offset_bytes = segment_start + u64::from(row) * BLOCK_BYTES as u64;
                if let Some(write) = component.write(offset_bytes, vec![data]) {
                    write.await?;
                }
            }
        }
        Ok(())
    }
}
