//! Maps of volumes that were made before the merge store: page trees, which are taken over as items older than all others.

use std::ops::ControlFlow;

use super::message::birth_item;
use super::rules::Rules;
use super::tree;
use crate::format::map::{LogicalRun, MiddleRun};
use crate::format::run::ItemKind;
use crate::kv::KeyValue;
use crate::merge::item::{Item, OwnedItem, encode_signed};
use crate::merge::memory::Memory;
use crate::volume::{Key, TreeId};

/// Trees that the catalogue keeps.
const KEPT: [TreeId; 4] = [tree::USAGE, tree::PROPERTIES, tree::TABLES, tree::VIEWS];

/// Takes all trees but those of the catalogue out of it, as items whose effects have been counted. Empty for a volume that has none.
pub(super) fn take_trees(kv: &mut KeyValue, rules: &Rules) -> Result<Memory, String> {
    let mut memory = Memory::default();
    let trees = (1..=TreeId::LAST_FILESYSTEM.0).map(TreeId);
    let earlier: Vec<TreeId> =
        trees.filter(|tree| !KEPT.contains(tree) && kv.entry_count(*tree) > 0).collect();
    for tree in earlier {
        let mut fault = None;
        kv.visit(tree, Key::MIN, Key::MAX, |key, value| match item_of(tree, key, value) {
            Some(item) => {
                memory.apply(rules, tree, item);
                ControlFlow::Continue(())
            }
            None => {
                fault = Some(format!("entry {key:?} of tree {} makes no sense", tree.0));
                ControlFlow::Break(())
            }
        });
        if let Some(fault) = fault {
            return Err(fault);
        }
        kv.clear(tree);
    }
    Ok(memory)
}

fn item_of(tree: TreeId, key: Key, value: &[u8]) -> Option<OwnedItem> {
    match tree {
        tree::LOGICAL => {
            let run = LogicalRun::decode(value)?;
            let last = key.lo.checked_add(run.len_blocks - 1)?;
            Some(Item::plain(ItemKind::Map, key.hi, key.lo..=last, 0, run.middle.0))
        }
        tree::MIDDLE => {
            let run = MiddleRun::decode(value)?;
            let last = key.hi.checked_add(run.len_blocks() - 1)?;
            Some(match run {
                MiddleRun::Stored { physical, checksums } => birth_item(key.hi, physical.0, &checksums),
                MiddleRun::Dead { .. } => {
                    Item::plain(ItemKind::Refer, 0, key.hi..=last, 0, encode_signed(-1))
                }
            })
        }
        _ => {
            let item = Item::plain(ItemKind::Put, key.hi, key.lo..=key.lo, 0, 0);
            Some(Item { bytes: value.to_vec().into(), ..item })
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! Trees as earlier releases wrote them.

    use super::*;
    use crate::address::{MiddleAddress, PhysicalBlock};
    use crate::format::map::{RUN_BLOCKS_MAX, encode_counter};
    use crate::map::testing::{Model, checksums};

    pub fn put_trees(kv: &mut KeyValue, model: &Model) {
        let blocks = model.logical.iter().map(|(key, middle)| (*key, *middle));
        for ((object, start), len_blocks, middle) in runs(blocks) {
            let run = LogicalRun { middle: MiddleAddress(middle), len_blocks };
            kv.put(tree::LOGICAL, Key::new(object, start), &run.encode());
        }
        let born = model.living.iter().map(|(middle, block)| ((0, *middle), block.physical));
        for ((_, middle), len_blocks, physical) in runs(born) {
            let run = MiddleRun::Stored {
                physical: PhysicalBlock(physical),
                checksums: checksums(middle, len_blocks),
            };
            kv.put(tree::MIDDLE, Key::new(middle, 0), &run.encode());
        }
        for (segment, live) in model.usage() {
            kv.put(tree::USAGE, Key::new(segment, 0), &encode_counter(live as i64));
        }
        for ((tree, key), value) in &model.values {
            kv.put(*tree, *key, value);
        }
    }

    /// Neighbours that continue each other, as one.
    fn runs(blocks: impl Iterator<Item = ((u64, u64), u64)>) -> Vec<((u64, u64), u64, u64)> {
        let mut runs: Vec<((u64, u64), u64, u64)> = Vec::new();
        for ((hi, lo), number) in blocks {
            match runs.last_mut() {
                Some(((last_hi, first), len, number_first))
                    if *last_hi == hi
                        && *first + *len == lo
                        && *number_first + *len == number
                        && *len < RUN_BLOCKS_MAX =>
                {
                    *len += 1;
                }
                _ => runs.push(((hi, lo), 1, number)),
            }
        }
        runs
    }
}
