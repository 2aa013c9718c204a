//! Pages of samples as earlier releases wrote them. A file of a version that exists is never made again.
//!
//! ```text
//! RINGFORT_GOLDEN=sample_v2.txt cargo test -p ringfort-store --test sketch_golden -- --ignored make
//! ```

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use ringfort_store::address::{LogicalBlock, MiddleAddress, ObjectId, VolumeId};
use ringfort_store::format::page::PAGE_BYTES;
use ringfort_store::format::sample::{SampleHeader, SampleRecord, decode_page, encode_pages};
use ringfort_store::interval::{BranchId, Epoch, Place, Presence, Reference};
use ringfort_store::sketch::sampler::{Run, Sampler};

const NEWEST: &str = "sample_v1.txt";
const VOLUME: VolumeId = VolumeId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
const HEADER: SampleHeader = SampleHeader { seed: 1, image: 2, page_index: 3, halvings: 4 };

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn records() -> [SampleRecord; 4] {
    let place = |branch, object, block| Place {
        branch: BranchId(branch),
        object: ObjectId(object),
        block: LogicalBlock(block),
    };
    let alive = Reference {
        place: place(5, 6, 7),
        middle: MiddleAddress(8),
        birth: Epoch(9),
        death: Epoch::NEVER,
        presence: Presence::Present,
        stored_bytes: 4096,
    };
    let hidden = Reference { place: place(10, 6, 7), birth: Epoch(11), presence: Presence::Hidden, ..alive };
    let past = Reference { middle: MiddleAddress(12), death: Epoch(13), stored_bytes: 14, ..alive };
    [
        SampleRecord::Held(past),
        SampleRecord::Held(hidden),
        SampleRecord::Gone { place: place(15, 16, 17), birth: Epoch(18), presence: Presence::Present },
        SampleRecord::Crowded { middle: MiddleAddress(19), stored_bytes: 20 },
    ]
}

/// The page, and the addresses of the first thousand that the coins choose: their function is part of the format.
fn text() -> String {
    let page = encode_pages(VOLUME, HEADER, records()).remove(0);
    let end = page.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let hex: String = page[..end].iter().map(|byte| format!("{byte:02x}")).collect();
    let members = Sampler::new(1, 4).members(Run::new(MiddleAddress(0), 1000));
    let members: Vec<_> = members.map(|middle| middle.0.to_string()).collect();
    format!("sample page: {hex}\nmembers: {}\n", members.join(" "))
}

#[test]
fn samples_are_written_as_they_were() {
    assert_eq!(text(), std::fs::read_to_string(fixture(NEWEST)).unwrap());
}

#[test]
fn samples_read_as_they_did() {
    let text = std::fs::read_to_string(fixture("sample_v1.txt")).unwrap();
    let hex = text.lines().next().unwrap().strip_prefix("sample page: ").unwrap();
    let mut page: Vec<_> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    page.resize(PAGE_BYTES, 0);
    let mut found = Vec::new();
    assert_eq!(decode_page(&page, VOLUME, &mut found), Ok(HEADER));
    assert_eq!(found, records());
}

#[test]
#[ignore = "makes files, once for each version of the format"]
fn make() {
    let path = fixture(&std::env::var("RINGFORT_GOLDEN").unwrap());
    assert!(!path.exists(), "{} is frozen", path.display());
    std::fs::write(path, text()).unwrap();
}
