//! Entries of the catalogue that name views: what can be read and, where it is a branch, written. Key: the view's id, 0. Whoever made the view adds bytes of its own.
//!
//! A *branch* is a line of changes: the volume itself (view 0, which needs no entry), a subvolume, or a clone, which begins with what a snapshot holds. A *snapshot* is what a
//! branch held at the end of an epoch.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::layout::{Layout, layout};
use crate::address::ViewId;
use crate::volume::{VIEW_INFO_BYTES_MAX, ViewEntry, ViewKind, ViewState};

const VERSION: u8 = 1;

/// No view: a branch that begins empty.
const NO_ORIGIN: u16 = u16::MAX;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ViewBytes {
    version: u8,
    /// 1 branch, 2 snapshot.
    kind: u8,
    /// 1 live, 2 being removed, 3 of a branch: removed, but for what its snapshots hold.
    state: u8,
    reserved: u8,
    /// Of a snapshot: its branch. Of a branch: the snapshot that it began as, 65,535 for none.
    origin: U16,
    info_bytes: U16,
    /// Of a snapshot: the last that it holds. Of a branch: the first in which it could be written.
    epoch: U32,
    reserved_too: U32,
}

const _: () = assert!(size_of::<ViewBytes>() == 16);

/// Tables of the format document.
pub const LAYOUTS: &[Layout] =
    &[layout!("view", ViewBytes { version, kind, state, reserved, origin, info_bytes, epoch, reserved_too })];

impl ViewEntry {
    pub fn encode(&self) -> Vec<u8> {
        let (kind, origin) = match self.kind {
            ViewKind::Branch { origin } => (1, origin.map_or(NO_ORIGIN, |view| view.0)),
            ViewKind::Snapshot { branch } => (2, branch.0),
        };
        let state = match self.state {
            ViewState::Live => 1,
            ViewState::Deleting => 2,
            ViewState::Emptied => 3,
        };
        let head = ViewBytes {
            version: VERSION,
            kind,
            state,
            reserved: 0,
            origin: U16::new(origin),
            info_bytes: U16::new(self.info.len() as u16),
            epoch: U32::new(self.epoch),
            reserved_too: U32::ZERO,
        };
        [head.as_bytes(), &self.info].concat()
    }

    /// `None` where the bytes make no sense.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, info) = ViewBytes::read_from_prefix(bytes).ok()?;
        let is_sound = head.version == VERSION
            && head.reserved == 0
            && head.reserved_too.get() == 0
            && info.len() == usize::from(head.info_bytes.get())
            && info.len() <= VIEW_INFO_BYTES_MAX;
        if !is_sound {
            return None;
        }
        let origin = Some(head.origin.get()).filter(|origin| *origin != NO_ORIGIN).map(ViewId);
        let kind = match head.kind {
            1 => ViewKind::Branch { origin },
            2 => ViewKind::Snapshot { branch: origin? },
            _ => return None,
        };
        let state = match head.state {
            1 => ViewState::Live,
            2 => ViewState::Deleting,
            3 if head.kind == 1 => ViewState::Emptied,
            _ => return None,
        };
        Some(Self { kind, state, epoch: head.epoch.get(), info: info.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<ViewEntry> {
        let kinds = [
            ViewKind::Branch { origin: None },
            ViewKind::Branch { origin: Some(ViewId(7)) },
            ViewKind::Snapshot { branch: ViewId(0) },
        ];
        let entry = |kind| ViewEntry { kind, state: ViewState::Live, epoch: 9, info: b"nightly".to_vec() };
        let mut entries: Vec<ViewEntry> = kinds.into_iter().map(entry).collect();
        entries.push(ViewEntry { state: ViewState::Deleting, info: Vec::new(), ..entries[2].clone() });
        entries.push(ViewEntry { state: ViewState::Emptied, ..entries[0].clone() });
        entries
    }

    #[test]
    fn entries_come_back() {
        for entry in entries() {
            assert_eq!(ViewEntry::decode(&entry.encode()), Some(entry));
        }
    }

    #[test]
    fn entries_that_make_no_sense_are_refused() {
        let bytes = entries()[2].encode();
        for at in [0, 1, 2, 3, 6, 12] {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x40;
            assert_eq!(ViewEntry::decode(&wrong), None, "byte {at}");
        }
        assert_eq!(ViewEntry::decode(&bytes[..bytes.len() - 1]), None);
        let emptied = ViewEntry { state: ViewState::Emptied, ..entries()[2].clone() };
        assert_eq!(ViewEntry::decode(&emptied.encode()), None, "a snapshot is not emptied");
        let nowhere =
            ViewEntry { kind: ViewKind::Snapshot { branch: ViewId(u16::MAX) }, ..entries()[2].clone() };
        assert_eq!(ViewEntry::decode(&nowhere.encode()), None, "a snapshot is of a branch");
    }
}
