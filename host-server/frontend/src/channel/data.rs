//! The part of a client's memory in which the areas of its commands lie.

use std::rc::Rc;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_filesystem::errno::Errno;
use ringfort_filesystem::operation::{DataPiece, Payload};
use ringfort_protocol::argument::{AREA_COUNT_MAX, AreaRecord};
use ringfort_protocol::command::Area;
use ringfort_protocol::layout::Record;
use ringfort_protocol::ring::memory::SharedMemory;

use super::share::Share;

/// The data area of a ring. Nothing outside of it is read or written for a command of that ring.
pub struct DataArea {
    memory: SharedMemory,
    start: u32,
    end: u64,
    /// The longest input or output.
    command_bytes_max: u32,
    /// Counts what is copied.
    share: Rc<Share>,
}

impl DataArea {
    /// None where the area leaves the memory.
    pub fn new(memory: SharedMemory, area: Area, command_bytes_max: u32) -> Option<Self> {
        let end = u64::from(area.start) + u64::from(area.len_bytes);
        let share = Rc::default();
        (end <= memory.len_bytes()).then_some(Self {
            memory,
            start: area.start,
            end,
            command_bytes_max,
            share,
        })
    }

    /// The same area of the same length in memory that was mapped anew. None where it leaves that.
    pub fn moved_to(&self, memory: SharedMemory) -> Option<Self> {
        let share = Rc::clone(&self.share);
        (self.end <= memory.len_bytes()).then_some(Self { memory, share, ..*self })
    }

    /// What the ring whose area this is may do in a turn.
    pub fn share(&self) -> &Rc<Share> {
        &self.share
    }

    fn check(&self, area: Area) -> Result<(), Errno> {
        if area.len_bytes > self.command_bytes_max {
            return Err(Errno::E2BIG);
        }
        let inside =
            area.start >= self.start && u64::from(area.start) + u64::from(area.len_bytes) <= self.end;
        // A command without an area has it at 0, wherever the data lies.
        if area.len_bytes > 0 && !inside { Err(Errno::EFAULT) } else { Ok(()) }
    }

    /// Copies an input out, once.
    pub fn input(&self, area: Area) -> Result<Vec<u8>, Errno> {
        self.check(area)?;
        let mut bytes = vec![0; area.len_bytes as usize];
        self.memory.read(area.start.into(), &mut bytes).ok_or(Errno::EFAULT)?;
        self.share.count_bytes(area.len_bytes.into());
        Ok(bytes)
    }

    /// The areas that an input lists, together no longer than one area may be.
    pub fn list(&self, area: Area) -> Result<Vec<Area>, Errno> {
        if area.len_bytes as usize > AREA_COUNT_MAX * size_of::<AreaRecord>() {
            return Err(Errno::E2BIG);
        }
        let bytes = self.input(area)?;
        let (mut rest, mut listed, mut total) = (&bytes[..], Vec::new(), 0u64);
        while !rest.is_empty() {
            let (record, behind) = AreaRecord::split(rest).ok_or(Errno::EINVAL)?;
            let area = Area { start: record.start.get(), len_bytes: record.len_bytes.get() };
            self.check(area)?;
            total += u64::from(area.len_bytes);
            listed.push(area);
            rest = behind;
        }
        if total > self.command_bytes_max.into() { Err(Errno::E2BIG) } else { Ok(listed) }
    }

    /// Copies what is to be written at `offset_bytes` of a file, once, cut so that whole blocks need no other copy.
    pub fn payload(&self, areas: &[Area], offset_bytes: u64) -> Result<Payload, Errno> {
        areas.iter().try_for_each(|area| self.check(*area))?;
        let len_bytes = areas.iter().map(|area| area.len_bytes as usize).sum();
        let mut from = Cursor { areas, into: 0 };
        self.share.count_bytes(len_bytes as u64);
        let (head, whole, tail) = Payload::lengths(offset_bytes, len_bytes);
        let mut payload = Payload::default();
        for len_bytes in [head, whole, tail] {
            if len_bytes > 0 {
                payload.pieces.push(self.copy(&mut from, len_bytes)?);
            }
        }
        Ok(payload)
    }

    fn copy(&self, from: &mut Cursor<'_>, len_bytes: usize) -> Result<Slice, Errno> {
        let mut buffer = Buffer::for_overwrite(len_bytes.next_multiple_of(BLOCK_BYTES));
        let (data, padding) = buffer.split_at_mut(len_bytes);
        padding.fill(0);
        let mut done = 0;
        while done < len_bytes {
            let (start, run_bytes) = from.take(len_bytes - done).ok_or(Errno::EFAULT)?;
            self.memory.read(start, &mut data[done..done + run_bytes]).ok_or(Errno::EFAULT)?;
            done += run_bytes;
        }
        Ok(buffer.freeze().slice(0..len_bytes))
    }

    /// Copies a result into an output. `ERANGE` where it does not fit, and then nothing is written.
    pub fn output(&self, area: Area, bytes: &[u8]) -> Result<(), Errno> {
        self.check(area)?;
        if bytes.len() > area.len_bytes as usize {
            return Err(Errno::ERANGE);
        }
        self.share.count_bytes(bytes.len() as u64);
        self.memory.write(area.start.into(), bytes).ok_or(Errno::EFAULT)
    }

    /// Copies what was read into `areas`, one after the other, which have room for it.
    pub fn scatter(&self, areas: &[Area], pieces: &[DataPiece]) -> Result<u64, Errno> {
        let mut to = Cursor { areas, into: 0 };
        let mut total = 0;
        for piece in pieces {
            let len_bytes = match piece {
                DataPiece::Bytes(slice) => slice.len(),
                DataPiece::Zeros { len_bytes } => *len_bytes,
            };
            let mut done = 0;
            while done < len_bytes {
                let (start, run_bytes) = to.take(len_bytes - done).ok_or(Errno::EIO)?;
                match piece {
                    DataPiece::Bytes(slice) => self.memory.write(start, &slice[done..done + run_bytes]),
                    DataPiece::Zeros { .. } => self.memory.clear(start, run_bytes),
                }
                .ok_or(Errno::EFAULT)?;
                done += run_bytes;
            }
            total += len_bytes as u64;
        }
        self.share.count_bytes(total);
        Ok(total)
    }

    pub fn check_all(&self, areas: &[Area]) -> Result<(), Errno> {
        areas.iter().try_for_each(|area| self.check(*area))
    }
}

/// Goes through areas.
struct Cursor<'a> {
    areas: &'a [Area],
    /// Into the first of them.
    into: u32,
}

impl Cursor<'_> {
    /// The next run of at most `most_bytes`: where it starts in the client's memory, and how long it is.
    fn take(&mut self, most_bytes: usize) -> Option<(u64, usize)> {
        loop {
            let (area, behind) = self.areas.split_first()?;
            let left = (area.len_bytes - self.into) as usize;
            if left == 0 {
                (self.areas, self.into) = (behind, 0);
                continue;
            }
            let run_bytes = left.min(most_bytes);
            let start = u64::from(area.start) + u64::from(self.into);
            self.into += run_bytes as u32;
            return Some((start, run_bytes));
        }
    }
}
