//! Commands about names: what makes, moves and removes them.
//!
//! A walk ends at the directory of a name, and the filesystem looks for the name itself. Where a command fails for another reason first, what Linux would have
//! found before that is looked for here.

use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{FileKind, Name, NewNode, NodeId, Operation, RenameMode, Reply};
use ringfort_protocol::argument::PATH_BYTES_MAX;
use ringfort_protocol::command::{Flags, Opcode};

use super::{Call, Outcome, Refusal, Result, cut, high, low, record, unexpected};
use crate::channel::walk::{Last, Spot};
use crate::service::Service;

impl<S: Service> Call<'_, S> {
    /// Where something is to be made, and whether a slash says that it is a directory.
    async fn new_node(&mut self, permissions: u16) -> Result<(NewNode, bool)> {
        let path = self.data.input(self.command.input)?;
        let (parent, last) = self.parent_at(self.command.target, &path).await?;
        let (name, slash) = last.name_or(Errno::EEXIST)?;
        Ok((NewNode { parent: parent.node, name, permissions, umask: 0 }, slash))
    }

    async fn made(&mut self, operation: Operation) -> Result<Outcome> {
        match self.execute(operation).await? {
            Reply::Node(attributes) => {
                self.walk.hold(&attributes);
                Ok(Outcome::default())
            }
            _ => unexpected(),
        }
    }

    pub(super) async fn make(&mut self) -> Result<Outcome> {
        let (mode, device) = (low(self.command.value), high(self.command.value));
        let (new, slash) = self.new_node(record::permissions(mode)).await?;
        let operation = match self.command.opcode {
            Opcode::MakeDirectory => Operation::MakeDirectory { new },
            _ if slash => return Err(self.no_directory(&new).await),
            _ => Operation::MakeNode { new, kind: record::node_kind(mode)?, device },
        };
        self.made(operation).await
    }

    /// Why nothing but a directory is made under a name that a slash follows.
    async fn no_directory(&mut self, new: &NewNode) -> Errno {
        self.is_free(new.parent, &new.name).await.err().unwrap_or(Errno::ENOENT)
    }

    /// `EEXIST` where something has this name.
    async fn is_free(&mut self, parent: NodeId, name: &Name) -> Result<()> {
        match self.named(parent, name).await {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// What has this name, be it a symbolic link.
    async fn named(&mut self, parent: NodeId, name: &Name) -> Result<Spot> {
        let parent = Spot { node: parent, kind: FileKind::Directory };
        self.walk.reach(parent, name.as_bytes(), false).await
    }

    pub(super) async fn make_symlink(&mut self) -> Result<Outcome> {
        let input = self.data.input(self.command.input)?;
        let (target, path) = cut(&input, self.command.value)?;
        // Before anything is looked up, as Linux does.
        match target.len() {
            0 => return Err(Errno::ENOENT),
            1..=PATH_BYTES_MAX => {}
            _ => return Err(Errno::ENAMETOOLONG),
        }
        let (parent, last) = self.parent_at(self.command.target, path).await?;
        let (name, slash) = last.name_or(Errno::EEXIST)?;
        if slash {
            self.is_free(parent.node, &name).await?;
            return Err(Errno::ENOENT);
        }
        self.made(Operation::MakeSymlink { parent: parent.node, name, target: target.to_vec() }).await
    }

    pub(super) async fn read_link(&mut self) -> std::result::Result<Outcome, Refusal> {
        let path = self.data.input(self.command.input)?;
        let start = self.start(self.command.target)?;
        let spot = self.walk.reach(start, &path, false).await?;
        self.give(Operation::ReadLink { node: spot.node }).await
    }

    pub(super) async fn link(&mut self) -> Result<Outcome> {
        let input = self.data.input(self.command.input)?;
        let (from, to) = cut(&input, self.command.value)?;
        let node = self.place_at(from).await?.node;
        let (parent, last) = self.parent_at(self.command.operand, to).await?;
        let (name, slash) = last.name_or(Errno::EEXIST)?;
        if slash {
            self.is_free(parent.node, &name).await?;
            return Err(Errno::ENOENT);
        }
        self.made(Operation::Link { node, parent: parent.node, name }).await
    }

    pub(super) async fn unlink(&mut self) -> Result<Outcome> {
        let path = self.data.input(self.command.input)?;
        let (parent, last) = self.parent_at(self.command.target, &path).await?;
        let operation = match (self.command.flags.has(Flags::DIRECTORY), last) {
            (true, Last::Name { name, .. }) => Operation::RemoveDirectory { parent: parent.node, name },
            (_, Last::TooLong { .. }) => return Err(Errno::ENAMETOOLONG),
            (true, Last::Dot) => return Err(Errno::EINVAL),
            (true, Last::DotDot) => return Err(Errno::ENOTEMPTY),
            (true, Last::Root) => return Err(Errno::EBUSY),
            (false, Last::Name { name, directory: false }) => Operation::Unlink { parent: parent.node, name },
            (false, Last::Name { name, directory: true }) => {
                let spot = self.named(parent.node, &name).await?;
                return Err(if spot.kind == FileKind::Directory { Errno::EISDIR } else { Errno::ENOTDIR });
            }
            (false, Last::Dot | Last::DotDot | Last::Root) => return Err(Errno::EISDIR),
        };
        self.done(operation).await
    }

    pub(super) async fn rename(&mut self) -> Result<Outcome> {
        let input = self.data.input(self.command.input)?;
        let (from, to) = cut(&input, self.command.value)?;
        let flags = self.command.flags;
        let mode = match (flags.has(Flags::NO_REPLACE), flags.has(Flags::EXCHANGE)) {
            (false, false) => RenameMode::Replace,
            (true, false) => RenameMode::NoReplace,
            (false, true) => RenameMode::Exchange,
            (true, true) => return Err(Errno::EINVAL),
        };
        let (parent, last) = self.parent_at(self.command.target, from).await?;
        let (new_parent, new_last) = match self.parent_at(self.command.operand, to).await {
            Ok(found) => found,
            Err(errno) => {
                // The old name's directory was to be searched before.
                self.walk.require_searchable(parent).await?;
                return Err(errno);
            }
        };
        let ends = [(parent, &last), (new_parent, &new_last)];
        if ends.iter().any(|(_, last)| !last.is_plain_name()) {
            // That the directories are to be searched is said before what is about the names.
            for (directory, _) in ends.into_iter().filter(|(_, last)| **last != Last::Root) {
                self.walk.require_searchable(directory).await?;
            }
        }
        let dots = if mode == RenameMode::NoReplace { Errno::EEXIST } else { Errno::EBUSY };
        if last.is_no_name() || new_last.is_no_name() {
            return Err(if last.is_no_name() { Errno::EBUSY } else { dots });
        }
        let (name, slash) = last.name_or(Errno::EBUSY)?;
        let (new_name, new_slash) = match new_last.name_or(dots) {
            Ok(found) => found,
            Err(errno) => {
                // The old name was to be looked for before.
                self.named(parent.node, &name).await?;
                return Err(errno);
            }
        };
        let (parent, new_parent) = (parent.node, new_parent.node);
        if slash || new_slash {
            self.check_slashes((parent, &name, slash), (new_parent, &new_name, new_slash), mode).await?;
        }
        self.done(Operation::Rename { parent, name, new_parent, new_name, mode }).await
    }

    /// A slash is behind names of directories alone. Others that rename what has them would say first what keeps it from being renamed.
    async fn check_slashes(
        &mut self,
        (parent, name, slash): (NodeId, &Name, bool),
        (new_parent, new_name, new_slash): (NodeId, &Name, bool),
        mode: RenameMode,
    ) -> Result<()> {
        let source = self.named(parent, name).await?;
        let target = match self.named(new_parent, new_name).await {
            Ok(_) if mode == RenameMode::NoReplace => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) if mode != RenameMode::Exchange => None,
            found => Some(found?),
        };
        let meant = if mode == RenameMode::Exchange { target } else { Some(source) };
        let is_none = |spot: Spot| spot.kind != FileKind::Directory;
        let refused = slash && is_none(source) || new_slash && meant.is_some_and(is_none);
        if refused { Err(Errno::ENOTDIR) } else { Ok(()) }
    }
}
