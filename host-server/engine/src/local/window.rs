//! How long to look for work before sleeping.
//!
//! A sleep costs its waker a system call and the sleeper 5 to 50 µs, or 100 where the waker is a guest; looking costs a processor. The window
//! follows what pays: it opens while work comes so soon that looking would have caught it, and closes when it comes later, since all of
//! that looking was in vain, or when somebody else wants the processor.
//!
//! How late work came is known to a sleeper only with what it took to be woken, which alone may be longer than the longest window: work that follows every answer at
//! once would then never be caught. So a closed window is tried now and then: seldom, where trying was in vain before.

use std::cell::Cell;
use std::time::Duration;

/// Where the window begins to open.
const LEAST: Duration = Duration::from_micros(10);

/// A pause between two looks that only losing the processor explains: a look takes less than a microsecond.
const LOST_PROCESSOR: Duration = Duration::from_micros(25);

/// Sleeps with a closed window before it is tried: after a trial that has caught something, and at most.
const SLEEPS_BEFORE_TRIAL: [u32; 2] = [8, 256];

pub(super) struct Window {
    longest: Duration,
    current: Cell<Duration>,
    /// Sleeps that are left before the next trial.
    sleeps_left: Cell<u32>,
    /// What the last trial, had it been in vain, would leave.
    sleeps_between: Cell<u32>,
    is_trial: Cell<bool>,
}

impl Window {
    /// Never longer than `longest`; zero: always sleep at once.
    pub(super) fn new(longest: Duration) -> Self {
        let [soon, _] = SLEEPS_BEFORE_TRIAL;
        Self {
            longest,
            current: Cell::new(Duration::ZERO),
            sleeps_left: Cell::new(soon),
            sleeps_between: Cell::new(soon),
            is_trial: Cell::new(false),
        }
    }

    /// How long to look now, before a sleep.
    pub(super) fn begin(&self) -> Duration {
        let current = self.current.get();
        if !current.is_zero() || self.sleeps_left.get() > 0 {
            return current;
        }
        self.is_trial.set(true);
        self.longest
    }

    /// Work came while the thread looked, when it had none for `idle`.
    pub(super) fn caught_after(&self, idle: Duration) {
        if self.is_trial.take() {
            let [soon, _] = SLEEPS_BEFORE_TRIAL;
            self.sleeps_between.set(soon);
            self.sleeps_left.set(soon);
            self.current.set((idle * 2).max(LEAST).min(self.longest));
        }
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
        if self.is_trial.take() {
            let [_, seldom] = SLEEPS_BEFORE_TRIAL;
            self.sleeps_between.set((self.sleeps_between.get() * 2).min(seldom));
            self.sleeps_left.set(self.sleeps_between.get());
        }
        self.sleeps_left.set(self.sleeps_left.get().saturating_sub(1));
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
        assert_eq!(window.begin(), Duration::ZERO);
        let lengths = [US(30), US(150), US(200), US(90), US(90), US(90)].map(|idle| {
            window.slept_at_the_end_of(idle);
            window.begin()
        });
        assert_eq!(lengths, [US(10), US(20), US(40), US(80), US(160), US(200)]);
        window.slept_at_the_end_of(US(201));
        assert_eq!(window.begin(), Duration::ZERO);
    }

    #[test]
    fn losing_the_processor_closes_the_window() {
        let window = Window::new(US(200));
        window.slept_at_the_end_of(US(100));
        assert!(!window.is_disturbed_by(US(2)));
        assert_eq!(window.begin(), US(10));
        assert!(window.is_disturbed_by(US(3000)));
        assert_eq!(window.begin(), Duration::ZERO);
    }

    #[test]
    fn a_window_that_waking_takes_too_long_to_open_is_tried() {
        let window = Window::new(US(50));
        let sleep = || {
            let looked = window.begin();
            window.slept_at_the_end_of(US(90));
            looked
        };
        let sleeps = |count: usize| (0..count).map(|_| sleep()).collect::<Vec<_>>();
        assert_eq!(sleeps(8), [US(0); 8]);
        assert_eq!(window.begin(), US(50));
        window.caught_after(US(12));
        assert_eq!(window.begin(), US(24));
    }

    #[test]
    fn trials_in_vain_become_seldom() {
        let window = Window::new(US(50));
        let trials = (0..3000)
            .filter(|_| {
                let looked = window.begin();
                window.slept_at_the_end_of(US(300));
                looked == US(50)
            })
            .count();
        assert_eq!(trials, 15);
    }

    #[test]
    fn a_window_of_nothing_stays_so() {
        let window = Window::new(Duration::ZERO);
        window.slept_at_the_end_of(US(0));
        window.slept_at_the_end_of(US(1));
        assert_eq!(window.begin(), Duration::ZERO);
    }
}
