//! The one vocabulary of operations between front ends and the filesystem.
//!
//! A front end decodes untrusted bytes into an [`Operation`] and encodes the [`Reply`] or [`Errno`] it gets back.
//! Nothing in here knows FUSE or the channel; values are already copied out of guest memory, and lengths are
//! bounded by the front end's own limits.

use ringfort_engine::buffer::Slice;

use crate::errno::Errno;

/// An inode: its number, never reused, as the `nodeid` of a front end names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory that the session was opened with.
    pub const ROOT: NodeId = NodeId(1);
}

/// An open file or directory of one [`SessionId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandleId(pub u64);

/// A front end's session: one mount of one guest, or one channel. Handles and lookup counts belong to it and end
/// with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// On whose behalf an operation runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups. FUSE requests carry none.
    pub groups: Vec<u32>,
    /// Whether the filesystem must check permissions itself. False for a guest kernel that mounts with
    /// `default_permissions` and has checked already.
    pub check_permissions: bool,
}

impl Credentials {
    pub fn root() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new(), check_permissions: false }
    }
}

/// A name inside a directory: bytes in any encoding, 1 to 255 of them, no `/`, no NUL, not `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    pub const LEN_BYTES_MAX: usize = 255;

    /// Checks a name from outside: `ENAMETOOLONG` above 255 bytes, `EINVAL` for what can be no name.
    pub fn new(bytes: &[u8]) -> Result<Self, Errno> {
        if bytes.len() > Self::LEN_BYTES_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Errno::EINVAL);
        }
        Ok(Self(bytes.to_vec()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// Nanoseconds since the Unix epoch, as seconds and a remainder below a billion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// The attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub node: NodeId,
    pub generation: u64,
    pub kind: FileKind,
    /// Permission, set-id and sticky bits: the low 12 bits of a mode.
    pub permissions: u16,
    pub link_count: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of a device node, as Linux encodes it.
    pub device: u32,
    pub size_bytes: u64,
    /// Allocated, in units of 512 bytes.
    pub sectors: u64,
    pub accessed: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Timestamp),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    pub permissions: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size_bytes: Option<u64>,
    pub accessed: Option<SetTime>,
    pub modified: Option<SetTime>,
    pub changed: Option<Timestamp>,
    /// The caller asks that set-id bits be cleared as by a write or chown (FUSE's HANDLE_KILLPRIV).
    pub clear_set_id: bool,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub truncate: bool,
    /// Fail with `EEXIST` where the name exists (create only).
    pub exclusive: bool,
    /// Every write is durable before it returns: data, and what is needed to read it back.
    pub data_sync: bool,
    /// Every write is durable before it returns, with all attributes.
    pub sync: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RenameMode {
    #[default]
    Replace,
    /// `RENAME_NOREPLACE`
    NoReplace,
    /// `RENAME_EXCHANGE`
    Exchange,
    /// `RENAME_WHITEOUT`, which is for the upper layers of union file systems: `EINVAL`.
    Whiteout,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetXattrMode {
    #[default]
    Any,
    /// `XATTR_CREATE`
    Create,
    /// `XATTR_REPLACE`
    Replace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    /// Reserve space; grow the file unless `keep_size`.
    Allocate { keep_size: bool },
    /// Deallocate; always keeps the size.
    PunchHole,
    /// Read as zeros.
    ZeroRange { keep_size: bool },
    /// Takes the range out: what is behind it moves down. Whole blocks that end before the end of the file; else `EINVAL`. Not for guest
    /// kernels, whose caches would not know of it.
    CollapseRange,
    /// Puts a range of holes in: what is there and behind moves up. Whole blocks, before the end of the file, else `EINVAL`; `EFBIG`
    /// where the file would become too big. Not for guest kernels either.
    InsertRange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    Data,
    Hole,
}

/// Whose an advisory lock is, within a session: a process for range locks, an open file for flock's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockOwner(pub u64);

/// Which advisory locks. The two know nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockFamily {
    /// fcntl's, on ranges of bytes.
    Range,
    /// flock's; the range is [`LockRange::WHOLE`].
    WholeFile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    Shared,
    Exclusive,
}

/// Bytes of a file, first and last included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    pub start: u64,
    pub end: u64,
}

impl LockRange {
    /// The last byte that a lock may name: `loff_t` has no more.
    const LAST: u64 = i64::MAX as u64;

    pub const WHOLE: LockRange = LockRange { start: 0, end: Self::LAST };

    /// Checks a range from outside: `EINVAL` for what is none.
    pub fn new(start: u64, end: u64) -> Result<Self, Errno> {
        if start > end || end > Self::LAST { Err(Errno::EINVAL) } else { Ok(Self { start, end }) }
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// Whether the two, together, leave no gap.
    pub(crate) fn touches(self, other: Self) -> bool {
        // No end is `u64::MAX`.
        self.start <= other.end + 1 && other.start <= self.end + 1
    }

    pub(crate) fn joined(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// What lies before and behind `hole`, which overlaps.
    pub(crate) fn without(self, hole: Self) -> [Option<Self>; 2] {
        [
            (self.start < hole.start).then(|| Self { start: self.start, end: hole.start - 1 }),
            (hole.end < self.end).then(|| Self { start: hole.end + 1, end: self.end }),
        ]
    }
}

/// A lock that keeps another out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLock {
    pub range: LockRange,
    pub mode: LockMode,
    /// The process that holds it, as its session numbers processes; 0 where that is another session.
    pub pid: u32,
}

/// The place of a new name, what it is called, and who makes it with which mode.
#[derive(Clone, Debug)]
pub struct NewNode {
    pub parent: NodeId,
    pub name: Name,
    /// Permission, set-id and sticky bits, as asked for.
    pub permissions: u16,
    /// Permission bits that are taken off where the parent has no default access control list. 0 where the caller has done so.
    pub umask: u16,
}

/// Everything that a front end can ask. Operations on a [`NodeId`] that no longer exists, or of a session that has ended, answer
/// `ESTALE`; those on a forged [`HandleId`] `EBADF`.
///
/// An inode without links lives while any session has lookups or handles of it.
#[derive(Clone, Debug)]
pub enum Operation {
    /// → [`Reply::Node`]; counts one lookup of the node for the session.
    Lookup { parent: NodeId, name: Name },
    /// The parent of a directory. → [`Reply::Node`]; counts one lookup.
    LookupParent { node: NodeId },
    /// Takes back `count` lookups, or as many as there are. Never fails in a session that is open. → [`Reply::Done`]
    Forget { node: NodeId, count: u64 },
    /// → [`Reply::Attributes`]
    GetAttributes { node: NodeId, handle: Option<HandleId> },
    /// → [`Reply::Attributes`]
    SetAttributes { node: NodeId, handle: Option<HandleId>, change: SetAttributes },
    /// `access(2)`: `mask` of R=4, W=2, X=1. → [`Reply::Done`]
    Access { node: NodeId, mask: u8 },
    /// → [`Reply::Target`]
    ReadLink { node: NodeId },
    /// → [`Reply::Node`], counted
    MakeSymlink { parent: NodeId, name: Name, target: Vec<u8> },
    /// Any kind but directory and symlink. → [`Reply::Node`], counted
    MakeNode { new: NewNode, kind: FileKind, device: u32 },
    /// → [`Reply::Node`], counted
    MakeDirectory { new: NewNode },
    /// → [`Reply::Done`]
    Unlink { parent: NodeId, name: Name },
    /// → [`Reply::Done`]
    RemoveDirectory { parent: NodeId, name: Name },
    /// → [`Reply::Done`]
    Rename { parent: NodeId, name: Name, new_parent: NodeId, new_name: Name, mode: RenameMode },
    /// → [`Reply::Node`], counted
    Link { node: NodeId, parent: NodeId, name: Name },
    /// → [`Reply::Opened`]
    Open { node: NodeId, flags: OpenFlags },
    /// Opens, making the file where it does not exist. → [`Reply::Created`], counted
    Create { new: NewNode, flags: OpenFlags },
    /// Makes and opens a file without a name (`O_TMPFILE`), which goes with its last holder unless [`Operation::Link`] gives it a
    /// name, as it may where it is `linkable`. The name in `new` means nothing. → [`Reply::Created`], counted
    CreateTemporary { new: NewNode, flags: OpenFlags, linkable: bool },
    /// At most `len_bytes` from `offset_bytes`; short at the end of the file. → [`Reply::Data`]
    Read { handle: HandleId, offset_bytes: u64, len_bytes: u32 },
    /// → [`Reply::Written`]. Appends at the end, whatever the offset says, for a handle opened so or with `append` set.
    /// See [`Payload`] for the shape of `data`. Takes the capabilities of a program away, unless it is a `write_back` of what the
    /// guest's cache took in earlier, perhaps before they were given.
    Write {
        handle: HandleId,
        offset_bytes: u64,
        data: Payload,
        append: bool,
        clear_set_id: bool,
        write_back: bool,
    },
    /// Copies from file to file, holes as holes: as many bytes as one request may, fewer at the end of the source. `EINVAL` where
    /// both ranges are of one file and overlap. Not atomic. → [`Reply::Written`]
    CopyRange { from: HandleId, from_bytes: u64, to: HandleId, to_bytes: u64, len_bytes: u64 },
    /// The handle was closed by one descriptor: range locks of `owner` on its file go. → [`Reply::Done`]
    Flush { handle: HandleId, owner: Option<LockOwner> },
    /// What keeps the range lock from being taken, if anything. → [`Reply::Lock`]
    GetLock { handle: HandleId, owner: LockOwner, range: LockRange, mode: LockMode },
    /// Takes an advisory lock, or gives it up where there is no `mode`. One that others keep out is `EAGAIN`, or waits; dropping
    /// the operation ends the waiting. `EDEADLK`, `ENOLCK`. A lock ends with its handle at the latest. → [`Reply::Done`]
    SetLock {
        handle: HandleId,
        owner: LockOwner,
        family: LockFamily,
        range: LockRange,
        mode: Option<LockMode>,
        /// For [`HeldLock::pid`].
        pid: u32,
        wait: bool,
    },
    /// Everything done to the file is on stable media. `data_only` may leave out times. → [`Reply::Done`]
    Sync { handle: HandleId, data_only: bool },
    /// The whole filesystem. → [`Reply::Done`]
    SyncAll,
    /// Last close. → [`Reply::Done`]
    Release { handle: HandleId },
    /// `ENXIO` at and beyond the end, and where no data follows. → [`Reply::Offset`]
    Seek { handle: HandleId, offset_bytes: u64, whence: Whence },
    /// Whether there is room is checked, not promised: the volume writes elsewhere each time. Collapsing and inserting are done
    /// completely or not at all, whatever crashes. → [`Reply::Done`]
    Allocate { handle: HandleId, offset_bytes: u64, len_bytes: u64, mode: AllocateMode },
    /// → [`Reply::Opened`]
    OpenDirectory { node: NodeId },
    /// Entries after `cookie` (0 for the start; a cookie stays valid while its entry comes and goes), at most `limit`.
    /// `.` and `..` come first, then the rest in an order of the directory's own. With `attributes`, each entry except
    /// `.` and `..` carries its attributes and counts one lookup: the front end must take back (by `Forget`) what it could not
    /// hand to the guest. No entries: the end. A directory that was removed answers `ENOENT`. → [`Reply::Entries`]
    ReadDirectory { handle: HandleId, cookie: u64, limit: usize, attributes: bool },
    /// → [`Reply::Done`]
    ReleaseDirectory { handle: HandleId },
    /// → [`Reply::Done`]
    SyncDirectory { handle: HandleId },
    /// → [`Reply::Statistics`]
    StatFs,
    /// → [`Reply::Done`]. An access control list sets the mode with it; `clear_set_gid` asks that this takes the set-gid bit away, as the caller
    /// is not in the owning group.
    SetXattr { node: NodeId, name: Vec<u8>, value: Vec<u8>, mode: SetXattrMode, clear_set_gid: bool },
    /// → [`Reply::Value`]; `ENODATA`
    GetXattr { node: NodeId, name: Vec<u8> },
    /// Names, each ended by a NUL. → [`Reply::Value`]
    ListXattr { node: NodeId },
    /// → [`Reply::Done`]
    RemoveXattr { node: NodeId, name: Vec<u8> },
}

impl Operation {
    /// The nodes that it names.
    pub(crate) fn nodes_mut(&mut self) -> [Option<&mut NodeId>; 2] {
        match self {
            Self::Lookup { parent: node, .. }
            | Self::LookupParent { node }
            | Self::Forget { node, .. }
            | Self::GetAttributes { node, .. }
            | Self::SetAttributes { node, .. }
            | Self::Access { node, .. }
            | Self::ReadLink { node }
            | Self::MakeSymlink { parent: node, .. }
            | Self::MakeNode { new: NewNode { parent: node, .. }, .. }
            | Self::MakeDirectory { new: NewNode { parent: node, .. } }
            | Self::Unlink { parent: node, .. }
            | Self::RemoveDirectory { parent: node, .. }
            | Self::Open { node, .. }
            | Self::Create { new: NewNode { parent: node, .. }, .. }
            | Self::CreateTemporary { new: NewNode { parent: node, .. }, .. }
            | Self::OpenDirectory { node }
            | Self::SetXattr { node, .. }
            | Self::GetXattr { node, .. }
            | Self::ListXattr { node }
            | Self::RemoveXattr { node, .. } => [Some(node), None],
            Self::Rename { parent, new_parent, .. } => [Some(parent), Some(new_parent)],
            Self::Link { node, parent, .. } => [Some(node), Some(parent)],
            Self::Read { .. }
            | Self::Write { .. }
            | Self::CopyRange { .. }
            | Self::Flush { .. }
            | Self::GetLock { .. }
            | Self::SetLock { .. }
            | Self::Sync { .. }
            | Self::SyncAll
            | Self::Release { .. }
            | Self::Seek { .. }
            | Self::Allocate { .. }
            | Self::ReadDirectory { .. }
            | Self::ReleaseDirectory { .. }
            | Self::SyncDirectory { .. }
            | Self::StatFs => [None, None],
        }
    }

    /// What it is called in logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lookup { .. } => "lookup",
            Self::LookupParent { .. } => "lookup parent",
            Self::Forget { .. } => "forget",
            Self::GetAttributes { .. } => "get attributes",
            Self::SetAttributes { .. } => "set attributes",
            Self::Access { .. } => "access",
            Self::ReadLink { .. } => "read link",
            Self::MakeSymlink { .. } => "make symlink",
            Self::MakeNode { .. } => "make node",
            Self::MakeDirectory { .. } => "make directory",
            Self::Unlink { .. } => "unlink",
            Self::RemoveDirectory { .. } => "remove directory",
            Self::Rename { .. } => "rename",
            Self::Link { .. } => "link",
            Self::Open { .. } => "open",
            Self::Create { .. } => "create",
            Self::CreateTemporary { .. } => "create temporary",
            Self::CopyRange { .. } => "copy range",
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush { .. } => "flush",
            Self::GetLock { .. } => "get lock",
            Self::SetLock { .. } => "set lock",
            Self::Sync { .. } => "sync",
            Self::SyncAll { .. } => "sync all",
            Self::Release { .. } => "release",
            Self::Seek { .. } => "seek",
            Self::Allocate { .. } => "allocate",
            Self::OpenDirectory { .. } => "open directory",
            Self::ReadDirectory { .. } => "read directory",
            Self::ReleaseDirectory { .. } => "release directory",
            Self::SyncDirectory { .. } => "sync directory",
            Self::StatFs { .. } => "statfs",
            Self::SetXattr { .. } => "set xattr",
            Self::GetXattr { .. } => "get xattr",
            Self::ListXattr { .. } => "list xattr",
            Self::RemoveXattr { .. } => "remove xattr",
        }
    }
}

/// The bytes of a write, copied out of the guest's memory once.
///
/// Pieces follow each other. A piece that lies on whole 4 KiB blocks of the file and is block-aligned in memory is stored
/// without another copy: [`Payload::lengths`] says how a front end best cuts a write.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    pub pieces: Vec<Slice>,
}

impl Payload {
    pub fn len_bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).sum()
    }

    /// The first `len_bytes`, or all where there are fewer.
    pub(crate) fn head(&self, mut len_bytes: usize) -> Payload {
        let mut pieces = Vec::new();
        for piece in &self.pieces {
            let part_bytes = piece.len().min(len_bytes);
            if part_bytes > 0 {
                pieces.push(piece.slice(0..part_bytes));
            }
            len_bytes -= part_bytes;
        }
        Payload { pieces }
    }

    /// Lengths of the head up to the first block boundary, of the whole blocks, and of the tail, for a write of `len_bytes` at
    /// `offset_bytes`. Any of them may be zero.
    pub fn lengths(offset_bytes: u64, len_bytes: usize) -> (usize, usize, usize) {
        const BLOCK: usize = ringfort_engine::buffer::BLOCK_BYTES;
        let into = (offset_bytes % BLOCK as u64) as usize;
        let head = if into == 0 { 0 } else { (BLOCK - into).min(len_bytes) };
        let body = (len_bytes - head) / BLOCK * BLOCK;
        (head, body, len_bytes - head - body)
    }
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// `.` and `..` included, hence no [`Name`].
    pub name: Vec<u8>,
    pub node: NodeId,
    pub kind: FileKind,
    /// Continue after this entry.
    pub cookie: u64,
    pub attributes: Option<Attributes>,
}

/// `statfs(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    pub block_bytes: u32,
    pub total_blocks: u64,
    pub free_blocks: u64,
    pub available_blocks: u64,
    pub total_inodes: u64,
    pub free_inodes: u64,
    pub name_bytes_max: u32,
}

/// Bytes of a read: verified, not yet copied to the guest. `zeros` stand for holes so that none are allocated.
#[derive(Clone, Debug)]
pub enum DataPiece {
    Bytes(Slice),
    Zeros { len_bytes: usize },
}

/// What an operation gives back.
#[derive(Clone, Debug)]
pub enum Reply {
    Done,
    Node(Attributes),
    Attributes(Attributes),
    Target(Vec<u8>),
    Opened(HandleId),
    Created { attributes: Attributes, handle: HandleId },
    Data(Vec<DataPiece>),
    Written { len_bytes: u32 },
    Offset(u64),
    Entries(Vec<DirectoryEntry>),
    Statistics(Statistics),
    Value(Vec<u8>),
    Lock(Option<HeldLock>),
}
