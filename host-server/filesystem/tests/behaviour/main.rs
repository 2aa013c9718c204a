//! What the filesystem does, on a volume in memory.

mod data;
mod links;
mod namespace;
mod world;
