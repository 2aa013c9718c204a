//! POSIX meaning on top of a volume.
//!
//! Front ends open a [`filesystem::Filesystem`], open a session each, and hand it the [`operation::Operation`]s that they
//! decode. Everything runs on the thread that owns the volume.
//!
//! Access times change only when they are set (as with `noatime`): a read never writes.
//!
//! Modules, lowest first:
//! `errno` · `operation` · `failure` · `hash` · `lock` · `advisory` · `acl` · `xattr_place` · `inode` · `permission` · `handle` · `mount` · `directory` · `hidden` · `payload` · `xattr` ·
//! `blocks` · `extent` · `allocate` · `copy` · `orphan` · `attribute` · `namespace` · `rename` · `filesystem` · `snapshot` · `check`
#![forbid(unsafe_code)]

mod acl;
mod advisory;
mod allocate;
mod attribute;
mod blocks;
pub mod check;
mod copy;
mod directory;
pub mod errno;
mod extent;
mod failure;
pub mod filesystem;
mod handle;
mod hash;
mod hidden;
mod inode;
mod lock;
mod mount;
mod namespace;
pub mod operation;
mod orphan;
mod payload;
mod permission;
mod rename;
pub mod snapshot;
mod xattr;
mod xattr_place;

pub use check::{CheckReport, check};
pub use filesystem::{Counts, Filesystem};
pub use mount::FilesystemOptions;
