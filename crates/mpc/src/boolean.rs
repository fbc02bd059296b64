//! Polynomials of shared bits: exclusive ors of ANDs of any number of planes, in one exchange.
//!
//! # Protocol
//! The dealer h knows c = x_h + x_{h+1} of every bit x, both evaluators know d = x_{h+2}; x = c + d. A
//! product of bits over a set M is the sum, over the subsets T of M, of the product of d over T times
//! the product of c over the rest. So a polynomial is a sum over sets T of a coefficient, which depends
//! on c alone, times the product of d over T.
//! 1. The dealer sends the coefficients to the first evaluator, masked by a stream that the second
//!    evaluator knows. A coefficient that is 1 whatever c is (T = M) is not sent; that of the empty set
//!    stands for all that the dealer knows by itself.
//! 2. Each evaluator multiplies the coefficients, the one the masked ones, the other the masks, by its
//!    products of d and adds up; the first adds the products of whole sets. They exchange their sums
//!    under masks that the dealer knows: a replicated sharing.
//!
//! The dealer receives nothing, and knows its components of the result at once: it can deal what is
//! computed from the result in the same round, and so on. A chain of polynomials, comparisons and
//! selections of one dealer takes one round for all that is dealt and one for each exchange.
//!
//! # Cost
//! Two rounds, of which the first can coincide with any earlier one in which the dealer sends. For an AND
//! of n bits 2^n - 1 bits from the dealer, and one bit from each evaluator. ANDs of two bits in a tree
//! (Araki et al., CCS 2016) send one bit from every server for each and take ceil(log2 n) rounds, in
//! which the dealer waits like everybody.
//!
//! # Security
//! Semi-honest, one corruption, perfect: every message is masked by a stream that its receiver does not
//! know. No failure.
//!
//! # Source
//! Products of many factors in one round from masked products of masks: Ohata and Nuida (FC 2020). That one
//! summand is known to one server and the other to two takes the place of their preprocessing.

use std::collections::BTreeMap;

use concilium_ring::wipe;

use crate::channel::{Channel, Protocol};
use crate::dealt::{self, Planes};
use crate::party::{MpcError, Party, PartyIndex};
use crate::shares::{BitShares, words_of};
use crate::vectorised::vectorised;

/// Words of a plane that are computed with at a time, so that they stay near the processor.
const PIECE: usize = 128;

/// An exclusive or of products of planes. A product is a list of planes without repetition.
pub struct Polynomial {
    products: Vec<Vec<usize>>,
    /// For each set T, the products of c whose sum is its coefficient. The empty set comes first.
    coefficients: BTreeMap<Vec<usize>, Vec<Vec<usize>>>,
}

impl Polynomial {
    /// The exclusive or of these products, each a list of planes.
    ///
    /// A product of n planes has 2^n - 1 coefficients.
    pub fn sum(mut products: Vec<Vec<usize>>) -> Self {
        // One set, one name.
        products.iter_mut().for_each(|product| product.sort_unstable());
        let mut coefficients: BTreeMap<Vec<usize>, Vec<Vec<usize>>> = BTreeMap::new();
        for product in &products {
            debug_assert!(!product.is_empty(), "a constant is no product of shared bits");
            for chosen in 0..(1u32 << product.len()) - 1 {
                let (set, rest) =
                    (0..product.len()).partition::<Vec<_>, _>(|&place| chosen >> place & 1 == 1);
                let planes = |places: Vec<usize>| places.into_iter().map(|place| product[place]).collect();
                coefficients.entry(planes(set)).or_default().push(planes(rest));
            }
        }
        Polynomial { products, coefficients }
    }

    /// The AND of these planes.
    pub fn product(planes: Vec<usize>) -> Self {
        Self::sum(vec![planes])
    }

    /// Bits that the dealer sends for one value.
    pub fn dealt_bits(&self) -> usize {
        self.coefficients.len()
    }
}

/// Plane p of the result is the value of `polynomials[p]` at the planes of `x`. See the module for the
/// protocol.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If a polynomial names a plane that `x` does not have.
pub fn evaluate<C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    x: &BitShares,
    polynomials: &[Polynomial],
) -> Result<BitShares, MpcError> {
    let words = words_of(x.bits());
    let dealt = polynomials.iter().map(Polynomial::dealt_bits).sum();
    dealt::bits(
        party,
        dealer,
        [Protocol::PolynomialCoefficients, Protocol::PolynomialExchange],
        &Planes { dealt, results: polynomials.len(), bits: x.bits() },
        [x.own(), x.next()],
        |message, [own, next]| {
            let mut c: Vec<_> = own.iter().zip(next).map(|(own, next)| own ^ next).collect();
            add_coefficients(message, &c, words, polynomials);
            wipe(&mut c);
        },
        |found, coefficients, d, first| add_values(found, coefficients, d, words, polynomials, first),
    )
}

vectorised! {
    /// Exclusive-ors the coefficients of all polynomials into `message`, a plane each, for the dealer's c.
    fn add_coefficients(message: &mut [u64], c: &[u64], words: usize, polynomials: &[Polynomial]) {
        let mut scratch = [0; PIECE];
        for start in (0..words).step_by(PIECE) {
            let piece = start..words.min(start + PIECE);
            let mut sums = message.chunks_exact_mut(words);
            for products in polynomials.iter().flat_map(|polynomial| polynomial.coefficients.values()) {
                let sum = sums.next().expect("the message has a plane for each coefficient");
                for product in products {
                    let factors = product.iter().map(|plane| &c[plane * words..][piece.clone()]);
                    add_product(&mut sum[piece.clone()], factors, &mut scratch);
                }
            }
        }
    }

    /// Exclusive-ors one evaluator's terms of all polynomials into `found`: the coefficients in `table`, masked
    /// ones or masks, times the products of d, and with `whole` the products of whole sets.
    fn add_values(
        found: &mut [u64],
        table: &[u64],
        d: &[u64],
        words: usize,
        polynomials: &[Polynomial],
        whole: bool,
    ) {
        let mut scratch = [0; PIECE];
        for start in (0..words).step_by(PIECE) {
            let piece = start..words.min(start + PIECE);
            let plane = |plane: &usize| &d[plane * words..][piece.clone()];
            let mut coefficients = table.chunks_exact(words);
            for (value, polynomial) in found.chunks_exact_mut(words).zip(polynomials) {
                let value = &mut value[piece.clone()];
                for set in polynomial.coefficients.keys() {
                    let coefficient =
                        coefficients.next().expect("the table has a plane for each coefficient");
                    let factors = std::iter::once(&coefficient[piece.clone()]).chain(set.iter().map(plane));
                    add_product(value, factors, &mut scratch);
                }
                for product in polynomial.products.iter().filter(|_| whole) {
                    add_product(value, product.iter().map(plane), &mut scratch);
                }
            }
        }
    }
}

/// Exclusive-ors the product of at least one factor into `sum`.
#[inline(always)]
fn add_product<'a>(
    sum: &mut [u64],
    mut factors: impl Iterator<Item = &'a [u64]>,
    scratch: &mut [u64; PIECE],
) {
    let product = &mut scratch[..sum.len()];
    product.copy_from_slice(factors.next().expect("a product has a factor"));
    for factor in factors {
        product.iter_mut().zip(factor).for_each(|(product, factor)| *product &= factor);
    }
    sum.iter_mut().zip(product).for_each(|(sum, product)| *sum ^= *product);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::local::{reconstruct_bits, run, share_bits};

    /// Some products of up to five of six planes.
    fn products() -> impl Strategy<Value = Vec<Vec<usize>>> {
        let product = proptest::sample::subsequence((0..6usize).collect::<Vec<_>>(), 1..=5);
        prop::collection::vec(product, 1..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn polynomials_have_their_values(
            seed: u64,
            polynomials in prop::collection::vec(products(), 1..5),
            values in prop::collection::vec(any::<[bool; 6]>(), 1..300),
            dealer in 0usize..3,
        ) {
            let count = values.len();
            let planes: Vec<bool> = (0..6).flat_map(|plane| values.iter().map(move |value| value[plane])).collect();
            let parts = share_bits(seed, &planes);
            let mut parts = parts.map(|part| Some(part.into_planes(6, count)));
            let parts = std::array::from_fn::<_, 3, _>(|i| std::sync::Mutex::new(parts[i].take()));
            let results = run(seed, |party| {
                let x = parts[party.index().number()].lock().unwrap().take().unwrap();
                let polynomials: Vec<_> = polynomials.iter().cloned().map(Polynomial::sum).collect();
                evaluate(party, PartyIndex::in_turn(dealer), &x, &polynomials).expect("local")
            });
            for (found, products) in reconstruct_bits(&results).iter().zip(&polynomials) {
                for (found, value) in found.iter().zip(&values) {
                    let product = |planes: &Vec<usize>| planes.iter().all(|&plane| value[plane]);
                    let expected = products.iter().filter(|planes| product(planes)).count() % 2 == 1;
                    prop_assert_eq!(*found, expected);
                }
            }
        }
    }

    #[test]
    fn an_and_of_n_bits_takes_one_coefficient_for_each_set_but_the_whole() {
        for bits in 1..6 {
            assert_eq!(Polynomial::product((0..bits).collect()).dealt_bits(), (1 << bits) - 1);
        }
        // The same set in two products has one coefficient.
        let carry = Polynomial::sum(vec![vec![0], vec![1, 2], vec![1, 3, 4]]);
        assert_eq!(carry.dealt_bits(), 1 + 2 + 5);
    }
}
