//! Which segments are free, open or closed, and how far each is filled.
//!
//! A segment goes free → open → closed → freeing → free. It leaves `freeing` only when the root that no longer
//! names it is durable and nobody pins it: a read in flight, or stripes written but not yet named by a transaction.

use std::cell::RefCell;
use std::rc::Rc;

use crate::address::{SegmentId, StripeIndex};

/// What an open segment is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Banks of small writes.
    Bank,
    /// Large writes, straight as full stripes.
    Large,
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
    /// Where the search for a free segment goes on: wear and rotation are spread.
    cursor: u32,
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
    /// All free.
    pub fn new(segment_count: u32, stripes_per_segment: u32) -> Self {
        let segment = Segment { state: SegmentState::Free, next_stripe: 0, pins: 0, dirty: false };
        Self(Rc::new(RefCell::new(Table {
            segments: vec![segment; segment_count as usize],
            stripes_per_segment,
            free_count: segment_count,
            cursor: 0,
        })))
    }

    pub fn segment_count(&self) -> u32 {
        self.0.borrow().segments.len() as u32
    }

    pub fn get(&self, segment: SegmentId) -> Segment {
        self.0.borrow().segments[segment.0 as usize]
    }

    /// Takes a segment's state from the devices, at recovery.
    pub fn restore(&self, segment: SegmentId, state: SegmentState, next_stripe: u32) {
        let mut table = self.0.borrow_mut();
        let entry = &mut table.segments[segment.0 as usize];
        let was_free = entry.state == SegmentState::Free;
        entry.state = state;
        entry.next_stripe = next_stripe;
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
        let full = next_stripe >= self.0.borrow().stripes_per_segment;
        let state = match entry.state {
            _ if full => SegmentState::Closed,
            SegmentState::Free | SegmentState::Freeing => SegmentState::Open(class),
            other => other,
        };
        self.restore(segment, state, next_stripe);
    }

    /// Stripes that can still be handed out.
    pub fn available_stripes(&self) -> u64 {
        let table = self.0.borrow();
        let open: u64 = table
            .segments
            .iter()
            .filter(|segment| matches!(segment.state, SegmentState::Open(_)))
            .map(|segment| u64::from(table.stripes_per_segment - segment.next_stripe))
            .sum();
        u64::from(table.free_count) * u64::from(table.stripes_per_segment) + open
    }

    /// Hands out up to `count` contiguous stripes: from the class's open segment, else from a free one, else from
    /// whatever segment is open. `None` when nothing is left.
    pub fn allocate(&self, class: Class, count: u32) -> Option<StripeRange> {
        assert!(count > 0);
        let mut table = self.0.borrow_mut();
        let position = |wanted: &dyn Fn(SegmentState) -> bool, table: &Table| {
            table.segments.iter().position(|segment| wanted(segment.state))
        };
        let index = match position(&|state| state == SegmentState::Open(class), &table) {
            Some(index) => index,
            None if table.free_count > 0 => {
                let segment_count = table.segments.len();
                let start = table.cursor as usize;
                let index = (0..segment_count)
                    .map(|step| (start + step) % segment_count)
                    .find(|&index| table.segments[index].state == SegmentState::Free)?;
                table.cursor = ((index + 1) % segment_count) as u32;
                table.free_count -= 1;
                table.segments[index].state = SegmentState::Open(class);
                table.segments[index].next_stripe = 0;
                index
            }
            None => position(&|state| matches!(state, SegmentState::Open(_)), &table)?,
        };
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
        let table = SegmentTable::new(3, 4);
        let bank = table.allocate(Class::Bank, 3).unwrap();
        let large = table.allocate(Class::Large, 8).unwrap();
        assert_eq!((bank.segment, bank.first, bank.count), (SegmentId(0), StripeIndex(0), 3));
        assert_eq!((large.segment, large.count), (SegmentId(1), 4));
        assert_eq!(table.available_stripes(), 5);
        assert_eq!(table.allocate(Class::Bank, 3).unwrap().count, 1);
        assert_eq!(table.get(SegmentId(0)).state, SegmentState::Closed);
    }

    #[test]
    fn the_last_open_segment_serves_both_classes() {
        let table = SegmentTable::new(1, 4);
        assert_eq!(table.allocate(Class::Large, 1).unwrap().count, 1);
        assert_eq!(table.allocate(Class::Bank, 2).unwrap().first, StripeIndex(1));
        assert_eq!(table.allocate(Class::Large, 2).unwrap().count, 1);
        assert_eq!(table.allocate(Class::Bank, 1), None);
    }

    #[test]
    fn a_freed_segment_is_reused_only_after_the_root() {
        let table = SegmentTable::new(1, 2);
        table.allocate(Class::Large, 2).unwrap();
        let pin = table.pin(SegmentId(0));
        assert!(table.is_pinned(SegmentId(0)));
        drop(pin);
        table.begin_freeing(SegmentId(0));
        assert_eq!(table.allocate(Class::Large, 1), None);
        table.finish_freeing(SegmentId(0));
        assert!(table.allocate(Class::Large, 1).is_some());
    }
}
