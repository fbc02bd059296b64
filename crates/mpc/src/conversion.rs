//! From boolean votes to an arithmetic sum.

use concilium_ring::Element;
use ndarray::Array2;

use crate::channel::{Channel, Neighbour, Protocol};
use crate::dealt::DEALER_MESSAGES;
use crate::party::{MpcError, Party, PartyIndex, Seat};
use crate::release::Aggregate;
use crate::shares::{AdditiveShare, BitShares};

/// Adds up bits over groups: plane c of `bits` holds bits for `groups` consecutive runs of `rows`
/// values, and element (r, c) of the result is the sum of bit r over all groups. With one-hot
/// votes in the planes, owners as groups and queries as rows this is the histogram of votes.
///
/// # Protocol
/// The dealer knows c = b_h + b_{h+1}, the evaluators know d = b_{h+2}; b = c + d (1 - 2c). The
/// dealer sends 1 - 2c under a mask r to the first evaluator; the second knows r. The terms are
/// c, d ((1 - 2c) - r) and d r. Each server adds its terms up before anything else is sent.
///
/// # Cost
/// One round, one element for each bit from the dealer to the first evaluator; nothing else. The
/// sums stay additive: resharing them is the work of the noise injection, or of
/// [`reshare`](Aggregate::reshare) where they are computed with first.
///
/// Semi-honest, one corruption, perfect, no failure. Source: as for
/// [selection](crate::selection::select_unless).
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If the planes do not hold `groups * rows` bits.
pub fn sum_bits<E: Element, C: Channel>(
    party: &mut Party<C>,
    dealer: PartyIndex,
    bits: &BitShares,
    groups: usize,
    rows: usize,
) -> Result<Aggregate<E>, MpcError> {
    let (planes, count) = (bits.planes(), bits.bits());
    assert_eq!(count, groups * rows, "the planes hold another number of bits");
    let step = party.begin(Protocol::BitConversion, dealer, &DEALER_MESSAGES);
    let bit = |words: &[u64], plane: usize, i: usize| words[bits.range(plane)][i / 64] >> (i % 64) & 1;
    let mut sums = Array2::from_elem((rows, planes), E::ZERO);
    match party.seat(dealer) {
        Seat::Dealer => {
            let mut message = party.prss.own.elements::<E>(step, 0, planes * count);
            for (plane, masked) in message.chunks_exact_mut(count.max(1)).enumerate() {
                for (i, masked) in masked.iter_mut().enumerate() {
                    let c = bit(bits.own(), plane, i) ^ bit(bits.next(), plane, i);
                    *masked = E::from_signed(1 - 2 * c as i64) - *masked;
                    sums[(i % rows, plane)] += E::from_unsigned(c);
                }
            }
            party.send(Neighbour::Next, step, message)?;
        }
        seat => {
            let (factors, d) = if seat == Seat::FirstEvaluator {
                (party.receive::<E>(Neighbour::Previous, step, planes * count)?, bits.next())
            } else {
                (party.prss.next.elements::<E>(step, 0, planes * count), bits.own())
            };
            for (plane, factors) in factors.chunks_exact(count.max(1)).enumerate() {
                for (i, &factor) in factors.iter().enumerate() {
                    if bit(d, plane, i) == 1 {
                        sums[(i % rows, plane)] += factor;
                    }
                }
            }
        }
    }
    Ok(Aggregate::new(AdditiveShare(sums), groups as u64))
}
