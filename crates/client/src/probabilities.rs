//! Mean probabilities: what the opened sums say, and the nearest vector that is a distribution.

use concilium_privacy::PROBABILITY_BITS;
use ndarray::{Array2, ArrayView1};

/// The noisy sum of the models' probability vectors, `[rows, classes]`, in units of
/// 2^-[`PROBABILITY_BITS`]. Noise can make a sum negative or larger than the number of models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbabilitySums {
    /// The sums.
    pub sums: Array2<i64>,
    /// Models that were added up, at least one.
    pub models: u32,
}

impl ProbabilitySums {
    /// The noisy mean probability of every class: the sum divided by the models. It is unbiased, and
    /// may lie outside of 0 to 1; the classes of a row need not add up to 1.
    pub fn means(&self) -> Array2<f64> {
        let one = f64::from(1_u32 << PROBABILITY_BITS) * f64::from(self.models.max(1));
        self.sums.mapv(|sum| sum as f64 / one)
    }

    /// The distribution nearest to each row of [`Self::means`]. Post-processing: it costs nothing, and
    /// is never farther from the mean without noise than the row itself; but it is biased.
    pub fn distributions(&self) -> Array2<f64> {
        let mut means = self.means();
        for mut row in means.rows_mut() {
            let nearest = nearest_distribution(row.view());
            row.iter_mut().zip(nearest).for_each(|(mean, nearest)| *mean = nearest);
        }
        means
    }
}

/// The vector without negative entries and with sum 1 that is nearest to `values` in the Euclidean
/// norm: all are lowered by the same amount and cut off at zero (Duchi et al., ICML 2008, figure 1).
pub fn nearest_distribution(values: ArrayView1<'_, f64>) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let mut sum = 0.0;
    let mut lowered_by = 0.0;
    for (position, &value) in sorted.iter().enumerate() {
        sum += value;
        let candidate = (sum - 1.0) / (position + 1) as f64;
        if value > candidate {
            lowered_by = candidate;
        }
    }
    values.iter().map(|value| (value - lowered_by).max(0.0)).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, array};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sums_are_divided_by_the_models() {
        let sums = ProbabilitySums { sums: array![[5 << 16, -(1 << 15)], [0, 20 << 16]], models: 10 };
        assert_eq!(sums.means(), array![[0.5, -0.05], [0.0, 2.0]]);
        let nearest = sums.distributions();
        assert!((nearest[(0, 0)] - 0.775).abs() < 1e-12 && (nearest[(0, 1)] - 0.225).abs() < 1e-12);
        assert_eq!(nearest.row(1), array![0.0, 1.0]);
    }

    proptest! {
        #[test]
        fn the_nearest_distribution_is_one_and_none_is_nearer(
            values in prop::collection::vec(-3.0..3.0_f64, 1..12),
            weights in prop::collection::vec(0.001..1.0_f64, 12),
        ) {
            let values = Array1::from_vec(values);
            let nearest = nearest_distribution(values.view());
            prop_assert!(nearest.iter().all(|&entry| entry >= 0.0));
            prop_assert!((nearest.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            // Any other distribution is at least as far away.
            let total: f64 = weights[..values.len()].iter().sum();
            let distance = |other: &mut dyn Iterator<Item = f64>| -> f64 {
                values.iter().zip(other).map(|(value, other)| (value - other).powi(2)).sum()
            };
            let other = distance(&mut weights.iter().map(|weight| weight / total));
            prop_assert!(distance(&mut nearest.iter().copied()) <= other + 1e-9);
        }
    }
}
