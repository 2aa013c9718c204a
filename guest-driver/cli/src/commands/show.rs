//! `rf ls` and `rf stat`

use std::io::{self, Write};

use anyhow::{Context, Result};
use ringfort_guest::{Attributes, FileKind, Place, Timestamp, Volume};
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

fn line(name: &str, attributes: &Attributes) -> String {
    format!(
        "{}{:04o} {:>4} {:>6} {:>6} {:>14} {:>12} {name}",
        letter(attributes.kind),
        attributes.permissions,
        attributes.link_count,
        attributes.uid,
        attributes.gid,
        attributes.size_bytes,
        attributes.modified.seconds,
    )
}

pub fn list(volume: &Volume, path: &str, long: bool, json: bool) -> Result<()> {
    let found = volume.stat(path)?;
    let mut names = match found.kind {
        FileKind::Directory => volume.list(path)?.into_iter().map(|entry| entry.name).collect(),
        _ => vec![Vec::new()],
    };
    names.sort();
    let mut out = io::stdout().lock();
    let mut all = Vec::new();
    for name in &names {
        let name = String::from_utf8_lossy(name);
        let place = match &*name {
            "" => path.to_owned(),
            name => format!("{}/{name}", path.trim_end_matches('/')),
        };
        let shown = if name.is_empty() { path } else { &*name };
        if !long && !json {
            writeln!(out, "{shown}").context("write to standard output")?;
            continue;
        }
        let attributes = volume.stat(Place::from(&place).no_follow())?;
        match json {
            true => all.push(as_json(shown, &attributes)),
            false => writeln!(out, "{}", line(shown, &attributes)).context("write to standard output")?,
        }
    }
    if json {
        writeln!(out, "{}", Value::Array(all)).context("write to standard output")?;
    }
    Ok(())
}

pub fn stat(volume: &Volume, path: &str, json: bool) -> Result<()> {
    let attributes = volume.stat(Place::from(path).no_follow())?;
    let shown = if json { as_json(path, &attributes).to_string() } else { line(path, &attributes) };
    writeln!(io::stdout().lock(), "{shown}").context("write to standard output")
}
