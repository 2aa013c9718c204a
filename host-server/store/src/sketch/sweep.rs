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

    /// Takes a reference. Those to one address come one after another; the order of addresses is free.
    pub fn add(&mut self, reference: &Reference) {
        let span = self.history.span(reference.place.branch, reference.birth, reference.death);
        self.add_span(reference.middle, span, reference.presence, reference.stored_bytes);
    }

    pub(super) fn add_span(
        &mut self,
        middle: MiddleAddress,
        span: Span,
        presence: Presence,
        stored_bytes: u16,
    ) {
        if self.address.is_none_or(|(address, _)| address != middle) {
            self.finish_address();
            self.address = Some((middle, stored_bytes));
        }
        self.spans.push((span, if presence == Presence::Present { 1 } else { -1 }));
    }

    /// What was seen, of all references.
    pub fn finish(self) -> Census<'a> {
        self.finish_sample(0, Tally::default())
    }

    /// What was seen, of references to addresses at rate `2^-halvings`, and apart from addresses of which more is not known.
    pub(super) fn finish_sample(mut self, halvings: u8, crowded: Tally) -> Census<'a> {
        self.finish_address();
        self.flush();
        // Nobody sees it: what it takes has been given back, or will be without anybody's help.
        self.cells.remove([].as_slice());
        Census::new(self.history, halvings, self.cells, crowded)
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
pub(super) fn seen_by(spans: &[(Span, i64)]) -> Viewers {
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
