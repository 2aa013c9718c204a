//! The middle map: middle address → physical block and checksum, kept as runs.
//!
//! Key: first middle address. A middle address is born once, moves, and dies. One that dies before it is born leaves
//! a *dead* run behind, which the birth that is still to come uses up.

use std::ops::ControlFlow;

use super::tree;
use crate::address::{BlockChecksum, MiddleAddress, PhysicalBlock};
use crate::format::map::{MiddleRun, MiddleRunView, RUN_BLOCKS_MAX};
use crate::kv::KeyValue;
use crate::volume::Key;

/// A run and where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    start: u64,
    run: MiddleRun,
}

impl Placed {
    fn end(&self) -> u64 {
        self.start + self.run.len_blocks()
    }

    /// The part of the run inside `start..end`; `None` where they do not meet.
    fn cut(&self, start: u64, end: u64) -> Option<Self> {
        let (from, to) = (self.start.max(start), self.end().min(end));
        let offset = from.saturating_sub(self.start);
        (from < to).then(|| {
            let run = match &self.run {
                MiddleRun::Stored { physical, checksums } => MiddleRun::Stored {
                    physical: PhysicalBlock(physical.0 + offset),
                    checksums: checksums[offset as usize..(to - self.start) as usize].to_vec(),
                },
                MiddleRun::Dead { .. } => MiddleRun::Dead { len_blocks: to - from },
            };
            Self { start: from, run }
        })
    }
}

/// What has become of a range of middle addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Lies on consecutive physical blocks; one checksum a block.
    Stored { physical: PhysicalBlock, checksums: Vec<BlockChecksum> },
    /// Not born yet: the contents are in a bank.
    Unborn,
    /// Died before it was born.
    Dead,
}

/// A piece of a range of middle addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MiddlePiece {
    pub middle: MiddleAddress,
    pub len_blocks: u64,
    pub fate: Fate,
}

fn view<'a>(key: Key, value: &'a [u8]) -> MiddleRunView<'a> {
    match MiddleRunView::decode(value) {
        Some(view) => view,
        // Values were checked when they were loaded, and written by this file since.
        None => unreachable!("middle map entry {key:?}"),
    }
}

/// Calls `visit` with each run that meets `start..end`, in order, uncut.
fn visit_runs<'a>(kv: &'a KeyValue, start: u64, end: u64, mut visit: impl FnMut(u64, MiddleRunView<'a>)) {
    if start >= end {
        return;
    }
    let before = start.checked_sub(1).and_then(|block| kv.floor(tree::MIDDLE, Key::new(block, u64::MAX)));
    if let Some((key, value)) = before {
        let run = view(key, value);
        if key.hi + run.len_blocks > start {
            visit(key.hi, run);
        }
    }
    kv.visit(tree::MIDDLE, Key::new(start, 0), Key::new(end - 1, 0), |key, value| {
        visit(key.hi, view(key, value));
        ControlFlow::Continue(())
    });
}

fn decode(start: u64, view: MiddleRunView<'_>) -> Placed {
    let run = match view.physical {
        Some(physical) => {
            MiddleRun::Stored { physical, checksums: view.checksums(0, view.len_blocks).collect() }
        }
        None => MiddleRun::Dead { len_blocks: view.len_blocks },
    };
    Placed { start, run }
}

fn put(kv: &mut KeyValue, placed: &Placed) {
    kv.put(tree::MIDDLE, Key::new(placed.start, 0), &placed.run.encode());
}

fn delete(kv: &mut KeyValue, start: u64) {
    kv.delete(tree::MIDDLE, Key::new(start, 0));
}

/// Takes every run out of `start..end`. Returns what lay inside, cut to the range; what lay outside stays.
fn carve(kv: &mut KeyValue, start: u64, end: u64) -> Vec<Placed> {
    let mut found = Vec::new();
    visit_runs(kv, start, end, |run_start, view| found.push(decode(run_start, view)));
    let mut inside = Vec::with_capacity(found.len());
    for placed in found {
        match placed.cut(0, start) {
            Some(left) => put(kv, &left),
            None => delete(kv, placed.start),
        }
        if let Some(right) = placed.cut(end, u64::MAX) {
            put(kv, &right);
        }
        if placed.start >= start && placed.end() <= end {
            inside.push(placed);
        } else {
            inside.extend(placed.cut(start, end));
        }
    }
    inside
}

/// Puts a run where there is none, as one with neighbours that it continues.
fn join(kv: &mut KeyValue, mut placed: Placed) {
    if let Some(block) = placed.start.checked_sub(1)
        && let Some((key, value)) = kv.floor(tree::MIDDLE, Key::new(block, u64::MAX))
    {
        let left = view(key, value);
        if key.hi + left.len_blocks == placed.start && continues(&left, &placed) {
            let mut left = decode(key.hi, left);
            append(&mut left.run, placed.run);
            placed = left;
        }
    }
    let after = placed.end();
    let right =
        kv.get(tree::MIDDLE, Key::new(after, 0)).map(|value| decode(after, view(Key::new(after, 0), value)));
    if let Some(right) = right
        && run_continues(&placed.run, &right.run)
    {
        delete(kv, right.start);
        append(&mut placed.run, right.run);
    }
    put(kv, &placed);
}

fn continues(left: &MiddleRunView<'_>, right: &Placed) -> bool {
    let one_run = match (left.physical, &right.run) {
        (Some(left_at), MiddleRun::Stored { physical, .. }) => left_at.0 + left.len_blocks == physical.0,
        (None, MiddleRun::Dead { .. }) => true,
        _ => false,
    };
    one_run && left.len_blocks + right.run.len_blocks() <= RUN_BLOCKS_MAX
}

fn run_continues(left: &MiddleRun, right: &MiddleRun) -> bool {
    let one_run = match (left, right) {
        (MiddleRun::Stored { physical: left_at, checksums }, MiddleRun::Stored { physical, .. }) => {
            left_at.0 + checksums.len() as u64 == physical.0
        }
        (MiddleRun::Dead { .. }, MiddleRun::Dead { .. }) => true,
        _ => false,
    };
    one_run && left.len_blocks() + right.len_blocks() <= RUN_BLOCKS_MAX
}

fn append(left: &mut MiddleRun, right: MiddleRun) {
    match (left, right) {
        (MiddleRun::Stored { checksums, .. }, MiddleRun::Stored { checksums: more, .. }) => {
            checksums.extend(more);
        }
        (MiddleRun::Dead { len_blocks }, MiddleRun::Dead { len_blocks: more }) => *len_blocks += more,
        _ => unreachable!("runs of one kind"),
    }
}

/// Gives middle addresses their place. Calls `born` with what is stored from now on.
pub(super) fn birth(
    kv: &mut KeyValue,
    middle: MiddleAddress,
    physical: PhysicalBlock,
    checksums: &[BlockChecksum],
    born: &mut impl FnMut(PhysicalBlock, u64),
) {
    for (index, chunk) in checksums.chunks(RUN_BLOCKS_MAX as usize).enumerate() {
        let offset = index as u64 * RUN_BLOCKS_MAX;
        let start = middle.0 + offset;
        let chunk = Placed {
            start,
            run: MiddleRun::Stored {
                physical: PhysicalBlock(physical.0 + offset),
                checksums: chunk.to_vec(),
            },
        };
        let end = chunk.end();
        let mut known = Vec::new();
        visit_runs(kv, start, end, |run_start, view| {
            known.push((run_start, run_start + view.len_blocks, view.physical.is_some()));
        });
        let mut block = start;
        for (known_start, known_end, stored) in known.into_iter().chain([(end, end, true)]) {
            if let Some(fresh) = chunk.cut(block, known_start) {
                if let MiddleRun::Stored { physical, checksums } = &fresh.run {
                    born(*physical, checksums.len() as u64);
                }
                join(kv, fresh);
            }
            if !stored {
                // The death that came first takes effect here, and need not be remembered any more.
                carve(kv, known_start.max(start), known_end.min(end));
            }
            block = known_end;
        }
    }
}

/// Ends middle addresses. Calls `died` with what was stored until now; what was not born yet is remembered as dead.
pub(super) fn death(
    kv: &mut KeyValue,
    middle: MiddleAddress,
    len_blocks: u64,
    died: &mut impl FnMut(PhysicalBlock, u64),
) {
    let (start, end) = (middle.0, middle.0.saturating_add(len_blocks));
    let mut unborn = Vec::new();
    let mut block = start;
    for placed in carve(kv, start, end) {
        if placed.start > block {
            unborn.push((block, placed.start));
        }
        block = placed.end();
        match placed.run {
            MiddleRun::Stored { physical, checksums } => died(physical, checksums.len() as u64),
            MiddleRun::Dead { .. } => unborn.push((placed.start, block)),
        }
    }
    if block < end {
        unborn.push((block, end));
    }
    for (mut from, to) in unborn {
        while from < to {
            let len_blocks = (to - from).min(RUN_BLOCKS_MAX);
            join(kv, Placed { start: from, run: MiddleRun::Dead { len_blocks } });
            from += len_blocks;
        }
    }
}

/// Drops what is remembered of middle addresses that died unborn.
pub(super) fn forget(kv: &mut KeyValue, middle: MiddleAddress, len_blocks: u64) {
    for placed in carve(kv, middle.0, middle.0.saturating_add(len_blocks)) {
        if matches!(placed.run, MiddleRun::Stored { .. }) {
            join(kv, placed);
        }
    }
}

/// Moves those blocks that still lie where `from` says. Calls `moved` with old place, new place and length.
pub(super) fn relocate(
    kv: &mut KeyValue,
    middle: MiddleAddress,
    len_blocks: u64,
    from: PhysicalBlock,
    to: PhysicalBlock,
    moved: &mut impl FnMut(PhysicalBlock, PhysicalBlock, u64),
) {
    for mut placed in carve(kv, middle.0, middle.0.saturating_add(len_blocks)) {
        let offset = placed.start - middle.0;
        if let MiddleRun::Stored { physical, checksums } = &mut placed.run
            && physical.0 == from.0 + offset
        {
            let new = PhysicalBlock(to.0 + offset);
            moved(*physical, new, checksums.len() as u64);
            *physical = new;
        }
        join(kv, placed);
    }
}

/// What has become of a range of middle addresses: pieces in order that cover it exactly.
pub(super) fn resolve(kv: &KeyValue, middle: MiddleAddress, len_blocks: u64) -> Vec<MiddlePiece> {
    let (start, end) = (middle.0, middle.0.saturating_add(len_blocks));
    let mut pieces = Vec::new();
    let mut block = start;
    let unborn = |from: u64, to: u64| MiddlePiece {
        middle: MiddleAddress(from),
        len_blocks: to - from,
        fate: Fate::Unborn,
    };
    visit_runs(kv, start, end, |run_start, view| {
        let (from, to) = (run_start.max(start), (run_start + view.len_blocks).min(end));
        if from > block {
            pieces.push(unborn(block, from));
        }
        let fate = match view.physical {
            Some(physical) => Fate::Stored {
                physical: PhysicalBlock(physical.0 + (from - run_start)),
                checksums: view.checksums(from - run_start, to - from).collect(),
            },
            None => Fate::Dead,
        };
        pieces.push(MiddlePiece { middle: MiddleAddress(from), len_blocks: to - from, fate });
        block = to;
    });
    if block < end {
        pieces.push(unborn(block, end));
    }
    pieces
}

/// Calls `visit` with every stored run, in order of middle address.
pub(super) fn visit_stored(kv: &KeyValue, mut visit: impl FnMut(MiddleAddress, PhysicalBlock, u64)) {
    kv.visit(tree::MIDDLE, Key::MIN, Key::MAX, |key, value| {
        let run = view(key, value);
        if let Some(physical) = run.physical {
            visit(MiddleAddress(key.hi), physical, run.len_blocks);
        }
        ControlFlow::Continue(())
    });
}

/// What is wrong with the loaded map, if anything.
pub(super) fn check(kv: &KeyValue) -> Result<(), String> {
    let mut previous_end = 0;
    let mut fault = None;
    kv.visit(tree::MIDDLE, Key::MIN, Key::MAX, |key, value| {
        let end = MiddleRunView::decode(value).and_then(|run| key.hi.checked_add(run.len_blocks));
        match end {
            Some(end) if key.lo == 0 && key.hi >= previous_end => {
                previous_end = end;
                ControlFlow::Continue(())
            }
            _ => {
                fault = Some(format!("a run that makes no sense at middle address {}", key.hi));
                ControlFlow::Break(())
            }
        }
    });
    fault.map_or(Ok(()), Err)
}
