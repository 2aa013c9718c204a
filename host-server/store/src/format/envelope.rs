//! The header that every formatted piece of a volume begins with.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `"RFRT"` |
//! | 4 | 2 | kind |
//! | 6 | 2 | version of the kind |
//! | 8 | 4 | body length, bytes |
//! | 12 | 4 | CRC-32C of header (this field zero) and body |
//! | 16 | 8 | low half of the volume id |
//! | 24 | 8 | reserved, zero |

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::crc32c_of_pieces;
use super::layout::{Layout, layout};
use crate::address::VolumeId;

pub const MAGIC: [u8; 4] = *b"RFRT";
pub const ENVELOPE_BYTES: usize = 32;

/// What an envelope holds. The numbers are the format and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    ComponentLabel = 1,
    Superblock = 2,
    LogRecord = 3,
    Page = 4,
    SegmentSummary = 5,
    MemoryFile = 6,
    RunPage = 7,
    Filter = 8,
    Sample = 9,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    kind: U16,
    version: U16,
    body_bytes: U32,
    checksum: U32,
    volume_low: U64,
    reserved: U64,
}

const _: () = assert!(size_of::<Header>() == ENVELOPE_BYTES);

/// Why bytes are not the envelope that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("no Ringfort data")]
    NotOurs,
    #[error("data of kind {found}, not {expected}")]
    WrongKind { expected: u16, found: u16 },
    #[error("version {found}; this release knows versions up to {newest}")]
    UnknownVersion { newest: u16, found: u16 },
    #[error("a length of {found} bytes where at most {available} fit")]
    WrongLength { available: usize, found: usize },
    #[error("checksum {found:08x}, computed {computed:08x}")]
    WrongChecksum { found: u32, computed: u32 },
    #[error("data of another volume")]
    OtherVolume,
    #[error("a header whose reserved bytes are not zero")]
    ReservedNotZero,
    #[error("contents that make no sense: {0}")]
    Nonsense(&'static str),
}

/// A verified envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    pub version: u16,
    /// Low half of the volume id.
    pub volume_low: u64,
    pub body: &'a [u8],
}

/// Writes the header in front of a body that already lies in `bytes[ENVELOPE_BYTES..][..body_bytes]`.
pub fn seal(bytes: &mut [u8], kind: Kind, version: u16, volume: VolumeId, body_bytes: usize) {
    let (head, rest) = bytes.split_at_mut(ENVELOPE_BYTES);
    let body = &rest[..body_bytes];
    let mut header = Header {
        magic: MAGIC,
        kind: U16::new(kind as u16),
        version: U16::new(version),
        body_bytes: U32::new(body_bytes as u32),
        checksum: U32::ZERO,
        volume_low: U64::new(volume.0 as u64),
        reserved: U64::ZERO,
    };
    header.checksum = U32::new(crc32c_of_pieces(&[header.as_bytes(), body]));
    head.copy_from_slice(header.as_bytes());
}

/// Verifies the envelope at the start of `bytes` (which may be longer) and returns what it holds.
pub fn open(
    bytes: &[u8],
    kind: Kind,
    newest_version: u16,
    volume: Option<VolumeId>,
) -> Result<Opened<'_>, EnvelopeError> {
    let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| EnvelopeError::NotOurs)?;
    if header.magic != MAGIC {
        return Err(EnvelopeError::NotOurs);
    }
    let body_bytes = header.body_bytes.get() as usize;
    // Without a plausible length there is nothing to compute a checksum over.
    let Some(body) = rest.get(..body_bytes) else {
        return Err(EnvelopeError::WrongLength { available: rest.len(), found: body_bytes });
    };
    let found = header.checksum.get();
    let computed = crc32c_of_pieces(&[Header { checksum: U32::ZERO, ..header }.as_bytes(), body]);
    if found != computed {
        return Err(EnvelopeError::WrongChecksum { found, computed });
    }
    if header.kind.get() != kind as u16 {
        return Err(EnvelopeError::WrongKind { expected: kind as u16, found: header.kind.get() });
    }
    let version = header.version.get();
    if version == 0 || version > newest_version {
        return Err(EnvelopeError::UnknownVersion { newest: newest_version, found: version });
    }
    if header.reserved.get() != 0 {
        return Err(EnvelopeError::ReservedNotZero);
    }
    let volume_low = header.volume_low.get();
    if volume.is_some_and(|volume| volume.0 as u64 != volume_low) {
        return Err(EnvelopeError::OtherVolume);
    }
    Ok(Opened { version, volume_low, body })
}

/// The checksum in the header of a sealed envelope, unverified. `None` where `bytes` is shorter than a header.
pub fn checksum_of(bytes: &[u8]) -> Option<u32> {
    Header::read_from_prefix(bytes).ok().map(|(header, _)| header.checksum.get())
}

/// Tables of the format document.
pub const LAYOUTS: &[Layout] =
    &[layout!("envelope", Header { magic, kind, version, body_bytes, checksum, volume_low, reserved })];

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[ENVELOPE_BYTES..ENVELOPE_BYTES + 5].copy_from_slice(b"hello");
        seal(&mut bytes, Kind::Page, 3, VolumeId(7), 5);
        bytes
    }

    #[test]
    fn what_was_sealed_opens() {
        let opened = Opened { version: 3, volume_low: 7, body: b"hello" };
        assert_eq!(open(&sealed(), Kind::Page, 3, Some(VolumeId(7))), Ok(opened));
    }

    #[test]
    fn header_bytes_are_frozen() {
        assert_eq!(
            sealed()[..ENVELOPE_BYTES],
            [
                b'R', b'F', b'R', b'T', 4, 0, 3, 0, 5, 0, 0, 0, 0xe9, 0x47, 0x03, 0xdd, 7, 0, 0, 0, 0, 0, 0,
                0, 0, 0, 0, 0, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bytes = sealed();
        assert_eq!(open(&bytes, Kind::Page, 3, Some(VolumeId(8))), Err(EnvelopeError::OtherVolume));
        assert!(matches!(
            open(&bytes, Kind::Superblock, 3, None),
            Err(EnvelopeError::WrongKind { expected: 2, found: 4 })
        ));
        assert!(matches!(
            open(&bytes, Kind::Page, 2, None),
            Err(EnvelopeError::UnknownVersion { newest: 2, found: 3 })
        ));
        assert_eq!(open(&[0; 4096], Kind::Page, 3, None), Err(EnvelopeError::NotOurs));
        assert_eq!(open(&bytes[..20], Kind::Page, 3, None), Err(EnvelopeError::NotOurs));
        assert!(matches!(
            open(&bytes[..34], Kind::Page, 3, None),
            Err(EnvelopeError::WrongLength { available: 2, found: 5 })
        ));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = sealed();
        for bit in 0..(ENVELOPE_BYTES + 5) * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&flipped, Kind::Page, 3, None).is_err(), "bit {bit}");
        }
    }
}
