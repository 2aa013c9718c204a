use std::collections::BTreeMap;
use std::rc::Rc;

use proptest::prelude::{Just, ProptestConfig, Strategy, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::TestCaseError;

use super::{Content, Fate, Maps, Message, tree};
use crate::address::MetadataAddress;
use crate::address::{
    BlockChecksum, LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock, SegmentId, VolumeId,
};
use crate::format::page::Roots;
use crate::kv::PageAllocator;
use crate::kv::testing::{MemoryPages, run};
use crate::volume::Key;

const VOLUME: VolumeId = VolumeId(5);
const SEGMENT_BLOCKS: u64 = 100;
const PAGES: usize = 500;

fn allocator() -> Rc<PageAllocator> {
    Rc::new(PageAllocator::new(MetadataAddress(0), PAGES))
}

fn maps() -> Maps {
    Maps::new(VOLUME, allocator(), SEGMENT_BLOCKS)
}

fn checksum(middle: u64) -> BlockChecksum {
    BlockChecksum(middle as u32 ^ 0x5555)
}

fn checksums(middle: u64, len: u64) -> Vec<BlockChecksum> {
    (middle..middle + len).map(checksum).collect()
}

/// What is known of one middle address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Unborn,
    Stored(u64),
}

/// The maps, block by block.
#[derive(Clone, Debug, Default)]
struct Model {
    logical: BTreeMap<(u64, u64), u64>,
    /// Living middle addresses.
    living: BTreeMap<u64, Block>,
    /// Written to the bank, not born yet; dead or alive.
    banked: Vec<(u64, u64)>,
    next_middle: u64,
    next_physical: u64,
}

impl Model {
    fn unmap(&mut self, object: u64, start: u64, len: u64) {
        for block in start..start + len {
            if let Some(middle) = self.logical.remove(&(object, block)) {
                self.living.remove(&middle);
            }
        }
    }

    fn shift(&mut self, object: u64, from: u64, to: u64, len: u64) {
        let moving: Vec<_> = (0..len).map(|at| (at, self.logical.remove(&(object, from + at)))).collect();
        self.unmap(object, to, len);
        for (at, middle) in moving {
            self.logical.extend(middle.map(|middle| ((object, to + at), middle)));
        }
    }

    fn map(&mut self, object: u64, start: u64, len: u64, middle: u64, stored: Option<u64>) {
        self.unmap(object, start, len);
        for offset in 0..len {
            self.logical.insert((object, start + offset), middle + offset);
            let block = stored.map_or(Block::Unborn, |physical| Block::Stored(physical + offset));
            self.living.insert(middle + offset, block);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Written as full stripes: birth and mapping in one record.
    WriteLarge {
        object: u64,
        start: u64,
        len: u64,
        skip: u64,
    },
    /// Written to the bank: born later.
    WriteSmall {
        object: u64,
        start: u64,
        len: u64,
    },
    FlushBank,
    Shift {
        object: u64,
        from: u64,
        to: u64,
        len: u64,
    },
    Unmap {
        object: u64,
        start: u64,
        len: u64,
    },
    /// A cleaner moves what lay at these middle addresses when it looked, perhaps too late.
    Move {
        middle: u64,
        len: u64,
        stale: bool,
    },
    MergeSome(usize),
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..3_u64, prop_oneof![0..60_u64, 0..3000_u64], prop_oneof![1..12_u64, 1..1500_u64]);
    prop_oneof![
        4 => (range(), 0..3_u64)
            .prop_map(|((object, start, len), skip)| Step::WriteLarge { object, start, len, skip }),
        6 => range().prop_map(|(object, start, len)| Step::WriteSmall { object, start, len: len % 40 + 1 }),
        2 => Just(Step::FlushBank),
        3 => range().prop_map(|(object, start, len)| Step::Unmap { object, start, len }),
        3 => (range(), 0..3000_u64).prop_map(|((object, from, len), to)| Step::Shift { object, from, to, len }),
        3 => (0..100_u64, 1..300_u64, proptest::bool::ANY)
            .prop_map(|(middle, len, stale)| Step::Move { middle, len, stale }),
        3 => (0..20_usize).prop_map(Step::MergeSome),
        1 => Just(Step::Checkpoint),
    ]
}

struct World {
    maps: Maps,
    model: Model,
    store: MemoryPages,
    /// Messages since the checkpoint, to be replayed.
    log: Vec<Message>,
    roots: Roots,
}

impl World {
    fn new() -> Self {
        let model = Model { next_middle: 1, ..Model::default() };
        Self { maps: maps(), model, store: MemoryPages::default(), log: Vec::new(), roots: Roots::default() }
    }

    fn send(&mut self, message: Message) {
        self.log.push(message.clone());
        self.maps.apply(message);
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::WriteLarge { object, start, len, skip } => {
                let (middle, physical) = (self.model.next_middle, self.model.next_physical + skip);
                self.model.next_middle += len;
                self.model.next_physical = physical + len;
                self.model.map(object, start, len, middle, Some(physical));
                self.send(Message::Birth {
                    middle: MiddleAddress(middle),
                    physical: PhysicalBlock(physical),
                    checksums: checksums(middle, len),
                });
                self.send(map_run(object, start, len, middle));
            }
            Step::WriteSmall { object, start, len } => {
                let middle = self.model.next_middle;
                self.model.next_middle += len;
                self.model.banked.push((middle, len));
                self.model.map(object, start, len, middle, None);
                self.send(map_run(object, start, len, middle));
            }
            Step::FlushBank => {
                for (middle, len) in std::mem::take(&mut self.model.banked) {
                    let physical = self.model.next_physical;
                    self.model.next_physical += len;
                    for offset in 0..len {
                        if let Some(block) = self.model.living.get_mut(&(middle + offset)) {
                            *block = Block::Stored(physical + offset);
                        }
                    }
                    self.send(Message::Birth {
                        middle: MiddleAddress(middle),
                        physical: PhysicalBlock(physical),
                        checksums: checksums(middle, len),
                    });
                }
            }
            Step::Unmap { object, start, len } => {
                self.model.unmap(object, start, len);
                self.send(Message::UnmapRun {
                    object: ObjectId(object),
                    start: LogicalBlock(start),
                    len_blocks: len,
                });
            }
            Step::Shift { object, from, to, len } => {
                self.model.shift(object, from, to, len);
                self.send(Message::ShiftRun {
                    object: ObjectId(object),
                    from: LogicalBlock(from),
                    to: LogicalBlock(to),
                    len_blocks: len,
                });
            }
            Step::Move { middle, len, stale } => {
                let middle = middle * self.model.next_middle / 100;
                let Some(Block::Stored(first)) = self.model.living.get(&middle).copied() else {
                    return Ok(());
                };
                let from = if stale { first + 1 } else { first };
                let to = self.model.next_physical;
                self.model.next_physical += len;
                for offset in 0..len {
                    if let Some(block) = self.model.living.get_mut(&(middle + offset))
                        && *block == Block::Stored(from + offset)
                    {
                        *block = Block::Stored(to + offset);
                    }
                }
                self.send(Message::Move {
                    middle: MiddleAddress(middle),
                    len_blocks: len,
                    from: PhysicalBlock(from),
                    to: PhysicalBlock(to),
                });
            }
            Step::MergeSome(budget) => {
                let before = self.maps.pending_count();
                let more = self.maps.merge_pending(budget);
                prop_assert_eq!(more, self.maps.pending_count() > 0);
                if before == 0 {
                    prop_assert_eq!(more, false);
                }
            }
            Step::Checkpoint => {
                let bound = self.maps.checkpoint_page_bound();
                let before = self.store.writes.get();
                let snapshot = self.maps.snapshot();
                self.roots = run(snapshot.write(&self.store)).unwrap();
                let written = self.store.writes.get() - before;
                assert!(written <= bound, "{written} pages written, {bound} expected");
                self.maps.settle(self.roots.generation);
                self.log.clear();
            }
        }
        Ok(())
    }

    /// What the newest checkpoint and the messages since then lead to.
    fn recovered(&self) -> Maps {
        let load = Maps::load(VOLUME, &self.roots, &self.store, allocator(), SEGMENT_BLOCKS);
        let mut maps = run(load).unwrap();
        for message in self.log.iter().cloned() {
            maps.apply(message);
        }
        maps
    }
}

fn map_run(object: u64, start: u64, len: u64, middle: u64) -> Message {
    Message::MapRun {
        object: ObjectId(object),
        start: LogicalBlock(start),
        len_blocks: len,
        middle: MiddleAddress(middle),
    }
}

/// Compares what readers see with the model, block by block.
fn check_reads(maps: &Maps, model: &Model) -> Result<(), TestCaseError> {
    for object in 0..3 {
        let mut expected_start = 0;
        for piece in maps.lookup(ObjectId(object), LogicalBlock(0), 5000) {
            prop_assert_eq!(piece.start.0, expected_start);
            expected_start += piece.len_blocks;
            for offset in 0..piece.len_blocks {
                let expected = model.logical.get(&(object, piece.start.0 + offset)).copied();
                let state = expected.and_then(|middle| model.living.get(&middle).copied());
                match &piece.content {
                    Content::Hole => prop_assert_eq!(expected, None),
                    Content::Unborn { middle } => {
                        prop_assert_eq!(expected, Some(middle.0 + offset));
                        prop_assert_eq!(state, Some(Block::Unborn));
                    }
                    Content::Data { middle, physical, checksums } => {
                        prop_assert_eq!(expected, Some(middle.0 + offset));
                        prop_assert_eq!(state, Some(Block::Stored(physical.0 + offset)));
                        prop_assert_eq!(checksums.len() as u64, piece.len_blocks);
                        prop_assert_eq!(checksums[offset as usize], checksum(middle.0 + offset));
                    }
                }
            }
        }
        prop_assert_eq!(expected_start, 5000);
    }
    Ok(())
}

/// With every effect merged: middle map and usage are exactly what lives.
fn check_settled(maps: &mut Maps, model: &Model) -> Result<(), TestCaseError> {
    while maps.merge_pending(7) {}
    prop_assert_eq!(maps.pending_free_blocks(), 0);
    check_reads(maps, model)?;
    let mut stored = BTreeMap::new();
    maps.visit_stored(|middle, physical, len| {
        stored.extend((0..len).map(|offset| (middle.0 + offset, physical.0 + offset)));
    });
    let mut expected = BTreeMap::new();
    let mut expected_usage: BTreeMap<u64, u64> = BTreeMap::new();
    for (middle, block) in &model.living {
        if let Block::Stored(physical) = block {
            expected.insert(*middle, *physical);
            *expected_usage.entry(physical / SEGMENT_BLOCKS).or_default() += 1;
        }
    }
    prop_assert_eq!(stored, expected);
    let mut usage = BTreeMap::new();
    maps.visit_segments(|segment, live| {
        usage.insert(u64::from(segment.0), live);
    });
    prop_assert_eq!(usage, expected_usage);
    // Of the blocks that died unborn, only those that a bank still holds are remembered.
    for piece in maps.resolve(MiddleAddress(1), model.next_middle) {
        if piece.fate == Fate::Dead {
            for middle in piece.middle.0..piece.middle.0 + piece.len_blocks {
                let banked = |(start, len): &(u64, u64)| middle >= *start && middle < start + len;
                assert!(model.banked.iter().any(banked));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn maps_agree_with_a_model_of_single_blocks(steps in proptest::collection::vec(step(), 1..100)) {
        let mut world = World::new();
        for step in steps {
            world.step(step)?;
        }
        check_reads(&world.maps, &world.model)?;
        let mut recovered = world.recovered();
        check_reads(&recovered, &world.model)?;
        check_settled(&mut recovered, &world.model)?;
        check_settled(&mut world.maps, &world.model)?;
        // Everything unmapped and flushed: nothing is left over.
        for object in 0..3 {
            world.step(Step::Unmap { object, start: 0, len: 10_000 })?;
        }
        world.step(Step::FlushBank)?;
        check_settled(&mut world.maps, &world.model)?;
        for id in [tree::LOGICAL, tree::MIDDLE, tree::USAGE] {
            prop_assert_eq!(world.maps.scan(id, Key::MIN, Key::MAX, 10), vec![]);
        }
        prop_assert_eq!(world.maps.page_count(), 0);
    }
}

fn entries(maps: &Maps, id: crate::volume::TreeId) -> usize {
    maps.scan(id, Key::MIN, Key::MAX, usize::MAX).len()
}

fn birth(middle: u64, physical: u64, len: u64) -> Message {
    Message::Birth {
        middle: MiddleAddress(middle),
        physical: PhysicalBlock(physical),
        checksums: checksums(middle, len),
    }
}

#[test]
fn a_file_written_block_by_block_is_kept_as_long_runs() {
    let mut maps = maps();
    for block in 0..1024 {
        maps.apply(map_run(1, block, 1, 7000 + block));
        maps.apply(birth(7000 + block, 300 + block, 1));
    }
    assert_eq!(entries(&maps, tree::LOGICAL), 2);
    assert_eq!(entries(&maps, tree::MIDDLE), 2);
    let pieces = maps.lookup(ObjectId(1), LogicalBlock(100), 50);
    assert_eq!(pieces.len(), 1);
    assert_eq!(
        pieces[0].content,
        Content::Data {
            middle: MiddleAddress(7100),
            physical: PhysicalBlock(400),
            checksums: checksums(7100, 50)
        }
    );
}

#[test]
fn overwritten_blocks_are_counted_until_they_are_freed() {
    let mut maps = maps();
    maps.apply(birth(1, 90, 20));
    maps.apply(map_run(1, 0, 20, 1));
    maps.apply(birth(21, 200, 20));
    maps.apply(map_run(1, 0, 20, 21));
    assert_eq!(maps.pending_free_blocks(), 20);
    assert!(!maps.merge_pending(100));
    assert_eq!(maps.pending_free_blocks(), 0);
    assert_eq!(maps.live_blocks(SegmentId(0)), 0);
    assert_eq!(maps.live_blocks(SegmentId(1)), 0);
    assert_eq!(maps.live_blocks(SegmentId(2)), 20);
}

#[test]
fn segments_that_became_empty_are_named_once() {
    let mut maps = maps();
    maps.apply(birth(1, 0, 20));
    maps.apply(map_run(1, 0, 20, 1));
    maps.merge_pending(100);
    assert_eq!(maps.take_emptied(), []);
    maps.apply(Message::UnmapRun { object: ObjectId(1), start: LogicalBlock(0), len_blocks: u64::MAX });
    maps.merge_pending(100);
    assert_eq!(maps.take_emptied(), [SegmentId(0)]);
    assert_eq!(maps.take_emptied(), []);
}

#[test]
fn death_wins_over_a_birth_and_a_move_that_come_later() {
    let mut maps = maps();
    maps.apply(Message::Death { middle: MiddleAddress(10), len_blocks: 5 });
    maps.merge_pending(100);
    assert_eq!(maps.resolve(MiddleAddress(10), 5)[0].fate, Fate::Dead);
    maps.apply(birth(8, 50, 10));
    maps.apply(Message::Move {
        middle: MiddleAddress(8),
        len_blocks: 10,
        from: PhysicalBlock(50),
        to: PhysicalBlock(150),
    });
    maps.merge_pending(100);
    assert_eq!(maps.live_blocks(SegmentId(1)), 5);
    assert_eq!(entries(&maps, tree::MIDDLE), 2);
}

#[test]
fn forgotten_deaths_leave_nothing() {
    let mut maps = maps();
    maps.apply(Message::Death { middle: MiddleAddress(10), len_blocks: 2000 });
    maps.merge_pending(100);
    maps.apply(birth(3000, 1, 1));
    maps.apply(Message::Forget { middle: MiddleAddress(0), len_blocks: 4000 });
    assert_eq!(entries(&maps, tree::MIDDLE), 1);
}

#[test]
fn counters_go_when_they_are_zero() {
    let mut maps = maps();
    let (id, key) = (crate::volume::TreeId(20), Key::new(1, 2));
    maps.apply(Message::Add { tree: id, key, delta: 5 });
    maps.apply(Message::Add { tree: id, key, delta: -2 });
    assert_eq!(maps.get(id, key), Some(3_i64.to_le_bytes().as_slice()));
    maps.apply(Message::Add { tree: id, key, delta: -3 });
    assert_eq!(maps.get(id, key), None);
}

#[test]
fn the_next_extent_is_cut_to_where_the_search_began() {
    let mut maps = maps();
    maps.apply(map_run(1, 10, 20, 100));
    maps.apply(map_run(2, 0, 5, 200));
    let next = |object: u64, from: u64| {
        maps.next_extent(ObjectId(object), LogicalBlock(from)).map(|e| (e.start.0, e.len_blocks))
    };
    assert_eq!(next(1, 0), Some((10, 20)));
    assert_eq!(next(1, 15), Some((15, 15)));
    assert_eq!(next(1, 30), None);
    assert_eq!(next(2, u64::MAX), None);
}

#[test]
#[should_panic(expected = "bare change of map")]
fn maps_are_not_changed_behind_their_backs() {
    maps().apply(Message::Delete { tree: tree::MIDDLE, key: Key::MIN });
}
