//! Fixed-point networks and their plaintext oracle.
//!
//! A real number `v` stands as the integer `round(v · 2^f)` in the ring of integers modulo 2^64. A
//! product has scale 2f, so biases are kept at scale 2f, added before the truncation by f bits, and
//! each affine layer truncates once.
//!
//! Truncation in the multi-party computation yields the floor of the exact quotient or one more, at
//! random. The oracle therefore takes a [`Rounding`], and [`FixedNetwork::check_step`] tells whether
//! values opened in a test are among the outcomes that truncation allows.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use thiserror::Error;

use crate::{
    architecture::{Architecture, LayerShape},
    erase::erase,
    range::LayerRange,
};

/// One layer of a [`FixedNetwork`].
///
/// There is no `Debug`: weights are their owner's secret.
pub enum FixedLayer {
    /// Maps a row vector `x` to `(x · weights + bias) / 2^f`, truncated.
    Affine {
        /// Shape `[inputs, outputs]`, scale f. Rows of the first layer carry the scale of their
        /// feature.
        weights: Array2<i64>,
        /// Shape `[outputs]`, scale 2f.
        bias: Array1<i64>,
        /// `l` with |x · weights + bias| < 2^l; at least f, at most
        /// [`MAXIMUM_BOUND_BITS`](crate::limits::MAXIMUM_BOUND_BITS).
        bound_bits: u32,
    },
    /// Replaces every negative value by zero.
    Relu {
        /// Comparison window `k` with |x| < 2^(k - 1) for every value that arrives.
        width: u32,
    },
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

/// A network in 64-bit fixed point whose ranges are proven to leave the headroom that truncation needs.
///
/// The weights are overwritten with zero when the value is dropped; there is no `Debug` and no `Clone`.
pub struct FixedNetwork {
    pub(crate) layers: Vec<FixedLayer>,
    pub(crate) fractional_bits: u32,
    pub(crate) final_width: u32,
    pub(crate) ranges: Vec<LayerRange>,
    pub(crate) error_bounds: Vec<f64>,
}

/// Where the values of one step differ from all that truncation allows.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepError {
    /// There is no such layer.
    #[error("there is no layer {layer}; the network has {layers}")]
    NoLayer {
        /// The index given.
        layer: usize,
        /// Number of layers.
        layers: usize,
    },
    /// The values have the wrong shape.
    #[error("layer {layer}: {part} have shape {found:?}, expected {expected:?}")]
    Shape {
        /// Index of the layer.
        layer: usize,
        /// "inputs" or "outputs".
        part: &'static str,
        /// Shape given.
        found: [usize; 2],
        /// Shape that fits.
        expected: [usize; 2],
    },
    /// A value is not among the allowed outcomes.
    #[error("layer {layer}, row {row}, output {output}: {found} is not within {minimum} to {maximum}")]
    Value {
        /// Index of the layer.
        layer: usize,
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
    /// The layers in order: affine at even indices, ReLU at odd ones.
    #[must_use]
    pub fn layers(&self) -> &[FixedLayer] {
        &self.layers
    }

    /// Fractional bits f of inputs, activations and logits.
    #[must_use]
    pub fn fractional_bits(&self) -> u32 {
        self.fractional_bits
    }

    /// Comparison window `k` with |logit i - logit j| < 2^(k - 1) for all classes i and j.
    #[must_use]
    pub fn final_width(&self) -> u32 {
        self.final_width
    }

    /// Range of each affine layer, from the analysis that admitted the network.
    #[must_use]
    pub fn ranges(&self) -> &[LayerRange] {
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
        let mut size = 0;
        let layers = self
            .layers
            .iter()
            .map(|layer| match layer {
                FixedLayer::Affine { weights, bound_bits, .. } => {
                    let (inputs, outputs) = weights.dim();
                    size = outputs;
                    LayerShape::Affine { inputs, outputs, bound_bits: *bound_bits }
                }
                FixedLayer::Relu { width } => LayerShape::Relu { size, width: *width },
            })
            .collect();
        Architecture {
            input_features: self.input_features(),
            classes: size,
            fractional_bits: self.fractional_bits,
            layers,
            final_width: self.final_width,
        }
    }

    fn input_features(&self) -> usize {
        match self.layers.first() {
            Some(FixedLayer::Affine { weights, .. }) => weights.nrows(),
            _ => 0,
        }
    }

    /// Logits `[rows, classes]` at scale f of encoded `inputs` `[rows, features]`.
    ///
    /// Sums wrap modulo 2^64 as they do in the ring; inputs of the domain never reach that.
    ///
    /// # Panics
    /// When `inputs` does not have as many columns as the network has input features.
    #[must_use]
    pub fn evaluate(&self, inputs: ArrayView2<'_, i64>, rounding: Rounding) -> Array2<i64> {
        self.layers.iter().fold(inputs.to_owned(), |values, layer| self.step(layer, values.view(), rounding))
    }

    /// Values `[rows, size]` after every layer, in order; the last are the logits.
    ///
    /// # Panics
    /// As [`Self::evaluate`].
    #[must_use]
    pub fn trace(&self, inputs: ArrayView2<'_, i64>, rounding: Rounding) -> Vec<Array2<i64>> {
        let mut steps: Vec<Array2<i64>> = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let values = steps.last().map_or(inputs.view(), |values| values.view());
            let next = self.step(layer, values, rounding);
            steps.push(next);
        }
        steps
    }

    fn step(&self, layer: &FixedLayer, values: ArrayView2<'_, i64>, rounding: Rounding) -> Array2<i64> {
        match layer {
            FixedLayer::Affine { weights, bias, .. } => {
                affine(values, weights, bias).mapv_into(|z| rounding.truncate(z, self.fractional_bits))
            }
            FixedLayer::Relu { .. } => values.mapv(|value| value.max(0)),
        }
    }

    /// Checks that `outputs` is what layer `layer` may give for `inputs`, both `[rows, size]`.
    ///
    /// An affine layer may give the floor of each exact quotient or one more; ReLU has one outcome.
    /// Feeding the opened values of each layer into the check of the next one makes it exact at every
    /// depth.
    ///
    /// # Errors
    /// [`StepError`] naming the first value that is not allowed, or a wrong layer or shape.
    pub fn check_step(
        &self,
        layer: usize,
        inputs: ArrayView2<'_, i64>,
        outputs: ArrayView2<'_, i64>,
    ) -> Result<(), StepError> {
        let Some(content) = self.layers.get(layer) else {
            return Err(StepError::NoLayer { layer, layers: self.layers.len() });
        };
        let shape = |part, found: (usize, usize), expected: [usize; 2]| {
            let found = [found.0, found.1];
            if found == expected { Ok(()) } else { Err(StepError::Shape { layer, part, found, expected }) }
        };
        let rows = inputs.nrows();
        if let FixedLayer::Affine { weights, .. } = content {
            shape("inputs", inputs.dim(), [rows, weights.nrows()])?;
        }
        let minimum = self.step(content, inputs, Rounding::Down);
        shape("outputs", outputs.dim(), [rows, minimum.ncols()])?;
        let slack = i64::from(matches!(content, FixedLayer::Affine { .. }));
        for ((row, output), &found) in outputs.indexed_iter() {
            let minimum = minimum[(row, output)];
            let maximum = minimum + slack;
            if !(minimum..=maximum).contains(&found) {
                return Err(StepError::Value { layer, row, output, found, minimum, maximum });
            }
        }
        Ok(())
    }
}

/// `values · weights + bias` modulo 2^64.
fn affine(values: ArrayView2<'_, i64>, weights: &Array2<i64>, bias: &Array1<i64>) -> Array2<i64> {
    assert_eq!(values.ncols(), weights.nrows(), "columns of the values");
    let mut outputs = Array2::zeros((values.nrows(), weights.ncols()));
    for (row, mut output) in values.axis_iter(Axis(0)).zip(outputs.outer_iter_mut()) {
        output.assign(bias);
        for (&value, weight_row) in row.iter().zip(weights.outer_iter()) {
            for (sum, &weight) in output.iter_mut().zip(weight_row) {
                *sum = sum.wrapping_add(value.wrapping_mul(weight));
            }
        }
    }
    outputs
}

impl Drop for FixedNetwork {
    fn drop(&mut self) {
        for layer in &mut self.layers {
            if let FixedLayer::Affine { weights, bias, .. } = layer {
                erase(weights);
                erase(bias);
            }
        }
    }
}
