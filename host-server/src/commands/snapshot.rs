//! `ringfort snapshot` and `ringfort clone`

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::confirm::confirm;
use crate::admin::protocol::{Answer, RequestKind, ViewRequest};
use crate::admin::{self, Asked};
use crate::cli::{Clone, Snapshot, ViewsList};
use crate::report::ViewList;
use crate::volume_file::VolumeFile;

pub fn snapshot(command: &Snapshot) -> Result<ExitCode> {
    match command {
        Snapshot::Create(arguments) => {
            let name = arguments.name.clone();
            ask(&arguments.directory, ViewRequest::TakeSnapshot { name })?;
        }
        Snapshot::List(arguments) => return list(arguments, ViewList::snapshots_text),
        Snapshot::Delete(arguments) => {
            let question = format!("Delete {} for ever?", told("snapshot", &arguments.names));
            confirm(&question, arguments.yes)?;
            for name in &arguments.names {
                ask(&arguments.directory, ViewRequest::RemoveSnapshot { name: name.clone() })?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub fn clone(command: &Clone) -> Result<ExitCode> {
    match command {
        Clone::Create(arguments) => {
            let (snapshot, name) = (arguments.snapshot.clone(), arguments.name.clone());
            ask(&arguments.directory, ViewRequest::MakeClone { snapshot, name })?;
        }
        Clone::List(arguments) => return list(arguments, ViewList::clones_text),
        Clone::Delete(arguments) => {
            let question = format!(
                "Delete {}, with all that was written to it, for ever?",
                told("clone", &arguments.names)
            );
            confirm(&question, arguments.yes)?;
            for name in &arguments.names {
                ask(&arguments.directory, ViewRequest::RemoveClone { name: name.clone() })?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn told(what: &str, names: &[String]) -> String {
    match names {
        [name] => format!("{what} {name:?}"),
        names => format!("{} {what}s", names.len()),
    }
}

fn list(arguments: &ViewsList, text: impl Fn(&ViewList) -> String) -> Result<ExitCode> {
    let Answer::Views(list) = ask(&arguments.directory, ViewRequest::List)? else {
        bail!("the server of {} answers something else", arguments.directory.display());
    };
    let text = if arguments.json { serde_json::to_string_pretty(&list)? + "\n" } else { text(&list) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn ask(directory: &Path, request: ViewRequest) -> Result<Answer> {
    VolumeFile::load(directory)?;
    match admin::ask(directory, RequestKind::Views(request))? {
        Asked::Answered(answer) => match *answer {
            Answer::Error(reason) => bail!("the server of {} answers: {reason}", directory.display()),
            answer => Ok(answer),
        },
        Asked::NobodyListens => {
            bail!("nobody serves {}; start `ringfort serve {0}` first", directory.display())
        }
    }
}
