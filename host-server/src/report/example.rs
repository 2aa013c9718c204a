//! A report for tests: a served volume with every part filled in.

use super::{
    Channel, Cleaning, CleaningActivity, Component, ComponentState, Counters, Guest, HealthStatus, Inodes,
    Latencies, Log, Memory, Operation, Queue, Recovery, Served, Space, Status, Tree,
};

pub fn served() -> Status {
    Status {
        volume: "0123abcd".into(),
        health: HealthStatus::Degraded,
        failure: None,
        served: Some(Served { pid: 7, uptime_s: 60, guests: vec![guest()], channels: vec![channel()] }),
        tree: Tree {
            sequence: 3,
            data_columns: 1,
            parity_columns: 1,
            metadata_mirrors: 2,
            metadata_bytes: 1 << 20,
            stripe_data_bytes: 1 << 16,
            components: vec![component(0, ComponentState::Live), component(1, ComponentState::Failed)],
            expelled: 1,
            findings: Vec::new(),
        },
        inodes: Some(Inodes { cached: 9, held: 4, unlinked: 1, unreclaimed: 0, reclaim_failures: 2 }),
        space: Some(Space {
            total_bytes: 1 << 30,
            capacity_bytes: 5 << 28,
            free_bytes: 1 << 29,
            live_bytes: 1 << 28,
            dead_bytes: 1 << 28,
            segments: 16,
            free_segments: 8,
            open_segments: 2,
            closed_segments: 6,
        }),
        log: Some(Log {
            size_bytes: 1 << 24,
            used_bytes: 1 << 22,
            metadata_log_size_bytes: 1 << 20,
            metadata_log_used_bytes: 1 << 19,
            epoch: 5,
            root_sequence: 6,
            applied_transaction: 110,
            durable_transaction: 100,
            banks: 1,
            bank_bytes: 8192,
        }),
        memory: Some(Memory { maps_bytes: 1 << 16, maps_limit_bytes: 1 << 26, pages: 16, free_pages: 1000 }),
        recovery: Some(Recovery {
            replayed_transactions: 1,
            replayed_log_bytes: 4096,
            rewritten_stripes: 2,
            elapsed_ms: 250,
        }),
        cleaning: Some(Cleaning {
            activity: CleaningActivity::Ahead,
            start_below_segments: 7,
            urgent_at_segments: 4,
            cleaned_segments: 3,
            relocated_bytes: 4096,
            read_bytes: 8192,
            written_bytes: 6144,
            padding_bytes: 512,
            unreadable_segments: 1,
        }),
        counters: Some(counters()),
    }
}

fn guest() -> Guest {
    let bucket = |bound_ns, count| Latencies { bound_ns, count };
    Guest {
        socket: "/run/vm\"1\".sock".into(),
        cache: "auto".into(),
        writeback: false,
        queues: 1,
        connected: true,
        mounted: true,
        running_queues: vec![Queue {
            index: 1,
            size: 128,
            in_flight: 3,
            in_flight_bytes: 12288,
            waiting_for_locks: 1,
            at_bounds: false,
        }],
        requests: [("write".to_owned(), 12)].into(),
        connections: 1,
        sessions: 1,
        errors: 2,
        malformed_requests: 0,
        broken_devices: 0,
        read_bytes: 4096,
        written_bytes: 8192,
        kicks: 10,
        doorbells: 11,
        refused_waits: 0,
        operations: vec![Operation {
            name: "write".into(),
            count: 12,
            duration_ns: 1_500_000,
            latencies: vec![bucket(Some(50_000), 7), bucket(Some(1_000_000), 4), bucket(None, 1)],
        }],
    }
}

fn channel() -> Channel {
    let bucket = |bound_ns, count| Latencies { bound_ns, count };
    Channel {
        address: "unix:/run/data.ctl".into(),
        connections: 5,
        open_connections: 1,
        regions: 1,
        rings: 2,
        errors: 3,
        bad_input: [("area".to_owned(), 2), ("flags".to_owned(), 0)].into(),
        refusals: [("nonce".to_owned(), 4)].into(),
        broken_connections: 1,
        silent_connections: 0,
        read_bytes: 4096,
        written_bytes: 0,
        parks: 7,
        kicks: 6,
        doorbells: 8,
        refused_waits: 0,
        operations: vec![Operation {
            name: "read".into(),
            count: 9,
            duration_ns: 9_000,
            latencies: vec![bucket(Some(1_024), 8), bucket(Some(1_536), 1), bucket(None, 0)],
        }],
    }
}

fn component(position: u8, state: ComponentState) -> Component {
    Component {
        position,
        id: format!("component-id-{position}"),
        path: Some(format!("/dev/disk\\{position}\n").into()),
        holds: "data+metadata".into(),
        size_bytes: 1 << 30,
        state,
        failure: (state != ComponentState::Live).then(|| "it was unplugged".into()),
        reads: 10,
        read_bytes: 40960,
        writes: 20,
        write_bytes: 81920,
        flushes: 5,
        errors: 6,
        read_errors: 1,
        write_errors: 2,
        flush_errors: 3,
        timeouts: 4,
        damaged_blocks: 2,
        repaired_blocks: 3,
        reconstructed_blocks: 4,
    }
}

fn counters() -> Counters {
    Counters {
        user_bytes: 8192,
        log_bytes: 24576,
        metadata_log_bytes: 4096,
        stripe_bytes: 16384,
        page_bytes: 12288,
        root_bytes: 8192,
        padding_bytes: 512,
        transactions: 110,
        syncs: 40,
        commits: 30,
        checkpoints: 3,
        moves: 4,
        large_stripes: 1,
        bank_stripes: 2,
        freed_segments: 1,
    }
}
