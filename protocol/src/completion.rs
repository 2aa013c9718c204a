//! Completions: what became of a command, one slot each.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::layout::record;
use crate::ring::slot::Slot;

record! {
    /// A completion, as it lies in a slot of the completion ring.
    pub struct CompletionRecord: 64 {
        /// The command's.
        pub tag: U64,
        /// 0, or an error number of Linux.
        pub status: U32,
        /// Bytes in the command's output area that are the result; those behind are as they were.
        pub output_bytes: U32,
        /// What the table of commands says.
        pub value: U64,
        /// What the table of commands says.
        pub extra: U64,
        pub reserved: [u8; 28],
        /// The ring's.
        pub sequence: U32,
    }
}

/// What became of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    pub tag: u64,
    /// 0, or an error number of Linux.
    pub status: u32,
    pub output_bytes: u32,
    pub value: u64,
    pub extra: u64,
}

impl Completion {
    pub fn encode(&self) -> Slot {
        let record = CompletionRecord {
            tag: self.tag.into(),
            status: self.status.into(),
            output_bytes: self.output_bytes.into(),
            value: self.value.into(),
            extra: self.extra.into(),
            ..CompletionRecord::default()
        };
        let mut bytes = [0; 64];
        bytes.copy_from_slice(record.as_bytes());
        Slot::from_bytes(&bytes)
    }

    /// Reserved bytes are not looked at: a newer server may say more.
    pub fn decode(slot: Slot) -> Self {
        let Ok(record) = CompletionRecord::read_from_bytes(&slot.to_bytes()) else {
            unreachable!("a slot has the length of a completion")
        };
        Self {
            tag: record.tag.get(),
            status: record.status.get(),
            output_bytes: record.output_bytes.get(),
            value: record.value.get(),
            extra: record.extra.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_has_the_bytes_of_its_golden_file() {
        let completion = Completion {
            tag: 0x3132_3334_3536_3738,
            status: 0x0000_0016,
            output_bytes: 0x0102_0304,
            value: 0x2122_2324_2526_2728,
            extra: 0x4142_4344_4546_4748,
        };
        assert_eq!(&completion.encode().to_bytes()[..], include_bytes!("../tests/golden/completion.bin"));
        assert_eq!(Completion::decode(completion.encode()), completion);
    }
}
