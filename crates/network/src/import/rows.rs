//! Values whose first dimension holds the positions of all samples.
//!
//! Exporters and optimisers bring `[batch, rows, features]` to `[batch · rows, features]` before a dense layer and back
//! after it. Between the two, operators that treat every row alike are those on `[batch, rows, features]`.

use super::{
    activation::Activation,
    node::Node,
    value::{Failure, Value, unsupported},
};

/// Operators that treat every row alike.
const EACH_ROW: &[&str] = &[
    "Add",
    "Cast",
    "Celu",
    "Clip",
    "Div",
    "Dropout",
    "Elu",
    "Erf",
    "FusedGemm",
    "Gelu",
    "Gemm",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "MatMul",
    "Mish",
    "Mul",
    "Neg",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Sub",
    "Swish",
    "Tanh",
];

/// Puts the values of all samples in the place of their rows. True when there are some.
pub(super) fn enter(node: &mut Node<'_>) -> Result<bool, Failure> {
    let is_rows = |value: &Option<Value>| matches!(value, Some(Value::Rows(_)));
    let reshapes = node.proto.op_type == "Reshape";
    if reshapes || !node.inputs.iter().any(is_rows) {
        return Ok(false);
    }
    let mixed =
        "its first dimension holds positions and samples alike; keep the batch as the first dimension";
    if !EACH_ROW.contains(&node.proto.op_type.as_str()) {
        return unsupported(mixed);
    }
    let shapes: Vec<Vec<usize>> =
        node.inputs.iter().flatten().filter_map(rows).map(|value| value.shape.clone()).collect();
    let rank = shapes[0].len();
    if shapes.iter().any(|shape| shape[0] != shapes[0][0] || shape.len() != rank) {
        return unsupported(mixed);
    }
    let layer = matches!(node.proto.op_type.as_str(), "FusedGemm" | "Gemm" | "MatMul");
    for input in node.inputs.iter_mut().flatten() {
        match input {
            Value::Rows(value) => *input = Value::Activation(value.clone()),
            Value::Activation(_) => return unsupported(mixed),
            // A number for each row would be one for each sample too.
            Value::Float(constant)
                if !layer && constant.ndim() >= rank && constant.shape()[constant.ndim() - rank] != 1 =>
            {
                return unsupported(mixed);
            }
            Value::Float(constant) if layer && constant.ndim() > 2 => return unsupported(mixed),
            _ => {}
        }
    }
    node.in_rows = true;
    Ok(true)
}

fn rows(value: &Value) -> Option<&Activation> {
    if let Value::Rows(rows) = value { Some(rows) } else { None }
}

/// The result of a node on the rows of all samples.
pub(super) fn leave(value: Value) -> Value {
    match value {
        Value::Activation(activation) => Value::Rows(activation),
        value => value,
    }
}
