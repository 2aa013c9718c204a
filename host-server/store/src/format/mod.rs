//! Bytes at rest: the only room of the store that lays them out.
//!
//! Everything little-endian, in zerocopy types with asserted sizes, with reserved space that is zero and checked.
//! What a file or slot holds begins with an [`envelope`]; decoding validates every field and never panics.
//!
//! Modules, lowest first: `checksum` · `envelope` · `component` · `page` · `map` · `segment` · `log` · `root` · `memory` ·
//! `filesystem`

pub mod checksum;
pub mod component;
pub mod envelope;
pub mod filesystem;
pub mod log;
pub mod map;
pub mod memory;
pub mod page;
pub mod root;
pub mod segment;
