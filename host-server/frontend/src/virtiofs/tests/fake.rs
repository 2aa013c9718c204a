//! A filesystem of one flat directory, with what tests want to know of it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::buffer::Slice;
use ringfort_engine::engine::Engine;
use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{
    Attributes, Credentials, DataPiece, DirectoryEntry, FileKind, HandleId, NodeId, Operation, Payload,
    Reply, SessionId, Timestamp,
};

use crate::service::Service;

#[derive(Default)]
pub struct State {
    pub files: BTreeMap<u64, Vec<u8>>,
    pub names: BTreeMap<Vec<u8>, u64>,
    pub lookups: HashMap<u64, u64>,
    pub handles: HashSet<u64>,
    pub open_sessions: HashSet<u64>,
    pub closed_sessions: Vec<u64>,
    /// Every operation that arrived, by its debug name.
    pub seen: Vec<String>,
    pub payloads: Vec<Payload>,
    next: u64,
}

pub struct Fake {
    pub state: RefCell<State>,
    /// While set, operations wait.
    pub hold: Cell<bool>,
    pub under_way: Cell<usize>,
    pub under_way_max: Cell<usize>,
    engine: Rc<dyn Engine>,
}

impl Fake {
    pub fn new(engine: Rc<dyn Engine>) -> Rc<Self> {
        let state = State { next: 10, ..Default::default() };
        Rc::new(Self {
            state: RefCell::new(state),
            hold: Cell::new(false),
            under_way: Cell::new(0),
            under_way_max: Cell::new(0),
            engine,
        })
    }

    pub fn add_file(&self, name: &str, data: &[u8]) -> u64 {
        let mut state = self.state.borrow_mut();
        state.next += 1;
        let node = state.next;
        state.files.insert(node, data.to_vec());
        state.names.insert(name.as_bytes().to_vec(), node);
        node
    }
}

fn attributes(node: u64, kind: FileKind, size_bytes: u64) -> Attributes {
    Attributes {
        node: NodeId(node),
        generation: 7,
        kind,
        permissions: 0o644,
        link_count: 1,
        uid: 1000,
        gid: 1000,
        device: 0,
        size_bytes,
        sectors: size_bytes.div_ceil(512),
        accessed: Timestamp { seconds: -1, nanoseconds: 5 },
        modified: Timestamp { seconds: 2, nanoseconds: 6 },
        changed: Timestamp { seconds: 3, nanoseconds: 7 },
    }
}

impl State {
    fn file(&self, node: u64) -> Result<Attributes, Errno> {
        match node {
            1 => Ok(attributes(1, FileKind::Directory, 0)),
            node => {
                let data = self.files.get(&node).ok_or(Errno::ESTALE)?;
                Ok(attributes(node, FileKind::Regular, data.len() as u64))
            }
        }
    }

    fn counted(&mut self, node: u64) -> Result<Attributes, Errno> {
        let attributes = self.file(node)?;
        *self.lookups.entry(node).or_default() += 1;
        Ok(attributes)
    }

    /// A handle is its node with a high bit set.
    fn open(&mut self, node: u64) -> HandleId {
        self.handles.insert(node | 1 << 40);
        HandleId(node | 1 << 40)
    }

    fn opened(&self, handle: HandleId) -> Result<u64, Errno> {
        if self.handles.contains(&handle.0) { Ok(handle.0 & !(1 << 40)) } else { Err(Errno::EBADF) }
    }

    fn execute(&mut self, operation: Operation) -> Result<Reply, Errno> {
        Ok(match operation {
            Operation::Lookup { parent: NodeId(1), name } => {
                let node = *self.names.get(name.as_bytes()).ok_or(Errno::ENOENT)?;
                Reply::Node(self.counted(node)?)
            }
            Operation::Lookup { .. } => return Err(Errno::ESTALE),
            Operation::Forget { node, count } => {
                let left = self.lookups.entry(node.0).or_default();
                *left = left.checked_sub(count).expect("forgotten more than looked up");
                Reply::Done
            }
            Operation::GetAttributes { node, .. } => Reply::Attributes(self.file(node.0)?),
            Operation::SetAttributes { node, change, .. } => {
                if let Some(size_bytes) = change.size_bytes {
                    self.files.get_mut(&node.0).ok_or(Errno::ESTALE)?.resize(size_bytes as usize, 0);
                }
                Reply::Attributes(self.file(node.0)?)
            }
            Operation::Open { node, .. } => {
                self.file(node.0)?;
                Reply::Opened(self.open(node.0))
            }
            Operation::OpenDirectory { node } => Reply::Opened(self.open(node.0)),
            Operation::Create { new, .. } => {
                self.next += 1;
                let node = self.next;
                self.files.insert(node, Vec::new());
                self.names.insert(new.name.as_bytes().to_vec(), node);
                Reply::Created { attributes: self.counted(node)?, handle: self.open(node) }
            }
            Operation::Read { handle, offset_bytes, len_bytes } => {
                let data = self.files.get(&self.opened(handle)?).ok_or(Errno::EBADF)?;
                let start = (offset_bytes as usize).min(data.len());
                let end = (start + len_bytes as usize).min(data.len());
                let zeros = data[start..end].iter().take_while(|&&byte| byte == 0).count();
                let mut pieces = vec![DataPiece::Zeros { len_bytes: zeros }];
                if start + zeros < end {
                    let bytes = Slice::copy_of(&data[start + zeros..end]).slice(0..end - start - zeros);
                    pieces.push(DataPiece::Bytes(bytes));
                }
                Reply::Data(pieces)
            }
            Operation::Write { handle, offset_bytes, data, .. } => {
                let file = self.opened(handle)?;
                let file = self.files.get_mut(&file).ok_or(Errno::EBADF)?;
                let bytes: Vec<u8> = data.pieces.iter().flat_map(|piece| piece.to_vec()).collect();
                let end = offset_bytes as usize + bytes.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[offset_bytes as usize..end].copy_from_slice(&bytes);
                self.payloads.push(data);
                Reply::Written { len_bytes: bytes.len() as u32 }
            }
            Operation::ReadDirectory { cookie, limit, attributes, .. } => {
                let names: Vec<_> =
                    self.names.clone().into_iter().skip(cookie as usize).take(limit).collect();
                let mut entries = Vec::new();
                for (position, (name, node)) in names.into_iter().enumerate() {
                    entries.push(DirectoryEntry {
                        name,
                        node: NodeId(node),
                        kind: FileKind::Regular,
                        cookie: cookie + position as u64 + 1,
                        attributes: if attributes { Some(self.counted(node)?) } else { None },
                    });
                }
                Reply::Entries(entries)
            }
            Operation::Release { handle } | Operation::ReleaseDirectory { handle } => {
                self.opened(handle)?;
                self.handles.remove(&handle.0);
                Reply::Done
            }
            Operation::ReadLink { .. } => Reply::Target(vec![b'x'; 100]),
            Operation::StatFs => Reply::Statistics(Default::default()),
            Operation::GetXattr { .. } => Reply::Value(vec![1, 2, 3]),
            _ => Reply::Done,
        })
    }
}

impl Service for Fake {
    async fn execute(
        &self,
        session: SessionId,
        _: &Credentials,
        operation: Operation,
    ) -> Result<Reply, Errno> {
        self.under_way.set(self.under_way.get() + 1);
        self.under_way_max.set(self.under_way_max.get().max(self.under_way.get()));
        while self.hold.get() {
            self.engine.sleep(Duration::from_millis(1)).await;
        }
        self.under_way.set(self.under_way.get() - 1);
        let mut state = self.state.borrow_mut();
        assert!(state.open_sessions.contains(&session.0), "an operation outside its session");
        let name = format!("{operation:?}");
        state.seen.push(name.split([' ', '{']).next().unwrap_or_default().to_owned());
        state.execute(operation)
    }

    async fn open_session(&self) -> SessionId {
        let mut state = self.state.borrow_mut();
        state.next += 1;
        let session = state.next;
        state.open_sessions.insert(session);
        SessionId(session)
    }

    async fn close_session(&self, session: SessionId) {
        let mut state = self.state.borrow_mut();
        assert!(state.open_sessions.remove(&session.0), "closed a session that was not open");
        state.closed_sessions.push(session.0);
        state.handles.clear();
        state.lookups.clear();
    }
}
