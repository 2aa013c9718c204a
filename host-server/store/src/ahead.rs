//! Reading ahead of those who read in sequence: which blocks to read before they are asked for, and what has been read.
//!
//! What was read ahead is found by middle address. Such an address names one content for ever, so nothing kept here can be out
//! of date, whatever is written, moved or freed meanwhile; a reader looks at the maps when it comes, as always.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use ringfort_engine::buffer::{BLOCK_BYTES, Slice};
use ringfort_engine::sync::Notify;

use crate::address::{LogicalBlock, MiddleAddress, ObjectId};
use crate::limits::{
    AHEAD_BLOCKS_MAX, AHEAD_BLOCKS_MIN, AHEAD_BLOCKS_TOTAL_MAX, AHEAD_CHUNKS, AHEAD_SLACK_BLOCKS,
    AHEAD_STREAMS_MAX,
};

/// Blocks with consecutive middle addresses.
pub(crate) struct HeldRun {
    pub middle: MiddleAddress,
    pub data: Slice,
}

/// A range that is being read ahead, or has been.
pub(crate) struct Chunk {
    pub start: LogicalBlock,
    pub len_blocks: u64,
    /// In order of middle address; `None` until it has been read.
    runs: RefCell<Option<Vec<HeldRun>>>,
    filled: Notify,
    /// Blocks that readers have come for.
    served_blocks: Cell<u64>,
}

impl Chunk {
    fn new(start: u64, len_blocks: u64) -> Rc<Self> {
        Rc::new(Self {
            start: LogicalBlock(start),
            len_blocks,
            runs: RefCell::new(None),
            filled: Notify::new(),
            served_blocks: Cell::new(0),
        })
    }

    fn end(&self) -> u64 {
        self.start.0.saturating_add(self.len_blocks)
    }

    fn overlap(&self, start: u64, end: u64) -> u64 {
        self.end().min(end).saturating_sub(self.start.0.max(start))
    }

    fn fill(&self, mut runs: Vec<HeldRun>) {
        runs.sort_unstable_by_key(|run| run.middle);
        self.runs.replace(Some(runs));
        self.filled.notify_all();
    }

    /// Returns once nothing more will be read for this chunk.
    pub async fn filled(&self) {
        while self.runs.borrow().is_none() {
            self.filled.notified().await;
        }
    }

    /// What is here from `middle` on, at most `len_blocks` blocks.
    pub fn find(&self, middle: MiddleAddress, len_blocks: u64) -> Option<Slice> {
        let runs = self.runs.borrow();
        let runs = runs.as_ref()?;
        let after = runs.partition_point(|run| run.middle <= middle);
        let run = runs.get(after.checked_sub(1)?)?;
        let offset = usize::try_from(middle.0 - run.middle.0).ok()?.checked_mul(BLOCK_BYTES)?;
        let len_bytes = run.data.len().checked_sub(offset).filter(|len_bytes| *len_bytes > 0)?;
        let wanted = usize::try_from(len_blocks).unwrap_or(usize::MAX / BLOCK_BYTES) * BLOCK_BYTES;
        Some(run.data.slice(offset..offset + len_bytes.min(wanted)))
    }
}

/// Somebody who reads an object in sequence.
struct Stream {
    object: ObjectId,
    /// Where the next read is expected; readers that overtake each other a little are one stream.
    next: u64,
    /// Blocks before this one have been asked for or are read ahead.
    ahead: u64,
    /// Blocks that it has asked for since it is known.
    asked_blocks: u64,
    chunks: VecDeque<Rc<Chunk>>,
    /// When it was last heard of, in arrivals of all streams.
    last_arrival: u64,
    /// Ages since it was last heard of.
    idle: u32,
}

impl Stream {
    fn expects(&self, object: ObjectId, start: u64) -> bool {
        self.object == object && start <= self.ahead && start + AHEAD_SLACK_BLOCKS >= self.next
    }

    fn held_blocks(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.len_blocks).sum()
    }

    /// Takes note of a read; returns the chunks that have some of it.
    fn arrive(&mut self, start: u64, end: u64) -> Vec<Rc<Chunk>> {
        self.next = self.next.max(end);
        self.ahead = self.ahead.max(end);
        self.asked_blocks = self.asked_blocks.saturating_add(end - start);
        let mut found = Vec::new();
        for chunk in &self.chunks {
            let overlap = chunk.overlap(start, end);
            if overlap > 0 {
                chunk.served_blocks.set(chunk.served_blocks.get() + overlap);
                found.push(Rc::clone(chunk));
            }
        }
        let next = self.next;
        self.chunks.retain(|chunk| {
            chunk.served_blocks.get() < chunk.len_blocks && chunk.end() + AHEAD_SLACK_BLOCKS > next
        });
        found
    }

    /// How far to be ahead of a reader: about four of its reads, or as much as it has read already, whichever is more. So short reads
    /// become long ones for a reader who goes on, and little is read in vain for one who does not.
    fn window(&self, len_blocks: u64) -> u64 {
        // A power of two, so that chunks go on beginning where stripes do.
        let trusted = self.asked_blocks.checked_ilog2().map_or(0, |exponent| 1 << exponent);
        trusted.max(len_blocks.saturating_mul(AHEAD_CHUNKS)).clamp(AHEAD_BLOCKS_MIN, AHEAD_BLOCKS_MAX)
    }

    /// What to read now, so that a window is ahead of the reader; `room_blocks` at most.
    fn reach(&mut self, len_blocks: u64, mut room_blocks: u64) -> Vec<Rc<Chunk>> {
        let window = self.window(len_blocks);
        let chunk_blocks = window / AHEAD_CHUNKS;
        let mut wanted = Vec::new();
        while self.ahead + chunk_blocks <= self.next + window && room_blocks >= chunk_blocks {
            let chunk = Chunk::new(self.ahead, chunk_blocks);
            self.chunks.push_back(Rc::clone(&chunk));
            wanted.push(chunk);
            self.ahead += chunk_blocks;
            room_blocks -= chunk_blocks;
        }
        wanted
    }
}

/// What a read finds.
#[derive(Default)]
pub(crate) struct Arrival {
    /// Have some of its blocks, or will have soon.
    pub held: Vec<Rc<Chunk>>,
    /// To be read now: each is to be given to [`ReadAhead::begin`].
    pub wanted: Vec<Rc<Chunk>>,
}

#[derive(Default)]
struct Streams {
    streams: Vec<Stream>,
    /// Where reads have ended of which nobody knows yet whether they go on.
    ends: VecDeque<(ObjectId, u64)>,
    arrivals: u64,
}

/// Sequential readers of a volume.
#[derive(Default)]
pub(crate) struct ReadAhead {
    streams: RefCell<Streams>,
    /// Wanted chunks that have not been filled.
    in_flight: Cell<usize>,
    landed: Notify,
    stopped: Cell<bool>,
}

/// The promise to fill a chunk. Dropped unfilled it leaves the chunk empty, and readers fetch for themselves.
pub(crate) struct Filling<'a> {
    ahead: &'a ReadAhead,
    chunk: Rc<Chunk>,
}

impl Filling<'_> {
    pub fn fill(self, runs: Vec<HeldRun>) {
        self.chunk.fill(runs);
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        if self.chunk.runs.borrow().is_none() {
            self.chunk.fill(Vec::new());
        }
        self.ahead.in_flight.set(self.ahead.in_flight.get() - 1);
        self.ahead.landed.notify_all();
    }
}

impl ReadAhead {
    /// A read of these blocks has come.
    pub fn arrive(&self, object: ObjectId, start: LogicalBlock, len_blocks: u64) -> Arrival {
        if self.stopped.get() || len_blocks == 0 {
            return Arrival::default();
        }
        let (start, end) = (start.0, start.0.saturating_add(len_blocks));
        let mut streams = self.streams.borrow_mut();
        let Streams { streams, ends, arrivals } = &mut *streams;
        *arrivals += 1;
        let held_blocks: u64 = streams.iter().map(Stream::held_blocks).sum();
        let index = match streams.iter().position(|stream| stream.expects(object, start)) {
            Some(index) => index,
            None => {
                let Some(known) = ends.iter().position(|known| *known == (object, start)) else {
                    if ends.len() == 2 * AHEAD_STREAMS_MAX {
                        ends.pop_front();
                    }
                    ends.push_back((object, end));
                    return Arrival::default();
                };
                ends.remove(known);
                if streams.len() == AHEAD_STREAMS_MAX
                    && let Some(oldest) = (0..streams.len()).min_by_key(|index| streams[*index].last_arrival)
                {
                    streams.swap_remove(oldest);
                }
                let chunks = VecDeque::new();
                streams.push(Stream {
                    object,
                    next: end,
                    ahead: end,
                    asked_blocks: 0,
                    chunks,
                    last_arrival: 0,
                    idle: 0,
                });
                streams.len() - 1
            }
        };
        let stream = &mut streams[index];
        (stream.last_arrival, stream.idle) = (*arrivals, 0);
        let held = stream.arrive(start, end);
        let room_blocks = AHEAD_BLOCKS_TOTAL_MAX.saturating_sub(held_blocks);
        let wanted = stream.reach(len_blocks, room_blocks);
        self.in_flight.set(self.in_flight.get() + wanted.len());
        Arrival { held, wanted }
    }

    /// Takes a wanted chunk in hand.
    pub fn begin(&self, chunk: Rc<Chunk>) -> Filling<'_> {
        Filling { ahead: self, chunk }
    }

    /// Forgets streams that have not been heard of for a while. Called once in a commit interval.
    pub fn age(&self) {
        self.streams.borrow_mut().streams.retain_mut(|stream| {
            stream.idle += 1;
            stream.idle <= 2
        });
    }

    /// Forgets everything, and returns when nothing is being read ahead any more.
    pub async fn stop(&self) {
        self.stopped.set(true);
        self.streams.replace(Streams::default());
        while self.in_flight.get() > 0 {
            self.landed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: ObjectId = ObjectId(7);
    const MIB: u64 = 256;

    fn arrive(ahead: &ReadAhead, start: u64, len_blocks: u64) -> Arrival {
        ahead.arrive(OBJECT, LogicalBlock(start), len_blocks)
    }

    fn ranges(chunks: &[Rc<Chunk>]) -> Vec<(u64, u64)> {
        chunks.iter().map(|chunk| (chunk.start.0, chunk.len_blocks)).collect()
    }

    #[test]
    fn the_second_read_in_sequence_makes_a_stream_that_stays_a_window_ahead() {
        let ahead = ReadAhead::default();
        assert!(arrive(&ahead, 0, MIB).wanted.is_empty());
        let second = arrive(&ahead, MIB, MIB);
        assert!(second.held.is_empty());
        assert_eq!(ranges(&second.wanted), [2, 3, 4, 5].map(|at| (at * MIB, MIB)));
        let third = arrive(&ahead, 2 * MIB, MIB);
        assert_eq!(ranges(&third.held), [(2 * MIB, MIB)]);
        assert_eq!(ranges(&third.wanted), [(6 * MIB, MIB)]);
        // Another object, and another place.
        assert!(ahead.arrive(ObjectId(8), LogicalBlock(3 * MIB), MIB).held.is_empty());
        assert!(arrive(&ahead, 100 * MIB, MIB).wanted.is_empty());
    }

    #[test]
    fn short_reads_are_gathered_into_longer_ones_ahead_and_more_so_the_longer_they_go_on() {
        let ahead = ReadAhead::default();
        arrive(&ahead, 0, 1);
        let mut wanted = ranges(&arrive(&ahead, 1, 1).wanted);
        for at in 2..8000 {
            let arrival = arrive(&ahead, at, 1);
            assert_eq!(arrival.held.len(), 1, "block {at}");
            wanted.extend(ranges(&arrival.wanted));
        }
        let (mut expected, mut longest) = (2, AHEAD_BLOCKS_MIN / AHEAD_CHUNKS);
        for (start, len_blocks) in wanted {
            assert_eq!(start, expected);
            // Never further ahead than what has been read, but for the least.
            assert!(len_blocks >= longest && len_blocks * AHEAD_CHUNKS <= start.max(AHEAD_BLOCKS_MIN));
            (expected, longest) = (start + len_blocks, len_blocks);
        }
        assert_eq!(longest, AHEAD_BLOCKS_MAX / AHEAD_CHUNKS);
        assert!((8000..=8000 + AHEAD_BLOCKS_MAX).contains(&expected));
    }

    #[test]
    fn readers_that_overtake_each_other_are_one_stream() {
        let ahead = ReadAhead::default();
        arrive(&ahead, 0, 32);
        arrive(&ahead, 32, 32);
        let late = arrive(&ahead, 128, 32);
        let early = arrive(&ahead, 64, 32);
        assert_eq!((late.held.len(), early.held.len()), (1, 1));
        assert_eq!(ahead.streams.borrow().streams.len(), 1);
    }

    #[test]
    fn what_is_held_has_a_bound_and_idle_streams_are_forgotten() {
        let ahead = ReadAhead::default();
        for at in 0..3 {
            for object in 0..40 {
                ahead.arrive(ObjectId(object % 12), LogicalBlock(at * MIB), MIB);
            }
        }
        let held = || ahead.streams.borrow().streams.iter().map(Stream::held_blocks).sum::<u64>();
        assert!(held() > 0 && held() <= AHEAD_BLOCKS_TOTAL_MAX);
        assert!(ahead.streams.borrow().streams.len() <= AHEAD_STREAMS_MAX);
        assert!(ahead.streams.borrow().ends.len() <= 2 * AHEAD_STREAMS_MAX);
        (0..3).for_each(|_| ahead.age());
        assert_eq!(held(), 0);
    }

    #[test]
    fn blocks_are_found_by_middle_address_and_nothing_else() {
        let chunk = Chunk::new(0, 8);
        let data = Slice::copy_of(&[1; 3 * BLOCK_BYTES]);
        let ahead = ReadAhead { in_flight: Cell::new(1), ..ReadAhead::default() };
        ahead.begin(Rc::clone(&chunk)).fill(vec![
            HeldRun { middle: MiddleAddress(100), data: data.clone() },
            HeldRun { middle: MiddleAddress(50), data: data.slice(0..BLOCK_BYTES) },
        ]);
        let len = |middle, len_blocks| chunk.find(MiddleAddress(middle), len_blocks).map(|data| data.len());
        assert_eq!(len(100, 2), Some(2 * BLOCK_BYTES));
        assert_eq!(len(101, 9), Some(2 * BLOCK_BYTES));
        assert_eq!(len(50, 9), Some(BLOCK_BYTES));
        assert_eq!([len(49, 1), len(51, 1), len(99, 1), len(103, 1)], [None; 4]);
        assert_eq!(ahead.in_flight.get(), 0);
    }

    #[test]
    fn a_reading_that_fails_leaves_the_chunk_empty_instead_of_pending() {
        let ahead = ReadAhead { in_flight: Cell::new(1), ..ReadAhead::default() };
        let chunk = Chunk::new(0, 8);
        drop(ahead.begin(Rc::clone(&chunk)));
        assert!(chunk.runs.borrow().is_some());
        assert!(chunk.find(MiddleAddress(0), 1).is_none());
        assert_eq!(ahead.in_flight.get(), 0);
    }
}
