//! A volume: what is done to paths.

use std::path::Path;
use std::sync::Arc;

use ringfort_protocol::command::{Flags, Opcode};

use crate::attributes::Attributes;
use crate::connect::{Connection, Options};
use crate::directory::{self, DirectoryEntry};
use crate::error::Error;
use crate::file::{File, Open};
use crate::place::Place;
use crate::request::Request;

/// The longest target of a symbolic link.
const LINK_BYTES_MAX: usize = 4096;

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

    /// Makes a file, or empties it, to read and write.
    pub fn create<'a>(&self, place: impl Into<Place<'a>>, permissions: u32) -> Result<File, Error> {
        self.open(place, Open::to_write().create(permissions).truncate())
    }

    /// The attributes of what a path leads to; of a symbolic link itself where it ends at one and `follow` is false.
    pub fn stat<'a>(&self, place: impl Into<Place<'a>>, follow: bool) -> Result<Attributes, Error> {
        let flags = if follow { Flags::default() } else { Flags::NO_FOLLOW };
        Request::new("stat", Opcode::Stat, place.into())
            .flags(flags)
            .gives(Attributes::BYTES, |_, bytes| Attributes::decode(bytes))
            .run(&self.0)
    }

    pub fn create_directory<'a>(&self, place: impl Into<Place<'a>>, permissions: u32) -> Result<(), Error> {
        Request::new("make directory", Opcode::MakeDirectory, place.into())
            .value(permissions.into())
            .run(&self.0)
    }

    pub fn remove_file<'a>(&self, place: impl Into<Place<'a>>) -> Result<(), Error> {
        Request::new("remove", Opcode::Unlink, place.into()).run(&self.0)
    }

    pub fn remove_directory<'a>(&self, place: impl Into<Place<'a>>) -> Result<(), Error> {
        Request::new("remove directory", Opcode::Unlink, place.into()).flags(Flags::DIRECTORY).run(&self.0)
    }

    pub fn rename<'a>(&self, from: impl Into<Place<'a>>, to: impl Into<Place<'a>>) -> Result<(), Error> {
        let (from, to) = (from.into(), to.into());
        Request::new("rename", Opcode::Rename, from)
            .operand(to.handle)
            .value(from.path.len() as u64)
            .input([from.path, to.path, &[]])
            .run(&self.0)
    }

    pub fn symlink<'a>(
        &self,
        target: impl Into<Place<'a>>,
        place: impl Into<Place<'a>>,
    ) -> Result<(), Error> {
        let (target, place) = (target.into(), place.into());
        Request::new("make symbolic link", Opcode::MakeSymlink, place)
            .value(target.path.len() as u64)
            .input([target.path, place.path, &[]])
            .run(&self.0)
    }

    pub fn read_link<'a>(&self, place: impl Into<Place<'a>>) -> Result<Vec<u8>, Error> {
        Request::new("read link", Opcode::ReadLink, place.into())
            .gives(LINK_BYTES_MAX, |_, bytes| Ok(bytes.to_vec()))
            .run(&self.0)
    }

    /// All entries of a directory but `.` and `..`.
    pub fn list<'a>(&self, place: impl Into<Place<'a>>) -> Result<Vec<DirectoryEntry>, Error> {
        let place = place.into();
        let directory = self.open(place, Open::directory())?;
        let (mut all, mut next) = (Vec::new(), Some(0));
        while let Some(cookie) = next {
            let part = directory::list(directory.at(place), cookie).run(&self.0)?;
            all.extend(part.entries);
            next = part.next;
        }
        Ok(all)
    }

    /// Everything done to the volume is on stable media.
    pub fn sync(&self) -> Result<(), Error> {
        Request::new("sync", Opcode::SyncAll, "".into()).run(&self.0)
    }

    /// Asks the server for nothing, and returns what it echoes. For measurements.
    pub fn nop(&self, value: u64) -> Result<u64, Error> {
        Request::new("nop", Opcode::Nop, "".into()).value(value).gives_value().run(&self.0)
    }
}
