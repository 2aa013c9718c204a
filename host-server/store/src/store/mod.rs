//! The handle of an open volume.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};
use ringfort_engine::engine::Engine;

use crate::address::{BlockChecksum, LogicalBlock, ObjectId, PhysicalBlock, VolumeId};
use crate::core::Core;
use crate::create::{self, CreateOptions};
use crate::error::{ErrorKind, StoreError};
use crate::format::segment::StripeSummary;
use crate::keep;
use crate::limits::{
    ASK_LOG_PART, BANKS_WAITING_MAX, COMMIT_INTERVAL_DEFAULT, ENTRY_BYTES_TYPICAL, LOG_EIGHTHS_MAX,
    MEMORY_BYTES_DEFAULT, PROMISES_WAIT, RELIEVE_AT_EIGHTHS,
};
use crate::log::ring::body_blocks;
use crate::map::Content;
use crate::object::{Object, OpenReport};
use crate::recover::{self, RecoveryReport};
use crate::segment::summary::{Summaries, summary_of};
use crate::segment::table::{Class, StripeRange};
use crate::state::{Reservation, bank_stripes, checksums_of};
use crate::status::StatusReport;
use crate::volume::{
    Cost, Extent, Key, ReadPiece, SpaceReport, StagedBlocks, StagedPiece, Transaction, TreeId,
    VALUE_BYTES_MAX, Volume, WrittenRun,
};

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
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            allow_partial_membership: false,
            commit_interval: COMMIT_INTERVAL_DEFAULT,
            memory_bytes: MEMORY_BYTES_DEFAULT,
        }
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
        let object_options = crate::object::OpenOptions {
            write: true,
            volume: None,
            allow_partial_membership: options.allow_partial_membership,
        };
        let (object, report) = Object::open(Rc::clone(&engine), components, object_options).await?;
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
        engine.spawn(Box::pin(Rc::clone(&core).run_commits()));
        engine.spawn(Box::pin(Rc::clone(&core).run_interval()));
        engine.spawn(Box::pin(Rc::clone(&core).run_checkpoints()));
        Ok(Self { core, recovery })
    }

    /// Everything durable, banks written, maps checkpointed; background work ends. The components can be opened again
    /// when every clone of the store is dropped.
    pub async fn close(&self) -> Result<(), StoreError> {
        if self.core.closing.get() {
            return Ok(());
        }
        let result = async {
            self.sync().await?;
            self.core.checkpoint(true).await
        }
        .await;
        self.core.closing.set(true);
        self.core.refuse_changes();
        self.core.commit_wanted.notify_one();
        self.core.checkpoint_wanted.notify_one();
        if result.is_ok() {
            keep::forget(&self.core.engine, self.core.volume);
        }
        result
    }

    /// Forces a checkpoint, with all banks written.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.core.checkpoint(true).await
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

    /// Why a transaction of this cost must wait, or `None` where it may begin. `alone`: what others have been promised does
    /// not count.
    fn obstacle(&self, cost: &Cost, alone: bool) -> Option<Obstacle> {
        let state = self.core.state();
        let reserved = &state.reserved;
        let promised = |cell: &Cell<u64>| if alone { 0 } else { cell.get() };
        // Room that commits and recovery may waste on padding, and that lets a full volume be emptied.
        let bank_blocks = u64::from(bank_stripes(&state.geometry)) * state.geometry.blocks_per_stripe();
        let margin = if cost.frees_space {
            bank_blocks
        } else {
            2 * bank_blocks + state.geometry.blocks_per_segment()
        };
        if cost.data_blocks > 0
            && state.free_blocks() < promised(&reserved.data_blocks).saturating_add(cost.data_blocks) + margin
        {
            return Some(Obstacle::Data);
        }
        // Stripes get summaries, and blocks get entries in the maps.
        let data_blocks = promised(&reserved.data_blocks) + cost.data_blocks;
        let stripes = state.unnamed_stripes() + data_blocks.div_ceil(state.geometry.blocks_per_stripe());
        let changes = promised(&reserved.entries) + cost.entries + 2 * stripes;
        let pages = state.maps.allocator().free_count();
        let needed = state.maps.checkpoint_page_bound(changes as usize, VALUE_BYTES_MAX);
        let spare = if cost.frees_space { 0 } else { state.maps.allocator().page_count() / 32 };
        let full = state.maps.memory_bytes() as u64 >= self.core.memory_bytes && !cost.frees_space;
        if needed + spare > pages || full {
            return Some(Obstacle::Metadata);
        }
        if state.waiting_banks() >= BANKS_WAITING_MAX {
            return Some(Obstacle::Banks);
        }
        if state.pending_is_large() {
            return Some(Obstacle::Commit);
        }
        let pending = body_blocks(state.frames_body_bytes) + state.frames_data_blocks;
        let others =
            state.log_blocks_of(reserved.entries.get(), reserved.data_blocks.get()) + reserved.count.get();
        let ask =
            state.log_blocks_of(cost.entries, cost.data_blocks).min(state.ring.block_count() / ASK_LOG_PART);
        let (log_blocks, used_blocks) = (state.ring.block_count(), state.ring.used_blocks());
        let wanted = used_blocks + pending + others + ask + state.naming_blocks();
        if wanted * 8 <= log_blocks * LOG_EIGHTHS_MAX {
            return None;
        }
        if !state.frames.is_empty() {
            Some(Obstacle::Commit)
        } else if used_blocks * 8 > log_blocks * RELIEVE_AT_EIGHTHS {
            Some(Obstacle::Log)
        } else if reserved.count.get() > 0 {
            Some(Obstacle::Promises)
        } else {
            // Nobody is left to wait for; a commit that finds too little room writes stripes instead.
            None
        }
    }

    async fn begin_when_free(&self, cost: Cost) -> Result<Reservation, StoreError> {
        let core = &self.core;
        self.check_size(&cost)?;
        // The count of checkpoints at which no more space can be hoped for.
        let mut last_checkpoint = None;
        let mut crowded_since = None;
        loop {
            core.state().check_alive()?;
            let progress = core.progress.notified();
            let obstacle = self.obstacle(&cost, false);
            if !matches!(obstacle, Some(Obstacle::Data | Obstacle::Metadata)) {
                (last_checkpoint, crowded_since) = (None, None);
            }
            match obstacle {
                None => {
                    let state = core.state();
                    return Ok(Reservation::new(&state.reserved, cost.data_blocks, cost.entries));
                }
                Some(Obstacle::Commit | Obstacle::Banks) => core.commit_wanted.notify_one(),
                Some(Obstacle::Log) => core.checkpoint_wanted.notify_one(),
                Some(Obstacle::Promises) => {}
                Some(obstacle @ (Obstacle::Data | Obstacle::Metadata)) => {
                    let now = core.engine.monotonic();
                    if matches!(self.obstacle(&cost, true), Some(Obstacle::Data | Obstacle::Metadata)) {
                        // Freed space comes back with a checkpoint: once for what has died, once more for what the first
                        // one emptied. One that is under way may have looked too early.
                        let done = core.state().counters.checkpoints;
                        let under_way = u64::from(core.checkpoint_turn.try_lock().is_none());
                        if done >= *last_checkpoint.get_or_insert(done + 2 + under_way) {
                            return Err(self.no_space(obstacle));
                        }
                        core.maps_wanted.set(true);
                        core.checkpoint_wanted.notify_one();
                    } else if now - *crowded_since.get_or_insert(now) >= PROMISES_WAIT {
                        return Err(self.no_space(obstacle));
                    } else {
                        last_checkpoint = None;
                    }
                }
            }
            progress.await;
        }
    }

    /// Refuses what no log of this length could take.
    fn check_size(&self, cost: &Cost) -> Result<(), StoreError> {
        let log_blocks = self.core.state().ring.block_count();
        let limit = log_blocks * BLOCK_BYTES as u64 / ASK_LOG_PART / ENTRY_BYTES_TYPICAL;
        if cost.entries <= limit {
            return Ok(());
        }
        let found = format!("{} entries", cost.entries);
        let place = format!("volume {}", self.core.volume);
        Err(StoreError::new(ErrorKind::Invalid, "begin a transaction on", place, found)
            .expected(format!("at most {limit} for a log of {log_blocks} blocks"))
            .advice("change less at a time"))
    }

    fn no_space(&self, obstacle: Obstacle) -> StoreError {
        let (found, advice) = match obstacle {
            Obstacle::Metadata => ("the metadata region or the memory for maps is full", "delete files"),
            _ => ("no segment is free", "delete files; space returns when whole segments become empty"),
        };
        StoreError::new(ErrorKind::NoSpace, "write to", format!("volume {}", self.core.volume), found)
            .advice(advice)
    }

    /// Writes full stripes from the front of `blocks`, as many as they fill, and says what became of them.
    async fn stage_stripes(
        &self,
        blocks: &[Slice],
        reservation: &mut Reservation,
    ) -> Result<Vec<StagedPiece>, StoreError> {
        let geometry = self.core.object.geometry();
        let stripe_blocks = geometry.blocks_per_stripe() as usize;
        let mut pieces = Vec::new();
        let mut rest = blocks;
        while rest.len() >= stripe_blocks {
            let wanted = (rest.len() / stripe_blocks) as u32;
            let range = self.core.state().segments.allocate(Class::Large, wanted);
            let Some(range) = range else { return Err(self.no_space(Obstacle::Data)) };
            let (now, later) = rest.split_at(range.count as usize * stripe_blocks);
            reservation.use_blocks(now.len() as u64);
            pieces.push(StagedPiece::Written(self.write_large(range, now).await?));
            rest = later;
        }
        Ok(pieces)
    }

    async fn write_large(&self, range: StripeRange, blocks: &[Slice]) -> Result<WrittenRun, StoreError> {
        let core = &self.core;
        let geometry = core.object.geometry();
        let pin = core.state().segments.pin(range.segment);
        let middle = core.state_mut().take_middles(blocks.len() as u64);
        let checksums = checksums_of(blocks);
        let parity = core.object.write_stripes(range.segment, range.first, blocks.to_vec()).await?;
        let mut state = core.state_mut();
        core.count_stripes(&mut state, u64::from(range.count));
        state.counters.large_stripes += u64::from(range.count);
        let stripe_blocks = geometry.blocks_per_stripe() as usize;
        let parity_blocks = parity.len() / range.count as usize;
        let summaries = (0..range.count as usize)
            .map(|stripe| {
                let first = middle.0 + (stripe * stripe_blocks) as u64;
                let middles =
                    (first..first + stripe_blocks as u64).map(|at| Some(crate::address::MiddleAddress(at)));
                let summary = StripeSummary {
                    middles: middles.collect(),
                    data_checksums: checksums[stripe * stripe_blocks..(stripe + 1) * stripe_blocks].to_vec(),
                    parity_checksums: parity[stripe * parity_blocks..(stripe + 1) * parity_blocks].to_vec(),
                };
                summary.encode()
            })
            .collect();
        let physical = geometry.stripe_start(range.segment, range.first);
        Ok(WrittenRun { middle, physical, checksums, summaries, pin: Box::new(pin) })
    }
}

/// What keeps a transaction from beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// Stripes are short.
    Data,
    /// Pages, or memory for them, are short.
    Metadata,
    /// The log is filling up: a checkpoint must come first.
    Log,
    /// Too much waits for a commit.
    Commit,
    /// Too many banks wait to be written.
    Banks,
    /// Room is promised to transactions that have begun.
    Promises,
}

/// What a read found before it went to the devices.
enum Found {
    Ready(ReadPiece),
    Stored { physical: PhysicalBlock, checksums: Vec<BlockChecksum> },
}

impl Volume for Store {
    type Reservation = Reservation;

    async fn get(&self, tree: TreeId, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.core.state().maps.get(tree, key).map(<[u8]>::to_vec))
    }

    async fn scan(
        &self,
        tree: TreeId,
        from: Key,
        to: Key,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        Ok(self.core.state().maps.scan(tree, from, to, limit))
    }

    async fn read(
        &self,
        object: ObjectId,
        start: LogicalBlock,
        len_blocks: u64,
    ) -> Result<Vec<ReadPiece>, StoreError> {
        let core = &self.core;
        let geometry = core.object.geometry();
        let mut found = Vec::new();
        let mut pins = Vec::new();
        {
            let state = core.state();
            for piece in state.maps.lookup(object, start, len_blocks) {
                match piece.content {
                    Content::Hole => {
                        found.push(Found::Ready(ReadPiece::Hole { len_blocks: piece.len_blocks }))
                    }
                    Content::Unborn { middle } => {
                        let place = format!("block {} of object {object}", piece.start);
                        let what = format!("middle address {middle} lies nowhere");
                        return Err(StoreError::new(ErrorKind::Damaged, "read", place, what)
                            .advice("run `ringfort volume check`"));
                    }
                    Content::Data { physical, checksums, .. } => {
                        for (index, checksum) in checksums.into_iter().enumerate() {
                            let at = PhysicalBlock(physical.0 + index as u64);
                            if let Some(slot) = state.resident(at) {
                                found.push(Found::Ready(ReadPiece::Data(slot.data.clone())));
                                continue;
                            }
                            let extends = |last: &PhysicalBlock, count: usize| {
                                last.0 + count as u64 == at.0
                                    && !at.0.is_multiple_of(geometry.blocks_per_segment())
                            };
                            match found.last_mut() {
                                Some(Found::Stored { physical, checksums })
                                    if extends(physical, checksums.len()) =>
                                {
                                    checksums.push(checksum);
                                }
                                _ => {
                                    pins.push(state.segments.pin(geometry.locate(at).segment));
                                    found.push(Found::Stored { physical: at, checksums: vec![checksum] });
                                }
                            }
                        }
                    }
                }
            }
        }
        let mut pieces = Vec::with_capacity(found.len());
        let reads = found.into_iter().map(|found| self.fetch(object, found));
        for result in ringfort_engine::sync::join_all(reads).await {
            pieces.extend(result?);
        }
        drop(pins);
        Ok(pieces)
    }

    async fn next_extent(&self, object: ObjectId, from: LogicalBlock) -> Result<Option<Extent>, StoreError> {
        Ok(self.core.state().maps.next_extent(object, from))
    }

    async fn begin(&self, cost: Cost) -> Result<Transaction<Reservation>, StoreError> {
        Ok(Transaction::new(self.begin_when_free(cost).await?))
    }

    async fn stage(
        &self,
        transaction: &mut Transaction<Reservation>,
        data: Vec<Slice>,
    ) -> Result<StagedBlocks, StoreError> {
        let blocks: Vec<Slice> = data
            .iter()
            .flat_map(|slice| {
                assert!(slice.is_block_aligned(), "staged data is whole, aligned blocks");
                (0..slice.len()).step_by(BLOCK_BYTES).map(|at| slice.slice(at..at + BLOCK_BYTES))
            })
            .collect();
        let stripe_blocks = self.core.object.geometry().blocks_per_stripe() as usize;
        let in_stripes = blocks.len() / stripe_blocks * stripe_blocks;
        let (large, small) = blocks.split_at(in_stripes);
        let mut pieces = self.stage_stripes(large, &mut transaction.reservation).await?;
        if !small.is_empty() {
            pieces.push(StagedPiece::Memory(small.to_vec()));
        }
        Ok(StagedBlocks { pieces })
    }

    fn apply(&self, mut transaction: Transaction<Reservation>) -> Result<(), StoreError> {
        let changes = std::mem::take(&mut transaction.changes);
        let (large, waiting) = {
            let mut state = self.core.state_mut();
            state.apply(changes, &mut transaction.reservation)?;
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

    fn space(&self) -> SpaceReport {
        let state = self.core.state();
        let total_blocks = state.root.total_blocks;
        let spare = (state.geometry.data_blocks()).saturating_sub(total_blocks);
        let reserved = state.reserved.data_blocks.get();
        let free_blocks = state.free_blocks().saturating_sub(reserved + spare).min(total_blocks);
        SpaceReport { total_blocks, free_blocks, available_blocks: free_blocks }
    }
}

impl Store {
    async fn fetch(&self, object: ObjectId, found: Found) -> Result<Vec<ReadPiece>, StoreError> {
        match found {
            Found::Ready(piece) => Ok(vec![piece]),
            Found::Stored { physical, checksums } => {
                let summaries = Summaries::new(self.core.object.geometry(), |segment, stripe| {
                    summary_of(&self.core.state().maps, segment, stripe)
                });
                let read = self.core.object.read_blocks(physical, &checksums, &summaries);
                let slices = read.await.map_err(|mut error| {
                    error.place = format!("object {object}, {}", error.place).into();
                    error
                })?;
                Ok(slices.into_iter().map(ReadPiece::Data).collect())
            }
        }
    }
}
