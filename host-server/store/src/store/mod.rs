//! The handle of an open volume.

mod read;
mod stage;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::buffer::Slice;
use ringfort_engine::engine::Engine;

use crate::address::{LogicalBlock, ObjectId, VolumeId};
use crate::core::Core;
use crate::create::{self, CreateOptions};
use crate::error::StoreError;
use crate::keep;
use crate::limits::{COMMIT_INTERVAL_DEFAULT, MEMORY_BYTES_DEFAULT};
use crate::map::Reclaim;
use crate::object::{self, Object, OpenReport};
use crate::pages::Pages;
use crate::recover::{self, RecoveryReport};
use crate::state::Reservation;
use crate::status::StatusReport;
use crate::volume::{Cost, Extent, Key, ReadPiece, SpaceReport, StagedBlocks, Transaction, TreeId, Volume};

/// How a volume is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Serve although components of the newest membership are missing, where another set of components might
    /// have been served meanwhile. Asked of a person, never assumed.
    pub allow_partial_membership: bool,
    /// What is not synced is synced within this time.
    pub commit_interval: Duration,
    /// Bound of the memory that maps may take.
    pub memory_bytes: u64,
    /// Memory for blocks that were read lately. None by default: every read of what is not being written goes to the devices.
    pub data_cache_bytes: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            allow_partial_membership: false,
            commit_interval: COMMIT_INTERVAL_DEFAULT,
            memory_bytes: MEMORY_BYTES_DEFAULT,
            data_cache_bytes: 0,
        }
    }
}

impl OpenOptions {
    /// How its components are opened.
    pub(crate) fn of_object(&self, write: bool) -> object::OpenOptions {
        let allow_partial_membership = self.allow_partial_membership;
        object::OpenOptions { write, volume: None, allow_partial_membership }
    }
}

/// An open volume. Clones share it.
#[derive(Clone)]
pub struct Store {
    core: Rc<Core>,
    recovery: RecoveryReport,
}

impl Store {
    /// Makes a volume and opens it. Components that exist already are left as they are, with an error.
    pub async fn create(engine: Rc<dyn Engine>, options: &CreateOptions) -> Result<Self, StoreError> {
        let (object, volume) = create::create(&engine, options).await?;
        let open = OpenOptions { memory_bytes: options.memory_bytes, ..OpenOptions::default() };
        Self::start(engine, object, volume, &open).await
    }

    /// Opens a volume for reading and writing, recovering it where it was not closed.
    pub async fn open(
        engine: Rc<dyn Engine>,
        components: &[PathBuf],
        options: &OpenOptions,
    ) -> Result<(Self, OpenReport), StoreError> {
        let (object, report) = Object::open(Rc::clone(&engine), components, options.of_object(true)).await?;
        let volume = object.volume();
        Ok((Self::start(engine, object, volume, options).await?, report))
    }

    async fn start(
        engine: Rc<dyn Engine>,
        object: Object,
        volume: VolumeId,
        options: &OpenOptions,
    ) -> Result<Self, StoreError> {
        let (core, recovery) = recover::recover(
            Rc::clone(&engine),
            object,
            volume,
            options.commit_interval,
            options.memory_bytes,
        )
        .await?;
        let core = Rc::new(core);
        core.cache.set_capacity(options.data_cache_bytes);
        core.tasks.spawn(Rc::clone(&core).run_commits());
        core.tasks.spawn(Rc::clone(&core).run_interval());
        core.tasks.spawn(Rc::clone(&core).run_checkpoints());
        core.tasks.spawn(Rc::clone(&core).run_merges());
        core.tasks.spawn(Rc::clone(&core).run_cleaning());
        Ok(Self { core, recovery })
    }

    /// Everything durable, banks written, maps checkpointed; background work has ended. The components can be opened again
    /// when every clone of the store is dropped.
    pub async fn close(&self) -> Result<(), StoreError> {
        if self.core.closing.is_set() {
            self.core.tasks.ended().await;
            return Ok(());
        }
        self.core.stop_cleaning().await;
        let result = async {
            self.sync().await?;
            self.checkpoint().await
        }
        .await;
        self.core.ahead.stop().await;
        self.core.refuse_changes();
        self.core.closing.set();
        self.core.commit_wanted.notify_one();
        self.core.checkpoint_wanted.notify_one();
        self.core.merges_wanted.notify_one();
        if result.is_ok() {
            keep::forget(&self.core.engine, self.core.volume);
        }
        self.core.tasks.ended().await;
        result
    }

    /// Forces a checkpoint, with all banks written.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let core = Rc::clone(&self.core);
        self.core.complete("checkpoint", async move { core.checkpoint(true).await }).await
    }

    /// Has every change meet what it displaced, so that counts of blocks are exact and the space of what was deleted is free.
    pub async fn reclaim(&self) -> Result<(), StoreError> {
        let core = Rc::clone(&self.core);
        let work = async move {
            core.reclaim(Reclaim::Pages).await?;
            core.checkpoint(true).await
        };
        self.core.complete("reclaim", work).await
    }

    pub fn volume_id(&self) -> VolumeId {
        self.core.volume
    }

    /// What recovery did when the volume was opened.
    pub fn recovery(&self) -> RecoveryReport {
        self.recovery
    }

    pub fn engine(&self) -> &Rc<dyn Engine> {
        &self.core.engine
    }

    pub fn status(&self) -> StatusReport {
        StatusReport::of(&self.core, self.recovery)
    }
}

impl Volume for Store {
    type Reservation = Reservation;

    async fn get(&self, tree: TreeId, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        self.core.maps().get(&Pages::new(&self.core.object), tree, key).await
    }

    async fn scan(
        &self,
        tree: TreeId,
        from: Key,
        to: Key,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        self.core.maps().scan(&Pages::new(&self.core.object), tree, from, to, limit).await
    }

    async fn read(
        &self,
        object: ObjectId,
        start: LogicalBlock,
        len_blocks: u64,
    ) -> Result<Vec<ReadPiece>, StoreError> {
        self.read_object(object, start, len_blocks).await
    }

    async fn next_extent(&self, object: ObjectId, from: LogicalBlock) -> Result<Option<Extent>, StoreError> {
        self.core.maps().next_extent(&Pages::new(&self.core.object), object, from).await
    }

    async fn begin(&self, cost: Cost) -> Result<Transaction<Reservation>, StoreError> {
        Ok(Transaction::new(self.core.begin_when_free(cost).await?))
    }

    async fn stage(
        &self,
        transaction: &mut Transaction<Reservation>,
        data: Vec<Slice>,
    ) -> Result<StagedBlocks, StoreError> {
        self.stage_blocks(&mut transaction.reservation, &data).await
    }

    async fn shift(
        &self,
        transaction: &mut Transaction<Reservation>,
        object: ObjectId,
        from: LogicalBlock,
        to: LogicalBlock,
        len_blocks: u64,
    ) -> Result<(), StoreError> {
        let pages = Pages::new(&self.core.object);
        let steps = self.core.maps().shift_steps(&pages, object, from, to, len_blocks).await?;
        transaction.push_shift(object, from, to, len_blocks, steps);
        Ok(())
    }

    fn apply(&self, mut transaction: Transaction<Reservation>) -> Result<(), StoreError> {
        let changes = std::mem::take(&mut transaction.changes);
        let (large, waiting) = {
            let mut state = self.core.state_mut();
            state.apply(changes, transaction.mapped_blocks, &mut transaction.reservation)?;
            if state.maps.memory_is_full() {
                self.core.maps_wanted.set(true);
                self.core.checkpoint_wanted.notify_one();
            }
            (state.pending_is_large(), state.banks.values().any(|bank| bank.sealed && bank.is_gathering()))
        };
        if waiting {
            self.core.spawn_bank_flushes();
        }
        if large {
            self.core.commit_wanted.notify_one();
        }
        Ok(())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        let last = {
            let mut state = self.core.state_mut();
            state.counters.syncs += 1;
            state.last_transaction()
        };
        self.core.wait_durable(last).await
    }

    fn entry_count(&self, tree: TreeId) -> u64 {
        self.core.state().maps.entry_count(tree)
    }

    fn space(&self) -> SpaceReport {
        self.core.state().space()
    }
}
