//! What lies in a branch's root directory and no listing shows: `.ringfort`, and in it `snapshots`, a directory for each snapshot of the branch.
//!
//! The two have numbers that no inode is given, and are made when they are asked for. Nothing in them can be changed.

use std::rc::Rc;

use ringfort_store::address::ViewId;
use ringfort_store::volume::Volume;

use crate::directory::COOKIE_PARENT;
use crate::errno::Errno;
use crate::failure::Result;
use crate::inode::{CONTROL, Inode, Metadata, SNAPSHOTS};
use crate::mount::Mount;
use crate::operation::{DirectoryEntry, FileKind, Name, NodeId, SessionId};

const CONTROL_NAME: &[u8] = b".ringfort";
const SNAPSHOTS_NAME: &[u8] = b"snapshots";

impl<V: Volume> Mount<V> {
    /// The directory of a hidden number. A branch alone has them: snapshots have no snapshots.
    pub fn hidden_inode(&self, number: u64) -> Option<Rc<Inode>> {
        let branch = ViewId::of(number);
        if !self.is_branch(branch) {
            return None;
        }
        let parent = if ViewId::local(number) == CONTROL { NodeId::ROOT.0 } else { CONTROL };
        let metadata = Metadata {
            permissions: 0o555,
            link_count: 2,
            generation: 1,
            parent: branch.place(parent),
            accessed: self.opened_at,
            modified: self.opened_at,
            changed: self.opened_at,
            ..Metadata::empty(FileKind::Directory)
        };
        Some(Rc::new(Inode::new(number, metadata)))
    }

    /// What a name means that no entry is stored for; `None` where stored entries count.
    pub fn find_hidden(&self, directory: u64, name: &Name) -> Option<Result<u64>> {
        let branch = ViewId::of(directory);
        let found = match (ViewId::local(directory), name.as_bytes()) {
            (1, CONTROL_NAME) if self.is_branch(branch) => Some(branch.place(CONTROL)),
            (CONTROL, SNAPSHOTS_NAME) => Some(branch.place(SNAPSHOTS)),
            (SNAPSHOTS, name) => self.snapshot_named(branch, name).map(root_of),
            (CONTROL, _) => None,
            _ => return None,
        };
        Some(found.ok_or_else(|| Errno::ENOENT.into()))
    }

    /// The entries of a hidden directory after `cookie`, `.` and `..` left out.
    pub async fn list_hidden(
        &self,
        session: SessionId,
        directory: u64,
        cookie: u64,
        limit: usize,
        attributes: bool,
    ) -> Result<Vec<DirectoryEntry>> {
        let branch = ViewId::of(directory);
        let names: Vec<(u64, u64, Vec<u8>)> = match ViewId::local(directory) {
            CONTROL => vec![(COOKIE_PARENT + 1, branch.place(SNAPSHOTS), SNAPSHOTS_NAME.to_vec())],
            _ => {
                let snapshots = self.snapshots_of(branch).into_iter();
                let entry = |(view, info): (ViewId, Vec<u8>)| {
                    (COOKIE_PARENT + 1 + u64::from(view.0), root_of(view), info)
                };
                snapshots.map(|snapshot| entry((snapshot.view, snapshot.name))).collect()
            }
        };
        let mut listed = Vec::new();
        for (at, node, name) in names.into_iter().filter(|(at, ..)| *at > cookie).take(limit) {
            let attributes = match attributes {
                true => Some(self.listed_attributes(session, directory, node).await?),
                false => None,
            };
            listed.push(DirectoryEntry {
                name,
                node: NodeId(node),
                kind: FileKind::Directory,
                cookie: at,
                attributes,
            });
        }
        Ok(listed)
    }
}

/// The root directory of a view.
pub(crate) fn root_of(view: ViewId) -> u64 {
    view.place(NodeId::ROOT.0)
}
