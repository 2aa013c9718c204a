//! What somebody asks of a place, as system calls do: who may, what it gives, how it fails.

use crate::list::List;
use crate::person::Person;
use crate::tree::{Answer, Body, NAME_BYTES_MAX, READ, ROOT, Reference, WRITE};
use crate::vocabulary::{AllocateMode, Errno, FileKind, RenameMode, SetXattrMode};
use crate::walk::{Last, Place};

const TARGET_BYTES_MAX: usize = 4095;

/// Attributes to change: all of them or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub permissions: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<usize>,
    /// Times are set, to a moment of the caller's or (false) to now.
    pub times: Option<bool>,
}

impl Reference {
    pub fn make_by(
        &mut self,
        person: &Person,
        place: Place<'_>,
        body: Body,
        permissions: u16,
    ) -> Answer<usize> {
        if let Body::Symlink(target) = &body {
            match target.len() {
                0 => return Err(Errno::ENOENT),
                1..=TARGET_BYTES_MAX => {}
                _ => return Err(Errno::ENAMETOOLONG),
            }
        }
        let (parent, last) = self.reach_parent(person, place)?;
        let name = self.new_name(parent, last, matches!(body, Body::Directory(_)))?;
        self.make_at(person, (parent, &name), body, (permissions, 0))
    }

    /// The name of what is to be made: a slash behind it is for directories.
    fn new_name(&self, parent: usize, last: Last, directory: bool) -> Answer<String> {
        match last {
            Last::Name(name, true) if !directory => {
                Err(if self.named(parent, &name)?.is_some() { Errno::EEXIST } else { Errno::ENOENT })
            }
            Last::Name(name, _) => Ok(name),
            Last::Dot | Last::DotDot | Last::Root => Err(Errno::EEXIST),
        }
    }

    pub fn remove_by(&mut self, person: &Person, place: Place<'_>, directory: bool) -> Answer<()> {
        let (parent, last) = self.reach_parent(person, place)?;
        let name = match (last, directory) {
            (Last::Name(name, true), false) => {
                let found = self.named(parent, &name)?.ok_or(Errno::ENOENT)?;
                return Err(if self.is_directory(found) { Errno::EISDIR } else { Errno::ENOTDIR });
            }
            (Last::Name(name, _), _) => name,
            (_, false) => return Err(Errno::EISDIR),
            (Last::Dot, true) => return Err(Errno::EINVAL),
            (Last::DotDot, true) => return Err(Errno::ENOTEMPTY),
            (Last::Root, true) => return Err(Errno::EBUSY),
        };
        self.remove_at(person, (parent, &name), directory)
    }

    pub fn rename_by(
        &mut self,
        person: &Person,
        from: Place<'_>,
        to: Place<'_>,
        mode: RenameMode,
    ) -> Answer<()> {
        let (from, from_last) = self.reach_parent(person, from)?;
        let (to, to_last) = self.reach_parent(person, to)?;
        let Last::Name(from_name, from_slash) = from_last else { return Err(Errno::EBUSY) };
        let Last::Name(to_name, to_slash) = to_last else {
            return Err(if mode == RenameMode::NoReplace { Errno::EEXIST } else { Errno::EBUSY });
        };
        let slashes = (from_slash, to_slash);
        self.rename_at(person, (from, &from_name), (to, &to_name), (mode, slashes))
    }

    pub fn link_by(&mut self, person: &Person, existing: Place<'_>, new: Place<'_>) -> Answer<()> {
        let node = self.reach(person, existing)?;
        let (parent, last) = self.reach_parent(person, new)?;
        let name = self.new_name(parent, last, false)?;
        self.link_at(person, node, (parent, &name))
    }

    pub fn access_by(&self, person: &Person, place: Place<'_>, mask: u16) -> Answer<()> {
        self.at(self.reach(person, place)?).require(person, mask)
    }

    pub fn read_link_by(&self, person: &Person, place: Place<'_>) -> Answer<Vec<u8>> {
        let node = self.reach(person, Place { follow: false, ..place })?;
        match &self.at(node).body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Names in a directory that is open.
    pub fn names(&self, directory: usize) -> Answer<Vec<String>> {
        Ok(self.entries(directory)?.keys().cloned().collect())
    }

    /// Opens what exists: 4 to read, 2 to write.
    pub fn open_by(&mut self, person: &Person, place: Place<'_>, mask: u16, truncate: bool) -> Answer<usize> {
        let node = self.reach(person, place)?;
        self.open_node(person, node, mask, truncate)
    }

    fn open_node(&mut self, person: &Person, node: usize, mask: u16, truncate: bool) -> Answer<usize> {
        match self.at(node).kind() {
            FileKind::Symlink => return Err(Errno::ELOOP),
            FileKind::Directory if mask & WRITE != 0 => return Err(Errno::EISDIR),
            FileKind::Directory | FileKind::Regular => {}
            _ => return Err(Errno::ENXIO),
        }
        self.at(node).require(person, mask)?;
        if truncate {
            self.bytes(node).clear();
            self.contents_changed(person, node);
        }
        Ok(node)
    }

    pub fn open_directory_by(&self, person: &Person, place: Place<'_>) -> Answer<usize> {
        let node = self.reach(person, place)?;
        self.entries(node)?;
        self.at(node).require(person, READ)?;
        Ok(node)
    }

    /// Opens what exists, or makes it, also where a symbolic link leads to it.
    pub fn open_or_make_by(
        &mut self,
        person: &Person,
        place: Place<'_>,
        mask: u16,
        (permissions, exclusive, truncate): (u16, bool, bool),
    ) -> Answer<usize> {
        if place.path.is_empty() && !exclusive {
            // What is open already is what is meant.
            return match self.is_directory(place.start) {
                true => Err(Errno::EISDIR),
                false => self.open_node(person, place.start, mask, truncate),
            };
        }
        let (parent, last) = match exclusive {
            true => self.reach_parent(person, place)?,
            false => self.reach_new(person, place)?,
        };
        let name = match last {
            Last::Name(name, false) => name,
            Last::Name(_, true) => return Err(Errno::EISDIR),
            Last::Dot | Last::DotDot | Last::Root if exclusive => return Err(Errno::EEXIST),
            Last::Dot | Last::DotDot | Last::Root => return Err(Errno::EISDIR),
        };
        match self.named(parent, &name)?.filter(|_| !exclusive) {
            Some(found) if self.is_directory(found) => Err(Errno::EISDIR),
            Some(found) => self.open_node(person, found, mask, truncate),
            None => self.make_at(person, (parent, &name), Body::File(Vec::new()), (permissions, 0)),
        }
    }

    pub fn temporary_by(
        &mut self,
        person: &Person,
        directory: Place<'_>,
        permissions: u16,
        is_linkable: bool,
    ) -> Answer<usize> {
        let parent = self.reach(person, directory)?;
        self.temporary_at(person, parent, (permissions, 0), is_linkable)
    }

    fn contents_changed(&mut self, person: &Person, node: usize) {
        if !person.is_root() {
            self.at_mut(node).lose_set_id();
        }
    }

    /// Writes to a file that is open for it. Returns how many bytes.
    pub fn write_by(&mut self, person: &Person, node: usize, offset: Option<usize>, bytes: &[u8]) -> usize {
        let offset = offset.unwrap_or(self.bytes(node).len());
        self.write_node(node, offset, bytes);
        if !bytes.is_empty() {
            self.contents_changed(person, node);
        }
        bytes.len()
    }

    /// Bytes of a file that is open for reading: a directory is none.
    pub fn read_at(&self, node: usize, offset: usize, len: usize) -> Answer<&[u8]> {
        match &self.at(node).body {
            Body::File(bytes) => {
                let start = offset.min(bytes.len());
                Ok(&bytes[start..(start + len).min(bytes.len())])
            }
            _ => Err(Errno::EISDIR),
        }
    }

    pub fn allocate_by(
        &mut self,
        person: &Person,
        node: usize,
        mode: AllocateMode,
        (offset, len): (usize, usize),
    ) -> Answer<()> {
        self.allocate_node(node, mode, offset, len)?;
        self.contents_changed(person, node);
        Ok(())
    }

    pub fn copy_by(
        &mut self,
        person: &Person,
        from: (usize, usize),
        to: (usize, usize),
        len: usize,
    ) -> Answer<usize> {
        let copied = self.copy_node(from, to, len)?;
        if copied > 0 {
            self.contents_changed(person, to.0);
        }
        Ok(copied)
    }

    /// `is_writable` says that a size is changed through a handle that is open for writing.
    pub fn change_by(
        &mut self,
        person: &Person,
        node: usize,
        change: &Change,
        is_writable: bool,
    ) -> Answer<()> {
        let found = self.at(node);
        let (owns, root) = (found.is_owned_by(person), person.is_root());
        let may_own = |uid| root || owns && uid == found.uid;
        let may_group = |gid| root || owns && (gid == found.gid || person.in_group(gid));
        if change.permissions.is_some() && !owns
            || change.uid.is_some_and(|uid| !may_own(uid))
            || change.gid.is_some_and(|gid| !may_group(gid))
            || change.times == Some(true) && !owns
        {
            return Err(Errno::EPERM);
        }
        if change.times == Some(false) && !owns {
            found.require(person, WRITE)?;
        }
        if let Some(size) = change.size {
            let may = is_writable || found.grants(person, WRITE);
            let bytes = self.truncatable(node)?;
            if !may {
                return Err(Errno::EACCES);
            }
            bytes.resize(size, 0);
            self.contents_changed(person, node);
        }
        let found = self.at_mut(node);
        if change.uid.is_some() || change.gid.is_some() {
            found.lose_set_id();
        }
        found.uid = change.uid.unwrap_or(found.uid);
        found.gid = change.gid.unwrap_or(found.gid);
        if let Some(permissions) = change.permissions {
            found.set_permissions(person, permissions);
        }
        Ok(())
    }

    /// A list of access control, as one of the extended attributes that stand for them.
    pub fn set_list_by(
        &mut self,
        person: &Person,
        place: Place<'_>,
        default: bool,
        list: Option<List>,
    ) -> Answer<()> {
        let node = self.reach(person, place)?;
        self.at_mut(node).set_list(person, default, list)
    }

    fn check_xattr_name(name: &str) -> Answer<()> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno::ERANGE);
        }
        match ["user.", "trusted.", "security."].iter().find(|prefix| name.starts_with(**prefix)) {
            None => Err(Errno::EOPNOTSUPP),
            Some(prefix) if prefix.len() == name.len() => Err(Errno::EINVAL),
            Some(_) => Ok(()),
        }
    }

    fn require_xattr_writable(&self, person: &Person, node: usize, name: &str) -> Answer<()> {
        let found = self.at(node);
        if !name.starts_with("user.") {
            return if person.is_root() { Ok(()) } else { Err(Errno::EPERM) };
        }
        match found.kind() {
            FileKind::Directory if found.is_sticky() && !found.is_owned_by(person) => Err(Errno::EPERM),
            FileKind::Regular | FileKind::Directory => found.require(person, WRITE),
            _ => Err(Errno::EPERM),
        }
    }

    pub fn set_xattr_by(
        &mut self,
        person: &Person,
        place: Place<'_>,
        (name, value): (&str, &[u8]),
        mode: SetXattrMode,
    ) -> Answer<()> {
        // A name that is too long is found before the path is walked.
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno::ERANGE);
        }
        let node = self.reach(person, place)?;
        Self::check_xattr_name(name)?;
        self.require_xattr_writable(person, node, name)?;
        let xattrs = &mut self.at_mut(node).xattrs;
        match (mode, xattrs.contains_key(name.as_bytes())) {
            (SetXattrMode::Create, true) => return Err(Errno::EEXIST),
            (SetXattrMode::Replace, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        xattrs.insert(name.as_bytes().to_vec(), value.to_vec());
        Ok(())
    }

    pub fn remove_xattr_by(&mut self, person: &Person, place: Place<'_>, name: &str) -> Answer<()> {
        let node = self.reach(person, place)?;
        Self::check_xattr_name(name)?;
        self.require_xattr_writable(person, node, name)?;
        self.at_mut(node).xattrs.remove(name.as_bytes()).map(drop).ok_or(Errno::ENODATA)
    }

    pub fn xattr_by(&self, person: &Person, place: Place<'_>, name: &str) -> Answer<Vec<u8>> {
        let found = self.at(self.reach(person, place)?);
        let list = match name {
            "system.posix_acl_access" => Some(&found.lists.access),
            "system.posix_acl_default" => Some(&found.lists.default),
            _ => None,
        };
        if let Some(list) = list {
            if found.kind() == FileKind::Symlink {
                return Err(Errno::EOPNOTSUPP);
            }
            return list.as_ref().map(List::value).ok_or(Errno::ENODATA);
        }
        Self::check_xattr_name(name)?;
        if name.starts_with("user.") {
            if !matches!(found.kind(), FileKind::Regular | FileKind::Directory) {
                return Err(Errno::ENODATA);
            }
            found.require(person, READ)?;
        }
        if name.starts_with("trusted.") && !person.is_root() {
            return Err(Errno::ENODATA);
        }
        found.xattrs.get(name.as_bytes()).cloned().ok_or(Errno::ENODATA)
    }

    /// Names that somebody sees, in their order.
    pub fn xattr_names_by(&self, person: &Person, place: Place<'_>) -> Answer<Vec<Vec<u8>>> {
        let found = self.at(self.reach(person, place)?);
        let seen = |name: &&Vec<u8>| person.is_root() || !name.starts_with(b"trusted.");
        let mut names: Vec<_> = found.xattrs.keys().filter(seen).cloned().collect();
        names.extend(found.lists.access.as_ref().map(|_| b"system.posix_acl_access".to_vec()));
        names.extend(found.lists.default.as_ref().map(|_| b"system.posix_acl_default".to_vec()));
        names.sort();
        Ok(names)
    }

    /// Where data and holes may be said to begin: a hole must read as zeros, and nothing else is promised.
    pub fn seek_is_true(&self, node: usize, start: usize, data: Option<usize>, hole: Option<usize>) -> bool {
        let Body::File(bytes) = &self.at(node).body else { return false };
        if start >= bytes.len() {
            return (data, hole) == (None, None);
        }
        let Some(hole) = hole else { return false };
        let data = data.unwrap_or(bytes.len());
        (start..=bytes.len()).contains(&data)
            && (start..=bytes.len()).contains(&hole)
            && bytes[start..data].iter().all(|byte| *byte == 0)
            // One of the two is here.
            && (data == start || hole == start)
    }

    /// The root directory is somebody's.
    pub fn own_root(&mut self, uid: u32, gid: u32, permissions: u16) {
        let root = self.at_mut(ROOT);
        (root.uid, root.gid, root.permissions) = (uid, gid, permissions);
    }
}
