//! `ringfort volume status --watch`

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::observe;
use crate::report::{Rates, Status};

/// A line of `--json`.
#[derive(Serialize)]
struct Look<'a> {
    status: &'a Status,
    /// None at the first look, and where another server than at the last look answers.
    rates: Option<&'a Rates>,
}

/// How looks are shown.
#[derive(Clone, Copy)]
enum Style {
    Json,
    /// The whole picture, drawn over the last one.
    Picture,
    /// A line each.
    Line,
}

/// Shows the volume each `interval` until SIGINT or SIGTERM, or until nobody reads any more.
pub fn run(directory: &Path, interval: Duration, json: bool) -> Result<ExitCode> {
    let style = match (json, io::stdout().is_terminal()) {
        (true, _) => Style::Json,
        (false, true) => Style::Picture,
        (false, false) => Style::Line,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watch = Watch { directory, style, last: None };
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
                _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            }
            // Blocks until the server answers; a signal is seen right after.
            match watch.look()? {
                Going::On => {}
                Going::NobodyReads => return Ok(ExitCode::SUCCESS),
            }
        }
    })
}

enum Going {
    On,
    NobodyReads,
}

struct Watch<'a> {
    directory: &'a Path,
    style: Style,
    last: Option<(Instant, Status)>,
}

impl Watch<'_> {
    fn look(&mut self) -> Result<Going> {
        let status = self.observe()?;
        let now = Instant::now();
        let rates = self
            .last
            .as_ref()
            .and_then(|(then, earlier)| Rates::between(earlier, &status, now.duration_since(*then)));
        let text = match self.style {
            Style::Json => serde_json::to_string(&Look { status: &status, rates: rates.as_ref() })? + "\n",
            Style::Line => status.to_line(rates.as_ref()) + "\n",
            // Home, the picture, and nothing left of the last one.
            Style::Picture => {
                let picture = status.to_picture(rates.as_ref()).replace('\n', "\x1b[K\n");
                format!("\x1b[H{picture}\x1b[J")
            }
        };
        let clear = if matches!(self.style, Style::Picture) && self.last.is_none() { "\x1b[2J" } else { "" };
        self.last = Some((now, status));
        let mut out = io::stdout().lock();
        match out
            .write_all(clear.as_bytes())
            .and_then(|()| out.write_all(text.as_bytes()))
            .and_then(|()| out.flush())
        {
            Ok(()) => Ok(Going::On),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Going::NobodyReads),
            Err(error) => Err(error).context("write to standard output"),
        }
    }

    /// A volume that nobody serves does not change, and is not opened again for each look.
    fn observe(&self) -> Result<Status> {
        if let Some((_, last)) = &self.last
            && last.served.is_none()
        {
            let found = observe::ask(self.directory)?;
            return Ok(found.unwrap_or_else(|| last.clone()));
        }
        observe::status(self.directory)
    }
}
