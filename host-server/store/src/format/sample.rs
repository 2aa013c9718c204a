//! Pages of the sample that tells what snapshots cost.
//!
//! ```text
//! envelope (kind 9) · SamplePage · entry_count × SampleEntry · zeros
//! ```
//! Pages form an image and what was added to it: a later entry overrides an earlier one of the same place, birth and kind.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::envelope::{self, ENVELOPE_BYTES, EnvelopeError, Kind};
use super::layout::{Layout, layout};
use super::page::PAGE_BYTES;
use crate::address::{LogicalBlock, MiddleAddress, ObjectId, VolumeId};
use crate::interval::{BranchId, Epoch, Place, Presence, Reference};

const VERSION: u16 = 1;
/// The lowest rate: one address of so many doublings. 2^40 blocks of 4 KiB for one of them.
pub const HALVINGS_MAX: u8 = 40;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SamplePage {
    seed: U64,
    image: U64,
    page_index: U32,
    entry_count: U16,
    halvings: u8,
    reserved: u8,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SampleEntry {
    object: U64,
    block: U64,
    middle: U64,
    branch: U32,
    birth: U32,
    death: U32,
    stored_bytes: U16,
    kind: u8,
    reserved: u8,
}

const HEADER_BYTES: usize = ENVELOPE_BYTES + size_of::<SamplePage>();
const ENTRY_BYTES: usize = size_of::<SampleEntry>();
/// Entries of a full page.
pub const ENTRIES_MAX: usize = (PAGE_BYTES - HEADER_BYTES) / ENTRY_BYTES;

const _: () = assert!(size_of::<SamplePage>() == 24);
const _: () = assert!(ENTRY_BYTES == 40);

const PRESENT: u8 = Presence::Present as u8;
const HIDDEN: u8 = Presence::Hidden as u8;
const CROWDED: u8 = 3;

/// What every page says of the whole sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleHeader {
    /// Of the coins that choose addresses.
    pub seed: u64,
    /// Counts the images; what is added to one has its number.
    pub image: u64,
    pub page_index: u32,
    /// The rate is 2 to the power of minus this.
    pub halvings: u8,
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleRecord {
    Held(Reference),
    /// What earlier entries say of it is over.
    Gone {
        place: Place,
        birth: Epoch,
        presence: Presence,
    },
    /// References to this address are not kept: there are too many.
    Crowded {
        middle: MiddleAddress,
        stored_bytes: u16,
    },
}

/// Records as pages, numbered from that of the header on: at least one.
pub fn encode_pages(
    volume: VolumeId,
    first: SampleHeader,
    records: impl IntoIterator<Item = SampleRecord>,
) -> Vec<Vec<u8>> {
    let entries: Vec<_> = records.into_iter().map(|record| encode_record(&record)).collect();
    let mut chunks: Vec<_> = entries.chunks(ENTRIES_MAX).collect();
    if chunks.is_empty() {
        chunks.push(&[]);
    }
    let numbered = (first.page_index..).zip(chunks);
    numbered
        .map(|(page_index, entries)| encode_page(volume, &SampleHeader { page_index, ..first }, entries))
        .collect()
}

fn encode_page(volume: VolumeId, header: &SampleHeader, entries: &[SampleEntry]) -> Vec<u8> {
    let page = SamplePage {
        seed: header.seed.into(),
        image: header.image.into(),
        page_index: header.page_index.into(),
        entry_count: (entries.len() as u16).into(),
        halvings: header.halvings,
        reserved: 0,
    };
    let mut bytes = vec![0; PAGE_BYTES];
    bytes[ENVELOPE_BYTES..HEADER_BYTES].copy_from_slice(page.as_bytes());
    bytes[HEADER_BYTES..][..size_of_val(entries)].copy_from_slice(entries.as_bytes());
    envelope::seal(&mut bytes, Kind::Sample, VERSION, volume, PAGE_BYTES - ENVELOPE_BYTES);
    bytes
}

fn encode_record(record: &SampleRecord) -> SampleEntry {
    let entry = |kind: u8, place: Place, birth: Epoch, death: Epoch, middle: MiddleAddress, stored: u16| {
        SampleEntry {
            object: place.object.0.into(),
            block: place.block.0.into(),
            middle: middle.0.into(),
            branch: place.branch.0.into(),
            birth: birth.0.into(),
            death: death.0.into(),
            stored_bytes: stored.into(),
            kind,
            reserved: 0,
        }
    };
    match *record {
        SampleRecord::Held(Reference { place, middle, birth, death, presence, stored_bytes }) => {
            entry(presence as u8, place, birth, death, middle, stored_bytes)
        }
        SampleRecord::Gone { place, birth, presence } => {
            entry(presence as u8, place, birth, birth, MiddleAddress(0), 0)
        }
        SampleRecord::Crowded { middle, stored_bytes } => {
            entry(CROWDED, Place::default(), Epoch(0), Epoch(0), middle, stored_bytes)
        }
    }
}

/// Verifies a page and appends its records to `into`.
pub fn decode_page(
    bytes: &[u8],
    volume: VolumeId,
    into: &mut Vec<SampleRecord>,
) -> Result<SampleHeader, EnvelopeError> {
    let nonsense = EnvelopeError::Nonsense;
    let opened = envelope::open(bytes, Kind::Sample, VERSION, Some(volume))?;
    if bytes.len() != PAGE_BYTES || opened.body.len() != PAGE_BYTES - ENVELOPE_BYTES {
        return Err(EnvelopeError::WrongLength { available: bytes.len(), found: opened.body.len() });
    }
    let (page, entries) =
        SamplePage::ref_from_prefix(opened.body).map_err(|_| nonsense("no page of a sample"))?;
    let count = usize::from(page.entry_count.get());
    let (entries, rest) = <[SampleEntry]>::ref_from_prefix_with_elems(entries, count)
        .map_err(|_| nonsense("more entries than a page of a sample has room for"))?;
    if page.reserved != 0 || rest.iter().any(|byte| *byte != 0) {
        return Err(EnvelopeError::ReservedNotZero);
    }
    if page.halvings > HALVINGS_MAX {
        return Err(nonsense("the rate of a sample"));
    }
    into.reserve(count);
    for entry in entries {
        into.push(decode_entry(entry).ok_or(nonsense("an entry of a sample"))?);
    }
    Ok(SampleHeader {
        seed: page.seed.get(),
        image: page.image.get(),
        page_index: page.page_index.get(),
        halvings: page.halvings,
    })
}

fn decode_entry(entry: &SampleEntry) -> Option<SampleRecord> {
    let presence = match entry.kind {
        PRESENT => Some(Presence::Present),
        HIDDEN => Some(Presence::Hidden),
        CROWDED => None,
        _ => return None,
    };
    let place = Place {
        branch: BranchId(entry.branch.get()),
        object: ObjectId(entry.object.get()),
        block: LogicalBlock(entry.block.get()),
    };
    let middle = MiddleAddress(entry.middle.get());
    let (birth, death) = (Epoch(entry.birth.get()), Epoch(entry.death.get()));
    let stored_bytes = entry.stored_bytes.get();
    let record = match presence {
        None => SampleRecord::Crowded { middle, stored_bytes },
        Some(presence) if birth == death => SampleRecord::Gone { place, birth, presence },
        Some(presence) => {
            SampleRecord::Held(Reference { place, middle, birth, death, presence, stored_bytes })
        }
    };
    let sound = match record {
        SampleRecord::Held(_) => {
            birth < death && (presence == Some(Presence::Present) || death == Epoch::NEVER)
        }
        _ => true,
    };
    let sized = matches!(record, SampleRecord::Gone { .. })
        || (1..=Reference::STORED_BYTES_MAX).contains(&stored_bytes);
    // There is one way to write each record.
    (sound && sized && encode_record(&record).as_bytes() == entry.as_bytes()).then_some(record)
}

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[
    layout!("sample page", SamplePage { seed, image, page_index, entry_count, halvings, reserved }),
    layout!(
        "sample entry",
        SampleEntry { object, block, middle, branch, birth, death, stored_bytes, kind, reserved }
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId(7);
    const HEADER: SampleHeader = SampleHeader { seed: 5, image: 2, page_index: 9, halvings: 3 };

    fn record(at: u64) -> SampleRecord {
        let place = Place::new(BranchId(at as u32 % 3), ObjectId(at / 100), at * 7);
        let (middle, birth, stored_bytes) = (MiddleAddress(at * 9), Epoch(at as u32), 1 + (at % 4096) as u16);
        match at % 5 {
            0 => SampleRecord::Gone { place, birth, presence: Presence::Hidden },
            1 => SampleRecord::Crowded { middle, stored_bytes },
            2 => SampleRecord::Held(Reference {
                place,
                middle,
                birth,
                death: Epoch::NEVER,
                presence: Presence::Hidden,
                stored_bytes,
            }),
            _ => SampleRecord::Held(Reference {
                place,
                middle,
                birth,
                death: Epoch(at as u32 + 1),
                presence: Presence::Present,
                stored_bytes,
            }),
        }
    }

    #[test]
    fn records_survive_their_pages() {
        for count in [0, 1, ENTRIES_MAX, ENTRIES_MAX + 1, 3000] {
            let records: Vec<_> = (0..count as u64).map(record).collect();
            let pages = encode_pages(VOLUME, HEADER, records.iter().copied());
            assert_eq!(pages.len(), count.div_ceil(ENTRIES_MAX).max(1), "{count} records");
            let mut found = Vec::new();
            for (page_index, page) in (9..).zip(&pages) {
                let header = decode_page(page, VOLUME, &mut found).unwrap();
                assert_eq!(header, SampleHeader { page_index, ..HEADER });
            }
            assert_eq!(found, records);
        }
    }

    #[test]
    fn pages_that_are_not_this_samples_are_refused() {
        let page = encode_pages(VOLUME, HEADER, [record(3)]).remove(0);
        assert_eq!(decode_page(&page, VolumeId(8), &mut Vec::new()), Err(EnvelopeError::OtherVolume));
        assert!(decode_page(&page[..PAGE_BYTES - 1], VOLUME, &mut Vec::new()).is_err());
        assert!(decode_page(&[page.clone(), vec![0]].concat(), VOLUME, &mut Vec::new()).is_err());
    }

    #[test]
    fn values_out_of_their_range_are_refused_though_the_checksum_is_right() {
        let valid = encode_pages(VOLUME, HEADER, [record(3)]).remove(0);
        // More entries than fit; halvings; reserved; death before birth; size 0 and 4097; kind; reserved; an absence that ends; bytes
        // behind the last entry.
        let cases: [(usize, &[u8]); 10] = [
            (ENVELOPE_BYTES + 20, &[0xff, 0xff]),
            (ENVELOPE_BYTES + 22, &[HALVINGS_MAX + 1]),
            (ENVELOPE_BYTES + 23, &[1]),
            (HEADER_BYTES + 32, &[2]),
            (HEADER_BYTES + 36, &[0, 0]),
            (HEADER_BYTES + 36, &[1, 0x10]),
            (HEADER_BYTES + 38, &[4]),
            (HEADER_BYTES + 39, &[1]),
            (HEADER_BYTES + 38, &[HIDDEN]),
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
