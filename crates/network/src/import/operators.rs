//! The operators that import evaluates, and what to say about the others.

use super::{
    constant::{self, Arithmetic},
    graph::{MACHINE_LEARNING_DOMAIN, is_float},
    linear,
    node::Node,
    shape,
    value::{Failure, Integer, ONLY_AT_THE_END, Value, mismatch, normalise_axis, unsupported},
};
use crate::onnx::data_type;

/// True for an operator that [`evaluate`] knows.
pub(super) fn is_supported(domain: &str, operator: &str) -> bool {
    is_default_domain(domain)
        && matches!(
            operator,
            "Add"
                | "BatchNormalization"
                | "Cast"
                | "Concat"
                | "Constant"
                | "Div"
                | "Dropout"
                | "Flatten"
                | "Gather"
                | "Gemm"
                | "Identity"
                | "LogSoftmax"
                | "MatMul"
                | "Mul"
                | "Neg"
                | "Reciprocal"
                | "Relu"
                | "Reshape"
                | "Shape"
                | "Sigmoid"
                | "Slice"
                | "Softmax"
                | "Sqrt"
                | "Squeeze"
                | "Sub"
                | "Transpose"
                | "Unsqueeze"
        )
}

/// True for the operators of ONNX itself.
pub(super) fn is_default_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// True for elementwise arithmetic on two operands.
pub(super) fn is_arithmetic(operator: &str) -> bool {
    matches!(operator, "Add" | "Sub" | "Mul" | "Div")
}

/// What may help with an operator that is not supported.
pub(super) fn hint(domain: &str, operator: &str) -> Option<&'static str> {
    let hint = match (domain, operator) {
        (MACHINE_LEARNING_DOMAIN, "Scaler" | "Imputer") => {
            "write standardisation by constants as Sub and Div, or apply it to the data"
        }
        (MACHINE_LEARNING_DOMAIN, "LinearClassifier" | "LinearRegressor") => {
            "write it as Gemm followed by Softmax"
        }
        (MACHINE_LEARNING_DOMAIN, "Normalizer") => "end the model with Softmax instead",
        (MACHINE_LEARNING_DOMAIN, _) => "only neural networks are supported (MLPClassifier)",
        (domain, _) if !is_default_domain(domain) => {
            "functions and custom operators are not expanded; export without them"
        }
        (_, "Conv" | "ConvTranspose" | "ConvInteger") => "convolutions are not supported; use Gemm layers",
        (_, "AveragePool" | "GlobalAveragePool" | "MaxPool" | "GlobalMaxPool") => {
            "pooling is not supported; use Gemm layers"
        }
        (
            _,
            "Tanh" | "Elu" | "Selu" | "Gelu" | "LeakyRelu" | "PRelu" | "Softplus" | "HardSigmoid"
            | "HardSwish" | "Mish" | "Erf" | "ThresholdedRelu" | "Celu" | "Clip",
        ) => "use Relu between layers",
        (_, "LayerNormalization" | "InstanceNormalization" | "GroupNormalization") => {
            "use BatchNormalization, which is fused into the layer before it"
        }
        (_, "LSTM" | "GRU" | "RNN" | "Attention" | "MultiHeadAttention") => {
            "only feed-forward networks are supported"
        }
        (_, "QuantizeLinear" | "DequantizeLinear" | "QLinearMatMul" | "MatMulInteger") => {
            "export the network before it is quantised"
        }
        (_, "ArgMax") => "end the model with logits, the vote is taken by the servers",
        (_, "ReduceMean" | "ReduceSum") => "write it as a MatMul by a constant",
        _ => return None,
    };
    Some(hint)
}

/// Value of the first output of `node`, whose inputs are all known.
pub(super) fn evaluate(node: &mut Node<'_>) -> Result<Value, Failure> {
    match node.proto.op_type.as_str() {
        "Add" => linear::arithmetic(node, Arithmetic::Add),
        "Sub" => linear::arithmetic(node, Arithmetic::Subtract),
        "Mul" => linear::arithmetic(node, Arithmetic::Multiply),
        "Div" => linear::arithmetic(node, Arithmetic::Divide),
        "Neg" => linear::negate(node),
        "Gemm" => linear::gemm(node),
        "MatMul" => linear::matrix_product(node),
        "BatchNormalization" => linear::batch_normalisation(node),
        "Reshape" => shape::reshape(node),
        "Flatten" => shape::flatten(node),
        "Squeeze" => shape::squeeze(node),
        "Unsqueeze" => shape::unsqueeze(node),
        "Shape" => shape::shape(node),
        "Slice" => shape::slice(node),
        "Concat" => concatenate(node),
        "Constant" => node.constant(),
        "Identity" => Ok(node.input(0)?),
        "Dropout" => dropout(node),
        "Cast" => cast(node),
        "Relu" => relu(node),
        "Sigmoid" => sigmoid(node),
        "Softmax" | "LogSoftmax" => softmax(node),
        "Gather" => {
            let indices = match node.input(1)? {
                Value::Integer(indices) => indices,
                _ => return unsupported("indices must be constant"),
            };
            let (value, axis) = (node.input(0)?, node.integer_attribute("axis", 0));
            constant::gather(&value, &indices, axis, node.name, node.budget)
        }
        "Transpose" => {
            let (value, permutation) = (node.input(0)?, node.integers_attribute("perm"));
            constant::transpose(&value, permutation.as_deref(), node.name, node.budget)
        }
        "Sqrt" => constant::map_floats(&node.input(0)?, node.name, node.budget, f64::sqrt),
        "Reciprocal" => constant::map_floats(&node.input(0)?, node.name, node.budget, f64::recip),
        _ => unsupported("not supported"),
    }
}

fn relu(node: &mut Node<'_>) -> Result<Value, Failure> {
    match node.input(0)? {
        Value::Activation(activation) => {
            Ok(Value::Activation(node.stages.relu(&activation, node.budget, node.name)?))
        }
        value => constant::map_floats(&value, node.name, node.budget, |value| value.max(0.0)),
    }
}

fn dropout(node: &Node<'_>) -> Result<Value, Failure> {
    // Since operator set 12 an input says whether values are really dropped.
    if let Some(Value::Integer(training)) = node.optional(2)
        && training.iter().any(|&element| element != Integer::Known(0))
    {
        return unsupported("drops values at random in training mode; call model.eval() before export");
    }
    Ok(node.input(0)?)
}

fn cast(node: &mut Node<'_>) -> Result<Value, Failure> {
    let target = i32::try_from(node.integer_attribute("to", 0)).unwrap_or(0);
    let to_integer = matches!(target, data_type::INT32 | data_type::INT64);
    match node.input(0)? {
        // The real network is computed without rounding, so narrower formats change nothing.
        value @ (Value::Float(_) | Value::Activation(_) | Value::Sigmoid { .. } | Value::Scores { .. })
            if is_float(target) =>
        {
            Ok(value)
        }
        value @ Value::Integer(_) if to_integer => Ok(value),
        Value::Integer(array) if is_float(target) => {
            node.budget.charge(array.len(), node.name)?;
            let floats: Option<Vec<f64>> = array
                .iter()
                .map(|element| match element {
                    Integer::Known(value) => Some(*value as f64),
                    Integer::Batch => None,
                })
                .collect();
            match floats.map(|floats| ndarray::ArrayD::from_shape_vec(array.raw_dim(), floats)) {
                Some(Ok(floats)) => Ok(Value::float(floats)),
                _ => unsupported("uses the batch size as a number"),
            }
        }
        Value::Float(array) if to_integer => {
            node.budget.charge(array.len(), node.name)?;
            Ok(Value::integer(array.mapv(|value| Integer::Known(value as i64))))
        }
        _ => unsupported("values are only converted between formats of real numbers"),
    }
}

fn softmax(node: &Node<'_>) -> Result<Value, Failure> {
    let activation = match node.input(0)? {
        Value::Activation(activation) => activation,
        _ => return unsupported(ONLY_AT_THE_END),
    };
    let rank = activation.shape.len() + 1;
    // Before operator set 13 all axes from the given one on are flattened.
    let flattens = node.opset < 13;
    let axis = node.integer_attribute("axis", if flattens { 1 } else { -1 });
    let axis = normalise_axis(axis, rank, node.name)?;
    let covered = match axis.checked_sub(1) {
        None => 0,
        Some(first) if flattens => activation.shape[first..].iter().product(),
        Some(position) => activation.shape[position],
    };
    if covered != activation.features() {
        return unsupported("must run over all outputs of a sample and not over the batch");
    }
    Ok(Value::Scores { logits: activation, source: node.index })
}

fn sigmoid(node: &Node<'_>) -> Result<Value, Failure> {
    match node.input(0)? {
        Value::Activation(logit) if logit.features() == 1 => {
            Ok(Value::Sigmoid { logit, complement: false, source: node.index })
        }
        // It is monotonic, so the order of several scores stays as it is.
        Value::Activation(logits) => Ok(Value::Scores { logits, source: node.index }),
        _ => unsupported(ONLY_AT_THE_END),
    }
}

fn concatenate(node: &mut Node<'_>) -> Result<Value, Failure> {
    let values: Vec<Value> =
        (0..node.inputs.len()).map(|index| node.input(index)).collect::<Result<_, _>>()?;
    let axis = node.integer_attribute("axis", 1);
    if let [
        Value::Sigmoid { logit: first, complement: first_complement, source },
        Value::Sigmoid { logit: second, complement: second_complement, .. },
    ] = values.as_slice()
    {
        // scikit-learn's binary classifiers end with [1 - p, p].
        if first_complement == second_complement || !first.same_values(second) {
            return unsupported("joins probabilities other than p and 1 - p");
        }
        let rank = first.shape.len() + 1;
        if normalise_axis(axis, rank, node.name)? != rank - 1 || rank != 2 {
            return mismatch(node.name, "two columns of probabilities", format!("axis {axis}"));
        }
        let factors = if *first_complement { [0.0, 1.0] } else { [1.0, 0.0] };
        let logits = first.two_logits(factors, node.budget)?;
        return Ok(Value::Scores { logits, source: *source });
    }
    constant::concatenate(&values, axis, node.name, node.budget)
}
