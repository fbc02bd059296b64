//! Folding of expressions of constants, such as the shape arithmetic that exporters write for
//! `view` and `flatten`.

use ndarray::{ArrayD, Axis, IxDyn, Zip};

use super::{
    ImportError, MAXIMUM_ELEMENTS, MAXIMUM_RANK,
    budget::Budget,
    error::quoted,
    value::{Failure, Integer, Value, list, mismatch, normalise_axis, unsupported},
};
use crate::erase::Erasing;

/// An elementwise operation of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
}

impl Arithmetic {
    fn floats(self, left: f64, right: f64) -> f64 {
        match self {
            Self::Add => left + right,
            Self::Subtract => left - right,
            Self::Multiply => left * right,
            Self::Divide => left / right,
        }
    }

    fn integers(self, left: i64, right: i64) -> Option<i64> {
        match self {
            Self::Add => left.checked_add(right),
            Self::Subtract => left.checked_sub(right),
            Self::Multiply => left.checked_mul(right),
            Self::Divide => left.checked_div(right),
        }
    }
}

/// Shape that two shapes broadcast to, if they do.
pub(super) fn common_shape(left: &[usize], right: &[usize]) -> Option<Vec<usize>> {
    let rank = left.len().max(right.len());
    let dimension = |shape: &[usize], position: usize| {
        (position + shape.len()).checked_sub(rank).map_or(1, |index| shape[index])
    };
    (0..rank)
        .map(|position| match (dimension(left, position), dimension(right, position)) {
            (one, other) if one == other => Some(one),
            (1, other) => Some(other),
            (one, 1) => Some(one),
            _ => None,
        })
        .collect()
}

/// `left` and `right` combined elementwise.
pub(super) fn arithmetic(
    operation: Arithmetic,
    left: &Value,
    right: &Value,
    node: &str,
    budget: &mut Budget,
) -> Result<Value, Failure> {
    match (left, right) {
        (Value::Float(left), Value::Float(right)) => {
            if operation == Arithmetic::Divide {
                refuse_zero(right, node)?;
            }
            let result = broadcast(left, right, 0.0, node, budget, |a, b| Some(operation.floats(a, b)))?;
            Ok(Value::float(result))
        }
        (Value::Integer(left), Value::Integer(right)) => {
            let result = broadcast(left, right, Integer::Batch, node, budget, |a, b| match (a, b) {
                (Integer::Known(a), Integer::Known(b)) => operation.integers(a, b).map(Integer::Known),
                _ => None,
            })?;
            Ok(Value::integer(result))
        }
        _ => mismatch(
            node,
            "two constants of one element type",
            format!("{} and {}", left.description(), right.description()),
        ),
    }
}

/// Refuses a divisor that is zero somewhere.
pub(super) fn refuse_zero(divisor: &Erasing<IxDyn>, node: &str) -> Result<(), ImportError> {
    match divisor.iter().position(|&value| value == 0.0) {
        Some(index) => Err(ImportError::DivisionByZero { node: quoted(node), index }),
        None => Ok(()),
    }
}

fn broadcast<T: Copy>(
    left: &ArrayD<T>,
    right: &ArrayD<T>,
    filler: T,
    node: &str,
    budget: &mut Budget,
    operation: impl Fn(T, T) -> Option<T>,
) -> Result<ArrayD<T>, Failure> {
    let Some(shape) = common_shape(left.shape(), right.shape()) else {
        return mismatch(
            node,
            "shapes that broadcast",
            format!("{:?} and {:?}", left.shape(), right.shape()),
        );
    };
    budget.charge(extent(&shape), node)?;
    let mut result = ArrayD::from_elem(IxDyn(&shape), filler);
    let (Some(left), Some(right)) = (left.broadcast(IxDyn(&shape)), right.broadcast(IxDyn(&shape))) else {
        return mismatch(node, "shapes that broadcast", list(&shape));
    };
    let mut valid = true;
    Zip::from(&mut result).and(left).and(right).for_each(|result, &left, &right| {
        match operation(left, right) {
            Some(value) => *result = value,
            None => valid = false,
        }
    });
    if valid {
        Ok(result)
    } else {
        unsupported("arithmetic on the batch size, or integers that overflow; use a constant shape")
    }
}

/// A function of each element of a constant of real numbers.
pub(super) fn map_floats(
    value: &Value,
    node: &str,
    budget: &mut Budget,
    function: impl Fn(f64) -> f64,
) -> Result<Value, Failure> {
    match value {
        Value::Float(array) => {
            budget.charge(array.len(), node)?;
            Ok(Value::float(array.mapv(function)))
        }
        _ => unsupported("only supported on constants of real numbers"),
    }
}

/// A constant in another shape; `target` may hold one -1, and zeros that copy unless `allow_zero`.
pub(super) fn reshape(
    value: &Value,
    target: &[i64],
    allow_zero: bool,
    node: &str,
    budget: &mut Budget,
) -> Result<Value, Failure> {
    match value {
        Value::Float(array) => {
            budget.charge(array.len(), node)?;
            reshape_array(array, target, allow_zero, node).map(Value::float)
        }
        Value::Integer(array) => {
            budget.charge(array.len(), node)?;
            reshape_array(array, target, allow_zero, node).map(Value::integer)
        }
        _ => unsupported("expected a constant"),
    }
}

fn reshape_array<T: Clone>(
    array: &ArrayD<T>,
    target: &[i64],
    allow_zero: bool,
    node: &str,
) -> Result<ArrayD<T>, Failure> {
    let failed = || mismatch(node, format!("{} elements", array.len()), format!("shape {target:?}"));
    if target.len() > MAXIMUM_RANK {
        return failed();
    }
    let mut shape = Vec::with_capacity(target.len());
    for (position, &size) in target.iter().enumerate() {
        shape.push(match size {
            0 if !allow_zero => match array.shape().get(position) {
                Some(&size) => size,
                None => return failed(),
            },
            -1 => 1,
            size => match usize::try_from(size) {
                Ok(size) => size,
                Err(_) => return failed(),
            },
        });
    }
    if let Some(free) = target.iter().position(|&size| size == -1) {
        let known = shape.iter().fold(1, |product: usize, &size| product.saturating_mul(size));
        if known == 0 || !array.len().is_multiple_of(known) {
            return failed();
        }
        shape[free] = array.len() / known;
    }
    if extent(&shape) > MAXIMUM_ELEMENTS {
        return failed();
    }
    match ArrayD::from_shape_vec(IxDyn(&shape), array.iter().cloned().collect()) {
        Ok(reshaped) => Ok(reshaped),
        Err(_) => failed(),
    }
}

/// A constant with its axes in the order `permutation`, reversed when there is none.
pub(super) fn transpose(
    value: &Value,
    permutation: Option<&[i64]>,
    node: &str,
    budget: &mut Budget,
) -> Result<Value, Failure> {
    match value {
        Value::Float(array) => {
            budget.charge(array.len(), node)?;
            transpose_array(array, permutation, node).map(Value::float)
        }
        Value::Integer(array) => {
            budget.charge(array.len(), node)?;
            transpose_array(array, permutation, node).map(Value::integer)
        }
        _ => unsupported("expected a constant"),
    }
}

fn transpose_array<T: Clone>(
    array: &ArrayD<T>,
    permutation: Option<&[i64]>,
    node: &str,
) -> Result<ArrayD<T>, Failure> {
    let rank = array.ndim();
    let axes: Vec<usize> = match permutation {
        None => (0..rank).rev().collect(),
        Some(permutation) => {
            permutation.iter().map(|&axis| normalise_axis(axis, rank, node)).collect::<Result<_, _>>()?
        }
    };
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..rank) {
        return mismatch(node, format!("a permutation of {rank} axes"), format!("{axes:?}"));
    }
    Ok(array.view().permuted_axes(IxDyn(&axes)).as_standard_layout().into_owned())
}

/// Constants one after the other along `axis`.
pub(super) fn concatenate(
    values: &[Value],
    axis: i64,
    node: &str,
    budget: &mut Budget,
) -> Result<Value, Failure> {
    let floats: Option<Vec<_>> = values
        .iter()
        .map(|value| if let Value::Float(array) = value { Some(array.view()) } else { None })
        .collect();
    if let Some(views) = floats {
        charge_all(&views, node, budget)?;
        return concatenate_arrays(&views, axis, node).map(Value::float);
    }
    let integers: Option<Vec<_>> = values
        .iter()
        .map(|value| if let Value::Integer(array) = value { Some(array.view()) } else { None })
        .collect();
    match integers {
        Some(views) => {
            charge_all(&views, node, budget)?;
            concatenate_arrays(&views, axis, node).map(Value::integer)
        }
        None => {
            unsupported("joins values of the input with constants, or probabilities other than p and 1 - p")
        }
    }
}

fn charge_all<T>(
    views: &[ndarray::ArrayViewD<'_, T>],
    node: &str,
    budget: &mut Budget,
) -> Result<(), ImportError> {
    views.iter().try_for_each(|view| budget.charge(extent(view.shape()), node))
}

fn concatenate_arrays<T: Clone>(
    views: &[ndarray::ArrayViewD<'_, T>],
    axis: i64,
    node: &str,
) -> Result<ArrayD<T>, Failure> {
    let Some(first) = views.first() else {
        return mismatch(node, "at least one input", "none");
    };
    let axis = normalise_axis(axis, first.ndim(), node)?;
    // The array library panics on ranks that differ, so they are compared here.
    let fits = |view: &ndarray::ArrayViewD<'_, T>| {
        view.ndim() == first.ndim()
            && (0..view.ndim()).all(|other| other == axis || view.shape()[other] == first.shape()[other])
    };
    let joined = views.iter().all(fits).then(|| ndarray::concatenate(Axis(axis), views));
    match joined {
        Some(Ok(joined)) => Ok(joined),
        _ => {
            let shapes: Vec<_> = views.iter().map(|view| view.shape()).collect();
            mismatch(node, format!("shapes that differ only in axis {axis}"), format!("{shapes:?}"))
        }
    }
}

/// The elements of a constant at `indices` of `axis`. Indices without dimension remove the axis.
pub(super) fn gather(
    value: &Value,
    indices: &ArrayD<Integer>,
    axis: i64,
    node: &str,
    budget: &mut Budget,
) -> Result<Value, Failure> {
    match value {
        Value::Float(array) => gather_array(array, indices, axis, node, budget).map(Value::float),
        Value::Integer(array) => gather_array(array, indices, axis, node, budget).map(Value::integer),
        _ => unsupported("expected a constant or a value that depends on the input"),
    }
}

fn gather_array<T: Clone>(
    array: &ArrayD<T>,
    indices: &ArrayD<Integer>,
    axis: i64,
    node: &str,
    budget: &mut Budget,
) -> Result<ArrayD<T>, Failure> {
    let axis = normalise_axis(axis, array.ndim(), node)?;
    let length = array.shape()[axis];
    let mut positions = Vec::with_capacity(indices.len());
    for index in indices {
        let Integer::Known(index) = *index else {
            return unsupported("an index depends on the batch size");
        };
        positions.push(normalise_axis(index, length, node)?);
    }
    let others = extent(array.shape()) / length.max(1);
    budget.charge(others.saturating_mul(positions.len()), node)?;
    match indices.ndim() {
        0 => Ok(array.index_axis(Axis(axis), positions[0]).to_owned()),
        1 => Ok(array.select(Axis(axis), &positions)),
        _ => unsupported("indices with more than one dimension"),
    }
}

/// One axis of a slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) axis: i64,
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) step: i64,
}

/// Parts of a constant, as the `Slice` operator takes them.
pub(super) fn slice(
    value: &Value,
    ranges: &[Range],
    node: &str,
    budget: &mut Budget,
) -> Result<Value, Failure> {
    match value {
        Value::Float(array) => slice_array(array, ranges, node, budget).map(Value::float),
        Value::Integer(array) => slice_array(array, ranges, node, budget).map(Value::integer),
        _ => unsupported("expected a constant or a value that depends on the input"),
    }
}

fn slice_array<T: Clone>(
    array: &ArrayD<T>,
    ranges: &[Range],
    node: &str,
    budget: &mut Budget,
) -> Result<ArrayD<T>, Failure> {
    let mut result = array.to_owned();
    for range in ranges {
        budget.charge(extent(result.shape()), node)?;
        let axis = normalise_axis(range.axis, result.ndim(), node)?;
        let positions = positions(range, result.shape()[axis], node)?;
        result = result.select(Axis(axis), &positions);
    }
    Ok(result)
}

/// Positions that a range takes from an axis of `length` elements.
fn positions(range: &Range, length: usize, node: &str) -> Result<Vec<usize>, Failure> {
    if range.step == 0 {
        return mismatch(node, "a step other than 0", "step 0");
    }
    let length = length as i64;
    let resolve = |bound: i64| if bound < 0 { bound.saturating_add(length) } else { bound };
    let (start, end) = if range.step > 0 {
        (resolve(range.start).clamp(0, length), resolve(range.end).clamp(0, length))
    } else {
        (resolve(range.start).clamp(-1, length - 1), resolve(range.end).clamp(-1, length - 1))
    };
    let mut positions = Vec::new();
    let mut position = start;
    while (range.step > 0 && position < end) || (range.step < 0 && position > end) {
        positions.extend(usize::try_from(position));
        position = position.saturating_add(range.step);
    }
    Ok(positions)
}

/// Product of the dimensions, zeros left out.
///
/// The array library refuses to build what overflows this, even when another dimension is zero, so
/// this is what the budget is charged with.
pub(super) fn extent(shape: &[usize]) -> usize {
    shape.iter().fold(1, |product, &size| product.saturating_mul(size.max(1)))
}

/// Integers as real numbers.
pub(super) fn real_numbers(array: &ArrayD<Integer>) -> Result<ArrayD<f64>, Failure> {
    let known: Option<Vec<f64>> = array
        .iter()
        .map(|element| match element {
            Integer::Known(value) => Some(*value as f64),
            Integer::Batch => None,
        })
        .collect();
    match known.map(|known| ArrayD::from_shape_vec(array.raw_dim(), known)) {
        Some(Ok(array)) => Ok(array),
        _ => unsupported("uses the batch size as a number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_the_specification() {
        assert_eq!(common_shape(&[2, 3], &[3]), Some(vec![2, 3]));
        assert_eq!(common_shape(&[2, 1], &[1, 4]), Some(vec![2, 4]));
        assert_eq!(common_shape(&[], &[5]), Some(vec![5]));
        assert_eq!(common_shape(&[2], &[3]), None);
    }

    #[test]
    fn slices_follow_the_specification() {
        let take = |start, end, step| {
            positions(&Range { axis: 0, start, end, step }, 5, "node").ok().expect("a valid slice")
        };
        assert_eq!(take(1, 3, 1), vec![1, 2]);
        assert_eq!(take(-2, i64::MAX, 1), vec![3, 4]);
        assert_eq!(take(-1, i64::MIN, -2), vec![4, 2, 0]);
        assert_eq!(take(3, 3, 1), Vec::<usize>::new());
        assert_eq!(take(0, i64::MAX, i64::MAX), vec![0]);
        assert!(positions(&Range { axis: 0, start: 0, end: 1, step: 0 }, 5, "node").is_err());
    }
}
