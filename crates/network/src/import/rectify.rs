//! Operators that are comparisons and sums: put together from ReLU and the larger of two values.

use std::rc::Rc;

use ndarray::{Array1, IxDyn};

use super::{
    activation::Activation,
    layout::together,
    linear::per_sample,
    node::Node,
    value::{Failure, Value, unsupported},
};
use crate::{erase::Erasing, program::Operation};

const NOT_THE_INPUT: &str = "only applied to values that depend on the input";

/// The first input, which depends on the model's.
pub(super) fn activation(node: &Node<'_>) -> Result<Activation, Failure> {
    match node.input(0)? {
        Value::Activation(activation) => Ok(activation),
        _ => unsupported(NOT_THE_INPUT),
    }
}

fn larger(node: &mut Node<'_>, left: &Activation, right: &Activation) -> Result<Activation, Failure> {
    Ok(node.builder.pairwise(Operation::Maximum, [left, right], node.budget, node.name)?)
}

/// `value` times one number, plus another.
pub(super) fn scaled(
    node: &mut Node<'_>,
    value: &Activation,
    scale: f64,
    shift: f64,
) -> Result<Activation, Failure> {
    let numbers = |number| Array1::from_elem(value.features(), number);
    Ok(value.scaled(node.builder, &numbers(scale), &numbers(shift), node.budget, node.name)?)
}

/// `Abs`.
pub(super) fn absolute(node: &mut Node<'_>) -> Result<Value, Failure> {
    match node.input(0)? {
        Value::Activation(value) => {
            let value = node.builder.computed(&value, node.budget)?;
            let negated = scaled(node, &value, -1.0, 0.0)?;
            Ok(Value::Activation(larger(node, &value, &negated)?))
        }
        value => super::constant::map_floats(&value, node.name, node.budget, f64::abs),
    }
}

/// `LeakyRelu` and `PRelu`.
pub(super) fn leaky_relu(node: &mut Node<'_>) -> Result<Value, Failure> {
    let value = activation(node)?;
    let slopes = if node.proto.op_type == "PRelu" {
        match node.input(1)? {
            Value::Float(slopes) => per_sample(&value, &slopes, node.name)?,
            _ => return unsupported("the slope must be constant"),
        }
    } else {
        Array1::from_elem(value.features(), node.float_attribute("alpha", 0.01)?)
    };
    leaky_by(node, &value, slopes)
}

/// max(x, slope x) or the like.
pub(super) fn leaky(node: &mut Node<'_>, value: &Activation, slope: f64) -> Result<Value, Failure> {
    leaky_by(node, value, Array1::from_elem(value.features(), slope))
}

fn leaky_by(node: &mut Node<'_>, value: &Activation, slopes: Array1<f64>) -> Result<Value, Failure> {
    let slopes = Erasing::new(slopes);
    let value = node.builder.computed(value, node.budget)?;
    let zeros = Array1::zeros(slopes.len());
    if slopes.iter().all(|slope| (0.0..=1.0).contains(slope)) {
        let flat = value.scaled(node.builder, &slopes, &zeros, node.budget, node.name)?;
        return Ok(Value::Activation(larger(node, &value, &flat)?));
    }
    // max(x, 0) + slope (x - max(x, 0)).
    let positive = node.builder.relu(&value, node.budget, node.name)?;
    let negative = node.builder.sum(&[&value, &positive], &[1, -1], node.budget, node.name)?;
    let flat = negative.scaled(node.builder, &slopes, &zeros, node.budget, node.name)?;
    Ok(Value::Activation(node.builder.sum(&[&positive, &flat], &[1, 1], node.budget, node.name)?))
}

/// `value` within `bounds`, either of which may be infinite.
pub(super) fn clipped(
    node: &mut Node<'_>,
    value: &Activation,
    bounds: [f64; 2],
) -> Result<Activation, Failure> {
    let [low, high] = bounds;
    if low > high || low.is_nan() || high.is_nan() {
        return Err(node.broken(format!("the bounds {low} and {high} leave nothing between them")).into());
    }
    match (low.is_finite(), high.is_finite()) {
        (false, false) => Ok(value.clone()),
        (true, false) => {
            let above = scaled(node, value, 1.0, -low)?;
            let rectified = node.builder.relu(&above, node.budget, node.name)?;
            scaled(node, &rectified, 1.0, low)
        }
        (false, true) => {
            let below = scaled(node, value, -1.0, high)?;
            let rectified = node.builder.relu(&below, node.budget, node.name)?;
            scaled(node, &rectified, -1.0, high)
        }
        // low + max(x - low, 0) - max(x - high, 0): both comparisons in one batch. The range analysis
        // knows this form by its steps.
        (true, true) => {
            let value = node.builder.computed(value, node.budget)?;
            let above = scaled(node, &value, 1.0, -low)?;
            let beyond = scaled(node, &value, 1.0, -high)?;
            let above = node.builder.relu(&above, node.budget, node.name)?;
            let beyond = node.builder.relu(&beyond, node.budget, node.name)?;
            let between = node.builder.sum(&[&above, &beyond], &[1, -1], node.budget, node.name)?;
            scaled(node, &between, 1.0, low)
        }
    }
}

/// `ThresholdedRelu`: x where it is above alpha, else 0.
pub(super) fn thresholded(node: &mut Node<'_>) -> Result<Value, Failure> {
    let value = activation(node)?;
    let alpha = node.float_attribute("alpha", 1.0)?;
    let value = node.builder.computed(&value, node.budget)?;
    let open = above(node, &value, alpha)?;
    let gated = node.builder.pairwise(Operation::Multiply, [&value, &open], node.budget, node.name)?;
    Ok(Value::Activation(gated))
}

/// 1 where a number is above `bound`, else 0.
pub(super) fn above(node: &mut Node<'_>, value: &Activation, bound: f64) -> Result<Activation, Failure> {
    let below = scaled(node, value, -1.0, bound)?;
    let below = node.builder.step(&below, node.budget, node.name)?;
    scaled(node, &below, -1.0, 1.0)
}

/// `Clip`: bounds are parameters before operator set 11, then inputs.
pub(super) fn clip(node: &mut Node<'_>) -> Result<Value, Failure> {
    let mut bounds = [f64::NEG_INFINITY, f64::INFINITY];
    for (bound, name, index) in [(0, "min", 1), (1, "max", 2)] {
        if let Some(given) = node.optional_float_attribute(name) {
            bounds[bound] = given;
        }
        match node.optional(index) {
            None => {}
            Some(Value::Float(given)) if given.len() == 1 => bounds[bound] = given.iter().sum(),
            Some(_) => return unsupported("the bounds must be constant numbers"),
        }
    }
    // The largest number of single precision stands for no bound.
    let unbounded = f64::from(f32::MAX);
    if bounds[0] <= -unbounded {
        bounds[0] = f64::NEG_INFINITY;
    }
    if bounds[1] >= unbounded {
        bounds[1] = f64::INFINITY;
    }
    // Probabilities that are kept from 0 and 1 keep the order of the largest.
    if let Value::Scores { logits, source } = node.input(0)?
        && bounds[1] >= 1.0
        && bounds[0] <= 1e-6
    {
        return Ok(Value::Scores { logits, source });
    }
    let value = activation(node)?;
    Ok(Value::Activation(clipped(node, &value, bounds)?))
}

/// `HardSigmoid`, and `HardSwish`, which multiplies it by its argument.
pub(super) fn hard_sigmoid(node: &mut Node<'_>, times_argument: bool) -> Result<Value, Failure> {
    let value = activation(node)?;
    let (slope, summand) = if times_argument {
        (1.0 / 6.0, 0.5)
    } else {
        (node.float_attribute("alpha", 0.2)?, node.float_attribute("beta", 0.5)?)
    };
    let value = if times_argument { node.builder.computed(&value, node.budget)? } else { value };
    let line = scaled(node, &value, slope, summand)?;
    let gate = clipped(node, &line, [0.0, 1.0])?;
    if !times_argument {
        return Ok(Value::Activation(gate));
    }
    Ok(Value::Activation(node.builder.pairwise(
        Operation::Multiply,
        [&value, &gate],
        node.budget,
        node.name,
    )?))
}

/// `Max` and `Min` of values and constants.
pub(super) fn extreme(node: &mut Node<'_>, smallest: bool) -> Result<Value, Failure> {
    let mut values = Vec::new();
    let mut constants: Vec<Rc<Erasing<IxDyn>>> = Vec::new();
    for index in 0..node.inputs.len() {
        match node.input(index)? {
            Value::Activation(value) => values.push(value),
            Value::Float(constant) => constants.push(constant),
            _ => return unsupported(NOT_THE_INPUT),
        }
    }
    let sign = if smallest { -1.0 } else { 1.0 };
    let mut values = values.into_iter();
    let Some(first) = values.next() else { return unsupported(NOT_THE_INPUT) };
    // min(x, y) = -max(-x, -y).
    let mut result = scaled(node, &first, sign, 0.0)?;
    for value in values {
        let value = scaled(node, &value, sign, 0.0)?;
        let [left, right] = together(node, &result, &value)?;
        result = larger(node, &left, &right)?;
    }
    for constant in constants {
        // max(x, c) = c + max(x - c, 0).
        let bound = Erasing::new(per_sample(&result, &constant, node.name)? * sign);
        let ones = Array1::ones(bound.len());
        let above = result.scaled(node.builder, &ones, &-&*bound, node.budget, node.name)?;
        let rectified = node.builder.relu(&above, node.budget, node.name)?;
        result = rectified.scaled(node.builder, &ones, &bound, node.budget, node.name)?;
    }
    Ok(Value::Activation(scaled(node, &result, sign, 0.0)?))
}
