//! What `volume status` tells: the same object over the admin socket, as JSON, and as text for people.

use std::fmt::Write as _;
use std::path::PathBuf;

use ringfort_store::format::component::MemberState;
use ringfort_store::object::{ComponentReport, Finding, FindingKind, Health, TreeReport};
use ringfort_store::status::StatusReport;
use serde::{Deserialize, Serialize};

use crate::size::ByteSize;

/// A volume at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub volume: String,
    pub health: HealthStatus,
    /// Why the volume takes no changes, if so.
    pub failure: Option<String>,
    /// Who serves it; none where it was opened for this report.
    pub served: Option<Served>,
    pub tree: Tree,
    /// The rest is known of an open volume only.
    pub space: Option<Space>,
    pub log: Option<Log>,
    pub memory: Option<Memory>,
    pub recovery: Option<Recovery>,
    pub counters: Option<Counters>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    Healthy,
    Degraded,
    Failed,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Served {
    pub pid: u32,
    pub uptime_s: u64,
    pub guests: Vec<Guest>,
}

/// One virtio-fs socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guest {
    pub socket: PathBuf,
    pub connections: u64,
    pub sessions: u64,
    pub errors: u64,
    pub malformed_requests: u64,
    pub broken_devices: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tree {
    /// Of the newest durable labels.
    pub sequence: u64,
    pub data_columns: u8,
    pub parity_columns: u8,
    pub metadata_mirrors: u8,
    pub metadata_bytes: u64,
    pub stripe_data_bytes: u64,
    pub components: Vec<Component>,
    /// What was amiss when the volume was opened.
    pub findings: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Component {
    pub position: u8,
    pub id: String,
    /// None where no path holds it.
    pub path: Option<PathBuf>,
    pub holds: String,
    pub size_bytes: u64,
    pub state: ComponentState,
    /// Why it is not in use.
    pub failure: Option<String>,
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub flushes: u64,
    pub errors: u64,
    pub damaged_blocks: u64,
    pub repaired_blocks: u64,
    pub reconstructed_blocks: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentState {
    Live,
    /// Present, and out of use: it failed or missed writes.
    Failed,
    /// No path holds it.
    Missing,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub live_bytes: u64,
    /// Overwritten or deleted; returns when its whole segment is empty.
    pub dead_bytes: u64,
    pub segments: u32,
    pub free_segments: u32,
    pub open_segments: u32,
    pub closed_segments: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Log {
    pub size_bytes: u64,
    pub used_bytes: u64,
    pub epoch: u64,
    pub root_sequence: u64,
    pub applied_transaction: u64,
    pub durable_transaction: u64,
    pub bank_bytes: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Memory {
    pub maps_bytes: u64,
    pub maps_limit_bytes: u64,
    pub pages: u64,
    pub free_pages: u64,
}

/// What opening the volume took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Recovery {
    pub replayed_transactions: u64,
    pub replayed_log_bytes: u64,
    pub rewritten_stripes: u64,
    pub elapsed_ms: u64,
}

/// Since the volume was opened. Bytes written to devices are counted with all copies and parity.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Counters {
    pub user_bytes: u64,
    pub log_bytes: u64,
    pub metadata_log_bytes: u64,
    pub stripe_bytes: u64,
    pub page_bytes: u64,
    pub root_bytes: u64,
    pub padding_bytes: u64,
    pub transactions: u64,
    pub syncs: u64,
    pub commits: u64,
    pub checkpoints: u64,
    pub large_stripes: u64,
    pub bank_stripes: u64,
    pub freed_segments: u64,
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
            epoch: log.epoch,
            root_sequence: log.root_sequence,
            applied_transaction: log.applied_transaction,
            durable_transaction: log.durable_transaction,
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
            large_stripes: counters.large_stripes,
            bank_stripes: counters.bank_stripes,
            freed_segments: counters.freed_segments,
        });
        status
    }

    /// Of a volume that nobody serves: nothing has been counted, and no memory setting is in force.
    pub fn of_closed(report: &StatusReport, findings: &[Finding]) -> Self {
        Self { memory: None, recovery: None, counters: None, ..Self::of_open(report, findings, None) }
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
                findings: findings.iter().map(ToString::to_string).collect(),
            },
            space: None,
            log: None,
            memory: None,
            recovery: None,
            counters: None,
        }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, text: &mut String) -> std::fmt::Result {
        let tree = &self.tree;
        let health = match self.health {
            HealthStatus::Healthy => "healthy",
            HealthStatus::Degraded => "degraded: every byte is served, with less redundancy",
            HealthStatus::Failed => "failed: no changes are taken",
        };
        writeln!(text, "volume    {}", self.volume)?;
        writeln!(text, "health    {health}")?;
        if let Some(failure) = &self.failure {
            writeln!(text, "          {failure}")?;
        }
        match &self.served {
            Some(served) => writeln!(text, "served    by process {}, for {} s", served.pid, served.uptime_s)?,
            None => writeln!(text, "served    no")?,
        }
        for guest in self.served.iter().flat_map(|served| &served.guests) {
            let Guest { socket, connections, sessions, errors, read_bytes, written_bytes, .. } = guest;
            let (read, written) = (ByteSize(*read_bytes), ByteSize(*written_bytes));
            writeln!(
                text,
                "  {}: {connections} connections, {sessions} sessions, {read} read, {written} written, {errors} errors",
                socket.display()
            )?;
        }
        writeln!(
            text,
            "tree      data {}+{}, metadata mirrored {} ways, {} a mirror, labels at {}",
            tree.data_columns,
            tree.parity_columns,
            tree.metadata_mirrors,
            ByteSize(tree.metadata_bytes),
            tree.sequence
        )?;
        for component in &tree.components {
            let state = match component.state {
                ComponentState::Live => "live",
                ComponentState::Failed => "FAILED",
                ComponentState::Missing => "MISSING",
            };
            let path = component.path.as_ref().map_or("-".into(), |path| path.to_string_lossy());
            let size = ByteSize(component.size_bytes).to_string();
            write!(
                text,
                "  {:>2}  {state:<7}  {:<13}  {size:>9}  {path}",
                component.position, component.holds
            )?;
            match &component.failure {
                Some(failure) => writeln!(text, "  ({failure})")?,
                None => writeln!(text)?,
            }
        }
        for finding in &tree.findings {
            writeln!(text, "  found: {finding}")?;
        }
        if let Some(space) = &self.space {
            let [total, free, live, dead] =
                [space.total_bytes, space.free_bytes, space.live_bytes, space.dead_bytes].map(ByteSize);
            writeln!(text, "space     {total}: {live} live, {dead} dead, {free} not handed out")?;
            writeln!(
                text,
                "segments  {}: {} free, {} open, {} closed",
                space.segments, space.free_segments, space.open_segments, space.closed_segments
            )?;
        }
        if let Some(log) = &self.log {
            let [size, used, bank] = [log.size_bytes, log.used_bytes, log.bank_bytes].map(ByteSize);
            writeln!(text, "log       {used} of {size}, epoch {}, {bank} in banks", log.epoch)?;
        }
        if let Some(memory) = &self.memory {
            let [used, limit] = [memory.maps_bytes, memory.maps_limit_bytes].map(ByteSize);
            writeln!(
                text,
                "maps      {used} of {limit}, {} pages in use, {} free",
                memory.pages, memory.free_pages
            )?;
        }
        if let Some(counters) = &self.counters {
            let [user, log, metadata_log, stripes, pages] = [
                counters.user_bytes,
                counters.log_bytes,
                counters.metadata_log_bytes,
                counters.stripe_bytes,
                counters.page_bytes,
            ]
            .map(ByteSize);
            writeln!(
                text,
                "written   {user} by users; to devices: log {log}, metadata log {metadata_log}, stripes {stripes}, maps {pages}"
            )?;
            writeln!(
                text,
                "counters  {} transactions, {} syncs, {} commits, {} checkpoints",
                counters.transactions, counters.syncs, counters.commits, counters.checkpoints
            )?;
        }
        Ok(())
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
            errors: device.errors,
            damaged_blocks: report.counters.damaged_blocks,
            repaired_blocks: report.counters.repaired_blocks,
            reconstructed_blocks: report.counters.reconstructed_blocks,
        }
    }
}
