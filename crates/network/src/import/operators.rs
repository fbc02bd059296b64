//! The operators that import evaluates, and what to say about the others.

use super::{
    classical,
    constant::{self, Arithmetic},
    graph::{MACHINE_LEARNING_DOMAIN, is_float},
    layout, linear,
    node::Node,
    product, quantised, rectify, shape, smooth, support, transposed, trees,
    value::{Failure, Integer, ONLY_AT_THE_END, Value, mismatch, normalise_axis, unsupported},
    vectors, windows,
};
use crate::{onnx::data_type, program::Function};

/// True for an operator that [`evaluate`] knows.
pub(super) fn is_supported(domain: &str, operator: &str) -> bool {
    support::find(domain, operator).is_some()
}

/// Index of the output that is computed: classifiers give labels first, then scores.
pub(super) fn result(domain: &str, operator: &str) -> usize {
    let classifier = matches!(operator, "LinearClassifier" | "SVMClassifier" | "TreeEnsembleClassifier");
    usize::from(domain == MACHINE_LEARNING_DOMAIN && classifier)
}

/// True for the operators of ONNX itself.
pub(super) fn is_default_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// True for a division, of which only that by a constant is supported.
pub(super) fn is_division(operator: &str) -> bool {
    operator == "Div"
}

/// What may help with an operator that is not supported.
pub(super) fn hint(domain: &str, operator: &str) -> Option<&'static str> {
    let hint = match (domain, operator) {
        (MACHINE_LEARNING_DOMAIN, "Imputer") => "fill in missing values before",
        (MACHINE_LEARNING_DOMAIN, "LinearRegressor" | "TreeEnsembleRegressor") => "export a classifier",
        (MACHINE_LEARNING_DOMAIN, _) => "use a linear classifier, decision trees or MLPClassifier",
        (domain, _) if !is_default_domain(domain) => {
            "functions and custom operators are not expanded; export without them"
        }
        (_, "ConvInteger") => "quantise with QuantizeLinear and DequantizeLinear around Conv (QDQ)",
        (_, "ThresholdedRelu" | "Softsign" | "Exp" | "Log" | "Pow") => {
            "use Relu, LeakyRelu, Tanh, Sigmoid, Gelu or the like between layers"
        }
        (
            _,
            "LayerNormalization"
            | "InstanceNormalization"
            | "GroupNormalization"
            | "RMSNormalization"
            | "LpNormalization"
            | "MeanVarianceNormalization"
            | "LRN",
        ) => {
            "divides by a deviation of the input's, which has no lower bound; use BatchNormalization, which is \
             fused into the layer before it"
        }
        (_, "If" | "Loop" | "Scan") => {
            "control flow is not followed; export with fixed shapes, so that it is unrolled or folded"
        }
        (_, "LSTM" | "GRU" | "RNN" | "Attention" | "MultiHeadAttention") => {
            "only feed-forward networks are supported"
        }
        (_, "QLinearConv" | "QLinearMatMul" | "MatMulInteger" | "DynamicQuantizeLinear") => {
            "quantise with QuantizeLinear and DequantizeLinear around operators of real numbers (QDQ)"
        }
        (_, "ArgMax") => "end the model with logits, the vote is taken by the servers",
        _ => return None,
    };
    Some(hint)
}

/// Values of the outputs of `node`, whose inputs are all known: of all of a `Split`, of the one that
/// [`result`] names for any other.
pub(super) fn evaluate(node: &mut Node<'_>) -> Result<Vec<Value>, Failure> {
    if is_default_domain(&node.proto.domain) && node.proto.op_type == "Split" {
        return layout::split(node);
    }
    evaluate_one(node).map(|value| vec![value])
}

fn evaluate_one(node: &mut Node<'_>) -> Result<Value, Failure> {
    if node.proto.domain == MACHINE_LEARNING_DOMAIN {
        return match node.proto.op_type.as_str() {
            "LinearClassifier" => classical::linear_classifier(node),
            "Normalizer" => classical::normalizer(node),
            "Scaler" => classical::scaler(node),
            "SVMClassifier" => vectors::classifier(node),
            "TreeEnsembleClassifier" => trees::tree_ensemble(node),
            _ => unsupported("not supported"),
        };
    }
    match node.proto.op_type.as_str() {
        "Add" => linear::arithmetic(node, Arithmetic::Add),
        "Sub" => linear::arithmetic(node, Arithmetic::Subtract),
        "Mul" => linear::arithmetic(node, Arithmetic::Multiply),
        "Div" => linear::arithmetic(node, Arithmetic::Divide),
        "Sum" => linear::sum(node),
        "DequantizeLinear" => quantised::dequantise(node),
        "QuantizeLinear" => quantised::quantise(node),
        "Neg" => linear::negate(node),
        "Gemm" => product::gemm(node),
        "MatMul" => product::matrix_product(node),
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
        "Conv" => windows::convolution(node),
        "ConvTranspose" => transposed::transposed_convolution(node),
        "AveragePool" => windows::average_pool(node, false),
        "GlobalAveragePool" => windows::average_pool(node, true),
        "MaxPool" => windows::max_pool(node, false),
        "GlobalMaxPool" => windows::max_pool(node, true),
        "ReduceMean" => windows::reduce(node, true),
        "ReduceSum" => windows::reduce(node, false),
        "Abs" => rectify::absolute(node),
        "LeakyRelu" | "PRelu" => rectify::leaky_relu(node),
        "Clip" => rectify::clip(node),
        "Tanh" => smooth::function(node, Function::Tanh),
        "Softplus" => smooth::function(node, Function::Softplus),
        "Erf" => smooth::function(node, Function::Erf),
        "Mish" => smooth::function(node, Function::Mish),
        "Gelu" => smooth::gelu(node),
        "Swish" => smooth::swish(node),
        "Elu" | "Selu" | "Celu" => smooth::exponential_unit(node),
        "HardSigmoid" => rectify::hard_sigmoid(node, false),
        "HardSwish" => rectify::hard_sigmoid(node, true),
        "Max" => rectify::extreme(node, false),
        "Min" => rectify::extreme(node, true),
        "Pad" => layout::pad(node),
        "Expand" => expand(node),
        "Dropout" => dropout(node),
        "Cast" => cast(node),
        "Relu" => relu(node),
        "Sigmoid" => sigmoid(node),
        "Softmax" | "LogSoftmax" => softmax(node),
        "Gather" => layout::gather(node),
        "Transpose" => layout::transpose(node),
        "Sqrt" => constant::map_floats(&node.input(0)?, node.name, node.budget, f64::sqrt),
        "Reciprocal" => constant::map_floats(&node.input(0)?, node.name, node.budget, f64::recip),
        _ => unsupported("not supported"),
    }
}

fn relu(node: &mut Node<'_>) -> Result<Value, Failure> {
    match node.input(0)? {
        Value::Activation(activation) => {
            Ok(Value::Activation(node.builder.relu(&activation, node.budget, node.name)?))
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
            Ok(Value::float(constant::real_numbers(&array)?))
        }
        Value::Float(array) if to_integer => {
            node.budget.charge(array.len(), node.name)?;
            Ok(Value::integer(array.mapv(|value| Integer::Known(value as i64))))
        }
        _ => unsupported("values are only converted between formats of real numbers"),
    }
}

fn softmax(node: &mut Node<'_>) -> Result<Value, Failure> {
    let activation = match node.input(0)? {
        Value::Activation(activation) => activation,
        _ => return unsupported("only applied to values that depend on the input"),
    };
    let rank = activation.shape.len() + 1;
    // Before operator set 13 all axes from the given one on are flattened.
    let flattens = node.opset < 13;
    let axis = node.integer_attribute("axis", if flattens { 1 } else { -1 });
    let axis = normalise_axis(axis, rank, node.name)?;
    let Some(position) = axis.checked_sub(1) else {
        return unsupported("runs over the batch; name the axis of the classes");
    };
    let covered =
        if flattens { activation.shape[position..].iter().product() } else { activation.shape[position] };
    if covered == activation.features() {
        return Ok(Value::Scores { logits: activation, source: node.index });
    }
    if node.proto.op_type == "LogSoftmax" {
        return unsupported(ONLY_AT_THE_END);
    }
    // One of several: between layers.
    if flattens {
        let flat = activation.reshaped(vec![activation.features() / covered, covered]);
        let computed = smooth::softmax(node, &flat, 1)?;
        return Ok(Value::Activation(computed.reshaped(activation.shape)));
    }
    Ok(Value::Activation(smooth::softmax(node, &activation, position)?))
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
        let logits = first.two_logits(factors, node.builder, node.budget)?;
        return Ok(Value::Scores { logits, source: *source });
    }
    let activations: Option<Vec<_>> = values
        .iter()
        .map(|value| if let Value::Activation(activation) = value { Some(activation.clone()) } else { None })
        .collect();
    match activations {
        Some(parts) if !parts.is_empty() => layout::concatenate(node, &parts, axis),
        _ => constant::concatenate(&values, axis, node.name, node.budget),
    }
}

/// `Expand` of dimensions of a sample.
fn expand(node: &mut Node<'_>) -> Result<Value, Failure> {
    let activation = match node.input(0)? {
        Value::Activation(activation) => activation,
        _ => return unsupported("only values that depend on the input are repeated"),
    };
    let target = match node.input(1)? {
        Value::Integer(target) if target.ndim() == 1 => target,
        _ => return unsupported("the shape must be constant integers"),
    };
    let rank = activation.shape.len() + 1;
    if target.len() != rank {
        return unsupported("adds dimensions before the batch, or leaves some out");
    }
    let mut shape = Vec::with_capacity(rank - 1);
    for (index, &size) in target.iter().enumerate() {
        match (index, size) {
            (0, Integer::Batch | Integer::Known(1)) => {}
            (0, Integer::Known(size))
                if node.batch.is_some_and(|batch| usize::try_from(size) == Ok(batch)) => {}
            (0, _) | (_, Integer::Batch) => return unsupported("repeats the samples of a batch"),
            (index, Integer::Known(size)) => {
                let own = activation.shape[index - 1];
                let wanted = usize::try_from(size).unwrap_or(0);
                shape.push(if wanted == 1 { own } else { wanted });
            }
        }
    }
    Ok(Value::Activation(layout::expand(node, &activation, &shape)?))
}
