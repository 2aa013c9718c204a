//! Bytes at rest: the only room of the store that lays them out.
//!
//! Everything little-endian, in zerocopy types with asserted sizes, with reserved space that is zero and checked.
//! What a file or slot holds begins with an [`envelope`]; decoding validates every field and never panics.
//!
//! Modules, lowest first: `layout` · `crc32c` · `checksum` · `envelope` · `component` · `page` · `map` · `run` · `filter` · `view` · `segment` · `log` · `root` · `memory` ·
//! `filesystem` · `acl` · `sample`

pub mod acl;
pub mod checksum;
pub mod component;
mod crc32c;
pub mod envelope;
pub mod filesystem;
pub mod filter;
pub mod layout;
pub mod log;
pub mod map;
pub mod memory;
pub mod page;
pub mod root;
pub mod run;
pub mod sample;
pub mod segment;
pub mod table;
pub mod view;

/// Every structure that has a table in the format document.
pub fn layouts() -> impl Iterator<Item = &'static layout::Layout> {
    let rooms = [
        envelope::LAYOUTS,
        component::LAYOUTS,
        page::LAYOUTS,
        map::LAYOUTS,
        run::LAYOUTS,
        filter::LAYOUTS,
        table::LAYOUTS,
        view::LAYOUTS,
        segment::LAYOUTS,
        log::LAYOUTS,
        root::LAYOUTS,
        memory::LAYOUTS,
        filesystem::LAYOUTS,
        acl::LAYOUTS,
        sample::LAYOUTS,
    ];
    rooms.into_iter().flatten()
}
