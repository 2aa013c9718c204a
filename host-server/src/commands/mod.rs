//! One file a command.
//!
//! Modules, lowest first: `check` · `create` · `status` · `serve`

pub mod check;
pub mod create;
pub mod serve;
pub mod status;
