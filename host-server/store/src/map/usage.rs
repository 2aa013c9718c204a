//! The usage table: live blocks of each segment. Segments without any are absent.

use std::ops::ControlFlow;

use super::tree;
use crate::address::SegmentId;
use crate::format::map::{decode_counter, encode_counter};
use crate::kv::KeyValue;
use crate::volume::Key;

fn key(segment: SegmentId) -> Key {
    Key::new(u64::from(segment.0), 0)
}

/// Adds to a counter; one that becomes zero goes. A value that is no counter counts as zero.
pub(super) fn add_to_segment(kv: &mut KeyValue, segment: SegmentId, delta: i64) {
    let count = counted(kv, segment).saturating_add(delta);
    if count == 0 {
        kv.delete(tree::USAGE, key(segment));
    } else {
        kv.put(tree::USAGE, key(segment), &encode_counter(count));
    }
}

/// Live blocks of a segment, without what memory holds.
pub(super) fn counted(kv: &KeyValue, segment: SegmentId) -> i64 {
    kv.get(tree::USAGE, key(segment)).and_then(decode_counter).unwrap_or(0)
}

/// Calls `visit` with every segment that has a count, in order.
pub(super) fn visit_segments(kv: &KeyValue, mut visit: impl FnMut(SegmentId, i64)) {
    kv.visit(tree::USAGE, Key::MIN, Key::MAX, |key, value| {
        visit(SegmentId(key.hi as u32), decode_counter(value).unwrap_or(0));
        ControlFlow::Continue(())
    });
}

/// What is wrong with the loaded table, if anything.
pub(super) fn check(kv: &KeyValue) -> Result<(), String> {
    let mut fault = None;
    kv.visit(tree::USAGE, Key::MIN, Key::MAX, |key, value| {
        match (u32::try_from(key.hi), key.lo, decode_counter(value)) {
            (Ok(_), 0, Some(1..)) => ControlFlow::Continue(()),
            _ => {
                fault = Some(format!("a count that makes no sense for segment {}", key.hi));
                ControlFlow::Break(())
            }
        }
    });
    fault.map_or(Ok(()), Err)
}
