//! Items in memory, which merge when they arrive.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use super::fold::{Fired, Layer, Meaning, fold};
use super::item::{Item, OwnedItem, continues, cut, extend};
use crate::format::run::{ITEM_BYTES_MAX, RunItem};
use crate::volume::TreeId;

/// What an item takes beyond its bytes, in nodes that are two thirds full.
const ITEM_BYTES: usize = (size_of::<(u64, u64)>() + size_of::<OwnedItem>()) * 3 / 2;

/// Items of one tree: no two cover the same keys. Keyed by hi and lo.
type Items = BTreeMap<(u64, u64), OwnedItem>;

/// The newest items of all trees. All items of a tree are of the same epoch: a snapshot begins with a new memory.
#[derive(Default)]
pub struct Memory {
    trees: BTreeMap<TreeId, Items>,
    item_count: usize,
    byte_count: usize,
}

/// A memory that readers go on with after it has been frozen and written. Changed only while it is the open one.
pub type SharedMemory = Rc<RefCell<Memory>>;

impl Memory {
    pub fn is_empty(&self) -> bool {
        self.item_count == 0
    }

    /// What the items take.
    pub fn memory_bytes(&self) -> usize {
        self.item_count * ITEM_BYTES + self.byte_count
    }

    /// What the items take in pages, at most.
    pub fn encoded_bytes(&self) -> usize {
        self.item_count * ITEM_BYTES_MAX + self.byte_count
    }

    /// Takes in an item, and what follows from it.
    pub fn apply(&mut self, meaning: &impl Meaning, tree: TreeId, item: OwnedItem) {
        let mut fired = vec![(tree, item)];
        while let Some((tree, item)) = fired.pop() {
            self.apply_one(meaning, tree, item, &mut fired);
        }
    }

    fn apply_one(&mut self, meaning: &impl Meaning, tree: TreeId, item: OwnedItem, fired: &mut Fired) {
        let items = self.trees.entry(tree).or_default();
        let before_count = items.len();
        let mut bytes_change = 0;
        match meet(items, &item.as_run_item()) {
            Meeting::Nobody => put(items, item, &mut bytes_change),
            Meeting::Before(before) => {
                bytes_change += item.bytes.len() as isize;
                extend(before, &item.as_run_item());
            }
            Meeting::Same(old) => {
                bytes_change -= old.bytes.len() as isize;
                let layers = [Item::clone(&item), std::mem::replace(old, item)];
                let layers = layers.map(|item| Layer { item, is_top: true });
                let mut left = Vec::new();
                fold(meaning, tree, &layers, false, &mut left, fired);
                match left.pop() {
                    Some(item) => {
                        bytes_change += item.bytes.len() as isize;
                        *old = item.into_owned();
                    }
                    None => {
                        let key = (old.hi, old.lo);
                        items.remove(&key);
                    }
                }
                debug_assert!(left.is_empty(), "items of several epochs in one memory");
            }
            Meeting::Several => {
                let met = take_covered(items, &item.as_run_item(), &mut bytes_change);
                merge_into(meaning, tree, items, &item, &met, fired, &mut bytes_change);
            }
        }
        self.item_count = self.item_count + items.len() - before_count;
        self.byte_count = self.byte_count.saturating_add_signed(bytes_change);
    }

    /// The items of a tree that cover some of `lo..=last` under `hi`, in order, uncut.
    pub fn covering(&self, tree: TreeId, hi: u64, lo: u64, last: u64) -> impl Iterator<Item = RunItem<'_>> {
        let items = self.trees.get(&tree);
        let begins_before = items.and_then(|items| reaching(items, hi, lo));
        let begin_inside = items.into_iter().flat_map(move |items| items.range((hi, lo)..=(hi, last)));
        begins_before.into_iter().chain(begin_inside.map(|(_, item)| item)).map(OwnedItem::as_run_item)
    }

    /// The items of a tree whose keys are not below `(hi, lo)`, in order, uncut; the first may begin below.
    pub fn from(&self, tree: TreeId, hi: u64, lo: u64) -> impl Iterator<Item = RunItem<'_>> {
        let items = self.trees.get(&tree);
        let begins_before = items.and_then(|items| reaching(items, hi, lo));
        let follow = items.into_iter().flat_map(move |items| items.range((hi, lo)..));
        begins_before.into_iter().chain(follow.map(|(_, item)| item)).map(OwnedItem::as_run_item)
    }

    /// Trees that have items.
    pub fn trees(&self) -> impl Iterator<Item = TreeId> {
        self.trees.iter().filter(|(_, items)| !items.is_empty()).map(|(tree, _)| *tree)
    }
}

/// Whom an item meets.
enum Meeting<'a> {
    Nobody,
    /// Nobody; it continues the item before.
    Before(&'a mut OwnedItem),
    /// One item of the same keys.
    Same(&'a mut OwnedItem),
    Several,
}

/// One search, which says all for most items.
fn meet<'a>(items: &'a mut Items, item: &RunItem<'_>) -> Meeting<'a> {
    let Some((_, before)) = items.range_mut(..=(item.hi, item.last)).next_back() else {
        return Meeting::Nobody;
    };
    if before.hi != item.hi || before.last < item.lo {
        return if continues(&before.as_run_item(), item) {
            Meeting::Before(before)
        } else {
            Meeting::Nobody
        };
    }
    if (before.lo, before.last) == (item.lo, item.last) { Meeting::Same(before) } else { Meeting::Several }
}

/// The item that begins before `(hi, lo)` and covers it.
fn reaching(items: &Items, hi: u64, lo: u64) -> Option<&OwnedItem> {
    let before = (Bound::Included((hi, 0)), Bound::Excluded((hi, lo)));
    let (_, item) = items.range(before).next_back()?;
    (item.last >= lo).then_some(item)
}

/// Takes out what covers keys of `item`, cut to these; the rest stays.
fn take_covered(items: &mut Items, item: &RunItem<'_>, bytes_change: &mut isize) -> Vec<OwnedItem> {
    let (hi, lo, last) = (item.hi, item.lo, item.last);
    let mut keys = Vec::new();
    keys.extend(reaching(items, hi, lo).map(|item| item.lo));
    keys.extend(items.range((hi, lo)..=(hi, last)).map(|((_, lo), _)| *lo));
    let mut met = Vec::with_capacity(keys.len());
    for key in keys {
        let Some(whole) = items.remove(&(hi, key)) else { unreachable!("an item that was just there") };
        *bytes_change -= whole.bytes.len() as isize;
        let (inside_lo, inside_last) = (whole.lo.max(lo), whole.last.min(last));
        let part = |lo, last| cut(&whole.as_run_item(), lo, last).into_owned();
        if whole.lo < lo {
            put(items, part(whole.lo, lo - 1), bytes_change);
        }
        if whole.last > last {
            put(items, part(last + 1, whole.last), bytes_change);
        }
        met.push(part(inside_lo, inside_last));
    }
    met
}

fn put(items: &mut Items, item: OwnedItem, bytes_change: &mut isize) {
    *bytes_change += item.bytes.len() as isize;
    let replaced = items.insert((item.hi, item.lo), item);
    debug_assert!(replaced.is_none(), "{replaced:?}");
}

/// Puts an item where there is none, as one with that before it where it continues that.
fn insert(items: &mut Items, item: OwnedItem, bytes_change: &mut isize) {
    let key = (item.hi, item.lo);
    if let Some((_, before)) =
        items.range_mut((Bound::Included((item.hi, 0)), Bound::Excluded(key))).next_back()
        && continues(&before.as_run_item(), &item.as_run_item())
    {
        *bytes_change += item.bytes.len() as isize;
        extend(before, &item.as_run_item());
        return;
    }
    put(items, item, bytes_change);
}

fn merge_into(
    meaning: &impl Meaning,
    tree: TreeId,
    items: &mut Items,
    item: &OwnedItem,
    met: &[OwnedItem],
    fired: &mut Fired,
    bytes_change: &mut isize,
) {
    let whole = item.as_run_item();
    let mut next = Some(item.lo);
    let mut left = Vec::new();
    for old in met {
        if let Some(lo) = next.filter(|lo| *lo < old.lo) {
            insert(items, cut(&whole, lo, old.lo - 1).into_owned(), bytes_change);
        }
        let layers = [cut(&whole, old.lo, old.last), old.clone()];
        let layers = layers.map(|item| Layer { item, is_top: true });
        fold(meaning, tree, &layers, false, &mut left, fired);
        debug_assert!(left.len() <= 1, "items of several epochs in one memory");
        for item in left.drain(..) {
            insert(items, item.into_owned(), bytes_change);
        }
        next = old.last.checked_add(1);
    }
    if let Some(lo) = next.filter(|lo| *lo <= item.last) {
        insert(items, cut(&whole, lo, item.last).into_owned(), bytes_change);
    }
}
