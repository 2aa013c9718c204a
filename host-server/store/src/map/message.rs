//! Messages, and the items that they are.

use crate::address::{BlockChecksum, LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock};
use crate::format::map::RUN_BLOCKS_MAX;
use crate::format::run::ItemKind;
use crate::map::rules::{Rules, usage_items};
use crate::map::tree;
use crate::merge::fold::Fired;
use crate::merge::item::{Item, MoveBytes, OwnedItem, encode_signed};
use crate::volume::{Key, TreeId};

/// A blind change: whoever sends it has not looked at what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Sets an entry of a tree that is not one of the maps.
    Put { tree: TreeId, key: Key, value: Vec<u8> },
    /// Removes an entry, if there is one.
    Delete { tree: TreeId, key: Key },
    /// Removes the entries of one `hi`.
    DeleteAll { tree: TreeId, hi: u64 },
    /// Maps blocks of an object to middle addresses that are born with it. What it displaces loses a reference.
    MapRun { object: ObjectId, start: LogicalBlock, len_blocks: u64, middle: MiddleAddress },
    /// The same to middle addresses that something refers to already.
    ShareRun { object: ObjectId, start: LogicalBlock, len_blocks: u64, middle: MiddleAddress },
    /// Turns blocks of an object into a hole. What was mapped loses a reference.
    UnmapRun { object: ObjectId, start: LogicalBlock, len_blocks: u64 },
    /// Middle addresses get their place, one checksum a block. Sent before they are mapped, once.
    Birth { middle: MiddleAddress, physical: PhysicalBlock, checksums: Vec<BlockChecksum> },
    /// Blocks that are still where `from` says are at `to` now. They lie there when it is sent, or are dead.
    Move { middle: MiddleAddress, len_blocks: u64, from: PhysicalBlock, to: PhysicalBlock },
}

impl Message {
    /// What to apply, in order.
    pub(super) fn into_items(self, rules: &Rules) -> Fired {
        let epoch = rules.views.epoch();
        match self {
            Self::Put { tree, key, value } => {
                assert_not_a_map(tree);
                let item = Item::plain(ItemKind::Put, key.hi, key.lo..=key.lo, epoch, 0);
                vec![(tree, Item { bytes: value.into(), ..item })]
            }
            Self::Delete { tree, key } => {
                assert_not_a_map(tree);
                vec![(tree, Item::plain(ItemKind::Erase, key.hi, key.lo..=key.lo, epoch, 0))]
            }
            Self::DeleteAll { tree, hi } => {
                assert_not_a_map(tree);
                vec![(tree, Item::plain(ItemKind::Erase, hi, 0..=u64::MAX, epoch, 0))]
            }
            Self::MapRun { object, start, len_blocks, middle } => {
                map_items(object, start, len_blocks, middle, epoch)
            }
            Self::ShareRun { object, start, len_blocks, middle } => {
                let references = encode_signed(1);
                let shared =
                    Item::plain(ItemKind::Refer, 0, middle.0..=middle.0 + len_blocks - 1, 0, references);
                // The reference first: what is mapped is referred to at all times.
                let mut items = vec![(tree::MIDDLE, shared)];
                items.extend(map_items(object, start, len_blocks, middle, epoch));
                items
            }
            Self::UnmapRun { len_blocks: 0, .. } => Vec::new(),
            Self::UnmapRun { object, start, len_blocks } => {
                let last = start.0.saturating_add(len_blocks - 1);
                vec![(tree::LOGICAL, Item::plain(ItemKind::Erase, object.0, start.0..=last, epoch, 0))]
            }
            Self::Birth { middle, physical, checksums } => birth_items(middle, physical, &checksums, rules),
            Self::Move { middle, len_blocks, from, to } => {
                let item = Item::plain(ItemKind::Move, 0, middle.0..=middle.0 + len_blocks - 1, 0, to.0);
                let bytes = MoveBytes { from: from.0, references: 0 }.encode().to_vec();
                let mut items = vec![(tree::MIDDLE, Item { bytes: bytes.into(), ..item })];
                // Until it has merged, the blocks count at both places.
                usage_items(rules.segment_blocks, to.0, len_blocks, 1, &mut items);
                items
            }
        }
    }
}

/// Offsets and lengths of the pieces of a run that items may be.
fn pieces(len_blocks: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..len_blocks)
        .step_by(RUN_BLOCKS_MAX as usize)
        .map(move |offset| (offset, RUN_BLOCKS_MAX.min(len_blocks - offset)))
}

fn map_items(
    object: ObjectId,
    start: LogicalBlock,
    len_blocks: u64,
    middle: MiddleAddress,
    epoch: u32,
) -> Fired {
    let item = |(offset, len): (u64, u64)| {
        let first = start.0 + offset;
        let keys = first..=first + (len - 1);
        (tree::LOGICAL, Item::plain(ItemKind::Map, object.0, keys, epoch, middle.0 + offset))
    };
    pieces(len_blocks).map(item).collect()
}

fn birth_items(
    middle: MiddleAddress,
    physical: PhysicalBlock,
    checksums: &[BlockChecksum],
    rules: &Rules,
) -> Fired {
    let mut items = Fired::new();
    for (offset, len) in pieces(checksums.len() as u64) {
        items.push((
            tree::MIDDLE,
            birth_item(middle.0 + offset, physical.0 + offset, {
                &checksums[offset as usize..(offset + len) as usize]
            }),
        ));
    }
    usage_items(rules.segment_blocks, physical.0, checksums.len() as u64, 1, &mut items);
    items
}

/// Blocks at a place, with one reference each.
pub(super) fn birth_item(middle: u64, physical: u64, checksums: &[BlockChecksum]) -> OwnedItem {
    let last = middle + (checksums.len() as u64 - 1);
    let bytes: Vec<u8> = checksums.iter().flat_map(|checksum| checksum.0.to_le_bytes()).collect();
    Item { bytes: bytes.into(), ..Item::plain(ItemKind::Birth, 0, middle..=last, 0, physical) }
}

/// The maps change by their own messages alone: a bare put would displace blocks that then never die.
fn assert_not_a_map(tree: TreeId) {
    assert!(
        tree >= TreeId::FIRST_FILESYSTEM || tree == tree::SUMMARY,
        "bare change of map {} of the store",
        tree.0
    );
}
