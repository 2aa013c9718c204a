//! How far a copy has come, on a terminal.

use std::io::{IsTerminal, Write, stderr};
use std::path::Path;
use std::time::{Duration, Instant};

/// From one look of the user's to the next.
const PAUSE: Duration = Duration::from_millis(200);

pub struct Progress {
    shown: bool,
    began: Instant,
    /// When something was shown last.
    last: Instant,
    bytes: u64,
    file: String,
    file_bytes: u64,
    file_done_bytes: u64,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        let now = Instant::now();
        let shown = !quiet && stderr().is_terminal();
        Self {
            shown,
            began: now,
            last: now,
            bytes: 0,
            file: String::new(),
            file_bytes: 0,
            file_done_bytes: 0,
        }
    }

    /// A file begins, of about so many bytes.
    pub fn begin(&mut self, path: &Path, size_bytes: u64) {
        if self.shown {
            (self.file, self.file_bytes, self.file_done_bytes) = (path.display().to_string(), size_bytes, 0);
        }
    }

    pub fn advance(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.file_done_bytes += bytes;
        if self.shown && self.last.elapsed() >= PAUSE {
            self.last = Instant::now();
            let line =
                line(self.bytes, self.began.elapsed(), &self.file, self.file_done_bytes, self.file_bytes);
            // Nobody needs to know where it cannot be shown.
            let _ = write!(stderr(), "\r\x1b[K{line}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.last > self.began {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn line(bytes: u64, elapsed: Duration, file: &str, done_bytes: u64, file_bytes: u64) -> String {
    let pace = bytes as f64 / elapsed.as_secs_f64().max(1e-9) / f64::from(1 << 20);
    let percent = done_bytes.saturating_mul(100).checked_div(file_bytes).unwrap_or(100).min(100);
    // The end of a name says more than its begin.
    let skipped = file.chars().count().saturating_sub(40);
    let name: String = file.chars().skip(skipped).filter(|letter| !letter.is_control()).collect();
    format!("{:>8} MiB  {pace:>7.1} MiB/s  {percent:>3} % of {name}", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_how_fast_and_of_what() {
        let shown = line(30 << 20, Duration::from_secs(2), &format!("{}\x1b/end", "x".repeat(50)), 1, 4);
        assert!(shown.starts_with("      30 MiB     15.0 MiB/s   25 % of xxx"), "{shown}");
        assert!(shown.ends_with("/end") && !shown.contains('\x1b') && shown.len() < 80, "{shown}");
    }
}
