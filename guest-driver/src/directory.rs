//! Lists of entries.

use ringfort_protocol::argument::EntryRecord;
use ringfort_protocol::command::Opcode;
use ringfort_protocol::layout::Record;

use crate::attributes::FileKind;
use crate::error::Error;
use crate::place::Place;
use crate::request::Request;

/// Bytes of a list that are asked for at a time.
const LIST_BYTES: usize = 64 << 10;

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    pub name: Vec<u8>,
    pub node: u64,
    pub kind: FileKind,
}

/// A part of a directory.
pub struct Listing {
    /// Without `.` and `..`.
    pub entries: Vec<DirectoryEntry>,
    /// Where the next part begins; none at the end.
    pub next: Option<u64>,
}

/// The entries of an open directory from a cookie on; 0 begins.
pub fn list(directory: Place<'_>, cookie: u64) -> Request<'_, Listing> {
    Request::new("list", Opcode::ReadDirectory, directory).input([&[]; 3]).operand(cookie).gives(
        LIST_BYTES,
        |completion, bytes| {
            let next = (completion.value > 0).then_some(completion.extra);
            Ok(Listing { entries: entries(bytes)?, next })
        },
    )
}

fn entries(mut bytes: &[u8]) -> Result<Vec<DirectoryEntry>, Error> {
    let broken = || Error::Protocol { found: "a list of directory entries that does not add up".to_owned() };
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (record, rest) = EntryRecord::split(bytes).ok_or_else(broken)?;
        let name = rest.get(..usize::from(record.name_bytes.get())).ok_or_else(broken)?;
        if name != b"." && name != b".." {
            let kind = FileKind::from_number(record.kind.into()).ok_or_else(broken)?;
            all.push(DirectoryEntry { name: name.to_vec(), node: record.node.get(), kind });
        }
        let entry_bytes = usize::from(record.entry_bytes.get()).max(1);
        bytes = bytes.get(entry_bytes..).ok_or_else(broken)?;
    }
    Ok(all)
}
