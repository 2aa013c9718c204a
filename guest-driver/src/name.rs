//! Names: what makes them, moves them, and takes them away.

use ringfort_protocol::command::{Flags, Opcode};

use crate::attributes::FileKind;
use crate::place::Place;
use crate::request::Request;

/// The longest target of a symbolic link.
const LINK_BYTES_MAX: usize = 4096;

/// What [`Volume::make_node`](crate::Volume::make_node) makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    Fifo,
    Socket,
    Regular,
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
}

impl NodeKind {
    /// The type's bits of `st_mode`, and the device as Linux encodes it in 32 bits.
    fn encode(self) -> (u32, u32) {
        // Twelve bits of a major number, twenty of a minor.
        let device =
            |major: u32, minor: u32| (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12);
        match self {
            Self::Fifo => (FileKind::Fifo.mode_bits(), 0),
            Self::Socket => (FileKind::Socket.mode_bits(), 0),
            Self::Regular => (FileKind::Regular.mode_bits(), 0),
            Self::CharacterDevice { major, minor } => {
                (FileKind::CharacterDevice.mode_bits(), device(major, minor))
            }
            Self::BlockDevice { major, minor } => (FileKind::BlockDevice.mode_bits(), device(major, minor)),
        }
    }
}

/// What becomes of the name that something is renamed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RenameMode {
    /// What it was a name of loses it.
    #[default]
    Replace,
    /// `EEXIST` where it is taken.
    NoReplace,
    /// The two change places.
    Exchange,
}

pub fn make_directory(place: Place<'_>, permissions: u32) -> Request<'_, ()> {
    Request::new("make directory", Opcode::MakeDirectory, place).value(permissions.into())
}

pub fn make_node(place: Place<'_>, kind: NodeKind, permissions: u32) -> Request<'_, ()> {
    let (type_bits, device) = kind.encode();
    let mode = type_bits | permissions & 0o7777;
    Request::new("make node", Opcode::MakeNode, place).value(u64::from(mode) | u64::from(device) << 32)
}

pub fn make_symlink<'a>(target: &'a [u8], place: Place<'a>) -> Request<'a, ()> {
    Request::new("make symbolic link", Opcode::MakeSymlink, place)
        .value(target.len() as u64)
        .input([target, place.path])
}

pub fn read_link(place: Place<'_>) -> Request<'_, Vec<u8>> {
    Request::new("read link", Opcode::ReadLink, place).gives(LINK_BYTES_MAX, |_, bytes| Ok(bytes.to_vec()))
}

pub fn link<'a>(existing: Place<'a>, new: Place<'a>) -> Request<'a, ()> {
    Request::following("link", Opcode::Link, existing)
        .operand(new.handle)
        .value(existing.path.len() as u64)
        .input([existing.path, new.path])
}

pub fn remove_file(place: Place<'_>) -> Request<'_, ()> {
    Request::new("remove", Opcode::Unlink, place)
}

pub fn remove_directory(place: Place<'_>) -> Request<'_, ()> {
    Request::new("remove directory", Opcode::Unlink, place).flags(Flags::DIRECTORY)
}

pub fn rename<'a>(from: Place<'a>, to: Place<'a>, mode: RenameMode) -> Request<'a, ()> {
    let flags = match mode {
        RenameMode::Replace => Flags::default(),
        RenameMode::NoReplace => Flags::NO_REPLACE,
        RenameMode::Exchange => Flags::EXCHANGE,
    };
    Request::new("rename", Opcode::Rename, from)
        .operand(to.handle)
        .value(from.path.len() as u64)
        .input([from.path, to.path])
        .flags(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_encoded_as_linux_does() {
        let kind = NodeKind::BlockDevice { major: 0x123, minor: 0xabcde };
        assert_eq!(kind.encode(), (0o060_000, 0xabc1_23de));
        assert_eq!(NodeKind::CharacterDevice { major: 1, minor: 3 }.encode(), (0o020_000, 0x103));
    }
}
