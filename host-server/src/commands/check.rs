//! `ringfort volume check`

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use ringfort_store::check::CheckProgress;
use ringfort_store::error::ErrorKind;
use serde::Serialize;

use super::progress::Progress;
use crate::assemble::with_engine;
use crate::cli;
use crate::lock::{DirectoryLock, Purpose};
use crate::volume_file::VolumeFile;

/// Damage was found.
const DAMAGED: u8 = 1;

/// What `--json` prints.
#[derive(Debug, Default, Serialize)]
struct Report {
    clean: bool,
    /// Components that are missing or out of date: less redundancy, no damage.
    degraded: Vec<String>,
    /// One sentence for each fault.
    damage: Vec<String>,
    /// Faults beyond those.
    more_damage: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<StoreCounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filesystem: Option<FilesystemCounts>,
}

#[derive(Debug, Serialize)]
struct StoreCounts {
    log_records: u64,
    tree_pages: u64,
    mapped_blocks: u64,
    stored_blocks: u64,
    stripes: u64,
}

#[derive(Debug, Serialize)]
struct FilesystemCounts {
    inodes: u64,
    directories: u64,
    entries: u64,
    xattrs: u64,
    data_blocks: u64,
    /// What the next opening finishes with; no fault.
    unfinished: u64,
}

pub fn run(arguments: &cli::Check) -> Result<ExitCode> {
    let directory = &arguments.directory;
    let file = VolumeFile::load(directory)?;
    let _lock = DirectoryLock::take(directory, Purpose::Check)?;
    let components = file.all_components(directory);
    let mut report = Report::default();
    let mut progress = Progress::new();
    with_engine(async |engine| {
        let walked =
            ringfort_store::check::check(engine, &components, &mut |at| show(&mut progress, at)).await;
        let (store, volume) = match walked {
            Ok(walked) => walked,
            // So much damage that there is nothing to walk is damage all the same.
            Err(error) if error.kind == ErrorKind::Damaged => {
                report.damage.push(error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        report.store = Some(StoreCounts {
            log_records: store.log_records,
            tree_pages: store.tree_pages,
            mapped_blocks: store.mapped_blocks,
            stored_blocks: store.stored_blocks,
            stripes: store.stripes,
        });
        report.degraded = store.degraded;
        report.damage = store.damage;
        report.more_damage = store.more_damage;
        show(&mut progress, CheckProgress { stage: "filesystem", done: 0, total: 1 });
        let filesystem = ringfort_filesystem::check(&volume).await?;
        report.filesystem = Some(FilesystemCounts {
            inodes: filesystem.inodes,
            directories: filesystem.directories,
            entries: filesystem.entries,
            xattrs: filesystem.xattrs,
            data_blocks: filesystem.data_blocks,
            unfinished: filesystem.unfinished,
        });
        report.more_damage += filesystem.fault_count - filesystem.faults.len() as u64;
        report.damage.extend(filesystem.faults);
        Ok(())
    })?;
    progress.clear();
    report.clean = report.damage.is_empty() && report.more_damage == 0;

    let text = if arguments.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.to_text() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if report.clean { ExitCode::SUCCESS } else { ExitCode::from(DAMAGED) })
}

impl Report {
    fn to_text(&self) -> String {
        let mut lines = Vec::new();
        lines.extend(self.degraded.iter().map(|finding| format!("degraded: {finding}")));
        lines.extend(self.damage.iter().map(|fault| format!("damage: {fault}")));
        if self.more_damage > 0 {
            lines.push(format!("damage: {} more faults", self.more_damage));
        }
        if let Some(store) = &self.store {
            lines.push(format!(
                "store: {} log records, {} map pages, {} blocks mapped, {} stored in {} stripes",
                store.log_records, store.tree_pages, store.mapped_blocks, store.stored_blocks, store.stripes
            ));
        }
        if let Some(filesystem) = &self.filesystem {
            lines.push(format!(
                "filesystem: {} inodes, {} directories, {} names, {} data blocks",
                filesystem.inodes, filesystem.directories, filesystem.entries, filesystem.data_blocks
            ));
        }
        lines.push(if self.clean { "clean".to_owned() } else { "DAMAGED".to_owned() });
        lines.join("\n") + "\n"
    }
}

fn show(progress: &mut Progress, at: CheckProgress) {
    progress.show(&format!("checking {}", at.stage), at.done, at.total);
}
