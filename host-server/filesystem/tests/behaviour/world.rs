//! A filesystem on a model volume, and a guest that uses it by path.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ringfort_engine::buffer::Slice;
use ringfort_engine::device::Device;
use ringfort_engine::engine::{Engine, MemoryOpen, Task};
use ringfort_engine::error::EngineError;
use ringfort_engine::memory::MemoryFile;
use ringfort_filesystem::operation::*;
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_reference::Errno;
use ringfort_store::address::ViewId;
use ringfort_store::model::{ModelSettings, ModelVolume};
use ringfort_store::volume::Volume;

/// Time that passes by being asked for, and chance from a seed. No devices.
pub struct ModelEngine {
    clock: Cell<u64>,
    random: Cell<u64>,
}

impl ModelEngine {
    pub fn new(seed: u64) -> Self {
        Self { clock: Cell::new(1_000_000_000), random: Cell::new(seed | 1) }
    }
}

/// What only a store does.
fn not_for_a_filesystem() -> ! {
    panic!("a filesystem reached for devices, memory files or tasks: only its volume may")
}

impl Engine for ModelEngine {
    fn open(&self, _: &Path, _: bool) -> Result<Rc<dyn Device>, EngineError> {
        not_for_a_filesystem()
    }

    fn create(&self, _: &Path, _: u64) -> Result<Rc<dyn Device>, EngineError> {
        not_for_a_filesystem()
    }

    fn extend(&self, _: &Path, _: u64) -> Result<(), EngineError> {
        not_for_a_filesystem()
    }

    fn memory_file(&self, _: &str, _: usize, _: MemoryOpen) -> Result<MemoryFile, EngineError> {
        not_for_a_filesystem()
    }

    fn remove_memory_file(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }

    fn monotonic(&self) -> Duration {
        self.wall_clock()
    }

    fn wall_clock(&self) -> Duration {
        self.clock.set(self.clock.get() + 1);
        Duration::from_nanos(self.clock.get())
    }

    fn random_u64(&self) -> u64 {
        let mut state = self.random.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.random.set(state);
        state
    }

    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        not_for_a_filesystem()
    }

    fn yield_now(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        let mut yielded = false;
        Box::pin(poll_fn(move |_| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            Poll::Pending
        }))
    }

    fn spawn(&self, _: Task) {
        not_for_a_filesystem()
    }
}

/// Runs one future to its end; one that never gets there is a deadlock.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..500_000_000_u64 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("nothing comes of this: a deadlock");
}

/// Runs futures side by side, in an order that the seed decides.
pub fn run_all(seed: u64, mut futures: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
    let mut context = Context::from_waker(Waker::noop());
    let mut random = seed | 1;
    let mut polls_left = 50_000_000_u64;
    while !futures.is_empty() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let index = (random >> 33) as usize % futures.len();
        if futures[index].as_mut().poll(&mut context).is_ready() {
            drop(futures.swap_remove(index));
        }
        polls_left -= 1;
        assert!(polls_left > 0, "{} tasks wait for each other", futures.len());
    }
}

pub type Fs = Filesystem<ModelVolume>;

pub async fn open(volume: Rc<ModelVolume>) -> Fs {
    let engine: Rc<dyn Engine> = Rc::new(ModelEngine::new(77));
    Filesystem::open(volume, engine, FilesystemOptions::default()).await.unwrap()
}

/// A new filesystem.
pub async fn make(settings: ModelSettings) -> Fs {
    let volume = Rc::new(ModelVolume::new(settings));
    Filesystem::format(&*volume, &ModelEngine::new(78)).await.unwrap();
    open(volume).await
}

/// One session that names files by path and forgets every node at once.
pub struct Guest<V: Volume = ModelVolume> {
    pub fs: Filesystem<V>,
    pub session: SessionId,
    pub credentials: Credentials,
    /// Names of the operations that were executed.
    pub seen: Rc<RefCell<BTreeSet<&'static str>>>,
}

impl<V: Volume> Clone for Guest<V> {
    fn clone(&self) -> Self {
        Self {
            fs: self.fs.clone(),
            credentials: self.credentials.clone(),
            seen: Rc::clone(&self.seen),
            ..*self
        }
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn split(path: &str) -> (&str, Name) {
    let (parent, last) = path.rsplit_once('/').unwrap();
    (parent, name(last))
}

pub fn flags(text: &str) -> OpenFlags {
    OpenFlags {
        read: text.contains('r'),
        write: text.contains('w'),
        append: text.contains('a'),
        truncate: text.contains('t'),
        exclusive: text.contains('x'),
        sync: text.contains('s'),
        data_sync: text.contains('d'),
    }
}

/// A pattern that tells every byte from its neighbours.
pub fn pattern(seed: u8, len_bytes: usize) -> Vec<u8> {
    (0..len_bytes)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8).wrapping_add(seed) | 1)
        .collect()
}

/// Cut as a front end cuts a write at `offset_bytes`.
pub fn payload(offset_bytes: u64, bytes: &[u8]) -> Payload {
    let (head, body, tail) = Payload::lengths(offset_bytes, bytes.len());
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for len_bytes in [head, body, tail] {
        let (piece, after) = rest.split_at(len_bytes);
        rest = after;
        if len_bytes > 0 {
            pieces.push(Slice::copy_of(piece).slice(0..len_bytes));
        }
    }
    Payload { pieces }
}

type Answer<T> = Result<T, Errno>;

/// What the reference calls an inode of this kind.
pub fn kind_of(kind: FileKind) -> ringfort_reference::FileKind {
    use ringfort_reference::FileKind as Kind;
    match kind {
        FileKind::Regular => Kind::Regular,
        FileKind::Directory => Kind::Directory,
        FileKind::Symlink => Kind::Symlink,
        FileKind::Fifo => Kind::Fifo,
        FileKind::Socket => Kind::Socket,
        FileKind::CharacterDevice => Kind::CharacterDevice,
        FileKind::BlockDevice => Kind::BlockDevice,
    }
}

/// What the reference calls this way to rename.
pub fn rename_mode_of(mode: RenameMode) -> ringfort_reference::RenameMode {
    use ringfort_reference::RenameMode as Mode;
    match mode {
        RenameMode::Replace => Mode::Replace,
        RenameMode::NoReplace => Mode::NoReplace,
        RenameMode::Exchange => Mode::Exchange,
        RenameMode::Whiteout => panic!("the reference knows no whiteouts"),
    }
}

/// What the reference calls this way to allocate.
pub fn allocate_mode_of(mode: AllocateMode) -> ringfort_reference::AllocateMode {
    use ringfort_reference::AllocateMode as Mode;
    match mode {
        AllocateMode::Allocate { keep_size } => Mode::Allocate { keep_size },
        AllocateMode::PunchHole => Mode::PunchHole,
        AllocateMode::ZeroRange { keep_size } => Mode::ZeroRange { keep_size },
        AllocateMode::CollapseRange => Mode::CollapseRange,
        AllocateMode::InsertRange => Mode::InsertRange,
    }
}

impl<V: Volume> Guest<V> {
    pub fn new(fs: &Filesystem<V>) -> Self {
        let session = fs.open_session();
        Self { fs: fs.clone(), session, credentials: Credentials::root(), seen: Rc::default() }
    }

    /// A guest whose filesystem is a clone, or a snapshot.
    pub fn in_view(fs: &Filesystem<V>, view: ViewId) -> Self {
        let session = fs.open_session_in(view);
        Self { fs: fs.clone(), session, credentials: Credentials::root(), seen: Rc::default() }
    }

    /// The same session, on behalf of a user whose permissions are checked.
    pub fn user(&self, uid: u32, gid: u32) -> Self {
        let credentials = Credentials { uid, gid, groups: Vec::new(), check_permissions: true };
        Self { credentials, ..self.clone() }
    }

    pub async fn execute(&self, operation: Operation) -> Answer<Reply> {
        self.seen.borrow_mut().insert(operation.name());
        let executed = self.fs.execute(self.session, &self.credentials, operation).await;
        executed.map_err(|errno| Errno::of(errno.raw()))
    }

    pub async fn done(&self, operation: Operation) -> Answer<()> {
        match self.execute(operation).await? {
            Reply::Done => Ok(()),
            other => panic!("{other:?}"),
        }
    }

    pub async fn forget(&self, node: NodeId) {
        self.done(Operation::Forget { node, count: 1 }).await.unwrap();
    }

    pub async fn node_reply(&self, operation: Operation) -> Answer<Attributes> {
        match self.execute(operation).await? {
            Reply::Node(attributes) => {
                self.forget(attributes.node).await;
                Ok(attributes)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Looks up and keeps the lookup.
    pub async fn lookup_held(&self, parent: NodeId, name: &Name) -> Answer<Attributes> {
        match self.execute(Operation::Lookup { parent, name: name.clone() }).await? {
            Reply::Node(attributes) => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    pub async fn resolve(&self, path: &str) -> Answer<NodeId> {
        let mut node = NodeId::ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            node = self.node_reply(Operation::Lookup { parent: node, name: name(part) }).await?.node;
        }
        Ok(node)
    }

    pub async fn stat(&self, path: &str) -> Answer<Attributes> {
        let node = self.resolve(path).await?;
        self.stat_node(node).await
    }

    pub async fn stat_node(&self, node: NodeId) -> Answer<Attributes> {
        match self.execute(Operation::GetAttributes { node, handle: None }).await? {
            Reply::Attributes(attributes) => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    pub async fn new_node(&self, path: &str, permissions: u16) -> Answer<NewNode> {
        let (parent, name) = split(path);
        Ok(NewNode { parent: self.resolve(parent).await?, name, permissions, umask: 0 })
    }

    pub async fn mkdir_mode(&self, path: &str, permissions: u16) -> Answer<Attributes> {
        let new = self.new_node(path, permissions).await?;
        self.node_reply(Operation::MakeDirectory { new }).await
    }

    pub async fn mkdir(&self, path: &str) -> Answer<Attributes> {
        self.mkdir_mode(path, 0o755).await
    }

    pub async fn mknod(&self, path: &str, kind: FileKind, device: u32) -> Answer<Attributes> {
        let new = self.new_node(path, 0o644).await?;
        self.node_reply(Operation::MakeNode { new, kind, device }).await
    }

    pub async fn symlink(&self, path: &str, target: &[u8]) -> Answer<Attributes> {
        let (parent, name) = split(path);
        let parent = self.resolve(parent).await?;
        self.node_reply(Operation::MakeSymlink { parent, name, target: target.to_vec() }).await
    }

    pub async fn readlink(&self, path: &str) -> Answer<Vec<u8>> {
        let node = self.resolve(path).await?;
        match self.execute(Operation::ReadLink { node }).await? {
            Reply::Target(target) => Ok(target),
            other => panic!("{other:?}"),
        }
    }

    pub async fn link(&self, from: &str, to: &str) -> Answer<Attributes> {
        let node = self.resolve(from).await?;
        let (parent, name) = split(to);
        let parent = self.resolve(parent).await?;
        self.node_reply(Operation::Link { node, parent, name }).await
    }

    pub async fn unlink(&self, path: &str) -> Answer<()> {
        let (parent, name) = split(path);
        let parent = self.resolve(parent).await?;
        self.done(Operation::Unlink { parent, name }).await
    }

    pub async fn rmdir(&self, path: &str) -> Answer<()> {
        let (parent, name) = split(path);
        let parent = self.resolve(parent).await?;
        self.done(Operation::RemoveDirectory { parent, name }).await
    }

    pub async fn rename_mode(&self, from: &str, to: &str, mode: RenameMode) -> Answer<()> {
        let (parent, old) = split(from);
        let parent = self.resolve(parent).await?;
        let (new_parent, new_name) = split(to);
        let new_parent = self.resolve(new_parent).await?;
        self.done(Operation::Rename { parent, name: old, new_parent, new_name, mode }).await
    }

    pub async fn rename(&self, from: &str, to: &str) -> Answer<()> {
        self.rename_mode(from, to, RenameMode::Replace).await
    }

    pub async fn create_mode(&self, path: &str, how: &str, permissions: u16) -> Answer<HandleId> {
        let new = self.new_node(path, permissions).await?;
        match self.execute(Operation::Create { new, flags: flags(how) }).await? {
            Reply::Created { attributes, handle } => {
                self.forget(attributes.node).await;
                Ok(handle)
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn create(&self, path: &str) -> Answer<HandleId> {
        self.create_mode(path, "rw", 0o644).await
    }

    pub async fn open(&self, path: &str, how: &str) -> Answer<HandleId> {
        let node = self.resolve(path).await?;
        match self.execute(Operation::Open { node, flags: flags(how) }).await? {
            Reply::Opened(handle) => Ok(handle),
            other => panic!("{other:?}"),
        }
    }

    pub async fn close(&self, handle: HandleId) -> Answer<()> {
        self.done(Operation::Release { handle }).await
    }

    pub async fn write_at(&self, handle: HandleId, offset_bytes: u64, bytes: &[u8]) -> Answer<u32> {
        let data = payload(offset_bytes, bytes);
        let write = Operation::Write {
            handle,
            offset_bytes,
            data,
            append: false,
            clear_set_id: false,
            write_back: false,
        };
        match self.execute(write).await? {
            Reply::Written { len_bytes } => Ok(len_bytes),
            other => panic!("{other:?}"),
        }
    }

    pub async fn read_at(&self, handle: HandleId, offset_bytes: u64, len_bytes: u32) -> Answer<Vec<u8>> {
        match self.execute(Operation::Read { handle, offset_bytes, len_bytes }).await? {
            Reply::Data(pieces) => {
                let mut bytes = Vec::new();
                for piece in pieces {
                    match piece {
                        DataPiece::Bytes(slice) => bytes.extend_from_slice(&slice),
                        DataPiece::Zeros { len_bytes } => bytes.resize(bytes.len() + len_bytes, 0),
                    }
                }
                Ok(bytes)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Makes or overwrites a whole file.
    pub async fn put(&self, path: &str, bytes: &[u8]) -> Answer<()> {
        let handle = self.create_mode(path, "rwt", 0o644).await?;
        let result = self.write_at(handle, 0, bytes).await;
        self.close(handle).await?;
        result.map(|len| assert_eq!(len as usize, bytes.len()))
    }

    pub async fn get(&self, path: &str) -> Answer<Vec<u8>> {
        let handle = self.open(path, "r").await?;
        let bytes = self.read_at(handle, 0, u32::MAX).await;
        self.close(handle).await?;
        bytes
    }

    pub async fn change(&self, path: &str, change: SetAttributes) -> Answer<Attributes> {
        let node = self.resolve(path).await?;
        match self.execute(Operation::SetAttributes { node, handle: None, change }).await? {
            Reply::Attributes(attributes) => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    pub async fn truncate(&self, path: &str, size_bytes: u64) -> Answer<Attributes> {
        self.change(path, SetAttributes { size_bytes: Some(size_bytes), ..Default::default() }).await
    }

    pub async fn chmod(&self, path: &str, permissions: u16) -> Answer<Attributes> {
        self.change(path, SetAttributes { permissions: Some(permissions), ..Default::default() }).await
    }

    pub async fn chown(&self, path: &str, uid: Option<u32>, gid: Option<u32>) -> Answer<Attributes> {
        self.change(path, SetAttributes { uid, gid, ..Default::default() }).await
    }

    /// All entries but `.` and `..`, `at_once` at a time.
    pub async fn list_by(&self, path: &str, at_once: usize) -> Answer<Vec<DirectoryEntry>> {
        let node = self.resolve(path).await?;
        let handle = match self.execute(Operation::OpenDirectory { node }).await? {
            Reply::Opened(handle) => handle,
            other => panic!("{other:?}"),
        };
        let (mut all, mut cookie) = (Vec::new(), 0);
        loop {
            let list = Operation::ReadDirectory { handle, cookie, limit: at_once, attributes: false };
            let Reply::Entries(entries) = self.execute(list).await? else { panic!() };
            let Some(last) = entries.last() else { break };
            cookie = last.cookie;
            all.extend(entries);
        }
        self.done(Operation::ReleaseDirectory { handle }).await?;
        assert_eq!((&all[0].name[..], &all[1].name[..]), (&b"."[..], &b".."[..]));
        all.drain(..2);
        Ok(all)
    }

    /// Sorted names.
    pub async fn list(&self, path: &str) -> Answer<Vec<String>> {
        let entries = self.list_by(path, 7).await?;
        let mut names: Vec<_> =
            entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect();
        names.sort();
        Ok(names)
    }

    pub async fn set_xattr(&self, path: &str, name: &[u8], value: &[u8], mode: SetXattrMode) -> Answer<()> {
        let (node, name, value) = (self.resolve(path).await?, name.to_vec(), value.to_vec());
        self.done(Operation::SetXattr { node, name, value, mode, clear_set_gid: false }).await
    }

    pub async fn remove_xattr(&self, path: &str, name: &[u8]) -> Answer<()> {
        let node = self.resolve(path).await?;
        self.done(Operation::RemoveXattr { node, name: name.to_vec() }).await
    }

    async fn value(&self, operation: Operation) -> Answer<Vec<u8>> {
        match self.execute(operation).await? {
            Reply::Value(value) => Ok(value),
            other => panic!("{other:?}"),
        }
    }

    pub async fn xattr(&self, path: &str, name: &[u8]) -> Answer<Vec<u8>> {
        let node = self.resolve(path).await?;
        self.value(Operation::GetXattr { node, name: name.to_vec() }).await
    }

    /// Names, each ended by a NUL.
    pub async fn xattrs(&self, path: &str) -> Answer<Vec<u8>> {
        let node = self.resolve(path).await?;
        self.value(Operation::ListXattr { node }).await
    }
}
