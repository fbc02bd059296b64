//! The report that an owner reads before sharing a model.

use std::fmt::{self, Display};

use serde::Serialize;

use crate::{
    input::InputDomain,
    limits::{MINIMUM_FRACTIONAL_BITS, MINIMUM_HEADROOM_BITS},
    model::Network,
    quantise::{QuantiseError, choose_fractional_bits, enforce, quantise, quantise_affine},
    range::{LayerRange, analyse_layers},
};

/// What a network consists of, how large its values become, and how exact its answers will be.
///
/// `Display` prints it as tables for a terminal. It names ranges that depend on the weights, so it is
/// for the owner's eyes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Program that wrote the file, as the file says.
    pub producer: Option<String>,
    /// Version of the default ONNX operator set.
    pub opset: Option<i64>,
    /// Operators of the file that the answer depends on, with their number.
    pub operators: Vec<(String, usize)>,
    /// Shape of one sample.
    pub input_shape: Vec<usize>,
    /// Number of classes.
    pub classes: usize,
    /// Number of weights and biases after fusion.
    pub parameters: usize,
    /// Sizes `[inputs, outputs]` of the affine layers.
    pub sizes: Vec<[usize; 2]>,
    /// Fractional bits the report is made for.
    pub fractional_bits: u32,
    /// Range of each affine layer; ends early at one that cannot fit the ring.
    pub layers: Vec<LayerRange>,
    /// Comparison window for the difference of two logits, when the network fits.
    pub final_width: Option<u32>,
    /// Proven bound on the error of a logit, when the network fits.
    pub error_bound: Option<f64>,
    /// Why the network cannot be shared, when it cannot.
    pub refusal: Option<String>,
}

impl Check {
    /// Reports on `network` for inputs in `domain`.
    ///
    /// Without `fractional_bits` the most that fit are chosen. A network that does not fit still gets a
    /// report, with [`Check::refusal`] set.
    ///
    /// # Errors
    /// [`QuantiseError`] when there is nothing to report on: the shapes of network and domain differ, a
    /// weight is too large for 64 bits, or the fractional bits are outside their limits.
    pub fn new(
        network: &Network,
        domain: &InputDomain,
        fractional_bits: Option<u32>,
    ) -> Result<Self, QuantiseError> {
        let fractional_bits = match fractional_bits {
            Some(bits) => bits,
            None => match choose_fractional_bits([network], domain) {
                Ok(bits) => bits,
                Err(QuantiseError::NoFractionalBits { .. }) => MINIMUM_FRACTIONAL_BITS,
                Err(error) => return Err(error),
            },
        };
        let (quantised, format) = quantise_affine(network, domain, fractional_bits)?;
        let analysis = analyse_layers(&quantised, domain, format);
        let verdict = enforce(&analysis, quantised.len(), fractional_bits);
        let sizes = quantised.iter().map(|layer| [layer.weights.nrows(), layer.weights.ncols()]);
        let error_bound = match &verdict {
            Ok(_) => Some(quantise(network, domain, fractional_bits)?.error_bound()),
            Err(_) => None,
        };
        let origin = network.origin();
        Ok(Self {
            producer: origin.map(|origin| origin.producer.clone()),
            opset: origin.map(|origin| origin.opset),
            operators: origin.map(|origin| origin.operators.clone()).unwrap_or_default(),
            input_shape: network.input_shape().to_vec(),
            classes: network.classes(),
            parameters: network.parameter_count(),
            sizes: sizes.collect(),
            fractional_bits,
            layers: analysis.ranges,
            final_width: verdict.as_ref().ok().copied(),
            error_bound,
            refusal: verdict.err().map(|error| error.to_string()),
        })
    }

    /// True when the network can be shared.
    #[must_use]
    pub fn accepted(&self) -> bool {
        self.refusal.is_none()
    }
}

impl Display for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(producer), Some(opset)) = (&self.producer, self.opset) {
            writeln!(formatter, "written by      {producer}, operator set {opset}")?;
        }
        writeln!(formatter, "input           {:?}", self.input_shape)?;
        writeln!(formatter, "classes         {}", self.classes)?;
        writeln!(formatter, "parameters      {}", self.parameters)?;
        writeln!(formatter, "fractional bits {}", self.fractional_bits)?;
        if let Some(width) = self.final_width {
            writeln!(formatter, "vote window     {width} bits")?;
        }
        if let Some(bound) = self.error_bound {
            writeln!(formatter, "logit error     at most {bound:.3e}")?;
        }
        if !self.operators.is_empty() {
            writeln!(formatter, "\n{:<24} {:>6}", "operator", "count")?;
            for (operator, count) in &self.operators {
                writeln!(formatter, "{operator:<24} {count:>6}")?;
            }
        }
        writeln!(
            formatter,
            "\n{:>5} {:>13} {:>12} {:>12} {:>6} {:>9} {:>6}",
            "layer", "size", "minimum", "maximum", "bound", "headroom", "window"
        )?;
        for (range, [inputs, outputs]) in self.layers.iter().zip(&self.sizes) {
            writeln!(
                formatter,
                "{:>5} {:>13} {:>12.4} {:>12.4} {:>6} {:>9} {:>6}",
                range.layer,
                format!("{inputs} x {outputs}"),
                range.minimum,
                range.maximum,
                format!("2^{}", range.bound_bits),
                range.headroom_bits,
                range.width
            )?;
        }
        match &self.refusal {
            None => writeln!(formatter, "\naccepted: headroom is at least {MINIMUM_HEADROOM_BITS} bits"),
            Some(refusal) => writeln!(formatter, "\nrefused: {refusal}"),
        }
    }
}
