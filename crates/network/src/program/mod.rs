//! A classifier as a list of steps over values.
//!
//! Value 0 is the input, value `i + 1` the result of step `i`, and the last value holds the logits.
//! A value is a row of numbers for each sample of a batch: shapes such as `[channels, height, width]`
//! are known to the steps that need them, and elements are in row-major order. A step names the
//! values it takes, all of which come before its own, so a program is an acyclic graph by its form.
//!
//! The list exists three times: with real weights ([`Network`](crate::Network)), with integer weights
//! ([`FixedNetwork`](crate::FixedNetwork)), and without any ([`Architecture`](crate::Architecture)).
//! What a step is, an [`Operation`], is the same in all three and public.
//!
//! | where | what |
//! |---|---|
//! | here | operations, their sizes, and the checks that every program passes |
//! | [`affine`] | products with secret weights, dense and by windows |
//! | [`function`] | smooth functions, by straight pieces |
//! | [`gather`] | numbers in another order |
//! | [`level`] | which steps wait for the same messages |
//! | [`evaluate`] | the meaning of each operation on real numbers and on integers |

pub mod affine;
pub mod evaluate;
pub mod function;
pub mod gather;
pub mod level;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use affine::{Affine, Convolution, Weights};
pub use function::Function;
pub use gather::{Gather, Piece};

use crate::limits::{
    MAXIMUM_COEFFICIENT, MAXIMUM_DEPTH, MAXIMUM_ELEMENTS, MAXIMUM_INPUTS, MAXIMUM_SIZE, MAXIMUM_STEPS,
    MAXIMUM_WEIGHTS, MAXIMUM_WORK,
};

/// What a step computes, without its weights.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Operation {
    /// A row times a secret matrix `[inputs, outputs]`, plus a secret bias.
    Dense {
        /// Values that arrive.
        inputs: usize,
        /// Values that leave.
        outputs: usize,
    },
    /// Windows of the value times secret matrices, plus a secret bias for each channel.
    Convolution(Convolution),
    /// A secret summand for each channel, of `positions` numbers each.
    Shift {
        /// Number of channels.
        channels: usize,
        /// Numbers of a channel.
        positions: usize,
    },
    /// Numbers of one or several values in another order.
    Gather(Gather),
    /// The sum of each window of each channel; `channels` and `groups` are equal.
    Sum(Convolution),
    /// A sum of values of one size, each times a public integer.
    Combine {
        /// One factor for each value.
        coefficients: Vec<i64>,
    },
    /// The products of the numbers of two values of one size.
    Multiply,
    /// The products of matrices of one value with those of another.
    MatrixProduct(MatrixProduct),
    /// Replaces negative numbers by zero.
    Relu,
    /// The larger of the numbers of two values of one size.
    Maximum,
    /// 1 for each number that is 0 or more, 0 for each that is negative.
    Step,
    /// A smooth function of each number, by straight pieces.
    Function(Function),
}

/// Products of the matrices of two values: `[groups, rows, inner]` times `[groups, inner, columns]` is
/// `[groups, rows, columns]`. Each sum of products is rescaled once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatrixProduct {
    /// Products side by side.
    pub groups: usize,
    /// Rows of a matrix of the first value and of a product.
    pub rows: usize,
    /// Columns of a matrix of the first value, rows of one of the second.
    pub inner: usize,
    /// Columns of a matrix of the second value and of a product.
    pub columns: usize,
}

impl MatrixProduct {
    /// Numbers of the first value, of the second one and of the result, for sizes within the limits.
    #[must_use]
    pub fn sizes(&self) -> [usize; 3] {
        let Self { groups, rows, inner, columns } = *self;
        [groups * rows * inner, groups * inner * columns, groups * rows * columns]
    }

    /// Where the matrix of the first value, of the second one and of the result begins for a group, and its
    /// shape.
    #[must_use]
    pub fn matrices(&self, group: usize) -> [(usize, [usize; 2]); 3] {
        let Self { rows, inner, columns, .. } = *self;
        [[rows, inner], [inner, columns], [rows, columns]].map(|shape| (group * shape[0] * shape[1], shape))
    }

    /// Checks every number; afterwards no size overflows.
    fn check(&self, step: usize) -> Result<(), ProgramError> {
        let Self { groups, rows, inner, columns } = *self;
        for (name, found) in [
            ("number of matrices", groups),
            ("number of rows", rows),
            ("number of rows of the second matrix", inner),
            ("number of columns", columns),
            ("size of the first matrices", groups.saturating_mul(rows).saturating_mul(inner)),
            ("size of the second matrices", groups.saturating_mul(inner).saturating_mul(columns)),
            ("size of the products", groups.saturating_mul(rows).saturating_mul(columns)),
        ] {
            if !(1..=MAXIMUM_SIZE).contains(&found) {
                return Err(ProgramError::Limit { step, name, found, minimum: 1, maximum: MAXIMUM_SIZE });
            }
        }
        Ok(())
    }
}

/// The messages that the servers exchange for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Messages {
    /// None: each server works on its components.
    None,
    /// A rescaling by 2^f.
    Rescaling,
    /// A comparison with zero, and a selection by its result.
    Comparison,
    /// A comparison and a selection, and then a rescaling.
    ComparisonAndRescaling,
}

impl Messages {
    /// True when a rescaling is among them, the last.
    #[must_use]
    pub fn rescale(self) -> bool {
        matches!(self, Self::Rescaling | Self::ComparisonAndRescaling)
    }

    /// True when a comparison is among them, the first.
    #[must_use]
    pub fn compare(self) -> bool {
        matches!(self, Self::Comparison | Self::ComparisonAndRescaling)
    }
}

impl Operation {
    /// What it is called in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense { .. } => "dense",
            Self::Convolution(_) => "convolution",
            Self::Shift { .. } => "shift",
            Self::Gather(_) => "gather",
            Self::Sum(_) => "sum",
            Self::Combine { .. } => "combine",
            Self::Multiply => "multiply",
            Self::MatrixProduct(_) => "matrix product",
            Self::Relu => "relu",
            Self::Maximum => "maximum",
            Self::Step => "step",
            Self::Function(function) => match function {
                Function::Tanh => "tanh",
                Function::Sigmoid => "sigmoid",
                Function::Softplus => "softplus",
                Function::Erf => "erf",
                Function::Gelu => "gelu",
                Function::GeluTanh => "gelu by tanh",
                Function::Silu => "silu",
                Function::Mish => "mish",
                Function::NegativeExponential => "exponential",
                Function::Reciprocal => "reciprocal",
            },
        }
    }

    /// The messages it takes.
    #[must_use]
    pub fn messages(&self) -> Messages {
        match self {
            Self::Shift { .. } | Self::Gather(_) | Self::Sum(_) | Self::Combine { .. } => Messages::None,
            Self::Dense { .. } | Self::Convolution(_) | Self::Multiply | Self::MatrixProduct(_) => {
                Messages::Rescaling
            }
            Self::Relu | Self::Maximum | Self::Step => Messages::Comparison,
            Self::Function(_) => Messages::ComparisonAndRescaling,
        }
    }

    /// The product with weights that it is, if it is one.
    #[must_use]
    pub fn affine(&self) -> Option<Affine> {
        match self {
            Self::Dense { inputs, outputs } => Some(Affine::dense(*inputs, *outputs)),
            Self::Convolution(convolution) => Some(Affine::convolution(*convolution)),
            _ => None,
        }
    }

    /// The shape `[groups, inner, outer]` of its weights and the number of its biases, if it has some.
    #[must_use]
    pub fn weights(&self) -> Option<([usize; 3], usize)> {
        match self {
            Self::Shift { channels, .. } => Some(([0; 3], *channels)),
            _ => self.affine().map(|affine| ([affine.groups, affine.inner, affine.outer], affine.biases())),
        }
    }

    /// The number of secret elements: weights and biases.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.weights().map_or(0, |(shape, biases)| shape.iter().product::<usize>() + biases)
    }

    /// Checks a step of untrusted origin against the sizes of the values that it takes, and gives the
    /// size of its result.
    fn result(&self, step: usize, arriving: &[usize]) -> Result<usize, ProgramError> {
        let limit = |name, found, maximum| {
            if (1..=maximum).contains(&found) {
                Ok(())
            } else {
                Err(ProgramError::Limit { step, name, found, minimum: 1, maximum })
            }
        };
        let expected = match self {
            Self::Gather(_) => arriving.len().clamp(1, MAXIMUM_INPUTS),
            Self::Combine { coefficients } => coefficients.len().clamp(1, MAXIMUM_INPUTS),
            Self::Multiply | Self::MatrixProduct(_) | Self::Maximum => 2,
            _ => 1,
        };
        if arriving.len() != expected {
            let (operation, found) = (self.name(), arriving.len());
            return Err(ProgramError::InputCount { step, operation, found, expected });
        }
        let size = arriving[0];
        let takes = |found| {
            if found == size { Ok(()) } else { Err(ProgramError::Inputs { step, found, expected: size }) }
        };
        match self {
            Self::Dense { inputs, outputs } => {
                limit("number of inputs", *inputs, MAXIMUM_SIZE)?;
                limit("number of outputs", *outputs, MAXIMUM_SIZE)?;
                takes(*inputs)?;
                Ok(*outputs)
            }
            Self::Convolution(convolution) => {
                convolution.check(step)?;
                let affine = Affine::convolution(*convolution);
                takes(affine.inputs())?;
                Ok(affine.outputs())
            }
            Self::Sum(windows) => {
                windows.check(step)?;
                limit("number of channels of a sum", windows.channels[0], windows.groups)?;
                limit("number of channels of a sum", windows.channels[1], windows.groups)?;
                let affine = Affine::convolution(*windows);
                takes(affine.inputs())?;
                Ok(affine.outputs())
            }
            Self::Shift { channels, positions } => {
                limit("number of channels", *channels, MAXIMUM_SIZE)?;
                limit("size of a channel", *positions, MAXIMUM_SIZE)?;
                takes(channels * positions)?;
                Ok(size)
            }
            Self::Gather(gather) => gather.check(step, arriving),
            Self::Combine { coefficients } => {
                arriving.iter().try_for_each(|&other| takes(other))?;
                for coefficient in coefficients {
                    let found = usize::try_from(coefficient.unsigned_abs()).unwrap_or(usize::MAX);
                    limit("magnitude of a factor", found, MAXIMUM_COEFFICIENT as usize)?;
                }
                Ok(size)
            }
            Self::Multiply | Self::Maximum => {
                takes(arriving[1])?;
                Ok(size)
            }
            Self::MatrixProduct(product) => {
                product.check(step)?;
                let [left, right, result] = product.sizes();
                takes(left)?;
                if right != arriving[1] {
                    return Err(ProgramError::Inputs { step, found: right, expected: arriving[1] });
                }
                Ok(result)
            }
            Self::Relu | Self::Step | Self::Function(_) => Ok(size),
        }
    }

    /// Numbers that are held for it at a time, for one sample: a function selects at all of its knots.
    fn held(&self, size: usize) -> usize {
        match self {
            Self::Function(function) => size.saturating_mul(function.comparisons()),
            _ => size,
        }
    }

    /// Multiplications, or as much, for one sample.
    fn work(&self, size: usize) -> usize {
        match self {
            Self::Sum(windows) => Affine::convolution(*windows).work(),
            Self::Function(function) => size.saturating_mul(function.comparisons()),
            Self::MatrixProduct(product) => size.saturating_mul(product.inner),
            _ => self.affine().map_or(size, |affine| affine.work()),
        }
    }
}

/// Why a list of steps is no program.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgramError {
    /// There are no steps or too many.
    #[error("there are {found} steps; the limit is 1 to {MAXIMUM_STEPS}")]
    StepCount {
        /// Number of steps.
        found: usize,
    },
    /// A step takes a value that is not computed before it.
    #[error("step {step} takes value {found}, but only values 0 to {step} come before it")]
    Value {
        /// Index of the step.
        step: usize,
        /// Index of the value.
        found: usize,
    },
    /// A step takes the wrong number of values.
    #[error("step {step} is {operation} and takes {expected}, not {found} values")]
    InputCount {
        /// Index of the step.
        step: usize,
        /// Its operation.
        operation: &'static str,
        /// Values it names.
        found: usize,
        /// Values it must name.
        expected: usize,
    },
    /// A step does not take as many numbers as arrive.
    #[error("step {step} takes {found} numbers, but {expected} arrive")]
    Inputs {
        /// Index of the step.
        step: usize,
        /// Numbers it takes.
        found: usize,
        /// Numbers that arrive.
        expected: usize,
    },
    /// A number of a step is outside its limits.
    #[error("step {step}: {name} is {found}; the limit is {minimum} to {maximum}")]
    Limit {
        /// Index of the step.
        step: usize,
        /// What the number is.
        name: &'static str,
        /// The number given.
        found: usize,
        /// Smallest value allowed.
        minimum: usize,
        /// Largest value allowed.
        maximum: usize,
    },
    /// The steps together have too much of something.
    #[error("step {step}: with it, there are more than {maximum} {what}; use a smaller network")]
    TooMany {
        /// Index of the step at which the limit was passed.
        step: usize,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        maximum: usize,
    },
}

/// Checks a list of steps and gives the sizes of all values, that of the input first.
///
/// The steps may come from a peer who is not trusted: nothing is reserved by a number that is not
/// checked, and afterwards every index lies in its value, and weights, intermediate numbers,
/// multiplications and depth are within [`limits`](crate::limits).
///
/// # Errors
/// [`ProgramError`] naming the step, the number and its limit.
pub fn check<'a>(
    input: usize,
    steps: impl ExactSizeIterator<Item = (&'a [usize], &'a Operation)>,
) -> Result<Vec<usize>, ProgramError> {
    let found = steps.len();
    if !(1..=MAXIMUM_STEPS).contains(&found) {
        return Err(ProgramError::StepCount { found });
    }
    let mut sizes = Vec::with_capacity(found + 1);
    sizes.push(input);
    let mut levels = level::Levels::new();
    let (mut weights, mut elements, mut work) = (0_usize, 0_usize, 0_usize);
    for (step, (inputs, operation)) in steps.enumerate() {
        let mut arriving = Vec::with_capacity(inputs.len().min(MAXIMUM_STEPS));
        for &value in inputs {
            match sizes.get(value) {
                Some(&size) => arriving.push(size),
                None => return Err(ProgramError::Value { step, found: value }),
            }
        }
        let size = operation.result(step, &arriving)?;
        if !(1..=MAXIMUM_SIZE).contains(&size) {
            let name = "number of outputs";
            return Err(ProgramError::Limit { step, name, found: size, minimum: 1, maximum: MAXIMUM_SIZE });
        }
        sizes.push(size);
        let own_weights = operation.affine().map_or(0, |affine| affine.weights());
        weights = weights.saturating_add(own_weights);
        elements = elements.saturating_add(operation.held(size));
        work = work.saturating_add(operation.work(size));
        let totals = [
            ("weights", weights, MAXIMUM_WEIGHTS),
            ("intermediate numbers", elements, MAXIMUM_ELEMENTS),
            ("multiplications", work, MAXIMUM_WORK),
            (
                "steps with messages one after the other",
                levels.push(inputs, operation).div_ceil(2),
                MAXIMUM_DEPTH,
            ),
        ];
        for (what, found, maximum) in totals {
            if found > maximum {
                return Err(ProgramError::TooMany { step, what, maximum });
            }
        }
    }
    Ok(sizes)
}

/// How many steps take each value; the last value is also taken by whoever reads the logits.
#[must_use]
pub fn uses<'a>(steps: impl ExactSizeIterator<Item = &'a [usize]>) -> Vec<usize> {
    let mut uses = vec![0; steps.len() + 1];
    for inputs in steps {
        inputs.iter().for_each(|&value| uses[value] += 1);
    }
    if let Some(last) = uses.last_mut() {
        *last += 1;
    }
    uses
}
