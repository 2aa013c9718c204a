//! The rate of the host's time-stamp counter. Under software emulation the guest sees that counter as it is, and a guest
//! kernel that has to calibrate it on a busy host often hangs: the rate is measured here and handed over.
#![allow(unsafe_code)]

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for an error well below what NTP would correct, short beside a boot.
const MEASURED_FOR: Duration = Duration::from_millis(60);

/// Ticks of the host's time-stamp counter in a millisecond.
pub fn rate_khz() -> u64 {
    let (ticks_before, before) = sample();
    thread::sleep(MEASURED_FOR);
    let (ticks_after, after) = sample();
    let elapsed_ns = after.duration_since(before).as_nanos().max(1);
    let ticks = u128::from(ticks_after.wrapping_sub(ticks_before));
    u64::try_from(ticks * 1_000_000 / elapsed_ns).unwrap_or(u64::MAX)
}

/// Counter and clock taken together: of several tries the one with the least time between its two clock readings.
fn sample() -> (u64, Instant) {
    let mut best = take();
    for _ in 0..16 {
        let next = take();
        if next.2 < best.2 {
            best = next;
        }
    }
    (best.0, best.1)
}

fn take() -> (u64, Instant, Duration) {
    let before = Instant::now();
    // SAFETY: reading the time-stamp counter touches no memory, and user code on Linux is allowed to do it.
    let ticks = unsafe { std::arch::x86_64::_rdtsc() };
    let after = Instant::now();
    (ticks, before, after.duration_since(before))
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_measurements_agree_within_a_percent() {
        let (first, second) = (super::rate_khz(), super::rate_khz());
        assert!(first > 100_000, "{first} kHz");
        assert!(first.abs_diff(second) < first / 100, "{first} and {second} kHz");
    }
}
