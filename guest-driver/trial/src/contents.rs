//! Steps about what open files hold.

use anyhow::{Context, Result, ensure};
use ringfort_guest::{Allocate, SetAttributes, SetTime, Timestamp};
use ringfort_protocol::command::Opcode;
use ringfort_reference::{AllocateMode, Answer, Change, Errno};

use crate::stage::{Stage, answer};

/// The longest that files are made: histories are not to become slow.
const FILE_BYTES_MAX: usize = 300_000;

const MODES: [(Allocate, AllocateMode); 7] = [
    (Allocate::Reserve, AllocateMode::Allocate { keep_size: false }),
    (Allocate::ReserveKeepSize, AllocateMode::Allocate { keep_size: true }),
    (Allocate::PunchHole, AllocateMode::PunchHole),
    (Allocate::Zero, AllocateMode::ZeroRange { keep_size: false }),
    (Allocate::ZeroKeepSize, AllocateMode::ZeroRange { keep_size: true }),
    (Allocate::Collapse, AllocateMode::CollapseRange),
    (Allocate::Insert, AllocateMode::InsertRange),
];

pub fn step(stage: &mut Stage) -> Result<()> {
    // Directories now and then, to see them refused.
    let also_directories = stage.random.below(20) == 0;
    let Some(file) = stage.pick(|opened| also_directories || !opened.is_directory) else { return Ok(()) };
    if stage.opened[file].is_directory {
        return read(stage, file);
    }
    match stage.random.below(16) {
        0..=3 => write(stage, file),
        4..=6 => read(stage, file),
        7 => append(stage, file),
        8 => resize(stage, file),
        9 | 10 => allocate(stage, file),
        11 | 12 => seek(stage, file),
        13 => copy(stage, file),
        14 => sync(stage, file),
        _ => stat(stage, file),
    }
}

pub fn bytes(stage: &mut Stage) -> Vec<u8> {
    let (seed, len) = (stage.random.below(251), stage.random.length());
    (0..len).map(|index| (index * 7 + index / 256 + seed) as u8).collect()
}

/// What a file that is open so allows.
pub fn allowed(may: bool) -> Answer<()> {
    if may { Ok(()) } else { Err(Errno::EBADF) }
}

fn write(stage: &mut Stage, file: usize) -> Result<()> {
    let (bytes, offset) = (bytes(stage), stage.random.length());
    let opened = &stage.opened[file];
    let (node, appends) = (opened.node, opened.appends);
    // Nothing at all is not sent.
    let may = allowed(opened.writes || bytes.is_empty());
    let found = opened.file.write_at(&bytes, offset);
    let what = format!("{} bytes at {offset}", bytes.len());
    if stage.same(Opcode::Write, &what, found, may)?.is_some() {
        let who = stage.who();
        stage.reference.write_by(&who, node, (!appends).then_some(offset as usize), &bytes);
    }
    Ok(())
}

fn append(stage: &mut Stage, file: usize) -> Result<()> {
    let bytes = bytes(stage);
    let opened = &stage.opened[file];
    let node = opened.node;
    if stage.reference.facts_of(node).size_bytes > FILE_BYTES_MAX as u64 {
        return Ok(());
    }
    let may = allowed(opened.writes || bytes.is_empty());
    let found = opened.file.append(&bytes);
    if stage.same(Opcode::Write, "at the end", found, may)?.is_some() {
        let who = stage.who();
        stage.reference.write_by(&who, node, None, &bytes);
    }
    Ok(())
}

fn read(stage: &mut Stage, file: usize) -> Result<()> {
    let (offset, len) = (stage.random.length(), stage.random.length().max(1) as usize);
    let opened = &stage.opened[file];
    let mut buffer = vec![0; len];
    let found = opened.file.read_at(&mut buffer, offset);
    let expected = match opened.reads {
        true => stage.reference.read_at(opened.node, offset as usize, len).map(<[u8]>::to_vec),
        false => Err(Errno::EBADF),
    };
    let found = found.map(|read| {
        buffer.truncate(read);
        buffer
    });
    stage.same_bytes(Opcode::Read, &format!("{len} bytes at {offset}"), found, expected)
}

fn resize(stage: &mut Stage, file: usize) -> Result<()> {
    let size = stage.random.length();
    let opened = &stage.opened[file];
    let (node, writes) = (opened.node, opened.writes);
    let found = opened.file.set_size(size);
    let (who, change) = (stage.who(), Change { size: Some(size as usize), ..Change::default() });
    let expected = stage.reference.change_by(&who, node, &change, writes);
    stage.same(Opcode::SetAttributes, &format!("size {size}"), found, expected).map(drop)
}

fn allocate(stage: &mut Stage, file: usize) -> Result<()> {
    let (how, mode) = MODES[stage.random.below(MODES.len() as u64) as usize];
    let (mut start, mut len) = (stage.random.length(), stage.random.length());
    if matches!(how, Allocate::Collapse | Allocate::Insert) && stage.random.below(8) > 0 {
        (start, len) = (stage.random.below(12) * 4096, (1 + stage.random.below(4)) * 4096);
    }
    let opened = &stage.opened[file];
    let (node, may) = (opened.node, allowed(opened.writes));
    let is_long = stage.reference.facts_of(node).size_bytes > FILE_BYTES_MAX as u64;
    if how == Allocate::Insert && is_long {
        return Ok(());
    }
    let found = opened.file.allocate(how, start..start + len);
    let who = stage.who();
    let range = (start as usize, len as usize);
    let expected = may.and_then(|()| stage.reference.allocate_by(&who, node, mode, range));
    stage.same(Opcode::Allocate, &format!("{how:?} {len} at {start}"), found, expected).map(drop)
}

fn seek(stage: &mut Stage, file: usize) -> Result<()> {
    let start = stage.random.length();
    let opened = &stage.opened[file];
    let (data, hole) = (opened.file.seek_data(start)?, opened.file.seek_hole(start)?);
    let places = [data, hole].map(|found| found.map(|found| found as usize));
    ensure!(
        stage.reference.seek_is_true(opened.node, start as usize, places[0], places[1]),
        "from {start} on, data is said to begin at {data:?} and a hole at {hole:?}"
    );
    stage.seen.call(Opcode::Seek);
    if data.is_none() || hole.is_none() {
        stage.seen.error(Errno::ENXIO);
    }
    Ok(())
}

fn copy(stage: &mut Stage, from: usize) -> Result<()> {
    let Some(to) = stage.pick(|opened| !opened.is_directory) else { return Ok(()) };
    let unit = if stage.random.below(2) == 0 { 4096 } else { 1 };
    let (start, at) = (stage.random.length() / unit * unit, stage.random.length() / unit * unit);
    let len = stage.random.length();
    let (source, target) = (&stage.opened[from], &stage.opened[to]);
    let may = allowed(source.reads && target.writes && !target.appends);
    let found = source.file.copy_range(start..start + len, &target.file, at);
    let (source, target) = ((source.node, start as usize), (target.node, at as usize));
    let who = stage.who();
    let expected = may.and_then(|()| stage.reference.copy_by(&who, source, target, len as usize));
    let what = format!("{len} bytes from {start} to {at}");
    stage.same(Opcode::CopyRange, &what, found, expected.map(|copied| copied as u64)).map(drop)
}

fn sync(stage: &mut Stage, file: usize) -> Result<()> {
    let opened = &stage.opened[file].file;
    let (opcode, found) = match stage.random.below(4) {
        0 => (Opcode::SyncAll, stage.volume().sync()),
        1 => (Opcode::Sync, opened.sync_data()),
        _ => (Opcode::Sync, opened.sync()),
    };
    stage.same(opcode, "", found, Ok(()))?;
    let value = stage.random.below(u64::MAX);
    let found = stage.volume().nop(value);
    stage.same(Opcode::Nop, "echoes", found, Ok(value))?;
    let statistics = answer(stage.volume().statistics())?.ok().context("no statistics")?;
    stage.seen.call(Opcode::Statistics);
    ensure!(
        statistics.available_blocks <= statistics.free_blocks
            && statistics.free_blocks <= statistics.total_blocks
            && statistics.free_inodes < statistics.total_inodes
            && (statistics.block_bytes, statistics.name_bytes_max) == (4096, 255),
        "{statistics:?}"
    );
    Ok(())
}

fn stat(stage: &mut Stage, file: usize) -> Result<()> {
    let opened = &stage.opened[file];
    let (node, found) = (opened.node, opened.file.stat()?);
    stage.same_attributes(node, &found)?;
    // Times that are set are the ones that are there; who does not own the file may only say that it is now.
    let time = Timestamp { seconds: stage.random.below(1 << 33) as i64, nanoseconds: 123_456_789 };
    let times = stage.random.below(3) > 0;
    let time = if times { SetTime::At(time) } else { SetTime::Now };
    let (who, change) = (stage.who(), Change { times: Some(times), ..Change::default() });
    let found = stage.opened[file].file.set_attributes(&SetAttributes::new().modified(time).accessed(time));
    let set = found.as_ref().ok().copied();
    let expected = stage.reference.change_by(&who, node, &change, false);
    stage.same(Opcode::SetAttributes, "times", found.map(drop), expected)?;
    if let (Some(set), SetTime::At(time)) = (set, time) {
        ensure!((set.accessed, set.modified) == (time, time), "{set:?} where the times were set to {time:?}");
    }
    Ok(())
}
