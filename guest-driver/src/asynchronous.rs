//! The same for tasks: futures that need no runtime of their own.

use std::sync::Arc;

use ringfort_protocol::ring::memory::SharedMemory;

use crate::attributes::{self, Access, Attributes, SetAttributes, Statistics};
use crate::connect::{Connection, was_interrupted};
use crate::directory::{self, DirectoryEntry};
use crate::error::Error;
use crate::file::{self, File, Open};
use crate::lock::{self, Lock};
use crate::name::{self, RenameMode};
use crate::place::Place;
use crate::request::Request;
use crate::xattr::{self, SetXattrMode};

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
/// Calls submit when they are first polled and are woken by a thread of the library; any number may be under way. A call that is dropped before it is done
/// is given up: what it asked for may have been done, but for files that were opened, which are closed again.
///
/// ```no_run
/// # async fn example() -> Result<(), ringfort_guest::Error> {
/// let volume = ringfort_guest::connect("/run/ringfort/data.ctl".as_ref())?.asynchronous();
/// let file = volume.create("/hello", 0o644).await?;
/// file.write_at(b"hello", 0).await?;
/// file.sync().await?;
/// # Ok(())
/// # }
/// ```
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

    /// Makes a file, or empties it, to read and write. Permissions as in all calls here: no umask is taken off.
    pub async fn create(&self, place: impl Into<Place<'_>>, permissions: u32) -> Result<AsyncFile, Error> {
        self.open(place, Open::to_write().create(permissions).truncate()).await
    }

    pub async fn stat(&self, place: impl Into<Place<'_>>) -> Result<Attributes, Error> {
        attributes::stat(place.into()).start(&self.0).await
    }

    /// Returns the attributes afterwards.
    pub async fn set_attributes(
        &self,
        place: impl Into<Place<'_>>,
        change: &SetAttributes,
    ) -> Result<Attributes, Error> {
        attributes::set(place.into(), change).start(&self.0).await
    }

    /// Whether this connection's user may do something to a file: an error says why not.
    pub async fn access(&self, place: impl Into<Place<'_>>, access: Access) -> Result<(), Error> {
        attributes::access(place.into(), access).start(&self.0).await
    }

    pub async fn create_directory(&self, place: impl Into<Place<'_>>, permissions: u32) -> Result<(), Error> {
        name::make_directory(place.into(), permissions).start(&self.0).await
    }

    /// Makes a symbolic link that leads to `target`, from the directory that it is in.
    pub async fn symlink(
        &self,
        target: impl Into<Place<'_>>,
        place: impl Into<Place<'_>>,
    ) -> Result<(), Error> {
        name::make_symlink(target.into().path, place.into()).start(&self.0).await
    }

    pub async fn read_link(&self, place: impl Into<Place<'_>>) -> Result<Vec<u8>, Error> {
        name::read_link(place.into()).start(&self.0).await
    }

    /// Gives a file another name.
    pub async fn link(&self, existing: impl Into<Place<'_>>, new: impl Into<Place<'_>>) -> Result<(), Error> {
        name::link(existing.into(), new.into()).start(&self.0).await
    }

    pub async fn remove_file(&self, place: impl Into<Place<'_>>) -> Result<(), Error> {
        name::remove_file(place.into()).start(&self.0).await
    }

    /// Removes an empty directory.
    pub async fn remove_directory(&self, place: impl Into<Place<'_>>) -> Result<(), Error> {
        name::remove_directory(place.into()).start(&self.0).await
    }

    pub async fn rename(
        &self,
        from: impl Into<Place<'_>>,
        to: impl Into<Place<'_>>,
        mode: RenameMode,
    ) -> Result<(), Error> {
        name::rename(from.into(), to.into(), mode).start(&self.0).await
    }

    /// All entries of a directory but `.` and `..`, in no order.
    pub async fn list(
        &self,
        place: impl Into<Place<'_>>,
        with_attributes: bool,
    ) -> Result<Vec<DirectoryEntry>, Error> {
        let directory = self.open(place, Open::directory()).await?;
        let (mut entries, mut next) = (Vec::new(), Some(0));
        while let Some(cookie) = next {
            let part = directory::list((&directory.0).into(), cookie, with_attributes).start(&self.0).await?;
            entries.extend(part.entries);
            next = part.next;
        }
        directory.close().await?;
        Ok(entries)
    }

    /// The value of an extended attribute.
    pub async fn xattr(&self, place: impl Into<Place<'_>>, name: impl AsRef<[u8]>) -> Result<Vec<u8>, Error> {
        xattr::get(place.into(), name.as_ref()).start(&self.0).await
    }

    pub async fn set_xattr(
        &self,
        place: impl Into<Place<'_>>,
        name: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        mode: SetXattrMode,
    ) -> Result<(), Error> {
        xattr::set(place.into(), name.as_ref(), value.as_ref(), mode).start(&self.0).await
    }

    /// Names of a file's extended attributes.
    pub async fn list_xattrs(&self, place: impl Into<Place<'_>>) -> Result<Vec<Vec<u8>>, Error> {
        xattr::list(place.into()).start(&self.0).await
    }

    pub async fn remove_xattr(
        &self,
        place: impl Into<Place<'_>>,
        name: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        xattr::remove(place.into(), name.as_ref()).start(&self.0).await
    }

    /// How full the volume is.
    pub async fn statistics(&self) -> Result<Statistics, Error> {
        attributes::statistics().start(&self.0).await
    }
}

/// An open file for tasks. Closed when it is dropped, soon; [`close`](Self::close) says when that was done.
pub struct AsyncFile(File);

impl Drop for AsyncFile {
    fn drop(&mut self) {
        // A task never waits in here: what it would wait for may be for the same thread to do.
        if !self.0.is_forgotten() {
            self.0.connection().post(file::close((&self.0).into()).command);
            self.0.forget();
        }
    }
}

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

    /// All data of the file is on stable media, and what is needed to read it back.
    pub async fn sync_data(&self) -> Result<(), Error> {
        file::sync_data((&self.0).into()).start(self.0.connection()).await
    }

    /// Returns the attributes afterwards.
    pub async fn set_attributes(&self, change: &SetAttributes) -> Result<Attributes, Error> {
        attributes::set((&self.0).into(), change).start(self.0.connection()).await
    }

    /// Takes a lock, or gives it up, and waits for as long as others keep it. Dropping the future ends the waiting; where the lock was granted at that very
    /// moment, it stays with the file until it is given up.
    pub async fn lock(&self, lock: Lock) -> Result<(), Error> {
        lock::set((&self.0).into(), &lock, true).start(self.0.connection()).await
    }

    /// Closes the file, and says whether that went well.
    pub async fn close(mut self) -> Result<(), Error> {
        let closing = {
            let request = file::close((&self.0).into());
            self.0.connection().start(request.command, &request.parts(), 0).await?
        };
        self.0.forget();
        let completion = closing.finish(|completion, _, _| *completion).await?;
        file::close((&self.0).into()).answer(&completion, &[])
    }
}
