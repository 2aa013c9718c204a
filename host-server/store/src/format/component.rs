//! Labels: what a component knows about itself and about the tree that it belongs to.
//!
//! A label fills one block. Two slots, at [`LABEL_SLOTS`], are written in turn by the parity of the sequence number, so
//! a torn write leaves the label before it. Inside the envelope:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | volume id |
//! | 16 | 16 | id of this component |
//! | 32 | 8 | sequence of the membership, from 1 |
//! | 40 | 8 | nonce: tells apart two memberships that came to one sequence on their own |
//! | 48 | 8 | metadata region, bytes |
//! | 56 | 4 | unit, bytes |
//! | 60 | 4 | stripes of a segment |
//! | 64 | 4 | segments |
//! | 68 | 1 | data columns |
//! | 69 | 1 | parity columns |
//! | 70 | 1 | metadata mirrors |
//! | 71 | 1 | 1 where the mirrors have components of their own |
//! | 72 | 1 | position of this component |
//! | 73 | 1 | members that follow |
//! | 74 | 6 | reserved, zero |
//!
//! then for each member, in order of position:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | component id |
//! | 16 | 8 | length, bytes |
//! | 24 | 8 | sequence that marked it failed or absent, else 0 |
//! | 32 | 1 | position |
//! | 33 | 1 | role: 1 columns, 2 metadata, 3 both |
//! | 34 | 1 | state: 0 live, 1 failed, 2 absent |
//! | 35 | 5 | reserved, zero |

use ringfort_engine::buffer::BLOCK_BYTES;
use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::envelope::{ENVELOPE_BYTES, EnvelopeError, Kind, open, seal};
use super::layout::{Layout, layout};
use crate::address::{ComponentId, ComponentPosition, VolumeId};
use crate::geometry::{DATA_COLUMNS_MAX, Geometry, LABEL_REGION_BYTES, MIRRORS_MAX, PARITY_COLUMNS_MAX};

pub const LABEL_BYTES: usize = BLOCK_BYTES;
/// Where labels lie on a component; far enough apart that no one erase block or careless `mkfs` takes both.
pub const LABEL_SLOTS: [u64; 2] = [0, 64 << 10];
/// From 2 on the maps are tables of the merge store.
const LABEL_VERSION: u16 = 2;
const MEMBERS_MAX: usize = (DATA_COLUMNS_MAX + PARITY_COLUMNS_MAX + MIRRORS_MAX) as usize;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OnDiskLabel {
    volume: U128,
    component: U128,
    sequence: U64,
    nonce: U64,
    metadata_bytes: U64,
    unit_bytes: U32,
    stripes_per_segment: U32,
    segment_count: U32,
    data_columns: u8,
    parity_columns: u8,
    mirror_count: u8,
    dedicated_metadata: u8,
    position: u8,
    member_count: u8,
    reserved: [u8; 6],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OnDiskMember {
    component: U128,
    len_bytes: U64,
    since_sequence: U64,
    position: u8,
    role: u8,
    state: u8,
    reserved: [u8; 5],
}

const _: () = assert!(size_of::<OnDiskLabel>() == 80);
const _: () = assert!(std::mem::offset_of!(OnDiskLabel, data_columns) == 68);
const _: () = assert!(size_of::<OnDiskMember>() == 40);
const _: () = assert!(
    ENVELOPE_BYTES + size_of::<OnDiskLabel>() + MEMBERS_MAX * size_of::<OnDiskMember>() <= LABEL_BYTES
);
const _: () = assert!(LABEL_SLOTS[1] + LABEL_BYTES as u64 <= LABEL_REGION_BYTES);

/// Whether a component belongs to the membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberState {
    Live,
    /// Missed a write or was missing when the object was opened; never read again, until it is replaced.
    Failed {
        since_sequence: u64,
    },
    /// Nothing has been put in this place.
    Absent {
        since_sequence: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub component: ComponentId,
    pub len_bytes: u64,
    pub state: MemberState,
}

/// The tree at one sequence number, as one component tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub volume: VolumeId,
    pub component: ComponentId,
    pub position: ComponentPosition,
    pub sequence: u64,
    pub nonce: u64,
    pub geometry: Geometry,
    /// By position.
    pub members: Vec<Member>,
}

fn role(geometry: &Geometry, position: ComponentPosition) -> u8 {
    u8::from(geometry.holds_columns(position)) | u8::from(geometry.mirror_of(position).is_some()) << 1
}

impl Label {
    /// The slot that this label belongs in, as an offset on the component.
    pub fn slot(&self) -> u64 {
        LABEL_SLOTS[(self.sequence % 2) as usize]
    }

    /// The block to write.
    pub fn encode(&self) -> Vec<u8> {
        let geometry = &self.geometry;
        assert_eq!(self.members.len(), usize::from(geometry.component_count()));
        let head = OnDiskLabel {
            volume: U128::new(self.volume.0),
            component: U128::new(self.component.0),
            sequence: U64::new(self.sequence),
            nonce: U64::new(self.nonce),
            metadata_bytes: U64::new(geometry.metadata_bytes),
            unit_bytes: U32::new(geometry.unit_bytes),
            stripes_per_segment: U32::new(geometry.stripes_per_segment),
            segment_count: U32::new(geometry.segment_count),
            data_columns: geometry.data_columns,
            parity_columns: geometry.parity_columns,
            mirror_count: geometry.mirror_count,
            dedicated_metadata: u8::from(geometry.dedicated_metadata),
            position: self.position.0,
            member_count: geometry.component_count(),
            reserved: [0; 6],
        };
        let mut bytes = vec![0; ENVELOPE_BYTES];
        bytes.extend_from_slice(head.as_bytes());
        for (position, member) in (0..).map(ComponentPosition).zip(&self.members) {
            let (state, since_sequence) = match member.state {
                MemberState::Live => (0, 0),
                MemberState::Failed { since_sequence } => (1, since_sequence),
                MemberState::Absent { since_sequence } => (2, since_sequence),
            };
            let member = OnDiskMember {
                component: U128::new(member.component.0),
                len_bytes: U64::new(member.len_bytes),
                since_sequence: U64::new(since_sequence),
                position: position.0,
                role: role(geometry, position),
                state,
                reserved: [0; 5],
            };
            bytes.extend_from_slice(member.as_bytes());
        }
        let body_bytes = bytes.len() - ENVELOPE_BYTES;
        bytes.resize(LABEL_BYTES, 0);
        seal(&mut bytes, Kind::ComponentLabel, LABEL_VERSION, self.volume, body_bytes);
        bytes
    }

    /// Reads a slot. Every field is checked: what is returned can be relied on.
    pub fn decode(block: &[u8]) -> Result<Self, EnvelopeError> {
        use EnvelopeError::Nonsense;
        let opened = open(block, Kind::ComponentLabel, LABEL_VERSION, None)?;
        let (head, rest) =
            OnDiskLabel::read_from_prefix(opened.body).map_err(|_| Nonsense("the label is cut off"))?;
        let geometry = Geometry {
            data_columns: head.data_columns,
            parity_columns: head.parity_columns,
            mirror_count: head.mirror_count,
            dedicated_metadata: match head.dedicated_metadata {
                0 => false,
                1 => true,
                _ => return Err(Nonsense("metadata is neither embedded nor dedicated")),
            },
            unit_bytes: head.unit_bytes.get(),
            stripes_per_segment: head.stripes_per_segment.get(),
            segment_count: head.segment_count.get(),
            metadata_bytes: head.metadata_bytes.get(),
        };
        if geometry.check().is_err() {
            return Err(Nonsense("the geometry is out of bounds"));
        }
        let sequence = head.sequence.get();
        if sequence == 0 || head.reserved != [0; 6] {
            return Err(Nonsense("sequence is zero or reserved space is not"));
        }
        if head.volume.get() as u64 != opened.volume_low {
            return Err(Nonsense("label and envelope name different volumes"));
        }
        let count = usize::from(geometry.component_count());
        if usize::from(head.member_count) != count || rest.len() != count * size_of::<OnDiskMember>() {
            return Err(Nonsense("the members are not as many as the geometry has components"));
        }
        let mut members: Vec<Member> = Vec::with_capacity(count);
        for (position, bytes) in
            (0..).map(ComponentPosition).zip(rest.chunks_exact(size_of::<OnDiskMember>()))
        {
            let member =
                OnDiskMember::read_from_bytes(bytes).map_err(|_| Nonsense("the members are cut off"))?;
            let since_sequence = member.since_sequence.get();
            let state = match (member.state, since_sequence) {
                (0, 0) => MemberState::Live,
                (1, 1..) => MemberState::Failed { since_sequence },
                (2, 1..) => MemberState::Absent { since_sequence },
                _ => return Err(Nonsense("a member's state is unknown")),
            };
            if since_sequence > sequence
                || member.position != position.0
                || member.role != role(&geometry, position)
                || member.reserved != [0; 5]
                || member.len_bytes.get() < geometry.component_bytes(position)
            {
                return Err(Nonsense("a member does not fit the geometry"));
            }
            let component = ComponentId(member.component.get());
            if members.iter().any(|other| other.component == component) {
                return Err(Nonsense("a component is a member twice"));
            }
            members.push(Member { component, len_bytes: member.len_bytes.get(), state });
        }
        let component = ComponentId(head.component.get());
        let position = ComponentPosition(head.position);
        if members.get(usize::from(position.0)).is_none_or(|own| own.component != component) {
            return Err(Nonsense("the component is not the member at its position"));
        }
        Ok(Self {
            volume: VolumeId(head.volume.get()),
            component,
            position,
            sequence,
            nonce: head.nonce.get(),
            geometry,
            members,
        })
    }
}

/// Tables of the format document.
pub const LAYOUTS: &[Layout] = &[
    layout!(
        "label",
        OnDiskLabel {
            volume,
            component,
            sequence,
            nonce,
            metadata_bytes,
            unit_bytes,
            stripes_per_segment,
            segment_count,
            data_columns,
            parity_columns,
            mirror_count,
            dedicated_metadata,
            position,
            member_count,
            reserved
        }
    ),
    layout!("member", OnDiskMember { component, len_bytes, since_sequence, position, role, state, reserved }),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;

    fn label() -> Label {
        let geometry = Geometry { mirror_count: 2, ..Geometry::new(2, 1, 7, 1 << 20) };
        let members = (0..3u8)
            .map(|position| Member {
                component: ComponentId(0x1000 + u128::from(position)),
                len_bytes: geometry.component_bytes(ComponentPosition(position)),
                state: if position == 2 {
                    MemberState::Failed { since_sequence: 4 }
                } else {
                    MemberState::Live
                },
            })
            .collect();
        Label {
            volume: VolumeId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
            component: ComponentId(0x1001),
            position: ComponentPosition(1),
            sequence: 5,
            nonce: 99,
            geometry,
            members,
        }
    }

    /// Changes bytes of the body and makes the checksum right again.
    fn forge(mut block: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let body_bytes = u32::from_le_bytes([block[8], block[9], block[10], block[11]]) as usize;
        change(&mut block[ENVELOPE_BYTES..]);
        let version = u16::from_le_bytes([block[6], block[7]]);
        seal(&mut block, Kind::ComponentLabel, version, label().volume, body_bytes);
        block
    }

    #[test]
    fn labels_come_back_as_they_were() {
        let block = label().encode();
        assert_eq!(block.len(), LABEL_BYTES);
        assert_eq!(Label::decode(&block), Ok(label()));
    }

    #[test]
    fn label_bytes_are_frozen() {
        let golden: &[u8] = include_bytes!("../../tests/fixtures/label_v2.bin");
        assert!(label().encode() == golden);
        for golden in [golden, include_bytes!("../../tests/fixtures/label_v1.bin")] {
            assert_eq!(Label::decode(golden), Ok(label()));
        }
    }

    #[test]
    fn consecutive_labels_lie_in_different_slots() {
        let older = Label { sequence: 6, ..label() };
        assert_ne!(older.slot(), label().slot());
    }

    #[test]
    fn labels_that_contradict_themselves_are_refused() {
        let member = size_of::<OnDiskLabel>();
        for (offset, value) in [
            (16, 9),             // own id that is no member's
            (32, 0),             // sequence zero
            (32, 3),             // older than a failure it lists
            (68, 0),             // no data columns
            (68, 3),             // more components than members
            (71, 2),             // neither embedded nor dedicated
            (72, 2),             // another position
            (72, 200),           // no position at all
            (73, 2),             // fewer members
            (79, 1),             // reserved
            (member, 1),         // a member twice
            (member + 21, 0xff), // length
            (member + 32, 1),    // member out of order
            (member + 33, 1),    // role
            (member + 34, 1),    // failed, but since when?
            (member + 34, 7),    // unknown state
            (member + 39, 1),    // reserved
        ] {
            let block = forge(label().encode(), |body| {
                assert_ne!(body[offset], value);
                body[offset] = value;
                if offset == member + 21 {
                    body[member + 16..member + 24].fill(0);
                }
            });
            assert!(
                matches!(Label::decode(&block), Err(EnvelopeError::Nonsense(_))),
                "offset {offset}, value {value}"
            );
        }
    }

    #[test]
    fn a_later_version_is_named() {
        let mut block = label().encode();
        let body_bytes = size_of::<OnDiskLabel>() + 3 * size_of::<OnDiskMember>();
        seal(&mut block, Kind::ComponentLabel, 3, label().volume, body_bytes);
        assert_eq!(Label::decode(&block), Err(EnvelopeError::UnknownVersion { newest: 2, found: 3 }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(
            changes in prop::collection::vec((0usize..240, any::<u8>()), 1..12),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = Label::decode(&noise);
            let block = forge(label().encode(), |body| {
                for (offset, value) in &changes {
                    body[*offset] = *value;
                }
            });
            if let Ok(decoded) = Label::decode(&block) {
                // What is accepted means something: it encodes to a label that is accepted as the same.
                prop_assert_eq!(Label::decode(&decoded.encode()), Ok(decoded));
            }
        }
    }
}
