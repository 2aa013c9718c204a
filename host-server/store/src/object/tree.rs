//! What the tree looks like, for operators.

use std::path::PathBuf;

use ringfort_engine::device::DeviceCounters;

use super::Object;
use super::component::ComponentCounters;
use crate::address::{ComponentId, ComponentPosition, VolumeId};
use crate::format::component::MemberState;
use crate::geometry::Geometry;

/// How much the object can still lose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Every component is in use.
    Healthy,
    /// Everything is served, with less redundancy than the geometry has.
    Degraded,
    /// Writes are refused; the reason.
    Failed(String),
}

/// The tree at one moment.
#[derive(Clone, Debug)]
pub struct TreeReport {
    pub volume: VolumeId,
    /// Sequence of the newest durable labels.
    pub sequence: u64,
    pub geometry: Geometry,
    pub health: Health,
    /// By position.
    pub components: Vec<ComponentReport>,
    /// Sums over the components.
    pub counters: ComponentCounters,
    /// Components expelled since the object was opened.
    pub expelled_count: u64,
}

#[derive(Clone, Debug)]
pub struct ComponentReport {
    pub position: ComponentPosition,
    pub component: ComponentId,
    /// Where it was found when the object was opened; empty where it was not.
    pub path: PathBuf,
    pub len_bytes: u64,
    pub holds_columns: bool,
    /// Its number among the metadata mirrors.
    pub mirror: Option<u8>,
    pub state: MemberState,
    /// Why it is not in use.
    pub failure: Option<String>,
    pub counters: ComponentCounters,
    /// None where the component has not been in use. Of one that has left: up to then.
    pub device: Option<DeviceCounters>,
}

impl Object {
    /// The tree, its components' states and counters.
    pub fn tree(&self) -> TreeReport {
        let membership = self.membership.borrow();
        let mut total = ComponentCounters::default();
        let components: Vec<ComponentReport> = self
            .components
            .iter()
            .zip(&membership.members)
            .map(|(component, member)| {
                let counters = component.counters();
                total.read_errors += counters.read_errors;
                total.damaged_blocks += counters.damaged_blocks;
                total.repaired_blocks += counters.repaired_blocks;
                total.reconstructed_blocks += counters.reconstructed_blocks;
                // Between its expulsion and the labels that say so, it has failed all the same.
                let state = match member.state {
                    MemberState::Live if !component.is_live() => {
                        MemberState::Failed { since_sequence: membership.sequence + 1 }
                    }
                    state => state,
                };
                ComponentReport {
                    position: component.position,
                    component: component.id,
                    path: component.path.clone(),
                    len_bytes: component.len_bytes,
                    holds_columns: self.geometry.holds_columns(component.position),
                    mirror: self.geometry.mirror_of(component.position),
                    state,
                    failure: component.failure().map(String::from),
                    counters,
                    device: component.device_counters(),
                }
            })
            .collect();
        let health = match &*self.failure.borrow() {
            Some(failure) => Health::Failed(failure.to_string()),
            None if components.iter().all(|component| component.state == MemberState::Live) => {
                Health::Healthy
            }
            None => Health::Degraded,
        };
        TreeReport {
            volume: self.volume,
            sequence: membership.sequence,
            geometry: self.geometry,
            health,
            components,
            counters: total,
            expelled_count: self.expelled_count.get(),
        }
    }
}
