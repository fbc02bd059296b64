//! What a name of the graph stands for while the graph is walked.

use std::rc::Rc;

use ndarray::{ArrayD, IxDyn};

use super::{ImportError, activation::Activation, error::quoted};
use crate::erase::Erasing;

/// An element of an integer tensor: shapes, axes and indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Integer {
    /// A number.
    Known(i64),
    /// The number of samples in a batch, wherever `Shape` of something that depends on the input led.
    Batch,
}

/// The value of one name.
#[derive(Clone)]
pub(super) enum Value {
    /// A constant of real numbers.
    Float(Rc<Erasing<IxDyn>>),
    /// A constant of integers.
    Integer(Rc<ArrayD<Integer>>),
    /// Depends on the input.
    Activation(Activation),
    /// As [`Value::Activation`] of shape `[rows, ...]`, but with the rows of all samples as the first dimension.
    Rows(Activation),
    /// One number for each sample that is added to the scores of all classes, or divides them and is above zero:
    /// the logarithm of the sum of their powers, or the sum of scores.
    Total {
        /// What orders the classes.
        logits: Activation,
        /// Index of its node.
        source: usize,
    },
    /// The sigmoid of one score, or one minus it.
    Sigmoid {
        /// The score.
        logit: Activation,
        /// True for one minus the sigmoid.
        complement: bool,
        /// Index of the sigmoid's node.
        source: usize,
    },
    /// Scores that order the classes as `logits` do: after a softmax or the like.
    Scores {
        /// The scores before.
        logits: Activation,
        /// Index of the softmax's node.
        source: usize,
    },
    /// The result of a node that is not supported, or of one that uses such a result.
    Unknown {
        /// False for what is computed from constants alone.
        depends_on_input: bool,
    },
}

impl Value {
    pub(super) fn float(array: ArrayD<f64>) -> Self {
        Self::Float(Rc::new(Erasing::new(array)))
    }

    pub(super) fn integer(array: ArrayD<Integer>) -> Self {
        Self::Integer(Rc::new(array))
    }

    /// True unless the value is computed from constants alone.
    pub(super) fn depends_on_input(&self) -> bool {
        match self {
            Self::Float(_) | Self::Integer(_) => false,
            Self::Activation(_)
            | Self::Rows(_)
            | Self::Total { .. }
            | Self::Sigmoid { .. }
            | Self::Scores { .. } => true,
            Self::Unknown { depends_on_input } => *depends_on_input,
        }
    }

    /// Index of the softmax or sigmoid that the value is the result of, if it is.
    pub(super) fn source(&self) -> Option<usize> {
        match self {
            Self::Sigmoid { source, .. } | Self::Scores { source, .. } | Self::Total { source, .. } => {
                Some(*source)
            }
            _ => None,
        }
    }

    /// What the value is, for errors.
    pub(super) fn description(&self) -> String {
        match self {
            Self::Float(array) => format!("a constant of shape {:?}", array.shape()),
            Self::Integer(array) => format!("integers of shape {:?}", array.shape()),
            Self::Activation(activation) => format!("[batch, {}]", list(&activation.shape)),
            Self::Rows(activation) => format!("[batch x {}]", list(&activation.shape)),
            Self::Total { .. } => "a sum over all classes".to_owned(),
            Self::Sigmoid { .. } => "the result of a Sigmoid".to_owned(),
            Self::Scores { .. } => "the result of a Softmax or Sigmoid".to_owned(),
            Self::Unknown { .. } => "the result of an unsupported node".to_owned(),
        }
    }
}

/// A node whose result is computed only where the order of the classes is not all that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Sigmoid,
    Softmax,
    /// A classifier whose scores are numbers as they are.
    Classifier,
}

/// Where a LogSoftmax or the scores of a classifier may stand.
pub(super) const ONLY_AT_THE_END: &str =
    "only allowed after the last layer, where it does not change the order of the classes";

/// Why a division is refused.
pub(super) const DIVISOR_DEPENDS_ON_THE_INPUT: &str =
    "divides by a value that depends on the input; only constants are divided by";

/// Prints dimensions without brackets.
pub(super) fn list(shape: &[usize]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why a node gives no value.
pub(super) enum Failure {
    /// The node is well-formed but beyond what import evaluates; says what may help.
    Unsupported(String),
    /// The model is broken or beyond a limit.
    Import(ImportError),
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        Self::Import(error)
    }
}

/// A node that is well-formed but not supported, with a hint.
pub(super) fn unsupported<T>(hint: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Unsupported(hint.into()))
}

/// A node whose shapes do not fit.
pub(super) fn mismatch<T>(
    node: &str,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> Result<T, Failure> {
    Err(Failure::Import(ImportError::Shape {
        node: quoted(node),
        expected: expected.into(),
        found: found.into(),
    }))
}

/// Turns an axis counted from either end into one counted from the front.
pub(super) fn normalise_axis(axis: i64, rank: usize, node: &str) -> Result<usize, Failure> {
    let signed_rank = rank as i64;
    let normalised = if axis < 0 { axis.saturating_add(signed_rank) } else { axis };
    match usize::try_from(normalised) {
        Ok(position) if position < rank => Ok(position),
        _ => mismatch(
            node,
            format!("an axis from {} to {}", -signed_rank, signed_rank - 1),
            format!("axis {axis}"),
        ),
    }
}
