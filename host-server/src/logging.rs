//! The log: lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{Layer, LogFilter, LogFormat, Origin, Setting};

/// Says how much the log tells, where no flag does.
const VARIABLE: &str = "RINGFORT_LOG";

/// What the environment says. A filter that cannot be read is told and left out: a variable that some shell profile
/// sets should not keep a server from starting.
pub fn environment() -> Layer {
    let Some(text) = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty()) else {
        return Layer::default();
    };
    match text.parse() {
        Ok(filter) => {
            Layer { log_level: Some(Setting::new(filter, Origin::Environment(VARIABLE))), ..Layer::default() }
        }
        Err(reason) => {
            eprintln!("ringfort: the variable {VARIABLE} is ignored: {reason}");
            Layer::default()
        }
    }
}

/// Starts the log of this process.
pub fn start(filter: &LogFilter, format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter.as_str()))
        .with_writer(std::io::stderr)
        .with_target(false);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => {
            builder.json().flatten_event(true).with_current_span(false).with_span_list(false).init()
        }
    }
}
