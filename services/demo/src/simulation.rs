//! The same noise on the same votes in the clear: what accuracy it allows, and whether the servers'
//! answers agree with the votes as often as it predicts.

use concilium_network::argmax;
use concilium_privacy::twin::SeededNoise;
use concilium_privacy::{Mechanism, MechanismError, NoiseError, NoiseSource};
use ndarray::{Array2, ArrayView2, Axis};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use statrs::function::erf::erfc;
use thiserror::Error;

/// Rows of noise that are drawn for one simulation, unless there are very many or few queries.
const ROWS_IN_ALL: usize = 20_000;
/// Fewest and most simulations of each query.
const REPEATS: (usize, usize) = (20, 1000);

/// Why there is no simulation.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum SimulationError {
    /// Policy does not allow the mechanism.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// A noise share can't be drawn.
    #[error(transparent)]
    Noise(#[from] NoiseError),
}

/// Labels that noise makes of plaintext counts.
pub struct Simulation {
    /// Labels `[queries, repeats]`.
    labels: Array2<usize>,
    seed: u64,
}

/// How often labels agree with a reference, and how often noise makes them agree.
///
/// The test: under the hypothesis that the released labels come from the plaintext counts and the
/// policy's noise, query i agrees with its reference with probability p_i, independently, so the
/// number of agreements is Poisson-binomial with mean Σ p_i and variance Σ p_i (1 - p_i). Each p_i is
/// estimated from R simulations of its own, which adds Σ p_i (1 - p_i) / R to the variance of the
/// difference; variances use (agreements + 1/2) / (R + 1), so that none is zero. `p_value` is two-sided
/// and takes the normal approximation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Part of the queries in which label and reference agree.
    pub observed: f64,
    /// The part that the simulated noise predicts.
    pub predicted: f64,
    /// Observed minus predicted, in standard deviations.
    pub z: f64,
    /// Probability of a difference at least as large, if nothing but the noise makes it.
    pub p_value: f64,
}

impl Simulation {
    /// Adds three servers' noise shares to every row of `counts` `[queries, classes]`, 20 to 1000 times
    /// each and about 20000 times in all where these bounds allow it. The same seed gives the same simulation.
    ///
    /// # Errors
    /// [`SimulationError`] for a mechanism that policy does not allow.
    pub fn run(
        counts: ArrayView2<'_, i64>,
        mechanism: Mechanism,
        seed: u64,
    ) -> Result<Self, SimulationError> {
        let repeats = (ROWS_IN_ALL / counts.nrows().max(1)).clamp(REPEATS.0, REPEATS.1);
        Self::run_repeats(counts, mechanism, seed, repeats)
    }

    fn run_repeats(
        counts: ArrayView2<'_, i64>,
        mechanism: Mechanism,
        seed: u64,
        repeats: usize,
    ) -> Result<Self, SimulationError> {
        let mut generator = StdRng::seed_from_u64(seed);
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(SeededNoise::new(mechanism, StdRng::from_rng(&mut generator))?);
        }
        let mut labels = Array2::zeros((counts.nrows(), repeats));
        let mut noised = Array2::zeros((repeats, counts.ncols()));
        for (row, mut labels) in counts.axis_iter(Axis(0)).zip(labels.axis_iter_mut(Axis(0))) {
            noised.assign(&row);
            for mut noised in noised.axis_iter_mut(Axis(0)) {
                for server in &mut servers {
                    for (count, share) in noised.iter_mut().zip(server.draw(row.len())?.values()) {
                        *count += share;
                    }
                }
            }
            labels.assign(&argmax(noised.view()));
        }
        Ok(Simulation { labels, seed })
    }

    /// Simulations of each query.
    pub fn repeats(&self) -> usize {
        self.labels.ncols()
    }

    /// The seed of the noise.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Part of all simulated labels that are right.
    pub fn accuracy(&self, truth: &[usize]) -> f64 {
        self.frequencies(truth).iter().sum::<f64>() / truth.len().max(1) as f64
    }

    /// Compares released labels with a reference, one of each for every query; see [`Agreement`].
    pub fn compare(&self, released: &[usize], reference: &[usize]) -> Agreement {
        let (queries, repeats) = (reference.len().max(1) as f64, self.repeats() as f64);
        let frequencies = self.frequencies(reference);
        let predicted = frequencies.iter().sum::<f64>();
        let variance: f64 = frequencies
            .iter()
            .map(|frequency| (frequency * repeats + 0.5) / (repeats + 1.0))
            .map(|probability| probability * (1.0 - probability) * (1.0 + 1.0 / repeats))
            .sum();
        let observed = released.iter().zip(reference).filter(|(ours, theirs)| ours == theirs).count() as f64;
        let z = if variance > 0.0 { (observed - predicted) / variance.sqrt() } else { 0.0 };
        Agreement {
            observed: observed / queries,
            predicted: predicted / queries,
            z,
            p_value: erfc(z.abs() / 2_f64.sqrt()),
        }
    }

    /// For each query the part of its simulated labels that equal `expected`.
    fn frequencies(&self, expected: &[usize]) -> Vec<f64> {
        let repeats = self.repeats() as f64;
        let frequency = |labels: ndarray::ArrayView1<'_, usize>, expected: usize| {
            labels.iter().filter(|&&label| label == expected).count() as f64 / repeats
        };
        self.labels
            .axis_iter(Axis(0))
            .zip(expected)
            .map(|(labels, &class)| frequency(labels, class))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use concilium_privacy::convert::actual_standard_deviation;
    use ndarray::array;
    use statrs::distribution::{ContinuousCDF as _, Normal};

    use super::*;

    fn seed() -> u64 {
        let seed = std::env::var("CONCILIUM_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(rand::random);
        println!("CONCILIUM_TEST_SEED={seed}");
        seed
    }

    fn gaussian(sigma: &str) -> Mechanism {
        Mechanism::DiscreteGaussian { sigma: sigma.parse().unwrap() }
    }

    #[test]
    fn the_noise_has_the_strength_of_three_servers() {
        // Of two classes the difference of the noises decides, which is nearly normal with twice the
        // variance of three shares; the tie, which the lower class wins, is half a vote wide.
        let seed = seed();
        for (mechanism, margin) in [(gaussian("5"), 6), (gaussian("20"), 40)] {
            let counts = array![[margin, 0], [0, margin]];
            let repeats = 20_000;
            let simulation = Simulation::run_repeats(counts.view(), mechanism, seed, repeats).unwrap();
            let deviation = 2_f64.sqrt() * actual_standard_deviation(mechanism);
            let normal = Normal::new(0.0, deviation).unwrap();
            let expected = [normal.cdf(margin as f64 + 0.5), normal.cdf(margin as f64 - 0.5)];
            for (found, expected) in simulation.frequencies(&[0, 1]).into_iter().zip(expected) {
                let z = (found - expected) / (expected * (1.0 - expected) / repeats as f64).sqrt();
                // Odds of a false alarm: 2e-9 for each of the four.
                assert!(z.abs() < 6.0, "{mechanism:?}: {found} instead of {expected}, z = {z}");
            }
        }
    }

    #[test]
    fn labels_of_the_same_noise_agree_and_others_do_not() {
        let seed = seed();
        let counts =
            Array2::from_shape_fn((400, 5), |(query, class)| if class == query % 5 { 12 } else { 7 });
        let majorities = crate::figures::majorities(counts.view());
        let simulation = Simulation::run(counts.view(), gaussian("4"), seed).unwrap();
        assert_eq!(simulation.repeats(), 50);
        let released = |sigma: &str| {
            let other = Simulation::run_repeats(counts.view(), gaussian(sigma), seed ^ 1, 1).unwrap();
            other.labels.column(0).to_vec()
        };
        let same = simulation.compare(&released("4"), &majorities);
        // Odds of a false alarm: 2e-9.
        assert!(same.z.abs() < 6.0 && same.p_value > 1e-9, "{same:?}");
        let weaker = simulation.compare(&released("2"), &majorities);
        assert!(weaker.z > 6.0 && weaker.p_value < 1e-8, "{weaker:?}");
        let stronger = simulation.compare(&released("12"), &majorities);
        assert!(stronger.z < -6.0, "{stronger:?}");
        assert!((simulation.accuracy(&majorities) - same.predicted).abs() < 1e-12);
    }

    #[test]
    fn certain_votes_leave_no_doubt() {
        let counts = array![[1000, 0], [0, 1000]];
        let simulation = Simulation::run(counts.view(), gaussian("2"), 1).unwrap();
        let agreement = simulation.compare(&[0, 1], &[0, 1]);
        assert_eq!((agreement.observed, agreement.predicted, agreement.z), (1.0, 1.0, 0.0));
        assert!(simulation.compare(&[1, 0], &[0, 1]).z < -6.0);
    }

    #[test]
    fn the_seed_repeats_a_simulation() {
        let counts = array![[3, 2, 1]];
        let run = |seed| Simulation::run(counts.view(), gaussian("2"), seed).unwrap().labels;
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
        assert!(Simulation::run(counts.view(), gaussian("1"), 1).is_err());
    }
}
