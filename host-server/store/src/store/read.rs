//! Reading an object: from the banks, or verified from the devices.

use super::Store;
use crate::address::{BlockChecksum, LogicalBlock, ObjectId, PhysicalBlock};
use crate::error::{ErrorKind, StoreError};
use crate::map::Content;
use crate::segment::summary::{Summaries, summary_of};
use crate::volume::ReadPiece;

/// What a read found before it went to the devices.
enum Found {
    Ready(ReadPiece),
    Stored { physical: PhysicalBlock, checksums: Vec<BlockChecksum> },
}

impl Store {
    pub(super) async fn read_object(
        &self,
        object: ObjectId,
        start: LogicalBlock,
        len_blocks: u64,
    ) -> Result<Vec<ReadPiece>, StoreError> {
        let core = &self.core;
        let geometry = core.object.geometry();
        let mut found = Vec::new();
        let mut pins = Vec::new();
        {
            let state = core.state();
            for piece in state.maps.lookup(object, start, len_blocks) {
                match piece.content {
                    Content::Hole => {
                        found.push(Found::Ready(ReadPiece::Hole { len_blocks: piece.len_blocks }))
                    }
                    Content::Unborn { middle } => {
                        let place = format!("block {} of object {object}", piece.start);
                        let what = format!("middle address {middle} lies nowhere");
                        return Err(StoreError::new(ErrorKind::Damaged, "read", place, what)
                            .advice("run `ringfort volume check`"));
                    }
                    Content::Data { physical, checksums, .. } => {
                        for (index, checksum) in checksums.into_iter().enumerate() {
                            let at = PhysicalBlock(physical.0 + index as u64);
                            if let Some(slot) = state.resident(at) {
                                found.push(Found::Ready(ReadPiece::Data(slot.data.clone())));
                                continue;
                            }
                            let extends = |last: &PhysicalBlock, count: usize| {
                                last.0 + count as u64 == at.0
                                    && !at.0.is_multiple_of(geometry.blocks_per_segment())
                            };
                            match found.last_mut() {
                                Some(Found::Stored { physical, checksums })
                                    if extends(physical, checksums.len()) =>
                                {
                                    checksums.push(checksum);
                                }
                                _ => {
                                    pins.push(state.segments.pin(geometry.locate(at).segment));
                                    found.push(Found::Stored { physical: at, checksums: vec![checksum] });
                                }
                            }
                        }
                    }
                }
            }
        }
        let mut pieces = Vec::with_capacity(found.len());
        let reads = found.into_iter().map(|found| self.fetch(object, found));
        for result in ringfort_engine::sync::join_all(reads).await {
            pieces.extend(result?);
        }
        drop(pins);
        Ok(pieces)
    }

    async fn fetch(&self, object: ObjectId, found: Found) -> Result<Vec<ReadPiece>, StoreError> {
        match found {
            Found::Ready(piece) => Ok(vec![piece]),
            Found::Stored { physical, checksums } => {
                let summaries = Summaries::new(self.core.object.geometry(), |segment, stripe| {
                    summary_of(&self.core.state().maps, segment, stripe)
                });
                let read = self.core.object.read_blocks(physical, &checksums, &summaries);
                let slices = read.await.map_err(|mut error| {
                    error.place = format!("object {object}, {}", error.place).into();
                    error
                })?;
                Ok(slices.into_iter().map(ReadPiece::Data).collect())
            }
        }
    }
}
