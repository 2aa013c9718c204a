//! The counts of a virtio-fs device in the words of this crate's report.

use std::path::PathBuf;

use ringfort_frontend::channel::metrics::ChannelMetrics;
use ringfort_frontend::metrics::{HistogramSnapshot, Metrics, QueueState};

use super::{Channel, Guest, Latencies, Operation, Queue};

impl Guest {
    /// What the device itself knows; its settings are left empty.
    pub fn of_device(metrics: &Metrics) -> Self {
        let operations: Vec<_> = metrics.operations().into_iter().map(Operation::of).collect();
        let queues = (0..).zip(metrics.queues());
        Self {
            socket: PathBuf::new(),
            cache: String::new(),
            writeback: false,
            queues: 0,
            connected: metrics.connected.get(),
            mounted: metrics.in_session.get(),
            running_queues: queues.map(Queue::of).filter(|queue| queue.size > 0).collect(),
            requests: operations.iter().map(|one| (one.name.clone(), one.count)).collect(),
            connections: metrics.connections.get(),
            sessions: metrics.sessions.get(),
            errors: metrics.errors.get(),
            malformed_requests: metrics.malformed_requests.get(),
            broken_devices: metrics.broken_devices.get(),
            read_bytes: metrics.read_bytes.get(),
            written_bytes: metrics.written_bytes.get(),
            kicks: metrics.kicks.get(),
            doorbells: metrics.doorbells.get(),
            refused_waits: metrics.refused_waits.get(),
            operations,
        }
    }
}

impl Channel {
    pub fn of_clients(address: String, metrics: &ChannelMetrics) -> Self {
        let named = |(name, count): (&'static str, u64)| (name.to_owned(), count);
        Self {
            address,
            connections: metrics.connections.get(),
            open_connections: metrics.open_connections.get(),
            regions: metrics.regions.get(),
            rings: metrics.rings.get(),
            errors: metrics.errors.get(),
            bad_input: metrics.bad_input().map(named).collect(),
            refusals: metrics.refusals().map(named).collect(),
            broken_connections: metrics.broken_connections.get(),
            silent_connections: metrics.silent_connections.get(),
            read_bytes: metrics.read_bytes.get(),
            written_bytes: metrics.written_bytes.get(),
            parks: metrics.parks.get(),
            kicks: metrics.kicks.get(),
            doorbells: metrics.doorbells.get(),
            refused_waits: metrics.refused_waits.get(),
            operations: metrics.commands().into_iter().map(Operation::of).collect(),
        }
    }
}

impl Operation {
    fn of((name, latencies): (&'static str, HistogramSnapshot)) -> Self {
        let bounds = latencies.bounds_ns.iter().copied().map(Some).chain([None]);
        Self {
            name: name.to_owned(),
            count: latencies.count(),
            duration_ns: latencies.sum_ns,
            latencies: bounds
                .zip(&latencies.counts)
                .map(|(bound_ns, count)| Latencies { bound_ns, count: *count })
                .collect(),
        }
    }
}

impl Queue {
    fn of((index, state): (u64, &QueueState)) -> Self {
        Self {
            index,
            size: state.size.get(),
            in_flight: state.in_flight.get(),
            in_flight_bytes: state.in_flight_bytes.get(),
            waiting_for_locks: state.waiting_for_locks.get(),
            at_bounds: state.at_bounds.get(),
        }
    }
}
