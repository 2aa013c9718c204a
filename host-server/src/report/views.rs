//! Snapshots and clones, as commands tell of them.

use ringfort_filesystem::Filesystem;
use ringfort_filesystem::operation::Timestamp;
use ringfort_store::address::ViewId;
use ringfort_store::volume::Volume;
use serde::{Deserialize, Serialize};

/// Every snapshot and clone that can be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewList {
    /// In the order in which they were made.
    pub snapshots: Vec<SnapshotEntry>,
    pub clones: Vec<CloneEntry>,
    /// Removed ones of either kind whose space is still being given back.
    pub being_removed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEntry {
    pub name: String,
    /// Since 1970.
    pub created_ms: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneEntry {
    pub name: String,
    /// The snapshot that it began as.
    pub snapshot: String,
    /// Since 1970.
    pub created_ms: i64,
}

/// The time in UTC, as `2026-11-23 14:05:00`. The date by Howard Hinnant's `civil_from_days` (2013).
fn utc(since_1970_ms: i64) -> String {
    let seconds = since_1970_ms.div_euclid(1000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

fn millis(time: Timestamp) -> i64 {
    time.seconds * 1000 + i64::from(time.nanoseconds / 1_000_000)
}

impl ViewList {
    /// A line for each snapshot.
    pub fn snapshots_text(&self) -> String {
        let lines = self.snapshots.iter().map(|entry| format!("{}  {}\n", utc(entry.created_ms), entry.name));
        lines.collect::<String>() + &self.removals_text()
    }

    /// A line for each clone.
    pub fn clones_text(&self) -> String {
        let line = |entry: &CloneEntry| {
            format!("{}  {}  (of snapshot {})\n", utc(entry.created_ms), entry.name, entry.snapshot)
        };
        self.clones.iter().map(line).collect::<String>() + &self.removals_text()
    }

    fn removals_text(&self) -> String {
        match self.being_removed {
            0 => String::new(),
            count => format!("({count} removed: what they alone held is being given back)\n"),
        }
    }

    pub fn of<V: Volume>(filesystem: &Filesystem<V>) -> Self {
        let shown = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let snapshots = filesystem.snapshots(ViewId::VOLUME);
        let name_of = |view| {
            let snapshot = snapshots.iter().find(|snapshot| snapshot.view == view);
            snapshot.map(|snapshot| shown(&snapshot.name)).unwrap_or_default()
        };
        let clone = |clone: ringfort_filesystem::snapshot::Clone| CloneEntry {
            name: shown(&clone.name),
            snapshot: name_of(clone.origin),
            created_ms: millis(clone.created),
        };
        Self {
            clones: filesystem.clones().into_iter().map(clone).collect(),
            snapshots: snapshots
                .iter()
                .map(|snapshot| SnapshotEntry {
                    name: shown(&snapshot.name),
                    created_ms: millis(snapshot.created),
                })
                .collect(),
            being_removed: filesystem.views_being_removed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_utc() {
        for (ms, told) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (1_795_442_700_000, "2026-11-23 14:05:00"),
            (4_102_444_799_999, "2099-12-31 23:59:59"),
        ] {
            assert_eq!(utc(ms), told);
        }
    }
}
