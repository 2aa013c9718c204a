//! Steps about locks that are to be had at once, or not.

use anyhow::{Result, ensure};
use ringfort_guest::{Lock, LockMode};
use ringfort_protocol::command::Opcode;
use ringfort_reference::{Claim, Errno};

use crate::contents::allowed;
use crate::stage::Stage;

/// The last byte that can be locked.
const LAST: u64 = i64::MAX as u64;

pub fn step(stage: &mut Stage) -> Result<()> {
    let Some(file) = stage.pick(|opened| !opened.is_directory) else { return Ok(()) };
    let (node, holder) = (stage.opened[file].node, stage.opened[file].holder);
    let start = stage.random.below(100);
    let range = match stage.random.below(8) {
        0 => (0, LAST),
        1 => (start, LAST),
        _ => (start, start + stage.random.below(60)),
    };
    let claim = Claim { node, holder, range, exclusive: stage.random.below(2) == 0 };
    match stage.random.below(10) {
        0..=4 => take(stage, file, claim, true),
        5 => give_up(stage, file, claim, true),
        6 | 7 => look(stage, file, claim),
        8 => take(stage, file, Claim { range: (0, LAST), ..claim }, false),
        _ => give_up(stage, file, Claim { range: (0, LAST), ..claim }, false),
    }
}

fn wish(claim: &Claim, ranged: bool) -> Lock {
    let lock = if claim.exclusive { Lock::exclusive() } else { Lock::shared() };
    if ranged { lock.range(claim.range.0..=claim.range.1) } else { lock }
}

fn take(stage: &mut Stage, file: usize, claim: Claim, ranged: bool) -> Result<()> {
    let opened = &stage.opened[file];
    let may = !ranged || if claim.exclusive { opened.writes } else { opened.reads };
    let found = opened.file.try_lock(&wish(&claim, ranged));
    let locks = if ranged { &mut stage.ranges } else { &mut stage.whole };
    let expected = allowed(may).map(|()| locks.take(claim));
    let taken = stage.same(Opcode::SetLock, &format!("{claim:?}, ranged: {ranged}"), found, expected)?;
    if taken == Some(false) {
        stage.seen.error(Errno::EAGAIN);
    }
    Ok(())
}

fn give_up(stage: &mut Stage, file: usize, claim: Claim, ranged: bool) -> Result<()> {
    let lock = if ranged { Lock::none().range(claim.range.0..=claim.range.1) } else { Lock::none() };
    let found = stage.opened[file].file.lock(&lock);
    let locks = if ranged { &mut stage.ranges } else { &mut stage.whole };
    locks.give_up(&claim);
    stage.same(Opcode::SetLock, "given up", found, Ok(())).map(drop)
}

/// What is in the way is one of those that are; parts of one holder that touch may be shown as one.
fn look(stage: &mut Stage, file: usize, claim: Claim) -> Result<()> {
    let found = stage.opened[file].file.lock_in_the_way(&wish(&claim, true))?;
    stage.seen.call(Opcode::GetLock);
    let obstacles = stage.ranges.in_the_way(&claim);
    // Processes of other connections may be another machine's.
    let own_process = |holder| {
        let is_ours =
            stage.opened.iter().any(|opened| opened.holder == holder && opened.actor == stage.actor());
        if is_ours { std::process::id() } else { 0 }
    };
    let is_one = match found {
        None => obstacles.is_empty(),
        Some(found) => obstacles.iter().any(|held| {
            held.exclusive == (found.mode == LockMode::Exclusive)
                && found.start <= held.range.0
                && held.range.1 <= found.end
                && found.pid == own_process(held.holder)
        }),
    };
    ensure!(is_one, "{found:?} is said to be in the way of {claim:?}, and in fact {obstacles:?} are");
    Ok(())
}
