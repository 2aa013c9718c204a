//! `ringfort volume grow`

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, Result};
use ringfort_store::grow::{self, GrowPlan};
use ringfort_store::store::OpenOptions;
use serde::Serialize;

use super::confirm::confirm;
use crate::assemble::with_engine;
use crate::cli;
use crate::lock::{DirectoryLock, Purpose};
use crate::size::ByteSize;
use crate::volume_file::VolumeFile;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    volume: String,
    before_bytes: u64,
    after_bytes: u64,
    components: Vec<Component>,
}

#[derive(Serialize)]
struct Component {
    position: u8,
    path: PathBuf,
    before_bytes: u64,
    after_bytes: u64,
}

pub fn run(arguments: &cli::Grow) -> Result<ExitCode> {
    let directory = &arguments.directory;
    let mut file = VolumeFile::load(directory)?;
    let _lock = DirectoryLock::take(directory, Purpose::Grow)?;
    let components = file.all_components(directory);
    let memory = arguments.memory.unwrap_or(file.memory);
    let options = OpenOptions { memory_bytes: memory.0, ..OpenOptions::default() };
    let plan = |wanted_bytes| {
        with_engine(async |engine: Rc<_>| Ok(grow::plan(engine, &components, wanted_bytes, &options).await?))
    };
    let wanted_bytes = match (arguments.size, arguments.by) {
        (Some(size), _) => Some(size.0),
        (None, Some(by)) => {
            let before_bytes = plan(None)?.before_bytes;
            Some(before_bytes.checked_add(by.0).with_context(|| format!("--by {by} is too much to count"))?)
        }
        (None, None) => None,
    };
    let plan = plan(wanted_bytes)?;
    if plan.after_bytes <= plan.before_bytes {
        if wanted_bytes.is_none() && !arguments.json {
            println!(
                "{} has {} already, all that its components have room for; give --size or --by to extend files",
                directory.display(),
                ByteSize(plan.before_bytes)
            );
            return Ok(ExitCode::SUCCESS);
        }
    } else {
        let (before, after) = (ByteSize(plan.before_bytes), ByteSize(plan.after_bytes));
        confirm(
            &format!(
                "Grow {} from {before} to {after}? A volume cannot be made smaller again.",
                directory.display()
            ),
            arguments.yes,
        )?;
    }
    if memory != file.memory {
        // Before the maps can need it.
        file.memory = memory;
        file.store(directory)?;
    }
    let grown =
        with_engine(
            async |engine: Rc<_>| Ok(grow::grow(engine, &components, wanted_bytes, &options).await?),
        )?;
    let text =
        if arguments.json { serde_json::to_string_pretty(&Report::of(&grown))? + "\n" } else { tell(&grown) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn tell(grown: &GrowPlan) -> String {
    let (before, after) = (ByteSize(grown.before_bytes), ByteSize(grown.after_bytes));
    let mut text = format!("usable before: {before}\nusable now:    {after}\n");
    for component in &grown.components {
        let (before, after) = (ByteSize(component.before_bytes), ByteSize(component.after_bytes));
        text.push_str(&format!(
            "  {:>2}  {before} -> {after}  {}\n",
            component.position.0,
            component.path.display()
        ));
    }
    text
}

impl Report {
    fn of(grown: &GrowPlan) -> Self {
        Self {
            volume: grown.volume.to_string(),
            before_bytes: grown.before_bytes,
            after_bytes: grown.after_bytes,
            components: grown
                .components
                .iter()
                .map(|component| Component {
                    position: component.position.0,
                    path: component.path.clone(),
                    before_bytes: component.before_bytes,
                    after_bytes: component.after_bytes,
                })
                .collect(),
        }
    }
}
