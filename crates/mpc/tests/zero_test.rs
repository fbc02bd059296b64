//! The zero test of votes against plain arithmetic.

mod common;

use common::{Random, matrix};
use concilium_mpc::conversion::sum_bits;
use concilium_mpc::local::{run, share};
use concilium_mpc::{PartyIndex, votes};
use concilium_ring::Z64;
use ndarray::Array2;
use proptest::prelude::*;

/// A window in which the differences of [`CYCLE`] wrap around.
const WINDOW: u32 = 8;

/// The first beats the second and the second the third by 100, and the third the first, because their
/// difference of -200 is 56 in eight bits: nobody wins all comparisons.
const CYCLE: [i64; 3] = [100, 0, -100];

/// Whether every row of the votes of `models` models adds up to `total`, as the three parties find.
fn opened(seed: u64, scores: &Array2<Z64>, models: usize, total: u64) -> bool {
    let rows = scores.nrows() / models;
    let parts = share(seed, scores);
    let [first, second, third] = run(seed, |party| {
        let part = &parts[party.index().number()];
        let dealer = PartyIndex::in_turn(seed as usize);
        let winners = votes::one_hot_argmax(party, dealer, part, WINDOW).expect("local");
        let sums = sum_bits::<Z64, _>(party, dealer, &winners, models, rows).expect("local");
        sums.rows_add_up_to(party, total).expect("local")
    });
    assert_eq!((first, first), (second, third), "the parties learn the same");
    first
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Scores whose differences stay in the window give every row the votes of all models, and no other
    /// number of them.
    #[test]
    fn votes_in_the_window_add_up(seed: u64, models in 1usize..6, rows in 1usize..70, classes in 2usize..7) {
        let mut random = Random(seed);
        let scores: Array2<Z64> = matrix(models * rows, classes, || random.signed(6));
        prop_assert!(opened(seed, &scores, models, models as u64));
        prop_assert!(!opened(seed, &scores, models, models as u64 + 1));
    }

    /// One row of one model that leaves the window is found among all others.
    #[test]
    fn a_row_without_a_vote_is_found(seed: u64, models in 1usize..6, rows in 1usize..70, place: usize) {
        let mut random = Random(seed);
        let mut scores: Array2<Z64> = matrix(models * rows, 3, || random.signed(6));
        let mut cycle = CYCLE.into_iter();
        let wrapped: Array2<Z64> = matrix(1, 3, || cycle.next().expect("three scores"));
        scores.row_mut(place % (models * rows)).assign(&wrapped.row(0));
        prop_assert!(!opened(seed, &scores, models, models as u64));
    }
}
