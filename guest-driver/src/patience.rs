//! How long a wait looks for its answer before it sleeps.
//!
//! To be woken costs more than most answers take, so that a sleep of a little more than the window is the worst of both. As for the halt polling of KVM
//! (Documentation/virt/kvm/halt-polling.rst of Linux), the window doubles after a sleep that looking would have spared, and is the least again after one
//! for which it would have been in vain.

use std::time::{Duration, Instant};

/// The window of one ring.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    least: Duration,
    most: Duration,
    window: Duration,
}

impl Patience {
    /// A window that is `least` at first; where that is nothing, it stays so.
    pub fn new(least: Duration, most: Duration) -> Self {
        Self { least, most: most.max(least), window: least }
    }

    pub fn least(self) -> Duration {
        self.least
    }

    /// Whether a wait that began then looks on. Beyond the least window it does so only while nobody else wants the processor.
    pub fn looks_on(self, began: Instant) -> bool {
        let waited = began.elapsed();
        if waited >= self.window {
            return false;
        }
        if waited >= self.least {
            std::thread::yield_now();
        }
        true
    }

    /// A wait that slept is over.
    pub fn slept(&mut self, waited: Duration) {
        self.window = if waited <= self.most { (self.window * 2).min(self.most) } else { self.least };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_micros(200);
    const MOST: Duration = Duration::from_millis(1);

    #[test]
    fn the_window_grows_while_looking_would_have_found_the_answer() {
        let mut patience = Patience::new(LEAST, MOST);
        let windows = [(); 4].map(|()| {
            patience.slept(Duration::from_micros(900));
            patience.window
        });
        assert_eq!(windows.map(|window| window.as_micros()), [400, 800, 1000, 1000]);
    }

    #[test]
    fn a_long_wait_makes_the_window_the_least() {
        let mut patience = Patience::new(LEAST, MOST);
        patience.slept(LEAST * 2);
        patience.slept(MOST * 2);
        assert_eq!(patience.window, LEAST);
    }

    #[test]
    fn who_never_looks_goes_on_so() {
        let mut patience = Patience::new(Duration::ZERO, MOST);
        patience.slept(Duration::from_micros(1));
        assert!(!patience.looks_on(Instant::now()));
    }
}
