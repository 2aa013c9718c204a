//! The offline walk: every structure of a volume is read and compared with the others. Nothing is changed.

mod mirrors;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use ringfort_engine::buffer::Slice;
use ringfort_engine::engine::Engine;

use crate::address::{LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock, SegmentId, StripeIndex};
use crate::error::{ErrorKind, StoreError};
use crate::format::map::LogicalRun;
use crate::format::segment::StripeSummary;
use crate::map::{Fate, tree};
use crate::object::{Object, OpenReport};
use crate::recover::replay;
use crate::segment::summary::{Summaries, summary_of};
use crate::segment::table::SegmentState;
use crate::state::State;
use crate::volume::{Cost, Extent, Key, ReadPiece, SpaceReport, StagedBlocks, Transaction, TreeId, Volume};

/// How far a check has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckProgress {
    /// What is being walked.
    pub stage: &'static str,
    pub done: u64,
    pub total: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Components that are missing or out of date: no damage by itself, but less redundancy.
    pub degraded: Vec<String>,
    /// One sentence for each fault; empty where the volume is clean.
    pub damage: Vec<String>,
    /// Faults beyond those listed.
    pub more_damage: u64,
    pub log_records: u64,
    pub tree_pages: u64,
    pub mapped_blocks: u64,
    pub stored_blocks: u64,
    pub stripes: u64,
}

impl CheckReport {
    /// More would help nobody who reads them.
    const DAMAGE_MAX: usize = 1000;

    pub fn is_clean(&self) -> bool {
        self.damage.is_empty()
    }

    fn note(&mut self, fault: String) {
        if self.damage.len() < Self::DAMAGE_MAX {
            self.damage.push(fault);
        } else {
            self.more_damage += 1;
        }
    }
}

/// The trees of a volume that has been checked, for walking what lies above the store. Changes and contents are refused.
pub struct CheckedVolume(State);

fn trees_only<T>() -> Result<T, StoreError> {
    Err(StoreError::new(ErrorKind::Invalid, "use", "volume under check", "only its trees can be read"))
}

impl Volume for CheckedVolume {
    type Reservation = ();

    async fn get(&self, tree: TreeId, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.maps.get(tree, key).map(<[u8]>::to_vec))
    }

    async fn scan(
        &self,
        tree: TreeId,
        from: Key,
        to: Key,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        Ok(self.0.maps.scan(tree, from, to, limit))
    }

    async fn read(&self, _: ObjectId, _: LogicalBlock, _: u64) -> Result<Vec<ReadPiece>, StoreError> {
        trees_only()
    }

    async fn next_extent(&self, object: ObjectId, from: LogicalBlock) -> Result<Option<Extent>, StoreError> {
        Ok(self.0.maps.next_extent(object, from))
    }

    async fn begin(&self, _: Cost) -> Result<Transaction<()>, StoreError> {
        trees_only()
    }

    async fn stage(&self, _: &mut Transaction<()>, _: Vec<Slice>) -> Result<StagedBlocks, StoreError> {
        trees_only()
    }

    fn apply(&self, _: Transaction<()>) -> Result<(), StoreError> {
        trees_only()
    }

    async fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn entry_count(&self, tree: TreeId) -> u64 {
        self.0.maps.entry_count(tree)
    }

    fn space(&self) -> SpaceReport {
        SpaceReport::default()
    }
}

/// Opens a volume for reading, replays its log in memory and walks everything. Errors where there is nothing to walk:
/// components missing beyond repair, no root, unreadable trees.
///
/// The volume that comes with the report answers reads of trees, so that what lies above can be walked too.
pub async fn check(
    engine: Rc<dyn Engine>,
    components: &[PathBuf],
    progress: &mut dyn FnMut(CheckProgress),
) -> Result<(CheckReport, CheckedVolume), StoreError> {
    let (object, opened) = Object::open(engine, components, crate::object::OpenOptions::default()).await?;
    let mut report = CheckReport { degraded: degraded(&opened), ..CheckReport::default() };
    progress(CheckProgress { stage: "log and trees", done: 0, total: 1 });
    let replayed = replay(&object, object.volume()).await?;
    report.log_records = replayed.report.replayed_records;
    mirrors::check_mirrors(&object, &replayed.root, &replayed.report, &mut report).await;
    let mut state = replayed.state;
    while state.maps.merge_pending(usize::MAX) {}
    report.tree_pages = state.maps.page_count() as u64;
    check_maps(&state, &mut report, progress);
    check_stripes(&object, &state, &mut report, progress).await;
    Ok((report, CheckedVolume(state)))
}

fn degraded(opened: &OpenReport) -> Vec<String> {
    opened.findings.iter().map(ToString::to_string).collect()
}

/// Every mapped block is stored somewhere, once; every stored block is mapped; usage counts are right.
fn check_maps(state: &State, report: &mut CheckReport, progress: &mut dyn FnMut(CheckProgress)) {
    let total = state.maps.scan(tree::LOGICAL, Key::MIN, Key::MAX, usize::MAX).len() as u64;
    let mut mapped: BTreeMap<u64, u64> = BTreeMap::new();
    let mut from = Key::MIN;
    let mut done = 0;
    loop {
        let runs = state.maps.scan(tree::LOGICAL, from, Key::MAX, 4096);
        let Some((last, _)) = runs.last() else { break };
        let next = Key::new(last.hi, last.lo.saturating_add(1));
        done += runs.len() as u64;
        for (key, value) in runs {
            let Some(run) = LogicalRun::decode(&value) else {
                report.note(format!("object {} block {}: a run that makes no sense", key.hi, key.lo));
                continue;
            };
            report.mapped_blocks += run.len_blocks;
            for piece in state.maps.resolve(run.middle, run.len_blocks) {
                let Fate::Stored { .. } = piece.fate else {
                    report.note(format!(
                        "object {} block {}: {} blocks from middle address {} lie nowhere",
                        key.hi, key.lo, piece.len_blocks, piece.middle
                    ));
                    continue;
                };
            }
            if let Some(previous) = mapped.insert(run.middle.0, run.len_blocks) {
                report.note(format!(
                    "middle address {} is mapped twice ({previous} blocks before)",
                    run.middle
                ));
            }
        }
        progress(CheckProgress { stage: "maps", done, total });
        from = next;
    }
    check_middles(state, &mapped, report);
    if report.mapped_blocks != report.stored_blocks {
        let CheckReport { mapped_blocks, stored_blocks, .. } = *report;
        report.note(format!("{mapped_blocks} blocks are mapped, {stored_blocks} are stored"));
    }
}

fn check_middles(state: &State, mapped: &BTreeMap<u64, u64>, report: &mut CheckReport) {
    let mut live: BTreeMap<SegmentId, u64> = BTreeMap::new();
    let mut stored = 0;
    let mut faults = Vec::new();
    let is_mapped =
        |middle: u64| mapped.range(..=middle).next_back().is_some_and(|(start, len)| middle < start + len);
    state.maps.visit_stored(|middle, physical, len_blocks| {
        stored += len_blocks;
        for offset in 0..len_blocks {
            let at = PhysicalBlock(physical.0 + offset);
            if at.0 >= state.geometry.data_blocks() {
                faults.push(format!(
                    "middle address {}: physical block {at} outside the volume",
                    middle.0 + offset
                ));
                continue;
            }
            *live.entry(state.geometry.locate(at).segment).or_default() += 1;
            if !is_mapped(middle.0 + offset) {
                faults.push(format!("middle address {}: stored but mapped by nothing", middle.0 + offset));
            }
        }
    });
    report.stored_blocks = stored;
    faults.into_iter().for_each(|fault| report.note(fault));
    for segment in (0..state.geometry.segment_count).map(SegmentId) {
        let (counted, noted) = (live.get(&segment).copied().unwrap_or(0), state.maps.live_blocks(segment));
        if counted != noted {
            report.note(format!("segment {segment}: {counted} live blocks, the usage table says {noted}"));
        }
    }
}

/// Every stripe with a summary holds what it says, and every live block on it has the checksum that the map says.
async fn check_stripes(
    object: &Object,
    state: &State,
    report: &mut CheckReport,
    progress: &mut dyn FnMut(CheckProgress),
) {
    let geometry = state.geometry;
    let summaries =
        Summaries::new(&state.geometry, |segment, stripe| summary_of(&state.maps, segment, stripe));
    let total = u64::from(geometry.segment_count);
    for segment in (0..geometry.segment_count).map(SegmentId) {
        let (first, last) =
            (tree::summary_key(segment, StripeIndex(0)), tree::summary_key(segment, StripeIndex(u32::MAX)));
        let stripes = state.maps.scan(tree::SUMMARY, first, last, geometry.stripes_per_segment as usize);
        let mut run: Option<(u32, u32)> = None;
        let indices = stripes.iter().map(|(key, _)| key.lo as u32).chain([u32::MAX]);
        for stripe in indices {
            // As many stripes at once as make large reads, few enough that they fit in memory.
            const AT_ONCE: u32 = 32;
            match run {
                Some((start, count)) if start + count == stripe && count < AT_ONCE => {
                    run = Some((start, count + 1))
                }
                previous => {
                    if let Some((start, count)) = previous {
                        for fault in
                            object.verify_stripes(segment, StripeIndex(start), count, &summaries).await
                        {
                            report.note(fault.to_string());
                        }
                    }
                    run = Some((stripe, 1));
                }
            }
        }
        report.stripes += stripes.len() as u64;
        // It would hide the blocks of the segment's next life from recovery.
        if state.segments.get(segment).state == SegmentState::Free && !stripes.is_empty() {
            report.note(format!("segment {segment} is free, and {} stripes have summaries", stripes.len()));
        }
        for (key, value) in stripes {
            check_summary(state, segment, StripeIndex(key.lo as u32), &value, report);
        }
        progress(CheckProgress { stage: "stripes", done: u64::from(segment.0) + 1, total });
    }
}

/// A summary agrees with the middle map about the blocks that still live on its stripe.
fn check_summary(
    state: &State,
    segment: SegmentId,
    stripe: StripeIndex,
    bytes: &[u8],
    report: &mut CheckReport,
) {
    let Some(summary) = StripeSummary::decode(bytes) else {
        report.note(format!("segment {segment}, stripe {stripe}: a summary that makes no sense"));
        return;
    };
    let start = state.geometry.stripe_start(segment, stripe);
    for (index, middle) in summary.middles.iter().enumerate() {
        let Some(MiddleAddress(middle)) = *middle else { continue };
        let at = PhysicalBlock(start.0 + index as u64);
        for piece in state.maps.resolve(MiddleAddress(middle), 1) {
            if let Fate::Stored { physical, checksums } = piece.fate
                && physical == at
                && checksums.first() != summary.data_checksums.get(index)
            {
                report.note(format!("physical block {at}: map and summary disagree on its checksum"));
            }
        }
    }
}
