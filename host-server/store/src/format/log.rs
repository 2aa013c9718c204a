//! Log records: one group commit, atomic as a whole.
//!
//! ```text
//! block 0..    RecordHeader (96 bytes) · body: transactions, each a list of entries closed by an end mark · zeros
//! then         data blocks, in the order in which the body's bank writes name them
//! ```
//!
//! A bank write's block is in the record unless the same record also carries the summary of its stripe: then the
//! stripe was written in full before the record, and only the mapping is logged.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::layout::{Layout, layout};
use crate::address::{
    BlockChecksum, LogicalBlock, MiddleAddress, ObjectId, PhysicalBlock, SegmentId, ViewId,
};
use crate::volume::{Key, TreeId, VALUE_BYTES_MAX, ViewEntry};

/// `RFLR` in little-endian order.
pub const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"RFLR");
pub const RECORD_VERSION: u16 = 1;
/// Length of [`RecordHeader`], and so where the body begins.
pub const RECORD_HEADER_BYTES: usize = 96;

/// First bytes of a record. The checksum is CRC-32C over the header, with the checksum field zero, and the body;
/// data blocks are covered by the checksums inside the body.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RecordHeader {
    pub magic: U32,
    pub kind: U16,
    pub version: U16,
    pub body_bytes: U32,
    pub data_blocks: U32,
    pub volume: [u8; 16],
    /// Raised by every recovery; never falls along the chain.
    pub epoch: U64,
    /// One more than the predecessor's.
    pub sequence: U64,
    /// Number of the first transaction inside.
    pub first_transaction: U64,
    /// The newest root that was durable when this record was written: recovery from an older one would be wrong.
    pub root_sequence: U64,
    /// Where this record lies, in log blocks since the volume was made: betrays misdirected and stale blocks.
    pub position: U64,
    pub transaction_count: U32,
    /// Checksum of the preceding record.
    pub previous_checksum: U32,
    pub checksum: U32,
    pub reserved: [u8; 12],
}

const _: () = assert!(size_of::<RecordHeader>() == RECORD_HEADER_BYTES);

/// Whether the record's header and body match its checksum. `record` begins with the header and holds at least the
/// body.
pub fn record_checksum(header: &RecordHeader, body: &[u8]) -> u32 {
    let mut header = *header;
    header.checksum = U32::ZERO;
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(header.as_bytes());
    digest.update(body);
    digest.finalize() as u32
}

/// A commit, in the log.
pub const KIND_COMMIT: u16 = 1;
/// The bodies of earlier commits, in the metadata log. It has no data blocks: those are in stripes.
pub const KIND_MOVED: u16 = 2;

const TAG_END: u8 = 0;
const TAG_PUT: u8 = 1;
const TAG_DELETE: u8 = 2;
const TAG_UNMAP: u8 = 3;
const TAG_WRITE: u8 = 4;
const TAG_STRIPE: u8 = 5;
const TAG_BANK: u8 = 6;
const TAG_SHIFT: u8 = 7;
const TAG_MOVE: u8 = 8;
const TAG_SHARE: u8 = 9;
const TAG_VIEW: u8 = 10;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PutEntry {
    tag: u8,
    tree: u8,
    value_bytes: U16,
    hi: U64,
    lo: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct UnmapEntry {
    tag: u8,
    reserved: [u8; 3],
    object: U64,
    start: U64,
    len_blocks: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WriteEntry {
    tag: u8,
    /// 1: through the bank; 0: written as full stripes before.
    bank: u8,
    len_blocks: U16,
    object: U64,
    start: U64,
    middle: U64,
    physical: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StripeEntry {
    tag: u8,
    reserved: u8,
    summary_bytes: U16,
    segment: U32,
    stripe: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BankEntry {
    tag: u8,
    reserved: [u8; 3],
    segment: U32,
    first_stripe: U32,
    stripe_count: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ShiftEntry {
    tag: u8,
    reserved: [u8; 3],
    object: U64,
    from: U64,
    to: U64,
    len_blocks: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MoveEntry {
    tag: u8,
    reserved: u8,
    len_blocks: U16,
    middle: U64,
    from: U64,
    to: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ShareEntry {
    tag: u8,
    reserved: u8,
    len_blocks: U16,
    object: U64,
    start: U64,
    middle: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ViewChange {
    tag: u8,
    reserved: u8,
    view: U16,
    /// Length of the [view](super::view)'s entry, which follows; zero where the view is gone.
    entry_bytes: U16,
}

const _: () = assert!(size_of::<PutEntry>() == 20);
const _: () = assert!(size_of::<UnmapEntry>() == 28);
const _: () = assert!(size_of::<WriteEntry>() == 36);
const _: () = assert!(size_of::<StripeEntry>() == 12);
const _: () = assert!(size_of::<BankEntry>() == 16);
const _: () = assert!(size_of::<ShiftEntry>() == 36);
const _: () = assert!(size_of::<MoveEntry>() == MOVE_ENTRY_BYTES);
const _: () = assert!(size_of::<ShareEntry>() == 28);
const _: () = assert!(size_of::<ViewChange>() == 6);

/// Length of an entry that tells of a move.
pub const MOVE_ENTRY_BYTES: usize = 28;

/// The most blocks one write entry maps.
pub const WRITE_BLOCKS_MAX: usize = 512;

/// One change inside a transaction, as logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Put {
        tree: TreeId,
        key: Key,
        value: Vec<u8>,
    },
    Delete {
        tree: TreeId,
        key: Key,
    },
    Unmap {
        object: ObjectId,
        start: LogicalBlock,
        len_blocks: u64,
    },
    Write(WriteRun),
    /// A stripe was written in full; `summary` is its [`format::segment`](super::segment) value.
    Stripe {
        segment: SegmentId,
        stripe: u32,
        summary: Vec<u8>,
    },
    /// A bank was opened over these stripes.
    Bank {
        segment: SegmentId,
        first_stripe: u32,
        stripe_count: u32,
    },
    /// Blocks that are in use already become part of an object as well.
    Share {
        object: ObjectId,
        start: LogicalBlock,
        middle: MiddleAddress,
        /// At most [`WRITE_BLOCKS_MAX`].
        len_blocks: u64,
    },
    /// A view is made or changed, or is gone. What is written after one that is new belongs to a later epoch.
    View {
        view: ViewId,
        entry: Option<ViewEntry>,
    },
    /// What is mapped in a range of an object is mapped elsewhere in it from now on. Earlier releases wrote these; now there are shares and unmaps.
    Shift {
        object: ObjectId,
        from: LogicalBlock,
        to: LogicalBlock,
        len_blocks: u64,
    },
    /// Blocks that lie at `from` still lie at `to` from now on; those that have died or lie elsewhere stay as they are.
    Move {
        middle: MiddleAddress,
        /// At most [`WRITE_BLOCKS_MAX`].
        len_blocks: u64,
        from: PhysicalBlock,
        to: PhysicalBlock,
    },
}

/// Contiguous blocks that became part of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteRun {
    pub bank: bool,
    pub object: ObjectId,
    pub start: LogicalBlock,
    pub middle: MiddleAddress,
    pub physical: PhysicalBlock,
    /// One for each block; at most [`WRITE_BLOCKS_MAX`].
    pub checksums: Vec<BlockChecksum>,
}

impl Entry {
    /// Appends the entry's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Entry::Put { tree, key, value } => {
                assert!(value.len() <= VALUE_BYTES_MAX);
                let entry = PutEntry {
                    tag: TAG_PUT,
                    tree: tree.0,
                    value_bytes: U16::new(value.len() as u16),
                    hi: U64::new(key.hi),
                    lo: U64::new(key.lo),
                };
                out.extend_from_slice(entry.as_bytes());
                out.extend_from_slice(value);
            }
            Entry::Delete { tree, key } => {
                let entry = PutEntry {
                    tag: TAG_DELETE,
                    tree: tree.0,
                    value_bytes: U16::ZERO,
                    hi: U64::new(key.hi),
                    lo: U64::new(key.lo),
                };
                out.extend_from_slice(entry.as_bytes());
            }
            Entry::Unmap { object, start, len_blocks } => {
                let entry = UnmapEntry {
                    tag: TAG_UNMAP,
                    reserved: [0; 3],
                    object: U64::new(object.0),
                    start: U64::new(start.0),
                    len_blocks: U64::new(*len_blocks),
                };
                out.extend_from_slice(entry.as_bytes());
            }
            Entry::Write(run) => {
                assert!(!run.checksums.is_empty() && run.checksums.len() <= WRITE_BLOCKS_MAX);
                let entry = WriteEntry {
                    tag: TAG_WRITE,
                    bank: u8::from(run.bank),
                    len_blocks: U16::new(run.checksums.len() as u16),
                    object: U64::new(run.object.0),
                    start: U64::new(run.start.0),
                    middle: U64::new(run.middle.0),
                    physical: U64::new(run.physical.0),
                };
                out.extend_from_slice(entry.as_bytes());
                for checksum in &run.checksums {
                    out.extend_from_slice(U32::new(checksum.0).as_bytes());
                }
            }
            Entry::Stripe { segment, stripe, summary } => {
                let entry = StripeEntry {
                    tag: TAG_STRIPE,
                    reserved: 0,
                    summary_bytes: U16::new(summary.len() as u16),
                    segment: U32::new(segment.0),
                    stripe: U32::new(*stripe),
                };
                out.extend_from_slice(entry.as_bytes());
                out.extend_from_slice(summary);
            }
            Entry::Shift { object, from, to, len_blocks } => {
                let entry = ShiftEntry {
                    tag: TAG_SHIFT,
                    reserved: [0; 3],
                    object: U64::new(object.0),
                    from: U64::new(from.0),
                    to: U64::new(to.0),
                    len_blocks: U64::new(*len_blocks),
                };
                out.extend_from_slice(entry.as_bytes());
            }
            Entry::Move { middle, len_blocks, from, to } => {
                let entry = MoveEntry {
                    tag: TAG_MOVE,
                    reserved: 0,
                    len_blocks: U16::new(*len_blocks as u16),
                    middle: U64::new(middle.0),
                    from: U64::new(from.0),
                    to: U64::new(to.0),
                };
                out.extend_from_slice(entry.as_bytes());
            }
            Entry::Share { object, start, middle, len_blocks } => {
                let entry = ShareEntry {
                    tag: TAG_SHARE,
                    reserved: 0,
                    len_blocks: U16::new(*len_blocks as u16),
                    object: U64::new(object.0),
                    start: U64::new(start.0),
                    middle: U64::new(middle.0),
                };
                out.extend_from_slice(entry.as_bytes());
            }
            Entry::View { view, entry } => {
                let bytes = entry.as_ref().map(ViewEntry::encode).unwrap_or_default();
                let change = ViewChange {
                    tag: TAG_VIEW,
                    reserved: 0,
                    view: U16::new(view.0),
                    entry_bytes: U16::new(bytes.len() as u16),
                };
                out.extend_from_slice(change.as_bytes());
                out.extend_from_slice(&bytes);
            }
            Entry::Bank { segment, first_stripe, stripe_count } => {
                let entry = BankEntry {
                    tag: TAG_BANK,
                    reserved: [0; 3],
                    segment: U32::new(segment.0),
                    first_stripe: U32::new(*first_stripe),
                    stripe_count: U32::new(*stripe_count),
                };
                out.extend_from_slice(entry.as_bytes());
            }
        }
    }
}

/// Closes a transaction.
pub fn encode_end(out: &mut Vec<u8>) {
    out.push(TAG_END);
}

/// Splits a record's body into transactions. `None` where the bytes are no valid body.
pub fn decode_body(mut body: &[u8]) -> Option<Vec<Vec<Entry>>> {
    let mut transactions = Vec::new();
    let mut entries = Vec::new();
    while let Some(&tag) = body.first() {
        match tag {
            TAG_END => {
                body = &body[1..];
                transactions.push(std::mem::take(&mut entries));
            }
            TAG_PUT | TAG_DELETE => {
                let (entry, rest) = PutEntry::read_from_prefix(body).ok()?;
                let (value, rest) = rest.split_at_checked(usize::from(entry.value_bytes.get()))?;
                let key = Key::new(entry.hi.get(), entry.lo.get());
                let tree = TreeId(entry.tree);
                entries.push(match tag {
                    TAG_PUT if value.len() <= VALUE_BYTES_MAX => {
                        Entry::Put { tree, key, value: value.to_vec() }
                    }
                    TAG_DELETE if value.is_empty() => Entry::Delete { tree, key },
                    _ => return None,
                });
                body = rest;
            }
            TAG_UNMAP => {
                let (entry, rest) = UnmapEntry::read_from_prefix(body).ok()?;
                entries.push(Entry::Unmap {
                    object: ObjectId(entry.object.get()),
                    start: LogicalBlock(entry.start.get()),
                    len_blocks: entry.len_blocks.get(),
                });
                body = rest;
            }
            TAG_WRITE => {
                let (entry, rest) = WriteEntry::read_from_prefix(body).ok()?;
                let count = usize::from(entry.len_blocks.get());
                if entry.bank > 1 || count == 0 || count > WRITE_BLOCKS_MAX {
                    return None;
                }
                let (checksums, rest) = <[U32]>::ref_from_prefix_with_elems(rest, count).ok()?;
                entries.push(Entry::Write(WriteRun {
                    bank: entry.bank == 1,
                    object: ObjectId(entry.object.get()),
                    start: LogicalBlock(entry.start.get()),
                    middle: MiddleAddress(entry.middle.get()),
                    physical: PhysicalBlock(entry.physical.get()),
                    checksums: checksums.iter().map(|checksum| BlockChecksum(checksum.get())).collect(),
                }));
                body = rest;
            }
            TAG_STRIPE => {
                let (entry, rest) = StripeEntry::read_from_prefix(body).ok()?;
                let (summary, rest) = rest.split_at_checked(usize::from(entry.summary_bytes.get()))?;
                entries.push(Entry::Stripe {
                    segment: SegmentId(entry.segment.get()),
                    stripe: entry.stripe.get(),
                    summary: summary.to_vec(),
                });
                body = rest;
            }
            TAG_SHIFT => {
                let (entry, rest) = ShiftEntry::read_from_prefix(body).ok()?;
                entries.push(Entry::Shift {
                    object: ObjectId(entry.object.get()),
                    from: LogicalBlock(entry.from.get()),
                    to: LogicalBlock(entry.to.get()),
                    len_blocks: entry.len_blocks.get(),
                });
                body = rest;
            }
            TAG_MOVE => {
                let (entry, rest) = MoveEntry::read_from_prefix(body).ok()?;
                let len_blocks = u64::from(entry.len_blocks.get());
                if len_blocks == 0 || len_blocks > WRITE_BLOCKS_MAX as u64 {
                    return None;
                }
                entries.push(Entry::Move {
                    middle: MiddleAddress(entry.middle.get()),
                    len_blocks,
                    from: PhysicalBlock(entry.from.get()),
                    to: PhysicalBlock(entry.to.get()),
                });
                body = rest;
            }
            TAG_SHARE => {
                let (entry, rest) = ShareEntry::read_from_prefix(body).ok()?;
                let len_blocks = u64::from(entry.len_blocks.get());
                if len_blocks == 0 || len_blocks > WRITE_BLOCKS_MAX as u64 {
                    return None;
                }
                entries.push(Entry::Share {
                    object: ObjectId(entry.object.get()),
                    start: LogicalBlock(entry.start.get()),
                    middle: MiddleAddress(entry.middle.get()),
                    len_blocks,
                });
                body = rest;
            }
            TAG_VIEW => {
                let (change, rest) = ViewChange::read_from_prefix(body).ok()?;
                let (bytes, rest) = rest.split_at_checked(usize::from(change.entry_bytes.get()))?;
                let entry = match bytes {
                    [] => None,
                    bytes => Some(ViewEntry::decode(bytes)?),
                };
                entries.push(Entry::View { view: ViewId(change.view.get()), entry });
                body = rest;
            }
            TAG_BANK => {
                let (entry, rest) = BankEntry::read_from_prefix(body).ok()?;
                entries.push(Entry::Bank {
                    segment: SegmentId(entry.segment.get()),
                    first_stripe: entry.first_stripe.get(),
                    stripe_count: entry.stripe_count.get(),
                });
                body = rest;
            }
            _ => return None,
        }
    }
    entries.is_empty().then_some(transactions)
}

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[
    layout!(
        "record",
        RecordHeader {
            magic,
            kind,
            version,
            body_bytes,
            data_blocks,
            volume,
            epoch,
            sequence,
            first_transaction,
            root_sequence,
            position,
            transaction_count,
            previous_checksum,
            checksum,
            reserved
        }
    ),
    layout!("put entry", PutEntry { tag, tree, value_bytes, hi, lo }),
    layout!("unmap entry", UnmapEntry { tag, reserved, object, start, len_blocks }),
    layout!("write entry", WriteEntry { tag, bank, len_blocks, object, start, middle, physical }),
    layout!("stripe entry", StripeEntry { tag, reserved, summary_bytes, segment, stripe }),
    layout!("bank entry", BankEntry { tag, reserved, segment, first_stripe, stripe_count }),
    layout!("shift entry", ShiftEntry { tag, reserved, object, from, to, len_blocks }),
    layout!("move entry", MoveEntry { tag, reserved, len_blocks, middle, from, to }),
    layout!("view entry", ViewChange { tag, reserved, view, entry_bytes }),
    layout!("share entry", ShareEntry { tag, reserved, len_blocks, object, start, middle }),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{ViewKind, ViewState};

    fn samples() -> Vec<Vec<Entry>> {
        let kind = ViewKind::Snapshot { branch: ViewId(1) };
        let view = ViewEntry { kind, state: ViewState::Live, epoch: 4, info: b"name".to_vec() };
        vec![
            vec![
                Entry::Put { tree: TreeId(16), key: Key::new(1, 2), value: b"value".to_vec() },
                Entry::Delete { tree: TreeId(17), key: Key::new(3, 4) },
            ],
            vec![
                Entry::Unmap { object: ObjectId(9), start: LogicalBlock(5), len_blocks: 1 << 40 },
                Entry::Write(WriteRun {
                    bank: true,
                    object: ObjectId(9),
                    start: LogicalBlock(7),
                    middle: MiddleAddress(77),
                    physical: PhysicalBlock(777),
                    checksums: vec![BlockChecksum(0xdead_beef), BlockChecksum(1)],
                }),
                Entry::Stripe { segment: SegmentId(4), stripe: 2, summary: vec![1, 2, 3] },
                Entry::Bank { segment: SegmentId(4), first_stripe: 8, stripe_count: 16 },
                Entry::Shift {
                    object: ObjectId(9),
                    from: LogicalBlock(7),
                    to: LogicalBlock(6),
                    len_blocks: 2,
                },
                Entry::Move {
                    middle: MiddleAddress(77),
                    len_blocks: 2,
                    from: PhysicalBlock(777),
                    to: PhysicalBlock(7),
                },
                Entry::View { view: ViewId(3), entry: Some(view) },
                Entry::View { view: ViewId(2), entry: None },
            ],
            vec![],
        ]
    }

    fn encode(transactions: &[Vec<Entry>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for transaction in transactions {
            transaction.iter().for_each(|entry| entry.encode(&mut bytes));
            encode_end(&mut bytes);
        }
        bytes
    }

    #[test]
    fn a_body_decodes_to_what_was_encoded() {
        assert_eq!(decode_body(&encode(&samples())), Some(samples()));
    }

    #[test]
    fn truncated_bodies_are_refused_or_end_at_a_transaction() {
        let bytes = encode(&samples());
        for len in 0..bytes.len() {
            if let Some(transactions) = decode_body(&bytes[..len]) {
                assert_eq!(transactions[..], samples()[..transactions.len()]);
            }
        }
    }

    #[test]
    fn the_bytes_of_an_entry_are_frozen() {
        let mut bytes = Vec::new();
        Entry::Put { tree: TreeId(16), key: Key::new(0x0102, 0x0304), value: b"v".to_vec() }
            .encode(&mut bytes);
        assert_eq!(bytes, [1, 16, 1, 0, 2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0, b'v']);
    }
}
