//! Locks that are waited for: until they are free, until that can never be, until somebody gives up.

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc::{self, Receiver};
use std::task::{Context as TaskContext, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringfort_guest::{Error, File, Lock, Open, Volume};
use ringfort_protocol::command::Opcode;
use ringfort_reference::Errno;

use crate::people;
use crate::stage::{Stage, answer};
use crate::ways::block_on;

/// For what comes when something has made way for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough for most of what is to wait to do so. What does not makes the trial no stricter, and no less right.
const A_MOMENT: Duration = Duration::from_millis(100);

const PATH: &str = "/guarded";

fn open(volume: &Volume) -> Result<File> {
    Ok(volume.open(PATH, Open::to_write())?)
}

/// Waits for a lock on a thread of its own; gives the file back with what came of it.
fn wait_for(file: File, lock: Lock) -> Receiver<(File, Result<(), Error>)> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let outcome = file.lock(&lock);
        // Nobody listens where the trial has failed.
        let _ = tell.send((file, outcome));
    });
    told
}

fn hear(told: &Receiver<(File, Result<(), Error>)>) -> Result<(File, Result<(), Error>)> {
    told.recv_timeout(PATIENCE).context("a lock that is free was not given to who waited")
}

pub fn locks_are_waited_for(stage: &mut Stage) -> Result<()> {
    stage.choose_first();
    let one = stage.volume();
    let other = stage.actors[1].volume.clone();
    one.create(PATH, 0o666)?;
    for ranged in [true, false] {
        is_granted_when_it_is_free(stage, &one, &other, ranged)?;
        is_given_up_in_time(stage, &other, ranged)?;
    }
    one_of_two_hears_of_a_deadlock(stage, &one, &other)?;
    is_cancelled_with_its_task(stage, &one, &other)?;
    only_so_many_are_waited_for(stage, &one, &other)?;
    Ok(one.remove_file(PATH)?)
}

fn exclusive(ranged: bool) -> Lock {
    if ranged { Lock::exclusive().range(10..20) } else { Lock::exclusive() }
}

fn none(ranged: bool) -> Lock {
    if ranged { Lock::none().range(..) } else { Lock::none() }
}

fn is_granted_when_it_is_free(stage: &mut Stage, one: &Volume, other: &Volume, ranged: bool) -> Result<()> {
    let (held, wanted) = (open(one)?, open(other)?);
    held.lock(&exclusive(ranged))?;
    ensure!(!wanted.try_lock(&exclusive(ranged))?, "a lock that is held was given");
    stage.seen.error(Errno::EAGAIN);
    let told = wait_for(wanted, exclusive(ranged));
    thread::sleep(A_MOMENT);
    ensure!(told.try_recv().is_err(), "a lock that is held did not have to be waited for");
    // Others of the same connection are served meanwhile.
    other.stat(PATH)?;
    held.lock(&none(ranged))?;
    let (wanted, outcome) = hear(&told)?;
    outcome?;
    ensure!(!held.try_lock(&exclusive(ranged))?, "a lock was given twice");
    // Closing gives it up as well.
    wanted.close()?;
    ensure!(held.try_lock(&exclusive(ranged))?, "a lock outlived the file that it was taken through");
    Ok(())
}

fn is_given_up_in_time(stage: &mut Stage, other: &Volume, ranged: bool) -> Result<()> {
    let hasty = people::connect(&stage.who(), &stage.socket, Some(3 * A_MOMENT))?;
    let (held, wanted) = (open(other)?, open(&hasty)?);
    held.lock(&exclusive(ranged))?;
    match wanted.lock(&exclusive(ranged)) {
        Err(Error::TimedOut) => stage.seen.error(Errno::ETIMEDOUT),
        outcome => bail!("a lock that is held, within a time that was set: {outcome:?}"),
    }
    held.lock(&none(ranged))?;
    ensure!(held.try_lock(&exclusive(ranged))?, "a lock went to who had given up waiting");
    Ok(())
}

/// Each holds what the other waits for: one is told, and makes way.
fn one_of_two_hears_of_a_deadlock(stage: &mut Stage, one: &Volume, other: &Volume) -> Result<()> {
    let (first, second) = (open(one)?, open(other)?);
    first.lock(&Lock::exclusive().range(0..1))?;
    second.lock(&Lock::exclusive().range(1..2))?;
    let waits =
        [wait_for(first, Lock::exclusive().range(1..2)), wait_for(second, Lock::exclusive().range(0..1))];
    let deadline = Instant::now() + PATIENCE;
    let (loser, winner) = loop {
        match (waits[0].try_recv(), waits[1].try_recv()) {
            (Ok(loser), Err(_)) => break (loser, &waits[1]),
            (Err(_), Ok(loser)) => break (loser, &waits[0]),
            (Ok(_), Ok(_)) => bail!("both of two who wait for each other were answered"),
            _ => ensure!(Instant::now() < deadline, "two wait for each other, and neither hears of it"),
        }
        thread::sleep(Duration::from_millis(1));
    };
    let (file, outcome) = loser;
    stage.same(Opcode::SetLock, "that would be waited for by both", outcome, Err(Errno::EDEADLK))?;
    file.close()?;
    let (file, outcome) = hear(winner)?;
    outcome?;
    Ok(file.close()?)
}

fn is_cancelled_with_its_task(stage: &mut Stage, one: &Volume, other: &Volume) -> Result<()> {
    let held = open(one)?;
    held.lock(&Lock::exclusive())?;
    let volume = other.asynchronous();
    let wanted = block_on(volume.open(PATH, Open::to_write()))?;
    {
        let mut waiting = pin!(wanted.lock(Lock::exclusive()));
        let polled = waiting.as_mut().poll(&mut TaskContext::from_waker(Waker::noop()));
        ensure!(matches!(polled, Poll::Pending), "a lock that is held was given to a task: {polled:?}");
        thread::sleep(A_MOMENT);
    }
    stage.seen.call(Opcode::Cancel);
    // What is asked through the same ring afterwards is answered after the cancellation was taken.
    answer(other.nop(1))?.ok();
    held.lock(&Lock::none())?;
    let third = open(one)?;
    ensure!(third.try_lock(&Lock::exclusive())?, "a lock went to a task that is gone");
    third.close()?;
    Ok(block_on(wanted.close())?)
}

/// More than half a ring of commands that wait: the rest of it stays for others.
fn only_so_many_are_waited_for(stage: &mut Stage, one: &Volume, other: &Volume) -> Result<()> {
    const WISHES: u64 = 60;
    let held = open(one)?;
    held.lock(&Lock::exclusive().range(..))?;
    let wanted = block_on(other.asynchronous().open(PATH, Open::to_write()))?;
    let wish = |byte| Box::pin(wanted.lock(Lock::exclusive().range(byte..byte + 1)));
    let mut wishes: Vec<_> = (0..WISHES).map(wish).collect();
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        let mut answered =
            wishes.iter_mut().map(|wish| wish.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())));
        match answered.find_map(|polled| if let Poll::Ready(answer) = polled { Some(answer) } else { None }) {
            Some(answer) => break answer,
            None => ensure!(Instant::now() < deadline, "{WISHES} locks are waited for, and none is refused"),
        }
        thread::sleep(Duration::from_millis(1));
    };
    stage.same(Opcode::SetLock, "beyond those that may wait", refused, Err(Errno::ENOLCK))?;
    // Those that wait keep nobody from anything else.
    other.stat(PATH)?;
    drop(wishes);
    held.close()?;
    Ok(block_on(wanted.close())?)
}
