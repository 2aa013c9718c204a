//! Reading the maps.

use super::{Content, Fate, MappedPiece, Maps, MiddlePiece, tree};
use crate::address::{BlockChecksum, LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock};
use crate::error::StoreError;
use crate::format::run::ItemKind;
use crate::kv::PageStore;
use crate::merge::item::{OwnedItem, shared_parts};
use crate::merge::read::Bounds;
use crate::volume::{Extent, Key, ShiftStep};

/// Everybody's newest state.
const NOW: u32 = u32::MAX;

fn bounds(hi: u64, lo: u64, last: u64) -> Bounds {
    Bounds { from: (hi, lo), to: (hi, last) }
}

impl Maps {
    /// The value of an entry of a tree that is not one of the maps.
    pub async fn get(
        &self,
        pages: &impl PageStore,
        tree: crate::volume::TreeId,
        key: Key,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.merge.get(pages, tree, key.hi, key.lo, NOW).await?;
        Ok(found.map(|item| item.bytes.into_owned()))
    }

    /// The first `limit` entries with `from <= key <= to`, in key order.
    pub async fn scan(
        &self,
        pages: &impl PageStore,
        tree: crate::volume::TreeId,
        from: Key,
        to: Key,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        if from > to {
            return Ok(Vec::new());
        }
        let bounds = Bounds { from: (from.hi, from.lo), to: (to.hi, to.lo) };
        let found = self.merge.scan(pages, tree, bounds, NOW, limit).await?;
        Ok(found.into_iter().map(|item| (Key::new(item.hi, item.lo), item.bytes.into_owned())).collect())
    }

    /// What a range of an object holds: pieces in order that cover it exactly.
    pub async fn lookup(
        &self,
        pages: &impl PageStore,
        object: ObjectId,
        start: LogicalBlock,
        len_blocks: u64,
    ) -> Result<Vec<MappedPiece>, StoreError> {
        let mut pieces = Vec::new();
        if len_blocks == 0 {
            return Ok(pieces);
        }
        let (mut at, end) = (start.0, start.0.saturating_add(len_blocks));
        let hole = |from: u64, to: u64| MappedPiece {
            start: LogicalBlock(from),
            len_blocks: to - from,
            content: Content::Hole,
        };
        for item in self.mapped(pages, object, start.0, end - 1).await? {
            if at < item.lo {
                pieces.push(hole(at, item.lo));
            }
            let middle = MiddleAddress(item.number);
            at = item.last + 1;
            for piece in self.resolve(pages, middle, at - item.lo).await? {
                let start = LogicalBlock(item.lo + (piece.middle.0 - middle.0));
                let content = match piece.fate {
                    Fate::Stored { physical, checksums } => {
                        Content::Data { middle: piece.middle, physical, checksums }
                    }
                    Fate::Dead => Content::Lost { middle: piece.middle },
                };
                pieces.push(MappedPiece { start, len_blocks: piece.len_blocks, content });
            }
        }
        if at < end {
            pieces.push(hole(at, end));
        }
        Ok(pieces)
    }

    /// What maps blocks of an object from `start` to `last`.
    async fn mapped(
        &self,
        pages: &impl PageStore,
        object: ObjectId,
        start: u64,
        last: u64,
    ) -> Result<Vec<OwnedItem>, StoreError> {
        if start == last {
            let found = self.merge.get(pages, tree::LOGICAL, object.0, start, NOW).await?;
            return Ok(found.into_iter().collect());
        }
        self.merge.scan(pages, tree::LOGICAL, bounds(object.0, start, last), NOW, usize::MAX).await
    }

    /// The first run of an object that ends after `from`, cut to begin at or after it.
    pub async fn next_extent(
        &self,
        pages: &impl PageStore,
        object: ObjectId,
        from: LogicalBlock,
    ) -> Result<Option<Extent>, StoreError> {
        let bounds = bounds(object.0, from.0, u64::MAX);
        let found = self.merge.scan(pages, tree::LOGICAL, bounds, NOW, 1).await?;
        Ok(found
            .first()
            .map(|item| Extent { start: LogicalBlock(item.lo), len_blocks: item.last - item.lo + 1 }))
    }

    /// What has become of a range of middle addresses: pieces in order that cover it exactly.
    pub async fn resolve(
        &self,
        pages: &impl PageStore,
        middle: MiddleAddress,
        len_blocks: u64,
    ) -> Result<Vec<MiddlePiece>, StoreError> {
        let (mut at, end) = (middle.0, middle.0.saturating_add(len_blocks));
        let mut pieces = Vec::new();
        let dead = |from: u64, to: u64| MiddlePiece {
            middle: MiddleAddress(from),
            len_blocks: to - from,
            fate: Fate::Dead,
        };
        let found: Vec<OwnedItem> = match len_blocks {
            0 => return Ok(pieces),
            1 => self.merge.get(pages, tree::MIDDLE, 0, at, NOW).await?.into_iter().collect(),
            _ => self.merge.scan(pages, tree::MIDDLE, bounds(0, at, end - 1), NOW, usize::MAX).await?,
        };
        for item in found {
            let Some(fate) = self.fate_of(&item) else { continue };
            if at < item.lo {
                pieces.push(dead(at, item.lo));
            }
            pieces.push(MiddlePiece {
                middle: MiddleAddress(item.lo),
                len_blocks: item.last - item.lo + 1,
                fate,
            });
            at = item.last + 1;
        }
        if at < end {
            pieces.push(dead(at, end));
        }
        Ok(pieces)
    }

    /// Where blocks lie that were born and live; `None` for what waits for a birth, or lies outside of the volume.
    fn fate_of(&self, item: &OwnedItem) -> Option<Fate> {
        let checksums = match item.kind {
            ItemKind::Birth => &item.bytes[..],
            ItemKind::SharedBirth => shared_parts(&item.bytes).1,
            _ => return None,
        };
        let len_blocks = item.last - item.lo + 1;
        item.number.checked_add(len_blocks).filter(|end| *end <= self.shape.data_blocks)?;
        let checksums = checksums.as_chunks::<4>().0.iter();
        Some(Fate::Stored {
            physical: PhysicalBlock(item.number),
            checksums: checksums.map(|bytes| BlockChecksum(u32::from_le_bytes(*bytes))).collect(),
        })
    }

    /// Where a middle address lies now.
    pub async fn place_of(
        &self,
        pages: &impl PageStore,
        middle: MiddleAddress,
    ) -> Result<Option<PhysicalBlock>, StoreError> {
        let found = self.merge.get(pages, tree::MIDDLE, 0, middle.0, NOW).await?;
        Ok(found.and_then(|item| match self.fate_of(&item) {
            Some(Fate::Stored { physical, .. }) => Some(physical),
            _ => None,
        }))
    }

    /// What moves the mappings of a range to `to`, in order: what is mapped is shared with its new place before its old one loses it.
    pub(crate) async fn shift_steps(
        &self,
        pages: &impl PageStore,
        object: ObjectId,
        from: LogicalBlock,
        to: LogicalBlock,
        len_blocks: u64,
    ) -> Result<Vec<ShiftStep>, StoreError> {
        let mut steps = Vec::new();
        if len_blocks == 0 || from == to {
            return Ok(steps);
        }
        let (mut at, end) = (from.0, from.0 + len_blocks);
        let target = |block: u64| LogicalBlock(block - from.0 + to.0);
        for item in self.mapped(pages, object, from.0, end - 1).await? {
            if at < item.lo {
                steps.push(ShiftStep::Unmap { start: target(at), len_blocks: item.lo - at });
            }
            at = item.last + 1;
            steps.push(ShiftStep::Share {
                start: target(item.lo),
                len_blocks: at - item.lo,
                middle: MiddleAddress(item.number),
            });
        }
        if at < end {
            steps.push(ShiftStep::Unmap { start: target(at), len_blocks: end - at });
        }
        // Nothing is overwritten before it has been shared.
        if to > from {
            steps.reverse();
        }
        let (start, end) = match to < from {
            true => (from.0.max(to.0 + len_blocks), end),
            false => (from.0, end.min(to.0)),
        };
        steps.push(ShiftStep::Unmap { start: LogicalBlock(start), len_blocks: end - start });
        Ok(steps)
    }
}
