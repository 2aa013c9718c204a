//! Reading an object: from the banks, from what has been read ahead, or verified from the devices.

use std::rc::Rc;

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};
use ringfort_engine::sync::join_all;

use super::Store;
use crate::address::{BlockChecksum, LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock};
use crate::ahead::{Chunk, HeldRun};
use crate::cache::BlockCache;
use crate::error::{ErrorKind, StoreError};
use crate::limits::CACHED_READ_BLOCKS_MAX;
use crate::map::Content;
use crate::object::{Fetched, PartialRead};
use crate::pages::Pages;
use crate::segment::table::SegmentPin;
use crate::state::State;
use crate::volume::ReadPiece;

/// So often is a range looked up of which something lies nowhere: others may overwrite it meanwhile.
const LOOKUPS_MAX: u32 = 8;

/// What a read finds before it goes to the devices.
enum Found {
    Hole {
        len_blocks: u64,
    },
    /// In memory.
    Ready(Slice),
    Stored(StoredRun),
}

/// Consecutive physical blocks of one segment, which cannot be reused while this lives.
struct StoredRun {
    physical: PhysicalBlock,
    checksums: Vec<BlockChecksum>,
    /// Whose they are: runs of middle addresses, in order, with their lengths.
    middles: Vec<(MiddleAddress, u64)>,
    _pin: SegmentPin,
}

impl StoredRun {
    /// Pairs what was read with its middle addresses.
    fn name(&self, slices: Vec<Slice>) -> Vec<HeldRun> {
        let mut named = Vec::with_capacity(slices.len());
        let mut middles = self.middles.iter().copied();
        let (mut middle, mut left) = (MiddleAddress(0), 0);
        for slice in slices {
            let mut taken = 0;
            while taken < slice.len() {
                if left == 0 {
                    let Some(next) = middles.next() else { return named };
                    (middle, left) = next;
                }
                let count = left.min(((slice.len() - taken) / BLOCK_BYTES) as u64);
                let len_bytes = count as usize * BLOCK_BYTES;
                named.push(HeldRun { middle, data: slice.slice(taken..taken + len_bytes) });
                (middle, left, taken) = (MiddleAddress(middle.0 + count), left - count, taken + len_bytes);
            }
        }
        named
    }
}

/// What becomes of a range of an object.
struct Finder<'a> {
    state: &'a State,
    cache: &'a BlockCache,
    held: &'a [Rc<Chunk>],
    found: Vec<Found>,
}

impl Finder<'_> {
    /// Consecutive blocks of the maps, middle and physical.
    fn add_data(&mut self, middle: MiddleAddress, physical: PhysicalBlock, checksums: &[BlockChecksum]) {
        let len_blocks = checksums.len() as u64;
        let may_be_resident = self.state.may_be_resident(physical, len_blocks);
        let mut at = 0;
        while at < len_blocks {
            let (middle, physical) = (MiddleAddress(middle.0 + at), PhysicalBlock(physical.0 + at));
            if may_be_resident && let Some(slot) = self.state.resident(physical) {
                self.found.push(Found::Ready(slot.data.clone()));
                at += 1;
                continue;
            }
            if let Some(data) = self.held.iter().find_map(|chunk| chunk.find(middle, len_blocks - at)) {
                at += (data.len() / BLOCK_BYTES) as u64;
                self.found.push(Found::Ready(data));
                continue;
            }
            if let Some(data) = self.cache.find(middle) {
                self.found.push(Found::Ready(data));
                at += 1;
                continue;
            }
            self.add_stored(middle, physical, checksums[at as usize]);
            at += 1;
        }
    }

    fn add_stored(&mut self, middle: MiddleAddress, physical: PhysicalBlock, checksum: BlockChecksum) {
        let segment_blocks = self.state.geometry.blocks_per_segment();
        if let Some(Found::Stored(run)) = self.found.last_mut()
            && run.physical.0 + run.checksums.len() as u64 == physical.0
            && !physical.0.is_multiple_of(segment_blocks)
        {
            run.checksums.push(checksum);
            match run.middles.last_mut() {
                Some((start, len)) if start.0 + *len == middle.0 => *len += 1,
                _ => run.middles.push((middle, 1)),
            }
            return;
        }
        let segment = self.state.geometry.locate(physical).segment;
        self.found.push(Found::Stored(StoredRun {
            physical,
            checksums: vec![checksum],
            middles: vec![(middle, 1)],
            _pin: self.state.segments.pin(segment),
        }));
    }
}

impl Store {
    pub(super) async fn read_object(
        &self,
        object: ObjectId,
        start: LogicalBlock,
        len_blocks: u64,
    ) -> Result<Vec<ReadPiece>, StoreError> {
        let arrival = self.core.ahead.arrive(object, start, len_blocks);
        for chunk in arrival.wanted {
            let store = self.clone();
            self.core.tasks.spawn(async move { store.read_ahead(object, chunk).await });
        }
        for chunk in &arrival.held {
            chunk.filled().await;
        }
        let found = self.find(object, start, len_blocks, &arrival.held).await?;
        let mut pieces = Vec::with_capacity(found.len());
        for (found, fetched) in self.fetch_all(object, found).await {
            match found {
                Found::Hole { len_blocks } => pieces.push(ReadPiece::Hole { len_blocks }),
                Found::Ready(data) => pieces.push(ReadPiece::Data(data)),
                Found::Stored(run) => {
                    let fetched = fetched?;
                    if len_blocks <= CACHED_READ_BLOCKS_MAX && self.core.cache.is_on() {
                        let named = run.name(fetched.clone());
                        named.iter().for_each(|held| self.core.cache.keep(held.middle, &held.data));
                    }
                    pieces.extend(fetched.into_iter().map(ReadPiece::Data));
                }
            }
        }
        Ok(pieces)
    }

    /// Reads a range for those who will come for it. What fails is left to them.
    async fn read_ahead(&self, object: ObjectId, chunk: Rc<Chunk>) {
        let filling = self.core.ahead.begin(Rc::clone(&chunk));
        let Ok(found) = self.find(object, chunk.start, chunk.len_blocks, &[]).await else { return };
        let mut runs = Vec::new();
        for (found, fetched) in self.fetch_all(object, found).await {
            if let (Found::Stored(run), Ok(slices)) = (found, fetched) {
                runs.extend(run.name(slices));
            }
        }
        filling.fill(runs);
    }

    /// Looks a range up and keeps the segments that it lies in.
    async fn find(
        &self,
        object: ObjectId,
        start: LogicalBlock,
        len_blocks: u64,
        held: &[Rc<Chunk>],
    ) -> Result<Vec<Found>, StoreError> {
        let pages = Pages::new(&self.core.object);
        let mut attempts = 0;
        loop {
            let freed = self.core.state().counters.freed_segments;
            let pieces = self.core.maps().lookup(&pages, object, start, len_blocks).await?;
            let state = self.core.state();
            let lost = pieces.iter().find_map(|piece| match piece.content {
                Content::Lost { middle } => Some((piece.start, middle)),
                _ => None,
            });
            attempts += 1;
            // What was overwritten while it was looked up is looked up again; so is what may lie in a segment that has got another life.
            if let Some((block, middle)) = lost.filter(|_| attempts == LOOKUPS_MAX) {
                let place = format!("block {block} of object {object}");
                let what = format!("middle address {middle} lies nowhere");
                return Err(StoreError::new(ErrorKind::Damaged, "read", place, what)
                    .advice("run `ringfort volume check`"));
            }
            if lost.is_some() || state.counters.freed_segments != freed {
                continue;
            }
            let mut finder = Finder { state: &state, cache: &self.core.cache, held, found: Vec::new() };
            for piece in pieces {
                match piece.content {
                    Content::Hole => finder.found.push(Found::Hole { len_blocks: piece.len_blocks }),
                    Content::Data { middle, physical, checksums } => {
                        finder.add_data(middle, physical, &checksums);
                    }
                    Content::Lost { .. } => unreachable!("asked above"),
                }
            }
            return Ok(finder.found);
        }
    }

    /// Reads what is stored, all at once; nothing for the rest.
    async fn fetch_all(
        &self,
        object: ObjectId,
        found: Vec<Found>,
    ) -> Vec<(Found, Result<Vec<Slice>, StoreError>)> {
        let stored = found.iter().filter(|found| matches!(found, Found::Stored(_))).count();
        let mut fetched = Vec::with_capacity(found.len());
        match stored {
            0 => fetched.resize_with(found.len(), || Ok(Vec::new())),
            // Nothing to run side by side, as for most reads.
            1 => {
                for found in &found {
                    fetched.push(self.fetch(object, found).await);
                }
            }
            _ => fetched = join_all(found.iter().map(|found| self.fetch(object, found))).await,
        }
        found.into_iter().zip(fetched).collect()
    }

    async fn fetch(&self, object: ObjectId, found: &Found) -> Result<Vec<Slice>, StoreError> {
        let Found::Stored(run) = found else { return Ok(Vec::new()) };
        let fetched = match self.core.object.fetch_blocks(run.physical, &run.checksums).await {
            Ok(Fetched::Whole(slices)) => Ok(slices),
            Ok(Fetched::Partial(partial)) => self.make_good(run, partial).await,
            Err(error) => Err(error),
        };
        fetched.map_err(|mut error| {
            error.place = format!("object {object}, {}", error.place).into();
            error
        })
    }

    /// Computes what the devices did not give and repairs them, to the end: a reader that goes away in the middle must not take the
    /// pin along while a repair is on its way to the segment, nor leave labels half written.
    async fn make_good(&self, run: &StoredRun, partial: PartialRead) -> Result<Vec<Slice>, StoreError> {
        let (core, checksums) = (Rc::clone(&self.core), run.checksums.clone());
        let pin = core.state().segments.pin(core.object.geometry().locate(run.physical).segment);
        let work = async move {
            let _pin = pin;
            core.make_good(partial, &checksums).await
        };
        self.core.complete("read from", work).await
    }
}
