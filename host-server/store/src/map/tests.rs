use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof, proptest};
use proptest::sample::select;

use super::testing::{
    OBJECTS, SEGMENT_BLOCKS, SMALL, SMALLEST, TREES, TWO_LEVELS, World, birth, map_run, maps, unmap_run,
};
use super::{Content, Fate, Message, Reclaim, tree};
use crate::address::{LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock, SegmentId};
use crate::kv::testing::run;
use crate::merge::store::MergeOptions;
use crate::volume::{Key, TreeId};

#[derive(Clone, Debug)]
enum Step {
    Write {
        object: u64,
        start: u64,
        len: u64,
    },
    /// Single blocks here and there, so many that they take more than one page.
    Scatter {
        object: u64,
        seed: u64,
        count: u64,
    },
    Unmap {
        object: u64,
        start: u64,
        len: u64,
    },
    UnmapAll {
        object: u64,
    },
    Shift {
        object: u64,
        from: u64,
        to: u64,
        len: u64,
    },
    Clone {
        from: (u64, u64),
        to: (u64, u64),
        len: u64,
    },
    Move {
        number: usize,
        len: u64,
    },
    Put {
        tree: TreeId,
        key: Key,
        value: Vec<u8>,
    },
    Delete {
        tree: TreeId,
        key: Key,
    },
    DeleteAll {
        tree: TreeId,
        hi: u64,
    },
    Read {
        object: u64,
        start: u64,
        len: u64,
    },
    Freeze,
    Flush,
    Merge(usize),
    Reclaim {
        what: Reclaim,
        count: usize,
    },
    MoveDead {
        number: u64,
        len: u64,
    },
    Commit {
        merges: usize,
        is_settled: bool,
    },
    /// Writes fail during the steps of a checkpoint and a merge.
    Break {
        after: usize,
    },
    Restart,
    Check,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..OBJECTS, prop_oneof![0..60_u64, 0..3000_u64], prop_oneof![1..12_u64, 1..1200_u64]);
    let key = || (0..3_u64, 0..60_u64).prop_map(|(hi, lo)| Key::new(hi, lo));
    let value =
        (0..=255_u8, prop_oneof![0..40_usize, 500..2500_usize]).prop_map(|(byte, len)| vec![byte; len]);
    prop_oneof![
        12 => range().prop_map(|(object, start, len)| Step::Write { object, start, len }),
        3 => (0..OBJECTS, 0..u64::MAX, 1..300_u64)
            .prop_map(|(object, seed, count)| Step::Scatter { object, seed, count }),
        5 => range().prop_map(|(object, start, len)| Step::Unmap { object, start, len }),
        1 => (0..OBJECTS).prop_map(|object| Step::UnmapAll { object }),
        4 => (range(), prop_oneof![0..60_u64, 0..3000_u64])
            .prop_map(|((object, from, len), to)| Step::Shift { object, from, to, len }),
        5 => (range(), 0..OBJECTS, prop_oneof![0..60_u64, 0..3000_u64])
            .prop_map(|((object, from, len), to, at)| Step::Clone { from: (object, from), to: (to, at), len }),
        7 => (0..5000_usize, prop_oneof![1..12_u64, 1..400_u64])
            .prop_map(|(number, len)| Step::Move { number, len }),
        8 => (select(&TREES), key(), value).prop_map(|(tree, key, value)| Step::Put { tree, key, value }),
        3 => (select(&TREES), key()).prop_map(|(tree, key)| Step::Delete { tree, key }),
        1 => (select(&TREES), 0..3_u64).prop_map(|(tree, hi)| Step::DeleteAll { tree, hi }),
        8 => range().prop_map(|(object, start, len)| Step::Read { object, start, len }),
        6 => Just(Step::Freeze),
        6 => Just(Step::Flush),
        8 => (1..6_usize).prop_map(Step::Merge),
        5 => (select(&[Reclaim::Blocks, Reclaim::Pages]), 1..20_usize)
            .prop_map(|(what, count)| Step::Reclaim { what, count }),
        3 => (0..5000_u64, 1..12_u64).prop_map(|(number, len)| Step::MoveDead { number, len }),
        5 => (0..4_usize, proptest::bool::ANY)
            .prop_map(|(merges, is_settled)| Step::Commit { merges, is_settled }),
        2 => (0..20_usize).prop_map(|after| Step::Break { after }),
        3 => Just(Step::Restart),
        2 => Just(Step::Check),
    ]
}

impl World {
    fn step(&mut self, step: Step) {
        self.check_counts_are_high_enough();
        match step {
            Step::Write { object, start, len } => self.write(object, start, len),
            Step::Scatter { object, seed, count } => {
                for at in 0..count {
                    let block = (seed ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51;
                    self.write(object, block, 1);
                }
            }
            Step::Unmap { object, start, len } => self.send(unmap_run(object, start, len)),
            Step::UnmapAll { object } => self.send(unmap_run(object, 0, u64::MAX)),
            Step::Shift { object, from, to, len } => self.shift(object, from, to, len),
            Step::Clone { from, to, len } => self.clone_range(from, to, len),
            Step::Move { number, len } => self.relocate(number, len),
            Step::Put { tree, key, value } => self.send(Message::Put { tree, key, value }),
            Step::Delete { tree, key } => self.send(Message::Delete { tree, key }),
            Step::DeleteAll { tree, hi } => self.send(Message::DeleteAll { tree, hi }),
            Step::Read { object, start, len } => self.check_some(object, start, len),
            Step::Freeze => self.freeze(),
            Step::Flush => self.flush().unwrap(),
            Step::Merge(count) => (0..count).for_each(|_| {
                self.merge().unwrap();
            }),
            Step::Reclaim { what, count } => (0..count).for_each(|_| {
                self.reclaim(what).unwrap();
            }),
            Step::MoveDead { number, len } => self.relocate_dead(number, len),
            Step::Commit { merges, is_settled } => self.commit(merges, is_settled).unwrap(),
            Step::Break { after } => {
                self.break_writes(Some(after));
                self.freeze();
                // Whatever fails has changed nothing.
                let _ = self.flush();
                let _ = self.merge();
                let _ = self.reclaim(Reclaim::Pages);
                let _ = self.commit(1, true);
                self.break_writes(None);
            }
            Step::Restart => self.restart(),
            Step::Check => {
                self.check_reads();
                self.check_maps();
            }
        }
    }

    /// From whatever there is to nothing at all.
    fn finish(mut self) {
        self.check_reads();
        self.check_maps();
        self.settle();
        self.check_reads();
        self.check_maps();
        self.check_settled();
        self.restart();
        self.check_reads();
        self.check_settled();
        (0..OBJECTS).for_each(|object| self.send(unmap_run(object, 0, u64::MAX)));
        for tree in TREES {
            (0..3).for_each(|hi| self.send(Message::DeleteAll { tree, hi }));
        }
        self.settle();
        self.check_settled();
        self.check_maps();
        // A level below which others became empty keeps its erasures until it merges again.
        if self.maps.merge.options().first_level_pages == TWO_LEVELS.first_level_pages {
            for id in [tree::LOGICAL, tree::MIDDLE, TREES[0], TREES[1]] {
                assert_eq!(self.maps.entry_count(id), 0, "items of tree {}", id.0);
            }
            assert_eq!(self.maps.page_count(), 0);
        }
    }
}

fn options() -> impl Strategy<Value = MergeOptions> {
    select(&[SMALL, SMALLEST, TWO_LEVELS])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn maps_agree_with_a_model_of_single_blocks(
        options in options(),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(options);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }

    #[test]
    fn maps_of_an_earlier_release_go_on_as_they_were(
        before in proptest::collection::vec(step(), 1..40),
        options in options(),
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let mut earlier = World::new(options);
        before.into_iter().for_each(|step| earlier.step(step));
        let mut world = World::upgraded(options, earlier.model.unshared());
        world.check_reads();
        world.check_maps();
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}

fn pieces(world: &World, object: u64, start: u64, len: u64) -> Vec<Content> {
    let found = run(world.maps.lookup(&world.pages, ObjectId(object), LogicalBlock(start), len)).unwrap();
    found.into_iter().map(|piece| piece.content).collect()
}

#[test]
fn a_file_written_block_by_block_is_kept_as_long_runs() {
    let mut world = World::new(SMALL);
    (0..1024).for_each(|block| world.write(1, block, 1));
    assert_eq!(world.maps.entry_count(tree::LOGICAL), 2);
    assert_eq!(world.maps.entry_count(tree::MIDDLE), 2);
    assert_eq!(pieces(&world, 1, 100, 50).len(), 1);
}

#[test]
fn overwritten_blocks_are_counted_until_they_meet_what_overwrites_them() {
    let mut world = World::new(SMALL);
    world.write(1, 0, 20);
    world.freeze();
    world.write(1, 0, 20);
    assert_eq!(world.maps.live_blocks(SegmentId(0)), 40);
    assert_eq!((world.maps.live_blocks_in_all(), world.maps.unmet_blocks()), (20, 20));
    world.settle();
    assert_eq!(world.maps.live_blocks(SegmentId(0)), 20);
    assert_eq!(world.maps.unmet_blocks(), 0);
}

#[test]
fn what_two_places_share_lives_until_both_are_gone() {
    let mut world = World::new(SMALL);
    world.write(1, 0, 20);
    world.settle();
    world.clone_range((1, 5), (2, 0), 10);
    world.settle();
    world.send(unmap_run(1, 0, 20));
    world.settle();
    assert_eq!(world.maps.live_blocks(SegmentId(0)), 10);
    world.check_maps();
    world.send(unmap_run(2, 0, 10));
    world.settle();
    assert_eq!(world.maps.live_blocks(SegmentId(0)), 0);
}

#[test]
fn a_mover_loses_against_death_that_it_has_not_seen() {
    let mut world = World::new(SMALL);
    world.write(1, 0, 10);
    world.settle();
    world.write(1, 3, 2);
    world.relocate(0, 10);
    let moved = SegmentId((world.model.living[&1].physical / SEGMENT_BLOCKS) as u32);
    world.check_reads();
    world.settle();
    world.check_reads();
    world.check_settled();
    assert_eq!(world.maps.live_blocks(moved), 10);
    let fates = run(world.maps.resolve(&world.pages, MiddleAddress(1), 10)).unwrap();
    assert_eq!(fates.iter().map(|piece| piece.fate == Fate::Dead).collect::<Vec<_>>(), [false, true, false]);
}

#[test]
fn addresses_that_died_unborn_before_an_upgrade_stay_dead() {
    let mut world = World::upgraded_with_dead(10, 5);
    world.maps.apply(birth(8, 50, 10));
    world.maps.apply(map_run(1, 0, 2, 8));
    world.maps.apply(map_run(1, 2, 3, 15));
    world.settle();
    assert_eq!(world.maps.live_blocks(SegmentId(0)), 5);
    let fates = run(world.maps.resolve(&world.pages, MiddleAddress(8), 10)).unwrap();
    assert_eq!(fates.iter().map(|piece| piece.len_blocks).collect::<Vec<_>>(), [2, 5, 3]);
}

#[test]
fn the_next_extent_is_cut_to_where_the_search_began() {
    let mut world = World::new(SMALL);
    world.write(1, 10, 20);
    world.write(2, 0, 5);
    let next = |object: u64, from: u64| {
        let found = run(world.maps.next_extent(&world.pages, ObjectId(object), LogicalBlock(from))).unwrap();
        found.map(|extent| (extent.start.0, extent.len_blocks))
    };
    assert_eq!(next(1, 0), Some((10, 20)));
    assert_eq!(next(1, 15), Some((15, 15)));
    assert_eq!(next(1, 30), None);
    assert_eq!(next(2, u64::MAX), None);
}

#[test]
#[should_panic(expected = "bare change of map")]
fn maps_are_not_changed_behind_their_backs() {
    maps(SMALL).apply(Message::Delete { tree: tree::MIDDLE, key: Key::MIN });
}

#[test]
fn a_move_counts_where_it_goes_before_it_has_merged() {
    let mut world = World::new(SMALL);
    world.write(1, 0, 150);
    world.settle();
    world.relocate(0, 100);
    world.relocate(50, 20);
    world.check_counts_are_high_enough();
    world.freeze();
    world.flush().unwrap();
    world.send(unmap_run(1, 0, 60));
    world.relocate(0, 30);
    world.check_counts_are_high_enough();
    world.settle();
    world.check_settled();
}

#[test]
fn a_mover_loses_against_another_that_came_first() {
    let mut world = World::new(SMALL);
    world.write(1, 0, 10);
    world.settle();
    world.relocate(0, 10);
    world.settle();
    let to = world.model.next_physical;
    world.model.next_physical += 10;
    world.send(Message::Move {
        middle: MiddleAddress(1),
        len_blocks: 10,
        from: PhysicalBlock(0),
        to: PhysicalBlock(to),
    });
    world.check_reads();
    world.settle();
    world.check_reads();
    world.check_settled();
}
