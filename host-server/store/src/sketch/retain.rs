//! Which snapshots a schedule keeps: `hourly=24,daily=30` and the like.
//!
//! A rule keeps the newest snapshot of each of the most recent periods that have one; periods without a snapshot do not count,
//! so that a machine that was off loses no history. A snapshot goes when no rule keeps it. The newest of all stays. Periods are those of UTC;
//! weeks begin on Monday.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::history::SnapshotId;

const HOUR_S: u64 = 3600;
const DAY_S: u64 = 24 * HOUR_S;

/// Stretches of time of which a rule counts one snapshot each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

const PERIODS: [(&str, Period); 5] = [
    ("hourly", Period::Hourly),
    ("daily", Period::Daily),
    ("weekly", Period::Weekly),
    ("monthly", Period::Monthly),
    ("yearly", Period::Yearly),
];

impl Period {
    /// Numbers the periods in order of time.
    fn number(self, seconds: u64) -> u64 {
        let days = seconds / DAY_S;
        match self {
            Self::Hourly => seconds / HOUR_S,
            Self::Daily => days,
            // 1 January 1970 was a Thursday.
            Self::Weekly => (days + 3) / 7,
            Self::Monthly => {
                let (year, month) = year_and_month(days);
                year * 12 + month
            }
            Self::Yearly => year_and_month(days).0,
        }
    }
}

/// Year and month, from 0 for January. Counted in years that begin in March, whose leap days come last.
fn year_and_month(days_since_1970: u64) -> (u64, u64) {
    const DAYS_TO_1970: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let days = days_since_1970 + DAYS_TO_1970;
    let (era, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let january_or_february = month_from_march >= 10;
    let year = era * 400 + year_of_era + u64::from(january_or_february);
    let month = if january_or_february { month_from_march - 10 } else { month_from_march + 2 };
    (year, month)
}

/// How many periods of each kind keep a snapshot. At least one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    rules: Vec<(Period, u32)>,
}

/// A snapshot of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduled {
    pub id: SnapshotId,
    /// Seconds since 1970.
    pub taken_at_s: u64,
}

impl Retention {
    /// Those that stay, of the snapshots of one schedule.
    pub fn kept(&self, snapshots: &[Scheduled]) -> BTreeSet<SnapshotId> {
        let mut newest_first = snapshots.to_vec();
        newest_first.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.taken_at_s, snapshot.id)));
        let mut kept: BTreeSet<_> = newest_first.first().map(|snapshot| snapshot.id).into_iter().collect();
        for (period, count) in &self.rules {
            let number = |snapshot: &Scheduled| period.number(snapshot.taken_at_s);
            let newest = newest_first.chunk_by(|a, b| number(a) == number(b)).map(|same| same[0].id);
            kept.extend(newest.take(*count as usize));
        }
        kept
    }
}

/// Why words are no rules of retention.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetentionError {
    #[error("{0:?} is no rule: write hourly=24 or the like, several with commas between")]
    NoRule(String),
    #[error("{0:?} is no period: hourly, daily, weekly, monthly and yearly are")]
    NoPeriod(String),
    #[error("{1:?} of {0} is no number from 1 to 4294967295")]
    NoCount(String, String),
    #[error("{0} is given twice")]
    Twice(String),
}

impl FromStr for Retention {
    type Err = RetentionError;

    fn from_str(text: &str) -> Result<Self, RetentionError> {
        let mut rules: Vec<(Period, u32)> = Vec::new();
        for rule in text.split(',') {
            let (name, count) = rule.split_once('=').ok_or_else(|| RetentionError::NoRule(rule.into()))?;
            let (name, count) = (name.trim(), count.trim());
            let known = PERIODS.iter().find(|(known, _)| *known == name);
            let (_, period) = known.ok_or_else(|| RetentionError::NoPeriod(name.into()))?;
            let parsed = count.parse().ok().filter(|count| *count > 0);
            let parsed = parsed.ok_or_else(|| RetentionError::NoCount(name.into(), count.into()))?;
            if rules.iter().any(|(other, _)| other == period) {
                return Err(RetentionError::Twice(name.into()));
            }
            rules.push((*period, parsed));
        }
        Ok(Self { rules })
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (period, count)) in self.rules.iter().enumerate() {
            let name = PERIODS.iter().find(|(_, known)| known == period).map_or("", |(name, _)| name);
            write!(f, "{}{name}={count}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-23 14:30:00, a Monday.
    const NOW_S: u64 = 1_795_444_200;

    fn every(interval_s: u64, count: u32) -> Vec<Scheduled> {
        let at =
            |age: u32| Scheduled { id: SnapshotId(age), taken_at_s: NOW_S - u64::from(age) * interval_s };
        (0..count).map(at).collect()
    }

    fn kept(rules: &str, snapshots: &[Scheduled]) -> Vec<u32> {
        rules.parse::<Retention>().unwrap().kept(snapshots).into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn each_rule_keeps_the_newest_of_its_periods() {
        // Every half hour: the newest at 14:30, so an even number of half hours back is the later one of its hour, and the last one of a day
        // is 30 half hours back and then every 48.
        let snapshots = every(HOUR_S / 2, 300);
        assert_eq!(kept("hourly=3", &snapshots), [0, 2, 4]);
        assert_eq!(kept("daily=4", &snapshots), [0, 30, 78, 126]);
        assert_eq!(kept("hourly=2, daily=2", &snapshots), [0, 2, 30]);
        assert_eq!(kept("weekly=2", &snapshots), [0, 30]);
    }

    #[test]
    fn months_and_years_are_those_of_the_calendar() {
        let snapshots = every(DAY_S, 800);
        // 23 November: 31 October was 23 days ago, 30 September 54, 31 August 84.
        assert_eq!(kept("monthly=4", &snapshots), [0, 23, 54, 84]);
        // 31 December 2025 was 327 days ago, that of 2024 692.
        assert_eq!(kept("yearly=3", &snapshots), [0, 327, 692]);
    }

    #[test]
    fn months_are_numbered_without_gaps_over_leap_years() {
        let numbers: Vec<_> = (0..366 * 140).map(|day| Period::Monthly.number(day * DAY_S)).collect();
        assert_eq!(numbers[0], 1970 * 12);
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1));
        let lengths: Vec<_> = numbers.chunk_by(|a, b| a == b).map(<[u64]>::len).collect();
        assert_eq!(lengths[..12], [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]);
        // 1972 and 2000 were leap years, 2100 will be none.
        assert_eq!((lengths[25], lengths[361], lengths[1561]), (29, 29, 28));
    }

    #[test]
    fn time_without_snapshots_uses_up_no_rule() {
        let mut snapshots = every(DAY_S, 3);
        snapshots.push(Scheduled { id: SnapshotId(90), taken_at_s: NOW_S - 90 * DAY_S });
        assert_eq!(kept("daily=4", &snapshots), [0, 1, 2, 90]);
    }

    #[test]
    fn what_was_kept_before_it_grew_older_never_comes_back() {
        // Hour after hour: deleting by yesterday's choice loses nothing that today's would keep.
        let rules: Retention = "hourly=5,daily=3,weekly=2".parse().unwrap();
        let (mut pruned, mut all) = (Vec::new(), Vec::new());
        for hour in 0..1000 {
            let snapshot = Scheduled { id: SnapshotId(hour), taken_at_s: NOW_S + u64::from(hour) * HOUR_S };
            pruned.push(snapshot);
            all.push(snapshot);
            let kept = rules.kept(&pruned);
            pruned.retain(|snapshot| kept.contains(&snapshot.id));
            assert_eq!(kept, rules.kept(&all), "hour {hour}");
        }
    }

    #[test]
    fn the_newest_stays_and_nothing_keeps_nothing() {
        assert_eq!(kept("yearly=1", &every(1, 5)), [0]);
        assert!(kept("yearly=1", &[]).is_empty());
    }

    #[test]
    fn rules_are_written_as_they_are_read() {
        let text = "hourly=24,daily=30,weekly=8,monthly=12,yearly=5";
        assert_eq!(text.parse::<Retention>().unwrap().to_string(), text);
    }

    #[test]
    fn what_is_no_rule_is_named() {
        let error = |text: &str| text.parse::<Retention>().unwrap_err();
        assert_eq!(error(""), RetentionError::NoRule("".into()));
        assert_eq!(error("hourly=1,,"), RetentionError::NoRule("".into()));
        assert_eq!(error("hourly"), RetentionError::NoRule("hourly".into()));
        assert_eq!(error("hurly=3"), RetentionError::NoPeriod("hurly".into()));
        assert_eq!(error("daily=0"), RetentionError::NoCount("daily".into(), "0".into()));
        assert_eq!(error("daily=-1"), RetentionError::NoCount("daily".into(), "-1".into()));
        assert_eq!(error("daily=4294967296"), RetentionError::NoCount("daily".into(), "4294967296".into()));
        assert_eq!(error("daily=1,daily=2"), RetentionError::Twice("daily".into()));
    }
}
