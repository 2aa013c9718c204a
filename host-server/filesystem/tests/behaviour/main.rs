//! What the filesystem does, on a volume in memory.
#![allow(clippy::unwrap_used)]

mod acl;
mod attributes;
mod concurrency;
mod copying;
mod crash;
mod damage;
mod data;
mod full;
mod links;
mod locks;
mod model;
mod namespace;
mod ranges;
mod real_store;
mod reference;
mod world;
