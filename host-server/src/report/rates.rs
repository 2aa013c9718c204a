//! What happened between two reports.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Channel, Counters, Guest, Operation, Status};

/// Averages over an interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    pub interval_s: f64,
    /// Guests' requests, and commands of channels' clients.
    pub requests_per_s: f64,
    pub read_bytes_per_s: f64,
    pub written_bytes_per_s: f64,
    pub syncs_per_s: f64,
    pub commits_per_s: f64,
    /// To devices, with all copies and parity.
    pub log_bytes_per_s: f64,
    pub metadata_log_bytes_per_s: f64,
    pub stripe_bytes_per_s: f64,
    pub page_bytes_per_s: f64,
    /// Over all guests; what did not happen is left out.
    pub operations: Vec<OperationRates>,
    /// By position.
    pub components: Vec<ComponentRates>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationRates {
    pub name: String,
    pub per_s: f64,
    pub mean_us: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ComponentRates {
    pub position: u8,
    pub reads_per_s: f64,
    pub read_bytes_per_s: f64,
    pub writes_per_s: f64,
    pub write_bytes_per_s: f64,
    pub flushes_per_s: f64,
}

impl Rates {
    /// None where the two do not tell of one run of one server: counters begin anew with each.
    pub fn between(earlier: &Status, later: &Status, elapsed: Duration) -> Option<Self> {
        let (Some(before), Some(after)) = (&earlier.served, &later.served) else { return None };
        let (Some(old), Some(new)) = (&earlier.counters, &later.counters) else { return None };
        if before.pid != after.pid || after.uptime_s < before.uptime_s || elapsed.is_zero() {
            return None;
        }
        let interval_s = elapsed.as_secs_f64();
        // A component that leaves takes its counts along: no rate is negative.
        let per_s = |old: u64, new: u64| new.saturating_sub(old) as f64 / interval_s;
        let guests = |field: fn(&Guest) -> u64| {
            let sum = |guests: &[Guest]| guests.iter().map(field).sum();
            per_s(sum(&before.guests), sum(&after.guests))
        };
        let channels = |field: fn(&Channel) -> u64| {
            let sum = |channels: &[Channel]| channels.iter().map(field).sum();
            per_s(sum(&before.channels), sum(&after.channels))
        };
        let counter = |field: fn(&Counters) -> u64| per_s(field(old), field(new));
        let components = earlier.tree.components.iter().zip(&later.tree.components);
        Some(Self {
            interval_s,
            requests_per_s: guests(Guest::request_count) + channels(Channel::command_count),
            read_bytes_per_s: guests(|guest| guest.read_bytes) + channels(|channel| channel.read_bytes),
            written_bytes_per_s: guests(|guest| guest.written_bytes)
                + channels(|channel| channel.written_bytes),
            syncs_per_s: counter(|counters| counters.syncs),
            commits_per_s: counter(|counters| counters.commits),
            log_bytes_per_s: counter(|counters| counters.log_bytes),
            metadata_log_bytes_per_s: counter(|counters| counters.metadata_log_bytes),
            stripe_bytes_per_s: counter(|counters| counters.stripe_bytes),
            page_bytes_per_s: counter(|counters| counters.page_bytes),
            operations: operation_rates(&before.guests, &after.guests, interval_s),
            components: components
                .map(|(old, new)| ComponentRates {
                    position: new.position,
                    reads_per_s: per_s(old.reads, new.reads),
                    read_bytes_per_s: per_s(old.read_bytes, new.read_bytes),
                    writes_per_s: per_s(old.writes, new.writes),
                    write_bytes_per_s: per_s(old.write_bytes, new.write_bytes),
                    flushes_per_s: per_s(old.flushes, new.flushes),
                })
                .collect(),
        })
    }
}

/// The most frequent first.
fn operation_rates(before: &[Guest], after: &[Guest], interval_s: f64) -> Vec<OperationRates> {
    let totals = |guests: &[Guest], name: &str| {
        let named = guests.iter().flat_map(|guest| &guest.operations).filter(|one| one.name == name);
        named.fold((0, 0), |(count, ns), one: &Operation| (count + one.count, ns + one.duration_ns))
    };
    let mut names: Vec<_> =
        after.iter().flat_map(|guest| &guest.operations).map(|operation| operation.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut rates: Vec<_> = names
        .into_iter()
        .filter_map(|name| {
            let ((old_count, old_ns), (new_count, new_ns)) = (totals(before, name), totals(after, name));
            let count = new_count.saturating_sub(old_count);
            (count > 0).then(|| OperationRates {
                name: name.to_owned(),
                per_s: count as f64 / interval_s,
                mean_us: new_ns.saturating_sub(old_ns) as f64 / count as f64 / 1000.0,
            })
        })
        .collect();
    rates.sort_by(|a, b| b.per_s.total_cmp(&a.per_s));
    rates
}

#[cfg(test)]
mod tests {
    use super::super::example::served;
    use super::*;

    #[test]
    fn rates_are_differences_over_time() {
        let earlier = served();
        let mut later = earlier.clone();
        let guest = &mut later.served.as_mut().unwrap().guests[0];
        *guest.requests.get_mut("write").unwrap() += 300;
        guest.written_bytes += 1 << 20;
        guest.operations[0].count += 200;
        guest.operations[0].duration_ns += 200 * 5_000;
        later.counters.as_mut().unwrap().syncs += 50;
        later.tree.components[1].flushes += 10;
        let rates = Rates::between(&earlier, &later, Duration::from_secs(2)).unwrap();
        assert_eq!(rates.requests_per_s, 150.0);
        assert_eq!(rates.written_bytes_per_s, f64::from(1 << 19));
        assert_eq!(rates.syncs_per_s, 25.0);
        assert_eq!(rates.components[1].flushes_per_s, 5.0);
        let operation = OperationRates { name: "write".into(), per_s: 100.0, mean_us: 5.0 };
        assert_eq!(rates.operations, [operation]);
    }

    #[test]
    fn two_servers_have_no_rates_between_them() {
        let earlier = served();
        let mut later = earlier.clone();
        later.served.as_mut().unwrap().pid += 1;
        assert_eq!(Rates::between(&earlier, &later, Duration::from_secs(1)), None);
        later.served = None;
        assert_eq!(Rates::between(&earlier, &later, Duration::from_secs(1)), None);
    }
}
