//! Putting a new component in the place of a lost one.

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};

use super::Object;
use super::component::Component;
use super::open::{ComponentSpec, create_component};
use super::reconstruct::{ChecksumSource, Reading};
use super::survey::read_label;
use crate::address::{ComponentPosition, MetadataAddress, SegmentId, StripeIndex};
use crate::error::{ErrorKind, StoreError};
use crate::format::component::{Label, Member, MemberState};

/// Sequence of the label of a component that is no member yet. A volume is made with a later one, so it is never the newest.
const PROVISIONAL: u64 = 1;

/// How much of one column is computed at a time.
const STEP_BYTES: u32 = 1 << 20;

/// A component that holds all that belongs on it, and is no member yet.
pub struct Replacement {
    position: ComponentPosition,
    component: Component,
}

impl Object {
    /// Replaces a component that is not in use: creates another, copies and computes what belongs on it, and makes it a member
    /// once all of that is durable. Until then the tree stays as it was. An attempt that fails or is cut short leaves the new
    /// component with a label by which the next attempt knows it, and begins anew on it.
    ///
    /// `progress` is told how many bytes of the new component are done, of how many. Metadata is copied from any live mirror, unverified: what is bad there stays to be repaired by its readers. Blocks
    /// that the summary does not know are skipped: nothing may refer to them. [`ErrorKind::Damaged`] where a known
    /// block cannot be had.
    pub async fn replace(
        &mut self,
        position: ComponentPosition,
        spec: &ComponentSpec,
        summary: &dyn ChecksumSource,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        let replacement = self.rebuild(position, spec, summary, progress).await?;
        self.adopt(replacement).await
    }

    /// The first part of [`replace`](Self::replace): all but making the new component a member.
    pub async fn rebuild(
        &self,
        position: ComponentPosition,
        spec: &ComponentSpec,
        summary: &dyn ChecksumSource,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Replacement, StoreError> {
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
        let component = self.new_component(position, spec).await?;
        self.mark_provisional(&component).await?;
        let total_bytes = component.len_bytes - self.geometry.metadata_base();
        let mut done_bytes = 0;
        let mut advance = |bytes: u64| {
            done_bytes += bytes;
            progress(done_bytes, total_bytes);
        };
        self.copy_metadata(&component, &mut advance).await?;
        if self.geometry.holds_columns(position) {
            let segment_bytes =
                u64::from(self.geometry.stripes_per_segment) * u64::from(self.geometry.unit_bytes);
            for segment in (0..self.geometry.segment_count).map(SegmentId) {
                self.rebuild_segment(&component, segment, summary).await?;
                advance(segment_bytes);
            }
        }
        if let Some((_, flush)) = component.flush() {
            flush.await?;
        }
        Ok(Replacement { position, component })
    }

    /// The second part of [`replace`](Self::replace).
    pub async fn adopt(&mut self, replacement: Replacement) -> Result<(), StoreError> {
        let Replacement { position, component } = replacement;
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

    /// The component that is to be: a new one, or what an earlier attempt at this position left.
    async fn new_component(
        &self,
        position: ComponentPosition,
        spec: &ComponentSpec,
    ) -> Result<Component, StoreError> {
        let refused = match create_component(&*self.engine, &self.geometry, position, spec).await {
            Err(error) if error.kind == ErrorKind::Exists => error,
            outcome => return outcome,
        };
        let refused = refused
            .advice("give another path, or remove what is there, if a replacement left it that ended in its first moments");
        let Ok(device) = self.engine.open(&spec.path, true) else { return Err(refused) };
        let Ok(label) = read_label(&*device).await? else { return Err(refused) };
        let own = label.members.get(usize::from(position.0));
        let is_ours = label.volume == self.volume
            && label.position == position
            && label.sequence == PROVISIONAL
            && own.is_some_and(|own| own.state != MemberState::Live)
            && self.membership.borrow().members.iter().all(|member| member.component != label.component);
        let len_bytes = self.geometry.component_bytes(position);
        if !is_ours || device.len_bytes() < len_bytes {
            return Err(refused);
        }
        Ok(Component::live(position, label.component, len_bytes, spec.path.clone(), device))
    }

    /// Labels a component that is no member yet, so that what an interrupted attempt leaves is known as what it is, and used by
    /// nobody.
    async fn mark_provisional(&self, component: &Component) -> Result<(), StoreError> {
        let mut members = self.membership.borrow().members.clone();
        members.iter_mut().for_each(|member| member.state = MemberState::Live);
        members[usize::from(component.position.0)] = Member {
            component: component.id,
            len_bytes: component.len_bytes,
            state: MemberState::Failed { since_sequence: PROVISIONAL },
        };
        let label = Label {
            volume: self.volume,
            component: component.id,
            position: component.position,
            sequence: PROVISIONAL,
            nonce: 0,
            geometry: self.geometry,
            members,
        };
        if let Some(write) = component.write(label.slot(), vec![Slice::copy_of(&label.encode())]) {
            write.await?;
        }
        if let Some((_, flush)) = component.flush() {
            flush.await?;
        }
        Ok(())
    }

    async fn copy_metadata(
        &self,
        component: &Component,
        advance: &mut impl FnMut(u64),
    ) -> Result<(), StoreError> {
        if self.geometry.mirror_of(component.position).is_none() {
            return Ok(());
        }
        let mut done = 0;
        while done < self.geometry.metadata_bytes {
            let len_bytes = u64::from(STEP_BYTES).min(self.geometry.metadata_bytes - done);
            let data = self.read_piecewise(MetadataAddress(done), len_bytes as usize).await?;
            if let Some(write) = component.write(self.geometry.metadata_base() + done, data) {
                write.await?;
            }
            done += len_bytes;
            advance(len_bytes);
        }
        Ok(())
    }

    /// Metadata from whichever mirror gives it; block by block where no mirror gives all of it: each may have bad sectors elsewhere.
    async fn read_piecewise(
        &self,
        address: MetadataAddress,
        len_bytes: usize,
    ) -> Result<Vec<Slice>, StoreError> {
        if let Ok(data) = self.read_metadata(address, len_bytes, |_| true).await {
            return Ok(vec![data]);
        }
        let mut pieces = Vec::new();
        for offset in (0..len_bytes).step_by(BLOCK_BYTES) {
            let block = MetadataAddress(address.0 + offset as u64);
            pieces.push(self.read_metadata(block, BLOCK_BYTES, |_| true).await?);
        }
        Ok(pieces)
    }

    async fn rebuild_segment(
        &self,
        component: &Component,
        segment: SegmentId,
        summary: &dyn ChecksumSource,
    ) -> Result<(), StoreError> {
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
