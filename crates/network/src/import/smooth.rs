//! Smooth operators, which become functions by straight pieces.

use super::{
    activation::Activation,
    layout,
    node::Node,
    rectify::{self, activation},
    value::{Failure, Source, Value, unsupported},
};
use crate::program::{Convolution, Function, Operation, function::LARGEST_DIVISOR};

/// An operator that is one of the functions.
pub(super) fn function(node: &mut Node<'_>, function: Function) -> Result<Value, Failure> {
    let value = activation(node)?;
    Ok(Value::Activation(node.builder.function(function, &value, node.budget, node.name)?))
}

/// `Gelu`, exact or by the hyperbolic tangent.
pub(super) fn gelu(node: &mut Node<'_>) -> Result<Value, Failure> {
    match node.text_attribute("approximate").as_str() {
        "" | "none" => function(node, Function::Gelu),
        "tanh" => function(node, Function::GeluTanh),
        other => Err(node.broken(format!("approximate is {other}, not none or tanh")).into()),
    }
}

/// `Swish`, x sigmoid(alpha x).
pub(super) fn swish(node: &mut Node<'_>, default: f32) -> Result<Value, Failure> {
    let alpha = node.float_attribute("alpha", default)?;
    if alpha == 0.0 {
        return unsupported("with alpha 0 it is x / 2; write that");
    }
    let value = activation(node)?;
    let inner = scaled(node, &value, alpha, 0.0)?;
    let curved = node.builder.function(Function::Silu, &inner, node.budget, node.name)?;
    Ok(Value::Activation(scaled(node, &curved, 1.0 / alpha, 0.0)?))
}

/// `Elu`, `Selu` and `Celu`: steepness · (max(x, 0) + height (e^min(x / width, 0) - 1)).
pub(super) fn exponential_unit(node: &mut Node<'_>) -> Result<Value, Failure> {
    let [steepness, height, width] = match node.proto.op_type.as_str() {
        "Selu" => {
            [node.float_attribute("gamma", 1.050_701)?, node.float_attribute("alpha", 1.673_263_2)?, 1.0]
        }
        "Celu" => {
            let alpha = node.float_attribute("alpha", 1.0)?;
            [1.0, alpha, alpha]
        }
        _ => [1.0, node.float_attribute("alpha", 1.0)?, 1.0],
    };
    if width <= 0.0 {
        return Err(node.broken(format!("alpha is {width}, it must be above 0")).into());
    }
    let value = activation(node)?;
    let value = node.builder.computed(&value, node.budget)?;
    let positive = node.builder.relu(&value, node.budget, node.name)?;
    let inner = scaled(node, &value, 1.0 / width, 0.0)?;
    let curved = node.builder.function(Function::NegativeExponential, &inner, node.budget, node.name)?;
    let curved = scaled(node, &curved, height, -height)?;
    let sum = node.builder.sum(&[&positive, &curved], &[1, 1], node.budget, node.name)?;
    Ok(Value::Activation(scaled(node, &sum, steepness, 0.0)?))
}

/// The inputs of a node with the result of every `Sigmoid` and `Softmax` in them computed: it is not the last one.
/// `source` tells which of them a node of the graph is. `None` when there is none.
pub(super) fn computed(
    node: &mut Node<'_>,
    source: impl Fn(usize) -> Option<Source>,
) -> Result<Option<Vec<Option<Value>>>, Failure> {
    let mut found = false;
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for input in node.inputs.clone() {
        inputs.push(match input {
            Some(Value::Scores { logits, source: index }) if source(index) == Some(Source::Sigmoid) => {
                found = true;
                Some(Value::Activation(sigmoid(node, &logits)?))
            }
            Some(Value::Scores { logits, source: index }) if source(index) == Some(Source::Softmax) => {
                found = true;
                let flat = logits.reshaped(vec![logits.features()]);
                let computed = softmax(node, &flat, 0)?;
                Some(Value::Activation(computed.reshaped(logits.shape)))
            }
            // The two numbers that stand for one score are another.
            Some(Value::Scores { logits, source: index })
                if source(index) == Some(Source::Classifier) && logits.features() > 2 =>
            {
                found = true;
                Some(Value::Activation(logits))
            }
            Some(Value::Sigmoid { logit, complement, .. }) => {
                found = true;
                let value = sigmoid(node, &logit)?;
                Some(Value::Activation(if complement { scaled(node, &value, -1.0, 1.0)? } else { value }))
            }
            other => other,
        });
    }
    Ok(found.then_some(inputs))
}

/// e^(x - m) / Σ e^(x - m) along a dimension of a sample, where m is the largest x. The sum lies between 1 and the
/// number of summands whatever x is, so that its reciprocal has a public range.
pub(super) fn softmax(node: &mut Node<'_>, value: &Activation, axis: usize) -> Result<Activation, Failure> {
    let count = value.shape[axis];
    if count > LARGEST_DIVISOR {
        return unsupported(format!(
            "between layers it runs over at most {LARGEST_DIVISOR} numbers, not {count}; use shorter sequences"
        ));
    }
    let rank = value.shape.len();
    let order: Vec<usize> = (0..rank).filter(|&other| other != axis).chain([axis]).collect();
    let moved: Vec<usize> = order.iter().map(|&axis| value.shape[axis]).collect();
    let kept = value.features() / count;
    let value = node.builder.computed(value, node.budget)?;
    let places = layout::permuted(&value.shape, &order);
    let rows = node.builder.gathered(&value, vec![kept, count], &places, node.budget, node.name)?;
    let largest = largest(node, &rows, count)?;
    let largest = layout::expand(node, &largest, &[kept, count])?;
    let below = node.builder.sum(&[&rows, &largest], &[1, -1], node.budget, node.name)?;
    let powers = node.builder.function(Function::NegativeExponential, &below, node.budget, node.name)?;
    let windows =
        Convolution { size: [1, count], kernel: [1, count], ..Convolution::per_channel(kept, count) };
    let sums = node.builder.window_sums(&powers, windows, vec![kept, 1], node.budget, node.name)?;
    let shares = node.builder.function(Function::Reciprocal, &sums, node.budget, node.name)?;
    let shares = layout::expand(node, &shares, &[kept, count])?;
    let result = node.builder.pairwise(Operation::Multiply, [&powers, &shares], node.budget, node.name)?;
    let mut back = vec![0; rank];
    order.iter().enumerate().for_each(|(place, &axis)| back[axis] = place);
    let places = layout::permuted(&moved, &back);
    node.builder.gathered(&result, value.shape.clone(), &places, node.budget, node.name)
}

/// The largest of each row of `[kept, count]`, as `[kept, 1]`: one half against the other, which overlap where the
/// number is odd.
pub(super) fn largest(node: &mut Node<'_>, rows: &Activation, count: usize) -> Result<Activation, Failure> {
    let (kept, mut count, mut rows) = (rows.shape[0], count, rows.clone());
    while count > 1 {
        let half = count.div_ceil(2);
        let mut part = |start: usize| {
            let places: Vec<_> =
                (0..kept * half).map(|index| Some(index / half * count + start + index % half)).collect();
            node.builder.gathered(&rows, vec![kept, half], &places, node.budget, node.name)
        };
        let halves = [part(0)?, part(count - half)?];
        let [left, right] = &halves;
        rows = node.builder.pairwise(Operation::Maximum, [left, right], node.budget, node.name)?;
        count = half;
    }
    Ok(rows)
}

fn sigmoid(node: &mut Node<'_>, value: &Activation) -> Result<Activation, Failure> {
    Ok(node.builder.function(Function::Sigmoid, value, node.budget, node.name)?)
}

/// x sigmoid(x), when a product is one: a function of its own is nearer, and takes one product less.
pub(super) fn gated(
    node: &mut Node<'_>,
    source_of: impl Fn(usize) -> Option<Source>,
) -> Result<Option<Value>, Failure> {
    if node.proto.op_type != "Mul" {
        return Ok(None);
    }
    let (value, logits) = match (node.optional(0), node.optional(1)) {
        (Some(Value::Activation(value)), Some(Value::Scores { logits, source }))
        | (Some(Value::Scores { logits, source }), Some(Value::Activation(value)))
            if source_of(source) == Some(Source::Sigmoid) =>
        {
            (value, logits)
        }
        _ => return Ok(None),
    };
    if !value.same_values(&logits) || value.shape != logits.shape {
        return Ok(None);
    }
    let gated = node.builder.function(Function::Silu, &value, node.budget, node.name)?;
    Ok(Some(Value::Activation(gated)))
}

/// As [`rectify::scaled`], without a step where nothing changes.
fn scaled(node: &mut Node<'_>, value: &Activation, scale: f64, shift: f64) -> Result<Activation, Failure> {
    if scale == 1.0 && shift == 0.0 { Ok(value.clone()) } else { rectify::scaled(node, value, scale, shift) }
}
