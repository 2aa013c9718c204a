//! A small volume's maps on the merge store, and the same applied all at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::fold::{Fired, Layer, Meaning, Rule, fold};
use super::item::{Item, OwnedItem, cut, decode_signed, encode_signed};
use super::memory::Memory;
use super::sweep::{Joined, Step, Sweep, owned};
use crate::format::run::{ItemKind, RunItem};
use crate::volume::TreeId;

pub const LOGICAL: TreeId = TreeId(1);
pub const MIDDLE: TreeId = TreeId(2);
pub const USAGE: TreeId = TreeId(3);
/// Birth and death epoch, middle address → references that snapshots alone keep.
pub const DEAD: TreeId = TreeId(4);
pub const VALUES: TreeId = TreeId(20);
const TREES: [TreeId; 5] = [LOGICAL, MIDDLE, USAGE, DEAD, VALUES];

const SEGMENT_BLOCKS: u64 = 16;

fn usage_of(physical: u64, blocks: u64, sign: i64, fired: &mut Fired) {
    let mut start = physical;
    while start < physical + blocks {
        let segment = start / SEGMENT_BLOCKS;
        let end = ((segment + 1) * SEGMENT_BLOCKS).min(physical + blocks);
        let number = encode_signed(sign * (end - start) as i64);
        fired.push((USAGE, Item::plain(ItemKind::Add, segment, 0..=0, 0, number)));
        start = end;
    }
}

/// What a birth or a move adds to the usage of segments when it is sent.
pub fn fired_by_birth(physical: u64, blocks: u64) -> Fired {
    let mut fired = Fired::new();
    usage_of(physical, blocks, 1, &mut fired);
    fired
}

/// What items mean in tests.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    /// Epochs that a snapshot ended.
    pub snapshots: BTreeSet<u32>,
}

impl Maps {
    /// Whether a snapshot sees what was written in epoch `birth` and displaced in epoch `death`.
    pub fn keeps(&self, birth: u32, death: u32) -> bool {
        birth < death && self.snapshots.range(birth..death).next().is_some()
    }
}

impl Meaning for Maps {
    fn rule(&self, tree: TreeId) -> Rule {
        match tree {
            LOGICAL => Rule::Runs,
            MIDDLE => Rule::Addresses,
            USAGE | DEAD => Rule::Sums,
            _ => Rule::Values,
        }
    }

    fn is_seen(&self, _tree: TreeId, item: &RunItem<'_>, death: u32) -> bool {
        self.keeps(item.epoch, death)
    }

    fn displaced(&self, tree: TreeId, map: &RunItem<'_>, seen_until: Option<u32>, fired: &mut Fired) {
        assert_eq!(tree, LOGICAL);
        let addresses = map.number..=map.number + (map.last - map.lo);
        fired.push(match seen_until {
            None => (MIDDLE, Item::plain(ItemKind::Refer, 0, addresses, 0, encode_signed(-1))),
            Some(death) => {
                let cell = (u64::from(map.epoch) << 32) | u64::from(death);
                (DEAD, Item::plain(ItemKind::Add, cell, addresses, 0, encode_signed(1)))
            }
        });
    }

    fn vacated(&self, tree: TreeId, place: u64, len_blocks: u64, fired: &mut Fired) {
        assert_eq!(tree, MIDDLE);
        usage_of(place, len_blocks, -1, fired);
    }
}

type Run = BTreeMap<TreeId, Vec<OwnedItem>>;

/// The maps, in memory and in runs that merge when they are told to.
#[derive(Default)]
pub struct Merging {
    pub maps: Maps,
    memory: Memory,
    /// Newest first.
    runs: Vec<Run>,
    pub epoch: u32,
}

impl Merging {
    pub fn apply(&mut self, tree: TreeId, item: OwnedItem) {
        self.memory.apply(&self.maps, tree, item);
    }

    pub fn write(&mut self, object: u64, start: u64, blocks: u64, middle: u64, physical: u64) {
        let checksums: Vec<u8> =
            (0..blocks).flat_map(|block| ((middle + block) as u32).to_le_bytes()).collect();
        let birth = Item::plain(ItemKind::Birth, 0, middle..=middle + blocks - 1, 0, physical);
        self.apply(MIDDLE, Item { bytes: checksums.into(), ..birth });
        fired_by_birth(physical, blocks).into_iter().for_each(|(tree, item)| self.apply(tree, item));
        self.apply(
            LOGICAL,
            Item::plain(ItemKind::Map, object, start..=start + blocks - 1, self.epoch, middle),
        );
    }

    /// Maps blocks that are mapped elsewhere.
    pub fn share(&mut self, object: u64, start: u64, blocks: u64, middle: u64) {
        self.apply(
            MIDDLE,
            Item::plain(ItemKind::Refer, 0, middle..=middle + blocks - 1, 0, encode_signed(1)),
        );
        self.apply(
            LOGICAL,
            Item::plain(ItemKind::Map, object, start..=start + blocks - 1, self.epoch, middle),
        );
    }

    pub fn rotate(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if !memory.is_empty() {
            let items = |tree| owned(memory.from(tree, 0, 0));
            self.runs.insert(0, memory.trees().map(|tree| (tree, items(tree))).collect());
        }
    }

    pub fn snapshot(&mut self) {
        self.rotate();
        self.maps.snapshots.insert(self.epoch);
        self.epoch += 1;
    }

    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// Merges neighbouring runs; what fires becomes the newest run.
    pub fn merge(&mut self, from: usize, count: usize) {
        let is_bottom = from + count == self.runs.len();
        let sources: Vec<Run> = self.runs.drain(from..from + count).collect();
        let mut merged = Run::new();
        let mut effects = Memory::default();
        for tree in TREES {
            let items: Vec<Vec<OwnedItem>> =
                sources.iter().map(|run| run.get(&tree).cloned().unwrap_or_default()).collect();
            let items = self.sweep(tree, items, is_bottom, &mut effects);
            if !items.is_empty() {
                merged.insert(tree, items);
            }
        }
        self.runs.insert(from, merged);
        let items = |tree| owned(effects.from(tree, 0, 0));
        let run: Run = effects.trees().map(|tree| (tree, items(tree))).collect();
        if !run.is_empty() {
            self.runs.insert(0, run);
        }
    }

    fn sweep(
        &self,
        tree: TreeId,
        sources: Vec<Vec<OwnedItem>>,
        is_bottom: bool,
        effects: &mut Memory,
    ) -> Vec<OwnedItem> {
        let mut sweep = Sweep::new(tree, sources.len(), is_bottom);
        let mut feeds: Vec<_> = sources.into_iter().map(Vec::into_iter).collect();
        let (mut joined, mut merged) = (Joined::default(), Vec::new());
        let (mut left, mut fired) = (Vec::new(), Fired::new());
        loop {
            match sweep.step(&self.maps, &mut left, &mut fired) {
                Step::Needs(source) => match feeds[source].next() {
                    Some(item) => sweep.feed(source, item),
                    None => sweep.end(source),
                },
                Step::Merged => joined.push(&mut left, |item| merged.push(item)),
                Step::Done => break,
            }
            fired.drain(..).for_each(|(tree, item)| effects.apply(&self.maps, tree, item));
        }
        merged.extend(joined.finish());
        let in_order = merged.is_sorted_by(|a, b| a.as_run_item().precedes(&b.as_run_item()));
        assert!(in_order, "{merged:?}");
        merged
    }

    /// Merges until nothing is left to merge.
    pub fn merge_all(&mut self) {
        self.rotate();
        // What fires goes from tree to tree, never back: a few rounds see the end of it.
        for _ in 0..6 {
            if !self.runs.is_empty() {
                self.merge(0, self.runs.len());
            }
        }
        assert!(self.runs.len() <= 1, "merging goes on causing effects");
    }

    /// What there is at one key, newest first.
    fn layers(&self, tree: TreeId, hi: u64, lo: u64, seen_from: u32) -> Vec<Layer<'static>> {
        let in_memory = owned(self.memory.covering(tree, hi, lo, lo));
        let in_runs = self.runs.iter().flat_map(|run| run.get(&tree).into_iter().flatten());
        let in_runs = in_runs.filter(|item| item.hi == hi && item.lo <= lo && lo <= item.last);
        let all = in_memory.iter().chain(in_runs).filter(|item| item.epoch <= seen_from);
        all.map(|item| Layer { item: cut(&item.as_run_item(), lo, lo).into_owned(), is_top: true }).collect()
    }

    /// The newest item that says something of a key, for a snapshot of this epoch.
    pub fn read(&self, tree: TreeId, hi: u64, lo: u64, seen_from: u32) -> Option<OwnedItem> {
        let newest = self.layers(tree, hi, lo, seen_from).into_iter().next()?.item;
        (newest.kind != ItemKind::Erase).then_some(newest)
    }

    /// What all items of an address say together.
    pub fn resolve(&self, middle: u64) -> Option<OwnedItem> {
        let (mut left, mut fired) = (Vec::new(), Fired::new());
        fold(&self.maps, MIDDLE, &self.layers(MIDDLE, 0, middle, u32::MAX), false, &mut left, &mut fired);
        left.pop().filter(|item| matches!(item.kind, ItemKind::Birth | ItemKind::SharedBirth))
    }

    /// What the counters of a tree add up to, of those that are not zero.
    pub fn sums(&self, tree: TreeId) -> BTreeMap<(u64, u64), i64> {
        let in_memory = owned(self.memory.from(tree, 0, 0));
        let in_runs = self.runs.iter().flat_map(|run| run.get(&tree).into_iter().flatten());
        let mut sums = BTreeMap::new();
        for item in in_memory.iter().chain(in_runs) {
            for lo in item.lo..=item.last {
                *sums.entry((item.hi, lo)).or_default() += decode_signed(item.number);
            }
        }
        sums.retain(|_, sum| *sum != 0);
        sums
    }

    /// Deletes a snapshot: what it alone keeps loses its references.
    pub fn delete_snapshot(&mut self, epoch: u32) {
        self.maps.snapshots.remove(&epoch);
        for ((cell, middle), count) in self.sums(DEAD) {
            let (birth, death) = ((cell >> 32) as u32, cell as u32);
            if !self.maps.keeps(birth, death) {
                self.apply(DEAD, Item::plain(ItemKind::Add, cell, middle..=middle, 0, encode_signed(-count)));
                self.apply(
                    MIDDLE,
                    Item::plain(ItemKind::Refer, 0, middle..=middle, 0, encode_signed(-count)),
                );
            }
        }
    }

    /// Items of a tree in all runs.
    pub fn item_count(&self, tree: TreeId) -> usize {
        self.runs.iter().filter_map(|run| run.get(&tree)).map(Vec::len).sum()
    }
}

/// The same, with everything applied at once to every block.
#[derive(Clone, Default)]
pub struct Model {
    pub logical: BTreeMap<(u64, u64), u64>,
    pub values: BTreeMap<(u64, u64), Vec<u8>>,
    pub snapshots: BTreeMap<u32, Seen>,
    /// Of every address that was ever born.
    pub physical: BTreeMap<u64, u64>,
}

/// What a snapshot sees.
#[derive(Clone, Default)]
pub struct Seen {
    pub logical: BTreeMap<(u64, u64), u64>,
    pub values: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Model {
    pub fn erase(&mut self, object: u64, blocks: RangeInclusive<u64>) {
        self.logical.retain(|(hi, lo), _| *hi != object || !blocks.contains(lo));
    }

    /// Addresses that somebody refers to.
    pub fn live(&self) -> BTreeSet<u64> {
        let seen = self.snapshots.values().flat_map(|seen| seen.logical.values());
        self.logical.values().chain(seen).copied().collect()
    }

    pub fn usage(&self) -> BTreeMap<(u64, u64), i64> {
        let mut usage = BTreeMap::new();
        for middle in self.live() {
            *usage.entry((self.physical[&middle] / SEGMENT_BLOCKS, 0)).or_default() += 1;
        }
        usage
    }
}
