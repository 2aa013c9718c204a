//! How a sample is kept at rest: as an image, and changes behind it.
//!
//! Both are pages ([`crate::format::sample`]). A page overrides what those before it say of the same place and birth, so a
//! checkpoint adds what has changed since the last one, until so much was added that a new image is no longer. The pages
//! belong to the checkpoint that asked for them: opening loads those that it names, and replays the log on top.

use std::collections::BTreeMap;

use super::sample::{Past, Sample, Standing};
use super::sampler::Sampler;
use crate::address::VolumeId;
use crate::format::envelope::EnvelopeError;
use crate::format::sample::{SampleHeader, SampleRecord, decode_page, encode_pages};
use crate::interval::{Epoch, Place, Presence, Reference};

/// More changes than this are not listed: an image takes their place.
const CHANGES_MAX: usize = 1 << 16;
/// Pages of changes that are added however short the image is.
const ADDED_PAGES_MIN: u32 = 8;

/// Names a reference among those of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub place: Place,
    pub birth: Epoch,
    pub presence: Presence,
}

impl Key {
    fn of(reference: &Reference) -> Self {
        Self { place: reference.place, birth: reference.birth, presence: reference.presence }
    }
}

/// What has changed since pages were last written.
#[derive(Clone, Debug)]
pub(super) struct Changes {
    /// `None`: an image is due.
    keys: Option<Vec<Key>>,
    image: u64,
    image_pages: u32,
    added_pages: u32,
}

impl Changes {
    /// Of a sample that no page tells of.
    pub fn all() -> Self {
        Self { keys: None, image: 0, image_pages: 0, added_pages: 0 }
    }

    pub fn add(&mut self, key: Key) {
        match &mut self.keys {
            Some(keys) if keys.len() == CHANGES_MAX => self.keys = None,
            Some(keys) => keys.push(key),
            None => {}
        }
    }

    pub fn are_many(&mut self) {
        self.keys = None;
    }

    /// What to add behind the pages that exist. `None` where an image is due.
    fn take(&mut self) -> Option<Vec<Key>> {
        let mut keys = self.keys.take()?;
        keys.sort_unstable();
        keys.dedup();
        Some(keys)
    }

    fn may_add(&self, pages: usize) -> bool {
        self.added_pages as usize + pages <= self.image_pages.max(ADDED_PAGES_MIN) as usize
    }
}

/// Pages to write, of [`PAGE_BYTES`](crate::format::page::PAGE_BYTES) each, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// They take the place of all earlier ones.
    Image(Vec<Vec<u8>>),
    /// They follow the earlier ones; there may be none.
    Added(Vec<Vec<u8>>),
}

/// Why pages are no sample. Nothing but the sample is lost: a walk over the maps makes a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("page {index} of the sample of snapshots' costs: {error}")]
    Page { index: u32, error: EnvelopeError },
    #[error("page {index} of the sample of snapshots' costs belongs elsewhere: it says {found:?}")]
    Order { index: u32, found: SampleHeader },
    #[error("the sample of snapshots' costs has no pages")]
    Empty,
}

impl Sample {
    /// What to write so that [`Sample::load`] finds this sample. The caller makes the pages durable with the state that they
    /// belong to, or goes on from an earlier state.
    pub fn checkpoint(&mut self, volume: VolumeId) -> Checkpoint {
        if let Some(added) = self.added_pages(volume) {
            self.changes.added_pages += added.len() as u32;
            self.changes.keys = Some(Vec::new());
            return Checkpoint::Added(added);
        }
        let image = self.changes.image + 1;
        let crowded = self.crowded.iter();
        let crowded =
            crowded.map(|(middle, stored)| SampleRecord::Crowded { middle: *middle, stored_bytes: *stored });
        let records = self.references().map(SampleRecord::Held).chain(crowded);
        let pages = encode_pages(volume, self.header(image, 0), records);
        let image_pages = pages.len() as u32;
        self.changes = Changes { keys: Some(Vec::new()), image, image_pages, added_pages: 0 };
        Checkpoint::Image(pages)
    }

    /// From pages of one image, and those added to it, in order.
    pub fn load<P: AsRef<[u8]>>(
        volume: VolumeId,
        budget_references: usize,
        pages: impl IntoIterator<Item = P>,
    ) -> Result<Self, LoadError> {
        let mut records = Vec::new();
        let mut first: Option<SampleHeader> = None;
        let mut page_count = 0;
        for (index, page) in (0..).zip(pages) {
            let header = decode_page(page.as_ref(), volume, &mut records)
                .map_err(|error| LoadError::Page { index, error })?;
            let first = *first.get_or_insert(header);
            if header != (SampleHeader { page_index: index, ..first }) {
                return Err(LoadError::Order { index, found: header });
            }
            page_count = index + 1;
        }
        let header = first.ok_or(LoadError::Empty)?;
        let mut sample = Self::new(Sampler::new(header.seed, header.halvings), budget_references);
        sample.changes =
            Changes { keys: Some(Vec::new()), image: header.image, image_pages: page_count, added_pages: 0 };
        sample.take_records(records);
        Ok(sample)
    }

    /// Pages of what has changed. `None` where an image is due.
    fn added_pages(&mut self, volume: VolumeId) -> Option<Vec<Vec<u8>>> {
        let keys = self.changes.take()?;
        if keys.is_empty() {
            return Some(Vec::new());
        }
        let next = self.changes.image_pages + self.changes.added_pages;
        let header = self.header(self.changes.image, next);
        let pages = encode_pages(volume, header, keys.into_iter().map(|key| self.record(key)));
        self.changes.may_add(pages.len()).then_some(pages)
    }

    fn header(&self, image: u64, page_index: u32) -> SampleHeader {
        SampleHeader { seed: self.sampler().seed(), image, page_index, halvings: self.sampler().halvings() }
    }

    fn record(&self, key: Key) -> SampleRecord {
        let Key { place, birth, presence } = key;
        let held = |middle, death, stored_bytes| {
            SampleRecord::Held(Reference { place, middle, birth, death, presence, stored_bytes })
        };
        let standing = match presence {
            Presence::Present => self.live.get(&place),
            Presence::Hidden => self.hidden.get(&place),
        };
        if let Some(standing) = standing.filter(|standing| standing.birth == birth) {
            return held(standing.middle, Epoch::NEVER, standing.stored_bytes);
        }
        match self.past.get(&(place, birth)) {
            Some(past) if presence == Presence::Present => held(past.middle, past.death, past.stored_bytes),
            _ => SampleRecord::Gone { place, birth, presence },
        }
    }

    /// Later records override earlier ones.
    fn take_records(&mut self, records: Vec<SampleRecord>) {
        let mut latest: Vec<(Key, Option<Reference>)> = Vec::with_capacity(records.len());
        for record in records {
            match record {
                SampleRecord::Held(reference) => latest.push((Key::of(&reference), Some(reference))),
                SampleRecord::Gone { place, birth, presence } => {
                    latest.push((Key { place, birth, presence }, None));
                }
                SampleRecord::Crowded { middle, stored_bytes } => {
                    self.crowded.insert(middle, stored_bytes);
                }
            }
        }
        // Stable: those of one key stay in order.
        latest.sort_by_key(|(key, _)| *key);
        let same_key = latest.chunk_by(|(a, _), (b, _)| a == b);
        self.hold(same_key.filter_map(|same| same[same.len() - 1].1));
    }

    fn hold(&mut self, references: impl Iterator<Item = Reference>) {
        let (mut live, mut past, mut hidden) = (Vec::new(), Vec::new(), Vec::new());
        for Reference { place, middle, birth, death, presence, stored_bytes } in references {
            let standing = Standing { middle, birth, stored_bytes };
            match presence {
                Presence::Hidden => hidden.push((place, standing)),
                Presence::Present if death == Epoch::NEVER => live.push((place, standing)),
                Presence::Present => past.push(((place, birth), Past { middle, death, stored_bytes })),
            }
        }
        self.live = BTreeMap::from_iter(live);
        self.past = BTreeMap::from_iter(past);
        self.hidden = BTreeMap::from_iter(hidden);
        self.refill_places();
        self.keep_to_budget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{LogicalBlock, MiddleAddress, ObjectId};
    use crate::interval::BranchId;
    use crate::sketch::history::Head;
    use crate::sketch::sampler::Run;

    const VOLUME: VolumeId = VolumeId(7);
    const OBJECT: ObjectId = ObjectId(3);

    fn head(epoch: u32) -> Head {
        Head { branch: BranchId(1), epoch: Epoch(epoch), ancestors: Box::default() }
    }

    fn sample(budget_references: usize) -> Sample {
        Sample::new(Sampler::new(5, 0), budget_references)
    }

    fn write(sample: &mut Sample, epoch: u32, block: u64, middle: u64, len_blocks: u64) {
        let run = Run::new(MiddleAddress(middle), len_blocks);
        sample.map(&head(epoch), OBJECT, LogicalBlock(block), run, |middle| 1 + (middle.0 % 4096) as u16);
    }

    fn assert_same(found: &Sample, expected: &Sample) {
        assert!(found.references().eq(expected.references()));
        assert_eq!((found.sampler(), &found.crowded), (expected.sampler(), &expected.crowded));
    }

    /// Pages as a store would keep them.
    fn keep(pages: &mut Vec<Vec<u8>>, sample: &mut Sample) -> bool {
        match sample.checkpoint(VOLUME) {
            Checkpoint::Image(image) => *pages = image,
            Checkpoint::Added(added) => {
                pages.extend(added);
                return true;
            }
        }
        false
    }

    #[test]
    fn a_sample_is_what_image_and_changes_say() {
        let mut sample = sample(100_000);
        let mut pages = Vec::new();
        write(&mut sample, 0, 0, 0, 5000);
        assert!(!keep(&mut pages, &mut sample));
        assert_same(&Sample::load(VOLUME, 100_000, &pages).unwrap(), &sample);
        let mut added = 0;
        for epoch in 1..40 {
            // Displaces what older epochs wrote, and twice what this one did; the hole leaves traces of the older ones only.
            write(&mut sample, epoch, u64::from(epoch) * 100, 10_000 * u64::from(epoch), 300);
            write(&mut sample, epoch, u64::from(epoch) * 100, 10_000 * u64::from(epoch) + 5000, 200);
            sample.unmap(&head(epoch), OBJECT, 150..260);
            added += usize::from(keep(&mut pages, &mut sample));
            let mut loaded = Sample::load(VOLUME, 100_000, &pages).unwrap();
            assert_same(&loaded, &sample);
            assert_eq!(loaded.checkpoint(VOLUME), Checkpoint::Added(Vec::new()));
        }
        assert!((20..39).contains(&added), "{added} of 39 were added");
    }

    #[test]
    fn halving_makes_an_image() {
        let mut sample = sample(1000);
        let mut pages = Vec::new();
        keep(&mut pages, &mut sample);
        write(&mut sample, 0, 0, 0, 500);
        assert!(keep(&mut pages, &mut sample));
        write(&mut sample, 1, 0, 500, 600);
        assert_eq!(sample.sampler().halvings(), 1);
        assert!(!keep(&mut pages, &mut sample));
        assert_same(&Sample::load(VOLUME, 1000, &pages).unwrap(), &sample);
    }

    #[test]
    fn crowds_are_kept() {
        let mut sample = sample(1000);
        let mut pages = Vec::new();
        write(&mut sample, 0, 0, 0, 500);
        (0..600).for_each(|at| write(&mut sample, 0, 1000 + at, 7, 1));
        assert_eq!(sample.crowded.len(), 1);
        keep(&mut pages, &mut sample);
        assert_same(&Sample::load(VOLUME, 1000, &pages).unwrap(), &sample);
    }

    #[test]
    fn a_smaller_budget_holds_for_what_is_loaded() {
        let mut sample = sample(1000);
        write(&mut sample, 0, 0, 0, 900);
        let mut pages = Vec::new();
        keep(&mut pages, &mut sample);
        let loaded = Sample::load(VOLUME, 500, &pages).unwrap();
        assert_eq!((loaded.len(), loaded.sampler().halvings()), (450, 1));
    }

    #[test]
    fn pages_that_are_missing_swapped_or_of_another_image_are_named() {
        let mut sample = sample(100_000);
        write(&mut sample, 0, 0, 0, 2000);
        let mut pages = Vec::new();
        keep(&mut pages, &mut sample);
        let load = |pages: Vec<&Vec<u8>>| Sample::load(VOLUME, 1000, pages).unwrap_err();
        assert_eq!(load(vec![]), LoadError::Empty);
        assert!(matches!(load(vec![&pages[1]]), LoadError::Order { index: 0, .. }));
        assert!(matches!(load(vec![&pages[0], &pages[2]]), LoadError::Order { index: 1, .. }));
        sample.changes.are_many();
        let Checkpoint::Image(other) = sample.checkpoint(VOLUME) else { panic!("no image") };
        assert!(matches!(load(vec![&pages[0], &other[1]]), LoadError::Order { index: 1, .. }));
        let mut torn = pages[1].clone();
        torn[5000] ^= 1;
        assert!(matches!(load(vec![&pages[0], &torn]), LoadError::Page { index: 1, .. }));
    }
}
