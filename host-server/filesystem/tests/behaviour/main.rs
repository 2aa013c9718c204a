//! What the filesystem does, on a volume in memory.
#![allow(clippy::unwrap_used)]

mod acl;
mod attributes;
mod big_directory;
mod concurrency;
mod copying;
mod crash;
mod damage;
mod data;
mod full;
mod links;
mod locks;
mod model;
mod model_contents;
mod model_marks;
mod namespace;
mod power;
mod ranges;
mod real_store;
mod snapshots;
mod world;
