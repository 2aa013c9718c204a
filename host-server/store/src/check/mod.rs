//! The offline walk: every structure of a volume is read and compared with the others. Nothing is changed.

mod mirrors;
mod references;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use ringfort_engine::buffer::Slice;
use ringfort_engine::engine::Engine;

use self::references::References;
use crate::address::{LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock, SegmentId, StripeIndex, ViewId};
use crate::error::{ErrorKind, StoreError};
use crate::format::run::ItemKind;
use crate::format::segment::StripeSummary;
use crate::limits::MEMORY_BYTES_DEFAULT;
use crate::map::{Fate, tree};
use crate::merge::item::{decode_signed, shared_parts};
use crate::merge::memory::Memory;
use crate::object::{Object, OpenReport};
use crate::pages::Pages;
use crate::recover::replay;
use crate::segment::summary::Summaries;
use crate::segment::table::SegmentState;
use crate::state::State;
use crate::volume::{
    Cost, Extent, Key, ReadPiece, SpaceReport, StagedBlocks, Transaction, TreeId, ViewEntry, Volume,
};

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
pub struct CheckedVolume {
    object: Object,
    state: State,
}

fn trees_only<T>() -> Result<T, StoreError> {
    Err(StoreError::new(ErrorKind::Invalid, "use", "volume under check", "only its trees can be read"))
}

impl Volume for CheckedVolume {
    type Reservation = ();

    async fn get(&self, tree: TreeId, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        self.state.maps.get(&Pages::new(&self.object), tree, key).await
    }

    async fn scan(
        &self,
        tree: TreeId,
        from: Key,
        to: Key,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        self.state.maps.scan(&Pages::new(&self.object), tree, from, to, limit).await
    }

    async fn read(&self, _: ObjectId, _: LogicalBlock, _: u64) -> Result<Vec<ReadPiece>, StoreError> {
        trees_only()
    }

    async fn next_extent(&self, object: ObjectId, from: LogicalBlock) -> Result<Option<Extent>, StoreError> {
        self.state.maps.next_extent(&Pages::new(&self.object), object, from).await
    }

    async fn begin(&self, _: Cost) -> Result<Transaction<()>, StoreError> {
        trees_only()
    }

    async fn stage(&self, _: &mut Transaction<()>, _: Vec<Slice>) -> Result<StagedBlocks, StoreError> {
        trees_only()
    }

    async fn shift(
        &self,
        _: &mut Transaction<()>,
        _: ObjectId,
        _: LogicalBlock,
        _: LogicalBlock,
        _: u64,
    ) -> Result<(), StoreError> {
        trees_only()
    }

    fn apply(&self, _: Transaction<()>) -> Result<(), StoreError> {
        trees_only()
    }

    async fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn views(&self) -> Vec<(ViewId, ViewEntry)> {
        self.state.maps.views.all()
    }

    fn view(&self, view: ViewId) -> Option<ViewEntry> {
        self.state.maps.views.get(view)
    }

    fn new_view(&self) -> Result<ViewId, StoreError> {
        trees_only()
    }

    fn entry_count(&self, tree: TreeId) -> u64 {
        self.state.maps.entry_count(tree)
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
    let replayed = replay(&object, object.volume(), MEMORY_BYTES_DEFAULT).await?;
    report.log_records = replayed.report.replayed_records;
    mirrors::check_mirrors(&object, &replayed.root, &replayed.report, &mut report).await;
    let state = replayed.state;
    report.tree_pages = state.maps.page_count() as u64;
    let pages = Pages::new(&object);
    check_maps(&state, &pages, &mut report, progress).await?;
    check_stripes(&object, &state, &pages, &mut report, progress).await?;
    Ok((report, CheckedVolume { object, state }))
}

fn degraded(opened: &OpenReport) -> Vec<String> {
    opened.findings.iter().map(ToString::to_string).collect()
}

/// Every mapped block is stored somewhere; every stored block is mapped as often as it is counted; usage counts are right. All of that as if everything had merged.
async fn check_maps(
    state: &State,
    pages: &Pages<'_>,
    report: &mut CheckReport,
    progress: &mut dyn FnMut(CheckProgress),
) -> Result<(), StoreError> {
    let mut faults = Vec::new();
    let mut runs = Vec::new();
    progress(CheckProgress { stage: "maps", done: 0, total: 2 });
    let displaced = state
        .maps
        .walk(pages, tree::LOGICAL, &Memory::default(), |item| match item.kind {
            ItemKind::Map => runs.push((item.number, item.last - item.lo + 1)),
            kind => faults.push(format!("object {} block {}: an item of kind {kind:?}", item.hi, item.lo)),
        })
        .await?;
    let ended = state
        .maps
        .walk(pages, tree::DEAD, &displaced, |item| {
            if item.kind != ItemKind::Add || decode_signed(item.number) <= 0 {
                faults.push(format!("dead at middle address {}: {:?} {}", item.lo, item.kind, item.number));
            }
        })
        .await?;
    let displaced = state.maps.joined(displaced, &ended);
    report.mapped_blocks = runs.iter().map(|(_, len)| len).sum();
    progress(CheckProgress { stage: "maps", done: 1, total: 2 });
    let mut references = References::of(&runs);
    drop(runs);
    let mut live: BTreeMap<SegmentId, u64> = BTreeMap::new();
    let mut stored_blocks = 0;
    let died = state
        .maps
        .walk(pages, tree::MIDDLE, &displaced, |item| {
            let count = match item.kind {
                ItemKind::Birth => 1,
                ItemKind::SharedBirth => 1 + u64::from(shared_parts(item.bytes).0),
                kind => {
                    faults.push(format!("middle address {}: {kind:?} of what was never born", item.lo));
                    return;
                }
            };
            let len_blocks = item.last - item.lo + 1;
            stored_blocks += len_blocks;
            let mut note = |fault| faults.push(fault);
            references.meet(item.lo, len_blocks, count, &mut note);
            count_live(state, item.number, len_blocks, &mut live, &mut note);
        })
        .await?;
    references.finish(&mut |fault| faults.push(fault));
    report.stored_blocks = stored_blocks;
    faults.into_iter().for_each(|fault| report.note(fault));
    check_usage(state, &live, &died, report);
    progress(CheckProgress { stage: "maps", done: 2, total: 2 });
    Ok(())
}

fn count_live(
    state: &State,
    physical: u64,
    len_blocks: u64,
    live: &mut BTreeMap<SegmentId, u64>,
    note: &mut impl FnMut(String),
) {
    for at in physical..physical.saturating_add(len_blocks) {
        if at >= state.geometry.data_blocks() {
            note(format!("physical block {at} is used and lies outside the volume"));
            return;
        }
        *live.entry(state.geometry.locate(PhysicalBlock(at)).segment).or_default() += 1;
    }
}

/// `died`: what counts still hold of blocks whose end has not met them.
fn check_usage(state: &State, live: &BTreeMap<SegmentId, u64>, died: &Memory, report: &mut CheckReport) {
    let mut changes: BTreeMap<u64, i64> = BTreeMap::new();
    for item in died.from(tree::USAGE, 0, 0) {
        *changes.entry(item.hi).or_default() += decode_signed(item.number);
    }
    for segment in (0..state.geometry.segment_count).map(SegmentId) {
        let counted = live.get(&segment).copied().unwrap_or(0);
        let change = changes.get(&u64::from(segment.0)).copied().unwrap_or(0);
        let noted = state.maps.live_blocks(segment) as i64 + change;
        if counted as i64 != noted {
            report.note(format!("segment {segment}: {counted} live blocks, the usage table says {noted}"));
        }
    }
}

/// Every stripe with a summary holds what it says, and every live block on it has the checksum that the map says.
async fn check_stripes(
    object: &Object,
    state: &State,
    pages: &Pages<'_>,
    report: &mut CheckReport,
    progress: &mut dyn FnMut(CheckProgress),
) -> Result<(), StoreError> {
    let geometry = state.geometry;
    let summaries = Summaries::new(&state.geometry, Rc::clone(&state.maps), pages);
    let total = u64::from(geometry.segment_count);
    for segment in (0..geometry.segment_count).map(SegmentId) {
        let (first, last) =
            (tree::summary_key(segment, StripeIndex(0)), tree::summary_key(segment, StripeIndex(u32::MAX)));
        let limit = geometry.stripes_per_segment as usize;
        let stripes = state.maps.scan(pages, tree::SUMMARY, first, last, limit).await?;
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
            check_summary(state, pages, segment, StripeIndex(key.lo as u32), &value, report).await?;
        }
        progress(CheckProgress { stage: "stripes", done: u64::from(segment.0) + 1, total });
    }
    Ok(())
}

/// A summary agrees with the middle map about the blocks that still live on its stripe.
async fn check_summary(
    state: &State,
    pages: &Pages<'_>,
    segment: SegmentId,
    stripe: StripeIndex,
    bytes: &[u8],
    report: &mut CheckReport,
) -> Result<(), StoreError> {
    let Some(summary) = StripeSummary::decode(bytes) else {
        report.note(format!("segment {segment}, stripe {stripe}: a summary that makes no sense"));
        return Ok(());
    };
    let start = state.geometry.stripe_start(segment, stripe);
    for (index, middle) in summary.middles.iter().enumerate() {
        let Some(MiddleAddress(middle)) = *middle else { continue };
        let at = PhysicalBlock(start.0 + index as u64);
        for piece in state.maps.resolve(pages, MiddleAddress(middle), 1).await? {
            if let Fate::Stored { physical, checksums } = piece.fate
                && physical == at
                && checksums.first() != summary.data_checksums.get(index)
            {
                report.note(format!("physical block {at}: map and summary disagree on its checksum"));
            }
        }
    }
    Ok(())
}
