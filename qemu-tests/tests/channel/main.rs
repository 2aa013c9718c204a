//! The channel: from programs on the host beside a guest's mount, and from a guest.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod daemon;
mod host;
mod machine;
mod port;
mod stage;
mod vocabulary;
