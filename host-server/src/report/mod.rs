//! What `volume status` tells: the same object over the admin socket, as JSON, as text for people, and as metrics.
//!
//! Modules, lowest first: `from_store` · `from_frontend` · `rates` · `text` · `views`

#[cfg(test)]
pub mod example;
mod from_frontend;
mod from_store;
mod rates;
mod text;
mod views;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use rates::Rates;
pub use views::ViewList;

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
    #[serde(default)]
    pub inodes: Option<Inodes>,
    pub space: Option<Space>,
    pub log: Option<Log>,
    pub memory: Option<Memory>,
    pub recovery: Option<Recovery>,
    #[serde(default)]
    pub cleaning: Option<Cleaning>,
    pub counters: Option<Counters>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    Healthy,
    Degraded,
    Failed,
}

impl HealthStatus {
    pub fn name(self) -> &'static str {
        match self {
            HealthStatus::Healthy => "healthy",
            HealthStatus::Degraded => "degraded",
            HealthStatus::Failed => "failed",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Served {
    pub pid: u32,
    pub uptime_s: u64,
    pub guests: Vec<Guest>,
    #[serde(default)]
    pub channels: Vec<Channel>,
}

/// Where clients share memory with the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Channel {
    /// As `--channel` names it.
    pub address: String,
    /// Connections accepted.
    pub connections: u64,
    pub open_connections: u64,
    pub regions: u64,
    pub rings: u64,
    /// Completions that carried an error number.
    pub errors: u64,
    /// What no sound client sends in a ring, by kind.
    pub bad_input: BTreeMap<String, u64>,
    /// What was refused over connections, or ended by the server, by reason.
    pub refusals: BTreeMap<String, u64>,
    /// Connections that ended since what came over them was no message.
    pub broken_connections: u64,
    /// And since nothing came over them for too long.
    pub silent_connections: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Times that a ring was left to its client's doorbell, as the server was about to sleep.
    pub parks: u64,
    /// Times that a client woke the server.
    pub kicks: u64,
    pub doorbells: u64,
    /// Waits for a lock that were refused, as too many waited already.
    pub refused_waits: u64,
    /// Commands, by name; those that were never asked for are left out.
    pub operations: Vec<Operation>,
}

impl Channel {
    pub fn command_count(&self) -> u64 {
        self.operations.iter().map(|one| one.count).sum()
    }

    pub fn bad_input_count(&self) -> u64 {
        self.bad_input.values().sum()
    }
}

/// One virtio-fs socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guest {
    pub socket: PathBuf,
    #[serde(default)]
    pub cache: String,
    #[serde(default)]
    pub writeback: bool,
    /// Request queues that the device offers.
    #[serde(default)]
    pub queues: u64,
    /// A virtual machine is there.
    #[serde(default)]
    pub connected: bool,
    /// And has the volume mounted.
    #[serde(default)]
    pub mounted: bool,
    #[serde(default)]
    pub running_queues: Vec<Queue>,
    /// Requests answered, by name.
    #[serde(default)]
    pub requests: BTreeMap<String, u64>,
    pub connections: u64,
    pub sessions: u64,
    pub errors: u64,
    pub malformed_requests: u64,
    pub broken_devices: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Times that the guest woke the server.
    #[serde(default)]
    pub kicks: u64,
    #[serde(default)]
    pub doorbells: u64,
    /// Waits for a lock that were refused, as too many waited already.
    #[serde(default)]
    pub refused_waits: u64,
    /// By name; those that were never asked for are left out.
    #[serde(default)]
    pub operations: Vec<Operation>,
}

impl Guest {
    pub fn request_count(&self) -> u64 {
        self.requests.values().sum()
    }
}

/// A queue that the guest's driver uses.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Queue {
    /// 0 is the one of high priority.
    pub index: u64,
    pub size: u64,
    /// Requests under way.
    pub in_flight: u64,
    pub in_flight_bytes: u64,
    /// Of these, requests that wait for a lock.
    pub waiting_for_locks: u64,
    /// The bounds are reached: further requests wait in the queue.
    pub at_bounds: bool,
}

/// What one kind of request has cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    pub name: String,
    pub count: u64,
    /// From taking the request to giving back its answer, all of them together.
    pub duration_ns: u64,
    /// How many took longer than the bound before and at most this one.
    #[serde(skip)]
    pub latencies: Vec<Latencies>,
}

/// One bucket of a histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latencies {
    /// None in the last: longer than every bound.
    pub bound_ns: Option<u64>,
    pub count: u64,
}

/// Of the filesystem, in memory.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Inodes {
    pub cached: u64,
    /// With lookups or handles.
    pub held: u64,
    /// Without links, waiting for their last holder.
    pub unlinked: u64,
    /// Of these, the ones that nobody holds: the space that they take is about to come back.
    #[serde(default)]
    pub unreclaimed: u64,
    /// Attempts to give such space back that failed; they are repeated.
    #[serde(default)]
    pub reclaim_failures: u64,
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
    /// Components lost since the volume was opened.
    #[serde(default)]
    pub expelled: u64,
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
    /// Requests that failed: the sum of the next three.
    pub errors: u64,
    #[serde(default)]
    pub read_errors: u64,
    #[serde(default)]
    pub write_errors: u64,
    #[serde(default)]
    pub flush_errors: u64,
    /// Of those, requests that were not answered in time.
    #[serde(default)]
    pub timeouts: u64,
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

impl ComponentState {
    pub fn name(self) -> &'static str {
        match self {
            ComponentState::Live => "live",
            ComponentState::Failed => "failed",
            ComponentState::Missing => "missing",
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Space {
    pub total_bytes: u64,
    /// Of all segments together, those beyond the size included.
    #[serde(default)]
    pub capacity_bytes: u64,
    pub free_bytes: u64,
    pub live_bytes: u64,
    /// Overwritten, deleted or padding; returns when what else lives in its segment has moved or died.
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
    #[serde(default)]
    pub metadata_log_size_bytes: u64,
    #[serde(default)]
    pub metadata_log_used_bytes: u64,
    pub epoch: u64,
    pub root_sequence: u64,
    pub applied_transaction: u64,
    pub durable_transaction: u64,
    #[serde(default)]
    pub banks: u32,
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

/// Moving what lives in sparse segments, so that whole segments become free. Counted since the volume was opened.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Cleaning {
    pub activity: CleaningActivity,
    /// It begins when fewer segments are free,
    pub start_below_segments: u32,
    /// and rests no more when so few are.
    pub urgent_at_segments: u32,
    pub cleaned_segments: u64,
    /// Data that was written once more, once.
    pub relocated_bytes: u64,
    /// By the cleaner, parity not counted.
    pub read_bytes: u64,
    /// By the cleaner, parity and padding included.
    pub written_bytes: u64,
    pub padding_bytes: u64,
    /// Times that a segment was left because a block in it could not be read.
    pub unreadable_segments: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CleaningActivity {
    /// Enough segments are free.
    Resting,
    /// Nobody writes.
    Tidying,
    /// Few segments are free.
    Ahead,
    /// Writers wait, or soon would.
    Urgent,
    /// Few segments are free, and cleaning more would gain nothing.
    Exhausted,
}

impl CleaningActivity {
    pub const ALL: [Self; 5] = [Self::Resting, Self::Tidying, Self::Ahead, Self::Urgent, Self::Exhausted];

    pub fn name(self) -> &'static str {
        match self {
            Self::Resting => "resting",
            Self::Tidying => "tidying",
            Self::Ahead => "ahead",
            Self::Urgent => "urgent",
            Self::Exhausted => "exhausted",
        }
    }
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
    /// Times that the log's commits went to the metadata log.
    #[serde(default)]
    pub moves: u64,
    pub large_stripes: u64,
    pub bank_stripes: u64,
    pub freed_segments: u64,
}
