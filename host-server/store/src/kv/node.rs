//! Pages in memory, shared between the current trees and snapshots of them.

use std::cell::Cell;
use std::rc::Rc;

use ringfort_engine::buffer::{Buffer, Slice};

use super::leaf::Leaf;
use crate::address::VolumeId;
use crate::format::page::{
    INNER_ENTRIES_MAX, INNER_ENTRY_BYTES, PAGE_BYTES, PageIdentity, PagePointer, encode_inner, seal_leaf,
};
use crate::volume::{Key, TreeId};

/// Where a page lies on the devices, once it has been written.
pub(super) type Durable = Rc<Cell<Option<PagePointer>>>;

/// A page. It may be changed while its generation is the current one: every snapshot was taken before, so nobody else
/// holds it. A page of an earlier generation is immutable, and a change makes a copy of the current generation.
pub(super) struct Node {
    pub generation: u64,
    pub durable: Durable,
    pub body: Body,
    _counted: Counted,
}

pub(super) enum Body {
    Leaf(Leaf),
    Inner(Inner),
}

/// Child `i` holds the keys from `keys[i]` up to `keys[i + 1]`; `keys[0]` is [`Key::MIN`]: what the parent sends here
/// belongs here.
#[derive(Clone)]
pub(super) struct Inner {
    pub level: u8,
    pub keys: Vec<Key>,
    pub children: Vec<Rc<Node>>,
}

impl Inner {
    /// The child in which a key belongs.
    #[inline]
    pub fn child_of(&self, key: Key) -> usize {
        self.keys[1..].partition_point(|lower| *lower <= key)
    }

    /// Restores the invariant of `keys[0]` after another child has become the first.
    pub fn open_lower_end(&mut self) {
        if let Some(first) = self.keys.first_mut() {
            *first = Key::MIN;
        }
    }
}

impl Node {
    pub fn level(&self) -> u8 {
        match &self.body {
            Body::Leaf(_) => 0,
            Body::Inner(inner) => inner.level,
        }
    }

    pub fn used_bytes(&self) -> usize {
        match &self.body {
            Body::Leaf(leaf) => leaf.used_bytes(),
            Body::Inner(inner) => inner.children.len() * INNER_ENTRY_BYTES,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.used_bytes() == 0
    }

    /// The page's bytes and its checksum. Children have been encoded before.
    pub fn encode(&self, volume: VolumeId, tree: TreeId) -> (Slice, u32) {
        let identity = PageIdentity { volume, generation: self.generation, tree, level: self.level() };
        let mut page = Buffer::zeroed(PAGE_BYTES);
        let checksum = match &self.body {
            Body::Leaf(leaf) => {
                let values_start = leaf.copy_packed(&mut page);
                seal_leaf(&mut page, identity, leaf.count(), values_start)
            }
            Body::Inner(inner) => {
                assert!(inner.children.len() <= INNER_ENTRIES_MAX);
                let pointers = inner.children.iter().map(|child| match child.durable.get() {
                    Some(pointer) => pointer,
                    None => unreachable!("children are written before their parent"),
                });
                encode_inner(&mut page, identity, inner.keys.iter().copied().zip(pointers))
            }
        };
        (page.freeze(), checksum)
    }
}

/// Counts the pages that are in memory, whoever holds them.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(counter: &Rc<Cell<usize>>) -> Self {
        counter.set(counter.get() + 1);
        Self(Rc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Makes, copies and discards pages of the current trees, and keeps count of them.
pub(super) struct Pages {
    pub generation: u64,
    /// Pages of the current trees.
    pub count: usize,
    /// Those of them made since the last snapshot.
    pub fresh_count: usize,
    /// Pages that left the current trees since the last snapshot, but belong to it.
    pub retired: Vec<Durable>,
    resident: Rc<Cell<usize>>,
}

impl Pages {
    pub fn new(generation: u64) -> Self {
        Self { generation, count: 0, fresh_count: 0, retired: Vec::new(), resident: Rc::default() }
    }

    /// Pages in memory, those included that only snapshots hold.
    pub fn resident_count(&self) -> usize {
        self.resident.get()
    }

    fn node(&self, generation: u64, durable: Option<PagePointer>, body: Body) -> Node {
        Node {
            generation,
            durable: Rc::new(Cell::new(durable)),
            body,
            _counted: Counted::new(&self.resident),
        }
    }

    /// A new page of the current trees.
    pub fn create(&mut self, body: Body) -> Rc<Node> {
        self.count += 1;
        self.fresh_count += 1;
        Rc::new(self.node(self.generation, None, body))
    }

    /// A page of the current trees that was read from a device.
    pub fn restore(&mut self, pointer: PagePointer, body: Body) -> Rc<Node> {
        self.count += 1;
        Rc::new(self.node(pointer.generation, Some(pointer), body))
    }

    /// Makes a page of the current trees changeable.
    pub fn own<'a>(&mut self, node: &'a mut Rc<Node>) -> &'a mut Node {
        if node.generation != self.generation {
            self.retired.push(Rc::clone(&node.durable));
            self.fresh_count += 1;
            match Rc::get_mut(node) {
                Some(node) => {
                    node.generation = self.generation;
                    node.durable = Durable::default();
                }
                None => {
                    let body = match &node.body {
                        Body::Leaf(leaf) => Body::Leaf(leaf.clone()),
                        Body::Inner(inner) => Body::Inner(inner.clone()),
                    };
                    *node = Rc::new(self.node(self.generation, None, body));
                }
            }
        }
        match Rc::get_mut(node) {
            Some(node) => node,
            None => unreachable!("a page of the current generation has one holder"),
        }
    }

    /// A page leaves the current trees; its children do not.
    pub fn discard(&mut self, node: &Node) {
        self.count -= 1;
        if node.generation == self.generation {
            self.fresh_count -= 1;
        } else {
            self.retired.push(Rc::clone(&node.durable));
        }
    }

    /// A page leaves the current trees with all below it. Returns how many entries left with it.
    pub fn discard_all(&mut self, node: &Node) -> u64 {
        self.discard(node);
        match &node.body {
            Body::Leaf(leaf) => leaf.count() as u64,
            Body::Inner(inner) => inner.children.iter().map(|child| self.discard_all(child)).sum(),
        }
    }
}
