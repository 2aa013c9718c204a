//! What earlier releases wrote: bytes of structures, and whole volumes, which every later release must read.
//!
//! To freeze a new version of the format, before it is released:
//!
//! ```text
//! RINGFORT_GOLDEN=v4 cargo test -p ringfort-store --test golden -- --ignored make
//! ```
//!
//! and add its files to [`VOLUMES`] and [`STRUCTURES`]. Files that exist are never made again:
//! a test that fails on one of them has found a release that cannot read what was written before.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::buffer::{BLOCK_BYTES, Buffer, Slice};
use ringfort_engine::engine::{Engine, MemoryOpen};
use ringfort_engine::sim::{CrashMode, SimWorld};
use ringfort_store::address::{
    BlockChecksum, LogicalBlock, MetadataAddress, MiddleAddress, ObjectId, PhysicalBlock, SegmentId, ViewId,
    VolumeId,
};
use ringfort_store::check::check;
use ringfort_store::create::CreateOptions;
use ringfort_store::format::log::{Entry, RecordHeader, WriteRun, decode_body, encode_end};
use ringfort_store::format::memory::{MemoryShape, decode_area, decode_frames, encode_area, encode_frame};
use ringfort_store::format::page::{PagePointer, Roots, TreeRoot};
use ringfort_store::format::root::Root;
use ringfort_store::format::segment::{SegmentEntry, StripeSummary};
use ringfort_store::store::{OpenOptions, Store};
use ringfort_store::volume::{
    Cost, Key, ReadPiece, TreeId, ViewEntry, ViewKind, ViewState, Volume, shift_entries,
};
use zerocopy::{FromBytes, IntoBytes};

/// Image and listing of each golden volume.
const VOLUMES: &[(&str, &str)] = &[
    ("volume_v1.bin", "volume_v1.txt"),
    ("volume_v2.bin", "volume_v2.txt"),
    ("volume_v3.bin", "volume_v3.txt"),
];
/// The newest last: it has every structure.
const STRUCTURES: &[&str] = &[
    "structures_v1.txt",
    "structures_v2.txt",
    "structures_v3.txt",
    "structures_v4.txt",
    "structures_v5.txt",
];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

// ---- structures ----------------------------------------------------------------------------------------------------

const VOLUME: VolumeId = VolumeId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

fn root() -> Root {
    let pointer =
        PagePointer { address: MetadataAddress(0x20_0000), generation: 0x11, checksum: 0xa1b2_c3d4 };
    let tree = TreeRoot { tree: TreeId(16), level: 1, pointer, entry_count: 0x12 };
    Root {
        sequence: 1,
        epoch: 2,
        epoch_first_record: 3,
        applied_transaction: 4,
        replay_position: 5,
        replay_sequence: 6,
        replay_previous_checksum: 7,
        metadata_log_blocks: 8,
        moved_position: 9,
        moved_sequence: 10,
        moved_previous_checksum: 11,
        moved_records: 12,
        middle_limit: 13,
        log_blocks: 14,
        page_area_bytes: 15,
        total_blocks: 16,
        kept_epoch: 17,
        trees: Roots { generation: 0x13, trees: vec![tree] },
    }
}

fn record_header() -> RecordHeader {
    RecordHeader {
        magic: u32::from_le_bytes(*b"RFLR").into(),
        kind: 1.into(),
        version: 1.into(),
        body_bytes: 2.into(),
        data_blocks: 3.into(),
        volume: VOLUME.0.to_le_bytes(),
        epoch: 4.into(),
        sequence: 5.into(),
        first_transaction: 6.into(),
        root_sequence: 7.into(),
        position: 8.into(),
        transaction_count: 9.into(),
        previous_checksum: 10.into(),
        checksum: 11.into(),
        reserved: [0; 12],
    }
}

fn entries() -> Vec<(&'static str, Entry)> {
    vec![
        ("put", Entry::Put { tree: TreeId(16), key: Key::new(1, 2), value: b"value".to_vec() }),
        ("delete", Entry::Delete { tree: TreeId(17), key: Key::new(3, 4) }),
        ("unmap", Entry::Unmap { object: ObjectId(5), start: LogicalBlock(6), len_blocks: 1 << 40 }),
        (
            "write",
            Entry::Write(WriteRun {
                bank: true,
                object: ObjectId(7),
                start: LogicalBlock(8),
                middle: MiddleAddress(9),
                physical: PhysicalBlock(10),
                checksums: vec![BlockChecksum(0xdead_beef), BlockChecksum(11)],
            }),
        ),
        ("stripe", Entry::Stripe { segment: SegmentId(12), stripe: 13, summary: vec![14, 15, 16] }),
        ("bank", Entry::Bank { segment: SegmentId(17), first_stripe: 18, stripe_count: 19 }),
        (
            "shift",
            Entry::Shift {
                object: ObjectId(5),
                from: LogicalBlock(6),
                to: LogicalBlock(4),
                len_blocks: 1 << 40,
            },
        ),
        (
            "view",
            Entry::View {
                view: ViewId(3),
                entry: Some(ViewEntry {
                    kind: ViewKind::Snapshot { branch: ViewId(2) },
                    state: ViewState::Live,
                    epoch: 0x0102,
                    info: b"info".to_vec(),
                }),
            },
        ),
        (
            "share",
            Entry::Share {
                object: ObjectId(5),
                start: LogicalBlock(6),
                middle: MiddleAddress(9),
                len_blocks: 3,
            },
        ),
        (
            "move",
            Entry::Move {
                middle: MiddleAddress(9),
                len_blocks: 3,
                from: PhysicalBlock(10),
                to: PhysicalBlock(20),
            },
        ),
    ]
}

fn summary() -> StripeSummary {
    StripeSummary {
        middles: vec![Some(MiddleAddress(5)), Some(MiddleAddress(6)), None, Some(MiddleAddress(9))],
        data_checksums: (1..5).map(BlockChecksum).collect(),
        parity_checksums: (10..12).map(BlockChecksum).collect(),
    }
}

fn segment() -> SegmentEntry {
    SegmentEntry { version: 1, state: 3, reserved: [0; 2], next_stripe: 20.into() }
}

const SHAPE: MemoryShape = MemoryShape { epoch: 1, half_blocks: 2, area_count: 3, area_blocks: 4 };

/// Name and bytes, as this release writes them.
fn structures() -> Vec<(String, Vec<u8>)> {
    let mut found = vec![
        ("root".to_owned(), root().encode(VOLUME)),
        ("record".to_owned(), record_header().as_bytes().to_vec()),
    ];
    for (name, entry) in entries() {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        encode_end(&mut bytes);
        found.push((format!("{name} entry"), bytes));
    }
    let mut memory = vec![0; BLOCK_BYTES];
    SHAPE.encode(VOLUME, &mut memory);
    assert!(memory[56..].iter().all(|byte| *byte == 0));
    let mut frame = vec![0; 64];
    let frame_bytes = encode_frame(&mut frame, 7, 8, b"body").unwrap();
    found.extend([
        ("summary".to_owned(), summary().encode()),
        ("segment".to_owned(), segment().as_bytes().to_vec()),
        ("memory header".to_owned(), memory[..56].to_vec()),
        ("area".to_owned(), encode_area(PhysicalBlock(5), 6, 1).to_vec()),
        ("frame".to_owned(), frame[..frame_bytes].to_vec()),
    ]);
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn frozen_structures(name: &str) -> BTreeMap<String, Vec<u8>> {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    text.lines()
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, hex)| (name.into(), from_hex(hex)))
        .collect()
}

#[test]
fn structures_are_written_as_they_were() {
    let written: BTreeMap<_, _> = structures().into_iter().collect();
    for version in STRUCTURES {
        for (name, bytes) in frozen_structures(version) {
            assert_eq!(written.get(&name).map(|bytes| hex(bytes)), Some(hex(&bytes)), "{name} of {version}");
        }
    }
    assert_eq!(frozen_structures(STRUCTURES[STRUCTURES.len() - 1]).len(), written.len());
}

#[test]
fn structures_read_as_they_did() {
    let frozen = frozen_structures(STRUCTURES[STRUCTURES.len() - 1]);
    assert_eq!(Root::decode(&frozen["root"], VOLUME), Some(root()));
    let header = RecordHeader::read_from_bytes(&frozen["record"]).unwrap();
    assert_eq!(header.as_bytes(), record_header().as_bytes());
    for (name, entry) in entries() {
        assert_eq!(decode_body(&frozen[&format!("{name} entry")]), Some(vec![vec![entry]]));
    }
    assert_eq!(StripeSummary::decode(&frozen["summary"]), Some(summary()));
    assert_eq!(SegmentEntry::read_from_bytes(&frozen["segment"]).unwrap().as_bytes(), segment().as_bytes());
    assert_eq!(MemoryShape::decode(&frozen["memory header"], VOLUME), Some(SHAPE));
    assert_eq!(decode_area(&frozen["area"], 1), Some((PhysicalBlock(5), 6)));
    assert_eq!(decode_frames(&frozen["frame"], 8), [(7, &b"body"[..])]);
}

// ---- volumes -------------------------------------------------------------------------------------------------------

/// The image of a stopped machine: blocks of its devices and of one memory file that are not zero.
///
/// ```text
/// count of files (1) · for each: length of name (1), name, length in blocks (8)
/// then for each block: file (1), number (4), and runs until 512 words of 8 bytes are told, each begun by a count (2):
///     0           the whole block is a copy of an earlier one: index (4)
///     1 … 512     so many times the word that follows
///     0x8000 + n  n words that follow
/// ```
struct Image {
    /// Name and length in blocks; the memory file comes last.
    files: Vec<(String, u64)>,
    blocks: Vec<(usize, u32, Vec<u8>)>,
}

const LITERAL: u16 = 0x8000;

impl Image {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.files.len() as u8];
        for (name, block_count) in &self.files {
            bytes.push(name.len() as u8);
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&block_count.to_le_bytes());
        }
        let mut seen = BTreeMap::new();
        for (index, (file, number, block)) in self.blocks.iter().enumerate() {
            bytes.push(*file as u8);
            bytes.extend_from_slice(&number.to_le_bytes());
            let first = *seen.entry(block).or_insert(index);
            if first != index {
                bytes.extend_from_slice(&0_u16.to_le_bytes());
                bytes.extend_from_slice(&(first as u32).to_le_bytes());
                continue;
            }
            let words: Vec<_> = block.chunks_exact(8).collect();
            let runs: Vec<_> = words.chunk_by(|a, b| a == b).collect();
            for runs in runs.chunk_by(|a, b| a.len() == 1 && b.len() == 1) {
                let (count, words) = match runs {
                    [run] if run.len() > 1 => (run.len() as u16, vec![run[0]]),
                    literal => (LITERAL + literal.len() as u16, literal.concat()),
                };
                bytes.extend_from_slice(&count.to_le_bytes());
                bytes.extend_from_slice(&words.concat());
            }
        }
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Self {
        fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
            let (front, rest) = bytes.split_at(len);
            *bytes = rest;
            front
        }
        let count = take(&mut bytes, 1)[0];
        let mut files = Vec::new();
        for _ in 0..count {
            let name_bytes = usize::from(take(&mut bytes, 1)[0]);
            let name = String::from_utf8(take(&mut bytes, name_bytes).to_vec()).unwrap();
            files.push((name, u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())));
        }
        let mut blocks: Vec<(usize, u32, Vec<u8>)> = Vec::new();
        while !bytes.is_empty() {
            let file = usize::from(take(&mut bytes, 1)[0]);
            let number = u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap());
            let mut block = Vec::with_capacity(BLOCK_BYTES);
            while block.len() < BLOCK_BYTES {
                match u16::from_le_bytes(take(&mut bytes, 2).try_into().unwrap()) {
                    0 => {
                        let first = u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap());
                        block.extend_from_slice(&blocks[first as usize].2);
                    }
                    count if count > LITERAL => {
                        block.extend_from_slice(take(&mut bytes, usize::from(count - LITERAL) * 8));
                    }
                    count => block.extend(take(&mut bytes, 8).repeat(usize::from(count))),
                }
            }
            blocks.push((file, number, block));
        }
        Self { files, blocks }
    }

    fn components(&self) -> Vec<PathBuf> {
        self.files[..self.files.len() - 1].iter().map(|(name, _)| PathBuf::from(name)).collect()
    }

    /// A machine with these devices, and with the memory file if the process alone died.
    fn boot(&self, mode: CrashMode) -> SimWorld {
        let world = SimWorld::new(1);
        for (path, (_, block_count)) in self.components().iter().zip(&self.files) {
            world.add_block_device(path, block_count * BLOCK_BYTES as u64);
        }
        let (memory, block_count) = self.files.last().unwrap();
        let engine = world.engine();
        let file = match mode {
            CrashMode::PowerLoss => None,
            CrashMode::ProcessDeath => Some(
                engine.memory_file(memory, *block_count as usize * BLOCK_BYTES, MemoryOpen::Create).unwrap(),
            ),
        };
        for (place, number, block) in &self.blocks {
            if let Some((name, _)) = self.files[..self.files.len() - 1].get(*place) {
                world.poke(name, u64::from(*number) * BLOCK_BYTES as u64, block);
            } else if let Some(file) = &file {
                file.lend(*number as usize, 1).copy_from_slice(block);
            }
        }
        world
    }
}

/// What a volume holds, as lines.
fn listing(entries: &BTreeMap<(u8, u64, u64), Vec<u8>>, blocks: &BTreeMap<(u64, u64), u64>) -> String {
    let mut text = String::new();
    for ((tree, hi, lo), value) in entries {
        let word = u64::from_le_bytes(value[..8].try_into().unwrap());
        writeln!(text, "entry {tree} {hi} {lo}: {word:016x} for {} bytes", value.len()).unwrap();
    }
    let blocks: Vec<_> = blocks.iter().map(|((object, at), content)| (*object, *at, *content)).collect();
    for run in blocks.chunk_by(|a, b| (a.0, a.1 + 1, a.2 + 1) == *b) {
        let (object, at, content) = run[0];
        writeln!(text, "object {object}, block {at}: {content} and on, {} blocks", run.len()).unwrap();
    }
    text
}

/// A value or block that can be told from every other, and that an image holds in a few bytes.
fn filled(content: u64, len_bytes: usize) -> Vec<u8> {
    let word = content.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let mut bytes = word.repeat(len_bytes.div_ceil(8));
    bytes.truncate(len_bytes);
    bytes
}

const OBJECTS: u64 = 4;
const BLOCKS: u64 = 1024;
const TREES: [TreeId; 2] = [TreeId(16), TreeId(63)];

/// Reads everything, and fails where a value or block is not what some write put there.
async fn list(store: &Store) -> String {
    let mut entries = BTreeMap::new();
    for tree in TREES {
        let (outside, _) = ViewId::OUTSIDE.numbers();
        let mut found = store.scan(tree, Key::MIN, Key::MAX, usize::MAX).await.unwrap();
        found.extend(store.scan(tree, Key::new(outside, 0), Key::MAX, usize::MAX).await.unwrap());
        for (key, value) in found {
            let (words, rest) = value.as_chunks::<8>();
            assert!(words.iter().all(|word| *word == words[0]) && *rest == words[0][..rest.len()]);
            entries.insert((tree.0, key.hi, key.lo), value);
        }
    }
    let contents: BTreeMap<_, _> = (0..100_000_u64).map(|content| (filled(content, 8), content)).collect();
    let mut blocks = BTreeMap::new();
    for object in 0..OBJECTS {
        let mut at = 0;
        for piece in store.read(ObjectId(object), LogicalBlock(0), BLOCKS).await.unwrap() {
            match piece {
                ReadPiece::Hole { len_blocks } => at += len_blocks,
                ReadPiece::Data(slice) => {
                    for bytes in slice.chunks_exact(BLOCK_BYTES) {
                        let content = contents[&bytes[..8]];
                        assert_eq!(bytes, filled(content, BLOCK_BYTES));
                        blocks.insert((object, at), content);
                        at += 1;
                    }
                }
            }
        }
        assert_eq!(at, BLOCKS);
    }
    listing(&entries, &blocks)
}

async fn open(engine: Rc<dyn Engine>, components: &[PathBuf]) -> Store {
    match Store::open(engine, components, &OpenOptions::default()).await {
        Ok((store, _)) => store,
        Err(error) => panic!("the volume does not open: {error}"),
    }
}

/// Opens a volume, lists it, closes it, and checks it.
fn recovered(image: &Image, mode: CrashMode, components: &[PathBuf]) -> (String, u64) {
    let world = image.boot(mode);
    let engine = world.engine();
    let found = world.run(async {
        let store = open(engine, components).await;
        let listing = list(&store).await;
        store.close().await.unwrap();
        (listing, store.recovery().kept_transactions)
    });
    let found = found.done();
    let engine = world.restart(CrashMode::PowerLoss, 1);
    let report = world.run(async { check(engine, components, &mut |_| {}).await.unwrap().0 }).done();
    assert!(report.is_clean(), "{:?}", report.damage);
    found
}

#[track_caller]
fn assert_same(found: &str, expected: &str, what: &str) {
    for (number, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "{what}, line {}", number + 1);
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "{what}");
}

struct Golden {
    image: Image,
    /// What the log holds.
    synced: String,
    /// What log and memory file hold together.
    kept: String,
}

fn goldens() -> Vec<Golden> {
    let read = |(image, listing): &(&str, &str)| {
        let listing = std::fs::read_to_string(fixture(listing)).unwrap();
        let (synced, kept) = listing.split_once("-- with the memory file --\n").unwrap();
        Golden {
            image: Image::decode(&std::fs::read(fixture(image)).unwrap()),
            synced: synced.to_owned(),
            kept: kept.to_owned(),
        }
    };
    VOLUMES.iter().map(read).collect()
}

#[test]
fn golden_volumes_recover_from_power_loss() {
    for golden in goldens() {
        let components = golden.image.components();
        let (found, kept) = recovered(&golden.image, CrashMode::PowerLoss, &components);
        assert_same(&found, &golden.synced, "after power loss");
        assert_eq!(kept, 0);
    }
}

#[test]
fn golden_volumes_recover_from_process_death() {
    for golden in goldens() {
        let components = golden.image.components();
        let (found, kept) = recovered(&golden.image, CrashMode::ProcessDeath, &components);
        assert_same(&found, &golden.kept, "after process death");
        assert!(kept > 0, "the memory file was not used");
    }
}

#[test]
fn golden_volumes_read_from_parity() {
    for golden in goldens() {
        let components = golden.image.components();
        for lost in 0..components.len() {
            let mut rest = components.clone();
            rest.remove(lost);
            let (found, _) = recovered(&golden.image, CrashMode::PowerLoss, &rest);
            assert_same(&found, &golden.synced, &format!("without component {lost}"));
        }
    }
}

#[test]
fn golden_volumes_are_clean_before_they_are_recovered() {
    for golden in goldens() {
        let world = golden.image.boot(CrashMode::PowerLoss);
        let (engine, components) = (world.engine(), golden.image.components());
        let report = world.run(async { check(engine, &components, &mut |_| {}).await.unwrap().0 }).done();
        assert!(report.is_clean(), "{:?}", report.damage);
        assert!(report.log_records > 0, "the log was empty");
    }
}

// ---- making them ---------------------------------------------------------------------------------------------------

/// Changes a volume, and remembers what it should hold.
struct Writer<'a> {
    store: &'a Store,
    content: u64,
    entries: BTreeMap<(u8, u64, u64), Vec<u8>>,
    blocks: BTreeMap<(u64, u64), u64>,
}

impl Writer<'_> {
    async fn put(&mut self, tree: TreeId, hi: u64, lo: u64, len_bytes: usize) {
        self.content += 1;
        let cost = Cost { data_blocks: 0, entries: 1, frees_space: false };
        let mut transaction = self.store.begin(cost).await.unwrap();
        let value = filled(self.content, len_bytes);
        transaction.put(tree, Key::new(hi, lo), value.clone());
        self.store.apply(transaction).unwrap();
        self.entries.insert((tree.0, hi, lo), value);
    }

    async fn delete(&mut self, tree: TreeId, hi: u64, lo: u64) {
        let cost = Cost { data_blocks: 0, entries: 1, frees_space: true };
        let mut transaction = self.store.begin(cost).await.unwrap();
        transaction.delete(tree, Key::new(hi, lo));
        self.store.apply(transaction).unwrap();
        assert!(self.entries.remove(&(tree.0, hi, lo)).is_some());
    }

    async fn write(&mut self, object: u64, start: u64, len_blocks: u64) {
        let cost = Cost { data_blocks: len_blocks, entries: 1, frees_space: false };
        let mut transaction = self.store.begin(cost).await.unwrap();
        let mut slices = Vec::new();
        for at in start..start + len_blocks {
            self.content += 1;
            let mut block = Buffer::zeroed(BLOCK_BYTES);
            block.copy_from_slice(&filled(self.content, BLOCK_BYTES));
            slices.push(block.freeze());
            self.blocks.insert((object, at), self.content);
        }
        let slices: Vec<Slice> = slices;
        let staged = self.store.stage(&mut transaction, slices).await.unwrap();
        transaction.write(ObjectId(object), LogicalBlock(start), staged);
        self.store.apply(transaction).unwrap();
    }

    async fn unmap(&mut self, object: u64, start: u64, len_blocks: u64) {
        let cost = Cost { data_blocks: 0, entries: 1, frees_space: true };
        let mut transaction = self.store.begin(cost).await.unwrap();
        transaction.unmap(ObjectId(object), LogicalBlock(start), len_blocks);
        self.store.apply(transaction).unwrap();
        self.blocks.retain(|(of, at), _| *of != object || !(start..start + len_blocks).contains(at));
    }

    async fn shift(&mut self, object: u64, from: u64, to: u64, len_blocks: u64) {
        let cost = Cost { data_blocks: 0, entries: shift_entries(len_blocks), frees_space: true };
        let mut transaction = self.store.begin(cost).await.unwrap();
        let (source, target) = (LogicalBlock(from), LogicalBlock(to));
        self.store.shift(&mut transaction, ObjectId(object), source, target, len_blocks).await.unwrap();
        self.store.apply(transaction).unwrap();
        let moves = |of: u64, at: u64, start: u64| of == object && (start..start + len_blocks).contains(&at);
        let moving: Vec<_> = self.blocks.extract_if(.., |(of, at), _| moves(*of, *at, from)).collect();
        self.blocks.retain(|(of, at), _| !moves(*of, *at, to));
        self.blocks.extend(moving.into_iter().map(|((of, at), content)| ((of, at - from + to), content)));
    }

    fn listing(&self) -> String {
        listing(&self.entries, &self.blocks)
    }
}

/// A history that leaves something in every place of the format: trees of two levels, both write paths, holes, segments that
/// were freed, ranges that were shifted, records in the metadata log and in the log, a bank in the log, frames and a bank in memory. Returns what was
/// synced, and everything.
async fn history(store: &Store) -> (String, String) {
    let mut writer = Writer { store, content: 0, entries: BTreeMap::new(), blocks: BTreeMap::new() };
    for key in 0..300 {
        writer.put(TREES[0], key, 7, 200).await;
    }
    for (lo, len_bytes) in [(0, 8), (1, 11), (u64::MAX, 6144)] {
        writer.put(TREES[1], u64::MAX, lo, len_bytes).await;
    }
    for round in 0..3 {
        writer.write(0, 0, 256).await;
        writer.write(1, round * 5, 7).await;
        store.checkpoint().await.unwrap();
    }
    // Sparse segments, of which some are cleaned before the end.
    writer.write(3, 0, 900).await;
    for at in 0..900 {
        writer.write(3, at * 11 % 900, 1).await;
    }
    assert!(store.status().counters.cleaning.cleaned_segments > 0);
    writer.unmap(0, 10, 30).await;
    writer.shift(0, 40, 10, 100).await;
    for key in (0..300).step_by(7) {
        writer.delete(TREES[0], key, 7).await;
    }
    store.checkpoint().await.unwrap();
    // Small writes with a sync each, until commits have moved.
    let moves = store.status().counters.moves;
    let mut at = 0;
    while store.status().counters.moves < moves + 2 {
        writer.write(2, at * 7 % 900, 7).await;
        store.sync().await.unwrap();
        at += 1;
        assert!(at < 500, "no commit moves to the metadata log");
    }
    writer.write(3, 0, 33).await;
    writer.unmap(3, 4, 2).await;
    writer.shift(3, 6, 50, 20).await;
    writer.put(TREES[0], 1000, 1, 40).await;
    writer.write(3, 100, 2).await;
    // Until the cleaner has moved something that only the memory file holds.
    for round in 0..400 {
        writer.put(TREES[1], u64::MAX, 0, 8).await;
        store.sync().await.unwrap();
        // Whoever asked for a commit has had it: none comes in between from here on.
        store.engine().sleep(Duration::from_millis(1)).await;
        let synced = writer.listing();
        let before = store.status().counters;
        writer.write(1, 500, 3).await;
        writer.write(1, 600, 12).await;
        writer.unmap(2, round, 9).await;
        writer.shift(1, 501, 601, 8).await;
        writer.put(TREES[0], 1001, 1, 48).await;
        writer.delete(TREES[1], u64::MAX, 0).await;
        for _ in 0..8 {
            writer.write(3, 100, 4).await;
            let after = store.status().counters;
            if after.cleaning.relocated_blocks > before.cleaning.relocated_blocks
                && after.commits == before.commits
            {
                return (synced, writer.listing());
            }
        }
    }
    panic!("nothing moves between two commits");
}

fn dump(world: &SimWorld, components: &[PathBuf], memory: &str, memory_blocks: usize) -> Image {
    let mut files = Vec::new();
    let mut blocks = Vec::new();
    let mut take = |file: usize, bytes: &[u8]| {
        for (number, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                blocks.push((file, number as u32, block.to_vec()));
            }
        }
    };
    let engine = world.engine();
    for (index, path) in components.iter().enumerate() {
        let len_bytes = engine.open(path, false).unwrap().len_bytes();
        take(index, &world.peek(path, 0, len_bytes as usize));
        files.push((path.display().to_string(), len_bytes / BLOCK_BYTES as u64));
    }
    let file = engine.memory_file(memory, memory_blocks * BLOCK_BYTES, MemoryOpen::Attach).unwrap();
    take(components.len(), &file.lend(0, memory_blocks));
    files.push((memory.to_owned(), memory_blocks as u64));
    Image { files, blocks }
}

#[test]
#[ignore = "makes golden files of a new version of the format; see the head of this file"]
fn make() {
    let version = std::env::var("RINGFORT_GOLDEN").unwrap();
    let write = |name: String, bytes: &[u8]| {
        let path = fixture(&name);
        assert!(!path.exists(), "{name} is frozen");
        std::fs::write(path, bytes).unwrap();
    };
    let lines =
        structures().iter().map(|(name, bytes)| format!("{name}: {}\n", hex(bytes))).collect::<String>();
    write(format!("structures_{version}.txt"), lines.as_bytes());

    let components: Vec<_> = (0..3).map(|index| PathBuf::from(format!("component-{index}"))).collect();
    let options = CreateOptions {
        data_columns: 2,
        parity_columns: 1,
        log_bytes: Some(1 << 20),
        unit_bytes: Some(8192),
        ..CreateOptions::new(components.clone(), 8 << 20)
    };
    let world = SimWorld::new(20_261_122);
    let engine = world.engine();
    let outcome = world.run(async {
        let store = Store::create(engine, &options).await.unwrap();
        let (synced, kept) = history(&store).await;
        (synced, kept, format!("volume-{:032x}", store.volume_id().0))
    });
    let (synced, kept, memory) = outcome.done();
    world.restart(CrashMode::ProcessDeath, 1);
    // Two halves of half the log each, eight areas of a bank of a quarter of a segment each.
    let shape = MemoryShape { epoch: 0, half_blocks: 128, area_count: 8, area_blocks: 8 * 4 };
    let image = dump(&world, &components, &memory, shape.block_count());
    write(format!("volume_{version}.bin"), &image.encode());
    write(format!("volume_{version}.txt"), format!("{synced}-- with the memory file --\n{kept}").as_bytes());
}
