//! The operators that are read, and what of them: the table of `docs/operators.md`.

use super::{graph::MACHINE_LEARNING_DOMAIN, runtime::RUNTIME_DOMAIN};

/// An operator that import knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SupportedOperator {
    /// Its domain, `ai.onnx` for ONNX itself.
    pub domain: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What servers exchange for it.
    pub cost: Cost,
    /// What of it is read, and with what limits.
    pub notes: &'static str,
}

/// What servers exchange for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cost {
    /// Nothing.
    Free,
    /// Part of the product before or after it where there is one, else a product.
    Fused,
    /// A product and its rescaling.
    Product,
    /// A comparison for each number.
    Comparison,
    /// Several comparisons for each number, in one batch.
    Comparisons,
}

impl Cost {
    /// In words.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Free => "none",
            Self::Fused => "fused, else a product",
            Self::Product => "product",
            Self::Comparison => "comparison",
            Self::Comparisons => "comparisons",
        }
    }
}

const ELEMENTWISE: &str = "two values, or a value and a constant, with broadcasting within a sample";
const PIECES: &str = "straight pieces, at most 0.001 from the function before slopes are rounded";
const WINDOWS: &str = "one or two dimensions; strides, pads, dilations, auto_pad, ceil_mode";

macro_rules! table {
    ($($domain:ident $name:literal $cost:ident $notes:expr;)*) => {
        /// All operators that are read, by domain and name.
        pub const SUPPORTED: &[SupportedOperator] = &[
            $(SupportedOperator { domain: table!($domain), name: $name, cost: Cost::$cost, notes: $notes },)*
        ];
    };
    (onnx) => { "ai.onnx" };
    (runtime) => { RUNTIME_DOMAIN };
    (classical) => { MACHINE_LEARNING_DOMAIN };
}

table! {
    onnx "Abs" Comparison "";
    onnx "Add" Fused ELEMENTWISE;
    onnx "AveragePool" Free "as Conv; the divisor becomes part of a product";
    onnx "BatchNormalization" Fused "with the statistics of training";
    onnx "Cast" Free "between formats of real numbers";
    onnx "Celu" Comparisons PIECES;
    onnx "Clip" Comparison "constant bounds";
    onnx "Concat" Free "along dimensions of a sample";
    onnx "Constant" Free "numbers";
    onnx "ConstantOfShape" Free "";
    onnx "Conv" Product "constant kernel; one or two dimensions; strides, pads, dilations, groups, auto_pad";
    onnx "ConvTranspose" Product "as Conv, with output_padding and output_shape; zeros between numbers cost work";
    onnx "DepthToSpace" Free "";
    onnx "DequantizeLinear" Free "of constants, by tensor or channel; of activations after QuantizeLinear";
    onnx "Div" Fused "by a constant";
    onnx "Dropout" Free "outside of training, where it does nothing";
    onnx "Einsum" Product "of two factors as a product of matrices within a sample";
    onnx "Elu" Comparisons PIECES;
    onnx "Erf" Comparisons PIECES;
    onnx "Exp" Free "of constants; after the last layer, where it does not change the order of the classes";
    onnx "Expand" Free "to a constant shape; values not over the batch";
    onnx "Flatten" Free "of dimensions of a sample";
    onnx "Gather" Free "constant indices";
    onnx "Gelu" Comparisons PIECES;
    onnx "Gemm" Product "constant weights; alpha, beta, transB";
    onnx "GlobalAveragePool" Free "the divisor becomes part of a product";
    onnx "GlobalMaxPool" Comparison "";
    onnx "HardSigmoid" Comparison "two for each number";
    onnx "HardSwish" Comparison "two for each number, and a product";
    onnx "Identity" Free "";
    onnx "LeakyRelu" Comparison "and a product for the slope";
    onnx "Log" Free "of constants; of the probabilities after the last layer";
    onnx "LogSoftmax" Free "after the last layer only, where it does not change the order of the classes";
    onnx "MatMul" Product "by a constant from either side, at each position of a sample; of two values within a sample";
    onnx "Max" Comparison "of values and constants";
    onnx "MaxPool" Comparison WINDOWS;
    onnx "Min" Comparison "of values and constants";
    onnx "Mish" Comparisons PIECES;
    onnx "Mul" Fused ELEMENTWISE;
    onnx "Neg" Free "";
    onnx "PRelu" Comparison "constant slopes; and a product for them";
    onnx "Pad" Free "with zeros, of dimensions of a sample";
    onnx "Pow" Product "powers 1 to 4";
    onnx "QuantizeLinear" Comparison "by tensor: clipped to the 8-bit range, not rounded to its grid, \
        so at most half a step off";
    onnx "Reciprocal" Free "of constants";
    onnx "ReduceL1" Comparison "over dimensions of a sample";
    onnx "ReduceLogSumExp" Free "of the scores of the classes, from which it is subtracted";
    onnx "ReduceMax" Comparison "over dimensions of a sample";
    onnx "ReduceMean" Free "over dimensions of a sample; the divisor becomes part of a product";
    onnx "ReduceMin" Comparison "over dimensions of a sample";
    onnx "ReduceProd" Product "over dimensions of a sample, of shapes";
    onnx "ReduceSum" Free "over dimensions of a sample";
    onnx "ReduceSumSquare" Product "over dimensions of a sample";
    onnx "Relu" Comparison "moves behind a MaxPool";
    onnx "Reshape" Free "to a constant shape that keeps the batch";
    onnx "Resize" Free "mode nearest by whole factors";
    onnx "Selu" Comparisons PIECES;
    onnx "Shape" Free "for the shapes of Reshape and the like";
    onnx "Sigmoid" Comparisons "free after the last layer; straight pieces between layers, at most 0.001 from the function";
    onnx "Slice" Free "constant bounds";
    onnx "Softmax" Comparisons "free after the last layer; between layers over at most 256 numbers, by straight pieces";
    onnx "Softplus" Comparisons PIECES;
    onnx "SpaceToDepth" Free "";
    onnx "Split" Free "along dimensions of a sample";
    onnx "Sqrt" Free "of constants";
    onnx "Squeeze" Free "";
    onnx "Sub" Fused ELEMENTWISE;
    onnx "Sum" Fused "of values and constants";
    onnx "Swish" Comparisons PIECES;
    onnx "Tanh" Comparisons PIECES;
    onnx "ThresholdedRelu" Comparison "and a product";
    onnx "Transpose" Free "of dimensions of a sample";
    onnx "Unsqueeze" Free "";
    onnx "Upsample" Free "mode nearest by whole factors";
    classical "ArrayFeatureExtractor" Free "constant columns of the features";
    classical "Binarizer" Comparison "";
    classical "Imputer" Free "of missing numbers, which no query holds";
    classical "LinearClassifier" Product "post_transform NONE, SOFTMAX, LOGISTIC";
    classical "Normalizer" Free "of a classifier's scores, whose order it keeps";
    classical "SVMClassifier" Comparison "kernel LINEAR; no comparison for two classes, the votes of all pairs for more; \
        probabilities of two classes only";
    classical "Scaler" Fused "";
    classical "TreeEnsembleClassifier" Comparison "comparisons of features with thresholds, all paths taken; \
        structure, features, thresholds and leaves stay secret, the numbers of trees, nodes and leaves do not";
    runtime "BiasGelu" Comparisons PIECES;
    runtime "FastGelu" Comparisons PIECES;
    runtime "FusedConv" Product "as Conv, with a summand and a function of the table behind it";
    runtime "FusedGemm" Product "as Gemm, with a function of the table behind it";
    runtime "FusedMatMul" Product "as MatMul, with alpha; not transposed";
    runtime "Gelu" Comparisons PIECES;
    runtime "QuickGelu" Comparisons PIECES;
}

/// The entry of an operator, if import knows it.
pub(super) fn find(domain: &str, name: &str) -> Option<&'static SupportedOperator> {
    let domain = if domain.is_empty() { "ai.onnx" } else { domain };
    SUPPORTED.iter().find(|operator| operator.domain == domain && operator.name == name)
}

/// The table in Markdown, as `docs/operators.md` has it.
#[must_use]
pub fn table() -> String {
    let mut text = "| domain | operator | messages | what is read |\n|---|---|---|---|\n".to_owned();
    for SupportedOperator { domain, name, cost, notes } in SUPPORTED {
        text += &format!("| {domain} | {name} | {} | {notes} |\n", cost.describe());
    }
    text
}
