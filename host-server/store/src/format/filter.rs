//! Filters: bits from which a table tells that it has nothing for a key.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 32 | envelope, kind 8, version 1 |
//! | 32 | 8 | the table's number |
//! | 40 | 4 | which of the table's filter pages this is |
//! | 44 | 20 | reserved, zero |
//! | 64 | | 255 blocks of 64 bytes |
//!
//! A key's hash chooses a page of the table's filter, a block in it and bits of that block (blocked Bloom filters: Putze, Sanders, Singler,
//! "Cache-, Hash- and Space-Efficient Bloom Filters", 2007), so that a probe reads one cache line.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::envelope::{self, ENVELOPE_BYTES, EnvelopeError, Kind};
use super::layout::{Layout, layout};
use super::page::{PAGE_BYTES, PageFault, PagePointer};
use crate::address::VolumeId;

const VERSION: u16 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FilterHeader {
    table: U64,
    part: U32,
    reserved: [u8; 20],
}

const BLOCK_BYTES: usize = 64;
const HEADER_BYTES: usize = ENVELOPE_BYTES + size_of::<FilterHeader>();
const _: () = assert!(HEADER_BYTES == BLOCK_BYTES);

/// Blocks of a page.
const BLOCKS: u64 = ((PAGE_BYTES - HEADER_BYTES) / BLOCK_BYTES) as u64;
/// Bits that each key sets: the best number for ten bits a key in one block.
const BITS_SET: u32 = 6;
/// One key in a hundred or so passes for one that is there.
const BITS_PER_KEY: u64 = 10;

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[layout!("filter page", FilterHeader { table, part, reserved })];

/// The hash of a key, as filters take it: two rounds of the finalizer of SplitMix64 (Steele, Lea, Flood, 2014).
#[inline]
pub fn hash(hi: u64, lo: u64) -> u64 {
    let mix = |seed: u64| {
        let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        seed ^ (seed >> 31)
    };
    mix(mix(hi.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ lo)
}

/// Pages of a filter for so many keys.
pub fn page_count(keys: usize) -> usize {
    (keys as u64 * BITS_PER_KEY).div_ceil(BLOCKS * BLOCK_BYTES as u64 * 8).max(1) as usize
}

/// Which page of a filter of `pages` holds a hash: the upper bits choose.
#[inline]
pub fn page_of(hash: u64, pages: usize) -> usize {
    ((u128::from(hash) * pages as u128) >> 64) as usize
}

/// The block of a hash, in a page, and the bits of it.
#[inline]
fn place(hash: u64) -> (usize, [u16; BITS_SET as usize]) {
    // Other bits than those which have chosen the page.
    let spread = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let block = ((spread & 0xffff_ffff) * BLOCKS) >> 32;
    let mut bits = [0; BITS_SET as usize];
    let mut rest = hash.rotate_left(25).wrapping_mul(0xd6e8_feb8_6659_fd93);
    for bit in &mut bits {
        *bit = (rest >> 55) as u16;
        rest = rest.rotate_left(9);
    }
    (HEADER_BYTES + block as usize * BLOCK_BYTES, bits)
}

/// The pages of a filter for these hashes, with their checksums.
pub fn encode(hashes: &[u64], volume: VolumeId, table: u64) -> Vec<(Vec<u8>, u32)> {
    let pages = page_count(hashes.len());
    let mut encoded = vec![vec![0; PAGE_BYTES]; pages];
    for hash in hashes {
        let (at, bits) = place(*hash);
        let page = &mut encoded[page_of(*hash, pages)];
        for bit in bits {
            page[at + usize::from(bit >> 3)] |= 1 << (bit & 7);
        }
    }
    let sealed = encoded.into_iter().enumerate().map(|(part, mut page)| {
        let header = FilterHeader { table: U64::new(table), part: U32::new(part as u32), reserved: [0; 20] };
        page[ENVELOPE_BYTES..HEADER_BYTES].copy_from_slice(header.as_bytes());
        envelope::seal(&mut page, Kind::Filter, VERSION, volume, PAGE_BYTES - ENVELOPE_BYTES);
        let Some(checksum) = envelope::checksum_of(&page) else {
            unreachable!("a page is longer than its envelope")
        };
        (page, checksum)
    });
    sealed.collect()
}

/// Whether a key with this hash may be in the table, as its page of the filter says; the page was checked.
#[inline]
pub fn may_hold(page: &[u8], hash: u64) -> bool {
    let (at, bits) = place(hash);
    let block = &page[at..at + BLOCK_BYTES];
    bits.iter().all(|bit| block[usize::from(bit >> 3)] & (1 << (bit & 7)) != 0)
}

/// Checks a page as it came from a device.
pub fn check(page: &[u8], pointer: PagePointer, volume: VolumeId, part: u32) -> Result<(), PageFault> {
    if page.len() != PAGE_BYTES {
        return Err(PageFault::Length(page.len()));
    }
    let opened = envelope::open(page, Kind::Filter, VERSION, Some(volume))?;
    let Ok((header, _)) = FilterHeader::ref_from_prefix(opened.body) else { return Err(PageFault::Bounds) };
    if opened.body.len() != PAGE_BYTES - ENVELOPE_BYTES {
        return Err(PageFault::Length(opened.body.len()));
    }
    if header.reserved != [0; 20] {
        return Err(EnvelopeError::ReservedNotZero.into());
    }
    if header.table.get() != pointer.generation || header.part.get() != part {
        return Err(PageFault::Generation { expected: pointer.generation, found: header.table.get() });
    }
    match envelope::checksum_of(page) {
        Some(found) if found == pointer.checksum => Ok(()),
        found => Err(PageFault::Checksum { expected: pointer.checksum, found: found.unwrap_or_default() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::MetadataAddress;

    #[test]
    fn what_was_put_in_is_found_and_little_else() {
        const KEYS: u64 = 40_000;
        let key = |number: u64| hash(number % 3, number / 3);
        let hashes: Vec<u64> = (0..KEYS).map(key).collect();
        let pages = encode(&hashes, VolumeId(1), 5);
        assert_eq!(pages.len(), 4);
        for (part, (page, checksum)) in pages.iter().enumerate() {
            let pointer = PagePointer { address: MetadataAddress(0), generation: 5, checksum: *checksum };
            check(page, pointer, VolumeId(1), part as u32).unwrap();
            assert!(check(page, pointer, VolumeId(1), part as u32 + 1).is_err());
        }
        let holds = |number: u64| may_hold(&pages[page_of(key(number), pages.len())].0, key(number));
        assert!((0..KEYS).all(holds));
        let wrong = (KEYS..KEYS + 100_000).filter(|number| holds(*number)).count();
        assert!(wrong < 2_000, "{wrong} of 100,000 pass");
    }
}
