//! One file a command.
//!
//! Modules, lowest first: `describe` · `progress` · `confirm` · `check` · `checkpoint` · `create` · `snapshot` · `export` · `watch` · `status` · `list` · `grow` ·
//! `replace` · `serve`

pub mod check;
pub mod checkpoint;
mod confirm;
pub mod create;
pub mod describe;
pub mod export;
pub mod grow;
pub mod list;
mod progress;
pub mod replace;
pub mod serve;
pub mod snapshot;
pub mod status;
mod watch;

/// The exit code of a command that could not run. 1 says that a check found damage.
pub const COULD_NOT_RUN: u8 = 2;
