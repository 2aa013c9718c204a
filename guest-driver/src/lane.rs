//! The client's end of a ring for one owner at a time: commands under way, and the parts of the data area that they have.
//!
//! Invariants:
//! * A command has a flight from its submission to the moment at which its completion was taken and used. There are as many flights as the ring
//!   has slots, so that a command with a flight always has a slot.
//! * The areas of a flight are given to no other before its completion has come, whatever became of whoever asked.

use std::task::Waker;

use ringfort_protocol::command::{Area, Command, Opcode};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::ring::requester::Requester;

use crate::error::Error;
use crate::room::Room;

/// What each flight has of the data area without asking: paths, attributes, a block.
pub const SMALL_BYTES: u32 = 8192;

/// Where input and output begin in an area: what is written of a file in whole blocks stays aligned.
const ALIGN_BYTES: u32 = 64;

/// A command under way, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    index: u32,
    /// Of the flights that have had this index.
    generation: u32,
}

impl Flight {
    fn tag(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn of_tag(tag: u64) -> Self {
        Self { index: tag as u32, generation: (tag >> 32) as u32 }
    }
}

enum State {
    Free,
    UnderWay {
        waker: Option<Waker>,
    },
    /// Nobody waits for its completion any more.
    Abandoned,
    Done(Completion),
}

struct Held {
    generation: u32,
    state: State,
    opcode: Opcode,
    /// What it has beyond its small part of the data area.
    large: Option<Area>,
    output: Area,
}

/// Why a command was not begun.
#[derive(Debug)]
pub enum Refused {
    /// As many are under way as the ring has slots, or their areas leave no room: take completions first.
    Full,
    Error(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// A ring's end, and its data area.
pub struct Lane {
    requester: Requester<SharedMemory>,
    memory: SharedMemory,
    data: Area,
    large: Room,
    flights: Vec<Held>,
    free: Vec<u32>,
    /// Submitted since the doorbell was last thought of.
    unrung: bool,
}

impl Lane {
    /// Bytes of data that a ring of so many slots wants, for calls of so many bytes.
    pub fn data_bytes(slot_count: u32, call_bytes: u32) -> u32 {
        slot_count * SMALL_BYTES + call_bytes + (64 << 10)
    }

    pub fn new(requester: Requester<SharedMemory>, memory: SharedMemory, data: Area) -> Self {
        let count = requester.room().min(data.len_bytes / SMALL_BYTES / 2);
        let small_bytes = count * SMALL_BYTES;
        let large = Area { start: data.start + small_bytes, len_bytes: data.len_bytes - small_bytes };
        let held = |_| Held {
            generation: 0,
            state: State::Free,
            opcode: Opcode::Nop,
            large: None,
            output: Area::default(),
        };
        Self {
            requester,
            memory,
            data,
            large: Room::new(large),
            flights: (0..count).map(held).collect(),
            free: (0..count).rev().collect(),
            unrung: false,
        }
    }

    /// Commands that may be begun before a completion is used.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    pub fn under_way(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Where the input and output of a flight lie: in its small part where they fit.
    fn place(
        &mut self,
        index: u32,
        input_bytes: usize,
        output_bytes: usize,
    ) -> Result<(Area, Option<Area>), Refused> {
        let wanted = input_bytes.next_multiple_of(ALIGN_BYTES as usize) + output_bytes;
        if wanted <= SMALL_BYTES as usize {
            let start = self.data.start + index * SMALL_BYTES;
            return Ok((Area { start, len_bytes: SMALL_BYTES }, None));
        }
        if wanted > self.large.most_bytes() {
            let most = self.large.most_bytes();
            return Err(Error::TooLong { operation: "call the server", found: wanted, most }.into());
        }
        // No longer than the room, which has 32 bits.
        let area = self.large.take(wanted as u32).ok_or(Refused::Full)?;
        Ok((area, Some(area)))
    }

    /// Submits a command with the parts of its input one behind the other, and room for its output.
    pub fn begin(
        &mut self,
        mut command: Command,
        input: &[&[u8]],
        output_bytes: usize,
        waker: Option<Waker>,
    ) -> Result<Flight, Refused> {
        let index = *self.free.last().ok_or(Refused::Full)?;
        let input_bytes: usize = input.iter().map(|part| part.len()).sum();
        let (area, large) = self.place(index, input_bytes, output_bytes)?;
        let mut at = area.start;
        for part in input {
            self.memory.write(at.into(), part).ok_or_else(outside)?;
            at += part.len() as u32;
        }
        if input_bytes > 0 {
            command.input = Area { start: area.start, len_bytes: input_bytes as u32 };
        }
        let output = Area { start: at.next_multiple_of(ALIGN_BYTES), len_bytes: output_bytes as u32 };
        if output_bytes > 0 {
            command.output = output;
        }
        self.submit(index, command, output, large, waker)
    }

    /// Submits a command whose areas the caller has said.
    pub fn begin_in_place(&mut self, command: Command) -> Result<Flight, Refused> {
        let index = *self.free.last().ok_or(Refused::Full)?;
        self.submit(index, command, command.output, None, None)
    }

    fn submit(
        &mut self,
        index: u32,
        mut command: Command,
        output: Area,
        large: Option<Area>,
        waker: Option<Waker>,
    ) -> Result<Flight, Refused> {
        let Some(held) = self.flights.get_mut(index as usize) else { unreachable!("a free flight is one") };
        let flight = Flight { index, generation: held.generation };
        command.tag = flight.tag();
        if self.requester.submit(&command.encode()).is_err() {
            unreachable!("there are no more flights than slots");
        }
        (held.state, held.opcode) = (State::UnderWay { waker }, command.opcode);
        (held.output, held.large) = (output, large);
        self.free.pop();
        self.unrung = true;
        Ok(flight)
    }

    /// Whether the server has to be rung for what was begun since the last time.
    pub fn wants_doorbell(&mut self) -> bool {
        std::mem::take(&mut self.unrung) && self.requester.wants_doorbell()
    }

    /// Takes what has been completed, and hands over who is to be woken. How many there were.
    pub fn reap(&mut self, mut wake: impl FnMut(Waker)) -> Result<usize, Error> {
        let mut count = 0;
        while let Some(slot) = self.requester.take() {
            count += 1;
            let completion = Completion::decode(slot);
            let flight = Flight::of_tag(completion.tag);
            let held = self.flights.get_mut(flight.index as usize);
            let held = held.filter(|held| held.generation == flight.generation);
            match held.map(|held| (std::mem::replace(&mut held.state, State::Done(completion)), held.output))
            {
                Some((State::UnderWay { waker }, output)) if completion.output_bytes <= output.len_bytes => {
                    waker.into_iter().for_each(&mut wake);
                }
                Some((State::Abandoned, _)) => self.free(flight),
                _ => {
                    return Err(Error::Protocol {
                        found: format!("{completion:?}, for which nobody asked so"),
                    });
                }
            }
        }
        Ok(count)
    }

    fn held(&mut self, flight: Flight) -> &mut Held {
        let held = self.flights.get_mut(flight.index as usize);
        match held.filter(|held| held.generation == flight.generation) {
            Some(held) => held,
            None => unreachable!("a flight is used once"),
        }
    }

    /// Whether it has been completed. Wakes `waker` when it is, where it has not.
    pub fn is_done(&mut self, flight: Flight, waker: Option<&Waker>) -> bool {
        match &mut self.held(flight).state {
            State::Done(_) => true,
            State::UnderWay { waker: known } => {
                if let Some(waker) = waker
                    && !known.as_ref().is_some_and(|known| known.will_wake(waker))
                {
                    *known = Some(waker.clone());
                }
                false
            }
            State::Free | State::Abandoned => unreachable!("a flight that somebody waits for"),
        }
    }

    /// The completion of a flight that is done, and its output, copied out once by `take`, which is told where it begins.
    pub fn finish<T>(
        &mut self,
        flight: Flight,
        take: impl FnOnce(&Completion, &SharedMemory, u64) -> T,
    ) -> T {
        let held = self.held(flight);
        let State::Done(completion) = held.state else { unreachable!("a flight that is done") };
        let start = held.output.start;
        let taken = take(&completion, &self.memory, start.into());
        self.free(flight);
        taken
    }

    /// Nobody waits any more. Gives the command that ends it early, where there is one.
    pub fn abandon(&mut self, flight: Flight) -> Option<Command> {
        let held = self.held(flight);
        match held.state {
            State::Done(_) => {
                self.free(flight);
                None
            }
            _ => {
                held.state = State::Abandoned;
                self.cancellation(flight)
            }
        }
    }

    /// The command that ends a flight early: only what waits for other clients can be ended.
    pub fn cancellation(&mut self, flight: Flight) -> Option<Command> {
        let cancel = Command { operand: flight.tag(), ..Command::new(Opcode::Cancel, 0, 0) };
        (self.held(flight).opcode == Opcode::SetLock).then_some(cancel)
    }

    fn free(&mut self, flight: Flight) {
        let held = self.held(flight);
        held.state = State::Free;
        held.generation = held.generation.wrapping_add(1);
        let large = held.large.take();
        self.free.push(flight.index);
        if let Some(large) = large {
            self.large.give_back(large);
        }
    }

    /// A waker of one that waits, so that it may look after the ring.
    pub fn any_waker(&mut self) -> Option<Waker> {
        self.flights.iter_mut().find_map(|held| match &mut held.state {
            State::UnderWay { waker } => waker.take(),
            _ => None,
        })
    }

    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// Room that the caller keeps, for commands whose areas it says itself.
    pub fn take_room(&mut self, len_bytes: u32) -> Option<Area> {
        self.large.take(len_bytes)
    }

    pub fn give_room_back(&mut self, area: Area) {
        self.large.give_back(area);
    }

    /// See [`Requester::prepare_sleep`].
    pub fn prepare_sleep(&self) -> bool {
        self.requester.prepare_sleep()
    }

    pub fn finish_sleep(&self) {
        self.requester.finish_sleep();
    }
}

fn outside() -> Error {
    Error::Protocol { found: "a data area outside of the memory".to_owned() }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
