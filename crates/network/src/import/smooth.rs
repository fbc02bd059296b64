//! Smooth operators, which become functions by straight pieces.

use super::{
    activation::Activation,
    node::Node,
    rectify::{self, activation},
    value::{Failure, Value, unsupported},
};
use crate::program::Function;

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
pub(super) fn swish(node: &mut Node<'_>) -> Result<Value, Failure> {
    let alpha = node.float_attribute("alpha", 1.0)?;
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

/// The inputs of a node with the result of every `Sigmoid` in them computed: it is not the last one.
/// `is_sigmoid` tells it from a Softmax. `None` when there is none.
pub(super) fn with_sigmoids(
    node: &mut Node<'_>,
    is_sigmoid: impl Fn(usize) -> bool,
) -> Result<Option<Vec<Option<Value>>>, Failure> {
    let mut found = false;
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for input in node.inputs.clone() {
        inputs.push(match input {
            Some(Value::Scores { logits, source }) if is_sigmoid(source) => {
                found = true;
                Some(Value::Activation(sigmoid(node, &logits)?))
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

fn sigmoid(node: &mut Node<'_>, value: &Activation) -> Result<Activation, Failure> {
    Ok(node.builder.function(Function::Sigmoid, value, node.budget, node.name)?)
}

/// x sigmoid(x), when a product is one: a function of its own is nearer, and takes one product less.
pub(super) fn gated(
    node: &mut Node<'_>,
    is_sigmoid: impl Fn(usize) -> bool,
) -> Result<Option<Value>, Failure> {
    if node.proto.op_type != "Mul" {
        return Ok(None);
    }
    let (value, logits) = match (node.optional(0), node.optional(1)) {
        (Some(Value::Activation(value)), Some(Value::Scores { logits, source }))
        | (Some(Value::Scores { logits, source }), Some(Value::Activation(value)))
            if is_sigmoid(source) =>
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
