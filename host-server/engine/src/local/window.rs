//! How long to look for work before sleeping.
//!
//! A sleep costs its waker a system call and the sleeper 5 to 50 µs; looking costs a processor. The window follows what
//! pays: it grows while sleeps turn out so short that looking would have caught the work, and shrinks while they are long.
//! Where somebody else wants the processor, looking ends at once.

use std::cell::Cell;
use std::time::Duration;

/// The first window after a sleep that was too short.
const LEAST: Duration = Duration::from_micros(10);

/// A pause between two looks that only losing the processor explains: a look takes less than a microsecond.
const LOST_PROCESSOR: Duration = Duration::from_micros(25);

pub(super) struct Window {
    longest: Duration,
    current: Cell<Duration>,
}

impl Window {
    /// Never longer than `longest`; zero: always sleep at once.
    pub(super) fn new(longest: Duration) -> Self {
        Self { longest, current: Cell::new(Duration::ZERO) }
    }

    pub(super) fn length(&self) -> Duration {
        self.current.get()
    }

    /// Whether `pause` between two looks says that the processor is wanted by others. Then the window shrinks.
    pub(super) fn is_disturbed_by(&self, pause: Duration) -> bool {
        let disturbed = pause >= LOST_PROCESSOR;
        if disturbed {
            self.shrink();
        }
        disturbed
    }

    /// Work ended a sleep that took this long.
    pub(super) fn slept(&self, duration: Duration) {
        if duration > self.longest {
            self.shrink();
        } else {
            let wanted = (self.current.get() * 2).max(duration * 2).max(LEAST);
            self.current.set(wanted.min(self.longest));
        }
    }

    fn shrink(&self) {
        let half = self.current.get() / 2;
        self.current.set(if half < LEAST { Duration::ZERO } else { half });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Window;

    const US: fn(u64) -> Duration = Duration::from_micros;

    #[test]
    fn short_sleeps_open_the_window_and_long_ones_close_it() {
        let window = Window::new(US(200));
        assert_eq!(window.length(), Duration::ZERO);
        window.slept(US(30));
        assert_eq!(window.length(), US(60));
        window.slept(US(150));
        assert_eq!(window.length(), US(200));
        for _ in 0..5 {
            window.slept(US(201));
        }
        assert_eq!(window.length(), Duration::ZERO);
        window.slept(US(1));
        assert_eq!(window.length(), US(10));
    }

    #[test]
    fn losing_the_processor_shrinks_the_window() {
        let window = Window::new(US(200));
        window.slept(US(100));
        assert!(!window.is_disturbed_by(US(2)));
        assert_eq!(window.length(), US(200));
        assert!(window.is_disturbed_by(US(3000)));
        assert_eq!(window.length(), US(100));
    }

    #[test]
    fn a_window_of_nothing_stays_so() {
        let window = Window::new(Duration::ZERO);
        window.slept(US(0));
        window.slept(US(1));
        assert_eq!(window.length(), Duration::ZERO);
    }
}
