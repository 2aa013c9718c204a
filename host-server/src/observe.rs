//! The status of a volume, whether it is being served or not.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ringfort_store::object::{Object, OpenOptions};
use ringfort_store::status::inspect;

use crate::admin::protocol::{Answer, RequestKind};
use crate::admin::{self, Asked};
use crate::assemble::with_engine;
use crate::lock::{DirectoryLock, Held, Purpose};
use crate::report::Status;
use crate::volume_file::VolumeFile;

/// A server that starts or stops has the volume and answers nobody yet, or any more. So long it is waited for.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);

const CHANGE_PAUSE: Duration = Duration::from_millis(20);

/// Asks the server, or opens the volume for reading where nobody serves it.
pub fn status(directory: &Path) -> Result<Status> {
    let file = VolumeFile::load(directory)?;
    let give_up = Instant::now() + CHANGE_PATIENCE;
    loop {
        if let Some(status) = ask(directory)? {
            return Ok(status);
        }
        match closed(directory, &file) {
            Err(error) if is_changing(&error) && Instant::now() < give_up => std::thread::sleep(CHANGE_PAUSE),
            found => return found,
        }
    }
}

/// Whether a server has the volume, which did not answer when it was asked.
fn is_changing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Held>().is_some_and(|held| held.holder.command == Purpose::Serve.command())
}

/// Asks the server; None where there is none.
pub fn ask(directory: &Path) -> Result<Option<Status>> {
    match admin::ask(directory, RequestKind::Status)? {
        Asked::Answered(answer) => match *answer {
            Answer::Status(status) => Ok(Some(*status)),
            Answer::Error(reason) => bail!("the server of {} answers: {reason}", directory.display()),
            Answer::Checkpointed | Answer::Views(_) | Answer::Done => {
                bail!("the server of {} answers something else", directory.display())
            }
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
