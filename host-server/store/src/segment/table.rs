//! Which segments are free, open or closed, and how far each is filled.
//!
//! A segment goes free → open → closed → freeing → free. It leaves `freeing` only when the root that no longer
//! names it is durable and nobody pins it: a read in flight, or stripes written but not yet named by a transaction.

use std::cell::RefCell;
use std::rc::Rc;

use super::heat::Heat;
use crate::address::{SegmentId, StripeIndex};

/// What an open segment is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Banks of small writes.
    Bank(Heat),
    /// Large writes, straight as full stripes.
    Large,
    /// Blocks that cleaning moves, apart from fresh ones: what has lived longer will live longer.
    Relocated(Heat),
}

impl Class {
    /// Whether it is for writes, rather than for what cleaning moves.
    fn is_fresh(self) -> bool {
        !matches!(self, Class::Relocated(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    Free,
    Open(Class),
    Closed,
    /// Empty; waits for the root that says so.
    Freeing,
}

#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub state: SegmentState,
    /// Stripes below this one have been handed out.
    pub next_stripe: u32,
    /// The [clock](SegmentTable::age) when it was begun.
    pub begun_at: u64,
    pins: u32,
    /// Changed since the last checkpoint took it down.
    dirty: bool,
}

/// Contiguous stripes of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeRange {
    pub segment: SegmentId,
    pub first: StripeIndex,
    pub count: u32,
}

#[derive(Debug)]
struct Table {
    segments: Vec<Segment>,
    stripes_per_segment: u32,
    free_count: u32,
    /// Free segments that only cleaning takes, so that it can always go on.
    reserve: u32,
    /// Segments that were begun for fresh data.
    clock: u64,
    /// Where the search for a free segment goes on: wear and rotation are spread.
    cursor: u32,
}

impl Table {
    fn stripes_of_free(&self, reserve: u32) -> u64 {
        u64::from(self.free_count.saturating_sub(reserve)) * u64::from(self.stripes_per_segment)
    }

    fn stripes_of_open(&self, wanted: impl Fn(Class) -> bool) -> u64 {
        let left = |segment: &Segment| match segment.state {
            SegmentState::Open(class) if wanted(class) => {
                u64::from(self.stripes_per_segment - segment.next_stripe)
            }
            _ => 0,
        };
        self.segments.iter().map(left).sum()
    }

    /// A segment that is open for such a class.
    fn open(&self, wanted: impl Fn(Class) -> bool) -> Option<usize> {
        self.segments
            .iter()
            .position(|segment| matches!(segment.state, SegmentState::Open(class) if wanted(class)))
    }

    /// Opens a free segment.
    fn begin(&mut self, class: Class) -> Option<usize> {
        let segment_count = self.segments.len();
        let start = self.cursor as usize;
        let index = (0..segment_count)
            .map(|step| (start + step) % segment_count)
            .find(|&index| self.segments[index].state == SegmentState::Free)?;
        self.cursor = ((index + 1) % segment_count) as u32;
        self.free_count -= 1;
        self.clock += u64::from(class.is_fresh());
        let clock = self.clock;
        let segment = &mut self.segments[index];
        segment.state = SegmentState::Open(class);
        segment.next_stripe = 0;
        segment.begun_at = clock;
        Some(index)
    }
}

/// Shared by the owner of the volume and the pins.
#[derive(Clone, Debug)]
pub struct SegmentTable(Rc<RefCell<Table>>);

/// Keeps a segment from being reused while it lives.
#[derive(Debug)]
pub struct SegmentPin {
    table: SegmentTable,
    segment: SegmentId,
}

impl Drop for SegmentPin {
    fn drop(&mut self) {
        self.table.0.borrow_mut().segments[self.segment.0 as usize].pins -= 1;
    }
}

impl SegmentTable {
    /// All free. The last `reserve` free ones are for what cleaning moves.
    pub fn new(segment_count: u32, stripes_per_segment: u32, reserve: u32) -> Self {
        let segment =
            Segment { state: SegmentState::Free, next_stripe: 0, begun_at: 0, pins: 0, dirty: false };
        Self(Rc::new(RefCell::new(Table {
            segments: vec![segment; segment_count as usize],
            stripes_per_segment,
            free_count: segment_count,
            reserve,
            clock: 0,
            cursor: 0,
        })))
    }

    pub fn segment_count(&self) -> u32 {
        self.0.borrow().segments.len() as u32
    }

    pub fn get(&self, segment: SegmentId) -> Segment {
        self.0.borrow().segments[segment.0 as usize]
    }

    /// How many segments were begun for fresh data since this one was: the volume's own clock, which neither load nor restarts
    /// distort.
    pub fn age(&self, segment: SegmentId) -> u64 {
        let table = self.0.borrow();
        table.clock.saturating_sub(table.segments[segment.0 as usize].begun_at)
    }

    pub fn free_count(&self) -> u32 {
        self.0.borrow().free_count
    }

    /// Free segments that only cleaning takes.
    pub fn reserve(&self) -> u32 {
        self.0.borrow().reserve
    }

    /// Takes a segment's state from the devices, at recovery.
    pub fn restore(&self, segment: SegmentId, state: SegmentState, next_stripe: u32, begun_at: u64) {
        let mut table = self.0.borrow_mut();
        table.clock = table.clock.max(begun_at);
        let entry = &mut table.segments[segment.0 as usize];
        let was_free = entry.state == SegmentState::Free;
        entry.state = state;
        entry.next_stripe = next_stripe;
        entry.begun_at = begun_at;
        entry.dirty = true;
        match (was_free, state == SegmentState::Free) {
            (true, false) => table.free_count -= 1,
            (false, true) => table.free_count += 1,
            _ => {}
        }
    }

    /// Stripes up to `end` were handed out before the crash.
    pub fn restore_handed_out(&self, segment: SegmentId, end: u32, class: Class) {
        let entry = self.get(segment);
        let next_stripe = entry.next_stripe.max(end);
        let (full, clock) = {
            let table = self.0.borrow();
            (next_stripe >= table.stripes_per_segment, table.clock)
        };
        let was_free = matches!(entry.state, SegmentState::Free | SegmentState::Freeing);
        let begun_at = if was_free { clock + 1 } else { entry.begun_at };
        let state = match entry.state {
            _ if full => SegmentState::Closed,
            SegmentState::Free | SegmentState::Freeing => SegmentState::Open(class),
            other => other,
        };
        self.restore(segment, state, next_stripe, begun_at);
    }

    /// What is open for banks bears one mark on the devices, what is open for whole stripes another: recovery leaves one segment to each
    /// class and closes others, whose rest returns with the segment.
    pub fn tell_open_apart(&self) {
        let mut banks = [Heat::Warm, Heat::Cold].map(Class::Bank).into_iter();
        let mut whole =
            [Class::Large, Class::Relocated(Heat::Cold), Class::Relocated(Heat::Warm)].into_iter();
        for segment in &mut self.0.borrow_mut().segments {
            let SegmentState::Open(class) = segment.state else { continue };
            let class = if matches!(class, Class::Bank(_)) { banks.next() } else { whole.next() };
            segment.state = class.map_or(SegmentState::Closed, SegmentState::Open);
            segment.dirty = true;
        }
    }

    /// Stripes that can still be handed out, for whatever purpose.
    pub fn unused_stripes(&self) -> u64 {
        let table = self.0.borrow();
        table.stripes_of_free(0) + table.stripes_of_open(|_| true)
    }

    /// Stripes that can still be handed out to writes.
    pub fn available_stripes(&self) -> u64 {
        let table = self.0.borrow();
        table.stripes_of_free(table.reserve) + table.stripes_of_open(Class::is_fresh)
    }

    /// Stripes that can still be handed out to cleaning.
    pub fn relocation_stripes(&self) -> u64 {
        let table = self.0.borrow();
        table.stripes_of_free(0) + table.stripes_of_open(|class| !class.is_fresh())
    }

    /// Hands out up to `count` contiguous stripes: from the class's open segment, else from a free one, else from what is open for like
    /// purposes. Writes for which nothing of that is left take what is kept for cleaning before they fail, though nobody was
    /// promised that.
    pub fn allocate(&self, class: Class, count: u32) -> Option<StripeRange> {
        assert!(count > 0);
        let mut table = self.0.borrow_mut();
        let is_fresh = class.is_fresh();
        let reserve = if is_fresh { table.reserve } else { 0 };
        let index = table
            .open(|open| open == class)
            .or_else(|| (table.free_count > reserve).then(|| table.begin(class)).flatten())
            .or_else(|| table.open(|open| open.is_fresh() == is_fresh))
            .or_else(|| if is_fresh { table.begin(class) } else { None })
            .or_else(|| if is_fresh { table.open(|_| true) } else { None })?;
        let stripes_per_segment = table.stripes_per_segment;
        let segment = &mut table.segments[index];
        let first = segment.next_stripe;
        let count = count.min(stripes_per_segment - first);
        segment.next_stripe += count;
        segment.dirty = true;
        if segment.next_stripe == stripes_per_segment {
            segment.state = SegmentState::Closed;
        }
        Some(StripeRange { segment: SegmentId(index as u32), first: StripeIndex(first), count })
    }

    /// Keeps the segment from being reused until the pin is dropped.
    pub fn pin(&self, segment: SegmentId) -> SegmentPin {
        self.0.borrow_mut().segments[segment.0 as usize].pins += 1;
        SegmentPin { table: self.clone(), segment }
    }

    pub fn is_pinned(&self, segment: SegmentId) -> bool {
        self.0.borrow().segments[segment.0 as usize].pins > 0
    }

    /// Marks a closed, empty segment: it will be free when the next root is durable.
    pub fn begin_freeing(&self, segment: SegmentId) {
        let mut table = self.0.borrow_mut();
        let entry = &mut table.segments[segment.0 as usize];
        assert_eq!(entry.state, SegmentState::Closed, "only closed segments are freed");
        entry.state = SegmentState::Freeing;
        entry.dirty = true;
    }

    /// The root that knows the segment as free is durable.
    pub fn finish_freeing(&self, segment: SegmentId) {
        let mut table = self.0.borrow_mut();
        let entry = &mut table.segments[segment.0 as usize];
        assert_eq!(entry.state, SegmentState::Freeing);
        entry.state = SegmentState::Free;
        entry.next_stripe = 0;
        table.free_count += 1;
    }

    /// Segments changed since the last call.
    pub fn take_dirty(&self) -> Vec<(SegmentId, Segment)> {
        let mut table = self.0.borrow_mut();
        let mut dirty = Vec::new();
        for (index, segment) in table.segments.iter_mut().enumerate() {
            if std::mem::take(&mut segment.dirty) {
                dirty.push((SegmentId(index as u32), *segment));
            }
        }
        dirty
    }

    /// Every closed segment.
    pub fn closed(&self) -> Vec<SegmentId> {
        let table = self.0.borrow();
        let closed = |(index, segment): (usize, &Segment)| {
            (segment.state == SegmentState::Closed).then_some(SegmentId(index as u32))
        };
        table.segments.iter().enumerate().filter_map(closed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_are_handed_out_once_and_classes_keep_apart() {
        let table = SegmentTable::new(3, 4, 0);
        let bank = table.allocate(Class::Bank(Heat::Warm), 3).unwrap();
        let large = table.allocate(Class::Large, 8).unwrap();
        assert_eq!((bank.segment, bank.first, bank.count), (SegmentId(0), StripeIndex(0), 3));
        assert_eq!((large.segment, large.count), (SegmentId(1), 4));
        assert_eq!(table.available_stripes(), 5);
        assert_eq!(table.allocate(Class::Bank(Heat::Warm), 3).unwrap().count, 1);
        assert_eq!(table.get(SegmentId(0)).state, SegmentState::Closed);
    }

    #[test]
    fn the_last_open_segment_serves_both_classes() {
        let table = SegmentTable::new(1, 4, 0);
        assert_eq!(table.allocate(Class::Large, 1).unwrap().count, 1);
        assert_eq!(table.allocate(Class::Bank(Heat::Warm), 2).unwrap().first, StripeIndex(1));
        assert_eq!(table.allocate(Class::Large, 2).unwrap().count, 1);
        assert_eq!(table.allocate(Class::Bank(Heat::Warm), 1), None);
    }

    #[test]
    fn a_freed_segment_is_reused_only_after_the_root() {
        let table = SegmentTable::new(1, 2, 0);
        table.allocate(Class::Large, 2).unwrap();
        let pin = table.pin(SegmentId(0));
        assert!(table.is_pinned(SegmentId(0)));
        drop(pin);
        table.begin_freeing(SegmentId(0));
        assert_eq!(table.allocate(Class::Large, 1), None);
        table.finish_freeing(SegmentId(0));
        assert!(table.allocate(Class::Large, 1).is_some());
    }

    #[test]
    fn the_last_free_segment_is_kept_for_cleaning_until_writes_would_fail() {
        let table = SegmentTable::new(3, 2, 1);
        assert_eq!((table.available_stripes(), table.relocation_stripes()), (4, 6));
        let taken = |class| table.allocate(class, 1).map(|range| range.segment.0);
        assert_eq!(
            [taken(Class::Large), taken(Class::Bank(Heat::Warm)), taken(Class::Bank(Heat::Warm))],
            [Some(0), Some(1), Some(1)]
        );
        assert_eq!((table.available_stripes(), table.unused_stripes()), (1, 3));
        assert_eq!(taken(Class::Bank(Heat::Warm)), Some(0), "the last stripe that is open for writes");
        assert_eq!(table.available_stripes(), 0);
        assert_eq!(taken(Class::Relocated(Heat::Cold)), Some(2));
        assert_eq!(taken(Class::Bank(Heat::Warm)), Some(2), "rather than fail");
        assert_eq!([taken(Class::Relocated(Heat::Cold)), taken(Class::Bank(Heat::Warm))], [None, None]);
    }

    #[test]
    fn age_counts_segments_of_fresh_data_and_survives_a_restart() {
        let table = SegmentTable::new(8, 1, 0);
        let begun =
            [Class::Bank(Heat::Warm), Class::Relocated(Heat::Cold), Class::Bank(Heat::Warm), Class::Large]
                .map(|class| table.allocate(class, 1).unwrap().segment);
        assert_eq!(begun.map(|segment| table.age(segment)), [2, 2, 1, 0]);
        let restored = SegmentTable::new(8, 1, 0);
        for segment in begun {
            let Segment { state, next_stripe, begun_at, .. } = table.get(segment);
            restored.restore(segment, state, next_stripe, begun_at);
        }
        assert_eq!(begun.map(|segment| restored.age(segment)), [2, 2, 1, 0]);
        restored.restore_handed_out(SegmentId(7), 1, Class::Bank(Heat::Warm));
        assert_eq!(restored.age(begun[0]), 3);
    }

    #[test]
    fn what_is_open_for_whole_stripes_is_told_apart_again() {
        let table = SegmentTable::new(8, 4, 0);
        let restore = |segment, class| table.restore(SegmentId(segment), SegmentState::Open(class), 1, 0);
        (0..4).for_each(|segment| restore(segment, Class::Large));
        (4..7).for_each(|segment| restore(segment, Class::Bank(Heat::Cold)));
        table.tell_open_apart();
        let states: Vec<_> = (0..8).map(|segment| table.get(SegmentId(segment)).state).collect();
        let [large, cold, warm] = [Class::Large, Class::Relocated(Heat::Cold), Class::Relocated(Heat::Warm)];
        let banks = [Heat::Warm, Heat::Cold].map(Class::Bank);
        let mut expected: Vec<_> =
            [large, cold, warm, large, banks[0], banks[1], large, large].map(SegmentState::Open).into();
        (expected[3], expected[6], expected[7]) =
            (SegmentState::Closed, SegmentState::Closed, SegmentState::Free);
        assert_eq!(states, expected);
    }

    #[test]
    fn what_is_moved_goes_to_the_other_heat_where_no_segment_is_free() {
        let table = SegmentTable::new(1, 4, 1);
        let taken = |heat| table.allocate(Class::Relocated(heat), 1).map(|range| range.first.0);
        assert_eq!([taken(Heat::Cold), taken(Heat::Warm), taken(Heat::Cold)], [Some(0), Some(1), Some(2)]);
    }
}
