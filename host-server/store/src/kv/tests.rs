use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::TestCaseError;

use super::node::{Body, Node};
use super::testing::{MemoryPages, run};
use super::{KeyValue, PageAllocator};
use crate::address::{MetadataAddress, VolumeId};
use crate::error::ErrorKind;
use crate::format::page::{
    LEAF_SLOT_BYTES, PAGE_BYTES, PAGE_CAPACITY_BYTES, PageIdentity, Roots, encode_inner,
};
use crate::volume::{Key, TreeId, VALUE_BYTES_MAX};

const VOLUME: VolumeId = VolumeId(77);
const TREE: TreeId = TreeId(16);
const BASE: MetadataAddress = MetadataAddress(1 << 20);

type Model = BTreeMap<Key, Vec<u8>>;

fn allocator(page_count: usize) -> Rc<PageAllocator> {
    Rc::new(PageAllocator::new(BASE, page_count))
}

fn load(roots: &Roots, store: &MemoryPages, page_count: usize) -> KeyValue {
    run(KeyValue::load(VOLUME, roots, store, allocator(page_count))).unwrap()
}

fn contents(kv: &KeyValue, tree: TreeId) -> Model {
    kv.scan(tree, Key::MIN, Key::MAX, usize::MAX).into_iter().collect()
}

/// Checks what every tree promises about its shape. Returns pages and entries.
fn check_shape(node: &Node, is_root: bool) -> (usize, u64) {
    assert!(!node.is_empty());
    match &node.body {
        Body::Leaf(leaf) => {
            assert!(leaf.used_bytes() <= PAGE_CAPACITY_BYTES);
            (1, leaf.count() as u64)
        }
        Body::Inner(inner) => {
            assert_eq!(inner.keys.len(), inner.children.len());
            assert_eq!(inner.keys[0], Key::MIN);
            assert!(inner.keys.is_sorted_by(|a, b| a < b));
            assert!(!is_root || inner.children.len() > 1);
            let mut total = (1, 0);
            for child in &inner.children {
                assert_eq!(child.level() + 1, inner.level);
                // A clean page has only clean pages below it.
                assert!(node.durable.get().is_none() || child.durable.get().is_some());
                let (pages, entries) = check_shape(child, false);
                total = (total.0 + pages, total.1 + entries);
            }
            total
        }
    }
}

fn check(kv: &KeyValue) {
    let mut pages = 0;
    for tree in &kv.trees {
        if let Some(root) = &tree.root {
            let (tree_pages, entries) = check_shape(root, true);
            pages += tree_pages;
            assert_eq!(entries, tree.entry_count);
        }
    }
    assert_eq!(pages, kv.page_count());
}

#[derive(Clone, Debug)]
enum Step {
    Put(Key, usize, u8),
    Sequence(Key, u16, usize),
    Delete(Key),
    DeleteRange(Key, Key),
    Checkpoint { released: bool },
    FailedCheckpoint,
    Reload,
}

fn key() -> impl Strategy<Value = Key> {
    (0..6_u64, prop_oneof![0..40_u64, 0..2000_u64]).prop_map(|(hi, lo)| Key { hi, lo })
}

fn value_len() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..40_usize, 2 => 0..600_usize, 1 => 0..=VALUE_BYTES_MAX]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (key(), value_len(), any::<u8>()).prop_map(|(key, len, byte)| Step::Put(key, len, byte)),
        4 => (key(), 1..400_u16, 0..60_usize).prop_map(|(key, count, len)| Step::Sequence(key, count, len)),
        8 => key().prop_map(Step::Delete),
        3 => (key(), key()).prop_map(|(a, b)| Step::DeleteRange(a.min(b), a.max(b))),
        2 => any::<bool>().prop_map(|released| Step::Checkpoint { released }),
        1 => Just(Step::FailedCheckpoint),
        1 => Just(Step::Reload),
    ]
}

fn value(len: usize, byte: u8) -> Vec<u8> {
    (0..len).map(|index| byte.wrapping_add(index as u8)).collect()
}

/// One volume: trees, model, the pages on the devices and what their roots are known to hold.
struct World {
    kv: KeyValue,
    model: Model,
    store: MemoryPages,
    durable: Option<(Roots, Model)>,
}

const PAGES: usize = 2000;

impl World {
    fn new() -> Self {
        let kv = KeyValue::new(VOLUME, allocator(PAGES));
        Self { kv, model: Model::new(), store: MemoryPages::default(), durable: None }
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Put(key, len, byte) => {
                self.kv.put(TREE, key, &value(len, byte));
                self.model.insert(key, value(len, byte));
            }
            Step::Sequence(start, count, len) => {
                for lo in start.lo..start.lo + u64::from(count) {
                    let key = Key { hi: start.hi, lo };
                    self.kv.put(TREE, key, &value(len, lo as u8));
                    self.model.insert(key, value(len, lo as u8));
                }
            }
            Step::Delete(key) => {
                prop_assert_eq!(self.kv.delete(TREE, key), self.model.remove(&key).is_some());
            }
            Step::DeleteRange(from, to) => {
                let before = self.model.len();
                self.model.retain(|key, _| *key < from || *key >= to);
                prop_assert_eq!(self.kv.delete_range(TREE, from, to), (before - self.model.len()) as u64);
            }
            Step::Checkpoint { released } => {
                let bound = self.kv.dirty_page_bound();
                let snapshot = self.kv.snapshot();
                let before = self.store.writes.get();
                // The tree goes on changing while the snapshot is written.
                self.kv.put(TREE, Key { hi: 9, lo: before as u64 }, b"meanwhile");
                let roots = run(snapshot.write(&self.store)).unwrap();
                prop_assert!(self.store.writes.get() - before <= bound);
                if let Some((old_roots, old_model)) = &self.durable {
                    let old = load(old_roots, &self.store, PAGES);
                    prop_assert_eq!(&contents(&old, TREE), old_model);
                }
                let loaded = load(&roots, &self.store, PAGES);
                check(&loaded);
                prop_assert_eq!(&contents(&loaded, TREE), &self.model);
                prop_assert_eq!(Roots::decode(&roots.encode()), Some(roots.clone()));
                if released {
                    self.kv.settle(roots.generation);
                    self.durable = Some((roots, self.model.clone()));
                }
                self.model.insert(Key { hi: 9, lo: before as u64 }, b"meanwhile".to_vec());
            }
            Step::FailedCheckpoint => {
                let snapshot = self.kv.snapshot();
                let free = self.kv.allocator().free_count();
                self.store.fail_from.set(Some(self.store.writes.get() + 3));
                match run(snapshot.write(&self.store)) {
                    Ok(_) => {}
                    Err(error) => {
                        prop_assert_eq!(error.kind, ErrorKind::Device);
                        prop_assert_eq!(free, self.kv.allocator().free_count());
                    }
                }
                self.store.fail_from.set(None);
                prop_assert_eq!(self.store.in_flight.get(), 0);
            }
            Step::Reload => {
                let (roots, model) = self.durable.clone().unwrap_or_default();
                self.kv = load(&roots, &self.store, PAGES);
                self.model = model;
                let used = PAGES - self.kv.allocator().free_count();
                prop_assert_eq!(used, self.kv.page_count());
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    #[test]
    fn trees_behave_as_an_ordered_map_across_checkpoints(
        steps in proptest::collection::vec(step(), 1..120),
        probes in proptest::collection::vec((key(), key(), 0..50_usize), 10),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step)?;
            check(&world.kv);
        }
        let World { kv, model, .. } = &world;
        prop_assert_eq!(&contents(kv, TREE), model);
        prop_assert_eq!(kv.entry_count(TREE), model.len() as u64);
        for (a, b, limit) in probes {
            prop_assert_eq!(kv.get(TREE, a), model.get(&a).map(Vec::as_slice));
            let floor = model.range(..=a).next_back().map(|(key, value)| (*key, value.as_slice()));
            prop_assert_eq!(kv.floor(TREE, a), floor);
            let (from, to) = (a.min(b), a.max(b));
            let expected: Vec<_> = model.range(from..=to).take(limit).map(|(k, v)| (*k, v.clone())).collect();
            prop_assert_eq!(kv.scan(TREE, from, to, limit), expected);
        }
    }

    #[test]
    fn a_snapshot_does_not_change(
        before in proptest::collection::vec(step(), 1..60),
        after in proptest::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new();
        let in_memory = |step: &Step| {
            !matches!(step, Step::Checkpoint { .. } | Step::FailedCheckpoint | Step::Reload)
        };
        for step in before.into_iter().filter(in_memory) {
            world.step(step)?;
        }
        let snapshot = world.kv.snapshot();
        let model = world.model.clone();
        for step in after.into_iter().filter(in_memory) {
            world.step(step)?;
        }
        for (key, value) in &model {
            prop_assert_eq!(snapshot.get(TREE, *key), Some(value.as_slice()));
        }
        let roots = run(snapshot.write(&world.store)).unwrap();
        prop_assert_eq!(contents(&load(&roots, &world.store, PAGES), TREE), model);
        prop_assert_eq!(contents(&world.kv, TREE), world.model);
    }
}

fn filled(count: u64) -> KeyValue {
    let mut kv = KeyValue::new(VOLUME, allocator(PAGES));
    for lo in 0..count {
        kv.put(TREE, Key { hi: 0, lo }, &lo.to_le_bytes());
    }
    kv
}

#[test]
fn ascending_keys_fill_their_pages() {
    let kv = filled(100_000);
    let entries_a_page = PAGE_CAPACITY_BYTES / (LEAF_SLOT_BYTES + 8);
    assert!(kv.page_count() < 100_000 / entries_a_page * 21 / 20, "{} pages", kv.page_count());
}

#[test]
fn keys_appended_to_many_groups_in_turn_fill_their_pages() {
    // Files that grow in turn: every insertion lies in the middle of the tree.
    let mut kv = KeyValue::new(VOLUME, allocator(PAGES));
    for round in 0..40_u64 {
        for hi in 0..20 {
            for lo in round * 100..(round + 1) * 100 {
                kv.put(TREE, Key { hi, lo }, &[0; 8]);
            }
        }
    }
    let entries_a_page = PAGE_CAPACITY_BYTES / (LEAF_SLOT_BYTES + 8);
    assert!(kv.page_count() < 80_000 / entries_a_page * 3 / 2, "{} pages", kv.page_count());
}

#[test]
fn short_sequences_in_descending_order_leave_no_tiny_pages() {
    let mut kv = KeyValue::new(VOLUME, allocator(PAGES));
    for group in (0..4000_u64).rev() {
        for lo in group * 12..(group + 1) * 12 {
            kv.put(TREE, Key { hi: 0, lo }, &[0; 8]);
        }
    }
    let entries_a_page = PAGE_CAPACITY_BYTES / (LEAF_SLOT_BYTES + 8);
    assert!(kv.page_count() < 48_000 / entries_a_page * 5 / 2, "{} pages", kv.page_count());
}

#[test]
fn mass_deletes_leave_no_degenerate_tree() {
    let mut kv = filled(100_000);
    for lo in (0..100_000).filter(|lo| lo % 100 != 0) {
        assert!(kv.delete(TREE, Key { hi: 0, lo }));
    }
    check(&kv);
    // 1000 entries fit two pages when full.
    assert!(kv.page_count() <= 8, "{} pages", kv.page_count());
    assert_eq!(kv.delete_range(TREE, Key::MIN, Key::MAX), 1000);
    assert_eq!(kv.page_count(), 0);
    assert_eq!(kv.memory_bytes(), 0);
}

#[test]
fn a_checkpoint_writes_only_what_changed_and_gives_pages_back() {
    let mut kv = filled(100_000);
    let store = MemoryPages::default();
    let roots = run(kv.snapshot().write(&store)).unwrap();
    kv.settle(roots.generation);
    assert_eq!(store.writes.get(), kv.page_count());
    assert!(store.in_flight_max.get() > 8);
    assert_eq!(kv.dirty_page_bound(), 0);
    for round in 0..20_u64 {
        kv.put(TREE, Key { hi: 0, lo: round * 1000 }, b"changed");
        let height = usize::from(kv.tree(TREE).root.as_ref().unwrap().level()) + 1;
        assert_eq!(kv.dirty_page_bound(), height);
        let before = store.writes.get();
        let roots = run(kv.snapshot().write(&store)).unwrap();
        assert_eq!(store.writes.get() - before, height);
        kv.settle(roots.generation);
        assert_eq!(PAGES - kv.allocator().free_count(), kv.page_count());
    }
}

/// An area so small that a few checkpoints write every page of it again.
const FEW_PAGES: usize = 40;

fn filled_in_few_pages() -> KeyValue {
    let mut kv = KeyValue::new(VOLUME, allocator(FEW_PAGES));
    (0..5000).for_each(|lo| kv.put(TREE, Key { hi: 0, lo }, &[0; 8]));
    assert!(kv.page_count() > 8 && kv.page_count() < FEW_PAGES / 3);
    kv
}

#[test]
fn an_unreleased_checkpoint_leaves_the_old_roots_loadable() {
    let mut kv = filled_in_few_pages();
    let store = MemoryPages::default();
    for round in 1..10 {
        let durable = run(kv.snapshot().write(&store)).unwrap();
        kv.settle(durable.generation);
        let expected = contents(&kv, TREE);
        (0..5000).step_by(7).for_each(|lo| kv.put(TREE, Key { hi: 0, lo }, &[round; 8]));
        // Written, but its roots are not durable yet: a crash here starts from the old ones.
        run(kv.snapshot().write(&store)).unwrap();
        assert_eq!(contents(&load(&durable, &store, FEW_PAGES), TREE), expected);
    }
}

#[test]
fn too_few_free_pages_are_refused_before_anything_is_written() {
    let mut kv = KeyValue::new(VOLUME, allocator(3));
    for lo in 0..5000 {
        kv.put(TREE, Key { hi: 0, lo }, &[1; 8]);
    }
    let store = MemoryPages::default();
    let error = run(kv.snapshot().write(&store)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace);
    assert_eq!(store.writes.get(), 0);
    kv.delete_range(TREE, Key { hi: 0, lo: 10 }, Key::MAX);
    let roots = run(kv.snapshot().write(&store)).unwrap();
    assert_eq!(contents(&load(&roots, &store, 3), TREE).len(), 10);
}

fn load_error(roots: &Roots, store: &MemoryPages) -> String {
    let loaded = run(KeyValue::load(VOLUME, roots, store, allocator(PAGES)));
    let error = loaded.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Damaged);
    error.to_string()
}

#[test]
fn a_corrupted_page_is_noticed_by_its_parent() {
    let mut kv = filled(5000);
    let store = MemoryPages::default();
    let roots = run(kv.snapshot().write(&store)).unwrap();
    let addresses: Vec<u64> = store.pages.borrow().keys().copied().collect();
    for address in addresses {
        for position in [3, 12, 40, 60, 2000, PAGE_BYTES - 1] {
            store.pages.borrow_mut().get_mut(&address).unwrap()[position] ^= 0x10;
            assert!(load_error(&roots, &store).contains(&format!("metadata byte {address}")));
            store.pages.borrow_mut().get_mut(&address).unwrap()[position] ^= 0x10;
        }
    }
    load(&roots, &store, PAGES);
}

#[test]
fn a_lost_write_is_noticed_by_its_generation() {
    let mut kv = filled_in_few_pages();
    let store = MemoryPages::default();
    let mut stale_found = 0;
    for round in 0..12 {
        let before = store.pages.borrow().clone();
        (0..5000).step_by(50).for_each(|lo| kv.put(TREE, Key { hi: 0, lo }, &[round; 8]));
        let roots = run(kv.snapshot().write(&store)).unwrap();
        kv.settle(roots.generation);
        let written_again: Vec<u64> = before
            .keys()
            .copied()
            .filter(|address| store.pages.borrow()[address] != before[address])
            .collect();
        for address in written_again {
            let newest = store.pages.borrow_mut().insert(address, before[&address].clone()).unwrap();
            let error = run(KeyValue::load(VOLUME, &roots, &store, allocator(FEW_PAGES))).err().unwrap();
            assert!(error.to_string().contains("a stale page"), "{error}");
            store.pages.borrow_mut().insert(address, newest);
            stale_found += 1;
        }
        load(&roots, &store, FEW_PAGES);
    }
    assert!(stale_found > 20, "{stale_found} pages were written again");
}

#[test]
fn a_page_with_keys_of_another_place_is_noticed() {
    // Two leaves change places in a parent that is sealed anew: every page is sound, the tree is not.
    let mut kv = filled(1000);
    let root = kv.tree(TREE).root.clone().unwrap();
    let store = MemoryPages::default();
    let mut roots = run(kv.snapshot().write(&store)).unwrap();
    let Body::Inner(inner) = &root.body else { panic!("{} pages", kv.page_count()) };
    let pointers: Vec<_> = inner.children.iter().map(|child| child.durable.get().unwrap()).collect();
    let swapped = inner.keys.iter().copied().zip(pointers.into_iter().rev());
    let identity = PageIdentity { volume: VOLUME, generation: root.generation, tree: TREE, level: 1 };
    let mut page = vec![0; PAGE_BYTES];
    roots.trees[0].pointer.checksum = encode_inner(&mut page, identity, swapped);
    store.pages.borrow_mut().insert(roots.trees[0].pointer.address.0, page);
    assert!(load_error(&roots, &store).contains("keys that belong to another page"));
}

#[test]
fn pages_of_another_volume_or_tree_are_noticed() {
    let mut kv = filled(10);
    let store = MemoryPages::default();
    let roots = run(kv.snapshot().write(&store)).unwrap();
    let other = run(KeyValue::load(VolumeId(78), &roots, &store, allocator(PAGES)));
    assert!(other.err().unwrap().to_string().contains("another volume"));
    let mut misplaced = roots.clone();
    misplaced.trees[0].tree = TreeId(17);
    assert!(load_error(&misplaced, &store).contains("in the place of another"));
}

#[test]
fn visiting_stops_where_the_visitor_says() {
    let kv = filled(2000);
    let mut seen = 0;
    kv.visit(TREE, Key { hi: 0, lo: 500 }, Key::MAX, |key, _| {
        seen = key.lo;
        if key.lo < 1500 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert_eq!(seen, 1500);
}

/// `cargo test --release -p ringfort-store -- --ignored --nocapture a_million` prints the cost of an operation.
#[test]
#[ignore = "a measurement"]
fn a_million_entries_are_quick() {
    let mut kv = KeyValue::new(VOLUME, allocator(100_000));
    let keys: Vec<Key> = (0..1_000_000_u64)
        .map(|index| Key { hi: index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40, lo: index })
        .collect();
    let time = |what: &str, work: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        work();
        println!("{what}: {} ns each", start.elapsed().as_nanos() / 1_000_000);
    };
    time("insert", &mut || keys.iter().for_each(|key| kv.put(TREE, *key, &[7; 16])));
    // What the machine gives at the moment, for comparison.
    let mut map = BTreeMap::new();
    time("BTreeMap insert", &mut || map.extend(keys.iter().map(|key| (*key, [7_u8; 16]))));
    time("BTreeMap get", &mut || assert!(keys.iter().all(|key| map.contains_key(key))));
    drop(std::mem::take(&mut map));
    let mut found = 0;
    time("get", &mut || found += keys.iter().filter(|key| kv.get(TREE, **key).is_some()).count());
    time("scan", &mut || {
        kv.visit(TREE, Key::MIN, Key::MAX, |_, _| {
            found += 1;
            ControlFlow::Continue(())
        });
    });
    let snapshot = kv.snapshot();
    time("overwrite with a snapshot held", &mut || {
        keys.iter().for_each(|key| kv.put(TREE, *key, &[8; 16]));
    });
    let store = MemoryPages::default();
    time("checkpoint", &mut || drop(run(snapshot.write(&store))));
    time("delete", &mut || keys.iter().for_each(|key| assert!(kv.delete(TREE, *key))));
    assert_eq!(found, 2_000_000);
}
