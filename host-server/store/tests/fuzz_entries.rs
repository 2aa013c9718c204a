//! The fuzz targets' functions on random and on damaged valid inputs, a few thousand each.

#![allow(clippy::unwrap_used)]

use ringfort_engine::sim::Random;
use ringfort_store::address::VolumeId;
use ringfort_store::format::envelope::ENVELOPE_BYTES;
use ringfort_store::format::page::{LeafSlot, PAGE_BYTES, PageIdentity, leaf_slots_mut, seal_leaf};
use ringfort_store::format::{filesystem, map};
use ringfort_store::volume::{Key, TreeId};

#[path = "../fuzz/entries.rs"]
mod entries;

const ROUNDS: usize = 3000;

/// A frozen structure.
fn frozen(name: &str) -> Vec<u8> {
    frozen_in(include_str!("fixtures/structures_v1.txt"), name)
}

fn frozen_in(fixture: &str, name: &str) -> Vec<u8> {
    let line = fixture.lines();
    let hex = line.filter_map(|line| line.split_once(": ")).find(|(found, _)| *found == name).unwrap().1;
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Changes, adds and takes away bytes; favours the values that bounds are made of.
fn damaged(random: &mut Random, valid: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for _ in 0..random.below(5) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.next_u64() as u8),
            2 => bytes[at] ^= 1 << random.below(8),
            3 => bytes[at] = [0, 1, 2, 0x7f, 0x80, 0xff][random.below(6) as usize],
            4 => bytes[at] = bytes[at].wrapping_add(random.below(3) as u8).wrapping_sub(1),
            _ => {
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&random.next_u64().to_le_bytes()[..end - at]);
            }
        }
    }
    bytes
}

fn try_all(entry: fn(&[u8]), seed: u64, valid: &[Vec<u8>]) {
    let mut random = Random::new(seed);
    entry(&[]);
    for sample in valid {
        entry(sample);
    }
    for round in 0..ROUNDS {
        let bytes = if round % 4 == 0 {
            (0..random.below(300)).map(|_| random.next_u64() as u8).collect()
        } else {
            damaged(&mut random, &valid[round % valid.len()])
        };
        entry(&bytes);
    }
}

#[test]
fn labels() {
    let block = include_bytes!("fixtures/label_v1.bin");
    let body_bytes = u32::from_le_bytes(block[8..12].try_into().unwrap()) as usize;
    let body = block[ENVELOPE_BYTES..ENVELOPE_BYTES + body_bytes].to_vec();
    try_all(entries::label, 1, &[body, block.to_vec()]);
}

#[test]
fn roots() {
    let root = frozen("root");
    try_all(entries::root, 2, &[root[ENVELOPE_BYTES..].to_vec(), root[ENVELOPE_BYTES + 128..].to_vec()]);
}

#[test]
fn records() {
    let names = ["put", "delete", "unmap", "write", "stripe", "bank"];
    let mut valid: Vec<_> = names.iter().map(|name| frozen(&format!("{name} entry"))).collect();
    valid.push(valid.concat());
    try_all(entries::record, 3, &valid);
}

#[test]
fn pages() {
    let identity = PageIdentity { volume: VolumeId(1), generation: 9, tree: TreeId(16), level: 0 };
    let mut leaf = vec![0; PAGE_BYTES];
    leaf_slots_mut(&mut leaf, 2).copy_from_slice(&[
        LeafSlot::new(Key::new(1, 2), PAGE_BYTES - 3, 3),
        LeafSlot::new(Key::new(1, 3), PAGE_BYTES - 7, 4),
    ]);
    seal_leaf(&mut leaf, identity, 2, PAGE_BYTES - 7);
    let short = leaf[ENVELOPE_BYTES..ENVELOPE_BYTES + 80].to_vec();
    let inner = [&9_u64.to_le_bytes()[..], &[16, 1, 1, 0, 0, 0], &[0; 50]].concat();
    let valid = [
        [&[16, 0][..], &leaf[ENVELOPE_BYTES..]].concat(),
        [&[16, 0][..], &short].concat(),
        [&[16, 1][..], &inner].concat(),
    ];
    try_all(entries::page, 4, &valid);
}

#[test]
fn summaries_and_runs() {
    let stored = map::MiddleRun::Stored {
        physical: ringfort_store::address::PhysicalBlock(5),
        checksums: vec![ringfort_store::address::BlockChecksum(1); 3],
    };
    let valid = [frozen("summary"), stored.encode(), map::MiddleRun::Dead { len_blocks: 3 }.encode()];
    try_all(entries::summary, 5, &valid);
}

#[test]
fn memory_files() {
    let valid = [frozen("memory header")[ENVELOPE_BYTES..].to_vec(), frozen("area"), frozen("frame")];
    try_all(entries::memory, 6, &valid);
}

#[test]
fn filesystem_values() {
    let inode = filesystem::Inode {
        kind: filesystem::kind::SYMLINK,
        target: b"target".to_vec(),
        ..Default::default()
    };
    let entry = filesystem::Entry { child: 7, kind: filesystem::kind::REGULAR, name: b"name".to_vec() };
    let xattr = filesystem::Xattr { name: b"user.name".to_vec(), value: b"value".to_vec() };
    let properties = filesystem::Properties { hash_key: [1, 2], root: 1 };
    let valid = [
        inode.encode(),
        entry.encode(),
        xattr.encode(),
        properties.encode(),
        filesystem::encode_inode_limit(9),
        filesystem::encode_orphan(),
    ];
    try_all(entries::filesystem, 7, &valid);
}

#[test]
fn pages_of_samples() {
    let page = frozen_in(include_str!("fixtures/sample_v1.txt"), "sample page");
    try_all(entries::sample, 8, &[page[ENVELOPE_BYTES..].to_vec(), page]);
}
