//! One file a command.
//!
//! Modules, lowest first: `describe` · `check` · `create` · `export` · `watch` · `status` · `list` · `serve`

pub mod check;
pub mod create;
pub mod describe;
pub mod export;
pub mod list;
pub mod serve;
pub mod status;
mod watch;

/// The exit code of a command that could not run. 1 says that a check found damage.
pub const COULD_NOT_RUN: u8 = 2;
