//! The same for tasks: futures that need no runtime of their own.

use std::sync::Arc;

use ringfort_protocol::ring::memory::SharedMemory;

use crate::attributes::{self, Attributes};
use crate::connect::{Connection, was_interrupted};
use crate::error::Error;
use crate::file::{self, File, Open};
use crate::lock::{self, Lock};
use crate::name;
use crate::place::Place;
use crate::request::Request;

impl<A> Request<'_, A> {
    /// Carries it out. Dropping the future gives the command up: it may be carried out all the same.
    pub(crate) async fn start(&self, connection: &Connection) -> Result<A, Error> {
        loop {
            let pending = connection.start(self.command, &self.parts(), self.output_bytes).await?;
            let (completion, output) = pending
                .finish(|completion, memory: &SharedMemory, at| {
                    let mut output = vec![0; completion.output_bytes as usize];
                    let inside = memory.read(at, &mut output).is_some();
                    debug_assert!(inside);
                    (*completion, output)
                })
                .await?;
            if !was_interrupted(&self.command, &completion) {
                return self.answer(&completion, &output);
            }
        }
    }
}

/// A volume for tasks; made by [`Volume::asynchronous`](crate::Volume::asynchronous). Any executor will do.
///
/// Calls submit when they are first polled and are woken by a thread of the library. A call that is dropped before it is done is given up: what it
/// asked for may have been done.
#[derive(Clone)]
pub struct AsyncVolume(Arc<Connection>);

impl AsyncVolume {
    pub(crate) fn new(connection: &Arc<Connection>) -> Self {
        Self(Arc::clone(connection))
    }

    pub async fn open(&self, place: impl Into<Place<'_>>, open: Open) -> Result<AsyncFile, Error> {
        let place = place.into();
        let handle = open.request(place).start(&self.0).await?;
        Ok(AsyncFile(File::new(&self.0, handle, place)))
    }

    pub async fn stat(&self, place: impl Into<Place<'_>>) -> Result<Attributes, Error> {
        attributes::stat(place.into()).start(&self.0).await
    }

    pub async fn create_directory(&self, place: impl Into<Place<'_>>, permissions: u32) -> Result<(), Error> {
        name::make_directory(place.into(), permissions).start(&self.0).await
    }

    pub async fn remove_file(&self, place: impl Into<Place<'_>>) -> Result<(), Error> {
        name::remove_file(place.into()).start(&self.0).await
    }

    pub async fn remove_directory(&self, place: impl Into<Place<'_>>) -> Result<(), Error> {
        name::remove_directory(place.into()).start(&self.0).await
    }
}

/// An open file for tasks. Closed when it is dropped, by a call that blocks as long as a round trip takes; [`close`](Self::close) does not.
pub struct AsyncFile(File);

impl AsyncFile {
    /// Reads at most so many bytes, less only at the end of the file.
    pub async fn read_at(&self, len_bytes: usize, offset_bytes: u64) -> Result<Vec<u8>, Error> {
        let connection = self.0.connection();
        let mut read = Vec::with_capacity(len_bytes);
        while read.len() < len_bytes {
            let part_bytes = (len_bytes - read.len()).min(connection.call_bytes_max());
            let request = file::read((&self.0).into(), offset_bytes + read.len() as u64);
            let part = request.regiven(part_bytes, |_, bytes| Ok(bytes.to_vec())).start(connection).await?;
            read.extend(&part);
            if part.len() < part_bytes {
                break;
            }
        }
        Ok(read)
    }

    /// Writes all of `bytes`.
    pub async fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), Error> {
        let connection = self.0.connection();
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let part = &rest[..rest.len().min(connection.call_bytes_max())];
            let written =
                file::write((&self.0).into(), part, offset_bytes + done as u64).start(connection).await?;
            if written == 0 || written > part.len() as u64 {
                let found = format!("{written} of {} bytes written", part.len());
                return Err(Error::Protocol { found });
            }
            done += written as usize;
        }
        Ok(())
    }

    /// Everything done to the file is on stable media.
    pub async fn sync(&self) -> Result<(), Error> {
        file::sync((&self.0).into()).start(self.0.connection()).await
    }

    pub async fn stat(&self) -> Result<Attributes, Error> {
        attributes::stat((&self.0).into()).start(self.0.connection()).await
    }

    /// Takes a lock, and waits for as long as others keep it. Dropping the future ends the waiting.
    pub async fn lock(&self, lock: Lock) -> Result<(), Error> {
        lock::set((&self.0).into(), &lock, true).start(self.0.connection()).await
    }

    /// Closes the file.
    pub async fn close(mut self) -> Result<(), Error> {
        let request = file::close((&self.0).into());
        let connection = Arc::clone(self.0.connection());
        let closed = request.start(&connection).await;
        self.0.forget();
        closed
    }
}
