//! Rescaling without headroom in Z_2^32, and the selection that widens its results, against plain arithmetic
//! at the edges of the range: three parties in one process.

mod common;

use common::{Random, matrix, seed};
use concilium_mpc::linear::rescale;
use concilium_mpc::local::{reconstruct, reconstruct_bits, run, share};
use concilium_mpc::shares::AdditiveShare;
use concilium_mpc::{PartyIndex, comparison, selection};
use concilium_ring::{Element, Z32, Z64};
use ndarray::Array2;
use proptest::prelude::*;

/// The largest bound that leaves room for the sign.
const BOUND: u32 = 30;

/// What rescaling gives modulo 2^(32-f), whether it is negative, and its positive part modulo 2^32.
fn rescaled(seed: u64, dealer: usize, values: &Array2<Z32>, f: u32) -> (Vec<i64>, Vec<bool>, Vec<i64>) {
    let parts = share(seed, values);
    let (rows, columns) = values.dim();
    let known = 32 - f;
    let dealer = PartyIndex::in_turn(dealer);
    let [a, b, c] = run(seed, |party| {
        let mut terms = AdditiveShare::zeros(rows, columns);
        terms.terms_mut().assign(&parts[party.index().number()].own());
        let x = rescale(party, dealer, terms, &vec![BOUND; columns], f).expect("local links do not fail");
        let negative = comparison::sign(party, dealer, &x, known).expect("local");
        let positive = selection::widen_unless(party, dealer.next(), &negative, &x, known).expect("local");
        (x, negative, positive)
    });
    let quotients = reconstruct(&[a.0, b.0, c.0]).mapv(|x| x.to_signed_modulo(known));
    let negative = reconstruct_bits(&[a.1, b.1, c.1]).remove(0);
    let positive = reconstruct(&[a.2, b.2, c.2]).mapv(Element::to_signed);
    (quotients.into_iter().collect(), negative, positive.into_iter().collect())
}

/// A number of magnitude below 2^30, often at an edge of the range or of a multiple of 2^f.
fn at_an_edge(random: &mut Random, f: u32) -> i64 {
    let largest = (1_i64 << BOUND) - 1;
    let near = |edge: i64, random: &mut Random| edge + random.word() as i64 % 2;
    match random.word() % 10 {
        0 => largest,
        1 => -largest,
        2 => largest - random.signed(f),
        3 => random.signed(f) - largest,
        4 => near(0, random),
        5 => near(1 << f, random),
        6 => near(-(1 << f), random),
        _ => random.signed(BOUND),
    }
    .clamp(-largest, largest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rescaling_without_headroom_never_fails(seed: u64, dealer in 0usize..3, f in 1u32..=14) {
        let mut random = Random(seed);
        let values: Array2<Z32> = matrix(3, 90, || at_an_edge(&mut random, f));
        let (quotients, negative, positive) = rescaled(seed, dealer, &values, f);
        for (((value, quotient), negative), positive) in values.iter().zip(quotients).zip(negative).zip(positive) {
            let down = value.to_signed() >> f;
            let exact = value.to_signed() & ((1 << f) - 1) == 0;
            let up = quotient - down;
            prop_assert!(up == 0 || (up == 1 && !exact), "{} became {}", value, quotient);
            prop_assert_eq!(negative, quotient < 0);
            prop_assert_eq!(positive, quotient.max(0), "the positive part of {}", quotient);
        }
    }

    #[test]
    fn widening_takes_what_is_known_modulo_a_power(
        seed: u64, dealer in 0usize..3, known in 16u32..32, count in 1usize..150,
    ) {
        let mut random = Random(seed);
        let largest = (1_i64 << (known - 1)) - 1;
        let numbers: Vec<i64> = (0..count)
            .map(|_| match random.word() % 6 {
                0 => largest,
                1 => -largest - 1,
                2 => 0,
                _ => random.signed(known - 1),
            })
            .collect();
        // Anything above the known bits, as a wrap leaves it.
        let mut left = numbers.iter();
        let values: Array2<Z32> = matrix(1, count, || {
            left.next().expect("a number for each place") + ((random.word() as i64) << known)
        });
        let parts = share(seed, &values);
        let positive = reconstruct(&run(seed, |party| {
            let (x, dealer) = (&parts[party.index().number()], PartyIndex::in_turn(dealer));
            let negative = comparison::sign(party, dealer, x, known).expect("local");
            selection::widen_unless(party, dealer.next(), &negative, x, known).expect("local")
        }));
        for (positive, number) in positive.iter().zip(numbers) {
            prop_assert_eq!(positive.to_signed(), number.max(0));
        }
    }

    #[test]
    fn widening_works_in_the_large_ring(seed: u64, known in 32u32..64) {
        let mut random = Random(seed);
        let values: Array2<Z64> = matrix(1, 70, || random.signed(known - 1));
        let parts = share(seed, &values);
        let positive = reconstruct(&run(seed, |party| {
            let x = &parts[party.index().number()];
            let negative = comparison::sign(party, PartyIndex::ALL[0], x, known).expect("local");
            selection::widen_unless(party, PartyIndex::ALL[1], &negative, x, known).expect("local")
        }));
        for (positive, value) in positive.iter().zip(&values) {
            prop_assert_eq!(positive.to_signed(), value.to_signed().max(0));
        }
    }
}

/// With neither headroom nor a bias: a fraction p/2^f is rounded up with probability p/2^f at the largest
/// numbers as at small ones. Six standard errors of a binomial of 100,000 each, so the test fails by chance
/// with odds below 1e-7; rounding to nearest would be hundreds away.
#[test]
fn rescaling_without_headroom_is_unbiased() {
    let seed = seed();
    let f = 4;
    for (place, whole) in [37, -37, (1 << (BOUND - f)) - 1, -(1 << (BOUND - f))].into_iter().enumerate() {
        for fraction in [1_i64, 8, 15] {
            let n = 100_000;
            let values: Array2<Z32> = matrix(1, n, || (whole << f) + fraction);
            let (quotients, ..) = rescaled(seed ^ (whole + fraction) as u64, place, &values, f);
            let ups = quotients.iter().filter(|&&quotient| quotient == whole + 1).count() as f64;
            let p = fraction as f64 / f64::from(1 << f);
            let deviation = (ups - n as f64 * p) / (n as f64 * p * (1.0 - p)).sqrt();
            println!("{whole} and {fraction}/16: rounded up {ups} of {n}, {deviation:+.2} standard errors");
            assert!(deviation.abs() < 6.0);
        }
    }
}

/// Negative control: modulo the whole of 2^32 what rescaling without headroom gives is often wrong, which is
/// why no product may take it.
#[test]
fn above_the_known_bits_a_rescaled_number_is_wrong() {
    let values: Array2<Z32> = matrix(1, 1000, || (1 << 29) + 5);
    let parts = share(3, &values);
    let rescaled = reconstruct(&run(3, |party| {
        let mut terms = AdditiveShare::zeros(1, 1000);
        terms.terms_mut().assign(&parts[party.index().number()].own());
        rescale(party, PartyIndex::ALL[0], terms, &vec![BOUND; 1000], 8).expect("local")
    }));
    let wrong = rescaled.iter().filter(|x| x.to_signed() >> 1 != 1 << 20).count();
    assert!((200..900).contains(&wrong), "{wrong} of 1000 are wrong");
}
