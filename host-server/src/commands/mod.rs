//! One file a command.
//!
//! Modules, lowest first: `create` · `status` · `serve`

pub mod create;
pub mod serve;
pub mod status;
