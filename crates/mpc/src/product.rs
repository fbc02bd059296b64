//! Products of shared numbers, without rescaling.

use concilium_ring::Element;
use ndarray::{Array2, ArrayView2};

use crate::channel::{Channel, Neighbour, Protocol};
use crate::party::{MpcError, Party, PartyIndex};
use crate::shares::Shares;

pub(crate) const MESSAGES: [(usize, usize); 3] = [(0, 2), (1, 0), (2, 1)];

/// The products of every row of `x` with the one row of `y`, element by element, in the ring.
///
/// Server i computes x_i y_i + x_i y_{i+1} + x_{i+1} y_i plus its term of a fresh sharing of zero,
/// and sends it to server i - 1; that is component i of the result. No number is truncated, so the
/// product is exact as long as it fits the ring.
///
/// One round, one element from every server for each product. Semi-honest, one corruption, perfect.
/// Source: Araki et al., CCS 2016, section 2.
///
/// # Errors
/// [`MpcError`] when a message is lost or has the wrong length.
///
/// # Panics
/// If `y` is not one row as wide as `x`.
pub fn multiply_rows<E: Element, C: Channel>(
    party: &mut Party<C>,
    x: &Shares<E>,
    y: &Shares<E>,
) -> Result<Shares<E>, MpcError> {
    let shape = x.dim();
    assert_eq!(y.dim(), (1, shape.1), "a row of factors is needed as wide as the matrix");
    let step = party.begin(Protocol::Product, PartyIndex::ALL[0], &MESSAGES);
    let mut own = party.zero_share::<E>(step, 0, x.len());
    for (term, ((row, column), &x0)) in own.iter_mut().zip(x.own().indexed_iter()) {
        let (y0, y1) = (y.own()[(0, column)], y.next()[(0, column)]);
        *term += x0 * (y0 + y1) + x.next()[(row, column)] * y0;
    }
    party.send(Neighbour::Previous, step, &own)?;
    let next = party.receive(Neighbour::Next, step, own.len())?;
    Ok(Shares::from_vectors(shape, own, next))
}

/// The sums of the columns, as one row. No communication.
pub(crate) fn sum_of_rows<E: Element>(x: &Shares<E>) -> Shares<E> {
    x.linear(|all: ArrayView2<'_, E>| {
        Array2::from_shape_fn((1, all.ncols()), |(_, column)| {
            all.column(column).iter().fold(E::ZERO, |sum, &value| sum + value)
        })
    })
}
