//! `ringfort volume checkpoint`

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::admin::protocol::{Answer, RequestKind};
use crate::admin::{self, Asked};
use crate::cli;
use crate::volume_file::VolumeFile;

pub fn run(arguments: &cli::Checkpoint) -> Result<ExitCode> {
    let directory = &arguments.directory;
    VolumeFile::load(directory)?;
    let answer = match admin::ask(directory, RequestKind::Checkpoint)? {
        Asked::Answered(answer) => *answer,
        Asked::NobodyListens => bail!(
            "nobody serves {}; a server that stops brings everything to its place, and the next one what a killed one has left",
            directory.display()
        ),
    };
    match answer {
        Answer::Checkpointed => Ok(ExitCode::SUCCESS),
        Answer::Error(reason) => bail!("the server of {} answers: {reason}", directory.display()),
        Answer::Status(_) | Answer::Views(_) | Answer::Done => {
            bail!("the server of {} answers something else", directory.display())
        }
    }
}
