//! Which segments are cleaned: those for which waiting would save the least.
//!
//! A segment of which u lives costs u / (1 − u) moved blocks for each that it gives back. While it waits, its blocks die at some rate, and the
//! price falls by rate · u / (1 − u)² (Lomet and Luo, "Efficiently Reclaiming Space in a Log Structured Store", 2021: minimum declining
//! cost). The rate follows from what has died since the segment was filled: u = exp(−rate · age). Where all blocks are written equally often
//! this takes the emptiest, as is best there; where they are not, it leaves to hot segments the time to empty themselves. Cost and
//! benefit as in Rosenblum and Ousterhout's log-structured file system is the same idea without the rate; `simulation` compares.

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

/// The greater, the less it would save to wait. `age` is that of the segment; some of it lives, and some does not.
pub fn benefit(live_blocks: u64, segment_blocks: u64, age: u64) -> f64 {
    let used = live_blocks as f64 / segment_blocks as f64;
    let rate = -used.ln() / (age + 1) as f64;
    (1.0 - used).powi(2) / (used * rate)
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
    /// Would give space, but somebody reads them or is writing to them just now.
    pub busy: u32,
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
                look.busy += u32::from(live_blocks + dead_blocks_min <= segment_blocks);
            } else if live_blocks == 0 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn among_equals_the_emptier_segment_and_the_slower_one_come_first() {
        // Blocks that die at one rate, looked at after some time.
        let at_one_rate: Vec<f64> = [10_u64, 20, 40, 80]
            .map(|age| benefit((1000.0 * (-0.02 * age as f64).exp()) as u64, 1000, age))
            .to_vec();
        assert!(at_one_rate.is_sorted(), "{at_one_rate:?}");
        assert!(benefit(500, 1000, 100) > benefit(500, 1000, 10), "hot segments are given time");
        assert!(benefit(1, 1000, 0).is_finite() && benefit(999, 1000, 1 << 40).is_finite());
    }

    #[test]
    fn those_in_need_clean_for_less() {
        let least = |activity, was_asked| dead_blocks_min(activity, was_asked, 1024, 32);
        assert_eq!(least(Activity::Urgent, true), 33);
        assert_eq!(least(Activity::Urgent, false), 64);
        assert_eq!(least(Activity::Tidying, false), 512);
        assert_eq!(dead_blocks_min(Activity::Urgent, false, 128, 32), 33, "padding must not eat the gain");
    }
}
