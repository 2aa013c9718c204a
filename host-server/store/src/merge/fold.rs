//! What becomes of items that meet.

use std::borrow::Cow;

use super::item::{Item, MoveBytes, OwnedItem, decode_signed, encode_signed, shared_bytes, shared_parts};
use crate::format::run::{ItemKind, RunItem};
use crate::volume::TreeId;

/// How the items of a tree merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Put, erase: the newest counts, and what snapshots see stays below it.
    Values,
    /// Map, erase: as values; who is displaced is told of.
    Runs,
    /// Add: they sum up.
    Sums,
    /// Add: they sum up as long as somebody [keeps](Meaning::is_kept) what they count.
    Cells,
    /// Birth, refer, move. An address is born before all else is said of it, once; a move names the place where it lies when the move is sent, or it is dead.
    Addresses,
}

/// Items that follow from a meeting, for other trees.
pub type Fired = Vec<(TreeId, OwnedItem)>;

/// What items mean to whoever uses the merge store. All that it is told of is exactly the keys concerned, and is told of once.
pub trait Meaning {
    fn rule(&self, tree: TreeId) -> Rule;

    /// Whether the catalogue keeps this tree of sums itself, being small.
    fn is_catalogued(&self, _tree: TreeId) -> bool {
        false
    }

    /// Whether a snapshot sees what an item says that was displaced in epoch `death`.
    fn is_seen(&self, tree: TreeId, item: &RunItem<'_>, death: u32) -> bool;

    /// Whether an erasure hides what other keys say, so that it must stay although nothing older is said of its own.
    fn hides_others(&self, _tree: TreeId, _erasure: &RunItem<'_>) -> bool {
        false
    }

    /// Whether the cell still counts. Where it does not, what follows from its end is added to `fired`.
    fn is_kept(&self, _tree: TreeId, _cell: &RunItem<'_>, _fired: &mut Fired) -> bool {
        true
    }

    /// A map was displaced: in epoch `seen_until`, if a snapshot keeps it.
    fn displaced(&self, tree: TreeId, map: &RunItem<'_>, seen_until: Option<u32>, fired: &mut Fired);

    /// Blocks from `place` on count as live and are not, or no longer, those of addresses: these died, or lie elsewhere.
    fn vacated(&self, tree: TreeId, place: u64, len_blocks: u64, fired: &mut Fired);
}

/// One of the items that meet over the same keys.
#[derive(Clone, Debug)]
pub struct Layer<'a> {
    pub item: Item<'a>,
    /// No newer item of its own run covers these keys: what is below has been displaced before.
    pub is_top: bool,
}

/// Merges what `layers`, from the newest on, say of the same keys, and appends what is left of it, newest first, to `left`. `is_bottom`: nothing older is anywhere.
pub fn fold<'a>(
    meaning: &impl Meaning,
    tree: TreeId,
    layers: &[Layer<'a>],
    is_bottom: bool,
    left: &mut Vec<Item<'a>>,
    fired: &mut Fired,
) {
    match meaning.rule(tree) {
        Rule::Values | Rule::Runs => fold_versions(meaning, tree, layers, is_bottom, left, fired),
        Rule::Sums => left.extend(sum_of(layers)),
        Rule::Cells => {
            let is_kept = |cell: &Item<'_>| meaning.is_kept(tree, &cell.as_run_item(), fired);
            left.extend(sum_of(layers).filter(is_kept));
        }
        Rule::Addresses => fold_addresses(meaning, tree, layers, is_bottom, left, fired),
    }
}

fn fold_versions<'a>(
    meaning: &impl Meaning,
    tree: TreeId,
    layers: &[Layer<'a>],
    is_bottom: bool,
    left: &mut Vec<Item<'a>>,
    fired: &mut Fired,
) {
    let Some((newest, older)) = layers.split_first() else { return };
    let begin = left.len();
    left.push(newest.item.clone());
    let mut death = newest.item.epoch;
    for Layer { item, is_top } in older {
        let is_seen = meaning.is_seen(tree, &item.as_run_item(), death);
        if *is_top && item.kind == ItemKind::Map {
            meaning.displaced(tree, &item.as_run_item(), is_seen.then_some(death), fired);
        }
        if is_seen {
            left.push(item.clone());
        }
        death = item.epoch;
    }
    // What hides nothing need not be.
    let hides_nothing =
        |item: &Item<'_>| item.kind == ItemKind::Erase && !meaning.hides_others(tree, &item.as_run_item());
    while is_bottom && left.len() > begin && left.last().is_some_and(hides_nothing) {
        left.pop();
    }
}

fn sum_of<'a>(layers: &[Layer<'a>]) -> Option<Item<'a>> {
    let newest = layers.first()?;
    let sum = layers.iter().fold(0_i64, |sum, layer| sum.saturating_add(decode_signed(layer.item.number)));
    (sum != 0).then(|| Item { number: encode_signed(sum), ..newest.item.clone() })
}

/// From one place to another.
#[derive(Clone, Copy)]
struct Step {
    from: u64,
    to: u64,
}

fn fold_addresses<'a>(
    meaning: &impl Meaning,
    tree: TreeId,
    layers: &[Layer<'a>],
    is_bottom: bool,
    left: &mut Vec<Item<'a>>,
    fired: &mut Fired,
) {
    let Some(newest) = layers.first() else { return };
    let mut birth: Option<Item<'a>> = None;
    let mut references = 0_i64;
    let mut step: Option<Step> = None;
    let len_blocks = newest.item.last - newest.item.lo + 1;
    // Every place counts from when its birth or move was sent; all but one do so in vain.
    let mut vacate = |place: u64| meaning.vacated(tree, place, len_blocks, fired);
    for Layer { item, .. } in layers.iter().rev() {
        match item.kind {
            ItemKind::Refer => references += decode_signed(item.number),
            ItemKind::Move => {
                let parts = MoveBytes::decode(&item.bytes);
                references += parts.references;
                let wanted = Step { from: parts.from, to: item.number };
                match (&mut birth, step) {
                    (Some(birth), _) if birth.number == wanted.from => {
                        vacate(birth.number);
                        birth.number = wanted.to;
                    }
                    (None, None) => step = Some(wanted),
                    (None, Some(before)) if before.to == wanted.from => {
                        vacate(before.to);
                        step = Some(Step { from: before.from, to: wanted.to });
                    }
                    // Movers say where they found it: this is none of theirs.
                    _ => vacate(wanted.to),
                }
            }
            _ => birth = Some(item.clone()),
        }
    }
    let Some(mut birth) = birth else {
        // Births are older than what is said of them: who has none at the bottom is dead.
        let ended = step.take_if(|_| is_bottom);
        ended.into_iter().for_each(|step| vacate(step.to));
        left.extend(pending(newest, references, step));
        return;
    };
    let (beyond_first, checksums) = match birth.kind {
        ItemKind::SharedBirth => {
            let (beyond_first, checksums) = shared_parts(&birth.bytes);
            (i64::from(beyond_first), Some(checksums))
        }
        _ => (0, None),
    };
    match beyond_first + references {
        ..0 => vacate(birth.number),
        0 => {
            if let Some(checksums) = checksums {
                birth = Item { kind: ItemKind::Birth, bytes: Cow::Owned(checksums.to_vec()), ..birth };
            }
            left.push(birth);
        }
        beyond_first => {
            let bytes = shared_bytes(
                u32::try_from(beyond_first).unwrap_or(u32::MAX),
                checksums.unwrap_or(&birth.bytes),
            );
            left.push(Item { kind: ItemKind::SharedBirth, bytes: Cow::Owned(bytes), ..birth });
        }
    }
}

/// What waits for a birth that these layers do not have.
fn pending<'a>(newest: &Layer<'a>, references: i64, step: Option<Step>) -> Option<Item<'a>> {
    let item = &newest.item;
    match step {
        Some(Step { from, to }) => {
            let bytes = MoveBytes { from, references }.encode().to_vec();
            Some(Item { kind: ItemKind::Move, number: to, bytes: Cow::Owned(bytes), ..item.clone() })
        }
        None if references != 0 => {
            let number = encode_signed(references);
            Some(Item { kind: ItemKind::Refer, number, bytes: Cow::Borrowed(&[]), ..item.clone() })
        }
        None => None,
    }
}
