//! Access control lists as POSIX 1003.1e draft 17 describes them, entry by entry.

use crate::person::Person;
use crate::vocabulary::{Errno, FileKind};

pub const OWNER: u16 = 1;
pub const USER: u16 = 2;
pub const GROUP: u16 = 4;
pub const NAMED_GROUP: u16 = 8;
pub const MASK: u16 = 16;
pub const OTHERS: u16 = 32;
pub const NOBODY: u32 = u32::MAX;

/// Tag, permissions, id of each entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List(pub Vec<(u16, u16, u32)>);

/// The lists of an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    pub access: Option<List>,
    pub default: Option<List>,
}

impl List {
    /// The value of the extended attribute that Linux gives it.
    pub fn value(&self) -> Vec<u8> {
        let mut value = vec![2, 0, 0, 0];
        for (tag, permissions, id) in &self.0 {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    fn of(&self, tag: u16) -> Option<u16> {
        self.0.iter().find(|entry| entry.0 == tag).map(|entry| entry.1)
    }

    pub fn is_minimal(&self) -> bool {
        self.of(MASK).is_none()
    }

    /// The tags that stand for owner, group and others in a mode.
    fn classes(&self) -> [(u16, u32); 3] {
        [(OWNER, 6), (if self.is_minimal() { GROUP } else { MASK }, 3), (OTHERS, 0)]
    }

    pub fn mode(&self) -> u16 {
        self.classes().into_iter().map(|(tag, shift)| self.of(tag).unwrap() << shift).sum()
    }

    fn change(&mut self, mode: u16, change: fn(u16, u16) -> u16) {
        for (class, shift) in self.classes() {
            let entry = self.0.iter_mut().find(|entry| entry.0 == class).unwrap();
            entry.1 = change(entry.1, mode >> shift & 7);
        }
    }

    pub fn set_mode(&mut self, mode: u16) {
        self.change(mode, |_, new| new);
    }

    pub fn restrict(&mut self, mode: u16) {
        self.change(mode, |old, asked| old & asked);
    }

    /// Whether somebody is granted `mask` to what `owner` and `group` own: the first entry that is about them decides, and of groups any.
    pub fn grants(&self, person: &Person, (owner, group): (u32, u32), mask: u16) -> bool {
        let within = |permissions: u16| permissions & self.of(MASK).unwrap_or(7) & mask == mask;
        if person.uid == owner {
            return self.of(OWNER).unwrap() & mask == mask;
        }
        if let Some(user) = self.0.iter().find(|entry| (entry.0, entry.2) == (USER, person.uid)) {
            return within(user.1);
        }
        let about = |entry: &&(u16, u16, u32)| match entry.0 {
            GROUP => person.in_group(group),
            NAMED_GROUP => person.in_group(entry.2),
            _ => false,
        };
        let mut groups = self.0.iter().filter(about).peekable();
        match groups.peek() {
            Some(_) => groups.any(|entry| within(entry.1)),
            None => self.of(OTHERS).unwrap() & mask == mask,
        }
    }
}

/// Whether a list can be set on an inode of this kind.
pub fn settable(kind: FileKind, default: bool) -> Result<(), Errno> {
    match kind {
        FileKind::Symlink => Err(Errno::EOPNOTSUPP),
        FileKind::Directory => Ok(()),
        _ if default => Err(Errno::EACCES),
        _ => Ok(()),
    }
}
