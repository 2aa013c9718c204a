//! The virtio-fs device: FUSE requests in descriptor chains, over vhost-user.
//!
//! `server` listens on a socket and hands what `vhost_user` hears to `device`, which lives on the volume's
//! thread, takes chains from `queue`s, has them read by `decode`, carries them out through `session` and has the
//! replies written by `encode`.
//!
//! Modules, lowest first: `abi` · `queue` · `request` · `body` · `decode` · `encode` · `invitation` · `session` · `flight` ·
//! `device` · `vhost_user` · `server` · `fuzzing`

mod abi;
mod body;
mod decode;
mod device;
mod encode;
mod flight;
#[doc(hidden)]
pub mod fuzzing;
mod invitation;
mod queue;
mod request;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod vhost_user;

pub use device::Options;
pub use server::{REQUEST_QUEUES_DEFAULT, REQUEST_QUEUES_MAX, StartError, VirtioFsServer};
pub use session::CachePolicy;
