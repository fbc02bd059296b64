//! The meaning of each operation on real numbers and on integers modulo 2^64.

use concilium_ring::{Element, Z32, Z64};
use ndarray::{Array1, Array2, ArrayView2, ArrayView3, Axis, Zip, linalg::general_mat_mul, s};
use zeroize::Zeroize;

use super::{Affine, Function, MatrixProduct, Operation, Weights, uses};

/// Numbers of the gathered windows that are held at a time.
const WINDOW_ELEMENTS: usize = 1 << 20;

/// What sums with integer factors are taken of: numbers, their components, their bounds.
pub trait Linear: Copy {
    /// The neutral element of addition.
    const ZERO: Self;

    /// Sum, modulo 2^64 for integers, modulo the ring's modulus for its elements.
    #[must_use]
    fn plus(self, other: Self) -> Self;

    /// Product with a public integer, likewise.
    #[must_use]
    fn times_integer(self, factor: i64) -> Self;
}

/// A kind of number that a program is evaluated on.
pub trait Number: Linear + PartialOrd + Zeroize {
    /// Product, modulo 2^64 for integers.
    #[must_use]
    fn times(self, other: Self) -> Self;

    /// Product of two matrices, modulo 2^64 for integers.
    fn product(left: ArrayView2<'_, Self>, right: ArrayView2<'_, Self>) -> Array2<Self>;

    /// The number 1, at scale f for integers with `fractional_bits` f.
    fn one(fractional_bits: u32) -> Self;

    /// A function of each number: the function itself for real numbers, its pieces for integers with
    /// `fractional_bits` f, at scale 2f.
    fn function(function: Function, values: ArrayView2<'_, Self>, fractional_bits: u32) -> Array2<Self>;
}

impl Linear for f64 {
    const ZERO: Self = 0.0;

    fn plus(self, other: Self) -> Self {
        self + other
    }

    fn times_integer(self, factor: i64) -> Self {
        self * factor as f64
    }
}

impl Linear for i64 {
    const ZERO: Self = 0;

    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }

    fn times_integer(self, factor: i64) -> Self {
        self.wrapping_mul(factor)
    }
}

/// Elements of the rings. (One implementation for all kinds of elements would exclude those for other numbers.)
macro_rules! implement_linear {
    ($($element:ty),*) => {$(
        impl Linear for $element {
            const ZERO: Self = <$element as Element>::ZERO;

            fn plus(self, other: Self) -> Self {
                self + other
            }

            fn times_integer(self, factor: i64) -> Self {
                self * <$element>::from_signed(factor)
            }
        }
    )*};
}

implement_linear!(Z32, Z64);

impl Number for f64 {
    fn times(self, other: Self) -> Self {
        self * other
    }

    fn product(left: ArrayView2<'_, Self>, right: ArrayView2<'_, Self>) -> Array2<Self> {
        let mut product = Array2::zeros((left.nrows(), right.ncols()));
        general_mat_mul(1.0, &left, &right, 0.0, &mut product);
        product
    }

    fn one(_: u32) -> Self {
        1.0
    }

    fn function(function: Function, values: ArrayView2<'_, Self>, _: u32) -> Array2<Self> {
        values.mapv(|value| function.exact(value))
    }
}

impl Number for i64 {
    fn times(self, other: Self) -> Self {
        self.wrapping_mul(other)
    }

    fn product(left: ArrayView2<'_, Self>, right: ArrayView2<'_, Self>) -> Array2<Self> {
        let mut product: Array2<Self> = Array2::zeros((left.nrows(), right.ncols()));
        for (row, mut sums) in left.outer_iter().zip(product.outer_iter_mut()) {
            for (&value, weights) in row.iter().zip(right.outer_iter()) {
                for (sum, &weight) in sums.iter_mut().zip(weights) {
                    *sum = sum.wrapping_add(value.wrapping_mul(weight));
                }
            }
        }
        product
    }

    fn one(fractional_bits: u32) -> Self {
        1 << fractional_bits
    }

    fn function(function: Function, values: ArrayView2<'_, Self>, fractional_bits: u32) -> Array2<Self> {
        let pieces = function.pieces(fractional_bits);
        values.mapv(|value| pieces.at(value))
    }
}

/// `values` `[rows, inputs]` through an affine step: `[rows, outputs]`, not rescaled.
///
/// # Panics
/// When the weights or the values have other shapes than the step.
pub fn affine<T: Number>(affine: &Affine, weights: &Weights<T>, values: ArrayView2<'_, T>) -> Array2<T> {
    assert_eq!(values.ncols(), affine.inputs(), "columns of the values");
    let matrices: ArrayView3<'_, T> = weights.matrices.view();
    let rows = values.nrows();
    let mut outputs = if affine.is_dense() {
        T::product(values, matrices.index_axis(Axis(0), 0))
    } else {
        let mut outputs = Array2::from_elem((rows, affine.outputs()), T::ZERO);
        let chunk = (WINDOW_ELEMENTS / (rows * affine.inner).max(1)).max(1);
        for group in 0..affine.groups {
            for start in (0..affine.positions).step_by(chunk) {
                let positions = start..(start + chunk).min(affine.positions);
                let windows = affine.windows(group, positions.clone(), values, T::ZERO);
                let products = T::product(windows.view(), matrices.index_axis(Axis(0), group));
                for ((line, outer), &product) in products.indexed_iter() {
                    let (row, place) = (line / positions.len(), line % positions.len());
                    outputs[(row, affine.output(group, outer, start + place))] = product;
                }
            }
        }
        outputs
    };
    for mut row in outputs.outer_iter_mut() {
        for (output, value) in row.iter_mut().enumerate() {
            *value = value.plus(weights.bias[affine.channel(output)]);
        }
    }
    outputs
}

/// A [`Gather`](Operation::Gather), [`Sum`](Operation::Sum) or [`Combine`](Operation::Combine) of
/// values `[rows, size]`, or `None` for another operation.
///
/// # Panics
/// When the values do not fit the operation, which [`check`](super::check) excludes.
pub fn linear<T: Linear>(operation: &Operation, values: &[ArrayView2<'_, T>]) -> Option<Array2<T>> {
    let rows = values[0].nrows();
    Some(match operation {
        Operation::Gather(gather) => {
            let sources = gather.sources();
            Array2::from_shape_fn((rows, sources.len()), |(row, column)| {
                sources[column].map_or(T::ZERO, |(value, place)| values[value][(row, place)])
            })
        }
        Operation::Sum(windows) => {
            let affine = Affine::convolution(*windows);
            let mut sums = Array2::from_elem((rows, affine.outputs()), T::ZERO);
            for group in 0..affine.groups {
                for position in 0..affine.positions {
                    let places: Vec<usize> = affine.window(group, position).flatten().collect();
                    for row in 0..rows {
                        let terms = places.iter().map(|&place| values[0][(row, place)]);
                        sums[(row, affine.output(group, 0, position))] = terms.fold(T::ZERO, T::plus);
                    }
                }
            }
            sums
        }
        Operation::Combine { coefficients } => {
            let mut sum = Array2::from_elem(values[0].dim(), T::ZERO);
            for (value, &factor) in values.iter().zip(coefficients) {
                sum.zip_mut_with(value, |sum, &term| *sum = sum.plus(term.times_integer(factor)));
            }
            sum
        }
        _ => return None,
    })
}

/// Adds one number to each channel of `positions` numbers.
pub fn shift<T: Linear>(values: ArrayView2<'_, T>, summands: &[T], positions: usize) -> Array2<T> {
    Array2::from_shape_fn(values.dim(), |(row, column)| {
        values[(row, column)].plus(summands[column / positions])
    })
}

/// `values` `[rows, size]` plus each of `summands`: `[rows, summands * size]`, one summand after the other.
pub fn spread<T: Linear>(values: ArrayView2<'_, T>, summands: &[T]) -> Array2<T> {
    let size = values.ncols();
    Array2::from_shape_fn((values.nrows(), summands.len() * size), |(row, column)| {
        values[(row, column % size)].plus(summands[column / size])
    })
}

/// The products of the matrices of two values, not rescaled.
fn matrix_product<T: Number>(
    product: &MatrixProduct,
    left: ArrayView2<'_, T>,
    right: ArrayView2<'_, T>,
) -> Array2<T> {
    let mut result = Array2::from_elem((left.nrows(), product.sizes()[2]), T::ZERO);
    for row in 0..left.nrows() {
        for group in 0..product.groups {
            let [left_at, right_at, (start, [rows, columns])] = product.matrices(group);
            let factors = [(left.row(row), left_at), (right.row(row), right_at)].map(
                |(numbers, (start, [rows, columns]))| {
                    let numbers = numbers.slice_move(s![start..start + rows * columns]);
                    let matrix = Array1::from_iter(numbers.iter().copied());
                    matrix.into_shape_with_order((rows, columns)).expect("the sizes were checked")
                },
            );
            let matrix = T::product(factors[0].view(), factors[1].view());
            let mut target = result.slice_mut(s![row, start..start + rows * columns]);
            target.iter_mut().zip(matrix).for_each(|(target, number)| *target = number);
        }
    }
    result
}

/// The result of an operation before it is rescaled. `fractional_bits` matters for integers only.
///
/// # Panics
/// When values or weights do not fit the operation, which [`check`](super::check) excludes.
pub fn exact<T: Number>(
    operation: &Operation,
    weights: Option<&Weights<T>>,
    values: &[ArrayView2<'_, T>],
    fractional_bits: u32,
) -> Array2<T> {
    if let Some(result) = linear(operation, values) {
        return result;
    }
    let weights = || weights.expect("the operation has weights");
    let pairwise = |function: fn(T, T) -> T| {
        let mut result = values[0].to_owned();
        Zip::from(&mut result).and(&values[1]).for_each(|result, &other| *result = function(*result, other));
        result
    };
    match operation {
        Operation::Relu => values[0].mapv(|value| if value < T::ZERO { T::ZERO } else { value }),
        Operation::Maximum => pairwise(|left, right| if left < right { right } else { left }),
        Operation::Multiply => pairwise(T::times),
        Operation::MatrixProduct(product) => matrix_product(product, values[0], values[1]),
        Operation::Step => {
            values[0].mapv(|value| if value < T::ZERO { T::ZERO } else { T::one(fractional_bits) })
        }
        Operation::Function(function) => T::function(*function, values[0], fractional_bits),
        Operation::Shift { positions, .. } => {
            shift(values[0], weights().bias.as_slice().expect("a vector is contiguous"), *positions)
        }
        operation => affine(&operation.affine().expect("the others are affine"), weights(), values[0]),
    }
}

/// Evaluates a program: `step(index, inputs)` gives the result of a step. Shows every result to
/// `observe`, and frees a value after its last use. Returns the last value.
///
/// # Panics
/// If there is no step, or one takes a value that is not computed before it.
pub fn run<'a, T: Number>(
    inputs: &[&'a [usize]],
    input: ArrayView2<'a, T>,
    mut step: impl FnMut(usize, &[ArrayView2<'_, T>]) -> Array2<T>,
    mut observe: impl FnMut(usize, &Array2<T>),
) -> Array2<T> {
    let mut left = uses(inputs.iter().copied());
    let mut values: Vec<Option<Array2<T>>> = vec![None];
    for (index, &taken) in inputs.iter().enumerate() {
        let arriving: Vec<ArrayView2<'_, T>> = taken
            .iter()
            .map(|&value| match &values[value] {
                Some(array) => array.view(),
                None => {
                    assert_eq!(value, 0, "a value is freed after its last use");
                    input.view()
                }
            })
            .collect();
        let result = step(index, &arriving);
        observe(index, &result);
        values.push(Some(result));
        for &value in taken {
            left[value] -= 1;
            if left[value] == 0 {
                values[value] = None;
            }
        }
    }
    values.pop().flatten().expect("a program has steps")
}
