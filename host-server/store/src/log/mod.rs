//! The log: a ring of records on the metadata mirrors.
//!
//! # Durability rules
//! * One commit is one record, atomic as a whole: its checksum covers header and body, the body's checksums the data.
//! * Records form a chain: sequence numbers rise by one, each carries the checksum of its predecessor, epochs never fall.
//! * Only one record is in flight at a time, so after a crash mirrors differ in the last record at most.
//! * Everything that a record names (stripes) is durable before the record is written.
//! * The tail moves only when a root that starts replay behind it is durable.

pub(crate) mod replay;
pub(crate) mod ring;
