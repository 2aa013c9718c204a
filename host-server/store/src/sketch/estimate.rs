//! From what a sample holds of a set to the bytes of the whole set, with an error bar.
//!
//! At rate `p` a set of `N` addresses has `n` in the sample; `n / p` is the estimate. The bar is what inverting the binomial
//! gives (Clopper and Pearson 1934): the smallest `N` that yields `n` or more, and the largest that yields `n` or fewer,
//! with probability of at least 2.5 %. It covers the truth at least as often as stated for every `n`, zero included. Where blocks have
//! unequal sizes, sums of sizes take the place of counts by way of an effective count, as Fay and Feuer (1997) do for
//! weighted Poisson counts; the upper end allows for one more block of full size. With equal sizes both are the same.

use super::beta::incomplete_beta;
use crate::interval::Reference;

/// Effective blocks of a set in the sample below which a walk should replace the estimate: from here on its standard error is
/// at most 5 %.
pub const SAMPLE_FLOOR: u64 = 400;

/// Probability that the truth lies beyond one end of the bar.
const TAIL: f64 = 0.025;
/// Standard deviations that leave out [`TAIL`] of a normal distribution on one side.
const DEVIATIONS: f64 = 1.959_964;
/// From this count on the normal approximation takes over, its ends moved outwards by one count: more than it lacks in skew and
/// continuity.
const EXACT_BELOW: f64 = 1000.0;
/// Bounds are found to this part of a sampled block, and rounded outwards.
const RESOLUTION: f64 = 0.01;

/// What is known of a set of addresses: additive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub addresses: u64,
    pub stored_bytes: u64,
    /// Sum of the squares of stored sizes.
    squares: u64,
}

impl Tally {
    pub fn add_address(&mut self, stored_bytes: u16) {
        let bytes = u64::from(stored_bytes);
        self.add(&Self { addresses: 1, stored_bytes: bytes, squares: bytes * bytes });
    }

    /// What a sample at rate `2^-halvings` stands for.
    pub(super) fn scaled_bytes(&self, halvings: u8) -> u64 {
        u64::try_from(u128::from(self.stored_bytes) << halvings).unwrap_or(u64::MAX)
    }

    /// Addresses of one size with the same sum and the same sum of squares.
    fn effective(&self) -> u64 {
        let sum = u128::from(self.stored_bytes);
        (sum * sum).checked_div(u128::from(self.squares)).map_or(0, |count| count as u64)
    }

    pub fn add(&mut self, other: &Self) {
        self.addresses += other.addresses;
        self.stored_bytes += other.stored_bytes;
        self.squares = self.squares.saturating_add(other.squares);
    }
}

/// Bytes of a set, as the sample shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    pub bytes: u64,
    /// The truth is at least this, and at most `high_bytes`, in 95 of 100 cases or more.
    pub low_bytes: u64,
    pub high_bytes: u64,
    /// Addresses of the set in the sample.
    pub sampled: u64,
    /// As many blocks of one size tell as much: fewer than are sampled where some outweigh others.
    pub effective: u64,
    /// Nothing was left out: all three figures are the truth.
    pub exact: bool,
}

impl Estimate {
    /// From what a sample at rate `2^-halvings` holds of the set, and of what may belong to it or not.
    pub(super) fn new(tally: &Tally, uncertain: &Tally, halvings: u8) -> Self {
        let mut most = *tally;
        most.add(uncertain);
        Self {
            bytes: tally.scaled_bytes(halvings),
            low_bytes: low_bound(tally, halvings),
            high_bytes: high_bound(&most, halvings),
            sampled: tally.addresses,
            effective: tally.effective(),
            exact: halvings == 0 && uncertain.addresses == 0,
        }
    }

    /// Whether the sample is too small to be relied on: a walk of the maps should answer instead.
    pub fn is_below_floor(&self) -> bool {
        !self.exact && self.effective < SAMPLE_FLOOR
    }

    pub fn covers(&self, bytes: u64) -> bool {
        (self.low_bytes..=self.high_bytes).contains(&bytes)
    }
}

fn low_bound(tally: &Tally, halvings: u8) -> u64 {
    if halvings == 0 || tally.addresses == 0 {
        return tally.stored_bytes;
    }
    weighted_bound(rate(halvings), tally.stored_bytes as f64, tally.squares as f64, End::Low).floor() as u64
}

fn high_bound(tally: &Tally, halvings: u8) -> u64 {
    if halvings == 0 {
        return tally.stored_bytes;
    }
    let mut one_more = *tally;
    one_more.add_address(Reference::STORED_BYTES_MAX);
    weighted_bound(rate(halvings), one_more.stored_bytes as f64, one_more.squares as f64, End::High).ceil()
        as u64
}

fn rate(halvings: u8) -> f64 {
    0.5f64.powi(i32::from(halvings))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Low,
    High,
}

/// One end of the bar, in bytes: as many blocks of one effective size as have the same sum and the same sum of squares.
fn weighted_bound(rate: f64, sum: f64, squares: f64, end: End) -> f64 {
    let effective_bytes = squares / sum;
    effective_bytes * count_bound(rate, sum / effective_bytes, end)
}

/// The `N` for which `n` or more in the sample have the probability that `end` asks for. For the upper end the caller has
/// added one to the count: that `n + 1` or more are likely is that `n` or fewer are not.
fn count_bound(rate: f64, n: f64, end: End) -> f64 {
    if n >= EXACT_BELOW {
        return match end {
            End::Low => score_bound(rate, n - 1.0, -DEVIATIONS),
            End::High => score_bound(rate, n, DEVIATIONS),
        };
    }
    let target = if end == End::Low { TAIL } else { 1.0 - TAIL };
    let reached = |total: f64| incomplete_beta(rate, n, total - n + 1.0) >= target;
    let (mut low, mut high) = bracket(rate, n, end, reached);
    while high - low > RESOLUTION / rate {
        let middle = low.midpoint(high);
        if reached(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    if end == End::Low { low } else { high }
}

/// Two totals between which the probability reaches its target; the lower one is `n` where it does so at once.
fn bracket(rate: f64, n: f64, end: End, reached: impl Fn(f64) -> bool) -> (f64, f64) {
    let deviations = if end == End::Low { -DEVIATIONS } else { DEVIATIONS };
    let guess = score_bound(rate, n, deviations).max(n);
    let mut step = 2.0 / rate;
    let (mut low, mut high) = ((guess - step).max(n), guess + step);
    while low > n && reached(low) {
        low = (low - step).max(n);
        step *= 2.0;
    }
    while !reached(high) {
        high += step;
        step *= 2.0;
    }
    if reached(low) { (low, low) } else { (low, high) }
}

/// The `N` whose expected count is so many of its own standard deviations below `n` (above, for negative ones): Wilson's
/// interval (1927), solved for the number of trials.
fn score_bound(rate: f64, n: f64, deviations: f64) -> f64 {
    let root =
        (deviations * (1.0 - rate).sqrt() + (deviations * deviations * (1.0 - rate) + 4.0 * n).sqrt()) / 2.0;
    root * root / rate
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(addresses: u64, stored_bytes: u16, halvings: u8) -> Estimate {
        let mut tally = Tally::default();
        (0..addresses).for_each(|_| tally.add_address(stored_bytes));
        Estimate::new(&tally, &Tally::default(), halvings)
    }

    /// At least `successes` of `trials`, term by term, on a logarithmic scale.
    fn tail(rate: f64, successes: u64, trials: u64) -> f64 {
        let mut log_term = trials as f64 * (-rate).ln_1p();
        let mut below = 0.0;
        for count in 0..successes.min(trials + 1) {
            below += log_term.exp();
            log_term += ((trials - count) as f64 / (count + 1) as f64).ln() + rate.ln() - (-rate).ln_1p();
        }
        1.0 - below
    }

    #[test]
    fn the_bar_is_where_binomial_tails_reach_their_share() {
        for (n, halvings) in [(1, 1), (1, 5), (7, 3), (40, 4), (399, 3), (900, 2)] {
            let found = estimate(n, 4096, halvings);
            let rate = rate(halvings);
            let (low, high) = (found.low_bytes / 4096, found.high_bytes.div_ceil(4096));
            // One block beyond either end is out, and two blocks inside is in.
            let slack = 2 + (RESOLUTION / rate) as u64;
            assert!(tail(rate, n, low.saturating_sub(1)) <= TAIL, "{n} {halvings}: {found:?}");
            assert!(tail(rate, n, low + slack) > TAIL || low + slack <= n, "{n} {halvings}: {found:?}");
            assert!(1.0 - tail(rate, n + 1, high + 1) <= TAIL + 1e-9, "{n} {halvings}: {found:?}");
            assert!(1.0 - tail(rate, n + 1, high - slack) > TAIL, "{n} {halvings}: {found:?}");
        }
    }

    #[test]
    fn nothing_sampled_is_not_nothing() {
        let found = estimate(0, 4096, 4);
        assert_eq!((found.bytes, found.low_bytes), (0, 0));
        // 57 blocks are missed by all coins of 1/16 once in 40 times.
        assert_eq!(found.high_bytes.div_ceil(4096), 58);
        assert!(found.is_below_floor());
    }

    #[test]
    fn bounds_go_on_where_the_approximation_takes_over() {
        let (before, after) = (estimate(999, 4096, 4), estimate(1001, 4096, 4));
        let step = 2 * 4096 * 16;
        assert!(after.low_bytes.abs_diff(before.low_bytes + step) < 2 * step, "{before:?} {after:?}");
        assert!(after.high_bytes.abs_diff(before.high_bytes + step) < 2 * step, "{before:?} {after:?}");
    }

    #[test]
    fn a_sample_that_few_blocks_dominate_is_small() {
        let mut tally = Tally::default();
        (0..10_000).for_each(|_| tally.add_address(1));
        (0..100).for_each(|_| tally.add_address(4096));
        let found = Estimate::new(&tally, &Tally::default(), 3);
        assert_eq!((found.sampled, found.effective), (10_100, 104));
        assert!(found.is_below_floor());
        assert!(!estimate(400, 700, 3).is_below_floor() && estimate(399, 700, 3).is_below_floor());
    }

    #[test]
    fn all_addresses_are_the_truth() {
        let found = estimate(10, 1000, 0);
        assert_eq!(
            (found.bytes, found.low_bytes, found.high_bytes, found.exact),
            (10_000, 10_000, 10_000, true)
        );
        assert!(!found.is_below_floor());
    }

    #[test]
    fn what_may_belong_widens_the_bar_upwards_only() {
        let (mut tally, mut uncertain) = (Tally::default(), Tally::default());
        (0..500).for_each(|_| tally.add_address(4096));
        (0..10).for_each(|_| uncertain.add_address(4096));
        let (without, with) =
            (Estimate::new(&tally, &Tally::default(), 3), Estimate::new(&tally, &uncertain, 3));
        assert_eq!((with.bytes, with.low_bytes), (without.bytes, without.low_bytes));
        assert!(with.high_bytes >= without.high_bytes + 10 * 8 * 4096, "{with:?}");
        assert!(!Estimate::new(&tally, &uncertain, 0).exact);
    }

    #[test]
    fn sums_beyond_what_volumes_hold_do_not_wrap() {
        let mut tally = Tally::default();
        tally.add_address(4096);
        for _ in 0..20 {
            tally.add(&tally.clone());
        }
        assert_eq!(Estimate::new(&tally, &Tally::default(), 40).bytes, u64::MAX);
    }
}
