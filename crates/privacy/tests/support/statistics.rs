//! Exact probabilities and goodness of fit.

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Probabilities of the integers from `first` on; what is not listed is below double precision.
#[derive(Clone)]
pub struct Pmf {
    pub first: i64,
    pub probabilities: Vec<f64>,
}

impl Pmf {
    /// `P(x)` proportional to `exp(-x^2 / (2 sigma^2))`.
    pub fn discrete_gaussian(sigma: f64) -> Self {
        Self::symmetric(40.0 * sigma, |x| (-x * x / (2.0 * sigma * sigma)).exp())
    }

    /// `P(x)` proportional to `exp(-|x| / scale)`.
    pub fn discrete_laplace(scale: f64) -> Self {
        Self::symmetric(60.0 * scale, |x| (-x.abs() / scale).exp())
    }

    /// Difference of two independent negative binomials of shape `r` and ratio `exp(-1 / scale)`.
    pub fn negative_binomial_difference(r: f64, scale: f64) -> Self {
        let ratio = (-1.0 / scale).exp();
        let mut probability = (1.0 - ratio).powf(r);
        let mut probabilities = Vec::new();
        for k in 0..(50.0 * scale) as usize + 50 {
            probabilities.push(probability);
            probability *= (k as f64 + r) / (k as f64 + 1.0) * ratio;
        }
        let mut mirrored = probabilities.clone();
        mirrored.reverse();
        let first = 1 - i64::try_from(mirrored.len()).expect("a short table");
        Self { first: 0, probabilities }.plus(&Self { first, probabilities: mirrored })
    }

    fn symmetric(reach: f64, weight: impl Fn(f64) -> f64) -> Self {
        let reach = reach as i64 + 20;
        let weights: Vec<f64> = (-reach..=reach).map(|x| weight(x as f64)).collect();
        let sum: f64 = weights.iter().sum();
        Self { first: -reach, probabilities: weights.iter().map(|weight| weight / sum).collect() }
    }

    /// Distribution of the sum with an independent variable.
    pub fn plus(&self, other: &Self) -> Self {
        let mut probabilities = vec![0.0; self.probabilities.len() + other.probabilities.len() - 1];
        for (i, a) in self.probabilities.iter().enumerate() {
            for (j, b) in other.probabilities.iter().enumerate() {
                probabilities[i + j] += a * b;
            }
        }
        Self { first: self.first + other.first, probabilities }
    }

    fn moment(&self, power: i32) -> f64 {
        self.probabilities
            .iter()
            .zip(self.first..)
            .map(|(probability, x)| probability * (x as f64).powi(power))
            .sum()
    }

    /// Variance; the distributions here have mean zero.
    pub fn variance(&self) -> f64 {
        self.moment(2)
    }

    /// Standard error of the mean square of `count` samples.
    pub fn variance_error(&self, count: usize) -> f64 {
        ((self.moment(4) - self.variance().powi(2)) / count as f64).sqrt()
    }

    pub fn probability(&self, x: i64) -> f64 {
        usize::try_from(x - self.first)
            .ok()
            .and_then(|index| self.probabilities.get(index))
            .copied()
            .unwrap_or(0.0)
    }
}

/// Probability that samples of `pmf` fit it no better than `samples` do (G-test). Neighbouring
/// values share a cell until each cell expects at least 25 samples.
pub fn fit(samples: &[i64], pmf: &Pmf) -> f64 {
    let count = samples.len() as f64;
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let mut cells: Vec<(f64, f64)> = Vec::new();
    let (mut observed, mut expected) = (0.0, 0.0);
    let mut rest = sorted.as_slice();
    for (probability, x) in pmf.probabilities.iter().zip(pmf.first..) {
        // The first cell takes everything below the table too.
        let here = rest.partition_point(|&sample| sample <= x);
        observed += here as f64;
        rest = &rest[here..];
        expected += probability * count;
        if expected >= 25.0 {
            cells.push((observed, expected));
            (observed, expected) = (0.0, 0.0);
        }
    }
    let last = cells.last_mut().expect("enough samples for one cell");
    last.0 += observed + rest.len() as f64;
    last.1 += expected;
    let g: f64 = cells
        .iter()
        .filter(|(observed, _)| *observed > 0.0)
        .map(|(observed, expected)| 2.0 * observed * (observed / expected).ln())
        .sum();
    ChiSquared::new(cells.len() as f64 - 1.0).expect("two cells or more").sf(g.max(0.0))
}

pub fn mean_square(samples: &[i64]) -> f64 {
    samples.iter().map(|&x| (x as f64).powi(2)).sum::<f64>() / samples.len() as f64
}
