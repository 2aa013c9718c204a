//! Open files.

use std::ops::Range;
use std::sync::Arc;

use ringfort_protocol::command::{Flags, Opcode, OpenBits};

use crate::attributes::{self, Attributes, SetAttributes};
use crate::connect::Connection;
use crate::error::Error;
use crate::lock::{self, HeldLock, Lock};
use crate::place::Place;
use crate::request::{Request, broken};
use crate::space::{self, Allocate};

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Open {
    bits: OpenBits,
    permissions: u32,
}

impl Open {
    pub fn to_read() -> Self {
        Self { bits: OpenBits::READ, permissions: 0 }
    }

    /// To read as well.
    pub fn to_write() -> Self {
        Self { bits: OpenBits::READ.union(OpenBits::WRITE), permissions: 0 }
    }

    /// For users who may write the file, but not read it.
    pub fn to_write_only() -> Self {
        Self { bits: OpenBits::WRITE, permissions: 0 }
    }

    /// To read and write a file without a name, in the directory that the path leads to. [`Volume::link`](crate::Volume::link) can give it one.
    pub fn temporary(permissions: u32) -> Self {
        Self { permissions, ..Self::to_write().with(OpenBits::TEMPORARY) }
    }

    /// A directory; `ENOTDIR` where it is none.
    pub fn directory() -> Self {
        Self::to_read().with(OpenBits::DIRECTORY)
    }

    fn with(self, bits: OpenBits) -> Self {
        Self { bits: self.bits.union(bits), ..self }
    }

    /// Makes the file where it does not exist, with exactly these permissions: no umask is taken off.
    #[must_use]
    pub fn create(self, permissions: u32) -> Self {
        Self { permissions, ..self.with(OpenBits::CREATE) }
    }

    /// Fails where the file exists. Of a [`temporary`](Self::temporary) file: it can never be given a name.
    #[must_use]
    pub fn exclusive(self) -> Self {
        self.with(OpenBits::EXCLUSIVE)
    }

    #[must_use]
    pub fn truncate(self) -> Self {
        self.with(OpenBits::TRUNCATE)
    }

    /// Every write goes to the end of the file.
    #[must_use]
    pub fn append(self) -> Self {
        self.with(OpenBits::APPEND)
    }

    /// Every write is durable before it returns, with all attributes.
    #[must_use]
    pub fn sync(self) -> Self {
        self.with(OpenBits::SYNC)
    }

    /// Every write is durable before it returns: the data, and what is needed to read it back.
    #[must_use]
    pub fn data_sync(self) -> Self {
        self.with(OpenBits::DATA_SYNC)
    }

    /// A request to open a file so. It gives the handle.
    pub(crate) fn request(self, place: Place<'_>) -> Request<'_, u64> {
        let value = u64::from(self.bits.0) | u64::from(self.permissions) << 32;
        Request::following("open", Opcode::Open, place).value(value).gives_value()
    }

    /// The same with the attributes of what was opened.
    fn request_with_attributes(self, place: Place<'_>) -> Request<'_, (u64, Attributes)> {
        let value = u64::from(self.bits.0) | u64::from(self.permissions) << 32;
        Request::following("open", Opcode::Open, place)
            .value(value)
            .gives(Attributes::BYTES, |completion, bytes| Ok((completion.value, Attributes::decode(bytes)?)))
    }
}

pub(crate) fn read(file: Place<'_>, offset_bytes: u64) -> Request<'_, usize> {
    Request::of_handle("read", Opcode::Read, file).operand(offset_bytes).gives(0, |_, bytes| Ok(bytes.len()))
}

/// Gives how many of the bytes were written.
pub(crate) fn write<'a>(file: Place<'a>, bytes: &'a [u8], offset_bytes: u64) -> Request<'a, u64> {
    Request::new("write", Opcode::Write, file).input([bytes]).operand(offset_bytes).gives_value()
}

pub(crate) fn append<'a>(file: Place<'a>, bytes: &'a [u8]) -> Request<'a, u64> {
    Request::new("append", Opcode::Write, file).input([bytes]).flags(Flags::APPEND).gives_value()
}

pub(crate) fn sync(file: Place<'_>) -> Request<'_, ()> {
    Request::of_handle("sync", Opcode::Sync, file)
}

pub(crate) fn sync_data(file: Place<'_>) -> Request<'_, ()> {
    sync(file).flags(Flags::DATA_ONLY)
}

pub(crate) fn close(file: Place<'_>) -> Request<'_, ()> {
    Request::of_handle("close", Opcode::Close, file)
}

/// An open file or directory. Closed when it is dropped; what was written is durable only after [`File::sync`].
pub struct File {
    connection: Arc<Connection>,
    handle: u64,
    /// For errors.
    path: Box<[u8]>,
    closed: bool,
}

impl<'a> From<&'a File> for Place<'a> {
    fn from(file: &'a File) -> Self {
        Self { handle: file.handle, base: &file.path, path: &[], follow: true }
    }
}

impl File {
    pub(crate) fn new(connection: &Arc<Connection>, handle: u64, place: Place<'_>) -> Self {
        Self {
            connection: Arc::clone(connection),
            handle,
            path: place.shown().into_bytes().into(),
            closed: false,
        }
    }

    pub(crate) fn open(connection: &Arc<Connection>, place: Place<'_>, open: Open) -> Result<Self, Error> {
        let handle = open.request(place).run(connection)?;
        Ok(Self::new(connection, handle, place))
    }

    pub(crate) fn open_with_attributes(
        connection: &Arc<Connection>,
        place: Place<'_>,
        open: Open,
    ) -> Result<(Self, Attributes), Error> {
        let (handle, attributes) = open.request_with_attributes(place).run(connection)?;
        Ok((Self::new(connection, handle, place), attributes))
    }

    pub(crate) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// It has been closed otherwise.
    pub(crate) fn forget(&mut self) {
        self.closed = true;
    }

    pub(crate) fn is_forgotten(&self) -> bool {
        self.closed
    }

    fn place(&self) -> Place<'_> {
        self.into()
    }

    /// A path that begins at this directory.
    pub fn at<'a>(&'a self, path: impl Into<Place<'a>>) -> Place<'a> {
        Place { handle: self.handle, base: &self.path, ..path.into() }
    }

    /// Reads into `buffer`, less than it holds only at the end of the file. Returns how much.
    pub fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<usize, Error> {
        let mut done = 0;
        for part in buffer.chunks_mut(self.connection.call_bytes_max()) {
            let read = read(self.place(), offset_bytes + done as u64).run_into(&self.connection, part)?;
            done += read;
            if read < part.len() {
                break;
            }
        }
        Ok(done)
    }

    /// Writes all of `bytes`.
    pub fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), Error> {
        self.write_parts(bytes, |done, part| write(self.place(), part, offset_bytes + done))
    }

    /// Writes all of `bytes` at the end of the file, wherever that is by then. Not more than [`Options::call_bytes_max`](crate::Options) are
    /// written as one; between parts of more, others may append, too.
    pub fn append(&self, bytes: &[u8]) -> Result<(), Error> {
        self.write_parts(bytes, |_, part| append(self.place(), part))
    }

    fn write_parts<'a>(
        &self,
        bytes: &'a [u8],
        request: impl Fn(u64, &'a [u8]) -> Request<'a, u64>,
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < bytes.len() {
            let part = &bytes[done..bytes.len().min(done + self.connection.call_bytes_max())];
            let written = request(done as u64, part).run(&self.connection)?;
            if written == 0 || written > part.len() as u64 {
                return Err(broken("counts of written bytes"));
            }
            done += written as usize;
        }
        Ok(())
    }

    /// Everything done to the file is on stable media.
    pub fn sync(&self) -> Result<(), Error> {
        sync(self.place()).run(&self.connection)
    }

    /// All data of the file is on stable media, and what is needed to read it back.
    pub fn sync_data(&self) -> Result<(), Error> {
        sync_data(self.place()).run(&self.connection)
    }

    pub fn stat(&self) -> Result<Attributes, Error> {
        attributes::stat(self.place()).run(&self.connection)
    }

    /// Returns the attributes afterwards.
    pub fn set_attributes(&self, change: &SetAttributes) -> Result<Attributes, Error> {
        attributes::set(self.place(), change).run(&self.connection)
    }

    /// Cuts the file, or adds zeros.
    pub fn set_size(&self, size_bytes: u64) -> Result<(), Error> {
        self.set_attributes(&SetAttributes::new().size_bytes(size_bytes)).map(drop)
    }

    pub fn allocate(&self, how: Allocate, range: Range<u64>) -> Result<(), Error> {
        space::allocate(self.place(), how, range).run(&self.connection)
    }

    /// Where the next data begins from an offset on; none where only a hole follows.
    pub fn seek_data(&self, offset_bytes: u64) -> Result<Option<u64>, Error> {
        self.seek(offset_bytes, false)
    }

    /// Where the next hole begins from an offset on, the end of the file at last; none behind that.
    pub fn seek_hole(&self, offset_bytes: u64) -> Result<Option<u64>, Error> {
        self.seek(offset_bytes, true)
    }

    fn seek(&self, offset_bytes: u64, hole: bool) -> Result<Option<u64>, Error> {
        match space::seek(self.place(), offset_bytes, hole).run(&self.connection) {
            Ok(found) => Ok(Some(found)),
            Err(Error::Refused { errno: libc::ENXIO, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Copies within the volume: less than the range only where this file ends in it, or the server takes no more at a time. Returns how many bytes.
    pub fn copy_range(&self, bytes: Range<u64>, to: &File, to_offset_bytes: u64) -> Result<u64, Error> {
        space::copy_range(self.place(), bytes, to.place(), to_offset_bytes).run(&self.connection)
    }

    /// Takes a lock, or gives it up, and waits until that is possible.
    pub fn lock(&self, lock: &Lock) -> Result<(), Error> {
        lock::set(self.place(), lock, true).run(&self.connection)
    }

    /// Takes a lock, or gives it up; false where another's is in the way.
    pub fn try_lock(&self, lock: &Lock) -> Result<bool, Error> {
        match lock::set(self.place(), lock, false).run(&self.connection) {
            Ok(()) => Ok(true),
            Err(Error::Refused { errno: libc::EAGAIN, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives up the lock on the whole file.
    pub fn unlock(&self) -> Result<(), Error> {
        self.lock(&Lock::none())
    }

    /// A range lock of another owner that would keep this one from being taken.
    pub fn lock_in_the_way(&self, lock: &Lock) -> Result<Option<HeldLock>, Error> {
        lock::get(self.place(), lock).run(&self.connection)
    }

    /// Closes the file, and says whether that went well. What was written is durable only after [`File::sync`].
    pub fn close(mut self) -> Result<(), Error> {
        self.closed = true;
        close(self.place()).run(&self.connection)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if !self.closed {
            // The server closes what is left when the connection ends.
            let _ = close(self.place()).run(&self.connection);
        }
    }
}
