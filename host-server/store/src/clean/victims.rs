//! Which segments are cleaned: those that give the most for what they cost.
//!
//! Cost and benefit as in Rosenblum and Ousterhout's log-structured file system (1992): (1 − u) · age / (1 + u), u being the part of the
//! segment that lives. Age is that of the segment, counted in segments of fresh data: with that of its youngest data instead, cold
//! segments of an evenly written volume are taken too early. `simulation` compares both.

use crate::address::SegmentId;
use crate::core::Core;
use crate::pace::Activity;

/// A segment that may be cleaned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub segment: SegmentId,
    pub live_blocks: u64,
    pub benefit: f64,
}

/// What cleaning a segment gives for what it costs.
pub fn benefit(live_blocks: u64, segment_blocks: u64, age: u64) -> f64 {
    let used = live_blocks as f64 / segment_blocks as f64;
    (1.0 - used) * (age + 1) as f64 / (1.0 + used)
}

/// Dead blocks that a segment must have to be worth it.
pub fn dead_blocks_min(activity: Activity, was_asked: bool, segment_blocks: u64, stripe_blocks: u64) -> u64 {
    let least = match activity {
        // Padding takes less than a stripe.
        _ if was_asked => 0,
        Activity::Tidying => segment_blocks / 2,
        // Whoever is not in need does not rewrite a segment for little.
        _ => segment_blocks / 16,
    };
    least.max(stripe_blocks + 1)
}

/// What a look at all segments has found.
#[derive(Debug, Default)]
pub struct Look {
    /// Hold nothing live: the next checkpoint frees them.
    pub emptied: u32,
    /// The best first.
    pub candidates: Vec<Candidate>,
}

impl Core {
    /// Looks at every closed segment. Counts are hints, and change while this goes on.
    pub async fn look_for_victims(&self, dead_blocks_min: u64) -> Look {
        let closed = self.state().segments.closed();
        let mut look = Look::default();
        for segment in closed {
            let live_blocks = self.live_blocks_of(segment).await;
            let state = self.state();
            let segment_blocks = state.geometry.blocks_per_segment();
            if state.segments.is_pinned(segment) {
                continue;
            }
            if live_blocks == 0 {
                look.emptied += 1;
            } else if live_blocks + dead_blocks_min <= segment_blocks
                && !self.pace.is_unreadable(segment, live_blocks)
            {
                let benefit = benefit(live_blocks, segment_blocks, state.segments.age(segment));
                look.candidates.push(Candidate { segment, live_blocks, benefit });
            }
        }
        look.candidates.sort_by(|a, b| b.benefit.total_cmp(&a.benefit));
        look
    }

    async fn live_blocks_of(&self, segment: SegmentId) -> u64 {
        self.state().maps.live_blocks(segment)
    }
}
