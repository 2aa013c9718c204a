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

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::engine::Engine;
use ringfort_engine::sync::join_all;

use crate::address::{MetadataAddress, PhysicalBlock, SegmentId, StripeIndex, VolumeId};
use crate::checkpoint::{Pages, decode_segment};
use crate::core::Core;
use crate::error::{ErrorKind, StoreError};
use crate::format::checksum::block_checksum;
use crate::format::log::{Entry, decode_body};
use crate::format::page::PAGE_BYTES;
use crate::format::root::{LOG_START, ROOT_SLOT_BYTES, Root};
use crate::format::segment::StripeSummary;
use crate::keep::{Keep, Kept};
use crate::kv::PageAllocator;
use crate::limits::MIDDLE_RESERVE;
use crate::log::replay::{Chain, FoundRecord, Replay};
use crate::log::ring::Ring;
use crate::map::{Maps, tree};
use crate::object::Object;
use crate::segment::bank::Slot;
use crate::segment::table::{Class, SegmentState, SegmentTable};
use crate::state::{Frame, State, segment_key};

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

/// The newest root that any live mirror holds.
pub(crate) async fn find_root(object: &Object, volume: VolumeId) -> Result<Root, StoreError> {
    let mut newest: Option<Root> = None;
    for mirror in object.live_mirrors() {
        for slot in 0..2 {
            let address = MetadataAddress(slot * ROOT_SLOT_BYTES as u64);
            let Ok(bytes) = object.read_metadata_mirror(mirror, address, BLOCK_BYTES).await else { continue };
            if let Some(version) = Root::newer_version(&bytes, volume) {
                let place = format!("volume {volume}");
                let found = format!("a root of version {version}");
                return Err(StoreError::new(ErrorKind::Incompatible, "open", place, found)
                    .advice("use the release that wrote it, or a later one"));
            }
            if let Some(root) = Root::decode(&bytes, volume)
                && newest.as_ref().is_none_or(|newest| root.sequence > newest.sequence)
            {
                newest = Some(root);
            }
        }
    }
    newest.ok_or_else(|| {
        StoreError::new(
            ErrorKind::Damaged,
            "find root of",
            format!("volume {volume}"),
            "no valid root on any mirror",
        )
        .expected("a root slot with a valid checksum on at least one metadata mirror")
        .advice("bring back a missing metadata component; if none is missing the volume cannot be opened")
    })
}

/// The area of tree pages that a root describes.
pub(crate) fn page_allocator(root: &Root) -> PageAllocator {
    PageAllocator::new(root.page_area_start(), (root.page_area_bytes / PAGE_BYTES as u64) as usize)
}

/// Blocks found in the log, by where they belong.
type Found = BTreeMap<PhysicalBlock, Slot>;

/// Trees, segments and log as the root and the log behind it say.
pub(crate) struct Replayed {
    pub state: State,
    pub root: Root,
    found: Found,
    last: Option<FoundRecord>,
    pub report: RecoveryReport,
}

/// Steps 1 to 3: reads only.
pub(crate) async fn replay(object: &Object, volume: VolumeId) -> Result<Replayed, StoreError> {
    let geometry = *object.geometry();
    let root = find_root(object, volume).await?;
    let regions_blocks =
        [root.log_blocks, root.metadata_log_blocks, root.page_area_bytes / BLOCK_BYTES as u64];
    let room_blocks = (geometry.metadata_bytes - LOG_START.0) / BLOCK_BYTES as u64;
    let fits = regions_blocks.iter().try_fold(0u64, |sum, blocks| sum.checked_add(*blocks));
    if root.log_blocks == 0 || root.metadata_log_blocks == 0 || fits.is_none_or(|blocks| blocks > room_blocks)
    {
        return Err(StoreError::new(
            ErrorKind::Damaged,
            "use root of",
            format!("volume {volume}"),
            "regions that leave the metadata region",
        ));
    }
    check_counters(&root, volume)?;
    let pages = Pages { object, written: Default::default() };
    let allocator = Rc::new(page_allocator(&root));
    let maps = Maps::load(volume, &root.trees, &pages, allocator, geometry.blocks_per_segment()).await?;
    check_places(&maps, geometry.data_blocks())?;
    let segments = restore_segments(&maps, geometry.segment_count, geometry.stripes_per_segment)?;
    let (moved, commits) = (Chain::moved(&root), Chain::commits(&root));
    let ring = Ring::new(commits.region, commits.start, root.epoch);
    let moved_ring = Ring::new(moved.region, moved.start, root.epoch);
    let mut state = State::new(geometry, maps, ring, moved_ring, segments, root.clone());
    state.next_transaction = root.applied_transaction + 1;
    state.next_middle = root.middle_limit;

    let mut report = RecoveryReport::default();
    let mut found = Found::new();
    let mut last = None;
    let mut reader = Replay::new(object, volume, &root, moved);
    for number in 0..root.moved_records {
        let Some(record) = reader.next().await? else {
            let place = format!("record {} of {} in the metadata log", number + 1, root.moved_records);
            return Err(StoreError::new(ErrorKind::Damaged, "replay", place, "no valid copy on any mirror")
                .advice("bring back a missing metadata component"));
        };
        report.note(&record);
        report.replayed_transactions += state.replay_record(&record, root.applied_transaction, &mut found)?;
        state.moved_ring.restore(record.live, record.block_count, record.checksum);
    }
    // The log may begin with records that were moved as well, if their blocks lie in it still.
    let applied = state.last_transaction();
    let mut reader = Replay::new(object, volume, &root, commits);
    while let Some(record) = reader.next().await? {
        report.note(&record);
        report.replayed_transactions += state.replay_record(&record, applied, &mut found)?;
        state.ring.restore(record.live, record.block_count, record.checksum);
        last = Some(record);
    }
    state.durable_transaction = state.last_transaction();
    let unnamed = |physical: &PhysicalBlock| {
        let place = geometry.locate(*physical);
        // A free segment has neither summaries nor blocks: what the log says of it is of an earlier life, and a summary made
        // of that would hide the blocks of the next one.
        state.segments.get(place.segment).state != SegmentState::Free
            && state.maps.get(tree::SUMMARY, tree::summary_key(place.segment, place.stripe)).is_none()
    };
    found.retain(|physical, _| unnamed(physical));
    Ok(Replayed { state, root, found, last, report })
}

/// Counters that only rise stay far from overflow for as long as any device lasts.
fn check_counters(root: &Root, volume: VolumeId) -> Result<(), StoreError> {
    let counters = [
        root.sequence,
        root.epoch,
        root.epoch_first_record,
        root.applied_transaction,
        root.replay_position,
        root.replay_sequence,
        root.moved_position,
        root.moved_sequence,
        root.middle_limit,
    ];
    match counters.into_iter().max() {
        Some(largest) if largest > u64::MAX / 4 => Err(StoreError::new(
            ErrorKind::Damaged,
            "use root of",
            format!("volume {volume}"),
            format!("a counter of {largest}"),
        )),
        _ => Ok(()),
    }
}

/// No run of the middle map leaves the data region.
fn check_places(maps: &Maps, data_blocks: u64) -> Result<(), StoreError> {
    let mut fault = None;
    maps.visit_stored(|middle, physical, len_blocks| {
        if physical.0.checked_add(len_blocks).is_none_or(|end| end > data_blocks) {
            fault.get_or_insert((middle, physical));
        }
    });
    let Some((middle, physical)) = fault else { return Ok(()) };
    let place = format!("middle address {middle}");
    let found = format!("physical block {physical} of {data_blocks}");
    Err(StoreError::new(ErrorKind::Damaged, "load", place, found).advice("run `ringfort volume check`"))
}

fn restore_segments(
    maps: &Maps,
    segment_count: u32,
    stripes_per_segment: u32,
) -> Result<SegmentTable, StoreError> {
    let segments = SegmentTable::new(segment_count, stripes_per_segment);
    for segment in (0..segment_count).map(SegmentId) {
        let Some(bytes) = maps.get(tree::PROPERTIES, segment_key(segment)) else { continue };
        match decode_segment(bytes) {
            Some((state, next_stripe)) if next_stripe <= stripes_per_segment => {
                segments.restore(segment, state, next_stripe);
            }
            _ => {
                return Err(StoreError::new(
                    ErrorKind::Damaged,
                    "restore",
                    format!("segment {segment}"),
                    "an entry that makes no sense",
                ));
            }
        }
    }
    segments.take_dirty();
    Ok(segments)
}

impl State {
    /// Takes in one record; returns how many of its transactions were new.
    fn replay_record(
        &mut self,
        record: &FoundRecord,
        applied: u64,
        found: &mut Found,
    ) -> Result<u64, StoreError> {
        let damaged = |what: String| {
            let place = format!("log record {}", record.live.sequence);
            StoreError::new(ErrorKind::Damaged, "replay", place, what)
        };
        let data: BTreeMap<PhysicalBlock, &Slice> =
            record.data.iter().map(|(at, block)| (*at, block)).collect();
        let mut replayed = 0;
        for (index, entries) in record.transactions.iter().enumerate() {
            let transaction = record.first_transaction + index as u64;
            if transaction > applied && transaction != self.next_transaction {
                return Err(damaged(format!(
                    "transaction {transaction} where {} was due",
                    self.next_transaction
                )));
            }
            for entry in entries {
                if let Entry::Bank { segment, first_stripe, stripe_count } = entry {
                    // What earlier lives of these stripes left in the log is nobody's.
                    let stripes =
                        u64::from(*first_stripe)..u64::from(*first_stripe) + u64::from(*stripe_count);
                    let geometry = self.geometry;
                    found.retain(|physical, _| {
                        let place = geometry.locate(*physical);
                        place.segment != *segment || !stripes.contains(&u64::from(place.stripe.0))
                    });
                }
                if let Entry::Write(run) = entry
                    && run.bank
                {
                    for (offset, checksum) in run.checksums.iter().enumerate() {
                        let physical = PhysicalBlock(run.physical.0 + offset as u64);
                        if let Some(block) = data.get(&physical) {
                            let middle = crate::address::MiddleAddress(run.middle.0 + offset as u64);
                            found.insert(
                                physical,
                                Slot { data: Slice::clone(block), checksum: *checksum, middle },
                            );
                        }
                    }
                }
                if transaction > applied {
                    self.replay_entry(entry).map_err(damaged)?;
                }
            }
            if transaction > applied {
                self.next_transaction += 1;
                replayed += 1;
            }
        }
        Ok(replayed)
    }

    /// What recovery itself applied needs no record: nobody is served before the root of its checkpoint is durable, and until
    /// then the old root and its log lead to the same state again. So a full log never keeps a volume from opening.
    fn leave_to_checkpoint(&mut self) {
        self.frames.clear();
        self.frames_body_bytes = 0;
        self.frames_data_blocks = 0;
        self.durable_transaction = self.last_transaction();
    }

    /// Takes in what the last process had applied and not logged; returns how many transactions that were. Their blocks join `found`, so that
    /// the stripes written next hold them and the commit that follows names both.
    fn replay_kept(&mut self, kept: &Kept, found: &mut Found) -> Result<u64, StoreError> {
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
                    "a kept transaction lacks its blocks; it and those after it are lost"
                );
                break;
            };
            for entry in &entries {
                self.replay_entry(entry).map_err(|what| {
                    StoreError::new(
                        ErrorKind::Damaged,
                        "replay",
                        format!("kept transaction {transaction}"),
                        what,
                    )
                })?;
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

    fn replay_entry(&mut self, entry: &Entry) -> Result<(), String> {
        let geometry = self.geometry;
        let check = |segment: SegmentId, end: u64| {
            let fits = segment.0 < geometry.segment_count && end <= u64::from(geometry.stripes_per_segment);
            if fits { Ok(()) } else { Err(format!("stripes up to {end} of segment {segment}")) }
        };
        match entry {
            Entry::Put { tree, .. } | Entry::Delete { tree, .. }
                if !(crate::volume::TreeId::FIRST_FILESYSTEM..=crate::volume::TreeId::LAST_FILESYSTEM)
                    .contains(tree) =>
            {
                return Err(format!("a change of tree {}", tree.0));
            }
            Entry::Bank { segment, first_stripe, stripe_count } => {
                let end = u64::from(*first_stripe) + u64::from(*stripe_count);
                check(*segment, end)?;
                self.segments.restore_handed_out(*segment, end as u32, Class::Bank);
            }
            Entry::Stripe { segment, stripe, summary } => {
                check(*segment, u64::from(*stripe) + 1)?;
                if StripeSummary::decode(summary).is_none() {
                    return Err(format!("the summary of stripe {stripe} of segment {segment}"));
                }
                self.segments.restore_handed_out(*segment, stripe + 1, Class::Large);
            }
            Entry::Write(run) => {
                let len_blocks = run.checksums.len() as u64;
                let inside =
                    |start: u64, limit: u64| start.checked_add(len_blocks).filter(|end| *end <= limit);
                let Some(end) = inside(run.middle.0, self.next_middle.saturating_add(MIDDLE_RESERVE)) else {
                    return Err(format!("middle address {}", run.middle));
                };
                if inside(run.physical.0, geometry.data_blocks()).is_none() {
                    return Err(format!("physical block {}", run.physical));
                }
                if inside(run.start.0, u64::MAX).is_none() {
                    return Err(format!("block {} of object {}", run.start, run.object));
                }
                self.next_middle = self.next_middle.max(end);
            }
            Entry::Put { .. } | Entry::Delete { .. } | Entry::Unmap { .. } => {}
        }
        self.merge_entry(entry);
        Ok(())
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
            let middle = crate::address::MiddleAddress(run.middle.0 + offset as u64);
            blocks.push((physical, Slot { data, checksum: *checksum, middle }));
        }
    }
    Some(blocks)
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
    let Replayed { state, root, mut found, last, mut report } = replay(&object, volume).await?;
    let core = Core::new(Rc::clone(&engine), object, volume, state, commit_interval, memory_bytes);
    let kept_shape = State::keep_shape(core.object.geometry(), root.log_blocks, root.kept_epoch);
    let kept = Kept::find(&engine, volume, kept_shape);
    open_epoch(&core, root, last).await?;
    if let Some(kept) = kept {
        report.kept_transactions = core.state_mut().replay_kept(&kept, &mut found)?;
    }
    report.rewritten_stripes = rewrite_stripes(&core, found).await?;
    core.object.flush_data().await?;
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
