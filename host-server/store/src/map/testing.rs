//! A model of the maps that applies everything at once, block by block, and maps beside it that crash now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::{Content, Maps, MapsShape, Message, Reclaim, tree};
use crate::address::{
    BlockChecksum, LogicalBlock, MetadataAddress, MiddleAddress, ObjectId, PhysicalBlock, SegmentId, VolumeId,
};
use crate::error::StoreError;
use crate::format::map::MiddleRun;
use crate::format::page::{PAGE_BYTES, Roots};
use crate::format::run::ItemKind;
use crate::kv::testing::{MemoryPages, run};
use crate::kv::{KeyValue, PageAllocator};
use crate::merge::item::{decode_signed, shared_parts};
use crate::merge::memory::Memory;
use crate::merge::store::MergeOptions;
use crate::volume::{Key, ShiftStep, TreeId};

pub(super) const VOLUME: VolumeId = VolumeId(5);
pub(super) const SEGMENT_BLOCKS: u64 = 100;
pub(super) const OBJECTS: u64 = 3;
pub(super) const TREES: [TreeId; 2] = [TreeId(20), TreeId(21)];
const PAGES: usize = 1 << 14;

pub(super) fn allocator() -> Rc<PageAllocator> {
    Rc::new(PageAllocator::new(MetadataAddress(0), PAGES))
}

pub(super) const SHAPE: MapsShape =
    MapsShape { segment_blocks: SEGMENT_BLOCKS, data_blocks: 1 << 40, memory_bytes: 4 << 20 };

/// Tables so small that a few hundred items have several, on several levels.
pub(super) const SMALL: MergeOptions = MergeOptions {
    cache_bytes: 1 << 18,
    newest_runs: 2,
    first_level_pages: 3,
    piece_pages: 8,
    table_leaves: 2,
};

/// Merges end wherever they cause something.
pub(super) const SMALLEST: MergeOptions =
    MergeOptions { newest_runs: 1, piece_pages: 2, table_leaves: 1, ..SMALL };

/// As small volumes are: all that is old lies on one level.
pub(super) const TWO_LEVELS: MergeOptions = MergeOptions { first_level_pages: 1 << 20, ..SMALL };

pub(super) fn maps(options: MergeOptions) -> Maps {
    let mut maps = Maps::new(VOLUME, allocator(), SHAPE);
    maps.merge.set_options(options);
    maps
}

fn load(options: MergeOptions, roots: &Roots, pages: &MemoryPages) -> Maps {
    let mut maps = run(Maps::load(VOLUME, roots, pages, allocator(), SHAPE)).unwrap();
    maps.merge.set_options(options);
    maps
}

pub(super) fn checksums(middle: u64, len: u64) -> Vec<BlockChecksum> {
    (middle..middle + len).map(|middle| BlockChecksum(middle as u32 ^ 0x5555)).collect()
}

pub(super) fn birth(middle: u64, physical: u64, len: u64) -> Message {
    Message::Birth {
        middle: MiddleAddress(middle),
        physical: PhysicalBlock(physical),
        checksums: checksums(middle, len),
    }
}

pub(super) fn map_run(object: u64, start: u64, len_blocks: u64, middle: u64) -> Message {
    Message::MapRun {
        object: ObjectId(object),
        start: LogicalBlock(start),
        len_blocks,
        middle: MiddleAddress(middle),
    }
}

pub(super) fn share_run(object: u64, start: u64, len_blocks: u64, middle: u64) -> Message {
    Message::ShareRun {
        object: ObjectId(object),
        start: LogicalBlock(start),
        len_blocks,
        middle: MiddleAddress(middle),
    }
}

pub(super) fn unmap_run(object: u64, start: u64, len_blocks: u64) -> Message {
    Message::UnmapRun { object: ObjectId(object), start: LogicalBlock(start), len_blocks }
}

/// A block that something refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub physical: u64,
    pub references: u64,
}

/// The maps, block by block.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub logical: BTreeMap<(u64, u64), u64>,
    pub living: BTreeMap<u64, Block>,
    pub values: BTreeMap<(TreeId, Key), Vec<u8>>,
    pub next_middle: u64,
    pub next_physical: u64,
}

impl Model {
    fn release(&mut self, middle: u64) {
        let block = self.living.get_mut(&middle).unwrap();
        block.references -= 1;
        if block.references == 0 {
            self.living.remove(&middle);
        }
    }

    fn unmap(&mut self, object: u64, start: u64, len: u64) {
        let range = (object, start)..=(object, start.saturating_add(len - 1));
        let blocks: Vec<_> = self.logical.range(range).map(|(key, middle)| (*key, *middle)).collect();
        for (key, middle) in blocks {
            self.logical.remove(&key);
            self.release(middle);
        }
    }

    fn map(&mut self, object: u64, block: u64, middle: u64) {
        if let Some(displaced) = self.logical.insert((object, block), middle) {
            self.release(displaced);
        }
    }

    fn shift(&mut self, object: u64, from: u64, to: u64, len: u64) {
        let moving: Vec<_> = (0..len).map(|at| (at, self.logical.remove(&(object, from + at)))).collect();
        self.unmap(object, to, len);
        for (at, middle) in moving {
            self.logical.extend(middle.map(|middle| ((object, to + at), middle)));
        }
    }

    fn apply(&mut self, message: &Message) {
        match message {
            Message::Birth { middle, physical, checksums } => {
                for at in 0..checksums.len() as u64 {
                    self.living.insert(middle.0 + at, Block { physical: physical.0 + at, references: 0 });
                }
            }
            Message::MapRun { object, start, len_blocks, middle }
            | Message::ShareRun { object, start, len_blocks, middle } => {
                for at in 0..*len_blocks {
                    self.living.get_mut(&(middle.0 + at)).unwrap().references += 1;
                    self.map(object.0, start.0 + at, middle.0 + at);
                }
            }
            Message::UnmapRun { object, start, len_blocks } => self.unmap(object.0, start.0, *len_blocks),
            Message::Move { middle, len_blocks, from, to } => {
                for at in 0..*len_blocks {
                    if let Some(block) = self.living.get_mut(&(middle.0 + at))
                        && block.physical == from.0 + at
                    {
                        block.physical = to.0 + at;
                    }
                }
            }
            Message::Put { tree, key, value } => {
                self.values.insert((*tree, *key), value.clone());
            }
            Message::Delete { tree, key } => {
                self.values.remove(&(*tree, *key));
            }
            Message::DeleteAll { tree, hi } => {
                self.values.retain(|(id, key), _| (*id, key.hi) != (*tree, *hi))
            }
        }
    }

    /// As it would be without clones: only the first reference to a block is there.
    pub fn unshared(mut self) -> Self {
        let mut seen = BTreeSet::new();
        self.logical.retain(|_, middle| seen.insert(*middle));
        self.living.values_mut().for_each(|block| block.references = 1);
        self
    }

    pub fn usage(&self) -> BTreeMap<u64, u64> {
        let mut usage = BTreeMap::new();
        for block in self.living.values() {
            *usage.entry(block.physical / SEGMENT_BLOCKS).or_default() += 1;
        }
        usage
    }
}

/// What the log keeps: shifts as they were asked for, all else as it was applied.
#[derive(Clone, Debug)]
enum Logged {
    Message(Message),
    Shift { object: u64, from: u64, to: u64, len: u64 },
}

pub(super) struct World {
    pub maps: Maps,
    pub model: Model,
    pub pages: MemoryPages,
    /// Of the newest durable checkpoint.
    roots: Roots,
    /// What is not known to be in it.
    log: Vec<Logged>,
    /// Messages of the log that were frozen, and those of them that are in tables.
    frozen: usize,
    flushed: usize,
}

impl World {
    pub fn new(options: MergeOptions) -> Self {
        let model = Model { next_middle: 1, ..Model::default() };
        Self::over(maps(options), model, MemoryPages::default(), Roots::default())
    }

    fn over(maps: Maps, model: Model, pages: MemoryPages, roots: Roots) -> Self {
        Self { maps, model, pages, roots, log: Vec::new(), frozen: 0, flushed: 0 }
    }

    /// What the model says as page trees of an earlier release, opened.
    pub fn upgraded(options: MergeOptions, model: Model) -> Self {
        let mut kv = KeyValue::new(VOLUME, allocator());
        super::upgrade::testing::put_trees(&mut kv, &model);
        let pages = MemoryPages::default();
        let roots = run(kv.snapshot().write(&pages)).unwrap();
        Self::over(load(options, &roots, &pages), model, pages, roots)
    }

    /// Nothing but addresses that died before they were born.
    pub fn upgraded_with_dead(middle: u64, len_blocks: u64) -> Self {
        let mut kv = KeyValue::new(VOLUME, allocator());
        kv.put(tree::MIDDLE, Key::new(middle, 0), &MiddleRun::Dead { len_blocks }.encode());
        let pages = MemoryPages::default();
        let roots = run(kv.snapshot().write(&pages)).unwrap();
        Self::over(load(SMALL, &roots, &pages), Model::default(), pages, roots)
    }

    pub fn send(&mut self, message: Message) {
        let before = self.model.living.len() as i64;
        self.model.apply(&message);
        self.maps.note_mapped(self.model.living.len() as i64 - before);
        self.maps.apply(message.clone());
        self.log.push(Logged::Message(message));
    }

    pub fn write(&mut self, object: u64, start: u64, len: u64) {
        let (middle, physical) = (self.model.next_middle, self.model.next_physical);
        self.model.next_middle += len;
        self.model.next_physical += len;
        // In one step for the model: blocks are not alive before they are mapped.
        let messages = [birth(middle, physical, len), map_run(object, start, len, middle)];
        let before = self.model.living.len() as i64;
        for message in messages {
            self.model.apply(&message);
            self.maps.apply(message.clone());
            self.log.push(Logged::Message(message));
        }
        self.maps.note_mapped(self.model.living.len() as i64 - before);
    }

    pub fn shift(&mut self, object: u64, from: u64, to: u64, len: u64) {
        if from == to {
            return;
        }
        let before = self.model.living.len() as i64;
        self.model.shift(object, from, to, len);
        shift(&self.maps, &self.pages, object, from, to, len);
        self.maps.note_mapped(self.model.living.len() as i64 - before);
        self.log.push(Logged::Shift { object, from, to, len });
    }

    /// Has `to` share what is mapped from `from` on.
    pub fn clone_range(&mut self, from: (u64, u64), to: (u64, u64), len: u64) {
        if from.0 == to.0 && from.1.abs_diff(to.1) < len {
            return;
        }
        let pieces = run(self.maps.lookup(&self.pages, ObjectId(from.0), LogicalBlock(from.1), len)).unwrap();
        for piece in pieces {
            let (start, len) = (piece.start.0 - from.1 + to.1, piece.len_blocks);
            match piece.content {
                Content::Hole => self.send(unmap_run(to.0, start, len)),
                Content::Data { middle, .. } => self.send(share_run(to.0, start, len, middle.0)),
                Content::Lost { middle } => panic!("{middle:?} is lost"),
            }
        }
    }

    /// Moves blocks from that of this number on: as many as lie in a row, those that died long ago or just now included.
    pub fn relocate(&mut self, number: usize, len_max: u64) {
        let Some(number) = number.checked_rem(self.model.living.len()) else { return };
        let Some((&middle, &block)) = self.model.living.iter().nth(number) else { return };
        let lies_in_row = |at: &u64| match self.model.living.get(&(middle + at)) {
            Some(other) => other.physical == block.physical + at,
            None => middle + at < self.model.next_middle,
        };
        let len_blocks = (0..len_max).take_while(lies_in_row).count() as u64;
        let to = self.model.next_physical;
        self.model.next_physical += len_blocks;
        self.send(Message::Move {
            middle: MiddleAddress(middle),
            len_blocks,
            from: PhysicalBlock(block.physical),
            to: PhysicalBlock(to),
        });
    }

    /// A mover that comes too late, and perhaps after another: from this address on all have died.
    pub fn relocate_dead(&mut self, number: u64, len_max: u64) {
        let middle = 1 + number % self.model.next_middle;
        let is_dead = |at: &u64| {
            middle + at < self.model.next_middle && !self.model.living.contains_key(&(middle + at))
        };
        let len_blocks = (0..len_max).take_while(is_dead).count() as u64;
        if len_blocks == 0 {
            return;
        }
        let to = self.model.next_physical;
        self.model.next_physical += len_blocks;
        self.send(Message::Move {
            middle: MiddleAddress(middle),
            len_blocks,
            from: PhysicalBlock(number % to),
            to: PhysicalBlock(to),
        });
    }

    pub fn freeze(&mut self) {
        self.maps.seal();
        self.frozen = self.log.len();
    }

    /// Writes fail from the one of this number on, counted from now: none with `None`.
    pub fn break_writes(&mut self, after: Option<usize>) {
        self.pages.fail_from.set(after.map(|after| self.pages.writes.get() + after));
    }

    pub fn flush(&mut self) -> Result<(), StoreError> {
        run(self.maps.flush(&self.pages, self.maps.merge.frozen_count()))?;
        self.flushed = self.frozen;
        Ok(())
    }

    pub fn merge(&mut self) -> Result<bool, StoreError> {
        run(self.maps.merge_piece(&self.pages, 0))
    }

    pub fn reclaim(&mut self, what: Reclaim) -> Result<bool, StoreError> {
        run(self.maps.reclaim_piece(&self.pages, what, 0))
    }

    /// Merges may go on while roots are on their way.
    pub fn commit(&mut self, merges_meanwhile: usize, is_settled: bool) -> Result<(), StoreError> {
        // Roots name what was loaded from page trees only when it is in tables.
        self.flush()?;
        let snapshot = self.maps.snapshot();
        for _ in 0..merges_meanwhile {
            self.reclaim(Reclaim::Pages)?;
        }
        let roots = run(snapshot.write(&self.pages))?;
        let generation = snapshot.generation();
        drop(snapshot);
        self.roots = roots;
        self.log.drain(..self.flushed);
        self.frozen -= self.flushed;
        self.flushed = 0;
        if is_settled {
            self.maps.settle(generation);
            self.check_durable();
        }
        Ok(())
    }

    /// Pages that the durable roots reach are not free.
    fn check_durable(&self) {
        let durable = load(*self.maps.merge.options(), &self.roots, &self.pages);
        for tree in durable.merge.trees() {
            for view in durable.merge.levels(tree).views() {
                for extent in &view.table.extents {
                    for page in 0..u64::from(extent.page_count) {
                        let address = MetadataAddress(extent.start.0 + page * PAGE_BYTES as u64);
                        assert!(!self.maps.allocator().mark_used(address), "page {address} is free");
                    }
                }
            }
        }
    }

    /// Goes on from the newest durable checkpoint and the log.
    pub fn restart(&mut self) {
        let maps = load(*self.maps.merge.options(), &self.roots, &self.pages);
        for logged in &self.log {
            match logged {
                Logged::Message(message) => {
                    if let Message::Birth { checksums, .. } = message {
                        maps.note_mapped(checksums.len() as i64);
                    }
                    maps.apply(message.clone());
                }
                Logged::Shift { object, from, to, len } => {
                    shift(&maps, &self.pages, *object, *from, *to, *len);
                }
            }
        }
        self.maps = maps;
        (self.frozen, self.flushed) = (0, 0);
    }

    /// Everything in tables, met, and durable.
    pub fn settle(&mut self) {
        let mut rounds = 0;
        self.freeze();
        self.commit(0, true).unwrap();
        while self.maps.may_reclaim(Reclaim::Pages) {
            if !self.reclaim(Reclaim::Pages).unwrap() {
                self.commit(0, true).unwrap();
            }
            rounds += 1;
            assert!(rounds < 20_000, "merging has no end");
        }
        // Pages of a generation are free when the next one has its roots.
        self.commit(0, true).unwrap();
    }

    // ---- comparing ---------------------------------------------------------------------------------------------------------

    /// A part of one object and one entry.
    pub fn check_some(&self, object: u64, start: u64, len: u64) {
        self.check_object(object, start, len);
        let key = (TREES[start as usize % 2], Key::new(object, start % 60));
        let found = run(self.maps.get(&self.pages, key.0, key.1)).unwrap();
        assert_eq!(found.as_ref(), self.model.values.get(&key), "{key:?}");
        let next = run(self.maps.next_extent(&self.pages, ObjectId(object), LogicalBlock(start))).unwrap();
        let expected = self.model.logical.range((object, start)..=(object, u64::MAX)).next();
        assert_eq!(next.map(|extent| extent.start.0), expected.map(|((_, block), _)| *block));
        let is_mapped = |block: u64| self.model.logical.contains_key(&(object, block));
        assert!(next.is_none_or(|extent| (0..extent.len_blocks).all(|at| is_mapped(extent.start.0 + at))));
    }

    fn check_object(&self, object: u64, start: u64, len: u64) {
        let mut expected_start = start;
        for piece in run(self.maps.lookup(&self.pages, ObjectId(object), LogicalBlock(start), len)).unwrap() {
            assert_eq!(piece.start.0, expected_start);
            expected_start += piece.len_blocks;
            if let Content::Data { middle, checksums, .. } = &piece.content {
                assert_eq!(*checksums, super::testing::checksums(middle.0, piece.len_blocks));
            }
            for at in 0..piece.len_blocks {
                let expected = self.model.logical.get(&(object, piece.start.0 + at)).copied();
                match &piece.content {
                    Content::Hole => assert_eq!(expected, None, "block {}", piece.start.0 + at),
                    Content::Lost { middle } => panic!("{} is lost, {expected:?} expected", middle.0),
                    Content::Data { middle, physical, .. } => {
                        assert_eq!(expected, Some(middle.0 + at));
                        assert_eq!(self.model.living[&(middle.0 + at)].physical, physical.0 + at);
                    }
                }
            }
        }
        assert_eq!(expected_start, start + len);
    }

    /// Everything that can be read.
    pub fn check_reads(&self) {
        for object in 0..OBJECTS {
            self.check_object(object, 0, 60_000);
        }
        for id in TREES {
            let found = run(self.maps.scan(&self.pages, id, Key::MIN, Key::MAX, usize::MAX)).unwrap();
            let expected = self.model.values.iter().filter(|((tree, _), _)| *tree == id);
            let expected: Vec<_> = expected.map(|((_, key), value)| (*key, value.clone())).collect();
            assert_eq!(found, expected);
            let some = run(self.maps.scan(&self.pages, id, Key::new(0, 9), Key::new(1, 40), 5)).unwrap();
            let inside =
                expected.into_iter().filter(|(key, _)| (Key::new(0, 9)..=Key::new(1, 40)).contains(key));
            assert_eq!(some, inside.take(5).collect::<Vec<_>>());
        }
    }

    /// What there is when all that waits has met: who lives where, with how many references, and counts of live blocks that are exact with what the meetings change.
    pub fn check_maps(&self) {
        let walk = |tree, newest: &Memory, visit: &mut dyn FnMut(&crate::format::run::RunItem<'_>)| {
            run(self.maps.walk(&self.pages, tree, newest, visit)).unwrap()
        };
        let mut logical = BTreeMap::new();
        let displaced = walk(tree::LOGICAL, &Memory::default(), &mut |item| {
            logical.extend((item.lo..=item.last).map(|at| ((item.hi, at), item.number + (at - item.lo))));
        });
        assert_eq!(logical, self.model.logical);
        let mut living = BTreeMap::new();
        let died = walk(tree::MIDDLE, &displaced, &mut |item| {
            let references = match item.kind {
                ItemKind::Birth => 1,
                ItemKind::SharedBirth => 1 + u64::from(shared_parts(item.bytes).0),
                kind => panic!("{kind:?} of {}..={} waits for no birth", item.lo, item.last),
            };
            let physical = |at: u64| item.number + (at - item.lo);
            living.extend((item.lo..=item.last).map(|at| (at, Block { physical: physical(at), references })));
        });
        assert_eq!(living, self.model.living);
        let mut changes: BTreeMap<u64, i64> = BTreeMap::new();
        for item in died.from(tree::USAGE, 0, 0) {
            *changes.entry(item.hi).or_default() += decode_signed(item.number);
        }
        let truth = self.model.usage();
        for segment in 0..=self.model.next_physical / SEGMENT_BLOCKS {
            let change = changes.get(&segment).copied().unwrap_or(0);
            let counted = self.maps.live_blocks(SegmentId(segment as u32)) as i64;
            let live = truth.get(&segment).copied().unwrap_or(0) as i64;
            assert_eq!(counted + change, live, "segment {segment}: {counted} counted");
        }
        assert!(self.maps.live_blocks_in_all() >= self.model.living.len() as u64);
    }

    /// Counts of live blocks as they are, which are never too low.
    pub fn check_counts_are_high_enough(&self) {
        for (segment, live) in self.model.usage() {
            let counted = self.maps.live_blocks(SegmentId(segment as u32));
            assert!(counted >= live, "segment {segment}: {live} live blocks, {counted} counted");
        }
        assert!(self.maps.live_blocks_in_all() >= self.model.living.len() as u64);
    }

    /// With everything settled nothing is left but what lives.
    pub fn check_settled(&self) {
        let usage = self.model.usage();
        for segment in 0..=self.model.next_physical / SEGMENT_BLOCKS {
            let counted = self.maps.live_blocks(SegmentId(segment as u32));
            assert_eq!(counted, usage.get(&segment).copied().unwrap_or(0), "segment {segment}");
        }
        assert_eq!(self.maps.live_blocks_in_all(), self.model.living.len() as u64);
        let allocator = self.maps.allocator();
        assert_eq!(allocator.page_count() - allocator.free_count(), self.maps.page_count());
        let mut faults = Vec::new();
        run(self.maps.verify_tables(&self.pages, |error| faults.push(error.to_string())));
        assert_eq!(faults, Vec::<String>::new());
    }
}

fn shift(maps: &Maps, pages: &MemoryPages, object: u64, from: u64, to: u64, len: u64) {
    let id = ObjectId(object);
    let steps = run(maps.shift_steps(pages, id, LogicalBlock(from), LogicalBlock(to), len)).unwrap();
    for step in steps {
        maps.apply(match step {
            ShiftStep::Unmap { start, len_blocks } => Message::UnmapRun { object: id, start, len_blocks },
            ShiftStep::Share { start, len_blocks, middle } => {
                Message::ShareRun { object: id, start, len_blocks, middle }
            }
        });
    }
}
