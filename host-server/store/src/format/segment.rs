//! The summary of a stripe: what each 4 KiB of all its columns holds.
//!
//! ```text
//! SummaryHeader · run_count × SummaryRun · (data_blocks + parity_blocks) × checksum
//! ```
//! Runs name the middle addresses of the data blocks in order; a run that starts at zero is padding. Checksums come
//! data first, in physical order, then parity, column by column.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::layout::{Layout, layout};
use crate::address::{BlockChecksum, MiddleAddress};

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SummaryHeader {
    version: u8,
    reserved: u8,
    run_count: U16,
    data_blocks: U16,
    parity_blocks: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SummaryRun {
    middle: U64,
    len_blocks: U16,
}

const _: () = assert!(size_of::<SummaryHeader>() == 8);
const _: () = assert!(size_of::<SummaryRun>() == 10);

const VERSION: u8 = 1;

/// The longest summary of a stripe of this shape, in bytes.
pub const fn summary_bytes_max(data_blocks: usize, parity_blocks: usize) -> usize {
    8 + data_blocks * 10 + (data_blocks + parity_blocks) * 4
}

/// What a stripe holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeSummary {
    /// The middle address of each data block; `None` for padding.
    pub middles: Vec<Option<MiddleAddress>>,
    pub data_checksums: Vec<BlockChecksum>,
    pub parity_checksums: Vec<BlockChecksum>,
}

impl StripeSummary {
    pub fn encode(&self) -> Vec<u8> {
        assert_eq!(self.middles.len(), self.data_checksums.len());
        let mut runs: Vec<(u64, u16)> = Vec::new();
        for middle in self.middles.iter().map(|middle| middle.map_or(0, |middle| middle.0)) {
            match runs.last_mut() {
                Some((start, len)) if middle != 0 && *start != 0 && *start + u64::from(*len) == middle => {
                    *len += 1
                }
                Some((0, len)) if middle == 0 => *len += 1,
                _ => runs.push((middle, 1)),
            }
        }
        let header = SummaryHeader {
            version: VERSION,
            reserved: 0,
            run_count: U16::new(runs.len() as u16),
            data_blocks: U16::new(self.data_checksums.len() as u16),
            parity_blocks: U16::new(self.parity_checksums.len() as u16),
        };
        let mut bytes = header.as_bytes().to_vec();
        for (middle, len_blocks) in runs {
            let run = SummaryRun { middle: U64::new(middle), len_blocks: U16::new(len_blocks) };
            bytes.extend_from_slice(run.as_bytes());
        }
        for checksum in self.data_checksums.iter().chain(&self.parity_checksums) {
            bytes.extend_from_slice(U32::new(checksum.0).as_bytes());
        }
        bytes
    }

    /// Checksum of the block at `index`, counted through data columns and then parity columns.
    pub fn column_checksum(&self, index: usize) -> Option<BlockChecksum> {
        match index.checked_sub(self.data_checksums.len()) {
            None => self.data_checksums.get(index).copied(),
            Some(parity) => self.parity_checksums.get(parity).copied(),
        }
    }

    /// `None` where the bytes are no summary.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, rest) = SummaryHeader::read_from_prefix(bytes).ok()?;
        if header.version != VERSION || header.reserved != 0 {
            return None;
        }
        let data_blocks = usize::from(header.data_blocks.get());
        let parity_blocks = usize::from(header.parity_blocks.get());
        let (runs, rest) =
            <[SummaryRun]>::ref_from_prefix_with_elems(rest, usize::from(header.run_count.get())).ok()?;
        let checksums = <[U32]>::ref_from_bytes_with_elems(rest, data_blocks + parity_blocks).ok()?;
        let mut middles = Vec::with_capacity(data_blocks);
        for run in runs {
            let len_blocks = u64::from(run.len_blocks.get());
            let start = run.middle.get();
            start.checked_add(len_blocks)?;
            if middles.len() as u64 + len_blocks > data_blocks as u64 {
                return None;
            }
            middles.extend((0..len_blocks).map(|block| (start != 0).then_some(MiddleAddress(start + block))));
        }
        if middles.len() != data_blocks {
            return None;
        }
        let mut checksums = checksums.iter().map(|checksum| BlockChecksum(checksum.get()));
        let data_checksums = checksums.by_ref().take(data_blocks).collect();
        Some(Self { middles, data_checksums, parity_checksums: checksums.collect() })
    }
}

/// State of a segment between checkpoints: an entry of the segment tree.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SegmentEntry {
    pub version: u8,
    /// 0 free, 1 open for banks, 2 open for whole stripes, 3 closed.
    pub state: u8,
    pub reserved: [u8; 2],
    /// Stripes below this one have been handed out.
    pub next_stripe: U32,
}

const _: () = assert!(size_of::<SegmentEntry>() == 8);

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[
    layout!("summary", SummaryHeader { version, reserved, run_count, data_blocks, parity_blocks }),
    layout!("summary run", SummaryRun { middle, len_blocks }),
    layout!("segment", SegmentEntry { version, state, reserved, next_stripe }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_survive_encoding_and_store_runs_as_runs() {
        let summary = StripeSummary {
            middles: vec![
                Some(MiddleAddress(5)),
                Some(MiddleAddress(6)),
                Some(MiddleAddress(100)),
                None,
                None,
                Some(MiddleAddress(7)),
            ],
            data_checksums: (0..6).map(BlockChecksum).collect(),
            parity_checksums: (10..13).map(BlockChecksum).collect(),
        };
        let bytes = summary.encode();
        assert_eq!(bytes.len(), 8 + 4 * 10 + 9 * 4);
        assert_eq!(StripeSummary::decode(&bytes), Some(summary));
    }

    #[test]
    fn damaged_summaries_are_refused() {
        let summary = StripeSummary {
            middles: vec![Some(MiddleAddress(1)); 1],
            data_checksums: vec![BlockChecksum(1)],
            parity_checksums: vec![],
        };
        let bytes = summary.encode();
        for len in 0..bytes.len() {
            assert_eq!(StripeSummary::decode(&bytes[..len]), None);
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(StripeSummary::decode(&longer), None);
    }
}
