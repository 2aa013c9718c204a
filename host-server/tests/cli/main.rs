//! The command line as its users meet it: the real binary on real files.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on fails

mod care;
mod config;
mod exposition;
mod flags;
mod guest;
mod list;
mod metrics;
mod rf;
mod scene;
mod serve;
mod snapshot;
mod volume;
mod watch;
