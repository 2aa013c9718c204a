//! How long to look for work before sleeping.
//!
//! A sleep costs its waker a system call and the sleeper 5 to 50 µs; looking costs a processor. The window follows what
//! pays: it opens while work comes so soon that looking would have caught it, and closes when it comes later, since all of
//! that looking was in vain, or when somebody else wants the processor.

use std::cell::Cell;
use std::time::Duration;

/// Where the window begins to open.
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

    /// Whether `pause` between two looks says that the processor is wanted by others. Then the window closes.
    pub(super) fn is_disturbed_by(&self, pause: Duration) -> bool {
        let disturbed = pause >= LOST_PROCESSOR;
        if disturbed {
            self.current.set(Duration::ZERO);
        }
        disturbed
    }

    /// Work came after the thread had none for `idle`, of which it slept the end.
    pub(super) fn slept_at_the_end_of(&self, idle: Duration) {
        let wanted = if idle > self.longest { Duration::ZERO } else { (self.current.get() * 2).max(LEAST) };
        self.current.set(wanted.min(self.longest));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Window;

    const US: fn(u64) -> Duration = Duration::from_micros;

    #[test]
    fn work_that_comes_soon_opens_the_window_and_work_that_comes_late_closes_it() {
        let window = Window::new(US(200));
        assert_eq!(window.length(), Duration::ZERO);
        let lengths = [US(30), US(150), US(200), US(90), US(90), US(90)].map(|idle| {
            window.slept_at_the_end_of(idle);
            window.length()
        });
        assert_eq!(lengths, [US(10), US(20), US(40), US(80), US(160), US(200)]);
        window.slept_at_the_end_of(US(201));
        assert_eq!(window.length(), Duration::ZERO);
    }

    #[test]
    fn losing_the_processor_closes_the_window() {
        let window = Window::new(US(200));
        window.slept_at_the_end_of(US(100));
        assert!(!window.is_disturbed_by(US(2)));
        assert_eq!(window.length(), US(10));
        assert!(window.is_disturbed_by(US(3000)));
        assert_eq!(window.length(), Duration::ZERO);
    }

    #[test]
    fn a_window_of_nothing_stays_so() {
        let window = Window::new(Duration::ZERO);
        window.slept_at_the_end_of(US(0));
        window.slept_at_the_end_of(US(1));
        assert_eq!(window.length(), Duration::ZERO);
    }
}
