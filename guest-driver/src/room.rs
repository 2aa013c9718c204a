//! Parts of a data area for inputs and outputs that are long.

use ringfort_protocol::command::Area;

/// Parts begin at multiples of it.
const UNIT_BYTES: u32 = 4096;

/// What is free of an area. First fit: there are few parts at a time.
pub struct Room {
    whole: Area,
    /// In order, none beside another.
    free: Vec<Area>,
}

impl Room {
    pub fn new(area: Area) -> Self {
        let start = area.start.next_multiple_of(UNIT_BYTES);
        let end = (area.start + area.len_bytes) / UNIT_BYTES * UNIT_BYTES;
        let whole = Area { start, len_bytes: end.saturating_sub(start) };
        Self { whole, free: vec![whole] }
    }

    /// Of a single part, with nothing else taken.
    pub fn most_bytes(&self) -> usize {
        self.whole.len_bytes as usize
    }

    /// What a part of at least so many bytes takes.
    pub fn rounded(len_bytes: usize) -> usize {
        len_bytes.max(1).next_multiple_of(UNIT_BYTES as usize)
    }

    /// A part of at least so many bytes.
    pub fn take(&mut self, len_bytes: u32) -> Option<Area> {
        let len_bytes = len_bytes.max(1).checked_next_multiple_of(UNIT_BYTES)?;
        let place = self.free.iter().position(|part| part.len_bytes >= len_bytes)?;
        let part = self.free.get_mut(place)?;
        let taken = Area { start: part.start, len_bytes };
        (part.start, part.len_bytes) = (part.start + len_bytes, part.len_bytes - len_bytes);
        if part.len_bytes == 0 {
            self.free.remove(place);
        }
        Some(taken)
    }

    /// Gives back what [`take`](Self::take) gave.
    pub fn give_back(&mut self, area: Area) {
        let place = self.free.partition_point(|part| part.start < area.start);
        self.free.insert(place, area);
        self.free.dedup_by(|next, before| {
            let joins = before.start + before.len_bytes == next.start;
            if joins {
                before.len_bytes += next.len_bytes;
            }
            joins
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test that cannot go on fails

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_never_overlap_and_all_comes_together_again(lengths in prop::collection::vec((1u32..40_000, any::<prop::sample::Index>(), any::<bool>()), 1..60)) {
            let mut room = Room::new(Area { start: 100, len_bytes: 300_000 });
            let whole = room.whole;
            let mut held: Vec<Area> = Vec::new();
            for (len_bytes, which, give) in lengths {
                if give && !held.is_empty() {
                    room.give_back(held.swap_remove(which.index(held.len())));
                } else if let Some(area) = room.take(len_bytes) {
                    prop_assert!(area.len_bytes >= len_bytes && area.start >= whole.start);
                    prop_assert!(area.start + area.len_bytes <= whole.start + whole.len_bytes);
                    for other in &held {
                        prop_assert!(area.start + area.len_bytes <= other.start || other.start + other.len_bytes <= area.start);
                    }
                    held.push(area);
                }
            }
            held.drain(..).for_each(|area| room.give_back(area));
            prop_assert_eq!(&room.free, &vec![whole]);
        }
    }

    #[test]
    fn more_than_there_is_is_not_given() {
        let mut room = Room::new(Area { start: 0, len_bytes: 8192 });
        assert_eq!(room.take(8193), None);
        assert_eq!(room.take(u32::MAX), None);
        let both = (room.take(1).unwrap(), room.take(4096).unwrap());
        assert_eq!((both.0.start, both.1.start, room.take(1)), (0, 4096, None));
    }
}
