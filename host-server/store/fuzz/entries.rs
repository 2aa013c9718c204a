//! What the fuzz targets do with their bytes, and what they expect of the answers. `tests/fuzz_entries.rs` runs the same
//! functions on seeded inputs.
//!
//! Fuzzers find no checksums: where a structure has one, the bytes are tried as they are, and once more in a correct envelope.

use ringfort_store::address::{MetadataAddress, VolumeId};
use ringfort_store::format::component::{LABEL_BYTES, Label};
use ringfort_store::format::envelope::{ENVELOPE_BYTES, Kind, checksum_of, open, seal};
use ringfort_store::format::filesystem::{
    Entry as DirectoryEntry, Inode, Properties, Xattr, decode_inode_limit, decode_orphan, encode_inode_limit,
    encode_orphan,
};
use ringfort_store::format::log::{Entry, WRITE_BLOCKS_MAX, decode_body, encode_end};
use ringfort_store::format::map::{LogicalRun, MiddleRun};
use ringfort_store::format::memory::{MemoryShape, decode_area, decode_frames, encode_frame};
use ringfort_store::format::page::{
    DecodedPage, PAGE_BYTES, PAGE_HEADER_BYTES, PagePointer, Roots, decode as decode_page,
};
use ringfort_store::format::root::{ROOT_SLOT_BYTES, Root};
use ringfort_store::format::sample::{
    ENTRIES_MAX, decode_page as decode_sample_page, encode_pages as encode_sample_pages,
};
use ringfort_store::format::segment::StripeSummary;
use ringfort_store::sketch::sample::Sample;
use ringfort_store::volume::{TreeId, VALUE_BYTES_MAX};

const VOLUME: VolumeId = VolumeId(1);

/// `body` in an envelope of version 1, in a slot of `len_bytes`.
fn sealed(kind: Kind, body: &[u8], len_bytes: usize) -> Vec<u8> {
    let body = &body[..body.len().min(len_bytes - ENVELOPE_BYTES)];
    // The volume that a label names itself, so that it is not refused for that.
    let own = body.first_chunk::<16>().filter(|_| kind == Kind::ComponentLabel);
    let volume = own.map_or(VOLUME, |bytes| VolumeId(u128::from_le_bytes(*bytes)));
    let mut bytes = vec![0; len_bytes];
    bytes[ENVELOPE_BYTES..ENVELOPE_BYTES + body.len()].copy_from_slice(body);
    seal(&mut bytes, kind, 1, volume, body.len());
    bytes
}

/// A slot of a component's labels.
pub fn label(bytes: &[u8]) {
    for block in [bytes.to_vec(), sealed(Kind::ComponentLabel, bytes, LABEL_BYTES)] {
        if let Ok(label) = Label::decode(&block) {
            let encoded = label.encode();
            let body = |block| open(block, Kind::ComponentLabel, 2, None).map(|opened| opened.body.to_vec());
            assert_eq!(body(&encoded), body(&block));
        }
    }
}

/// A root slot.
pub fn root(bytes: &[u8]) {
    for slot in [bytes.to_vec(), sealed(Kind::Superblock, bytes, ROOT_SLOT_BYTES)] {
        if let Some(root) = Root::decode(&slot, VOLUME) {
            assert_eq!(Root::decode(&root.encode(VOLUME), VOLUME), Some(root));
        }
    }
    if let Some(roots) = Roots::decode(bytes) {
        assert_eq!(Roots::decode(&roots.encode()), Some(roots));
    }
}

/// The body of a log record.
pub fn record(bytes: &[u8]) {
    let Some(transactions) = decode_body(bytes) else { return };
    let mut encoded = Vec::new();
    for entries in &transactions {
        for entry in entries {
            match entry {
                Entry::Put { value, .. } => assert!(value.len() <= VALUE_BYTES_MAX),
                Entry::Write(run) => assert!((1..=WRITE_BLOCKS_MAX).contains(&run.checksums.len())),
                _ => {}
            }
            entry.encode(&mut encoded);
        }
        encode_end(&mut encoded);
    }
    assert_eq!(encoded.len(), bytes.len());
    assert_eq!(decode_body(&encoded), Some(transactions));
}

/// A page: the first two bytes are the tree and level that it is taken for, the rest follows the envelope.
pub fn page(bytes: &[u8]) {
    let Some((&[tree, level], body)) = bytes.split_first_chunk() else { return };
    let body = &body[..body.len().min(PAGE_BYTES - ENVELOPE_BYTES)];
    let mut page = vec![0; PAGE_BYTES];
    page[ENVELOPE_BYTES..ENVELOPE_BYTES + body.len()].copy_from_slice(body);
    seal(&mut page, Kind::Page, 1, VOLUME, PAGE_BYTES - ENVELOPE_BYTES);
    let generation = body.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let checksum = checksum_of(&page).unwrap_or_default();
    let pointer = PagePointer { address: MetadataAddress(0), generation, checksum };
    match decode_page(&page, pointer, VOLUME, TreeId(tree), level) {
        Ok(DecodedPage::Leaf { slots, .. }) => {
            assert!(slots.is_sorted_by(|a, b| a.key() < b.key()));
            for slot in slots {
                assert!(slot.value_range().start >= PAGE_HEADER_BYTES);
                assert!(page[slot.value_range()].len() <= VALUE_BYTES_MAX);
            }
        }
        Ok(DecodedPage::Inner { entries }) => assert!(entries.is_sorted_by(|a, b| a.key() < b.key())),
        Err(_) => {}
    }
    assert!(decode_page(bytes, pointer, VOLUME, TreeId(tree), level).is_err());
}

/// Values of the maps, and the summary of a stripe.
pub fn summary(bytes: &[u8]) {
    if let Some(summary) = StripeSummary::decode(bytes) {
        assert_eq!(summary.middles.len(), summary.data_checksums.len());
        assert_eq!(StripeSummary::decode(&summary.encode()), Some(summary));
    }
    if let Some(run) = LogicalRun::decode(bytes) {
        assert_eq!(run.encode().as_slice(), bytes);
    }
    if let Some(run) = MiddleRun::decode(bytes) {
        assert_eq!(run.encode(), bytes);
    }
}

/// Header, area entries and frames of a memory file.
pub fn memory(bytes: &[u8]) {
    for block in [bytes.to_vec(), sealed(Kind::MemoryFile, bytes, 4096)] {
        if let Some(shape) = MemoryShape::decode(&block, VOLUME) {
            let mut encoded = vec![0; 4096];
            shape.encode(VOLUME, &mut encoded);
            assert_eq!(MemoryShape::decode(&encoded, VOLUME), Some(shape));
        }
    }
    let epoch = u64::from(bytes.first().copied().unwrap_or_default());
    let _ = decode_area(bytes, epoch);
    let frames = decode_frames(bytes, epoch);
    assert!(frames.iter().map(|(_, body)| body.len()).sum::<usize>() <= bytes.len());
    // A good frame, then these bytes: they never take it away.
    let mut half = vec![0; 32 + bytes.len()];
    let front = bytes.len() / 2;
    let len_bytes = encode_frame(&mut half, 7, epoch, &bytes[..front]).unwrap_or_default();
    half.truncate(len_bytes);
    half.extend_from_slice(&bytes[front..]);
    assert_eq!(decode_frames(&half, epoch).first(), Some(&(7, &bytes[..front])));
}

/// Values of the filesystem's trees.
pub fn filesystem(bytes: &[u8]) {
    if let Ok(inode) = Inode::decode(bytes) {
        assert_eq!(inode.encode(), bytes);
    }
    if let Ok(entry) = DirectoryEntry::decode(bytes) {
        assert_eq!(entry.encode(), bytes);
    }
    if let Ok(xattr) = Xattr::decode(bytes) {
        assert_eq!(xattr.encode(), bytes);
    }
    if let Ok(properties) = Properties::decode(bytes) {
        assert_eq!(properties.encode(), bytes);
    }
    if let Ok(limit) = decode_inode_limit(bytes) {
        assert_eq!(encode_inode_limit(limit), bytes);
    }
    if decode_orphan(bytes).is_ok() {
        assert_eq!(encode_orphan(), bytes);
    }
}

/// A page of the sample of snapshots' costs.
pub fn sample(bytes: &[u8]) {
    let mut padded = vec![0; PAGE_BYTES - ENVELOPE_BYTES];
    let len_bytes = bytes.len().min(padded.len());
    padded[..len_bytes].copy_from_slice(&bytes[..len_bytes]);
    for page in [bytes.to_vec(), sealed(Kind::Sample, &padded, PAGE_BYTES)] {
        let mut records = Vec::new();
        if let Ok(header) = decode_sample_page(&page, VOLUME, &mut records) {
            assert!(records.len() <= ENTRIES_MAX);
            assert_eq!(encode_sample_pages(VOLUME, header, records), std::slice::from_ref(&page));
        }
        // However wrong the references are, they are held or refused.
        if let Ok(sample) = Sample::load(VOLUME, 64, [page]) {
            assert!(sample.len() <= 64);
        }
    }
}
