//! One file a command.
//!
//! Modules, lowest first: `check` · `create` · `export` · `status` · `serve`

pub mod check;
pub mod create;
pub mod export;
pub mod serve;
pub mod status;
