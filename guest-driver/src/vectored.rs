//! Reads and writes of several buffers.

use std::io::{IoSlice, IoSliceMut};

use crate::error::Error;
use crate::file::{self, File};

impl File {
    /// Reads into the buffers, one after the other; less than they hold only at the end of the file. Returns how much. No more than
    /// [`Options::call_bytes_max`](crate::Options) is read as one.
    pub fn read_vectored_at(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        offset_bytes: u64,
    ) -> Result<usize, Error> {
        let wanted: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        if wanted > self.connection().call_bytes_max() {
            return self.read_in_turn(buffers, offset_bytes);
        }
        let request = file::read(self.into(), offset_bytes);
        let completion =
            self.connection().call_with(request.command, &[], wanted, |completion, memory, at| {
                let mut done = 0;
                for buffer in buffers.iter_mut() {
                    let part = buffer.len().min(completion.output_bytes as usize - done);
                    let inside = memory.read(at + done as u64, &mut buffer[..part]).is_some();
                    debug_assert!(inside);
                    done += part;
                }
            })?;
        request.answer(&completion, &[])?;
        Ok(completion.output_bytes as usize)
    }

    fn read_in_turn(&self, buffers: &mut [IoSliceMut<'_>], offset_bytes: u64) -> Result<usize, Error> {
        let mut done = 0;
        for buffer in buffers {
            let read = self.read_at(buffer, offset_bytes + done as u64)?;
            done += read;
            if read < buffer.len() {
                break;
            }
        }
        Ok(done)
    }

    /// Writes all of the buffers, one behind the other. No more than [`Options::call_bytes_max`](crate::Options) is written as one.
    pub fn write_vectored_at(&self, buffers: &[IoSlice<'_>], offset_bytes: u64) -> Result<(), Error> {
        let parts: Vec<&[u8]> = buffers.iter().map(|buffer| &**buffer).collect();
        let len_bytes: usize = parts.iter().map(|part| part.len()).sum();
        let mut written = 0;
        if (1..=self.connection().call_bytes_max()).contains(&len_bytes) {
            let request = file::write(self.into(), &[], offset_bytes);
            let completion = self.connection().call(request.command, &parts, &mut [])?;
            written = request.answer(&completion, &[])?;
        }
        // What is left where the server took less, or where there is more than a call takes.
        let mut start = 0;
        for part in parts {
            let skipped = written.saturating_sub(start).min(part.len() as u64);
            self.write_at(&part[skipped as usize..], offset_bytes + start + skipped)?;
            start += part.len() as u64;
        }
        Ok(())
    }
}
