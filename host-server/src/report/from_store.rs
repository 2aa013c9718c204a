//! The store's report in the words of this crate's.

use ringfort_engine::buffer::BLOCK_BYTES;
use ringfort_store::format::component::MemberState;
use ringfort_store::object::{ComponentReport, Finding, FindingKind, Health, TreeReport};
use ringfort_store::status::{Activity, StatusReport};

use super::{
    Cleaning, CleaningActivity, Component, ComponentState, Counters, HealthStatus, Log, Memory, Recovery,
    Served, Space, Status, Tree,
};

impl Cleaning {
    fn of(report: &StatusReport) -> Self {
        let (status, counters) = (&report.cleaning, &report.counters.cleaning);
        Self {
            activity: match status.activity {
                Activity::Resting => CleaningActivity::Resting,
                Activity::Tidying => CleaningActivity::Tidying,
                Activity::Ahead => CleaningActivity::Ahead,
                Activity::Urgent => CleaningActivity::Urgent,
                Activity::Exhausted => CleaningActivity::Exhausted,
            },
            start_below_segments: status.start_below_segments,
            urgent_at_segments: status.urgent_at_segments,
            cleaned_segments: counters.cleaned_segments,
            relocated_bytes: counters.relocated_blocks * BLOCK_BYTES as u64,
            read_bytes: counters.read_bytes,
            written_bytes: counters.written_bytes,
            padding_bytes: counters.padding_bytes,
            unreadable_segments: counters.unreadable_segments,
        }
    }
}

impl Status {
    /// Of a volume that is open for writing.
    pub fn of_open(report: &StatusReport, findings: &[Finding], served: Option<Served>) -> Self {
        let mut status = Self::of_tree(&report.tree, findings);
        status.served = served;
        if let Some(failure) = &report.failed {
            status.health = HealthStatus::Failed;
            status.failure = Some(failure.clone());
        }
        let space = &report.space;
        status.space = Some(Space {
            total_bytes: space.total_bytes,
            capacity_bytes: space.capacity_bytes,
            free_bytes: space.free_bytes,
            live_bytes: space.live_bytes,
            dead_bytes: space.dead_bytes,
            segments: space.segments,
            free_segments: space.free_segments,
            open_segments: space.open_segments,
            closed_segments: space.closed_segments,
        });
        let log = &report.log;
        status.log = Some(Log {
            size_bytes: log.size_bytes,
            used_bytes: log.used_bytes,
            metadata_log_size_bytes: log.metadata_log_size_bytes,
            metadata_log_used_bytes: log.metadata_log_used_bytes,
            epoch: log.epoch,
            root_sequence: log.root_sequence,
            applied_transaction: log.applied_transaction,
            durable_transaction: log.durable_transaction,
            banks: log.banks,
            bank_bytes: log.bank_bytes,
        });
        let memory = &report.memory;
        status.memory = Some(Memory {
            maps_bytes: memory.maps_bytes,
            maps_limit_bytes: memory.maps_limit_bytes,
            pages: memory.pages,
            free_pages: memory.free_pages,
        });
        let recovery = &report.recovery;
        status.recovery = Some(Recovery {
            replayed_transactions: recovery.replayed_transactions,
            replayed_log_bytes: recovery.replayed_log_bytes,
            rewritten_stripes: recovery.rewritten_stripes,
            elapsed_ms: u64::try_from(recovery.elapsed.as_millis()).unwrap_or(u64::MAX),
        });
        status.cleaning = Some(Cleaning::of(report));
        let counters = &report.counters;
        status.counters = Some(Counters {
            user_bytes: counters.user_bytes,
            log_bytes: counters.log_bytes,
            metadata_log_bytes: counters.metadata_log_bytes,
            stripe_bytes: counters.stripe_bytes,
            page_bytes: counters.page_bytes,
            root_bytes: counters.root_bytes,
            padding_bytes: counters.padding_bytes,
            transactions: counters.transactions,
            syncs: counters.syncs,
            commits: counters.commits,
            checkpoints: counters.checkpoints,
            moves: counters.moves,
            large_stripes: counters.large_stripes,
            bank_stripes: counters.bank_stripes,
            freed_segments: counters.freed_segments,
        });
        status
    }

    /// Of a volume that nobody serves: nothing has been counted, and no memory setting is in force.
    pub fn of_closed(report: &StatusReport, findings: &[Finding]) -> Self {
        Self {
            memory: None,
            recovery: None,
            cleaning: None,
            counters: None,
            ..Self::of_open(report, findings, None)
        }
    }

    /// What the labels tell, of a volume that cannot be opened.
    pub fn of_tree(tree: &TreeReport, findings: &[Finding]) -> Self {
        let geometry = &tree.geometry;
        let (health, failure) = match &tree.health {
            Health::Healthy => (HealthStatus::Healthy, None),
            Health::Degraded => (HealthStatus::Degraded, None),
            Health::Failed(reason) => (HealthStatus::Failed, Some(reason.clone())),
        };
        Self {
            volume: tree.volume.to_string(),
            health,
            failure,
            served: None,
            tree: Tree {
                sequence: tree.sequence,
                data_columns: geometry.data_columns,
                parity_columns: geometry.parity_columns,
                metadata_mirrors: geometry.mirror_count,
                metadata_bytes: geometry.metadata_bytes,
                stripe_data_bytes: geometry.stripe_data_bytes(),
                components: tree
                    .components
                    .iter()
                    .map(|component| Component::of(component, findings))
                    .collect(),
                expelled: tree.expelled_count,
                findings: findings.iter().map(ToString::to_string).collect(),
            },
            inodes: None,
            space: None,
            log: None,
            memory: None,
            recovery: None,
            cleaning: None,
            counters: None,
        }
    }
}

impl Component {
    fn of(report: &ComponentReport, findings: &[Finding]) -> Self {
        let device = report.device.unwrap_or_default();
        let missing = findings
            .iter()
            .any(|finding| finding.kind == FindingKind::Missing && finding.position == Some(report.position));
        let path = Some(&report.path).filter(|path| !missing && !path.as_os_str().is_empty());
        let holds = match (report.holds_columns, report.mirror) {
            (true, Some(_)) => "data+metadata",
            (true, None) => "data",
            (false, _) => "metadata",
        };
        Self {
            position: report.position.0,
            id: report.component.to_string(),
            path: path.cloned(),
            holds: holds.to_owned(),
            size_bytes: report.len_bytes,
            state: match report.state {
                MemberState::Live => ComponentState::Live,
                _ if path.is_some() => ComponentState::Failed,
                _ => ComponentState::Missing,
            },
            failure: report.failure.clone(),
            reads: device.reads,
            read_bytes: device.read_bytes,
            writes: device.writes,
            write_bytes: device.write_bytes,
            flushes: device.flushes,
            errors: device.errors(),
            read_errors: device.read_errors,
            write_errors: device.write_errors,
            flush_errors: device.flush_errors,
            timeouts: device.timeouts,
            damaged_blocks: report.counters.damaged_blocks,
            repaired_blocks: report.counters.repaired_blocks,
            reconstructed_blocks: report.counters.reconstructed_blocks,
        }
    }
}
