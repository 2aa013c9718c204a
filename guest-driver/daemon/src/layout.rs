//! Where rings and their data lie in a region.

use ringfort_protocol::control::message::Place;
use ringfort_protocol::ring::layout::{RING_ALIGN_BYTES, RingLayout};

/// Rings in a region, and how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub places: Vec<Place>,
    pub len_bytes: u64,
}

/// Lays out `ring_count` rings, each with a data area of at least `data_bytes` after it. With `heads` nothing but data areas
/// crosses the begin of a page, and a data area that fits into one page does not. None where it would be longer than offsets reach.
pub fn lay_out(
    ring_count: u32,
    slot_count: u32,
    data_bytes: u32,
    page_bytes: u64,
    heads: bool,
) -> Option<Layout> {
    let ring_bytes = RingLayout::len_bytes(slot_count)?;
    let data_bytes = u64::from(data_bytes).next_multiple_of(RING_ALIGN_BYTES);
    // What a page has behind its head, which takes as much as rings are aligned to.
    let room = page_bytes - RING_ALIGN_BYTES;
    let mut at = 0u64;
    let mut places = Vec::new();
    for _ in 0..ring_count {
        at = if heads { clear_of_heads(at, ring_bytes, page_bytes) } else { at };
        let start = at;
        at += ring_bytes;
        if heads && data_bytes <= room {
            at = clear_of_heads(at, data_bytes, page_bytes);
        }
        let data_start = at;
        // Heads that lie inside do not count.
        let mut left = data_bytes;
        while heads && left > 0 {
            let into = at % page_bytes;
            at += if into == 0 { RING_ALIGN_BYTES } else { 0 };
            let run = left.min(page_bytes - at % page_bytes);
            at += run;
            left -= run;
        }
        at += left;
        places.push(Place {
            start: u32::try_from(start).ok()?.into(),
            slot_count: slot_count.into(),
            data_start: u32::try_from(data_start).ok()?.into(),
            data_bytes: u32::try_from(at - data_start).ok()?.into(),
        });
    }
    let len_bytes = at.next_multiple_of(page_bytes);
    (len_bytes <= 1 << 32).then_some(Layout { places, len_bytes })
}

/// The next place for so many bytes in one page, behind its head.
fn clear_of_heads(at: u64, len_bytes: u64, page_bytes: u64) -> u64 {
    let into = at % page_bytes;
    if into == 0 {
        at + RING_ALIGN_BYTES
    } else if into + len_bytes > page_bytes {
        at.next_multiple_of(page_bytes) + RING_ALIGN_BYTES
    } else {
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUGE: u64 = 2 << 20;

    #[test]
    fn nothing_overlaps_and_heads_stay_free() {
        for (ring_count, slot_count, data_bytes) in
            [(1, 16, 1 << 20), (4, 64, 300 << 10), (3, 4096, 64 << 10), (2, 256, 5 << 20)]
        {
            let layout = lay_out(ring_count, slot_count, data_bytes, HUGE, true).unwrap();
            let mut used = 0;
            for place in &layout.places {
                let (start, data_start) = (u64::from(place.start.get()), u64::from(place.data_start.get()));
                let ring_end = start + RingLayout::len_bytes(slot_count).unwrap();
                assert!(start >= used && data_start >= ring_end && start % 4096 == 0);
                assert!(
                    start % HUGE >= 4096 && (start / HUGE == (ring_end - 1) / HUGE),
                    "a ring lies in one page, behind its head"
                );
                used = data_start + u64::from(place.data_bytes.get());
                let heads = (data_start..used).step_by(4096).filter(|at| at % HUGE == 0).count() as u64;
                assert!(u64::from(place.data_bytes.get()) - heads * 4096 >= u64::from(data_bytes));
                assert!(
                    u64::from(data_bytes) > HUGE - 4096 || heads == 0,
                    "data that fits into a page lies in one"
                );
            }
            assert!(used <= layout.len_bytes && layout.len_bytes.is_multiple_of(HUGE));
        }
    }

    #[test]
    fn small_pages_have_no_heads() {
        let layout = lay_out(2, 16, 8192, 4096, false).unwrap();
        let starts: Vec<u32> = layout.places.iter().map(|place| place.start.get()).collect();
        assert_eq!((starts, layout.len_bytes), (vec![0, 12288], 24576));
        assert_eq!(lay_out(64, 4096, 1 << 30, 4096, false), None);
    }
}
