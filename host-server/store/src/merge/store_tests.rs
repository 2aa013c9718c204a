//! The merge store on pages, against the model.

use std::rc::Rc;

use super::item::{Item, decode_signed};
use super::read::Bounds;
use super::store::{MergeOptions, MergeStore};
use super::testing::{LOGICAL, MIDDLE, Maps, Model, USAGE, VALUES, fired_by_birth};
use crate::address::{MetadataAddress, VolumeId};
use crate::format::page::PAGE_BYTES;
use crate::format::run::ItemKind;
use crate::kv::PageAllocator;
use crate::kv::testing::{MemoryPages, run};

const ALL: Bounds = Bounds { from: (0, 0), to: (u64::MAX, u64::MAX) };

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

struct Volume {
    store: MergeStore<Maps>,
    pages: MemoryPages,
    allocator: Rc<PageAllocator>,
    model: Model,
    next_middle: u64,
}

impl Volume {
    fn new() -> Self {
        let allocator = Rc::new(PageAllocator::new(MetadataAddress(1 << 20), 1 << 14));
        // Small enough that a few thousand items have several levels.
        let options = MergeOptions {
            cache_bytes: 8 * PAGE_BYTES,
            newest_runs: 2,
            first_level_pages: 4,
            piece_pages: 8,
            table_leaves: 4,
        };
        Self {
            store: MergeStore::new(VolumeId(3), Maps::default(), options, Rc::clone(&allocator)),
            pages: MemoryPages::default(),
            allocator,
            model: Model::default(),
            next_middle: 0,
        }
    }

    fn write(&mut self, object: u64, start: u64, blocks: u64) {
        let middle = self.next_middle;
        self.next_middle += blocks + 1;
        let checksums: Vec<u8> =
            (middle..middle + blocks).flat_map(|middle| (middle as u32).to_le_bytes()).collect();
        let birth = Item::plain(ItemKind::Birth, 0, middle..=middle + blocks - 1, 0, middle);
        self.store.apply(MIDDLE, Item { bytes: checksums.into(), ..birth });
        for (tree, item) in fired_by_birth(middle, blocks) {
            self.store.apply(tree, item);
        }
        self.store.apply(LOGICAL, Item::plain(ItemKind::Map, object, start..=start + blocks - 1, 0, middle));
        for block in 0..blocks {
            self.model.logical.insert((object, start + block), middle + block);
            self.model.physical.insert(middle + block, middle + block);
        }
    }

    fn erase(&mut self, object: u64, blocks: std::ops::RangeInclusive<u64>) {
        self.model.erase(object, blocks.clone());
        self.store.apply(LOGICAL, Item::plain(ItemKind::Erase, object, blocks, 0, 0));
    }

    fn put(&mut self, hi: u64, lo: u64, value: Vec<u8>) {
        let item = Item::plain(ItemKind::Put, hi, lo..=lo, 0, 0);
        self.store.apply(VALUES, Item { bytes: value.clone().into(), ..item });
        self.model.values.insert((hi, lo), value);
    }

    fn flush(&self) {
        self.store.freeze();
        let edit = run(self.store.flush(&self.pages)).unwrap();
        self.store.install(edit, 0);
        self.store.settle(0);
    }

    /// Merges one piece; false where nothing wants to.
    fn merge(&self) -> bool {
        let Some((tree, level)) = self.store.wants_merge() else { return false };
        let edit = run(self.store.merge_piece(&self.pages, tree, level, usize::MAX)).unwrap();
        self.store.install(edit, 0);
        self.store.settle(0);
        true
    }

    fn scan(&self, tree: crate::volume::TreeId, bounds: Bounds) -> Vec<super::item::OwnedItem> {
        run(self.store.scan(&self.pages, tree, bounds, u32::MAX, usize::MAX)).unwrap()
    }

    fn compare(&self) {
        let mut logical = std::collections::BTreeMap::new();
        for item in self.scan(LOGICAL, ALL) {
            for block in item.lo..=item.last {
                logical.insert((item.hi, block), item.number + (block - item.lo));
            }
        }
        assert_eq!(logical, self.model.logical);
        let values =
            self.scan(VALUES, ALL).into_iter().map(|item| ((item.hi, item.lo), item.bytes.into_owned()));
        assert_eq!(values.collect::<std::collections::BTreeMap<_, _>>(), self.model.values);
    }

    /// Every page in use is of a table that is read.
    fn require_no_leaks(&self) {
        self.store.settle(0);
        let trees = [LOGICAL, MIDDLE, USAGE, VALUES];
        let named: u32 = trees
            .iter()
            .flat_map(|tree| {
                self.store.levels(*tree).views().map(|view| view.table.page_count()).collect::<Vec<_>>()
            })
            .sum();
        assert_eq!(self.allocator.page_count() - self.allocator.free_count(), named as usize);
    }
}

/// Items that reach to the last key of their `hi` end many batches.
#[test]
fn erasures_without_end_hide_nothing_behind_them() {
    let mut volume = Volume::new();
    for object in 0..300 {
        volume.write(object, 5, 1);
        volume.erase(object, 10..=u64::MAX);
    }
    volume.compare();
    volume.flush();
    volume.compare();
}

#[test]
fn a_store_in_tables_is_what_was_sent_to_it() {
    let mut volume = Volume::new();
    let mut random = Random(5);
    for round in 0..60 {
        for _ in 0..1000 {
            let (object, start) = (random.below(3), random.below(60_000));
            match random.below(12) {
                0 => volume.erase(object, start..=start + random.below(200)),
                1 => volume.put(
                    random.below(5),
                    random.below(2000),
                    vec![round; 1 + random.below(90) as usize],
                ),
                _ => volume.write(object, start, 1 + random.below(4)),
            }
        }
        if round % 20 == 19 {
            volume.erase(2, 0..=u64::MAX);
        }
        volume.flush();
        for _ in 0..random.below(16) {
            volume.merge();
        }
        if round % 10 == 0 {
            volume.compare();
        }
    }
    let level_count = volume.store.levels(LOGICAL).deeper.len();
    assert!(level_count >= 2, "{level_count} levels");
    volume.compare();
    let mut pieces = 0;
    while volume.merge() {
        pieces += 1;
        assert!(pieces < 10_000, "merging has no end");
    }
    volume.compare();
    volume.require_no_leaks();
    for _ in 0..2000 {
        let (hi, lo) = (random.below(5), random.below(2100));
        let found = run(volume.store.get(&volume.pages, VALUES, hi, lo, u32::MAX)).unwrap();
        assert_eq!(found.map(|item| item.bytes.into_owned()).as_ref(), volume.model.values.get(&(hi, lo)));
        let (object, start) = (random.below(3), random.below(60_000));
        let bounds = Bounds { from: (object, start), to: (object, start + 20) };
        let blocks: u64 = volume.scan(LOGICAL, bounds).iter().map(|item| item.last - item.lo + 1).sum();
        let expected = volume.model.logical.range((object, start)..=(object, start + 20)).count();
        assert_eq!(blocks, expected as u64);
    }
}

#[test]
fn what_merging_causes_is_counted_once() {
    let mut volume = Volume::new();
    let mut random = Random(9);
    for _ in 0..40 {
        for _ in 0..200 {
            volume.write(0, random.below(1500), 1 + random.below(3));
        }
        volume.flush();
        volume.merge();
    }
    // All into the lowest level, so that everything meets.
    for _ in 0..12 {
        for tree in [LOGICAL, MIDDLE, USAGE] {
            for level in 0..6 {
                for _ in 0..200 {
                    let levels = volume.store.levels(tree);
                    let is_there =
                        if level == 0 { !levels.newest.is_empty() } else { levels.page_count(level) > 0 };
                    if !is_there || levels.is_lowest(level) && level > 0 {
                        break;
                    }
                    let edit = run(volume.store.merge_piece(&volume.pages, tree, level, usize::MAX)).unwrap();
                    volume.store.install(edit, 0);
                    volume.store.settle(0);
                }
            }
        }
    }
    let usage = volume.scan(USAGE, ALL).into_iter();
    let usage: std::collections::BTreeMap<_, _> =
        usage.map(|item| ((item.hi, item.lo), decode_signed(item.number))).collect();
    assert_eq!(usage, volume.model.usage());
    let born: u64 = volume.scan(MIDDLE, ALL).iter().map(|item| item.last - item.lo + 1).sum();
    assert_eq!(born as usize, volume.model.live().len());
    volume.require_no_leaks();
}

#[test]
fn an_edit_that_fails_leaves_what_was() {
    let mut volume = Volume::new();
    for start in 0..3000 {
        volume.write(0, start * 2, 1);
    }
    volume.flush();
    for start in 0..3000 {
        volume.write(0, start * 3, 1);
    }
    let free_count = volume.allocator.free_count();
    volume.pages.fail_from.set(Some(volume.pages.writes.get() + 2));
    volume.store.freeze();
    assert!(run(volume.store.flush(&volume.pages)).is_err());
    assert!(run(volume.store.merge_piece(&volume.pages, LOGICAL, 0, usize::MAX)).is_err());
    assert_eq!(volume.allocator.free_count(), free_count);
    volume.compare();
    volume.pages.fail_from.set(None);
    volume.flush();
    while volume.merge() {}
    volume.compare();
    volume.require_no_leaks();
}
