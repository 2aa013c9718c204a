//! The admin socket: how other commands speak with a running server.
//!
//! A Unix socket in the volume's directory, for the server's own user and root alone. The server checks the peer's
//! credentials; the mode of the socket is only a second barrier.
//!
//! Modules, lowest first: `protocol` · `place` · `client` · `server`

mod client;
mod place;
pub mod protocol;
mod server;

pub use client::{Asked, ask};
pub use server::{AdminServer, Source};
