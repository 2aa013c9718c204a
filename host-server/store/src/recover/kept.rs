//! What the last process had applied and not logged, from its memory file.

use super::replay::Found;
use crate::address::{MiddleAddress, PhysicalBlock};
use crate::error::StoreError;
use crate::format::checksum::block_checksum;
use crate::format::log::{Entry, decode_body};
use crate::keep::Kept;
use crate::pages::Pages;
use crate::segment::bank::Slot;
use crate::state::{Frame, State};

impl State {
    /// Takes in what the last process had applied and not logged; returns how many transactions that were. Their blocks join `found`, so that
    /// the stripes written next hold them and the commit that follows names both.
    pub(super) async fn replay_kept(
        &mut self,
        pages: &Pages<'_>,
        kept: &Kept,
        found: &mut Found,
    ) -> Result<u64, StoreError> {
        let mut replayed = 0;
        for (transaction, body) in &kept.frames {
            if *transaction < self.next_transaction {
                continue;
            }
            let entries = match decode_body(body) {
                Some(transactions) if *transaction == self.next_transaction => transactions.concat(),
                _ => break,
            };
            let Some(blocks) = kept_blocks(kept, &entries) else {
                tracing::warn!(
                    transaction,
                    "a change that the last process kept in memory lacks its blocks: it and the unsynced ones after it are lost, \
                     as in a power cut"
                );
                break;
            };
            for entry in &entries {
                let place = || format!("kept transaction {transaction}");
                self.replay_entry(pages, entry, &place).await?;
            }
            for (physical, slot) in blocks {
                found.insert(physical, slot);
            }
            for entry in &entries {
                if let Entry::Stripe { segment, stripe, .. } = entry {
                    let at = |physical: &PhysicalBlock| {
                        let place = self.geometry.locate(*physical);
                        (place.segment, place.stripe.0) == (*segment, *stripe)
                    };
                    found.retain(|physical, _| !at(physical));
                }
            }
            self.frames_body_bytes += body.len();
            self.frames.push_back(Frame { body: body.clone(), bank_runs: Vec::new() });
            self.next_transaction += 1;
            replayed += 1;
        }
        Ok(replayed)
    }
}

/// The blocks that a kept transaction put into banks; `None` where one is not there as it was.
fn kept_blocks(kept: &Kept, entries: &[Entry]) -> Option<Vec<(PhysicalBlock, Slot)>> {
    let mut blocks = Vec::new();
    for entry in entries {
        let Entry::Write(run) = entry else { continue };
        if !run.bank {
            continue;
        }
        for (offset, checksum) in run.checksums.iter().enumerate() {
            let physical = PhysicalBlock(run.physical.0 + offset as u64);
            let data = kept.block(physical)?;
            if block_checksum(&data) != *checksum {
                return None;
            }
            let middle = MiddleAddress(run.middle.0 + offset as u64);
            blocks.push((physical, Slot { data, checksum: *checksum, middle }));
        }
    }
    Some(blocks)
}
