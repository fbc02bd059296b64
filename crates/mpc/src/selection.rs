//! Bit times value: selection, and with the complement of the sign, ReLU.

use concilium_ring::Element;

use crate::channel::{Channel, Protocol};
use crate::dealt;
use crate::party::{MpcError, Party, PartyIndex};
use crate::shares::{BitShares, Shares};
use crate::vectorised::vectorised;

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
    select(party, dealer, bits, x, ELEMENTS, fill_tables, looked_up)
}

/// Arithmetic shares of `(1 - b) x`, as [`select_unless`], where `x` is *known modulo 2^m* only and the
/// result modulo the whole 2^k: what a [rescaling](crate::linear::rescale) without headroom leaves, and
/// what the next product takes.
///
/// Before: the components of `x` add up, modulo 2^m, to a number of which the selected ones, those whose
/// bit is not set, lie in 0 to 2^(m-1) - 1; m is `known_bits`. With the
/// [sign](crate::comparison::sign) in a window of at most m bits as `bits` that holds for every number
/// with |x| < 2^(m-1), and the result is its ReLU. After: a replicated sharing of the selected numbers and
/// zeros, modulo 2^k, exact.
///
/// # Protocol
/// As [`select_unless`], with u and v reduced to 0 to 2^m - 1 by those who know them. As integers
/// u + v is x, or x + 2^m where it wraps, for the x that is selected; and because x < 2^(m-1) it does not
/// wrap exactly when neither u nor v has its top bit set. With α = \[u < 2^(m-1)\], which the dealer
/// knows, and β = \[v < 2^(m-1)\], which the evaluators know,
///
/// s x = s (u - 2^m) + s v + 2^m (s α) β, where s = c exclusive-or d is the factor.
///
/// 1. The dealer sends four elements under masks: the table c (u - 2^m), (1 - c)(u - 2^m) over d; c; and
///    the two bits c α, (1 - c) α, one in each half of an element. Halves suffice because a bit counts
///    2^m, of which only k - m <= k/2 bits lie in the ring.
/// 2. Each evaluator looks up at d, adds 2^m times its half at d where β is set, and its term of s v. They
///    exchange their terms as for [`select_unless`].
///
/// # Cost
/// Two rounds; four elements from the dealer and one from each evaluator for each value, in Z_2^32
/// 24 bytes, where [`select_unless`] takes 40 in Z_2^64. No round and no message of its own for the
/// widening.
///
/// Semi-honest, one corruption, perfect: all messages are masked by streams that their receivers do not
/// know. No failure, whatever the shares are. Source: the wrap of a number whose top bit is known, SIRNN
/// (Rathee et al., IEEE S&P 2021, "MSB-to-wrap"), as in [`truncation`](crate::truncation); that it joins
/// the table of the selection is new here.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If `bits` is not one plane with a bit for every element, or `known_bits` is not between half of the
/// ring's bits and one less than all.
pub fn widen_unless<E: Element, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    bits: &BitShares,
    x: &Shares<E>,
    known_bits: u32,
) -> Result<Shares<E>, MpcError> {
    assert!((E::BITS / 2..E::BITS).contains(&known_bits), "the known bits do not fit the ring");
    let fill = |message: &mut [E], x: [&[E]; 2], bits: [&[u64]; 2]| {
        fill_widening_tables(message, x, bits, known_bits);
    };
    let look_up = |terms: &mut [E], table: &[E], v: &[E], bits: &[u64], first: bool| {
        widening_looked_up(terms, table, v, bits, first, known_bits);
    };
    select(party, dealer, bits, x, WIDENING_ELEMENTS, fill, look_up)
}

/// Elements that the dealer of [`select_unless`] sends for each value.
pub(crate) const ELEMENTS: usize = 3;

/// Elements that the dealer of [`widen_unless`] sends for each value.
pub(crate) const WIDENING_ELEMENTS: usize = 4;

/// Both selections: `fill` puts the dealer's tables over masks, `look_up` gives an evaluator's terms of its
/// table, its v and its bits, and whether it is the first.
fn select<E: Element, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    bits: &BitShares,
    x: &Shares<E>,
    elements: usize,
    fill: impl Fn(&mut [E], [&[E]; 2], [&[u64]; 2]),
    look_up: impl Fn(&mut [E], &[E], &[E], &[u64], bool),
) -> Result<Shares<E>, MpcError> {
    assert_eq!((bits.planes(), bits.bits()), (1, x.len()), "one bit is needed for each element");
    dealt::elements(
        party,
        dealer,
        [Protocol::SelectionTables, Protocol::SelectionExchange],
        elements,
        x,
        |message, x| fill(message, x, [bits.own(), bits.next()]),
        |terms, table, v, first| {
            look_up(terms, table, v, if first { bits.next() } else { bits.own() }, first);
        },
    )
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

/// A number reduced to 0 to 2^`bits` - 1.
#[inline(always)]
fn reduced<E: Element>(value: E, bits: u32) -> E {
    E::from_unsigned(value.to_unsigned() & ((1 << bits) - 1))
}

/// 1 for a reduced number below 2^(`bits` - 1), else 0.
#[inline(always)]
fn is_low<E: Element>(value: E, bits: u32) -> u64 {
    value.to_unsigned() >> (bits - 1) ^ 1
}

vectorised! {
    /// The dealer's tables of a widening selection, over the masks that `message` holds: (1 - b)(u - 2^m) for
    /// an evaluators' bit of 0, for one of 1, the factor c, and both of (1 - b) α in the halves of an element.
    fn fill_widening_tables<E: Element>(
        message: &mut [E],
        x: [&[E]; 2],
        bits: [&[u64]; 2],
        known_bits: u32,
    ) {
        let count = x[0].len();
        let (low, half) = ((1 << (E::BITS / 2)) - 1, E::BITS / 2);
        let modulus = E::power_of_two(known_bits);
        let (at_zero, rest) = message.split_at_mut(count);
        let (at_one, rest) = rest.split_at_mut(count);
        let (factor, wraps) = rest.split_at_mut(count);
        let tables = at_zero.chunks_mut(64).zip(at_one.chunks_mut(64));
        let tables = tables.zip(factor.chunks_mut(64)).zip(wraps.chunks_mut(64));
        let components = x[0].chunks(64).zip(x[1].chunks(64));
        let words = bits[0].iter().zip(bits[1]);
        for (((((at_zero, at_one), factor), wraps), (own, next)), (own_bits, next_bits)) in
            tables.zip(components).zip(words)
        {
            let bits = !(own_bits ^ next_bits);
            let length = own.len();
            let (at_zero, at_one) = (&mut at_zero[..length], &mut at_one[..length]);
            let (factor, wraps) = (&mut factor[..length], &mut wraps[..length]);
            let next = &next[..length];
            for i in 0..length {
                let u = reduced(own[i] + next[i], known_bits);
                let c = bits >> i & 1;
                let alpha = is_low(u, known_bits);
                let selected = kept(u - modulus, c);
                at_zero[i] = selected - at_zero[i];
                at_one[i] = u - modulus - selected - at_one[i];
                factor[i] = E::from_unsigned(c) - factor[i];
                let mask = wraps[i].to_unsigned();
                let wrap_at_zero = (alpha & c).wrapping_sub(mask & low) & low;
                let wrap_at_one = (alpha & (c ^ 1)).wrapping_sub(mask >> half) & low;
                wraps[i] = E::from_unsigned(wrap_at_zero | wrap_at_one << half);
            }
        }
    }

    /// One evaluator's terms of a widening selection.
    fn widening_looked_up<E: Element>(
        terms: &mut [E],
        table: &[E],
        v: &[E],
        bits: &[u64],
        first: bool,
        known_bits: u32,
    ) {
        let modulus = E::power_of_two(known_bits);
        let (at_zero, rest) = table.split_at(v.len());
        let (at_one, rest) = rest.split_at(v.len());
        let (factor, wraps) = rest.split_at(v.len());
        let tables = at_zero.chunks(64).zip(at_one.chunks(64)).zip(factor.chunks(64)).zip(wraps.chunks(64));
        for (((terms, (((at_zero, at_one), factor), wraps)), v), bits) in
            terms.chunks_mut(64).zip(tables).zip(v.chunks(64)).zip(bits)
        {
            let length = terms.len();
            let (at_zero, at_one) = (&at_zero[..length], &at_one[..length]);
            let (factor, wraps, v) = (&factor[..length], &wraps[..length], &v[..length]);
            for i in 0..length {
                let d = bits >> i & 1;
                let v = reduced(v[i], known_bits);
                let entry = at_zero[i] + kept(at_one[i] - at_zero[i], d);
                // Bits above the half vanish with the factor 2^m.
                let halves = wraps[i];
                let wrap = halves + kept(halves.shift_right(E::BITS / 2) - halves, d);
                let constant = kept(v, d);
                let product = factor[i] * (v - constant - constant);
                let own = if first { constant } else { E::ZERO };
                terms[i] = entry + product + kept(wrap * modulus, is_low(v, known_bits)) + own;
            }
        }
    }
}
