//! The vocabulary of the black-box tests: fetch a kernel, make an image, boot a guest, run commands in it.
//! Modules, lowest first:
//! * [`content`]: seeded bytes, the same on both sides
//! * [`frame`]: the bytes between host and guest agent
//! * [`place`]: where downloads, runs and locks lie
//! * [`apt`]: packages fetched without root and without touching the machine's own package state
//! * [`provision`]: QEMU, kernels, busybox, the guest agent
//! * [`programs`]: test programs for the guest, from packages and from crates.io
//! * [`tsc`]: the rate of the host's time-stamp counter
//! * [`image`]: kernel modules and programs packed into an initramfs
//! * [`console`]: the serial console's transcript
//! * [`agent`]: commands that run in the guest
//! * [`monitor`]: QEMU's monitor
//! * [`vsock`]: a vsock device in user space
//! * [`machine`]: QEMU's command line and a guest's life
//! * [`server`]: the `ringfort` program, a volume, a serving process
//! * [`local`]: a server without a guest
//! * [`client`]: the `rf` program
//! * [`scene`]: a volume served to guests, trees and ledgers in it
//! * [`powercut`]: states that a power cut may leave, made of recorded writes
//!
//! Nothing here depends on another crate of the workspace: the tests see programs, sockets and files only.
#![deny(unsafe_code)]

pub mod agent;
pub mod apt;
pub mod client;
pub mod console;
pub mod content;
pub mod frame;
pub mod image;
pub mod local;
pub mod machine;
pub mod monitor;
pub mod place;
pub mod powercut;
pub mod programs;
pub mod provision;
pub mod scene;
pub mod server;
pub mod tsc;
pub mod vsock;
