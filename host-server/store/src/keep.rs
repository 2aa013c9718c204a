//! What outlives the process: applied transactions that the log does not hold yet, and the banks.
//!
//! Frames go to one half of the memory file while a commit makes those of the other durable; one commit runs at a time, so two
//! halves suffice. A frame that does not fit is not kept, nor is any after it until the next commit begins: what is kept is
//! always a prefix of the order.

use std::rc::Rc;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::engine::{Engine, MemoryOpen};
use ringfort_engine::error::ErrorKind;
use ringfort_engine::memory::MemoryFile;

use crate::address::{PhysicalBlock, VolumeId};
use crate::format::memory::{
    AREA_ENTRY_BYTES, MemoryShape, decode_area, decode_frames, encode_area, encode_frame,
};

/// The memory file of the open volume.
pub(crate) struct Keep {
    file: MemoryFile,
    shape: MemoryShape,
    _header: Buffer,
    directory: Buffer,
    halves: [Buffer; 2],
    half: usize,
    offset: usize,
    overflowed: bool,
    areas_in_use: Vec<bool>,
    /// Transactions that were applied without being kept.
    pub overflow_count: u64,
}

/// Names the area of a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AreaId(usize);

fn file_name(volume: VolumeId) -> String {
    format!("volume-{:032x}", volume.0)
}

impl Keep {
    /// A fresh file. `None`, with a warning, where the host gives none: the volume works without, but the death of
    /// the process then loses what is not committed.
    pub fn create(engine: &Rc<dyn Engine>, volume: VolumeId, shape: MemoryShape) -> Option<Self> {
        assert!(shape.area_count as usize * AREA_ENTRY_BYTES <= BLOCK_BYTES);
        let len_bytes = shape.block_count() * BLOCK_BYTES;
        let file = match engine.memory_file(&file_name(volume), len_bytes, MemoryOpen::Create) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(
                    %volume,
                    %error,
                    "no memory file: should this process die, what no program has synced is lost, as in a power cut. Make \
                     room in /dev/shm and start the server again"
                );
                return None;
            }
        };
        let mut header = file.lend(0, 1);
        shape.encode(volume, &mut header);
        Some(Self {
            shape,
            _header: header,
            directory: file.lend(1, 1),
            halves: [0, 1].map(|half| file.lend(shape.half_start(half), shape.half_blocks as usize)),
            half: 0,
            offset: 0,
            overflowed: false,
            areas_in_use: vec![false; shape.area_count as usize],
            overflow_count: 0,
            file,
        })
    }

    /// Keeps an applied transaction.
    pub fn append(&mut self, transaction: u64, body: &[u8]) {
        let room = &mut self.halves[self.half][self.offset..];
        match encode_frame(room, transaction, self.shape.epoch, body) {
            Some(len) if !self.overflowed => {
                self.offset += len;
                // What an earlier use of this half left must not look like a frame that follows.
                if let Some(next) = self.halves[self.half].get_mut(self.offset..self.offset + 4) {
                    next.fill(0);
                }
            }
            _ => {
                self.overflowed = true;
                self.overflow_count += 1;
            }
        }
    }

    /// A commit takes all that is applied; the frames of the other half are durable.
    pub fn switch(&mut self) {
        self.half = 1 - self.half;
        self.offset = 0;
        self.overflowed = false;
        self.halves[self.half][..4].fill(0);
    }

    /// Memory for a bank of `block_count` blocks that begins at `start`. `None` where all is in use: such a bank is not kept.
    pub fn take_area(&mut self, start: PhysicalBlock, block_count: u32) -> Option<AreaId> {
        if block_count > self.shape.area_blocks {
            return None;
        }
        let area_blocks = self.shape.area_blocks as usize;
        let area = (0..self.areas_in_use.len()).find(|&area| {
            // A reader may hold blocks of a bank that is gone.
            !self.areas_in_use[area] && self.file.is_free(self.shape.area_start(area), area_blocks)
        })?;
        self.areas_in_use[area] = true;
        let entry = encode_area(start, block_count, self.shape.epoch);
        self.directory[area * AREA_ENTRY_BYTES..(area + 1) * AREA_ENTRY_BYTES].copy_from_slice(&entry);
        Some(AreaId(area))
    }

    /// Memory of one slot.
    pub fn block(&self, area: AreaId, slot: usize) -> Buffer {
        self.file.lend(self.shape.area_start(area.0) + slot, 1)
    }

    pub fn give_back(&mut self, area: AreaId) {
        self.areas_in_use[area.0] = false;
        self.directory[area.0 * AREA_ENTRY_BYTES..(area.0 + 1) * AREA_ENTRY_BYTES].fill(0);
    }
}

/// Removes what is kept of a volume that has been closed: nothing is left that only memory holds.
pub(crate) fn forget(engine: &Rc<dyn Engine>, volume: VolumeId) {
    if let Err(error) = engine.remove_memory_file(&file_name(volume)) {
        tracing::warn!(%volume, %error, "the volume is closed and its memory file could not be removed; remove it by hand");
    }
}

/// What an earlier process left.
pub(crate) struct Kept {
    /// Applied transactions, in order, and their bodies.
    pub frames: Vec<(u64, Vec<u8>)>,
    areas: Vec<(PhysicalBlock, Slice)>,
}

impl Kept {
    /// Reads the memory file that a process left, if it has this shape, epoch included. `None` where there is none: the machine was restarted, or
    /// the volume has been open elsewhere since.
    pub fn find(engine: &Rc<dyn Engine>, volume: VolumeId, shape: MemoryShape) -> Option<Self> {
        let epoch = shape.epoch;
        let len_bytes = shape.block_count() * BLOCK_BYTES;
        let file = match engine.memory_file(&file_name(volume), len_bytes, MemoryOpen::Attach) {
            Ok(file) => file,
            Err(error) => {
                if error.kind != ErrorKind::NotFound {
                    tracing::warn!(
                        %volume,
                        %error,
                        "the last process left a memory file that cannot be read: what no program had synced by its end is \
                         lost, as in a power cut"
                    );
                }
                return None;
            }
        };
        let found = MemoryShape::decode(&file.lend(0, 1), volume)?;
        if found != shape {
            return None;
        }
        let directory = file.lend(1, 1);
        let areas = directory
            .chunks_exact(AREA_ENTRY_BYTES)
            .take(shape.area_count as usize)
            .enumerate()
            .filter_map(|(area, bytes)| {
                let (start, block_count) = decode_area(bytes, epoch)?;
                let blocks = (block_count.min(shape.area_blocks)) as usize;
                // Copied: the file is made anew before the blocks are done with.
                let bytes = Slice::copy_of(&file.lend(shape.area_start(area), blocks));
                Some((start, bytes))
            })
            .collect();
        let mut frames: Vec<(u64, Vec<u8>)> = Vec::new();
        for half in 0..2 {
            let bytes = file.lend(shape.half_start(half), shape.half_blocks as usize);
            let found = decode_frames(&bytes, epoch);
            frames.extend(found.into_iter().map(|(transaction, body)| (transaction, body.to_vec())));
        }
        frames.sort_by_key(|(transaction, _)| *transaction);
        Some(Self { frames, areas })
    }

    /// The block that lay in a bank; the caller compares its checksum.
    pub fn block(&self, physical: PhysicalBlock) -> Option<Slice> {
        self.areas.iter().find_map(|(start, bytes)| {
            let index = usize::try_from(physical.0.checked_sub(start.0)?).ok()?;
            let offset = index.checked_mul(BLOCK_BYTES)?;
            (offset + BLOCK_BYTES <= bytes.len()).then(|| bytes.slice(offset..offset + BLOCK_BYTES))
        })
    }
}
