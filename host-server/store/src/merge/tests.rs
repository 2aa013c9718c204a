//! The merge store against a model that applies everything at once, whatever is merged when.

use proptest::prelude::*;

use super::item::{Item, MoveBytes};
use super::testing::{DEAD, LOGICAL, MIDDLE, Merging, Model, Seen, USAGE, VALUES, fired_by_birth};
use crate::format::run::ItemKind;

const OBJECTS: u64 = 2;
const BLOCKS: u64 = 24;
const KEYS: u64 = 6;

#[derive(Clone, Debug)]
enum Act {
    Write {
        object: u64,
        start: u64,
        blocks: u64,
    },
    Share {
        object: u64,
        start: u64,
        from: u64,
        blocks: u64,
    },
    Unmap {
        object: u64,
        start: u64,
        blocks: u64,
    },
    Remove {
        object: u64,
    },
    Put {
        hi: u64,
        lo: u64,
        value: u8,
    },
    Delete {
        hi: u64,
        lo: u64,
    },
    DeleteAll {
        hi: u64,
    },
    /// The cleaner's: it has seen where the address lies.
    Move {
        block: u64,
        is_late: bool,
    },
    Rotate,
    Merge {
        from: prop::sample::Index,
        count: prop::sample::Index,
    },
    Snapshot,
    DeleteSnapshot(prop::sample::Index),
}

fn any_act() -> impl Strategy<Value = Act> {
    let object = 0..OBJECTS;
    let range = (0..BLOCKS, 1..7_u64);
    prop_oneof![
        6 => (object.clone(), range.clone()).prop_map(|(object, (start, blocks))| Act::Write { object, start, blocks }),
        2 => (object.clone(), range.clone(), 0..BLOCKS)
            .prop_map(|(object, (start, blocks), from)| Act::Share { object, start, from, blocks }),
        2 => (object.clone(), range).prop_map(|(object, (start, blocks))| Act::Unmap { object, start, blocks }),
        1 => object.prop_map(|object| Act::Remove { object }),
        3 => (0..2_u64, 0..KEYS, any::<u8>()).prop_map(|(hi, lo, value)| Act::Put { hi, lo, value }),
        1 => (0..2_u64, 0..KEYS).prop_map(|(hi, lo)| Act::Delete { hi, lo }),
        1 => (0..2_u64).prop_map(|hi| Act::DeleteAll { hi }),
        2 => (0..BLOCKS, any::<bool>()).prop_map(|(block, is_late)| Act::Move { block, is_late }),
        3 => Just(Act::Rotate),
        3 => any::<(prop::sample::Index, prop::sample::Index)>().prop_map(|(from, count)| Act::Merge { from, count }),
        2 => Just(Act::Snapshot),
        1 => any::<prop::sample::Index>().prop_map(Act::DeleteSnapshot),
    ]
}

#[derive(Default)]
struct Both {
    merging: Merging,
    model: Model,
    next_middle: u64,
    next_physical: u64,
}

impl Both {
    fn act(&mut self, act: &Act) {
        let Self { merging, model, .. } = self;
        let epoch = merging.epoch;
        match *act {
            Act::Write { object, start, blocks } => {
                let (middle, physical) = (self.next_middle, self.next_physical);
                merging.write(object, start, blocks, middle, physical);
                for block in 0..blocks {
                    model.logical.insert((object, start + block), middle + block);
                    model.physical.insert(middle + block, physical + block);
                }
                self.next_middle += blocks;
                // Not always where the one before ended, so that not all births join.
                self.next_physical += blocks + blocks % 2;
            }
            Act::Share { object, start, from, blocks } => {
                for block in 0..blocks {
                    let Some(middle) = model.logical.get(&(1 - object, from + block)).copied() else {
                        continue;
                    };
                    merging.share(object, start + block, 1, middle);
                    model.logical.insert((object, start + block), middle);
                }
            }
            Act::Unmap { object, start, blocks } => {
                merging.apply(
                    LOGICAL,
                    Item::plain(ItemKind::Erase, object, start..=start + blocks - 1, epoch, 0),
                );
                model.erase(object, start..=start + blocks - 1);
            }
            Act::Remove { object } => {
                merging.apply(LOGICAL, Item::plain(ItemKind::Erase, object, 0..=u64::MAX, epoch, 0));
                model.erase(object, 0..=u64::MAX);
            }
            Act::Put { hi, lo, value } => {
                let item = Item::plain(ItemKind::Put, hi, lo..=lo, epoch, 0);
                merging.apply(VALUES, Item { bytes: vec![value; usize::from(value % 5)].into(), ..item });
                model.values.insert((hi, lo), vec![value; usize::from(value % 5)]);
            }
            Act::Delete { hi, lo } => {
                merging.apply(VALUES, Item::plain(ItemKind::Erase, hi, lo..=lo, epoch, 0));
                model.values.remove(&(hi, lo));
            }
            Act::DeleteAll { hi } => {
                merging.apply(VALUES, Item::plain(ItemKind::Erase, hi, 0..=u64::MAX, epoch, 0));
                model.values.retain(|key, _| key.0 != hi);
            }
            Act::Move { block, is_late } => {
                // One that comes late finds its address dead.
                let live = model.live();
                let middle = match is_late {
                    false => model.logical.get(&(0, block)).copied(),
                    true => (0..self.next_middle).rfind(|middle| !live.contains(middle)),
                };
                let Some(middle) = middle else { return };
                let (from, to) = (model.physical[&middle], self.next_physical);
                self.next_physical += 1;
                let bytes = MoveBytes { from, references: 0 }.encode().to_vec();
                let item = Item::plain(ItemKind::Move, 0, middle..=middle, 0, to);
                merging.apply(MIDDLE, Item { bytes: bytes.into(), ..item });
                fired_by_birth(to, 1).into_iter().for_each(|(tree, item)| merging.apply(tree, item));
                model.physical.insert(middle, to);
            }
            Act::Rotate => merging.rotate(),
            Act::Merge { from, count } => {
                if merging.run_count() > 0 {
                    let from = from.index(merging.run_count());
                    merging.merge(from, 1 + count.index(merging.run_count() - from));
                }
            }
            Act::Snapshot => {
                let Model { logical, values, .. } = model.clone();
                model.snapshots.insert(epoch, Seen { logical, values });
                merging.snapshot();
            }
            Act::DeleteSnapshot(index) => {
                if !model.snapshots.is_empty() {
                    let at = index.index(model.snapshots.len());
                    let epoch = *model.snapshots.keys().nth(at).unwrap();
                    model.snapshots.remove(&epoch);
                    merging.delete_snapshot(epoch);
                }
            }
        }
    }

    fn compare_reads(&self) {
        let Self { merging, model, .. } = self;
        let head = (u32::MAX, &model.logical, &model.values);
        let snapshots = model.snapshots.iter().map(|(epoch, seen)| (*epoch, &seen.logical, &seen.values));
        for (epoch, logical, values) in std::iter::once(head).chain(snapshots) {
            for (hi, lo) in (0..OBJECTS).flat_map(|hi| (0..BLOCKS + 8).map(move |lo| (hi, lo))) {
                let found = merging.read(LOGICAL, hi, lo, epoch).map(|item| item.number);
                assert_eq!(found.as_ref(), logical.get(&(hi, lo)), "block {lo} of {hi} in epoch {epoch}");
            }
            for (hi, lo) in (0..2).flat_map(|hi| (0..KEYS).map(move |lo| (hi, lo))) {
                let found = merging.read(VALUES, hi, lo, epoch).map(|item| item.bytes.into_owned());
                assert_eq!(found.as_ref(), values.get(&(hi, lo)), "value {lo} of {hi} in epoch {epoch}");
            }
        }
        for middle in model.live() {
            let birth = merging.resolve(middle).unwrap_or_else(|| panic!("address {middle} is gone"));
            assert_eq!(birth.number, model.physical[&middle], "place of address {middle}");
            let checksums =
                if birth.kind == ItemKind::SharedBirth { &birth.bytes[4..] } else { &birth.bytes };
            assert_eq!(checksums, (middle as u32).to_le_bytes(), "checksum of address {middle}");
        }
    }

    /// Once all has merged nothing is left of what nobody refers to.
    fn compare_all(&mut self) {
        self.merging.merge_all();
        self.compare_reads();
        let Self { merging, model, .. } = self;
        assert_eq!(merging.sums(USAGE), model.usage());
        let live = model.live();
        let stale =
            (0..self.next_middle).find(|middle| !live.contains(middle) && merging.resolve(*middle).is_some());
        assert_eq!(stale, None, "an address that nobody refers to");
        if model.snapshots.is_empty() {
            assert!(merging.sums(DEAD).is_empty());
            // No versions, no erasures.
            let mapped: u64 = model.logical.len() as u64;
            assert!(merging.item_count(LOGICAL) as u64 <= mapped);
            assert_eq!(merging.item_count(VALUES), model.values.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn whatever_merges_when_the_maps_are_those_of_all_messages_at_once(acts in prop::collection::vec(any_act(), 1..80)) {
        let mut both = Both::default();
        for (number, act) in acts.iter().enumerate() {
            both.act(act);
            if number % 16 == 15 {
                both.compare_reads();
            }
        }
        both.compare_reads();
        both.compare_all();
    }
}
