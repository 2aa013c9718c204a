//! The metrics, one family each. Labels are bounded: sockets and components by the configuration, all others by lists in
//! the code.

use super::exposition::Kind::{self, Counter, Gauge, Histogram};
use super::exposition::{Exposition, Labels};
use crate::report::{
    Channel, Cleaning, CleaningActivity, Component, ComponentState, Counters, Guest, HealthStatus, Latencies,
    Queue, Status,
};

/// A family with one sample for each guest or component: name, kind, help, value.
type Each<T> = (&'static str, Kind, &'static str, fn(&T) -> u64);

/// A family with one sample.
type One = (&'static str, Kind, &'static str, u64);

/// A report as a page for scrapers.
pub fn page(status: &Status) -> String {
    let mut page = Exposition::default();
    volume(&mut page, status);
    let guests: Vec<&Guest> = status.served.iter().flat_map(|served| &served.guests).collect();
    operations(&mut page, &guests);
    for (name, kind, help, value) in GUEST {
        let mut family = page.family(name, *kind, help);
        for guest in &guests {
            family.sample(&[("socket", &guest.socket.to_string_lossy())], value(guest));
        }
    }
    for (name, kind, help, value) in QUEUE {
        let mut family = page.family(name, *kind, help);
        for guest in &guests {
            for queue in &guest.running_queues {
                let index = queue.index.to_string();
                family
                    .sample(&[("socket", &guest.socket.to_string_lossy()), ("queue", &index)], value(queue));
            }
        }
    }
    let served: Vec<&Channel> = status.served.iter().flat_map(|served| &served.channels).collect();
    channels(&mut page, &served);
    components(&mut page, &status.tree.components);
    state(&mut page, status);
    if let Some(of) = &status.cleaning {
        cleaning(&mut page, of);
    }
    if let Some(counters) = &status.counters {
        paths(&mut page, counters);
    }
    page.into_text()
}

fn volume(page: &mut Exposition, status: &Status) {
    let tree = &status.tree;
    page.family("ringfort_build_info", Gauge, "The version that serves; always 1.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let [data, parity, mirrors] =
        [tree.data_columns, tree.parity_columns, tree.metadata_mirrors].map(|count| count.to_string());
    page.family("ringfort_volume_info", Gauge, "The volume and its geometry; always 1.").sample(
        &[
            ("volume", &status.volume),
            ("data_columns", &data),
            ("parity_columns", &parity),
            ("metadata_mirrors", &mirrors),
        ],
        1,
    );
    let mut health = page.family(
        "ringfort_volume_health",
        Gauge,
        "1 for the state that the volume is in. Failed: it takes no changes.",
    );
    for state in [HealthStatus::Healthy, HealthStatus::Degraded, HealthStatus::Failed] {
        health.sample(&[("state", state.name())], u8::from(status.health == state));
    }
}

fn operations(page: &mut Exposition, guests: &[&Guest]) {
    let mut durations = page.family(
        "ringfort_operation_duration_seconds",
        Histogram,
        "From taking a guest's request to giving back its answer.",
    );
    for guest in guests {
        for operation in &guest.operations {
            let labels: Labels<'_> =
                &[("socket", &guest.socket.to_string_lossy()), ("operation", &operation.name)];
            let sum = operation.duration_ns as f64 / 1e9;
            durations.histogram(labels, &cumulative(&operation.latencies), sum);
        }
    }
}

fn channels(page: &mut Exposition, channels: &[&Channel]) {
    let mut durations = page.family(
        "ringfort_channel_command_duration_seconds",
        Histogram,
        "From taking a client's command to its completion.",
    );
    for channel in channels {
        for command in &channel.operations {
            let labels: Labels<'_> = &[("channel", &channel.address), ("command", &command.name)];
            durations.histogram(labels, &cumulative(&command.latencies), command.duration_ns as f64 / 1e9);
        }
    }
    let mut bad = page.family(
        "ringfort_channel_bad_input_total",
        Counter,
        "Commands that no sound client sends, by what was wrong with them.",
    );
    for channel in channels {
        for (kind, count) in &channel.bad_input {
            bad.sample(&[("channel", &channel.address), ("kind", kind)], *count);
        }
    }
    let mut refusals = page.family(
        "ringfort_channel_refusals_total",
        Counter,
        "What was refused over connections, or ended by the server, by reason.",
    );
    for channel in channels {
        for (reason, count) in &channel.refusals {
            refusals.sample(&[("channel", &channel.address), ("reason", reason)], *count);
        }
    }
    for (name, kind, help, value) in CHANNEL {
        let mut family = page.family(name, *kind, help);
        for channel in channels {
            family.sample(&[("channel", &channel.address)], value(channel));
        }
    }
}

const CHANNEL: &[Each<Channel>] = &[
    ("ringfort_channel_connections_total", Counter, "Connections of clients that were accepted.", |one| {
        one.connections
    }),
    ("ringfort_channel_connections", Gauge, "Connections that are open.", |one| one.open_connections),
    ("ringfort_channel_regions", Gauge, "Regions of memory that clients share.", |one| one.regions),
    ("ringfort_channel_rings", Gauge, "Rings that are attached.", |one| one.rings),
    ("ringfort_channel_errors_total", Counter, "Completions with an error number.", |one| one.errors),
    (
        "ringfort_channel_broken_connections_total",
        Counter,
        "Connections that ended since what came over them was no message.",
        |one| one.broken_connections,
    ),
    (
        "ringfort_channel_silent_connections_total",
        Counter,
        "Connections that ended since nothing came over them for too long.",
        |one| one.silent_connections,
    ),
    ("ringfort_channel_read_bytes_total", Counter, "File data copied to clients.", |one| one.read_bytes),
    ("ringfort_channel_written_bytes_total", Counter, "File data copied from clients.", |one| {
        one.written_bytes
    }),
    (
        "ringfort_channel_parks_total",
        Counter,
        "Times that a ring was left to its client's doorbell, as the server was about to sleep.",
        |one| one.parks,
    ),
    ("ringfort_channel_kicks_total", Counter, "Times that a client woke the server.", |one| one.kicks),
    ("ringfort_channel_doorbells_total", Counter, "Doorbells rung for clients.", |one| one.doorbells),
    (
        "ringfort_channel_refused_waits_total",
        Counter,
        "Waits for a lock that were refused, as a quarter of their ring waited already.",
        |one| one.refused_waits,
    ),
];

/// Counts at or below each bound, which is what the format wants. Every other bound is left out: factors of two are fine
/// enough for a scraper that keeps them all for every operation.
fn cumulative(latencies: &[Latencies]) -> Vec<(f64, u64)> {
    let mut total = 0;
    let all = latencies.iter().map(|bucket| {
        total += bucket.count;
        (bucket.bound_ns, total)
    });
    let kept = all.enumerate().filter(|(index, (bound_ns, _))| index % 2 == 0 || bound_ns.is_none());
    // Divided by, not multiplied with: so that 50 µs is written as 0.00005.
    kept.map(|(_, (bound_ns, total))| (bound_ns.map_or(f64::INFINITY, |ns| ns as f64 / 1e9), total)).collect()
}

const GUEST: &[Each<Guest>] = &[
    (
        "ringfort_guest_requests_total",
        Counter,
        "Requests of a guest that were answered.",
        Guest::request_count,
    ),
    ("ringfort_guest_errors_total", Counter, "Requests answered with an error number.", |guest| guest.errors),
    (
        "ringfort_guest_malformed_requests_total",
        Counter,
        "Requests that no sound guest kernel makes.",
        |guest| guest.malformed_requests,
    ),
    (
        "ringfort_guest_broken_devices_total",
        Counter,
        "Times that a guest broke the queue protocol and was not served until it reset the device.",
        |guest| guest.broken_devices,
    ),
    ("ringfort_guest_connections_total", Counter, "Virtual machines that connected.", |guest| {
        guest.connections
    }),
    ("ringfort_guest_sessions_total", Counter, "Mounts by guests.", |guest| guest.sessions),
    ("ringfort_guest_kicks_total", Counter, "Times that a guest woke the server.", |guest| guest.kicks),
    (
        "ringfort_guest_refused_waits_total",
        Counter,
        "Waits for a lock that were refused, as a quarter of their queue waited already.",
        |guest| guest.refused_waits,
    ),
    ("ringfort_guest_doorbells_total", Counter, "Interrupts sent to guests.", |guest| guest.doorbells),
    ("ringfort_guest_read_bytes_total", Counter, "File data copied to guests.", |guest| guest.read_bytes),
    ("ringfort_guest_written_bytes_total", Counter, "File data copied from guests.", |guest| {
        guest.written_bytes
    }),
    ("ringfort_guest_connected", Gauge, "1 while a virtual machine is connected.", |guest| {
        u64::from(guest.connected)
    }),
    ("ringfort_guest_mounted", Gauge, "1 while a guest has the volume mounted.", |guest| {
        u64::from(guest.mounted)
    }),
];

const QUEUE: &[Each<Queue>] = &[
    ("ringfort_queue_size", Gauge, "Requests that a running queue has room for.", |queue| queue.size),
    ("ringfort_queue_in_flight_requests", Gauge, "Requests of a queue under way.", |queue| queue.in_flight),
    ("ringfort_queue_in_flight_bytes", Gauge, "Memory that these hold.", |queue| queue.in_flight_bytes),
    ("ringfort_queue_waiting_requests", Gauge, "Of these, requests that wait for a lock.", |queue| {
        queue.waiting_for_locks
    }),
    (
        "ringfort_queue_at_bounds",
        Gauge,
        "1 while the bounds on requests under way keep further ones waiting in the queue.",
        |queue| u64::from(queue.at_bounds),
    ),
];

fn components(page: &mut Exposition, components: &[Component]) {
    let mut info =
        page.family("ringfort_component_info", Gauge, "Where a component is and what it holds; always 1.");
    for component in components {
        let path = component.path.as_ref().map_or_else(Default::default, |path| path.to_string_lossy());
        info.sample(
            &[
                ("component", &component.position.to_string()),
                ("id", &component.id),
                ("path", &path),
                ("holds", &component.holds),
            ],
            1,
        );
    }
    let mut states = page.family(
        "ringfort_component_state",
        Gauge,
        "1 for the state that a component is in. Failed: present and out of use; missing: found nowhere.",
    );
    for component in components {
        for state in [ComponentState::Live, ComponentState::Failed, ComponentState::Missing] {
            let labels: Labels<'_> =
                &[("component", &component.position.to_string()), ("state", state.name())];
            states.sample(labels, u8::from(component.state == state));
        }
    }
    for (name, kind, help, value) in COMPONENT {
        let mut family = page.family(name, *kind, help);
        for component in components {
            family.sample(&[("component", &component.position.to_string())], value(component));
        }
    }
}

const COMPONENT: &[Each<Component>] = &[
    ("ringfort_component_size_bytes", Gauge, "Usable length of a component.", |one| one.size_bytes),
    ("ringfort_component_reads_total", Counter, "Read requests completed by a component.", |one| one.reads),
    ("ringfort_component_read_bytes_total", Counter, "Bytes read from a component.", |one| one.read_bytes),
    ("ringfort_component_writes_total", Counter, "Write requests completed by a component.", |one| {
        one.writes
    }),
    ("ringfort_component_written_bytes_total", Counter, "Bytes written to a component.", |one| {
        one.write_bytes
    }),
    ("ringfort_component_flushes_total", Counter, "Flushes completed by a component.", |one| one.flushes),
    ("ringfort_component_errors_total", Counter, "Requests failed by a component.", |one| one.errors),
    ("ringfort_component_read_errors_total", Counter, "Of these, reads.", |one| one.read_errors),
    ("ringfort_component_write_errors_total", Counter, "Of these, writes.", |one| one.write_errors),
    ("ringfort_component_flush_errors_total", Counter, "Of these, flushes.", |one| one.flush_errors),
    (
        "ringfort_component_timeouts_total",
        Counter,
        "Requests given up as a component did not answer in time.",
        |one| one.timeouts,
    ),
    (
        "ringfort_component_damaged_blocks_total",
        Counter,
        "Blocks of a component that failed their checksum.",
        |one| one.damaged_blocks,
    ),
    (
        "ringfort_component_repaired_blocks_total",
        Counter,
        "Blocks of a component written back from others.",
        |one| one.repaired_blocks,
    ),
    (
        "ringfort_component_reconstructed_blocks_total",
        Counter,
        "Blocks computed from other components because this one did not give them.",
        |one| one.reconstructed_blocks,
    ),
];

/// What has no labels, and what is counted by state.
fn state(page: &mut Exposition, status: &Status) {
    let mut ones: Vec<One> = vec![(
        "ringfort_components_lost_total",
        Counter,
        "Components that failed and left while the server ran.",
        status.tree.expelled,
    )];
    if let Some(served) = &status.served {
        let help = "Since the server began to open the volume.";
        ones.push(("ringfort_uptime_seconds", Gauge, help, served.uptime_s));
    }
    if let Some(space) = &status.space {
        ones.extend([
            ("ringfort_space_total_bytes", Gauge, "Usable size of the volume.", space.total_bytes),
            ("ringfort_space_capacity_bytes", Gauge, "Of all segments together.", space.capacity_bytes),
            ("ringfort_space_free_bytes", Gauge, "Of it, space handed out to nobody.", space.free_bytes),
            ("ringfort_space_live_bytes", Gauge, "Data that the maps name.", space.live_bytes),
            ("ringfort_space_dead_bytes", Gauge, "The rest, not free yet.", space.dead_bytes),
        ]);
        page.family("ringfort_segments", Gauge, "Segments of the data region by state.")
            .sample(&[("state", "free")], space.free_segments)
            .sample(&[("state", "open")], space.open_segments)
            .sample(&[("state", "closed")], space.closed_segments);
    }
    if let Some(log) = &status.log {
        let waiting = log.applied_transaction.saturating_sub(log.durable_transaction);
        ones.extend([
            ("ringfort_log_size_bytes", Gauge, "Length of the log on each mirror.", log.size_bytes),
            ("ringfort_log_used_bytes", Gauge, "Of it, what recovery would read.", log.used_bytes),
            (
                "ringfort_metadata_log_size_bytes",
                Gauge,
                "Length of the metadata log on each mirror.",
                log.metadata_log_size_bytes,
            ),
            (
                "ringfort_metadata_log_used_bytes",
                Gauge,
                "Of it, what recovery would read.",
                log.metadata_log_used_bytes,
            ),
            ("ringfort_log_epoch", Gauge, "Openings of the log, recoveries included.", log.epoch),
            ("ringfort_undurable_transactions", Gauge, "Changes applied that wait for a commit.", waiting),
            ("ringfort_banks", Gauge, "Banks in memory.", u64::from(log.banks)),
            ("ringfort_bank_bytes", Gauge, "Blocks in banks, on their way into stripes.", log.bank_bytes),
        ]);
    }
    if let Some(memory) = &status.memory {
        ones.extend([
            ("ringfort_maps_memory_bytes", Gauge, "Memory that the maps take.", memory.maps_bytes),
            ("ringfort_maps_memory_limit_bytes", Gauge, "Memory they may take.", memory.maps_limit_bytes),
        ]);
        page.family("ringfort_map_pages", Gauge, "Pages of the metadata region by state.")
            .sample(&[("state", "used")], memory.pages)
            .sample(&[("state", "free")], memory.free_pages);
    }
    if let Some(inodes) = &status.inodes {
        const HELP: &str =
            "Inodes in memory: all, those that guests hold, and of these the ones without a name.";
        page.family("ringfort_inodes", Gauge, HELP)
            .sample(&[("state", "cached")], inodes.cached)
            .sample(&[("state", "held")], inodes.held)
            .sample(&[("state", "unlinked")], inodes.unlinked);
        ones.extend([
            (
                "ringfort_unreclaimed_inodes",
                Gauge,
                "Files without names or holders whose space has not come back yet.",
                inodes.unreclaimed,
            ),
            (
                "ringfort_reclaim_failures_total",
                Counter,
                "Attempts to give space of deleted files back that failed; they are repeated.",
                inodes.reclaim_failures,
            ),
        ]);
    }
    if let Some(recovery) = &status.recovery {
        page.family("ringfort_recovery_duration_seconds", Gauge, "What opening the volume took.")
            .sample(&[], recovery.elapsed_ms as f64 / 1000.0);
        ones.extend([
            (
                "ringfort_recovery_transactions",
                Gauge,
                "Changes replayed at the opening.",
                recovery.replayed_transactions,
            ),
            ("ringfort_recovery_log_bytes", Gauge, "Log read at the opening.", recovery.replayed_log_bytes),
            (
                "ringfort_recovery_stripes",
                Gauge,
                "Stripes written anew at the opening.",
                recovery.rewritten_stripes,
            ),
        ]);
    }
    for (name, kind, help, value) in ones {
        page.family(name, kind, help).sample(&[], value);
    }
}

/// What freeing segments takes.
fn cleaning(page: &mut Exposition, cleaning: &Cleaning) {
    let mut state =
        page.family("ringfort_cleaning_activity", Gauge, "1 for what the cleaner does, 0 for the others.");
    for activity in CleaningActivity::ALL {
        let is_it = u64::from(activity == cleaning.activity);
        state.sample(&[("activity", activity.name())], is_it);
    }
    let ones: [One; 7] = [
        (
            "ringfort_cleaning_start_segments",
            Gauge,
            "Cleaning begins when fewer segments are free.",
            cleaning.start_below_segments.into(),
        ),
        (
            "ringfort_cleaned_segments_total",
            Counter,
            "Segments emptied by moving.",
            cleaning.cleaned_segments,
        ),
        ("ringfort_cleaning_relocated_bytes_total", Counter, "Data moved, once.", cleaning.relocated_bytes),
        ("ringfort_cleaning_read_bytes_total", Counter, "Data read by the cleaner.", cleaning.read_bytes),
        (
            "ringfort_cleaning_written_bytes_total",
            Counter,
            "Of what went to stripes, what the cleaner wrote.",
            cleaning.written_bytes,
        ),
        (
            "ringfort_cleaning_padding_bytes_total",
            Counter,
            "Zeros in the cleaner's last stripes.",
            cleaning.padding_bytes,
        ),
        (
            "ringfort_cleaning_unreadable_segments_total",
            Counter,
            "Times that a segment was left because a block in it could not be read.",
            cleaning.unreadable_segments,
        ),
    ];
    for (name, kind, help, value) in ones {
        page.family(name, kind, help).sample(&[], value);
    }
}

/// Where bytes went, and how often what was done.
fn paths(page: &mut Exposition, counters: &Counters) {
    page.family(
        "ringfort_path_written_bytes_total",
        Counter,
        "Bytes written to components by path, with all copies and parity.",
    )
    .sample(&[("path", "log")], counters.log_bytes)
    .sample(&[("path", "metadata_log")], counters.metadata_log_bytes)
    .sample(&[("path", "stripes")], counters.stripe_bytes)
    .sample(&[("path", "maps")], counters.page_bytes)
    .sample(&[("path", "roots")], counters.root_bytes);
    page.family("ringfort_stripes_written_total", Counter, "Stripes of data by where they gathered.")
        .sample(&[("source", "write")], counters.large_stripes)
        .sample(&[("source", "bank")], counters.bank_stripes);
    let ones: [One; 8] = [
        ("ringfort_user_bytes_total", Counter, "File data given to the store, once.", counters.user_bytes),
        (
            "ringfort_padding_bytes_total",
            Counter,
            "Zeros that filled up early stripes.",
            counters.padding_bytes,
        ),
        ("ringfort_transactions_total", Counter, "Changes applied.", counters.transactions),
        ("ringfort_syncs_total", Counter, "Times that somebody asked for durability.", counters.syncs),
        ("ringfort_commits_total", Counter, "Records written to the log.", counters.commits),
        ("ringfort_checkpoints_total", Counter, "Checkpoints of the maps.", counters.checkpoints),
        (
            "ringfort_log_moves_total",
            Counter,
            "Checkpoints of the log into the metadata log.",
            counters.moves,
        ),
        ("ringfort_freed_segments_total", Counter, "Segments whose space returned.", counters.freed_segments),
    ];
    for (name, kind, help, value) in ones {
        page.family(name, kind, help).sample(&[], value);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::page;
    use crate::report::example::served;

    const DOCUMENT: &str = include_str!("../../docs/operations.md");

    /// Names of the table, each with what it may stand for: `_b_total` behind `ringfort_a_c_total` is `ringfort_a_b_total` or
    /// `ringfort_b_total`.
    fn documented() -> Vec<(String, BTreeSet<String>)> {
        let mut names = Vec::new();
        for row in DOCUMENT.lines().filter(|line| line.starts_with("| `ringfort_")) {
            let mut whole = "";
            let cell = row.split('|').nth(1).unwrap();
            for name in cell.split('`').skip(1).step_by(2) {
                let mut meant: BTreeSet<String> = [name.to_owned()].into();
                if name.starts_with("ringfort_") {
                    whole = name;
                } else {
                    meant =
                        whole.match_indices('_').map(|(at, _)| format!("{}{name}", &whole[..at])).collect();
                }
                names.push((name.to_owned(), meant));
            }
        }
        names
    }

    #[test]
    fn every_family_is_documented_and_nothing_else_is() {
        let page = page(&served());
        let families: BTreeSet<&str> =
            page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert!(families.len() > 50, "{families:?}");
        let documented = documented();
        for family in &families {
            assert!(
                documented.iter().any(|(_, meant)| meant.contains(*family)),
                "{family} is not documented"
            );
        }
        for (name, meant) in &documented {
            let exists = meant.iter().any(|name| families.contains(name.as_str()));
            assert!(exists, "{name} is documented and no family of metrics is called so");
        }
    }
}
