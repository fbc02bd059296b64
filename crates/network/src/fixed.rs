//! Fixed-point networks and their plaintext oracle.
//!
//! A real number `v` stands as the integer `round(v · 2^f)` in the ring of integers modulo 2^k, where the
//! task's [`Ring`](crate::Ring) has 64 or 32 bits. A
//! product has scale 2f, so biases are kept at scale 2f, added before the truncation by f bits, and
//! each affine step truncates once.
//!
//! Truncation in the multi-party computation yields the floor of the exact quotient or one more, at
//! random. The oracle therefore takes a [`Rounding`], and [`FixedNetwork::check_step`] tells whether
//! values opened in a test are among the outcomes that truncation allows.

use ndarray::{Array2, ArrayView2};
use thiserror::Error;

use crate::{
    architecture::{Architecture, FORMAT, StepShape},
    model::label,
    precision::Precision,
    program::{Operation, Weights, evaluate},
    range::StepRange,
};

/// One step of a [`FixedNetwork`].
///
/// There is no `Debug`: weights are their owner's secret.
pub struct FixedStep {
    /// What its owner calls it.
    pub name: String,
    /// The values it takes: 0 is the input, `i + 1` the result of step `i`.
    pub inputs: Vec<usize>,
    /// What it computes.
    pub operation: Operation,
    /// Its weights at scale f and biases at scale 2f. Those of a step on the input carry the scales of
    /// the features.
    pub weights: Option<Weights<i64>>,
    /// For a step that is rescaled, `l` with |z| < 2^l before; at least f, at most the ring's
    /// [largest](crate::Ring::maximum_bound_bits).
    pub bound_bits: Option<u32>,
    /// For a step that compares, the window `k` with |x| < 2^(k - 1) for every number compared.
    pub window: Option<u32>,
}

/// What the truncation of the oracle does with the remainder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// The floor of the quotient: the smaller outcome of secure truncation.
    Down,
    /// The nearest integer, a half upwards: always one of the two outcomes.
    Nearest,
    /// The floor plus one: the larger outcome, also when the quotient is exact.
    Up,
}

impl Rounding {
    /// Divides `value` by 2^`bits`, rounded as `self` says.
    #[must_use]
    pub fn truncate(self, value: i64, bits: u32) -> i64 {
        let floor = value >> bits;
        match self {
            Self::Down => floor,
            Self::Nearest if bits == 0 => floor,
            Self::Nearest => floor + ((value >> (bits - 1)) & 1),
            // In the ring, so that no value is out of range for this.
            Self::Up => floor.wrapping_add(1),
        }
    }
}

/// A network in fixed point whose ranges are proven to leave the headroom that truncation needs.
///
/// The weights are overwritten with zero when the value is dropped; there is no `Debug` and no `Clone`.
pub struct FixedNetwork {
    pub(crate) input_features: usize,
    pub(crate) steps: Vec<FixedStep>,
    pub(crate) precision: Precision,
    pub(crate) final_width: u32,
    pub(crate) ranges: Vec<StepRange>,
    pub(crate) error_bounds: Vec<f64>,
}

/// Where the values of one step differ from all that truncation allows.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepError {
    /// There is no such step.
    #[error("there is no step {step}; the network has {steps}")]
    NoStep {
        /// The index given.
        step: usize,
        /// Number of steps.
        steps: usize,
    },
    /// The values have the wrong shape.
    #[error("{}: {part} have shape {found:?}, expected {expected:?}", label(*.step, .name))]
    Shape {
        /// Index of the step.
        step: usize,
        /// Its name.
        name: String,
        /// "inputs" or "outputs".
        part: &'static str,
        /// Shape given.
        found: [usize; 2],
        /// Shape that fits.
        expected: [usize; 2],
    },
    /// A value is not among the allowed outcomes.
    #[error(
        "{}, row {row}, output {output}: {found} is not within {minimum} to {maximum}",
        label(*.step, .name)
    )]
    Value {
        /// Index of the step.
        step: usize,
        /// Its name.
        name: String,
        /// Row of the batch.
        row: usize,
        /// Column.
        output: usize,
        /// The value given.
        found: i64,
        /// Smallest allowed outcome.
        minimum: i64,
        /// Largest allowed outcome.
        maximum: i64,
    },
}

impl FixedNetwork {
    /// The steps in order; the last one gives the logits.
    #[must_use]
    pub fn steps(&self) -> &[FixedStep] {
        &self.steps
    }

    /// Fractional bits f of inputs, activations and logits.
    #[must_use]
    pub fn fractional_bits(&self) -> u32 {
        self.precision.fractional_bits
    }

    /// The ring and the fractional bits.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Comparison window `k` with |logit i - logit j| < 2^(k - 1) for all classes i and j.
    #[must_use]
    pub fn final_width(&self) -> u32 {
        self.final_width
    }

    /// Range of the result of each step, from the analysis that admitted the network.
    #[must_use]
    pub fn ranges(&self) -> &[StepRange] {
        &self.ranges
    }

    /// Proven bound on |fixed logit - real logit|, in real units, over all classes, all inputs of the
    /// domain and all outcomes of truncation.
    ///
    /// Real means without any rounding; [`Network::evaluate`](crate::Network::evaluate) in double precision is nearer to it than
    /// this bound can show.
    #[must_use]
    pub fn error_bound(&self) -> f64 {
        self.error_bounds.iter().copied().fold(0.0, f64::max)
    }

    /// As [`Self::error_bound`], for each class.
    #[must_use]
    pub fn error_bounds(&self) -> &[f64] {
        &self.error_bounds
    }

    /// The public part of the network.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        let shape = |step: &FixedStep| StepShape {
            inputs: step.inputs.clone(),
            operation: step.operation.clone(),
            bound_bits: step.bound_bits,
            window: step.window,
        };
        Architecture {
            format: FORMAT,
            input_features: self.input_features,
            classes: self.error_bounds.len(),
            ring: self.precision.ring,
            fractional_bits: self.precision.fractional_bits,
            steps: self.steps.iter().map(shape).collect(),
            final_width: self.final_width,
        }
    }

    /// Logits `[rows, classes]` at scale f of encoded `inputs` `[rows, features]`.
    ///
    /// Sums wrap modulo 2^64; inputs of the domain never reach that, nor the modulus of the ring.
    ///
    /// # Panics
    /// When `inputs` does not have as many columns as the network has input features.
    #[must_use]
    pub fn evaluate(&self, inputs: ArrayView2<'_, i64>, rounding: Rounding) -> Array2<i64> {
        self.run(inputs, rounding, |_, _| {})
    }

    /// Values `[rows, size]` after every step, in order; the last are the logits.
    ///
    /// # Panics
    /// As [`Self::evaluate`].
    #[must_use]
    pub fn trace(&self, inputs: ArrayView2<'_, i64>, rounding: Rounding) -> Vec<Array2<i64>> {
        let mut steps = Vec::with_capacity(self.steps.len());
        let _logits = self.run(inputs, rounding, |_, values| steps.push(values.clone()));
        steps
    }

    fn run(
        &self,
        inputs: ArrayView2<'_, i64>,
        rounding: Rounding,
        observe: impl FnMut(usize, &Array2<i64>),
    ) -> Array2<i64> {
        assert_eq!(inputs.ncols(), self.input_features, "columns of the inputs");
        let taken: Vec<&[usize]> = self.steps.iter().map(|step| step.inputs.as_slice()).collect();
        let apply =
            |index: usize, values: &[ArrayView2<'_, i64>]| self.step(&self.steps[index], values, rounding);
        evaluate::run(&taken, inputs, apply, observe)
    }

    /// The result of step `step` at scale 2f, before truncation, or `None` for a step that is not rescaled.
    /// `inputs` are one `[rows, size]` for each value that it takes.
    ///
    /// # Panics
    /// If there is no such step, or the inputs do not fit it.
    #[must_use]
    pub fn unrounded(&self, step: usize, inputs: &[ArrayView2<'_, i64>]) -> Option<Array2<i64>> {
        let step = &self.steps[step];
        let rescaled = step.operation.messages().rescale();
        rescaled
            .then(|| evaluate::exact(&step.operation, step.weights.as_ref(), inputs, self.fractional_bits()))
    }

    fn step(&self, step: &FixedStep, values: &[ArrayView2<'_, i64>], rounding: Rounding) -> Array2<i64> {
        let exact = evaluate::exact(&step.operation, step.weights.as_ref(), values, self.fractional_bits());
        if step.operation.messages().rescale() {
            return exact.mapv_into(|z| rounding.truncate(z, self.fractional_bits()));
        }
        exact
    }

    /// Checks that `outputs` is what step `step` may give for `inputs`, one `[rows, size]` for each
    /// value that it takes.
    ///
    /// A step that is rescaled may give the floor of each exact quotient or one more; others have one
    /// outcome. Feeding the opened values of each step into the checks of those that take them makes
    /// it exact at every depth.
    ///
    /// # Errors
    /// [`StepError`] naming the first value that is not allowed, or a wrong step or shape.
    pub fn check_step(
        &self,
        step: usize,
        inputs: &[ArrayView2<'_, i64>],
        outputs: ArrayView2<'_, i64>,
    ) -> Result<(), StepError> {
        let Some(content) = self.steps.get(step) else {
            return Err(StepError::NoStep { step, steps: self.steps.len() });
        };
        let shape = |part, found: [usize; 2], expected: [usize; 2]| {
            let name = content.name.clone();
            if found == expected {
                Ok(())
            } else {
                Err(StepError::Shape { step, name, part, found, expected })
            }
        };
        let rows = outputs.nrows();
        let size_of = |value: usize| match value {
            0 => self.input_features,
            value => self.ranges[value - 1].size,
        };
        shape("inputs", [rows, inputs.len()], [rows, content.inputs.len()])?;
        for (&value, input) in content.inputs.iter().zip(inputs) {
            shape("inputs", [input.nrows(), input.ncols()], [rows, size_of(value)])?;
        }
        shape("outputs", [rows, outputs.ncols()], [rows, size_of(step + 1)])?;
        let minimum = self.step(content, inputs, Rounding::Down);
        let slack = i64::from(content.operation.messages().rescale());
        for ((row, output), &found) in outputs.indexed_iter() {
            let minimum = minimum[(row, output)];
            let maximum = minimum + slack;
            if !(minimum..=maximum).contains(&found) {
                let name = content.name.clone();
                return Err(StepError::Value { step, name, row, output, found, minimum, maximum });
            }
        }
        Ok(())
    }
}
