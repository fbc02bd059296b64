//! AND of boolean shares.

use crate::bits;
use crate::channel::{Channel, Neighbour, Protocol, Step};
use crate::party::{MpcError, Party, PartyIndex};
use crate::shares::{BitShares, words_of};
use crate::vectorised::vectorised;

/// The messages of [`and`]: every server sends to its previous neighbour.
pub(crate) const AND_MESSAGES: [(usize, usize); 3] = [(0, 2), (1, 0), (2, 1)];

/// AND of two equally shaped bit matrices, place by place.
///
/// Server i computes `x_i y_i + x_i y_{i+1} + x_{i+1} y_i` plus its term of a fresh sharing of
/// zero, and sends it to server i - 1; that is component i of the result.
///
/// One round; one bit from every server for each AND. Semi-honest, one corruption, perfect: the
/// term of zero makes every message uniform. Source: Araki et al., CCS 2016, section 3.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If the shapes differ.
pub fn and<C: Channel>(party: &mut Party<C>, x: &BitShares, y: &BitShares) -> Result<BitShares, MpcError> {
    let (planes, count) = (x.planes(), x.bits());
    assert_eq!((y.planes(), y.bits()), (planes, count), "operands of AND have different shapes");
    let step = party.begin(Protocol::And, PartyIndex::ALL[0], &AND_MESSAGES);
    let mut own = party.zero_bits(step, 0, x.own().len());
    add_products(&mut own, [x.own(), x.next(), y.own(), y.next()]);
    exchange(party, step, own, planes, count)
}

/// As [`and`], of planes of one matrix: plane p of the result is the AND of the two planes `pairs[p]`.
pub(crate) fn and_planes<C: Channel>(
    party: &mut Party<C>,
    x: &BitShares,
    pairs: &[(usize, usize)],
) -> Result<BitShares, MpcError> {
    let (count, words) = (x.bits(), words_of(x.bits()));
    let step = party.begin(Protocol::And, PartyIndex::ALL[0], &AND_MESSAGES);
    let mut own = party.zero_bits(step, 0, pairs.len() * words);
    for (products, &(left, right)) in own.chunks_exact_mut(words.max(1)).zip(pairs) {
        let [left, right] = [x.range(left), x.range(right)];
        let operands = [&x.own()[left.clone()], &x.next()[left], &x.own()[right.clone()], &x.next()[right]];
        add_products(products, operands);
    }
    exchange(party, step, own, pairs.len(), count)
}

/// Sends this server's terms, which are its component of the products, and receives the other one.
fn exchange<C: Channel>(
    party: &mut Party<C>,
    step: Step,
    own: Vec<u64>,
    planes: usize,
    count: usize,
) -> Result<BitShares, MpcError> {
    let packed = bits::pack(&own, planes, count);
    let length = packed.len();
    party.send(Neighbour::Previous, step, packed)?;
    let received = party.receive(Neighbour::Next, step, length)?;
    Ok(BitShares::new(planes, count, own, bits::unpack(received, planes, count)))
}

vectorised! {
    /// Exclusive-ors this server's terms of the products of x and y, of which it holds the components x_0,
    /// x_1, y_0, y_1.
    fn add_products(terms: &mut [u64], components: [&[u64]; 4]) {
        let [x0, x1, y0, y1] = components.map(|component| &component[..terms.len()]);
        for (i, term) in terms.iter_mut().enumerate() {
            *term ^= (x0[i] & (y0[i] ^ y1[i])) ^ (x1[i] & y0[i]);
        }
    }
}
