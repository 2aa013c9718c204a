//! Commands: what a client asks, one slot each.
//!
//! A command names its subject by a handle of its client and a path from there, so that one command does what a program wants done to a
//! named file. Bytes that do not fit a slot (paths, data, results) lie in the data area of the client's memory, where the command's areas
//! say. `docs/wire.md` holds the table of all commands.
//!
//! The server copies a slot once, decodes it with [`Command::decode`], and works with the result alone. It copies the input area once,
//! too, before it looks at it.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::layout::{numbers, record};
use crate::ring::slot::Slot;

record! {
    /// A command, as it lies in a slot of the submission ring.
    pub struct CommandRecord: 64 {
        /// Comes back in the completion; means nothing to the server, except that [`Opcode::Cancel`] names it.
        pub tag: U64,
        /// See [`Opcode`].
        pub opcode: U16,
        /// See [`Flags`]. Those that the command does not know are refused.
        pub flags: U16,
        /// On whose behalf: one of the credentials that the control connection bound to the ring.
        pub credential: U32,
        /// The handle that the command is about, or that its path begins at; 0 is the root directory.
        pub target: U64,
        /// An offset in a file, a cookie, or a second handle.
        pub operand: U64,
        /// Offset of the input area in the client's memory.
        pub input_start: U32,
        pub input_bytes: U32,
        /// Offset of the output area in the client's memory.
        pub output_start: U32,
        pub output_bytes: U32,
        /// What the table of commands says.
        pub value: U64,
        pub reserved: U32,
        /// The ring's.
        pub sequence: U32,
    }
}

numbers! {
    /// What a command asks.
    pub enum Opcode: u16 {
        /// Nothing. Its value comes back.
        Nop = 0,
        /// Opens, and with [`OpenBits::CREATE`] makes, a file or directory.
        Open = 1,
        /// Gives up a handle, and the locks that were taken through it.
        Close = 2,
        Read = 3,
        Write = 4,
        /// Reads into the areas that the input lists.
        ReadScatter = 5,
        /// Writes the areas that the input lists, one after the other.
        WriteGather = 6,
        /// Everything done to a file is on stable media.
        Sync = 7,
        /// Everything done to the volume is.
        SyncAll = 8,
        Stat = 9,
        SetAttributes = 10,
        Access = 11,
        MakeDirectory = 12,
        /// A fifo, a socket, or a device.
        MakeNode = 13,
        MakeSymlink = 14,
        ReadLink = 15,
        Link = 16,
        /// With [`Flags::DIRECTORY`], of an empty directory.
        Unlink = 17,
        Rename = 18,
        ReadDirectory = 19,
        Statistics = 20,
        GetXattr = 21,
        SetXattr = 22,
        ListXattr = 23,
        RemoveXattr = 24,
        Allocate = 25,
        /// The next data, or with [`Flags::HOLE`] the next hole.
        Seek = 26,
        CopyRange = 27,
        SetLock = 28,
        GetLock = 29,
        /// Ends the waiting of another command of this ring, which then answers `ECANCELED`.
        Cancel = 30,
    }
}

/// Bits of a command's flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u16);

impl Flags {
    /// The next command of the ring begins when this one has succeeded, and answers `ECANCELED` where it has not.
    pub const LINK: Flags = Flags(1 << 0);
    /// The next command of the ring begins when this one has ended, however.
    pub const LINK_ALWAYS: Flags = Flags(1 << 1);
    /// The target is the handle that the last [`Opcode::Open`] of this chain of linked commands gave. `ECANCELED` where it gave none.
    pub const OPENED: Flags = Flags(1 << 2);
    /// A symbolic link at the end of the path is itself what is meant.
    pub const NO_FOLLOW: Flags = Flags(1 << 3);
    /// `Unlink`: an empty directory.
    pub const DIRECTORY: Flags = Flags(1 << 8);
    /// `Sync`: times may be left out.
    pub const DATA_ONLY: Flags = Flags(1 << 8);
    /// `Write`: at the end of the file, whatever the offset says.
    pub const APPEND: Flags = Flags(1 << 8);
    /// `ReadDirectory`: each entry with its attributes.
    pub const WITH_ATTRIBUTES: Flags = Flags(1 << 8);
    /// `Rename`: `EEXIST` where the new name is taken. `SetXattr`: where the attribute is.
    pub const NO_REPLACE: Flags = Flags(1 << 8);
    /// `Rename`: the two change places.
    pub const EXCHANGE: Flags = Flags(1 << 9);
    /// `SetXattr`: `ENODATA` where the attribute is not there.
    pub const MUST_EXIST: Flags = Flags(1 << 9);
    /// `Seek`: the next hole.
    pub const HOLE: Flags = Flags(1 << 8);
    /// `Allocate`: the size stays.
    pub const KEEP_SIZE: Flags = Flags(1 << 8);
    /// `Allocate`: deallocates; the size stays.
    pub const PUNCH_HOLE: Flags = Flags(1 << 9);
    /// `Allocate`: what was there reads as zeros.
    pub const ZERO_RANGE: Flags = Flags(1 << 10);
    /// `Allocate`: takes the range out; what follows moves down.
    pub const COLLAPSE_RANGE: Flags = Flags(1 << 11);
    /// `Allocate`: what lies at the offset and behind moves up.
    pub const INSERT_RANGE: Flags = Flags(1 << 12);

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Bits of the lower half of an [`Opcode::Open`]'s value. The upper half holds the permission bits of a file that is made; the client has
/// taken off its umask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenBits(pub u32);

impl OpenBits {
    pub const READ: OpenBits = OpenBits(1 << 0);
    pub const WRITE: OpenBits = OpenBits(1 << 1);
    pub const APPEND: OpenBits = OpenBits(1 << 2);
    pub const CREATE: OpenBits = OpenBits(1 << 3);
    /// With `CREATE`: `EEXIST` where the name is taken. With `TEMPORARY`: the file can never be given one.
    pub const EXCLUSIVE: OpenBits = OpenBits(1 << 4);
    pub const TRUNCATE: OpenBits = OpenBits(1 << 5);
    /// `ENOTDIR` where it is no directory.
    pub const DIRECTORY: OpenBits = OpenBits(1 << 6);
    /// Every write is durable before it completes: data, and what is needed to read it back.
    pub const DATA_SYNC: OpenBits = OpenBits(1 << 7);
    /// Every write is durable before it completes, with all attributes.
    pub const SYNC: OpenBits = OpenBits(1 << 8);
    /// A file without a name, in the directory that the path leads to. It can be given one by [`Opcode::Link`].
    pub const TEMPORARY: OpenBits = OpenBits(1 << 9);
    pub const ALL: OpenBits = OpenBits((1 << 10) - 1);

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A range of the client's memory. Whether it lies in the data area is for the server to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Area {
    pub start: u32,
    pub len_bytes: u32,
}

/// Which fields a command uses; the others are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    flags: Flags,
    target: bool,
    operand: bool,
    input: bool,
    output: bool,
    value: bool,
}

const NOTHING: Shape =
    Shape { flags: Flags(0), target: false, operand: false, input: false, output: false, value: false };

/// A handle, and nothing else.
const HANDLE: Shape = Shape { target: true, ..NOTHING };

/// A path from a handle.
const PLACE: Shape = Shape { target: true, input: true, ..NOTHING };

/// Two paths, each from a handle. The value says how long the first is.
const TWO_PLACES: Shape = Shape { operand: true, value: true, ..PLACE };

impl Opcode {
    const fn shape(self) -> Shape {
        match self {
            Self::Nop => Shape { value: true, ..NOTHING },
            Self::Open => Shape { flags: Flags::NO_FOLLOW, output: true, value: true, ..PLACE },
            Self::Close => HANDLE,
            Self::Read => Shape { operand: true, output: true, ..HANDLE },
            Self::Write => Shape { flags: Flags::APPEND, operand: true, input: true, ..HANDLE },
            Self::ReadScatter => Shape { operand: true, input: true, ..HANDLE },
            Self::WriteGather => Shape { flags: Flags::APPEND, operand: true, input: true, ..HANDLE },
            Self::Sync => Shape { flags: Flags::DATA_ONLY, ..HANDLE },
            Self::SyncAll => NOTHING,
            Self::Stat => Shape { flags: Flags::NO_FOLLOW, output: true, ..PLACE },
            Self::SetAttributes => Shape { flags: Flags::NO_FOLLOW, output: true, ..PLACE },
            Self::Access => Shape { flags: Flags::NO_FOLLOW, value: true, ..PLACE },
            Self::MakeDirectory | Self::MakeNode => Shape { value: true, ..PLACE },
            // The value says how long the link's target is, which precedes the path.
            Self::MakeSymlink => Shape { value: true, ..PLACE },
            Self::ReadLink => Shape { output: true, ..PLACE },
            Self::Link => Shape { flags: Flags::NO_FOLLOW, ..TWO_PLACES },
            Self::Unlink => Shape { flags: Flags::DIRECTORY, ..PLACE },
            Self::Rename => Shape { flags: Flags::NO_REPLACE.union(Flags::EXCHANGE), ..TWO_PLACES },
            Self::ReadDirectory => {
                Shape { flags: Flags::WITH_ATTRIBUTES, operand: true, output: true, ..HANDLE }
            }
            Self::Statistics => Shape { output: true, ..NOTHING },
            Self::GetXattr => Shape { flags: Flags::NO_FOLLOW, output: true, value: true, ..PLACE },
            Self::SetXattr => Shape {
                flags: Flags::NO_FOLLOW.union(Flags::NO_REPLACE).union(Flags::MUST_EXIST),
                value: true,
                ..PLACE
            },
            Self::ListXattr => Shape { flags: Flags::NO_FOLLOW, output: true, ..PLACE },
            Self::RemoveXattr => Shape { flags: Flags::NO_FOLLOW, value: true, ..PLACE },
            Self::Allocate => Shape {
                flags: Flags::KEEP_SIZE
                    .union(Flags::PUNCH_HOLE)
                    .union(Flags::ZERO_RANGE)
                    .union(Flags::COLLAPSE_RANGE)
                    .union(Flags::INSERT_RANGE),
                operand: true,
                value: true,
                ..HANDLE
            },
            Self::Seek => Shape { flags: Flags::HOLE, operand: true, ..HANDLE },
            Self::CopyRange => Shape { operand: true, input: true, value: true, ..HANDLE },
            Self::SetLock => Shape { operand: true, input: true, ..HANDLE },
            Self::GetLock => Shape { operand: true, input: true, output: true, ..HANDLE },
            Self::Cancel => Shape { operand: true, ..NOTHING },
        }
    }
}

/// A command that is one: its opcode is known, and it has only what such a command has. Areas and credentials are not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    pub tag: u64,
    pub opcode: Opcode,
    pub flags: Flags,
    pub credential: u32,
    pub target: u64,
    pub operand: u64,
    pub input: Area,
    pub output: Area,
    pub value: u64,
}

/// Why a slot is no command. The tag is what the completion is to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Answered with `ENOSYS`, by which a client of a newer release knows that this server is older.
    #[error("command {opcode}, which this side does not know")]
    Opcode { tag: u64, opcode: u16 },
    /// Answered with `EINVAL`.
    #[error("{opcode:?} with flags {flags:#06x}, of which it knows {known:#06x}")]
    Flags { tag: u64, opcode: Opcode, flags: u16, known: u16 },
    /// Answered with `EINVAL`.
    #[error("{opcode:?} with {field} {found:#x}, which it does not have")]
    Unused { tag: u64, opcode: Opcode, field: &'static str, found: u64 },
}

impl CommandError {
    pub fn tag(&self) -> u64 {
        match *self {
            Self::Opcode { tag, .. } | Self::Flags { tag, .. } | Self::Unused { tag, .. } => tag,
        }
    }
}

impl Command {
    /// A command without flags, areas and numbers.
    pub fn new(opcode: Opcode, tag: u64, credential: u32) -> Self {
        Self {
            tag,
            opcode,
            flags: Flags::default(),
            credential,
            target: 0,
            operand: 0,
            input: Area::default(),
            output: Area::default(),
            value: 0,
        }
    }

    pub fn encode(&self) -> Slot {
        let record = CommandRecord {
            tag: self.tag.into(),
            opcode: self.opcode.number().into(),
            flags: self.flags.0.into(),
            credential: self.credential.into(),
            target: self.target.into(),
            operand: self.operand.into(),
            input_start: self.input.start.into(),
            input_bytes: self.input.len_bytes.into(),
            output_start: self.output.start.into(),
            output_bytes: self.output.len_bytes.into(),
            value: self.value.into(),
            ..CommandRecord::default()
        };
        let mut bytes = [0; 64];
        bytes.copy_from_slice(record.as_bytes());
        Slot::from_bytes(&bytes)
    }

    /// Checks what the other side put into a slot.
    pub fn decode(slot: Slot) -> Result<Self, CommandError> {
        let Ok(record) = CommandRecord::read_from_bytes(&slot.to_bytes()) else {
            unreachable!("a slot has the length of a command")
        };
        let (tag, flags) = (record.tag.get(), Flags(record.flags.get()));
        let number = record.opcode.get();
        let opcode = Opcode::from_number(number).ok_or(CommandError::Opcode { tag, opcode: number })?;
        let shape = opcode.shape();
        let mut known = shape.flags.union(Flags::LINK).union(Flags::LINK_ALWAYS);
        if shape.target {
            known = known.union(Flags::OPENED);
        }
        if flags.without(known) != Flags::default() {
            return Err(CommandError::Flags { tag, opcode, flags: flags.0, known: known.0 });
        }
        let area = |start: U32, len_bytes: U32| Area { start: start.get(), len_bytes: len_bytes.get() };
        let command = Self {
            tag,
            opcode,
            flags,
            credential: record.credential.get(),
            target: record.target.get(),
            operand: record.operand.get(),
            input: area(record.input_start, record.input_bytes),
            output: area(record.output_start, record.output_bytes),
            value: record.value.get(),
        };
        let has_target = shape.target && !flags.has(Flags::OPENED);
        let both = |area: Area| u64::from(area.start) << 32 | u64::from(area.len_bytes);
        for (used, field, found) in [
            (has_target, "target", command.target),
            (shape.operand, "operand", command.operand),
            (shape.input, "input area", both(command.input)),
            (shape.output, "output area", both(command.output)),
            (shape.value, "value", command.value),
            (false, "reserved bytes", record.reserved.get().into()),
        ] {
            if !used && found != 0 {
                return Err(CommandError::Unused { tag, opcode, field, found });
            }
        }
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_field(opcode: Opcode) -> Command {
        let shape = opcode.shape();
        let if_used = |used: bool, value: u64| if used { value } else { 0 };
        let area = |used: bool, start: u32| {
            if used { Area { start, len_bytes: 0x1234 } } else { Area::default() }
        };
        Command {
            flags: shape.flags.union(Flags::LINK),
            target: if_used(shape.target, 0x0102_0304_0506_0708),
            operand: if_used(shape.operand, 0x1112_1314_1516_1718),
            input: area(shape.input, 0x0001_0000),
            output: area(shape.output, 0x0002_0000),
            value: if_used(shape.value, 0x2122_2324_2526_2728),
            ..Command::new(opcode, 0x3132_3334_3536_3738, 0x4142_4344)
        }
    }

    #[test]
    fn commands_have_the_bytes_of_their_golden_file() {
        let bytes: Vec<u8> =
            Opcode::ALL.iter().flat_map(|opcode| every_field(*opcode).encode().to_bytes()).collect();
        assert_eq!(&bytes[..], include_bytes!("../tests/golden/commands.bin"));
    }

    #[test]
    fn every_command_is_decoded_as_it_was_encoded() {
        for opcode in Opcode::ALL {
            let command = every_field(*opcode);
            assert_eq!(Command::decode(command.encode()), Ok(command));
        }
    }

    #[test]
    fn what_a_command_does_not_have_is_refused() {
        let tag = 9;
        let sync = Command::new(Opcode::SyncAll, tag, 1);
        let unused = |field, found| Err(CommandError::Unused { tag, opcode: Opcode::SyncAll, field, found });
        let decode = |command: Command| Command::decode(command.encode());
        assert_eq!(decode(sync), Ok(sync));
        assert_eq!(decode(Command { target: 3, ..sync }), unused("target", 3));
        assert_eq!(decode(Command { operand: 4, ..sync }), unused("operand", 4));
        assert_eq!(decode(Command { value: 5, ..sync }), unused("value", 5));
        let area = Area { start: 0, len_bytes: 6 };
        assert_eq!(decode(Command { input: area, ..sync }), unused("input area", 6));
        assert_eq!(decode(Command { output: area, ..sync }), unused("output area", 6));
        let flags = Flags(1 << 15);
        let known = Flags::LINK.union(Flags::LINK_ALWAYS).0;
        let refused = CommandError::Flags { tag, opcode: Opcode::SyncAll, flags: flags.0, known };
        assert_eq!(decode(Command { flags, ..sync }), Err(refused));
        let mut bytes = sync.encode().to_bytes();
        bytes[8] = 200;
        let unknown = Command::decode(Slot::from_bytes(&bytes)).unwrap_err();
        assert_eq!((unknown.tag(), unknown), (tag, CommandError::Opcode { tag, opcode: 200 }));
        let mut bytes = sync.encode().to_bytes();
        bytes[56] = 1;
        assert_eq!(Command::decode(Slot::from_bytes(&bytes)), unused("reserved bytes", 1));
    }
}
