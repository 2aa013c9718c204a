//! Two-level maps: block of an object → middle address → physical block and checksum.
//!
//! [`Maps`] takes blind [`Message`]s. A message merges with what it meets in its own tree at once, so that reads have
//! nothing to fold; what it causes in other trees waits in a queue until a checkpoint merges it in slices
//! ([`Maps::merge_pending`]):
//!
//! * overwriting, unmapping or shifting onto blocks of an object → death of the middle addresses they were mapped to,
//! * birth, move and death of a middle address → live blocks of the segments concerned.
//!
//! A snapshot has merged every effect of the messages before it, so that log and maps together lose and repeat none.
//! The store's own trees are in [`tree`].

mod logical;
mod message;
mod middle;
#[cfg(test)]
mod tests;
mod usage;

use std::rc::Rc;

pub use message::Message;
pub use middle::{Fate, MiddlePiece};

use crate::address::BlockChecksum;
use crate::address::{LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock, SegmentId, VolumeId};
use crate::error::{ErrorKind, StoreError};
use crate::format::page::{PAGE_CAPACITY_BYTES, Roots};
use crate::kv::{KeyValue, PageAllocator, PageStore, Snapshot};
use crate::volume::{Extent, Key, TreeId, VALUE_BYTES_MAX};
use logical::LogicalPiece;
use message::Pending;

/// The store's own trees.
pub mod tree {
    use crate::address::{SegmentId, StripeIndex};
    use crate::volume::{Key, TreeId};

    /// Object, block → middle address.
    pub const LOGICAL: TreeId = TreeId(1);
    /// Middle address → physical block, checksums.
    pub const MIDDLE: TreeId = TreeId(2);
    /// Segment → live blocks.
    pub const USAGE: TreeId = TreeId(3);
    /// Segment, stripe → checksum and middle address of every block; the segment's owner lays the value out.
    pub const SUMMARY: TreeId = TreeId(4);
    /// Properties of the store.
    pub const PROPERTIES: TreeId = TreeId(5);

    /// The key of a stripe in [`SUMMARY`]. Those of one segment lie together: the range of the segment ends before
    /// the next one's stripe 0.
    pub fn summary_key(segment: SegmentId, stripe: StripeIndex) -> Key {
        Key::new(u64::from(segment.0), u64::from(stripe.0))
    }
}

/// A piece of an object, as [`Maps::lookup`] finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedPiece {
    pub start: LogicalBlock,
    pub len_blocks: u64,
    pub content: Content,
}

/// What a piece of an object holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Hole,
    /// Stored on consecutive physical blocks.
    Data {
        middle: MiddleAddress,
        physical: PhysicalBlock,
        checksums: Vec<BlockChecksum>,
    },
    /// Mapped, but not born: the contents are in a bank.
    Unborn {
        middle: MiddleAddress,
    },
}

/// The maps and all other trees of a volume.
pub struct Maps {
    kv: KeyValue,
    pending: Pending,
    /// Data blocks of a segment.
    segment_blocks: u64,
    /// Segments whose last live block died since the last snapshot.
    emptied: Vec<SegmentId>,
}

impl Maps {
    /// Empty maps. `segment_blocks`: how many data blocks a segment holds.
    pub fn new(volume: VolumeId, allocator: Rc<PageAllocator>, segment_blocks: u64) -> Self {
        Self::over(KeyValue::new(volume, allocator), segment_blocks)
    }

    fn over(kv: KeyValue, segment_blocks: u64) -> Self {
        assert!(segment_blocks > 0);
        Self { kv, pending: Pending::default(), segment_blocks, emptied: Vec::new() }
    }

    /// Reads what the checkpoint behind `roots` left, and verifies every page and every entry of the maps.
    pub async fn load(
        volume: VolumeId,
        roots: &Roots,
        store: &impl PageStore,
        allocator: Rc<PageAllocator>,
        segment_blocks: u64,
    ) -> Result<Self, StoreError> {
        let kv = KeyValue::load(volume, roots, store, allocator).await?;
        logical::check(&kv).and_then(|()| middle::check(&kv)).and_then(|()| usage::check(&kv)).map_err(
            |found| {
                StoreError::new(ErrorKind::Damaged, "load", "maps", found)
                    .advice("run `ringfort volume check`")
            },
        )?;
        Ok(Self::over(kv, segment_blocks))
    }

    /// Merges a message. Reads see it from now on; effects on other trees wait for [`Maps::merge_pending`].
    pub fn apply(&mut self, message: Message) {
        let Self { kv, pending, segment_blocks, .. } = self;
        let segment_blocks = *segment_blocks;
        match message {
            Message::Put { tree, key, value } => {
                assert_not_a_map(tree);
                kv.put(tree, key, &value);
            }
            Message::Delete { tree, key } => {
                assert_not_a_map(tree);
                kv.delete(tree, key);
            }
            Message::DeleteRange { tree, from, to } => {
                assert_not_a_map(tree);
                kv.delete_range(tree, from, to);
            }
            Message::Add { tree, key, delta } => {
                assert_not_a_map(tree);
                usage::add(kv, tree, key, delta);
            }
            Message::MapRun { object, start, len_blocks, middle } => {
                let mut displaced = |middle, len_blocks| pending.push_death(middle, len_blocks);
                logical::map_run(kv, object, start, len_blocks, middle, &mut displaced);
            }
            Message::UnmapRun { object, start, len_blocks } => {
                let mut displaced = |middle, len_blocks| pending.push_death(middle, len_blocks);
                logical::unmap(kv, object, start, len_blocks, &mut displaced);
            }
            Message::ShiftRun { object, from, to, len_blocks } => {
                let mut displaced = |middle, len_blocks| pending.push_death(middle, len_blocks);
                logical::shift(kv, object, from, to, len_blocks, &mut displaced);
            }
            Message::Birth { middle, physical, checksums } => {
                let mut born = |physical, len| pending.push_usage(physical, len, 1, segment_blocks);
                middle::birth(kv, middle, physical, &checksums, &mut born);
            }
            Message::Move { middle, len_blocks, from, to } => {
                let mut moved = |old, new, len| {
                    pending.push_usage(old, len, -1, segment_blocks);
                    pending.push_usage(new, len, 1, segment_blocks);
                };
                middle::relocate(kv, middle, len_blocks, from, to, &mut moved);
            }
            Message::Death { middle, len_blocks } => pending.push_death(middle, len_blocks),
            Message::Forget { middle, len_blocks } => middle::forget(kv, middle, len_blocks),
        }
    }

    /// Merges up to `budget` waiting effects, and returns whether more wait. A checkpoint calls this, yielding in
    /// between, until little is left; [`Maps::snapshot`] merges the rest.
    pub fn merge_pending(&mut self, budget: usize) -> bool {
        let Self { kv, pending, segment_blocks, emptied } = self;
        for _ in 0..budget {
            if let Some((middle, len_blocks)) = pending.pop_death() {
                let mut freed = Vec::new();
                middle::death(kv, middle, len_blocks, &mut |physical, len| freed.push((physical, len)));
                for (physical, len) in freed {
                    pending.push_usage(physical, len, -1, *segment_blocks);
                }
            } else if let Some((segment, delta)) = pending.pop_usage() {
                if delta != 0 && usage::add_to_segment(kv, segment, delta) == 0 {
                    emptied.push(segment);
                }
            } else {
                return false;
            }
        }
        pending.len() > 0
    }

    /// Merges what still waits and takes all trees as they are: the state of the messages applied so far.
    pub fn snapshot(&mut self) -> Snapshot {
        while self.merge_pending(usize::MAX) {}
        self.kv.snapshot()
    }

    /// Segments whose live count has fallen to zero since this was last asked, and is zero still. Their space may be
    /// reused when the checkpoint taken after the question is durable and their summaries have been compared.
    pub fn take_emptied(&mut self) -> Vec<SegmentId> {
        let mut emptied = std::mem::take(&mut self.emptied);
        emptied.sort_unstable();
        emptied.dedup();
        emptied.retain(|segment| usage::live_blocks(&self.kv, *segment) == 0);
        emptied
    }

    /// The roots of the snapshot of this generation are durable on every live mirror.
    pub fn settle(&mut self, generation: u64) {
        self.kv.settle(generation);
    }

    pub fn get(&self, tree: TreeId, key: Key) -> Option<&[u8]> {
        self.kv.get(tree, key)
    }

    /// The first `limit` entries with `from <= key <= to`, in key order.
    pub fn scan(&self, tree: TreeId, from: Key, to: Key, limit: usize) -> Vec<(Key, Vec<u8>)> {
        self.kv.scan(tree, from, to, limit)
    }

    /// What a range of an object holds: pieces in order that cover it exactly.
    pub fn lookup(&self, object: ObjectId, start: LogicalBlock, len_blocks: u64) -> Vec<MappedPiece> {
        let mut pieces = Vec::new();
        for logical in logical::lookup(&self.kv, object, start, len_blocks) {
            let Some(middle) = logical.middle else {
                let LogicalPiece { start, len_blocks, .. } = logical;
                pieces.push(MappedPiece { start, len_blocks, content: Content::Hole });
                continue;
            };
            for piece in middle::resolve(&self.kv, middle, logical.len_blocks) {
                let start = LogicalBlock(logical.start.0 + (piece.middle.0 - middle.0));
                let content = match piece.fate {
                    Fate::Stored { physical, checksums } => {
                        Content::Data { middle: piece.middle, physical, checksums }
                    }
                    // What an object maps does not die; a bank that has nothing under this address says so.
                    Fate::Unborn | Fate::Dead => Content::Unborn { middle: piece.middle },
                };
                pieces.push(MappedPiece { start, len_blocks: piece.len_blocks, content });
            }
        }
        pieces
    }

    /// The first run of an object that ends after `from`, cut to begin at or after it.
    pub fn next_extent(&self, object: ObjectId, from: LogicalBlock) -> Option<Extent> {
        logical::next_extent(&self.kv, object, from)
    }

    /// What has become of a range of middle addresses: pieces in order that cover it exactly.
    pub fn resolve(&self, middle: MiddleAddress, len_blocks: u64) -> Vec<MiddlePiece> {
        middle::resolve(&self.kv, middle, len_blocks)
    }

    /// Live blocks of a segment, as far as effects have merged.
    pub fn live_blocks(&self, segment: SegmentId) -> u64 {
        usage::live_blocks(&self.kv, segment)
    }

    /// Live blocks of the volume, with what waits to merge taken into account.
    pub fn live_blocks_in_all(&self) -> u64 {
        let mut merged = 0;
        self.visit_segments(|_, live_blocks| merged += live_blocks);
        merged.saturating_add_signed(self.pending.usage_blocks()).saturating_sub(self.pending.death_blocks())
    }

    /// Calls `visit` with every segment that has live blocks, in order.
    pub fn visit_segments(&self, visit: impl FnMut(SegmentId, u64)) {
        usage::visit_segments(&self.kv, visit);
    }

    /// Calls `visit` with every stored run of middle addresses, in order.
    pub fn visit_stored(&self, visit: impl FnMut(MiddleAddress, PhysicalBlock, u64)) {
        middle::visit_stored(&self.kv, visit);
    }

    /// Blocks of middle addresses whose death waits in the queue: space that the next checkpoint frees, at most.
    pub fn pending_free_blocks(&self) -> u64 {
        self.pending.death_blocks()
    }

    /// Effects that wait.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Entries of a tree.
    pub fn entry_count(&self, tree: TreeId) -> u64 {
        self.kv.entry_count(tree)
    }

    /// Memory of all pages, those included that only snapshots hold.
    pub fn memory_bytes(&self) -> usize {
        self.kv.memory_bytes()
    }

    /// Pages of the trees as they are now.
    pub fn page_count(&self) -> usize {
        self.kv.page_count()
    }

    /// Free pages that a checkpoint needs which begins now, at most; effects that wait included. Compare with
    /// [`PageAllocator::free_count`].
    pub fn checkpoint_page_bound(&self) -> usize {
        // A death takes a run apart and changes a count.
        let effects = self.pending.len().saturating_mul(3);
        self.kv.dirty_page_bound() + self.kv.page_bound_of_removals(effects, EFFECT_BYTES)
    }

    /// Free pages more that the checkpoint needs after `changes`.
    pub fn page_bound_of(&self, changes: &Changes) -> usize {
        let removals = changes.short_entries.saturating_add(changes.data_blocks.saturating_mul(2));
        let summaries = changes.stripes.saturating_mul(changes.summary_bytes_max + 32);
        self.kv.page_bound_of_changes(changes.long_entries as usize, VALUE_BYTES_MAX)
            + self.kv.page_bound_of_removals(removals as usize, EFFECT_BYTES)
            + self.kv.page_bound_of_runs(changes.stripe_runs as usize, summaries as usize)
    }

    pub fn allocator(&self) -> &Rc<PageAllocator> {
        self.kv.allocator()
    }
}

/// What transactions may do to the trees, at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Entries with values of any length.
    pub long_entries: u64,
    /// Entries removed, and blocks unmapped.
    pub short_entries: u64,
    /// Blocks written: each is born, and displaces one that dies.
    pub data_blocks: u64,
    /// Stripes that get a summary, and how many runs of neighbours they form.
    pub stripes: u64,
    pub stripe_runs: u64,
    pub summary_bytes_max: u64,
}

/// What birth or death of a block can add to a page: a run cut in two.
const EFFECT_BYTES: usize = 64;

/// Pages of the maps of `data_blocks` live blocks, each a run of its own, in leaves that are half full: what random
/// single-block writes lead to. The metadata region and the memory setting are sized by it; the running store refuses
/// by [`Maps::page_bound_of`].
pub fn worst_case_pages(data_blocks: u64) -> u64 {
    /// Slots and values of the logical and of the middle map.
    const BLOCK_BYTES_IN_MAPS: u64 = (20 + 16) + (20 + 16 + 4);
    let leaves = data_blocks.saturating_mul(BLOCK_BYTES_IN_MAPS).div_ceil(PAGE_CAPACITY_BYTES as u64 / 2);
    // Inner pages, half full as well, and one root a tree.
    leaves + leaves.div_ceil(200) + tree::PROPERTIES.0 as u64
}

/// The maps change by their own messages alone: a bare put would displace blocks that then never die.
fn assert_not_a_map(tree: TreeId) {
    assert!(
        ![tree::LOGICAL, tree::MIDDLE, tree::USAGE].contains(&tree),
        "bare change of map {} of the store",
        tree.0
    );
}
