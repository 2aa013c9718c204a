//! Prometheus metrics: a report in the text exposition format, over HTTP, for scrapers on this machine.
//!
//! Modules, lowest first: `exposition` · `families` · `request` · `server`

mod exposition;
mod families;
mod request;
mod server;

pub use server::{MetricsServer, Source};
