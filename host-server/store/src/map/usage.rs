//! The usage table: live blocks of each segment. Segments without any are absent.

use std::ops::ControlFlow;

use super::tree;
use crate::address::SegmentId;
use crate::format::map::{decode_counter, encode_counter};
use crate::kv::KeyValue;
use crate::volume::{Key, TreeId};

fn key(segment: SegmentId) -> Key {
    Key::new(u64::from(segment.0), 0)
}

/// Adds to a counter; one that becomes zero goes. Returns the new count. A value that is no counter counts as zero.
pub(super) fn add(kv: &mut KeyValue, tree: TreeId, key: Key, delta: i64) -> i64 {
    let count = kv.get(tree, key).and_then(decode_counter).unwrap_or(0).saturating_add(delta);
    if count == 0 {
        kv.delete(tree, key);
    } else {
        kv.put(tree, key, &encode_counter(count));
    }
    count
}

pub(super) fn add_to_segment(kv: &mut KeyValue, segment: SegmentId, delta: i64) -> i64 {
    add(kv, tree::USAGE, key(segment), delta)
}

/// Live blocks of a segment, as far as effects have merged.
pub(super) fn live_blocks(kv: &KeyValue, segment: SegmentId) -> u64 {
    let count = kv.get(tree::USAGE, key(segment)).and_then(decode_counter).unwrap_or(0);
    u64::try_from(count).unwrap_or(0)
}

/// Calls `visit` with every segment that has live blocks, in order.
pub(super) fn visit_segments(kv: &KeyValue, mut visit: impl FnMut(SegmentId, u64)) {
    kv.visit(tree::USAGE, Key::MIN, Key::MAX, |key, value| {
        let count = decode_counter(value).and_then(|count| u64::try_from(count).ok());
        visit(SegmentId(key.hi as u32), count.unwrap_or(0));
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
