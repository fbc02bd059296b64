//! Errors of import, each naming the thing, the limit and the remedy.

use std::{fmt, path::PathBuf};

use thiserror::Error;

use super::{MAXIMUM_ELEMENTS, MAXIMUM_FILE_BYTES, MAXIMUM_OPERATIONS, MAXIMUM_OPSET, MINIMUM_OPSET};
use crate::model::NetworkError;

/// Longest piece of a name from a file that an error repeats, in characters.
const LONGEST_NAME: usize = 120;

/// Why an ONNX file was refused. Names that come from the file are shortened and have control
/// characters escaped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is larger than any model that can be shared.
    #[error("model has {bytes} bytes; the limit is {MAXIMUM_FILE_BYTES}. Use a smaller network")]
    FileTooLarge {
        /// Size of the file.
        bytes: u64,
    },
    /// There are no bytes.
    #[error("model is empty; export it again")]
    Empty,
    /// The bytes are not ONNX.
    #[error("not an ONNX model, or damaged or cut off: {reason}. Export or copy the file again")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// The file has more of something than import takes.
    #[error("model has {found} {what}; the limit is {limit}. Use a smaller network")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How much there is, or at least is.
        found: usize,
        /// Most that is taken.
        limit: usize,
    },
    /// Constants and fused weights together are too large.
    #[error(
        "node {node}: constants and fused weights exceed {MAXIMUM_ELEMENTS} elements. Use a smaller \
         network, and put ReLU between wide layers so that they are not multiplied out"
    )]
    TooLarge {
        /// Node or tensor at which the limit was passed.
        node: String,
    },
    /// Multiplying out consecutive layers takes too long.
    #[error(
        "node {node}: fusing consecutive linear layers takes more than {MAXIMUM_OPERATIONS} \
         multiplications. Put ReLU between wide layers, or merge them before export"
    )]
    TooMuchWork {
        /// Node at which the limit was passed.
        node: String,
    },
    /// The version of the ONNX operator set is unknown.
    #[error(
        "operator set {} is not supported; export with opset_version \
         {MINIMUM_OPSET} to {MAXIMUM_OPSET}",
        found.map_or_else(|| "(none given)".to_owned(), |version| version.to_string())
    )]
    OperatorSet {
        /// Version in the file, if there is one.
        found: Option<i64>,
    },
    /// The answer depends on nodes that cannot be evaluated.
    #[error("{0}")]
    Unsupported(UnsupportedNodes),
    /// A tensor's data is in another file, which is never read.
    #[error(
        "tensor {tensor} keeps its data in another file ({location}), which cannot be read: {reason}; export \
         with the weights inside the model, for PyTorch with external_data=False"
    )]
    ExternalData {
        /// Name of the tensor.
        tensor: String,
        /// File it names.
        location: String,
        /// Why it cannot.
        reason: String,
    },
    /// A constant is NaN or infinite.
    #[error(
        "tensor {tensor} has the value {value} at index {index}; train the model again with a \
         smaller learning rate or check its normalisation"
    )]
    NotFinite {
        /// Name of the tensor.
        tensor: String,
        /// Row-major index.
        index: usize,
        /// NaN or an infinity.
        value: f64,
    },
    /// A division by a constant that is zero somewhere.
    #[error(
        "node {node} divides by zero at index {index} of its divisor; a column with no deviation \
         must not be divided by it"
    )]
    DivisionByZero {
        /// Name of the node.
        node: String,
        /// Row-major index.
        index: usize,
    },
    /// Shape and data of a tensor disagree.
    #[error("tensor {tensor} declares shape {shape:?}, but {reason}. Export the model again")]
    TensorData {
        /// Name of the tensor.
        tensor: String,
        /// Shape as declared.
        shape: Vec<i64>,
        /// What is wrong.
        reason: String,
    },
    /// A tensor has an element type that import does not read.
    #[error(
        "tensor {tensor} has element type {data_type}, which is not supported; use float, double, \
         float16 or bfloat16 weights"
    )]
    TensorType {
        /// Name of the tensor.
        tensor: String,
        /// `TensorProto.DataType`.
        data_type: i32,
    },
    /// A node uses a value that nothing provides.
    #[error(
        "node {node} uses {value}, which is no output of a node, no initialiser and no input; \
         export the model again"
    )]
    MissingValue {
        /// Name of the node.
        node: String,
        /// Name of the value.
        value: String,
    },
    /// Two nodes, initialisers or inputs provide the same value.
    #[error("value {value} is provided twice; export the model again")]
    DuplicateValue {
        /// Name of the value.
        value: String,
    },
    /// The graph feeds back into itself.
    #[error("node {node} depends on its own output; only feed-forward networks are supported")]
    Cycle {
        /// Name of a node on the cycle.
        node: String,
    },
    /// Shapes do not fit together.
    #[error("node {node}: expected {expected}, got {found}")]
    Shape {
        /// Name of the node.
        node: String,
        /// Shape that would fit.
        expected: String,
        /// Shape that is there.
        found: String,
    },
    /// A node lacks an input, or a parameter is out of range.
    #[error("node {node}: {reason}. Export the model again")]
    Node {
        /// Name of the node.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// The input is not one tensor of known shape.
    #[error("{reason}")]
    Input {
        /// What is wrong and what would be right.
        reason: String,
    },
    /// No output, or more than one, can be the scores of the classes.
    #[error("{reason}")]
    Output {
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The steps do not make up a network that can be shared.
    #[error("the imported network is refused: {0}")]
    Network(#[from] NetworkError),
}

/// All nodes of a model that import cannot evaluate, in the order of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedNodes {
    /// The nodes, at least one.
    pub nodes: Vec<UnsupportedNode>,
}

/// One node that import cannot evaluate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedNode {
    /// Name of the node, or its first output when it has none.
    pub node: String,
    /// Operator.
    pub operator: String,
    /// Domain of the operator; "ai.onnx" for those of ONNX itself.
    pub domain: String,
    /// Version of the domain's operator set, if the file names one.
    pub opset: Option<i64>,
    /// What may help, if anything is known to.
    pub hint: Option<String>,
}

impl fmt::Display for UnsupportedNodes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} unsupported {}:",
            self.nodes.len(),
            if self.nodes.len() == 1 { "node" } else { "nodes" }
        )?;
        for unsupported in &self.nodes {
            let UnsupportedNode { node, operator, domain, opset, hint } = unsupported;
            let opset = opset.map_or_else(|| "unknown".to_owned(), |version| version.to_string());
            write!(formatter, "\n  {node}: {operator} ({domain}, opset {opset})")?;
            if let Some(hint) = hint {
                write!(formatter, "; {hint}")?;
            }
        }
        write!(
            formatter,
            "\nSupported are convolutions, dense layers, pooling, sums of values, rectifiers such as ReLU and functions such as Tanh."
        )
    }
}

/// Quotes a name from a file: control characters escaped and long names cut.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", escaped(name))
}

/// As [`quoted`], without the quotes.
pub(super) fn escaped(name: &str) -> String {
    let mut text: String = name.chars().take(LONGEST_NAME).collect::<String>().escape_debug().collect();
    if name.chars().nth(LONGEST_NAME).is_some() {
        text.push('…');
    }
    text
}
