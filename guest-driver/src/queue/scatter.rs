//! Reads and writes of several buffers that lie in shared memory: one command, and no copy.

use ringfort_protocol::argument::AreaRecord;
use ringfort_protocol::command::{Area, Command, Opcode};
use zerocopy::IntoBytes;

use super::{Buffers, Queue, SharedBuffer, Use, of_file};
use crate::error::Error;
use crate::file::File;
use crate::lane::Load;

/// The most buffers that one command lists.
const BUFFERS_MAX: usize = ringfort_protocol::argument::AREA_COUNT_MAX;

impl Queue {
    /// Submits a read into the buffers, one after the other, of as much as they hold. Refused while another command uses one of them, and where one is listed twice.
    pub fn read_scattered(
        &mut self,
        file: &File,
        buffers: &[&SharedBuffer],
        offset_bytes: u64,
        tag: u64,
    ) -> Result<bool, Error> {
        let is_twice = |(at, buffer): (usize, &&SharedBuffer)| {
            buffers[..at].iter().any(|other| other.index == buffer.index)
        };
        if buffers.iter().enumerate().any(is_twice) {
            return Err(Error::Buffer { found: "is listed twice to be read into" });
        }
        let parts: Vec<_> = buffers.iter().map(|buffer| (*buffer, buffer.len_bytes)).collect();
        self.submit_list(of_file(Opcode::ReadScatter, file, offset_bytes), &parts, Use::Change, tag)
    }

    /// Submits a write of the first bytes of each buffer, one behind the other. Refused while a command reads into one of them.
    pub fn write_gathered(
        &mut self,
        file: &File,
        parts: &[(&SharedBuffer, u32)],
        offset_bytes: u64,
        tag: u64,
    ) -> Result<bool, Error> {
        self.submit_list(of_file(Opcode::WriteGather, file, offset_bytes), parts, Use::Look, tag)
    }

    fn submit_list(
        &mut self,
        command: Command,
        parts: &[(&SharedBuffer, u32)],
        wanted: Use,
        tag: u64,
    ) -> Result<bool, Error> {
        if parts.len() > BUFFERS_MAX {
            return Err(Error::TooLong {
                operation: "list shared buffers",
                found: parts.len(),
                most: BUFFERS_MAX,
            });
        }
        let area = |(buffer, len_bytes): &(&SharedBuffer, u32)| {
            let Area { start, len_bytes } = self.area(buffer, *len_bytes as usize, wanted)?;
            Ok(AreaRecord { start: start.into(), len_bytes: len_bytes.into() })
        };
        let areas = parts.iter().map(area).collect::<Result<Vec<_>, Error>>()?;
        let input: Vec<u8> = areas.iter().flat_map(|area| area.as_bytes().iter().copied()).collect();
        let command = self.connection.own(command);
        let begun = self.lane().begin(&Load { command, input: &[&input], output_bytes: 0 }, None);
        let indices: Box<[usize]> = parts.iter().map(|(buffer, _)| buffer.index).collect();
        let submitted = self.note(begun, tag, Buffers::Several(indices.clone()))?;
        if submitted {
            self.hold(&indices, wanted);
        }
        Ok(submitted)
    }
}
