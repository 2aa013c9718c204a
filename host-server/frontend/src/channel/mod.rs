//! The channel: commands and completions in memory that a client shares with the server.
//!
//! What travels is laid out in `ringfort-protocol`; this is the server's side of it. `server` listens, `connection` hears messages, `control` decides
//! about them; all three run beside the volume's thread. On that thread `clients` has the sessions and rings that were begun, `ring`
//! takes commands, `session` carries them out, and `walk` follows their paths. A client's memory is reached through `data` alone,
//! for the areas of its commands, and through the protocol's rings.
//!
//! Modules, lowest first: `metrics` · `data` · `record` · `walk` · `session` · `ring` · `region` · `extents` · `control` · `peer` ·
//! `endpoint` · `connection` · `connections` · `clients` · `server` · `fuzzing`

mod clients;
mod connection;
mod connections;
mod control;
mod data;
mod endpoint;
#[allow(unsafe_code)]
mod extents;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod guest_tests;
pub mod metrics;
#[allow(unsafe_code)]
mod peer;
mod record;
#[allow(unsafe_code)]
mod region;
mod ring;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod walk;

pub use control::Limits;
pub use endpoint::Carrier;
pub use server::{ChannelServer, Place, StartError};
