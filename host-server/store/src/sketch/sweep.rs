//! One pass over references, into cells.
//!
//! A *cell* is a set of viewers, with the tally of the addresses that exactly these see. Every question about space is a sum
//! over cells, and there are few: on one branch with `n` snapshots at most `n² / 2`, since an unshared block is seen by one
//! span. The pass needs memory for cells and a bounded buffer, however long the list.

use std::collections::BTreeMap;

use super::census::Census;
use super::estimate::Tally;
use super::history::{History, Span};
use crate::address::MiddleAddress;
use crate::interval::{Presence, Reference};

/// Addresses that are sorted at a time: most are seen by one span, and sorting them is cheaper than looking each up.
const BUFFER_ADDRESSES: usize = 1 << 16;

/// The viewers of a cell: spans, ascending, with gaps between them.
pub(super) type Viewers = Box<[Span]>;

/// Takes references, those of one address together, and knows in the end who sees how much.
pub struct Sweep<'a> {
    history: &'a History,
    /// The address whose references come in, and its stored size.
    address: Option<(MiddleAddress, u16)>,
    spans: Vec<(Span, i64)>,
    alone: Vec<(Span, u16)>,
    cells: BTreeMap<Viewers, Tally>,
}

impl<'a> Sweep<'a> {
    pub fn new(history: &'a History) -> Self {
        Self {
            history,
            address: None,
            spans: Vec::new(),
            alone: Vec::with_capacity(BUFFER_ADDRESSES),
            cells: BTreeMap::new(),
        }
    }

    /// Takes `count` equal references to a block of this stored size. All references to one address come one after another.
    pub fn add(&mut self, reference: &Reference, count: u32, stored_bytes: u16) {
        if self.address.is_none_or(|(middle, _)| middle != reference.middle) {
            self.finish_address();
            self.address = Some((reference.middle, stored_bytes));
        }
        let span = self.history.span(reference.branch, reference.birth, reference.death);
        let sign = if reference.presence == Presence::Present { 1 } else { -1 };
        self.spans.push((span, sign * i64::from(count)));
    }

    /// What was seen, of references at rate `2^-halvings`.
    pub fn finish(mut self, halvings: u8) -> Census<'a> {
        self.finish_address();
        self.flush();
        Census::new(self.history, halvings, self.cells)
    }

    fn finish_address(&mut self) {
        let Some((_, stored_bytes)) = self.address.take() else { return };
        match self.spans.as_slice() {
            [(span, count)] => {
                let seen = *count > 0 && !span.is_empty();
                self.put_alone(if seen { *span } else { Span { start: 0, end: 0 } }, stored_bytes);
            }
            _ => {
                let viewers = seen_by(&self.spans);
                self.cells.entry(viewers).or_default().add_address(stored_bytes);
            }
        }
        self.spans.clear();
    }

    fn put_alone(&mut self, span: Span, stored_bytes: u16) {
        self.alone.push((span, stored_bytes));
        if self.alone.len() == BUFFER_ADDRESSES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.alone.sort_unstable_by_key(|(span, _)| *span);
        for same in self.alone.chunk_by(|(a, _), (b, _)| a == b) {
            let viewers: Viewers = if same[0].0.is_empty() { Box::default() } else { Box::new([same[0].0]) };
            let tally = self.cells.entry(viewers).or_default();
            for (_, stored_bytes) in same {
                tally.add_address(*stored_bytes);
            }
        }
        self.alone.clear();
    }
}

/// Where more references are present than hidden.
fn seen_by(spans: &[(Span, i64)]) -> Viewers {
    let mut changes: Vec<(u32, i64)> = spans
        .iter()
        .filter(|(span, _)| !span.is_empty())
        .flat_map(|(span, count)| [(span.start, *count), (span.end, -count)])
        .collect();
    changes.sort_unstable();
    let mut viewers: Vec<Span> = Vec::new();
    let mut references = 0;
    let mut since = None;
    for at in changes.chunk_by(|(a, _), (b, _)| a == b) {
        let position = at[0].0;
        references += at.iter().map(|(_, change)| change).sum::<i64>();
        match since {
            None if references > 0 => since = Some(position),
            Some(start) if references <= 0 => {
                viewers.push(Span { start, end: position });
                since = None;
            }
            _ => {}
        }
    }
    viewers.into()
}
