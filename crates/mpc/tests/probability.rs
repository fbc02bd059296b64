//! Probabilities against softmax in floating point, and against owners that send anything.

mod common;

use common::{Random, matrix, seed};
use concilium_mpc::local::{reconstruct, run, share};
use concilium_mpc::opening::open_sums;
use concilium_mpc::probability::{FRACTION_BITS, maximum_error, sum_of_probabilities};
use concilium_mpc::shares::AdditiveShare;
use concilium_mpc::truncation::sum_truncated;
use concilium_mpc::{PartyIndex, linear, product};
use concilium_ring::{Element, Z64};
use ndarray::Array2;
use proptest::prelude::*;

const ONE: i64 = 1 << FRACTION_BITS;

/// The opened sums over `groups`, `[rows][classes]`, with the given noise of the three servers.
fn opened(
    seed: u64,
    scores: &Array2<Z64>,
    window: u32,
    score_bits: u32,
    groups: usize,
    noise: &[Vec<i64>; 3],
) -> Vec<Vec<i64>> {
    let (values, classes) = scores.dim();
    let rows = values / groups;
    let parts = share(seed, scores);
    let results = run(seed, |party| {
        let place = party.index().number();
        let dealer = PartyIndex::in_turn(seed as usize % 3);
        sum_of_probabilities(party, dealer, &parts[place], window, score_bits, groups, rows)
            .expect("local links do not fail")
            .inject(party, &noise[place])
            .expect("local links do not fail")
            .components()
    });
    let sums = open_sums(&results, rows * classes).expect("copies agree");
    sums.chunks_exact(classes).map(<[i64]>::to_vec).collect()
}

fn no_noise(count: usize) -> [Vec<i64>; 3] {
    [0, 1, 2].map(|_| vec![0; count])
}

fn softmax(scores: ndarray::ArrayView1<'_, Z64>, score_bits: u32) -> Vec<f64> {
    let real: Vec<f64> = scores.iter().map(|v| v.to_signed() as f64 / f64::from(1 << score_bits)).collect();
    let largest = real.iter().copied().fold(f64::MIN, f64::max);
    let exponentials: Vec<f64> = real.iter().map(|v| (v - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|e| e / sum).collect()
}

/// What no model may break: returns what is wrong with a row.
fn breach(row: &[i64]) -> Option<String> {
    let negative = row.iter().find(|&&entry| entry < 0).map(|entry| format!("{entry} is negative"));
    let sum: i128 = row.iter().map(|&entry| i128::from(entry)).sum();
    negative.or((sum > i128::from(ONE)).then(|| format!("the row adds up to {sum}")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Over the whole range of scores: equal ones, near ones, and ones at the ends of the window.
    #[test]
    fn probabilities_are_the_softmax(
        seed: u64, rows in 1usize..40, classes in 2usize..=64, score_bits in 8u32..=20, spread in 1u32..=20,
    ) {
        let mut random = Random(seed);
        let window = 40;
        let spread = (score_bits + 5).saturating_sub(spread).max(1).min(window - 2);
        let scores: Array2<Z64> = matrix(rows, classes, || match random.word() % 16 {
            0 => 0,
            1 => (1 << (window - 2)) - 1,
            2 => -((1 << (window - 2)) - 1),
            _ => random.signed(spread),
        });
        let sums = opened(seed, &scores, window, score_bits, 1, &no_noise(rows * classes));
        for (line, row) in scores.rows().into_iter().zip(&sums) {
            prop_assert_eq!(breach(row), None);
            for (expected, &found) in softmax(line, score_bits).into_iter().zip(row) {
                let error = (found as f64 / ONE as f64 - expected).abs();
                prop_assert!(error <= maximum_error(classes), "{found} for {expected}: off by {error:e}");
            }
        }
    }

    /// One model with any ring elements as scores, in any window: the privacy of the release.
    #[test]
    fn hostile_scores_stay_in_the_simplex(
        seed: u64, classes in 2usize..=64, score_bits in 1u32..=20, window in 2u32..=64, kind in 0u32..4,
    ) {
        let mut random = Random(seed);
        let top = 1u64 << 63;
        let scores: Array2<Z64> = matrix(70, classes, || match (kind, random.word() % 6) {
            (0, _) => random.word() as i64,
            // Around everything at which something wraps.
            (1, 0) => top as i64,
            (1, 1) => (top - 1) as i64,
            (1, 2) => (15i64 << score_bits) + random.signed(3),
            // In a window of 64 bits both ends of the range are the same element.
            (1, 3) => (1i64 << (window - 1)).wrapping_sub(random.signed(2)),
            (1, 4) => (1i64 << (window - 1)).wrapping_neg().wrapping_add(random.signed(2)),
            (2, _) => random.signed(window.min(62)),
            (3, _) => -random.signed(score_bits + 4),
            _ => random.signed(score_bits + 5),
        });
        for row in opened(seed, &scores, window, score_bits, 1, &no_noise(70 * classes)) {
            prop_assert_eq!(breach(&row), None);
        }
    }

    /// Replacing one model moves a row by at most 2^16 down and 2^16 up: exactly what a vote moves,
    /// so Delta1 = 2 and Delta2^2 = 2 in votes. The rounding of the other models must not move at
    /// all, for which both worlds use the same randomness.
    #[test]
    fn one_model_moves_no_more_than_a_vote(
        seed: u64, models in 1usize..5, classes in 2usize..12, score_bits in 8u32..=20, hostile: bool,
    ) {
        let (queries, window) = (6, 40);
        let mut random = Random(seed);
        let scores: Array2<Z64> = matrix(models * queries, classes, || random.signed(score_bits + 3));
        let replaced = seed as usize % models;
        let mut neighbour = scores.clone();
        for mut row in neighbour.rows_mut().into_iter().skip(replaced * queries).take(queries) {
            row.iter_mut().for_each(|score| {
                *score = Z64::from_signed(if hostile { random.word() as i64 } else { random.signed(30) });
            });
        }
        let [before, after] = [scores, neighbour].map(|scores| {
            opened(seed, &scores, window, score_bits, models, &no_noise(queries * classes))
        });
        for (before, after) in before.iter().zip(&after) {
            let changes: Vec<i64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
            let up: i64 = changes.iter().filter(|&&change| change > 0).sum();
            let down: i64 = -changes.iter().filter(|&&change| change < 0).sum::<i64>();
            prop_assert!(up <= ONE && down <= ONE, "up by {up}, down by {down}");
        }
    }

    /// The opened words are the sum of the probabilities and the three servers' noise, and nothing
    /// else: the same session without noise differs by exactly the noise.
    #[test]
    fn opened_sums_are_probabilities_plus_noise(
        seed: u64, models in 1usize..5, queries in 1usize..5, classes in 2usize..6,
    ) {
        let mut random = Random(seed);
        let scores: Array2<Z64> = matrix(models * queries, classes, || random.signed(14));
        let noise = [0, 1, 2].map(|_| (0..queries * classes).map(|_| random.signed(40)).collect::<Vec<_>>());
        let plain = opened(seed, &scores, 24, 12, models, &no_noise(queries * classes));
        let noised = opened(seed, &scores, 24, 12, models, &noise);
        for (place, (plain, noised)) in plain.concat().iter().zip(noised.concat()).enumerate() {
            prop_assert_eq!(plain + noise.iter().map(|n| n[place]).sum::<i64>(), noised);
        }
    }

    #[test]
    fn rows_are_multiplied_exactly(seed: u64, rows in 1usize..5, columns in 1usize..40) {
        let mut random = Random(seed);
        let x: Array2<Z64> = matrix(rows, columns, || random.word() as i64);
        let y: Array2<Z64> = matrix(1, columns, || random.word() as i64);
        let (xs, ys) = (share(seed, &x), share(!seed, &y));
        let products = run(seed, |party| {
            let place = party.index().number();
            product::multiply_rows(party, &xs[place], &ys[place]).expect("local links do not fail")
        });
        prop_assert_eq!(reconstruct(&products), &x * &y);
    }
}

/// Values just below 2^63, where a rescaling goes wrong about every second time.
#[test]
fn exact_truncation_cannot_fail_where_rescaling_does() {
    let seed = seed();
    let mut random = Random(seed);
    let (rows, bits) = (4096, 20);
    let values: Array2<Z64> = matrix(1, rows, || match random.word() % 4 {
        0 => i64::MAX,
        1 => random.signed(8).abs(),
        _ => (random.word() >> 1) as i64,
    });
    let parts = share(seed, &values);
    let results = run(seed, |party| {
        let part = &parts[party.index().number()];
        let sums = sum_truncated(party, PartyIndex::ALL[1], part, bits, 1 << 43, 1, rows).expect("local");
        let exact = sums.inject(party, &vec![0; rows]).expect("local").components();
        let mut terms = AdditiveShare::zeros(1, rows);
        terms.terms_mut().assign(&part.own());
        let rescaled =
            linear::rescale(party, PartyIndex::ALL[1], terms, &vec![62; rows], bits).expect("local");
        (exact, rescaled)
    });
    let [a, b, c] = results;
    let exact = open_sums(&[a.0, b.0, c.0], rows).expect("copies agree");
    let wrong = |quotient: i64, value: &Z64| !(0..=1).contains(&(quotient - (value.to_signed() >> bits)));
    assert_eq!(exact.iter().zip(&values).filter(|(q, value)| wrong(**q, value)).count(), 0);
    // Negative control: the rescaling of the same numbers.
    let rescaled = reconstruct(&[a.1, b.1, c.1]);
    let failures = rescaled.iter().zip(&values).filter(|(q, value)| wrong(q.to_signed(), value)).count();
    println!("rescaling was wrong for {failures} of {rows} values");
    assert!(failures > rows / 8);
}

/// The test of the simplex would notice: a row that is one unit too large, and a row of scores that
/// went through no softmax.
#[test]
fn a_breach_is_noticed() {
    assert!(breach(&[ONE, 1]).is_some() && breach(&[-1, 1]).is_some());
    assert!(breach(&[ONE, 0]).is_none());
    let mut random = Random(seed());
    assert!((0..100).all(|_| breach(&[random.word() as i64, random.word() as i64]).is_some()));
}
