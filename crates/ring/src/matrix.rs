//! Matrix products modulo 2^k with one operand packed ahead of time.

mod portable;

use ndarray::{ArrayView2, ArrayViewMut2};
use zeroize::Zeroize;

use crate::element::Element;

/// The right operand of a matrix product, in the memory layout of the kernel that multiplies it.
///
/// Weights are packed once when a model is loaded and multiplied many times. They are one server's
/// share of a secret: the memory is overwritten when the matrix is dropped, and nothing prints it.
pub struct PackedMatrix<E: Element> {
    rows: usize,
    columns: usize,
    panels: Vec<E>,
}

impl<E: Element> PackedMatrix<E> {
    /// Packs a matrix of any strides.
    pub fn pack(matrix: ArrayView2<'_, E>) -> Self {
        let (rows, columns) = matrix.dim();
        PackedMatrix { rows, columns, panels: portable::pack(matrix) }
    }

    /// The number of rows, which is the inner dimension of a product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns of a product.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of memory that the packed matrix takes.
    pub fn memory_bytes(&self) -> usize {
        self.panels.len() * E::BYTES
    }

    /// Adds `left * self` to `out`, modulo 2^k: `left` is `[m, rows]`, `out` is `[m, columns]`.
    ///
    /// # Panics
    /// If the shapes do not fit each other; callers have checked them.
    pub fn multiply_add(&self, left: ArrayView2<'_, E>, out: ArrayViewMut2<'_, E>) {
        assert_eq!(left.ncols(), self.rows, "inner dimensions differ");
        assert_eq!(out.dim(), (left.nrows(), self.columns), "the result has another shape");
        portable::multiply_add(left, &self.panels, out);
    }
}

impl<E: Element> Drop for PackedMatrix<E> {
    fn drop(&mut self) {
        bytemuck::cast_slice_mut::<E, u8>(&mut self.panels).zeroize();
    }
}

#[cfg(test)]
mod tests {
    use std::num::Wrapping;

    use ndarray::{Array2, s};
    use proptest::prelude::*;

    use super::*;
    use crate::element::{Z32, Z64};

    /// A counter-based generator: cases are replayed from the numbers that proptest prints.
    fn noise(seed: u64, index: usize) -> u64 {
        let mut word = seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn random<E: Element>(seed: u64, rows: usize, columns: usize) -> Array2<E> {
        Array2::from_shape_fn((rows, columns), |(i, j)| E::from_unsigned(noise(seed, i * columns + j)))
    }

    fn naive<E: Element>(left: ArrayView2<'_, E>, right: ArrayView2<'_, E>) -> Array2<E> {
        Array2::from_shape_fn((left.nrows(), right.ncols()), |(i, j)| {
            (0..left.ncols()).fold(E::ZERO, |sum, k| sum + left[(i, k)] * right[(k, j)])
        })
    }

    fn agrees<E: Element + std::fmt::Debug>(seed: u64, m: usize, k: usize, n: usize) {
        let left = random::<E>(seed, m, k);
        let right = random::<E>(seed ^ 1, k, n);
        let start = random::<E>(seed ^ 2, m, n);
        let mut out = start.clone();
        PackedMatrix::pack(right.view()).multiply_add(left.view(), out.view_mut());
        let mut expected = naive(left.view(), right.view());
        expected.zip_mut_with(&start, |sum, &first| *sum += first);
        assert_eq!(out, expected, "shape {m} x {k} x {n}, seed {seed}");
    }

    proptest! {
        #[test]
        fn product_agrees_with_the_definition(seed: u64, m in 0usize..20, k in 0usize..70, n in 0usize..40) {
            agrees::<Z64>(seed, m, k, n);
            agrees::<Z32>(seed, m, k, n);
        }
    }

    #[test]
    fn strided_operands_are_taken() {
        let (wide, tall) = (random::<Z64>(3, 9, 40), random::<Z64>(4, 21, 26));
        let (left, right) = (wide.slice(s![.., 7..20]), tall.slice(s![..;-1, ..]).reversed_axes());
        let right = right.slice(s![..13, ..]);
        let mut whole = Array2::from_elem((9, 60), Wrapping(0));
        let columns = right.ncols();
        PackedMatrix::pack(right).multiply_add(left, whole.slice_mut(s![.., 30..30 + columns]));
        assert_eq!(whole.slice(s![.., 30..30 + columns]), naive(left, right));
        assert!(whole.slice(s![.., ..30]).iter().all(|element| *element == Wrapping(0)));
    }
}
