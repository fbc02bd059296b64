//! Networks with 8-bit weights and activations, as quantisation leaves them: QuantizeLinear and
//! DequantizeLinear around the operators of real numbers.
//!
//! Weights become the real numbers that they stand for. An activation is clipped to the range of the 8-bit
//! format; that it would also be rounded to its grid is left out, which moves it by at most half a step.

use ndarray::{Array1, Axis, IxDyn};

use super::{
    constant::real_numbers,
    node::Node,
    rectify,
    value::{Failure, Value, mismatch, normalise_axis, unsupported},
};
use crate::erase::Erasing;

/// A constant as real numbers.
fn numbers(node: &Node<'_>, value: Option<Value>) -> Result<Option<Erasing<IxDyn>>, Failure> {
    match value {
        None => Ok(None),
        Some(Value::Float(array)) => Ok(Some(Erasing::new((**array).clone()))),
        Some(Value::Integer(array)) => Ok(Some(Erasing::new(real_numbers(&array)?))),
        Some(other) => mismatch(node.name, "constant scales and zero points", other.description()),
    }
}

/// The scale and the zero point.
fn grid(node: &mut Node<'_>) -> Result<(Erasing<IxDyn>, Option<Erasing<IxDyn>>), Failure> {
    if node.integer_attribute("block_size", 0) != 0 {
        return unsupported("scales for blocks are not supported; quantise by tensor or by channel");
    }
    let Some(scale) = numbers(node, node.optional(1))? else {
        return Err(node.broken("input 1, the scale, is missing").into());
    };
    if scale.iter().any(|&step| step.is_nan() || step <= 0.0) {
        return Err(node.broken("a scale is not above 0").into());
    }
    let zero = numbers(node, node.optional(2))?;
    if zero.as_ref().is_some_and(|zero| zero.len() != scale.len()) {
        return mismatch(node.name, "a zero point for each scale", "another number of them");
    }
    Ok((scale, zero))
}

/// `DequantizeLinear`: of constants (x - zero point) · scale; a quantised activation is kept as real numbers.
pub(super) fn dequantise(node: &mut Node<'_>) -> Result<Value, Failure> {
    let value = match node.input(0)? {
        activation @ Value::Activation(_) => return Ok(activation),
        constant => numbers(node, Some(constant))?,
    };
    let Some(value) = value else { return unsupported("only constants and activations are dequantised") };
    let (scale, zero) = grid(node)?;
    node.budget.charge(2 * value.len(), node.name)?;
    if scale.len() == 1 {
        let (step, zero) = (scale.first().copied(), zero.as_ref().and_then(|zero| zero.first().copied()));
        let (step, zero) = (step.unwrap_or(1.0), zero.unwrap_or(0.0));
        return Ok(Value::float(value.mapv(|value| (value - zero) * step)));
    }
    let axis = normalise_axis(node.integer_attribute("axis", 1), value.ndim(), node.name)?;
    if scale.ndim() != 1 || scale.len() != value.shape()[axis] {
        let expected = format!("{} scales along axis {axis}", value.shape()[axis]);
        return mismatch(node.name, expected, format!("scales of shape {:?}", scale.shape()));
    }
    let mut result = (*value).clone();
    for (channel, mut part) in result.axis_iter_mut(Axis(axis)).enumerate() {
        let zero = zero.as_ref().map_or(0.0, |zero| zero[channel]);
        part.mapv_inplace(|value| (value - zero) * scale[channel]);
    }
    Ok(Value::float(result))
}

/// `QuantizeLinear` of an activation: what its 8-bit format can hold.
pub(super) fn quantise(node: &mut Node<'_>) -> Result<Value, Failure> {
    let Value::Activation(activation) = node.input(0)? else {
        return unsupported("only values that depend on the input are quantised; fold constants before");
    };
    // Constants of signed 8-bit integers are read as numbers, unsigned ones as integers.
    let lowest = if matches!(node.optional(2), Some(Value::Float(_))) { -128.0 } else { 0.0 };
    let (scale, zero) = grid(node)?;
    if scale.len() != 1 {
        return unsupported("activations are quantised by tensor, not by channel");
    }
    let step = Array1::from_iter(scale.iter().copied())[0];
    let zero = zero.and_then(|zero| zero.first().copied()).unwrap_or(0.0);
    let bounds = [lowest, lowest + 255.0].map(|bound| (bound - zero) * step);
    Ok(Value::Activation(rectify::clipped(node, &activation, bounds)?))
}
