//! Client library for programs in a guest.
//!
//! It will carry a program's file operations over the shared-memory channel, whose rings are not built yet; guests mount a
//! volume with the kernel's virtio-fs and need nothing from this crate. What exists is the range of protocol versions that
//! it is going to offer.

#![forbid(unsafe_code)]

use ringfort_protocol::version::{Range, Version};

/// The protocol versions that this library speaks.
pub fn versions() -> Option<Range> {
    Range::new(Version::CHANNEL, Version::LATEST)
}
