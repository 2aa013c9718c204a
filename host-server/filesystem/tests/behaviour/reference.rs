//! A POSIX filesystem in a few vectors and maps: what the real one is compared with.

use std::collections::BTreeMap;

use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{AllocateMode, FileKind, RenameMode};

use crate::reference_acl::{List, Lists, settable};

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
    pub links: u32,
    pub lists: Lists,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    parent: usize,
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
        Self { body, permissions, links, lists: Lists::default(), xattrs: BTreeMap::new(), parent }
    }

    pub fn kind(&self) -> FileKind {
        match self.body {
            Body::File(_) => FileKind::Regular,
            Body::Directory(_) => FileKind::Directory,
            Body::Symlink(_) => FileKind::Symlink,
            Body::Special(kind, _) => kind,
        }
    }
}

type Answer<T> = Result<T, Errno>;

const ROOT: usize = 0;

impl Reference {
    pub fn new() -> Self {
        Self { nodes: vec![Node::new(Body::Directory(BTreeMap::new()), 0o755, ROOT)] }
    }

    fn entries(&self, node: usize) -> Answer<&BTreeMap<String, usize>> {
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

    fn is_directory(&self, node: usize) -> bool {
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
        let (parent, name, found) = self.place(path)?;
        if found.is_some() {
            return Err(Errno::EEXIST);
        }
        let is_directory = matches!(body, Body::Directory(_));
        let number = self.born(body, permissions, umask, parent);
        self.entries_mut(parent).insert(name.to_owned(), number);
        self.nodes[parent].links += u32::from(is_directory);
        Ok(number)
    }

    /// A new inode below `parent`, which hands down what it has to hand down.
    fn born(&mut self, body: Body, permissions: u16, umask: u16, parent: usize) -> usize {
        const SET_GID: u16 = 0o2000;
        let mut node = Node::new(body, permissions, parent);
        if node.kind() == FileKind::Directory {
            node.permissions |= self.nodes[parent].permissions & SET_GID;
        }
        match (node.kind(), self.nodes[parent].lists.default.clone()) {
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
        self.entries(parent)?;
        let node = self.born(Body::File(Vec::new()), permissions, umask, parent);
        self.nodes[node].links = 0;
        Ok(node)
    }

    /// Gives a file one more name, be it the first.
    pub fn link_node(&mut self, node: usize, to: &str) -> Answer<()> {
        let (parent, name, found) = self.place(to)?;
        if found.is_some() {
            return Err(Errno::EEXIST);
        }
        self.nodes[node].links += 1;
        self.entries_mut(parent).insert(name.to_owned(), node);
        Ok(())
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
        let node = self.node_mut(path)?;
        match settable(node.kind(), default) {
            Err(Errno::EACCES) if list.is_none() => return Ok(()),
            other => other?,
        }
        if default {
            node.lists.default = list;
        } else {
            if let Some(list) = &list {
                node.permissions = node.permissions & 0o7000 | list.mode();
            }
            node.lists.access = list.filter(|list| !list.is_minimal());
        }
        Ok(())
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
        const BLOCK: usize = 4096;
        let file = self.file(path)?;
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
        match &mut self.nodes[node].body {
            Body::File(bytes) => bytes.resize(size, 0),
            Body::Directory(_) => return Err(Errno::EISDIR),
            Body::Symlink(_) | Body::Special(..) => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    pub fn chmod(&mut self, path: &str, permissions: u16) -> Answer<()> {
        let node = self.resolve(path)?;
        let node = &mut self.nodes[node];
        node.permissions = permissions;
        if let Some(list) = &mut node.lists.access {
            list.set_mode(permissions);
        }
        Ok(())
    }

    pub fn link(&mut self, from: &str, to: &str) -> Answer<()> {
        let node = self.resolve(from)?;
        let (parent, name, found) = self.place(to)?;
        if found.is_some() {
            return Err(Errno::EEXIST);
        }
        if self.is_directory(node) {
            return Err(Errno::EPERM);
        }
        self.nodes[node].links += 1;
        self.entries_mut(parent).insert(name.to_owned(), node);
        Ok(())
    }

    pub fn remove(&mut self, path: &str, directory: bool) -> Answer<()> {
        let (parent, name, found) = self.place(path)?;
        let node = found.ok_or(Errno::ENOENT)?;
        match (directory, self.entries(node)) {
            (true, Err(_)) => return Err(Errno::ENOTDIR),
            (false, Ok(_)) => return Err(Errno::EISDIR),
            (true, Ok(entries)) if !entries.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.entries_mut(parent).remove(name);
        self.nodes[parent].links -= u32::from(directory);
        self.nodes[node].links -= if directory { 2 } else { 1 };
        Ok(())
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
        let (from_parent, _) = from.rsplit_once('/').unwrap();
        let from_parent = self.resolve(from_parent)?;
        let (to_parent, to_name) = to.rsplit_once('/').unwrap();
        let to_parent = self.resolve(to_parent)?;
        self.entries(from_parent)?;
        self.entries(to_parent)?;
        let (_, from_name, source) = self.place(from)?;
        let source = source.ok_or(Errno::ENOENT)?;
        let target = self.entries(to_parent)?.get(to_name).copied();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
            _ => {}
        }
        if self.is_directory(source) && self.is_above(source, to_parent) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target
            && self.is_directory(target)
            && self.is_above(target, from_parent)
        {
            return Err(if mode == RenameMode::Exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if target == Some(source) {
            return Ok(());
        }
        if let Some(target) = target
            && mode == RenameMode::Replace
        {
            match (self.is_directory(source), self.entries(target)) {
                (true, Err(_)) => return Err(Errno::ENOTDIR),
                (false, Ok(_)) => return Err(Errno::EISDIR),
                (true, Ok(entries)) if !entries.is_empty() => return Err(Errno::ENOTEMPTY),
                (is_directory, _) => self.remove(to, is_directory)?,
            }
        }
        self.take(from_parent, from_name);
        match target {
            Some(target) if mode == RenameMode::Exchange => {
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
