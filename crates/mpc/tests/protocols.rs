//! Every protocol against plain arithmetic, on three parties in one process.

mod common;

use common::{Random, matrix, seed};
use concilium_mpc::conversion::sum_bits;
use concilium_mpc::linear::{SharedMatrix, rescale};
use concilium_mpc::local::{reconstruct, reconstruct_bits, run, share};
use concilium_mpc::opening::{open_labels, open_sums};
use concilium_mpc::shares::AdditiveShare;
use concilium_mpc::{PartyIndex, Shares, comparison, selection, votes};
use concilium_ring::{Element, Z32, Z64};
use ndarray::Array2;
use proptest::prelude::*;

/// One party's shares, by its place.
fn mine<E: Element>(parts: &[Shares<E>; 3], index: PartyIndex) -> &Shares<E> {
    &parts[index.number()]
}

/// Takes component i of a sharing as server i's additive term.
fn terms<E: Element>(part: &Shares<E>) -> AdditiveShare<E> {
    let (rows, columns) = part.dim();
    let mut terms = AdditiveShare::zeros(rows, columns);
    terms.terms_mut().assign(&part.own());
    terms
}

fn rescaled<E: Element>(
    seed: u64,
    dealer: PartyIndex,
    values: &Array2<E>,
    bounds: &[u32],
    f: u32,
) -> Array2<E> {
    let parts = share(seed, values);
    let results = run(seed, |party| {
        let terms = terms(mine(&parts, party.index()));
        rescale(party, dealer, terms, bounds, f).expect("local links do not fail")
    });
    reconstruct(&results)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rescaling_is_the_quotient_rounded_down_or_up(
        seed: u64, dealer in 0usize..3, rows in 1usize..6, columns in 1usize..9, f in 1u32..=20,
    ) {
        let mut random = Random(seed);
        let bounds: Vec<u32> = (0..columns).map(|_| f + (random.word() % (40 - u64::from(f))) as u32).collect();
        let mut place = 0;
        let values: Array2<Z64> = matrix(rows, columns, || {
            place += 1;
            random.signed(bounds[(place - 1) % columns])
        });
        let result = rescaled(seed, PartyIndex::in_turn(dealer), &values, &bounds, f);
        for (result, value) in result.iter().zip(&values) {
            let down = value.to_signed() >> f;
            let exact = value.to_signed() & ((1 << f) - 1) == 0;
            let difference = result.to_signed() - down;
            prop_assert!(difference == 0 || (difference == 1 && !exact), "off by {difference} (exact: {exact})");
        }
    }

    #[test]
    fn rescaling_works_in_the_small_ring(seed: u64, dealer in 0usize..3) {
        // 4 bits of value leave 27 bits of headroom in Z_2^32.
        let mut random = Random(seed);
        let values: Array2<Z32> = matrix(3, 5, || random.signed(4));
        let result = rescaled(seed, PartyIndex::in_turn(dealer), &values, &[4; 5], 2);
        for (result, value) in result.iter().zip(&values) {
            let difference = result.to_signed() - (value.to_signed() >> 2);
            prop_assert!(difference == 0 || difference == 1);
        }
    }

    #[test]
    fn products_are_products(seed: u64, m in 1usize..5, k in 1usize..40, n in 1usize..20) {
        let mut random = Random(seed);
        let x: Array2<Z64> = matrix(m, k, || random.word() as i64);
        let w: Array2<Z64> = matrix(k, n, || random.word() as i64);
        let (xs, ws) = (share(seed, &x), share(!seed, &w));
        let terms = run(seed, |party| {
            let (x, w) = (mine(&xs, party.index()), mine(&ws, party.index()));
            let mut out = Array2::from_elem((m, n), Z64::ZERO);
            SharedMatrix::new(w.own(), w.next()).multiply_add(x.own(), x.next(), out.view_mut());
            out
        });
        prop_assert_eq!(&terms[0] + &terms[1] + &terms[2], x.dot(&w));
    }

    #[test]
    fn signs_are_signs(seed: u64, dealer in 0usize..3, rows in 1usize..4, columns in 1usize..70, window in 2u32..=64) {
        let mut random = Random(seed);
        let values: Array2<Z64> = matrix(rows, columns, || match random.word() % 8 {
            0 => 0,
            1 => -1,
            2 => (1i64 << (window - 2)) - 1 + (1i64 << (window - 2)),
            3 => (-1i64) << (window - 1),
            _ => random.signed(window - 1),
        });
        let parts = share(seed, &values);
        let results = run(seed, |party| {
            comparison::sign(party, PartyIndex::in_turn(dealer), mine(&parts, party.index()), window)
                .expect("local links do not fail")
        });
        let signs = reconstruct_bits(&results);
        for (sign, value) in signs[0].iter().zip(&values) {
            prop_assert_eq!(*sign, value.to_signed() < 0, "value {} in {} bits", value, window);
        }
    }

    #[test]
    fn signs_in_the_small_ring(seed: u64, dealer in 0usize..3, window in 2u32..=32) {
        let mut random = Random(seed);
        let values: Array2<Z32> = matrix(2, 40, || random.signed(window - 1));
        let parts = share(seed, &values);
        let results = run(seed, |party| {
            comparison::sign(party, PartyIndex::in_turn(dealer), mine(&parts, party.index()), window)
                .expect("local links do not fail")
        });
        let signs = reconstruct_bits(&results);
        for (sign, value) in signs[0].iter().zip(&values) {
            prop_assert_eq!(*sign, value.to_signed() < 0);
        }
    }

    #[test]
    fn selection_with_the_sign_is_relu(seed: u64, dealer in 0usize..3, other in 0usize..3, count in 1usize..150) {
        let mut random = Random(seed);
        let values: Array2<Z64> = matrix(1, count, || random.signed(30));
        let parts = share(seed, &values);
        let results = run(seed, |party| {
            let x = mine(&parts, party.index());
            let sign = comparison::sign(party, PartyIndex::in_turn(dealer), x, 32).expect("local");
            selection::select_unless(party, PartyIndex::in_turn(other), &sign, x).expect("local")
        });
        let relu = reconstruct(&results);
        for (result, value) in relu.iter().zip(&values) {
            prop_assert_eq!(result.to_signed(), value.to_signed().max(0));
        }
    }

    #[test]
    fn votes_are_argmax_with_ties_to_the_lower_class(
        seed: u64, dealer in 0usize..3, rows in 1usize..80, classes in 2usize..13,
    ) {
        let mut random = Random(seed);
        // Few distinct values, so that ties are common.
        let scores: Array2<Z64> = matrix(rows, classes, || random.word() as i64 % 5 - 2);
        let votes = one_hot(seed, dealer, &scores, 32);
        for (row, line) in scores.rows().into_iter().enumerate() {
            let best = line.iter().map(|v| v.to_signed()).max().expect("a row has classes");
            let winner = line.iter().position(|v| v.to_signed() == best).expect("the maximum is there");
            for (class, plane) in votes.iter().enumerate() {
                prop_assert_eq!(plane[row], class == winner, "row {} class {}", row, class);
            }
        }
    }

    #[test]
    fn hostile_scores_give_at_most_one_vote(seed: u64, classes in 2usize..13, window in 2u32..=64) {
        // Full-range words: differences leave every window, so comparisons are inconsistent.
        let mut random = Random(seed);
        let scores: Array2<Z64> = matrix(70, classes, || random.word() as i64);
        let votes = one_hot(seed, 1, &scores, window);
        for row in 0..70 {
            let norm = votes.iter().filter(|plane| plane[row]).count();
            prop_assert!(norm <= 1, "row {} has {} votes", row, norm);
        }
    }

    #[test]
    fn noised_sums_of_votes_open_to_votes_plus_noise(
        seed: u64, dealer in 0usize..3, owners in 1usize..9, queries in 1usize..6, classes in 2usize..6,
    ) {
        let mut random = Random(seed);
        let scores: Array2<Z64> = matrix(owners * queries, classes, || random.signed(20));
        let noise: Vec<Vec<i64>> =
            (0..3).map(|_| (0..queries * classes).map(|_| random.signed(8)).collect()).collect();
        let parts = share(seed, &scores);
        let results = run(seed, |party| {
            let votes = votes::one_hot_argmax(party, PartyIndex::in_turn(dealer), mine(&parts, party.index()), 32)
                .expect("local");
            let sums = sum_bits::<Z64, _>(party, PartyIndex::in_turn(dealer + 1), &votes, owners, queries).expect("local");
            let noised = sums.inject(party, &noise[party.index().number()]).expect("local");
            let sums = noised.components();
            let labels = noised.argmax(party, PartyIndex::in_turn(dealer), 32).expect("local");
            (sums, labels.components())
        });
        let sums = open_sums(&results.each_ref().map(|r| r.0.clone()), queries * classes).expect("copies agree");
        let labels = open_labels(&results.each_ref().map(|r| r.1.clone()), queries, classes).expect("copies agree");
        let mut expected: Vec<i64> = (0..queries * classes).map(|i| noise.iter().map(|n| n[i]).sum()).collect();
        for (row, line) in scores.rows().into_iter().enumerate() {
            let best = line.iter().map(|v| v.to_signed()).max().expect("a row has classes");
            let winner = line.iter().position(|v| v.to_signed() == best).expect("the maximum is there");
            expected[row % queries * classes + winner] += 1;
        }
        prop_assert_eq!(&sums, &expected);
        for (query, label) in labels.iter().enumerate() {
            let line = &expected[query * classes..(query + 1) * classes];
            let best = line.iter().max().expect("a row has classes");
            prop_assert_eq!(Some(*label), line.iter().position(|v| v == best));
        }
    }
}

fn one_hot(seed: u64, dealer: usize, scores: &Array2<Z64>, window: u32) -> Vec<Vec<bool>> {
    let parts = share(seed, scores);
    let results = run(seed, |party| {
        votes::one_hot_argmax(party, PartyIndex::in_turn(dealer), mine(&parts, party.index()), window)
            .expect("local links do not fail")
    });
    reconstruct_bits(&results)
}

/// The mean rounding error must be zero and, for a fraction p/2^f, rounding up must happen with
/// probability p/2^f. With n = 200,000 the test fails by chance with odds below 1e-8 (six
/// standard errors of a binomial, one test for each of four fractions).
#[test]
fn rescaling_is_unbiased() {
    let seed = seed();
    let f = 4;
    for fraction in [1i64, 5, 8, 15] {
        let n = 200_000;
        let values: Array2<Z64> = matrix(1, n, || (37 << f) + fraction);
        let bounds = vec![30; n];
        let result =
            rescaled(seed ^ fraction as u64, PartyIndex::in_turn(fraction as usize), &values, &bounds, f);
        let ups = result.iter().filter(|v| v.to_signed() == 38).count() as f64;
        let p = fraction as f64 / f64::from(1 << f);
        let deviation = (ups - n as f64 * p) / (n as f64 * p * (1.0 - p)).sqrt();
        println!("fraction {fraction}/16: rounded up {ups} of {n}, {deviation:+.2} standard errors");
        assert!(deviation.abs() < 6.0);
        // Negative control: rounding to nearest would be hundreds of standard errors away.
        let nearest: f64 = if fraction >= 8 { 1.0 } else { 0.0 };
        assert!(((nearest - p) * (n as f64 / (p * (1.0 - p))).sqrt()).abs() > 6.0);
    }
}
