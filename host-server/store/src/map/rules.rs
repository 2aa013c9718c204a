//! What the items of the volume's trees mean.

use super::tree;
use crate::format::run::{ItemKind, RunItem};
use crate::merge::fold::{Fired, Meaning, Rule};
use crate::merge::item::{Item, encode_signed};
use crate::volume::TreeId;

/// How trees merge, and what follows: who is displaced from an object loses a reference, whose last reference goes dies, and where something dies, is born or moves
/// the count of live blocks changes.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Data blocks of a segment.
    pub segment_blocks: u64,
}

impl Meaning for Rules {
    fn rule(&self, tree: TreeId) -> Rule {
        match tree {
            tree::LOGICAL => Rule::Runs,
            tree::MIDDLE => Rule::Addresses,
            tree::USAGE => Rule::Sums,
            _ => Rule::Values,
        }
    }

    fn is_catalogued(&self, tree: TreeId) -> bool {
        tree == tree::USAGE
    }

    fn is_seen(&self, _tree: TreeId, _birth: u32, _death: u32) -> bool {
        false
    }

    fn displaced(&self, _tree: TreeId, map: &RunItem<'_>, _seen_until: Option<u32>, fired: &mut Fired) {
        let addresses = map.number..=map.number + (map.last - map.lo);
        fired.push((tree::MIDDLE, Item::plain(ItemKind::Refer, 0, addresses, 0, encode_signed(-1))));
    }

    fn vacated(&self, _tree: TreeId, place: u64, len_blocks: u64, fired: &mut Fired) {
        usage_items(self.segment_blocks, place, len_blocks, -1, fired);
    }
}

/// Blocks that lie in a row became live (positive `sign`) or died.
pub(super) fn usage_items(segment_blocks: u64, physical: u64, len_blocks: u64, sign: i64, fired: &mut Fired) {
    let mut start = physical;
    let end = physical.saturating_add(len_blocks);
    while start < end {
        let segment = start / segment_blocks;
        let until = (segment + 1).saturating_mul(segment_blocks).min(end);
        let number = encode_signed(sign * (until - start) as i64);
        fired.push((tree::USAGE, Item::plain(ItemKind::Add, segment, 0..=0, 0, number)));
        start = until;
    }
}
