//! Lists of entries.

use std::collections::VecDeque;

use ringfort_protocol::argument::EntryRecord;
use ringfort_protocol::command::{Flags, Opcode};
use ringfort_protocol::layout::Record;

use crate::attributes::{Attributes, FileKind};
use crate::error::Error;
use crate::file::File;
use crate::place::Place;
use crate::request::{Request, broken};

/// Bytes of a list that are asked for at a time.
const LIST_BYTES: usize = 64 << 10;

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    pub name: Vec<u8>,
    pub node: u64,
    pub kind: FileKind,
    /// What [`ReadDirectory::after`] takes to go on behind this entry, through whatever handle.
    pub position: u64,
    /// Where they were asked for.
    pub attributes: Option<Attributes>,
}

/// A part of a directory.
pub struct Listing {
    /// Without `.` and `..`.
    pub entries: Vec<DirectoryEntry>,
    /// Where the next part begins; none at the end.
    pub next: Option<u64>,
}

/// The entries of an open directory from a cookie on; 0 begins.
pub fn list(directory: Place<'_>, cookie: u64, with_attributes: bool) -> Request<'_, Listing> {
    let flags = if with_attributes { Flags::WITH_ATTRIBUTES } else { Flags::default() };
    Request::of_handle("list", Opcode::ReadDirectory, directory).operand(cookie).flags(flags).gives(
        LIST_BYTES,
        |completion, bytes| {
            let next = (completion.value > 0).then_some(completion.extra);
            Ok(Listing { entries: entries(bytes)?, next })
        },
    )
}

fn entries(mut bytes: &[u8]) -> Result<Vec<DirectoryEntry>, Error> {
    let broken = || broken("entries of a directory");
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (record, _) = EntryRecord::split(bytes).ok_or_else(broken)?;
        let (entry, following) =
            bytes.split_at_checked(record.entry_bytes.get().into()).ok_or_else(broken)?;
        let rest = entry.get(size_of::<EntryRecord>()..).ok_or_else(broken)?;
        let (attributes, rest) = match record.has_attributes {
            0 => (None, rest),
            _ => {
                let attributes = Attributes::decode(rest)?;
                (Some(attributes), rest.get(Attributes::BYTES..).ok_or_else(broken)?)
            }
        };
        let name = rest.get(..record.name_bytes.get().into()).ok_or_else(broken)?;
        if name != b"." && name != b".." {
            let kind = FileKind::from_number(record.kind.into()).ok_or_else(broken)?;
            all.push(DirectoryEntry {
                name: name.to_vec(),
                node: record.node.get(),
                kind,
                position: record.cookie.get(),
                attributes,
            });
        }
        bytes = following;
    }
    Ok(all)
}

/// The entries of a directory but `.` and `..`, asked for as they are taken. What is made or removed meanwhile may be among them or not; everything else is, once.
pub struct ReadDirectory {
    directory: File,
    with_attributes: bool,
    entries: VecDeque<DirectoryEntry>,
    next: Option<u64>,
}

impl ReadDirectory {
    pub(crate) fn new(directory: File, with_attributes: bool) -> Self {
        Self { directory, with_attributes, entries: VecDeque::new(), next: Some(0) }
    }

    /// The same entries from behind one that was met before, which may be gone by now.
    #[must_use]
    pub fn after(self, position: u64) -> Self {
        Self { entries: VecDeque::new(), next: Some(position), ..self }
    }
}

impl Iterator for ReadDirectory {
    type Item = Result<DirectoryEntry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.entries.is_empty() {
            let request = list((&self.directory).into(), self.next?, self.with_attributes);
            match request.run(self.directory.connection()) {
                Ok(part) => (self.entries, self.next) = (part.entries.into(), part.next),
                Err(error) => {
                    self.next = None;
                    return Some(Err(error));
                }
            }
        }
        self.entries.pop_front().map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use ringfort_protocol::argument::AttributesRecord;
    use zerocopy::IntoBytes;

    use super::*;

    fn entry(name: &[u8], with_attributes: bool) -> Vec<u8> {
        let attributes = AttributesRecord { mode: 0o100_644.into(), ..AttributesRecord::default() };
        let attributes = if with_attributes { attributes.as_bytes() } else { &[] };
        let used_bytes = size_of::<EntryRecord>() + attributes.len() + name.len();
        let entry_bytes = used_bytes.next_multiple_of(8);
        let record = EntryRecord {
            entry_bytes: (entry_bytes as u16).into(),
            name_bytes: (name.len() as u16).into(),
            kind: 8,
            has_attributes: with_attributes.into(),
            ..EntryRecord::default()
        };
        let mut bytes = [record.as_bytes(), attributes, name].concat();
        bytes.resize(entry_bytes, 0);
        bytes
    }

    #[test]
    fn entries_are_found_with_and_without_attributes() {
        let bytes = [entry(b".", false), entry(b"one", false), entry(b"another", true)].concat();
        let found = entries(&bytes).unwrap();
        let names: Vec<_> = found.iter().map(|entry| (&entry.name[..], entry.attributes.is_some())).collect();
        assert_eq!(names, [(&b"one"[..], false), (&b"another"[..], true)]);
    }

    #[test]
    fn lists_that_do_not_add_up_are_errors() {
        let whole = entry(b"name", true);
        for len_bytes in 1..whole.len() {
            assert!(entries(&whole[..len_bytes]).is_err(), "{len_bytes} bytes");
        }
        let mut endless = entry(b"name", false);
        endless[16] = 0;
        assert!(entries(&endless).is_err());
        let mut long = entry(b"name", false);
        long[18] = 200;
        assert!(entries(&long).is_err());
    }
}
