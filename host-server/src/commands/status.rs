//! `ringfort volume status`

use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Result, bail};
use ringfort_store::object::{Object, OpenOptions};
use ringfort_store::status::inspect;

use crate::admin::protocol::{Answer, RequestKind};
use crate::admin::{self, Asked};
use crate::assemble::with_engine;
use crate::cli;
use crate::lock::{DirectoryLock, Purpose};
use crate::report::Status;
use crate::volume_file::VolumeFile;

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
                let components = file.all_components(directory);
                match inspect(Rc::clone(&engine), &components).await {
                    Ok((report, opened)) => Ok(Status::of_closed(&report, &opened.findings)),
                    // Too much is gone to replay the volume; its labels still tell what.
                    Err(error) => {
                        let (object, opened) =
                            Object::open(engine, &components, OpenOptions::default()).await?;
                        let mut status = Status::of_tree(&object.tree(), &opened.findings);
                        status.failure.get_or_insert(error.to_string());
                        Ok(status)
                    }
                }
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
