//! The client's end of a ring, with a part of the data area for each call.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringfort_protocol::command::{Area, Command};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::ring::requester::Requester;

use crate::bell::{Bell, Woken};
use crate::error::Error;

/// How long a call that sleeps goes without looking whether the server is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// One ring. Calls take turns.
pub struct Ring {
    turn: Mutex<Turn>,
    memory: SharedMemory,
    /// Inputs and outputs of this ring's calls.
    data: Area,
    busy_poll: Duration,
    bell: Bell,
    gone: Arc<AtomicBool>,
}

struct Turn {
    requester: Requester<SharedMemory>,
    tag: u64,
}

/// What a call gives to the server besides its command, and what it gets back.
pub struct Exchange<'a> {
    pub input: &'a [&'a [u8]],
    /// The most bytes that the result may have.
    pub output_bytes: usize,
}

impl Ring {
    pub fn new(
        requester: Requester<SharedMemory>,
        memory: SharedMemory,
        data: Area,
        busy_poll: Duration,
        bell: Bell,
        gone: Arc<AtomicBool>,
    ) -> Self {
        let turn = Mutex::new(Turn { requester, tag: 0 });
        Self { turn, memory, data, busy_poll, bell, gone }
    }

    /// Bytes that input and output of a call may have together.
    pub fn data_bytes(&self) -> usize {
        self.data.len_bytes as usize
    }

    /// Whether no call has its turn.
    pub fn try_turn(&self) -> bool {
        self.turn.try_lock().is_ok()
    }

    /// Carries out one command. `take` sees the completion and the memory, in which the output begins where it is told.
    pub fn call<T>(
        &self,
        mut command: Command,
        exchange: &Exchange<'_>,
        take: impl FnOnce(&Completion, &SharedMemory, u64) -> T,
    ) -> Result<T, Error> {
        let mut turn = self.turn();
        let input_bytes: usize = exchange.input.iter().map(|part| part.len()).sum();
        if input_bytes + exchange.output_bytes > self.data_bytes() {
            let found = input_bytes + exchange.output_bytes;
            return Err(Error::TooLong { operation: "call the server", found, most: self.data_bytes() });
        }
        let mut at = u64::from(self.data.start);
        for part in exchange.input {
            self.memory.write(at, part).ok_or_else(outside)?;
            at += part.len() as u64;
        }
        turn.tag += 1;
        command.tag = turn.tag;
        // Both lie in the data area, whose offsets have 32 bits.
        if input_bytes > 0 {
            command.input = Area { start: self.data.start, len_bytes: input_bytes as u32 };
        }
        if exchange.output_bytes > 0 {
            command.output = Area { start: at as u32, len_bytes: exchange.output_bytes as u32 };
        }
        if turn.requester.submit(&command.encode()).is_err() {
            return Err(Error::Protocol { found: "no room in a ring with one command at a time".to_owned() });
        }
        if turn.requester.wants_doorbell() {
            self.bell.ring();
        }
        let completion = self.wait(&mut turn.requester)?;
        if completion.tag != command.tag || completion.output_bytes as usize > exchange.output_bytes {
            return Err(Error::Protocol { found: format!("{completion:?} for {command:?}") });
        }
        Ok(take(&completion, &self.memory, at))
    }

    /// Polls, then sleeps, until the next completion.
    fn wait(&self, requester: &mut Requester<SharedMemory>) -> Result<Completion, Error> {
        loop {
            let began = Instant::now();
            loop {
                // Time costs more than a look.
                for _ in 0..64 {
                    if let Some(slot) = requester.take() {
                        return Ok(Completion::decode(slot));
                    }
                    std::hint::spin_loop();
                }
                if began.elapsed() >= self.busy_poll {
                    break;
                }
            }
            if self.gone.load(Ordering::Acquire) {
                return Err(Error::Ended { reason: None, text: "the server is gone".to_owned() });
            }
            if requester.prepare_sleep() {
                if self.bell.sleep(LOOK_AGAIN)? == Woken::Gone {
                    self.gone.store(true, Ordering::Release);
                }
                requester.finish_sleep();
            }
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn outside() -> Error {
    Error::Protocol { found: "a data area outside of the memory".to_owned() }
}
