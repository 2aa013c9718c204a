//! What the tests of whole volumes share: small volumes, contents that tell where they belong, and a model.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::engine::Engine;
use ringfort_engine::sim::{CrashMode, SimWorld};
use ringfort_store::address::{LogicalBlock, ObjectId};
use ringfort_store::check::check;
use ringfort_store::create::{CreateOptions, plan};
use ringfort_store::error::StoreError;
use ringfort_store::format::root::LOG_START;
use ringfort_store::store::{OpenOptions, Store};
use ringfort_store::volume::{Cost, Key, ReadPiece, TreeId, Volume, shift_entries};

pub const TREE: TreeId = TreeId(16);

/// What a volume should hold: entries, and the content number of each block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub entries: BTreeMap<u64, u64>,
    pub blocks: BTreeMap<(u64, u64), u64>,
}

impl Model {
    pub fn write(&mut self, object: u64, start: u64, contents: &[u64]) {
        for (index, content) in contents.iter().enumerate() {
            self.blocks.insert((object, start + index as u64), *content);
        }
    }

    pub fn shift(&mut self, object: u64, from: u64, to: u64, len: u64) {
        let moves = |of: u64, at: u64| of == object && (from..from + len).contains(&at);
        let moving: Vec<_> = self.blocks.extract_if(.., |(of, at), _| moves(*of, *at)).collect();
        self.unmap(object, to, len);
        self.blocks.extend(moving.into_iter().map(|((of, at), content)| ((of, at - from + to), content)));
    }

    pub fn unmap(&mut self, object: u64, start: u64, len: u64) {
        let end = start.saturating_add(len);
        self.blocks.retain(|(of, at), _| *of != object || *at < start || *at >= end);
    }
}

pub fn components() -> Vec<PathBuf> {
    (0..6).map(|index| PathBuf::from(format!("component-{index}"))).collect()
}

/// 4+2 with stripes of eight blocks and segments of sixteen stripes: everything happens soon.
pub fn create_options() -> CreateOptions {
    CreateOptions {
        log_bytes: Some(1 << 20),
        unit_bytes: Some(8192),
        ..CreateOptions::new(components(), 8 << 20)
    }
}

/// Where the log lies on a component that mirrors the metadata.
pub fn log_region() -> std::ops::Range<u64> {
    let plan = plan(&create_options()).unwrap();
    let start = plan.geometry.metadata_base() + LOG_START.0;
    start..start + plan.log_bytes
}

pub fn block(content: u64) -> Slice {
    let mut buffer = Buffer::zeroed(BLOCK_BYTES);
    for (index, bytes) in buffer.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&(content.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64).to_le_bytes());
    }
    buffer[..8].copy_from_slice(&content.to_le_bytes());
    buffer.freeze()
}

/// The number of the content that `bytes` are; panics where they are none.
pub fn content_of(bytes: &[u8], place: &str) -> u64 {
    let content = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(bytes, &*block(content), "{place} holds foreign bytes");
    content
}

pub async fn put(store: &Store, key: u64, content: u64) -> Result<(), StoreError> {
    let cost = Cost { data_blocks: 0, entries: 1, frees_space: false };
    let mut transaction = store.begin(cost).await?;
    transaction.put(TREE, Key::new(key, 0), content.to_le_bytes().repeat(8));
    store.apply(transaction)
}

pub async fn delete(store: &Store, key: u64) -> Result<(), StoreError> {
    let cost = Cost { data_blocks: 0, entries: 1, frees_space: true };
    let mut transaction = store.begin(cost).await?;
    transaction.delete(TREE, Key::new(key, 0));
    store.apply(transaction)
}

pub async fn write(store: &Store, object: u64, start: u64, contents: &[u64]) -> Result<(), StoreError> {
    let cost = Cost { data_blocks: contents.len() as u64, entries: 1, frees_space: false };
    let mut transaction = store.begin(cost).await?;
    let data = contents.iter().map(|content| block(*content)).collect();
    let staged = store.stage(&mut transaction, data).await?;
    let before = mapped(store, object, start, contents.len() as u64).await?;
    transaction.note_mapped(contents.len() as i64 - before as i64);
    transaction.write(ObjectId(object), LogicalBlock(start), staged);
    store.apply(transaction)
}

pub async fn unmap(store: &Store, object: u64, start: u64, len: u64) -> Result<(), StoreError> {
    let cost = Cost { data_blocks: 0, entries: 1, frees_space: true };
    let mut transaction = store.begin(cost).await?;
    transaction.note_mapped(-(mapped(store, object, start, len).await? as i64));
    transaction.unmap(ObjectId(object), LogicalBlock(start), len);
    store.apply(transaction)
}

/// Blocks of a range that are mapped.
async fn mapped(store: &Store, object: u64, start: u64, len: u64) -> Result<u64, StoreError> {
    let (mut at, end, mut count) = (start, start.saturating_add(len), 0);
    while let Some(extent) = store.next_extent(ObjectId(object), LogicalBlock(at)).await? {
        if extent.start.0 >= end {
            break;
        }
        at = (extent.start.0 + extent.len_blocks).min(end);
        count += at - extent.start.0;
    }
    Ok(count)
}

pub async fn shift(store: &Store, object: u64, from: u64, to: u64, len: u64) -> Result<(), StoreError> {
    // Room for an extent a block is more than a small log promises; there are fewer.
    let cost = Cost { data_blocks: 0, entries: shift_entries(len.min(500)), frees_space: true };
    let mut transaction = store.begin(cost).await?;
    store.shift(&mut transaction, ObjectId(object), LogicalBlock(from), LogicalBlock(to), len).await?;
    store.apply(transaction)
}

/// Contents of a range, by block; holes are absent.
pub async fn read(
    store: &Store,
    object: u64,
    start: u64,
    len: u64,
) -> Result<BTreeMap<u64, u64>, StoreError> {
    let mut found = BTreeMap::new();
    let mut at = start;
    for piece in store.read(ObjectId(object), LogicalBlock(start), len).await? {
        match piece {
            ReadPiece::Hole { len_blocks } => at += len_blocks,
            ReadPiece::Data(slice) => {
                for bytes in slice.chunks_exact(BLOCK_BYTES) {
                    found.insert(at, content_of(bytes, &format!("object {object} block {at}")));
                    at += 1;
                }
            }
        }
    }
    assert_eq!(at, start + len);
    Ok(found)
}

/// Polls a future until it has waited so many times, then drops it. What it gave by then.
pub async fn drop_after<F: Future>(waits: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = waits;
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// Everything a volume holds. Panics where a block is neither zero nor what some write put there.
pub async fn read_all(store: &Store, objects: u64, blocks: u64) -> Model {
    let mut model = Model::default();
    for (key, value) in store.scan(TREE, Key::MIN, Key::MAX, usize::MAX).await.unwrap() {
        let content = u64::from_le_bytes(value[..8].try_into().unwrap());
        assert_eq!(value, content.to_le_bytes().repeat(8));
        model.entries.insert(key.hi, content);
    }
    for object in 0..objects {
        for (at, content) in read(store, object, 0, blocks).await.unwrap() {
            model.blocks.insert((object, at), content);
        }
    }
    model
}

pub async fn open(engine: Rc<dyn Engine>) -> Store {
    // So little that blocks come and go: nothing that is read may depend on it.
    let options = OpenOptions { data_cache_bytes: 64 << 10, ..OpenOptions::default() };
    match Store::open(engine, &components(), &options).await {
        Ok((store, _)) => store,
        Err(error) => panic!("the volume does not open: {error}"),
    }
}

/// Opens a world's volume and does something with it, which no crash cuts short. It is left open.
pub fn with_store<T>(world: &SimWorld, work: impl AsyncFnOnce(Store) -> T) -> T {
    let engine = world.engine();
    world.run(async move { work(open(engine).await).await }).done()
}

/// One of several writes of growing length into three objects, each with an entry.
pub async fn grow_contents(store: &Store, at: u64, model: &mut Model) {
    let contents: Vec<u64> = (0..1 + at * 5).map(|index| 1 + at * 1000 + index).collect();
    write(store, at % 3, at * 80, &contents).await.unwrap();
    model.write(at % 3, at * 80, &contents);
    put(store, at, at + 1).await.unwrap();
    model.entries.insert(at, at + 1);
}

/// A world with a fresh, closed volume.
pub fn world_with(seed: u64, options: &CreateOptions) -> SimWorld {
    let world = SimWorld::new(seed);
    let engine = world.engine();
    let options = options.clone();
    world
        .run(async move {
            let store = Store::create(engine, &options).await.unwrap();
            store.close().await.unwrap();
        })
        .done();
    world.restart(CrashMode::ProcessDeath, seed);
    world
}

/// Restarts, walks every structure, opens again and compares.
pub fn expect_after_restart(world: &SimWorld, mode: CrashMode, model: &Model, objects: u64, blocks: u64) {
    world.restart(mode, 77);
    expect_clean(world);
    world.restart(CrashMode::ProcessDeath, 78);
    let engine = world.engine();
    let found = world.run(async move {
        let store = open(engine).await;
        let found = read_all(&store, objects, blocks).await;
        store.close().await.unwrap();
        found
    });
    assert!(found.done() == *model, "reopened, the volume holds something else");
    world.restart(CrashMode::ProcessDeath, 79);
}

/// The offline check finds no damage.
pub fn expect_clean(world: &SimWorld) {
    let engine = world.engine();
    let report = world.run(async move { check(engine, &components(), &mut |_| {}).await.unwrap().0 }).done();
    assert!(report.is_clean(), "{:?}", &report.damage[..report.damage.len().min(8)]);
}
