//! Whether this machine computes what the protocols rely on: known answers, checked when a server starts.
//!
//! A processor or a build whose vector instructions or AES are wrong would give wrong answers, or masks
//! that do not cancel, on one server, and nobody could tell which. Here it says so itself, before it serves.

use aes::Aes128;
use concilium_ring::{Element, Z32, Z64};
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use ndarray::{Array2, ArrayView2};
use thiserror::Error;

use crate::channel::{Protocol, Step};
use crate::input::{Component, SEED_BYTES};
use crate::linear::SharedMatrix;
use crate::prss::{PairwiseKeys, Prss};

/// What this machine computes wrongly.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{what} on this machine: do not run a server on it, or build the program for its processor")]
pub struct SelfCheckError {
    /// What is wrong.
    pub what: &'static str,
}

/// AES-256 and AES-128 of the zero block under the zero key: AESAVS known-answer tests, NIST.
const AES_256: [u8; 16] =
    [0xdc, 0x95, 0xc0, 0x78, 0xa2, 0x40, 0x89, 0x89, 0xad, 0x48, 0xa2, 0x14, 0x92, 0x84, 0x20, 0x87];
const AES_128: [u8; 16] =
    [0x66, 0xe9, 0x4b, 0xd4, 0xef, 0x8a, 0x2c, 0x3b, 0x88, 0x4c, 0xfa, 0x59, 0xca, 0x34, 0x2b, 0x2e];

/// Shapes of the products that are compared: rows, inner dimension, columns. Odd ones and ones that fill the
/// kernels' blocks.
const PRODUCTS: [(usize, usize, usize); 3] = [(1, 3, 2), (7, 33, 19), (64, 128, 64)];

/// Checks seeds, masks and product kernels against known answers and definitions. Takes milliseconds.
///
/// # Errors
/// [`SelfCheckError`] says what is wrong.
pub fn self_check() -> Result<(), SelfCheckError> {
    let check = |holds: bool, what| if holds { Ok(()) } else { Err(SelfCheckError { what }) };
    let seed = Component::Seed([0; SEED_BYTES]).expand::<Z64>(2).unwrap_or_default();
    check(bytemuck::cast_slice::<Z64, u8>(&seed) == AES_256, "AES-256 gives wrong seeds")?;
    let mut block = [0; 16];
    Ctr128BE::<Aes128>::new(&[0; 16].into(), &[0; 16].into()).apply_keystream(&mut block);
    check(block == AES_128, "AES-128 gives wrong masks")?;
    check(masks_cancel(), "shared masks do not cancel")?;
    check(products_are_right::<Z64>() && products_are_right::<Z32>(), "products of matrices are wrong")
}

/// Whether products with shared matrices are what the definition says.
fn products_are_right<E: Element>() -> bool {
    let random = Component::Seed([1; SEED_BYTES]);
    PRODUCTS.iter().all(|&(rows, inner, columns)| {
        let matrix = |rows: usize, columns: usize| {
            let elements = random.expand::<E>(rows * columns).unwrap_or_default();
            Array2::from_shape_vec((rows, columns), elements).unwrap_or_default()
        };
        let (own, next) = (matrix(inner, columns), matrix(columns, inner).reversed_axes());
        let (x_own, x_next) = (matrix(rows, inner), matrix(inner, rows).reversed_axes());
        let mut product = Array2::from_elem((rows, columns), E::ONE);
        let mut expected = product.clone();
        let shared = SharedMatrix::new(own.view(), next.view());
        shared.multiply_add(x_own.view(), x_next.view(), product.view_mut());
        for (x, w) in [(&x_own, &own), (&x_own, &next), (&x_next, &own)] {
            add_product(x.view(), w.view(), &mut expected);
        }
        product == expected
    })
}

/// The definition of a product.
fn add_product<E: Element>(x: ArrayView2<'_, E>, w: ArrayView2<'_, E>, out: &mut Array2<E>) {
    for ((row, column), sum) in out.indexed_iter_mut() {
        for place in 0..w.nrows() {
            *sum += x[(row, place)] * w[(place, column)];
        }
    }
}

/// Whether the three servers' terms of zero, F(K_i) - F(K_{i+1}), add up to zero, and are not zero.
fn masks_cancel() -> bool {
    let step = Step { sequence: 7, protocol: Protocol::Resharing };
    let key = |server: u8| [server % 3 + 1; 32];
    let mut sums = [Z64::ZERO; 64];
    for server in 0..3 {
        let streams = Prss::new(&PairwiseKeys::new(key(server), key(server + 1)), 5);
        let own = streams.own.elements::<Z64>(step, 0, sums.len());
        let next = streams.next.elements::<Z64>(step, 0, sums.len());
        if own == next {
            return false;
        }
        for (sum, (own, next)) in sums.iter_mut().zip(own.into_iter().zip(next)) {
            *sum = *sum + own - next;
        }
    }
    sums.iter().all(|&sum| sum == Z64::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_machine_passes() {
        assert_eq!(self_check(), Ok(()));
    }

    #[test]
    fn the_definition_is_that_of_a_product() {
        let x = Array2::from_shape_fn((2, 2), |(i, j)| Z64::from_unsigned(10 * i as u64 + j as u64 + 1));
        let mut out = Array2::from_elem((2, 2), Z64::ONE);
        add_product(x.view(), x.view(), &mut out);
        // [1 2; 11 12] squared, plus one.
        assert_eq!(
            out,
            Array2::from_shape_vec((2, 2), [24, 27, 144, 167].map(Z64::from_unsigned).to_vec())
                .expect("a square")
        );
    }
}
