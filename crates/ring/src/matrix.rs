//! Matrix products modulo 2^k with one operand packed ahead of time.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod panels;
mod portable;
mod product;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vector;

use ndarray::{ArrayView2, ArrayViewMut2};

pub use self::kernel::{Kernel, SelfCheck, kernel_name, self_check};
use self::panels::Panels;
use self::product::Product;
use crate::element::Element;

/// The right operand of a matrix product, in the memory layout that the kernels share.
///
/// Weights are packed once when a model is loaded and multiplied many times. They are one server's
/// share of a secret: the memory is overwritten when the matrix is dropped, and nothing prints it.
///
/// Memory: an element takes its own size. Columns are filled up to a multiple of 8 (64-bit elements)
/// or 16 (32-bit ones).
pub struct PackedMatrix<E: Element>(Panels<E>);

impl<E: Element> PackedMatrix<E> {
    /// Packs a matrix of any strides.
    pub fn pack(matrix: ArrayView2<'_, E>) -> Self {
        let mut packed = Self::zeros(matrix.nrows(), matrix.ncols());
        packed.add_block(0, 0, matrix);
        packed
    }

    /// A matrix of zeros, to be filled by [`add_block`](Self::add_block).
    pub fn zeros(rows: usize, columns: usize) -> Self {
        PackedMatrix(Panels::zeros(rows, columns))
    }

    /// Adds a block to the elements from `(row, column)` on. Owners whose networks take the same input
    /// lie side by side in one matrix, and the two components of a share one upon the other or added
    /// up, without an unpacked copy of either.
    ///
    /// # Panics
    /// If the block reaches beyond the matrix.
    pub fn add_block(&mut self, row: usize, column: usize, block: ArrayView2<'_, E>) {
        let (rows, columns) = block.dim();
        assert!(row + rows <= self.rows() && column + columns <= self.columns(), "the block lies outside");
        self.0.add(row, column, block);
    }

    /// The number of rows, which is the inner dimension of a product.
    pub fn rows(&self) -> usize {
        self.0.rows()
    }

    /// The number of columns of a product.
    pub fn columns(&self) -> usize {
        self.0.columns()
    }

    /// Bytes of memory that the packed matrix takes.
    pub fn memory_bytes(&self) -> usize {
        self.0.memory_bytes()
    }

    /// Adds `left * self` to `out`, modulo 2^k: `left` is `[m, rows]`, `out` is `[m, columns]`.
    ///
    /// # Panics
    /// If the shapes do not fit each other; callers have checked them.
    pub fn multiply_add(&self, left: ArrayView2<'_, E>, out: ArrayViewMut2<'_, E>) {
        let none = left.reborrow().split_at(ndarray::Axis(1), left.ncols()).1;
        self.multiply_add_with(Kernel::selected(), left, none, out);
    }

    /// Adds `[first | second] * self` to `out`: the sum of two products in one pass over `out`, where
    /// the columns of `first` belong to the upper rows and those of `second` to the lower ones. A
    /// server's term `x_i (W_i + W_{i+1}) + x_{i+1} W_i` of a replicated product is of this form.
    ///
    /// # Panics
    /// If the shapes do not fit each other; callers have checked them.
    pub fn multiply_add_pair(
        &self,
        first: ArrayView2<'_, E>,
        second: ArrayView2<'_, E>,
        out: ArrayViewMut2<'_, E>,
    ) {
        self.multiply_add_with(Kernel::selected(), first, second, out);
    }

    /// [`multiply_add_pair`](Self::multiply_add_pair) by a certain kernel, for tests and benchmarks.
    ///
    /// # Panics
    /// If the shapes do not fit each other.
    pub fn multiply_add_with(
        &self,
        kernel: Kernel,
        first: ArrayView2<'_, E>,
        second: ArrayView2<'_, E>,
        out: ArrayViewMut2<'_, E>,
    ) {
        if let Some(mut product) = Product::new([first.reborrow(), second.reborrow()], &self.0, out) {
            kernel.run(&mut product);
        }
    }
}
