//! `ringfort volume replace`

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use ringfort_store::address::ComponentPosition;
use ringfort_store::object::{Object, OpenOptions as ObjectOptions};
use ringfort_store::replace::{ReplaceProgress, replace};
use ringfort_store::store::OpenOptions;
use serde::Serialize;

use super::confirm::confirm;
use super::progress::Progress;
use crate::assemble::with_engine;
use crate::cli;
use crate::lock::{DirectoryLock, Purpose};
use crate::report::{ComponentState, Status};
use crate::size::ByteSize;
use crate::volume_file::VolumeFile;

/// A line of `--json`.
#[derive(Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum Line<'a> {
    Progress { done_bytes: u64, total_bytes: u64 },
    Done { volume: String, position: u8, component: &'a Path, written_bytes: u64 },
}

pub fn run(arguments: &cli::Replace) -> Result<ExitCode> {
    let directory = &arguments.directory;
    let mut file = VolumeFile::load(directory)?;
    let _lock = DirectoryLock::take(directory, Purpose::Replace)?;
    let position = ComponentPosition(arguments.position);
    refuse_unless_lost(&file.all_components(directory), arguments)?;

    // The volume's file names the new component before it is one: an attempt cut short goes on at the same place, and one
    // that ends between its last label and this line could not be found again.
    if let Some(path) = &arguments.component {
        let full = std::path::absolute(path).with_context(|| format!("find {}", path.display()))?;
        let base = std::path::absolute(directory).with_context(|| format!("find {}", directory.display()))?;
        file.replace_component(position.0, full.strip_prefix(&base).map(Path::to_owned).unwrap_or(full))?;
    }
    let components = file.all_components(directory);
    let path = components.get(usize::from(position.0)).with_context(|| {
        format!("{} lists no component {}", VolumeFile::path(directory).display(), position.0)
    })?;
    confirm_target(path, arguments)?;
    if arguments.component.is_some() {
        file.store(directory)?;
    }

    let options = OpenOptions { memory_bytes: file.memory.0, ..OpenOptions::default() };
    let mut shown = Shown::new(arguments);
    let report = with_engine(async |engine: Rc<_>| {
        let mut progress = |at: ReplaceProgress| shown.progress(at);
        Ok(replace(engine, &components, position, path, &options, &mut progress).await?)
    })?;
    shown.progress.clear();
    shown.line(&Line::Done {
        volume: report.volume.to_string(),
        position: position.0,
        component: path,
        written_bytes: report.written_bytes,
    });
    if !arguments.json {
        println!(
            "component {} of {} is {} now; {} were written to it",
            position.0,
            directory.display(),
            path.display(),
            ByteSize(report.written_bytes)
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// A component in use is not replaced: it would cost redundancy for nothing.
fn refuse_unless_lost(components: &[PathBuf], arguments: &cli::Replace) -> Result<()> {
    let status = with_engine(async |engine: Rc<_>| {
        let (object, opened) = Object::open(engine, components, ObjectOptions::default()).await?;
        Ok(Status::of_tree(&object.tree(), &opened.findings))
    })?;
    let place = arguments.directory.display();
    let count = status.tree.components.len();
    match status.tree.components.get(usize::from(arguments.position)) {
        None => bail!("{place} has no component {}: positions are 0 to {}", arguments.position, count - 1),
        Some(component) if component.state == ComponentState::Live => bail!(
            "component {} of {place} is in use and needs no replacement; `ringfort volume status {place}` shows which do",
            arguments.position
        ),
        Some(_) => Ok(()),
    }
}

/// Asks before a block device is overwritten, and refuses a file that the lost component may still be.
fn confirm_target(path: &Path, arguments: &cli::Replace) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_block_device() => {
            confirm(&format!("Overwrite everything on {}?", path.display()), arguments.yes)
        }
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("look at {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// How far the work has got, for people or for programs.
struct Shown {
    json: bool,
    progress: Progress,
    last_percent: Option<u64>,
}

impl Shown {
    fn new(arguments: &cli::Replace) -> Self {
        Self { json: arguments.json, progress: Progress::new(), last_percent: None }
    }

    fn progress(&mut self, at: ReplaceProgress) {
        self.progress.show("rebuilding", at.done_bytes, at.total_bytes);
        let percent = at.done_bytes.saturating_mul(100) / at.total_bytes.max(1);
        if self.last_percent != Some(percent) {
            self.last_percent = Some(percent);
            self.line(&Line::Progress { done_bytes: at.done_bytes, total_bytes: at.total_bytes });
        }
    }

    /// A reader who has left keeps no work from its end.
    fn line(&self, line: &Line<'_>) {
        if self.json
            && let Ok(text) = serde_json::to_string(line)
        {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }
}
