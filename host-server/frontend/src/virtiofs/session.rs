//! The FUSE conversation of one guest: negotiation, then each request to an operation and its reply to an answer.
//!
//! A guest has at most one session. It begins with INIT and ends with DESTROY, with another INIT (the guest mounted
//! anew or rebooted) or with the connection; ending it waits for its operations and gives up its handles and lookups.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{
    Attributes, Credentials, DirectoryEntry, FileKind, HandleId, NodeId, OpenFlags, Operation, Reply,
    SessionId, SetAttributes,
};
use zerocopy::IntoBytes;

use super::abi;
use super::encode::{self, Answer, Validity};
use super::invitation::Invitations;
use super::request::{Dialect, Header, Request, Shape, SyncWrites, TRANSFER_BYTES_MAX};
use crate::metrics::Metrics;
use crate::pending::Pending;
use crate::rate_limit::GuestLog;
use crate::service::Service;

/// The oldest protocol that is spoken: before it, virtio-fs did not exist.
const MINOR_MIN: u32 = 31;

/// Pages of 4 KiB in one request: the most that a kernel accepts without privileges, and [`TRANSFER_BYTES_MAX`].
const PAGES_MAX: u16 = (TRANSFER_BYTES_MAX / 4096) as u16;

/// Background requests (readahead, writeback, asynchronous I/O) that a guest keeps in flight; beyond three quarters it
/// considers itself congested.
const BACKGROUND_REQUESTS_MAX: u16 = 256;

/// How long guests may rely on what they know, with virtiofsd's names and meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePolicy {
    /// Nothing is cached: files are read and written directly, names and attributes asked for each time.
    Never,
    /// Close to open: whoever opens a file sees what was written before others closed it. Names of files are asked for each
    /// time, which brings their attributes along; attributes and directories are believed for a second, file data from open
    /// to close.
    #[default]
    Auto,
    /// The guest assumes that nobody else changes anything.
    Always,
}

impl CachePolicy {
    fn validity(self, kind: FileKind) -> Validity {
        let attribute_seconds = match self {
            Self::Never => 0,
            Self::Auto => 1,
            Self::Always => 86_400,
        };
        // A guest opens what a name that it believes led to, and believes attributes that it has: only asking for the name
        // makes it see at open that the file has grown, or is another.
        let asks_for_names = self == Self::Auto && kind != FileKind::Directory;
        Validity { entry_seconds: if asks_for_names { 0 } else { attribute_seconds }, attribute_seconds }
    }

    fn file_open_flags(self) -> u32 {
        match self {
            Self::Never => abi::FOPEN_DIRECT_IO | abi::FOPEN_PARALLEL_DIRECT_WRITES,
            Self::Auto => 0,
            Self::Always => abi::FOPEN_KEEP_CACHE,
        }
    }

    fn directory_open_flags(self) -> u32 {
        match self {
            Self::Never | Self::Auto => 0,
            Self::Always => abi::FOPEN_KEEP_CACHE | abi::FOPEN_CACHE_DIR,
        }
    }

    fn init_flags(self) -> u32 {
        let always = abi::FUSE_ASYNC_READ
            | abi::FUSE_POSIX_LOCKS
            | abi::FUSE_ATOMIC_O_TRUNC
            | abi::FUSE_BIG_WRITES
            | abi::FUSE_FLOCK_LOCKS
            | abi::FUSE_ASYNC_DIO
            | abi::FUSE_PARALLEL_DIROPS
            | abi::FUSE_MAX_PAGES
            | abi::FUSE_HANDLE_KILLPRIV_V2
            | abi::FUSE_POSIX_ACL
            | abi::FUSE_DONT_MASK
            | abi::FUSE_SETXATTR_EXT;
        // Where names are asked for each time, it is not worth to send attributes with lists of them.
        let plus = abi::FUSE_DO_READDIRPLUS | abi::FUSE_READDIRPLUS_AUTO;
        always
            | match self {
                Self::Never => 0,
                Self::Auto => abi::FUSE_AUTO_INVAL_DATA | abi::FUSE_CACHE_SYMLINKS,
                Self::Always => plus | abi::FUSE_CACHE_SYMLINKS,
            }
    }
}

/// What guests keep to themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caching {
    pub policy: CachePolicy,
    /// The guest's kernel gathers writes and answers them itself, and knows size and times of what it has written.
    pub writeback: bool,
}

impl Caching {
    fn init_flags(self) -> u32 {
        self.policy.init_flags() | if self.writeback { abi::FUSE_WRITEBACK_CACHE } else { 0 }
    }
}

/// A negotiated session.
struct Session {
    id: SessionId,
    /// The guest writes back.
    writeback: bool,
    dialect: Dialect,
    /// Its operations under way.
    pending: Pending,
    /// Handles whose every write is durable already, as they were opened so.
    synchronous: RefCell<HashMap<HandleId, SyncWrites>>,
}

/// One guest's conversation with the filesystem.
pub struct Conversation<S> {
    service: Rc<S>,
    caching: Caching,
    metrics: Arc<Metrics>,
    log: Rc<GuestLog>,
    invitations: Invitations,
    session: RefCell<Option<Rc<Session>>>,
}

impl<S: Service> Conversation<S> {
    pub fn new(
        service: Rc<S>,
        caching: Caching,
        metrics: Arc<Metrics>,
        log: Rc<GuestLog>,
        invitations: Invitations,
    ) -> Self {
        Self { service, caching, metrics, log, invitations, session: RefCell::new(None) }
    }

    /// Carries out a request. None where the protocol forbids a reply.
    pub async fn answer(&self, header: &Header, request: Request) -> Option<Result<Answer, Errno>> {
        let (operation, shape) = match request {
            Request::Interrupt => return None,
            Request::Init(init) => return Some(self.init(&init).await),
            Request::Destroy => {
                self.end().await;
                return Some(Ok(Answer::empty()));
            }
            Request::Forget(nodes) => {
                if let Some(session) = self.current() {
                    let _pending = session.pending.enter();
                    self.forget(&session, nodes).await;
                }
                return None;
            }
            Request::Operation { operation, shape } => (operation, shape),
        };
        let Some(session) = self.current() else { return Some(Err(Errno::EIO)) };
        let _pending = session.pending.enter();
        Some(self.operate(&session, &header.credentials(), operation, shape).await)
    }

    /// Ends the session, if there is one, once its operations are done.
    pub async fn end(&self) {
        let ended = self.session.take();
        if let Some(session) = ended {
            self.metrics.in_session.set(false);
            session.pending.idle().await;
            self.service.close_session(session.id).await;
        }
    }

    /// How requests are laid out.
    pub fn dialect(&self) -> Dialect {
        self.session.borrow().as_ref().map_or(Dialect::default(), |session| session.dialect)
    }

    fn current(&self) -> Option<Rc<Session>> {
        self.session.borrow().clone()
    }

    async fn init(&self, init: &abi::InitIn) -> Result<Answer, Errno> {
        let mut out = abi::InitOut {
            major: abi::FUSE_KERNEL_VERSION.into(),
            minor: abi::FUSE_KERNEL_MINOR_VERSION.into(),
            ..Default::default()
        };
        let (major, minor) = (init.major.get(), init.minor.get());
        if major > abi::FUSE_KERNEL_VERSION {
            // The guest asks again in our version.
            return Ok(Answer::Bytes(out.as_bytes().to_vec()));
        }
        if major < abi::FUSE_KERNEL_VERSION || minor < MINOR_MIN {
            self.log.warn(format_args!(
                "the guest speaks FUSE {major}.{minor}, 7.{MINOR_MIN} is the oldest supported: use a newer guest kernel"
            ));
            return Err(Errno::EPROTO);
        }
        self.end().await;
        let granted = init.flags.get() & self.caching.init_flags();
        let session = Session {
            id: self.service.open_session().await,
            writeback: granted & abi::FUSE_WRITEBACK_CACHE != 0,
            dialect: Dialect { setxattr_ext: granted & abi::FUSE_SETXATTR_EXT != 0 },
            pending: Pending::default(),
            synchronous: RefCell::default(),
        };
        let displaced = self.session.replace(Some(Rc::new(session)));
        if let Some(displaced) = displaced {
            // Two INITs at once: the later stands.
            displaced.pending.idle().await;
            self.service.close_session(displaced.id).await;
        }
        self.invitations.renew();
        self.metrics.sessions.add(1);
        self.metrics.in_session.set(true);
        out.minor = minor.min(abi::FUSE_KERNEL_MINOR_VERSION).into();
        out.max_readahead = init.max_readahead.get().min(TRANSFER_BYTES_MAX).into();
        out.flags = granted.into();
        out.max_background = BACKGROUND_REQUESTS_MAX.into();
        out.congestion_threshold = (BACKGROUND_REQUESTS_MAX / 4 * 3).into();
        out.max_write = TRANSFER_BYTES_MAX.into();
        out.time_gran = 1.into();
        out.max_pages = PAGES_MAX.into();
        Ok(Answer::Bytes(out.as_bytes().to_vec()))
    }

    async fn forget(&self, session: &Session, nodes: Vec<(NodeId, u64)>) {
        for (node, count) in nodes {
            let forget = Operation::Forget { node, count };
            // Never fails, says its contract; and there is nobody to tell.
            let _ = self.service.execute(session.id, &Credentials::root(), forget).await;
        }
    }

    async fn operate(
        &self,
        session: &Session,
        credentials: &Credentials,
        operation: Operation,
        shape: Shape,
    ) -> Result<Answer, Errno> {
        let operation = if session.writeback { of_writeback(operation) } else { operation };
        let opened_node = match &operation {
            Operation::Open { node, .. } => Some(*node),
            _ => None,
        };
        if let Shape::Release { handle } = shape {
            session.synchronous.borrow_mut().remove(&handle);
        }
        let reply = match self.invitations.answer(credentials, &operation) {
            Some(reply) => reply?,
            None => self.service.execute(session.id, credentials, operation).await?,
        };
        match (shape, reply) {
            (Shape::Empty | Shape::Release { .. }, Reply::Done) => Ok(Answer::empty()),
            (Shape::Entry, Reply::Node(attributes)) => {
                Ok(encode::entry(&attributes, self.validity(&attributes)))
            }
            (Shape::Attributes, Reply::Attributes(attributes)) => {
                Ok(encode::attributes(&attributes, self.validity(&attributes)))
            }
            (Shape::Target, Reply::Target(target)) => Ok(Answer::Bytes(target)),
            (Shape::Open { clear_set_id, sync }, Reply::Opened(handle)) => {
                if let (true, Some(node)) = (clear_set_id, opened_node) {
                    self.clear_set_id(session, credentials, node, handle).await?;
                }
                session.remember(handle, sync);
                Ok(encode::opened(handle, self.caching.policy.file_open_flags()))
            }
            (Shape::OpenDirectory, Reply::Opened(handle)) => {
                Ok(encode::opened(handle, self.caching.policy.directory_open_flags()))
            }
            (Shape::Create { clear_set_id, sync }, Reply::Created { attributes, handle }) => {
                if clear_set_id
                    && let Err(errno) = self.clear_set_id(session, credentials, attributes.node, handle).await
                {
                    self.forget(session, vec![(attributes.node, 1)]).await;
                    return Err(errno);
                }
                session.remember(handle, sync);
                let validity = self.validity(&attributes);
                Ok(encode::created(&attributes, validity, handle, self.caching.policy.file_open_flags()))
            }
            (Shape::Data { len_bytes }, Reply::Data(pieces)) => {
                let answer = Answer::Data(pieces);
                if answer.len_bytes() > len_bytes as usize {
                    return Err(mismatch("more data than was asked for"));
                }
                self.metrics.read_bytes.add(answer.len_bytes() as u64);
                Ok(answer)
            }
            (Shape::Write { handle, sync }, Reply::Written { len_bytes }) => {
                if let Some(data_only) = session.sync_after_write(handle, sync) {
                    let sync = Operation::Sync { handle, data_only };
                    self.service.execute(session.id, credentials, sync).await?;
                }
                self.metrics.written_bytes.add(u64::from(len_bytes));
                Ok(encode::written(len_bytes))
            }
            (Shape::Statistics, Reply::Statistics(statistics)) => Ok(encode::statistics(&statistics)),
            (Shape::Xattr { room_bytes }, Reply::Value(value)) => encode::xattr(value, room_bytes),
            (Shape::Entries { room_bytes, plus }, Reply::Entries(entries)) => {
                self.pack_entries(session, &entries, room_bytes as usize, plus).await
            }
            (Shape::Offset, Reply::Offset(offset_bytes)) => Ok(encode::offset(offset_bytes)),
            (Shape::Copied, Reply::Written { len_bytes }) => {
                self.metrics.written_bytes.add(u64::from(len_bytes));
                Ok(encode::written(len_bytes))
            }
            (Shape::Lock, Reply::Lock(held)) => Ok(encode::lock(held.as_ref())),
            _ => Err(mismatch("another kind of reply than the operation has")),
        }
    }

    fn validity(&self, attributes: &Attributes) -> Validity {
        self.caching.policy.validity(attributes.kind)
    }

    /// What opening with truncation left set on behalf of a caller who may not keep it.
    async fn clear_set_id(
        &self,
        session: &Session,
        credentials: &Credentials,
        node: NodeId,
        handle: HandleId,
    ) -> Result<(), Errno> {
        let change = SetAttributes { clear_set_id: true, ..Default::default() };
        let operation = Operation::SetAttributes { node, handle: Some(handle), change };
        if let Err(errno) = self.service.execute(session.id, credentials, operation).await {
            // The guest never hears of the handle.
            let _ = self.service.execute(session.id, credentials, Operation::Release { handle }).await;
            return Err(errno);
        }
        Ok(())
    }

    /// Packs what fits and takes back the lookups of the rest.
    async fn pack_entries(
        &self,
        session: &Session,
        list: &[DirectoryEntry],
        room_bytes: usize,
        plus: bool,
    ) -> Result<Answer, Errno> {
        let (body, packed) = encode::entries(list, room_bytes, plus, |attributes| self.validity(attributes));
        let left_out = list.iter().skip(packed).filter_map(|entry| entry.attributes.as_ref());
        self.forget(session, left_out.map(|attributes| (attributes.node, 1)).collect()).await;
        if packed == 0 && !list.is_empty() {
            // An empty body would say that the directory ends here.
            return Err(Errno::EINVAL);
        }
        Ok(Answer::Bytes(body))
    }
}

impl Session {
    fn remember(&self, handle: HandleId, sync: Option<SyncWrites>) {
        if let Some(sync) = sync {
            self.synchronous.borrow_mut().insert(handle, sync);
        }
    }

    /// Whether a write that asked for `wanted` needs a sync of its own, and if so whether of data only.
    fn sync_after_write(&self, handle: HandleId, wanted: Option<SyncWrites>) -> Option<bool> {
        let given = self.synchronous.borrow().get(&handle).copied();
        match (wanted, given) {
            (None, _) | (_, Some(SyncWrites::All)) | (Some(SyncWrites::Data), Some(SyncWrites::Data)) => None,
            (Some(wanted), _) => Some(wanted == SyncWrites::Data),
        }
    }
}

/// A guest that writes back reads what a write leaves of a page, whatever the file was opened for, and places appended data
/// itself: its size of the file is the newest.
fn of_writeback(operation: Operation) -> Operation {
    let readable = |flags: OpenFlags| OpenFlags { read: flags.read || flags.write, ..flags };
    match operation {
        Operation::Open { node, flags } => Operation::Open { node, flags: readable(flags) },
        Operation::Create { new, flags } => Operation::Create { new, flags: readable(flags) },
        Operation::CreateTemporary { new, flags, linkable } => {
            Operation::CreateTemporary { new, flags: readable(flags), linkable }
        }
        Operation::Write { handle, offset_bytes, data, append: _, clear_set_id, write_back } => {
            Operation::Write { handle, offset_bytes, data, append: false, clear_set_id, write_back }
        }
        other => other,
    }
}

fn mismatch(what: &str) -> Errno {
    tracing::error!("the filesystem gave {what}: a fault of ringfort, please report it");
    Errno::EIO
}
