//! Overwriting of an owner's numbers before their memory is given back.

use std::ops::{Deref, DerefMut};

use ndarray::{Array, Dimension};
use zeroize::Zeroize;

/// Overwrites every element of `array` with zero in a way that is not optimised out.
pub(crate) fn erase<T: Zeroize, D: Dimension>(array: &mut Array<T, D>) {
    match array.as_slice_memory_order_mut() {
        Some(elements) => elements.iter_mut().for_each(Zeroize::zeroize),
        None => array.iter_mut().for_each(Zeroize::zeroize),
    }
}

/// An array of real numbers that is overwritten with zero when it is dropped.
///
/// There is no `Debug`: the content is an owner's secret.
#[derive(Clone)]
pub(crate) struct Erasing<D: Dimension>(Array<f64, D>);

impl<D: Dimension> Erasing<D> {
    pub(crate) fn new(array: Array<f64, D>) -> Self {
        Self(array)
    }
}

impl<D: Dimension> Deref for Erasing<D> {
    type Target = Array<f64, D>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<D: Dimension> DerefMut for Erasing<D> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<D: Dimension> Drop for Erasing<D> {
    fn drop(&mut self) {
        erase(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;

    #[test]
    fn every_element_is_overwritten_in_any_layout() {
        let mut standard = Array2::from_elem((3, 4), 7.0);
        erase(&mut standard);
        assert_eq!(standard, Array2::<f64>::zeros((3, 4)));
        // Reversed rows have no contiguous memory in order.
        let mut strided = Array2::from_elem((3, 4), 7_i64).slice_move(s![..;-2, ..;3]);
        erase(&mut strided);
        assert_eq!(strided, Array2::<i64>::zeros((2, 2)));
    }
}
