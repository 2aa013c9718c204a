//! Pages of the sample that tells what snapshots cost.
//!
//! ```text
//! envelope (kind 7) · SamplePage · group_count × (SampleGroup · entry_count × SampleEntry) · zeros
//! ```
//! The pages of one sample hold its references in order. References to addresses that were written together share branch and birth,
//! so that most cost one entry.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::envelope::{self, ENVELOPE_BYTES, EnvelopeError, Kind};
use super::layout::{Layout, layout};
use super::page::PAGE_BYTES;
use crate::address::{MiddleAddress, VolumeId};
use crate::interval::{BranchId, Epoch, Presence, Reference};

const VERSION: u16 = 1;
/// Sizes are those of blocks, compressed or not.
const STORED_BYTES_MAX: u16 = 4096;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SamplePage {
    seed: U64,
    page_index: U32,
    page_count: U32,
    group_count: U16,
    halvings: u8,
    reserved: [u8; 5],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SampleGroup {
    middle: U64,
    branch: U32,
    birth: U32,
    entry_count: U16,
    presence: u8,
    reserved: u8,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SampleEntry {
    middle_offset: U16,
    stored_bytes: U16,
    death: U32,
}

const GROUP_BYTES: usize = size_of::<SampleGroup>();
const ENTRY_BYTES: usize = size_of::<SampleEntry>();
const HEADER_BYTES: usize = ENVELOPE_BYTES + size_of::<SamplePage>();

const _: () = assert!(size_of::<SamplePage>() == 24);
const _: () = assert!(GROUP_BYTES == 20);
const _: () = assert!(ENTRY_BYTES == 8);

/// What every page says of the whole sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleHeader {
    /// Of the coins that choose addresses.
    pub seed: u64,
    /// The rate is 2 to the power of minus this.
    pub halvings: u8,
    pub page_index: u32,
    pub page_count: u32,
}

/// A reference and the stored size of its block, in bytes.
pub type SampledReference = (Reference, u16);

/// References in ascending order as pages of one sample: at least one page.
pub fn encode_pages(
    volume: VolumeId,
    seed: u64,
    halvings: u8,
    references: impl IntoIterator<Item = SampledReference>,
) -> Vec<Vec<u8>> {
    let mut bodies = vec![Body::new()];
    for (reference, stored_bytes) in references {
        let fits = bodies.last_mut().is_some_and(|body| body.push(&reference, stored_bytes));
        if !fits {
            let mut body = Body::new();
            body.push(&reference, stored_bytes);
            bodies.push(body);
        }
    }
    let page_count = bodies.len() as u32;
    let seal = |(index, body): (usize, Body)| {
        body.seal(volume, &SampleHeader { seed, halvings, page_index: index as u32, page_count })
    };
    bodies.into_iter().enumerate().map(seal).collect()
}

/// A page being filled.
struct Body {
    bytes: Vec<u8>,
    group_count: u16,
    /// Where the open group begins, and what it holds.
    group_start: usize,
    group: SampleGroup,
}

impl Body {
    fn new() -> Self {
        let group = SampleGroup::new_zeroed();
        Self { bytes: vec![0; HEADER_BYTES], group_count: 0, group_start: HEADER_BYTES, group }
    }

    /// `false` where there is no room.
    fn push(&mut self, reference: &Reference, stored_bytes: u16) -> bool {
        let offset = self.offset_in_group(reference);
        let needed = ENTRY_BYTES + if offset.is_some() { 0 } else { GROUP_BYTES };
        if self.bytes.len() + needed > PAGE_BYTES {
            return false;
        }
        if offset.is_none() {
            self.open_group(reference);
        }
        let entry = SampleEntry {
            middle_offset: offset.unwrap_or(0).into(),
            stored_bytes: stored_bytes.into(),
            death: reference.death.0.into(),
        };
        self.bytes.extend_from_slice(entry.as_bytes());
        self.group.entry_count += 1;
        self.bytes[self.group_start..][..GROUP_BYTES].copy_from_slice(self.group.as_bytes());
        true
    }

    fn offset_in_group(&self, reference: &Reference) -> Option<u16> {
        let group = &self.group;
        let same = self.group_count > 0
            && group.branch.get() == reference.branch.0
            && group.birth.get() == reference.birth.0
            && group.presence == reference.presence as u8;
        let offset = reference.middle.0.checked_sub(group.middle.get())?;
        if same { u16::try_from(offset).ok() } else { None }
    }

    fn open_group(&mut self, reference: &Reference) {
        self.group_start = self.bytes.len();
        self.group_count += 1;
        self.group = SampleGroup {
            middle: reference.middle.0.into(),
            branch: reference.branch.0.into(),
            birth: reference.birth.0.into(),
            entry_count: 0.into(),
            presence: reference.presence as u8,
            reserved: 0,
        };
        self.bytes.extend_from_slice(self.group.as_bytes());
    }

    fn seal(mut self, volume: VolumeId, header: &SampleHeader) -> Vec<u8> {
        self.bytes.resize(PAGE_BYTES, 0);
        let page = SamplePage {
            seed: header.seed.into(),
            page_index: header.page_index.into(),
            page_count: header.page_count.into(),
            group_count: self.group_count.into(),
            halvings: header.halvings,
            reserved: [0; 5],
        };
        self.bytes[ENVELOPE_BYTES..HEADER_BYTES].copy_from_slice(page.as_bytes());
        envelope::seal(&mut self.bytes, Kind::Sample, VERSION, volume, PAGE_BYTES - ENVELOPE_BYTES);
        self.bytes
    }
}

/// Verifies a page and appends its references to `into`.
pub fn decode_page(
    bytes: &[u8],
    volume: VolumeId,
    into: &mut Vec<SampledReference>,
) -> Result<SampleHeader, EnvelopeError> {
    let nonsense = EnvelopeError::Nonsense;
    let opened = envelope::open(bytes, Kind::Sample, VERSION, Some(volume))?;
    if bytes.len() != PAGE_BYTES || opened.body.len() != PAGE_BYTES - ENVELOPE_BYTES {
        return Err(EnvelopeError::WrongLength { available: bytes.len(), found: opened.body.len() });
    }
    let short = |_| nonsense("a page of a sample that is cut short");
    let (page, mut rest) = SamplePage::ref_from_prefix(opened.body).map_err(|_| nonsense("no sample"))?;
    if page.page_index >= page.page_count || page.reserved != [0; 5] {
        return Err(nonsense("the header of a page of a sample"));
    }
    for _ in 0..page.group_count.get() {
        let (group, entries) = SampleGroup::ref_from_prefix(rest).map_err(|_| short(()))?;
        let count = usize::from(group.entry_count.get());
        let (entries, after) =
            <[SampleEntry]>::ref_from_prefix_with_elems(entries, count).map_err(|_| short(()))?;
        for entry in entries {
            into.push(decode_entry(group, entry).ok_or(nonsense("a reference of a sample"))?);
        }
        rest = after;
    }
    if rest.iter().any(|byte| *byte != 0) {
        return Err(EnvelopeError::ReservedNotZero);
    }
    Ok(SampleHeader {
        seed: page.seed.get(),
        halvings: page.halvings,
        page_index: page.page_index.get(),
        page_count: page.page_count.get(),
    })
}

fn decode_entry(group: &SampleGroup, entry: &SampleEntry) -> Option<SampledReference> {
    let presence = match group.presence {
        1 => Presence::Present,
        2 => Presence::Hidden,
        _ => return None,
    };
    let reference = Reference {
        middle: MiddleAddress(group.middle.get().checked_add(u64::from(entry.middle_offset.get()))?),
        branch: BranchId(group.branch.get()),
        birth: Epoch(group.birth.get()),
        death: Epoch(entry.death.get()),
        presence,
    };
    let stored_bytes = entry.stored_bytes.get();
    let sound = group.reserved == 0
        && reference.birth < reference.death
        && (1..=STORED_BYTES_MAX).contains(&stored_bytes);
    sound.then_some((reference, stored_bytes))
}

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[
    layout!("sample page", SamplePage { seed, page_index, page_count, group_count, halvings, reserved }),
    layout!("sample group", SampleGroup { middle, branch, birth, entry_count, presence, reserved }),
    layout!("sample entry", SampleEntry { middle_offset, stored_bytes, death }),
];

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId(7);

    fn references(count: u64) -> Vec<SampledReference> {
        let reference = |at: u64| Reference {
            middle: MiddleAddress(at * 9),
            branch: BranchId((at / 400) as u32),
            birth: Epoch((at / 100) as u32),
            death: if at % 3 == 0 { Epoch::NEVER } else { Epoch(at as u32 + 1) },
            presence: if at % 50 == 0 { Presence::Hidden } else { Presence::Present },
        };
        (0..count).map(|at| (reference(at), 1 + (at % 4096) as u16)).collect()
    }

    fn decode(pages: &[Vec<u8>]) -> Vec<SampledReference> {
        let mut found = Vec::new();
        for (index, page) in pages.iter().enumerate() {
            let header = decode_page(page, VOLUME, &mut found).unwrap();
            let expected =
                SampleHeader { seed: 5, halvings: 3, page_index: index as u32, page_count: pages.len() as u32 };
            assert_eq!(header, expected);
        }
        found
    }

    #[test]
    fn references_survive_their_pages() {
        for count in [0, 1, 2000, 5000] {
            let pages = encode_pages(VOLUME, 5, 3, references(count));
            assert_eq!(pages.len(), 1 + count as usize / 2001, "{count} references");
            assert_eq!(decode(&pages), references(count));
        }
    }

    #[test]
    fn pages_that_are_not_this_sample_are_refused() {
        let pages = encode_pages(VOLUME, 5, 3, references(10));
        assert_eq!(decode_page(&pages[0], VolumeId(8), &mut Vec::new()), Err(EnvelopeError::OtherVolume));
        assert!(decode_page(&pages[0][..PAGE_BYTES - 1], VOLUME, &mut Vec::new()).is_err());
    }

    #[test]
    fn values_out_of_their_range_are_refused_though_the_checksum_is_right() {
        let valid = encode_pages(VOLUME, 5, 3, references(1)).remove(0);
        // Page index beyond the count, reserved bytes of page and group, presence, more entries than fit, size 0, death at birth,
        // bytes behind the last entry.
        let entry = HEADER_BYTES + GROUP_BYTES;
        let cases: [(usize, &[u8]); 9] = [
            (ENVELOPE_BYTES + 8, &[1]),
            (ENVELOPE_BYTES + 19, &[1]),
            (HEADER_BYTES + 19, &[1]),
            (HEADER_BYTES + 18, &[3]),
            (HEADER_BYTES + 16, &[0xff, 0xff]),
            (entry + 2, &[0, 0]),
            (entry + 2, &[1, 0x10]),
            (entry + 4, &[0; 4]),
            (PAGE_BYTES - 1, &[1]),
        ];
        for (offset, bytes) in cases {
            let mut page = valid.clone();
            page[offset..][..bytes.len()].copy_from_slice(bytes);
            envelope::seal(&mut page, Kind::Sample, VERSION, VOLUME, PAGE_BYTES - ENVELOPE_BYTES);
            let found = decode_page(&page, VOLUME, &mut Vec::new());
            assert!(
                matches!(found, Err(EnvelopeError::Nonsense(_) | EnvelopeError::ReservedNotZero)),
                "{offset}: {found:?}"
            );
        }
    }
}
