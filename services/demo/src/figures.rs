//! What the votes say without any protection: counts, majorities, accuracies.

use concilium_network::argmax;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use serde::Serialize;

/// Smallest, mean and largest accuracy of single owners.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SingleOwners {
    /// Mean over the owners.
    pub mean: f64,
    /// The worst owner's.
    pub minimum: f64,
    /// The best owner's.
    pub maximum: f64,
}

/// Counts `[queries, classes]` of votes `[owners, queries]`, each below `classes`.
pub fn count(votes: ArrayView2<'_, usize>, classes: usize) -> Array2<i64> {
    let mut counts = Array2::zeros((votes.ncols(), classes));
    for ((_, query), &class) in votes.indexed_iter() {
        counts[(query, class)] += 1;
    }
    counts
}

/// The class with the most votes of each query; a tie goes to the lower index, as the servers decide
/// it.
pub fn majorities(counts: ArrayView2<'_, i64>) -> Vec<usize> {
    argmax(counts).to_vec()
}

/// Part of the queries in which both have the same class; 0 without queries.
pub fn agreement<'a>(
    ours: impl IntoIterator<Item = &'a usize>,
    theirs: impl IntoIterator<Item = &'a usize>,
) -> f64 {
    let (mut equal, mut all) = (0_usize, 0_usize);
    for (our, their) in ours.into_iter().zip(theirs) {
        equal += usize::from(our == their);
        all += 1;
    }
    equal as f64 / all.max(1) as f64
}

/// Accuracies of the single owners, of which there is at least one.
pub fn single_owners(votes: ArrayView2<'_, usize>, labels: &[usize]) -> SingleOwners {
    let accuracy = |owner: ArrayView1<'_, usize>| agreement(owner, labels);
    let accuracies: Vec<f64> = votes.axis_iter(Axis(0)).map(accuracy).collect();
    SingleOwners {
        mean: accuracies.iter().sum::<f64>() / accuracies.len().max(1) as f64,
        minimum: accuracies.iter().copied().fold(f64::INFINITY, f64::min),
        maximum: accuracies.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}

/// The value below which the part `quantile` of `values` lies, the nearest rank; 0 without values.
pub fn percentile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn votes_are_counted_and_ties_go_to_the_lower_class() {
        let votes = array![[0, 2, 1, 2], [0, 1, 2, 2], [1, 1, 2, 0], [1, 0, 2, 1]];
        let counts = count(votes.view(), 3);
        assert_eq!(counts, array![[2, 2, 0], [1, 2, 1], [0, 1, 3], [1, 1, 2]]);
        assert_eq!(majorities(counts.view()), [0, 1, 2, 2]);
        assert_eq!(majorities(array![[-3, -1, -1]].view()), [1]);
    }

    #[test]
    fn accuracies_are_parts_of_the_queries() {
        let votes = array![[0, 1, 1, 1], [0, 0, 0, 1], [0, 1, 0, 1]];
        let single = single_owners(votes.view(), &[0, 1, 0, 1]);
        assert_eq!(single, SingleOwners { mean: 2.5 / 3.0, minimum: 0.75, maximum: 1.0 });
        assert_eq!(agreement(&[], &[]), 0.0);
    }

    #[test]
    fn percentiles_are_values_that_occur() {
        let values: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 10.0);
        assert_eq!(percentile(&values, 0.95), 19.0);
        assert_eq!(percentile(&values, 1.0), 20.0);
        assert_eq!(percentile(&[7.0], 0.5), 7.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
