//! The logical map: block of an object → middle address, kept as runs.
//!
//! Key: object, first block. Runs of one object do not overlap; neighbours that continue each other are one run, up to
//! [`RUN_BLOCKS_MAX`].

use std::ops::ControlFlow;

use super::tree;
use crate::address::{LogicalBlock, MiddleAddress, ObjectId};
use crate::format::map::{LogicalRun, RUN_BLOCKS_MAX};
use crate::kv::KeyValue;
use crate::volume::{Extent, Key};

/// A run and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    start: u64,
    run: LogicalRun,
}

impl Placed {
    fn end(&self) -> u64 {
        self.start + self.run.len_blocks
    }

    /// The part of the run inside `start..end`, which it meets.
    fn cut(&self, start: u64, end: u64) -> Self {
        let from = self.start.max(start);
        let len_blocks = self.end().min(end) - from;
        let middle = MiddleAddress(self.run.middle.0 + (from - self.start));
        Self { start: from, run: LogicalRun { middle, len_blocks } }
    }
}

/// A piece of an object, mapped or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalPiece {
    pub start: LogicalBlock,
    pub len_blocks: u64,
    /// Where the first block is mapped; `None` in a hole.
    pub middle: Option<MiddleAddress>,
}

fn decode(key: Key, value: &[u8]) -> Placed {
    match LogicalRun::decode(value) {
        Some(run) => Placed { start: key.lo, run },
        // Values were checked when they were loaded, and written by this file since.
        None => unreachable!("logical map entry {key:?}"),
    }
}

/// The run that begins before `block` and reaches it or further.
fn reaching(kv: &KeyValue, object: ObjectId, block: u64) -> Option<Placed> {
    let before = block.checked_sub(1)?;
    let (key, value) = kv.floor(tree::LOGICAL, Key::new(object.0, before))?;
    let placed = (key.hi == object.0).then(|| decode(key, value))?;
    (placed.end() >= block).then_some(placed)
}

/// Calls `visit` with each run that meets `start..end`, in order, uncut.
fn visit_runs(
    kv: &KeyValue,
    object: ObjectId,
    start: u64,
    end: u64,
    mut visit: impl FnMut(Placed) -> ControlFlow<()>,
) {
    if start >= end {
        return;
    }
    if let Some(first) = reaching(kv, object, start).filter(|run| run.end() > start)
        && visit(first).is_break()
    {
        return;
    }
    let (from, to) = (Key::new(object.0, start), Key::new(object.0, end - 1));
    kv.visit(tree::LOGICAL, from, to, |key, value| visit(decode(key, value)));
}

fn put(kv: &mut KeyValue, object: ObjectId, placed: Placed) {
    kv.put(tree::LOGICAL, Key::new(object.0, placed.start), &placed.run.encode());
}

/// Turns `len_blocks` blocks from `start` on into a hole. Calls `displaced` with what was mapped there.
pub(super) fn unmap(
    kv: &mut KeyValue,
    object: ObjectId,
    start: LogicalBlock,
    len_blocks: u64,
    displaced: &mut impl FnMut(MiddleAddress, u64),
) {
    let (start, end) = (start.0, start.0.saturating_add(len_blocks));
    let mut first: Option<Placed> = None;
    let mut last: Option<Placed> = None;
    let mut begun_inside = 0_u64;
    visit_runs(kv, object, start, end, |placed| {
        let cut = placed.cut(start, end);
        displaced(cut.run.middle, cut.run.len_blocks);
        first.get_or_insert(placed);
        last = Some(placed);
        begun_inside += u64::from(placed.start >= start);
        ControlFlow::Continue(())
    });
    match (begun_inside, last) {
        (0, _) => {}
        (1, Some(only)) => {
            kv.delete(tree::LOGICAL, Key::new(object.0, only.start));
        }
        _ => {
            kv.delete_range(tree::LOGICAL, Key::new(object.0, start), Key::new(object.0, end));
        }
    }
    if let Some(first) = first.filter(|first| first.start < start) {
        put(kv, object, first.cut(first.start, start));
    }
    if let Some(last) = last.filter(|last| last.end() > end) {
        put(kv, object, last.cut(end, last.end()));
    }
}

/// Maps `len_blocks` blocks from `start` on. Calls `displaced` with what was mapped there.
pub(super) fn map_run(
    kv: &mut KeyValue,
    object: ObjectId,
    start: LogicalBlock,
    len_blocks: u64,
    middle: MiddleAddress,
    displaced: &mut impl FnMut(MiddleAddress, u64),
) {
    unmap(kv, object, start, len_blocks, displaced);
    let end = start.0.saturating_add(len_blocks);
    let mut block = start.0;
    while block < end {
        let len_blocks = (end - block).min(RUN_BLOCKS_MAX);
        let middle = MiddleAddress(middle.0 + (block - start.0));
        join(kv, object, Placed { start: block, run: LogicalRun { middle, len_blocks } });
        block += len_blocks;
    }
}

/// Puts a run into a hole, as one with neighbours that it continues.
fn join(kv: &mut KeyValue, object: ObjectId, mut placed: Placed) {
    let continues = |left: &Placed, right: &Placed| {
        left.end() == right.start
            && left.run.middle.0 + left.run.len_blocks == right.run.middle.0
            && left.run.len_blocks + right.run.len_blocks <= RUN_BLOCKS_MAX
    };
    if let Some(left) = reaching(kv, object, placed.start).filter(|left| continues(left, &placed)) {
        placed = Placed {
            start: left.start,
            run: LogicalRun {
                middle: left.run.middle,
                len_blocks: left.run.len_blocks + placed.run.len_blocks,
            },
        };
    }
    let after = Key::new(object.0, placed.end());
    let right = kv.get(tree::LOGICAL, after).map(|value| decode(after, value));
    if let Some(right) = right.filter(|right| continues(&placed, right)) {
        kv.delete(tree::LOGICAL, after);
        placed.run.len_blocks += right.run.len_blocks;
    }
    put(kv, object, placed);
}

/// Maps what `len_blocks` blocks from `from` on are mapped to at `to` instead: as many runs are taken out and put back as lie there.
/// Calls `displaced` with what was mapped at `to` and did not move itself.
pub(super) fn shift(
    kv: &mut KeyValue,
    object: ObjectId,
    from: LogicalBlock,
    to: LogicalBlock,
    len_blocks: u64,
    displaced: &mut impl FnMut(MiddleAddress, u64),
) {
    let end = from.0.saturating_add(len_blocks);
    let mut moving = Vec::new();
    visit_runs(kv, object, from.0, end, |placed| {
        moving.push(placed.cut(from.0, end));
        ControlFlow::Continue(())
    });
    // What moves lives on: nothing dies here.
    unmap(kv, object, from, len_blocks, &mut |_, _| {});
    unmap(kv, object, to, len_blocks, displaced);
    for placed in moving {
        join(kv, object, Placed { start: placed.start - from.0 + to.0, ..placed });
    }
}

/// What a range of an object is mapped to: pieces in order that cover it exactly.
pub(super) fn lookup(
    kv: &KeyValue,
    object: ObjectId,
    start: LogicalBlock,
    len_blocks: u64,
) -> Vec<LogicalPiece> {
    let (start, end) = (start.0, start.0.saturating_add(len_blocks));
    let mut pieces = Vec::new();
    let mut block = start;
    let hole =
        |from: u64, to: u64| LogicalPiece { start: LogicalBlock(from), len_blocks: to - from, middle: None };
    visit_runs(kv, object, start, end, |placed| {
        let cut = placed.cut(start, end);
        if cut.start > block {
            pieces.push(hole(block, cut.start));
        }
        pieces.push(LogicalPiece {
            start: LogicalBlock(cut.start),
            len_blocks: cut.run.len_blocks,
            middle: Some(cut.run.middle),
        });
        block = cut.end();
        ControlFlow::Continue(())
    });
    if block < end {
        pieces.push(hole(block, end));
    }
    pieces
}

/// The first run of an object that ends after `from`, cut to begin at or after it.
pub(super) fn next_extent(kv: &KeyValue, object: ObjectId, from: LogicalBlock) -> Option<Extent> {
    let mut found = None;
    visit_runs(kv, object, from.0, u64::MAX, |placed| {
        let cut = placed.cut(from.0, u64::MAX);
        found = Some(Extent { start: LogicalBlock(cut.start), len_blocks: cut.run.len_blocks });
        ControlFlow::Break(())
    });
    found
}

/// What is wrong with the loaded map, if anything.
pub(super) fn check(kv: &KeyValue) -> Result<(), String> {
    let mut previous: Option<(u64, u64)> = None;
    let mut fault = None;
    kv.visit(tree::LOGICAL, Key::MIN, Key::MAX, |key, value| {
        let end = LogicalRun::decode(value).and_then(|run| key.lo.checked_add(run.len_blocks));
        let overlaps = previous.is_some_and(|(object, end)| object == key.hi && end > key.lo);
        match end {
            Some(end) if !overlaps => {
                previous = Some((key.hi, end));
                ControlFlow::Continue(())
            }
            _ => {
                fault = Some(format!("a run that makes no sense at block {} of object {}", key.lo, key.hi));
                ControlFlow::Break(())
            }
        }
    });
    fault.map_or(Ok(()), Err)
}
