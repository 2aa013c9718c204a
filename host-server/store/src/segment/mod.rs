//! Segments: large runs of stripes that are filled once, front to back, and reused only as a whole.
//!
//! `heat` tells what is written often; `table` knows which stripes are handed out; `bank` holds stripes that small writes are still
//! filling; `summary` answers what a stripe's blocks should be.

pub(crate) mod bank;
pub(crate) mod heat;
pub(crate) mod summary;
pub(crate) mod table;
