//! What the devices hold: the trees of the root, and the log behind it. Reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ringfort_engine::buffer::Slice;

use super::RecoveryReport;
use super::root::{check_root, find_root, page_allocator};
use crate::address::{MiddleAddress, PhysicalBlock, SegmentId, StripeIndex, VolumeId};
use crate::checkpoint::decode_segment;
use crate::error::{ErrorKind, StoreError};
use crate::format::log::Entry;
use crate::format::map::decode_counter;
use crate::format::root::Root;
use crate::format::segment::StripeSummary;
use crate::geometry::Geometry;
use crate::limits::MIDDLE_RESERVE;
use crate::log::replay::{Chain, FoundRecord, Replay};
use crate::log::ring::Ring;
use crate::map::{Maps, MapsShape};
use crate::object::Object;
use crate::pages::Pages;
use crate::segment::bank::Slot;
use crate::segment::heat::Heat;
use crate::segment::summary::summary_of;
use crate::segment::table::{Class, SegmentState, SegmentTable};
use crate::state::apply::shift_entries;
use crate::state::{State, begun_key, cleaning_reserve, segment_key};
use crate::volume::TreeId;

/// Blocks found in the log, by where they belong.
pub(super) type Found = BTreeMap<PhysicalBlock, Slot>;

/// Trees, segments and log as the root and the log behind it say.
pub(crate) struct Replayed {
    pub state: State,
    pub root: Root,
    pub(super) found: Found,
    pub(super) last: Option<FoundRecord>,
    pub report: RecoveryReport,
}

/// Steps 1 to 3: reads only.
pub(crate) async fn replay(
    object: &Object,
    volume: VolumeId,
    memory_bytes: u64,
) -> Result<Replayed, StoreError> {
    let geometry = *object.geometry();
    let root = find_root(object, volume).await?;
    check_root(&root, &geometry, volume)?;
    let pages = Pages::new(object);
    let allocator = Rc::new(page_allocator(&root));
    let shape = maps_shape(&geometry, memory_bytes);
    let maps = Rc::new(Maps::load(volume, &root.trees, &pages, allocator, shape).await?);
    let segments = restore_segments(&maps, &geometry)?;
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
        report.replayed_transactions +=
            state.replay_record(&pages, &record, root.applied_transaction, &mut found).await?;
        state.moved_ring.restore(record.live, record.block_count, record.checksum);
    }
    // The log may begin with records that were moved as well, if their blocks lie in it still.
    let applied = state.last_transaction();
    let mut reader = Replay::new(object, volume, &root, commits);
    while let Some(record) = reader.next().await? {
        report.note(&record);
        report.replayed_transactions += state.replay_record(&pages, &record, applied, &mut found).await?;
        state.ring.restore(record.live, record.block_count, record.checksum);
        last = Some(record);
    }
    state.durable_transaction = state.last_transaction();
    forget_named(&state, &pages, &mut found).await?;
    Ok(Replayed { state, root, found, last, report })
}

/// Drops what was found of some stripes.
fn forget(found: &mut Found, geometry: &Geometry, segment: SegmentId, first_stripe: u32, stripe_count: u32) {
    // Entries that make no sense are refused when they are merged.
    if segment.0 >= geometry.segment_count {
        return;
    }
    let start = geometry.stripe_start(segment, StripeIndex(first_stripe));
    let end = PhysicalBlock(start.0 + u64::from(stripe_count) * geometry.blocks_per_stripe());
    let blocks: Vec<PhysicalBlock> = found.range(start..end).map(|(physical, _)| *physical).collect();
    blocks.iter().for_each(|physical| {
        found.remove(physical);
    });
}

/// Drops what was found of stripes that have summaries: their blocks are on the devices. A free segment has neither summaries nor blocks: what the log says of it
/// is of an earlier life, and a summary made of that would hide the blocks of the next one.
async fn forget_named(state: &State, pages: &Pages<'_>, found: &mut Found) -> Result<(), StoreError> {
    let place_of = |physical: &PhysicalBlock| {
        let place = state.geometry.locate(*physical);
        (place.segment, place.stripe)
    };
    let stripes: BTreeSet<(SegmentId, StripeIndex)> = found.keys().map(place_of).collect();
    let mut unnamed = BTreeSet::new();
    for (segment, stripe) in stripes {
        if state.segments.get(segment).state != SegmentState::Free
            && summary_of(&state.maps, pages, segment, stripe).await?.is_none()
        {
            unnamed.insert((segment, stripe));
        }
    }
    found.retain(|physical, _| unnamed.contains(&place_of(physical)));
    Ok(())
}

/// What the maps of a volume of this geometry are to fit.
pub(crate) fn maps_shape(geometry: &Geometry, memory_bytes: u64) -> MapsShape {
    MapsShape {
        segment_blocks: geometry.blocks_per_segment(),
        data_blocks: geometry.data_blocks(),
        memory_bytes,
    }
}

fn restore_segments(maps: &Maps, geometry: &Geometry) -> Result<SegmentTable, StoreError> {
    let Geometry { segment_count, stripes_per_segment, .. } = *geometry;
    let segments = SegmentTable::new(segment_count, stripes_per_segment, cleaning_reserve(geometry));
    for segment in (0..segment_count).map(SegmentId) {
        let Some(bytes) = maps.property(segment_key(segment)) else { continue };
        match decode_segment(&bytes) {
            Some((state, next_stripe)) if next_stripe <= stripes_per_segment => {
                let begun = maps.property(begun_key(segment)).as_deref().and_then(decode_counter);
                segments.restore(segment, state, next_stripe, begun.unwrap_or(0).max(0) as u64);
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

fn damaged(place: &impl Fn() -> String, what: String) -> StoreError {
    StoreError::new(ErrorKind::Damaged, "replay", place(), what)
}

impl State {
    /// Takes in one record; returns how many of its transactions were new.
    async fn replay_record(
        &mut self,
        pages: &Pages<'_>,
        record: &FoundRecord,
        applied: u64,
        found: &mut Found,
    ) -> Result<u64, StoreError> {
        let place = || format!("log record {}", record.live.sequence);
        let data: BTreeMap<PhysicalBlock, &Slice> =
            record.data.iter().map(|(at, block)| (*at, block)).collect();
        let mut replayed = 0;
        for (index, entries) in record.transactions.iter().enumerate() {
            let transaction = record.first_transaction + index as u64;
            if transaction > applied && transaction != self.next_transaction {
                let what = format!("transaction {transaction} where {} was due", self.next_transaction);
                return Err(damaged(&place, what));
            }
            for entry in entries {
                match entry {
                    // What earlier lives of these stripes left in the log is nobody's.
                    Entry::Bank { segment, first_stripe, stripe_count } => {
                        forget(found, &self.geometry, *segment, *first_stripe, *stripe_count);
                    }
                    // Its blocks are on the devices: the log's copies need no memory any more.
                    Entry::Stripe { segment, stripe, .. } => {
                        forget(found, &self.geometry, *segment, *stripe, 1);
                    }
                    _ => {}
                }
                if let Entry::Write(run) = entry
                    && run.bank
                {
                    for (offset, checksum) in run.checksums.iter().enumerate() {
                        let physical = PhysicalBlock(run.physical.0 + offset as u64);
                        if let Some(block) = data.get(&physical) {
                            let middle = MiddleAddress(run.middle.0 + offset as u64);
                            found.insert(
                                physical,
                                Slot { data: Slice::clone(block), checksum: *checksum, middle },
                            );
                        }
                    }
                }
                if transaction > applied {
                    self.replay_entry(pages, entry, &place).await?;
                }
            }
            if transaction > applied {
                self.next_transaction += 1;
                replayed += 1;
            }
        }
        Ok(replayed)
    }

    /// Takes in an entry of what `place` names.
    pub(super) async fn replay_entry(
        &mut self,
        pages: &Pages<'_>,
        entry: &Entry,
        place: &impl Fn() -> String,
    ) -> Result<(), StoreError> {
        self.check_entry(entry).map_err(|what| damaged(place, what))?;
        if let Entry::Shift { object, from, to, len_blocks } = *entry {
            // Nobody else changes anything meanwhile.
            let steps = self.maps.shift_steps(pages, object, from, to, len_blocks).await?;
            shift_entries(object, steps).for_each(|entry| self.merge_entry(&entry));
        } else {
            if let Entry::Write(run) = entry {
                self.maps.note_mapped(run.checksums.len() as i64);
            }
            self.merge_entry(entry);
        }
        Ok(())
    }

    /// What is wrong with an entry, if anything; and what it says of segments and addresses.
    fn check_entry(&mut self, entry: &Entry) -> Result<(), String> {
        let geometry = self.geometry;
        let check = |segment: SegmentId, end: u64| {
            let fits = segment.0 < geometry.segment_count && end <= u64::from(geometry.stripes_per_segment);
            if fits { Ok(()) } else { Err(format!("stripes up to {end} of segment {segment}")) }
        };
        match entry {
            Entry::Put { tree, .. } | Entry::Delete { tree, .. }
                if !(TreeId::FIRST_FILESYSTEM..=TreeId::LAST_FILESYSTEM).contains(tree) =>
            {
                return Err(format!("a change of tree {}", tree.0));
            }
            Entry::Bank { segment, first_stripe, stripe_count } => {
                let end = u64::from(*first_stripe) + u64::from(*stripe_count);
                check(*segment, end)?;
                self.segments.restore_handed_out(*segment, end as u32, Class::Bank(Heat::default()));
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
            Entry::Shift { object, from, to, len_blocks } => {
                let last = from.0.max(to.0);
                if last.checked_add(*len_blocks).is_none() {
                    return Err(format!("{len_blocks} blocks from block {last} of object {object} on"));
                }
            }
            Entry::Move { middle, len_blocks, from, to } => {
                // Nothing is born here: an address that was never handed out lies nowhere, and so moves nowhere.
                let inside = |at: &PhysicalBlock| {
                    at.0.checked_add(*len_blocks).is_some_and(|end| end <= geometry.data_blocks())
                };
                if !inside(from) || !inside(to) || middle.0.checked_add(*len_blocks).is_none() {
                    return Err(format!(
                        "{len_blocks} blocks of middle address {middle} from {from} to {to}"
                    ));
                }
            }
            Entry::Share { object, start, middle, len_blocks } => {
                let ends = [start.0, middle.0].map(|first| first.checked_add(*len_blocks));
                if ends.contains(&None) {
                    return Err(format!("{len_blocks} blocks from block {start} of object {object} on"));
                }
            }
            Entry::Put { .. } | Entry::Delete { .. } | Entry::Unmap { .. } => {}
        }
        Ok(())
    }
}
