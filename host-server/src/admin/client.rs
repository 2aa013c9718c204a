//! Asking a server.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::place::{Address, socket_path};
use super::protocol::{Answer, RESPONSE_BYTES_MAX, Request, RequestKind, Response};

/// A server that has to write nothing answers from memory; one that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// For what it has to write first: banks and maps, on disks that may be busy.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(600);

fn patience(request: &RequestKind) -> Duration {
    match request {
        RequestKind::Status => PATIENCE,
        RequestKind::Checkpoint | RequestKind::Views(_) => CHECKPOINT_PATIENCE,
    }
}

/// What became of a question.
pub enum Asked {
    Answered(Box<Answer>),
    /// Nobody serves the volume, or not yet.
    NobodyListens,
}

/// Asks the server of the volume in `directory`.
pub fn ask(directory: &Path, request: RequestKind) -> Result<Asked> {
    let what = || format!("ask the server through {}", socket_path(directory).display());
    let address = Address::of(directory).with_context(what)?;
    let mut stream = match UnixStream::connect(address.path()) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return Ok(Asked::NobodyListens);
        }
        Err(error) => return Err(error).with_context(what),
    };
    let line = exchange(&mut stream, request).with_context(what)?;
    if line.is_empty() {
        // It is stopping, or has too many clients; its lock will tell.
        return Ok(Asked::NobodyListens);
    }
    let response: Response = serde_json::from_slice(&line)
        .with_context(what)
        .context("the server's answer is not understood; is it of another version?")?;
    Ok(Asked::Answered(Box::new(response.answer)))
}

fn exchange(stream: &mut UnixStream, request: RequestKind) -> Result<Vec<u8>> {
    let patience = patience(&request);
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&Request::new(request))?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    match BufReader::new(stream.take(RESPONSE_BYTES_MAX as u64)).read_until(b'\n', &mut answer) {
        Ok(_) if answer.len() == RESPONSE_BYTES_MAX => {
            bail!("the answer is longer than {RESPONSE_BYTES_MAX} bytes")
        }
        Ok(_) => Ok(answer),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            bail!("no answer within {} s: the server hangs", patience.as_secs())
        }
        Err(error) => Err(error.into()),
    }
}
