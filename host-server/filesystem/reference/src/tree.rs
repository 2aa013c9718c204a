//! Nodes and names, and what becomes of them. Those methods that take paths walk them as root, follow no links, and are told names as they are.

use std::collections::BTreeMap;

use crate::list::{List, Lists, settable};
use crate::person::Person;
use crate::vocabulary::{AllocateMode, Errno, FileKind, RenameMode};

pub(crate) const NAME_BYTES_MAX: usize = 255;

pub const READ: u16 = 4;
pub const WRITE: u16 = 2;
pub const EXECUTE: u16 = 1;

const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;
const STICKY: u16 = 0o1000;
const GROUP_EXECUTE: u16 = 0o010;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<String, usize>),
    Symlink(Vec<u8>),
    /// What lies behind it is the guest's kernel's affair.
    Special(FileKind, u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub body: Body,
    pub permissions: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub lists: Lists,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) parent: usize,
    /// What had no name when it was made can be given one, once.
    pub(crate) is_linkable: bool,
}

/// What can be compared of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub kind: FileKind,
    pub permissions: u16,
    pub links: u32,
    pub size_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    nodes: Vec<Node>,
}

impl Node {
    fn new(body: Body, permissions: u16, parent: usize) -> Self {
        let links = 1 + u32::from(matches!(body, Body::Directory(_)));
        Self {
            body,
            permissions,
            uid: 0,
            gid: 0,
            links,
            lists: Lists::default(),
            xattrs: BTreeMap::new(),
            parent,
            is_linkable: false,
        }
    }

    pub fn kind(&self) -> FileKind {
        match self.body {
            Body::File(_) => FileKind::Regular,
            Body::Directory(_) => FileKind::Directory,
            Body::Symlink(_) => FileKind::Symlink,
            Body::Special(kind, _) => kind,
        }
    }

    /// Whether somebody is granted `mask`.
    pub fn grants(&self, person: &Person, mask: u16) -> bool {
        if person.is_root() {
            return mask & EXECUTE == 0
                || self.kind() == FileKind::Directory
                || self.permissions & 0o111 != 0;
        }
        if let Some(list) = &self.lists.access {
            return list.grants(person, (self.uid, self.gid), mask);
        }
        let shift = match () {
            () if person.uid == self.uid => 6,
            () if person.in_group(self.gid) => 3,
            () => 0,
        };
        self.permissions >> shift & mask == mask
    }

    pub(crate) fn require(&self, person: &Person, mask: u16) -> Answer<()> {
        if self.grants(person, mask) { Ok(()) } else { Err(Errno::EACCES) }
    }

    pub(crate) fn is_owned_by(&self, person: &Person) -> bool {
        person.is_root() || person.uid == self.uid
    }

    pub(crate) fn is_sticky(&self) -> bool {
        self.permissions & STICKY != 0
    }

    /// Set-uid goes, and set-gid where it means execution.
    pub(crate) fn lose_set_id(&mut self) {
        if self.kind() != FileKind::Directory {
            let lost = if self.permissions & GROUP_EXECUTE != 0 { SET_UID | SET_GID } else { SET_UID };
            self.permissions &= !lost;
        }
    }

    pub(crate) fn set_permissions(&mut self, person: &Person, mut permissions: u16) {
        if !person.is_root() && !person.in_group(self.gid) {
            permissions &= !SET_GID;
        }
        self.permissions = permissions;
        if let Some(list) = &mut self.lists.access {
            list.set_mode(permissions);
        }
    }

    /// Sets or takes away a list.
    pub(crate) fn set_list(&mut self, person: &Person, default: bool, list: Option<List>) -> Answer<()> {
        match settable(self.kind(), default) {
            Err(Errno::EACCES) if list.is_none() => return Ok(()),
            other => other?,
        }
        if !self.is_owned_by(person) {
            return Err(Errno::EPERM);
        }
        if default {
            self.lists.default = list;
            return Ok(());
        }
        if let Some(list) = &list {
            self.permissions = self.permissions & 0o7000 | list.mode();
            if !person.is_root() && !person.in_group(self.gid) {
                self.permissions &= !SET_GID;
            }
        }
        self.lists.access = list.filter(|list| !list.is_minimal());
        Ok(())
    }
}

pub type Answer<T> = Result<T, Errno>;

/// The root directory.
pub const ROOT: usize = 0;

impl Default for Reference {
    fn default() -> Self {
        Self::new()
    }
}

impl Reference {
    pub fn new() -> Self {
        Self { nodes: vec![Node::new(Body::Directory(BTreeMap::new()), 0o755, ROOT)] }
    }

    pub(crate) fn entries(&self, node: usize) -> Answer<&BTreeMap<String, usize>> {
        match &self.nodes[node].body {
            Body::Directory(entries) => Ok(entries),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn entries_mut(&mut self, node: usize) -> &mut BTreeMap<String, usize> {
        match &mut self.nodes[node].body {
            Body::Directory(entries) => entries,
            _ => panic!("no directory"),
        }
    }

    /// What has a name in a directory.
    pub(crate) fn named(&self, directory: usize, name: &str) -> Answer<Option<usize>> {
        let entries = self.entries(directory)?;
        if name.len() > NAME_BYTES_MAX { Err(Errno::ENAMETOOLONG) } else { Ok(entries.get(name).copied()) }
    }

    pub(crate) fn is_directory(&self, node: usize) -> bool {
        matches!(self.nodes[node].body, Body::Directory(_))
    }

    pub fn resolve(&self, path: &str) -> Answer<usize> {
        let parts = path.split('/').filter(|part| !part.is_empty());
        parts
            .into_iter()
            .try_fold(ROOT, |node, part| self.entries(node)?.get(part).copied().ok_or(Errno::ENOENT))
    }

    fn place<'a>(&self, path: &'a str) -> Answer<(usize, &'a str, Option<usize>)> {
        let (parent, name) = path.rsplit_once('/').unwrap();
        let parent = self.resolve(parent)?;
        Ok((parent, name, self.entries(parent)?.get(name).copied()))
    }

    pub fn make(&mut self, path: &str, body: Body, permissions: u16) -> Answer<usize> {
        self.make_masked(path, body, permissions, 0)
    }

    pub fn make_masked(&mut self, path: &str, body: Body, permissions: u16, umask: u16) -> Answer<usize> {
        let (parent, name, _) = self.place(path)?;
        self.make_at(&Person::ROOT, (parent, name), body, (permissions, umask))
    }

    /// A directory that still has its name, in which the caller may look for others.
    pub(crate) fn require_searchable(&self, person: &Person, directory: usize) -> Answer<()> {
        self.entries(directory)?;
        self.nodes[directory].require(person, EXECUTE)?;
        if self.nodes[directory].links == 0 { Err(Errno::ENOENT) } else { Ok(()) }
    }

    fn require_changeable(&self, person: &Person, directory: usize) -> Answer<()> {
        self.nodes[directory].require(person, WRITE | EXECUTE)
    }

    /// Makes an inode with a name.
    pub(crate) fn make_at(
        &mut self,
        person: &Person,
        (parent, name): (usize, &str),
        body: Body,
        (permissions, umask): (u16, u16),
    ) -> Answer<usize> {
        self.require_searchable(person, parent)?;
        if self.named(parent, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        self.require_changeable(person, parent)?;
        if matches!(body, Body::Special(FileKind::CharacterDevice | FileKind::BlockDevice, _))
            && !person.is_root()
        {
            return Err(Errno::EPERM);
        }
        let is_directory = matches!(body, Body::Directory(_));
        let number = self.born(person, body, permissions, umask, parent);
        self.entries_mut(parent).insert(name.to_owned(), number);
        self.nodes[parent].links += u32::from(is_directory);
        Ok(number)
    }

    /// A new inode below `parent`, which hands down what it has to hand down.
    fn born(&mut self, person: &Person, body: Body, permissions: u16, umask: u16, parent: usize) -> usize {
        let mut node = Node::new(body, permissions, parent);
        (node.uid, node.gid) = (person.uid, person.gid);
        let above = &self.nodes[parent];
        if above.permissions & SET_GID != 0 {
            node.gid = above.gid;
            match node.kind() {
                FileKind::Directory => node.permissions |= SET_GID,
                _ if node.permissions & GROUP_EXECUTE != 0
                    && !person.is_root()
                    && !person.in_group(node.gid) =>
                {
                    node.permissions &= !SET_GID;
                }
                _ => {}
            }
        }
        match (node.kind(), above.lists.default.clone()) {
            (FileKind::Symlink, _) => {}
            (_, None) => node.permissions &= !umask,
            (kind, Some(list)) => {
                let mut access = list.clone();
                access.restrict(permissions);
                node.permissions = node.permissions & 0o7000 | access.mode();
                node.lists.access = Some(access).filter(|list| !list.is_minimal());
                node.lists.default = (kind == FileKind::Directory).then_some(list);
            }
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// A file without a name, made below a directory.
    pub fn temporary(&mut self, directory: &str, permissions: u16, umask: u16) -> Answer<usize> {
        let parent = self.resolve(directory)?;
        self.temporary_at(&Person::ROOT, parent, (permissions, umask), true)
    }

    pub(crate) fn temporary_at(
        &mut self,
        person: &Person,
        parent: usize,
        (permissions, umask): (u16, u16),
        is_linkable: bool,
    ) -> Answer<usize> {
        self.require_searchable(person, parent)?;
        self.require_changeable(person, parent)?;
        let node = self.born(person, Body::File(Vec::new()), permissions, umask, parent);
        (self.nodes[node].links, self.nodes[node].is_linkable) = (0, is_linkable);
        Ok(node)
    }

    /// Gives a file one more name, be it the first.
    pub fn link_node(&mut self, node: usize, to: &str) -> Answer<()> {
        let (parent, name, _) = self.place(to)?;
        self.link_at(&Person::ROOT, node, (parent, name))
    }

    pub(crate) fn link_at(
        &mut self,
        person: &Person,
        node: usize,
        (parent, name): (usize, &str),
    ) -> Answer<()> {
        self.require_searchable(person, parent)?;
        if self.named(parent, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        self.require_changeable(person, parent)?;
        if self.is_directory(node) {
            return Err(Errno::EPERM);
        }
        let linked = &mut self.nodes[node];
        if linked.links == 0 && !linked.is_linkable {
            return Err(Errno::ENOENT);
        }
        linked.links += 1;
        linked.is_linkable = false;
        self.entries_mut(parent).insert(name.to_owned(), node);
        Ok(())
    }

    /// What a node number stands for.
    pub fn at(&self, node: usize) -> &Node {
        &self.nodes[node]
    }

    pub(crate) fn at_mut(&mut self, node: usize) -> &mut Node {
        &mut self.nodes[node]
    }

    pub fn node(&self, path: &str) -> Answer<&Node> {
        Ok(&self.nodes[self.resolve(path)?])
    }

    pub fn node_mut(&mut self, path: &str) -> Answer<&mut Node> {
        let node = self.resolve(path)?;
        Ok(&mut self.nodes[node])
    }

    pub fn parent(&self, path: &str) -> Answer<Facts> {
        let node = self.resolve(path)?;
        self.entries(node)?;
        Ok(self.facts_of(self.nodes[node].parent))
    }

    /// Sets or takes away a list.
    pub fn set_list(&mut self, path: &str, default: bool, list: Option<List>) -> Answer<()> {
        self.node_mut(path)?.set_list(&Person::ROOT, default, list)
    }

    /// Opens for writing, and makes the file if need be.
    pub fn create(&mut self, path: &str) -> Answer<usize> {
        match self.make(path, Body::File(Vec::new()), 0o644) {
            Err(Errno::EEXIST) => self.file(path),
            other => other,
        }
    }

    pub fn file(&self, path: &str) -> Answer<usize> {
        let node = self.resolve(path)?;
        match self.nodes[node].body {
            Body::File(_) => Ok(node),
            Body::Directory(_) => Err(Errno::EISDIR),
            Body::Symlink(_) => Err(Errno::ELOOP),
            Body::Special(..) => Err(Errno::ENXIO),
        }
    }

    pub fn bytes(&mut self, file: usize) -> &mut Vec<u8> {
        match &mut self.nodes[file].body {
            Body::File(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    pub fn write(&mut self, path: &str, offset: usize, bytes: &[u8]) -> Answer<()> {
        let file = self.create(path)?;
        self.write_node(file, offset, bytes);
        Ok(())
    }

    pub fn write_node(&mut self, file: usize, offset: usize, bytes: &[u8]) {
        let contents = self.bytes(file);
        if !bytes.is_empty() {
            contents.resize(contents.len().max(offset + bytes.len()), 0);
            contents[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// `fallocate(2)`.
    pub fn allocate(&mut self, path: &str, mode: AllocateMode, offset: usize, len: usize) -> Answer<()> {
        let file = self.file(path)?;
        self.allocate_node(file, mode, offset, len)
    }

    pub(crate) fn allocate_node(
        &mut self,
        file: usize,
        mode: AllocateMode,
        offset: usize,
        len: usize,
    ) -> Answer<()> {
        const BLOCK: usize = 4096;
        let bytes = self.bytes(file);
        let (size, end) = (bytes.len(), offset + len);
        let moves = matches!(mode, AllocateMode::CollapseRange | AllocateMode::InsertRange);
        if len == 0 || moves && (!offset.is_multiple_of(BLOCK) || !len.is_multiple_of(BLOCK)) {
            return Err(Errno::EINVAL);
        }
        match mode {
            AllocateMode::Allocate { keep_size } if !keep_size => bytes.resize(size.max(end), 0),
            AllocateMode::Allocate { .. } => {}
            AllocateMode::PunchHole => bytes[offset.min(size)..end.min(size)].fill(0),
            AllocateMode::ZeroRange { keep_size } => {
                bytes[offset.min(size)..end.min(size)].fill(0);
                if !keep_size {
                    bytes.resize(size.max(end), 0);
                }
            }
            AllocateMode::CollapseRange if end >= size => return Err(Errno::EINVAL),
            AllocateMode::CollapseRange => drop(bytes.drain(offset..end)),
            AllocateMode::InsertRange if offset >= size => return Err(Errno::EINVAL),
            AllocateMode::InsertRange => drop(bytes.splice(offset..offset, vec![0; len])),
        }
        Ok(())
    }

    /// `copy_file_range(2)`, from the path first.
    pub fn copy(
        &mut self,
        (from, at): (&str, usize),
        (to, to_at): (&str, usize),
        len: usize,
    ) -> Answer<usize> {
        let (from, to) = (self.file(from)?, self.file(to)?);
        self.copy_node((from, at), (to, to_at), len)
    }

    pub(crate) fn copy_node(
        &mut self,
        (from, at): (usize, usize),
        (to, to_at): (usize, usize),
        len: usize,
    ) -> Answer<usize> {
        let source = self.bytes(from);
        let start = at.min(source.len());
        let data = source[start..(start + len).min(source.len())].to_vec();
        if from == to && at.abs_diff(to_at) < data.len() {
            return Err(Errno::EINVAL);
        }
        self.write_node(to, to_at, &data);
        Ok(data.len())
    }

    pub fn truncate(&mut self, path: &str, size: usize) -> Answer<()> {
        let node = self.resolve(path)?;
        self.truncatable(node)?.resize(size, 0);
        Ok(())
    }

    pub(crate) fn truncatable(&mut self, node: usize) -> Answer<&mut Vec<u8>> {
        match &mut self.nodes[node].body {
            Body::File(bytes) => Ok(bytes),
            Body::Directory(_) => Err(Errno::EISDIR),
            Body::Symlink(_) | Body::Special(..) => Err(Errno::EINVAL),
        }
    }

    pub fn chmod(&mut self, path: &str, permissions: u16) -> Answer<()> {
        self.node_mut(path)?.set_permissions(&Person::ROOT, permissions);
        Ok(())
    }

    pub fn link(&mut self, from: &str, to: &str) -> Answer<()> {
        let node = self.resolve(from)?;
        self.link_node(node, to)
    }

    pub fn remove(&mut self, path: &str, directory: bool) -> Answer<()> {
        let (parent, name, _) = self.place(path)?;
        self.remove_at(&Person::ROOT, (parent, name), directory)
    }

    /// Whether a name may be taken out of its directory.
    fn require_removable(&self, person: &Person, parent: usize, node: usize) -> Answer<()> {
        self.require_changeable(person, parent)?;
        let directory = &self.nodes[parent];
        let may =
            !directory.is_sticky() || directory.is_owned_by(person) || self.nodes[node].is_owned_by(person);
        if may { Ok(()) } else { Err(Errno::EPERM) }
    }

    pub(crate) fn remove_at(
        &mut self,
        person: &Person,
        (parent, name): (usize, &str),
        directory: bool,
    ) -> Answer<()> {
        self.require_searchable(person, parent)?;
        let node = self.named(parent, name)?.ok_or(Errno::ENOENT)?;
        self.require_removable(person, parent, node)?;
        match (directory, self.entries(node)) {
            (true, Err(_)) => return Err(Errno::ENOTDIR),
            (false, Ok(_)) => return Err(Errno::EISDIR),
            (true, Ok(entries)) if !entries.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.drop_name(parent, name);
        Ok(())
    }

    fn drop_name(&mut self, parent: usize, name: &str) {
        let node = self.entries_mut(parent).remove(name).unwrap();
        let is_directory = self.is_directory(node);
        self.nodes[parent].links -= u32::from(is_directory);
        self.nodes[node].links -= if is_directory { 2 } else { 1 };
    }

    fn is_above(&self, upper: usize, mut node: usize) -> bool {
        loop {
            if node == upper {
                return true;
            }
            if node == ROOT {
                return false;
            }
            node = self.nodes[node].parent;
        }
    }

    pub fn rename(&mut self, from: &str, to: &str, mode: RenameMode) -> Answer<()> {
        let (from_parent, from_name) = from.rsplit_once('/').unwrap();
        let from_parent = self.resolve(from_parent)?;
        let (to_parent, to_name) = to.rsplit_once('/').unwrap();
        let to_parent = self.resolve(to_parent)?;
        self.rename_at(&Person::ROOT, (from_parent, from_name), (to_parent, to_name), (mode, (false, false)))
    }

    pub(crate) fn rename_at(
        &mut self,
        person: &Person,
        (from_parent, from_name): (usize, &str),
        (to_parent, to_name): (usize, &str),
        (mode, (from_slash, to_slash)): (RenameMode, (bool, bool)),
    ) -> Answer<()> {
        self.require_searchable(person, from_parent)?;
        self.require_searchable(person, to_parent)?;
        let source = self.named(from_parent, from_name)?.ok_or(Errno::ENOENT)?;
        let target = self.named(to_parent, to_name)?;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
            _ => {}
        }
        // A slash is behind directories alone.
        let exchanges = mode == RenameMode::Exchange;
        let meant = if exchanges { target } else { Some(source) };
        if from_slash && !self.is_directory(source)
            || to_slash && meant.is_some_and(|meant| !self.is_directory(meant))
        {
            return Err(Errno::ENOTDIR);
        }
        if self.is_directory(source) && self.is_above(source, to_parent) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target
            && self.is_directory(target)
            && self.is_above(target, from_parent)
        {
            return Err(if exchanges { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if target == Some(source) {
            return Ok(());
        }
        self.require_removable(person, from_parent, source)?;
        match target {
            None => self.require_changeable(person, to_parent)?,
            Some(target) => self.require_removable(person, to_parent, target)?,
        }
        if let Some(target) = target.filter(|_| !exchanges) {
            match (self.is_directory(source), self.is_directory(target)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ => {}
            }
        }
        // A directory that moves gets another `..`, which is written into it.
        let moved = [Some(source), target.filter(|_| exchanges)].into_iter().flatten();
        for moved in moved.filter(|moved| from_parent != to_parent && self.is_directory(*moved)) {
            self.nodes[moved].require(person, WRITE)?;
        }
        if let Some(target) = target.filter(|_| !exchanges) {
            if self.entries(target).is_ok_and(|entries| !entries.is_empty()) {
                return Err(Errno::ENOTEMPTY);
            }
            self.drop_name(to_parent, to_name);
        }
        self.take(from_parent, from_name);
        match target {
            Some(target) if exchanges => {
                self.take(to_parent, to_name);
                self.give(from_parent, from_name, target);
            }
            _ => {}
        }
        self.give(to_parent, to_name, source);
        Ok(())
    }

    fn take(&mut self, directory: usize, name: &str) {
        let node = self.entries_mut(directory).remove(name).unwrap();
        self.nodes[directory].links -= u32::from(self.is_directory(node));
    }

    fn give(&mut self, directory: usize, name: &str, node: usize) {
        self.entries_mut(directory).insert(name.to_owned(), node);
        self.nodes[directory].links += u32::from(self.is_directory(node));
        self.nodes[node].parent = directory;
    }

    pub fn facts(&self, path: &str) -> Answer<Facts> {
        Ok(self.facts_of(self.resolve(path)?))
    }

    pub fn facts_of(&self, node: usize) -> Facts {
        let node = &self.nodes[node];
        let size = match &node.body {
            Body::File(bytes) => bytes.len(),
            Body::Directory(entries) => entries.len(),
            Body::Symlink(target) => target.len(),
            Body::Special(..) => 0,
        };
        Facts { kind: node.kind(), permissions: node.permissions, links: node.links, size_bytes: size as u64 }
    }

    pub fn list(&self, path: &str) -> Answer<Vec<String>> {
        Ok(self.entries(self.resolve(path)?)?.keys().cloned().collect())
    }

    pub fn read(&self, path: &str) -> Answer<Vec<u8>> {
        match &self.nodes[self.file(path)?].body {
            Body::File(bytes) => Ok(bytes.clone()),
            other => panic!("{other:?}"),
        }
    }

    pub fn readlink(&self, path: &str) -> Answer<Vec<u8>> {
        match &self.nodes[self.resolve(path)?].body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Every path, the root as an empty one.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = vec![String::new()];
        let mut index = 0;
        while let Some(path) = paths.get(index).cloned() {
            index += 1;
            let below = self.list(&path).unwrap_or_default();
            paths.extend(below.into_iter().map(|name| format!("{path}/{name}")));
        }
        paths
    }
}
