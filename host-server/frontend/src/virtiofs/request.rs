//! A request after decoding: what it says about itself, what it asks for, and how its reply is laid out.

use ringfort_filesystem::operation::{Credentials, HandleId, NodeId, Operation};

use super::abi;

/// Bytes of file data in one read or write: `max_pages` of 4 KiB.
pub const TRANSFER_BYTES_MAX: u32 = 1024 * 1024;

/// Offsets beyond are not representable in the guest's `loff_t`.
pub const OFFSET_MAX: u64 = i64::MAX as u64;

/// What every request says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub opcode: u32,
    /// Names the request in its reply.
    pub unique: u64,
    pub uid: u32,
    pub gid: u32,
    pub node: u64,
    /// Bytes after the header.
    pub body_bytes: usize,
}

impl Header {
    /// The guest's kernel has checked permissions (virtio-fs is mounted with `default_permissions`).
    pub fn credentials(&self) -> Credentials {
        Credentials { uid: self.uid, gid: self.gid, groups: Vec::new(), check_permissions: false }
    }

    /// Whether the request may wait for what others do, without a bound.
    pub fn may_wait(&self) -> bool {
        self.opcode == abi::FUSE_SETLKW
    }

    /// Whether the protocol forbids a reply.
    pub fn is_silent(&self) -> bool {
        matches!(self.opcode, abi::FUSE_FORGET | abi::FUSE_BATCH_FORGET | abi::FUSE_INTERRUPT)
    }
}

/// What a session has negotiated about the layout of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    /// Requests to set an extended attribute carry flags of their own.
    pub setxattr_ext: bool,
}

/// How the reply to an operation is laid out, with what is needed of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Empty,
    Entry,
    Attributes,
    Target,
    /// A file; `clear_set_id` asks to clear set-id bits of what was truncated by opening.
    Open {
        clear_set_id: bool,
        sync: Option<SyncWrites>,
    },
    OpenDirectory,
    Create {
        clear_set_id: bool,
        sync: Option<SyncWrites>,
    },
    Data {
        len_bytes: u32,
    },
    /// `sync`: this one write asks for durability, whatever its handle was opened with.
    Write {
        handle: HandleId,
        sync: Option<SyncWrites>,
    },
    Statistics,
    /// An attribute's value or a list of names; `room_bytes` 0 asks for the length only.
    Xattr {
        room_bytes: u32,
    },
    Entries {
        room_bytes: u32,
        plus: bool,
    },
    Offset,
    Lock,
    Copied,
    /// The handle is gone once this is done.
    Release {
        handle: HandleId,
    },
}

/// What `O_DSYNC` and `O_SYNC` ask of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncWrites {
    Data,
    All,
}

/// A decoded request.
#[derive(Debug)]
pub enum Request {
    Init(abi::InitIn),
    Destroy,
    /// Nothing to do.
    Interrupt,
    Forget(Vec<(NodeId, u64)>),
    Operation {
        operation: Operation,
        shape: Shape,
    },
}
