//! Names in directories: where they lie, and how they are found and listed.

use std::rc::Rc;

use ringfort_store::address::ViewId;
use ringfort_store::format::filesystem as format;
use ringfort_store::volume::{Key, Volume};

use crate::errno::Errno;
use crate::failure::{Failure, Result};
use crate::hash::{SLOTS_PER_HASH, first_slot};
use crate::inode::{Inode, is_hidden, kind_from_number, kind_number};
use crate::mount::{Batch, Mount};
use crate::operation::{DirectoryEntry, FileKind, Name, NodeId, SessionId};

/// An entry, and where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub slot: u64,
    pub child: u64,
}

/// What is known of a name.
#[derive(Debug)]
pub(crate) struct Place {
    pub found: Option<Found>,
    /// Where the name would go. `None` where it exists, or 256 other names share its hash.
    free: Option<u64>,
}

impl Place {
    pub fn require(&self) -> Result<Found> {
        self.found.ok_or_else(|| Errno::ENOENT.into())
    }

    pub fn free(&self) -> Result<u64> {
        self.free.ok_or_else(|| Errno::ENOSPC.into())
    }
}

const COOKIE_SELF: u64 = 1;
pub(crate) const COOKIE_PARENT: u64 = 2;

/// The most entries of one answer; a front end asks for the rest.
const LISTED_MAX: usize = 4096;

impl<V: Volume> Mount<V> {
    /// Looks a name up. The caller holds the directory's lock.
    pub async fn find(&self, directory: u64, name: &Name) -> Result<Place> {
        let first = first_slot(self.hash_key, name.as_bytes());
        let last = first + SLOTS_PER_HASH - 1;
        let slots = SLOTS_PER_HASH as usize;
        let entries = self
            .volume
            .scan(format::ENTRIES, Key::new(directory, first), Key::new(directory, last), slots)
            .await?;
        let mut free = first;
        for (key, value) in &entries {
            let entry = decode(directory, key.lo, value)?;
            if entry.name == name.as_bytes() {
                let found = Found { slot: key.lo, child: entry.child };
                return Ok(Place { found: Some(found), free: None });
            }
            // Entries come in order: the first gap is the first free place.
            if key.lo == free {
                free += 1;
            }
        }
        Ok(Place { found: None, free: (free <= last).then_some(free) })
    }

    /// Entries after `cookie`; see [`crate::operation::Operation::ReadDirectory`].
    pub async fn list(
        &self,
        session: SessionId,
        directory: &Rc<Inode>,
        cookie: u64,
        limit: usize,
        attributes: bool,
    ) -> Result<Vec<DirectoryEntry>> {
        let _lock = self.locks.shared(directory.number).await;
        require_directory(directory)?;
        if directory.metadata().link_count == 0 {
            return Err(Errno::ENOENT.into());
        }
        let limit = limit.min(LISTED_MAX);
        let mut listed = Vec::new();
        let parent = directory.metadata().parent;
        let dots = [(COOKIE_SELF, ".", directory.number), (COOKIE_PARENT, "..", parent)];
        for (dot_cookie, name, number) in dots {
            if cookie < dot_cookie && listed.len() < limit {
                listed.push(DirectoryEntry {
                    name: name.into(),
                    node: NodeId(number),
                    kind: FileKind::Directory,
                    cookie: dot_cookie,
                    attributes: None,
                });
            }
        }
        if is_hidden(directory.number) {
            listed.extend(
                self.list_hidden(session, directory.number, cookie, limit - listed.len(), attributes).await?,
            );
            return Ok(listed);
        }
        let Some(from) = cookie.max(COOKIE_PARENT).checked_add(1) else { return Ok(listed) };
        let from = Key::new(directory.number, from);
        let to = Key::new(directory.number, u64::MAX);
        if listed.len() == limit {
            return Ok(listed);
        }
        for (key, value) in self.volume.scan(format::ENTRIES, from, to, limit - listed.len()).await? {
            let entry = decode(directory.number, key.lo, &value)?;
            let attributes = if attributes {
                match self.listed_attributes(session, directory.number, entry.child).await {
                    Ok(attributes) => Some(attributes),
                    // What was found is worth handing out; the rest is asked for again and fails then.
                    Err(_) if !listed.is_empty() => break,
                    Err(failure) => return Err(failure),
                }
            } else {
                None
            };
            listed.push(DirectoryEntry {
                kind: kind_from_number(entry.kind).unwrap_or(FileKind::Regular),
                name: entry.name,
                node: NodeId(entry.child),
                cookie: key.lo,
                attributes,
            });
        }
        Ok(listed)
    }

    pub(crate) async fn listed_attributes(
        &self,
        session: SessionId,
        directory: u64,
        child: u64,
    ) -> Result<crate::operation::Attributes> {
        let inode = self.child(directory, child).await?;
        self.sessions.borrow_mut().count_lookup(session, child)?;
        Ok(inode.attributes())
    }
}

impl<V: Volume> Batch<V> {
    /// Puts a name, or lets it name another inode; one tree entry.
    pub fn put_entry(&mut self, directory: u64, slot: u64, name: &Name, child: u64, kind: FileKind) {
        debug_assert_eq!(ViewId::of(child), ViewId::of(directory), "an entry of another view");
        let entry = format::Entry {
            child: ViewId::local(child),
            kind: kind_number(kind),
            name: name.as_bytes().to_vec(),
        };
        self.transaction.put(format::ENTRIES, Key::new(directory, slot), entry.encode());
    }

    /// Takes a name away; one tree entry.
    pub fn delete_entry(&mut self, directory: u64, slot: u64) {
        self.transaction.delete(format::ENTRIES, Key::new(directory, slot));
    }
}

/// An entry; the number at rest is that of the view which holds it.
fn decode(directory: u64, slot: u64, value: &[u8]) -> Result<format::Entry> {
    let entry = format::Entry::decode(value).map_err(|error| {
        Failure::damaged(format!("read entry {slot} of"), format!("directory {directory}"), &error)
    })?;
    Ok(format::Entry { child: ViewId::of(directory).place(entry.child), ..entry })
}

/// `ENOTDIR` unless it is one, `ESTALE` where it is no more.
pub(crate) fn require_directory(inode: &Inode) -> Result<()> {
    if inode.is_gone() {
        Err(Errno::ESTALE.into())
    } else if inode.kind() == FileKind::Directory {
        Ok(())
    } else {
        Err(Errno::ENOTDIR.into())
    }
}
