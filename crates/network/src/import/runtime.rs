//! The operators that ONNX Runtime's optimiser puts together, taken apart again.

use super::{
    activation::Activation,
    constant::Arithmetic,
    linear,
    node::Node,
    product,
    rectify::{self, activation},
    smooth,
    value::{Failure, Value, unsupported},
    windows,
};
use crate::program::Function;

/// Domain of ONNX Runtime's own operators.
pub(super) const RUNTIME_DOMAIN: &str = "com.microsoft";

/// The value of a node of [`RUNTIME_DOMAIN`].
pub(super) fn evaluate(node: &mut Node<'_>) -> Result<Value, Failure> {
    match node.proto.op_type.as_str() {
        "FusedConv" => {
            let mut value = windows::convolution(node)?;
            if let Some(summand) = node.optional(3) {
                (node.inputs[0], node.inputs[1]) = (Some(value), Some(summand));
                value = linear::arithmetic(node, Arithmetic::Add)?;
            }
            let parameters = node.floats_attribute("activation_params")?;
            activated(node, value, &parameters)
        }
        "FusedGemm" => {
            let value = product::gemm(node)?;
            let mut parameters = Vec::new();
            for name in ["activation_alpha", "activation_beta"] {
                parameters.extend(node.optional_float_attribute(name));
            }
            activated(node, value, &parameters)
        }
        "FusedMatMul" => {
            for name in ["transA", "transB", "transBatchA", "transBatchB"] {
                if node.integer_attribute(name, 0) != 0 {
                    return unsupported(format!(
                        "{name} is not read; let the runtime optimise less than extended"
                    ));
                }
            }
            let alpha = node.float_attribute("alpha", 1.0)?;
            let product = product::matrix_product(node)?;
            match product {
                Value::Activation(product) if alpha != 1.0 => {
                    Ok(Value::Activation(rectify::scaled(node, &product, alpha, 0.0)?))
                }
                product => Ok(product),
            }
        }
        "BiasGelu" => {
            let sum = linear::arithmetic(node, Arithmetic::Add)?;
            node.inputs = vec![Some(sum)];
            smooth::function(node, Function::Gelu)
        }
        "FastGelu" => {
            if node.optional(1).is_some() {
                let sum = linear::arithmetic(node, Arithmetic::Add)?;
                node.inputs = vec![Some(sum)];
            }
            smooth::function(node, Function::GeluTanh)
        }
        "Gelu" => smooth::function(node, Function::Gelu),
        // x sigmoid(alpha x).
        "QuickGelu" => smooth::swish(node, 1.702),
        _ => unsupported("not supported"),
    }
}

/// The function that a fused operator ends with.
fn activated(node: &mut Node<'_>, value: Value, parameters: &[f64]) -> Result<Value, Failure> {
    let parameter = |index: usize, default: f64| parameters.get(index).copied().unwrap_or(default);
    let name = node.text_attribute("activation");
    node.inputs = vec![Some(value)];
    let value: Activation = activation(node)?;
    match name.as_str() {
        "" => Ok(Value::Activation(value)),
        "Relu" => Ok(Value::Activation(node.builder.relu(&value, node.budget, node.name)?)),
        "LeakyRelu" => rectify::leaky(node, &value, parameter(0, 0.01)),
        "Clip" => {
            let bounds = [parameter(0, f64::NEG_INFINITY), parameter(1, f64::INFINITY)];
            Ok(Value::Activation(rectify::clipped(node, &value, bounds)?))
        }
        "HardSigmoid" => {
            let line = rectify::scaled(node, &value, parameter(0, 0.2), parameter(1, 0.5))?;
            Ok(Value::Activation(rectify::clipped(node, &line, [0.0, 1.0])?))
        }
        "Tanh" => smooth::function(node, Function::Tanh),
        "Sigmoid" => smooth::function(node, Function::Sigmoid),
        other => unsupported(format!(
            "ends with {other}, which is not read; let the runtime optimise less than extended"
        )),
    }
}
