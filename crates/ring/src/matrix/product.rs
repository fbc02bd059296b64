//! One product, checked: what every kernel is given.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::panels::Panels;
use crate::element::Element;

/// `out += [left[0] | left[1]] * right`. The shapes fit and no dimension is zero, which the
/// constructor checks and the kernels with unsafe code rely on; the fields are read-only outside.
pub(super) struct Product<'a, E: Element> {
    left: [ArrayView2<'a, E>; 2],
    right: &'a Panels<E>,
    out: ArrayViewMut2<'a, E>,
}

impl<'a, E: Element> Product<'a, E> {
    /// A product, or nothing when there is nothing to add.
    ///
    /// # Panics
    /// If the shapes do not fit each other.
    pub(super) fn new(
        left: [ArrayView2<'a, E>; 2],
        right: &'a Panels<E>,
        out: ArrayViewMut2<'a, E>,
    ) -> Option<Self> {
        let rows = left[0].nrows();
        assert_eq!(left[1].nrows(), rows, "the two left operands have different numbers of rows");
        assert_eq!(left[0].ncols() + left[1].ncols(), right.rows(), "inner dimensions differ");
        assert_eq!(out.dim(), (rows, right.columns()), "the result has another shape");
        let empty = rows == 0 || right.rows() == 0 || right.columns() == 0;
        (!empty).then_some(Product { left, right, out })
    }

    pub(super) fn left(&self) -> &[ArrayView2<'a, E>; 2] {
        &self.left
    }

    pub(super) fn right(&self) -> &'a Panels<E> {
        self.right
    }

    pub(super) fn out(&mut self) -> &mut ArrayViewMut2<'a, E> {
        &mut self.out
    }

    pub(super) fn rows(&self) -> usize {
        self.out.nrows()
    }

    /// Whether the elements of a row of the result are adjacent in memory.
    pub(super) fn has_adjacent_columns(&self) -> bool {
        self.out.ncols() == 1 || self.out.strides()[1] == 1
    }
}
