//! Values of the map trees.
//!
//! | offset | bytes | field of a logical run (key: object, first block) |
//! |---|---|---|
//! | 0 | 8 | first middle address |
//! | 8 | 4 | blocks, 1 to 512 |
//! | 12 | 4 | reserved, zero |
//!
//! | offset | bytes | field of a middle run (key: first middle address, 0) |
//! |---|---|---|
//! | 0 | 8 | first physical block; zero where dead |
//! | 8 | 4 | blocks, 1 to 512 |
//! | 12 | 4 | flags: bit 0 dead |
//! | 16 | 4 × blocks | CRC-32C of each block; absent where dead |
//!
//! The usage table's value (key: segment, 0) is the count of live blocks, 8 bytes, signed, never zero.

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::layout::{Layout, layout};
use crate::address::{BlockChecksum, MiddleAddress, PhysicalBlock};

/// The longest run: 2 MiB. Bounds what one message rewrites and what one effect frees.
pub const RUN_BLOCKS_MAX: u64 = 512;

/// Value of the logical map: object block → middle address.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LogicalRunBytes {
    middle: U64,
    len_blocks: U32,
    reserved: U32,
}

/// Start of a value of the middle map; the checksums of the blocks follow, unless the run is dead.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MiddleRunBytes {
    physical: U64,
    len_blocks: U32,
    flags: U32,
}

const _: () = assert!(size_of::<LogicalRunBytes>() == 16);
const _: () = assert!(size_of::<MiddleRunBytes>() == 16);

/// The blocks died before they were born; `physical` is zero.
const FLAG_DEAD: u32 = 1;

/// Consecutive blocks of an object at consecutive middle addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalRun {
    pub middle: MiddleAddress,
    pub len_blocks: u64,
}

impl LogicalRun {
    pub fn encode(&self) -> [u8; 16] {
        debug_assert!((1..=RUN_BLOCKS_MAX).contains(&self.len_blocks));
        zerocopy::transmute!(LogicalRunBytes {
            middle: U64::new(self.middle.0),
            len_blocks: U32::new(self.len_blocks as u32),
            reserved: U32::ZERO,
        })
    }

    /// `None` where the bytes make no sense.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let run = LogicalRunBytes::read_from_bytes(bytes).ok()?;
        let len_blocks = u64::from(run.len_blocks.get());
        let sensible = (1..=RUN_BLOCKS_MAX).contains(&len_blocks)
            && run.reserved.get() == 0
            && run.middle.get().checked_add(len_blocks).is_some();
        sensible.then_some(Self { middle: MiddleAddress(run.middle.get()), len_blocks })
    }
}

/// What has become of consecutive middle addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MiddleRun {
    /// Blocks on consecutive physical blocks, one checksum each.
    Stored { physical: PhysicalBlock, checksums: Vec<BlockChecksum> },
    /// Died before they were born: the birth that is still to come changes nothing.
    Dead { len_blocks: u64 },
}

impl MiddleRun {
    pub fn len_blocks(&self) -> u64 {
        match self {
            Self::Stored { checksums, .. } => checksums.len() as u64,
            Self::Dead { len_blocks } => *len_blocks,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        debug_assert!((1..=RUN_BLOCKS_MAX).contains(&self.len_blocks()));
        let len_blocks = U32::new(self.len_blocks() as u32);
        match self {
            Self::Stored { physical, checksums } => {
                let head = MiddleRunBytes { physical: U64::new(physical.0), len_blocks, flags: U32::ZERO };
                let mut bytes = Vec::with_capacity(size_of::<MiddleRunBytes>() + 4 * checksums.len());
                bytes.extend_from_slice(head.as_bytes());
                for checksum in checksums {
                    bytes.extend_from_slice(&checksum.0.to_le_bytes());
                }
                bytes
            }
            Self::Dead { .. } => {
                let flags = U32::new(FLAG_DEAD);
                MiddleRunBytes { physical: U64::ZERO, len_blocks, flags }.as_bytes().to_vec()
            }
        }
    }

    /// `None` where the bytes make no sense.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let view = MiddleRunView::decode(bytes)?;
        Some(match view.physical {
            Some(physical) => {
                Self::Stored { physical, checksums: view.checksums(0, view.len_blocks).collect() }
            }
            None => Self::Dead { len_blocks: view.len_blocks },
        })
    }
}

/// A value of the middle map, read in place.
#[derive(Clone, Copy, Debug)]
pub struct MiddleRunView<'a> {
    pub len_blocks: u64,
    /// `None`: the blocks died before they were born.
    pub physical: Option<PhysicalBlock>,
    checksums: &'a [U32],
}

impl<'a> MiddleRunView<'a> {
    /// `None` where the bytes make no sense.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = MiddleRunBytes::ref_from_prefix(bytes).ok()?;
        let len_blocks = u64::from(head.len_blocks.get());
        if !(1..=RUN_BLOCKS_MAX).contains(&len_blocks) {
            return None;
        }
        match head.flags.get() {
            0 => {
                let checksums = <[U32]>::ref_from_bytes_with_elems(rest, len_blocks as usize).ok()?;
                head.physical.get().checked_add(len_blocks)?;
                Some(Self { len_blocks, physical: Some(PhysicalBlock(head.physical.get())), checksums })
            }
            FLAG_DEAD if rest.is_empty() && head.physical.get() == 0 => {
                Some(Self { len_blocks, physical: None, checksums: &[] })
            }
            _ => None,
        }
    }

    /// Checksums of `len_blocks` blocks of a stored run from block `from` of it on.
    pub fn checksums(&self, from: u64, len_blocks: u64) -> impl Iterator<Item = BlockChecksum> + use<'a> {
        let range = from as usize..(from + len_blocks) as usize;
        self.checksums[range].iter().map(|checksum| BlockChecksum(checksum.get()))
    }
}

/// A counter as a value; `None` where the bytes are not one.
pub fn decode_counter(bytes: &[u8]) -> Option<i64> {
    I64::read_from_bytes(bytes).ok().map(I64::get)
}

pub fn encode_counter(count: i64) -> [u8; 8] {
    count.to_le_bytes()
}

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[
    layout!("logical run", LogicalRunBytes { middle, len_blocks, reserved }),
    layout!("middle run", MiddleRunBytes { physical, len_blocks, flags }),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn run_bytes_are_frozen() {
        let run = LogicalRun { middle: MiddleAddress(0x0102), len_blocks: 512 };
        assert_eq!(run.encode(), [2, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
        let checksums = vec![BlockChecksum(0xaabb_ccdd), BlockChecksum(1)];
        let run = MiddleRun::Stored { physical: PhysicalBlock(0x0304), checksums };
        assert_eq!(
            run.encode(),
            [4, 3, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0xdd, 0xcc, 0xbb, 0xaa, 1, 0, 0, 0]
        );
        let dead = MiddleRun::Dead { len_blocks: 3 };
        assert_eq!(dead.encode(), [0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(encode_counter(-2), [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..40),
            len_blocks in 0..8_u8,
            flags in 0..3_u8,
        ) {
            if bytes.len() >= 16 {
                bytes[8..16].copy_from_slice(&[len_blocks, 0, 0, 0, flags, 0, 0, 0]);
            }
            if let Some(run) = LogicalRun::decode(&bytes) {
                assert_eq!(run.encode().as_slice(), bytes);
            }
            if let Some(run) = MiddleRun::decode(&bytes) {
                assert_eq!(run.encode(), bytes);
            }
            if let Some(count) = decode_counter(&bytes) {
                assert_eq!(encode_counter(count).as_slice(), bytes);
            }
        }
    }
}
