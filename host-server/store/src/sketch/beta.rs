//! The regularised incomplete beta function, which binomial tails are.

/// Convergence of the continued fraction, relative.
const PRECISION: f64 = 1e-12;
/// Terms after which it has converged for every argument that [`super::estimate`] asks for: they grow as the root of the larger.
const TERMS_MAX: u32 = 10_000;
/// Stands for a zero that would be divided by.
const TINY: f64 = 1e-300;

/// `I_x(a, b)` for `0 <= x <= 1`, `a > 0`, `b > 0`. For whole `n` and `N`, `I_p(n, N - n + 1)` is the probability of at
/// least `n` successes in `N` trials.
pub(super) fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp();
    // The fraction converges fast on this side of the mean only.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * continued_fraction(x, a, b) / a
    } else {
        1.0 - front * continued_fraction(1.0 - x, b, a) / b
    }
}

/// DLMF 8.17.22, evaluated by Lentz's method.
fn continued_fraction(x: f64, a: f64, b: f64) -> f64 {
    let guard = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / guard(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for term in 1..=TERMS_MAX {
        let m = f64::from(term);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / guard(1.0 + even * d);
        c = guard(1.0 + even / c);
        fraction *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / guard(1.0 + odd * d);
        c = guard(1.0 + odd / c);
        let step = d * c;
        fraction *= step;
        if (step - 1.0).abs() < PRECISION {
            break;
        }
    }
    fraction
}

/// Logarithm of the gamma function for positive arguments: Stirling's series, after the recurrence has lifted small ones.
fn ln_gamma(mut x: f64) -> f64 {
    let mut lift = 0.0;
    while x < 10.0 {
        lift += x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / x;
    let square = inverse * inverse;
    let series = inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)));
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - lift
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At least `successes` of `trials`, term by term.
    fn tail(p: f64, successes: u32, trials: u32) -> f64 {
        let mut term = (1.0 - p).powi(trials as i32);
        let mut below = 0.0;
        for count in 0..successes {
            below += term;
            term *= f64::from(trials - count) / f64::from(count + 1) * p / (1.0 - p);
        }
        1.0 - below
    }

    #[test]
    fn gamma_is_the_factorial() {
        let mut factorial = 1.0f64;
        for n in 1..30 {
            assert!((ln_gamma(f64::from(n)) - factorial.ln()).abs() < 1e-10, "{n}");
            factorial *= f64::from(n);
        }
    }

    #[test]
    fn beta_is_the_tail_of_the_binomial() {
        for (p, n, trials) in
            [(0.5, 3, 10), (0.125, 1, 4), (0.25, 90, 300), (0.0625, 1, 40), (0.0625, 40, 400)]
        {
            let found = incomplete_beta(p, f64::from(n), f64::from(trials - n + 1));
            assert!((found - tail(p, n, trials)).abs() < 1e-9, "{p} {n} {trials}: {found}");
        }
    }
}
