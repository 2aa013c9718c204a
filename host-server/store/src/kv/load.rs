//! Reading all trees from the devices.

use std::rc::Rc;

use ringfort_engine::buffer::Slice;

use super::allocate::PageAllocator;
use super::checkpoint::PageStore;
use super::leaf::Leaf;
use super::node::{Body, Inner, Node, Pages};
use super::tree::Tree;
use super::window::Window;
use crate::address::VolumeId;
use crate::error::{ErrorKind, StoreError};
use crate::format::page::{DecodedPage, LEVEL_MAX, PagePointer, TreeRoot, decode, is_page};
use crate::volume::{Key, TreeId};

/// A page yet to be read, and the keys that it may hold.
#[derive(Clone, Copy)]
struct Expected {
    pointer: PagePointer,
    /// Lowest key.
    from: Key,
    /// First key beyond; `None` at the end of the tree.
    to: Option<Key>,
}

/// A page of the level that was just read, still without its children.
enum Loaded {
    Leaf(Leaf),
    /// Keys; the children are the next so many pages of the level below.
    Inner(Vec<Key>),
}

/// Reads one tree, level by level. Every page that it reaches is checked against its pointer, and marked in use.
pub(super) async fn load_tree(
    store: &impl PageStore,
    volume: VolumeId,
    root: &TreeRoot,
    allocator: &PageAllocator,
    pages: &mut Pages,
) -> Result<Tree, StoreError> {
    let mut levels = Vec::new();
    let mut expected = vec![Expected { pointer: root.pointer, from: Key::MIN, to: None }];
    if root.level > LEVEL_MAX {
        return Err(damaged(root.tree, &root.pointer, format!("level {}", root.level)));
    }
    for level in (0..=root.level).rev() {
        let loaded = load_level(store, volume, root.tree, level, &expected, allocator).await?;
        let pointers = expected.iter().map(|expected| expected.pointer).collect::<Vec<_>>();
        expected = loaded.iter().flat_map(|(_, children)| children).copied().collect();
        let bodies = loaded.into_iter().map(|(loaded, _)| loaded);
        levels.push((level, pointers.into_iter().zip(bodies).collect::<Vec<_>>()));
    }
    let mut below: Vec<Rc<Node>> = Vec::new();
    let mut entry_count = 0;
    for (level, loaded) in levels.into_iter().rev() {
        let mut children = below.into_iter();
        let mut nodes = Vec::with_capacity(loaded.len());
        for (pointer, loaded) in loaded {
            let body = match loaded {
                Loaded::Leaf(leaf) => {
                    entry_count += leaf.count() as u64;
                    Body::Leaf(leaf)
                }
                Loaded::Inner(keys) => {
                    let children = children.by_ref().take(keys.len()).collect();
                    Body::Inner(Inner { level, keys, children })
                }
            };
            nodes.push(pages.restore(pointer, body));
        }
        below = nodes;
    }
    if entry_count != root.entry_count {
        let found = format!("{entry_count} entries instead of {}", root.entry_count);
        return Err(damaged(root.tree, &root.pointer, found));
    }
    Ok(Tree { root: below.pop(), entry_count })
}

async fn load_level(
    store: &impl PageStore,
    volume: VolumeId,
    tree: TreeId,
    level: u8,
    expected: &[Expected],
    allocator: &PageAllocator,
) -> Result<Vec<(Loaded, Vec<Expected>)>, StoreError> {
    let mut results: Vec<Option<(Loaded, Vec<Expected>)>> = Vec::new();
    results.resize_with(expected.len(), || None);
    let mut window = Window::new();
    for (index, page) in expected.iter().enumerate() {
        if !allocator.mark_used(page.pointer.address) {
            let found = "a pointer outside the page area, or to a page that is reached twice";
            return Err(damaged(tree, &page.pointer, found));
        }
        if window.is_full()
            && let Some((index, result)) = window.next().await
        {
            results[index] = Some(take_page(result, volume, tree, level, &expected[index])?);
        }
        window.push(async move {
            let verify = |bytes: &[u8]| is_page(bytes, page.pointer, volume);
            (index, store.read_page(page.pointer.address, &verify).await)
        });
    }
    while let Some((index, result)) = window.next().await {
        results[index] = Some(take_page(result, volume, tree, level, &expected[index])?);
    }
    Ok(results.into_iter().flatten().collect())
}

/// Checks a page and takes it apart.
fn take_page(
    read: Result<Slice, StoreError>,
    volume: VolumeId,
    tree: TreeId,
    level: u8,
    expected: &Expected,
) -> Result<(Loaded, Vec<Expected>), StoreError> {
    let page = read?;
    let pointer = &expected.pointer;
    let decoded = decode(&page, *pointer, volume, tree, level)
        .map_err(|fault| damaged(tree, pointer, fault.to_string()))?;
    let inside = |key: Key| key >= expected.from && expected.to.is_none_or(|to| key < to);
    let astray = || damaged(tree, pointer, "keys that belong to another page");
    match decoded {
        DecodedPage::Leaf { slots, values_start } => {
            // The keys are in order: the outermost stand for all.
            if !slots.first().is_some_and(|slot| inside(slot.key()))
                || !slots.last().is_some_and(|slot| inside(slot.key()))
            {
                return Err(astray());
            }
            Ok((Loaded::Leaf(Leaf::from_page(&page, slots.len(), values_start)), Vec::new()))
        }
        DecodedPage::Inner { entries } => {
            let keys: Vec<Key> = entries.iter().map(|entry| entry.key()).collect();
            if !keys[1..].iter().all(|key| inside(*key)) {
                return Err(astray());
            }
            let children = entries.iter().enumerate().map(|(index, entry)| Expected {
                pointer: entry.pointer(),
                from: if index == 0 { expected.from } else { entry.key() },
                to: keys.get(index + 1).copied().or(expected.to),
            });
            let children = children.collect();
            Ok((Loaded::Inner(keys), children))
        }
    }
}

fn damaged(tree: TreeId, pointer: &PagePointer, found: impl Into<Box<str>>) -> StoreError {
    let place = format!("page at metadata byte {} of tree {}", pointer.address, tree.0);
    StoreError::new(ErrorKind::Damaged, "load", place, found)
        .expected(format!("generation {}, checksum {:08x}", pointer.generation, pointer.checksum))
        .advice("no mirror has this page: run `ringfort volume check`")
}
