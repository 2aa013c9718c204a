//! Open files.

use std::sync::Arc;

use ringfort_protocol::command::{Opcode, OpenBits};

use crate::attributes::Attributes;
use crate::connect::Connection;
use crate::error::Error;
use crate::place::Place;
use crate::request::Request;

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

    pub fn to_write() -> Self {
        Self { bits: OpenBits::READ.union(OpenBits::WRITE), permissions: 0 }
    }

    /// Makes the file where it does not exist.
    #[must_use]
    pub fn create(self, permissions: u32) -> Self {
        Self { bits: self.bits.union(OpenBits::CREATE), permissions }
    }

    /// Fails where the file exists.
    #[must_use]
    pub fn exclusive(self) -> Self {
        Self { bits: self.bits.union(OpenBits::EXCLUSIVE), ..self }
    }

    #[must_use]
    pub fn truncate(self) -> Self {
        Self { bits: self.bits.union(OpenBits::TRUNCATE), ..self }
    }

    /// Every write goes to the end of the file.
    #[must_use]
    pub fn append(self) -> Self {
        Self { bits: self.bits.union(OpenBits::APPEND), ..self }
    }

    /// Every write is durable before it returns.
    #[must_use]
    pub fn sync(self) -> Self {
        Self { bits: self.bits.union(OpenBits::SYNC), ..self }
    }

    pub(crate) fn directory() -> Self {
        Self { bits: OpenBits::READ.union(OpenBits::DIRECTORY), permissions: 0 }
    }

    /// A request to open a file so. It gives the handle.
    pub(crate) fn request(self, place: Place<'_>) -> Request<'_, u64> {
        let value = u64::from(self.bits.0) | u64::from(self.permissions) << 32;
        Request::new("open", Opcode::Open, place).value(value).gives_value()
    }
}

/// An open file. Closed when it is dropped; what was written is durable only after [`File::sync`].
pub struct File {
    connection: Arc<Connection>,
    handle: u64,
    /// For errors.
    path: Box<[u8]>,
}

impl File {
    pub(crate) fn open(connection: &Arc<Connection>, place: Place<'_>, open: Open) -> Result<Self, Error> {
        let handle = open.request(place).run(connection)?;
        Ok(Self { connection: Arc::clone(connection), handle, path: place.path.into() })
    }

    /// A request about this file, without input.
    pub(crate) fn request(&self, operation: &'static str, opcode: Opcode) -> Request<'_, ()> {
        let place = Place { handle: self.handle, path: &self.path };
        Request::new(operation, opcode, place).input([&[]; 3])
    }

    /// A path that begins at this directory.
    pub fn at<'a>(&self, path: impl Into<Place<'a>>) -> Place<'a> {
        Place { handle: self.handle, ..path.into() }
    }

    /// Reads into `buffer`, less than it holds only at the end of the file. Returns how much.
    pub fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<usize, Error> {
        let mut done = 0;
        for part in buffer.chunks_mut(self.connection.call_bytes_max()) {
            let request = self.request("read", Opcode::Read).operand(offset_bytes + done as u64);
            let read = request.gives(0, |_, bytes| Ok(bytes.len())).run_into(&self.connection, part)?;
            done += read;
            if read < part.len() {
                break;
            }
        }
        Ok(done)
    }

    /// Writes all of `bytes`.
    pub fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), Error> {
        let mut done = 0;
        while done < bytes.len() {
            let part = &bytes[done..bytes.len().min(done + self.connection.call_bytes_max())];
            let request = self.request("write", Opcode::Write).operand(offset_bytes + done as u64);
            let written = request.input([part, &[], &[]]).gives_value().run(&self.connection)?;
            if written == 0 || written > part.len() as u64 {
                let found = format!("{written} of {} bytes written", part.len());
                return Err(Error::Protocol { found });
            }
            done += written as usize;
        }
        Ok(())
    }

    /// Everything done to the file is on stable media.
    pub fn sync(&self) -> Result<(), Error> {
        self.request("sync", Opcode::Sync).run(&self.connection)
    }

    pub fn stat(&self) -> Result<Attributes, Error> {
        let request = self.request("stat", Opcode::Stat);
        request.gives(Attributes::BYTES, |_, bytes| Attributes::decode(bytes)).run(&self.connection)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // The server closes what is left when the connection ends.
        let _ = self.request("close", Opcode::Close).run(&self.connection);
    }
}
