//! The operators that import evaluates, and what to say about the others.

use ndarray::{ArrayD, IxDyn};

use super::{
    MAXIMUM_ELEMENTS, MAXIMUM_RANK,
    activation::Activation,
    classical,
    constant::{self, Arithmetic},
    einsum,
    graph::{MACHINE_LEARNING_DOMAIN, is_float},
    layout, linear,
    node::Node,
    product, quantised, rectify,
    reduce::{self, Reduction},
    runtime, shape, smooth, support, transposed, trees,
    value::{Failure, Integer, ONLY_AT_THE_END, Value, mismatch, normalise_axis, unsupported},
    vectors, windows,
};
use crate::{
    onnx::data_type,
    program::{Function, Operation},
};

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
        (MACHINE_LEARNING_DOMAIN, "LinearRegressor" | "TreeEnsembleRegressor") => "export a classifier",
        (MACHINE_LEARNING_DOMAIN, _) => "use a linear classifier, decision trees or MLPClassifier",
        (domain, _) if !is_default_domain(domain) => {
            "functions and custom operators are not expanded; export without them"
        }
        (_, "ConvInteger") => "quantise with QuantizeLinear and DequantizeLinear around Conv (QDQ)",
        (_, "Softsign") => "use Relu, LeakyRelu, Tanh, Sigmoid, Gelu or the like between layers",
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
        (_, "LSTM" | "GRU" | "RNN") => "only feed-forward networks are supported",
        (_, "Attention") => "export it as MatMul and Softmax, with an operator set before 23",
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
    if node.proto.domain == runtime::RUNTIME_DOMAIN {
        return runtime::evaluate(node);
    }
    if node.proto.domain == MACHINE_LEARNING_DOMAIN {
        return match node.proto.op_type.as_str() {
            "ArrayFeatureExtractor" => classical::columns(node),
            "Binarizer" => classical::binarizer(node),
            "Imputer" => classical::imputer(node),
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
        "Einsum" => einsum::einsum(node),
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
        "ConstantOfShape" => constant_of_shape(node),
        "Resize" | "Upsample" => layout::upsample(node),
        "Identity" => Ok(node.input(0)?),
        "Conv" => windows::convolution(node),
        "ConvTranspose" => transposed::transposed_convolution(node),
        "AveragePool" => windows::average_pool(node, false),
        "GlobalAveragePool" => windows::average_pool(node, true),
        "MaxPool" => windows::max_pool(node, false),
        "GlobalMaxPool" => windows::max_pool(node, true),
        "ReduceMean" => reduce::reduce(node, Reduction::Mean),
        "ReduceSum" => reduce::reduce(node, Reduction::Sum),
        "ReduceMax" => reduce::reduce(node, Reduction::Largest),
        "ReduceMin" => reduce::reduce(node, Reduction::Smallest),
        "ReduceL1" => reduce::reduce(node, Reduction::Magnitudes),
        "ReduceSumSquare" => reduce::reduce(node, Reduction::Squares),
        "ReduceProd" => reduce::reduce(node, Reduction::Product),
        "ReduceLogSumExp" => reduce::log_sum_exp(node),
        "Pow" => power(node),
        "Exp" => exponential(node),
        "Log" => logarithm(node),
        "DepthToSpace" => layout::depth_to_space(node),
        "SpaceToDepth" => layout::space_to_depth(node),
        "ThresholdedRelu" => rectify::thresholded(node),
        "Abs" => rectify::absolute(node),
        "LeakyRelu" | "PRelu" => rectify::leaky_relu(node),
        "Clip" => rectify::clip(node),
        "Tanh" => smooth::function(node, Function::Tanh),
        "Softplus" => smooth::function(node, Function::Softplus),
        "Erf" => smooth::function(node, Function::Erf),
        "Mish" => smooth::function(node, Function::Mish),
        "Gelu" => smooth::gelu(node),
        "Swish" => smooth::swish(node, 1.0),
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
        "Sqrt" => of_constant(node, f64::sqrt),
        "Reciprocal" => of_constant(node, f64::recip),
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

/// A function that is steeper than any bound near zero, as the deviation that a LayerNormalization divides by.
fn of_constant(node: &mut Node<'_>, function: fn(f64) -> f64) -> Result<Value, Failure> {
    match node.input(0)? {
        Value::Activation(_) => unsupported(
            "of a value that depends on the input it has no bounded error; where it is part of a \
             LayerNormalization, use BatchNormalization",
        ),
        value => constant::map_floats(&value, node.name, node.budget, function),
    }
}

/// `Pow` with a small constant exponent.
fn power(node: &mut Node<'_>) -> Result<Value, Failure> {
    let exponent = match node.input(1)? {
        Value::Float(exponent) if exponent.len() == 1 => exponent.iter().sum(),
        Value::Integer(exponent) if exponent.len() == 1 => {
            constant::real_numbers(&exponent)?.iter().sum::<f64>()
        }
        _ => return unsupported("the exponent must be one constant"),
    };
    let activation = match node.input(0)? {
        Value::Activation(activation) => activation,
        value => return constant::map_floats(&value, node.name, node.budget, |value| value.powf(exponent)),
    };
    let square = |node: &mut Node<'_>, pair: [&Activation; 2]| {
        node.builder.pairwise(Operation::Multiply, pair, node.budget, node.name)
    };
    if exponent == 1.0 {
        return Ok(Value::Activation(activation));
    }
    if ![2.0, 3.0, 4.0].contains(&exponent) {
        return unsupported("only the powers 1 to 4 are read; use Relu, Tanh or the like between layers");
    }
    let activation = node.builder.computed(&activation, node.budget)?;
    let squared = square(node, [&activation; 2])?;
    Ok(Value::Activation(match exponent {
        2.0 => squared,
        3.0 => square(node, [&squared, &activation])?,
        _ => square(node, [&squared; 2])?,
    }))
}

/// `Exp` after the last layer, where it does not change the order of the classes.
fn exponential(node: &mut Node<'_>) -> Result<Value, Failure> {
    match node.input(0)? {
        Value::Activation(logits) => Ok(Value::Scores { logits, source: node.index }),
        scores @ Value::Scores { .. } => Ok(scores),
        value => constant::map_floats(&value, node.name, node.budget, f64::exp),
    }
}

/// `Log` of probabilities, whose order it keeps.
fn logarithm(node: &mut Node<'_>) -> Result<Value, Failure> {
    match node.input(0)? {
        scores @ Value::Scores { .. } => Ok(scores),
        value @ Value::Float(_) => constant::map_floats(&value, node.name, node.budget, f64::ln),
        _ => unsupported(
            "only taken of the probabilities of a Softmax or Sigmoid; use Softplus or the like between layers",
        ),
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
        _ if values.iter().any(|value| matches!(value, Value::Activation(_))) => {
            with_constants(node, &values, axis)
        }
        _ => constant::concatenate(&values, axis, node.name, node.budget),
    }
}

/// `Concat` of values with constants: with zeros in the constants' places, to which these are added.
fn with_constants(node: &mut Node<'_>, values: &[Value], axis: i64) -> Result<Value, Failure> {
    let samples =
        "joins values of the input with constants of other dimensions, or that differ from sample to sample";
    let Some(first) = values.iter().find_map(|value| {
        if let Value::Activation(activation) = value { Some(activation.clone()) } else { None }
    }) else {
        return unsupported(samples);
    };
    let mut parts = Vec::with_capacity(values.len());
    let mut summands = Vec::with_capacity(values.len());
    for value in values {
        let (part, summand) = match value {
            Value::Activation(activation) => {
                let mut shape = vec![1];
                shape.extend(&activation.shape);
                node.budget.charge(activation.features(), node.name)?;
                (activation.clone(), Value::float(ArrayD::zeros(IxDyn(&shape))))
            }
            Value::Float(constant)
                if constant.ndim() == first.shape.len() + 1 && constant.shape()[0] == 1 =>
            {
                let shape = constant.shape()[1..].to_vec();
                (node.builder.zeros(&first, shape, node.budget, node.name)?, value.clone())
            }
            _ => return unsupported(samples),
        };
        parts.push(part);
        summands.push(summand);
    }
    let joined = layout::concatenate(node, &parts, axis)?;
    let summand = constant::concatenate(&summands, axis, node.name, node.budget)?;
    node.inputs = vec![Some(joined), Some(summand)];
    linear::arithmetic(node, Arithmetic::Add)
}

/// `ConstantOfShape`; over the batch it is one number for all samples.
fn constant_of_shape(node: &mut Node<'_>) -> Result<Value, Failure> {
    let filler = node.constant().or_else(|failure| match failure {
        Failure::Unsupported(_) => Ok(Value::float(ArrayD::zeros(IxDyn(&[1])))),
        failure => Err(failure),
    })?;
    expanded(node, &filler, 0)
}

/// A constant repeated to the shape that input `index` gives.
fn expanded(node: &mut Node<'_>, constant: &Value, index: usize) -> Result<Value, Failure> {
    let shape = match node.input(index)? {
        Value::Integer(shape) if shape.ndim() == 1 && shape.len() <= MAXIMUM_RANK => shape,
        _ => return unsupported("the shape must be constant integers"),
    };
    let mut target = Vec::with_capacity(shape.len());
    for (place, size) in shape.iter().enumerate() {
        target.push(match size {
            // One for all samples.
            Integer::Batch if place == 0 => 1,
            Integer::Known(size) => match usize::try_from(*size) {
                Ok(size) => size,
                Err(_) => return mismatch(node.name, "sizes of 0 or more", size.to_string()),
            },
            Integer::Batch => return unsupported("repeats the samples of a batch"),
        });
    }
    let common = |own: &[usize]| constant::common_shape(own, &target);
    node.budget.charge(constant::extent(&target), node.name)?;
    let result = match constant {
        Value::Float(array) => common(array.shape()).and_then(|shape| {
            (constant::extent(&shape) <= MAXIMUM_ELEMENTS)
                .then(|| array.broadcast(IxDyn(&shape)).map(|view| Value::float(view.to_owned())))?
        }),
        Value::Integer(array) => common(array.shape()).and_then(|shape| {
            (constant::extent(&shape) <= MAXIMUM_ELEMENTS)
                .then(|| array.broadcast(IxDyn(&shape)).map(|view| Value::integer(view.to_owned())))?
        }),
        _ => return unsupported("only constants and values that depend on the input are repeated"),
    };
    match result {
        Some(value) => Ok(value),
        None => mismatch(node.name, "a shape that the constant broadcasts to", format!("{target:?}")),
    }
}

/// `Expand` of dimensions of a sample.
fn expand(node: &mut Node<'_>) -> Result<Value, Failure> {
    let activation = match node.input(0)? {
        Value::Activation(activation) => activation,
        constant @ (Value::Float(_) | Value::Integer(_)) => return expanded(node, &constant, 1),
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
