//! The status of a volume, whether it is being served or not.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Result, bail};
use ringfort_store::object::{Object, OpenOptions};
use ringfort_store::status::inspect;

use crate::admin::protocol::{Answer, RequestKind};
use crate::admin::{self, Asked};
use crate::assemble::with_engine;
use crate::lock::{DirectoryLock, Purpose};
use crate::report::Status;
use crate::volume_file::VolumeFile;

/// Asks the server, or opens the volume for reading where nobody serves it.
pub fn status(directory: &Path) -> Result<Status> {
    let file = VolumeFile::load(directory)?;
    match ask(directory)? {
        Some(status) => Ok(status),
        None => closed(directory, &file),
    }
}

/// Asks the server; None where there is none.
pub fn ask(directory: &Path) -> Result<Option<Status>> {
    match admin::ask(directory, RequestKind::Status)? {
        Asked::Answered(answer) => match *answer {
            Answer::Status(status) => Ok(Some(*status)),
            Answer::Error(reason) => bail!("the server of {} answers: {reason}", directory.display()),
        },
        Asked::NobodyListens => Ok(None),
    }
}

fn closed(directory: &Path, file: &VolumeFile) -> Result<Status> {
    let _lock = DirectoryLock::take(directory, Purpose::Status)?;
    let components = file.all_components(directory);
    with_engine(async |engine| match inspect(Rc::clone(&engine), &components).await {
        Ok((report, opened)) => Ok(Status::of_closed(&report, &opened.findings)),
        // Too much is gone to replay the volume; its labels still tell what.
        Err(error) => {
            let (object, opened) = Object::open(engine, &components, OpenOptions::default()).await?;
            let mut status = Status::of_tree(&object.tree(), &opened.findings);
            status.failure.get_or_insert(error.to_string());
            Ok(status)
        }
    })
}
