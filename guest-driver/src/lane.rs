//! The client's end of a ring for one owner at a time: commands under way, and the parts of the data area that they have.
//!
//! Invariants:
//! * A command has a flight from its submission to the moment at which its completion was taken and used. There are as many flights as the ring
//!   has slots, so that a command with a flight always has a slot.
//! * The areas of a flight are given to no other before its completion has come, whatever became of whoever asked.
//! * What is completed was asked for, and has no more output than it was given room for. After a completion that breaks this the lane is *broken*:
//!   nothing begins and nothing is taken any more.

use std::task::Waker;

use ringfort_protocol::command::{Area, Command, Flags, Opcode};
use ringfort_protocol::completion::Completion;
use ringfort_protocol::ring::memory::SharedMemory;
use ringfort_protocol::ring::requester::Requester;

use crate::error::Error;
use crate::room::Room;

/// What each flight has of the data area without asking: paths, attributes, a block.
pub const SMALL_BYTES: u32 = 8192;

/// Where input and output begin in an area: what is written of a file in whole blocks stays aligned.
const ALIGN_BYTES: u32 = 64;

const SMALL_BYTES_FIT: usize = SMALL_BYTES as usize;

/// A command under way, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    index: u32,
    /// Of the flights that have had this index.
    generation: u32,
}

impl Flight {
    /// Below [`Lane::most`]; no other flight has it at the same time.
    pub fn index(self) -> usize {
        self.index as usize
    }

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
    /// On whose behalf a file is opened that nothing else closes.
    opens: Option<u32>,
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

/// A command with the parts of its input, which are put one behind the other, and the most bytes that come back.
#[derive(Clone, Copy)]
pub struct Load<'a> {
    pub command: Command,
    pub input: &'a [&'a [u8]],
    pub output_bytes: usize,
}

impl Load<'_> {
    fn wanted_bytes(&self) -> usize {
        // Lengths of slices, or of what is to be one.
        let input_bytes: usize = self.input.iter().map(|part| part.len()).sum();
        input_bytes.next_multiple_of(ALIGN_BYTES as usize) + self.output_bytes
    }
}

/// A flight's number and areas before it begins.
struct Berth {
    index: u32,
    area: Area,
    /// The area, where it is not the small part that each flight has.
    large: Option<Area>,
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
    /// Files that were opened for nobody: what closes them.
    orphans: Vec<Command>,
    /// What the server said that it may not.
    broken: Option<Box<str>>,
}

impl Lane {
    /// Bytes of data that a ring of so many slots wants, for calls of so many bytes.
    pub fn data_bytes(slot_count: u32, call_bytes: u32) -> u32 {
        slot_count * SMALL_BYTES + call_bytes + (64 << 10)
    }

    /// Whether an area of data lies in memory of so many bytes, and begins as a lane wants it to.
    pub fn fits(data: Area, memory_bytes: u64) -> bool {
        let end = data.start.checked_add(data.len_bytes);
        end.is_some_and(|end| u64::from(end) <= memory_bytes) && data.start.is_multiple_of(ALIGN_BYTES)
    }

    /// # Panics
    /// Where the data do not [fit](Self::fits).
    pub fn new(requester: Requester<SharedMemory>, memory: SharedMemory, data: Area) -> Self {
        assert!(Self::fits(data, memory.len_bytes()), "{data:?} in {} bytes", memory.len_bytes());
        let count = requester.room().min(data.len_bytes / SMALL_BYTES / 2);
        let small_bytes = count * SMALL_BYTES;
        let large = Area { start: data.start + small_bytes, len_bytes: data.len_bytes - small_bytes };
        let held = |_| Held {
            generation: 0,
            state: State::Free,
            opcode: Opcode::Nop,
            opens: None,
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
            orphans: Vec::new(),
            broken: None,
        }
    }

    /// Commands that may be begun before a completion is used.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Commands that may be under way together.
    pub fn most(&self) -> usize {
        self.flights.len()
    }

    pub fn under_way(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// An error once the lane is broken.
    fn check(&self) -> Result<(), Error> {
        match &self.broken {
            None => Ok(()),
            Some(found) => Err(Error::Protocol { found: found.to_string() }),
        }
    }

    /// A flight with areas for input and output: in its small part where they fit.
    fn berth(&mut self, load: &Load<'_>) -> Result<Berth, Refused> {
        self.check()?;
        let index = *self.free.last().ok_or(Refused::Full)?;
        let wanted = load.wanted_bytes();
        let large = match wanted {
            0..=SMALL_BYTES_FIT => None,
            _ if wanted > self.large.most_bytes() => {
                let most = self.large.most_bytes();
                return Err(Error::TooLong { operation: "call the server", found: wanted, most }.into());
            }
            // No longer than the room, which has 32 bits.
            _ => Some(self.large.take(wanted as u32).ok_or(Refused::Full)?),
        };
        self.free.pop();
        let small = Area { start: self.data.start + index * SMALL_BYTES, len_bytes: SMALL_BYTES };
        Ok(Berth { index, area: large.unwrap_or(small), large })
    }

    fn leave(&mut self, berth: Berth) {
        self.free.push(berth.index);
        berth.large.into_iter().for_each(|area| self.large.give_back(area));
    }

    /// Submits a command.
    pub fn begin(&mut self, load: &Load<'_>, waker: Option<Waker>) -> Result<Flight, Refused> {
        let berth = self.berth(load)?;
        Ok(self.fill(berth, load, waker))
    }

    /// Whether all of these fit when nothing else is under way.
    pub fn can_hold(&self, loads: &[Load<'_>]) -> bool {
        let large_bytes = |load: &Load<'_>| match load.wanted_bytes() {
            0..=SMALL_BYTES_FIT => 0,
            wanted => Room::rounded(wanted),
        };
        loads.len() <= self.flights.len()
            && loads.iter().map(large_bytes).sum::<usize>() <= self.large.most_bytes()
    }

    /// Submits all of these commands, one right behind the other, or none of them.
    pub fn begin_all(&mut self, loads: &[Load<'_>]) -> Result<Vec<Flight>, Refused> {
        let mut berths = Vec::with_capacity(loads.len());
        for load in loads {
            match self.berth(load) {
                Ok(berth) => berths.push(berth),
                Err(refused) => {
                    berths.into_iter().rev().for_each(|berth| self.leave(berth));
                    return Err(refused);
                }
            }
        }
        Ok(berths.into_iter().zip(loads).map(|(berth, load)| self.fill(berth, load, None)).collect())
    }

    fn fill(&mut self, berth: Berth, load: &Load<'_>, waker: Option<Waker>) -> Flight {
        let mut command = load.command;
        let start = berth.area.start;
        let mut at = start;
        for part in load.input {
            let inside = self.memory.write(at.into(), part).is_some();
            assert!(inside, "the data of a lane lie in its memory");
            at += part.len() as u32;
        }
        if at > start {
            command.input = Area { start, len_bytes: at - start };
        }
        let output = Area { start: at.next_multiple_of(ALIGN_BYTES), len_bytes: load.output_bytes as u32 };
        if load.output_bytes > 0 {
            command.output = output;
        }
        self.submit(berth.index, command, output, berth.large, waker)
    }

    /// Submits a command whose areas the caller has said.
    pub fn begin_in_place(&mut self, command: Command) -> Result<Flight, Refused> {
        self.check()?;
        let index = self.free.pop().ok_or(Refused::Full)?;
        Ok(self.submit(index, command, command.output, None, None))
    }

    fn submit(
        &mut self,
        index: u32,
        mut command: Command,
        output: Area,
        large: Option<Area>,
        waker: Option<Waker>,
    ) -> Flight {
        let Some(held) = self.flights.get_mut(index as usize) else { unreachable!("a free flight is one") };
        let flight = Flight { index, generation: held.generation };
        command.tag = flight.tag();
        if self.requester.submit(&command.encode()).is_err() {
            unreachable!("there are no more flights than slots");
        }
        (held.state, held.opcode) = (State::UnderWay { waker }, command.opcode);
        (held.output, held.large) = (output, large);
        let is_alone = !command.flags.has(Flags::LINK) && !command.flags.has(Flags::LINK_ALWAYS);
        held.opens = (command.opcode == Opcode::Open && is_alone).then_some(command.credential);
        self.unrung = true;
        flight
    }

    /// Whether the server has to be rung for what was begun since the last time.
    pub fn wants_doorbell(&mut self) -> bool {
        std::mem::take(&mut self.unrung) && self.requester.wants_doorbell()
    }

    /// Whether [`reap`](Self::reap) would find anything, or say what is wrong: a cheap look.
    #[inline]
    pub fn has_news(&self) -> bool {
        self.requester.has_completion() || self.broken.is_some()
    }

    /// Takes what has been completed: `done` is told of each that somebody waits for, with who is to be woken. How many there were, those that nobody waits for included.
    pub fn reap(&mut self, mut done: impl FnMut(Flight, Option<Waker>)) -> Result<usize, Error> {
        self.check()?;
        let mut count = 0;
        while let Some(slot) = self.requester.take() {
            count += 1;
            let completion = Completion::decode(slot);
            if !self.accept(completion, &mut done) {
                self.broken = Some(format!("{completion:?}, for which nobody asked so").into());
                return self.check().map(|()| count);
            }
        }
        Ok(count)
    }

    /// False where nobody asked so.
    fn accept(&mut self, completion: Completion, done: &mut impl FnMut(Flight, Option<Waker>)) -> bool {
        let flight = Flight::of_tag(completion.tag);
        let held = self.flights.get_mut(flight.index as usize);
        let held = held.filter(|held| held.generation == flight.generation);
        let Some(held) = held.filter(|held| completion.output_bytes <= held.output.len_bytes) else {
            return false;
        };
        match &mut held.state {
            State::UnderWay { waker } => {
                let waker = waker.take();
                held.state = State::Done(completion);
                done(flight, waker);
                true
            }
            State::Abandoned => {
                self.leave_unused(flight, completion);
                true
            }
            State::Free | State::Done(_) => false,
        }
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
        let completion = self.completion(flight);
        let start = self.held(flight).output.start;
        let taken = take(&completion, &self.memory, start.into());
        self.free(flight);
        taken
    }

    /// Nobody waits any more. Gives the command that ends it early, where there is one.
    pub fn abandon(&mut self, flight: Flight) -> Option<Command> {
        let held = self.held(flight);
        match held.state {
            State::Done(completion) => {
                self.leave_unused(flight, completion);
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

    /// Frees a flight whose completion nobody wants.
    fn leave_unused(&mut self, flight: Flight, completion: Completion) {
        if let Some(credential) = self.held(flight).opens
            && completion.status == 0
        {
            let close = Command { target: completion.value, ..Command::new(Opcode::Close, 0, credential) };
            self.orphans.push(close);
        }
        self.free(flight);
    }

    pub fn has_orphans(&self) -> bool {
        !self.orphans.is_empty()
    }

    /// The commands that close what was opened for nobody.
    pub fn take_orphans(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.orphans)
    }

    fn free(&mut self, flight: Flight) {
        let held = self.held(flight);
        held.state = State::Free;
        held.generation = held.generation.wrapping_add(1);
        let large = held.large.take();
        self.free.push(flight.index);
        large.into_iter().for_each(|area| self.large.give_back(area));
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

    /// All room that was kept is free.
    ///
    /// # Panics
    /// Where a command is under way.
    pub fn take_all_room_back(&mut self) {
        assert_eq!(self.under_way(), 0, "a command may use the room");
        self.large = self.large.emptied();
    }

    /// What a flight that is done was answered with.
    pub fn completion(&mut self, flight: Flight) -> Completion {
        match self.held(flight).state {
            State::Done(completion) => completion,
            _ => unreachable!("a flight that is done"),
        }
    }

    /// See [`Requester::prepare_sleep`].
    pub fn prepare_sleep(&self) -> bool {
        self.requester.prepare_sleep()
    }

    pub fn finish_sleep(&self) {
        self.requester.finish_sleep();
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
