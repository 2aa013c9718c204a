//! From what a sample holds of a set to the bytes of the whole set, with an error bar.
//!
//! At rate `p` a set of `N` addresses has `n` in the sample; `n / p` is the estimate. The bar is what inverting the binomial
//! gives (Clopper and Pearson 1934): the smallest `N` that yields `n` or more, and the largest that yields `n` or fewer,
//! with probability of at least 2.5 %. It covers the truth at least as often as stated for every `n`, zero included. Where blocks have
//! unequal sizes, sums of sizes take the place of counts by way of an effective count, as Fay and Feuer (1997) do for
//! weighted Poisson counts; the upper end allows for one more block of full size. With equal sizes both are the same.

use super::beta::incomplete_beta;

/// Blocks of a set in the sample below which a walk should replace the estimate: from here on its standard error is at most 5 %.
pub const SAMPLE_FLOOR: u64 = 400;

/// No block takes more than its length.
pub const STORED_BYTES_MAX: u16 = 4096;

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
    /// Nothing was left out: all three figures are the truth.
    pub exact: bool,
}

impl Estimate {
    /// From what a sample at rate `2^-halvings` holds of the set.
    pub fn new(tally: &Tally, halvings: u8) -> Self {
        let sampled = tally.addresses;
        if halvings == 0 {
            let bytes = tally.stored_bytes;
            return Self { bytes, low_bytes: bytes, high_bytes: bytes, sampled, exact: true };
        }
        let rate = 0.5f64.powi(i32::from(halvings));
        let (sum, squares) = (tally.stored_bytes as f64, tally.squares as f64);
        let largest = f64::from(STORED_BYTES_MAX);
        let low = if sampled == 0 { 0.0 } else { weighted_bound(rate, sum, squares, End::Low) };
        let high = weighted_bound(rate, sum + largest, squares + largest * largest, End::High);
        Self {
            bytes: tally.stored_bytes << halvings,
            low_bytes: low.floor() as u64,
            high_bytes: high.ceil() as u64,
            sampled,
            exact: false,
        }
    }

    /// Whether the sample is too small to be relied on: a walk of the maps should answer instead.
    pub fn is_below_floor(&self) -> bool {
        !self.exact && self.sampled < SAMPLE_FLOOR
    }

    pub fn covers(&self, bytes: u64) -> bool {
        (self.low_bytes..=self.high_bytes).contains(&bytes)
    }
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
    let root = (deviations * (1.0 - rate).sqrt() + (deviations * deviations * (1.0 - rate) + 4.0 * n).sqrt()) / 2.0;
    root * root / rate
}
