//! A POSIX filesystem in a few vectors and maps: what the real one is compared with, call by call, by tests of whatever layer. It knows nothing of the real one.
//!
//! A test that compares is wrong where it cannot go on: what a caller asks of nodes that are no files, or of paths without a slash, panics.
//!
//! Modules, lowest first: `random` · `vocabulary` · `person` · `list` · `tree` · `walk` · `calls` · `locks`

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // see above

mod calls;
mod list;
mod locks;
mod person;
mod random;
mod tree;
mod vocabulary;
mod walk;

pub use calls::Change;
pub use list::{GROUP, List, Lists, MASK, NAMED_GROUP, NOBODY, OTHERS, OWNER, USER};
pub use locks::{Claim, Locks};
pub use person::Person;
pub use random::Random;
pub use tree::{Answer, Body, Facts, Node, ROOT, Reference};
pub use vocabulary::{AllocateMode, Errno, FileKind, RenameMode, SetXattrMode};
pub use walk::{Last, Place};
