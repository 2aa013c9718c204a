//! What the filesystem does, on a volume in memory.
#![allow(clippy::unwrap_used)]

mod data;
mod links;
mod namespace;
mod world;
