//! Values of the models under way: columns of matrices that several models share.

use std::ops::Range;
use std::rc::Rc;

use concilium_mpc::Shares;
use concilium_ring::Element;
use ndarray::{ArrayView2, s};

/// Columns of a shared matrix, `[rows, columns]`. A batch gives one matrix for all of its steps, which
/// is freed with the last value in it, so that results need not be copied apart.
#[derive(Clone)]
pub(crate) struct Value<E: Element> {
    matrix: Rc<Shares<E>>,
    columns: Range<usize>,
}

impl<E: Element> Value<E> {
    /// All columns of a matrix.
    pub(crate) fn whole(matrix: Rc<Shares<E>>) -> Self {
        let columns = 0..matrix.dim().1;
        Value { matrix, columns }
    }

    /// The columns of a matrix as values of the given sizes, from left to right.
    pub(crate) fn split(matrix: Rc<Shares<E>>, sizes: &[usize]) -> Vec<Self> {
        let mut start = 0;
        let part = |&size: &usize| {
            let columns = start..start + size;
            start = columns.end;
            Value { matrix: Rc::clone(&matrix), columns }
        };
        sizes.iter().map(part).collect()
    }

    pub(crate) fn rows(&self) -> usize {
        self.matrix.dim().0
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns.len()
    }

    /// Component i of server i.
    pub(crate) fn own(&self) -> ArrayView2<'_, E> {
        self.matrix.own().slice_move(s![.., self.columns.clone()])
    }

    /// Component i + 1 of server i.
    pub(crate) fn next(&self) -> ArrayView2<'_, E> {
        self.matrix.next().slice_move(s![.., self.columns.clone()])
    }

    pub(crate) fn to_shares(&self) -> Shares<E> {
        self.matrix.columns(std::slice::from_ref(&self.columns))
    }
}

/// The values side by side; without a copy where they are so already, as after a rescaling whose
/// results are all compared.
pub(crate) fn join<E: Element>(values: &[Value<E>]) -> Rc<Shares<E>> {
    let mut end = 0;
    let in_place = values.iter().all(|value| {
        let follows = value.columns.start == end && Rc::ptr_eq(&value.matrix, &values[0].matrix);
        end = value.columns.end;
        follows
    });
    if in_place && end == values[0].matrix.dim().1 {
        return Rc::clone(&values[0].matrix);
    }
    let parts: Vec<_> = values.iter().map(|value| (&*value.matrix, value.columns.clone())).collect();
    Rc::new(Shares::side_by_side(values[0].rows(), &parts))
}
