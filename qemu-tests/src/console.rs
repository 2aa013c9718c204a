//! The guest's serial console: every byte kept, so that a failure can show what the guest said.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What a healthy guest kernel never prints.
const ALARMS: [&str; 7] = [
    "Kernel panic",
    "BUG: ",
    "Oops: ",
    "general protection fault",
    "blocked for more than",
    "soft lockup",
    "virtio_fs_vq_done: error",
];

#[derive(Debug, Default)]
struct Transcript {
    bytes: Vec<u8>,
    ended: bool,
}

/// A transcript that grows in the background.
#[derive(Clone, Debug, Default)]
pub struct Console {
    shared: Arc<(Mutex<Transcript>, Condvar)>,
}

impl Console {
    /// Follows `from` on a thread of its own until it ends.
    pub fn follow(mut from: impl Read + Send + 'static) -> Console {
        let console = Console::default();
        let writer = console.clone();
        thread::spawn(move || {
            let mut piece = [0u8; 4096];
            loop {
                let count = from.read(&mut piece).unwrap_or(0);
                let mut transcript = writer.lock();
                transcript.bytes.extend_from_slice(&piece[..count]);
                transcript.ended |= count == 0;
                writer.shared.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        console
    }

    /// How much has been said so far, in bytes: where [`Console::expect_from`] may begin.
    pub fn said_bytes(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Waits until the console has said `marker`.
    pub fn expect(&self, marker: &str, timeout: Duration) -> Result<()> {
        self.expect_from(0, marker, timeout)
    }

    /// Waits until the console has said `marker` after its first `from_bytes` bytes.
    pub fn expect_from(&self, from_bytes: usize, marker: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut transcript = self.lock();
        loop {
            if contains(transcript.bytes.get(from_bytes..).unwrap_or_default(), marker) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if transcript.ended || left.is_zero() {
                let why = if transcript.ended { "the machine ended" } else { "the time ran out" };
                let tail = tail(&transcript.bytes);
                bail!("waited {timeout:?} for {marker:?} on the console, but {why}; it last said:\n{tail}");
            }
            transcript =
                self.shared.1.wait_timeout(transcript, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the machine has closed it.
    pub fn ended(&self) -> bool {
        self.lock().ended
    }

    /// The last lines said.
    pub fn tail(&self) -> String {
        tail(&self.lock().bytes)
    }

    /// An error if the guest's kernel complained of itself.
    pub fn require_healthy(&self) -> Result<()> {
        let transcript = self.lock();
        match ALARMS.iter().find(|alarm| contains(&transcript.bytes, alarm)) {
            Some(alarm) => bail!("the guest's kernel said {alarm:?}:\n{}", tail(&transcript.bytes)),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Transcript> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn contains(bytes: &[u8], marker: &str) -> bool {
    bytes.windows(marker.len()).any(|window| window == marker.as_bytes())
}

fn tail(bytes: &[u8]) -> String {
    const LINES: usize = 60;
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_found_and_a_missing_one_is_an_error_that_shows_the_transcript() {
        let console = Console::follow(&b"booting\nready 42\n"[..]);
        console.expect("ready 42", Duration::from_secs(5)).unwrap();
        assert_eq!(console.said_bytes(), 17);
        assert!(console.expect_from(9, "ready 42", Duration::ZERO).is_err());
        let error = console.expect("ready 43", Duration::from_secs(5)).unwrap_err().to_string();
        assert!(error.contains("booting") && error.contains("the machine ended"), "{error}");
    }

    #[test]
    fn a_panic_on_the_console_is_reported() {
        let console = Console::follow(&b"x\nKernel panic - not syncing\n"[..]);
        console.expect("not syncing", Duration::from_secs(5)).unwrap();
        assert!(console.require_healthy().is_err());
    }
}
