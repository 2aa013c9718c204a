//! A volume: what is done to paths.

use std::path::Path;
use std::sync::Arc;

use ringfort_protocol::command::Opcode;

use crate::asynchronous::AsyncVolume;
use crate::attributes::{self, Access, Attributes, SetAttributes, Statistics};
use crate::batch::Batch;
use crate::connect::{Connection, Options};
use crate::directory::{DirectoryEntry, ReadDirectory};
use crate::error::Error;
use crate::file::{File, Open};
use crate::name::{self, NodeKind, RenameMode};
use crate::place::Place;
use crate::queue::Queue;
use crate::request::Request;
use crate::xattr::{self, SetXattrMode};

/// A connected volume. Clones are the same connection.
#[derive(Clone)]
pub struct Volume(Arc<Connection>);

/// Connects to the socket of a server on this host, as the user of this process.
pub fn connect(path: &Path) -> Result<Volume, Error> {
    connect_with(path, &Options::default())
}

/// As [`connect`], with settings.
pub fn connect_with(path: &Path, options: &Options) -> Result<Volume, Error> {
    Ok(Volume(Arc::new(Connection::open(path, options)?)))
}

impl Volume {
    pub fn open<'a>(&self, place: impl Into<Place<'a>>, open: Open) -> Result<File, Error> {
        File::open(&self.0, place.into(), open)
    }

    /// Opens, and returns the attributes of what was opened, in one call.
    pub fn open_with_attributes<'a>(
        &self,
        place: impl Into<Place<'a>>,
        open: Open,
    ) -> Result<(File, Attributes), Error> {
        File::open_with_attributes(&self.0, place.into(), open)
    }

    /// Makes a file, or empties it, to read and write. Permissions as in all calls here: no umask is taken off.
    pub fn create<'a>(&self, place: impl Into<Place<'a>>, permissions: u32) -> Result<File, Error> {
        self.open(place, Open::to_write().create(permissions).truncate())
    }

    pub fn stat<'a>(&self, place: impl Into<Place<'a>>) -> Result<Attributes, Error> {
        attributes::stat(place.into()).run(&self.0)
    }

    /// Returns the attributes afterwards.
    pub fn set_attributes<'a>(
        &self,
        place: impl Into<Place<'a>>,
        change: &SetAttributes,
    ) -> Result<Attributes, Error> {
        attributes::set(place.into(), change).run(&self.0)
    }

    /// Whether this connection's user may do something to a file: an error says why not.
    pub fn access<'a>(&self, place: impl Into<Place<'a>>, access: Access) -> Result<(), Error> {
        attributes::access(place.into(), access).run(&self.0)
    }

    pub fn create_directory<'a>(&self, place: impl Into<Place<'a>>, permissions: u32) -> Result<(), Error> {
        name::make_directory(place.into(), permissions).run(&self.0)
    }

    /// Makes a fifo, a socket, an empty file, or (root alone) a device.
    pub fn make_node<'a>(
        &self,
        place: impl Into<Place<'a>>,
        kind: NodeKind,
        permissions: u32,
    ) -> Result<(), Error> {
        name::make_node(place.into(), kind, permissions).run(&self.0)
    }

    /// Makes a symbolic link that leads to `target`, from the directory that it is in.
    pub fn symlink<'a>(
        &self,
        target: impl Into<Place<'a>>,
        place: impl Into<Place<'a>>,
    ) -> Result<(), Error> {
        name::make_symlink(target.into().path, place.into()).run(&self.0)
    }

    pub fn read_link<'a>(&self, place: impl Into<Place<'a>>) -> Result<Vec<u8>, Error> {
        name::read_link(place.into()).run(&self.0)
    }

    /// Gives a file another name. The file may be an open one without a name ([`Open::temporary`]).
    pub fn link<'a>(&self, existing: impl Into<Place<'a>>, new: impl Into<Place<'a>>) -> Result<(), Error> {
        name::link(existing.into(), new.into()).run(&self.0)
    }

    pub fn remove_file<'a>(&self, place: impl Into<Place<'a>>) -> Result<(), Error> {
        name::remove_file(place.into()).run(&self.0)
    }

    /// Removes an empty directory.
    pub fn remove_directory<'a>(&self, place: impl Into<Place<'a>>) -> Result<(), Error> {
        name::remove_directory(place.into()).run(&self.0)
    }

    /// What the new name was a name of loses it.
    pub fn rename<'a>(&self, from: impl Into<Place<'a>>, to: impl Into<Place<'a>>) -> Result<(), Error> {
        self.rename_with(from, to, RenameMode::Replace)
    }

    pub fn rename_with<'a>(
        &self,
        from: impl Into<Place<'a>>,
        to: impl Into<Place<'a>>,
        mode: RenameMode,
    ) -> Result<(), Error> {
        name::rename(from.into(), to.into(), mode).run(&self.0)
    }

    /// The entries of a directory but `.` and `..`, a part at a time.
    pub fn read_directory<'a>(
        &self,
        place: impl Into<Place<'a>>,
        with_attributes: bool,
    ) -> Result<ReadDirectory, Error> {
        Ok(ReadDirectory::new(self.open(place, Open::directory())?, with_attributes))
    }

    /// All entries of a directory but `.` and `..`, in no order.
    pub fn list<'a>(&self, place: impl Into<Place<'a>>) -> Result<Vec<DirectoryEntry>, Error> {
        self.read_directory(place, false)?.collect()
    }

    /// The value of an extended attribute.
    pub fn xattr<'a>(&self, place: impl Into<Place<'a>>, name: impl AsRef<[u8]>) -> Result<Vec<u8>, Error> {
        xattr::get(place.into(), name.as_ref()).run(&self.0)
    }

    pub fn set_xattr<'a>(
        &self,
        place: impl Into<Place<'a>>,
        name: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        mode: SetXattrMode,
    ) -> Result<(), Error> {
        xattr::set(place.into(), name.as_ref(), value.as_ref(), mode).run(&self.0)
    }

    /// Names of a file's extended attributes.
    pub fn list_xattrs<'a>(&self, place: impl Into<Place<'a>>) -> Result<Vec<Vec<u8>>, Error> {
        xattr::list(place.into()).run(&self.0)
    }

    pub fn remove_xattr<'a>(&self, place: impl Into<Place<'a>>, name: impl AsRef<[u8]>) -> Result<(), Error> {
        xattr::remove(place.into(), name.as_ref()).run(&self.0)
    }

    /// How full the volume is.
    pub fn statistics(&self) -> Result<Statistics, Error> {
        attributes::statistics().run(&self.0)
    }

    /// Everything done to the volume is on stable media.
    pub fn sync(&self) -> Result<(), Error> {
        Request::of_handle("sync", Opcode::SyncAll, "".into()).run(&self.0)
    }

    /// Commands for one submission, and chains of them.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(&self.0)
    }

    /// The same volume for tasks.
    pub fn asynchronous(&self) -> AsyncVolume {
        AsyncVolume::new(&self.0)
    }

    /// A ring for one owner: as many as [`Options::queues`] says.
    pub fn queue(&self) -> Result<Queue, Error> {
        Queue::new(&self.0)
    }

    /// All of a file, which is opened, read and closed in one submission where it is no longer than a call may be.
    pub fn read_file<'a>(&self, place: impl Into<Place<'a>>) -> Result<Vec<u8>, Error> {
        let (place, most) = (place.into(), self.0.call_bytes_max());
        let mut chain = self.batch();
        chain.open(place, Open::to_read()).then().read_opened(most, 0).then_always().close_opened();
        let mut outcomes = chain.run()?.into_iter();
        let (opened, read) = (outcomes.next(), outcomes.next());
        opened.transpose()?;
        let bytes = read.transpose()?.map(|outcome| outcome.bytes).unwrap_or_default();
        if bytes.len() < most {
            return Ok(bytes);
        }
        let file = self.open(place, Open::to_read())?;
        let mut whole = Vec::new();
        loop {
            let done = whole.len();
            whole.resize(done + most, 0);
            let read = file.read_at(&mut whole[done..], done as u64)?;
            whole.truncate(done + read);
            if read < most {
                break;
            }
        }
        Ok(whole)
    }

    /// Asks the server for nothing, and returns what it echoes. For measurements.
    pub fn nop(&self, value: u64) -> Result<u64, Error> {
        Request::of_handle("ask for nothing", Opcode::Nop, "".into()).value(value).gives_value().run(&self.0)
    }
}
