//! One tree: search, change, rebalance.

use std::ops::ControlFlow;
use std::rc::Rc;

use super::leaf::Leaf;
use super::node::{Body, Inner, Node, Pages};
use crate::format::page::{INNER_ENTRIES_MAX, INNER_ENTRY_BYTES, PAGE_CAPACITY_BYTES};
use crate::volume::Key;

/// Neighbours under one parent that together fill no more than this become one page. Below the capacity, so that a
/// page that was just merged is not split by the next insertion.
const MERGE_BYTES_MAX: usize = PAGE_CAPACITY_BYTES / 4 * 3;

/// Invariants: no page is empty; an inner root has two children or more; all leaves are at one depth.
#[derive(Clone, Default)]
pub(super) struct Tree {
    pub root: Option<Rc<Node>>,
    pub entry_count: u64,
}

/// What an insertion did below.
struct Inserted {
    added: bool,
    /// A value became shorter: the page may have room to merge.
    shrunk: bool,
    /// The page was divided: the new page and its lowest key.
    split: Option<(Key, Rc<Node>)>,
}

impl Tree {
    pub fn get(&self, key: Key) -> Option<&[u8]> {
        let mut node = self.root.as_ref()?;
        loop {
            match &node.body {
                Body::Leaf(leaf) => return leaf.find(key).ok().map(|position| leaf.value(position)),
                Body::Inner(inner) => node = &inner.children[inner.child_of(key)],
            }
        }
    }

    /// The entry with the highest key that is not above `key`.
    pub fn floor(&self, key: Key) -> Option<(Key, &[u8])> {
        fn floor_in(node: &Node, key: Key) -> Option<(Key, &[u8])> {
            match &node.body {
                Body::Leaf(leaf) => {
                    let end = leaf.find(key).map_or_else(|position| position, |position| position + 1);
                    (end > 0).then(|| leaf.entry(end - 1))
                }
                Body::Inner(inner) => {
                    let child = inner.child_of(key);
                    // The child's bound may be below its lowest key; then its lower neighbour has the answer.
                    floor_in(&inner.children[child], key)
                        .or_else(|| (child > 0).then(|| floor_in(&inner.children[child - 1], key)).flatten())
                }
            }
        }
        floor_in(self.root.as_ref()?, key)
    }

    /// Calls `visit` with the entries `from <= key <= to` in order, until it breaks.
    pub fn visit<'a>(
        &'a self,
        from: Key,
        to: Key,
        visit: &mut dyn FnMut(Key, &'a [u8]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        fn visit_in<'a>(
            node: &'a Node,
            from: Key,
            to: Key,
            visit: &mut dyn FnMut(Key, &'a [u8]) -> ControlFlow<()>,
        ) -> ControlFlow<()> {
            match &node.body {
                Body::Leaf(leaf) => {
                    let start = leaf.find(from).unwrap_or_else(|position| position);
                    for position in start..leaf.count() {
                        let (key, value) = leaf.entry(position);
                        if key > to {
                            return ControlFlow::Break(());
                        }
                        visit(key, value)?;
                    }
                }
                Body::Inner(inner) => {
                    for child in inner.child_of(from)..inner.children.len() {
                        if child > 0 && inner.keys[child] > to {
                            return ControlFlow::Break(());
                        }
                        visit_in(&inner.children[child], from, to, visit)?;
                    }
                }
            }
            ControlFlow::Continue(())
        }
        match &self.root {
            Some(root) if from <= to => visit_in(root, from, to, visit),
            _ => ControlFlow::Continue(()),
        }
    }

    /// Sets an entry.
    pub fn insert(&mut self, pages: &mut Pages, key: Key, value: &[u8]) {
        let Some(root) = &mut self.root else {
            self.root = Some(pages.create(Body::Leaf(Leaf::with_entry(key, value))));
            self.entry_count = 1;
            return;
        };
        let inserted = insert_in(pages, root, key, value);
        if inserted.added {
            self.entry_count += 1;
        }
        if let Some((lower, right)) = inserted.split {
            let level = root.level() + 1;
            let left = Rc::clone(root);
            // The reference in `root` goes before anybody changes the left page again.
            *root = pages.create(Body::Inner(Inner {
                level,
                keys: vec![Key::MIN, lower],
                children: vec![left, right],
            }));
        }
        if inserted.shrunk {
            self.lower_root(pages);
        }
    }

    /// Removes an entry; `false` where there is none.
    pub fn remove(&mut self, pages: &mut Pages, key: Key) -> bool {
        // A miss must not copy the path.
        if self.get(key).is_none() {
            return false;
        }
        if let Some(root) = &mut self.root {
            remove_in(pages, root, key);
            self.entry_count -= 1;
        }
        self.lower_root(pages);
        true
    }

    /// Removes the entries `from <= key < to`. Returns how many there were.
    pub fn remove_range(&mut self, pages: &mut Pages, from: Key, to: Key) -> u64 {
        let mut found = false;
        let _ = self.visit(from, to, &mut |key, _| {
            found = key < to;
            ControlFlow::Break(())
        });
        let removed = match &mut self.root {
            Some(root) if found => remove_range_in(pages, root, from, to),
            _ => return 0,
        };
        self.entry_count -= removed;
        self.lower_root(pages);
        removed
    }

    fn lower_root(&mut self, pages: &mut Pages) {
        while let Some(root) = &self.root {
            let only_child = match &root.body {
                Body::Inner(inner) if inner.children.len() == 1 => Some(Rc::clone(&inner.children[0])),
                _ if root.is_empty() => None,
                _ => return,
            };
            pages.discard(root);
            self.root = only_child;
        }
    }
}

fn insert_in(pages: &mut Pages, node: &mut Rc<Node>, key: Key, value: &[u8]) -> Inserted {
    let node = pages.own(node);
    match &mut node.body {
        Body::Leaf(leaf) => {
            let (position, added) = match leaf.find(key) {
                Ok(position) => {
                    let shrunk = value.len() < leaf.value(position).len();
                    if leaf.replace(position, value) {
                        return Inserted { added: false, shrunk, split: None };
                    }
                    leaf.remove(position..position + 1);
                    (position, false)
                }
                Err(position) => (position, true),
            };
            if leaf.insert(position, key, value) {
                return Inserted { added, shrunk: false, split: None };
            }
            let right = leaf.split_insert(position, key, value);
            let lower = right.key(0);
            Inserted { added, shrunk: false, split: Some((lower, pages.create(Body::Leaf(right)))) }
        }
        Body::Inner(inner) => {
            let child = inner.child_of(key);
            let mut inserted = insert_in(pages, &mut inner.children[child], key, value);
            if inserted.shrunk {
                rebalance(pages, inner, child);
            }
            if let Some((lower, right)) = inserted.split.take() {
                inner.keys.insert(child + 1, lower);
                inner.children.insert(child + 1, right);
                if inner.children.len() > INNER_ENTRIES_MAX {
                    inserted.split = Some(split_inner(pages, inner, child + 1));
                }
            }
            inserted
        }
    }
}

/// Divides an inner page that has one child too many; `grown` is the child that was added last.
fn split_inner(pages: &mut Pages, inner: &mut Inner, grown: usize) -> (Key, Rc<Node>) {
    let count = inner.children.len();
    // At the upper end of ascending keys the page that is left behind stays nearly full.
    let keep = if grown == count - 1 { count - count / 8 } else { count / 2 };
    let mut keys = inner.keys.split_off(keep);
    let children = inner.children.split_off(keep);
    let lower = std::mem::replace(&mut keys[0], Key::MIN);
    (lower, pages.create(Body::Inner(Inner { level: inner.level, keys, children })))
}

/// Removes a key that is there.
fn remove_in(pages: &mut Pages, node: &mut Rc<Node>, key: Key) {
    match &mut pages.own(node).body {
        Body::Leaf(leaf) => {
            if let Ok(position) = leaf.find(key) {
                leaf.remove(position..position + 1);
            }
        }
        Body::Inner(inner) => {
            let child = inner.child_of(key);
            remove_in(pages, &mut inner.children[child], key);
            rebalance(pages, inner, child);
        }
    }
}

fn remove_range_in(pages: &mut Pages, node: &mut Rc<Node>, from: Key, to: Key) -> u64 {
    if let Body::Leaf(leaf) = &node.body {
        let start = leaf.find(from).unwrap_or_else(|position| position);
        let end = leaf.find(to).unwrap_or_else(|position| position);
        if start < end {
            match &mut pages.own(node).body {
                Body::Leaf(leaf) => leaf.remove(start..end),
                Body::Inner(_) => unreachable!("a copy is of the same kind"),
            }
        }
        return end.saturating_sub(start) as u64;
    }
    match &mut pages.own(node).body {
        Body::Leaf(_) => unreachable!("a copy is of the same kind"),
        Body::Inner(inner) => {
            let first = inner.child_of(from);
            // The last child that may hold keys below `to`.
            let last = inner.keys[1..].partition_point(|lower| *lower < to);
            if first >= last {
                let removed = remove_range_in(pages, &mut inner.children[first], from, to);
                rebalance(pages, inner, first);
                return removed;
            }
            let mut removed = remove_range_in(pages, &mut inner.children[last], from, to);
            removed += remove_range_in(pages, &mut inner.children[first], from, to);
            inner.keys.drain(first + 1..last);
            for child in inner.children.drain(first + 1..last) {
                removed += pages.discard_all(&child);
            }
            rebalance(pages, inner, first + 1);
            rebalance(pages, inner, first.min(inner.children.len().saturating_sub(1)));
            removed
        }
    }
}

/// Drops a child that has become empty, or merges one that has shrunk with a neighbour where both fit one page.
fn rebalance(pages: &mut Pages, inner: &mut Inner, child: usize) {
    let Some(node) = inner.children.get(child) else { return };
    if node.is_empty() {
        pages.discard(node);
        inner.children.remove(child);
        inner.keys.remove(child);
        inner.open_lower_end();
        return;
    }
    let fits = |left: usize| match (inner.children.get(left), inner.children.get(left + 1)) {
        (Some(left), Some(right)) => left.used_bytes() + right.used_bytes() <= MERGE_BYTES_MAX,
        _ => false,
    };
    let left = if fits(child) {
        child
    } else if child > 0 && fits(child - 1) {
        child - 1
    } else {
        return;
    };
    let right = inner.children.remove(left + 1);
    let lower = inner.keys.remove(left + 1);
    pages.discard(&right);
    match (&mut pages.own(&mut inner.children[left]).body, &right.body) {
        (Body::Leaf(left), Body::Leaf(right)) => left.append(right),
        (Body::Inner(left), Body::Inner(right)) => {
            left.keys.push(lower);
            left.keys.extend_from_slice(&right.keys[1..]);
            left.children.extend(right.children.iter().cloned());
            left.open_lower_end();
        }
        _ => unreachable!("neighbours are at one level"),
    }
}

// Two inner pages that merge must fit one.
const _: () = assert!(MERGE_BYTES_MAX / INNER_ENTRY_BYTES <= INNER_ENTRIES_MAX);
