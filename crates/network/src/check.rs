//! The report that an owner reads before sharing a model.

use std::fmt::{self, Display};

use serde::Serialize;

use crate::{
    input::InputDomain,
    model::Network,
    precision::{Precision, Ring},
    quantise::{QuantiseError, Quantised, choose_fractional_bits, enforce, quantise},
    range::{StepRange, analyse_steps},
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
    /// Rescalings or comparisons that wait for each other, a comparison after a rescaling not counted.
    pub depth: usize,
    /// The ring the report is made for, by its width in bits.
    #[serde(rename = "ring_bits")]
    pub ring: Ring,
    /// Fractional bits the report is made for.
    pub fractional_bits: u32,
    /// Range of each step; ends early at one that cannot fit the ring.
    pub steps: Vec<StepRange>,
    /// Comparison window for the difference of two logits, when the network fits.
    pub final_width: Option<u32>,
    /// Proven bound on the error of a logit, when the network fits.
    pub error_bound: Option<f64>,
    /// Why the network cannot be shared, when it cannot.
    pub refusal: Option<String>,
}

impl Check {
    /// Reports on `network` for inputs in `domain`, in `ring`.
    ///
    /// Without `fractional_bits` the most that fit are chosen. A network that does not fit still gets a
    /// report, with [`Check::refusal`] set.
    ///
    /// # Errors
    /// [`QuantiseError`] when there is nothing to report on: the shapes of network and domain differ, a
    /// weight is too large for 64 bits, the ring cannot evaluate a step, or the fractional bits are outside
    /// their limits.
    pub fn new(
        network: &Network,
        domain: &InputDomain,
        ring: Ring,
        fractional_bits: Option<u32>,
    ) -> Result<Self, QuantiseError> {
        let fractional_bits = match fractional_bits {
            Some(bits) => bits,
            None => match choose_fractional_bits(ring, [network], domain) {
                Ok(bits) => bits,
                Err(QuantiseError::NoFractionalBits { .. }) => *ring.fractional_bits().start(),
                Err(error) => return Err(error),
            },
        };
        let precision = Precision { ring, fractional_bits };
        let quantised = Quantised::new(network, domain, precision)?;
        let analysis = analyse_steps(&quantised, domain);
        let verdict = enforce(&analysis, &quantised);
        let error_bound = match &verdict {
            Ok(_) => Some(quantise(network, domain, precision)?.error_bound()),
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
            depth: network.depth(),
            ring,
            fractional_bits,
            steps: analysis.ranges,
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
        writeln!(formatter, "ring            {} bits", self.ring)?;
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
        let name_width = self.steps.iter().map(|range| shown_name(&range.name).chars().count()).max();
        let name_width = name_width.unwrap_or(0).max(4);
        writeln!(
            formatter,
            "\n{:>5} {:<name_width$} {:<12} {:>7} {:>12} {:>12} {:>6} {:>9} {:>6}",
            "step", "name", "operation", "size", "minimum", "maximum", "bound", "headroom", "window"
        )?;
        for range in &self.steps {
            writeln!(
                formatter,
                "{:>5} {:<name_width$} {:<12} {:>7} {:>12.4} {:>12.4} {:>6} {:>9} {:>6}",
                range.step,
                shown_name(&range.name),
                range.operation,
                range.size,
                range.minimum,
                range.maximum,
                range.bound_bits.map_or_else(String::new, |bits| format!("2^{bits}")),
                range.headroom_bits.map_or_else(String::new, |bits| bits.to_string()),
                range.width
            )?;
        }
        match &self.refusal {
            None => {
                let bits = self.ring.minimum_headroom_bits();
                writeln!(formatter, "\naccepted: headroom is at least {bits} bits")
            }
            Some(refusal) => writeln!(formatter, "\nrefused: {refusal}"),
        }
    }
}

/// A name in the table; the beginning of one that is long says least, as exporters write paths.
fn shown_name(name: &str) -> String {
    const LONGEST: usize = 32;
    match name.chars().count() {
        0 => "-".to_owned(),
        length if length > LONGEST => {
            format!("…{}", name.chars().skip(length - LONGEST + 1).collect::<String>())
        }
        _ => name.to_owned(),
    }
}
