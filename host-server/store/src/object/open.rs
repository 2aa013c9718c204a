//! Creating and opening objects.

use std::path::PathBuf;
use std::rc::Rc;

use ringfort_engine::buffer::Buffer;
use ringfort_engine::engine::Engine;
use ringfort_engine::sync::{Mutex, join_all};

use super::Object;
use super::component::{Component, Part};
use super::erasure::Code;
use super::membership::Membership;
use super::survey::{
    Candidate, Finding, admit, choose_volume, dismiss_foreign, explain_missing, newest_label, read_label,
    refuse_doubled, survey,
};
use crate::address::{ComponentId, ComponentPosition, VolumeId};
use crate::error::{ErrorKind, StoreError};
use crate::format::component::{Member, MemberState};
use crate::geometry::{Geometry, LABEL_REGION_BYTES};

/// Zeros that are written at a time to each new component.
const FILL_BYTES: usize = 1 << 20;

/// A component to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentSpec {
    /// A file to be created, or a block device to be taken over.
    pub path: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Open for writing: takes the components exclusively and marks the missing ones as failed.
    pub write: bool,
    /// Where as many parity columns as data columns allow two disjoint sets of components to serve (K ≤ M), open without
    /// every live member all the same. Writes made through the missing ones are given up.
    pub allow_partial_membership: bool,
    /// The volume that is looked for; any, if none is given.
    pub volume: Option<VolumeId>,
}

/// How opening went.
#[derive(Clone, Debug)]
pub struct OpenReport {
    pub volume: VolumeId,
    /// In no particular order; empty when all is well.
    pub findings: Vec<Finding>,
    /// Components of the tree that are not in use.
    pub missing_count: usize,
}

fn random_u128(engine: &dyn Engine) -> u128 {
    u128::from(engine.random_u64()) << 64 | u128::from(engine.random_u64())
}

/// Creates a component that carries no label yet.
pub(super) async fn create_component(
    engine: &dyn Engine,
    geometry: &Geometry,
    position: ComponentPosition,
    spec: &ComponentSpec,
) -> Result<Component, StoreError> {
    let len_bytes = geometry.component_bytes(position);
    let device = engine.create(&spec.path, len_bytes)?;
    // A block device is taken over with whatever it holds.
    if let Ok(label) = read_label(&*device).await? {
        return Err(StoreError::new(
            ErrorKind::Exists,
            "create component",
            spec.path.display().to_string(),
            format!("component {} of volume {}", label.position, label.volume),
        )
        .advice("wipe its first MiB if that volume is not needed any more"));
    }
    let id = ComponentId(random_u128(engine));
    Ok(Component::live(position, id, len_bytes, spec.path.clone(), device))
}

impl Object {
    /// Creates the components of a new object, in order of position, and labels them. [`ErrorKind::Exists`] where a path
    /// exists or holds a component; what was created until then stays and is the caller's to remove.
    pub async fn create(
        engine: Rc<dyn Engine>,
        specs: &[ComponentSpec],
        geometry: Geometry,
        volume: VolumeId,
    ) -> Result<Self, StoreError> {
        geometry.check()?;
        if specs.len() != usize::from(geometry.component_count()) {
            return Err(StoreError::new(
                ErrorKind::Invalid,
                "create",
                format!("volume {volume}"),
                format!("{} components", specs.len()),
            )
            .expected(format!(
                "{}: {} data, {} parity, {} metadata of their own",
                geometry.component_count(),
                geometry.data_columns,
                geometry.parity_columns,
                geometry.component_count() - geometry.column_count()
            )));
        }
        let mut components = Vec::with_capacity(specs.len());
        for (position, spec) in (0..).map(ComponentPosition).zip(specs) {
            components.push(create_component(&*engine, &geometry, position, spec).await?);
        }
        let members = components
            .iter()
            .map(|component| Member {
                component: component.id,
                len_bytes: component.len_bytes,
                state: MemberState::Live,
            })
            .collect();
        let membership = Membership { sequence: 0, nonce: 0, members };
        let object = Self::assemble(engine, volume, geometry, components, membership, true);
        object.begin_session().await?;
        Ok(object)
    }

    /// Writes zeros to all of a new object's components, so that no later write meets a place that was never written.
    pub async fn fill_with_zeros(&self) -> Result<(), StoreError> {
        let zeros = Buffer::zeroed(FILL_BYTES).freeze();
        let fills = self.components.iter().map(async |component| {
            let mut at = LABEL_REGION_BYTES;
            while at < component.len_bytes {
                let len_bytes = (component.len_bytes - at).min(FILL_BYTES as u64);
                let write = component.write(at, vec![zeros.slice(0..len_bytes as usize)]);
                let write = write.map(|write| (component, write)).into_iter().collect();
                self.finish_writes(write, Part::Data).await?;
                at += len_bytes;
            }
            Ok::<_, StoreError>(())
        });
        for filled in join_all(fills).await {
            filled?;
        }
        self.flush_data().await
    }

    fn assemble(
        engine: Rc<dyn Engine>,
        volume: VolumeId,
        geometry: Geometry,
        components: Vec<Component>,
        membership: Membership,
        writable: bool,
    ) -> Self {
        Self {
            code: Code::new(geometry.data_columns, geometry.parity_columns),
            engine,
            volume,
            geometry,
            components,
            membership: membership.into(),
            label_turn: Mutex::new(()),
            failure: None.into(),
            writable,
            next_mirror: 0.into(),
            expelled_count: 0.into(),
        }
    }

    /// Goes two sequence numbers ahead, with missing members marked as failed. A crash on the way leaves members one number
    /// apart, never more, so that whoever is two behind is known to be an old copy. For that those whom an earlier crash has left one
    /// behind come level first.
    pub(super) async fn begin_session(&self) -> Result<(), StoreError> {
        let found = self.membership.borrow().clone();
        if found.sequence > 0 {
            self.write_labels(&found).await;
        }
        self.advance_labels().await;
        self.advance_labels().await;
        self.settle().await
    }

    /// Opens the object that `paths` hold, best given in order of position. Follows the newest label. Missing, unreadable,
    /// foreign, short, stale and swapped components are named in the report; an error where too few are left, where one
    /// is given twice, or where two sets could serve and this one may be the wrong one.
    pub async fn open(
        engine: Rc<dyn Engine>,
        paths: &[PathBuf],
        options: OpenOptions,
    ) -> Result<(Self, OpenReport), StoreError> {
        let mut findings = Vec::new();
        let candidates = survey(&*engine, paths, options.write, &mut findings).await?;
        let volume = choose_volume(paths, &candidates, options.volume, &findings)?;
        let candidates = dismiss_foreign(paths, candidates, volume, &mut findings);
        refuse_doubled(paths, &candidates)?;
        let newest = newest_label(paths, &candidates)?;
        let mut found: Vec<Option<Candidate>> = newest.members.iter().map(|_| None).collect();
        for candidate in candidates {
            if let Some(position) = admit(paths, &candidate, &newest, &mut findings) {
                found[usize::from(position.0)] = Some(candidate);
            }
        }
        let components: Vec<Component> = (0..)
            .map(ComponentPosition)
            .zip(&newest.members)
            .zip(found)
            .map(|((position, member), found)| match found {
                Some(Candidate { place, device, .. }) => Component::live(
                    position,
                    member.component,
                    member.len_bytes,
                    paths[place].clone(),
                    device,
                ),
                None => {
                    let (path, reason) = explain_missing(paths, position, member, &mut findings);
                    Component::lost(position, member.component, member.len_bytes, path, Some(reason.into()))
                }
            })
            .collect();
        let geometry = newest.geometry;
        let missing_count = components.iter().filter(|component| !component.is_live()).count();
        let membership =
            Membership { sequence: newest.sequence, nonce: newest.nonce, members: newest.members };
        let object = Self::assemble(engine, volume, geometry, components, membership, options.write);
        object.check_quorum(options)?;
        if options.write {
            object.begin_session().await?;
        }
        for finding in &findings {
            tracing::warn!(
                %volume,
                "found on opening: {finding}; bring the component back, or put a new one in its place with `ringfort volume replace`"
            );
        }
        Ok((object, OpenReport { volume, findings, missing_count }))
    }

    /// Whether the components found may serve.
    fn check_quorum(&self, options: OpenOptions) -> Result<(), StoreError> {
        if let Some(shortage) = self.shortage() {
            return Err(StoreError { operation: "open".into(), ..shortage });
        }
        if !self.geometry.allows_disjoint_sets() || options.allow_partial_membership {
            // Any two sets that can serve have a component in common, which has seen the newest label.
            return Ok(());
        }
        let membership = self.membership.borrow();
        let lost: Vec<String> = self
            .components
            .iter()
            .zip(&membership.members)
            .filter(|(component, member)| !component.is_live() && member.state == MemberState::Live)
            .map(|(component, _)| {
                format!("{component}: {}", component.failure().unwrap_or_else(|| "missing".into()))
            })
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        Err(StoreError::new(
            ErrorKind::Unavailable,
            "open",
            format!("volume {}", self.volume),
            lost.join("; "),
        )
        .expected("every live member, since the missing ones could hold newer data")
        .advice("bring them back, or allow partial membership and give up what they alone hold"))
    }
}
