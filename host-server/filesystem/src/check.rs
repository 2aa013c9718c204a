//! The offline check of a filesystem's structure.
//!
//! Reads every record and compares what they say of each other; changes nothing. Takes memory for every inode of the volume, about
//! 200 bytes each. That values are as they were written, and that data is readable, is the store's to check.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringfort_store::address::{LogicalBlock, ViewId};
use ringfort_store::error::StoreError;
use ringfort_store::format::filesystem as format;
use ringfort_store::volume::{Key, TreeId, Volume};

use crate::hash::{SLOTS_PER_HASH, first_slot};
use crate::inode::{Metadata, kind_from_number};
use crate::mount::{INODE_LIMIT_KEY, PROPERTIES_KEY, object};
use crate::operation::{FileKind, Name, NodeId};
use crate::orphan;

/// Faults told in words; beyond it they are counted.
const TOLD_MAX: usize = 1000;
const SCANNED_AT_ONCE: usize = 4096;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    pub inodes: u64,
    pub directories: u64,
    pub entries: u64,
    pub xattrs: u64,
    /// Unlinked files and unfinished truncations, which the next opening finishes with. No fault.
    pub unfinished: u64,
    /// Mapped 4 KiB blocks of files.
    pub data_blocks: u64,
    /// How many faults there are.
    pub fault_count: u64,
    /// The first of them: what, where, found and expected.
    pub faults: Vec<String>,
}

impl CheckReport {
    pub fn is_clean(&self) -> bool {
        self.fault_count == 0
    }

    fn fault(&mut self, fault: String) {
        self.fault_count += 1;
        if self.faults.len() < TOLD_MAX {
            self.faults.push(fault);
        }
    }

    fn expect<T: PartialEq + std::fmt::Display>(&mut self, what: &str, place: u64, found: T, expected: T) {
        if found != expected {
            self.fault(format!("inode {place}: {what} {found} (expected {expected})"));
        }
    }
}

/// What is recorded of an inode, and what was counted.
struct Seen {
    metadata: Metadata,
    names: u64,
    entries: u64,
    subdirectories: u64,
    xattrs: u64,
}

struct Walk<'a, V: Volume> {
    volume: &'a V,
    /// What is checked.
    view: ViewId,
    report: CheckReport,
    inodes: BTreeMap<u64, Seen>,
    orphans: BTreeSet<u64>,
    children: BTreeMap<u64, Vec<u64>>,
}

/// Checks the filesystem of a volume that nothing else changes meanwhile. An error means that the check could not be completed; faults are in the
/// report.
pub async fn check<V: Volume>(volume: &V) -> Result<CheckReport, StoreError> {
    let mut walk = Walk {
        volume,
        view: ViewId::VOLUME,
        report: CheckReport::default(),
        inodes: BTreeMap::new(),
        orphans: BTreeSet::new(),
        children: BTreeMap::new(),
    };
    let Some((hash_key, limit)) = walk.properties().await? else { return Ok(walk.report) };
    walk.read_inodes(limit).await?;
    walk.read_orphans().await?;
    walk.read_entries(hash_key).await?;
    walk.read_xattrs(hash_key).await?;
    walk.read_extents().await?;
    walk.compare();
    walk.reach();
    Ok(walk.report)
}

impl<V: Volume> Walk<'_, V> {
    async fn properties(&mut self) -> Result<Option<([u64; 2], u64)>, StoreError> {
        let properties = self.volume.get(format::PROPERTIES, PROPERTIES_KEY).await?;
        let limit = self.volume.get(format::PROPERTIES, INODE_LIMIT_KEY).await?;
        let (Some(properties), Some(limit)) = (properties, limit) else {
            self.report.fault("there is no filesystem on the volume".to_owned());
            return Ok(None);
        };
        match (format::Properties::decode(&properties), format::decode_inode_limit(&limit)) {
            (Ok(properties), Ok(limit)) => {
                let root = properties.root;
                if root != NodeId::ROOT.0 {
                    self.report.fault(format!("the root is inode {root} (expected {})", NodeId::ROOT.0));
                }
                Ok(Some((properties.hash_key, limit)))
            }
            (Err(error), _) | (_, Err(error)) => {
                self.report.fault(format!("the filesystem's properties: {error}"));
                Ok(None)
            }
        }
    }

    /// Calls `visit` for every entry of a tree.
    async fn scan(
        &mut self,
        tree: TreeId,
        mut visit: impl FnMut(&mut Self, Key, &[u8]),
    ) -> Result<(), StoreError> {
        let (least, most) = self.view.numbers();
        let (mut from, to) = (Key::new(least, 0), Key::new(most, u64::MAX));
        loop {
            let entries = self.volume.scan(tree, from, to, SCANNED_AT_ONCE).await?;
            let Some((last, _)) = entries.last() else { return Ok(()) };
            let next = match last.lo.checked_add(1) {
                Some(lo) => Some(Key::new(last.hi, lo)),
                None => last.hi.checked_add(1).map(|hi| Key::new(hi, 0)),
            };
            for (key, value) in &entries {
                visit(self, *key, value);
            }
            let Some(next) = next else { return Ok(()) };
            from = next;
        }
    }

    async fn read_inodes(&mut self, limit: u64) -> Result<(), StoreError> {
        self.scan(format::INODES, |walk, key, value| {
            walk.report.inodes += 1;
            if key.lo != 0 || key.hi == 0 || key.hi >= limit {
                walk.report.fault(format!("inode {}: number {key:?} was never handed out", key.hi));
            }
            match Metadata::decode(key.hi, value) {
                Err(error) => walk.report.fault(format!("inode {}: {error}", key.hi)),
                Ok(metadata) => {
                    walk.report.directories += u64::from(metadata.kind == FileKind::Directory);
                    let seen = Seen { metadata, names: 0, entries: 0, subdirectories: 0, xattrs: 0 };
                    walk.inodes.insert(key.hi, seen);
                }
            }
        })
        .await
    }

    async fn read_orphans(&mut self) -> Result<(), StoreError> {
        self.scan(format::ORPHANS, |walk, key, value| {
            walk.report.unfinished += 1;
            let shift = orphan::decode(key, value).unwrap_or_else(|error| {
                walk.report.fault(format!("orphan {}: {error}", key.hi));
                None
            });
            let Some(seen) = walk.inodes.get(&key.hi) else {
                return walk.report.fault(format!("orphan {}: there is no such inode", key.hi));
            };
            match shift {
                None => drop(walk.orphans.insert(key.hi)),
                Some(shift) if !orphan::fits(&shift, seen.metadata.size_bytes) => {
                    let size_bytes = seen.metadata.size_bytes;
                    walk.report.fault(format!("orphan {}: {shift:?} in {size_bytes} bytes", key.hi));
                }
                Some(_) => {}
            }
        })
        .await
    }

    async fn read_entries(&mut self, hash_key: [u64; 2]) -> Result<(), StoreError> {
        let mut neighbours = Neighbours::default();
        self.scan(format::ENTRIES, |walk, key, value| {
            walk.report.entries += 1;
            let place = format!("entry {} of directory {}", key.lo, key.hi);
            let entry = match format::Entry::decode(value) {
                Ok(entry) => entry,
                Err(error) => return walk.report.fault(format!("{place}: {error}")),
            };
            let shown = String::from_utf8_lossy(&entry.name).into_owned();
            if Name::new(&entry.name).is_err() {
                walk.report.fault(format!("{place}: {shown:?} can be no name"));
            }
            if let Some(fault) = neighbours.fault(hash_key, key, &entry.name) {
                walk.report.fault(format!("{place}: {shown:?} {fault}"));
            }
            match walk.inodes.get_mut(&key.hi) {
                None => {
                    walk.report.fault(format!("{place}: {shown:?} lies in a directory that does not exist"))
                }
                Some(directory) if directory.metadata.kind != FileKind::Directory => {
                    walk.report.fault(format!("{place}: {shown:?} lies in what is no directory"));
                }
                Some(directory) => {
                    directory.entries += 1;
                    directory.subdirectories +=
                        u64::from(kind_from_number(entry.kind) == Some(FileKind::Directory));
                }
            }
            let Some(child) = walk.inodes.get_mut(&entry.child) else {
                let fault = format!("{place}: {shown:?} names inode {}, which does not exist", entry.child);
                return walk.report.fault(fault);
            };
            child.names += 1;
            let (kind, parent) = (child.metadata.kind, child.metadata.parent);
            if kind_from_number(entry.kind) != Some(kind) {
                walk.report.fault(format!("{place}: {shown:?} says kind {} of a {kind:?}", entry.kind));
            }
            if kind == FileKind::Directory {
                walk.report.expect("parent directory", entry.child, parent, key.hi);
                walk.children.entry(key.hi).or_default().push(entry.child);
            }
        })
        .await
    }

    async fn read_xattrs(&mut self, hash_key: [u64; 2]) -> Result<(), StoreError> {
        let mut neighbours = Neighbours::default();
        self.scan(format::XATTRS, |walk, key, value| {
            walk.report.xattrs += 1;
            let place = format!("extended attribute {} of inode {}", key.lo, key.hi);
            match format::Xattr::decode(value) {
                Err(error) => walk.report.fault(format!("{place}: {error}")),
                Ok(xattr) => {
                    if let Some(fault) = neighbours.fault(hash_key, key, &xattr.name) {
                        let shown = String::from_utf8_lossy(&xattr.name);
                        walk.report.fault(format!("{place}: {shown:?} {fault}"));
                    }
                }
            }
            match walk.inodes.get_mut(&key.hi) {
                Some(inode) => inode.xattrs += 1,
                None => walk.report.fault(format!("{place}: there is no such inode")),
            }
        })
        .await
    }

    async fn read_extents(&mut self) -> Result<(), StoreError> {
        for (&number, seen) in &self.inodes {
            let (mut mapped, mut beyond, mut from) = (0, 0, 0);
            while let Some(extent) = self.volume.next_extent(object(number), LogicalBlock(from)).await? {
                let end = extent.start.0 + extent.len_blocks;
                mapped += extent.len_blocks;
                beyond += end.saturating_sub(extent.start.0.max(seen.metadata.end_block()));
                from = end;
            }
            self.report.data_blocks += mapped;
            self.report.expect("allocated blocks", number, seen.metadata.allocated_blocks, mapped);
            if seen.metadata.kind != FileKind::Regular {
                self.report.expect("data blocks of what is no file", number, mapped, 0);
                continue;
            }
            if !self.orphans.contains(&number) {
                self.report.expect("blocks beyond the end", number, beyond, 0);
            }
        }
        Ok(())
    }

    fn compare(&mut self) {
        let report = &mut self.report;
        for (&number, seen) in &self.inodes {
            let links = u64::from(seen.metadata.link_count);
            if links > 0 {
                // Those of an unlinked inode go before it does.
                let recorded = u64::from(seen.metadata.xattr_count);
                report.expect("number of extended attributes", number, recorded, seen.xattrs);
            }
            if links == 0 && !self.orphans.contains(&number) {
                report.fault(format!("inode {number}: no links, and not on the orphan list"));
            }
            if seen.metadata.kind != FileKind::Directory {
                report.expect("link count", number, links, seen.names);
                continue;
            }
            report.expect("number of entries", number, seen.metadata.size_bytes, seen.entries);
            if links == 0 {
                report.expect("names of a removed directory", number, seen.names, 0);
                continue;
            }
            report.expect("link count of the directory", number, links, 2 + seen.subdirectories);
            let names = u64::from(number != NodeId::ROOT.0);
            report.expect("names of the directory", number, seen.names, names);
        }
        match self.inodes.get(&NodeId::ROOT.0) {
            None => report.fault("the root directory does not exist".to_owned()),
            Some(root) => report.expect("parent", NodeId::ROOT.0, root.metadata.parent, NodeId::ROOT.0),
        }
    }

    /// Every directory that has a name must be found from the root.
    fn reach(&mut self) {
        let mut reached = BTreeSet::from([NodeId::ROOT.0]);
        let mut queue = VecDeque::from([NodeId::ROOT.0]);
        while let Some(directory) = queue.pop_front() {
            for &child in self.children.get(&directory).into_iter().flatten() {
                if reached.insert(child) {
                    queue.push_back(child);
                }
            }
        }
        for (&number, seen) in &self.inodes {
            let named = seen.metadata.kind == FileKind::Directory && seen.metadata.link_count > 0;
            if named && !reached.contains(&number) {
                self.report.fault(format!("directory {number}: not to be reached from the root"));
            }
        }
    }
}

/// The names that share a hash, as a scan meets them.
#[derive(Default)]
struct Neighbours {
    owner: u64,
    first_slot: u64,
    names: BTreeSet<Vec<u8>>,
}

impl Neighbours {
    /// What is wrong with the place of a name, if anything.
    fn fault(&mut self, hash_key: [u64; 2], key: Key, name: &[u8]) -> Option<&'static str> {
        let first = key.lo - key.lo % SLOTS_PER_HASH;
        if (self.owner, self.first_slot) != (key.hi, first) {
            *self = Self { owner: key.hi, first_slot: first, names: BTreeSet::new() };
        }
        if first_slot(hash_key, name) != first {
            Some("lies where it will never be found")
        } else if !self.names.insert(name.to_vec()) {
            Some("is there twice")
        } else {
            None
        }
    }
}
