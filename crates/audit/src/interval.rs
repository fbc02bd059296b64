//! Clopper-Pearson bounds of a probability from counts.
//!
//! From `hits` of `trials` the lower bound is the probability p at which so many hits or more still have
//! the probability `error`, and the upper bound that at which so many or fewer have it. Both are
//! quantiles of a beta distribution; here the binomial tail is summed, because series for the beta
//! function lose digits at the large counts and small errors of an audit.

use libm::lgamma;

/// Halvings of an interval of probabilities: beyond the precision of a double.
const HALVINGS: usize = 80;

/// A probability that the true one is below with probability `error` at most; 0 without a hit.
///
/// # Panics
/// If there are more hits than trials.
pub fn lower(hits: u64, trials: u64, error: f64) -> f64 {
    assert!(hits <= trials, "{hits} hits of {trials}");
    if hits == 0 {
        return 0.0;
    }
    let (mut low, mut high) = (0.0, hits as f64 / trials as f64);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if tail(hits, trials, middle) <= error { low = middle } else { high = middle }
    }
    low
}

/// A probability that the true one is above with probability `error` at most; 1 without a miss.
///
/// # Panics
/// If there are more hits than trials.
pub fn upper(hits: u64, trials: u64, error: f64) -> f64 {
    assert!(hits <= trials, "{hits} hits of {trials}");
    if hits == trials {
        return 1.0;
    }
    let (mut low, mut high) = (hits as f64 / trials as f64, 1.0);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        // So many hits or fewer at p are so many misses or more at 1 - p.
        if lower_tail(hits, trials, middle) <= error { high = middle } else { low = middle }
    }
    high
}

/// P(X >= hits) for X binomial, where `hits` is above the mean: terms fall from the first on.
fn tail(hits: u64, trials: u64, p: f64) -> f64 {
    let ratio = |k: f64| (trials as f64 - k) / (k + 1.0) * p / (1.0 - p);
    sum(term(hits, trials, p), (hits..trials).map(|k| ratio(k as f64)))
}

/// P(X <= hits) for X binomial, where `hits` is below the mean.
fn lower_tail(hits: u64, trials: u64, p: f64) -> f64 {
    let ratio = |k: f64| k / (trials as f64 - k + 1.0) * (1.0 - p) / p;
    sum(term(hits, trials, p), (1..=hits).rev().map(|k| ratio(k as f64)))
}

/// `first (1 + r1 + r1 r2 + ...)`, until terms no longer count.
fn sum(first: f64, ratios: impl Iterator<Item = f64>) -> f64 {
    let (mut term, mut sum) = (first, first);
    for ratio in ratios {
        term *= ratio;
        sum += term;
        if term < sum * f64::EPSILON * 1e-3 {
            break;
        }
    }
    sum
}

/// P(X = hits) for X binomial.
fn term(hits: u64, trials: u64, p: f64) -> f64 {
    if p <= 0.0 {
        return 0.0;
    }
    let (k, n) = (hits as f64, trials as f64);
    let ways = lgamma(n + 1.0) - lgamma(k + 1.0) - lgamma(n - k + 1.0);
    let misses = if hits == trials { 0.0 } else { (n - k) * (-p).ln_1p() };
    (ways + k * p.ln() + misses).exp()
}

#[cfg(test)]
mod tests {
    use statrs::distribution::{Beta, ContinuousCDF as _};

    use super::*;

    #[test]
    fn bounds_are_quantiles_of_the_beta_distribution() {
        for (hits, trials) in [(1, 10), (5, 10), (9, 10), (3, 200), (100, 200), (17, 1_000), (900, 1_000)] {
            for error in [0.05, 1e-3, 1e-7] {
                let (k, n) = (hits as f64, trials as f64);
                let low = Beta::new(k, n - k + 1.0).unwrap().cdf(lower(hits, trials, error));
                let high = Beta::new(k + 1.0, n - k).unwrap().sf(upper(hits, trials, error));
                for found in [low, high] {
                    assert!((found / error - 1.0).abs() < 1e-6, "{hits} of {trials} at {error}: {found}");
                }
            }
        }
    }

    #[test]
    fn without_hits_or_misses_the_bounds_have_closed_forms() {
        for (trials, error) in [(10_u64, 0.05_f64), (75_000, 1e-8), (5_000_000, 1e-8)] {
            let closed = -(error.ln() / trials as f64).exp_m1();
            assert_eq!((lower(0, trials, error), upper(trials, trials, error)), (0.0, 1.0));
            assert!((upper(0, trials, error) / closed - 1.0).abs() < 1e-9, "{trials}");
            assert!((lower(trials, trials, error) - (1.0 - closed)).abs() < 1e-9, "{trials}");
        }
        assert_eq!((lower(0, 0, 0.1), upper(0, 0, 0.1)), (0.0, 1.0));
    }

    /// At counts of an audit the normal approximation is close: nothing was lost in the sums.
    #[test]
    fn large_counts_have_bounds_where_the_normal_distribution_has_them() {
        // P(Z > 5.3267) = 5e-8.
        for (hits, trials) in [(20_000_u64, 75_000_u64), (1_000_000, 3_750_000)] {
            let p = hits as f64 / trials as f64;
            let reach = 5.3267 * (p * (1.0 - p) / trials as f64).sqrt();
            for bound in [p - lower(hits, trials, 5e-8), upper(hits, trials, 5e-8) - p] {
                assert!((bound / reach - 1.0).abs() < 0.02, "{hits} of {trials}: {bound} {reach}");
            }
        }
    }
}
