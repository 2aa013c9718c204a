//! The merge store: items that are sent blindly and merge later, in memory and in runs on the metadata region.
//!
//! An item ([`RunItem`](crate::format::run::RunItem)) says something of a range of keys of a tree. What it means for older items that it meets depends on the tree's [`Rule`](fold::Rule);
//! what a meeting causes in other trees is *fired*, to be sent there as items, durably together with the merge that found it. Merging is associative: it does
//! not matter which neighbours meet first.
//!
//! Modules, lowest first: `item` · `fold` · `memory` · `sweep` · `table` · `cache` · `read` · `levels` · `store` · `lookup` · `write` ·
//! `compact`

pub mod cache;
mod compact;
pub mod fold;
pub mod item;
pub mod levels;
pub mod lookup;
pub mod memory;
pub mod read;
pub mod store;
pub mod sweep;
pub mod table;
mod write;

#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
