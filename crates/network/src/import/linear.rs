//! Operators that become part of an affine layer.

use ndarray::{Array1, ArrayD, IxDyn};

use super::{
    activation::Activation,
    constant::{self, Arithmetic, refuse_zero},
    layout,
    node::Node,
    value::{DIVISOR_DEPENDS_ON_THE_INPUT, Failure, Value, list, mismatch, unsupported},
};
use crate::{erase::Erasing, program::Operation};

/// `Add`, `Sub`, `Mul` and `Div`.
pub(super) fn arithmetic(node: &mut Node<'_>, operation: Arithmetic) -> Result<Value, Failure> {
    match (node.input(0)?, node.input(1)?) {
        (Value::Activation(activation), Value::Float(constant)) => {
            let activation = repeated(node, activation, &constant)?;
            if operation == Arithmetic::Divide {
                refuse_zero(&constant, node.name)?;
            }
            let operand = per_sample(&activation, &constant, node.name)?;
            let (ones, zeros) = (Array1::ones(operand.len()), Array1::zeros(operand.len()));
            let (scale, shift) = match operation {
                Arithmetic::Add => (ones, operand),
                Arithmetic::Subtract => (ones, -operand),
                Arithmetic::Multiply => (operand, zeros),
                Arithmetic::Divide => (operand.mapv_into(f64::recip), zeros),
            };
            scaled(node, &activation, scale, shift)
        }
        (Value::Float(constant), Value::Activation(activation)) => {
            let activation = repeated(node, activation, &constant)?;
            let operand = per_sample(&activation, &constant, node.name)?;
            let (ones, zeros) = (Array1::ones(operand.len()), Array1::zeros(operand.len()));
            let (scale, shift) = match operation {
                Arithmetic::Add => (ones, operand),
                Arithmetic::Subtract => (-ones, operand),
                Arithmetic::Multiply => (operand, zeros),
                Arithmetic::Divide => return unsupported(DIVISOR_DEPENDS_ON_THE_INPUT),
            };
            scaled(node, &activation, scale, shift)
        }
        (Value::Float(constant), Value::Sigmoid { logit, complement, source })
            if operation == Arithmetic::Subtract
                && constant.len() == 1
                && constant.iter().all(|&value| value == 1.0) =>
        {
            Ok(Value::Sigmoid { logit, complement: !complement, source })
        }
        // Probabilities after the softmax that these two are.
        (Value::Activation(logits), Value::Total { logits: of, source })
            if operation == Arithmetic::Subtract && logits.same_values(&of) =>
        {
            Ok(Value::Scores { logits, source })
        }
        (Value::Scores { logits, source }, Value::Total { logits: of, .. })
            if operation == Arithmetic::Divide && logits.same_values(&of) =>
        {
            Ok(Value::Scores { logits, source })
        }
        (Value::Activation(left), Value::Activation(right)) => {
            if operation == Arithmetic::Divide {
                return unsupported(DIVISOR_DEPENDS_ON_THE_INPUT);
            }
            let [left, right] = layout::together(node, &left, &right)?;
            let pair = [&left, &right];
            Ok(Value::Activation(match operation {
                Arithmetic::Add => node.builder.sum(&pair, &[1, 1], node.budget, node.name)?,
                Arithmetic::Subtract => node.builder.sum(&pair, &[1, -1], node.budget, node.name)?,
                _ => node.builder.pairwise(Operation::Multiply, pair, node.budget, node.name)?,
            }))
        }
        (left @ (Value::Float(_) | Value::Integer(_)), right @ (Value::Float(_) | Value::Integer(_))) => {
            constant::arithmetic(operation, &left, &right, node.name, node.budget)
        }
        (left, right) => unsupported(format!(
            "combines {} with {}; only constants of real numbers are added or multiplied",
            left.description(),
            right.description()
        )),
    }
}

/// A value repeated along its dimensions of one to where a constant of as many dimensions is longer.
fn repeated(
    node: &mut Node<'_>,
    activation: Activation,
    constant: &ArrayD<f64>,
) -> Result<Activation, Failure> {
    let rank = activation.shape.len();
    let own = match constant.shape() {
        [1, own @ ..] if own.len() == rank => own,
        own if own.len() <= rank => own,
        _ => return Ok(activation),
    };
    match constant::common_shape(own, &activation.shape) {
        Some(common) if common != activation.shape => {
            node.budget.charge(constant::extent(&common), node.name)?;
            layout::expand(node, &activation, &common)
        }
        _ => Ok(activation),
    }
}

/// `Sum` of one or several values and constants.
pub(super) fn sum(node: &mut Node<'_>) -> Result<Value, Failure> {
    let mut total = node.input(0)?;
    for index in 1..node.inputs.len() {
        let next = node.input(index)?;
        (node.inputs[0], node.inputs[1]) = (Some(total), Some(next));
        total = arithmetic(node, Arithmetic::Add)?;
    }
    Ok(total)
}

/// `Neg`.
pub(super) fn negate(node: &mut Node<'_>) -> Result<Value, Failure> {
    match node.input(0)? {
        Value::Activation(activation) => {
            let features = activation.features();
            scaled(node, &activation, Array1::from_elem(features, -1.0), Array1::zeros(features))
        }
        value => constant::map_floats(&value, node.name, node.budget, |value| -value),
    }
}

/// `BatchNormalization` with the statistics of training.
pub(super) fn batch_normalisation(node: &mut Node<'_>) -> Result<Value, Failure> {
    let activation = match node.input(0)? {
        Value::Activation(activation) => activation,
        _ => return unsupported("only values that depend on the input are normalised"),
    };
    if node.integer_attribute("training_mode", 0) != 0 {
        return unsupported("uses the statistics of the batch; call model.eval() before export");
    }
    if node.integer_attribute("spatial", 1) == 0 {
        return unsupported("spatial = 0 is not supported; export with operator set 9 or later");
    }
    let epsilon = node.float_attribute("epsilon", 1e-5)?;
    let Some(&channels) = activation.shape.first() else {
        return mismatch(node.name, "[batch, channels, ...]", "[batch]");
    };
    let mut parameters = Vec::with_capacity(4);
    for index in 1..=4 {
        match node.input(index)? {
            Value::Float(values) if values.shape() == [channels] => parameters.push(values),
            Value::Float(values) => {
                return mismatch(node.name, format!("{channels} values"), format!("{:?}", values.shape()));
            }
            _ => return unsupported("its parameters must be constant"),
        }
    }
    let [weight, bias, mean, variance] = parameters.as_slice() else {
        return Err(node.broken("it must have four parameters").into());
    };
    if let Some(index) = variance.iter().position(|&variance| variance + epsilon <= 0.0) {
        return Err(node.broken(format!("variance {index} is not positive")).into());
    }
    let scale: ArrayD<f64> = &***weight / (&***variance + epsilon).mapv_into(f64::sqrt);
    let shift = &***bias - &***mean * &scale;
    // One value for each channel, repeated over the positions of the channel.
    let positions = activation.features() / channels;
    let repeat = |values: ArrayD<f64>| -> Array1<f64> {
        values.iter().flat_map(|&value| std::iter::repeat_n(value, positions)).collect()
    };
    let (scale, shift) = (repeat(scale), repeat(shift));
    scaled(node, &activation, scale, shift)
}

fn scaled(
    node: &mut Node<'_>,
    activation: &Activation,
    scale: Array1<f64>,
    shift: Array1<f64>,
) -> Result<Value, Failure> {
    let (scale, shift) = (Erasing::new(scale), Erasing::new(shift));
    Ok(Value::Activation(activation.scaled(node.builder, &scale, &shift, node.budget, node.name)?))
}

/// The operand of elementwise arithmetic, one value for each feature.
pub(super) fn per_sample(
    activation: &Activation,
    constant: &ArrayD<f64>,
    node: &str,
) -> Result<Array1<f64>, Failure> {
    let rank = activation.shape.len();
    let shape = constant.shape();
    if shape.len() > rank + 1 {
        return unsupported(format!(
            "a constant of {} dimensions adds dimensions to a value of {}",
            shape.len(),
            rank + 1
        ));
    }
    if shape.len() == rank + 1 && shape[0] != 1 {
        return unsupported("the constant differs from sample to sample of a batch");
    }
    let own = if shape.len() == rank + 1 { &shape[1..] } else { shape };
    let expected = || format!("a constant that broadcasts to [{}]", list(&activation.shape));
    match constant::common_shape(own, &activation.shape) {
        Some(common) if common == activation.shape => {}
        Some(_) => {
            return unsupported(format!(
                "a constant of shape [{}] repeats values of shape [{}]",
                list(own),
                list(&activation.shape)
            ));
        }
        None => return mismatch(node, expected(), format!("shape [{}]", list(shape))),
    }
    let mut full = vec![1];
    full.extend(&activation.shape);
    match constant.broadcast(IxDyn(&full)) {
        Some(values) => Ok(values.iter().copied().collect()),
        None => mismatch(node, expected(), format!("shape [{}]", list(shape))),
    }
}
