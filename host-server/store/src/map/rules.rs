//! What becomes of items that meet.

use std::rc::Rc;

use super::tree;
use crate::address::ViewId;
use crate::format::run::{ItemKind, RunItem};
use crate::merge::fold::{Fired, Meaning, Rule};
use crate::merge::item::{Item, decode_signed, encode_signed};
use crate::merge::read::Bounds;
use crate::views::{Alone, EPOCH_MAX, Views};
use crate::volume::TreeId;

/// How trees merge, and what follows: who is displaced from an object loses a reference, unless a snapshot sees it; whose last reference goes dies, and where something dies, is
/// born or moves the count of live blocks changes.
#[derive(Clone)]
pub struct Rules {
    /// Data blocks of a segment.
    pub segment_blocks: u64,
    pub views: Rc<Views>,
}

impl Meaning for Rules {
    fn rule(&self, tree: TreeId) -> Rule {
        match tree {
            tree::LOGICAL => Rule::Runs,
            tree::MIDDLE => Rule::Addresses,
            tree::USAGE => Rule::Sums,
            tree::DEAD => Rule::Cells,
            _ => Rule::Values,
        }
    }

    fn is_catalogued(&self, tree: TreeId) -> bool {
        tree == tree::USAGE
    }

    fn is_seen(&self, tree: TreeId, item: &RunItem<'_>, death: u32) -> bool {
        tree::is_of_views(tree) && self.views.is_seen(ViewId::of(item.hi), item.epoch, death)
    }

    fn hides_others(&self, tree: TreeId, erasure: &RunItem<'_>) -> bool {
        tree::is_of_views(tree) && self.views.stands_on_another(ViewId::of(erasure.hi))
    }

    fn is_kept(&self, _tree: TreeId, cell: &RunItem<'_>, fired: &mut Fired) -> bool {
        let Cell { branch, birth, death } = Cell::of(cell.hi);
        let is_seen = self.views.is_seen(branch, birth, death);
        if !is_seen {
            let lost = encode_signed(-decode_signed(cell.number));
            fired.push((tree::MIDDLE, Item::plain(ItemKind::Refer, 0, cell.lo..=cell.last, 0, lost)));
        }
        is_seen
    }

    fn displaced(&self, _tree: TreeId, map: &RunItem<'_>, seen_until: Option<u32>, fired: &mut Fired) {
        let addresses = map.number..=map.number + (map.last - map.lo);
        fired.push(match seen_until {
            None => (tree::MIDDLE, Item::plain(ItemKind::Refer, 0, addresses, 0, encode_signed(-1))),
            Some(death) => {
                let cell = Cell { branch: ViewId::of(map.hi), birth: map.epoch, death };
                (tree::DEAD, Item::plain(ItemKind::Add, cell.hi(), addresses, 0, encode_signed(1)))
            }
        });
    }

    fn vacated(&self, _tree: TreeId, place: u64, len_blocks: u64, fired: &mut Fired) {
        usage_items(self.segment_blocks, place, len_blocks, -1, fired);
    }
}

/// What was written in one epoch of a branch and displaced in another: of the dead that snapshots see, those of which the same snapshots do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub branch: ViewId,
    pub birth: u32,
    pub death: u32,
}

const EPOCH_BITS: u32 = EPOCH_MAX.trailing_ones();
const _: () = assert!(16 + 2 * EPOCH_BITS == 64);

impl Cell {
    /// Cells of a branch lie together, those that died earlier first.
    pub fn hi(self) -> u64 {
        assert!(self.birth <= EPOCH_MAX && self.death <= EPOCH_MAX, "epochs end before {self:?}");
        (u64::from(self.branch.0) << EPOCH_BITS | u64::from(self.death)) << EPOCH_BITS | u64::from(self.birth)
    }

    pub fn of(hi: u64) -> Self {
        let mask = u64::from(EPOCH_MAX);
        Self {
            branch: ViewId((hi >> (2 * EPOCH_BITS)) as u16),
            death: (hi >> EPOCH_BITS & mask) as u32,
            birth: (hi & mask) as u32,
        }
    }
}

/// Where cells may be that only one snapshot keeps: of its branch, with those that died after it and up to the next snapshot.
pub(super) fn bounds_of_cells(alone: Alone) -> Bounds {
    let Alone { branch, epoch, next } = alone;
    let cell = |birth, death| Cell { branch, birth, death }.hi();
    Bounds { from: (cell(0, epoch + 1), 0), to: (cell(EPOCH_MAX, next), u64::MAX) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_come_back() {
        for (branch, birth, death) in [(0, 0, 1), (65_534, 5, EPOCH_MAX), (3, EPOCH_MAX, EPOCH_MAX)] {
            let cell = Cell { branch: ViewId(branch), birth, death };
            assert_eq!(Cell::of(cell.hi()), cell);
        }
    }
}
