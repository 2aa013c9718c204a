//! Opening a volume, after a clean stop or a crash alike.
//!
//! 1. The newest valid root on any live mirror.
//! 2. Its trees.
//! 3. The chain of log records from its replay point on: transactions that the trees hold already only give back their
//!    bank blocks, later ones are merged.
//! 4. The root and the last record are made equal on all mirrors: no others may differ.
//! 5. A root that opens a new epoch; no record of an older epoch is believed behind this point.
//! 6. Stripes whose blocks came from the log are written in full, padded, and named.
//! 7. A checkpoint, which needs no room in the log.
//!
//! Every step may be cut short and begins again: until 5 only bytes that were already there are written, and 6 writes
//! stripes that nothing durable names.

mod kept;
mod replay;
mod root;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::engine::Engine;
use ringfort_engine::sync::join_all;

pub(crate) use replay::{Replayed, maps_shape, replay};
pub(crate) use root::{find_root, page_allocator};

use crate::address::{PhysicalBlock, SegmentId, StripeIndex, VolumeId};
use crate::core::Core;
use crate::error::StoreError;
use crate::format::checksum::block_checksum;
use crate::format::log::Entry;
use crate::format::root::Root;
use crate::format::segment::StripeSummary;
use crate::keep::{Keep, Kept};
use crate::limits::MIDDLE_RESERVE;
use crate::log::replay::FoundRecord;
use crate::object::Object;
use crate::pages::Pages;
use crate::segment::bank::Slot;
use crate::state::State;
use replay::Found;

/// What recovery found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    pub replayed_records: u64,
    pub replayed_transactions: u64,
    pub replayed_log_bytes: u64,
    /// Transactions that only the memory of the last process held.
    pub kept_transactions: u64,
    /// Stripes written from blocks that only the log had.
    pub rewritten_stripes: u64,
    pub elapsed: Duration,
}

impl RecoveryReport {
    fn note(&mut self, record: &FoundRecord) {
        self.replayed_records += 1;
        self.replayed_log_bytes += record.block_count * BLOCK_BYTES as u64;
    }
}

impl State {
    /// What recovery itself applied needs no record: nobody is served before the root of its checkpoint is durable, and until
    /// then the old root and its log lead to the same state again. So a full log never keeps a volume from opening.
    fn leave_to_checkpoint(&mut self) {
        self.frames.clear();
        self.frames_body_bytes = 0;
        self.frames_data_blocks = 0;
        self.durable_transaction = self.last_transaction();
    }
}

/// Steps 4 and 5: afterwards the log may be appended to.
async fn open_epoch(core: &Core, root: Root, last: Option<FoundRecord>) -> Result<(), StoreError> {
    // The root too may be on one mirror only, and the next one is about to overwrite its predecessor on the others.
    core.write_root(&root).await?;
    if let Some(record) = last {
        let writes = core.state().ring.split(record.live.position, vec![aligned(&record.bytes)]);
        for result in
            join_all(writes.into_iter().map(|(at, data)| core.object.write_metadata(at, data))).await
        {
            result?;
        }
        core.object.flush_metadata().await?;
    }
    let next = {
        let mut state = core.state_mut();
        let epoch = root.epoch + 1;
        state.ring.begin_epoch(epoch);
        state.moved_ring.begin_epoch(epoch);
        Root {
            sequence: root.sequence + 1,
            epoch,
            epoch_first_record: state.ring.epoch_first_record(),
            middle_limit: state.next_middle + MIDDLE_RESERVE,
            ..root
        }
    };
    core.write_root(&next).await?;
    core.state_mut().root = next;
    Ok(())
}

/// Device I/O needs aligned memory; a record cut out of a read window is.
fn aligned(bytes: &Slice) -> Slice {
    if bytes.is_block_aligned() { bytes.clone() } else { Slice::copy_of(bytes) }
}

/// Step 6: blocks that only the log holds go to their stripes.
async fn rewrite_stripes(core: &Core, found: Found) -> Result<u64, StoreError> {
    let geometry = *core.object.geometry();
    let mut stripes: BTreeMap<(SegmentId, StripeIndex), Vec<(PhysicalBlock, Slot)>> = BTreeMap::new();
    for (physical, slot) in found {
        let place = geometry.locate(physical);
        stripes.entry((place.segment, place.stripe)).or_default().push((physical, slot));
    }
    let zeros = Buffer::zeroed(BLOCK_BYTES).freeze();
    let zeros_checksum = block_checksum(&zeros);
    let mut entries = Vec::new();
    let count = stripes.len() as u64;
    for ((segment, stripe), slots) in stripes {
        let stripe_blocks = geometry.blocks_per_stripe() as usize;
        let start = geometry.stripe_start(segment, stripe);
        let mut data = vec![zeros.clone(); stripe_blocks];
        let mut summary = StripeSummary {
            middles: vec![None; stripe_blocks],
            data_checksums: vec![zeros_checksum; stripe_blocks],
            parity_checksums: Vec::new(),
        };
        for (physical, slot) in slots {
            let index = (physical.0 - start.0) as usize;
            data[index] = slot.data;
            summary.data_checksums[index] = slot.checksum;
            summary.middles[index] = Some(slot.middle);
        }
        let parity = core.object.write_stripes(segment, stripe, data).await?;
        summary.parity_checksums = parity;
        entries.push(Entry::Stripe { segment, stripe: stripe.0, summary: summary.encode() });
    }
    if !entries.is_empty() {
        let mut state = core.state_mut();
        core.count_stripes(&mut state, count);
        state.apply_internal(&entries);
    }
    Ok(count)
}

/// All of it. The volume is ready for use afterwards.
pub(crate) async fn recover(
    engine: Rc<dyn Engine>,
    object: Object,
    volume: VolumeId,
    commit_interval: Duration,
    memory_bytes: u64,
) -> Result<(Core, RecoveryReport), StoreError> {
    let began = engine.monotonic();
    let Replayed { state, root, mut found, last, mut report } = replay(&object, volume, memory_bytes).await?;
    let mut core = Core::new(Rc::clone(&engine), object, volume, state, commit_interval, memory_bytes);
    let kept_shape = State::keep_shape(core.object.geometry(), root.log_blocks, root.kept_epoch);
    let kept = Kept::find(&engine, volume, kept_shape);
    open_epoch(&core, root, last).await?;
    if let Some(kept) = kept {
        let (object, state) = core.parts_mut();
        report.kept_transactions = state.replay_kept(&Pages::new(object), &kept, &mut found).await?;
    }
    report.rewritten_stripes = rewrite_stripes(&core, found).await?;
    core.object.flush_data().await?;
    core.state().segments.tell_open_apart();
    core.state_mut().leave_to_checkpoint();
    core.checkpoint(true).await?;
    {
        // From here on the pages hold all that the old file did.
        let mut state = core.state_mut();
        let shape = State::keep_shape(&state.geometry, state.ring.block_count(), state.ring.epoch());
        state.keep = Keep::create(&engine, volume, shape);
    }
    report.elapsed = engine.monotonic() - began;
    Ok((core, report))
}
