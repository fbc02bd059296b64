//! Bit times value: selection, and with the complement of the sign, ReLU.

use concilium_ring::Element;

use crate::channel::{Channel, Neighbour, Protocol};
use crate::party::{MpcError, Party, PartyIndex, Seat};
use crate::shares::{BitShares, Shares};
use crate::vectorised::vectorised;

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
    let (own, next) = match party.seat(dealer) {
        Seat::Dealer => {
            let mut message = party.prss.own.elements::<E>(tables, 0, 3 * count);
            fill_tables(&mut message, [x.own_slice(), x.next_slice()], [bits.own(), bits.next()]);
            party.send(Neighbour::Next, tables, message)?;
            (party.prss.own.elements(exchange, 0, count), party.prss.next.elements(exchange, 0, count))
        }
        Seat::FirstEvaluator => {
            let table = party.receive::<E>(Neighbour::Previous, tables, 3 * count)?;
            let mut terms = vec![E::ZERO; count];
            looked_up(&mut terms, &table, x.next_slice(), bits.next(), true);
            let own = party.prss.own.elements::<E>(exchange, 0, count);
            let next = exchange_terms(party, Neighbour::Next, exchange, terms, &own)?;
            (own, next)
        }
        Seat::SecondEvaluator => {
            let masks = party.prss.next.elements::<E>(tables, 0, 3 * count);
            let mut terms = vec![E::ZERO; count];
            looked_up(&mut terms, &masks, x.own_slice(), bits.own(), false);
            let next = party.prss.next.elements::<E>(exchange, 0, count);
            let own = exchange_terms(party, Neighbour::Previous, exchange, terms, &next)?;
            (own, next)
        }
    };
    Ok(Shares::from_vectors(x.dim(), own, next))
}

/// The value for a bit of 1, and 0 for one of 0, without a branch: the bit is secret.
#[inline(always)]
fn kept<E: Element>(value: E, bit: u64) -> E {
    E::from_unsigned(value.to_unsigned() & bit.wrapping_neg())
}

vectorised! {
    /// The dealer's tables, over the masks that `message` holds: (1 - b) u for an evaluators' bit of 0, for
    /// one of 1, and the factor c.
    fn fill_tables<E: Element>(message: &mut [E], x: [&[E]; 2], bits: [&[u64]; 2]) {
        let count = x[0].len();
        let (at_zero, rest) = message.split_at_mut(count);
        let (at_one, factor) = rest.split_at_mut(count);
        let tables = at_zero.chunks_mut(64).zip(at_one.chunks_mut(64)).zip(factor.chunks_mut(64));
        let components = x[0].chunks(64).zip(x[1].chunks(64));
        let words = bits[0].iter().zip(bits[1]);
        for ((((at_zero, at_one), factor), (own, next)), (own_bits, next_bits)) in
            tables.zip(components).zip(words)
        {
            let bits = !(own_bits ^ next_bits);
            let length = own.len();
            let (at_zero, at_one) = (&mut at_zero[..length], &mut at_one[..length]);
            let (factor, next) = (&mut factor[..length], &next[..length]);
            for i in 0..length {
                let u = own[i] + next[i];
                let c = bits >> i & 1;
                let selected = kept(u, c);
                at_zero[i] = selected - at_zero[i];
                at_one[i] = u - selected - at_one[i];
                factor[i] = E::from_unsigned(c) - factor[i];
            }
        }
    }

    /// One evaluator's terms: its entry of the table at d plus its term of (c xor d) v.
    fn looked_up<E: Element>(terms: &mut [E], table: &[E], v: &[E], bits: &[u64], first: bool) {
        let (at_zero, rest) = table.split_at(v.len());
        let (at_one, factor) = rest.split_at(v.len());
        let tables = at_zero.chunks(64).zip(at_one.chunks(64)).zip(factor.chunks(64));
        for (((terms, ((at_zero, at_one), factor)), v), bits) in
            terms.chunks_mut(64).zip(tables).zip(v.chunks(64)).zip(bits)
        {
            let length = terms.len();
            let (at_zero, at_one) = (&at_zero[..length], &at_one[..length]);
            let (factor, v) = (&factor[..length], &v[..length]);
            for i in 0..length {
                let d = bits >> i & 1;
                let entry = at_zero[i] + kept(at_one[i] - at_zero[i], d);
                let constant = kept(v[i], d);
                let product = factor[i] * (v[i] - constant - constant);
                terms[i] = entry + product + if first { constant } else { E::ZERO };
            }
        }
    }
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
    let terms = party.send_and_keep(other, step, terms)?;
    let mut theirs = party.receive::<E>(other, step, terms.len())?;
    theirs.iter_mut().zip(&*terms).for_each(|(their, &term)| *their += term);
    Ok(theirs)
}
