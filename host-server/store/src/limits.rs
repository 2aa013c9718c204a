//! Bounds, each with its reason.

use std::time::Duration;

const BLOCK_BYTES: u64 = ringfort_engine::buffer::BLOCK_BYTES as u64;

/// Stripes of a bank: enough that parity and device requests are large, little enough that a bank is written within
/// milliseconds and pins little of the log.
pub const BANK_STRIPES: u32 = 32;

/// Banks that may wait for their stripes to be written before new writes wait: bounds memory.
pub const BANKS_WAITING_MAX: usize = 4;

/// A commit is one record; what waits for it is bounded by this part of the log, so that a commit always fits.
pub const PENDING_LOG_PART: u64 = 8;

/// And by this many blocks, so that a commit's transfer stays short.
pub const PENDING_BLOCKS_MAX: u64 = 4096;

/// A checkpoint starts when this part of the log is in use (numerator of a quarter).
pub const CHECKPOINT_AT_QUARTERS: u64 = 2;

/// Log in use, applied, promised and needed to name stripes may be so many eighths of it; the rest is for what records
/// lose to rounding.
pub const LOG_EIGHTHS_MAX: u64 = 7;

/// A checkpoint is asked for on behalf of a waiting transaction while more of the log than this is in use. A checkpoint
/// leaves about a quarter, so waiting ends.
pub const RELIEVE_AT_EIGHTHS: u64 = 3;

/// What a single transaction may ask of the log counts up to this part, so that one that has waited for all others fits in
/// beside what a checkpoint leaves. Larger ones rely on commits that write stripes instead of logging.
pub const ASK_LOG_PART: u64 = 4;

/// Entries of a transaction are refused when even short ones would overrun that part.
pub const ENTRY_BYTES_TYPICAL: u64 = 256;

/// An entry without a value.
pub const ENTRY_BYTES_SHORT: u64 = 32;

/// This part of the page area is kept free beyond what the largest transaction that gives space back touches: for pages that
/// removals divide.
pub const PAGE_RESERVE_PART: usize = 16;

/// A transaction for which space is short waits for so many checkpoints more while others give space back, and is then refused.
pub const HOPEFUL_CHECKPOINTS_MAX: u32 = 64;

/// Where space would do but for promises to others, a transaction waits so long without anybody's progress before it is refused:
/// promises are kept or given back soon, unless whoever holds one waits for this very transaction.
pub const PROMISES_WAIT: Duration = Duration::from_secs(5);

/// Areas of the memory file: one for each bank that may be in memory at a time, and some whose blocks readers still hold.
pub const KEEP_AREAS: u32 = BANKS_WAITING_MAX as u32 + 4;

/// A half of the memory file holds the entries of what may wait for a commit, and one large transaction more.
pub const KEEP_HALF_BYTES: usize = 4 << 20;

/// The shortest log that leaves every reserve a useful size.
pub const LOG_BYTES_MIN: u64 = 1 << 20;

/// Default log of a large volume: half of it, which is what a crash leaves to replay at most times, takes well under a second.
pub const LOG_BYTES_DEFAULT_MAX: u64 = 512 << 20;

/// Items in memory become tables when they take this much, which writes tables of some MiB,
pub const MEMORY_TABLE_BYTES_MAX: usize = 32 << 20;

/// and not before they take this much, whatever the settings.
pub const MEMORY_TABLE_BYTES_MIN: usize = 256 << 10;

/// Leaves of a table in the smallest metadata region: fewer would make many tables.
pub const MERGE_TABLE_LEAVES_MIN: usize = 4;

/// What is not synced is synced within this time.
pub const COMMIT_INTERVAL_DEFAULT: Duration = Duration::from_millis(1000);

/// Data that a segment aims to hold: large, so that it is written and freed in long runs.
pub const SEGMENT_DATA_BYTES_MAX: u64 = 64 << 20;

/// A volume has at least this many segments, so that freeing one gives back a small part only.
pub const SEGMENTS_MIN: u64 = 16;

/// As many as this where segments of a bank's length allow: what is open or free is lost to dead blocks, of which cleaning would find more.
pub const SEGMENTS_AIM: u64 = 512;

/// Segments beyond the volume's size: room for open segments and padding, so that the stated size can be used.
pub const SPARE_SEGMENTS: u64 = 4;

/// Middle addresses promised ahead by each root.
pub const MIDDLE_RESERVE: u64 = 1 << 36;

/// Default bound of the memory that maps may take: what was changed lately and pages that were read.
pub const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;

/// Who reads in sequence has so many requests' worth read ahead: enough that devices always have work while one is consumed.
pub const AHEAD_CHUNKS: u64 = 4;

/// At least this much ahead, so that short reads become long ones on the devices.
pub const AHEAD_BLOCKS_MIN: u64 = (512 << 10) / BLOCK_BYTES;

/// And at most this much: more would only take memory.
pub const AHEAD_BLOCKS_MAX: u64 = (4 << 20) / BLOCK_BYTES;

/// The longest read whose blocks are kept for those who read them again: longer ones go through files, and would displace what is wanted.
pub const CACHED_READ_BLOCKS_MAX: u64 = (64 << 10) / BLOCK_BYTES;

/// Memory for blocks that were read lately, unless a setting says otherwise.
pub const DATA_CACHE_BYTES_DEFAULT: u64 = 32 << 20;

/// Of all sequential readers of a volume together: bounds memory.
pub const AHEAD_BLOCKS_TOTAL_MAX: u64 = (16 << 20) / BLOCK_BYTES;

/// Sequential readers that are told apart.
pub const AHEAD_STREAMS_MAX: usize = 8;

/// A guest has several requests in flight, which overtake each other by so much.
pub const AHEAD_SLACK_BLOCKS: u64 = (1 << 20) / BLOCK_BYTES;

/// Page area beyond two copies of the largest maps: what the smallest volume needs for its filesystem and for the reserves.
pub const PAGE_AREA_SPARE_BYTES: u64 = 4 << 20;

/// Of the segments beyond those that live data fills, this part is cleaned for one checkpoint. What waits for one is free or empty,
/// and so not full of dead blocks: with a larger part more blocks move for each that is written, with a smaller one more pages.
pub const CLEANING_BATCH_PART: u32 = 24;

/// Segments cleaned for one checkpoint, at most: space returns in bounded time.
pub const CLEANING_BATCH_MAX: u32 = 32;

/// Live blocks that are read and written in one step: long requests, and short enough that others need not wait long.
pub const CLEANING_STEP_BLOCKS: usize = (1 << 20) / BLOCK_BYTES as usize;

/// The longest read of the cleaner.
pub const CLEANING_READ_BLOCKS: u64 = (1 << 20) / BLOCK_BYTES;

/// So many dead blocks between live ones are read along.
pub const CLEANING_GAP_BLOCKS: u64 = (32 << 10) / BLOCK_BYTES;

/// While there is time, the cleaner rests up to so many times as long as a step took,
pub const CLEANING_REST_TIMES: u32 = 4;

/// Between two looks at segments that would give space and are in use.
pub const BUSY_SEGMENTS_REST: Duration = Duration::from_millis(2);

/// Segments in use for longer than this are not waited for: a write that cannot succeed must be told so soon. Reads take less, and
/// whoever still writes to one may wait for the same space.
pub const BUSY_SEGMENTS_WAIT: Duration = Duration::from_secs(1);

/// and at most this long.
pub const CLEANING_REST_MAX: Duration = Duration::from_millis(100);

/// After so many commit intervals without a change a volume counts as quiet.
pub const IDLE_INTERVALS: u32 = 2;

/// Bits for each block by which recent writes are remembered, in each of two filters: one in six of the others is mistaken for recent.
pub const HEAT_BITS_PER_BLOCK: u64 = 4;

/// 8 MiB for each filter: beyond, less far back is remembered.
pub const HEAT_BITS_MAX: u64 = 64 << 20;
