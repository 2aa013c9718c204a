//! What still lives in a segment: its mirrored summaries say what was written, the middle map what is left of that.

use crate::address::{BlockChecksum, MiddleAddress, PhysicalBlock, SegmentId, StripeIndex};
use crate::core::Core;
use crate::error::StoreError;
use crate::format::segment::StripeSummary;
use crate::pages::Pages;
use crate::segment::summary::summary_of;

/// A block of a segment as its summary names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surveyed {
    pub physical: PhysicalBlock,
    pub checksum: BlockChecksum,
    /// Whose it is, where it still lives.
    pub live: Option<MiddleAddress>,
}

impl Core {
    /// The blocks of a stripe, in order; none where it was never written. What lives may die at any time, moves to be applied
    /// later must say where from.
    pub async fn survey_stripe(
        &self,
        segment: SegmentId,
        stripe: StripeIndex,
    ) -> Result<Vec<Surveyed>, StoreError> {
        let Some(summary) = self.read_summary(segment, stripe).await? else { return Ok(Vec::new()) };
        let start = self.object.geometry().stripe_start(segment, stripe);
        let mut blocks = Vec::with_capacity(summary.middles.len());
        for (index, (middle, checksum)) in summary.middles.iter().zip(&summary.data_checksums).enumerate() {
            let physical = PhysicalBlock(start.0 + index as u64);
            let lives = match middle {
                Some(middle) => self.read_place(*middle).await? == Some(physical),
                None => false,
            };
            blocks.push(Surveyed { physical, checksum: *checksum, live: middle.filter(|_| lives) });
        }
        Ok(blocks)
    }

    async fn read_summary(
        &self,
        segment: SegmentId,
        stripe: StripeIndex,
    ) -> Result<Option<StripeSummary>, StoreError> {
        summary_of(&self.maps(), &Pages::new(&self.object), segment, stripe).await
    }

    async fn read_place(&self, middle: MiddleAddress) -> Result<Option<PhysicalBlock>, StoreError> {
        self.maps().place_of(&Pages::new(&self.object), middle).await
    }
}

/// Consecutive blocks that are read at once; some of them are dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRun {
    pub first: PhysicalBlock,
    pub checksums: Vec<BlockChecksum>,
    /// Index and middle address of those that live.
    pub live: Vec<(usize, MiddleAddress)>,
}

/// Runs that hold every live block. Dead ones are read along where at most `gap_blocks` lie between two live ones: a short gap costs
/// less than a request. A run is at most `run_blocks` long and stays in its segment.
pub fn read_runs(blocks: &[Surveyed], gap_blocks: u64, run_blocks: u64) -> Vec<ReadRun> {
    let mut runs: Vec<ReadRun> = Vec::new();
    let mut gap: Vec<BlockChecksum> = Vec::new();
    let mut previous: Option<PhysicalBlock> = None;
    for block in blocks {
        let follows = previous.is_some_and(|previous| previous.0 + 1 == block.physical.0);
        previous = Some(block.physical);
        if !follows {
            gap.clear();
        }
        let Some(middle) = block.live else {
            gap.push(block.checksum);
            continue;
        };
        match runs.last_mut() {
            Some(run)
                if run.first.0 + (run.checksums.len() + gap.len()) as u64 == block.physical.0
                    && gap.len() as u64 <= gap_blocks
                    && ((run.checksums.len() + gap.len()) as u64) < run_blocks =>
            {
                run.checksums.append(&mut gap);
                run.live.push((run.checksums.len(), middle));
                run.checksums.push(block.checksum);
            }
            _ => runs.push(ReadRun {
                first: block.physical,
                checksums: vec![block.checksum],
                live: vec![(0, middle)],
            }),
        }
        gap.clear();
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Physical addresses, and which of them live.
    fn blocks(live: &[(u64, bool)]) -> Vec<Surveyed> {
        let block = |(at, lives): &(u64, bool)| Surveyed {
            physical: PhysicalBlock(*at),
            checksum: BlockChecksum(*at as u32),
            live: lives.then_some(MiddleAddress(at + 100)),
        };
        live.iter().map(block).collect()
    }

    fn shape(runs: &[ReadRun]) -> Vec<(u64, usize, usize)> {
        runs.iter().map(|run| (run.first.0, run.checksums.len(), run.live.len())).collect()
    }

    #[test]
    fn short_gaps_are_read_along_and_long_ones_are_not() {
        let blocks = blocks(&[
            (0, false),
            (1, true),
            (2, false),
            (3, true),
            (4, false),
            (5, false),
            (6, true),
            (7, false),
        ]);
        assert_eq!(shape(&read_runs(&blocks, 1, 99)), [(1, 3, 2), (6, 1, 1)]);
        assert_eq!(shape(&read_runs(&blocks, 2, 99)), [(1, 6, 3)]);
        assert_eq!(shape(&read_runs(&blocks, 2, 3)), [(1, 3, 2), (6, 1, 1)]);
        let runs = read_runs(&blocks, 2, 99);
        assert_eq!(runs[0].checksums, [1, 2, 3, 4, 5, 6].map(BlockChecksum));
        assert_eq!(runs[0].live[1], (2, MiddleAddress(103)));
    }

    #[test]
    fn stripes_that_were_never_written_end_a_run() {
        let blocks = blocks(&[(0, true), (1, false), (8, false), (9, true)]);
        assert_eq!(shape(&read_runs(&blocks, 64, 99)), [(0, 1, 1), (9, 1, 1)]);
    }
}
