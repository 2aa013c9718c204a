//! The channel: commands and completions in memory that a client shares with the server.
//!
//! What travels is laid out in `ringfort-protocol`; this is the server's side of it. A client's memory is reached through `data` alone, for the
//! areas of its commands, and through the protocol's rings. `walk` follows paths, `session` carries commands out, `ring` takes
//! them from rings on the volume's thread.
//!
//! Modules, lowest first: `data` · `record` · `walk` · `session` · `ring`

mod data;
mod record;
mod ring;
mod session;
#[cfg(test)]
mod tests;
mod walk;
