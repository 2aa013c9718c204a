//! The catalogue: what of the maps stays in memory as page trees. One entry for each table of the merge store, the count of live blocks of each segment, and the
//! store's properties.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;

use super::tree;
use super::usage;
use crate::address::{MetadataAddress, SegmentId};
use crate::error::{ErrorKind, StoreError};
use crate::format::page::PAGE_BYTES;
use crate::format::table::TableEntry;
use crate::kv::{KeyValue, PageAllocator};
use crate::merge::item::decode_signed;
use crate::merge::levels::Levels;
use crate::merge::read::{Bounds, View};
use crate::merge::store::Edit;
use crate::merge::table::{LEAVES_MAX, PageExtent, Table};
use crate::volume::{Key, TreeId};

/// Levels of a tree, more than any volume has.
const LEVELS_MAX: u64 = 32;

fn key(tree: TreeId, level: usize, number: u64) -> Key {
    Key::new(u64::from(tree.0) << 8 | level as u64, number)
}

fn entry_of(view: &View) -> TableEntry {
    let View { table, bounds } = view;
    TableEntry {
        extents: table.extents.iter().map(|extent| (extent.start.0, extent.page_count)).collect(),
        filter_checksums: table.filter_checksums.clone(),
        leaf_count: table.leaf_count as u16,
        index_checksum: table.index_checksum,
        item_count: table.item_count,
        first: table.first,
        last: table.last,
        from: bounds.from,
        to: bounds.to,
    }
}

fn view_of(tree: TreeId, number: u64, entry: TableEntry) -> View {
    let extents = entry.extents.iter();
    let extents = extents
        .map(|(start, page_count)| PageExtent { start: MetadataAddress(*start), page_count: *page_count });
    let table = Table {
        number,
        tree,
        extents: extents.collect(),
        leaf_count: u32::from(entry.leaf_count),
        index_checksum: entry.index_checksum,
        filter_checksums: entry.filter_checksums,
        item_count: entry.item_count,
        first: entry.first,
        last: entry.last,
    };
    View { table: Rc::new(table), bounds: Bounds { from: entry.from, to: entry.to } }
}

/// Tables of a tree by level and number.
fn placed(levels: &Levels) -> BTreeMap<Key, &View> {
    let tree_key = |level: usize| move |view: &&View| key(view.table.tree, level, view.table.number);
    let newest = levels.newest.iter().flatten().map(|view| (tree_key(0)(&view), view));
    let deeper = levels.deeper.iter().enumerate();
    let deeper =
        deeper.flat_map(|(index, run)| run.iter().map(move |view| (tree_key(index + 1)(&view), view)));
    newest.chain(deeper).collect()
}

/// Notes an edit that is about to be installed. `before`: the tables of a tree as they are.
pub(super) fn note_edit(kv: &mut KeyValue, edit: &Edit, before: impl Fn(TreeId) -> Rc<Levels>) {
    for (tree, levels) in edit.trees() {
        let before = before(tree);
        let (old, new) = (placed(&before), placed(levels));
        for key in old.keys().filter(|key| !new.contains_key(key)) {
            kv.delete(tree::TABLES, *key);
        }
        for (key, view) in new {
            let is_same = old
                .get(&key)
                .is_some_and(|old| Rc::ptr_eq(&old.table, &view.table) && old.bounds == view.bounds);
            if !is_same {
                kv.put(tree::TABLES, key, &entry_of(view).encode());
            }
        }
    }
    for (tree, sum) in edit.sums() {
        debug_assert_eq!(*tree, tree::USAGE);
        usage::add_to_segment(kv, SegmentId(sum.hi as u32), decode_signed(sum.number));
    }
}

/// The tables that the catalogue names, their pages marked in use.
pub(super) fn load_tables(
    kv: &KeyValue,
    allocator: &PageAllocator,
) -> Result<BTreeMap<TreeId, Levels>, StoreError> {
    let mut trees: BTreeMap<TreeId, Levels> = BTreeMap::new();
    let mut fault = None;
    kv.visit(tree::TABLES, Key::MIN, Key::MAX, |key, value| match load_table(key, value, allocator) {
        Some((tree, level, view)) => {
            add_table(trees.entry(tree).or_default(), level, view);
            ControlFlow::Continue(())
        }
        None => {
            fault = Some(key);
            ControlFlow::Break(())
        }
    });
    if let Some(key) = fault {
        let place = format!("table {} of tree {}", key.lo, key.hi >> 8);
        return Err(StoreError::new(ErrorKind::Damaged, "load", place, "an entry that makes no sense")
            .advice("run `ringfort volume check`"));
    }
    for (tree, levels) in &mut trees {
        for run in &mut levels.deeper {
            run.sort_by_key(|view| view.bounds.from);
            if let Some(pair) = run.windows(2).find(|pair| pair[0].bounds.to >= pair[1].bounds.from) {
                let place = format!("table {} of tree {}", pair[1].table.number, tree.0);
                return Err(StoreError::new(ErrorKind::Damaged, "load", place, "keys of its neighbour")
                    .advice("run `ringfort volume check`"));
            }
        }
    }
    Ok(trees)
}

fn load_table(key: Key, value: &[u8], allocator: &PageAllocator) -> Option<(TreeId, usize, View)> {
    let (tree, level) = (u8::try_from(key.hi >> 8).ok()?, key.hi & 0xff);
    let entry = TableEntry::decode(value)?;
    if level >= LEVELS_MAX || usize::from(entry.leaf_count) > LEAVES_MAX {
        return None;
    }
    let view = view_of(TreeId(tree), key.lo, entry);
    for extent in &view.table.extents {
        for page in 0..u64::from(extent.page_count) {
            let address = page.checked_mul(PAGE_BYTES as u64)?.checked_add(extent.start.0)?;
            if !allocator.mark_used(MetadataAddress(address)) {
                return None;
            }
        }
    }
    Some((TreeId(tree), level as usize, view))
}

/// Tables come in the order of levels and numbers.
fn add_table(levels: &mut Levels, level: usize, view: View) {
    let Some(index) = level.checked_sub(1) else {
        // The newest run is the first. A table that goes on behind the one before it can be of the same run, whether it was or not: they share no keys.
        match levels.newest.first_mut() {
            Some(run) if run.last().is_some_and(|last| last.bounds.to < view.bounds.from) => run.push(view),
            _ => levels.newest.insert(0, vec![view]),
        }
        return;
    };
    while levels.deeper.len() <= index {
        levels.deeper.push(Vec::new());
    }
    levels.deeper[index].push(view);
}
