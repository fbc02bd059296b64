//! Sums, means and extremes over dimensions of a sample, and over constants.

use ndarray::Axis;

use super::{
    activation::Activation,
    layout,
    node::Node,
    rectify, smooth,
    value::{Failure, Integer, Value, normalise_axis, unsupported},
    windows,
};
use crate::program::{Convolution, Operation};

/// What is made of the numbers along the dimensions that go.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Reduction {
    Mean,
    Sum,
    Largest,
    Smallest,
    /// Sum of magnitudes.
    Magnitudes,
    /// Sum of squares.
    Squares,
    Product,
}

fn axes(node: &Node<'_>) -> Result<Option<Vec<i64>>, Failure> {
    match node.integers_attribute("axes") {
        Some(axes) => Ok(Some(axes)),
        None if node.optional(1).is_some() => node.integers(1).map(Some),
        None => Ok(None),
    }
}

/// `ReduceMean` and its kind.
pub(super) fn reduce(node: &mut Node<'_>, reduction: Reduction) -> Result<Value, Failure> {
    let activation = match node.input(0)? {
        Value::Activation(activation) => activation,
        // The sum of scores that a softmax or the like gives, by which they are divided next.
        Value::Scores { logits, source } if reduction == Reduction::Sum => {
            return if covers_all(node, logits.shape.len())? {
                Ok(Value::Total { logits, source })
            } else {
                unsupported("adds up a part of the classes only")
            };
        }
        Value::Integer(array) => return reduce_integers(node, &array, reduction),
        _ => return unsupported("only values that depend on the input, and integers, are reduced"),
    };
    let Some(axes) = axes(node)? else { return unsupported("runs over the batch; name the axes") };
    let rank = activation.shape.len();
    let mut reduced = vec![false; rank];
    for axis in axes {
        match normalise_axis(axis, rank + 1, node.name)?.checked_sub(1) {
            Some(axis) => reduced[axis] = true,
            None => return unsupported("runs over the batch; name other axes"),
        }
    }
    let keep = node.integer_attribute("keepdims", 1) != 0;
    let shape: Vec<usize> = (0..rank)
        .filter(|&axis| keep || !reduced[axis])
        .map(|axis| if reduced[axis] { 1 } else { activation.shape[axis] })
        .collect();
    let activation = match reduction {
        Reduction::Magnitudes => match rectify::absolute(node)? {
            Value::Activation(activation) => activation,
            value => return Ok(value),
        },
        Reduction::Squares => {
            node.builder.pairwise(Operation::Multiply, [&activation; 2], node.budget, node.name)?
        }
        Reduction::Smallest => rectify::scaled(node, &activation, -1.0, 0.0)?,
        Reduction::Mean | Reduction::Sum | Reduction::Largest | Reduction::Product => activation,
    };
    // The dimensions that go are brought to the end.
    let order: Vec<usize> =
        (0..rank).filter(|&axis| !reduced[axis]).chain((0..rank).filter(|&axis| reduced[axis])).collect();
    let count: usize = (0..rank).filter(|&axis| reduced[axis]).map(|axis| activation.shape[axis]).product();
    let kept = activation.features() / count;
    let places = layout::permuted(&activation.shape, &order);
    let moved = node.builder.gathered(&activation, vec![kept, count], &places, node.budget, node.name)?;
    match reduction {
        Reduction::Largest => Ok(Value::Activation(smooth::largest(node, &moved, count)?.reshaped(shape))),
        Reduction::Product => Ok(Value::Activation(multiplied(node, &moved, count)?.reshaped(shape))),
        Reduction::Smallest => {
            let largest = smooth::largest(node, &moved, count)?.reshaped(shape);
            Ok(Value::Activation(rectify::scaled(node, &largest, -1.0, 0.0)?))
        }
        _ => {
            let divisor = if reduction == Reduction::Mean { count } else { 1 };
            let windows =
                Convolution { size: [1, count], kernel: [1, count], ..Convolution::per_channel(kept, count) };
            windows::average(node, moved, windows, &[divisor], shape)
        }
    }
}

/// The product of each row of `[kept, count]`, as `[kept, 1]`: one half times the other, and one alone where the
/// number is odd.
fn multiplied(node: &mut Node<'_>, rows: &Activation, count: usize) -> Result<Activation, Failure> {
    let (kept, mut count, mut rows) = (rows.shape[0], count, rows.clone());
    while count > 1 {
        let mut part = |start: usize, length: usize| {
            let places: Vec<_> = (0..kept * length)
                .map(|index| Some(index / length * count + start + index % length))
                .collect();
            node.builder.gathered(&rows, vec![kept, length], &places, node.budget, node.name)
        };
        let half = count / 2;
        let halves = [part(0, half)?, part(half, half)?];
        let rest = if count.is_multiple_of(2) { None } else { Some(part(count - 1, 1)?) };
        let [left, right] = &halves;
        rows = node.builder.pairwise(Operation::Multiply, [left, right], node.budget, node.name)?;
        count = half;
        if let Some(rest) = rest {
            let last = multiplied(node, &rows, half)?;
            return Ok(node.builder.pairwise(Operation::Multiply, [&last, &rest], node.budget, node.name)?);
        }
    }
    Ok(rows)
}

/// True when all dimensions of a sample go, and the batch stays.
fn covers_all(node: &Node<'_>, rank: usize) -> Result<bool, Failure> {
    let Some(axes) = axes(node)? else { return Ok(false) };
    let mut reduced = vec![false; rank + 1];
    for axis in axes {
        reduced[normalise_axis(axis, rank + 1, node.name)?] = true;
    }
    Ok(!reduced[0] && reduced[1..].iter().all(|&gone| gone))
}

/// `ReduceLogSumExp` over all classes.
pub(super) fn log_sum_exp(node: &Node<'_>) -> Result<Value, Failure> {
    match node.input(0)? {
        Value::Activation(logits) if covers_all(node, logits.shape.len())? => {
            Ok(Value::Total { logits, source: node.index })
        }
        _ => unsupported("only taken of all scores of the classes, from which it is subtracted"),
    }
}

/// Products and extremes of known integers, as shapes are computed with.
fn reduce_integers(
    node: &Node<'_>,
    array: &ndarray::ArrayD<Integer>,
    reduction: Reduction,
) -> Result<Value, Failure> {
    let mut result = array.mapv(|element| match element {
        Integer::Known(value) => Some(value),
        Integer::Batch => None,
    });
    if result.is_empty() || result.iter().any(Option::is_none) {
        return unsupported("uses the batch size as a number");
    }
    let rank = result.ndim();
    let keep = node.integer_attribute("keepdims", 1) != 0;
    let axes = axes(node)?.unwrap_or_else(|| (0..rank as i64).collect());
    let mut axes: Vec<usize> =
        axes.iter().map(|&axis| normalise_axis(axis, rank, node.name)).collect::<Result<_, _>>()?;
    axes.sort_unstable();
    axes.dedup();
    for axis in axes.into_iter().rev() {
        let combine = |left: i64, right: i64| match reduction {
            Reduction::Sum => left.checked_add(right),
            Reduction::Product => left.checked_mul(right),
            Reduction::Largest => Some(left.max(right)),
            Reduction::Smallest => Some(left.min(right)),
            _ => None,
        };
        let lane = |lane: ndarray::ArrayView1<'_, Option<i64>>| {
            lane.iter().copied().reduce(|left, right| combine(left?, right?)).flatten()
        };
        result = result.map_axis(Axis(axis), lane);
        if keep {
            result.insert_axis_inplace(Axis(axis));
        }
    }
    if result.iter().any(Option::is_none) {
        return unsupported("integers that overflow, or that are not reduced in this way");
    }
    Ok(Value::integer(result.mapv(|value| Integer::Known(value.unwrap_or(0)))))
}
