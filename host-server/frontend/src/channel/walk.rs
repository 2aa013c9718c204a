//! From a path to what it names: one walk for one command.
//!
//! Names are looked up one by one, with the permissions of whoever asks. Symbolic links are followed here, since a channel has no kernel to do
//! so; a walk never leaves the volume.

use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{
    Attributes, Credentials, FileKind, Name, NodeId, Operation, Reply, SessionId,
};
use ringfort_protocol::argument::PATH_BYTES_MAX;

use crate::service::Service;

/// Symbolic links that one walk follows, as Linux.
const LINK_COUNT_MAX: usize = 40;

/// Where a walk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    pub node: NodeId,
    pub kind: FileKind,
}

impl Spot {
    pub const ROOT: Spot = Spot { node: NodeId::ROOT, kind: FileKind::Directory };

    fn of(attributes: &Attributes) -> Self {
        Self { node: attributes.node, kind: attributes.kind }
    }
}

/// The last part of a path, for who makes or removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Last {
    Name {
        name: Name,
        /// A slash follows: it must be a directory.
        directory: bool,
    },
    /// A name that no directory has.
    TooLong { directory: bool },
    /// The path ends with `.`.
    Dot,
    /// The path ends with `..`.
    DotDot,
    /// The path is nothing but slashes.
    Root,
}

impl Last {
    /// A name, without a slash behind it.
    pub fn is_plain_name(&self) -> bool {
        matches!(self, Self::Name { directory: false, .. })
    }

    /// Whether a slash follows a name.
    pub fn has_slash(&self) -> bool {
        matches!(self, Self::Name { directory: true, .. } | Self::TooLong { directory: true })
    }

    pub fn is_no_name(&self) -> bool {
        matches!(self, Self::Dot | Self::DotDot | Self::Root)
    }

    /// The name, or the error that the system call gives instead.
    pub fn name_or(self, dots: Errno) -> Result<(Name, bool), Errno> {
        match self {
            Self::Name { name, directory } => Ok((name, directory)),
            Self::TooLong { .. } => Err(Errno::ENAMETOOLONG),
            Self::Dot | Self::DotDot | Self::Root => Err(dots),
        }
    }
}

/// One walk. What it has looked up is held until [`end`](Self::end).
pub struct Walk<'a, S: Service> {
    service: &'a S,
    session: SessionId,
    credentials: &'a Credentials,
    held: Vec<NodeId>,
    link_count: usize,
}

/// The parts of a path that are still to be walked, the next one last. An empty one stands for a slash at the end: what precedes it must be
/// a directory.
struct Parts(Vec<Vec<u8>>);

impl Parts {
    fn of(path: &[u8]) -> Result<Self, Errno> {
        if path.len() > PATH_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if path.contains(&0) {
            return Err(Errno::EINVAL);
        }
        let mut parts = Self(Vec::new());
        parts.push(path);
        Ok(parts)
    }

    fn push(&mut self, path: &[u8]) {
        let names: Vec<_> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        if path.ends_with(b"/") && !names.is_empty() {
            self.0.push(Vec::new());
        }
        self.0.extend(names.into_iter().rev().map(<[u8]>::to_vec));
    }

    /// Whether nothing follows the part that was taken, and whether a slash does.
    fn ending(&self) -> Option<bool> {
        match &self.0[..] {
            [] => Some(false),
            [slash] if slash.is_empty() => Some(true),
            _ => None,
        }
    }
}

impl<'a, S: Service> Walk<'a, S> {
    pub fn new(service: &'a S, session: SessionId, credentials: &'a Credentials) -> Self {
        Self { service, session, credentials, held: Vec::new(), link_count: 0 }
    }

    async fn execute(&self, operation: Operation) -> Result<Reply, Errno> {
        self.service.execute(self.session, self.credentials, operation).await
    }

    /// Looks up, and holds what was found.
    async fn look_up(&mut self, operation: Operation) -> Result<Spot, Errno> {
        let Reply::Node(attributes) = self.execute(operation).await? else { return Err(Errno::EIO) };
        self.held.push(attributes.node);
        Ok(Spot::of(&attributes))
    }

    /// What a path from `start` leads to. The link at its end is followed where `follow` says so, or a slash.
    pub async fn reach(&mut self, start: Spot, path: &[u8], follow: bool) -> Result<Spot, Errno> {
        let mut at = if path.starts_with(b"/") { Spot::ROOT } else { start };
        let mut parts = Parts::of(path)?;
        while let Some(part) = parts.0.pop() {
            if at.kind != FileKind::Directory {
                return Err(Errno::ENOTDIR);
            }
            let next = self.step(at, &part).await?;
            let ending = parts.ending();
            if next.kind == FileKind::Symlink && (ending != Some(false) || follow) {
                at = self.follow(at, next, &mut parts).await?;
            } else {
                at = next;
            }
        }
        Ok(at)
    }

    /// The directory in which the last part of a path from `start` lies, and that part.
    pub async fn reach_parent(&mut self, start: Spot, path: &[u8]) -> Result<(Spot, Last), Errno> {
        self.reach_last(start, path, false).await
    }

    /// As [`reach_parent`](Self::reach_parent); where a symbolic link is at the end of the path, of what it leads to, which need not be there.
    pub async fn reach_parent_of_target(&mut self, start: Spot, path: &[u8]) -> Result<(Spot, Last), Errno> {
        self.reach_last(start, path, true).await
    }

    async fn reach_last(&mut self, start: Spot, path: &[u8], follow: bool) -> Result<(Spot, Last), Errno> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        let mut at = if path.starts_with(b"/") { Spot::ROOT } else { start };
        let mut parts = Parts::of(path)?;
        loop {
            if at.kind != FileKind::Directory {
                return Err(Errno::ENOTDIR);
            }
            let Some(part) = parts.0.pop() else { return Ok((at, Last::Root)) };
            if let Some(directory) = parts.ending() {
                let last = match &part[..] {
                    b"" => Last::Dot,
                    b"." | b".." => {
                        self.require_searchable(at).await?;
                        if part == b"." { Last::Dot } else { Last::DotDot }
                    }
                    name => match self.name(at, name).await {
                        Ok(name) => Last::Name { name, directory },
                        Err(Errno::ENAMETOOLONG) => Last::TooLong { directory },
                        Err(errno) => return Err(errno),
                    },
                };
                let link = match &last {
                    Last::Name { .. } if follow => self.link_at(at, &part).await?,
                    _ => None,
                };
                match link {
                    Some(link) => at = self.follow(at, link, &mut parts).await?,
                    None => return Ok((at, last)),
                }
                continue;
            }
            let next = self.step(at, &part).await?;
            at = match next.kind {
                FileKind::Symlink => self.follow(at, next, &mut parts).await?,
                _ => next,
            };
        }
    }

    /// The symbolic link of this name.
    async fn link_at(&mut self, at: Spot, name: &[u8]) -> Result<Option<Spot>, Errno> {
        match self.step(at, name).await {
            Ok(found) => Ok((found.kind == FileKind::Symlink).then_some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// One part of a path, from a directory.
    async fn step(&mut self, at: Spot, part: &[u8]) -> Result<Spot, Errno> {
        match part {
            b"" => Ok(at),
            b".." if at.node != NodeId::ROOT => self.look_up(Operation::LookupParent { node: at.node }).await,
            b"." | b".." => self.require_searchable(at).await.map(|()| at),
            name => {
                let name = self.name(at, name).await?;
                self.look_up(Operation::Lookup { parent: at.node, name }).await
            }
        }
    }

    /// A name that is looked for in a directory: whether that may be done at all is said before anything is about the name.
    async fn name(&self, directory: Spot, name: &[u8]) -> Result<Name, Errno> {
        match Name::new(name) {
            Ok(name) => Ok(name),
            Err(errno) => {
                self.require_searchable(directory).await?;
                Err(errno)
            }
        }
    }

    /// For where nothing is looked up that would find out.
    pub async fn require_searchable(&self, directory: Spot) -> Result<(), Errno> {
        const EXECUTE: u8 = 1;
        self.execute(Operation::Access { node: directory.node, mask: EXECUTE }).await.map(drop)
    }

    /// Puts the target of `link`, which lies in `directory`, before the parts that are left. Returns where they begin.
    async fn follow(&mut self, directory: Spot, link: Spot, parts: &mut Parts) -> Result<Spot, Errno> {
        self.link_count += 1;
        if self.link_count > LINK_COUNT_MAX {
            return Err(Errno::ELOOP);
        }
        let reply = self.execute(Operation::ReadLink { node: link.node }).await?;
        let Reply::Target(target) = reply else { return Err(Errno::EIO) };
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        parts.push(&target);
        Ok(if target.starts_with(b"/") { Spot::ROOT } else { directory })
    }

    /// The attributes of a node.
    pub async fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        match self.execute(Operation::GetAttributes { node, handle: None }).await? {
            Reply::Attributes(attributes) => Ok(attributes),
            _ => Err(Errno::EIO),
        }
    }

    /// Holds a node that an operation of this command counted a lookup for.
    pub fn hold(&mut self, attributes: &Attributes) -> Spot {
        self.held.push(attributes.node);
        Spot::of(attributes)
    }

    /// Takes back what was counted. A walk that is dropped leaves that to the end of its session.
    pub async fn end(self) {
        for node in &self.held {
            // Never fails in a session that is open, and one that has ended holds nothing.
            let _ = self.execute(Operation::Forget { node: *node, count: 1 }).await;
        }
    }
}
