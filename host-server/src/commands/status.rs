//! `ringfort volume status`

use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Result, bail};
use ringfort_store::object::{Object, OpenOptions};

use crate::admin::protocol::{Answer, RequestKind};
use crate::admin::{self, Asked};
use crate::assemble::with_engine;
use crate::cli;
use crate::config::VolumeFile;
use crate::lock::{DirectoryLock, Purpose};
use crate::report::Status;

pub fn run(arguments: &cli::Status) -> Result<ExitCode> {
    let directory = &arguments.directory;
    let file = VolumeFile::load(directory)?;
    let status = match admin::ask(directory, RequestKind::Status)? {
        Asked::Answered(answer) => match *answer {
            Answer::Status(status) => *status,
            Answer::Error(reason) => bail!("the server of {} answers: {reason}", directory.display()),
        },
        Asked::NobodyListens => {
            let _lock = DirectoryLock::take(directory, Purpose::Status)?;
            with_engine(async |engine| {
                let (object, opened) =
                    Object::open(Rc::clone(&engine), &file.all_components(directory), OpenOptions::default())
                        .await?;
                Ok(Status::of_tree(&object.tree(), &opened.findings))
            })?
        }
    };
    let mut text = if arguments.json { serde_json::to_string_pretty(&status)? } else { status.to_text() };
    if arguments.json {
        text.push('\n');
    }
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
