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

    /// Negative binomial of shape `r` and ratio `exp(-1 / scale)`.
    pub fn negative_binomial(r: f64, scale: f64) -> Self {
        let ratio = (-1.0 / scale).exp();
        let mut probability = (1.0 - ratio).powf(r);
        let mut probabilities = Vec::new();
        for k in 0..(50.0 * scale) as usize + 50 {
            probabilities.push(probability);
            probability *= (k as f64 + r) / (k as f64 + 1.0) * ratio;
        }
        Self { first: 0, probabilities }
    }

    /// Difference of two independent negative binomials of shape `r` and ratio `exp(-1 / scale)`.
    pub fn negative_binomial_difference(r: f64, scale: f64) -> Self {
        let positive = Self::negative_binomial(r, scale);
        let mut probabilities = positive.probabilities.clone();
        probabilities.reverse();
        let first = 1 - i64::try_from(probabilities.len()).expect("a short table");
        positive.plus(&Self { first, probabilities })
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

    pub fn mean(&self) -> f64 {
        self.moment(1)
    }

    /// Mean square, which is the variance where the mean is zero.
    pub fn mean_square(&self) -> f64 {
        self.moment(2)
    }

    /// Standard error of the mean square of `count` samples.
    pub fn mean_square_error(&self, count: usize) -> f64 {
        ((self.moment(4) - self.mean_square().powi(2)) / count as f64).sqrt()
    }

    /// Distribution of the remainder modulo `modulus`.
    pub fn modulo(&self, modulus: i64) -> Self {
        let mut probabilities = vec![0.0; usize::try_from(modulus).expect("positive")];
        for (probability, x) in self.probabilities.iter().zip(self.first..) {
            probabilities[usize::try_from(x.rem_euclid(modulus)).expect("small")] += probability;
        }
        Self { first: 0, probabilities }
    }

    /// Distribution of the value divided by `step` and rounded down.
    pub fn coarser(&self, step: i64) -> Self {
        let first = self.first.div_euclid(step);
        let mut probabilities = Vec::new();
        for (probability, x) in self.probabilities.iter().zip(self.first..) {
            let place = usize::try_from(x.div_euclid(step) - first).expect("ascending");
            probabilities.resize(place + 1, 0.0);
            probabilities[place] += probability;
        }
        Self { first, probabilities }
    }

    /// Standard error of the mean of `count` samples.
    pub fn mean_error(&self, count: usize) -> f64 {
        ((self.mean_square() - self.mean().powi(2)) / count as f64).sqrt()
    }

    pub fn probability(&self, x: i64) -> f64 {
        usize::try_from(x - self.first)
            .ok()
            .and_then(|index| self.probabilities.get(index))
            .copied()
            .unwrap_or(0.0)
    }
}

/// Samples that a cell of a test of fit needs.
const CELL: f64 = 25.0;

/// Probability that samples of `pmf` fit it no better than `samples` do (G-test). Neighbouring
/// values share a cell until each cell expects at least 25 samples.
pub fn fit(samples: &[i64], pmf: &Pmf) -> f64 {
    let count = samples.len() as f64;
    // The outermost cells take what lies beyond the table, too.
    let last = i64::try_from(pmf.probabilities.len()).expect("a short table") - 1;
    let observed = frequencies(samples, pmf.first, pmf.first + last);
    let values = pmf.probabilities.iter().zip(&observed);
    let cells = cells(values.map(|(probability, &observed)| [observed as f64, probability * count]));
    let g: f64 = cells.iter().map(|&[observed, expected]| information(observed, expected)).sum();
    tail(g, cells.len())
}

/// Probability that two samples of one distribution differ no less than these do (G-test for
/// homogeneity). No distribution is assumed; neighbouring values share a cell until both samples together
/// have 50 in it.
pub fn alike(first: &[i64], second: &[i64]) -> f64 {
    let both = || first.iter().chain(second).copied();
    let (least, largest) = (both().min().expect("samples"), both().max().expect("samples"));
    let counts = [first, second].map(|samples| frequencies(samples, least, largest));
    let values = counts[0].iter().zip(&counts[1]).map(|(&a, &b)| [a as f64, (a + b) as f64 / 2.0]);
    let cells = cells(values);
    let share = first.len() as f64 / (first.len() + second.len()) as f64;
    let g: f64 = cells
        .iter()
        .map(|&[a, half]| {
            let (both, b) = (2.0 * half, 2.0 * half - a);
            information(a, both * share) + information(b, both * (1.0 - share))
        })
        .sum();
    tail(g, cells.len())
}

/// How often each value from `least` to `largest` occurs; what lies outside counts as the nearest.
fn frequencies(samples: &[i64], least: i64, largest: i64) -> Vec<u64> {
    let mut counts = vec![0; usize::try_from(largest - least).expect("a range") + 1];
    for sample in samples {
        counts[usize::try_from(sample.clamp(&least, &largest) - least).expect("in range")] += 1;
    }
    counts
}

/// Joins neighbouring pairs until the second entry of each is at least [`CELL`]; the rest joins the last.
fn cells(pairs: impl Iterator<Item = [f64; 2]>) -> Vec<[f64; 2]> {
    let mut cells: Vec<[f64; 2]> = Vec::new();
    let mut open = [0.0; 2];
    for pair in pairs {
        open = [open[0] + pair[0], open[1] + pair[1]];
        if open[1] >= CELL {
            cells.push(std::mem::take(&mut open));
        }
    }
    let last = cells.last_mut().expect("enough samples for one cell");
    *last = [last[0] + open[0], last[1] + open[1]];
    cells
}

/// A cell's term of the G statistic.
fn information(observed: f64, expected: f64) -> f64 {
    if observed > 0.0 { 2.0 * observed * (observed / expected).ln() } else { 0.0 }
}

fn tail(g: f64, cells: usize) -> f64 {
    ChiSquared::new(cells as f64 - 1.0).expect("two cells or more").sf(g.max(0.0))
}

pub fn mean(samples: &[i64]) -> f64 {
    samples.iter().map(|&x| x as f64).sum::<f64>() / samples.len() as f64
}

pub fn mean_square(samples: &[i64]) -> f64 {
    samples.iter().map(|&x| (x as f64).powi(2)).sum::<f64>() / samples.len() as f64
}
