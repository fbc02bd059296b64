//! AND of boolean shares.

use crate::bits;
use crate::channel::{Channel, Neighbour, Protocol};
use crate::party::{MpcError, Party, PartyIndex};
use crate::shares::BitShares;

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
    let mut own = party.prss.own.words(step, 0, x.own().len());
    party.prss.next.mask_words(step, 0, &mut own);
    let operands = x.own().iter().zip(x.next()).zip(y.own().iter().zip(y.next()));
    for (result, ((x0, x1), (y0, y1))) in own.iter_mut().zip(operands) {
        *result ^= (x0 & (y0 ^ y1)) ^ (x1 & y0);
    }
    let packed = bits::pack(own.clone(), planes, count);
    party.send(Neighbour::Previous, step, &packed)?;
    let received = party.receive(Neighbour::Next, step, packed.len())?;
    Ok(BitShares::new(planes, count, own, bits::unpack(received, planes, count)))
}
