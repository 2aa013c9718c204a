//! Keeps what a guest can provoke from filling the log.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ringfort_engine::engine::Engine;

/// Log lines about one guest's misbehaviour: this many at once, then one in each interval.
const LOG_BURST: u32 = 5;
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Warnings that one guest provokes.
pub struct GuestLog {
    device: String,
    engine: Rc<dyn Engine>,
    limit: RefCell<RateLimit>,
}

impl GuestLog {
    /// `device` is the name by which an operator knows where the guest is.
    pub fn new(device: &str, engine: Rc<dyn Engine>) -> Self {
        Self {
            device: device.to_owned(),
            engine,
            limit: RefCell::new(RateLimit::new(LOG_BURST, LOG_INTERVAL)),
        }
    }

    pub fn warn(&self, message: std::fmt::Arguments<'_>) {
        let passed = self.limit.borrow_mut().pass(self.engine.monotonic());
        if let Some(suppressed) = passed {
            tracing::warn!(device = self.device, suppressed, "{message}");
        }
    }
}

/// Lets a burst of events through, then one for each interval.
#[derive(Clone, Debug)]
pub struct RateLimit {
    interval: Duration,
    burst: u32,
    /// Events that may pass now.
    credit: u32,
    refilled_at: Duration,
    suppressed: u64,
}

impl RateLimit {
    pub fn new(burst: u32, interval: Duration) -> Self {
        assert!(burst > 0 && !interval.is_zero(), "a limit that lets nothing through");
        Self { interval, burst, credit: burst, refilled_at: Duration::ZERO, suppressed: 0 }
    }

    /// Asks for an event at `now` (monotonic). If it may pass, the number of events suppressed since the last that did.
    pub fn pass(&mut self, now: Duration) -> Option<u64> {
        let intervals = now.saturating_sub(self.refilled_at).as_nanos() / self.interval.as_nanos();
        if intervals > 0 {
            let gained = u32::try_from(intervals).unwrap_or(u32::MAX);
            self.credit = self.credit.saturating_add(gained).min(self.burst);
            self.refilled_at = now;
        }
        if self.credit == 0 {
            self.suppressed += 1;
            return None;
        }
        self.credit -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_for_each_interval() {
        let mut limit = RateLimit::new(2, Duration::from_secs(1));
        assert_eq!(limit.pass(Duration::ZERO), Some(0));
        assert_eq!(limit.pass(Duration::ZERO), Some(0));
        assert_eq!(limit.pass(Duration::from_millis(500)), None);
        assert_eq!(limit.pass(Duration::from_millis(900)), None);
        assert_eq!(limit.pass(Duration::from_millis(1000)), Some(2));
        assert_eq!(limit.pass(Duration::from_millis(1100)), None);
        assert_eq!(limit.pass(Duration::from_secs(100)), Some(1));
        assert_eq!(limit.pass(Duration::from_secs(100)), Some(0));
        assert_eq!(limit.pass(Duration::from_secs(100)), None);
    }
}
