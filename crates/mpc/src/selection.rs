//! Bit times value: selection, and with the complement of the sign, ReLU.

use concilium_ring::Element;

use crate::channel::{Channel, Neighbour, Protocol};
use crate::party::{MpcError, Party, PartyIndex, Seat};
use crate::shares::{BitShares, Shares};

pub(crate) const TABLE_MESSAGES: [(usize, usize); 1] = [(0, 1)];
pub(crate) const EXCHANGE_MESSAGES: [(usize, usize); 2] = [(1, 2), (2, 1)];

/// Arithmetic shares of b x where b is not set, that is `(1 - b) x`, for every element of `x` and
/// its bit in the one plane of `bits`: with the [sign](crate::comparison::sign) as bit this is
/// ReLU.
///
/// # Protocol
/// The dealer knows u = x_h + x_{h+1} and c = 1 + b_h + b_{h+1}, the evaluators v = x_{h+2} and
/// d = b_{h+2}; the factor is c exclusive-or d, and x = u + v.
/// 1. The dealer sends the first evaluator three elements, each under a mask that the second
///    evaluator knows: the table c u, (1 - c) u over d, and c.
/// 2. Each evaluator looks up its table at d and adds its term of (c xor d) v =
///    c (1 - 2d) v + d v. The evaluators exchange their terms under masks that the dealer knows;
///    the sum is component h + 2.
///
/// # Cost
/// Two rounds; three elements from the dealer and one from each evaluator for each value. The
/// dealer receives nothing. The usual form (two masked factors, then a resharing among all three)
/// sends as much, but lets the dealer wait.
///
/// Semi-honest, one corruption, perfect, no failure. Source: the products of a value known to one
/// server with one known to two are from ABY3 (Mohassel and Rindal, CCS 2018, section 5.4.1); the
/// table over d replaces one of them.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If `bits` is not one plane with a bit for every element.
pub fn select_unless<E: Element, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    bits: &BitShares,
    x: &Shares<E>,
) -> Result<Shares<E>, MpcError> {
    assert_eq!((bits.planes(), bits.bits()), (1, x.len()), "one bit is needed for each element");
    let tables = party.begin(Protocol::SelectionTables, dealer, &TABLE_MESSAGES);
    let exchange = party.begin(Protocol::SelectionExchange, dealer, &EXCHANGE_MESSAGES);
    let count = x.len();
    let bit = |words: &[u64], i: usize| words[i / 64] >> (i % 64) & 1;
    let (own, next) = match party.seat(dealer) {
        Seat::Dealer => {
            let mut message = party.prss.own.elements::<E>(tables, 0, 3 * count);
            let (at_zero, rest) = message.split_at_mut(count);
            let (at_one, factor) = rest.split_at_mut(count);
            for (i, (&a, &b)) in x.own_slice().iter().zip(x.next_slice()).enumerate() {
                let u = a + b;
                let c = E::from_unsigned(1 ^ bit(bits.own(), i) ^ bit(bits.next(), i));
                let selected = c * u;
                at_zero[i] = selected - at_zero[i];
                at_one[i] = u - selected - at_one[i];
                factor[i] = c - factor[i];
            }
            party.send(Neighbour::Next, tables, &message)?;
            (party.prss.own.elements(exchange, 0, count), party.prss.next.elements(exchange, 0, count))
        }
        Seat::FirstEvaluator => {
            let table = party.receive::<E>(Neighbour::Previous, tables, 3 * count)?;
            let d = |i| bit(bits.next(), i);
            let terms = looked_up(&table, x.next_slice(), d, true);
            let own = party.prss.own.elements::<E>(exchange, 0, count);
            let next = exchange_terms(party, Neighbour::Next, exchange, terms, &own)?;
            (own, next)
        }
        Seat::SecondEvaluator => {
            let masks = party.prss.next.elements::<E>(tables, 0, 3 * count);
            let d = |i| bit(bits.own(), i);
            let terms = looked_up(&masks, x.own_slice(), d, false);
            let next = party.prss.next.elements::<E>(exchange, 0, count);
            let own = exchange_terms(party, Neighbour::Previous, exchange, terms, &next)?;
            (own, next)
        }
    };
    Ok(Shares::from_vectors(x.dim(), own, next))
}

/// One evaluator's terms: its entry of the table at d plus its term of (c xor d) v.
fn looked_up<E: Element>(table: &[E], v: &[E], d: impl Fn(usize) -> u64, first: bool) -> Vec<E> {
    let count = v.len();
    let (entries, factors) = table.split_at(2 * count);
    (0..count)
        .map(|i| {
            let d = d(i);
            let entry = entries[d as usize * count + i];
            let flipped = if d == 1 { -v[i] } else { v[i] };
            let constant = if first && d == 1 { v[i] } else { E::ZERO };
            entry + factors[i] * flipped + constant
        })
        .collect()
}

/// Masks the terms, exchanges them with the other evaluator and adds both up: component h + 2.
pub(crate) fn exchange_terms<E: Element, C: Channel>(
    party: &mut Party<C>,
    other: Neighbour,
    step: crate::channel::Step,
    mut terms: Vec<E>,
    masks: &[E],
) -> Result<Vec<E>, MpcError> {
    terms.iter_mut().zip(masks).for_each(|(term, &mask)| *term -= mask);
    party.send(other, step, &terms)?;
    let theirs = party.receive::<E>(other, step, terms.len())?;
    terms.iter_mut().zip(theirs).for_each(|(term, their)| *term += their);
    Ok(terms)
}
