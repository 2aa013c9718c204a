//! `ringfort volume list`

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::COULD_NOT_RUN;
use crate::cli;
use crate::observe;
use crate::report::{HealthStatus, Status};
use crate::size::ByteSize;
use crate::volume_file::VolumeFile;

/// What `--json` prints.
#[derive(Debug, Default, Serialize)]
struct List {
    volumes: Vec<Entry>,
    /// What could not be looked into.
    errors: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Entry {
    directory: PathBuf,
    /// None where the volume could not be read.
    volume: Option<String>,
    served_by_pid: Option<u32>,
    size_bytes: Option<u64>,
    used_bytes: Option<u64>,
    health: Option<HealthStatus>,
    components_live: Option<usize>,
    components: Option<usize>,
    /// Why it could not be read, or takes no changes.
    failure: Option<String>,
}

pub fn run(arguments: &cli::List) -> Result<ExitCode> {
    let mut list = List::default();
    let here = [PathBuf::from(".")];
    let given = if arguments.directories.is_empty() { &here[..] } else { &arguments.directories };
    let mut found = BTreeSet::new();
    for directory in given {
        match fs::canonicalize(directory).with_context(|| format!("look into {}", directory.display())) {
            Ok(directory) => find(&directory, &mut found, &mut list.errors),
            Err(error) => list.errors.push(format!("{error:#}")),
        }
    }
    list.volumes = found.into_iter().map(Entry::of).collect();
    let complete = list.errors.is_empty() && list.volumes.iter().all(|entry| entry.volume.is_some());
    for error in &list.errors {
        eprintln!("ringfort: {error}");
    }
    let text = if arguments.json { serde_json::to_string_pretty(&list)? + "\n" } else { list.to_text() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(COULD_NOT_RUN) })
}

/// Directories with a volume in `directory` and below it; a volume's own directory is not looked into.
fn find(directory: &Path, found: &mut BTreeSet<PathBuf>, errors: &mut Vec<String>) {
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        if VolumeFile::path(&directory).is_file() {
            found.insert(directory);
            continue;
        }
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                errors.push(format!("look into {}: {error}", directory.display()));
                continue;
            }
        };
        // The type of the entry itself: links are not followed, so that this ends.
        let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|found| found.is_dir());
        waiting.extend(entries.flatten().filter(is_directory).map(|entry| entry.path()));
    }
}

impl Entry {
    fn of(directory: PathBuf) -> Self {
        match observe::status(&directory) {
            Ok(status) => Self::of_status(directory, status),
            Err(error) => Self {
                directory,
                volume: None,
                served_by_pid: None,
                size_bytes: None,
                used_bytes: None,
                health: None,
                components_live: None,
                components: None,
                failure: Some(format!("{error:#}")),
            },
        }
    }

    fn of_status(directory: PathBuf, status: Status) -> Self {
        Self {
            directory,
            served_by_pid: status.served.as_ref().map(|served| served.pid),
            size_bytes: status.space.map(|space| space.total_bytes),
            used_bytes: status.space.map(|space| space.live_bytes),
            health: Some(status.health),
            components_live: Some(status.live_components()),
            components: Some(status.tree.components.len()),
            volume: Some(status.volume),
            failure: status.failure,
        }
    }
}

impl List {
    fn to_text(&self) -> String {
        if self.volumes.is_empty() {
            return "no volumes found\n".to_owned();
        }
        let mut rows =
            vec![["HEALTH", "SERVED", "SIZE", "USED", "COMPONENTS", "DIRECTORY"].map(str::to_owned)];
        rows.extend(self.volumes.iter().map(Entry::row));
        let mut widths = [0; 6];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.len().max(*width);
            }
        }
        let mut text = String::new();
        for row in rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        for Entry { directory, failure, .. } in &self.volumes {
            if let Some(failure) = failure {
                text.push_str(&format!("{}: {failure}\n", directory.display()));
            }
        }
        text
    }
}

impl Entry {
    fn row(&self) -> [String; 6] {
        let size = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| ByteSize(bytes).to_string());
        let components = match (self.components_live, self.components) {
            (Some(live), Some(all)) => format!("{live}/{all}"),
            _ => "-".to_owned(),
        };
        [
            self.health.map_or("unreadable", HealthStatus::name).to_owned(),
            self.served_by_pid.map_or("no".to_owned(), |pid| format!("by {pid}")),
            size(self.size_bytes),
            size(self.used_bytes),
            components,
            self.directory.display().to_string(),
        ]
    }
}
