//! How far long work has got.

use std::io::IsTerminal;

/// One line on a terminal, rewritten; nothing elsewhere.
pub struct Progress {
    shown: bool,
    last: String,
}

impl Progress {
    pub fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal(), last: String::new() }
    }

    /// `what` is being done; shown when the percentage changes.
    pub fn show(&mut self, what: &str, done: u64, total: u64) {
        if !self.shown {
            return;
        }
        let percent = u128::from(done) * 100 / u128::from(total.max(1));
        let line = format!("{what}: {percent} %");
        if line != self.last {
            eprint!("\r\x1b[K{line}");
            self.last = line;
        }
    }

    pub fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
