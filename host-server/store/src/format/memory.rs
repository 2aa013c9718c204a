//! The memory file of an open volume: what was acknowledged and is not in the log yet.
//!
//! ```text
//! block 0     envelope, MemoryHeader
//! block 1     directory: one AreaEntry for each area
//! then        two halves for frames; then the areas: blocks of banks, in slot order
//! ```
//! Every position is relative to the file. A half is a list of frames, ended by anything that is no frame. A frame is one applied
//! transaction, with the entries that the log will hold; the blocks of its bank writes lie in the areas. A frame is
//! valid if its checksum is, and counts if its epoch is the volume's newest and its transaction follows the log's.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::address::{PhysicalBlock, VolumeId};
use crate::format::checksum::crc32c_of_pieces;
use crate::format::envelope::{self, ENVELOPE_BYTES, Kind};
use crate::format::layout::{Layout, layout};

const VERSION: u16 = 1;
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"RFfr");

#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MemoryHeader {
    epoch: U64,
    half_blocks: U32,
    area_count: U32,
    area_blocks: U32,
    reserved: U32,
}

/// Which physical blocks an area holds.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AreaEntry {
    start: U64,
    epoch: U64,
    block_count: U32,
    checksum: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FrameHeader {
    magic: U32,
    checksum: U32,
    transaction: U64,
    epoch: U64,
    body_bytes: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<MemoryHeader>() == 24);
const _: () = assert!(size_of::<AreaEntry>() == AREA_ENTRY_BYTES);
const _: () = assert!(size_of::<FrameHeader>() == FRAME_HEADER_BYTES);

pub const AREA_ENTRY_BYTES: usize = 24;
pub const FRAME_HEADER_BYTES: usize = 32;

/// How a memory file is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryShape {
    /// Epoch of the process that wrote it.
    pub epoch: u64,
    pub half_blocks: u32,
    pub area_count: u32,
    pub area_blocks: u32,
}

impl MemoryShape {
    /// Header and directory.
    pub const FRONT_BLOCKS: usize = 2;

    pub fn block_count(&self) -> usize {
        self.area_start(self.area_count as usize)
    }

    pub fn half_start(&self, half: usize) -> usize {
        Self::FRONT_BLOCKS + half * self.half_blocks as usize
    }

    pub fn area_start(&self, area: usize) -> usize {
        self.half_start(2) + area * self.area_blocks as usize
    }

    /// Writes the header into block 0.
    pub fn encode(&self, volume: VolumeId, block: &mut [u8]) {
        let header = MemoryHeader {
            epoch: U64::new(self.epoch),
            half_blocks: U32::new(self.half_blocks),
            area_count: U32::new(self.area_count),
            area_blocks: U32::new(self.area_blocks),
            reserved: U32::ZERO,
        };
        block[ENVELOPE_BYTES..ENVELOPE_BYTES + size_of::<MemoryHeader>()].copy_from_slice(header.as_bytes());
        envelope::seal(block, Kind::MemoryFile, VERSION, volume, size_of::<MemoryHeader>());
    }

    /// `None` where block 0 is no header for this volume.
    pub fn decode(block: &[u8], volume: VolumeId) -> Option<Self> {
        let opened = envelope::open(block, Kind::MemoryFile, VERSION, Some(volume)).ok()?;
        let header = MemoryHeader::read_from_bytes(opened.body).ok()?;
        (header.reserved.get() == 0).then_some(Self {
            epoch: header.epoch.get(),
            half_blocks: header.half_blocks.get(),
            area_count: header.area_count.get(),
            area_blocks: header.area_blocks.get(),
        })
    }
}

/// Bytes of a directory entry.
pub fn encode_area(start: PhysicalBlock, block_count: u32, epoch: u64) -> [u8; AREA_ENTRY_BYTES] {
    let mut entry = AreaEntry {
        start: U64::new(start.0),
        epoch: U64::new(epoch),
        block_count: U32::new(block_count),
        checksum: U32::ZERO,
    };
    entry.checksum = U32::new(crc32c_of_pieces(&[entry.as_bytes()]));
    zerocopy::transmute!(entry)
}

/// First physical block and number of blocks; `None` where the bytes are no entry of this epoch.
pub fn decode_area(bytes: &[u8], epoch: u64) -> Option<(PhysicalBlock, u32)> {
    let entry = AreaEntry::read_from_bytes(bytes).ok()?;
    let computed = crc32c_of_pieces(&[AreaEntry { checksum: U32::ZERO, ..entry }.as_bytes()]);
    (entry.checksum.get() == computed && entry.epoch.get() == epoch)
        .then(|| (PhysicalBlock(entry.start.get()), entry.block_count.get()))
}

/// Writes a frame to the front of `room`; returns its length, or `None` where it does not fit.
pub fn encode_frame(room: &mut [u8], transaction: u64, epoch: u64, body: &[u8]) -> Option<usize> {
    let len = FRAME_HEADER_BYTES + body.len();
    let room = room.get_mut(..len)?;
    let mut header = FrameHeader {
        magic: U32::new(FRAME_MAGIC),
        checksum: U32::ZERO,
        transaction: U64::new(transaction),
        epoch: U64::new(epoch),
        body_bytes: U32::new(body.len() as u32),
        reserved: U32::ZERO,
    };
    header.checksum = U32::new(crc32c_of_pieces(&[header.as_bytes(), body]));
    // The body first: a process that dies in between leaves a frame that fails its checksum.
    room[FRAME_HEADER_BYTES..].copy_from_slice(body);
    room[..FRAME_HEADER_BYTES].copy_from_slice(header.as_bytes());
    Some(len)
}

/// The valid frames of a half, in order: transaction and body.
pub fn decode_frames(mut half: &[u8], epoch: u64) -> Vec<(u64, &[u8])> {
    let mut frames = Vec::new();
    while let Ok((header, rest)) = FrameHeader::read_from_prefix(half) {
        let Some(body) = rest.get(..header.body_bytes.get() as usize) else { break };
        let computed = crc32c_of_pieces(&[FrameHeader { checksum: U32::ZERO, ..header }.as_bytes(), body]);
        if header.magic.get() != FRAME_MAGIC
            || header.checksum.get() != computed
            || header.epoch.get() != epoch
        {
            break;
        }
        frames.push((header.transaction.get(), body));
        half = &rest[body.len()..];
    }
    frames
}

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[
    layout!("memory header", MemoryHeader { epoch, half_blocks, area_count, area_blocks, reserved }),
    layout!("area", AreaEntry { start, epoch, block_count, checksum }),
    layout!("frame", FrameHeader { magic, checksum, transaction, epoch, body_bytes, reserved }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_until_the_first_that_is_none() {
        let mut half = vec![0xaa; 200];
        let first = encode_frame(&mut half, 7, 3, b"one").unwrap();
        let second = encode_frame(&mut half[first..], 8, 3, b"three").unwrap();
        assert_eq!(decode_frames(&half, 3), [(7, &b"one"[..]), (8, &b"three"[..])]);
        assert_eq!(decode_frames(&half, 4), []);
        half[first + second - 1] ^= 1;
        assert_eq!(decode_frames(&half, 3), [(7, &b"one"[..])]);
        assert_eq!(encode_frame(&mut half[..first - 1], 7, 3, b"one"), None);
    }

    #[test]
    fn an_area_entry_is_valid_in_its_epoch_only() {
        let mut entry = encode_area(PhysicalBlock(9), 4, 2);
        assert_eq!(decode_area(&entry, 2), Some((PhysicalBlock(9), 4)));
        assert_eq!(decode_area(&entry, 3), None);
        entry[0] ^= 1;
        assert_eq!(decode_area(&entry, 2), None);
    }

    #[test]
    fn the_header_names_volume_and_shape() {
        let shape = MemoryShape { epoch: 5, half_blocks: 16, area_count: 3, area_blocks: 8 };
        let mut block = vec![0; 4096];
        shape.encode(VolumeId(1), &mut block);
        assert_eq!(MemoryShape::decode(&block, VolumeId(1)), Some(shape));
        assert_eq!(MemoryShape::decode(&block, VolumeId(2)), None);
        assert_eq!(shape.block_count(), 2 + 32 + 24);
    }
}
