//! The two ends. Each parks whenever the ring lets it, and never polls instead.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringfort_protocol::ring::layout::RingLayout;
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::ring::requester::Requester;
use ringfort_protocol::ring::responder::Responder;
use ringfort_protocol::ring::slot::{SLOT_BYTES, Slot};
use ringfort_protocol::ring::words::Words;

use crate::bell::{Bell, Pauses, Sleeper};

const SLOTS: u32 = 4;

/// The second page: a pair of cache lines for each word.
const BELL_OF_ASKER: u64 = 512;
const BELL_OF_ANSWERER: u64 = 528;
const ASKER_IS_DONE: u64 = 544;
const PARKS_OF_ANSWERER: u64 = 560;

/// What an end has seen.
pub struct Tally {
    pub commands: u64,
    pub parks: u64,
    pub elapsed: Duration,
}

fn layout(memory: &SharedMemory) -> Result<RingLayout> {
    RingLayout::new(0, SLOTS, memory.len_bytes()).context("a ring in the first page")
}

/// Bytes of a message; the last four are the ring's.
type Bytes = [u8; SLOT_BYTES as usize];

fn question(number: u64) -> Bytes {
    std::array::from_fn(|index| match index {
        0..60 => (number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(index as u32) >> 24) as u8,
        _ => 0,
    })
}

fn answer_to(question: Bytes) -> Bytes {
    std::array::from_fn(|index| if index < 60 { !question[index] } else { 0 })
}

/// Submits commands until the two ends have parked `parks` times together, and this one a tenth of it.
pub fn ask(memory: &SharedMemory, parks: u64, mut pauses: Pauses) -> Result<Tally> {
    let mut requester = Requester::new(memory.clone(), layout(memory)?);
    let (mut bell, mut sleeper) = (Bell::new(BELL_OF_ASKER), Sleeper::new(BELL_OF_ANSWERER));
    let began = Instant::now();
    let mut tally = Tally { commands: 0, parks: 0, elapsed: Duration::ZERO };
    while tally.parks < parks / 10 || tally.parks + memory.load(PARKS_OF_ANSWERER) < parks {
        let first = tally.commands;
        // Not between a submission and the look at the other's flag: a store that still waits in the processor is what the fence is for.
        pauses.pause();
        for _ in 0..=pauses.below(SLOTS.into()) {
            let slot = Slot::from_bytes(&question(tally.commands));
            ensure!(
                requester.submit(&slot).is_ok(),
                "a ring of {SLOTS} slots refuses command {}",
                tally.commands
            );
            tally.commands += 1;
        }
        if requester.wants_doorbell() {
            bell.ring(memory);
        }
        let mut expected = first;
        while expected < tally.commands {
            while let Some(answer) = requester.take() {
                let (found, right) = (answer.to_bytes(), answer_to(question(expected)));
                ensure!(found == right, "answer {expected} is {found:x?}, expected {right:x?}");
                expected += 1;
            }
            if expected == tally.commands {
                break;
            }
            pauses.pause();
            if requester.prepare_sleep() {
                tally.parks += 1;
                sleeper.sleep(memory).with_context(|| format!("waiting for answer {expected}"))?;
                requester.finish_sleep();
            }
        }
    }
    memory.store_release(ASKER_IS_DONE, 1);
    bell.ring(memory);
    tally.elapsed = began.elapsed();
    Ok(tally)
}

/// Answers until the other end is done.
pub fn answer(memory: &SharedMemory, mut pauses: Pauses) -> Result<Tally> {
    let mut responder = Responder::new(memory.clone(), layout(memory)?);
    let (mut bell, mut sleeper) = (Bell::new(BELL_OF_ANSWERER), Sleeper::new(BELL_OF_ASKER));
    let began = Instant::now();
    let mut tally = Tally { commands: 0, parks: 0, elapsed: Duration::ZERO };
    while memory.load_acquire(ASKER_IS_DONE) == 0 {
        let before = tally.commands;
        while let Some(slot) = responder.take() {
            pauses.pause();
            responder.complete(&Slot::from_bytes(&answer_to(slot.to_bytes())));
            tally.commands += 1;
        }
        if tally.commands > before && responder.wants_doorbell() {
            bell.ring(memory);
        }
        pauses.pause();
        if responder.prepare_sleep() {
            tally.parks += 1;
            memory.store(PARKS_OF_ANSWERER, tally.parks);
            sleeper.sleep(memory).with_context(|| format!("after {} commands", tally.commands))?;
            responder.finish_sleep();
        }
    }
    tally.elapsed = began.elapsed();
    Ok(tally)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test that cannot go on fails

    use super::*;

    #[test]
    fn both_ends_are_parked_and_woken_and_every_answer_is_right() {
        const PARKS: u64 = 20_000;
        let memory = SharedMemory::in_process(2 * 4096);
        let (asked, answered) = std::thread::scope(|scope| {
            let answerer = scope.spawn(|| answer(&memory, Pauses::new(7, 64)).unwrap());
            (ask(&memory, PARKS, Pauses::new(3, 64)).unwrap(), answerer.join().unwrap())
        });
        assert_eq!(asked.commands, answered.commands);
        assert!(asked.parks >= PARKS / 10 && asked.parks + answered.parks >= PARKS);
    }
}
