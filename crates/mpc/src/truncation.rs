//! Truncation that cannot fail, summed over groups.

use concilium_ring::{Element, Z64};
use ndarray::Array2;

use crate::channel::{Channel, Neighbour, Protocol};
use crate::dealt::DEALER_MESSAGES;
use crate::party::{MpcError, Party, PartyIndex, Seat};
use crate::release::Aggregate;
use crate::shares::{AdditiveShare, Shares};

/// Divides every element by 2^`bits` and adds up over groups: row c of `x`, `[columns, groups *
/// rows]`, holds `groups` consecutive runs of `rows` values, and element (r, c) of the result is the
/// sum over all groups of value r of the run, divided.
///
/// **Every element must lie in 0 to 2^63 - 1, by construction and not by an owner's word.** Then each
/// quotient is rounded down or up, up with a probability equal to the fractional part, and there is no
/// other outcome: [rescaling](crate::linear::rescale) is cheaper by a round but goes wrong with a
/// small probability, after which a bound on a sum no longer holds.
///
/// `largest` is the largest quotient that an element can have, rounded up.
///
/// # Protocol
/// The dealer knows u = x_h + x_{h+1}, the evaluators v = x_{h+2}. As integers u + v is x or x + 2^64.
/// With x < 2^63 it is x exactly when neither u nor v has its top bit set: without a wrap both are at
/// most x, and with one the larger is at least 2^63. So with a = \[u < 2^63\], which the dealer knows,
/// and b = \[v < 2^63\], which the evaluators know,
///
/// x / 2^bits = (u >> bits) + (v >> bits) - 2^(64-bits) (1 - a b) + carry out of the low bits.
///
/// A constant one stands for the carry: one too high exactly when there is none, that is with
/// probability (p + 1) / 2^bits for p the low bits of x. The dealer sends 2^(64-bits) a under a mask
/// to the first evaluator; the second knows the mask.
///
/// # Cost
/// One round, one element for each value from the dealer to the first evaluator; nothing else. The
/// sums stay additive, see [`sum_bits`](crate::conversion::sum_bits).
///
/// # Security
/// Semi-honest, one corruption, perfect: the message is masked by a stream that its receiver does not
/// know. The rounding depends on the shares, as in [rescaling](crate::linear::rescale); quotients are
/// never opened, only sums after noise.
///
/// # Source
/// The wrap bit of a value whose top bit is known: SIRNN (Rathee et al., IEEE S&P 2021, "MSB-to-wrap").
/// That one summand is known to two servers makes its AND one masked element here.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If `x` does not have `groups * rows` columns, or `bits` is not 1 to 63.
pub fn sum_truncated<C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    x: &Shares<Z64>,
    bits: u32,
    largest: u64,
    groups: usize,
    rows: usize,
) -> Result<Aggregate<Z64>, MpcError> {
    let (columns, values) = x.dim();
    assert_eq!(values, groups * rows, "the matrix holds another number of values");
    assert!((1..64).contains(&bits), "a quotient keeps at least one bit and loses one");
    let step = party.begin(Protocol::ExactTruncation, dealer, &DEALER_MESSAGES);
    let count = x.len();
    let modulus = Z64::power_of_two(64 - bits);
    let positive = |value: Z64| value.0 >> 63 ^ 1;
    let mut sums = Array2::from_elem((rows, columns), Z64::ZERO);
    let mut add = |place: usize, term: Z64| sums[(place % values % rows, place / values)] += term;
    match party.seat(dealer) {
        Seat::Dealer => {
            let mut message = party.prss.own.elements::<Z64>(step, 0, count);
            for (i, masked) in message.iter_mut().enumerate() {
                let u = x.own_slice()[i] + x.next_slice()[i];
                *masked = modulus * Z64::from_unsigned(positive(u)) - *masked;
                add(i, u.shift_right(bits));
            }
            party.send(Neighbour::Next, step, message)?;
        }
        Seat::FirstEvaluator => {
            let factors = party.receive::<Z64>(Neighbour::Previous, step, count)?;
            for (i, (&v, factor)) in x.next_slice().iter().zip(factors).enumerate() {
                let quotient = v.shift_right(bits) + Z64::ONE - modulus;
                add(i, quotient + factor * Z64::from_unsigned(positive(v)));
            }
        }
        Seat::SecondEvaluator => {
            let factors = party.prss.next.elements::<Z64>(step, 0, count);
            for (i, (&v, factor)) in x.own_slice().iter().zip(factors).enumerate() {
                add(i, factor * Z64::from_unsigned(positive(v)));
            }
        }
    }
    Ok(Aggregate::new(AdditiveShare(sums), largest.saturating_mul(groups as u64)))
}
