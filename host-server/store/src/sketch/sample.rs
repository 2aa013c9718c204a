//! The sample of a volume, kept up to date by writes that read no map.
//!
//! What a write displaces is known to no one until messages merge. So the sample is ordered by place: a write or unmap of a
//! range closes the intervals of the sampled references that stand there, at the epoch that goes on. On a branch that began off another,
//! the range may displace what is inherited: of that an absence is noted. Most ranges displace nothing of the sample, and a
//! bitmap says so.
//!
//! * A reference that is displaced in the epoch of its birth was seen by no snapshot and leaves no trace.
//! * When there are more references than the budget allows, the rate halves. It never rises: a sample at a higher rate is
//!   made of a walk over the maps ([`Sample::insert`]).
//! * An address with very many references (a block that was cloned over and over) would take the budget from all others. It
//!   is set aside as *crowded*: it counts as seen by somebody, and widens every error bar.

use std::collections::BTreeMap;
use std::ops::Range;

use super::census::Census;
use super::estimate::Tally;
use super::history::{Head, History};
use super::keeping::{Changes, Key};
use super::places::PlaceFilter;
use super::sampler::{Run, Sampler};
use super::sweep::{Sweep, seen_by};
use crate::address::{LogicalBlock, MiddleAddress, ObjectId};
use crate::interval::{BranchId, Epoch, Place, Presence, Reference};

/// References that a sample may hold. A set of 0.31 % of all addresses has 400 of them in a sample that has just been halved.
pub const BUDGET_REFERENCES: usize = 1 << 18;
/// The rate of a new volume: one address in sixteen. A million blocks with a hundred snapshots of which each has one block in a hundred of its
/// own leave 600 of these in the sample, and cost a random write of one block some 50 ns.
pub const HALVINGS_FIRST: u8 = 4;

/// An address is crowded if it has more than this part of the budget.
const CROWD_PART: usize = 64;
const CROWD_REFERENCES_MIN: usize = 16;

/// A reference that is alive, or an absence, at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub middle: MiddleAddress,
    pub birth: Epoch,
    pub stored_bytes: u16,
}

/// A reference that has been displaced; its place and birth are its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Past {
    pub middle: MiddleAddress,
    pub death: Epoch,
    pub stored_bytes: u16,
}

/// References to the addresses that a [`Sampler`] holds.
#[derive(Clone, Debug)]
pub struct Sample {
    sampler: Sampler,
    budget_references: usize,
    pub(super) live: BTreeMap<Place, Standing>,
    pub(super) past: BTreeMap<(Place, Epoch), Past>,
    /// What branches no longer inherit. At most one address a place: no more is inherited there.
    pub(super) hidden: BTreeMap<Place, Standing>,
    /// Addresses whose references are not kept, with their stored sizes.
    pub(super) crowded: BTreeMap<MiddleAddress, u16>,
    live_places: PlaceFilter,
    past_places: PlaceFilter,
    pub(super) changes: Changes,
}

impl Sample {
    /// Of an empty volume.
    pub fn new(sampler: Sampler, budget_references: usize) -> Self {
        Self {
            sampler,
            budget_references,
            live: BTreeMap::new(),
            past: BTreeMap::new(),
            hidden: BTreeMap::new(),
            crowded: BTreeMap::new(),
            live_places: PlaceFilter::new(budget_references),
            past_places: PlaceFilter::new(budget_references),
            changes: Changes::all(),
        }
    }

    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// Whether references to an address are in the sample.
    pub fn follows(&self, middle: MiddleAddress) -> bool {
        self.sampler.holds(middle) && !self.crowded.contains_key(&middle)
    }

    /// References held.
    pub fn len(&self) -> usize {
        self.live.len() + self.past.len() + self.hidden.len() + self.crowded.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Blocks from `start` on refer to the addresses of `run` from now on: a write, or another reference to what exists. `stored_bytes`
    /// is asked for sampled addresses only, and answers 1 to 4096.
    pub fn map(
        &mut self,
        head: &Head,
        object: ObjectId,
        start: LogicalBlock,
        run: Run,
        stored_bytes: impl Fn(MiddleAddress) -> u16,
    ) {
        self.unmap(head, object, start.0..start.0.saturating_add(run.len_blocks));
        for middle in self.sampler.members(run) {
            let block = start.0 + (middle.0 - run.start.0);
            self.open(head, Place::new(head.branch, object, block), middle, stored_bytes(middle));
        }
        self.keep_to_budget();
    }

    /// Blocks of a range, which may be a whole object, refer to nothing from now on.
    pub fn unmap(&mut self, head: &Head, object: ObjectId, blocks: Range<u64>) {
        self.close(head, object, &blocks);
        if !head.ancestors.is_empty() {
            self.hide(head, object, &blocks);
        }
    }

    /// What the `len_blocks` from `from` on refer to, those from `to` on refer to from now on, and those from `from` on nothing,
    /// where the ranges do not overlap.
    pub fn shift(
        &mut self,
        head: &Head,
        object: ObjectId,
        from: LogicalBlock,
        to: LogicalBlock,
        len_blocks: u64,
    ) {
        let source = from.0..from.0.saturating_add(len_blocks);
        let moved = self.visible(head, object, &source);
        self.unmap(head, object, source);
        self.unmap(head, object, to.0..to.0.saturating_add(len_blocks));
        for (block, standing) in moved {
            let place = Place::new(head.branch, object, to.0.saturating_add(block - from.0));
            self.open(head, place, standing.middle, standing.stored_bytes);
        }
        self.keep_to_budget();
    }

    /// Takes a reference as it is, if its address is in the sample: for samples that are made of a walk.
    pub fn insert(&mut self, reference: &Reference) {
        if !self.follows(reference.middle) {
            return;
        }
        let Reference { place, middle, birth, death, presence, stored_bytes } = *reference;
        assert!(
            (1..=Reference::STORED_BYTES_MAX).contains(&stored_bytes),
            "{middle} stored in {stored_bytes} bytes"
        );
        match presence {
            Presence::Hidden => {
                self.hidden.insert(place, Standing { middle, birth, stored_bytes });
            }
            Presence::Present if death == Epoch::NEVER => {
                self.live_places.add(place);
                self.live.insert(place, Standing { middle, birth, stored_bytes });
            }
            Presence::Present => {
                self.past_places.add(place);
                self.past.insert((place, birth), Past { middle, death, stored_bytes });
            }
        }
        self.changes.add(Key { place, birth, presence });
        self.keep_to_budget();
    }

    /// Forgets what no viewer of the history refers to: for when snapshots or branches are gone.
    pub fn prune(&mut self, history: &History) {
        let seen = |place: &Place, birth, death| !history.span(place.branch, birth, death).is_empty();
        self.live.retain(|place, standing| seen(place, standing.birth, Epoch::NEVER));
        self.hidden.retain(|place, standing| seen(place, standing.birth, Epoch::NEVER));
        self.past.retain(|(place, birth), past| seen(place, *birth, past.death));
        let inherited_by_none = self.hidden_from_all(history);
        self.retain(|middle| inherited_by_none.binary_search(&middle).is_err());
    }

    /// Who sees how much of the sample.
    pub fn census<'a>(&self, history: &'a History) -> Census<'a> {
        let mut seen: Vec<_> = self
            .references()
            .map(|reference| {
                let span = history.span(reference.place.branch, reference.birth, reference.death);
                (reference.middle, span, reference.presence, reference.stored_bytes)
            })
            .collect();
        seen.sort_unstable_by_key(|(middle, ..)| *middle);
        let mut sweep = Sweep::new(history);
        for (middle, span, presence, stored_bytes) in seen {
            sweep.add_span(middle, span, presence, stored_bytes);
        }
        let mut crowded = Tally::default();
        self.crowded.values().for_each(|stored_bytes| crowded.add_address(*stored_bytes));
        sweep.finish_sample(self.sampler.halvings(), crowded)
    }

    /// All references of the sample, by place.
    pub fn references(&self) -> impl Iterator<Item = Reference> {
        let standing = |presence| {
            move |(place, standing): (&Place, &Standing)| Reference {
                place: *place,
                middle: standing.middle,
                birth: standing.birth,
                death: Epoch::NEVER,
                presence,
                stored_bytes: standing.stored_bytes,
            }
        };
        let past = self.past.iter().map(|((place, birth), past)| Reference {
            place: *place,
            middle: past.middle,
            birth: *birth,
            death: past.death,
            presence: Presence::Present,
            stored_bytes: past.stored_bytes,
        });
        let live = self.live.iter().map(standing(Presence::Present));
        live.chain(past).chain(self.hidden.iter().map(standing(Presence::Hidden)))
    }

    fn open(&mut self, head: &Head, place: Place, middle: MiddleAddress, stored_bytes: u16) {
        assert!(
            (1..=Reference::STORED_BYTES_MAX).contains(&stored_bytes),
            "{middle} stored in {stored_bytes} bytes"
        );
        if self.crowded.contains_key(&middle) {
            return;
        }
        if self.live_places.added() > self.budget_references.max(2 * self.live.len()) {
            self.live_places.refill(self.live.keys().copied());
        }
        self.live_places.add(place);
        self.live.insert(place, Standing { middle, birth: head.epoch, stored_bytes });
        self.changes.add(Key { place, birth: head.epoch, presence: Presence::Present });
    }

    /// Ends what the branch itself refers to.
    fn close(&mut self, head: &Head, object: ObjectId, blocks: &Range<u64>) {
        if !self.live_places.may_hold(head.branch, object, blocks) {
            return;
        }
        let Self { live, past, past_places, changes, .. } = self;
        for (place, standing) in live.extract_if(places(head.branch, object, blocks), |_, _| true) {
            let Standing { middle, birth, stored_bytes } = standing;
            changes.add(Key { place, birth, presence: Presence::Present });
            if birth < head.epoch {
                past_places.add(place);
                past.insert((place, birth), Past { middle, death: head.epoch, stored_bytes });
            }
        }
    }

    /// Notes that the branch inherits nothing there any more.
    fn hide(&mut self, head: &Head, object: ObjectId, blocks: &Range<u64>) {
        for (block, standing) in self.inherited(head, object, blocks) {
            let place = Place::new(head.branch, object, block);
            self.hidden.insert(place, Standing { birth: head.epoch, ..standing });
            self.changes.add(Key { place, birth: head.epoch, presence: Presence::Hidden });
        }
    }

    /// What the head shows of the sample in a range.
    fn visible(&self, head: &Head, object: ObjectId, blocks: &Range<u64>) -> Vec<(u64, Standing)> {
        let own = self.live.range(places(head.branch, object, blocks));
        let own = own.map(|(place, standing)| (place.block.0, *standing));
        own.chain(self.inherited(head, object, blocks)).collect()
    }

    /// What the head shows of its ancestors' references in a range.
    fn inherited(&self, head: &Head, object: ObjectId, blocks: &Range<u64>) -> Vec<(u64, Standing)> {
        let mut found = Vec::new();
        for (distance, (ancestor, last)) in head.ancestors.iter().enumerate() {
            let heirs = &head.ancestors[..distance];
            let shown = |block: u64| {
                let hides = |branch: BranchId, last: Epoch| {
                    let absence = self.hidden.get(&Place::new(branch, object, block));
                    absence.is_some_and(|absence| absence.birth <= last)
                };
                !hides(head.branch, Epoch::HEAD) && !heirs.iter().any(|(heir, last)| hides(*heir, *last))
            };
            let seen = self.seen_at(*ancestor, *last, object, blocks);
            found.extend(seen.into_iter().filter(|(block, _)| shown(*block)));
        }
        found
    }

    /// References of one branch itself that its snapshot at `epoch` sees.
    fn seen_at(
        &self,
        branch: BranchId,
        epoch: Epoch,
        object: ObjectId,
        blocks: &Range<u64>,
    ) -> Vec<(u64, Standing)> {
        let mut found = Vec::new();
        if self.live_places.may_hold(branch, object, blocks) {
            let live = self.live.range(places(branch, object, blocks));
            let live = live.filter(|(_, standing)| standing.birth <= epoch);
            found.extend(live.map(|(place, standing)| (place.block.0, *standing)));
        }
        if self.past_places.may_hold(branch, object, blocks) {
            let Range { start, end } = places(branch, object, blocks);
            let past = self.past.range((start, Epoch(0))..(end, Epoch(0)));
            let past = past.filter(|((_, birth), past)| *birth <= epoch && epoch < past.death);
            found.extend(past.map(|((place, birth), past)| {
                let Past { middle, stored_bytes, .. } = *past;
                (place.block.0, Standing { middle, birth: *birth, stored_bytes })
            }));
        }
        found
    }

    /// Addresses with absences that are seen by nobody, in order.
    fn hidden_from_all(&self, history: &History) -> Vec<MiddleAddress> {
        let mut spans: BTreeMap<MiddleAddress, Vec<_>> =
            self.hidden.values().map(|standing| (standing.middle, Vec::new())).collect();
        for reference in self.references() {
            if let Some(spans) = spans.get_mut(&reference.middle) {
                let span = history.span(reference.place.branch, reference.birth, reference.death);
                spans.push((span, if reference.presence == Presence::Present { 1 } else { -1 }));
            }
        }
        spans.retain(|_, spans| seen_by(spans).is_empty());
        spans.into_keys().collect()
    }

    pub(super) fn keep_to_budget(&mut self) {
        if self.len() <= self.budget_references {
            return;
        }
        self.set_crowds_aside();
        while self.len() > self.budget_references {
            let Some(halved) = self.sampler.halved() else { return };
            self.sampler = halved;
            self.retain(|middle| halved.holds(middle));
        }
    }

    fn set_crowds_aside(&mut self) {
        let most = (self.budget_references / CROWD_PART).max(CROWD_REFERENCES_MIN);
        let mut addresses: Vec<_> =
            self.references().map(|reference| (reference.middle, reference.stored_bytes)).collect();
        addresses.sort_unstable();
        let same = addresses.chunk_by(|(a, _), (b, _)| a == b);
        let crowds: BTreeMap<_, _> = same.filter(|same| same.len() > most).map(|same| same[0]).collect();
        if !crowds.is_empty() {
            let held = std::mem::take(&mut self.crowded);
            self.retain(|middle| !crowds.contains_key(&middle));
            self.crowded = held;
            self.crowded.extend(crowds);
        }
    }

    /// Keeps the references to those addresses only.
    fn retain(&mut self, wanted: impl Fn(MiddleAddress) -> bool) {
        self.live.retain(|_, standing| wanted(standing.middle));
        self.hidden.retain(|_, standing| wanted(standing.middle));
        self.past.retain(|_, past| wanted(past.middle));
        self.crowded.retain(|middle, _| wanted(*middle));
        self.refill_places();
        self.changes.are_many();
    }

    pub(super) fn refill_places(&mut self) {
        self.live_places.refill(self.live.keys().copied());
        self.past_places.refill(self.past.keys().map(|(place, _)| *place));
    }
}

/// The places of a range of an object.
fn places(branch: BranchId, object: ObjectId, blocks: &Range<u64>) -> Range<Place> {
    Place::new(branch, object, blocks.start)..Place::new(branch, object, blocks.end.max(blocks.start))
}
