//! Log-structured, erasure-coded store.
//!
//! Modules, lowest first:
//! `address` · `error` · `limits` · `geometry` · `volume` · `interval` · `format` · `views` · `model` · `sketch` · `keep` · `object` · `kv` · `pages` · `merge` · `map` ·
//! `segment` · `log` · `state` · `pace` · `ahead` · `cache` · `tasks` · `core` · `fetch` · `commit` · `checkpoint` · `merges` · `admit` · `removals` · `clean` · `recover` · `create` · `check` ·
//! `status` · `store` · `replace` · `grow`
#![deny(unsafe_code)]

pub mod address;
pub(crate) mod admit;
pub(crate) mod ahead;
pub(crate) mod cache;
pub mod check;
pub(crate) mod checkpoint;
pub(crate) mod clean;
pub(crate) mod commit;
pub(crate) mod core;
pub mod create;
pub mod error;
pub(crate) mod fetch;
pub mod format;
pub mod geometry;
pub mod grow;
pub mod interval;
pub(crate) mod keep;
pub mod kv;
pub mod limits;
pub(crate) mod log;
pub mod map;
pub mod merge;
pub(crate) mod merges;
pub mod model;
pub mod object;
pub(crate) mod pace;
pub(crate) mod pages;
pub mod recover;
pub(crate) mod removals;
pub mod replace;
pub(crate) mod segment;
pub mod sketch;
pub(crate) mod state;
pub mod status;
pub mod store;
pub(crate) mod tasks;
pub mod views;
pub mod volume;
