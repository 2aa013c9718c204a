//! A volume to measure: real component files, and its filesystem driven in this process.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ringfort_engine::buffer::Slice;
use ringfort_engine::device::DeviceCounters;
use ringfort_engine::engine::Engine;
use ringfort_engine::local::{self, LocalOptions};
use ringfort_filesystem::operation::{
    Credentials, DataPiece, HandleId, Name, NewNode, NodeId, OpenFlags, Operation, Payload, Reply, SessionId,
};
use ringfort_filesystem::{Filesystem, FilesystemOptions};
use ringfort_store::create::{CreateOptions, Preallocation};
use ringfort_store::status::StatusReport;
use ringfort_store::store::{OpenOptions, Store};

/// Data 4+2 on six files; the first three carry the metadata mirrors.
pub const COMPONENTS: usize = 6;

/// Component files in a folder of the caller's.
pub struct VolumeFiles {
    folder: PathBuf,
}

impl VolumeFiles {
    pub fn create(folder: PathBuf, size_bytes: u64, log_bytes: u64) -> Result<Self> {
        let files = Self { folder };
        let options = CreateOptions {
            log_bytes: Some(log_bytes),
            // As the rivals' files are.
            preallocation: Preallocation::Full,
            ..CreateOptions::new(files.components(), size_bytes)
        };
        on_engine(async |engine| {
            let store = Store::create(Rc::clone(&engine), &options).await?;
            Filesystem::format(&store, &*engine).await?;
            store.close().await?;
            Ok(())
        })?;
        Ok(files)
    }

    /// Files that were created before.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub fn components(&self) -> Vec<PathBuf> {
        (0..COMPONENTS).map(|index| self.folder.join(format!("component-{index}"))).collect()
    }

    /// Takes components away for good.
    pub fn lose(&self, lost: &[usize]) -> Result<()> {
        let components = self.components();
        for path in lost.iter().map(|index| &components[*index]) {
            std::fs::remove_file(path).with_context(|| format!("take away {}", path.display()))?;
        }
        Ok(())
    }

    /// Opens the volume for `work`. What `work` does not close is left as a killed process leaves it.
    pub fn open<T>(&self, work: impl AsyncFnOnce(Rc<Mounted>) -> Result<T>) -> Result<T> {
        on_engine(async |engine| {
            let began = Instant::now();
            let options = OpenOptions::default();
            let (store, _) = Store::open(Rc::clone(&engine), &self.components(), &options).await?;
            let volume = Rc::new(store.clone());
            let filesystem =
                Filesystem::open(volume, Rc::clone(&engine), FilesystemOptions::default()).await?;
            let session = filesystem.open_session();
            let opened_in = began.elapsed();
            work(Rc::new(Mounted { engine, store, filesystem, session, opened_in })).await
        })
    }
}

fn on_engine<T>(work: impl AsyncFnOnce(Rc<dyn Engine>) -> Result<T>) -> Result<T> {
    let runtime = local::start(LocalOptions::default())?;
    let engine = runtime.engine();
    runtime.block_on(work(engine))
}

/// An open volume with a session of its own.
pub struct Mounted {
    pub engine: Rc<dyn Engine>,
    pub store: Store,
    filesystem: Filesystem<Store>,
    session: SessionId,
    /// How long opening took, recovery included.
    pub opened_in: Duration,
}

/// What the devices and the store count, at one moment.
#[derive(Clone, Copy)]
pub struct Counts {
    pub log_and_stripe_bytes: u64,
    pub metadata_log_bytes: u64,
    pub user_bytes: u64,
    pub device: DeviceCounters,
}

impl Counts {
    pub fn since(self, earlier: Self) -> Self {
        Self {
            log_and_stripe_bytes: self.log_and_stripe_bytes - earlier.log_and_stripe_bytes,
            metadata_log_bytes: self.metadata_log_bytes - earlier.metadata_log_bytes,
            user_bytes: self.user_bytes - earlier.user_bytes,
            device: self.device - earlier.device,
        }
    }
}

impl Mounted {
    pub fn counts(&self) -> Counts {
        let StatusReport { counters, tree, .. } = self.store.status();
        let mut device = DeviceCounters::default();
        for counters in tree.components.iter().filter_map(|component| component.device) {
            device += counters;
        }
        Counts {
            log_and_stripe_bytes: counters.log_bytes + counters.stripe_bytes,
            metadata_log_bytes: counters.metadata_log_bytes,
            user_bytes: counters.user_bytes,
            device,
        }
    }

    async fn execute(&self, operation: Operation) -> Result<Reply> {
        let doing = operation.name();
        self.filesystem.execute(self.session, &Credentials::root(), operation).await.context(doing)
    }

    /// Opens a file in the root directory, empty and new.
    pub async fn create_file(&self, name: &str) -> Result<HandleId> {
        let file = Name::new(name.as_bytes())?;
        // There is none the first time.
        let _ = self.execute(Operation::Unlink { parent: NodeId::ROOT, name: file.clone() }).await;
        let new = NewNode { parent: NodeId::ROOT, name: file, permissions: 0o600, umask: 0 };
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        match self.execute(Operation::Create { new, flags }).await? {
            Reply::Created { handle, .. } => Ok(handle),
            other => bail!("create answered with {other:?}"),
        }
    }

    pub async fn open_file(&self, name: &str) -> Result<HandleId> {
        let name = Name::new(name.as_bytes())?;
        let Reply::Node(found) = self.execute(Operation::Lookup { parent: NodeId::ROOT, name }).await? else {
            bail!("lookup answered with something else than a node");
        };
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        match self.execute(Operation::Open { node: found.node, flags }).await? {
            Reply::Opened(handle) => Ok(handle),
            other => bail!("open answered with {other:?}"),
        }
    }

    pub async fn close_file(&self, handle: HandleId) -> Result<()> {
        self.execute(Operation::Release { handle }).await.map(drop)
    }

    pub async fn write(&self, handle: HandleId, offset_bytes: u64, data: Slice) -> Result<()> {
        let expected = data.len();
        let data = Payload { pieces: vec![data] };
        let operation = Operation::Write {
            handle,
            offset_bytes,
            data,
            append: false,
            clear_set_id: false,
            write_back: false,
        };
        match self.execute(operation).await? {
            Reply::Written { len_bytes } if len_bytes as usize == expected => Ok(()),
            other => bail!("write of {expected} bytes answered with {other:?}"),
        }
    }

    pub async fn fsync(&self, handle: HandleId) -> Result<()> {
        self.execute(Operation::Sync { handle, data_only: false }).await.map(drop)
    }

    /// Reads exactly `len_bytes`, which must all be data, and gives the first piece.
    pub async fn read(&self, handle: HandleId, offset_bytes: u64, len_bytes: u32) -> Result<Slice> {
        let reply = self.execute(Operation::Read { handle, offset_bytes, len_bytes }).await?;
        let Reply::Data(pieces) = reply else { bail!("read answered with something else than data") };
        let mut first = None;
        let mut read_bytes = 0;
        for piece in pieces {
            let DataPiece::Bytes(bytes) = piece else {
                bail!("a hole at {offset_bytes}, where data was written")
            };
            read_bytes += bytes.len();
            first.get_or_insert(bytes);
        }
        match first {
            Some(first) if read_bytes == len_bytes as usize => Ok(first),
            _ => bail!("{read_bytes} of {len_bytes} bytes at {offset_bytes}"),
        }
    }

    pub async fn shut_down(&self) -> Result<()> {
        self.filesystem.shut_down().await?;
        Ok(self.store.close().await?)
    }
}
