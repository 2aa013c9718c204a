//! `rf ls`, `rf stat` and `rf df`

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ringfort_guest::{Attributes, DirectoryEntry, FileKind, Place, Statistics, Timestamp, Volume};
use serde_json::{Value, json};

/// As `ls` shows it.
fn letter(kind: FileKind) -> char {
    match kind {
        FileKind::Fifo => 'p',
        FileKind::CharacterDevice => 'c',
        FileKind::Directory => 'd',
        FileKind::BlockDevice => 'b',
        FileKind::Regular => '-',
        FileKind::Symlink => 'l',
        FileKind::Socket => 's',
    }
}

fn as_json(name: &str, attributes: &Attributes) -> Value {
    let Timestamp { seconds, nanoseconds } = attributes.modified;
    json!({
        "name": name,
        "node": attributes.node,
        "kind": format!("{:?}", attributes.kind),
        "permissions": format!("{:04o}", attributes.permissions),
        "link_count": attributes.link_count,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "size_bytes": attributes.size_bytes,
        "allocated_bytes": attributes.sectors.saturating_mul(512),
        "modified_s": seconds,
        "modified_ns": nanoseconds,
    })
}

/// A day and time of UTC.
fn date(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years that begin in March, so that a leap day ends one; in eras of 400 years, all of which have as many days.
    let days = days.saturating_add(719_468);
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

fn line(name: &str, attributes: &Attributes) -> String {
    format!(
        "{}{:04o} {:>4} {:>6} {:>6} {:>14} {} {name}",
        letter(attributes.kind),
        attributes.permissions,
        attributes.link_count,
        attributes.uid,
        attributes.gid,
        attributes.size_bytes,
        date(attributes.modified.seconds),
    )
}

/// Names go to terminals: what would be an order to one is shown as `?`.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

/// What `path` is, or what is in it, in order.
fn entries(volume: &Volume, path: &Path, with_attributes: bool) -> Result<Vec<DirectoryEntry>> {
    let found = volume.stat(path)?;
    if found.kind != FileKind::Directory {
        let name = path.as_os_str().as_encoded_bytes().to_vec();
        return Ok(vec![DirectoryEntry {
            name,
            node: found.node,
            kind: found.kind,
            position: 0,
            attributes: Some(found),
        }]);
    }
    let mut entries: Vec<_> = volume.read_directory(path, with_attributes)?.collect::<Result<_, _>>()?;
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(entries)
}

pub fn list(volume: &Volume, paths: &[PathBuf], long: bool, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    let mut all = Vec::new();
    for path in paths {
        let entries = entries(volume, path, long || json)?;
        if paths.len() > 1 && !json {
            writeln!(out, "{}:", path.display()).context("write to standard output")?;
        }
        for entry in entries {
            match entry.attributes {
                Some(attributes) if json => {
                    all.push(as_json(&String::from_utf8_lossy(&entry.name), &attributes));
                }
                Some(attributes) if long => writeln!(out, "{}", line(&shown(&entry.name), &attributes))
                    .context("write to standard output")?,
                _ => writeln!(out, "{}", shown(&entry.name)).context("write to standard output")?,
            }
        }
    }
    if json {
        writeln!(out, "{}", Value::Array(all)).context("write to standard output")?;
    }
    Ok(())
}

pub fn stat(volume: &Volume, paths: &[PathBuf], json: bool) -> Result<()> {
    for path in paths {
        let attributes = volume.stat(Place::from(path).no_follow())?;
        let name = path.to_string_lossy();
        let text = match json {
            true => as_json(&name, &attributes).to_string(),
            false => line(&shown(name.as_bytes()), &attributes),
        };
        writeln!(io::stdout().lock(), "{text}").context("write to standard output")?;
    }
    Ok(())
}

pub fn free(volume: &Volume, json: bool) -> Result<()> {
    let found: Statistics = volume.statistics()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.block_bytes.into());
    let (size, free, available) =
        (bytes(found.total_blocks), bytes(found.free_blocks), bytes(found.available_blocks));
    let used = size.saturating_sub(free);
    let text = match json {
        true => json!({
            "size_bytes": size,
            "used_bytes": used,
            "free_bytes": free,
            "available_bytes": available,
            "inodes": found.total_inodes,
            "free_inodes": found.free_inodes,
        })
        .to_string(),
        false => {
            let percent = used.saturating_mul(100).checked_div(used.saturating_add(available)).unwrap_or(0);
            let mib = |bytes: u64| bytes >> 20;
            format!(
                "size {} MiB, used {} MiB ({percent} %), available {} MiB; {} of {} inodes free",
                mib(size),
                mib(used),
                mib(available),
                found.free_inodes,
                found.total_inodes
            )
        }
    };
    writeln!(io::stdout().lock(), "{text}").context("write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_dates() {
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(date(1_795_400_105), "2026-11-23 02:15:05");
        assert_eq!(date(-1), "1969-12-31 23:59:59");
        // Nobody can be kept from setting such times.
        date(i64::MAX);
        date(i64::MIN);
    }

    #[test]
    fn names_give_no_orders_to_terminals() {
        assert_eq!(shown(b"a\x1b[31m\n\xff"), "a?[31m?\u{fffd}");
    }
}
