//! Who belongs, and the labels that say so.
//!
//! A component leaves in two steps. [`Component::expel`](super::component::Component::expel) stops its use at once, in
//! memory. Then [`Object::settle`] writes labels that list it as failed and makes them durable on every remaining
//! component. Every write and flush ends with `settle`, so none that the lost component missed is answered before
//! the labels are durable.

use ringfort_engine::buffer::Slice;
use ringfort_engine::completion::Completion;
use ringfort_engine::error::EngineError;

use super::Object;
use super::component::{Component, Part};
use crate::address::ComponentPosition;
use crate::error::{ErrorKind, StoreError};
use crate::format::component::{Label, Member, MemberState};

/// More than the bad sectors that one request for reading is likely to meet when it is repeated block by block.
const FAILED_READS_MAX: u32 = 64;

/// The tree as the newest durable labels tell it.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    pub(super) sequence: u64,
    pub(super) nonce: u64,
    /// By position.
    pub(super) members: Vec<Member>,
}

impl Object {
    /// Whether the labels know about every component that is out of use.
    fn is_settled(&self) -> bool {
        let membership = self.membership.borrow();
        self.components
            .iter()
            .zip(&membership.members)
            .all(|(component, member)| component.is_live() || member.state != MemberState::Live)
    }

    /// Why this set of components cannot serve, if it cannot.
    pub(super) fn shortage(&self) -> Option<StoreError> {
        let columns = self
            .components
            .iter()
            .filter(|component| component.is_live() && self.geometry.holds_columns(component.position));
        let (columns, needed) = (columns.count(), usize::from(self.geometry.data_columns));
        let (expected, found) = if columns < needed {
            (
                format!("at least {needed} of {} components with data", self.geometry.column_count()),
                format!("{columns} are left"),
            )
        } else if self.live_mirrors().is_empty() {
            (
                format!("at least one of {} metadata mirrors", self.geometry.mirror_count),
                "none is left".to_owned(),
            )
        } else {
            return None;
        };
        let lost: Vec<String> = self
            .components
            .iter()
            .filter(|component| !component.is_live())
            .map(|component| match component.failure() {
                Some(failure) => format!("{component}: {failure}"),
                None => component.to_string(),
            })
            .collect();
        Some(
            StoreError::new(ErrorKind::Unavailable, "use", format!("volume {}", self.volume), found)
                .expected(expected)
                .advice(format!("bring back {}", lost.join("; "))),
        )
    }

    /// Refuses writes to an object that was opened for reading or has lost too many components.
    pub(super) fn check_writable(&self) -> Result<(), StoreError> {
        if !self.writable {
            return Err(StoreError::new(
                ErrorKind::Invalid,
                "write to",
                format!("volume {}", self.volume),
                "it is open for reading only",
            ));
        }
        match &*self.failure.borrow() {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }

    /// Takes a component out of use. Callers go on to [`settle`](Self::settle).
    pub(super) fn expel(&self, component: &Component, error: &EngineError) {
        if component.expel(error) {
            self.expelled_count.set(self.expelled_count.get() + 1);
            tracing::error!(
                volume = %self.volume,
                position = component.position.0,
                path = %component.path.display(),
                %error,
                "a component failed and is out of use; every byte is served on, with less redundancy. Check the device, then \
                 put a new component in its place with `ringfort volume replace`"
            );
        }
    }

    /// A read has failed. A bad sector is made good by writing what other components give; a component of which so many
    /// reads fail one after the other is of no use as a source and leaves, unless the volume cannot do without it. That it has left
    /// becomes durable before the next write is answered.
    pub(super) fn note_read_error(&self, component: &Component, error: &EngineError) {
        if component.note_failed_read() < FAILED_READS_MAX || !self.writable || self.needs(component) {
            return;
        }
        self.expel(component, error);
    }

    /// Whether the others could not serve alone.
    fn needs(&self, component: &Component) -> bool {
        let others = |holds: &dyn Fn(ComponentPosition) -> bool| {
            let live = self.components.iter().filter(|other| other.is_live() && holds(other.position));
            live.filter(|other| other.position != component.position).count()
        };
        others(&|position| self.geometry.holds_columns(position)) < usize::from(self.geometry.data_columns)
            || others(&|position| self.geometry.mirror_of(position).is_some()) == 0
    }

    /// Waits for submitted writes, one a component; a component that failed its write is expelled.
    pub(super) async fn finish_writes(
        &self,
        writes: Vec<(&Component, Completion<()>)>,
        part: Part,
    ) -> Result<(), StoreError> {
        self.finish(writes, |component| component.note_written(part)).await
    }

    /// As [`finish_writes`](Self::finish_writes), of writes after which nothing is left to flush.
    pub(super) async fn finish_durable_writes(
        &self,
        writes: Vec<(&Component, Completion<()>)>,
    ) -> Result<(), StoreError> {
        self.finish(writes, |_| {}).await
    }

    async fn finish(
        &self,
        writes: Vec<(&Component, Completion<()>)>,
        done: impl Fn(&Component),
    ) -> Result<(), StoreError> {
        for (component, write) in writes {
            match write.await {
                Ok(()) => done(component),
                Err(error) => self.expel(component, &error),
            }
        }
        self.settle().await
    }

    /// Returns once the labels of every remaining component durably list every component that is out of use. An error
    /// where too few remain: then nothing is written any more, labels included, so that the components may yet serve
    /// together when the lost ones come back.
    pub(super) async fn settle(&self) -> Result<(), StoreError> {
        if !self.is_settled() {
            let _turn = self.label_turn.lock().await;
            while !self.is_settled() && self.failure.borrow().is_none() {
                self.advance_labels().await;
            }
        }
        self.check_writable()
    }

    /// Goes to the next sequence number, with every component that is out of use marked as failed. A component that
    /// fails here is expelled, which leaves the membership unsettled. The caller holds `label_turn` or is alone.
    pub(super) async fn advance_labels(&self) {
        if let Some(shortage) = self.shortage() {
            tracing::error!(
                volume = %self.volume,
                error = %shortage,
                "too few components are left: the volume takes no more changes. What was synced is safe; bring back the \
                 components that the error names, then start the server again"
            );
            self.failure.replace(Some(shortage));
            return;
        }
        let mut next = self.membership.borrow().clone();
        next.sequence += 1;
        next.nonce = self.engine.random_u64();
        for (component, member) in self.components.iter().zip(&mut next.members) {
            if !component.is_live() && member.state == MemberState::Live {
                member.state = MemberState::Failed { since_sequence: next.sequence };
            }
        }
        self.write_labels(&next).await;
        self.membership.replace(next);
    }

    /// Makes the labels of one membership durable on every component in use; one that fails is expelled.
    pub(super) async fn write_labels(&self, membership: &Membership) {
        let writes: Vec<_> = self
            .components
            .iter()
            .filter_map(|component| {
                let label = self.label(membership, component.position);
                let write = component.write(label.slot(), vec![Slice::copy_of(&label.encode())])?;
                Some((component, write))
            })
            .collect();
        for (component, write) in writes {
            if let Err(error) = write.await {
                self.expel(component, &error);
            }
        }
        let flushes: Vec<_> =
            self.components.iter().filter_map(|component| Some((component, component.flush()?))).collect();
        for (component, (mark, flush)) in flushes {
            match flush.await {
                Ok(()) => component.note_flushed(mark),
                Err(error) => self.expel(component, &error),
            }
        }
    }

    fn label(&self, membership: &Membership, position: ComponentPosition) -> Label {
        Label {
            volume: self.volume,
            component: self.components[usize::from(position.0)].id,
            position,
            sequence: membership.sequence,
            nonce: membership.nonce,
            geometry: self.geometry,
            members: membership.members.clone(),
        }
    }

    /// Flushes what is dirty in any of `parts`, all components at once.
    pub(super) async fn flush_parts(&self, parts: &[Part]) -> Result<(), StoreError> {
        self.check_writable()?;
        let flushes: Vec<_> = self
            .components
            .iter()
            .filter(|component| parts.iter().any(|part| component.is_dirty(*part)))
            .filter_map(|component| Some((component, component.flush()?)))
            .collect();
        for (component, (mark, flush)) in flushes {
            match flush.await {
                Ok(()) => component.note_flushed(mark),
                // Never retried: what was not flushed may be lost, and a later success would prove nothing.
                Err(error) => self.expel(component, &error),
            }
        }
        self.settle().await
    }
}
